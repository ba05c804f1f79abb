"""Casts to json that users made: they fail, write, come back to themselves or go away while a session's plan is
kept."""

import contextlib

import psycopg
import pytest
from psycopg import errors

from support.casts import SQL_CAST
from support.replay import replay, rows

CAST = """CREATE TYPE mood AS ENUM ('sad', 'ok', 'deep');
    CREATE TABLE m (id int PRIMARY KEY, v mood);
    CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ {body} $$;
    CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)"""


@pytest.fixture
def own(new_server):
    server = new_server()
    database = server.create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    yield database
    with contextlib.suppress(psycopg.Error):
        database.close()


def test_a_cast_that_fails_in_a_savepoint_and_is_called_again(own):
    own.run(CAST.format(body="SELECT CASE WHEN $1 = 'sad' THEN (1/(length($1::text)-3))::text::json"
                             " ELSE '1'::json END"))
    own.attach("m")
    with own.conn.transaction():
        own.run("INSERT INTO m VALUES (1, 'ok')")
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            with own.conn.transaction():
                own.run("INSERT INTO m VALUES (2, 'sad')")
        for n in range(3, 13):
            own.run("INSERT INTO m VALUES (%s, 'ok')", [n])
    assert own.value("SELECT count(*) FROM sync_outbox") == 11


def test_a_cast_that_comes_back_to_itself(own):
    own.run(CAST.format(body="SELECT 1"
        ).replace("$$ SELECT 1 $$", """$$
            INSERT INTO m SELECT 1001, 'ok' WHERE $1 = 'deep';
            SELECT '1'::json $$""").replace("CREATE FUNCTION", "CREATE FUNCTION"))
    own.attach("m")
    own.run("ALTER TABLE m ADD w int")
    own.run("INSERT INTO m VALUES (1, 'deep')")
    assert own.value("SELECT count(*) FROM sync_outbox") == own.value("SELECT count(*) FROM m")


@pytest.mark.parametrize("between",
                         ["DROP TABLE other", "ALTER TABLE other ADD x text DEFAULT 'y'", "TRUNCATE other", "SELECT 1"])
def test_a_cast_that_fails_in_the_middle_of_a_scan_takes_nothing_down(own, between):
    own.run("CREATE TABLE other AS SELECT n AS a, repeat('x', 500) AS b FROM generate_series(1, 2000) n")
    own.run(CAST.format(
        body="SELECT ('[' || (SELECT coalesce(string_agg(CASE WHEN $1 = 'sad' THEN (1 / (a - 1000))::text"
             " ELSE '1' END, ','), '') FROM other) || ']')::json"))
    own.attach("m")
    pid = own.value("SELECT pg_backend_pid()")
    failure = None
    try:
        with own.conn.transaction():
            own.run("INSERT INTO m VALUES (1, 'ok')")
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                with own.conn.transaction():
                    own.run("INSERT INTO m VALUES (2, 'sad')")
            own.run(between)
            for n in range(3, 20):
                own.run("INSERT INTO m VALUES (%s, 'ok')", [n])
    except psycopg.Error as error:
        failure = error
    alive = not own.conn.closed and own.value("SELECT pg_backend_pid()") == pid
    print("FAILURE", between, repr(failure))
    assert alive, failure
    assert failure is None or "other" in str(failure), failure


def the_cast_fails_in_a_savepoint_between_two_rows(db):
    with db.conn.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO paint VALUES (1, 'red')")
        cursor.execute("SAVEPOINT s")
        with pytest.raises(errors.DivisionByZero):
            cursor.execute("INSERT INTO paint VALUES (2, 'bad')")
        cursor.execute("ROLLBACK TO s")
        cursor.execute("INSERT INTO paint VALUES (3, 'green')")
        cursor.execute("COMMIT")
    assert [data for _, _, data in db.changes()] == [{"id": 1, "c": "xred"}, {"id": 3, "c": "xgreen"}]


def test_a_cast_in_sql_that_failed_in_a_savepoint_gives_the_next_rows_value(db):
    db.run(SQL_CAST)
    db.attach("paint")
    the_cast_fails_in_a_savepoint_between_two_rows(db)


