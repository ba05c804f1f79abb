"""CALL sync_outbox_drain(): batch by batch until nothing deliverable is left, nothing held while a request is out."""

import threading

import pytest

from support import behaviours
from support.wait import wait_for


@pytest.fixture
def backlog(sales):
    sales.server.set(sync_outbox__batch_rows=10)
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 100) n")
    return sales


def test_drain_empties_the_queue(backlog, receiver):
    backlog.run("CALL sync_outbox_drain()")

    assert backlog.outbox() == []
    assert [change["pk"]["id"] for change in receiver.changes] == list(range(1, 101))


def test_drain_tells_what_it_does(backlog):
    notices = []
    backlog.conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    backlog.run("CALL sync_outbox_drain()")

    assert any("100" in notice for notice in notices), notices


def test_drain_commits_batch_by_batch(backlog, receiver):
    receiver.script(*[behaviours.ack_all] * 3, then=behaviours.status(503))
    backlog.run("CALL sync_outbox_drain()")

    assert len(backlog.outbox()) == 70


def test_drain_holds_no_snapshot_and_no_lock_while_a_request_is_out(backlog, receiver):
    receiver.script(receiver.hang, then=behaviours.ack_all)
    session = backlog.session()
    thread = threading.Thread(target=session.execute, args=["CALL sync_outbox_drain()"], daemon=True)
    thread.start()
    receiver.wait_for_requests(1)
    pid = session.info.backend_pid
    try:
        wait_for(lambda: backlog.row("SELECT backend_xmin, backend_xid FROM pg_stat_activity WHERE pid = %s", [pid]) == (None, None))
        assert backlog.rows("SELECT relation::regclass FROM pg_locks WHERE pid = %s AND locktype = 'relation'", [pid]) == []
    finally:
        receiver.released.set()
        thread.join(10)
    backlog.run("CALL sync_outbox_drain()")
    assert backlog.outbox() == []


def test_drain_ends_when_the_rest_cannot_be_delivered(backlog, receiver, clock):
    receiver.behaviour = behaviours.refuse(lambda change: change["pk"]["id"] % 10 == 0)
    with clock(10):
        backlog.run("CALL sync_outbox_drain()")

    assert [change.pk["id"] for change in backlog.outbox()] == list(range(10, 101, 10))


def test_drain_of_a_branch(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text)")
    db.attach("stock", branch_column="store")
    db.run("INSERT INTO stock VALUES (1, 'S1'), (2, 'S2')")
    db.run("CALL sync_outbox_drain(branch => 'S2')")

    assert [change.branch for change in db.outbox()] == ["S1"]


def test_drain_ends_when_what_was_committed_at_its_start_is_through(backlog, receiver):
    """Under steady load it would never end otherwise; what comes later is the next one's, or the worker's."""
    writer = backlog.session()

    def write_then_ack(request, wire):
        writer.execute("INSERT INTO sales VALUES (1000)")
        behaviours.ack_all(request, wire)
    receiver.script(write_then_ack)
    backlog.run("CALL sync_outbox_drain()")

    assert [change.pk for change in backlog.outbox()] == [{"id": 1000}]


@pytest.mark.parametrize("interrupt", ["pg_cancel_backend", "pg_terminate_backend"])
def test_invariant_15_an_interrupted_drain_frees_its_lock_and_keeps_what_it_settled(backlog, receiver, interrupt):
    receiver.script(behaviours.ack_all, receiver.hang)
    session = backlog.session()
    ended = threading.Event()

    def drain():
        with pytest.raises(Exception):
            session.execute("CALL sync_outbox_drain()")
        ended.set()
    threading.Thread(target=drain, daemon=True).start()
    receiver.wait_for_requests(2)
    backlog.run(f"SELECT {interrupt}({session.info.backend_pid})")

    assert ended.wait(1)
    assert len(backlog.outbox()) in (90, 100)
    assert backlog.flushed()["ok"]


def test_invariant_14_an_operator_drains(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1)")
    session = sales.session(sales.role("operator", "sync_outbox_operator"))
    session.execute("CALL sync_outbox_drain()")

    assert sales.outbox() == []
    assert session.execute("SELECT current_user = session_user").fetchone()[0]
