"""An outbox that somebody has altered: what an INSERT would heed is heeded, and what is as it was made is appended to directly."""

import pytest
from psycopg import errors

from support import behaviours
from support.plans import modifications


@pytest.fixture
def direct(sales):
    """Whether a change is appended directly."""
    def is_direct():
        sales.run("DELETE FROM sales; TRUNCATE sync_outbox")
        statement = "INSERT INTO sales VALUES (1, 1), (2, 2)"
        inserted = modifications(sales, statement, "Insert")
        assert [change.pk for change in sales.outbox()] == [{"id": 1}, {"id": 2}]
        return inserted == 0
    return is_direct


@pytest.mark.parametrize("column, value", [("branch", "NULL"), ("reason", "NULL"), ("old", "NULL"), ("error_message", "NULL")])
def test_defect_13_not_null_is_heeded(sales, column, value):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.run(f"TRUNCATE sync_outbox; ALTER TABLE sync_outbox ALTER {column} SET NOT NULL")
    with pytest.raises(errors.NotNullViolation):
        sales.run("INSERT INTO sales VALUES (2)")
    assert sales.outbox() == []


@pytest.mark.parametrize("column", ["branch", "reason", "error_message", "next_attempt_at"])
def test_defect_13_a_default_counts_where_capture_says_nothing(sales, direct, column):
    value = "now()" if column == "next_attempt_at" else "'said by the table'"
    sales.run(f"ALTER TABLE sync_outbox ALTER {column} SET DEFAULT {value}")
    assert not direct()
    assert sales.value(f"SELECT count(*) FROM sync_outbox WHERE {column} = {value}") <= 2
    assert sales.value(f"SELECT count({column}) FROM sync_outbox") == 2
    if column == "reason":
        sales.run("SET sync_outbox.reason = 'my own'; INSERT INTO sales VALUES (3)")
        assert sales.outbox()[-1].reason == "my own"
    sales.run(f"ALTER TABLE sync_outbox ALTER {column} DROP DEFAULT")
    assert direct()


# A view keeps the types of its columns.
NO_VIEW = "ALTER EXTENSION sync_outbox DROP VIEW sync_outbox_queue; DROP VIEW sync_outbox_queue; "
# What would be noticed by an INSERT, with a statement that undoes it, if there is one.
ALTERED = {
    "a modifier": (NO_VIEW + "ALTER TABLE sync_outbox ALTER created_at TYPE timestamptz(0)", "ALTER TABLE sync_outbox ALTER created_at TYPE timestamptz"),
    "NOT NULL gone": ("ALTER TABLE sync_outbox ALTER dedup_key DROP NOT NULL", "ALTER TABLE sync_outbox ALTER dedup_key SET NOT NULL"),
    "a check": ("ALTER TABLE sync_outbox ADD CONSTRAINT c CHECK (op <> 'x')", "ALTER TABLE sync_outbox DROP CONSTRAINT c"),
    "a check that is not valid": ("ALTER TABLE sync_outbox ADD CONSTRAINT c CHECK (op <> 'x') NOT VALID", "ALTER TABLE sync_outbox DROP CONSTRAINT c"),
    "a domain": (NO_VIEW + "CREATE DOMAIN word AS text CHECK (VALUE <> 'x'); ALTER TABLE sync_outbox ALTER branch TYPE word",
                 "ALTER TABLE sync_outbox ALTER branch TYPE text"),
    "another type": (NO_VIEW + "ALTER TABLE sync_outbox ALTER branch TYPE varchar", "ALTER TABLE sync_outbox ALTER branch TYPE text"),
    "a column": ("ALTER TABLE sync_outbox ADD note text", None),
    "a generated column": ("ALTER TABLE sync_outbox ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED", None),
    "row security": ("ALTER TABLE sync_outbox ENABLE ROW LEVEL SECURITY", "ALTER TABLE sync_outbox DISABLE ROW LEVEL SECURITY"),
    "a rule": ("CREATE RULE r AS ON INSERT TO sync_outbox WHERE NEW.op = 'x' DO INSTEAD NOTHING", None),
    "an index": ("CREATE INDEX i ON sync_outbox (op)", "DROP INDEX i"),
    "a unique index": ("CREATE UNIQUE INDEX i ON sync_outbox (dedup_key)", "DROP INDEX i"),
    "an exclusion": ("ALTER TABLE sync_outbox ADD CONSTRAINT e EXCLUDE (dedup_key WITH =)", "ALTER TABLE sync_outbox DROP CONSTRAINT e"),
    "a foreign key": ("CREATE TABLE ops (op text PRIMARY KEY); INSERT INTO ops VALUES ('INSERT'), ('DELETE'); "
                      "ALTER TABLE sync_outbox ADD CONSTRAINT f FOREIGN KEY (op) REFERENCES ops", "ALTER TABLE sync_outbox DROP CONSTRAINT f"),
    "a key that covers more": ("ALTER TABLE sync_outbox DROP CONSTRAINT sync_outbox_pkey; "
                               "CREATE UNIQUE INDEX sync_outbox_pkey ON sync_outbox (target_id, priority, id) INCLUDE (op)", None),
    "a key in another order": ("ALTER TABLE sync_outbox DROP CONSTRAINT sync_outbox_pkey; "
                               "CREATE UNIQUE INDEX sync_outbox_pkey ON sync_outbox (target_id, priority, id DESC)", None),
    "a partial key": ("ALTER TABLE sync_outbox DROP CONSTRAINT sync_outbox_pkey; "
                      "CREATE UNIQUE INDEX sync_outbox_pkey ON sync_outbox (target_id, priority, id) WHERE op = 'INSERT'", None),
    # Known by its name it was, and by being partial.
    "the second index over all": ("DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, id)", None),
    "the second index with another predicate": (
        "DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, id) WHERE status <> 'DEAD'", None),
    "the second index with the opposite predicate": (
        "DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, id) WHERE status = 'PENDING'", None),
    "the second index over more": (
        "DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, id) WHERE status <> 'PENDING' AND id > 0", None),
    "the second index on other columns": (
        "DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (status, target_id, id) WHERE status <> 'PENDING'", None),
    "the second index over an expression": (
        "DROP INDEX sync_outbox_left; CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, abs(id)) WHERE status <> 'PENDING'", None),
}


