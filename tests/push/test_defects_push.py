"""What two readers broke in the sender of 0.1.0, by the number that each defect has in docs/reliability.md: a worker under
steady load listens, its targets know nothing of each other, and what cannot be sent stops nobody."""

import contextlib
import random
import threading
import time

import psycopg
import pytest

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for

# From the commit of an administrative call to the last request that may still begin under the old word.
AT_ONCE = 0.1
# Between two requests that are measured here and two clocks of Python's threads.
SLACK = 0.15


@pytest.fixture
def shop(live, receiver):
    """An attached table whose changes are sent by the worker; no timer is quick enough to help."""
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    return live


def slowly(seconds, then=behaviours.ack_all):
    def behaviour(request, wire):
        time.sleep(seconds)
        then(request, wire)
    return behaviour


@contextlib.contextmanager
def steady_load(database, table="sales", every=0.002):
    """A writer that commits again and again until the block ends; hands over a function that counts its commits."""
    stop, written = threading.Event(), []
    session = database.session()

    def write():
        while not stop.is_set():
            session.execute(f"INSERT INTO {table} VALUES (%s, 0)", [1000 + len(written)])
            written.append(None)
            stop.wait(every)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: len(written)
    finally:
        stop.set()
        thread.join()


def assert_quiet_after(receiver, moment, patience=1.0):
    """No request begins later than AT_ONCE after `moment`."""
    wait_for(lambda: time.monotonic() > moment + patience, patience + 1)
    late = [request.arrived - moment for request in receiver.requests if request.arrived > moment + AT_ONCE + SLACK]
    assert late == []


def test_defect_01_pause_reaches_a_worker_under_steady_load(shop, receiver):
    receiver.behaviour = slowly(0.01)
    with steady_load(shop) as written:
        wait_for(lambda: len(receiver.requests) > 10 and written() > 50)
        shop.run("SELECT sync_outbox_pause()")
        assert_quiet_after(receiver, time.monotonic())
    sent = len(receiver.requests)
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.outbox() == [])
    assert len(receiver.requests) > sent and Ledger(receiver.requests).duplicated() == set()


def test_defect_01_a_row_of_the_target_that_is_written_by_hand_reaches_it(shop, receiver):
    receiver.behaviour = slowly(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.run("UPDATE sync_outbox_target SET paused = true")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_enabled_off_reaches_it(shop, receiver):
    receiver.behaviour = slowly(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.server.set(sync_outbox__enabled="off")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_a_new_url_reaches_it(shop, receiver, new_receiver):
    other = new_receiver()
    receiver.behaviour = slowly(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 10)
        shop.aim(other)
        moment = time.monotonic()
        wait_for(lambda: len(other.requests) > 3, 5)
        assert_quiet_after(receiver, moment)


def test_defect_01_a_prepared_pause_reaches_it_when_it_is_committed(shop, receiver):
    receiver.behaviour = slowly(0.01)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 5)
        with shop.session() as other:
            other.execute("BEGIN; SELECT sync_outbox_pause(); PREPARE TRANSACTION 'pause'")
        sent = len(receiver.requests)
        wait_for(lambda: len(receiver.requests) > sent + 5)
        shop.run("COMMIT PREPARED 'pause'")
        assert_quiet_after(receiver, time.monotonic())


def test_defect_01_a_second_target_is_served_beside_a_flooded_one(shop, receiver, new_receiver, clock):
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    receiver.behaviour = slowly(0.05)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 5)
        for note in range(1, 6):
            with clock(0.5):
                shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
                other.wait_for_requests(note)


def test_defect_01_a_target_that_hangs_delays_no_other(shop, receiver, new_receiver, clock):
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    receiver.behaviour = receiver.hang
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    for note in range(1, 6):
        with clock(0.5):
            shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
            other.wait_for_requests(note)
    assert len(receiver.requests) == 1  # two requests of two targets were out at the same time
    receiver.released.set()


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
    receiver.behaviour = slowly(0.02)
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
    receiver.behaviour = slowly(0.02, behaviours.ack(lambda change: change["pk"]["id"] != 1))
    shop.run("INSERT INTO sales VALUES (1, 0)")
    with steady_load(shop):
        wait_for(lambda: [change.status for change in shop.outbox("pk->>'id' = '1'")] == ["FAILED"])
        (change,) = shop.outbox("pk->>'id' = '1'")
        assert shop.value("SELECT sync_outbox_discard(%s, 'sold twice by mistake')", [[change.id]]) == 1


