"""Further attempts."""

import pytest
from psycopg import errors
from support.replay import replay, rows


def test_a_nested_write_from_an_equality(db):
    """A key of a domain and a composite, nested."""
    db.run("""CREATE TYPE pair AS (a int, b text);
        CREATE TABLE t (k pair PRIMARY KEY, v int)""")
    with pytest.raises(Exception, match="no usable key"):
        db.attach("t")


@pytest.mark.parametrize("type, values", [
    ("varchar(5)", ["'a'", "'b'", "'c'"]), ("char(5)", ["'a'", "'b'", "'c'"]), ("uuid", [f"'{n * 8}-0000-0000-0000-000000000000'" for n in "123"]),
    ("numeric", ["1", "2.0", "3"]), ("float8", ["1", "-0.0", "3"]), ("date", ["'2020-01-01'", "'2020-01-02'", "'2020-01-03'"]),
    ("int2", ["1", "2", "3"]), ("inet", ["'10.0.0.1'", "'10.0.0.2'", "'10.0.0.3'"]), ("mood", ["'sad'", "'ok'", "'fine'"]),
    ("bytea", ["'a'", "'b'", "'c'"]), ("name", ["'a'", "'b'", "'c'"]), ("timestamptz", ["'2020-01-01'", "'infinity'", "'-infinity'"]),
    ("dint", ["1", "2", "3"]), ("oid", ["1", "2", "3"]), ("bool", ["true", "false"]), ("\"char\"", ["'a'", "'b'", "'c'"]),
    ("money", ["1", "2", "3"]), ("int4[]", ["'{1}'", "'{2}'", "'{3}'"]), ("dtext", ["'a'", "'b'", "'c'"]), ("interval", ["'1 d'", "'2 d'", "'3 d'"]),
    ("time", ["'1:00'", "'2:00'", "'3:00'"]), ("macaddr", ["'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'", "'08:00:2b:01:02:05'"]),
    ("bit(3)", ["'101'", "'100'", "'111'"]), ("int4range", ["'[1,2)'", "'[2,3)'", "'[3,4)'"]),
])
def test_keys_of_every_type_in_a_nest(db, type, values):
    db.run("CREATE TYPE mood AS ENUM ('sad', 'ok', 'fine'); CREATE DOMAIN dint AS int; CREATE DOMAIN dtext AS text")
    db.run(f"CREATE TABLE t (v int, k {type} PRIMARY KEY)")
    try:
        db.attach("t")
    except Exception as error:
        pytest.skip(str(error))
    a, b = values[:2]
    db.run(f"INSERT INTO t VALUES (1, {a})")
    before = rows(db, "t", ("k",))
    db.run("DELETE FROM sync_outbox")
    db.run(f"""CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO t VALUES (2, {a}::{type}); UPDATE t SET v = v + 5; UPDATE t SET k = {b}::{type}; RETURN 1; END $$;
        WITH d AS (DELETE FROM t WHERE k = {a}::{type} RETURNING 1) SELECT f() FROM d;
        WITH d AS (UPDATE t SET v = 77 RETURNING 1), e AS (SELECT 1) SELECT (SELECT 1) FROM d""")
    changes = db.outbox()
    assert replay(changes, before) == rows(db, "t", ("k",)), changes


def test_target_drop_and_a_table_renamed_inside(db):
    """A transaction that wrote for the target, and detached its table, is open."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    other = db.session(autocommit=False)
    other.execute("INSERT INTO t VALUES (1)")
    other.execute("SELECT sync_outbox_detach('t')")
    other.execute("ALTER TABLE t RENAME TO t2")
    db.run("SET lock_timeout = '1s'")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('x')")
    print(failed.value)
    other.commit()
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('x')")
    assert failed.value.sqlstate == "55000"


def test_target_drop_and_a_dropped_trigger(db):
    """The owner has dropped the trigger by hand while a writer's transaction is open."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE l PARTITION OF t FOR VALUES FROM (0) TO (10)")
    db.attach("t", target="x")
    other = db.session(autocommit=False)
    other.execute("INSERT INTO l VALUES (1)")
    third = db.session()
    third.execute("SET lock_timeout = '500ms'")
    for ddl in ["ALTER TABLE t DETACH PARTITION l", "DROP TABLE t", "SELECT sync_outbox_detach('t')"]:
        with pytest.raises(Exception) as failed:
            third.execute(ddl)
        assert failed.value.sqlstate == "55P03", ddl
    other.commit()


