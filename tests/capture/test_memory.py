"""Large values: what does not fit is the writer's error and nobody else's, and memory goes back when the row is written."""

import contextlib
import pathlib
import re

import psycopg
import pytest
from psycopg import errors

MB = 1 << 20
# Large, and quick to store because it compresses. `"` is two bytes of JSON, a bytea's byte is two.
VALUES = {"text": "repeat('x', {n})", "escaped": "repeat('\"', {n} / 2)", "bytea": "convert_to(repeat('x', {n} / 2), 'UTF8')",
          "jsonb": "to_jsonb(repeat('x', {n}))", "array": "ARRAY[repeat('x', {n})]"}
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
        for size in (20, 60, 100, 150, 250) if name == "text" else (20, 60, 130):
            with_value = value.format(n=size * MB)
            ends_here.append(outcome(db.conn, f"INSERT INTO t_{name} VALUES ({size}, {with_value})"))
            if size == 60 and ends_here[-1] == "written":
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


def test_defect_05_what_does_not_fit_into_a_value(quiet_server, watched):
    """JSON of more than 1 GB, from rows that fit: where it is escaped, and where new and old come together."""
    server = watched(quiet_server)
    db = shop(server, include_old=True)
    db.run("CREATE TABLE two (id int PRIMARY KEY, a text, b text)")
    db.attach("two")
    with pytest.raises(errors.ProgramLimitExceeded) as refused:
        db.run("INSERT INTO two VALUES (1, repeat('\"', 270000000), repeat('\"', 270000000))")
    assert "exclude" in refused.value.diag.message_hint
    db.run("INSERT INTO t_text VALUES (1, repeat('x', 530000000))")
    with pytest.raises(errors.ProgramLimitExceeded):
        db.run("UPDATE t_text SET v = repeat('y', 550000000)")
    assert db.rows("SELECT op, pk::text FROM sync_outbox") == [("INSERT", '{"id":1}')]
    db.close()
    server.drop_database(db.name)


def anonymous_memory(pid):
    """Of a process, in bytes: what it has allocated itself."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) << 10


def kept_after(db, *statements):
    """How many bytes a session has more for the statements, which it has run before with small values."""
    with db.server.connect(db.name) as session:
        for n in (1, 200):
            before = anonymous_memory(session.info.backend_pid)
            for statement in statements:
                with contextlib.suppress(errors.RaiseException):
                    session.execute(statement.format(n=n * MB if n > 1 else n, half=n * MB // 2 if n > 1 else n))
            (buffers,) = session.execute(
                "SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name ~ '^sync_outbox'").fetchone()
            assert buffers < MB
        return anonymous_memory(session.info.backend_pid) - before


@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_defect_10_memory_goes_back(quiet_server, watched, altered):
    """A session that has written a large row is as large as one whose table is not attached; also if it failed."""
    server = watched(quiet_server)
    db = shop(server, include_old=True)
    if altered:
        db.alter_outbox()
    db.run("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    for plain, taken in (("p_text", "t_text"), ("p_bytea", "t_bytea")):
        db.run(f"CREATE TABLE {plain} (LIKE {taken} INCLUDING ALL)")
    for table in ("p_bytea", "t_bytea"):
        db.run(f"CREATE TRIGGER zz AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
    writes = ["INSERT INTO {{table}}_text VALUES (1, repeat('x', {n}))", "UPDATE {{table}}_text SET v = NULL",
              "DELETE FROM {{table}}_text", "INSERT INTO {{table}}_bytea VALUES (3, convert_to(repeat('x', {half}), 'UTF8'))"]
    plain, taken = ([write.replace("{{table}}", table) for write in writes] for table in ("p", "t"))
    assert kept_after(db, *taken) - kept_after(db, *plain) < 16 * MB
    db.close()
    server.drop_database(db.name)