@pytest.mark.parametrize("alteration", ALTERED)
def test_defect_13_what_an_insert_heeds_goes_by_insert(sales, direct, alteration):
    assert direct()
    does, undoes = ALTERED[alteration]
    sales.run("TRUNCATE sync_outbox")
    for statement in does.split("; "):
        sales.run(statement)
    assert not direct()
    sales.create_extension("amcheck")
    sales.rows("SELECT bt_index_check(indexrelid, true) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
               "JOIN pg_am a ON a.oid = relam WHERE indrelid = 'sync_outbox'::regclass AND amname = 'btree'")
    if undoes:
        sales.run(undoes)
        assert direct()
    assert sales.flushed()["acked"] == 2


def test_defect_13_suspicion_1_rows_of_an_index_with_the_name_only(sales):
    """Its entries are there: what is PENDING belongs into it."""
    sales.create_extension("amcheck")
    sales.run("DROP INDEX sync_outbox_left; "
              "CREATE INDEX sync_outbox_left ON sync_outbox (target_id, status, id) WHERE op = 'INSERT'")
    sales.run("INSERT INTO sales VALUES (1), (2)")
    sales.rows("SELECT bt_index_check('sync_outbox_left'::regclass, true)")
    sales.run("SET enable_seqscan = off; SET enable_bitmapscan = off")
    assert sales.value("SELECT count(*) FROM sync_outbox WHERE op = 'INSERT' AND target_id = 1 AND status = 'PENDING'") == 2


