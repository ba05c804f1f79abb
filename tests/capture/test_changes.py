"""What a row operation becomes in the outbox."""

import uuid

import pytest
from psycopg import errors


@pytest.fixture
def db(db, append):
    return append(db)


def test_an_insert_carries_its_columns(sales):
    sales.run("INSERT INTO sales VALUES (7, 3, 'paid')")

    (change,) = sales.outbox()
    assert (change.schema_name, change.table_name, change.op) == ("public", "sales", "INSERT")
    assert (change.pk, change.data) == ({"id": 7}, {"id": 7, "qty": 3, "note": "paid"})
    assert (change.old, change.branch, change.reason) == (None, None, None)
    assert (change.status, change.attempt_count, change.refusals) == ("PENDING", 0, 0)
    assert (change.last_attempt_at, change.next_attempt_at, change.error_message) == (None, None, None)


def test_an_update_carries_only_what_changed(sales):
    sales.run("INSERT INTO sales VALUES (7, 3, 'paid'); UPDATE sales SET qty = 4, note = 'paid'")

    assert sales.changes()[1:] == [("UPDATE", {"id": 7}, {"qty": 4})]


def test_an_update_to_null_carries_the_null(sales):
    sales.run("INSERT INTO sales VALUES (7, 3, 'paid'); UPDATE sales SET note = NULL")

    assert sales.changes()[1:] == [("UPDATE", {"id": 7}, {"note": None})]


def test_a_delete_carries_the_key_alone(sales):
    sales.run("INSERT INTO sales VALUES (7, 3, 'paid'); DELETE FROM sales")

    assert sales.changes()[1:] == [("DELETE", {"id": 7}, None)]


def test_two_updates_of_one_row_in_one_transaction_are_two_changes(sales):
    sales.run("INSERT INTO sales VALUES (7, 3)")
    with sales.conn.transaction():
        sales.run("UPDATE sales SET qty = 4")
        sales.run("UPDATE sales SET qty = 5")

    _, first, second = sales.outbox()
    assert (first.data, second.data) == ({"qty": 4}, {"qty": 5})
    assert first.dedup_key != second.dedup_key
    assert first.txid == second.txid


def test_an_update_that_changes_nothing_is_no_change(sales):
    sales.run("INSERT INTO sales VALUES (7, 3, 'paid'); UPDATE sales SET qty = qty, note = note || ''")

    assert len(sales.outbox()) == 1


def test_an_update_of_columns_not_captured_is_no_change(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, secret text)")
    db.attach("stock", exclude=["secret"])
    db.run("INSERT INTO stock VALUES (1, 5, 'x'); UPDATE stock SET secret = 'y'")

    assert db.changes() == [("INSERT", {"id": 1}, {"id": 1, "qty": 5})]


def test_only_the_named_columns_are_captured(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, secret text)")
    db.attach("stock", columns=["id", "qty"])
    db.run("INSERT INTO stock VALUES (1, 5, 'x')")

    assert db.changes() == [("INSERT", {"id": 1}, {"id": 1, "qty": 5})]


def test_a_key_change_carries_the_old_key_and_the_new_one(sales):
    sales.run("INSERT INTO sales VALUES (7, 3); UPDATE sales SET id = 8, qty = 4")

    assert sales.changes()[1:] == [("UPDATE", {"id": 7}, {"id": 8, "qty": 4})]


def test_a_key_of_several_columns(db):
    db.run("CREATE TABLE line (sale int, no int, item text, PRIMARY KEY (sale, no))")
    db.attach("line")
    db.run("INSERT INTO line VALUES (1, 2, 'tea'); UPDATE line SET no = 3; DELETE FROM line")

    assert db.changes() == [
        ("INSERT", {"sale": 1, "no": 2}, {"sale": 1, "no": 2, "item": "tea"}),
        ("UPDATE", {"sale": 1, "no": 2}, {"no": 3}),
        ("DELETE", {"sale": 1, "no": 3}, None)]


def test_key_columns_name_another_unique_index(db):
    db.run("CREATE TABLE item (id int PRIMARY KEY, sku text NOT NULL UNIQUE, price int)")
    db.attach("item", key_columns=["sku"])
    db.run("INSERT INTO item VALUES (1, 'A', 5); UPDATE item SET price = 6")

    assert [pk for _, pk, _ in db.changes()] == [{"sku": "A"}, {"sku": "A"}]


