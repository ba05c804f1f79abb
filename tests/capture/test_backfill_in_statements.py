"""A backfill inside a statement that has not ended, with a cast that writes, or of a renamed table: what comes of it is
the table."""

import pytest
from psycopg import errors

from support.casts import SQL_CAST
from support.replay import replay, rows


def test_a_backfill_inside_a_statement(db):
    """It tells the present state before what made it is told."""
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("UPDATE t SET id = 2 RETURNING sync_outbox_backfill('t', priority => 'NORMAL')")
    assert replay(db.outbox(), {}) == rows(db, "t", ("id",))


def test_a_backfill_inside_a_trigger_of_many_rows(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t SELECT n, n FROM generate_series(1, 3) n")
    db.run("""CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM sync_outbox_backfill('t', priority => 'NORMAL'); RETURN NULL; END $$;
        CREATE TRIGGER again AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION again();
        UPDATE t SET id = id + 10, v = 7""")
    assert replay(db.outbox(), {}) == rows(db, "t", ("id",))


def test_a_backfill_inside_a_statement_that_moves_a_key(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("""CREATE FUNCTION again() RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN RETURN sync_outbox_backfill('t', NULL, 'NORMAL'); END $$""")
    db.run("UPDATE t SET id = 2 RETURNING again()")
    assert replay(db.outbox()) == rows(db, "t"), db.changes()


def test_deferred_stays_deferred_after_backfill(db):
    """What a transaction has deferred is deferred behind a backfill too."""
    db.run("""CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE m (id int PRIMARY KEY)""")
    db.attach("m")
    db.run("INSERT INTO m VALUES (1)")
    with db.conn.transaction():
        db.run("SELECT sync_outbox_backfill('m')")
        db.run("INSERT INTO c VALUES (1, 1)")
        db.run("INSERT INTO p VALUES (1)")


def test_a_cast_of_a_backfill_changes_the_row_first(db):
    db.run("""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE m (id int PRIMARY KEY, n int, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN IF $1 = 'deep' THEN UPDATE public.m SET n = n + 1, v = 'ok' WHERE v = 'deep'; END IF; RETURN '1';
            END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.run("INSERT INTO m VALUES (1, 1, 'deep')")
    db.attach("m")
    db.run("SELECT sync_outbox_backfill('m', priority => 'NORMAL')")
    state = {}
    for change in db.outbox():
        state.update(change.data)
    assert state["n"] == db.value("SELECT n FROM m")


@pytest.mark.parametrize("priority", ["NORMAL", "LOW"])
@pytest.mark.parametrize("action", ["UPDATE public.m SET n = n + 1, v = 'ok'", "DELETE FROM public.m",
                                    "UPDATE public.m SET n = n + 1, v = 'ok', id = id + 1000"])
def test_a_cast_of_a_backfill_changes_rows_that_are_still_to_come(db, action, priority):
    """More of them than are read at a time."""
    db.run(f"""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE m (id int PRIMARY KEY, n int, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN IF $1 = 'deep' THEN {action} WHERE v = 'deep'; END IF; RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.run("INSERT INTO m SELECT n, 1, CASE WHEN n % 50 = 3 THEN 'deep' ELSE 'ok' END::mood"
           " FROM generate_series(1, 200) n")
    db.attach("m")
    assert db.value("SELECT sync_outbox_backfill('m', 'id > 0 -- all', %s)", [priority]) == 200
    changes = db.outbox()
    held = {key: (row["id"], row["n"]) for key, row in replay(changes).items()}
    assert held == {key: (row["id"], row["n"]) for key, row in rows(db, "m").items()}, changes


def test_sql_function_casts_in_a_backfill(db):
    db.run(SQL_CAST)
    db.attach("paint")
    db.run("ALTER TABLE paint DISABLE TRIGGER USER; INSERT INTO paint VALUES (1, 'red'), (2, 'bad'), (3, 'green');"
           " ALTER TABLE paint ENABLE TRIGGER USER")
    db.run("""DO $$ BEGIN PERFORM sync_outbox_backfill('paint', 'id = 1'); BEGIN PERFORM sync_outbox_backfill('paint');
        EXCEPTION WHEN OTHERS THEN NULL; END;
        PERFORM sync_outbox_backfill('paint', 'id = 3'); END $$""")
    assert [data["c"] for _, _, data in db.changes()] == ["xred", "xgreen"]


@pytest.mark.parametrize("fails", ["1 / (id - 1) = 0", "true"])
def test_a_backfill_that_fails_in_a_savepoint_leaves_the_session_whole(db, fails):
    """The abort of a savepoint must not free what the connection to SPI has allocated twice."""
    db.run("""CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood);
        INSERT INTO t VALUES (1, 'sad');
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS
            $$ BEGIN IF current_setting('my.fail') = '1' THEN RAISE 'no'; END IF; RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.attach("t")
    with db.session(autocommit=False) as session:
        session.execute("SET my.fail = 1")
        for _ in range(3):
            with pytest.raises((errors.DivisionByZero, errors.RaiseException)), session.transaction():
                session.execute("SELECT sync_outbox_backfill('t', %s)", [fails])
        session.execute("SET my.fail = 0")
        for _ in range(3):
            assert session.execute("SELECT sync_outbox_backfill('t')").fetchone()[0] == 1
    assert len(db.outbox()) == 3


@pytest.mark.parametrize("statement", [
    "UPDATE t SET v = v + 10 WHERE sync_outbox_backfill('t') >= 0",
    "UPDATE t SET v = v + 10, id = id + 10 WHERE sync_outbox_backfill('t') >= 0",
    "DELETE FROM t WHERE sync_outbox_backfill('t') >= 0",
    "INSERT INTO t SELECT n, sync_outbox_backfill('t') FROM generate_series(1, 5) n"
    " ON CONFLICT (id) DO UPDATE SET v = t.v + 10",
    "WITH u AS (UPDATE t SET v = v + 10 RETURNING id) SELECT sync_outbox_backfill('t') FROM u",
    "WITH u AS (DELETE FROM t WHERE id < 3 RETURNING id) SELECT sync_outbox_backfill('t') FROM u",
])
@pytest.mark.parametrize("include_old", [False, True])
def test_a_backfill_inside_a_statement_of_each_kind(db, statement, include_old):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t", include_old=include_old)
    db.run("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    db.run(statement)
    assert replay(db.outbox()) == rows(db, "t"), [(c.op, c.pk, c.data, c.old) for c in db.outbox()]


@pytest.mark.parametrize("mood", ["int", "mood"])
def test_a_backfill_of_a_renamed_table(db, mood):
    db.run(f"""CREATE TYPE mood AS ENUM ('1');
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
        CREATE TABLE t (id int PRIMARY KEY, v {mood}); INSERT INTO t VALUES (1, '1'), (2, '1')""")
    db.attach("t")
    db.run("ALTER TABLE t RENAME TO u")
    assert db.value("SELECT sync_outbox_backfill('u')") == 2
    assert db.value("SELECT sync_outbox_backfill('u', priority => 'NORMAL')") == 2
    with db.conn.transaction():
        db.run("INSERT INTO u VALUES (3, '1')")
        assert db.value("SELECT sync_outbox_backfill('u')") == 3
        assert db.value("SELECT sync_outbox_backfill('u')") == 3