def test_a_target_made_again_in_one_transaction(db):
    """A session with a plan of the old target writes for the new one."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    writer = db.session()
    writer.execute("SET sync_outbox.capture = on; INSERT INTO t VALUES (1)")
    db.run("DELETE FROM sync_outbox")
    db.run("SELECT sync_outbox_detach('t'); SELECT sync_outbox_target_drop('x'); SELECT sync_outbox_target_set('x', '{}')")
    db.attach("t", target="x")
    writer.execute("INSERT INTO t VALUES (2)")
    (change,) = db.outbox()
    assert change.target_id == db.value("SELECT id FROM sync_outbox_target WHERE name = 'x'")


def test_a_restored_target_rename(db):
    """A superuser renames a target: plans know it by id."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    db.run("INSERT INTO t VALUES (1)")
    db.run("UPDATE sync_outbox_target SET name = 'y' WHERE name = 'x'")
    db.run("INSERT INTO t VALUES (2)")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('y')")
    assert failed.value.sqlstate == "55000"
    db.run("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'no longer wanted')")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('y')")
    assert failed.value.sqlstate == "55000" and "public.t" in failed.value.diag.message_detail
    db.attach("t", target="y")
    db.run("SELECT sync_outbox_detach('t'); SELECT sync_outbox_target_drop('y')")


def test_a_function_in_an_index_expression_writes(db):
    db.run("""CREATE TABLE t (id int PRIMARY KEY, v int, w int);
        CREATE FUNCTION ix(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1; END $$;
        CREATE INDEX ON t (ix(v))""")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1, 1); UPDATE t SET v = 2; DELETE FROM t")
    assert [c.op for c in db.outbox()] == ["INSERT", "UPDATE", "DELETE"]


def test_copy_in_a_function_with_nest(db, tmp_path):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("""CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF pg_trigger_depth() = 1 THEN
            UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;
            UPDATE t SET id = id + 100 WHERE id = NEW.id - 1;
            INSERT INTO t VALUES (NEW.id - 1, -1) ON CONFLICT DO NOTHING;
        END IF; RETURN NULL; END $$;
        CREATE TRIGGER nested AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION nested()""")
    with db.conn.cursor().copy("COPY t FROM STDIN") as copy:
        for n in range(1, 50):
            copy.write_row((n, n))
    changes = db.outbox()
    assert replay(changes, {}) == rows(db, "t", ("id",))


def test_a_procedure_that_commits_and_goes_on(db):
    db.run("""CREATE TABLE t (id int PRIMARY KEY, v int);
        CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            UPDATE t SET id = id + 10 WHERE id = i; INSERT INTO t VALUES (i, 5); RETURN i; END $$;
        CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN
            FOR i IN 1..3 LOOP
                INSERT INTO t VALUES (i, i); COMMIT;
                BEGIN
                    WITH u AS (UPDATE t SET v = v + 1 WHERE id = i RETURNING id) SELECT f(id) INTO r FROM u;
                    INSERT INTO t VALUES (1, 1);
                EXCEPTION WHEN unique_violation THEN NULL; END;
                WITH d AS (DELETE FROM t WHERE id = i RETURNING id) SELECT f(id) INTO r FROM d;
                ROLLBACK AND CHAIN;
                WITH d AS (DELETE FROM t WHERE id = i RETURNING id) SELECT f(id) INTO r FROM d;
            END LOOP; END $$""")
    db.attach("t")
    fresh = db.session()
    fresh.execute("CALL p()")
    assert replay(db.outbox(), {}) == rows(db, "t", ("id",))


