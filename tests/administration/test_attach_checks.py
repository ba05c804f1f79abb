"""What attach refuses, and what it says: SQLSTATE, HINT, and nothing half done."""

import pytest
from psycopg import errors


def refused(db, error, relation, hint=".", **options):
    """Attaching fails with this error class and a hint, and leaves no trigger behind."""
    with pytest.raises(error) as caught:
        db.attach(relation, **options)
    assert caught.value.diag.message_hint, caught.value
    assert hint in caught.value.diag.message_hint
    assert db.value("SELECT count(*) FROM sync_outbox_attached WHERE relation = %s::regclass", [relation]) == 0
    return caught.value.diag.message_primary


@pytest.fixture
def stock(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, store text, note text)")
    return db


# What is no table to attach

@pytest.mark.parametrize("definition", [
    "CREATE VIEW thing AS SELECT 1 AS id",
    "CREATE MATERIALIZED VIEW thing AS SELECT 1 AS id",
    "CREATE SEQUENCE thing",
    "CREATE TABLE base (id int); CREATE INDEX thing ON base (id)",
    "CREATE TYPE thing AS (id int)",
    "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE thing (id int) SERVER s",
    "CREATE TEMP TABLE thing (id int PRIMARY KEY)",
])
def test_only_permanent_tables(db, definition):
    db.run(definition)
    assert "thing" in refused(db, errors.WrongObjectType, "thing")


@pytest.mark.parametrize("table", ["pg_class", "information_schema.sql_features", "sync_outbox", "sync_outbox_history"])
def test_neither_catalogs_nor_our_own_tables(db, table):
    refused(db, errors.WrongObjectType, table, hint="tables of your own")


def test_a_table_that_is_gone(db):
    with pytest.raises(errors.UndefinedTable) as caught:
        db.run("SELECT sync_outbox_attach(4000000000::oid)")
    assert caught.value.diag.message_hint


