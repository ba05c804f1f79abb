"""Part 2: how fast a backlog goes over the wire."""

import os
import time
from dataclasses import dataclass

import poller
from measuring import Process, Usage, Watch, median
from report import Goals, Table, count, progress, ratio
from stage import stage
from support.wait import wait_for

MIB = 1024 ** 2
# What people ask who want to know what is left. The first two have a goal.
QUESTIONS = ["sync_outbox_stats()", "sync_outbox_flush(max_rows => 0)", "sync_outbox_overview()"]


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
    rows = plan.small_backlog
    yield Case("5,000 a batch", rows)
    yield Case("500 a batch", rows // 2, batch=500)
    yield Case("50 a batch", rows // 5, batch=50)
    yield Case("5,000 a batch, by the worker", rows, sender="worker")
    yield Case("5,000 a batch, gzip", rows // 2, gzip=True)
    yield Case("5,000 a batch, an old snapshot held", rows, snapshot=True)
    for latency in (20, 100, 200):
        yield Case(f"5,000 a batch, {latency} ms latency", rows // 2, latency_ms=latency, bound=5000 * 1000 / latency)
    yield Case(f"poller in Python, {poller.BATCH} a batch", rows // 5, batch=poller.BATCH, sender="poller")


def measure(run, plan):
    with stage(run, "drain", autovacuum="on") as at:
        drained = {case: [] for case in cases(plan)}
        for n in range(plan.rounds):
            progress(f"drain, round {n + 1} of {plan.rounds}")
            for case, results in drained.items():
                results.append(_drain(at, case))
        asked = {}
        for backlog in plan.long_backlogs:
            long = [Case("5,000 a batch", backlog)]
            if backlog in plan.held_backlogs:
                long.append(Case("5,000 a batch, an old snapshot held", backlog, snapshot=True))
            for n in range(plan.long_rounds):
                progress(f"drain, {count(backlog)} changes, round {n + 1} of {plan.long_rounds}")
                for case in long:
                    drained.setdefault(case, []).append(_drain(at, case, asked.setdefault(backlog, _new_answers())))
    waited = {backlog: {call: median(times) for call, times in answers.items()} for backlog, answers in asked.items()}
    return _report(plan, {case: _median(results) for case, results in drained.items()}, waited)


def _median(results):
    return Result(*(median(values) for values in zip(*(
        (r.rate, r.sender_cpu, r.receiver_cpu, r.memory, r.requests) for r in results))))


def _new_answers():
    return {call: [] for call in QUESTIONS}


def _drain(at, case, answers=None):
    """Fills the outbox, empties it, and says how that went; CPU in seconds per million rows.

    Before that everybody asks, where `answers` wants to know how many seconds they wait."""
    at.server.set(sync_outbox__batch_rows=case.batch, sync_outbox__batch_bytes="64MB",
                  sync_outbox__compression="on" if case.gzip else "off")
    witness = at.db.session()
    if case.snapshot:
        witness.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        witness.execute("SELECT count(*) FROM pg_class")
    at.fill(case.backlog)
    for call, times in (answers or {}).items():
        for _ in range(3):
            with Watch() as watch:
                at.db.rows(f"SELECT {call}")
            times.append(watch.seconds)
    at.receiver.configure(case.latency_ms)
    receiver = Process(at.receiver.pid)
    receiver_before = receiver.cpu_seconds()
    seconds, usage = SENDERS[case.sender](at, case)
    receiver_cpu = receiver.cpu_seconds() - receiver_before
    witness.close()
    stats = at.receiver.stats()
    assert stats["changes"] == case.backlog, f"{case}: {stats}"
    millions = case.backlog / 1e6
    return Result(rate=case.backlog / seconds, sender_cpu=usage.cpu / millions, receiver_cpu=receiver_cpu / millions,
                  memory=usage.memory, requests=stats["requests"])


def _by_drain(at, case):
    session = at.db.session()
    with Usage(session.info.backend_pid) as usage, Watch() as watch:
        session.execute("CALL sync_outbox_drain()")
    session.close()
    return watch.seconds, usage


def _by_worker(at, case):
    """From the first request until nothing is left: how fast a worker is there is another part's business."""
    at.server.set(sync_outbox__enabled="on")
    (pid,) = wait_for(lambda: at.workers("worker"))
    with Usage(pid) as usage:
        wait_for(lambda: at.receiver.stats()["changes"] >= case.backlog, 600)
        wait_for(lambda: at.db.value("SELECT NOT EXISTS (SELECT FROM sync_outbox)"))
        ended = time.time()
    at.server.set(sync_outbox__enabled="off")
    wait_for(lambda: not at.workers("worker"))
    return ended - at.receiver.stats()["first_us"] / 1e6, usage


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


def _report(plan, drained, asked):
    base, by_hand = _find(drained, "5,000 a batch", plan.small_backlog), _find(drained, "poller")
    table = Table("how", "backlog", "rows/s", "x poller", "of batch / latency", "requests", "sender CPU s per million",
                  "receiver CPU s per million", "sender memory MiB")
    for case, result in drained.items():
        table.add(case.name, count(case.backlog), count(result.rate), ratio(result.rate, by_hand.rate),
                  ratio(result.rate, case.bound) if case.bound else "", count(result.requests),
                  f"{result.sender_cpu:.1f}", f"{result.receiver_cpu:.1f}", f"{result.memory / MIB:.0f}")
    most = max(plan.long_backlogs)
    waiting = Table("seconds to say how much waits", *(f"{count(backlog)} changes" for backlog in asked))
    for call in QUESTIONS:
        waiting.add(f"`{call}`", *(f"{answers[call]:.3f}" for answers in asked.values()))

    long = _find(drained, "5,000 a batch", most)
    slow = _find(drained, "5,000 a batch, 100 ms latency")
    held, free = (_find(drained, name, max(plan.held_backlogs, default=plan.small_backlog))
                  for name in ("5,000 a batch, an old snapshot held", "5,000 a batch"))
    goals = Goals()
    goals.at_least("5,000 a batch, rows/s", 150_000, 250_000, base.rate, "{:,.0f}")
    goals.at_least("5,000 a batch, x the poller", 8, None, base.rate / by_hand.rate, "{:.2f}")
    goals.at_least("100 ms latency, share of batch / latency", 0.9, None, slow.rate / 50_000)
    goals.at_least(f"backlog of {count(most)}, share of the rate at {count(plan.small_backlog)}", 0.9, 1.0,
                   long.rate / base.rate)
    goals.at_most(f"backlog of {count(most)}, MiB more memory than at {count(plan.small_backlog)}", 64, None,
                  (long.memory - base.memory) / MIB, "{:.0f}")
    goals.at_least("an old snapshot held, share of the rate without", 0.8, 0.95, held.rate / free.rate)
    for call in QUESTIONS[:2]:
        goals.at_most(f"`{call}` with {count(most)} changes waiting, s", 1, None, asked[most][call])
    return [table, waiting, goals]


def _find(drained, name, backlog=None):
    return next(result for case, result in drained.items()
                if case.name.startswith(name) and backlog in (None, case.backlog))