@pytest.mark.parametrize("pk_last", [False, True])
@pytest.mark.parametrize("index", ["gist (p)", "gist (ts)", "gin (ts)", "btree (n)", "btree (cf(v))", "brin (v)", "gin (j jsonb_path_ops)", "spgist (p)"])
def test_other_indexes_beside_the_key(db, index, pk_last):
    """REINDEX INDEX CONCURRENTLY t_pkey gives the key's index the greatest oid."""
    db.run(f"""CREATE TABLE t (id int PRIMARY KEY, v int, p point, ts tsvector, n name, j jsonb);
        CREATE TYPE co AS (a int); CREATE FUNCTION cf(int) RETURNS co IMMUTABLE LANGUAGE sql AS 'SELECT ROW($1)::co';
        CREATE INDEX ON t USING {index}""")
    if pk_last:
        db.run("REINDEX INDEX CONCURRENTLY t_pkey")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("""CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (i, 2); RETURN 1; END $$;
        WITH d AS (DELETE FROM t WHERE id = 1 RETURNING id) SELECT f(id) FROM d""")
    assert replay(db.outbox(), {}) == rows(db, "t", ("id",))


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


@pytest.mark.parametrize("type", ["int", "text"])
def test_a_key_whose_type_changes_stays_one_key(db, receiver, type):
    """The first change is refused; the later one of its row must wait."""
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run(f"ALTER TABLE t ALTER id TYPE {type}")
    db.run("UPDATE t SET v = 2")
    from support import behaviours
    db.aim(receiver)
    first, second = db.outbox()
    db.run("UPDATE sync_outbox SET status = 'DEAD' WHERE id = %s", [first.id])
    db.run("SELECT sync_outbox_flush()")
    assert str(second.dedup_key) not in [k for r in receiver.requests for k in r.keys]


def test_grants_on_0_1_0_survive(quiet_server, watched):
    """Rights that people gave on the old objects, and the roles, after the update."""
    server = watched(quiet_server)
    database = server.create_database()
    try:
        database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        watcher = database.role("watcher")
        database.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO {watcher} WITH GRANT OPTION")
        session = database.session(user=watcher)
        session.execute("GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO PUBLIC")
        database.run("ALTER EXTENSION sync_outbox UPDATE TO '0.2.0'")
        assert database.value("SELECT has_function_privilege('pg_read_all_data', 'sync_outbox_overview()', 'EXECUTE')")
        assert not database.value("SELECT has_table_privilege('sync_outbox_admin', 'sync_outbox_target', 'DELETE')")
    finally:
        database.close()
        server.drop_database(database.name)


def test_a_cast_of_a_backfill_changes_the_row_first(db):
    db.run("""CREATE TYPE mood AS ENUM ('ok', 'deep');
        CREATE TABLE m (id int PRIMARY KEY, n int, v mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
            BEGIN IF $1 = 'deep' THEN UPDATE public.m SET n = n + 1, v = 'ok' WHERE v = 'deep'; END IF; RETURN '1'; END $$;
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
    db.run("INSERT INTO m SELECT n, 1, CASE WHEN n % 50 = 3 THEN 'deep' ELSE 'ok' END::mood FROM generate_series(1, 200) n")
    db.attach("m")
    assert db.value("SELECT sync_outbox_backfill('m', 'id > 0 -- all', %s)", [priority]) == 200
    changes = db.outbox()
    held = {key: (row["id"], row["n"]) for key, row in replay(changes).items()}
    assert held == {key: (row["id"], row["n"]) for key, row in rows(db, "m").items()}, changes


@pytest.mark.parametrize("operations", [["UPDATE"], ["INSERT", "UPDATE"], ["UPDATE", "DELETE"]])
def test_a_sequence_state_of_the_application(db, operations):
    db.run("CREATE TABLE t (id serial PRIMARY KEY, v int)")
    db.attach("t", operations=operations)
    db.alter_outbox()
    fresh = db.session()
    fresh.execute("INSERT INTO t (v) VALUES (1), (2)")
    assert fresh.execute("SELECT lastval()").fetchone()[0] == 2
    fresh.execute("UPDATE t SET v = 3")
    assert fresh.execute("SELECT lastval()").fetchone()[0] == 2


@pytest.mark.parametrize("fails", ["1 / (id - 1) = 0", "true"])
def test_a_backfill_that_fails_in_a_savepoint_leaves_the_session_whole(db, fails):
    """The abort of a savepoint must not free what the connection to SPI has allocated twice."""
    db.run("""CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'sad');
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
