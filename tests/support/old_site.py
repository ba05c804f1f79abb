"""A site of version 0.1.0 with everything that a real one has, and what is known of it after the update.

`fill()` runs against the old library. Of each row of a table in PLACED, `place` counts the changes of its key, so that the
places which a receiver sees show what was lost, made up or reordered."""

import itertools
import json
import random
import threading
import uuid
from collections import defaultdict

import psycopg

from . import behaviours
from .database import TOKEN
from .ledger import Ledger
from .prefix import PROJECT
from .wait import wait_for

# What tests/dump_0_1_0.py has made.
DUMP = PROJECT / "tests" / "fixtures" / "0.1.0.sql"

# Quick to give up: two refusals are enough to die, and nothing waits long before it is due again.
SETTINGS = {
    "sync_outbox.max_attempts": "2", "sync_outbox.retry_interval": "10ms", "sync_outbox.retry_max_interval": "50ms",
    "sync_outbox.interval": "1s", "sync_outbox.flush_timeout": "5s", "max_connections": "60",
}

# The roles of a site, which belong to the whole server, and so stand in no dump of a database.
ROLES = """
    CREATE ROLE shop_dba LOGIN; CREATE ROLE shop_night_shift LOGIN; CREATE ROLE shop_receiver LOGIN;
    CREATE ROLE shop_watcher LOGIN;
"""
MEMBERS = "GRANT sync_outbox_admin TO shop_dba; GRANT sync_outbox_operator TO shop_night_shift;"

TABLES = """
    CREATE TABLE sales (id int PRIMARY KEY, store text, place int, pan text);
    CREATE TABLE products (dropped int, id int PRIMARY KEY, code text NOT NULL UNIQUE, place int, cost numeric);
    ALTER TABLE products DROP dropped;
    CREATE TABLE stock (id int, store text, place int, PRIMARY KEY (id, store)) PARTITION BY LIST (store);
    CREATE TABLE stock_s1 PARTITION OF stock FOR VALUES IN ('S1');
    CREATE TABLE stock_rest (place int, store text NOT NULL, id int NOT NULL);
    ALTER TABLE stock ATTACH PARTITION stock_rest DEFAULT;
    CREATE TABLE tills (id int PRIMARY KEY, place int);
    CREATE TABLE tariffs (number serial, code text NOT NULL UNIQUE, place int);
    CREATE TABLE branches (id int PRIMARY KEY, name text);
    CREATE TABLE visits (id int PRIMARY KEY, place int);
    CREATE TABLE ledger (id int PRIMARY KEY, place int);
    CREATE TABLE hub_sales (id int PRIMARY KEY, qty int);
"""
OPTIONS = {
    "sales": {"priority": "HIGH", "branch_column": "store", "exclude": ["pan"]},
    "products": {"columns": ["code", "place"], "include_old": True},
    "stock": {"branch_column": "store"},
    "tills": {"require_reason": True},
    "tariffs": {"key_columns": ["code"], "operations": ["INSERT", "UPDATE", "DELETE", "TRUNCATE"], "always": True},
    "branches": {},
    "visits": {"target": "reports", "priority": "LOW"},
    "ledger": {"target": "archive"},
}
# How a row of a table is made and found, by a number.
PLACED = {
    "sales": ("INSERT INTO sales VALUES (%(n)s, 'S' || %(n)s %% 3, 1, '4111')", "id = %(n)s"),
    "products": ("INSERT INTO products VALUES (%(n)s, 'P' || %(n)s, 1, 9.99)", "id = %(n)s"),
    "stock": ("INSERT INTO stock VALUES (%(n)s, 'S' || %(n)s %% 3, 1)", "id = %(n)s AND store = 'S' || %(n)s %% 3"),
    "tills": ("INSERT INTO tills VALUES (%(n)s, 1)", "id = %(n)s"),
    "tariffs": ("INSERT INTO tariffs VALUES (%(n)s, 'T' || %(n)s, 1)", "code = 'T' || %(n)s"),
    "visits": ("INSERT INTO visits VALUES (%(n)s, 1)", "id = %(n)s"),
    "ledger": ("INSERT INTO ledger VALUES (%(n)s, 1)", "id = %(n)s"),
}
# What each of these tables is known by at the receiver, as a row of its table shows it.
KEYS = {"stock": "json_build_object('id', id, 'store', store)", "tariffs": "json_build_object('code', code)"}
TARGETS = ("default", "reports", "archive")

