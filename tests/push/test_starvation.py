"""What others do in the same database does not keep the worker from sending."""

import contextlib
import json
import threading
import time

from support import behaviours
from support.database import TOKEN
from support.wait import wait_for


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


def drained_in(stocked, receiver, rows=3000):
    stocked.server.set(sync_outbox__batch_rows="100")
    receiver.behaviour = behaviours.slow(0.02)
    stocked.run("SELECT sync_outbox_pause()")
    stocked.run(f"INSERT INTO sales SELECT g, 0 FROM generate_series(1001, 1000 + {rows}) g")
    stocked.run("SELECT sync_outbox_resume()")
    began = time.monotonic()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: stocked.value("SELECT count(*) FROM sync_outbox") == 0, 15)
    return time.monotonic() - began


def drains_beside(stocked, receiver, stop, others, done):
    """The worker is not much slower while others do what they do, so many times."""
    alone = drained_in(stocked, receiver)
    stocked.run("DELETE FROM sales WHERE id > 1000")
    wait_for(lambda: stocked.value("SELECT count(*) FROM sync_outbox") == 0, 20)
    with running(*others):
        try:
            before, began = done(), time.monotonic()
            beside = drained_in(stocked, receiver)
            rate = (done() - before) / (time.monotonic() - began)
        finally:
            stop.set()
    print(f"alone {alone:.1f} s, beside {rate:.0f} a second {beside:.1f} s,"
          f" left {stocked.value('SELECT count(*) FROM sync_outbox')}")
    assert beside < 3 * alone + 1


def test_prepared_transactions_of_others_do_not_starve_the_worker(stocked, receiver):
    """Every COMMIT PREPARED in the database, of whatever tables, voids what was read and has every session ask and
    begin anew."""
    stop, done = threading.Event(), []
    stocked.run("CREATE TABLE bystander (id int)")

    def prepare(n):
        def work():
            with stocked.server.connect(stocked.name) as session:
                i = 0
                while not stop.is_set():
                    i += 1
                    session.execute(f"BEGIN; INSERT INTO bystander VALUES (1); PREPARE TRANSACTION 't{n}_{i}'")
                    session.execute(f"COMMIT PREPARED 't{n}_{i}'")
                    done.append(1)
        return work
    drains_beside(stocked, receiver, stop, [prepare(n) for n in range(4)], lambda: len(done))


def test_flushes_of_another_target_do_not_starve_the_worker(stocked, receiver, new_receiver):
    """Each turn of a flush bumps the one number of the database, also where it is another target's and nothing is there
    to send."""
    other = new_receiver()
    stocked.value("SELECT sync_outbox_target_set('other', %s::json)", [json.dumps({"base_url": other.url})])
    stocked.run("SELECT sync_outbox_set_token(%s, target => 'other')", [TOKEN])
    stop = threading.Event()
    flushes = []

    def flush():
        with stocked.server.connect(stocked.name) as session:
            while not stop.is_set():
                session.execute("DO $$ BEGIN FOR n IN 1..20 LOOP PERFORM sync_outbox_flush(target => 'other'); COMMIT;"
                                " END LOOP; END $$")
                flushes.append(20)
    drains_beside(stocked, receiver, stop, [flush, flush], lambda: sum(flushes))


def test_a_storm_of_prepared_transactions_does_not_keep_a_target_from_sending(live, receiver):
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    live.run("CREATE TABLE other (id int)")
    stop, count = threading.Event(), []

    def prepare(n):
        with live.session() as session:
            session.execute("SET synchronous_commit = off")
            while not stop.is_set():
                session.execute(f"BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'r5b{n}'")
                session.execute(f"COMMIT PREPARED 'r5b{n}'")
                count.append(1)
    threads = [threading.Thread(target=prepare, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(count) > 50, 10)
        began = time.monotonic()
        for n in range(5):
            sent = len(receiver.changes)
            live.run("INSERT INTO sales VALUES (%s)", [n])
            wait_for(lambda: len(receiver.changes) > sent, 20)
        print("sent after", time.monotonic() - began, len(count))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
