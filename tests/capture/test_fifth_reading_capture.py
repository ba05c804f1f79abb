"""A fifth hostile reading: what was mended on the capturing side."""

import json

import pytest
from psycopg import errors
from support.replay import replay, rows

ALL = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]


# ---------------------------------------------------------------------------------------------- renamed tables

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


# ---------------------------------------------------------------------------------------------- columns by place

def restored(db, table, columns):
    """As a dump and restore leaves it."""
    trigger = db.value(f"SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = '{table}'::regclass"
                       " AND tgname = '!sync_outbox_row'")
    db.run(f"DROP TABLE {table}; CREATE TABLE {table} ({columns})")
    db.run(trigger)


@pytest.mark.parametrize("options", [{"exclude": ["pan"]}, {"columns": ["pan"]}])
def test_a_restored_table_loses_a_column_in_front_and_the_excluded_one_is_replaced(db, options):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text)")
    db.attach("cards", **options)
    restored(db, "cards", "id int PRIMARY KEY, a int, b int, pan text")
    db.run("INSERT INTO cards VALUES (0, 1, 2, 'x')")
    db.run("ALTER TABLE cards DROP a; INSERT INTO cards VALUES (-1, 2, 'x')")
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    with pytest.raises(errors.UndefinedColumn):
        db.run("INSERT INTO cards VALUES (1, 2, '4111 1111 1111 1111')")
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def test_a_restored_table_lost_a_column_before_the_dump_and_the_excluded_one_is_replaced(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text)")
    db.attach("cards", exclude=["pan"])
    db.run("ALTER TABLE cards DROP a, DROP b; INSERT INTO cards VALUES (0, 'x')")
    restored(db, "cards", "id int PRIMARY KEY, pan text")
    with pytest.raises(errors.UndefinedColumn):  # nobody can tell by now that it is the same
        db.run("INSERT INTO cards VALUES (0, 'x')")
    db.attach("cards", exclude=["pan"])
    db.run("INSERT INTO cards VALUES (0, 'x')")
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    with pytest.raises(errors.UndefinedColumn):
        db.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


# ---------------------------------------------------------------------------------------------- casts that write

@pytest.mark.parametrize("how", ["in place", "partitioned"])
@pytest.mark.parametrize("action", ["UPDATE b SET n = n + 1, v = 'ok' WHERE v = 'deep' AND id > 1",
                                    "UPDATE b SET n = n + 1, v = 'ok', id = id + 100 WHERE v = 'deep' AND id > 1",
                                    "DELETE FROM b WHERE v = 'deep' AND id > 1"])
def test_rows_told_behind_a_truncate_and_a_cast_that_writes_to_them(db, action, how):
    partitioned = " PARTITION BY RANGE (id); CREATE TABLE b1 PARTITION OF b DEFAULT" if how == "partitioned" else ""
    with db.conn.transaction():
        db.run(f"""CREATE TYPE mood AS ENUM ('ok', 'deep');
            CREATE TABLE b (id int PRIMARY KEY, n int, v mood) {partitioned};
            CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
                BEGIN IF $1 = 'deep' THEN {action}; END IF; RETURN '1'; END $$;
            CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood)""")
        db.attach("b", operations=ALL)
        db.run("""CREATE FUNCTION refill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO b VALUES (1, 1, 'deep'), (2, 1, 'deep'), (3, 1, 'deep'); RETURN NULL; END $$;
            CREATE TRIGGER "!refill" AFTER TRUNCATE ON b FOR EACH STATEMENT EXECUTE FUNCTION refill();
            TRUNCATE b""")
    changes = db.outbox()
    held = {key: (row["id"], row["n"]) for key, row in replay(changes).items()}
    assert held == {key: (row["id"], row["n"]) for key, row in rows(db, "b").items()}, changes


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


# ---------------------------------------------------------------------------------------------- arguments

def test_ids_from_a_stored_array(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE arrays (n int, ids bigint[])")
    db.attach("t")
    db.run("INSERT INTO t SELECT generate_series(1, 50); UPDATE sync_outbox SET status = 'DEAD'")
    db.run("INSERT INTO arrays SELECT 0, ARRAY(SELECT generate_series(1, 5000))")
    assert db.value("SELECT sum(sync_outbox_requeue(ids)) FROM arrays") == 50
    db.run("UPDATE sync_outbox SET status = 'DEAD'")
    db.run("""DO $$ DECLARE ids bigint[] := '{}'; n bigint; BEGIN
        FOR i IN 1..1000 LOOP ids := ids || i::bigint; END LOOP;
        n := sync_outbox_requeue(ids); IF n <> 50 THEN RAISE 'n %', n; END IF;
        n := sync_outbox_discard(ids[10:20], 'no longer wanted'); IF n <> 11 THEN RAISE 'n %', n; END IF;
        n := sync_outbox_discard(ids, 'no longer wanted'); IF n <> 39 THEN RAISE 'n %', n; END IF;
        PERFORM sync_outbox_requeue('{}'), sync_outbox_requeue(ARRAY[[1, 2], [3, 4]]::bigint[]);
    END $$""")


# ------------------------------------------------------------------------------------- import and renamed tables

def test_what_is_imported_for_a_renamed_table_stays_before_what_waits(db, receiver):
    """The name of the old changes is now that of a table with another priority."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="HIGH")
    db.attach("t_new", priority="LOW")
    db.run("INSERT INTO t VALUES (1, 2); ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    db.run("""CREATE TABLE outbox_old (id bigint, schema_name text, table_name text, op text, pk jsonb, data jsonb);
        INSERT INTO outbox_old VALUES (1, 'public', 't', 'INSERT', '{"id": 1}', '{"id": 1, "v": 1}')""")
    db.value("SELECT sync_outbox_import('outbox_old')")
    old, high = db.outbox()
    db.flush()
    db.flush()
    sent = [change["dedup_key"] for request in receiver.requests for change in request.changes]
    assert sent == [str(old.dedup_key), str(high.dedup_key)]
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0


# ---------------------------------------------------------------------------------------------- composites

def test_a_composite_that_is_nested_again_and_again(db):
    """Each column is of the type before: what has been looked into is not looked into again."""
    db.run("CREATE TYPE c0 AS (a int, b int)")
    for n in range(1, 19):
        db.run(f"CREATE TYPE c{n} AS (a c{n - 1}, b c{n - 1})")
    db.run("CREATE TABLE t (id int PRIMARY KEY, v c18)")
    db.attach("t")
    db.run("SET statement_timeout = '1s'; INSERT INTO t VALUES (1, ROW(NULL, NULL)), (2, NULL)")
    assert len(db.changes()) == 2


# ------------------------------------------------------------------------------------- backfill inside statements

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
def test_a_backfill_inside_a_statement(db, statement, include_old):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t", include_old=include_old)
    db.run("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    db.run(statement)
    assert replay(db.outbox()) == rows(db, "t"), [(c.op, c.pk, c.data, c.old) for c in db.outbox()]
