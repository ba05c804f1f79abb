"""Order per key while very many changes wait, and people requeue, discard, prepare and take the turn all the time."""

import random
import threading
import time

from support.queued import with_dead
from support.wait import wait_for

DEAD = "ARRAY(SELECT id FROM sync_outbox_queue WHERE table_name = 'k' AND status = 'DEAD')"


def test_order_of_keys_while_a_look_is_disturbed_all_the_time(live, receiver):
    with_dead(live, receiver, 40_000)
    live.server.set(sync_outbox__interval="500ms", sync_outbox__retry_interval="200ms",
                    sync_outbox__retry_max_interval="400ms",
                    sync_outbox__max_attempts=2)
    live.run("CREATE TABLE k (id int PRIMARY KEY, v int); INSERT INTO k SELECT n, 0 FROM generate_series(1, 30) n")
    live.attach("k")
    chance = random.Random(5)
    taken, lock = [], threading.Lock()

    def some(request, wire):
        acked, errors, refused = [], [], set()
        for c in request.changes:
            key = c["pk"]["id"]
            if c["table"] != "k":
                errors.append({"dedup_key": c["dedup_key"], "error": "no"})
            elif key in refused or chance.random() < 0.1:
                refused.add(key)
                errors.append({"dedup_key": c["dedup_key"], "error": "no"})
            else:
                acked.append(c["dedup_key"])
                with lock:
                    taken.append((key, c["data"]["v"], c["dedup_key"]))
        wire.answer(200, {"acked": acked, "errors": errors})
    receiver.behaviour = some
    stop, problems = threading.Event(), []

    def guard(f):
        def run():
            try:
                f()
            except Exception as error:
                problems.append(error)
                stop.set()
        return run

    @guard
    def write():
        with live.session() as session:
            while not stop.is_set():
                session.execute("UPDATE k SET v = v + 1 WHERE id = %s", [random.randint(1, 30)])
                time.sleep(0.001)

    @guard
    def prepare():
        with live.session() as session:
            n = 100_000_000
            while not stop.wait(0.05):
                key = random.randint(1, 30)
                session.execute(f"BEGIN; UPDATE k SET v = v + 1 WHERE id = {key}; PREPARE TRANSACTION 'r5b'")
                time.sleep(random.random() * 0.05)
                session.execute("COMMIT PREPARED 'r5b'")

    @guard
    def administer():
        with live.session() as session:
            while not stop.wait(0.1):
                session.execute(random.choice([
                    f"SELECT sync_outbox_requeue({DEAD}, 'tried again')",
                    f"SELECT sync_outbox_requeue(({DEAD})[1:1], 'tried again')",
                    "SELECT sync_outbox_flush()", "SELECT sync_outbox_flush(max_rows => 5)",
                    "SELECT sync_outbox_pause('default'), sync_outbox_resume('default')"]))
    threads = [threading.Thread(target=f) for f in (write, prepare, administer)]
    for thread in threads:
        thread.start()
    stop.wait(30)
    stop.set()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]

    def everything(request, wire):
        taken.extend((c["pk"]["id"], c["data"]["v"], c["dedup_key"]) for c in request.changes if c["table"] == "k")
        wire.answer(200, {"acked": request.keys})
    receiver.behaviour = everything

    def all_gone():
        left = {status for (status,) in live.rows("SELECT DISTINCT status FROM sync_outbox WHERE table_name = 'k'")}
        if "DEAD" in left:
            live.run(f"SELECT sync_outbox_requeue({DEAD}, 'tried again')")
        return not left
    wait_for(all_gone, 35)
    last, seen, wrong = {}, set(), []
    for key, v, dedup in taken:
        if dedup not in seen:
            seen.add(dedup)
            if v != last.get(key, 0) + 1:
                wrong.append((key, last.get(key), v))
            last[key] = v
    print(len(seen), len(taken) - len(seen), wrong[:5])
    assert not wrong and {k: v for k, v in live.rows("SELECT id, v FROM k WHERE v > 0")} == last
