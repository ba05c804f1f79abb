"""Double entry: what the writers wrote down of every transaction against what the hub wrote down of every request.

Both books are files of JSON lines, appended to with one write each before anybody is answered, so that they survive the
death of whoever writes them. A change is compared by its *word*: what a writer expects to arrive and what arrived give the
same word if and only if operation, key and content are the same.
"""

import bisect
import hashlib
import itertools
import json
import math
import os
from collections import Counter, defaultdict


def _digest(value):
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def word(op, key, data):
    return f"{op}:{_digest([key, data])}"


def content(change):
    """Of the whole change as it travelled: a repeat must be the same to the letter."""
    return _digest(change)


class Book:
    """Appends lines that survive a kill -9 of the writer; O_APPEND and one write, so that several may share the file."""

    def __init__(self, path):
        self.path = path
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **entry):
        os.write(self.file, (json.dumps(entry) + "\n").encode())

    def close(self):
        os.close(self.file)

    @staticmethod
    def read(path):
        """The entries; the last line may be cut off where its writer was killed while it wrote."""
        with open(path, encoding="utf-8") as book:
            for line in book:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


class Writers:
    """The writers' book, closed with the witness: the transactions that the database says it has committed.

    An entry of a transaction: `tx`, `count` of changes, `changes` = [[key, place, word], ..] (a change of a key stands in two
    histories), `ended` = committed | async | rolled back | unknown. `place` is the change's place in the history of its key,
    counted in the database under the key's row lock, so that it is given back when the transaction is."""

    def __init__(self, path, witness):
        self.transactions = Counter()
        self.changes = Counter()
        self.broken_promises = []
        self.undone = []
        expected = defaultdict(list)
        for entry in Book.read(path):
            kept = entry["tx"] in witness
            ended = entry["ended"]
            if ended == "committed" and not kept:
                self.broken_promises.append(entry["tx"])
            if ended == "rolled back" and kept:
                self.undone.append(entry["tx"])
            state = "kept" if kept else "vanished" if ended == "async" else "rolled back"
            self.transactions[state] += 1
            self.changes[state] += entry["count"]
            if kept:
                for key, place, expectation in entry["changes"]:
                    expected[key].append((place, expectation))
        self.histories = {key: [expectation for _, expectation in sorted(history)] for key, history in expected.items()}
        self.gaps = [key for key, history in expected.items()
                     if sorted(place for place, _ in history) != list(range(1, len(history) + 1))]


# After so many seconds a sender gives a request up, see stand.SETTINGS.
TIMEOUT = 1.0


class Hub:
    """The hub's book: requests as they arrived, and which of them were answered to the end.

    `began` has (time, port, tables) of every request; `first`, of the dedup_keys and keys that are watched, when the requests began
    that they came in; `troubles` what the hub's database would not take, or kept of foreign code.

    An entry of a request: `request`, `t`, `batch`, `changes` = [[dedup_key, content, taken, [key, ..], word], ..]; a second
    one, `answered`, when the last byte of the answer had been handed to the network."""

    def __init__(self, path, watched=()):
        self.requests = 0
        self.began, self.troubles, self.first = [], [], {}
        self.arrivals = 0
        self.arrived = defaultdict(Counter)
        self.taken = defaultdict(list)
        self.altered = set()
        self.repeats = []
        contents, taken_in, answered, seen = {}, {}, {}, set()
        for entry in Book.read(path):
            if "answered" in entry:
                answered[entry["answered"]] = entry["t"]
                continue
            if "trouble" in entry:
                self.troubles.append(entry["trouble"])
                continue
            self.requests += 1
            began = entry.get("began", entry["t"])
            self.began.append((began, entry.get("port"), entry.get("tables", [])))
            for dedup_key, its_content, taken, keys, its_word in entry["changes"]:
                self.arrivals += 1
                for each in (dedup_key, *keys):
                    if each in watched:
                        self.first.setdefault(each, []).append(began)
                if contents.setdefault(dedup_key, its_content) != its_content:
                    self.altered.add(dedup_key)
                if dedup_key not in seen:
                    seen.add(dedup_key)
                    for key in keys:
                        self.arrived[key][its_word] += 1
                if not taken:
                    continue
                if dedup_key in taken_in:
                    before = taken_in[dedup_key]
                    # One that was given up by its sender, and read late by the hub, is not behind an answer.
                    late = entry["t"] - began > TIMEOUT and answered.get(before[0], 0) > began
                    self.repeats.append(Repeat(dedup_key, None if late else answered.get(before[0]), before[1], entry["t"]))
                else:
                    for key in keys:
                        self.taken[key].append(its_word)
                taken_in[dedup_key] = entry["request"], entry["t"]
        self.began.sort(key=lambda entry: entry[0])
        self.changes = len(taken_in)


class Repeat:
    """A change that was taken a second time: `answered` is when the answer to the time before was out, None if never."""

    def __init__(self, dedup_key, answered, before, again):
        self.dedup_key = dedup_key
        self.answered = answered
        self.before = before
        self.again = again


def _overlap(intervals):
    """A function of (from, to): whether any of the intervals overlaps. An hour has a million repeats and thousands of faults."""
    intervals = sorted(intervals)
    ended = list(itertools.accumulate((end for _, end in intervals), max))

    def overlaps(begin, end):
        last = bisect.bisect_right(intervals, (end, math.inf)) - 1
        return last >= 0 and begin <= ended[last]
    return overlaps


class Verdict:
    """The two books compared. `disturbances` are (from, to) of the faults that may undo a settlement or lose an answer."""

    def __init__(self, writers, hub, disturbances=(), differing=()):
        self.writers = writers
        self.hub = hub
        self.differing = list(differing)
        self.lost, self.phantom, self.disordered = Counter(), Counter(), []
        for key in {*writers.histories, *hub.arrived}:
            wanted = writers.histories.get(key, [])
            taken = hub.taken.get(key, [])
            if missing := Counter(wanted) - Counter(taken):
                self.lost[key] = missing.total()
            if invented := hub.arrived.get(key, Counter()) - Counter(wanted):
                self.phantom[key] = invented.total()
            if key not in self.lost and key not in self.phantom and wanted != taken:
                self.disordered.append(key)
        explains = _overlap(disturbances)
        self.unexplained = [
            repeat for repeat in hub.repeats if repeat.answered is not None and not explains(repeat.before, repeat.again)]

    @property
    def failures(self):
        """What must not be, in words; empty if all is well."""
        found = {
            "lost": sum(self.lost.values()), "phantom": sum(self.phantom.values()), "out of order": len(self.disordered),
            "repeated with another content": len(self.hub.altered), "repeated without a reason": len(self.unexplained),
            "committed, but not in the database": len(self.writers.broken_promises),
            "rolled back, but in the database": len(self.writers.undone),
            "rows that differ between store and hub": len(self.differing), "troubles of the hub's database": len(self.hub.troubles),
            "histories with a gap (the books are wrong)": len(self.writers.gaps),
        }
        return {what: count for what, count in found.items() if count}

    def __str__(self):
        return (f"changes {self.writers.changes['kept']}, rolled back {self.writers.changes['rolled back']},"
                f" vanished {self.writers.changes['vanished']}; requests {self.hub.requests};"
                f" lost {sum(self.lost.values())}, phantom {sum(self.phantom.values())},"
                f" out of order {len(self.disordered)}, duplicated {len(self.hub.repeats)}"
                f" ({sum(repeat.answered is not None for repeat in self.hub.repeats)} of these had been answered,"
                f" {len(self.unexplained)} without a reason)")
