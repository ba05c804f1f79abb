"""Breaks found by a hostile reading of capture, order, bystanders and administration. Each of these fails on the code it was written for."""

import json
import time
import uuid

import psycopg
import pytest
from psycopg import errors

from support.replay import replay, rows


# ---------------------------------------------------------------------------------------------- casts in SQL

SQL_CAST = """
    CREATE TYPE colour AS ENUM ('red', 'green', 'bad');
    CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN $1 = 'bad' THEN (1 / (length($1::text) - 3))::text::json ELSE to_json('x' || $1::text) END $$;
    CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);
    CREATE TABLE paint (id int PRIMARY KEY, c colour);
"""


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
        SELECT CASE WHEN n = 1 AND $1 = 'bad' THEN (1 / (length($1::text) - 3))::text::json ELSE to_json('x' || $1::text) END
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
    db.run("CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN to_json('new ' || $1::text); END $$")
    db.run("INSERT INTO paint VALUES (2, 'red')")
    assert db.changes()[1][2] == {"id": 2, "c": "new red"}


# ---------------------------------------------------------------------------------------------- columns

def test_an_excluded_column_that_changes_names_with_an_earlier_one_stays_excluded(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, note text, pan text)")
    db.attach("cards", exclude=["pan"])
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards RENAME note TO pan")
    try:
        db.run("INSERT INTO cards (id, pan, pan_old) VALUES (1, 'a note', '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return  # refused, as it should be
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


# ---------------------------------------------------------------------------------------------- keys

NEST = """
    CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.v = 1 THEN UPDATE t SET id = 'a', v = 2 WHERE id = 'A'; END IF; RETURN NULL; END $$;
    CREATE TRIGGER move AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION move();
"""


def test_the_present_state_of_a_key_is_looked_up_by_the_keys_own_index(db):
    db.run("""
        CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (id text NOT NULL, v int);
        CREATE UNIQUE INDEX t_ci ON t (id COLLATE ci);
        ALTER TABLE t ADD PRIMARY KEY (id);""" + NEST)
    db.attach("t")
    db.run("INSERT INTO t VALUES ('A', 0)")
    db.run("INSERT INTO t VALUES ('b', 1)")
    assert replay(db.outbox()) == rows(db, "t"), db.changes()


@pytest.mark.parametrize("type, one, other", [("bpchar", "'a'", "'a '"), ("interval", "'1 day'", "'24:00'")])
def test_a_key_whose_equal_values_look_different_is_refused(db, type, one, other):
    db.run(f"CREATE TABLE t (id {type} PRIMARY KEY, v int)")
    assert db.value(f"SELECT {one}::{type} = {other}::{type} AND {one}::{type}::text <> {other}::{type}::text") \
        or type == "bpchar"
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.attach("t")


# ---------------------------------------------------------------------------------------------- backfill in a nest

def test_a_backfill_inside_a_statement_that_moves_a_key(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("""CREATE FUNCTION again() RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN RETURN sync_outbox_backfill('t', NULL, 'NORMAL'); END $$""")
    db.run("UPDATE t SET id = 2 RETURNING again()")
    assert replay(db.outbox()) == rows(db, "t"), db.changes()


# ---------------------------------------------------------------------------------------------- administration

def test_who_imports_a_table_of_his_own_does_not_stop_other_writers(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}")
    his = db.session(user=mallory)
    his.execute("""
        CREATE SEQUENCE evil.looks;
        CREATE TABLE evil.old (id bigint, schema_name text, table_name text, op text, pk json, data json);
        INSERT INTO evil.old SELECT n, 'evil', 'x', 'INSERT', '{"id": 1}', '{"id": 1}' FROM generate_series(1, 100) n;
        ALTER TABLE evil.old ENABLE ROW LEVEL SECURITY;
        ALTER TABLE evil.old FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON evil.old USING (id = 100 OR nextval('evil.looks') > 99);""")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="showed more rows"):
        his.execute("SELECT sync_outbox_import('evil.old')")
    db.run("INSERT INTO sales SELECT generate_series(1, 5)")


def test_a_call_that_is_refused_uses_up_no_target_id(db):
    admin = db.session(user=db.role("admin", "sync_outbox_admin"))
    admin.execute("""DO $$ BEGIN FOR i IN 1..33000 LOOP
        BEGIN PERFORM sync_outbox_target_set('x', '{"base_url": "nonsense"}'); EXCEPTION WHEN OTHERS THEN NULL; END;
        END LOOP; END $$""")
    db.run("""SELECT sync_outbox_target_set('second', '{"base_url": "https://hub.example.org"}')""")


# ---------------------------------------------------------------------------------------------- memory

CASTS = {
    "sql": SQL_CAST,
    "none": "CREATE TYPE colour AS ENUM ('red', 'green', 'bad'); CREATE TABLE paint (id int PRIMARY KEY, c colour)",
    "range": "CREATE TABLE paint (id int PRIMARY KEY, c text, r int4range[] DEFAULT '{}', m numrange DEFAULT '[1,2)')".replace("\\\\,", ","),
}


@pytest.mark.parametrize("cast", CASTS)
def test_plans_that_are_made_anew_leave_no_memory_behind(db, cast):
    """As they are after every ANALYZE, VACUUM or ALTER TABLE of somebody else."""
    db.run(CASTS[cast])
    db.attach("paint")
    other = db.session()

    def used():
        return db.value("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")

    def rounds(first, last):
        for n in range(first, last):
            other.execute(f"ALTER TABLE paint SET (fillfactor = {50 + n % 50})")
            db.run("INSERT INTO paint VALUES (%s, 'red')", [n])
    rounds(0, 50)
    before = used()
    rounds(50, 350)
    assert used() - before < 300_000, db.rows("SELECT name, ident, parent, count(*), sum(total_bytes) FROM pg_backend_memory_contexts GROUP BY 1, 2, 3 ORDER BY 5 DESC LIMIT 4")


# ---------------------------------------------------------------------------------------------- upgrade

def test_an_update_with_a_view_of_somebody_on_the_overview(quiet_server, watched):
    database = watched(quiet_server).create_database()
    try:
        database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        database.run("""CREATE VIEW dashboard AS SELECT target, pending FROM sync_outbox_overview();
            CREATE VIEW everything AS SELECT * FROM sync_outbox_overview();
            CREATE VIEW whole AS SELECT o::text AS o FROM sync_outbox_overview() o;
            GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO pg_read_all_stats""")
        database.run("ALTER EXTENSION sync_outbox UPDATE")
        assert database.rows("SELECT target, pending FROM dashboard") == [("default", 0)]
        (row,) = database.rows("SELECT target, over_threshold, settings::text LIKE '{%' FROM everything")
        assert row == ("default", None, True)
        assert database.value("SELECT o LIKE '(default,%' FROM whole") is True
        # As a dump writes the view, and reads it again.
        definition = database.value("SELECT pg_get_viewdef('everything'::regclass)")
        database.run(f"DROP VIEW everything; CREATE VIEW everything AS {definition}")
        assert database.value("SELECT count(*) FROM everything") == 1
        assert database.rows("SELECT target, sender_since FROM sync_outbox_overview()") == [("default", None)]
        assert database.value("SELECT has_function_privilege('pg_read_all_stats', 'sync_outbox_overview()', 'EXECUTE')")
    finally:
        database.close()
        quiet_server.drop_database(database.name)


# ---------------------------------------------------------------------------------------------- more of columns

def test_tables_that_0_1_0_attached_get_the_numbers_of_their_columns(quiet_server, watched):
    """As attaching them again would give them: of a partitioned table those of its root, and none where no column is named."""
    database = watched(quiet_server).create_database()
    try:
        database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        database.run("""CREATE TABLE parts (gone int, id int PRIMARY KEY, "a ""b" text, ü text, pan text) PARTITION BY LIST (id);
            ALTER TABLE parts DROP gone; CREATE TABLE part (ü text, pan text, id int NOT NULL, "a ""b" text);
            ALTER TABLE parts ATTACH PARTITION part DEFAULT; CREATE TABLE plain (id int PRIMARY KEY)""")
        for table, named in [("parts", r',"columns":["pan","a \"b"],"exclude":["ü"]'), ("plain", "")]:
            database.run(f"""CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION
                sync_outbox_capture('{{"target":"default","priority":"NORMAL"{named},"operations":["INSERT","UPDATE","DELETE"],"include_old":false,"require_reason":false,"always":false}}')""")
        database.run("ALTER EXTENSION sync_outbox UPDATE")
        kept = "SELECT tgargs FROM pg_trigger WHERE tgfoid = 'sync_outbox_capture'::regproc ORDER BY tgrelid"
        updated = database.rows(kept)
        options = json.loads(bytes(updated[0].tgargs)[:-1])
        assert (options["columns_attnums"], options["columns_places"]) == ([5, 3], [4, 2])
        assert (options["exclude_attnums"], options["exclude_places"]) == ([4], [3])
        assert options["attnums_of"] == database.value("SELECT 'parts'::regclass::oid::bigint")
        marks = "SELECT oid, xmin FROM pg_trigger WHERE tgfoid = 'sync_outbox_capture'::regproc ORDER BY oid"
        before = database.rows(marks)
        database.attach("parts", columns=["pan", 'a "b'], exclude=["ü"])
        database.attach("plain")
        assert database.rows(marks) == before, "nothing to change"
        database.run("INSERT INTO parts VALUES (1, 'x', 'y', '4111')")
        assert [data for _, _, data in database.changes()] == [{"id": 1, 'a "b': "x", "pan": "4111"}]
        database.run("ALTER TABLE parts RENAME pan TO pan_old; ALTER TABLE parts ADD pan text")
        with pytest.raises(errors.UndefinedColumn):
            database.run("INSERT INTO part (id) VALUES (2)")
    finally:
        database.close()
        quiet_server.drop_database(database.name)


def test_a_restored_tables_excluded_column_that_was_replaced_stays_excluded(db):
    """As a dump and restore leaves it: the column was the fourth when it was named, and is the second now."""
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text); ALTER TABLE cards DROP a, DROP b")
    db.attach("cards", exclude=["pan"])
    trigger = db.value("SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'cards'::regclass AND tgname = '!sync_outbox_row'")
    db.run("DROP TABLE cards; CREATE TABLE cards (id int PRIMARY KEY, pan text)")
    db.run(trigger)
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    try:
        db.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


