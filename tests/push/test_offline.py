"""Offline and back: the procedure of the operating manual, step by step."""

import pytest

from support import behaviours
from support.ledger import Ledger


@pytest.fixture
def offline(sales, receiver):
    """Three sales made while the hub is away."""
    receiver.stop()
    sales.run("INSERT INTO sales VALUES (1, 0), (2, 0), (3, 0)")
    return sales


def test_an_attempt_while_offline_marks_failed_with_offline(offline):
    answer = offline.flushed()

    assert (answer["ok"], answer["pending"], answer["acked"], answer["error"]) == (False, 3, 0, "offline")
    assert list(answer)[:4] == ["ok", "pending", "sent", "acked"]
    for change in offline.outbox():
        assert (change.status, change.attempt_count, change.refusals) == ("FAILED", 1, 0)
        assert change.error_message.startswith("offline")


def test_invariant_17_days_offline_never_kill_a_change(offline, receiver):
    offline.server.set(sync_outbox__max_attempts=2)
    keys = offline.keys()
    for _ in range(12):
        offline.flush()

    assert {change.status for change in offline.outbox()} == {"FAILED"}
    receiver.start()
    assert offline.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert [change["dedup_key"] for change in receiver.changes] == keys


def test_writes_go_on_while_offline(offline, receiver):
    offline.flush()
    offline.run("UPDATE sales SET qty = 5; DELETE FROM sales WHERE id = 2")
    keys = offline.keys()
    receiver.start()

    assert offline.flushed()["ok"]
    ledger = Ledger(receiver.requests)
    assert ledger.in_order(keys)
    assert [(row["id"], row["qty"]) for row in ledger.rows("sales")] == [(1, 5), (3, 5)]


def test_a_try_while_offline_writes_few_rows(offline):
    """A long backlog must not be rewritten by every try."""
    offline.run("INSERT INTO sales SELECT n, 0 FROM generate_series(10, 5000) n")
    offline.flush()
    first = offline.value("SELECT count(*) FROM sync_outbox WHERE status = 'FAILED'")
    offline.flush()
    written = offline.value("SELECT count(*) FROM sync_outbox WHERE attempt_count > 1")

    assert first <= 1000
    assert written <= 100


def test_failed_changes_are_first_in_line(offline, receiver):
    offline.flush()
    offline.run("INSERT INTO sales VALUES (4, 0)")
    receiver.start()
    offline.flush()

    assert [change["pk"]["id"] for change in receiver.changes] == [1, 2, 3, 4]


def test_when_the_target_answers_all_become_pending(offline, receiver):
    offline.flush()
    receiver.start()
    offline.flush(max_rows=1)

    remaining = offline.outbox()
    assert [(change.status, change.attempt_count) for change in remaining] == [("PENDING", 0)] * 2
    assert all(change.error_message.startswith("offline") for change in remaining)


def test_requeue_makes_them_pending_with_no_attempts(offline):
    offline.flush()

    assert offline.value("SELECT sync_outbox_requeue()") == 3
    for change in offline.outbox():
        assert (change.status, change.attempt_count) == ("PENDING", 0)
        assert change.error_message.startswith("offline")
        assert change.last_attempt_at is not None


def test_requeue_by_id(offline):
    offline.flush()
    first, second, _ = [change.id for change in offline.outbox()]

    assert offline.value("SELECT sync_outbox_requeue(%s)", [[first, second, 999999]]) == 2
    assert [change.status for change in offline.outbox()] == ["PENDING", "PENDING", "FAILED"]


def test_requeue_by_table(offline):
    offline.run("CREATE TABLE stock (id int PRIMARY KEY)")
    offline.attach("stock")
    offline.run("INSERT INTO stock VALUES (1)")
    offline.flush()

    assert offline.value("SELECT sync_outbox_requeue(relation => 'stock')") == 1
    assert {change.status for change in offline.outbox("table_name = 'stock'")} == {"PENDING"}
    assert {change.status for change in offline.outbox("table_name = 'sales'")} == {"FAILED"}


def test_requeue_of_pending_changes_does_nothing(offline):
    assert offline.value("SELECT sync_outbox_requeue()") == 0
    assert offline.value("SELECT sync_outbox_requeue(%s)", [[change.id for change in offline.outbox()]]) == 0


def test_requeue_leaves_a_history_row(offline):
    offline.flush()
    offline.run("SELECT sync_outbox_requeue(reason => 'line repaired')")

    row = offline.row("SELECT * FROM sync_outbox_history WHERE action = 'REQUEUE'")
    assert (row.reason, row.who, row.mode, row.status) == ("line repaired", "postgres", "MANUAL", "SUCCESS")


@pytest.mark.parametrize("state", ["CONFLICT", "DEAD", "FAILED"])
def test_requeue_takes_every_state_and_resets_refusals(sales, receiver, state):
    sales.server.set(sync_outbox__max_attempts=1 if state == "DEAD" else 10)
    sales.run("INSERT INTO sales VALUES (1, 0)")
    everything = lambda change: True  # noqa: E731
    receiver.script(behaviours.conflict(everything) if state == "CONFLICT" else behaviours.refuse(everything))
    sales.flush()
    assert sales.outbox()[0].status == state

    assert sales.value("SELECT sync_outbox_requeue()") == 1
    (change,) = sales.outbox()
    assert (change.status, change.attempt_count, change.refusals, change.next_attempt_at) == ("PENDING", 0, 0, None)
    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_requeue_keeps_the_order_of_a_row(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 0)")
    receiver.script(behaviours.conflict(lambda change: True))
    sales.flush()
    sales.run("UPDATE sales SET qty = 1")
    keys = sales.keys()
    sales.run("SELECT sync_outbox_requeue()")
    sales.flush()

    assert [change["dedup_key"] for change in receiver.changes] == [keys[0], *keys]


def test_flush_always_tries_whatever_the_breaker_says(offline, receiver):
    for _ in range(8):
        offline.flush()
    receiver.start()

    assert offline.flushed()["acked"] == 3


def test_a_restart_of_the_server_loses_nothing(new_server, receiver):
    db = new_server(settings={"fsync": "on"}).create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.aim(receiver)
    db.attach("sales")
    db.run("INSERT INTO sales VALUES (1), (2)")
    receiver.stop()
    db.flush()
    keys = db.keys()
    db.close()
    db.server.restart("immediate")
    db.conn = db.session()
    receiver.start()

    assert db.flushed()["acked"] == 2
    assert [change["dedup_key"] for change in receiver.changes] == keys