def test_defect_01_high_goes_with_the_next_request(shop, receiver):
    shop.run("CREATE TABLE alarms (id int PRIMARY KEY, qty int)")
    shop.attach("alarms", priority="HIGH")
    shop.server.set(sync_outbox__batch_rows=100)
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20000) n")
    receiver.behaviour = slowly(0.01)
    shop.run("SELECT sync_outbox_resume()")
    receiver.wait_for_requests(10)
    shop.run("INSERT INTO alarms VALUES (1, 0)")
    committed = time.monotonic()
    wait_for(lambda: any(change["table"] == "alarms" for change in receiver.changes))
    with_it = next(r for r in receiver.requests if any(c["table"] == "alarms" for c in r.changes))
    after = [r for r in receiver.requests if r.arrived > committed and r.number < with_it.number]
    assert len(after) <= 1  # the one that was about to begin
    assert with_it.number < 150


def test_defect_01_low_moves_while_normal_never_ends(shop, receiver):
    shop.run("CREATE TABLE archive (id int PRIMARY KEY, qty int)")
    shop.attach("archive", priority="LOW")
    shop.server.set(sync_outbox__batch_rows=8)
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 3000) n")
    shop.run("INSERT INTO archive SELECT n, 0 FROM generate_series(1, 20) n")
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.outbox("table_name = 'archive'") == [], 20)
    assert len([change for change in receiver.changes if change["table"] == "sales"]) < 3000
    wait_for(lambda: shop.outbox() == [], 30)
    assert Ledger(receiver.requests).duplicated() == set()


def test_defect_01_drain_and_flush_end_under_steady_load(db, receiver, clock):
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    db.attach("sales")
    receiver.behaviour = slowly(0.01)
    db.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 500) n")
    with steady_load(db) as written:
        wait_for(lambda: written() > 50)
        with clock(5):
            db.run("CALL sync_outbox_drain()")
        assert db.outbox("(pk->>'id')::int <= 500") == []
        with clock(5):
            db.flush()


def test_defect_09_ids_that_begin_again_are_sent_in_their_order(shop, receiver):
    """TRUNCATE .. RESTART IDENTITY below the ids that the worker has been through; the first changes of a key are
    committed by a transaction of their own."""
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 7) n")
    wait_for(lambda: shop.outbox() == [])
    shop.run("TRUNCATE sync_outbox RESTART IDENTITY")
    sent = len(receiver.changes)
    for qty in range(1, 15):
        shop.run("UPDATE sales SET qty = %s WHERE id = 1", [qty])
    wait_for(lambda: shop.outbox() == [], 5)
    assert [change["data"]["qty"] for change in receiver.changes[sent:]] == list(range(1, 15))


def test_defect_11_latency_does_not_grow_behind_a_long_transaction(shop, receiver):
    """A transaction that holds an xid, and one that has captured something, stay open while many changes are delivered:
    nothing that was deleted can be cleaned away."""
    with shop.session(autocommit=False) as idle, shop.session(autocommit=False) as writer:
        idle.execute("CREATE TEMP TABLE holds_an_xid (id int)")
        writer.execute("INSERT INTO sales VALUES (0, 0)")
        shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 200000) n")
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 60)
        latencies = []
        for sale in range(300000, 300040):
            sent = len(receiver.requests)
            began = time.monotonic()
            shop.run("INSERT INTO sales VALUES (%s, 0)", [sale])
            receiver.wait_for_requests(sent + 1)
            latencies.append(receiver.requests[sent].arrived - began)
            wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0)
        # Walking over what is dead takes a tenth of a second and more, each time.
        assert sorted(latencies)[len(latencies) // 2] < 0.03
        writer.commit()
    wait_for(lambda: shop.outbox() == [])
    assert [change for change in receiver.changes if change["pk"]["id"] == 0]


def test_defect_12_a_proxy_that_refuses_everything_kills_nothing(shop, receiver):
    shop.server.set(sync_outbox__retry_interval="50ms", sync_outbox__retry_max_interval="200ms")
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 2000) n")
    receiver.behaviour = behaviours.status(400, "<html>no</html>")
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.value("SELECT consecutive_failures FROM sync_outbox_overview()") >= 12, 30)
    requests = len(receiver.requests)
    assert shop.value("SELECT max(refusals) FROM sync_outbox") == 0
    assert shop.value("SELECT count(*) FROM sync_outbox WHERE status IN ('DEAD', 'CONFLICT')") == 0
    assert requests < 13 * 60
    receiver.behaviour = behaviours.ack_all
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 20)
    applied = [key for request in receiver.requests for key in request.applied]
    assert len(applied) == len(set(applied)) == 2000


def test_defect_12_a_flush_counts_no_refusal_either(sales, receiver):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 2000) n")
    receiver.behaviour = behaviours.status(422)
    for _ in range(12):
        answer = sales.flushed()
        assert (answer["ok"], answer["acked"], answer["error"]) == (False, 0, "http 422")
    assert sales.value("SELECT max(refusals) FROM sync_outbox") == 0
    assert len(receiver.requests) < 12 * 60


