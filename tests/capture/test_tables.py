"""Capture on every kind of table, and while tables change."""

import pytest
from psycopg import errors


@pytest.fixture
def db(db, append):
    return append(db)


# Partitions

@pytest.fixture
def partitioned(db):
    db.run("CREATE TABLE sale (id int, year int, qty int, PRIMARY KEY (id, year)) PARTITION BY RANGE (year)")
    db.run("CREATE TABLE sale_2024 PARTITION OF sale FOR VALUES FROM (2024) TO (2025)")
    db.attach("sale", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    return db


def test_writes_through_root_and_leaf_are_the_roots(partitioned):
    partitioned.run("INSERT INTO sale VALUES (1, 2024, 1); INSERT INTO sale_2024 VALUES (2, 2024, 2)")
    partitioned.run("UPDATE sale_2024 SET qty = 5 WHERE id = 1; DELETE FROM sale WHERE id = 2")

    assert [(change.table_name, change.op) for change in partitioned.outbox()] == [
        ("sale", "INSERT"), ("sale", "INSERT"), ("sale", "UPDATE"), ("sale", "DELETE")]


def test_partitions_added_later_are_captured(partitioned):
    partitioned.run("CREATE TABLE sale_2025 PARTITION OF sale FOR VALUES FROM (2025) TO (2026)")
    partitioned.run("CREATE TABLE sale_2026 (qty int, year int NOT NULL, id int NOT NULL)")
    partitioned.run("ALTER TABLE sale ATTACH PARTITION sale_2026 FOR VALUES FROM (2026) TO (2027)")
    partitioned.run("INSERT INTO sale VALUES (1, 2025, 1), (2, 2026, 2)")

    assert [(change.table_name, change.pk, change.data) for change in partitioned.outbox()] == [
        ("sale", {"id": 1, "year": 2025}, {"id": 1, "year": 2025, "qty": 1}),
        ("sale", {"id": 2, "year": 2026}, {"id": 2, "year": 2026, "qty": 2})]


def test_invariant_27_a_row_that_moves_is_deleted_and_inserted(partitioned):
    partitioned.run("CREATE TABLE sale_2025 PARTITION OF sale FOR VALUES FROM (2025) TO (2026)")
    partitioned.run("INSERT INTO sale VALUES (1, 2024, 1); UPDATE sale SET year = 2025")

    assert partitioned.changes()[1:] == [
        ("DELETE", {"id": 1, "year": 2024}, None),
        ("INSERT", {"id": 1, "year": 2025}, {"id": 1, "year": 2025, "qty": 1})]


def test_invariant_27_truncate_of_a_leaf_is_never_the_roots(partitioned):
    partitioned.run("CREATE TABLE sale_2025 PARTITION OF sale FOR VALUES FROM (2025) TO (2026)")
    partitioned.run("TRUNCATE sale_2025")
    assert [change.op for change in partitioned.outbox("table_name = 'sale'")] == []

    partitioned.run("TRUNCATE sale")
    assert [change.op for change in partitioned.outbox("table_name = 'sale'")] == ["TRUNCATE"]


def test_invariant_27_a_leaf_of_an_attached_root_is_refused(partitioned):
    with pytest.raises(errors.DatabaseError) as refused:
        partitioned.attach("sale_2024")

    assert refused.value.diag.message_hint


def test_partitions_of_partitions(db):
    db.run("CREATE TABLE t (id int, a int, PRIMARY KEY (id, a)) PARTITION BY LIST (a)")
    db.run("CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1) PARTITION BY HASH (id)")
    db.run("CREATE TABLE t1h PARTITION OF t1 FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1); INSERT INTO t1 VALUES (2, 1); INSERT INTO t1h VALUES (3, 1)")

    assert [change.table_name for change in db.outbox()] == ["t"] * 3


def test_invariant_27_inheritance_children_are_attached_one_by_one(db):
    db.run("CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE kid (PRIMARY KEY (id)) INHERITS (base)")
    notices = []
    db.conn.add_notice_handler(lambda notice: notices.append(f"{notice.message_primary} {notice.message_detail}"))
    db.attach("base")
    assert any("kid" in notice for notice in notices), notices

    db.run("INSERT INTO kid VALUES (1); INSERT INTO base VALUES (2)")
    assert [(change.table_name, change.pk) for change in db.outbox()] == [("base", {"id": 2})]

    db.attach("kid")
    db.run("INSERT INTO kid VALUES (3); UPDATE base SET id = id + 10 WHERE id = 3")
    assert [(change.table_name, change.op) for change in db.outbox()][1:] == [("kid", "INSERT"), ("kid", "UPDATE")]


# Tables that change

def test_alter_table_between_two_writes_of_one_session(sales):
    sales.run("INSERT INTO sales VALUES (1, 1, 'x')")
    sales.run("ALTER TABLE sales ADD paid boolean DEFAULT true; INSERT INTO sales VALUES (2, 2, 'y', false)")
    sales.run("ALTER TABLE sales RENAME qty TO pieces; INSERT INTO sales VALUES (3, 3, 'z')")
    sales.run("ALTER TABLE sales DROP note; INSERT INTO sales VALUES (4, 4)")
    sales.run("ALTER TABLE sales ALTER pieces TYPE numeric(10,2); INSERT INTO sales VALUES (5, 5)")

    assert sales.rows("SELECT data::text FROM sync_outbox WHERE op = 'INSERT' ORDER BY id") == [
        ('{"id":1,"qty":1,"note":"x"}',), ('{"id":2,"qty":2,"note":"y","paid":false}',),
        ('{"id":3,"pieces":3,"note":"z","paid":true}',), ('{"id":4,"pieces":4,"paid":true}',),
        ('{"id":5,"pieces":5.00,"paid":true}',)]


def test_a_column_added_by_another_session_is_seen(sales):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.session().execute("ALTER TABLE sales ADD extra int DEFAULT 7")
    sales.run("INSERT INTO sales VALUES (2)")

    assert sales.changes()[1][2]["extra"] == 7


def test_alter_table_inside_the_writing_transaction(sales):
    with sales.conn.transaction():
        sales.run("INSERT INTO sales VALUES (1)")
        sales.run("ALTER TABLE sales ADD extra int DEFAULT 7")
        sales.run("UPDATE sales SET extra = 8")

    assert sales.changes()[1] == ("UPDATE", {"id": 1}, {"extra": 8})


def test_an_old_row_of_a_column_with_a_fast_default(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); ALTER TABLE t ADD v int DEFAULT 5")
    db.attach("t")
    db.run("UPDATE t SET v = 5; UPDATE t SET v = 6; DELETE FROM t")

    assert db.changes() == [("UPDATE", {"id": 1}, {"v": 6}), ("DELETE", {"id": 1}, None)]


def test_another_primary_key_is_followed_or_refused(db):
    """A key that changes under an attached table must never be captured as half a key."""
    db.run("CREATE TABLE t (a int NOT NULL, b int NOT NULL, CONSTRAINT t_pkey PRIMARY KEY (a))")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 2)")
    db.run("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (a, b)")
    try:
        db.run("INSERT INTO t VALUES (1, 3)")
        assert db.changes()[1][1] == {"a": 1, "b": 3}
    except errors.DatabaseError as refused:
        assert refused.diag.message_hint