GRANTS = """
    GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO shop_receiver;
    GRANT EXECUTE ON FUNCTION sync_outbox_overview(), sync_outbox_stats(text) TO shop_watcher WITH GRANT OPTION;
    GRANT EXECUTE ON PROCEDURE sync_outbox_drain(text, text) TO shop_watcher;
    GRANT SELECT ON sync_outbox_queue, sync_outbox_history TO shop_watcher;
    GRANT SELECT (id, table_name, status) ON sync_outbox TO shop_watcher;
    REVOKE EXECUTE ON FUNCTION sync_outbox_discard(bigint[], text) FROM sync_outbox_admin;
    CREATE VIEW dashboard AS SELECT target, clean, pending FROM sync_outbox_overview();
    CREATE VIEW overview_of_all AS SELECT * FROM sync_outbox_overview();
    CREATE VIEW stats_of_all AS SELECT * FROM sync_outbox_stats();
    CREATE VIEW waiting AS SELECT q.*, a.include_old FROM sync_outbox_queue q
        LEFT JOIN sync_outbox_attached a USING (schema_name, table_name);
    CREATE VIEW given_up AS SELECT d.dedup_key, d.discard_reason, h.who FROM sync_outbox_discarded d
        JOIN sync_outbox_history h ON h.action = 'DISCARD';
    CREATE VIEW at_the_hub AS SELECT relation, accepted_by, (SELECT count(*) FROM sync_outbox_applied) AS applied
        FROM sync_outbox_accepted;
    GRANT SELECT ON dashboard TO shop_watcher;
"""
VIEWS = ("dashboard", "overview_of_all", "stats_of_all", "waiting", "given_up", "at_the_hub")

# Rows of `sales` and `products` with whom the receiver found fault.
DEAD, GIVEN_UP, REFUSED, CONFLICTING = 77, 78, 79, 5


def change(db, table, n, exists=True):
    """One more change of a row that a table has, or its first."""
    insert, where = PLACED[table]
    db.run(f"UPDATE {table} SET place = place + 1 WHERE {where}" if exists else insert, {"n": n})


def disagree(request, wire):
    """Takes everything but what is about the rows above."""
    keys = {DEAD, GIVEN_UP, REFUSED}

    def refused(one):
        return one["table"] == "sales" and one["pk"]["id"] in keys

    def conflicting(one):
        return one["table"] == "products" and one["pk"]["id"] == CONFLICTING
    behaviours.answer(
        acked=lambda changes: [one for one in changes if not refused(one) and not conflicting(one)],
        errors=lambda changes: [(one, "no such store") for one in changes if refused(one)],
        conflicts=lambda changes: [one for one in changes if conflicting(one)])(request, wire)


