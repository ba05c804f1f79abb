"""Changes put into the outbox by hand, in states that a push would take long to bring about."""

import json
import time
import uuid

from .wait import wait_for

DEFAULTS = {
    "target_id": 1, "priority": "NORMAL", "status": "PENDING", "schema_name": "public", "table_name": "sales",
    "op": "UPDATE", "created_at": "now",
}


def put(db, key=1, data=None, **columns):
    """One change of the row `{"id": key}`, or of the key given as a dict, or of none; returns its id."""
    if key is not None and not isinstance(key, dict):
        key = {"id": key}
    values = {
        **DEFAULTS, "dedup_key": str(uuid.uuid4()), "txid": "1",
        "pk": None if key is None else json.dumps(key), "data": None if data is None else json.dumps(data), **columns}
    names = ", ".join(values)
    return db.value(f"INSERT INTO sync_outbox ({names}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
                    list(values.values()))


def put_many(db, count, table="sales", **columns):
    """As many PENDING changes of different rows; for speed with one dedup_key."""
    values = {**DEFAULTS, "table_name": table, "txid": "1", "dedup_key": str(uuid.uuid4()), **columns}
    names = ", ".join(values)
    db.run(f"INSERT INTO sync_outbox (pk, {names})"
           f" SELECT json_build_object('id', n), {', '.join(['%s'] * len(values))}"
           f"   FROM generate_series(1, {count}) n", list(values.values()))


def not_due(db):
    """A time in the future, for next_attempt_at."""
    return db.value("SELECT now() + interval '1 hour'")


def with_dead(live, receiver, rows):
    """So many changes wait for a person, of a table and target to which more is written."""
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    live.run("SELECT sync_outbox_pause()")
    live.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {rows}) n")
    live.run("UPDATE sync_outbox SET status = 'DEAD'")
    live.run("VACUUM sync_outbox")
    live.run("SELECT sync_outbox_resume()")


def dead_beside_another_target(live, receiver, other, table, *fill):
    """Makes changes of a table `sales` that wait for a person, by the statements `fill`, and a table `mine` whose
    changes go to the receiver `other`. Comes back when the worker is well into its look at them, or has ended it."""
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("SELECT sync_outbox_target_set('other', %s::json)", [json.dumps({"base_url": other.url})])
    live.run("SELECT sync_outbox_set_token('x', 'other')")
    live.run(f"CREATE TABLE sales {table}; CREATE TABLE mine (id int PRIMARY KEY)")
    live.attach("sales")
    live.attach("mine", target="other")
    live.run("SELECT sync_outbox_pause()")
    for statement in fill:
        live.run(statement)
    live.run("UPDATE sync_outbox SET status = 'DEAD' WHERE table_name = 'sales'")
    live.run("VACUUM sync_outbox")
    live.run("SELECT sync_outbox_resume()")
    _send_mine(live, other, 0)
    _look_goes_on(live, 50)


def _send_mine(live, other, n):
    """Seconds until a change of `mine` is on its way; comes back when it is settled."""
    sent = len(other.requests)
    began = time.monotonic()
    live.run("INSERT INTO mine VALUES (%s)", [n])
    wait_for(lambda: len(other.requests) > sent, 20)
    took = time.monotonic() - began
    wait_for(lambda: live.value("SELECT NOT EXISTS (SELECT FROM sync_outbox WHERE table_name = 'mine')"), 20)
    return round(took, 3)


def _look_goes_on(live, steps):
    """Until the worker has gone so many steps further in its look at what waits for a person, or has come to its end:
    at every step it says anew what it does."""
    seen = set()

    def gone_on():
        said = live.rows("SELECT query, state_change FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker'"
                         " AND datname = current_database()")
        seen.update(said)
        return len(seen) > steps or "nothing to send" in [row.query for row in said]
    wait_for(gone_on, 60, lambda: f"a look that goes on, only {len(seen)} steps were seen")


def longest_wait_of_another_target(live, other, rounds):
    """Seconds until a change of `mine` is on its way, at worst: by itself, and after a call."""
    took = {"alone": [], "after a call": []}
    n = 0
    for _ in range(rounds):
        for what in took:
            n += 1
            if what == "after a call":
                live.run("SELECT sync_outbox_resume('other')")
            took[what].append(_send_mine(live, other, n))
            _look_goes_on(live, 20)
    print(took)
    return max(took["alone"] + took["after a call"])
