"""Changes that are tried again: the share of the time they have, what they keep in order, and that none is given up for another."""

import random
import threading
import time

import pytest

from support import behaviours
from support.database import Database
from support.wait import wait_for

MB = 1 << 20


def below_zero(change):
    return change["pk"]["id"] < 0


def pending(db):
    return db.value("SELECT count(*) FROM sync_outbox")


@pytest.fixture
def shop(live, receiver):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, note text)")
    live.attach("sales")
    return live


@pytest.mark.parametrize("idle", [0, 6])
def test_time_without_work_is_no_time_of_retries(shop, receiver, idle):
    """A change that is refused under load is tried again when its time has come, also where nothing was to be sent for
    a while after the last retry."""
    shop.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="200ms", sync_outbox__batch_rows=10)
    receiver.script(behaviours.refuse(below_zero))
    shop.run("INSERT INTO sales VALUES (-2)")
    wait_for(lambda: len(receiver.requests) == 2 and pending(shop) == 0)  # the last that was sent is a retry

    time.sleep(idle)
    receiver.behaviour = behaviours.slow(0.02, behaviours.refuse(below_zero))
    shop.run("INSERT INTO sales SELECT n FROM generate_series(-1, 10000) n")
    refused = wait_for(lambda: [r for r in receiver.requests if -1 in [c["pk"]["id"] for c in r.changes]])[0]
    again = wait_for(lambda: [r for r in receiver.requests[refused.number + 1:] if -1 in [c["pk"]["id"] for c in r.changes]], 20)
    assert again[0].arrived - refused.arrived < 3
    assert pending(shop) > 1000  # the load was there all the time


@pytest.mark.parametrize("interval", ["1h", "10s"])
def test_retries_leave_half_of_the_time_also_where_the_outbox_is_looked_through_often(shop, receiver, interval):
    """As `test_changes_that_are_tried_again_leave_half_of_the_time_to_the_others`, with waits as they are by default,
    and at a target that answers in 40 ms. Every `interval` the worker looks at everything there is: 10 s by default,
    which is less than 300 changes take. With 1h it takes 33 s and 625 requests."""
    shop.server.set(sync_outbox__batch_rows=50, sync_outbox__interval=interval)
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales SELECT n FROM generate_series(1, 400) n")
    receiver.behaviour = behaviours.slow(0.04, behaviours.poison(lambda change: change["pk"]["id"] <= 300, 400))
    shop.run("SELECT sync_outbox_resume()")
    wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox WHERE (pk->>'id')::int > 300") == 0, 80)


@pytest.mark.parametrize("waiting", [7, 8])  # whichever number has the one that is too large begin a batch
@pytest.mark.parametrize("by", ["flush", "worker"])
def test_a_change_that_waits_for_its_retry_is_not_given_up_for_another(new_server, receiver, by, waiting):
    """There is no memory for one change. What is DEAD then is that one, and not those in front of it that are due again
    and are being kept waiting."""
    server = new_server(preload=by == "worker", settings={"sync_outbox.interval": "1h", "sync_outbox.retry_interval": "10ms"})
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; RESET client_min_messages")
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, note text)")
    db.attach("sales")
    db.run("SELECT sync_outbox_pause()")
    db.run(f"INSERT INTO sales VALUES (0), (1); INSERT INTO sales SELECT -n FROM generate_series(1, {waiting}) n")
    db.run(f"INSERT INTO sales VALUES (2, repeat('x', {600 * MB}))")
    # Two that are tried again, whose answers take long.
    db.run("UPDATE sync_outbox SET status = 'FAILED', attempt_count = 1, next_attempt_at = now() WHERE pk->>'id' IN ('0', '1')")
    db.close()
    server.stop()
    server.through = ("prlimit", f"--as={640 * MB}")
    server.start()
    db = Database(server, db.name)
    refused = behaviours.slow(0.05, behaviours.refuse(below_zero))

    def behaviour(request, wire):
        if any(change["pk"]["id"] in (0, 1) for change in request.changes):
            time.sleep(3)
        refused(request, wire)
    receiver.behaviour = behaviour
    db.run("SELECT sync_outbox_resume()")
    if by == "flush":
        db.flush()
    wait_for(lambda: db.value("SELECT status::text FROM sync_outbox WHERE pk->>'id' = '2'") == "DEAD", 30)
    dead = db.rows("SELECT (pk->>'id')::int AS id, refusals, error_message FROM sync_outbox WHERE status = 'DEAD' ORDER BY id")
    assert [change.id for change in dead] == [2], dead
    db.close()


@pytest.mark.parametrize("interval", ["1h", "300ms"])
@pytest.mark.parametrize("idle", [0, 3])
def test_order_of_keys_while_retries_wait(shop, receiver, interval, idle):
    """Refused at random, under steady load, in two priorities: every key's changes arrive in order, and all of them."""
    chance, seen, lock = random.Random(interval), [], threading.Lock()

    def behaviour(request, wire):
        with lock:
            refused, stopped = [], set()
            for change in request.changes:
                key = (change["table"], change["pk"]["id"])
                if key in stopped:
                    continue
                if chance.random() < 0.15:
                    refused.append(change["dedup_key"])
                    stopped.add(key)
                else:
                    request.applied.append(change["dedup_key"])
                    seen.append((key, change["id"]))
        time.sleep(0.005)
        wire.answer(200, {"acked": request.applied, "errors": [{"dedup_key": k, "error": "no"} for k in refused],
                          "conflicts": []})
    shop.server.set(sync_outbox__retry_interval="100ms", sync_outbox__retry_max_interval="400ms", sync_outbox__batch_rows=20,
                    sync_outbox__interval=interval, sync_outbox__max_attempts=1000)
    shop.run("CREATE TABLE urgent (id int PRIMARY KEY, note text)")
    shop.attach("urgent", priority="HIGH")
    shop.run("INSERT INTO sales SELECT n FROM generate_series(1, 30) n; INSERT INTO urgent SELECT n FROM generate_series(1, 10) n")
    wait_for(lambda: pending(shop) == 0)
    time.sleep(idle)
    receiver.behaviour = behaviour
    sessions = [shop.session() for _ in range(3)]
    end = time.monotonic() + 10

    def write(session, seed):
        dice, n = random.Random(seed), 0
        while time.monotonic() < end:
            n += 1
            table, rows = ("urgent", 10) if dice.random() < 0.2 else ("sales", 30)
            session.execute(f"UPDATE {table} SET note = %s WHERE id = %s", [f"{seed}-{n}", dice.randint(1, rows)])
            if n % 400 == 0:
                session.execute("SELECT sync_outbox_backfill('sales', condition => 'id < 5')")
            time.sleep(0.003)
    threads = [threading.Thread(target=write, args=[session, seed]) for seed, session in enumerate(sessions)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    wait_for(lambda: pending(shop) == 0, 60)
    assert len(seen) == len(set(seen))
    last = {}
    for key, number in seen:
        assert last.get(key, 0) < number, (key, number)
        last[key] = number
    assert len(seen) > 1000
