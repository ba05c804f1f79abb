"""Large values: what does not fit is the writer's error and nobody else's, and memory goes back when the row is written."""

import pathlib
import re

import psycopg
import pytest
from psycopg import errors

MB = 1 << 20
# Large, and quick to store because it compresses. `"` is two bytes of JSON, a bytea's byte is two.
VALUES = {"text": "repeat('x', {n})", "escaped": "repeat('\"', {n} / 2)", "bytea": "convert_to(repeat('x', {n} / 2), 'UTF8')",
          "jsonb": "to_jsonb(repeat('x', {n}))", "json": "to_json(repeat('x', {n}))", "array": "ARRAY[repeat('x', {n})]",
          "xml": "('<a>' || repeat('x', {n}) || '</a>')::xml"}
TYPES = {"escaped": "text", "array": "text[]"}


def shop(server, **options):
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; CREATE TABLE quiet (id int PRIMARY KEY)")
    for name in VALUES:
        db.run(f"CREATE TABLE t_{name} (id int PRIMARY KEY, v {TYPES.get(name, name)})")
        db.attach(f"t_{name}", **options)
    db.attach("quiet")
    return db


def outcome(session, statement):
    """'written', or the SQLSTATE of the writer's error."""
    try:
        session.execute(statement)
        return "written"
    except psycopg.OperationalError as error:
        assert error.sqlstate, f"the server went away: {error}"
        return error.sqlstate
    except psycopg.Error as error:
        return error.sqlstate


@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_defect_05_what_memory_cannot_hold_is_an_error(new_server, altered):
    """Under a limit of address space, values that need more and more of it: at each size another allocation is the one that
    fails. The server lives, and so do its sessions."""
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = shop(server, include_old=True)
    if altered:
        db.alter_outbox()
    bystander = db.session()
    bystander.execute("INSERT INTO quiet VALUES (1)")
    pid = bystander.execute("SELECT pg_backend_pid()").fetchone()[0]
    ends = set()
    for name, value in VALUES.items():
        ends_here = []
        for size in (8, 20, 35, 50, 65, 80, 95, 110, 130, 150, 250):
            with_value = value.format(n=size * MB)
            ends_here.append(outcome(db.conn, f"INSERT INTO t_{name} VALUES ({size}, {with_value})"))
            if size in (50, 95) and ends_here[-1] == "written":
                ends_here.append(outcome(db.conn, f"UPDATE t_{name} SET v = NULL WHERE id = {size}"))
        assert "written" in ends_here, name
        ends.update(ends_here)
    # 53200 out of memory, 54000 program limit exceeded
    assert ends <= {"written", "53200", "54000"} and "53200" in ends
    assert bystander.execute("SELECT pg_backend_pid()").fetchone()[0] == pid
    bystander.execute("INSERT INTO quiet VALUES (2)")
    assert db.value("SELECT count(*) FROM sync_outbox WHERE table_name = 'quiet'") == 2
    written = db.value("SELECT " + " + ".join(f"(SELECT count(*) FROM t_{name})" for name in VALUES))
    assert db.value("SELECT count(*) FROM sync_outbox WHERE op = 'INSERT' AND table_name <> 'quiet'") == written


@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_defect_05_what_does_not_fit_into_a_value(quiet_server, watched, altered):
    """JSON of more than 1 GB, from values that fit: in one column, in two, and in what is new and old together."""
    server = watched(quiet_server)
    db = shop(server, include_old=True)
    if altered:
        db.alter_outbox()
    db.run("CREATE TABLE two (id int PRIMARY KEY, a text, b text)")
    db.attach("two")
    half = 530_000_000
    for statement in [f"INSERT INTO t_escaped VALUES (1, repeat('\"', {half} + 10000000))",
                      f"INSERT INTO two VALUES (1, repeat('x', {half}), repeat('x', {half} + 20000000))"]:
        with pytest.raises(errors.ProgramLimitExceeded) as refused:
            db.run(statement)
        assert "exclude" in refused.value.diag.message_hint
    db.run(f"INSERT INTO t_text VALUES (1, repeat('x', {half}))")
    with pytest.raises(errors.ProgramLimitExceeded):
        db.run(f"UPDATE t_text SET v = repeat('y', {half} + 20000000)")
    assert [(op, pk) for op, pk, _ in db.rows("SELECT op, pk::text, 1 FROM sync_outbox")] == [("INSERT", '{"id":1}')]
    db.close()
    server.drop_database(db.name)


def anonymous_memory(pid):
    """Of a process, in bytes: what it has allocated itself."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) << 10


@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_defect_10_memory_goes_back(quiet_server, watched, altered):
    server = watched(quiet_server)
    db = shop(server, include_old=True)
    if altered:
        db.alter_outbox()
    pid = db.value("SELECT pg_backend_pid()")
    kept = """SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name LIKE 'sync_outbox%'"""
    for name, value in VALUES.items():
        db.run(f"INSERT INTO t_{name} VALUES (0, {value.format(n=1000)}); DELETE FROM t_{name}")
    before = anonymous_memory(pid)
    db.run(f"INSERT INTO t_text VALUES (1, repeat('x', {200 * MB}))")
    assert anonymous_memory(pid) - before < 24 * MB
    db.run("UPDATE t_text SET v = NULL")
    for name, value in VALUES.items():
        db.run(f"INSERT INTO t_{name} VALUES (2, {value.format(n=30 * MB)}); DELETE FROM t_{name} WHERE id = 2")
    assert anonymous_memory(pid) - before < 24 * MB
    assert db.value(kept) < MB
    # Nor does what failed on the way.
    db.run("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    db.run("CREATE TRIGGER zz AFTER INSERT ON t_bytea FOR EACH ROW EXECUTE FUNCTION refuse()")
    for _ in range(3):
        with pytest.raises(errors.RaiseException):
            db.run(f"INSERT INTO t_bytea VALUES (3, {VALUES['bytea'].format(n=60 * MB)})")
        with pytest.raises(errors.ProgramLimitExceeded):
            db.run("INSERT INTO t_array VALUES (3, ARRAY[repeat('\"', 300000000), repeat('\"', 300000000)])")
    assert anonymous_memory(pid) - before < 24 * MB
    db.run("DISCARD ALL")
    db.close()
    server.drop_database(db.name)
