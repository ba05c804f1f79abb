"""What is read off the kernel and the server while something runs."""

import contextlib
import os
import pathlib
import statistics
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")

median = statistics.median


def percentile(values, share):
    """The value that `share` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Process:
    """A running process, read through /proc; ended threads count."""

    def __init__(self, pid):
        self.proc = pathlib.Path(f"/proc/{pid}")

    def cpu_seconds(self):
        # The name in parentheses may hold anything; utime and stime are the 14th and 15th field.
        fields = (self.proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def wake_ups(self):
        """How often a thread of it has gone to sleep: as often as it was woken."""
        return sum(int(line.split()[1])
                   for status in self.proc.glob("task/*/status")
                   for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches:"))

    def own_memory(self):
        """Bytes resident that are not shared: neither shared_buffers nor the program itself."""
        for line in (self.proc / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0


class Usage:
    """What a process used during a `with`: `cpu` seconds and, sampled, the most `memory` of its own, in bytes."""

    def __init__(self, pid, interval=0.05):
        self.process = Process(pid)
        self.interval = interval
        self.memory = 0

    def __enter__(self):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.before = self.process.cpu_seconds()
        self.thread.start()
        return self

    def _sample(self):
        while not self.ended.is_set():
            with contextlib.suppress(FileNotFoundError):
                self.memory = max(self.memory, self.process.own_memory())
            self.ended.wait(self.interval)

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.cpu = self.process.cpu_seconds() - self.before


class Watch:
    """A stop watch for a `with`."""

    def __enter__(self):
        self.began = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.began


def wal_position(db):
    """Bytes of WAL ever inserted."""
    return int(db.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))


def next_transaction_id(db):
    """Reading it uses none."""
    return int(db.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
