"""sync_outbox_import(): what the scripts' outbox holds moves over, keys and order kept, nothing lost."""

import hashlib
import json
import uuid

import pytest
from psycopg import errors

OLD_TABLE = """CREATE TABLE {name} (
    id bigserial PRIMARY KEY, schema_name text, table_name text, op text, pk jsonb, data jsonb, dedup_key text,
    txid bigint DEFAULT txid_current(), created_at timestamptz DEFAULT now(){more})"""


@pytest.fixture
def old(db):
    """The old table, renamed, and a way to fill it."""
    db.run(OLD_TABLE.format(name="outbox_old", more=""))
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, store text)")

    def add(op, id, data=None, key=None, table="sales", table_name="outbox_old"):
        db.run(f"INSERT INTO {table_name} (schema_name, table_name, op, pk, data, dedup_key) VALUES ('public', %s, %s, %s, %s, %s)",
               [table, op, json.dumps({"id": id}), data and json.dumps(data),
                key or hashlib.md5(f"{op}{id}{data}".encode()).hexdigest()])
    db.add = add
    return db


def take(db, table="outbox_old"):
    return db.value("SELECT sync_outbox_import(%s)", [table])


def test_rows_move_over_in_order_with_their_keys(old, receiver):
    old.attach("sales")
    old.run("INSERT INTO sales VALUES (9, 1)")
    old.add("INSERT", 1, {"id": 1, "qty": 5})
    old.add("update", 1, {"qty": 6})
    old.add("DELETE", 1)
    old.run("UPDATE sales SET qty = 2")
    keys = [key for (key,) in old.rows("SELECT dedup_key FROM outbox_old ORDER BY id")]

    assert take(old) == 3
    changes = old.outbox()
    assert [(c.op, c.pk["id"], c.data) for c in changes] == [
        ("INSERT", 1, {"id": 1, "qty": 5}), ("UPDATE", 1, {"qty": 6}), ("DELETE", 1, None),
        ("INSERT", 9, {"id": 9, "qty": 1, "store": None}), ("UPDATE", 9, {"qty": 2})]
    assert [c.dedup_key.hex for c in changes[:3]] == keys
    assert all((c.status, c.priority, c.target_id) == ("PENDING", "NORMAL", 1) for c in changes)

    old.aim(receiver)
    assert old.flushed()["acked"] == 5
    assert [c["op"] for c in receiver.changes] == ["INSERT", "UPDATE", "DELETE", "INSERT", "UPDATE"]
    assert [uuid.UUID(c["dedup_key"]).hex for c in receiver.changes[:3]] == keys


def test_a_row_goes_where_its_table_goes(old):
    old.attach("sales", priority="HIGH", branch_column="store")
    old.add("INSERT", 1, {"id": 1, "store": "S7"})
    old.add("DELETE", 1)
    old.add("INSERT", 1, {"id": 1}, table="not_attached")
    take(old)
    assert [(c.table_name, c.priority, c.branch) for c in old.outbox()] == [
        ("sales", "HIGH", "S7"), ("sales", "HIGH", None), ("not_attached", "NORMAL", None)]


def test_keys_of_every_kind(old):
    same = hashlib.md5(b"x").hexdigest()
    hyphens = str(uuid.uuid4())
    for id, key in enumerate([same, same, hyphens, hyphens.upper(), "sales:7:UPDATE", "sales:7:UPDATE"]):
        old.add("UPDATE", id, {"qty": id}, key)
    old.run("UPDATE outbox_old SET dedup_key = NULL WHERE id = 6")
    assert take(old) == 6
    keys = [c.dedup_key for c in old.outbox()]
    assert len(set(keys)) == 6
    assert (keys[0].hex, str(keys[2])) == (same, hyphens)


def test_importing_twice_brings_nothing_twice(old):
    said = []
    old.conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
    for id in range(3):
        old.add("INSERT", id, {"id": id}, key="the same for all")
    assert take(old) == 3
    old.add("INSERT", 3, {"id": 3})
    assert take(old) == 1
    assert take(old) == 0
    assert len(old.outbox()) == 4
    assert any(text.startswith("3 of 4 changes") for text in said) and any(text.startswith("4 of 4") for text in said)