def test_defect_12_a_run_of_bad_changes_does_not_stop_the_good_ones(shop, receiver):
    """Nothing that a writer can store stops a target: more bad changes in a row than a request holds."""
    shop.server.set(sync_outbox__batch_rows=50, sync_outbox__retry_interval="100ms")
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 400) n")
    receiver.behaviour = behaviours.poison(lambda change: change["pk"]["id"] <= 200, 400)
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.outbox("(pk->>'id')::int > 200") == [], 60)
    assert shop.value("SELECT count(*) FROM sync_outbox") == 200
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox WHERE refusals > 0") > 0, 20)


def test_defect_12_a_bad_change_alone_does_not_stop_the_next_one(shop, receiver, clock):
    shop.server.set(sync_outbox__retry_interval="100ms")
    receiver.behaviour = behaviours.poison(lambda change: change["pk"]["id"] == 1, 400)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(2)
    with clock(5):
        shop.run("INSERT INTO sales VALUES (2, 0)")
        wait_for(lambda: shop.outbox("pk->>'id' = '2'") == [])
    wait_for(lambda: shop.value("SELECT refusals FROM sync_outbox") > 0, 20)


def test_defect_14_the_overview_names_who_keeps_the_turn(shop, receiver):
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox() == [])
    with shop.session(autocommit=False) as flusher:
        flusher.execute("SELECT sync_outbox_flush()")
        pid = flusher.execute("SELECT pg_backend_pid()").fetchone()[0]
        began = flusher.execute("SELECT now()").fetchone()[0]
        assert shop.rows("SELECT sender_pid, sender_since FROM sync_outbox_overview()") == [(pid, began)]
        shop.run("INSERT INTO sales VALUES (2, 0)")
        assert len(receiver.requests) == 1
    wait_for(lambda: shop.outbox() == [])


def test_an_ack_is_settled_when_the_lock_in_its_way_is_gone(shop, receiver, new_receiver, clock):
    """The step waits for 50 ms and comes again; meanwhile another target goes on."""
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    with shop.session(autocommit=False) as holder:
        def lock_its_row(request, wire):
            holder.execute("SELECT FROM sync_outbox WHERE table_name = 'sales' FOR UPDATE")
            behaviours.ack_all(request, wire)
        receiver.script(lock_its_row)
        shop.run("INSERT INTO sales VALUES (1, 0)")
        receiver.wait_for_requests(1)
        for note in range(1, 6):
            with clock(0.5):
                shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
                other.wait_for_requests(note)
        wait_for(lambda: len(shop.outbox()) == 1)
    wait_for(lambda: shop.outbox() == [])
    assert len(receiver.requests) == 1


def test_what_was_read_ahead_is_not_passed_over_when_a_retry_is_due(shop, receiver):
    """Found by the soak: an answer that does not mention some changes has them tried again soon, and what had been read ahead
    meanwhile was left out, so that later changes of its keys went first."""
    shop.server.set(sync_outbox__batch_rows=20, sync_outbox__retry_interval="10ms", sync_outbox__retry_max_interval="20ms")
    shop.run("CREATE TABLE alarms (id int PRIMARY KEY, qty int)")
    shop.attach("alarms", priority="HIGH")
    shop.run("SELECT sync_outbox_pause()")
    for qty in range(8):
        for table, rows in [("sales", 60), ("alarms", 3)]:
            shop.run(f"INSERT INTO {table} SELECT n, %s FROM generate_series(1, {rows}) n", [qty])
            shop.run(f"UPDATE {table} SET qty = qty + 100")
            shop.run(f"DELETE FROM {table}")
    left = {}
    for change in shop.outbox():
        left.setdefault((change.table_name, change.pk["id"]), []).append(str(change.dedup_key))
    overtaken, chance = [], random.Random(11)

    def behaviour(request, wire):
        time.sleep(0.004)
        taken, stopped = [], set()
        for change in request.changes:
            key = change["table"], change["pk"]["id"]
            mine = left[key]
            if key in stopped or change["dedup_key"] not in mine:
                continue
            if mine[0] != change["dedup_key"]:
                overtaken.append((change["pk"], change["op"]))
            if change["table"] == "alarms" and chance.random() < 0.5:
                stopped.add(key)  # and what comes later of it in this request is left unmentioned as well
            else:
                mine.remove(change["dedup_key"])
                taken.append(change["dedup_key"])
        wire.answer(200, {"acked": taken})
    receiver.behaviour = behaviour
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 60)
    assert overtaken == []
    assert [key for key, keys in left.items() if keys] == []