@pytest.mark.parametrize("harmless", [
    "ALTER TABLE sync_outbox ALTER data SET STORAGE EXTENDED", "ALTER TABLE sync_outbox ALTER data SET COMPRESSION pglz",
    "ALTER TABLE sync_outbox SET (fillfactor = 50)", "ALTER TABLE sync_outbox SET UNLOGGED", "VACUUM FULL sync_outbox",
    "ALTER INDEX sync_outbox_left RENAME TO other", "REINDEX TABLE CONCURRENTLY sync_outbox",
    "CREATE PUBLICATION p FOR TABLE sync_outbox", "ALTER TABLE sync_outbox ALTER id SET GENERATED ALWAYS",
    "ALTER TABLE sync_outbox ALTER status SET DEFAULT 'DEAD'", "CREATE TABLE heir () INHERITS (sync_outbox)",
    "ALTER TABLE sync_outbox ALTER attempt_count DROP DEFAULT",
    "DROP INDEX sync_outbox_left; CREATE INDEX CONCURRENTLY waiting ON sync_outbox (target_id, status, id) WHERE status <> 'PENDING'",
])
def test_what_an_appended_row_has_as_well_stays_direct(sales, direct, harmless):
    for statement in harmless.split("; "):
        sales.run(statement)
    assert direct()
    assert sales.value("SELECT count(*) FROM sync_outbox WHERE status = 'PENDING'") == 2


def test_an_identity_that_is_always_generated_takes_the_id_that_was_drawn(sales):
    sales.alter_outbox()
    sales.run("ALTER TABLE sync_outbox ALTER id SET GENERATED ALWAYS; INSERT INTO sales VALUES (1), (2)")
    assert [change.id for change in sales.outbox()] == [1, 2]


def test_what_is_kept_of_the_outbox_outlives_no_savepoint_and_no_extension(db, receiver):
    """Locks, shapes and plans of a session: savepoints, an outbox that is altered and not, indexes and extensions that
    are made anew in the middle of a transaction and of a session."""
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, note text)")
    db.attach("sales")
    db.run("""BEGIN;
        SAVEPOINT a; INSERT INTO sales VALUES (1); ROLLBACK TO a;
        INSERT INTO sales VALUES (2);
        SAVEPOINT b; ALTER TABLE sync_outbox ADD extra int DEFAULT 7; INSERT INTO sales VALUES (3); ROLLBACK TO b;
        INSERT INTO sales VALUES (4);
        SAVEPOINT c; REINDEX TABLE sync_outbox; INSERT INTO sales VALUES (5); ROLLBACK TO c;
        INSERT INTO sales VALUES (6);
        SAVEPOINT d; ALTER TABLE sync_outbox DROP CONSTRAINT sync_outbox_pkey; INSERT INTO sales VALUES (7); ROLLBACK TO d;
        INSERT INTO sales VALUES (8);
        SAVEPOINT e; DROP EXTENSION sync_outbox CASCADE; ROLLBACK TO e;
        INSERT INTO sales VALUES (9);
        ALTER TABLE sync_outbox ADD extra int DEFAULT 7;
        INSERT INTO sales VALUES (10);
        COMMIT""")
    assert [change.pk["id"] for change in db.outbox()] == [2, 4, 6, 8, 9, 10]
    db.run("VACUUM FULL sync_outbox")
    db.run("INSERT INTO sales VALUES (11)")
    assert db.flushed()["acked"] == 7

    for altered in (True, False, True):
        db.run("SET client_min_messages = warning; BEGIN; INSERT INTO sales VALUES (12); DROP EXTENSION sync_outbox CASCADE;"
               " CREATE EXTENSION sync_outbox; SELECT sync_outbox_attach('sales'); INSERT INTO sales VALUES (13); COMMIT")
        if altered:
            db.alter_outbox()
        db.aim(receiver)
        db.run("INSERT INTO sales VALUES (14); BEGIN; SAVEPOINT a; INSERT INTO sales VALUES (15); ROLLBACK TO a; COMMIT")
        db.run("REINDEX TABLE CONCURRENTLY sync_outbox")
        db.run("INSERT INTO sales VALUES (16)")
        receiver.behaviour = behaviours.refuse(lambda change: change["pk"]["id"] == 14)
        assert db.flushed()["acked"] == 2
        assert db.value("SELECT sync_outbox_requeue()") == 1
        receiver.behaviour = behaviours.ack_all
        assert db.flushed()["acked"] == 1
        assert db.value("SELECT sync_outbox_backfill('sales', condition => 'id > 12')") == 3
        assert db.flushed()["acked"] == 3
        assert db.outbox() == []
        db.run("DELETE FROM sales WHERE id > 11; DELETE FROM sales WHERE false")
        db.flushed()