# ---------------------------------------------------------------------------------------------- rights

def test_a_cast_that_is_no_longer_a_superusers_does_not_run_as_one(db):
    mallory = db.role("mallory")
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE FUNCTION colour_json(colour) RETURNS json SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN RETURN to_json($1::text); END $$;
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour); GRANT ALL ON paint TO PUBLIC;""")
    db.run(f"GRANT CREATE ON SCHEMA public TO {mallory}")
    db.attach("paint")
    writer = db.session(user=db.role("writer"))
    writer.execute("INSERT INTO paint VALUES (1, 'red')")
    db.run(f"ALTER FUNCTION colour_json(colour) OWNER TO {mallory}")
    db.session(user=mallory).execute(f"""CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN
        BEGIN EXECUTE 'ALTER ROLE {mallory} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN to_json(current_user::text); END $$""")
    assert writer.execute("SELECT $1::text FROM (VALUES (1)) v".replace("$1::text", "'red'::colour::json::text")).fetchone()[0] == f'"{mallory}"'
    writer.execute("INSERT INTO paint VALUES (2, 'red')")
    assert not db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [mallory])
    assert db.changes()[1][2]["c"] == mallory


def test_who_administers_forges_no_changes_of_other_peoples_tables(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run("CREATE TABLE payroll (id int PRIMARY KEY, salary int)")
    db.attach("payroll")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}")
    his = db.session(user=mallory)
    his.execute("""CREATE TABLE evil.old (id bigint, schema_name text, table_name text, op text, pk json, data json);
        INSERT INTO evil.old VALUES (1, 'public', 'payroll', 'UPDATE', '{"id": 1}', '{"salary": 1000000}')""")
    with pytest.raises(errors.InsufficientPrivilege):
        his.execute("SELECT sync_outbox_import('evil.old')")
    assert db.changes() == []


