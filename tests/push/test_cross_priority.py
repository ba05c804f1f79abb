"""Several priorities: HIGH goes with the next request, the others move on, and the order of a key holds across them."""

import contextlib
import threading
import time

import pytest

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for


def test_defect_01_high_goes_with_the_next_request(shop, receiver):
    shop.run("CREATE TABLE alarms (id int PRIMARY KEY, qty int)")
    shop.attach("alarms", priority="HIGH")
    shop.server.set(sync_outbox__batch_rows=100)
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20000) n")
    receiver.behaviour = behaviours.slow(0.01)
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


def tables(receiver):
    return [change.get("table_name", change.get("table")) for change in list(receiver.changes)]


def test_a_high_change_is_sent_during_a_backfill_of_another_table(prioritised, receiver):
    prioritised.server.set(sync_outbox__batch_rows="10")
    receiver.behaviour = behaviours.slow(0.05)
    prioritised.run("SELECT sync_outbox_backfill('sales')")
    receiver.wait_for_requests(5)
    assert prioritised.value("SELECT count(*) FROM sync_outbox_lane") == 1
    began = time.monotonic()
    prioritised.run("INSERT INTO urgent VALUES (1, 0)")
    wait_for(lambda: "urgent" in tables(receiver), 20)
    took = time.monotonic() - began
    assert took < 3  # keys across priorities are looked at once a second


def worker_pid(db):
    found = wait_for(lambda: db.rows("SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                                     " AND backend_type LIKE '%%sync_outbox%%'"))
    return found[0][0]


def test_a_worker_that_starts_during_a_backfill_sends(prioritised, receiver):
    prioritised.server.set(sync_outbox__batch_rows="10")
    receiver.behaviour = behaviours.slow(0.02)
    prioritised.run("SELECT sync_outbox_backfill('sales')")
    receiver.wait_for_requests(5)
    pid = worker_pid(prioritised)
    prioritised.run("SELECT pg_terminate_backend(%s)", [pid])
    wait_for(lambda: worker_pid(prioritised) != pid)
    sent = len(receiver.requests)
    wait_for(lambda: len(receiver.requests) > sent + 5, 10)
    wait_for(lambda: prioritised.value("SELECT count(*) FROM sync_outbox") == 0, 40)


def test_normal_moves_while_high_trickles(prioritised, receiver):
    prioritised.server.set(sync_outbox__batch_rows="50")
    receiver.behaviour = behaviours.slow(0.03)
    stop = threading.Event()
    session = prioritised.session()

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            session.execute("INSERT INTO urgent VALUES (%s, 0)", [n])
            time.sleep(0.012)
    prioritised.run("UPDATE sales SET qty = 1")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(lambda: "urgent" in tables(receiver))
        began = len(receiver.requests)
        receiver.wait_for_requests(began + 100, 30)
        mixed = receiver.requests[began:]
        normal = sum(any(c.get("table_name", c.get("table")) == "sales" for c in r.changes) for r in mixed)
        assert normal > len(mixed) / 20
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def running(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("backfill", [False, True], ids=["without", "with"])
def test_nothing_is_overtaken_while_a_backfill_waits(stocked, receiver, backfill):
    """Between its snapshot and its look at the news the reader misses a commit; the next snapshot would see it, but
    while keys have changes in two priorities a read takes no snapshot, and what was announced is forgotten all the
    same."""
    def behaviour(request, wire):
        good = [change for change in request.changes if change["table"] == "sales"]
        request.applied = [(change["pk"]["id"], change["data"]["v"]) for change in good]
        wire.answer(200, {"acked": [change["dedup_key"] for change in good], "errors": [], "conflicts": []})
    receiver.behaviour = behaviour
    if backfill:
        stocked.run("SELECT sync_outbox_backfill('old')")  # never acknowledged: it stays in LOW
        receiver.wait_for_requests(1)
        assert stocked.value("SELECT count(*) FROM sync_outbox_lane") == 1

    def writer(key):
        def write():
            with stocked.server.connect(stocked.name) as session:
                session.execute(f"""DO $$ BEGIN FOR n IN 1..8000 LOOP
                    UPDATE sales SET v = n WHERE id = {key}; PERFORM pg_sleep(0.0005); COMMIT; END LOOP; END $$""")
        return write
    with running(*[writer(key) for key in range(1, 7)]):
        pass
    with contextlib.suppress(AssertionError):
        wait_for(lambda: stocked.value("SELECT NOT EXISTS (SELECT FROM sync_outbox WHERE table_name = 'sales')"))
    left = stocked.rows("SELECT pk, data FROM sync_outbox WHERE table_name = 'sales' ORDER BY id")
    arrived = [one for request in receiver.requests for one in request.applied]
    last, overtaken = {}, []
    for key, v in arrived:
        if v != last.get(key, 0) + 1:
            overtaken.append((key, last.get(key, 0), v))
        last[key] = v
    print("requests", len(receiver.requests), "arrived", len(arrived), "left behind", len(left), left[:5], "overtaken",
          len(overtaken), overtaken[:5])
    assert left == [] and overtaken == []


@pytest.mark.parametrize("first", ["INSERT INTO sales VALUES (0)", "TRUNCATE sales"])
def test_a_truncate_in_front_does_not_have_a_whole_lane_read(db, receiver, first):
    """Above 100,000 keys of a table the first change counts for all of them, and no more are read."""
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, note text)")
    db.attach("sales", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    db.run(first)
    db.run("INSERT INTO sales SELECT n FROM generate_series(1, 300000) n")
    db.run("SELECT sync_outbox_backfill('sales', condition => 'id = 1')")
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 1
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'sync_outbox'"
    with db.session(autocommit=False) as session:
        session.execute("SELECT sync_outbox_flush(max_rows => 1)")
        rows = session.execute(read).fetchone()[0]
    assert rows < 450000  # 300,000 are counted
