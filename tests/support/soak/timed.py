"""What people do on a busy day, timed: no fault is about, the writers never stop.

What a use takes is worked out at the end, of the hub's book: `due` is a list of (use, function of the book that returns the seconds, or
the number of requests, that it took; None if there is nothing to tell)."""

import pathlib
import random
import statistics
import time

import psycopg

from ..load import EXPECTED, Writer
from ..wait import wait_for
from .more import ROLE

# From the commit of a word to the last request that may begin under the old one; and what the clocks of two processes on a busy
# machine of two cores may add to it.
AT_ONCE, SLACK = 0.1, 0.5

# By what is measured: its unit, and the most that is no gross violation.
BOUNDS = {
    "pause: a request under the old word": ("s", AT_ONCE + SLACK),
    "enabled off: a request under the old word": ("s", AT_ONCE + SLACK),
    "another URL: a request under the old word": ("s", AT_ONCE + SLACK),
    "resume: the next request": ("s", 3),
    "HIGH beside a backlog: on its way after": ("s", 3),
    "HIGH beside a backlog: requests before it": ("requests", 3),
    "requeue: on its way after": ("s", 3),
    "requeue: requests before it": ("requests", 5),
    "a second target beside a flooded one: on its way after": ("s", 3),
    "flush beside the worker": ("s", 20),
    "memory of a backend that writes": ("MB", 100),
    "waiting after the faults": ("changes", float("inf")),
}