def test_two_stores_tables(old):
    old.run(OLD_TABLE.format(name="outbox_second", more=", status text DEFAULT 'FAILED', attempt_count int DEFAULT 3"))
    old.add("INSERT", 1, {"id": 1})
    old.add("INSERT", 2, {"id": 2}, table_name="outbox_second")
    assert (take(old), take(old, "outbox_second")) == (1, 1)
    assert [(c.status, c.attempt_count) for c in old.outbox()] == [("PENDING", 0), ("PENDING", 0)]
    assert len({c.id for c in old.outbox()}) == 2


def test_an_empty_table(old):
    assert take(old) == 0


def test_columns_that_may_be_missing(old):
    old.run("ALTER TABLE outbox_old DROP COLUMN dedup_key, DROP COLUMN txid, DROP COLUMN created_at")
    old.run("""INSERT INTO outbox_old (schema_name, table_name, op, pk) VALUES ('public', 'sales', 'DELETE', '{"id": 1}')""")
    assert take(old) == 1
    assert take(old) == 0


def test_capture_time_is_kept(old):
    old.add("DELETE", 1)
    old.run("UPDATE outbox_old SET created_at = '2020-02-02 02:02:02+00'")
    take(old)
    assert old.outbox()[0].created_at.year == 2020


@pytest.mark.parametrize("damage", [
    "op = 'UPSERT'", "op = NULL", "pk = NULL", "table_name = NULL", "schema_name = NULL",
])
def test_a_bad_row_stops_all_of_it(old, damage):
    for id in range(3):
        old.add("DELETE", id)
    old.run(f"UPDATE outbox_old SET {damage} WHERE id = 2")
    with pytest.raises(errors.InvalidParameterValue) as caught:
        take(old)
    assert "id 2" in caught.value.diag.message_primary and caught.value.diag.message_hint
    assert old.outbox() == []


@pytest.mark.parametrize("error, table", [
    (errors.WrongObjectType, "sync_outbox"), (errors.WrongObjectType, "sync_outbox_queue"),
    (errors.UndefinedColumn, "sales"),
])
def test_what_is_no_old_outbox(old, error, table):
    with pytest.raises(error) as caught:
        take(old, table)
    assert caught.value.diag.message_hint


def test_null(old):
    with pytest.raises(errors.NullValueNotAllowed):
        old.run("SELECT sync_outbox_import(NULL)")


def test_the_owner_imports(old):
    owner, other = old.role("owner", "sync_outbox_admin"), old.role("other", "sync_outbox_admin")
    old.add("DELETE", 1)
    old.run(f"ALTER TABLE outbox_old OWNER TO {owner}")
    with pytest.raises(errors.InsufficientPrivilege):
        old.session(other).execute("SELECT sync_outbox_import('outbox_old')")
    with pytest.raises(errors.InsufficientPrivilege, match="public.sales") as caught:
        old.session(owner).execute("SELECT sync_outbox_import('outbox_old')")
    assert caught.value.diag.message_hint
    old.run(f"ALTER TABLE sales OWNER TO {owner}")
    assert old.session(owner).execute("SELECT sync_outbox_import('outbox_old')").fetchone()[0] == 1