def fill(db, receiver):
    """Makes the site, with the library of 0.1.0, in a database where nothing is sent but by these calls."""
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'; RESET client_min_messages")
    db.run(TABLES + MEMBERS)
    db.aim(receiver)
    for target in TARGETS[1:]:
        db.run("INSERT INTO sync_outbox_target (name, base_url) VALUES (%s, %s)", [target, receiver.url])
        db.run("SELECT sync_outbox_set_token(%s, %s)", [TOKEN, target])
    db.run("SELECT sync_outbox_pause('archive', 'the archive is being moved')")
    for table, options in OPTIONS.items():
        db.attach(table, **options)
    db.run(GRANTS)
    db.run("SET sync_outbox.reason = 'till closed by the night shift'")

    # What a hub has: an accepted table, whose senders have columns that it lacks, and keys that it has applied.
    db.run("SELECT sync_outbox_accept('hub_sales')")
    body = {"changes": [{"schema": "public", "table": "hub_sales", "op": "INSERT", "pk": {"id": n},
                         "data": {"id": n, "qty": n, "unknown": n}, "dedup_key": str(uuid.uuid4())} for n in (1, 2, 3)]}
    db.run("SELECT sync_outbox_apply(%s::json)", [json.dumps(body)])
    db.run("UPDATE hub_sales SET qty = 30 WHERE id = 3")  # what applying it again would undo

    # Delivered.
    for table in PLACED:
        for n in range(1, 9):
            change(db, table, n, exists=False)
    db.run("INSERT INTO branches SELECT n, 'branch ' || n FROM generate_series(1, 5) n")
    db.run("SELECT sync_outbox_flush(); SELECT sync_outbox_flush(target => 'reports')")

    # Refused until they are dead, one of them given up; refused once; in conflict. Later changes of their keys wait.
    receiver.behaviour = disagree
    for n in (DEAD, GIVEN_UP):
        change(db, "sales", n, exists=False)
    wait_for(lambda: db.flush() and len(db.outbox("status = 'DEAD'")) == 2, what="two dead changes")
    db.run("SELECT sync_outbox_discard(ARRAY[max(id)], 'test sale, never happened') FROM sync_outbox WHERE status = 'DEAD'")
    change(db, "sales", REFUSED, exists=False)
    change(db, "products", CONFLICTING)
    wait_for(lambda: db.flush() and db.outbox("status = 'CONFLICT'"), what="a change in conflict")
    wait_for(lambda: db.flush() and len(db.outbox("status = 'DEAD'")) == 2, what="another dead change")
    db.run("SELECT sync_outbox_requeue(ARRAY[max(id)], 'the store was made at the hub') FROM sync_outbox WHERE status = 'DEAD'")
    db.flush()
    for _ in range(2):
        change(db, "sales", DEAD)
        change(db, "sales", REFUSED)
        change(db, "products", CONFLICTING)

    # Written while the hub is away, in every way there is.
    receiver.stop()
    db.run("SELECT sync_outbox_backfill('branches', 'id < 4', 'LOW')")
    for table in PLACED:
        for n in range(1, 9):
            change(db, table, n)
        for n in range(9, 13):
            change(db, table, n, exists=False)
    db.run("UPDATE branches SET name = 'Málaga \"\\ ' || id WHERE id = 2; UPDATE branches SET id = 50 WHERE id = 5")
    db.run("DELETE FROM branches WHERE id = 4; INSERT INTO branches VALUES (4, NULL)")
    db.run("SELECT sync_outbox_flush()")
    assert {row.status for row in db.outbox()} == {"PENDING", "FAILED", "CONFLICT", "DEAD"}


