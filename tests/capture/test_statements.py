"""Capture under every kind of statement that can write a row."""

import pytest

from support.ledger import Ledger


@pytest.fixture
def db(db, append):
    return append(db)


def ops(database):
    return [(op, *pk.values()) for op, pk, _ in database.changes()]


def test_copy(sales):
    with sales.conn.cursor().copy("COPY sales (id, qty) FROM STDIN") as copy:
        for row in range(500):
            copy.write_row((row, row))

    assert [pk["id"] for _, pk, _ in sales.changes()] == list(range(500))


def test_insert_select(sales):
    sales.run("INSERT INTO sales SELECT n, n * 2 FROM generate_series(1, 100) n")

    assert [data for _, _, data in sales.changes()] == [{"id": n, "qty": n * 2, "note": None} for n in range(1, 101)]


def test_on_conflict(sales):
    upsert = "INSERT INTO sales VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET qty = excluded.qty"
    for qty in (5, 6, 6):
        sales.run(upsert, [qty])
    sales.run("INSERT INTO sales VALUES (1, 7) ON CONFLICT DO NOTHING")

    assert [(op, data.get("qty")) for op, _, data in sales.changes()] == [("INSERT", 5), ("UPDATE", 6)]


def test_merge(sales):
    sales.run("INSERT INTO sales VALUES (1, 1), (2, 2)")
    sales.run("""MERGE INTO sales USING (VALUES (1, 0), (2, 20), (3, 30)) AS news (id, qty) ON sales.id = news.id
        WHEN MATCHED AND news.qty = 0 THEN DELETE
        WHEN MATCHED THEN UPDATE SET qty = news.qty
        WHEN NOT MATCHED THEN INSERT VALUES (news.id, news.qty)""")

    assert sorted(ops(sales)[2:]) == [("DELETE", 1), ("INSERT", 3), ("UPDATE", 2)]


def test_writing_ctes(sales):
    sales.run("INSERT INTO sales VALUES (1, 1), (2, 2)")
    sales.run("""WITH gone AS (DELETE FROM sales WHERE id = 1 RETURNING *), more AS (INSERT INTO sales VALUES (3, 3))
        UPDATE sales SET qty = 9 WHERE id = 2""")

    assert sorted(ops(sales)[2:]) == [("DELETE", 1), ("INSERT", 3), ("UPDATE", 2)]


@pytest.fixture
def family(db):
    """A parent and a child with every referential action to choose from."""
    db.run("CREATE TABLE parent (id int PRIMARY KEY)")

    def make(action):
        db.run(f"CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent {action})")
        db.attach("parent")
        db.attach("child")
        db.run("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (10, 1), (11, 1); DELETE FROM sync_outbox")
        return db
    return make


def test_delete_cascade(family):
    db = family("ON DELETE CASCADE")
    db.run("DELETE FROM parent")

    assert sorted(ops(db)) == [("DELETE", 1), ("DELETE", 10), ("DELETE", 11)]


def test_update_cascade(family):
    db = family("ON UPDATE CASCADE")
    db.run("UPDATE parent SET id = 2")

    assert db.changes()[0] == ("UPDATE", {"id": 1}, {"id": 2})
    assert sorted(ops(db)[1:]) == [("UPDATE", 10), ("UPDATE", 11)]
    assert [data for _, _, data in db.changes()[1:]] == [{"parent": 2}] * 2


def test_set_null(family):
    db = family("ON DELETE SET NULL")
    db.run("DELETE FROM parent")

    assert [data for op, _, data in db.changes() if op == "UPDATE"] == [{"parent": None}] * 2


def test_deferred_constraints(family):
    db = family("DEFERRABLE INITIALLY DEFERRED")
    with db.conn.transaction():
        db.run("INSERT INTO child VALUES (12, 2)")
        db.run("INSERT INTO parent VALUES (2)")

    assert ops(db) == [("INSERT", 12), ("INSERT", 2)]


def test_a_deferred_constraint_that_fails_takes_the_changes(family):
    db = family("DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(Exception, match="violates foreign key"):
        with db.conn.transaction():
            db.run("INSERT INTO child VALUES (12, 99)")

    assert db.changes() == []


def test_prepared_transactions(sales, receiver):
    for name, end in (("kept", "COMMIT"), ("dropped", "ROLLBACK")):
        with sales.session(autocommit=False) as session:
            session.execute("INSERT INTO sales VALUES (%s)", [len(name)])
            session.execute(f"PREPARE TRANSACTION '{sales.name}_{name}'")
        assert sales.changes() == []
    sales.run(f"ROLLBACK PREPARED '{sales.name}_dropped'")
    sales.run("INSERT INTO sales VALUES (100)")
    sales.flush()
    sales.run(f"COMMIT PREPARED '{sales.name}_kept'")

    # Captured before what is gone already: a sender that only looks ahead never finds it.
    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'
    assert [change["pk"]["id"] for change in receiver.changes] == [100, 4]


def test_savepoints_of_many_subtransactions(sales):
    """More than a backend keeps in its own list of subtransactions (64)."""
    with sales.conn.transaction():
        for n in range(100):
            with sales.conn.transaction(force_rollback=n % 3 == 0):
                sales.run("INSERT INTO sales VALUES (%s)", [n])

    assert [pk["id"] for _, pk, _ in sales.changes()] == [n for n in range(100) if n % 3]


def test_invariant_02_a_trigger_that_changes_the_other_row_of_its_statement(sales, receiver):
    """The update of row 2 fires before row 2's own insert is captured: the receiver must end with the same rows."""
    sales.run("""CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE sales SET qty = qty + 100 WHERE id <> NEW.id; RETURN NULL; END $$""")
    sales.run("CREATE TRIGGER bump AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION bump()")
    sales.run("INSERT INTO sales VALUES (1, 1), (2, 2), (3, 3)")

    sales.flush()

    assert Ledger(receiver.requests).rows("sales") == sales.value(
        "SELECT json_agg(to_json(sales) ORDER BY id) FROM sales")


def test_capture_in_functions_and_prepared_statements(sales):
    sales.run("PREPARE put(int, int) AS INSERT INTO sales VALUES ($1, $2)")
    for n in range(10):
        sales.run(f"EXECUTE put({n}, {n})")
    sales.run("DO $$ BEGIN FOR n IN 0..9 LOOP UPDATE sales SET qty = qty + 1 WHERE id = n; END LOOP; END $$")

    assert len(sales.changes()) == 20


def test_serializable_writers(sales):
    sales.run("INSERT INTO sales VALUES (1, 1)")
    with sales.session(autocommit=False) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        session.execute("UPDATE sales SET qty = 2")

    assert [op for op, _, _ in sales.changes()] == ["INSERT", "UPDATE"]


def test_a_before_trigger_that_drops_the_row_captures_nothing(sales):
    sales.run("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    sales.run("CREATE TRIGGER no BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION no()")
    sales.run("INSERT INTO sales VALUES (1)")

    assert sales.changes() == []


def test_the_captured_row_is_what_before_triggers_made_of_it(sales):
    sales.run("""CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN NEW.note = 'stamped'; RETURN NEW; END $$""")
    sales.run("CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION stamp()")
    sales.run("INSERT INTO sales VALUES (1, 1, 'mine')")

    assert sales.changes() == [("INSERT", {"id": 1}, {"id": 1, "qty": 1, "note": "stamped"})]
