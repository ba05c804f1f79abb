"""What a body costs a hub in memory: bounded, given back, and where there is none an error and no crash."""

import json
import pathlib
import re
import time
import uuid

import psycopg
import pytest
from psycopg import errors

from support.hub_database import change, insert, own_hub, update
from support.large import big_body
from support.process import MB, anonymous_memory, peak_memory

TINY = {
    "changes": lambda parts: '{"changes": [' + "1," * parts + "1]}",
    "columns": lambda parts: json.dumps({"changes": [update(1, qty=1)]}).replace(
        '"data": {', '"data": {' + "".join(f'"{n:x}":1,' for n in range(parts)), 1),
    "a key of many parts": lambda parts: json.dumps({"changes": [
        update(1, nowhere=1), {**update(1, qty=1), "pk": {"id": "PARTS"}}]}).replace('"PARTS"', "[" + "1," * parts + "1]"),
}


@pytest.mark.parametrize("kind", TINY)
def test_defect_18_tiny_parts_do_not_take_many_times_their_size(hub, kind):
    """Memory for which nobody has asked PostgreSQL ends the whole server where there is none."""
    body = TINY[kind](3_000_000)

    def peak(session):
        pathlib.Path(f"/proc/{session.info.backend_pid}/clear_refs").write_text("5")
        try:
            session.execute("SELECT sync_outbox_apply_text(%s)", [body])
        except errors.InvalidParameterValue as error:
            assert len(str(error)) < 1000
        status = pathlib.Path(f"/proc/{session.info.backend_pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    with hub.session() as session:
        assert peak(session) < 8 * len(body) + (64 << 20)


def many(kind, size):
    """A body of about `size` megabytes."""
    one = '{"schema":"public","table":"sales","dedup_key":"%s",' % uuid.uuid4()
    members = ",".join(f'"{n:05x}":0' for n in range(size * MB // 11))
    return {
        # Elements of two bytes, of which each takes sixteen.
        "elements": lambda: '{"changes":[' + "1," * (size * MB // 2 - 20) + "1]}",
        "members": lambda: '{"changes":[%s"op":"UPDATE","pk":{"id":1},"data":{%s}}]}' % (one, members),
        "key": lambda: '{"changes":[%s"op":"DELETE","pk":{%s}}]}' % (one, members),
        "changes": lambda: '{"changes":[' + ",".join(
            '{"schema":"","table":"","op":"TRUNCATE","dedup_key":"%032x"}' % n for n in range(size * MB // 90)) + "]}",
    }[kind]()


def small_server(new_server):
    """Under the limit of address space that the tests of defect 5 use."""
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int);"
           "SELECT sync_outbox_accept('sales')")
    return db


def survives(db, body):
    bystander = db.session()
    try:
        with db.session() as session:
            session.execute("SELECT sync_outbox_apply_text(%s)", [body]).fetchone()
    except psycopg.OperationalError as error:
        assert error.sqlstate, f"the server went away: {error}"
    except psycopg.Error as error:
        print(error.sqlstate, str(error)[:100])
    bystander.execute("SELECT 1")


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["elements", "members", "key", "changes"])
def test_a_body_of_very_many_parts_is_an_error_and_no_crash(new_server, kind, size):
    """64 MB is the most that apply takes, 32 MiB the most that the example receiver does."""
    body = many(kind, size)
    assert 0.8 * size * MB < len(body) <= size * MB, len(body) / MB
    survives(small_server(new_server), body)


@pytest.mark.parametrize("megabytes", [60, 90, 130, 160, 200])
def test_an_error_of_the_owners_code_may_be_long(new_server, megabytes):
    """RAISE with a message of many megabytes, in a trigger of an accepted table."""
    db = small_server(new_server)
    db.run("CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', repeat('x', NEW.qty); END $$;"
           "CREATE TRIGGER loud BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION loud(); ALTER TABLE sales ENABLE ALWAYS TRIGGER loud")
    survives(db, json.dumps({"changes": [insert(id=1, qty=megabytes * MB)]}))


@pytest.mark.parametrize("mib", [32, 63])
@pytest.mark.parametrize("kind", ["pk elements", "changes", "data members"])
def test_the_memory_of_a_body_is_bounded(hub, kind, mib):
    """What is above is Rust's memory, whose lack ends the server; PostgreSQL's own reads a value into twenty times its size."""
    body = big_body(kind, mib << 20)
    with hub.session() as session:
        pid = session.info.backend_pid
        began = time.monotonic()
        try:
            session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [body])
        except psycopg.Error as error:
            print(str(error)[:200])
        most = peak_memory(pid)
        print(kind, mib, "MiB body ->", most, "MiB,", round(time.monotonic() - began, 1), "s")
    assert most < (25 if kind == "pk elements" else 10) * mib + 100


@pytest.mark.parametrize("mib", [4, 8, 12, 16, 20])
@pytest.mark.parametrize("kind", ["pk elements", "data members"])
def test_no_memory_for_a_body_is_an_error(new_server, kind, mib):
    """Under a limit of address space such a body ends the whole server: Rust aborts where it cannot allocate."""
    hub = own_hub(new_server, through=("prlimit", f"--as={640 << 20}"))
    bystander = hub.session()
    pid = bystander.execute("SELECT pg_backend_pid()").fetchone()[0]
    try:
        hub.value("SELECT sync_outbox_apply_text(%s)", [big_body(kind, mib << 20)])
    except psycopg.Error as error:
        print(error)
    assert bystander.execute("SELECT pg_backend_pid()").fetchone()[0] == pid


@pytest.mark.parametrize("rows", [20_000, 80_000])
def test_many_good_changes(hub, rows):
    hub.db.server.set(sync_outbox__apply_statement_timeout="5min")
    body = json.dumps({"changes": [insert(id=n, qty=1) for n in range(rows)]})
    with hub.session() as session:
        began = time.monotonic()
        session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [body])
        print(rows, len(body) >> 20, "MiB", round(time.monotonic() - began, 1), "s", peak_memory(session.info.backend_pid), "MiB")


# Statements that are kept

def test_a_wide_table_in_many_shapes_keeps_little_memory(hub):
    """UPDATEs carry the columns that have changed: each set of columns is another statement, whose plan is kept."""
    columns = [f"c{n}" for n in range(300)]
    hub.table("id int PRIMARY KEY, " + ", ".join(f"{c} text" for c in columns))
    hub.acks(insert("t", id=1))
    with hub.session() as session:
        hub.apply(update(1, "t", **{"c0": "x"}), session=session)
        pid = session.info.backend_pid
        before = anonymous_memory(pid)
        for n in range(300):
            session.execute("SELECT sync_outbox_apply(%s::json)", [json.dumps({"changes": [update(1, "t", **{c: "x" for i, c in enumerate(columns) if i != n})]})])
        kept = anonymous_memory(pid) - before
    print("kept MB", kept / MB)
    assert kept < 64 * MB


def test_defect_19_a_session_that_has_seen_many_statements_is_as_fast_as_before(hub):
    columns = 12
    hub.table("id int PRIMARY KEY, " + ", ".join(f"c{n} int" for n in range(columns)))
    hub.run("INSERT INTO t SELECT n FROM generate_series(1, 2000) n")
    session = hub.session()

    def body(number):
        """A thousand updates of one kind."""
        given = {f"c{n}": 1 for n in range(columns) if number >> n & 1}
        return json.dumps({"changes": [change("UPDATE", {"id": row}, given, "t") for row in range(1, 1001)]})

    def rate(session):
        """Of one kind of update that neither session has seen before; each round is a request."""
        began = time.monotonic()
        answer = session.execute("SELECT sync_outbox_apply(%s::json)", [body(4001)]).fetchone()[0]
        assert len(answer["acked"]) == 1000
        return 1000 / (time.monotonic() - began)

    for start in range(3, 3000, 1000):  # one of each kind
        changes = [change("UPDATE", {"id": 1}, {f"c{n}": 1 for n in range(columns) if number >> n & 1}, "t") for number in range(start, start + 1000)]
        assert hub.apply(*changes, session=session)["errors"] == []
    fresh = hub.session()
    rates = [(rate(fresh), rate(session)) for _ in range(5)]
    best = [max(one) for one in zip(*rates)]
    print("changes/s in a fresh session and in one that has seen 3,000 statements: {:.0f}, {:.0f}".format(*best))
    assert best[1] > best[0] / 2
    kept = session.execute("SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE 'UPDATE%'").fetchone()[0]
    assert kept == 500
