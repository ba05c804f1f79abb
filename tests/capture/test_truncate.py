"""TRUNCATE is told before what is written behind it, whatever triggers write and wherever they sort."""

import pytest
from psycopg import errors

from support.replay import replay, rows


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
    "a savepoint that is rolled back": "BEGIN INSERT INTO b VALUES (9, 9); RAISE 'no';"
                                       " EXCEPTION WHEN raise_exception THEN NULL; END;" + WRITES,
    "nothing but a savepoint": "BEGIN INSERT INTO b VALUES (9, 9); RAISE 'no';"
                               " EXCEPTION WHEN raise_exception THEN NULL; END;",
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
    times = 2 if transaction in ("again", "made") else 1
    assert [change.op for change in changes].count("TRUNCATE") == times, changes
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


@pytest.mark.parametrize("off",
                         ["ALTER TABLE b DISABLE TRIGGER \"!sync_outbox_truncate\"",
                          "SET LOCAL sync_outbox.capture = off"])
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
    db.run(REFILL.format(when="AFTER",
                         body="INSERT INTO b VALUES (1, 1); IF current_setting('x.fail', true) = 'on' THEN RAISE 'no';"
                              " END IF;"))
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