# ---------------------------------------------------------------------------------------------- values

def test_what_is_captured_does_not_follow_search_path(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, r regclass)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 't'); SET search_path = pg_catalog; INSERT INTO public.t VALUES (2, 'public.t'); RESET search_path")
    assert len({data["r"] for _, _, data in db.changes()}) == 1


NAMED = {
    "regclass": ("regclass", "'public.t'"), "regtype": ("regtype", "'public.pair'"), "regproc": ("regproc", "'public.one'"),
    "regprocedure": ("regprocedure", "'public.one(public.pair)'"), "regclass[]": ("regclass[]", "ARRAY['public.t']::regclass[]"),
    "domain": ("public.named", "'public.t'"), "domain[]": ("public.named[]", "ARRAY['public.t']::public.named[]"),
    "composite": ("public.pair", "ROW(1, 'public.t')"), "composite[]": ("public.pair[]", "ARRAY[ROW(1, 'public.t')::public.pair]"),
    "range": ("public.classes", "'[public.t,public.t]'"), "multirange": ("public.classes_m", "'{[public.t,public.t]}'"),
    "added later": ("public.later", "ROW(1, 'public.t')"),
}


@pytest.mark.parametrize("what", NAMED)
def test_names_in_values_are_written_in_full(db, what):
    type, value = NAMED[what]
    db.run("""CREATE TABLE named_too (id int); CREATE TYPE pair AS (n int, r regclass); CREATE DOMAIN named AS regclass;
        CREATE TYPE later AS (n int); CREATE FUNCTION one(pair) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE TYPE classes AS RANGE (subtype = regclass, subtype_opclass = oid_ops, multirange_type_name = classes_m)""")
    db.run(f"CREATE TABLE t (id int PRIMARY KEY, r {type}, b {type})")
    db.attach("t", branch_column="b")
    if what == "added later":
        db.run("INSERT INTO t VALUES (0, ROW(1), NULL); DELETE FROM sync_outbox; ALTER TYPE later ADD ATTRIBUTE r regclass")
    for n, path in enumerate(["public", "pg_catalog, public", "pg_catalog", "nowhere"]):
        db.run(f"SET search_path = {path}; INSERT INTO public.t VALUES ({n + 1}, {value}, {value})")
        assert db.value("SHOW search_path") == path
    db.run("RESET search_path")
    data = [(json.dumps(change.data["r"]), change.branch) for change in db.outbox()]
    assert len(data) == 4 and len(set(data)) == 1, data
    assert "public." in data[0][0], data