def test_generated_and_dropped_columns(db):
    db.run("CREATE TABLE t (gone int, id int PRIMARY KEY, net numeric, gross numeric GENERATED ALWAYS AS (net * 2) STORED)")
    db.attach("t")
    db.run("ALTER TABLE t DROP gone; INSERT INTO t (id, net) VALUES (1, 1.50); UPDATE t SET net = 2")

    assert db.rows("SELECT data::text FROM sync_outbox ORDER BY id") == [
        ('{"id":1,"net":1.50,"gross":3.00}',), ('{"net":2,"gross":4}',)]


def test_quoted_and_unicode_names(db):
    db.run('CREATE SCHEMA "Tienda 1"; CREATE TABLE "Tienda 1"."Año ""2""" ("Ключ" int PRIMARY KEY, "a\\b""c" text, "tab\t" int)')
    db.attach('"Tienda 1"."Año ""2"""', branch_column='a\\b"c')
    db.run('INSERT INTO "Tienda 1"."Año ""2""" VALUES (1, \'S1\', 2)')

    (change,) = db.outbox()
    assert (change.schema_name, change.table_name, change.branch) == ("Tienda 1", 'Año "2"', "S1")
    assert (change.pk, change.data) == ({"Ключ": 1}, {"Ключ": 1, 'a\\b"c': "S1", "tab\t": 2})


def test_unlogged_tables(db):
    db.run("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1)")

    assert len(db.outbox()) == 1


def test_dropping_an_attached_table_keeps_its_changes(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1); DROP TABLE sales")

    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_replica_identity_index_without_a_primary_key(db):
    db.run("CREATE TABLE t (code text NOT NULL UNIQUE, v int); ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key")
    db.attach("t", key_columns=["code"])
    db.run("INSERT INTO t VALUES ('a', 1)")

    assert db.changes() == [("INSERT", {"code": "a"}, {"code": "a", "v": 1})]


# Rights of the writer

@pytest.fixture
def clerk(sales):
    """A role that may write sales and nothing else."""
    sales.run("REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO PUBLIC")
    role = sales.role("clerk")
    sales.run(f"GRANT ALL ON sales TO {role}")
    return sales.session(role)


def test_a_writer_without_rights_on_the_outbox(sales, clerk):
    clerk.execute("INSERT INTO sales VALUES (1)")
    with pytest.raises(errors.InsufficientPrivilege):
        clerk.execute("SELECT * FROM sync_outbox")

    assert len(sales.outbox()) == 1