def test_invariant_28_a_database_without_an_encoding(quiet_server, watched):
    database = watched(quiet_server).create_database("ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        database.run("CREATE EXTENSION sync_outbox; CREATE TABLE stock (id int PRIMARY KEY)")
        refused(database, errors.FeatureNotSupported, "stock", hint="UTF8")
    finally:
        database.close()
        quiet_server.drop_database(database.name)


# Who

def test_the_owner_attaches(stock):
    clerk, owner = stock.role("clerk", "sync_outbox_admin"), stock.role("owner", "sync_outbox_admin")
    stock.run(f"ALTER TABLE stock OWNER TO {owner}")
    with pytest.raises(errors.InsufficientPrivilege) as caught:
        stock.session(clerk).execute("SELECT sync_outbox_attach('stock')")
    assert owner in caught.value.diag.message_hint

    session = stock.session(owner)
    session.execute("SELECT sync_outbox_attach('stock')")
    with pytest.raises(errors.InsufficientPrivilege):
        stock.session(clerk).execute("SELECT sync_outbox_detach('stock')")
    session.execute("SELECT sync_outbox_detach('stock')")


def test_ownership_alone_is_not_enough(stock):
    owner = stock.role("owner")
    stock.run(f"ALTER TABLE stock OWNER TO {owner}")
    with pytest.raises(errors.InsufficientPrivilege):
        stock.session(owner).execute("SELECT sync_outbox_attach('stock')")


# Keys

@pytest.mark.parametrize("definition, options", [
    ("id int", {}),
    ("id int PRIMARY KEY DEFERRABLE", {}),
    ("id int UNIQUE", {"key_columns": ["id"]}),
    ("id int NOT NULL", {"key_columns": ["id"]}),
    ("id int NOT NULL, EXCLUDE USING btree (id WITH =)", {"key_columns": ["id"]}),
])
def test_invariant_03_no_usable_key(db, definition, options):
    db.run(f"CREATE TABLE thing ({definition})")
    assert "usable key" in refused(db, errors.ObjectNotInPrerequisiteState, "thing", hint="key", **options)


@pytest.mark.parametrize("index", ["(code) WHERE id > 0", "((code || 'x'))"])
def test_invariant_03_an_index_that_is_no_key(db, index):
    db.run(f"CREATE TABLE thing (id int, code text NOT NULL); CREATE UNIQUE INDEX ON thing {index}")
    refused(db, errors.ObjectNotInPrerequisiteState, "thing", key_columns=["code"])


def test_another_unique_key(db):
    db.run('CREATE TABLE thing (id int PRIMARY KEY, "Ort" text NOT NULL, nr int NOT NULL, UNIQUE ("Ort", nr))')
    db.attach("thing", key_columns=["Ort", "nr"])
    db.run("INSERT INTO thing VALUES (1, 'x', 2)")

    assert db.changes()[0][1] == {"Ort": "x", "nr": 2}
    assert db.value("SELECT key_columns FROM sync_outbox_attached") == ["Ort", "nr"]


# Arguments

@pytest.mark.parametrize("options", [
    {"columns": ["qty", "nope"]}, {"exclude": ["nope"]}, {"branch_column": "nope"}, {"key_columns": ["nope"]},
    {"columns": ["ctid"]}, {"columns": ["QTY"]},
])
def test_unknown_columns(stock, options):
    refused(stock, errors.UndefinedColumn, "stock", hint="id, qty, store, note", **options)


@pytest.mark.parametrize("options", [
    {"priority": "URGENT"}, {"priority": ""}, {"operations": ["UPSERT"]}, {"operations": []}, {"columns": []},
    {"operations": ["INSERT", "insert"]}, {"columns": ["qty", "qty"]}, {"exclude": ["id"]},
    {"columns": ["qty", "note"], "exclude": ["note"]}, {"columns": [None]}, {"target": "nowhere"},
])
def test_bad_arguments(stock, options):
    refused(stock, errors.InvalidParameterValue, "stock", **options)


def test_null_is_no_relation(db):
    with pytest.raises(errors.NullValueNotAllowed):
        db.run("SELECT sync_outbox_attach(NULL)")


def test_null_arguments_mean_the_default(stock):
    stock.attach("stock", priority=None, operations=None, target=None, include_old=None, always=None)
    row = stock.row("SELECT * FROM sync_outbox_attached")
    assert (row.priority, row.target, row.operations) == ("NORMAL", "default", ["INSERT", "UPDATE", "DELETE"])


def test_words_in_any_case(stock):
    stock.attach("stock", priority="high", operations=["delete", "Insert", "truncate"])
    row = stock.row("SELECT * FROM sync_outbox_attached")
    assert (row.priority, row.operations) == ("HIGH", ["INSERT", "DELETE", "TRUNCATE"])


# Operations and triggers

def trigger_names(db, table):
    return [name for (name,) in db.rows(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal ORDER BY 1", [table])]


def test_operations_come_and_go(stock):
    stock.attach("stock", operations=["TRUNCATE"])
    assert trigger_names(stock, "stock") == ["!sync_outbox_truncate"]
    stock.run("INSERT INTO stock VALUES (1); TRUNCATE stock")
    assert [op for op, _, _ in stock.changes()] == ["TRUNCATE"]

    stock.attach("stock", operations=["INSERT", "TRUNCATE"])
    assert trigger_names(stock, "stock") == ["!sync_outbox_row", "!sync_outbox_truncate"]
    stock.attach("stock", operations=["DELETE"])
    assert trigger_names(stock, "stock") == ["!sync_outbox_row"]
    stock.run("INSERT INTO stock VALUES (2); UPDATE stock SET qty = 1; DELETE FROM stock")
    assert [op for op, _, _ in stock.changes()] == ["TRUNCATE", "DELETE"]


def test_always(stock):
    stock.attach("stock", always=True)
    stock.run("SET session_replication_role = replica; INSERT INTO stock VALUES (1)")
    stock.run("SET session_replication_role = origin")
    assert len(stock.outbox()) == 1
    stock.attach("stock")
    stock.run("SET session_replication_role = replica; INSERT INTO stock VALUES (2)")
    stock.run("SET session_replication_role = origin")
    assert len(stock.outbox()) == 1


def test_attaching_again_enables_a_disabled_trigger(stock):
    stock.attach("stock")
    stock.run("ALTER TABLE stock DISABLE TRIGGER ALL; INSERT INTO stock VALUES (1)")
    stock.attach("stock")
    stock.run("INSERT INTO stock VALUES (2)")
    assert [pk for _, pk, _ in stock.changes()] == [{"id": 2}]


@pytest.mark.parametrize("schema, table", [
    ("public", "Tabla de Ventas"), ("Größe \"x\"", "a@b'c\\d"), ("public", "日本語"),
])
def test_names_of_every_kind(db, schema, table):
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))
    db.run(f'CREATE SCHEMA IF NOT EXISTS {quoted.split(".")[0]}')
    db.run(f'CREATE TABLE {quoted} (id int PRIMARY KEY, "Café @ \'x\' \\" text, secret text)')
    db.attach(quoted, columns=["Café @ 'x' \\"], branch_column="Café @ 'x' \\", operations=["INSERT", "TRUNCATE"])
    db.attach(quoted, exclude=["secret"], always=True)
    db.run(f"INSERT INTO {quoted} VALUES (1, 'ñ', 's')")

    change = db.outbox()[0]
    assert (change.schema_name, change.table_name, change.data) == (schema, table, {"id": 1, "Café @ 'x' \\": "ñ"})
    row = db.row("SELECT * FROM sync_outbox_attached")
    assert (row.schema_name, row.table_name) == (schema, table)
    db.run("SELECT sync_outbox_detach(%s)", [quoted])
    assert db.rows("SELECT * FROM sync_outbox_attached") == []


# Partitions and children

@pytest.fixture
def parts(db):
    db.run("""CREATE TABLE parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
              CREATE TABLE parts_n PARTITION OF parts FOR VALUES IN ('n') PARTITION BY RANGE (id);
              CREATE TABLE parts_n1 PARTITION OF parts_n FOR VALUES FROM (0) TO (100)""")
    return db


@pytest.mark.parametrize("leaf", ["parts_n", "parts_n1"])
def test_a_leaf_of_an_attached_root(parts, leaf):
    parts.attach("parts")
    refused(parts, errors.ObjectNotInPrerequisiteState, leaf, hint="sync_outbox_detach('public.parts')")
    with pytest.raises(errors.UndefinedObject) as caught:
        parts.run("SELECT sync_outbox_detach(%s)", [leaf])
    assert "public.parts" in caught.value.diag.message_hint


def test_a_root_with_an_attached_leaf(parts):
    parts.attach("parts_n1")
    refused(parts, errors.ObjectNotInPrerequisiteState, "parts", hint="sync_outbox_detach('public.parts_n1')")


def test_options_of_a_partitioned_table_reach_its_leaves(parts):
    parts.attach("parts", always=True)
    parts.attach("parts", operations=["INSERT"], always=True)
    parts.run("CREATE TABLE parts_s PARTITION OF parts FOR VALUES IN ('s')")
    parts.run("SET session_replication_role = replica")
    parts.run("INSERT INTO parts VALUES (1, 'n'), (2, 's'); INSERT INTO parts_n1 VALUES (3, 'n'); DELETE FROM parts")
    assert [(c.op, c.table_name, c.pk["id"]) for c in parts.outbox()] == [
        ("INSERT", "parts", 1), ("INSERT", "parts", 2), ("INSERT", "parts", 3)]

    parts.run("SELECT sync_outbox_detach('parts')")
    assert parts.value("SELECT count(*) FROM pg_trigger WHERE tgname ~ '^!sync_outbox'") == 0


def test_notices(db):
    said = []
    db.conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
    db.run("CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)")
    db.run("CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent)")
    db.attach("scratch")
    db.attach("parent")
    assert any("unlogged" in text for text in said)
    assert any("public.child" in text for text in said)
    said.clear()
    db.attach("parent")
    assert said == []


# Lanes

def test_invariant_05_another_lane_while_changes_wait(stock):
    stock.attach("stock")
    stock.run("INSERT INTO stock VALUES (1)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        stock.attach("stock", priority="HIGH")
    assert "sync_outbox_drain" in caught.value.diag.message_hint
    assert stock.value("SELECT priority FROM sync_outbox_attached") == "NORMAL"

    # Nor by way of detach.
    stock.run("SELECT sync_outbox_detach('stock')")
    refused(stock, errors.ObjectNotInPrerequisiteState, "stock", priority="HIGH")
    stock.attach("stock", exclude=["note"])
    stock.attach("stock")
    stock.run("DELETE FROM sync_outbox")
    stock.attach("stock", priority="HIGH")


def test_another_lane_in_a_transaction_with_an_old_snapshot(stock):
    stock.attach("stock")
    session = stock.session(autocommit=False)
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    session.execute("SELECT 1")
    stock.run("INSERT INTO stock VALUES (1)")
    with pytest.raises(errors.ActiveSqlTransaction):
        session.execute("SELECT sync_outbox_attach('stock', 'HIGH')")


# The scripts' triggers

@pytest.mark.parametrize("name", ["sync_outbox_ins", "sync_outbox_upd", "sync_outbox_del", "sync_outbox_aiud_stock"])
def test_the_scripts_triggers_must_go_first(stock, name):
    stock.run("CREATE FUNCTION old_capture() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    stock.run(f"CREATE TRIGGER {name} AFTER INSERT ON stock FOR EACH ROW EXECUTE FUNCTION old_capture()")
    refused(stock, errors.ObjectNotInPrerequisiteState, "stock", hint=f"DROP TRIGGER {name} ON public.stock;")


# Locks

def test_a_lock_that_is_not_to_be_had_says_what_to_do(stock):
    writer = stock.session(autocommit=False)
    writer.execute("INSERT INTO stock VALUES (1)")
    stock.run("SET lock_timeout = '100ms'")  # the session's own limit holds, if it is less than ours
    with pytest.raises(errors.LockNotAvailable) as caught:
        stock.attach("stock")
    assert "pg_locks" in caught.value.diag.message_hint
    writer.rollback()
    stock.attach("stock")

    writer.execute("SELECT FROM stock")
    with pytest.raises(errors.LockNotAvailable):
        stock.run("SELECT sync_outbox_detach('stock')")
    assert stock.value("SHOW lock_timeout") == "100ms"


def test_detach_of_what_is_not_attached(stock):
    with pytest.raises(errors.UndefinedObject) as caught:
        stock.run("SELECT sync_outbox_detach('stock')")
    assert "sync_outbox_attached" in caught.value.diag.message_hint


def test_attach_is_undone_with_its_transaction(stock):
    session = stock.session(autocommit=False)
    session.execute("SELECT sync_outbox_attach('stock')")
    session.rollback()
    assert trigger_names(stock, "stock") == []


# Other server encodings

def test_names_and_arguments_in_latin1(quiet_server, watched, receiver):
    db = watched(quiet_server).create_database("ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        db.run("SET client_encoding = 'UTF8'; SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
        db.run("""CREATE TABLE "año" ("nº" int PRIMARY KEY, "tamaño" text, x text);
                  INSERT INTO "año" VALUES (1, 'ñandú', 'x'), (2, 'é', 'x')""")
        answer = db.configure(webapp_base_url=receiver.url, sync_upload_token="t", uploads_local_to_remote=["año"])
        assert answer["attached"] == ['public."año"']
        db.attach('"año"', columns=["tamaño"], branch_column="tamaño", key_columns=["nº"])
        db.attach('"año"', columns=["tamaño"], branch_column="tamaño", key_columns=["nº"])
        assert db.value("SELECT columns FROM sync_outbox_attached") == ["tamaño"]
        assert db.value("""SELECT sync_outbox_backfill('"año"', '"tamaño" = ''ñandú''', 'NORMAL')""") == 1
        assert db.flushed()["ok"]
        (change,) = receiver.changes
        assert (change["table"], change["data"]) == ("año", {"nº": 1, "tamaño": "ñandú"})
        with pytest.raises(errors.InvalidParameterValue):
            db.run("SELECT sync_outbox_set_token('señal')")
        db.run("SELECT sync_outbox_detach('\"año\"')")
    finally:
        db.close()
        quiet_server.drop_database(db.name)
