"""What a receiver holds in the end, and by key what was lost, made up, or sent twice.

A receiver applies a dedup_key once; that it comes again is allowed (at least once), that it is missing or unknown is not.
"""

import json
from collections import Counter, defaultdict


def _key(pk):
    return json.dumps(pk, sort_keys=True)


class Ledger:
    """Built from a receiver's requests in order of arrival."""

    def __init__(self, requests):
        self.arrived = Counter()
        self.applied = []
        self.tables = defaultdict(dict)
        seen = set()
        for request in list(requests):
            self.arrived.update(request.keys)
            taken = set(request.applied)
            for change in request.changes:
                if change["dedup_key"] in taken and change["dedup_key"] not in seen:
                    seen.add(change["dedup_key"])
                    self.applied.append(change)
                    self._apply(change)

    def _apply(self, change):
        rows = self.tables[change["schema"], change["table"]]
        if change["op"] == "TRUNCATE":
            rows.clear()
            return
        key = _key(change["pk"])
        if change["op"] == "DELETE":
            rows.pop(key, None)
            return
        row = {**rows.pop(key, {}), **change["data"]}
        # A change of the key carries the new one in data.
        rows[_key({name: row.get(name, value) for name, value in change["pk"].items()})] = row

    def rows(self, table, schema="public"):
        """The table's rows as the receiver holds them, sorted by key."""
        held = self.tables[schema, table]
        return [held[key] for key in sorted(held)]

    # By key

    def lost(self, captured):
        """Captured keys that were never applied."""
        return set(captured) - {change["dedup_key"] for change in self.applied}

    def phantom(self, captured):
        """Keys that arrived without ever having been captured."""
        return set(self.arrived) - set(captured)

    def duplicated(self):
        """Keys that came more than once."""
        return {key for key, times in self.arrived.items() if times > 1}

    def in_order(self, captured):
        """Whether the applied changes of every source row stand in capture order; `captured`: all keys in that order."""
        place = {key: number for number, key in enumerate(captured)}
        last = defaultdict(lambda: -1)
        for change in self.applied:
            source = change["schema"], change["table"], _key(change["pk"])
            if place[change["dedup_key"]] < last[source]:
                return False
            last[source] = place[change["dedup_key"]]
        return True
