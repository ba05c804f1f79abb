"""A worker under steady load listens: to whoever pauses, configures, requeues or discards, and to whoever wants a
turn."""

import threading
import time

from support import behaviours
from support.ledger import Ledger
from support.process import threads_and_files
from support.steady_load import steady_load
from support.wait import wait_for

# From the commit of an administrative call to the last request that may still begin under the old word.
AT_ONCE = 0.1
# Between two requests that are measured here and two clocks of Python's threads.
SLACK = 0.15


def assert_quiet_after(receiver, moment, patience=1.0):
    """No request begins later than AT_ONCE after `moment`."""
    wait_for(lambda: time.monotonic() > moment + patience, patience + 1)
    late = [request.arrived - moment for request in receiver.requests if request.arrived > moment + AT_ONCE + SLACK]
    assert late == []


def test_defect_01_pause_reaches_a_worker_under_steady_load(shop, receiver):
    receiver.behaviour = behaviours.slow(0.01)
    with steady_load(shop) as written:
        wait_for(lambda: len(receiver.requests) > 10 and written() > 50)
        shop.run("SELECT sync_outbox_pause()")
        assert_quiet_after(receiver, time.monotonic())
    sent = len(receiver.requests)
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.outbox() == [])
    assert len(receiver.requests) > sent and Ledger(receiver.requests).duplicated() == set()