def test_only_the_named_operations_are_captured(db):
    db.run("CREATE TABLE log (id int PRIMARY KEY, v int)")
    db.attach("log", operations=["INSERT", "DELETE"])
    db.run("INSERT INTO log VALUES (1, 1); UPDATE log SET v = 2; DELETE FROM log")

    assert [op for op, _, _ in db.changes()] == ["INSERT", "DELETE"]


def test_truncate_is_captured_where_asked_for(db):
    db.run("CREATE TABLE log (id int PRIMARY KEY)")
    db.attach("log", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    db.run("TRUNCATE log")

    (change,) = db.outbox()
    assert (change.table_name, change.op, change.pk, change.data) == ("log", "TRUNCATE", None, None)


def test_branch_and_priority_come_from_attach(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text)")
    db.attach("stock", branch_column="store", priority="HIGH")
    db.run("INSERT INTO stock VALUES (1, 'S1'), (2, NULL)")

    assert [(change.branch, change.priority) for change in db.outbox()] == [("S1", "HIGH"), (None, "HIGH")]


def test_a_branch_that_is_no_text_is_its_text(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store int)")
    db.attach("stock", branch_column="store")
    db.run("INSERT INTO stock VALUES (1, 42)")

    assert db.outbox()[0].branch == "42"


def test_a_deleted_row_belongs_to_its_branch(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text)")
    db.attach("stock", branch_column="store")
    db.run("INSERT INTO stock VALUES (1, 'S1'); DELETE FROM stock")

    assert [change.branch for change in db.outbox()] == ["S1", "S1"]


def test_every_change_has_its_own_uuid_of_version_7(sales):
    sales.run("INSERT INTO sales SELECT n FROM generate_series(1, 2000) n")

    keys = [change.dedup_key for change in sales.outbox()]
    assert len(set(keys)) == 2000
    assert {(key.version, key.variant) for key in keys} == {(7, uuid.RFC_4122)}


def test_the_txid_is_that_of_the_top_level_transaction(sales):
    with sales.conn.transaction():
        with sales.conn.transaction():
            sales.run("INSERT INTO sales VALUES (1)")
        current = sales.value("SELECT pg_current_xact_id()::text")

    assert sales.value("SELECT txid::text FROM sync_outbox") == current


def test_a_transaction_sees_its_own_changes_and_a_rollback_takes_them(sales):
    with sales.conn.transaction(force_rollback=True):
        sales.run("INSERT INTO sales VALUES (1)")
        assert len(sales.outbox()) == 1

    assert sales.outbox() == []


def test_a_rolled_back_savepoint_takes_only_its_own_changes(sales):
    with sales.conn.transaction():
        sales.run("INSERT INTO sales VALUES (1)")
        with sales.conn.transaction(force_rollback=True):
            sales.run("INSERT INTO sales VALUES (2)")
        sales.run("INSERT INTO sales VALUES (3)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 1}, {"id": 3}]


def test_a_failed_statement_leaves_no_change(sales):
    sales.run("INSERT INTO sales VALUES (1)")
    with pytest.raises(errors.UniqueViolation):
        sales.run("INSERT INTO sales VALUES (2), (3), (1)")

    assert len(sales.outbox()) == 1


def test_an_exception_block_takes_its_changes(sales):
    sales.run("""DO $$ BEGIN
        FOR n IN 1..50 LOOP
            BEGIN
                INSERT INTO sales VALUES (n);
                IF n % 2 = 0 THEN RAISE 'no'; END IF;
            EXCEPTION WHEN raise_exception THEN NULL;
            END;
        END LOOP;
    END $$""")

    assert [pk["id"] for _, pk, _ in sales.changes()] == list(range(1, 51, 2))


def test_the_id_gives_the_order_of_two_sessions_writing_one_row(sales):
    other = sales.session()
    sales.run("INSERT INTO sales VALUES (1, 0)")
    for turn in range(20):
        (sales.conn if turn % 2 else other).execute("UPDATE sales SET qty = %s", [turn + 1])

    assert [data["qty"] for _, _, data in sales.changes()] == list(range(21))


def test_include_old_keeps_the_previous_values(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, note text)")
    db.attach("stock", include_old=True)
    db.run("INSERT INTO stock VALUES (1, 5, 'x'); UPDATE stock SET qty = 6; DELETE FROM stock")

    insert, update, delete = db.outbox()
    assert insert.old is None
    assert update.old["qty"] == 5
    assert delete.old["qty"] == 6
