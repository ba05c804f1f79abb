"""A hostile reader at the push session: what is lost, overtaken or starved."""

import contextlib
import json
import os
import threading
import time

import psycopg
import pytest
from psycopg import errors

from support import behaviours
from support.database import TOKEN
from support.wait import wait_for

MB = 1 << 20


@pytest.fixture
def shop(live, receiver):
    live.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, v int)")
    live.run("INSERT INTO sales SELECT g, 0 FROM generate_series(1, 50) g")
    live.attach("sales")
    live.run("CREATE TABLE old (id int PRIMARY KEY)")
    live.run("INSERT INTO old SELECT generate_series(1, 5)")
    live.attach("old")
    return live


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
def test_nothing_is_overtaken_while_a_backfill_waits(shop, receiver, backfill):
    """Between its snapshot and its look at the news the reader misses a commit; the next snapshot would see it, but while keys have
    changes in two priorities a read takes no snapshot, and what was announced is forgotten all the same."""
    def behaviour(request, wire):
        good = [change for change in request.changes if change["table"] == "sales"]
        wire.answer(200, {"acked": [change["dedup_key"] for change in good], "errors": [], "conflicts": []})
        request.applied = [(change["pk"]["id"], change["data"]["v"]) for change in good]
    receiver.behaviour = behaviour
    if backfill:
        shop.run("SELECT sync_outbox_backfill('old')")  # never acknowledged: it stays in LOW
        receiver.wait_for_requests(1)
        assert shop.value("SELECT count(*) FROM sync_outbox_lane") == 1

    def writer(key):
        def write():
            with shop.server.connect(shop.name) as session:
                session.execute(f"""DO $$ BEGIN FOR n IN 1..8000 LOOP
                    UPDATE sales SET v = n WHERE id = {key}; PERFORM pg_sleep(0.0005); COMMIT; END LOOP; END $$""")
        return write
    with running(*[writer(key) for key in range(1, 7)]):
        pass
    time.sleep(3)
    left = shop.rows("SELECT pk, data FROM sync_outbox WHERE table_name = 'sales' ORDER BY id")
    arrived = [one for request in receiver.requests for one in request.applied]
    last, overtaken = {}, []
    for key, v in arrived:
        if v != last.get(key, 0) + 1:
            overtaken.append((key, last.get(key, 0), v))
        last[key] = v
    print("requests", len(receiver.requests), "arrived", len(arrived), "left behind", len(left), left[:5], "overtaken", len(overtaken), overtaken[:5])
    # What becomes of those that were passed over: anything that has it look at the head.
    shop.run("SELECT sync_outbox_resume()")
    time.sleep(1)
    late = [one for request in receiver.requests for one in request.applied][len(arrived):]
    print("after a control call:", late[:10])
    assert left == [] and overtaken == []


def drained_in(shop, receiver, rows=3000):
    shop.server.set(sync_outbox__batch_rows="100")
    receiver.behaviour = behaviours.slow(0.02)
    shop.run("SELECT sync_outbox_pause()")
    shop.run(f"INSERT INTO sales SELECT g, 0 FROM generate_series(1001, 1000 + {rows}) g")
    shop.run("SELECT sync_outbox_resume()")
    began = time.monotonic()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 15)
    return time.monotonic() - began


def drains_beside(shop, receiver, stop, others, done):
    """The worker is not much slower while others do what they do, so many times."""
    alone = drained_in(shop, receiver)
    shop.run("DELETE FROM sales WHERE id > 1000")
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 20)
    with running(*others):
        try:
            before, began = done(), time.monotonic()
            beside = drained_in(shop, receiver)
            rate = (done() - before) / (time.monotonic() - began)
        finally:
            stop.set()
    print(f"alone {alone:.1f} s, beside {rate:.0f} a second {beside:.1f} s, left {shop.value('SELECT count(*) FROM sync_outbox')}")
    assert beside < 3 * alone + 1


def test_prepared_transactions_of_others_do_not_starve_the_worker(shop, receiver):
    """Every COMMIT PREPARED in the database, of whatever tables, voids what was read and has every session ask and begin anew."""
    stop, done = threading.Event(), []
    shop.run("CREATE TABLE bystander (id int)")

    def prepare(n):
        def work():
            with shop.server.connect(shop.name) as session:
                i = 0
                while not stop.is_set():
                    i += 1
                    session.execute(f"BEGIN; INSERT INTO bystander VALUES (1); PREPARE TRANSACTION 't{n}_{i}'")
                    session.execute(f"COMMIT PREPARED 't{n}_{i}'")
                    done.append(1)
        return work
    drains_beside(shop, receiver, stop, [prepare(n) for n in range(4)], lambda: len(done))


def test_flushes_of_another_target_do_not_starve_the_worker(shop, receiver, new_receiver):
    """Each turn of a flush bumps the one number of the database, also where it is another target's and nothing is there to send."""
    other = new_receiver()
    shop.value("SELECT sync_outbox_target_set('other', %s::json)", [json.dumps({"base_url": other.url})])
    shop.run("SELECT sync_outbox_set_token(%s, target => 'other')", [TOKEN])
    stop = threading.Event()
    flushes = []

    def flush():
        with shop.server.connect(shop.name) as session:
            while not stop.is_set():
                session.execute("DO $$ BEGIN FOR n IN 1..20 LOOP PERFORM sync_outbox_flush(target => 'other'); COMMIT; END LOOP; END $$")
                flushes.append(20)
    drains_beside(shop, receiver, stop, [flush, flush], lambda: sum(flushes))


@pytest.mark.parametrize("rows", [1000, 5000])
@pytest.mark.parametrize("kind", ["acked", "words"])
def test_an_answer_of_very_many_parts_is_no_crash(new_server, new_receiver, rows, kind):
    """As long as an answer may be (4 kB for each change), made of parts of two bytes."""
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; RESET client_min_messages; CREATE TABLE sales (id int PRIMARY KEY)")
    length = rows * 4096 // 2

    def behaviour(request, wire):
        key = request.keys[0]
        wire.answer(200, {"acked": '{"acked":[' + "1," * length + "1]}",
                          "words": '{"errors":[{"dedup_key":"%s","error":[' % key + "1," * length + "1]}]}"}[kind])
    receiver = new_receiver(behaviour)
    db.aim(receiver)
    db.attach("sales")
    server.set(sync_outbox__batch_rows=str(rows), sync_outbox__batch_bytes="64MB")
    db.run(f"INSERT INTO sales SELECT generate_series(1, {rows})")
    bystander = db.session()
    try:
        with db.session() as session:
            print(session.execute("SELECT sync_outbox_flush()::text").fetchone()[0][:300])
    except psycopg.OperationalError as error:
        assert error.sqlstate, f"the server went away: {error}"
    bystander.execute("SELECT 1")


def test_a_flush_that_is_cancelled_while_certificates_are_read_sends_nothing_later(sales, receiver, authority):
    """The thread has the request, but no agent yet that could be shut down."""
    fifo = authority.directory / "slow.pem"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    sales.server.set(sync_outbox__ca_file=str(fifo))
    sales.run("INSERT INTO sales VALUES (1, 0)")
    session = sales.session()
    session.execute("SET statement_timeout = '500ms'")
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT sync_outbox_flush()")
    session.execute("SET statement_timeout = 0")
    sales.server.set(sync_outbox__ca_file=None)
    sales.run("SELECT sync_outbox_pause()")
    assert receiver.requests == []
    fifo.write_bytes(authority.ca_file.read_bytes())
    time.sleep(1)
    print("requests after the pause:", len(receiver.requests))
    assert receiver.requests == []
