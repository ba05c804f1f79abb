"""A user's cast in SQL whose call fails, or comes back to itself, while the writer's plan is kept."""

import contextlib

import psycopg
import pytest

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
    own.run(CAST.format(body="SELECT CASE WHEN $1 = 'sad' THEN (1/(length($1::text)-3))::text::json ELSE '1'::json END"))
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


@pytest.mark.parametrize("between", ["DROP TABLE other", "ALTER TABLE other ADD x text DEFAULT 'y'", "TRUNCATE other", "SELECT 1"])
def test_a_cast_that_fails_in_the_middle_of_a_scan_takes_nothing_down(own, between):
    own.run("CREATE TABLE other AS SELECT n AS a, repeat('x', 500) AS b FROM generate_series(1, 2000) n")
    own.run(CAST.format(
        body="SELECT ('[' || (SELECT coalesce(string_agg(CASE WHEN $1 = 'sad' THEN (1 / (a - 1000))::text ELSE '1' END, ','), '') FROM other) || ']')::json"))
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