class Timed:
    def __init__(self, stand, seed):
        self.stand = stand
        self.rng = random.Random(f"{seed} timed")
        self.due = []
        self.measured = {}
        self.deck = []
        self.writer = Writer(stand.load, "timed", seed)

    def run(self, until):
        """One use after the other until then; each of them has its turn before one comes again."""
        stand = self.stand
        stand.calm.set()
        if self.writer.connection is not None:
            self.writer.connection.close()  # the faults may have ended it without a word
            self.writer.connection = None
        try:
            stand.wait_until_open()
            stand.hub.behave()
            stand.restore()
            # A drain of all that the faults have held up would take a while.
            began = time.time()
            wait_for(lambda: not stand.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                            " WHERE application_name LIKE 'pusher%' AND state <> 'idle'"), 15, "nobody who pushes by hand")
            stand.disturbed(began)
            # After each crash in a row the launcher waits twice as long before it starts a worker, up to a minute.
            wait_for(lambda: stand.pids("sync_outbox worker"), 65, "a worker, after crashes in a row")
            self.measure("waiting after the faults", stand.rows("SELECT count(*) FROM sync_outbox")[0][0])
            while time.monotonic() < until:
                if not self.deck:
                    self.deck = self.rng.sample(USES, len(USES))
                use = self.deck.pop()
                try:
                    use(self)
                except psycopg.Error as error:
                    if not isinstance(error, EXPECTED) or error.sqlstate is None:
                        stand.findings.append(f"{use.__doc__}: {error!r}")
                finally:
                    stand.hub.behave()
                    stand.restore()
        finally:
            stand.calm.clear()

    # Measures

    def measure(self, what, value):
        if value is not None:
            self.measured.setdefault(what, []).append(value)

    def old_word(self, what, since, until, port=None):
        """The last request of the default target, at that port, that begins in this time."""
        def seconds(hub):
            late = [began - since for began, its_port, tables in hub.began
                    if since < began < until and tables != ["parcel"] and port in (None, its_port)]
            return max(late, default=0.0)
        self.due.append((what, seconds))

    def first(self, what, key, since, requests=None):
        """When the request began in which this came for the first time since then, and how many of the default target came before."""
        self.stand.more.watched.add(key)

        def arrival(hub):
            return min((began for began in hub.first.get(key, []) if began > since - 0.05), default=None)

        def seconds(hub):
            return float("inf") if arrival(hub) is None else max(0.0, arrival(hub) - since)

        def before(hub):
            return sum(since < began < (arrival(hub) or since) for began, _, tables in hub.began if tables != ["parcel"])
        self.due.append((what, seconds))
        if requests:
            self.due.append((requests, before))

    def close(self, hub):
        """The rest of what is measured, now that the book is there."""
        for what, value in self.due:
            self.measure(what, value(hub))

    @property
    def failures(self):
        return [f"{what}: {value:.2f} {BOUNDS[what][0]}, more than {BOUNDS[what][1]}"
                for what, values in self.measured.items() for value in values if value > BOUNDS[what][1]]

    def __str__(self):
        rows = [f"| {what} | {len(values)} | {statistics.median(values):.2f} {BOUNDS[what][0]} | {max(values):.2f} | {BOUNDS[what][1]} |"
                for what, values in sorted(self.measured.items())]
        return "\n".join(["| timed | times | median | worst | bound |", "|---|---|---|---|---|", *rows])

    # What it does with them

    def write(self, table, rows=1):
        """Rows that are new, in a transaction of their own; the first key and when it had committed."""
        if self.writer.connection is None or self.writer.connection.closed:
            self.writer.connection = self.stand.load.connect("timed")
        low = self.stand.load.block(rows)
        self.writer.transaction(lambda transaction: transaction.bulk("INSERT", low, low + rows - 1, 1, table))
        return f"{table} {low}", time.time()

    def say(self, statement):
        """When it had committed."""
        with self.stand.session() as session:
            session.execute(statement)
            return time.time()

    def paused(self):
        """pause and resume"""
        since = self.say("SELECT sync_outbox_pause(reason => 'timed')")
        time.sleep(1.0)
        until = time.time()
        resumed = self.say("SELECT sync_outbox_resume()")
        self.old_word("pause: a request under the old word", since, until)
        time.sleep(0.5)
        self.due.append(("resume: the next request", lambda hub: min(
            (began - resumed for began, _, tables in hub.began if began > resumed and tables != ["parcel"]), default=float("inf"))))

    def disabled(self):
        """enabled off and on"""
        self.stand.server.set(sync_outbox__enabled="off")
        since = time.time()
        time.sleep(1.0)
        until = time.time()
        self.stand.server.set(sync_outbox__enabled="on")
        self.old_word("enabled off: a request under the old word", since, until)

    def moved(self):
        """another URL, and back"""
        for away in (1, 0):
            self.stand.aim(self.stand.hub.urls[away])
            since = time.time()
            time.sleep(0.8)
            self.old_word("another URL: a request under the old word", since, time.time(), self.stand.hub.ports[1 - away])

    def urgent(self):
        """a HIGH change beside a long NORMAL backlog"""
        self.say("SELECT sync_outbox_pause(reason => 'timed')")
        self.write("crate", 4000)
        self.say("SELECT sync_outbox_resume()")
        self.first("HIGH beside a backlog: on its way after", *self.write("express"), "HIGH beside a backlog: requests before it")
        time.sleep(1.0)

    def requeued(self):
        """changes in conflict, requeued"""
        self.stand.hub.behave("conflict")
        in_conflict = "SELECT dedup_key FROM sync_outbox WHERE status = 'CONFLICT'"
        wait_for(lambda: self.stand.rows(in_conflict), 15, "a change in conflict")
        self.stand.hub.behave()
        time.sleep(0.5)  # what is out is answered
        keys = self.stand.rows(in_conflict)
        since = self.say("SELECT sync_outbox_requeue()")
        for (key,) in keys:
            self.first("requeue: on its way after", str(key), since, "requeue: requests before it")
        time.sleep(1.0)
        self.stand.disturbed(since)

    def second_target(self):
        """a change of another target while the first is flooded"""
        self.write("crate", 2000)
        for _ in range(3):
            self.first("a second target beside a flooded one: on its way after", *self.write("parcel"))
            time.sleep(0.3)

    def flushed(self):
        """flush beside the busy worker"""
        for _ in range(2):
            with self.stand.session() as session:
                began = time.monotonic()
                answer = session.execute("SELECT sync_outbox_flush()").fetchone()[0]
                # A request into a busy hub may take longer than this stand's short lock_wait; the turn comes after it.
                while answer.get("error") == "flush_busy" and time.monotonic() - began < 10:
                    answer = session.execute("SELECT sync_outbox_flush()").fetchone()[0]
                self.measure("flush beside the worker", time.monotonic() - began)
            if answer.get("error") in ("offline", "flush_timeout"):
                self.stand.disturbed(time.time())  # flush_timeout ended it, and the request that was out
            elif answer.get("error"):
                self.stand.findings.append(f"a flush in peace answered {answer}")

    def escalates(self):
        """the owner of a table wants to be superuser"""
        with self.stand.server.connect(self.stand.db.name, ROLE) as session:
            key = self.stand.load.block(1)
            for statement in (f"INSERT INTO evil.bait VALUES ({key}, 'born', 'happy')",
                              f"UPDATE evil.bait SET note = 'grown' WHERE id = {key}"):
                session.execute(statement)
                session.execute("RESET statement_timeout; RESET search_path")

    def weighed(self):
        """how large the backends have become"""
        for pid in self.stand.pids("client backend", "writer%"):
            try:
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            self.measure("memory of a backend that writes",
                         sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024)


USES = [Timed.paused, Timed.disabled, Timed.moved, Timed.urgent, Timed.requeued, Timed.second_target, Timed.flushed, Timed.escalates,
        Timed.weighed]
