"""Part 4: what it costs when there is nothing to do, and when nothing can be done."""

import time
from dataclasses import dataclass

import singles
from measuring import Process, median, next_transaction_id, wal_position
from report import Goals, Table, count, progress, ratio
from stage import ROWS, stage
from support.database import TOKEN
from support.wait import wait_for

# Nobody listens there: port 9 is for discarding, and not served.
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Watched:
    """What launcher and worker used in a while, and what the whole server used."""
    cpu: float
    wake_ups: int
    transactions: int
    wal: int


def measure(run, plan):
    # With nothing else in the server that writes WAL by itself.
    with stage(run, "idle", sync_outbox__enabled="on", sync_outbox__worker_idle_timeout="1h", wal_level="minimal",
               max_wal_senders="0") as at:
        at.create_source("sales")
        at.db.attach("sales")
        idle = _watch_idle(at, plan)
        offline = _watch_offline(at, plan)
        writers = _writers(at, plan)
    return _report(plan, idle, offline, writers)


def _watch_idle(at, plan):
    at.db.run("SELECT sync_outbox_resume()")  # starts a worker, though there is nothing to send
    wait_for(lambda: at.workers("worker"))
    return _watch(at, plan.watch_seconds)


def _watch_offline(at, plan):
    _aim(at, NOWHERE)
    at.db.run("TRUNCATE sales")
    at.insert("sales", plan.waiting)
    wait_for(lambda: at.db.value("SELECT max(consecutive_failures) >= 3 FROM sync_outbox_target_state"), 60)
    return _watch(at, plan.watch_seconds)


def _aim(at, url):
    """With the token again: it belongs to one origin."""
    at.db.configure(webapp_base_url=url, sync_upload_token=TOKEN)


def _watch(at, seconds):
    at.db.run("CHECKPOINT")
    time.sleep(1)
    processes = [Process(pid) for pid in at.workers("launcher", "worker")]
    assert len(processes) == 2
    first = _used(at, processes)
    time.sleep(seconds)
    last = _used(at, processes)
    return Watched(*(after - before for before, after in zip(first, last)))


def _used(at, processes):
    return (sum(process.cpu_seconds() for process in processes), sum(process.wake_ups() for process in processes),
            next_transaction_id(at.db), wal_position(at.db))


def _writers(at, plan):
    """Transactions a second of writers whose changes go out, wait for a target that is down, or are not sent at all."""
    script = singles.write_script(at, plan.peer_rows)
    rates = {"up": [], "down": [], "off": []}
    for n in range(plan.rounds):
        progress(f"offline, round {n + 1} of {plan.rounds}")
        for state, results in rates.items():
            at.server.set(sync_outbox__enabled="off")
            wait_for(lambda: not at.workers("worker"))
            _refill(at, plan.peer_rows)
            _aim(at, NOWHERE if state == "down" else at.receiver.url)
            at.db.run("SELECT sync_outbox_resume()")
            at.server.set(sync_outbox__enabled="off" if state == "off" else "on")
            results.append(singles.pgbench(at, script, 4, plan.pgbench_seconds))
    return {state: median(results) for state, results in rates.items()}


def _refill(at, rows):
    at.db.run("TRUNCATE sync_outbox, sales")
    at.db.run("SET session_replication_role = replica")
    at.db.run(f"INSERT INTO sales {ROWS.format(first=1, last=rows)}")
    at.db.run("RESET session_replication_role")
    at.db.run("VACUUM ANALYZE sales")
    at.db.run("CHECKPOINT")


def _report(plan, idle, offline, writers):
    table = Table(f"in {plan.watch_seconds} s", "CPU s", "of a core", "wake-ups", "transaction ids", "WAL bytes")
    watched = {"nothing to send": idle, f"target down, {count(plan.waiting)} changes waiting": offline}
    for title, used in watched.items():
        table.add(title, f"{used.cpu:.2f}", f"{used.cpu / plan.watch_seconds:.2%}", used.wake_ups, used.transactions,
                  count(used.wal))

    titles = {"up": "target up, changes go out meanwhile", "down": "target down, changes wait",
              "off": "sending switched off"}
    tps = Table("single-row UPDATE, 4 clients, synchronous_commit = off", "tps", "of sending switched off")
    for state, title in titles.items():
        tps.add(title, count(writers[state]), ratio(writers[state], writers["off"]))

    goals = Goals()
    goals.at_most("idle worker, CPU, % of a core", 0.1, None, 100 * idle.cpu / plan.watch_seconds)
    goals.at_most("idle worker, wake-ups", None, 0, idle.wake_ups, "{:.0f}")
    goals.at_most("idle worker, transaction ids", 0, None, idle.transactions, "{:.0f}")
    goals.at_most("idle worker, WAL bytes", 0, None, idle.wal, "{:.0f}")
    goals.at_least("writers with the target down, share of the target up", 0.95, 1.0, writers["down"] / writers["up"])
    return [table, tps, goals]