def test_defect_01_a_row_of_the_target_that_is_written_by_hand_reaches_it(shop, receiver):
    receiver.behaviour = behaviours.slow(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.run("UPDATE sync_outbox_target SET paused = true")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_enabled_off_reaches_it(shop, receiver):
    receiver.behaviour = behaviours.slow(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.server.set(sync_outbox__enabled="off")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_a_new_url_reaches_it(shop, receiver, new_receiver):
    other = new_receiver()
    receiver.behaviour = behaviours.slow(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.aim(other)
        moment = time.monotonic()
        wait_for(lambda: len(other.requests) > 3, 5)
        assert_quiet_after(receiver, moment)


def test_defect_01_a_prepared_pause_reaches_it_when_it_is_committed(shop, receiver):
    receiver.behaviour = behaviours.slow(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 5)
        with shop.session() as other:
            other.execute("BEGIN; SELECT sync_outbox_pause(); PREPARE TRANSACTION 'pause'")
        sent = len(receiver.requests)
        wait_for(lambda: len(receiver.requests) > sent + 5)
        shop.run("COMMIT PREPARED 'pause'")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_a_refused_change_is_tried_again_when_its_time_has_come(shop, receiver):
    shop.server.set(sync_outbox__retry_interval="200ms")
    refused = []

    def once(change):
        if change["pk"]["id"] == 1 and not refused:
            refused.append(change)
            return True
        return False

    def behaviour(request, wire):
        time.sleep(0.01)
        behaviours.refuse(once)(request, wire)
    receiver.behaviour = behaviour
    shop.run("INSERT INTO sales VALUES (1, 0)")
    with steady_load(shop) as written:
        wait_for(lambda: refused and written() > 20)
        shop.run("UPDATE sales SET qty = 7 WHERE id = 1")
        wait_for(lambda: shop.outbox("pk->>'id' = '1'") == [], 5)
    mine = [change["op"] for change in receiver.changes if change["pk"]["id"] == 1]
    assert mine == ["INSERT", "INSERT", "UPDATE"]


def test_defect_01_requeue_reaches_it(shop, receiver, clock):
    """A conflict waits for a person; freed under load it goes with one of the next requests, before what waited for it."""
    conflicts = [1]

    def behaviour(request, wire):
        time.sleep(0.01)
        behaviours.conflict(lambda change: change["pk"]["id"] in conflicts)(request, wire)
    receiver.behaviour = behaviour
    shop.run("INSERT INTO sales VALUES (1, 0)")
    with steady_load(shop) as written:
        wait_for(lambda: [change.status for change in shop.outbox("pk->>'id' = '1'")] == ["CONFLICT"])
        shop.run("UPDATE sales SET qty = 7 WHERE id = 1")
        begun = written()
        wait_for(lambda: written() > begun + 50)
        conflicts.clear()
        with clock(1):
            shop.run("SELECT sync_outbox_requeue()")
            wait_for(lambda: shop.outbox("pk->>'id' = '1'") == [], 5)
    assert [change["op"] for change in receiver.changes if change["pk"]["id"] == 1] == ["INSERT", "INSERT", "UPDATE"]


def test_defect_01_flush_has_its_turn_beside_a_busy_worker(shop, receiver, clock):
    receiver.behaviour = behaviours.slow(0.02)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        for _ in range(5):
            with clock(4):
                answer = shop.flushed()
            assert answer.get("error") is None
    wait_for(lambda: shop.outbox() == [])
    ledger = Ledger(receiver.requests)
    assert ledger.duplicated() == set()


def test_defect_01_discard_and_import_have_theirs(shop, receiver):
    receiver.behaviour = behaviours.slow(0.02, behaviours.ack(lambda change: change["pk"]["id"] != 1))
    shop.run("INSERT INTO sales VALUES (1, 0)")
    with steady_load(shop):
        wait_for(lambda: [change.status for change in shop.outbox("pk->>'id' = '1'")] == ["FAILED"])
        (change,) = shop.outbox("pk->>'id' = '1'")
        assert shop.value("SELECT sync_outbox_discard(%s, 'sold twice by mistake')", [[change.id]]) == 1


def test_defect_01_drain_and_flush_end_under_steady_load(db, receiver, clock):
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    db.attach("sales")
    receiver.behaviour = behaviours.slow(0.01)
    db.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 500) n")
    with steady_load(db) as written:
        wait_for(lambda: written() > 50)
        with clock(5):
            db.run("CALL sync_outbox_drain()")
        assert db.outbox("(pk->>'id')::int <= 500") == []
        with clock(5):
            db.flush()


def test_defect_09_a_token_reaches_the_worker_whatever_transaction_it_is_set_in(live, receiver):
    live.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    live.run(f"""SELECT sync_outbox_configure('{{"webapp_base_url": "{receiver.url}"}}'); CREATE TABLE stock (id int PRIMARY KEY)""")
    live.attach("stock")
    live.run("INSERT INTO stock VALUES (1)")
    wait_for(lambda: live.rows("SELECT FROM sync_outbox_overview() WHERE auth = 'missing'"), what="a worker that has no token")
    live.session(options="-c default_transaction_read_only=on").execute("SELECT sync_outbox_set_token('t0ken')")
    wait_for(lambda: live.outbox() == [], what="sent")


def test_pause_and_urls_in_a_storm(live, receiver, new_receiver):
    """URL, token, pause and batch size change all the time under steady load: nothing lost, order per key, no threads left."""
    other = new_receiver()
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20) n")
    live.attach("sales")
    arrived = []

    def take(request, wire):
        arrived.extend(request.changes)
        wire.answer(200, {"acked": request.keys})
    receiver.behaviour = other.behaviour = take
    stop = threading.Event()

    def write():
        session, n = live.session(), 0
        while not stop.is_set():
            n += 1
            session.execute("UPDATE sales SET qty = qty + 1 WHERE id = %s", [n % 20 + 1])
    thread = threading.Thread(target=write)
    thread.start()
    until, n = time.monotonic() + 12, 0
    while time.monotonic() < until:
        n += 1
        live.aim([receiver, other][n % 2])
        live.run("SELECT sync_outbox_pause()")
        live.run("SELECT sync_outbox_resume()")
        if n % 10 == 0:
            live.run("SELECT sync_outbox_flush()")
    stop.set()
    thread.join()
    wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox") == 0, 20)
    last, wrong, seen = {}, 0, set()
    for change in arrived:
        if change["dedup_key"] not in seen:
            seen.add(change["dedup_key"])
            key, qty = change["pk"]["id"], change["data"]["qty"]
            wrong += qty != last.get(key, 0) + 1
            last[key] = qty
    pid = live.value("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE '%%sync_outbox%%'")
    print(n, "rounds", len(seen), "changes", len(arrived) - len(seen), "repeated", threads_and_files(pid))
    assert wrong == 0 and {k: v for k, v in live.rows("SELECT id, qty FROM sales WHERE qty > 0")} == last