def test_changes_of_a_table_that_is_gone_are_of_who_may_make_it(old):
    owner = old.role("owner", "sync_outbox_admin")
    old.run(f"ALTER TABLE outbox_old OWNER TO {owner}")
    session = old.session(owner)
    for schema, grant in (("public", f"GRANT CREATE ON SCHEMA public TO {owner}"),
                          ("gone", f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {owner}', current_database()); END $$")):
        old.run("DELETE FROM outbox_old")
        old.add("DELETE", 1, table="gone", key=schema)
        old.run("UPDATE outbox_old SET schema_name = %s", [schema])
        with pytest.raises(errors.InsufficientPrivilege, match=f"{schema}.gone"):
            session.execute("SELECT sync_outbox_import('outbox_old')")
        old.run(grant)
        assert session.execute("SELECT sync_outbox_import('outbox_old')").fetchone()[0] == 1


def test_a_cast_of_the_old_table_runs_as_the_caller(old):
    """Reading the old table as anybody else would be a way to become that."""
    owner = old.role("owner", "sync_outbox_admin")
    old.run(f"GRANT CREATE ON SCHEMA public TO {owner}")
    session = old.session(owner)
    session.execute("""CREATE TYPE trap AS (v text);
        CREATE FUNCTION spring(trap) RETURNS text LANGUAGE sql AS $$ SELECT 'ran as ' || current_user $$;
        CREATE CAST (trap AS text) WITH FUNCTION spring(trap);
        CREATE TABLE mine (id bigint, schema_name text, table_name trap, op text, pk jsonb, data jsonb)""")
    session.execute("""INSERT INTO mine VALUES (1, 'public', ROW('x'), 'DELETE', '{"id": 1}')""")
    session.execute("SELECT sync_outbox_import('mine')")
    assert old.outbox()[0].table_name == f"ran as {owner}"


def test_it_waits_for_writers_but_not_for_ever(old):
    old.run("SET lock_timeout = '100ms'")
    writer = old.session(autocommit=False)
    writer.execute("INSERT INTO outbox_old (op) VALUES ('x')")
    with pytest.raises(errors.LockNotAvailable) as caught:
        take(old)
    assert caught.value.diag.message_hint


def test_nobody_sends_until_it_is_committed(old, receiver):
    """Else a change captured since could overtake an older one of its row."""
    old.attach("sales")
    old.aim(receiver)
    old.add("UPDATE", 1, {"qty": 1})
    old.server.set(sync_outbox__lock_wait="200ms")
    session = old.session(autocommit=False)
    session.execute("SELECT sync_outbox_import('outbox_old')")
    flush = old.session().execute("SELECT sync_outbox_flush()").fetchone()[0]
    assert flush["error"] == "flush_busy" and receiver.requests == []
    session.commit()
    assert old.session().execute("SELECT sync_outbox_flush()").fetchone()[0]["acked"] == 1


def test_an_old_snapshot_is_refused(old):
    session = old.session(autocommit=False)
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with pytest.raises(errors.ActiveSqlTransaction):
        session.execute("SELECT sync_outbox_import('outbox_old')")


def test_the_move_in_one_transaction(quiet_server, watched, receiver):
    """As docs tell it: from tables with the scripts' triggers to ours, without a moment in which a write is missed."""
    db = watched(quiet_server).create_database()
    try:
        db.run(OLD_TABLE.format(name="sync_outbox", more=", UNIQUE (dedup_key)"))
        db.run("""CREATE TABLE sales (id int PRIMARY KEY, qty int);
            CREATE FUNCTION sync_outbox_capture() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.sync_outbox (schema_name, table_name, op, pk, data, dedup_key) VALUES (
                    TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, jsonb_build_object('id', coalesce(NEW.id, OLD.id)),
                    CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END, md5(random()::text));
                RETURN NULL; END $$;
            CREATE TRIGGER sync_outbox_ins AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION sync_outbox_capture();
            CREATE TRIGGER sync_outbox_upd AFTER UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION sync_outbox_capture();
            CREATE TRIGGER sync_outbox_del AFTER DELETE ON sales FOR EACH ROW EXECUTE FUNCTION sync_outbox_capture();
            INSERT INTO sales VALUES (1, 1), (2, 2); UPDATE sales SET qty = 5 WHERE id = 1; DELETE FROM sales WHERE id = 2""")
        move = db.session(autocommit=False)
        move.execute("SET client_min_messages = warning")
        move.execute("DROP TRIGGER sync_outbox_ins ON sales; DROP TRIGGER sync_outbox_upd ON sales; DROP TRIGGER sync_outbox_del ON sales")
        move.execute("""ALTER TABLE sync_outbox RENAME TO sync_outbox_old;
            ALTER INDEX sync_outbox_pkey RENAME TO sync_outbox_old_pkey;
            ALTER SEQUENCE sync_outbox_id_seq RENAME TO sync_outbox_old_id_seq; DROP FUNCTION sync_outbox_capture()""")
        move.execute("CREATE EXTENSION sync_outbox")
        move.execute("SELECT sync_outbox_configure(%s)", [json.dumps(
            {"webapp_base_url": receiver.url, "sync_upload_token": "t", "uploads_local_to_remote": ["sales"]})])
        assert move.execute("SELECT sync_outbox_import('sync_outbox_old')").fetchone()[0] == 4
        move.commit()
        db.run("UPDATE sales SET qty = 6")
        assert db.flush() == '{"ok": true, "pending": 5, "sent": 5, "acked": 5}'
        assert [(c["op"], c["pk"]["id"]) for c in receiver.changes] == [
            ("INSERT", 1), ("INSERT", 2), ("UPDATE", 1), ("DELETE", 2), ("UPDATE", 1)]
    finally:
        db.close()
        quiet_server.drop_database(db.name)