def restore(server, create="CREATE EXTENSION sync_outbox VERSION '0.1.0'"):
    """A database of the dump, with the server's own library: the version of the dump first, as docs/upgrading.md says."""
    db = server.create_database()
    db.run(f"SET client_min_messages = warning; {create}; RESET client_min_messages")
    path = server.run.where / f"{db.name}.sql"
    path.write_text(DUMP.read_text())
    path.chmod(0o644)
    server.run.call("psql", "-X", "-q", "-h", server.sockets, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-f", path, db.name)
    # Keys are forgotten after a while, and the dump gets older than that.
    db.run(MEMBERS + "UPDATE sync_outbox_applied SET applied_at = now()")
    return db


def adopt(db, receiver):
    """What the DBA of a restored site types, once it is updated."""
    db.run("SELECT sync_outbox_adopt('same')")
    for target in TARGETS:
        db.run("SELECT sync_outbox_target_set(%s, %s::json)", [target, json.dumps({"base_url": receiver.url})])
        db.run("SELECT sync_outbox_set_token(%s, %s)", [TOKEN, target])


class Known:
    """What a site knew before the update: what the receiver had been sent, the backlog, and at which place each row
    stood."""

    def __init__(self, db, receiver):
        self.sent = len(receiver.requests)
        self.backlog = [str(row.dedup_key) for row in db.rows("SELECT dedup_key FROM sync_outbox ORDER BY id")]
        self.waiting = defaultdict(list)
        for row in db.rows("SELECT table_name, pk, data FROM sync_outbox ORDER BY id"):
            if row.table_name in PLACED:
                self.waiting[row.table_name, _key(row.pk)].append(row.data["place"])
        self.places = places(db)


def _key(pk):
    return json.dumps(pk, sort_keys=True)


def places(db):
    """At which place each row stands: {(table, key): place}."""
    return {(table, _key(row.key)): row.place for table in PLACED
            for row in db.rows(f"SELECT {KEYS.get(table, 'json_build_object(%s, id)' % repr('id'))} AS key, place FROM {table}")}


# Rows that one writer alone makes, of all the writers there ever are: a thousand each.
RANGES = itertools.count(1)


class Writers:
    """`with Writers(db):` has three sessions write to every table, and two push by hand, until the end.

    Pushing may be refused; writing may not. `answers` keeps what those were told."""

    def __init__(self, db, writers=3):
        self.server, self.name = db.server, db.name
        self.ended = threading.Event()
        self.written = 0
        self.findings, self.answers = [], []
        self.lock = threading.Lock()
        work = [(self.write, n) for n in range(writers)]
        work += [(self.push, statement) for statement in ("SELECT sync_outbox_flush()", "CALL sync_outbox_drain()")]
        self.threads = [threading.Thread(target=self.run, args=one, daemon=True) for one in work]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def run(self, work, which):
        try:
            with self.server.connect(self.name) as session:
                session.execute("SET client_min_messages = error; SET sync_outbox.reason = 'written during the update'")
                work(session, which)
        except Exception as error:
            self.findings.append(f"{work.__name__} {which}: {error!r}")

    def write(self, session, which):
        rng = random.Random(which)
        mine = 1000 * next(RANGES)
        while not self.ended.wait(0.002):
            table = rng.choice(list(PLACED))
            insert, where = PLACED[table]
            if rng.random() < 0.2:
                mine += 1
                session.execute(insert, {"n": mine})
            else:
                # Rows that everybody writes, the parked ones among them.
                n = rng.choice([1, 2, 3, CONFLICTING, DEAD if table == "sales" else 8])
                assert session.execute(f"UPDATE {table} SET place = place + 1 WHERE {where}", {"n": n}).rowcount == 1
            with self.lock:
                self.written += 1

    def push(self, session, statement):
        while not self.ended.wait(0.05):
            try:
                answer = session.execute(statement)
                said = answer.fetchone()[0] if answer.description else None
            except psycopg.Error as error:
                said = (error.sqlstate, error.diag.message_primary, error.diag.message_hint)
            if said not in self.answers:
                self.answers.append(said)

    def go_on(self, changes=200, deadline=60):
        """Comes back when so many more changes are written."""
        enough = self.written + changes
        wait_for(lambda: self.written > enough or self.findings, deadline, "writers that go on")
        assert not self.findings, self.findings


def deliver(db, receiver):
    """Everything that waits for somebody is tried again, until the outbox is empty."""
    receiver.behaviour = behaviours.ack_all
    db.run("SELECT sync_outbox_resume('archive')")

    def empty():
        for target in TARGETS:
            db.run("SELECT sync_outbox_requeue(target => %s)", [target])
            db.run("SELECT sync_outbox_flush(target => %s)", [target])
        return db.value("SELECT NOT EXISTS (SELECT FROM sync_outbox)")
    wait_for(empty, 60, "an empty outbox")


def counted(db, receiver, known):
    """By key, what of the backlog and of later changes was lost, made up, or out of order at the receiver."""
    ledger = Ledger(receiver.requests[known.sent:])
    backlog = set(known.backlog)
    lost, phantom, seen = ledger.lost(known.backlog), [], defaultdict(list)
    later = []
    for one in ledger.applied:
        key = one["table"], _key(one["pk"])
        placed = one["table"] in PLACED and one["op"] != "TRUNCATE"
        if placed:
            seen[key].append(one["data"]["place"])
        if one["dedup_key"] not in backlog:
            later.append(one["dedup_key"])
            if not placed:
                phantom.append(one)
    disordered = [] if ledger.in_order([*known.backlog, *later]) else ["of the backlog"]
    for key, place in places(db).items():
        expected = [*known.waiting[key], *range(known.places.get(key, 0) + 1, place + 1)]
        found = seen.pop(key, [])
        if found != expected:
            lost.update((key, missing) for missing in set(expected) - set(found))
            phantom += [(key, extra) for extra in set(found) - set(expected)]
            disordered.append((key, found, expected))
    phantom += seen.items()
    return {"lost": lost, "phantom": phantom, "disordered": disordered}


NOTHING = {"lost": set(), "phantom": [], "disordered": []}
