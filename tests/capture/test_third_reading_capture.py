"""A hostile reading of capture, bystanders and administration."""

import json

import pytest
from psycopg import errors
from support.replay import replay, rows


def drained(db, receiver):
    db.run("SELECT sync_outbox_flush()")


@pytest.mark.parametrize("statement", ["TRUNCATE a, b", "TRUNCATE a CASCADE"])
def test_truncate_of_two_tables_and_a_trigger_that_fills_the_second(db, statement):
    db.run("""CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, v int, a int REFERENCES a)""")
    for table in "ab":
        db.attach(table, operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    db.run("""CREATE FUNCTION refill() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO b VALUES (1, 1); RETURN NULL; END $$;
              CREATE TRIGGER refill AFTER TRUNCATE ON a FOR EACH STATEMENT EXECUTE FUNCTION refill()""")
    db.run(statement)
    assert db.value("SELECT count(*) FROM b") == 1
    ops = [change.op for change in db.outbox("table_name = 'b'")]
    assert ops == ["TRUNCATE", "INSERT"]


def test_truncate_and_a_trigger_that_sorts_before_ours(db):
    db.run("CREATE TABLE b (id int PRIMARY KEY, v int)")
    db.attach("b", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    db.run("""CREATE FUNCTION refill() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO b VALUES (1, 1); RETURN NULL; END $$;
              CREATE TRIGGER "!refill" AFTER TRUNCATE ON b FOR EACH STATEMENT EXECUTE FUNCTION refill()""")
    db.run("TRUNCATE b")
    assert [change.op for change in db.outbox("table_name = 'b'")] == ["TRUNCATE", "INSERT"]


ALL = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
REFILL = """CREATE FUNCTION refill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$;
    CREATE TRIGGER "!refill" {when} TRUNCATE ON b FOR EACH STATEMENT EXECUTE FUNCTION refill()"""
WRITES = "INSERT INTO b VALUES (1, 1), (2, 2); UPDATE b SET v = 3, id = 4 WHERE id = 2; DELETE FROM b WHERE id = 1;"
BODIES = {
    "rows": WRITES,
    "a savepoint that is rolled back": "BEGIN INSERT INTO b VALUES (9, 9); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;" + WRITES,
    "nothing but a savepoint": "BEGIN INSERT INTO b VALUES (9, 9); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;",
    "savepoints": f"BEGIN {WRITES} EXCEPTION WHEN raise_exception THEN NULL; END;"
                  "BEGIN INSERT INTO b VALUES (9, 9); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;"
                  "INSERT INTO b VALUES (7, 7);",
}
TABLES = {
    "plain": "CREATE TABLE b (id int PRIMARY KEY, v int UNIQUE)",
    "partitioned": "CREATE TABLE b (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
                   "CREATE TABLE b1 (v int, x int, id int NOT NULL); ALTER TABLE b1 DROP x;"
                   "ALTER TABLE b ATTACH PARTITION b1 FOR VALUES FROM (0) TO (2);"
                   "CREATE TABLE b2 PARTITION OF b FOR VALUES FROM (2) TO (100) PARTITION BY RANGE (id);"
                   "CREATE TABLE b21 PARTITION OF b2 DEFAULT",
}


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("transaction", ["alone", "again", "rewritten", "made"])
def test_truncate_and_triggers_that_write(db, when, body, table, transaction):
    """The table was emptied before in the transaction, rewritten, or made in it, so that it is emptied where it is."""
    statements = [TABLES[table], REFILL.format(when=when, body=BODIES[body])]
    with db.conn.transaction():
        db.run(";".join(statements))
        db.attach("b", operations=ALL)
        # Values of another unique key, which what is written behind the TRUNCATE can take.
        db.run("INSERT INTO b VALUES (5, 1), (6, 9)" if when == "AFTER" else "INSERT INTO b VALUES (5, 11), (6, 19)")
        if transaction == "made":
            db.run("TRUNCATE b")
    with db.conn.transaction():
        if transaction == "again":
            db.run("TRUNCATE b")
        if transaction == "rewritten":
            db.run("ALTER TABLE b ALTER v TYPE bigint")
        db.run("TRUNCATE b RESTART IDENTITY CASCADE")
    changes = db.outbox()
    assert replay(changes) == rows(db, "b"), changes
    assert [change.op for change in changes].count("TRUNCATE") == (2 if transaction in ("again", "made") else 1), changes
    if when == "AFTER":
        assert changes[2].op == "TRUNCATE", "the rows that stood there, then this"


def test_truncate_of_a_partition_and_a_trigger_that_fills_it(db):
    """It is not one of the table that is attached."""
    db.run(TABLES["partitioned"])
    db.attach("b", operations=ALL)
    db.run("""CREATE FUNCTION refill() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO b VALUES (1, 1); RETURN NULL; END $$;
              CREATE TRIGGER refill AFTER TRUNCATE ON b1 FOR EACH STATEMENT EXECUTE FUNCTION refill();
              TRUNCATE b1""")
    assert [op for op, _, _ in db.changes()] == ["INSERT"]


@pytest.mark.parametrize("off", ["ALTER TABLE b DISABLE TRIGGER \"!sync_outbox_truncate\"", "SET LOCAL sync_outbox.capture = off"])
def test_truncate_that_nobody_tells(db, off):
    """What is kept back for its trigger is not lost quietly where that is not fired."""
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused, db.conn.transaction():
        db.run(TABLES["plain"])
        db.attach("b", operations=ALL)
        later = off if off.startswith("SET") else ""
        db.run(REFILL.format(when="AFTER", body=f"INSERT INTO b VALUES (1, 1); {later or 'NULL'};"))
        if not later:
            db.run(off)
        db.run("TRUNCATE b")
    assert refused.value.diag.message_hint
    assert db.outbox() == []


def test_truncate_that_fails_leaves_nothing_open(db):
    db.run(TABLES["plain"])
    db.attach("b", operations=ALL)
    db.run(REFILL.format(when="AFTER", body="INSERT INTO b VALUES (1, 1); IF current_setting('x.fail', true) = 'on' THEN RAISE 'no'; END IF;"))
    db.run("SET x.fail = on")
    for begin in (db.conn.transaction, None):
        if begin is None:
            with pytest.raises(errors.RaiseException):
                db.run("TRUNCATE b")
            continue
        with begin():
            with pytest.raises(errors.RaiseException), begin():
                db.run("TRUNCATE b")
            db.run("INSERT INTO b VALUES (2, 2)")
    db.run("SET x.fail = off; TRUNCATE b; INSERT INTO b VALUES (3, 3)")
    assert [op for op, _, _ in db.changes()] == ["INSERT", "TRUNCATE", "INSERT", "INSERT"]


@pytest.mark.parametrize("options", [{"exclude": ["card"]}, {"columns": ["card"]}, {"columns": ["label"]}])
def test_renamed_over_an_older_column(db, options):
    """The column that was meant is renamed, and an older one gets its name."""
    db.run("CREATE TABLE u (id int PRIMARY KEY, label text, card text)")
    db.attach("u", **options)
    db.run("INSERT INTO u VALUES (1, 'lamp', '4111')")
    db.run("ALTER TABLE u RENAME label TO x")
    db.run("ALTER TABLE u RENAME card TO label")
    db.run("ALTER TABLE u RENAME x TO card")
    before = {json.dumps(change.data) for change in db.outbox()}
    try:
        db.run("INSERT INTO u VALUES (2, 'lamp', '4111')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    told = "4111" in json.dumps([c.data for c in db.outbox("pk->>'id' = '2'")])
    told_before = "4111" in "".join(before)
    assert told <= told_before, "what was private is sent"


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


def sent(receiver):
    return receiver.changes()


def order_sent(db, receiver, condition="true"):
    before = len(receiver.requests)
    db.run("SELECT sync_outbox_flush()")
    return receiver.requests[before:]


def test_swapped_tables_keep_the_order(db, receiver):
    """Blue and green: the new table takes the old one's name, and has another priority."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; INSERT INTO t VALUES (1, 2)")
    low, high = db.outbox()
    assert (low.table_name, high.table_name, low.pk, high.pk) == ("t", "t", {"id": 1}, {"id": 1})
    db.flush()
    ids = [str(k) for k in sent_keys(receiver)]
    assert ids == [str(low.dedup_key), str(high.dedup_key)]


@pytest.mark.parametrize("again", ["", "BEGIN; SAVEPOINT s; INSERT INTO t VALUES (9, 9); ROLLBACK TO s;"])
def test_swapped_there_and_back_keep_the_order(db, receiver, again):
    """Nothing waits when the names are swapped; a change of the new table is refused, and the old table comes back."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    with db.session() as session:
        for statement in f"{again} INSERT INTO t VALUES (1, 1); COMMIT".split(";"):
            session.execute(statement)
        session.execute("INSERT INTO t VALUES (2, 2)")
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 1, "one record for both transactions"
    db.run("ALTER TABLE t RENAME TO t_new; ALTER TABLE t_old RENAME TO t; INSERT INTO t VALUES (1, 3)")
    high, other, low = db.outbox()
    db.flush()
    ids = [str(k) for k in sent_keys(receiver)]
    assert ids.index(str(high.dedup_key)) < ids.index(str(low.dedup_key))
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0, "forgotten when nothing of it is left"


def test_a_renamed_table_is_attached_under_its_new_name(db, receiver):
    """While changes wait under that name elsewhere nothing changes; when they are gone, nothing needs to be compared any more."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("INSERT INTO t VALUES (1, 1); ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    named = "SELECT encode(tgargs, 'escape') FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname = '!sync_outbox_row'"
    before = db.value(named)
    db.attach("t", priority="HIGH")
    assert db.value(named) == before
    db.flush()
    db.attach("t", priority="HIGH")
    assert '"named":["",""]' in db.value(named), "t_old was attached as t too"
    db.attach("t_old", priority="LOW")
    db.run("ALTER TABLE t RENAME TO u")
    db.attach("u", priority="HIGH")
    assert '"named":["public","u"]' in db.value(named.replace("'t'", "'u'"))
    db.run("INSERT INTO u VALUES (1, 2)")
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0


def test_renamed_attached_and_renamed_back(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t", priority="LOW")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("ALTER TABLE t RENAME TO t2")
    db.attach("t2", priority="HIGH")
    db.run("ALTER TABLE t2 RENAME TO t; UPDATE t SET v = 2")
    low, high = db.outbox()
    db.flush()
    assert [str(k) for k in sent_keys(receiver)] == [str(low.dedup_key), str(high.dedup_key)]


def sent_keys(receiver):
    return [change["dedup_key"] for request in receiver.requests for change in request.changes]


def test_the_update_with_a_view_on_the_overview(quiet_server, watched):
    server = watched(quiet_server)
    database = server.create_database()
    try:
        database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        database.run("CREATE VIEW monitoring AS SELECT target, clean FROM sync_outbox_overview()")
        database.run("ALTER EXTENSION sync_outbox UPDATE TO '0.2.0'")
    finally:
        database.close()
        server.drop_database(database.name)


def leaves_no_memory(db, work, times):
    """After the first rounds the session is as large as before, however often it does the work."""
    total = "SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts"
    for _ in range(20):
        work()
    before = db.value(total)
    for _ in range(times):
        work()
    after = db.value(total)
    assert after - before < 300_000, (before, after)


def test_backfills_leave_no_memory(db):
    db.run("""CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
              CREATE TABLE m (id int PRIMARY KEY, v mood, r int4range, n numrange[])""")
    db.attach("m")
    db.run("INSERT INTO m VALUES (1, 'ok', '[1,2)', '{}')")
    leaves_no_memory(db, lambda: db.run("SELECT sync_outbox_backfill('m')"), 300)


def test_bpchar_without_length_is_one_key(db):
    """'a' and 'a ' are one key to the index."""
    db.run("CREATE TABLE t (k bpchar PRIMARY KEY, v int)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="bpchar without a length"):
        db.attach("t")
    db.run("CREATE DOMAIN code AS bpchar(3); CREATE TABLE u (k code PRIMARY KEY)")
    db.attach("u")


def test_swap_of_outbox_sequence(db):
    """The sequence loses its place in an altered outbox."""
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1)")
    with db.conn.transaction():
        db.run("INSERT INTO t VALUES (2)")
        db.run("ALTER SEQUENCE sync_outbox_id_seq RESTART WITH 1000")
        db.run("INSERT INTO t VALUES (3)")
    assert [c.id for c in db.outbox()] == [1, 2, 1000]


def test_another_unique_index_over_the_key_with_another_equality(db):
    """An older unique index on the key's columns whose collation does not tell cases apart."""
    db.run("""CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
              CREATE TABLE t (k text NOT NULL, v int);
              CREATE UNIQUE INDEX t_ci ON t (k COLLATE ci);
              ALTER TABLE t ADD PRIMARY KEY (k)""")
    db.attach("t")
    db.run("INSERT INTO t VALUES ('a', 1)")
    before = rows(db, "t", ("k",))
    db.run("DELETE FROM sync_outbox")
    db.run("""CREATE FUNCTION again() RETURNS int LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO t VALUES ('A', 2); RETURN 1; END $$""")
    db.run("WITH d AS (DELETE FROM t WHERE k = 'a' RETURNING k) SELECT again() FROM d")
    changes = db.outbox()
    assert replay(changes, before) == rows(db, "t", ("k",)), changes


def test_branch_column_renamed_over(db):
    db.run("CREATE TABLE s (id int PRIMARY KEY, secret text, store text)")
    db.attach("s", branch_column="store", exclude=["secret"])
    db.run("INSERT INTO s VALUES (1, 'pssst', 'S1')")
    db.run("ALTER TABLE s RENAME store TO x; ALTER TABLE s RENAME secret TO store; ALTER TABLE s RENAME x TO secret")
    try:
        db.run("INSERT INTO s VALUES (2, 'pssst', 'S1')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    assert not [c for c in db.outbox() if c.branch == "pssst" or "pssst" in json.dumps(c.data)]


def test_plain_plans_leave_no_memory(db):
    """As the backfill above, by writes whose plan is made anew, without code of users."""
    db.run("CREATE TABLE m (id int PRIMARY KEY, r int4range, n numrange[], c text)")
    db.attach("m")
    db.run("INSERT INTO m VALUES (1, '[1,2)', '{\"[1,2)\"}')")
    leaves_no_memory(db, lambda: db.run("SELECT sync_outbox_backfill('m')"), 500)


def test_ddl_in_one_session_leaves_no_memory(db):
    """The writer's plan is made anew after every ALTER TABLE."""
    db.run("""CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
              CREATE TABLE m (id serial PRIMARY KEY, v mood)""")
    db.attach("m")

    def round():
        db.run("ALTER TABLE m SET (fillfactor = 90)")
        db.run("INSERT INTO m (v) VALUES ('ok')")
    leaves_no_memory(db, round, 300)


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


def test_attached_columns_dropped_and_another_renamed(db):
    """columns => what may be told: the name comes to stand for another column."""
    db.run("CREATE TABLE u (id int PRIMARY KEY, label text, card text)")
    db.attach("u", columns=["label"])
    db.run("ALTER TABLE u DROP label; ALTER TABLE u RENAME card TO label")
    try:
        db.run("INSERT INTO u VALUES (1, '4111')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    assert "4111" not in json.dumps([c.data for c in db.outbox()])


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


def test_nested_moves_between_partitions(db):
    """Rows move between partitions in a nest, with a default partition and another order of columns."""
    db.run("""CREATE TABLE t (id int, g int, v int, PRIMARY KEY (id, g)) PARTITION BY LIST (g);
        CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE td PARTITION OF t DEFAULT""")
    db.attach("t", include_old=True)
    db.run("INSERT INTO t SELECT n, 1, n FROM generate_series(1, 5) n")
    before = rows(db, "t", ("id", "g"))
    db.run("DELETE FROM sync_outbox")
    db.run("""CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        UPDATE t SET g = 1 - g + 2 WHERE id = i; UPDATE t SET v = v + 100 WHERE id = i - 1;
        INSERT INTO t VALUES (i + 10, 3, 0) ON CONFLICT (id, g) DO UPDATE SET v = t.v + 1; RETURN i; END $$;
        WITH u AS (UPDATE t SET g = 2, v = v + 1 WHERE id < 4 RETURNING id) SELECT f(id) FROM u;
        WITH d AS (DELETE FROM t WHERE id = 4 RETURNING id) SELECT f(id) FROM d;
        MERGE INTO t USING (VALUES (1, 2), (9, 9)) s (id, g) ON t.id = s.id
            WHEN MATCHED THEN UPDATE SET g = s.g, v = f(7) WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.g, f(5))""")
    changes = db.outbox()
    assert replay(changes, before) == rows(db, "t", ("id", "g")), changes


def test_a_hostile_owner_of_a_table_that_a_superuser_backfills(db):
    """Planning the caller's query folds an index predicate of the owner's, as the caller."""
    eve = db.role("eve")
    db.run(f"GRANT CREATE, USAGE ON SCHEMA public TO {eve}")
    hers = db.session(user=eve)
    hers.execute("""CREATE TABLE e (id int PRIMARY KEY, v int);
        CREATE FUNCTION evil(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
            BEGIN
                IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN RAISE EXCEPTION 'as a superuser'; END IF;
                RETURN 1;
            END $$;
        CREATE INDEX e_evil ON e (v) WHERE v > evil(1)""")
    db.attach("e")
    hers.execute("INSERT INTO e VALUES (1, 1)")
    db.run("SELECT sync_outbox_backfill('e')")  # as the owner, not as the superuser