def test_a_cast_in_sql_that_failed_in_a_savepoint_does_not_give_its_own_value_to_the_next_row(db):
    db.run(SQL_CAST + """CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN n = 1 AND $1 = 'bad' THEN (1 / (length($1::text) - 3))::text::json
            ELSE to_json('x' || $1::text) END
          FROM generate_series(1, 3) n $$""")
    db.attach("paint")
    the_cast_fails_in_a_savepoint_between_two_rows(db)


def test_a_cast_in_sql_that_reads_a_table_and_failed_in_a_savepoint_does_not_end_the_server(db):
    db.run(SQL_CAST + """CREATE TABLE names (c colour, name text, n int); INSERT INTO names SELECT c, c || n::text, n
            FROM unnest(enum_range(NULL::colour)) c, generate_series(1, 3) n; CREATE INDEX ON names (c);
        CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql VOLATILE AS $$
        SELECT CASE WHEN n = 1 AND $1 = 'bad' THEN (1 / (length($1::text) - 3))::text::json ELSE to_json(name) END
          FROM names WHERE c = $1 $$""")
    db.attach("paint")
    with db.conn.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO paint VALUES (1, 'red')")
        for n in range(20):
            cursor.execute("SAVEPOINT s")
            with pytest.raises(errors.DivisionByZero):
                cursor.execute("INSERT INTO paint VALUES (2, 'bad')")
            cursor.execute("ROLLBACK TO s")
            for m in range(20):  # something else comes where the snapshot was
                cursor.execute(f"DECLARE c{n}_{m} CURSOR FOR SELECT * FROM names")
            cursor.execute("INSERT INTO paint VALUES (%s, 'green')", [100 + n])
        cursor.execute("COMMIT")
    assert {data["c"] for _, _, data in db.changes()} == {"red1", "green1"}


def test_a_cast_in_sql_that_writes_to_the_same_table(db):
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql AS
            $$ INSERT INTO paint SELECT 2, 'green' WHERE $1 = 'red'; SELECT to_json('x' || $1::text) $$;
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);""")
    db.attach("paint")
    db.run("INSERT INTO paint VALUES (1, 'red')")
    assert sorted((data["id"], data["c"]) for _, _, data in db.changes()) == [(1, "xred"), (2, "xgreen")]


def test_a_cast_in_sql_that_comes_back_to_itself_does_not_end_the_server(db):
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE FUNCTION note(colour) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
            IF $1 = 'red' THEN
                BEGIN INSERT INTO paint VALUES (2, 'green'); EXCEPTION WHEN OTHERS THEN NULL; END;
            END IF;
            RETURN 'x' || $1; END $$;
        CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql AS $$ SELECT to_json(note($1)) $$;
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);""")
    db.attach("paint")
    db.run("INSERT INTO paint VALUES (1, 'red')")
    assert sorted((data["id"], data["c"]) for _, _, data in db.changes()) == [(1, "xred"), (2, "xgreen")]


