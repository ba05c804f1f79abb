"""Runs the schedule against a stand, and tells what came of it."""

import bisect
import inspect
import random
import threading
import time
from collections import Counter

import psycopg

from ..load import EXPECTED
from ..hub import HubProcess
from ..stand import Stand
from . import hub_faults, server_faults, session_faults
from .more import WRITERS, More
from .schedule import schedule
from .timed import Timed


def _of(module):
    """The faults of a module by their descriptions: public functions of (stand, rng)."""
    found = [function for name, function in inspect.getmembers(module, inspect.isfunction)
             if list(inspect.signature(function).parameters) == ["stand", "rng"]]
    return {function.__doc__: function for function in found}


FAULTS = {
    "server": _of(server_faults), "sessions": _of(session_faults),
    "hub": {fault.__doc__: fault for fault in hub_faults.FAULTS},
}
# A crash now and then, so that there is something to crash; the others all the time.
PACE = {"server": (4.0, 9.0), "sessions": (0.8, 2.6), "hub": (1.3, 2.6)}

# Seconds: how long there are faults, and how long there are none, in which what people do is timed.
STORM, PEACE = 40, 20
# Between two statements of many rows: what a database behind a hub can take on a busy machine of two cores.
PAUSE = 0.5

# These end no session and lose no answer: a change that comes again during one of them would need another reason.
HARMLESS = {fault.__doc__ for fault in (
    session_faults.other_batches, session_faults.old_snapshot, session_faults.late_commit, session_faults.another_index,
    session_faults.vacuum_analyze, session_faults.terminate_writer, session_faults.writer_vanishes)}


class Soak:
    def __init__(self, server, hub_server, directory, seed, seconds, **load):
        self.seed = seed
        # Forty seconds of faults, twenty in peace.
        parts = max(1, round(seconds / (STORM + PEACE)))
        self.length = seconds / parts
        storm = self.length * STORM / (STORM + PEACE)
        events = schedule(seed, storm * parts, {lane: (list(faults), *PACE[lane]) for lane, faults in FAULTS.items()})
        self.parts = [[event._replace(at=event.at + part * (self.length - storm)) for event in events
                       if part * storm <= event.at < (part + 1) * storm] for part in range(parts)]
        self.more = More(hub_server)
        hub = HubProcess(directory, database=self.more.dsn)
        self.stand = Stand(server, directory, seed, hub=hub, more=self.more, **{"writers": WRITERS, "pause": PAUSE, **load})
        self.timed = Timed(self.stand, seed)
        self.times, self.missed = Counter(), Counter()
        # (from, to, fault) of those that may bring a change again, in the order of each lane.
        self.harmful = {lane: [] for lane in FAULTS}

    def run(self):
        """Injects everything, heals, and returns the verdict."""
        self.began = time.monotonic()
        with self.stand:
            # The server's lane is this thread: a server ends with the thread that started it.
            for number, events in enumerate(self.parts, 1):
                lanes = [threading.Thread(target=self.lane, args=[lane, events]) for lane in ("sessions", "hub")]
                for lane in lanes:
                    lane.start()
                self.lane("server", events)
                for lane in lanes:
                    lane.join()
                self.timed.run(self.began + number * self.length)
            self.seconds = time.monotonic() - self.began
            self.verdict = self.stand.verdict()
            self.timed.close(self.verdict.hub)
        return self.verdict

    def lane(self, lane, events):
        for event in (event for event in events if event.lane == lane):
            time.sleep(max(0, self.began + event.at - time.monotonic()))
            began = time.time()
            self.times[event.fault] += 1
            try:
                FAULTS[event.lane][event.fault](self.stand, random.Random(event.seed))
            except (psycopg.Error, IndexError, ProcessLookupError) as error:
                # Two faults at a time: the one's server may be gone, or whom it was to hit.
                self.missed[event.fault] += 1
                if getattr(error, "sqlstate", None) is not None and not isinstance(error, EXPECTED):
                    self.stand.findings.append(f"{event.fault}: {error.sqlstate} {error}")
                if event.lane == "sessions":
                    self.recover()
            except Exception as error:
                self.stand.findings.append(f"{event.fault}: {error!r}")
            if event.fault not in HARMLESS:
                self.harmful[lane].append((began, time.time(), event.fault))
                self.stand.disturbed(began)

    def recover(self):
        """After a fault that could not end what it began."""
        self.stand.restore()
        try:
            session_faults.clear_away(self.stand)
        except psycopg.Error:
            pass  # again after the next one

    # What came of it

    @property
    def failures(self):
        """Everything that must not be, in words."""
        lines = self.stand.server.log.alarming(self.stand.position, expected=["was terminated by signal (9|3)"])
        log = Counter(line.partition("] ")[2] for line in lines)
        lines += self.more.server.log.alarming(self.more.position)
        troubles = Counter(self.verdict.hub.troubles).most_common(20)
        return [*(f"{count} {what}" for what, count in self.verdict.failures.items()), *self.timed.failures, *self.findings,
                *self.verdict.differing[:20], *(f"{count} x {what}" for what, count in troubles),
                *(f"{count} x in the server's log: {line}" for line, count in log.items())]

    @property
    def findings(self):
        """What writers, pushers and faults met that is no part of any fault."""
        return list(dict.fromkeys([*self.stand.findings, *self.stand.load.findings]))

    def report(self):
        """As Markdown: seed, counts, and a row per fault with the changes that came again because of it."""
        again = Counter(self.reason(repeat) for repeat in self.verdict.hub.repeats)
        rows = [f"| {fault} | {lane} | {self.times[fault]} | {self.missed[fault]} | {again[fault]} |"
                for lane, faults in FAULTS.items() for fault in sorted(faults) if self.times[fault]]
        return "\n".join([
            f"seed {self.seed}, {self.seconds:.0f} s of faults, {sum(self.times.values())} faults, then empty after {self.stand.drained:.1f} s",
            str(self.verdict),
            f"{self.more.rows} rows of store and hub compared, {len(self.verdict.differing)} differ",
            "", str(self.timed), "",
            "| fault | lane | times | of these missed their target | duplicated |", "|---|---|---|---|---|", *rows])

    def reason(self, repeat):
        """The fault that most likely made a change come again: an answer was lost, or a settlement."""
        lanes = ["hub", "server", "sessions"] if repeat.answered is None else ["server", "sessions", "hub"]
        for lane in lanes:
            # One after the other: if the last that had begun was over by then, so were all before it.
            done = self.harmful[lane]
            last = bisect.bisect_right(done, repeat.again, key=lambda entry: entry[0]) - 1
            if last >= 0 and repeat.before <= done[last][1] + 1:
                return done[last][2]
        return "the end"
