"""How much is measured. A quick run shows the same things with less of everything, so that it ends within 5 minutes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    name: str
    # Every figure is the median of this many, taken in turns so that a drifting machine hits all variants alike.
    rounds: int
    # Capture: rows of a bulk statement, seconds of a pgbench run, rows of the statement whose memory is measured.
    bulk_rows: int
    pgbench_seconds: int
    large_update_rows: int
    # Drain: backlogs.
    small_backlog: int
    large_backlog: int
    huge_backlog: int | None
    # Latency: seconds at 100 commits a second, and commits that find no worker.
    latency_seconds: int
    cold_commits: int
    # Idle and offline: seconds of watching, and changes that wait meanwhile.
    watch_seconds: int
    waiting: int


FULL = Plan(
    name="full", rounds=3,
    bulk_rows=300_000, pgbench_seconds=10, large_update_rows=10_000_000,
    small_backlog=100_000, large_backlog=1_000_000, huge_backlog=10_000_000,
    latency_seconds=60, cold_commits=20,
    watch_seconds=60, waiting=1_000_000)

QUICK = Plan(
    name="quick", rounds=3,
    bulk_rows=100_000, pgbench_seconds=2, large_update_rows=1_000_000,
    small_backlog=100_000, large_backlog=1_000_000, huge_backlog=None,
    latency_seconds=10, cold_commits=5,
    watch_seconds=15, waiting=100_000)
