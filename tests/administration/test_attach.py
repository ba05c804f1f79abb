"""Attach, detach and the view of what is attached."""

import time

import pytest
from psycopg import errors


def test_the_view_shows_what_is_attached(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, store text, secret text)")
    db.attach("stock", priority="HIGH", exclude=["secret"], branch_column="store", require_reason=True)

    row = db.row("SELECT * FROM sync_outbox_attached")
    assert (row.relation, row.schema_name, row.table_name) == ("stock", "public", "stock")
    assert (row.target, row.priority, row.branch_column) == ("default", "HIGH", "store")
    assert row.exclude == ["secret"]
    assert (row.include_old, row.require_reason, row.always) == (False, True, False)


def test_attaching_twice_captures_once(sales):
    sales.attach("sales")
    sales.run("INSERT INTO sales VALUES (1)")

    assert len(sales.outbox()) == 1
    assert len(sales.rows("SELECT * FROM sync_outbox_attached")) == 1


def test_attaching_again_changes_the_options(sales):
    sales.attach("sales", exclude=["note"])
    sales.run("INSERT INTO sales VALUES (1, 2, 'x')")

    assert sales.changes() == [("INSERT", {"id": 1}, {"id": 1, "qty": 2})]


def test_attaching_again_unchanged_needs_no_lock(sales):
    with sales.session(autocommit=False) as reader:
        reader.execute("SELECT * FROM sales")
        writer = sales.session(autocommit=False)
        writer.execute("INSERT INTO sales VALUES (1)")
        began = time.monotonic()
        sales.attach("sales")
        assert time.monotonic() - began < 1


def test_attach_does_not_wait_long_for_its_lock(sales):
    sales.run("CREATE TABLE busy (id int PRIMARY KEY)")
    writer = sales.session(autocommit=False)
    writer.execute("INSERT INTO busy VALUES (1)")
    sales.run("SET statement_timeout = '60s'")

    # Behind a waiting ACCESS EXCLUSIVE or SHARE ROW EXCLUSIVE lock every writer of the shop would queue.
    with pytest.raises(errors.LockNotAvailable):
        sales.attach("busy")


def test_detach_ends_capture_and_keeps_what_was_captured(sales):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.run("SELECT sync_outbox_detach('sales')")
    sales.run("INSERT INTO sales VALUES (2)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 1}]
    assert sales.rows("SELECT * FROM sync_outbox_attached") == []
    assert sales.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'sales'::regclass") == 0


def test_another_priority_while_changes_wait_keeps_the_order_of_a_row(sales, receiver):
    """Refused, or taken along with the rows that wait: never the update before its insert."""
    sales.run("INSERT INTO sales VALUES (1, 1)")
    try:
        sales.attach("sales", priority="HIGH")
    except errors.DatabaseError as refused:
        assert refused.diag.message_hint
    sales.run("UPDATE sales SET qty = 2")

    sales.flush()

    assert [change["op"] for change in receiver.changes] == ["INSERT", "UPDATE"]


def test_a_target_made_before_the_default_one_is_another(db, receiver):
    """The default target is made by the first call that needs it, whoever came before."""
    db.run("INSERT INTO sync_outbox_target (name) VALUES ('second')")
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1)")

    assert db.value("SELECT target FROM sync_outbox_queue") == "default"
    assert db.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_a_renamed_table_and_schema_are_followed(sales):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.run("CREATE SCHEMA shop; ALTER TABLE sales SET SCHEMA shop; INSERT INTO shop.sales VALUES (2)")
    sales.run("ALTER TABLE shop.sales RENAME TO tickets; INSERT INTO shop.tickets VALUES (3)")
    sales.run("ALTER SCHEMA shop RENAME TO store; INSERT INTO store.tickets VALUES (4)")

    assert [(change.schema_name, change.table_name) for change in sales.outbox()] == [
        ("public", "sales"), ("shop", "sales"), ("shop", "tickets"), ("store", "tickets")]


def test_invariant_02_our_trigger_fires_before_the_users(sales):
    """A user's AFTER ROW trigger that writes to the row again comes after the row itself, and is told as the row's state."""
    sales.run("""CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE sales SET qty = qty + 1 WHERE id = NEW.id; RETURN NULL; END $$""")
    sales.run('CREATE TRIGGER "0_bump" AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION bump()')
    sales.run("INSERT INTO sales VALUES (1, 1)")

    assert [(op, data["qty"]) for op, _, data in sales.changes()] == [("INSERT", 1), ("INSERT", 2)]
