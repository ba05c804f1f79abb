"""Part 3: from a commit to the arrival of its change at the receiver.

Writer and receiver read the same clock. Measured from the moment the writer knows that it has committed, and from the
moment it began to write, which is the longest that anybody could call it."""

import time

from measuring import percentile
from report import Goals, Table
from stage import stage
from support.wait import wait_for

PER_SECOND = 100
WARM_UP = 1
INSERT = "INSERT INTO sales VALUES (%s, 'store-1', 7, 1, 9.90, now(), 'sold at counter 7')"


def measure(run, plan):
    with stage(run, "latency", synchronous_commit="on", sync_outbox__enabled="on") as at:
        at.create_source("sales")
        at.db.attach("sales")
        warm = _warm(at, plan.latency_seconds)
        cold = _cold(at, plan.cold_commits)
    return _report(plan, warm, cold)


def _warm(at, seconds):
    """One change per transaction at a steady rate, to a worker that is there."""
    at.receiver.configure(record=True)
    writer = Writer(at)
    began = time.monotonic()
    for n in range((seconds + WARM_UP) * PER_SECOND):
        time.sleep(max(0, began + n / PER_SECOND - time.monotonic()))
        writer.write()
    return writer.latencies(skip=WARM_UP * PER_SECOND)


def _cold(at, commits):
    """One change at a time, each when the last worker has left."""
    at.server.set(sync_outbox__worker_idle_timeout="100ms")
    at.receiver.configure(record=True)
    writer = Writer(at)
    for _ in range(commits):
        wait_for(lambda: not at.workers("worker"), 30)
        writer.write()
        wait_for(lambda: at.receiver.stats()["changes"] >= len(writer.written), 30)
    return writer.latencies()


class Writer:
    """Commits single changes and remembers when."""
    last = 0

    def __init__(self, at):
        self.at = at
        self.session = at.db.session()
        self.written = []

    def write(self):
        Writer.last += 1
        began = time.time_ns()
        self.session.execute(INSERT, [Writer.last])
        self.written.append((Writer.last, began // 1000, time.time_ns() // 1000))

    def latencies(self, skip=0):
        """(milliseconds since each commit was known, milliseconds since each was begun)."""
        wait_for(lambda: self.at.receiver.stats()["changes"] >= len(self.written), 30)
        arrivals = self.at.receiver.arrivals()
        self.session.close()
        written = self.written[skip:]
        return ([(arrivals[id] - known) / 1000 for id, _, known in written],
                [(arrivals[id] - began) / 1000 for id, began, _ in written])


def _report(plan, warm, cold):
    table = Table("ms until a change arrives", "changes", "p50", "p90", "p99", "max")
    for title, (since_known, since_begun) in {
            f"warm worker, {PER_SECOND} commits a second": warm, "cold worker, single commits": cold}.items():
        for since, values in {"since the commit returned": since_known, "since it was sent": since_begun}.items():
            table.add(f"{title}, {since}", len(values),
                      *(f"{percentile(values, share):.2f}" for share in (0.5, 0.9, 0.99)), f"{max(values):.2f}")
    goals = Goals()
    goals.at_most("warm worker, p50 since the commit returned, ms", 2, 1, percentile(warm[0], 0.5))
    goals.at_most("warm worker, p99 since the commit returned, ms", 10, None, percentile(warm[0], 0.99))
    return [table, goals]
