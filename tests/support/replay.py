"""What a table looks like to somebody who applies its changes in the order of their ids, and takes none that has no sense.

An INSERT is an upsert and a DELETE may find nothing; an UPDATE must find its row, and must not move it onto another one. Where a
change says which values it found, the row has them."""

import json


def _key(pk):
    return json.dumps(pk, sort_keys=True)


class Senseless(AssertionError):
    """A change that cannot be applied."""


def replay(changes, rows=()):
    """The rows by key after `changes`, of one table whose rows were `rows` as {key: row}."""
    held = dict(rows)
    for change in changes:
        key = _key(change.pk) if change.pk is not None else None
        if change.op == "TRUNCATE":
            held.clear()
        elif change.op == "DELETE":
            _compare(change, held.pop(key, None))
        elif change.op == "INSERT":
            held[key] = {**held.get(key, {}), **change.data}
        else:
            if key not in held:
                raise Senseless(f"UPDATE of a row that is not there: {change.pk} {change.data}")
            _compare(change, held[key])
            row = {**held.pop(key), **change.data}
            new = _key({name: row[name] for name in change.pk})
            if new in held:
                raise Senseless(f"UPDATE to a key that is taken: {change.pk} {change.data}")
            held[new] = row
    return held


def _compare(change, row):
    if change.old is not None and (row is None or any(row[name] != value for name, value in change.old.items())):
        raise Senseless(f"{change.op} of {change.pk} found {change.old}, there is {row}")


def rows(database, table, key=("id",)):
    """The rows of a table by key, as they are."""
    found = [row for (row,) in database.rows(f"SELECT to_json(t) FROM {table} t")]
    return {_key({name: row[name] for name in key}): row for row in found}