def test_a_cast_that_is_written_in_another_language(db):
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql AS $$ SELECT to_json($1::text) $$;
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);""")
    db.attach("paint")
    db.run("INSERT INTO paint VALUES (1, 'red')")
    db.run("CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json"
           " LANGUAGE plpgsql AS $$ BEGIN RETURN to_json('new ' || $1::text); END $$")
    db.run("INSERT INTO paint VALUES (2, 'red')")
    assert db.changes()[1][2] == {"id": 2, "c": "new red"}


def test_after_a_cast_that_failed_or_was_cancelled_the_session_makes_types(db):
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'bad', 'slow');
        CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
            IF $1 = 'bad' THEN RAISE 'bad'; END IF; IF $1 = 'slow' THEN PERFORM pg_sleep(10); END IF;
            RETURN to_json($1::text); END $$;
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);""")
    db.attach("paint")
    for value, error in [("bad", errors.RaiseException), ("slow", errors.QueryCanceled)]:
        db.run("SET statement_timeout = 300")
        with pytest.raises(error):
            db.run(f"INSERT INTO paint VALUES (1, '{value}')")
        db.run("DO $$ BEGIN INSERT INTO paint VALUES (1, 'bad'); EXCEPTION WHEN OTHERS THEN NULL; END $$")
        db.run(f"RESET statement_timeout; CREATE TYPE t_{value} AS (x int); SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize("again", [False, True])
def test_a_cast_that_is_gone_stops_no_writer(db, again):
    """A session has a plan; the cast it was made with is dropped elsewhere."""
    db.run("""CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
              CREATE TABLE m (id int PRIMARY KEY, v mood)""")
    db.attach("m")
    writer = db.session()
    writer.execute("INSERT INTO m VALUES (1, 'ok')")
    db.run("DROP CAST (mood AS json); DROP FUNCTION mood_json(mood)")
    if again:
        db.run("""CREATE FUNCTION mood_json2(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":2}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json2(mood)""")
    writer.execute("INSERT INTO m VALUES (2, 'ok')")
    fresh = db.session()
    fresh.execute("INSERT INTO m VALUES (3, 'ok')")
    one, two, three = [change.data["v"] for change in db.outbox()]
    assert two == three


def test_a_cast_that_is_new_counts_in_every_session(db):
    db.run("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE m (id int PRIMARY KEY, v mood)")
    db.attach("m")
    writer = db.session()
    writer.execute("INSERT INTO m VALUES (1, 'ok')")
    db.run("""CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    writer.execute("INSERT INTO m VALUES (2, 'ok')")
    db.session().execute("INSERT INTO m VALUES (3, 'ok')")
    _, two, three = [change.data["v"] for change in db.outbox()]
    assert two == three


def test_a_cast_that_writes_to_the_row_it_encodes(db):
    """The cast's UPDATE happens after the row's INSERT, and is told before it."""
    db.run("""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE m (id int PRIMARY KEY, n int, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN UPDATE m SET n = n + 1, v = 'ok' WHERE v = 'deep'; RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.attach("m", exclude=["v"], branch_column="v")
    db.run("INSERT INTO m VALUES (1, 1, 'deep')")
    state = {}
    for change in db.outbox():
        state.update(change.data)
    assert state["n"] == db.value("SELECT n FROM m")


@pytest.mark.parametrize("statement", [
    "INSERT INTO m SELECT n, 1, CASE WHEN n IN (1, 7) THEN 'deep' ELSE 'ok' END::mood FROM generate_series(1, 20) n",
    "INSERT INTO m VALUES (1, 1, 'ok'), (2, 1, 'ok'), (3, 1, 'ok'); UPDATE m SET v = 'deep', id = id + 10",
    "INSERT INTO m VALUES (1, 1, 'ok'), (2, 1, 'ok'); UPDATE m SET v = 'deep', n = 0; DELETE FROM m WHERE id = 1",
    "INSERT INTO m VALUES (1, 1, 'deep'), (2, 1, 'deep') ON CONFLICT (id) DO UPDATE SET v = 'deep'",
])
@pytest.mark.parametrize("action", [
    "UPDATE m SET n = n + 1, v = 'ok' WHERE v = 'deep'",
    "UPDATE m SET n = n + 1, v = 'ok', id = id + 100 WHERE v = 'deep'",
    "DELETE FROM m WHERE v = 'deep'",
])
def test_a_cast_that_writes_to_rows_of_its_statement(db, statement, action):
    db.run(f"""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE m (id int PRIMARY KEY, n int, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN IF $1 = 'deep' THEN {action}; END IF; RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.attach("m")
    db.run(statement)
    changes = db.outbox()
    held = {key: (row["id"], row["n"]) for key, row in replay(changes).items()}
    assert held == {key: (row["id"], row["n"]) for key, row in rows(db, "m").items()}, changes


def test_a_renamed_table_and_a_cast_that_writes(db):
    """What the cast wrote has the greater id and is appended first: the sender compares from the smaller on."""
    db.run("""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE t (id int PRIMARY KEY, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN IF $1 = 'deep' THEN INSERT INTO t VALUES (100, 'ok'); END IF; RETURN '1'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
    db.attach("t")
    db.run("ALTER TABLE t RENAME TO u")
    db.run("CREATE VIEW t AS SELECT * FROM u; INSERT INTO u VALUES (1, 'deep')")
    first = db.value("SELECT min(id) FROM sync_outbox")
    assert db.value("SELECT min(first_id) FROM sync_outbox_lane") <= first