def test_a_cast_finds_what_it_names(db):
    """Beside a name in the same value: then that is written as the writer's path has it."""
    db.run("""CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE words (w text); INSERT INTO words VALUES ('fine');
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT to_json(w) FROM words); END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
        CREATE TYPE both_of AS (m mood, r regclass); CREATE TABLE t (id int PRIMARY KEY, r regclass, m mood, b both_of)""")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 't', 'ok', ROW('ok', 't'))")
    assert [data for _, _, data in db.changes()] == [{"id": 1, "r": "public.t", "m": "fine", "b": {"m": "fine", "r": "t"}}]


# ---------------------------------------------------------------------------------------------- memory of calls

MB = 1 << 20
CALLS = {
    "requeue ids": "SELECT sync_outbox_requeue(array_fill(1::bigint, ARRAY[{n} / 8]))",
    "discard ids": "SELECT sync_outbox_discard(array_fill(1::bigint, ARRAY[{n} / 8]), 'for no reason')",
    "requeue target": "SELECT sync_outbox_requeue(target => repeat('x', {n}))",
    "flush branch": "SELECT sync_outbox_flush(branch => repeat('x', {n}))",
    "flush target": "SELECT sync_outbox_flush(target => repeat('x', {n}))",
    "target name": "SELECT sync_outbox_target_set(repeat('x', {n}), '{{}}')",
    "target config": "SELECT sync_outbox_target_set('x', json_build_object(repeat('x', {n}), 1))",
    "configure": "SELECT sync_outbox_configure(json_build_object(repeat('x', {n}), 1))",
    "columns": "SELECT sync_outbox_attach('t', columns => ARRAY[repeat('x', {n})])",
    "condition": "SELECT sync_outbox_backfill('t', repeat(' ', {n}) || 'true')",
    "import": "SELECT sync_outbox_import('old')",
    "drain branch": "CALL sync_outbox_drain(branch => repeat('x', {n}))",
    "drain target": "CALL sync_outbox_drain(target => repeat('x', {n}))",
    "discard reason": "SELECT sync_outbox_discard('{{1}}', repeat(' ', {n}))",
    "pause": "SELECT sync_outbox_pause(repeat('x', {n}))",
    "resume": "SELECT sync_outbox_resume(repeat('x', {n}))",
    "target drop": "SELECT sync_outbox_target_drop(repeat('x', {n}))",
    "token": "SELECT sync_outbox_set_token(repeat('x', {n}))",
    "token target": "SELECT sync_outbox_set_token('x', repeat('x', {n}))",
    "adopt": "SELECT sync_outbox_adopt(repeat(' ', {n}))",
    "stats": "SELECT * FROM sync_outbox_stats(repeat('x', {n}))",
    "priority": "SELECT sync_outbox_attach('t', repeat('x', {n}))",
    "attach target": "SELECT sync_outbox_attach('t', target => repeat('x', {n}))",
    "key columns": "SELECT sync_outbox_attach('t', key_columns => array_fill('id'::name, ARRAY[{n} / 64]))",
    "operations": "SELECT sync_outbox_attach('t', operations => array_fill(''::text, ARRAY[{n} / 4]))",
    "configured list": "SELECT sync_outbox_configure(('{{\"uploads_local_to_remote\": [1' || repeat(',1', {n} / 2) || ']}}')::json)",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("size", [120, 200])
def test_no_argument_ends_the_server(limited, call, size):
    db = limited
    db.run("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    db.attach("t")
    db.run(f"""DROP TABLE IF EXISTS old; CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json, dedup_key text);
        INSERT INTO old SELECT n, 's', 't', 'INSERT', '{{"id": 1}}', '{{"id": 1}}', 'x' FROM generate_series(1, 2) n""")
    if call == "import":
        try:
            db.run(f"UPDATE old SET dedup_key = repeat('x', {size * MB})")
        except psycopg.Error:
            pytest.skip("no memory for the table")
    session = db.session(user="postgres" if call != "requeue ids" else db.operator)
    try:
        session.execute(CALLS[call].format(n=size * MB))
    except psycopg.Error as error:
        assert error.sqlstate, f"the server went away: {error}"
    assert db.value("SELECT 1") == 1
    session.close()


@pytest.mark.parametrize("call", [
    "SELECT sync_outbox_flush(target => repeat('x', (1 << 20) + 1))",
    "CALL sync_outbox_drain(branch => repeat('x', (1 << 20) + 1))",
    "SELECT sync_outbox_stats(repeat('x', (1 << 20) + 1))",
    "SELECT sync_outbox_configure(to_json(repeat('x', 1 << 20)))",
    "SELECT sync_outbox_attach('sync_outbox', columns => ARRAY[repeat('x', 1 << 20), 'y'])",
    "SELECT sync_outbox_attach('sync_outbox', exclude => array_fill('x'::text, ARRAY[1601]))",
    "SELECT sync_outbox_attach('sync_outbox', key_columns => array_fill('x'::name, ARRAY[1601]))",
])
def test_an_argument_that_is_too_long_is_refused_before_anything_is_done(db, call):
    with pytest.raises(errors.ProgramLimitExceeded, match="is too long") as caught:
        db.run(call)
    assert caught.value.diag.message_detail and caught.value.diag.message_hint


def test_a_text_of_a_mebibyte_is_taken(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    db.attach("t")
    assert db.value("SELECT sync_outbox_backfill('t', repeat(' ', (1 << 20) - 6) || 'id = 1')") == 1


def test_a_million_ids_and_a_null(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t SELECT generate_series(1, 3)")
    db.run("UPDATE sync_outbox SET status = 'DEAD' WHERE (pk->>'id')::int < 3")
    assert db.value("SELECT sync_outbox_requeue(ARRAY(SELECT generate_series(2, 1000000)) || NULL::bigint)") == 1
    assert db.value("SELECT sync_outbox_discard(ARRAY(SELECT generate_series(1, 1000000)) || NULL::bigint, 'no longer wanted')") == 3


@pytest.fixture
def limited(new_server):
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    db.operator = db.role("operator", "sync_outbox_operator")
    yield db


# ---------------------------------------------------------------------------------------------- odd imports

OLD = "CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json, dedup_key text, created_at timestamptz)"
READS = ["SELECT * FROM sync_outbox_overview()", "SELECT * FROM sync_outbox_stats()", "SELECT sync_outbox_flush()",
         "CALL sync_outbox_drain()"]


@pytest.mark.parametrize("when", ["infinity", "-infinity", "294276-01-01", "4713-01-01 BC"])
@pytest.mark.parametrize("statement", READS)
def test_a_strange_time_in_an_old_outbox_stops_nobody(db, receiver, when, statement):
    db.aim(receiver)
    db.run(OLD + f"""; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{{"id": 1}}', '{{"id": 1}}', NULL, '{when}')""")
    db.run("SELECT sync_outbox_import('old')")
    db.run(statement)


@pytest.mark.parametrize("pk, data", [("null", "null"), ("1", "2"), ("[]", "[1]"), ('"x"', '{}'), ("{}", "{}"), ('{"id": {"a": 1}}', 'null'),
                                      ('{"id":1,"id":2}', '{"id":3}')])
@pytest.mark.parametrize("op", ["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
def test_a_strange_row_in_an_old_outbox_stops_nobody(db, receiver, pk, data, op):
    db.aim(receiver)
    db.run(OLD)
    db.run("INSERT INTO old VALUES (1, 's', 't', %s, %s, %s), (2, 's', 'u', 'INSERT', '{\"id\": 1}', '{\"id\": 1}')", [op, pk, data])
    db.run("SELECT sync_outbox_import('old')")
    for statement in READS:
        db.run(statement)
    assert db.value("SELECT count(*) FROM sync_outbox WHERE status = 'PENDING'") == 0


def test_a_live_worker_and_an_infinite_time(live, receiver):
    from support.wait import wait_for
    live.aim(receiver)
    live.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    live.run("SELECT sync_outbox_import('old')")
    wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox") == 0)


def test_a_change_of_an_infinite_time_stops_no_flush(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    db.run("SELECT sync_outbox_import('old')")
    # As it is when the hub has refused it once and it waits for its next time.
    db.run("UPDATE sync_outbox SET status = 'FAILED', next_attempt_at = now() + interval '1 hour'")
    db.run("INSERT INTO sales VALUES (1)")
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox WHERE table_name = 'sales'") == 0


def test_a_change_of_an_infinite_time_stops_no_worker(live, receiver):
    from support.wait import wait_for
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY)")
    live.attach("sales")
    live.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    live.run("BEGIN; SELECT sync_outbox_import('old'); UPDATE sync_outbox SET status = 'FAILED', next_attempt_at = now() + interval '1 hour'; COMMIT")
    for n in range(5):
        live.run("INSERT INTO sales VALUES (%s)", [n])
        wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox WHERE table_name = 'sales'") == 0)


def test_after_a_cast_that_failed_or_was_cancelled_the_session_makes_types(db):
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'bad', 'slow');
        CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
            IF $1 = 'bad' THEN RAISE 'bad'; END IF; IF $1 = 'slow' THEN PERFORM pg_sleep(10); END IF; RETURN to_json($1::text); END $$;
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);""")
    db.attach("paint")
    for value, error in [("bad", errors.RaiseException), ("slow", errors.QueryCanceled)]:
        db.run("SET statement_timeout = 300")
        with pytest.raises(error):
            db.run(f"INSERT INTO paint VALUES (1, '{value}')")
        db.run("DO $$ BEGIN INSERT INTO paint VALUES (1, 'bad'); EXCEPTION WHEN OTHERS THEN NULL; END $$")
        db.run(f"RESET statement_timeout; CREATE TYPE t_{value} AS (x int); SET CONSTRAINTS ALL IMMEDIATE")


def test_an_included_column_that_changes_names_with_another_is_not_captured_for_it(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, note text, pan text)")
    db.attach("cards", columns=["note"])
    db.run("ALTER TABLE cards RENAME note TO note_old; ALTER TABLE cards RENAME pan TO note")
    try:
        db.run("INSERT INTO cards VALUES (1, 'a note', '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def test_an_excluded_column_of_a_table_that_0_1_0_attached_stays_excluded(quiet_server, watched):
    database = watched(quiet_server).create_database()
    try:
        database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        database.run("CREATE TABLE cards (id int PRIMARY KEY, pan text)")
        # As 0.1.0's library wrote it.
        database.run("""CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON cards FOR EACH ROW EXECUTE FUNCTION
            sync_outbox_capture('{"target":"default","priority":"NORMAL","exclude":["pan"],"operations":["INSERT","UPDATE","DELETE"],"include_old":false,"require_reason":false,"always":false}')""")
        database.run("ALTER EXTENSION sync_outbox UPDATE")
        database.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
        try:
            database.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
        except errors.UndefinedColumn:
            return
        assert "4111" not in json.dumps([data for _, _, data in database.changes()])
    finally:
        database.close()
        quiet_server.drop_database(database.name)


def test_memory_of_many_partitions_that_come_and_go(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY LIST (id)")
    db.attach("t")

    def round(n):
        db.run(f"CREATE TABLE t_{n} PARTITION OF t FOR VALUES IN ({n}); INSERT INTO t VALUES ({n}, 'x'); DROP TABLE t_{n}")
    def used():
        return db.value("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")
    for n in range(60):
        round(n)
    before = used()
    for n in range(60, 360):
        round(n)
    assert used() - before < 1_000_000


def test_sql_function_casts_in_a_backfill(db):
    db.run(SQL_CAST)
    db.attach("paint")
    db.run("ALTER TABLE paint DISABLE TRIGGER USER; INSERT INTO paint VALUES (1, 'red'), (2, 'bad'), (3, 'green'); ALTER TABLE paint ENABLE TRIGGER USER")
    db.run("""DO $$ BEGIN PERFORM sync_outbox_backfill('paint', 'id = 1'); BEGIN PERFORM sync_outbox_backfill('paint'); EXCEPTION WHEN OTHERS THEN NULL; END;
        PERFORM sync_outbox_backfill('paint', 'id = 3'); END $$""")
    assert [data["c"] for _, _, data in db.changes()] == ["xred", "xgreen"]


def hostile(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}; GRANT USAGE ON SCHEMA evil TO PUBLIC")
    his = db.session(user=mallory)
    his.execute(f"""
        CREATE FUNCTION evil.spoil() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            BEGIN EXECUTE 'ALTER ROLE {mallory} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $$;
        CREATE FUNCTION evil.one(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN evil.spoil(); END $$;
        CREATE TABLE evil.t (id int PRIMARY KEY, v int)""")
    return his, lambda: db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [mallory])


def test_an_index_of_a_hostile_owner_does_not_run_as_the_superuser_who_backfills(db):
    his, is_super = hostile(db)
    his.execute("SELECT sync_outbox_attach('evil.t'); INSERT INTO evil.t VALUES (1, 1)")
    his.execute("CREATE INDEX ON evil.t (id) WHERE v >= evil.one(1)")
    assert not is_super()
    db.run("SELECT sync_outbox_backfill('evil.t')")
    assert not is_super()


def test_a_default_partition_or_check_of_a_hostile_owner_does_not_run_as_the_superuser_who_backfills(db):
    his, is_super = hostile(db)
    his.execute("""CREATE TABLE evil.p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE evil.p1 PARTITION OF evil.p FOR VALUES FROM (1) TO (1000);
        ALTER TABLE evil.p1 ADD CHECK (id < 100000 * evil.one(1));
        SELECT sync_outbox_attach('evil.p'); INSERT INTO evil.p VALUES (1, 1)""")
    assert not is_super()
    db.run("SELECT sync_outbox_backfill('evil.p', 'id < 100')")
    assert not is_super()


@pytest.mark.parametrize("call", ["SELECT sync_outbox_attach('evil.t')", "SELECT sync_outbox_attach('evil.t', priority => 'HIGH'); SELECT sync_outbox_detach('evil.t')",
                                  "SELECT * FROM sync_outbox_stats(); SELECT * FROM sync_outbox_overview(); SELECT * FROM sync_outbox_attached",
                                  "SELECT sync_outbox_accept('evil.t')"])
def test_an_index_of_a_hostile_owner_does_not_run_as_the_superuser_who_administers(db, call):
    his, is_super = hostile(db)
    his.execute("CREATE INDEX ON evil.t (id) WHERE v >= evil.one(1); CREATE UNIQUE INDEX ON evil.t (id) WHERE v >= evil.one(1)")
    assert not is_super()
    db.run(call)
    assert not is_super()
