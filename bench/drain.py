"""Part 2: how fast a backlog goes over the wire."""

import os
from dataclasses import dataclass

import poller
from measuring import Process, Usage, Watch, median
from report import Goals, Table, count, ratio
from stage import stage
from support.wait import wait_for

MIB = 1024 ** 2


@dataclass(frozen=True)
class Case:
    """One way to drain, and what came of it once."""
    name: str
    backlog: int
    batch: int = 5000
    latency_ms: int = 0
    gzip: bool = False
    snapshot: bool = False
    sender: str = "drain"
    # The rate that the wire allows, where something is known to bound it.
    bound: float | None = None


@dataclass(frozen=True)
class Result:
    rate: float
    sender_cpu: float
    receiver_cpu: float
    memory: float
    requests: int


def cases(plan):
    small, large = plan.small_backlog, plan.large_backlog
    yield Case("5,000 a batch", small)
    yield Case("500 a batch", small, batch=500)
    yield Case("50 a batch", small // 2, batch=50)
    yield Case("5,000 a batch, by the worker", small, sender="worker")
    yield Case("5,000 a batch, gzip", small, gzip=True)
    yield Case("5,000 a batch, an old snapshot held", small, snapshot=True)
    for latency in (20, 100, 200):
        yield Case(f"5,000 a batch, {latency} ms latency", 50_000, latency_ms=latency, bound=5000 * 1000 / latency)
    yield Case(f"poller in Python, {poller.BATCH} a batch", small // 2, batch=poller.BATCH, sender="poller")
    yield Case("5,000 a batch", large)
    yield Case("5,000 a batch, an old snapshot held", large, snapshot=True)


def measure(run, plan):
    with stage(run, "drain", autovacuum="on") as at:
        drained = {case: [] for case in cases(plan)}
        for _ in range(plan.rounds):
            for case, results in drained.items():
                results.append(_drain(at, case))
        asked = plan.large_backlog
        if plan.huge_backlog:
            huge = Case("5,000 a batch", plan.huge_backlog)
            drained[huge] = []
            for _ in range(plan.rounds):
                drained[huge].append(_drain(at, huge))
            asked = plan.huge_backlog
        asking = _ask(at, asked)
    return _report(plan, {case: _median(results) for case, results in drained.items()}, asked, asking)


def _median(results):
    return Result(*(median(values) for values in zip(*(
        (r.rate, r.sender_cpu, r.receiver_cpu, r.memory, r.requests) for r in results))))


def _drain(at, case):
    """Fills the outbox, empties it, and says how that went; CPU in seconds per million rows."""
    at.server.set(sync_outbox__batch_rows=case.batch, sync_outbox__batch_bytes="64MB",
                  sync_outbox__compression="on" if case.gzip else "off")
    witness = at.db.session()
    if case.snapshot:
        witness.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        witness.execute("SELECT count(*) FROM pg_class")
    at.fill(case.backlog)
    at.receiver.configure(case.latency_ms)
    receiver = Process(at.receiver.pid)
    receiver_before = receiver.cpu_seconds()
    seconds, usage = SENDERS[case.sender](at, case)
    receiver_cpu = receiver.cpu_seconds() - receiver_before
    witness.close()
    stats = at.receiver.stats()
    assert stats["changes"] == case.backlog, f"{case}: {stats}"
    millions = case.backlog / 1e6
    return Result(case.backlog / seconds, usage.cpu / millions, receiver_cpu / millions, usage.memory, stats["requests"])


def _by_drain(at, case):
    session = at.db.session()
    with Usage(session.info.backend_pid) as usage, Watch() as watch:
        session.execute("CALL sync_outbox_drain()")
    session.close()
    return watch.seconds, usage


def _by_worker(at, case):
    """From the first request to the last answer: how fast a worker is there is another part's business."""
    at.server.set(sync_outbox__enabled="on")
    (pid,) = wait_for(lambda: at.workers("worker"))
    with Usage(pid) as usage:
        wait_for(lambda: at.receiver.stats()["changes"] >= case.backlog, 600)
        wait_for(lambda: at.db.value("SELECT count(*) FROM sync_outbox") == 0)
    at.server.set(sync_outbox__enabled="off")
    wait_for(lambda: not at.workers("worker"))
    stats = at.receiver.stats()
    return (stats["last_us"] - stats["first_us"]) / 1e6, usage


def _by_poller(at, case):
    poller.fill(at.db)
    session = at.db.session(autocommit=False)
    own = Process(os.getpid())
    before = own.cpu_seconds()
    with Usage(session.info.backend_pid) as usage, Watch() as watch:
        poller.poll(session, at.receiver)
    session.close()
    usage.cpu += own.cpu_seconds() - before
    usage.memory += own.own_memory()
    return watch.seconds, usage


SENDERS = {"drain": _by_drain, "worker": _by_worker, "poller": _by_poller}


def _ask(at, backlog):
    """How long people wait who ask what is left, in seconds."""
    at.fill(backlog)
    at.receiver.configure()
    times = {}
    for what, query in {"`sync_outbox_stats()`": "SELECT * FROM sync_outbox_stats()",
                        "`sync_outbox_overview()`": "SELECT * FROM sync_outbox_overview()",
                        "`sync_outbox_flush(max_rows => 1)`": "SELECT sync_outbox_flush(max_rows => 1)"}.items():
        taken = []
        for _ in range(3):
            with Watch() as watch:
                at.db.rows(query)
            taken.append(watch.seconds)
        times[what] = median(taken)
    at.db.run("TRUNCATE sync_outbox")
    return times


def _report(plan, drained, asked, asking):
    base, by_hand = _find(drained, "5,000 a batch", plan.small_backlog), _find(drained, "poller")
    table = Table("how", "backlog", "rows/s", "x poller", "of batch / latency", "requests", "sender CPU s per million",
                  "receiver CPU s per million", "sender memory MiB")
    for case, result in drained.items():
        table.add(case.name, count(case.backlog), count(result.rate), ratio(result.rate, by_hand.rate),
                  ratio(result.rate, case.bound) if case.bound else "", count(result.requests),
                  f"{result.sender_cpu:.1f}", f"{result.receiver_cpu:.1f}", f"{result.memory / MIB:.0f}")
    waiting = Table(f"asked with {count(asked)} changes waiting", "seconds")
    for what, seconds in asking.items():
        waiting.add(what, f"{seconds:.3f}")

    most = max(case.backlog for case in drained)
    long = _find(drained, "5,000 a batch", most)
    held = _find(drained, "5,000 a batch, an old snapshot held", plan.large_backlog)
    free = _find(drained, "5,000 a batch", plan.large_backlog)
    slow = _find(drained, "5,000 a batch, 100 ms latency")
    goals = Goals()
    goals.at_least("5,000 a batch, rows/s", 150_000, 250_000, base.rate, "{:,.0f}")
    goals.at_least("5,000 a batch, x the poller", 8, None, base.rate / by_hand.rate, "{:.1f}")
    goals.at_least("100 ms latency, share of batch / latency", 0.9, None, slow.rate / 50_000)
    goals.at_least(f"backlog of {count(most)}, share of the rate at {count(plan.small_backlog)}", 0.9, 1.0,
                   long.rate / base.rate)
    goals.at_most(f"backlog of {count(most)}, MiB more memory than at {count(plan.small_backlog)}", 64, None,
                  (long.memory - base.memory) / MIB, "{:.0f}")
    goals.at_least("an old snapshot held, share of the rate without", 0.8, 0.95, held.rate / free.rate)
    for what, seconds in asking.items():
        goals.at_most(f"{what} with {count(asked)} changes waiting, s", 1, None, seconds)
    return [table, waiting, goals]


def _find(drained, name, backlog=None):
    return next(result for case, result in drained.items()
                if case.name.startswith(name) and backlog in (None, case.backlog))
