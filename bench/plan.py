"""How much is measured. A quick run shows the same things with less of everything, so that it ends within 5 minutes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    name: str
    # Every figure but the long backlogs' is the median of this many, taken in turns, so that a machine that drifts hits
    # all variants alike.
    rounds: int
    # Capture: rows of a bulk statement, and of one that a slower peer captures; who is measured with single rows, and
    # for how many seconds; rows of the statement whose memory is measured.
    bulk_rows: int
    peer_rows: int
    single_rows: tuple[str, ...]
    pgbench_seconds: int
    large_update_rows: int
    # Drain: the usual backlog, longer ones, those of them drained beside an old snapshot too, and how often.
    small_backlog: int
    long_backlogs: tuple[int, ...]
    held_backlogs: tuple[int, ...]
    long_rounds: int
    # Latency: seconds at 100 commits a second, and commits that find no worker.
    latency_seconds: int
    cold_commits: int
    # Idle and offline: seconds of watching, and changes that wait meanwhile.
    watch_seconds: int
    waiting: int


FULL = Plan(
    name="full", rounds=3,
    bulk_rows=300_000, peer_rows=300_000, single_rows=("bare", "ours", "pgq", "statement", "row", "full"),
    pgbench_seconds=10, large_update_rows=10_000_000,
    small_backlog=100_000, long_backlogs=(1_000_000, 10_000_000), held_backlogs=(1_000_000,), long_rounds=3,
    latency_seconds=60, cold_commits=20,
    watch_seconds=60, waiting=1_000_000)

QUICK = Plan(
    name="quick", rounds=3,
    bulk_rows=100_000, peer_rows=20_000, single_rows=("bare", "ours", "pgq", "row"),
    pgbench_seconds=2, large_update_rows=200_000,
    small_backlog=100_000, long_backlogs=(1_000_000,), held_backlogs=(), long_rounds=1,
    latency_seconds=10, cold_commits=5,
    watch_seconds=15, waiting=100_000)
