"""What came to a receiver, kept so small that millions fit, and compared with what the writers committed."""

import time
from collections import Counter


class Histories(dict):
    """Of every key what happened to it, in order, as words: of a million changes they take little room."""

    def tell(self, table, op, key, new_key, version):
        """A change of the key stands in the history of the old key and of the new one."""
        for each in (key, new_key) if new_key else (key,):
            name = f"{table} {each}"
            self[name] = f"{self.get(name, '')} {op}:{key}:{new_key}:{version}"

    def without(self, other):
        """The words of this one that the other does not have, by key."""
        differing = {name: words for name, words in self.items() if other.get(name) != words}
        missing = {name: Counter(words.split()) - Counter(other.get(name, "").split()) for name, words in differing.items()}
        return {name: words for name, words in missing.items() if words}


class Arrivals:
    """A receiver's behaviour: acks everything, and keeps of each change what tells it from others."""

    def __init__(self):
        self.histories = Histories()
        self.count = 0
        self.keys = set()
        self.last = time.monotonic()

    def __call__(self, request, wire):
        changes = request.changes
        request.raw = None
        for change in changes:
            key, data = str(change["pk"]["id"]), change["data"] or {}
            new_key = str(data.get("id", key))
            self.histories.tell(change["table"], change["op"], key, "" if new_key == key else new_key, data.get("version", ""))
        keys = [change["dedup_key"] for change in changes]
        self.count += len(keys)
        self.keys.update(keys)
        self.last = time.monotonic()
        wire.answer(200, {"acked": keys, "errors": [], "conflicts": []})

    def quiet(self, seconds):
        """Whether nothing has come for so long."""
        return time.monotonic() - self.last > seconds

    @property
    def duplicates(self):
        return self.count - len(self.keys)