def test_a_writer_who_cannot_even_see_the_schema(db):
    db.run("DROP EXTENSION sync_outbox; CREATE SCHEMA hidden; CREATE EXTENSION sync_outbox SCHEMA hidden")
    db.run("CREATE TABLE sales (id int PRIMARY KEY); SELECT hidden.sync_outbox_attach('sales')")
    role = db.role("clerk")
    db.run(f"GRANT INSERT ON sales TO {role}")
    db.session(role).execute("INSERT INTO sales VALUES (1)")

    assert db.value("SELECT count(*) FROM hidden.sync_outbox") == 1


def test_row_security_of_the_source_decides_what_is_written(sales, clerk):
    sales.run("ALTER TABLE sales ENABLE ROW LEVEL SECURITY; CREATE POLICY small ON sales USING (qty < 10)")
    clerk.execute("INSERT INTO sales VALUES (1, 1)")
    with pytest.raises(errors.InsufficientPrivilege):
        clerk.execute("INSERT INTO sales VALUES (2, 20)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 1}]


def test_invariant_01_the_writers_cast_runs_as_the_writer(db):
    """Encoding can run a user's cast to json: as the extension's owner it would be a way to become superuser."""
    role = db.role("mallory")
    db.run(f"CREATE SCHEMA own AUTHORIZATION {role}")
    mallory = db.session(role)
    mallory.execute("""CREATE TYPE own.mood AS ENUM ('ok');
        CREATE FUNCTION own.tell(own.mood) RETURNS json LANGUAGE sql
            AS $$ SELECT json_build_object('ran as', current_user, 'superuser', current_setting('is_superuser')) $$;
        CREATE CAST (own.mood AS json) WITH FUNCTION own.tell(own.mood);
        CREATE TABLE own.t (id int PRIMARY KEY, m own.mood)""")
    db.attach("own.t")
    mallory.execute("INSERT INTO own.t VALUES (1, 'ok')")

    assert db.changes()[0][2]["m"] == {"ran as": role, "superuser": "off"}


def test_a_user_cannot_forge_changes_with_our_trigger_function(sales, clerk):
    sales.run("GRANT CREATE ON SCHEMA public TO PUBLIC")
    clerk.execute("CREATE TABLE mine (id int PRIMARY KEY)")
    with pytest.raises(errors.InsufficientPrivilege):
        clerk.execute("CREATE TRIGGER forge AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION sync_outbox_capture('{}')")


# The outbox itself

def test_drop_and_create_extension_in_one_session(sales):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.run("DROP EXTENSION sync_outbox CASCADE; CREATE EXTENSION sync_outbox")
    sales.run("INSERT INTO sales VALUES (2)")
    sales.attach("sales")
    sales.run("INSERT INTO sales VALUES (3)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 3}]


def test_another_session_survives_drop_and_create_extension(sales):
    other = sales.session()
    other.execute("INSERT INTO sales VALUES (1)")
    sales.run("DROP EXTENSION sync_outbox CASCADE; CREATE EXTENSION sync_outbox")
    sales.attach("sales")
    other.execute("INSERT INTO sales VALUES (2)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 2}]


@pytest.mark.parametrize("shape", [
    "ALTER TABLE sync_outbox ADD extra int DEFAULT 7",
    "CREATE INDEX ON sync_outbox (table_name)",
    "CREATE INDEX ON sync_outbox (lower(table_name)) WHERE op = 'INSERT'",
    "ALTER TABLE sync_outbox ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE sync_outbox ADD CHECK (op <> '')",
    """CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
       CREATE TRIGGER watch BEFORE INSERT ON sync_outbox FOR EACH ROW EXECUTE FUNCTION watch()""",
    "REINDEX TABLE sync_outbox", "VACUUM FULL sync_outbox", "TRUNCATE sync_outbox",
])
def test_capture_goes_on_when_the_outbox_has_another_shape(sales, shape):
    sales.run("INSERT INTO sales VALUES (1)")
    for command in [shape] if "FUNCTION" in shape else shape.split(";"):
        sales.run(command)
    role = sales.role("clerk")
    sales.run(f"GRANT ALL ON sales TO {role}")
    sales.session(role).execute("INSERT INTO sales VALUES (2, 5)")
    sales.run("UPDATE sales SET qty = 6 WHERE id = 2")

    assert sales.changes()[-2:] == [
        ("INSERT", {"id": 2}, {"id": 2, "qty": 5, "note": None}), ("UPDATE", {"id": 2}, {"qty": 6})]
    sales.create_extension("amcheck")
    sales.rows("SELECT bt_index_check(indexrelid, true) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
               "JOIN pg_am a ON a.oid = relam WHERE indrelid = 'sync_outbox'::regclass AND amname = 'btree'")


def test_a_check_on_the_outbox_is_the_dbas_word(sales):
    sales.run("ALTER TABLE sync_outbox ADD CONSTRAINT no_deletes CHECK (op <> 'DELETE')")
    sales.run("INSERT INTO sales VALUES (1)")
    with pytest.raises(errors.CheckViolation):
        sales.run("DELETE FROM sales")
