"""What a second hostile reader broke in the new session before it was released: a backfill into another priority, ids that begin
again, an ERROR while a request is out, priorities under a trickle, a breaker that somebody else has closed."""

import threading
import time

import pytest

from support import behaviours
from support.wait import wait_for


@pytest.fixture
def shop(live, receiver):
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.run("INSERT INTO sales SELECT g, 0 FROM generate_series(1, 3000) g")
    live.attach("sales")
    live.run("CREATE TABLE urgent (id int PRIMARY KEY, qty int)")
    live.attach("urgent", priority="HIGH")
    return live


def tables(receiver):
    return [change.get("table_name", change.get("table")) for change in list(receiver.changes)]


def worker_pid(db):
    found = wait_for(lambda: db.rows("SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                                     " AND backend_type LIKE '%%sync_outbox%%'"))
    return found[0][0]


def test_a_high_change_is_sent_during_a_backfill_of_another_table(shop, receiver):
    shop.server.set(sync_outbox__batch_rows="10")
    receiver.behaviour = behaviours.slow(0.05)
    shop.run("SELECT sync_outbox_backfill('sales')")
    receiver.wait_for_requests(5)
    assert shop.value("SELECT count(*) FROM sync_outbox_lane") == 1
    began = time.monotonic()
    shop.run("INSERT INTO urgent VALUES (1, 0)")
    wait_for(lambda: "urgent" in tables(receiver), 20)
    took = time.monotonic() - began
    assert took < 3  # keys across priorities are looked at once a second


def test_a_worker_that_starts_during_a_backfill_sends(shop, receiver):
    shop.server.set(sync_outbox__batch_rows="10")
    receiver.behaviour = behaviours.slow(0.02)
    shop.run("SELECT sync_outbox_backfill('sales')")
    receiver.wait_for_requests(5)
    pid = worker_pid(shop)
    shop.run("SELECT pg_terminate_backend(%s)", [pid])
    wait_for(lambda: worker_pid(shop) != pid)
    time.sleep(0.5)
    sent = len(receiver.requests)
    wait_for(lambda: len(receiver.requests) > sent + 5, 10)
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 40)


def test_a_new_id_equal_to_one_that_is_out(shop, receiver):
    """TRUNCATE .. RESTART IDENTITY while a request is out."""
    receiver.behaviour = behaviours.slow(1)
    shop.run("INSERT INTO urgent VALUES (1, 0)")
    receiver.wait_for_requests(1)
    shop.run("TRUNCATE sync_outbox RESTART IDENTITY")
    shop.run("INSERT INTO urgent VALUES (2, 0)")
    receiver.wait_for_requests(2, 5)


def test_an_error_while_a_request_is_out_does_not_send_without_the_lock(shop, receiver):
    shop.server.set(sync_outbox__batch_rows="1")
    receiver.behaviour = behaviours.slow(1.5)
    shop.run("INSERT INTO urgent SELECT g, 0 FROM generate_series(1, 20) g")
    receiver.wait_for_requests(1)
    # Something goes wrong where the worker looks around, for a moment.
    shop.run("ALTER TABLE sync_outbox_target RENAME COLUMN ca_file TO ca_file_")
    shop.server.set(sync_outbox__interval="1h")  # reload: it looks around
    time.sleep(0.5)
    shop.run("ALTER TABLE sync_outbox_target RENAME COLUMN ca_file_ TO ca_file")
    wait_for(lambda: len(receiver.requests) >= 3, 20)
    held = shop.value("SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'sync_outbox'::regclass"
                      " AND granted AND mode = 'ExclusiveLock'")
    assert held == 1


def test_normal_moves_while_high_trickles(shop, receiver):
    shop.server.set(sync_outbox__batch_rows="50")
    receiver.behaviour = behaviours.slow(0.03)
    stop = threading.Event()
    session = shop.session()

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            session.execute("INSERT INTO urgent VALUES (%s, 0)", [n])
            time.sleep(0.012)
    shop.run("UPDATE sales SET qty = 1")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        time.sleep(1)
        began = len(receiver.requests)
        time.sleep(4)
        mixed = receiver.requests[began:]
        normal = sum(any(c.get("table_name", c.get("table")) == "sales" for c in r.changes) for r in mixed)
        assert normal > len(mixed) / 20
    finally:
        stop.set()
        thread.join()


def test_one_refused_change_does_not_delay_the_others(shop, receiver):
    """422 for one change for ever; good changes come once in a while."""
    shop.server.set(sync_outbox__retry_interval="2s")
    receiver.behaviour = behaviours.poison(lambda c: c["pk"] == {"id": 666})
    shop.run("INSERT INTO urgent VALUES (666, 0)")
    receiver.wait_for_requests(1)
    time.sleep(0.5)
    late = []
    for n in range(1, 6):
        began = time.monotonic()
        shop.run("INSERT INTO urgent VALUES (%s, 0)", [n])
        wait_for(lambda: any(c["pk"] == {"id": n} for r in list(receiver.requests) for c in r.changes
                             if r.applied), 60)
        late.append(round(time.monotonic() - began, 2))
        time.sleep(0.5)
        if not shop.rows("SELECT 1 FROM sync_outbox WHERE status <> 'DEAD'"):
            break
    assert max(late) < 10  # at most retry_interval; the breaker's wait would be ten times that


def test_a_flush_that_gets_through_sets_a_waiting_worker_going_again(shop, receiver):
    shop.server.set(sync_outbox__retry_interval="60s")
    receiver.stop()
    shop.run("INSERT INTO urgent VALUES (1, 0)")
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox_target_state WHERE consecutive_failures > 0"))
    shop.run("INSERT INTO urgent VALUES (2, 0)")
    receiver.start()
    assert shop.flushed()["acked"] == 2
    shop.run("INSERT INTO urgent VALUES (3, 0)")
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 5)
