"""sync_outbox_backfill(): existing rows as INSERTs, exactly as capture would have written them."""

import threading

import pytest
from psycopg import errors

from support.behaviours import ack_all
from support.values import ODD_SETTINGS


@pytest.fixture
def stock(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int, store text, note text)")
    db.run("INSERT INTO stock SELECT n, n * 10, 'S' || n % 2, 'n' FROM generate_series(1, 5) n")
    db.attach("stock")
    return db


def backfill(db, relation, **options):
    named = "".join(f", {name} => %({name})s" for name in options)
    return db.value(f"SELECT sync_outbox_backfill(%(relation)s{named})", {"relation": relation, **options})


def test_existing_rows_become_inserts(stock):
    assert backfill(stock, "stock") == 5
    assert [(c.op, c.pk, c.data, c.priority, c.status) for c in stock.outbox()] == [
        ("INSERT", {"id": n}, {"id": n, "qty": n * 10, "store": f"S{n % 2}", "note": "n"}, "LOW", "PENDING")
        for n in range(1, 6)]


def test_a_condition(stock):
    assert backfill(stock, "stock", condition="stock.qty > 20 AND store = 'S0' -- only these", priority="high") == 1
    assert [(c.pk["id"], c.priority) for c in stock.outbox()] == [(4, "HIGH")]
    assert backfill(stock, "stock", condition="  ") == 5
    assert backfill(stock, "stock", condition="false") == 0


def test_the_options_of_attach_hold(stock):
    stock.attach("stock", exclude=["note"], branch_column="store", require_reason=True)
    stock.run("SET sync_outbox.reason = 'first load'")
    backfill(stock, "stock")
    first = stock.outbox()[0]
    assert (first.data, first.branch, first.reason) == ({"id": 1, "qty": 10, "store": "S1"}, "S1", "first load")


def test_delivery(stock, receiver):
    stock.aim(receiver)
    backfill(stock, "stock")
    assert stock.flush() == '{"ok": true, "pending": 5, "sent": 5, "acked": 5}'
    assert [c["pk"]["id"] for c in receiver.changes] == [1, 2, 3, 4, 5]


def test_it_looks_like_capture(db):
    """Dropped columns, generated ones, wide values, odd types, whatever the session's settings are."""
    db.run("""CREATE TYPE mood AS ENUM ('happy "x"'); CREATE TABLE t (
        a int, gone text, "t" text, at timestamptz, span interval, tags text[], doc jsonb, m mood, f float8, b bytea,
        twice int GENERATED ALWAYS AS (a * 2) STORED, wide text, PRIMARY KEY (a))""")
    db.run("ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD COLUMN late date DEFAULT '2024-02-29'")
    db.attach("t")
    for name, values in ODD_SETTINGS.items():
        if name != "search_path":
            db.run(f"SET {name} = '{values[0]}'")
    db.run("""INSERT INTO t VALUES (1, 'é', '2024-03-31 01:30:00+00', '1 mon 2 days', '{a,NULL}', '{"k": 1.0}', 'happy "x"',
        0.1, decode('00ff', 'hex'), DEFAULT, (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n))""")
    db.run("UPDATE t SET t = t")  # nothing captured
    backfill(db, "t")
    db.run("RESET ALL")
    captured, backfilled = db.outbox()
    assert (backfilled.pk, backfilled.data) == (captured.pk, captured.data)
    assert "late" in backfilled.data and "gone" not in backfilled.data


def test_many_rows(db):
    db.run("CREATE TABLE big (id int PRIMARY KEY, n numeric, x text)")
    db.run("INSERT INTO big SELECT n, n / 7.0, md5(n::text) FROM generate_series(1, 20000) n")
    db.attach("big")
    assert backfill(db, "big") == 20000
    assert db.value("SELECT count(DISTINCT dedup_key) FROM sync_outbox") == 20000


def test_partitions_through_their_root(db):
    db.run("""CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
              CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
              CREATE TABLE high (v text, junk int, id int NOT NULL); ALTER TABLE high DROP COLUMN junk;
              ALTER TABLE parts ATTACH PARTITION high FOR VALUES FROM (10) TO (20);
              INSERT INTO parts VALUES (1, 'a'), (11, 'b')""")
    db.attach("parts")
    assert backfill(db, "parts") == 2
    assert [(c.table_name, c.data) for c in db.outbox()] == [
        ("parts", {"id": 1, "v": "a"}), ("parts", {"id": 11, "v": "b"})]
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        backfill(db, "low")
    assert "sync_outbox_backfill('public.parts')" in caught.value.diag.message_hint


def test_inheritance_children_are_not_their_parent(db):
    db.run("""CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
              INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)""")
    db.attach("parent")
    assert backfill(db, "parent") == 1


def test_awkward_names(db):
    db.run('CREATE SCHEMA "S x"; CREATE TABLE "S x"."coalesce" ("Key" int PRIMARY KEY, "coalesce" text)')
    db.run("""INSERT INTO "S x"."coalesce" VALUES (2, 'b'), (1, 'a')""")
    db.attach('"S x"."coalesce"')
    assert backfill(db, '"S x"."coalesce"', condition='"coalesce" >= \'a\'') == 2
    assert [c.data for c in db.outbox()] == [{"Key": 1, "coalesce": "a"}, {"Key": 2, "coalesce": "b"}]


# Order

def test_later_changes_come_later(stock):
    """A writer that meets a row in the middle of a backfill waits, and gets the greater id."""
    session = stock.session(autocommit=False)
    session.execute("SELECT sync_outbox_backfill('stock')")
    writer = threading.Thread(target=lambda: stock.session().execute("UPDATE stock SET qty = 0 WHERE id = 1"))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    session.commit()
    writer.join()
    first, *_, last = stock.outbox()
    assert (first.pk, first.op, last.pk, last.op) == ({"id": 1}, "INSERT", {"id": 1}, "UPDATE")


def test_another_lane_is_noted(stock):
    """For the sender, which then looks across lanes."""
    backfill(stock, "stock")
    stock.run("UPDATE stock SET qty = 99 WHERE id = 2")
    lane = stock.row("SELECT * FROM sync_outbox_lane")
    ids = [c.id for c in stock.outbox("op = 'INSERT'")]
    assert (lane.relation_name, lane.priority, lane.first_id, lane.last_id) == ("stock", "LOW", ids[0], ids[-1])


def test_another_lane_keeps_the_order_of_a_row(stock, receiver):
    backfill(stock, "stock")
    stock.run("UPDATE stock SET qty = 99 WHERE id = 2; DELETE FROM stock WHERE id = 3")
    backfill(stock, "stock", condition="id = 2")
    stock.run("UPDATE stock SET qty = 100 WHERE id = 2; INSERT INTO stock VALUES (7)")
    stock.aim(receiver)
    assert stock.flushed()["ok"]
    assert [c["data"]["qty"] for c in receiver.changes if c["pk"]["id"] == 2] == [20, 99, 99, 100]
    assert [c["op"] for c in receiver.changes if c["pk"]["id"] == 3] == ["INSERT", "DELETE"]
    assert len(receiver.changes) == 10 and stock.outbox() == []


def test_a_backfill_in_the_middle_of_a_session(stock, receiver):
    """The rows come between two requests of one flush; what changes them afterwards is read before they are."""
    stock.aim(receiver)
    stock.server.set(sync_outbox__batch_rows="2")
    stock.run("INSERT INTO stock SELECT n FROM generate_series(100, 120) n")
    began = []

    def meanwhile(request, wire):
        if not began:
            began.append(True)
            other = stock.server.connect(stock.name)
            other.execute("SELECT sync_outbox_backfill('stock', 'id < 10')")
            other.execute("UPDATE stock SET qty = -1 WHERE id < 10")
            other.close()
        ack_all(request, wire)
    receiver.behaviour = meanwhile
    stock.session().execute("SELECT sync_outbox_flush()")
    stock.session().execute("SELECT sync_outbox_flush()")
    for id in range(1, 6):
        assert [c["op"] for c in receiver.changes if c["pk"]["id"] == id] == ["INSERT", "UPDATE"]
    assert stock.outbox() == []


def test_the_tables_own_lane_is_not_noted(stock):
    backfill(stock, "stock", priority="NORMAL")
    assert stock.rows("SELECT * FROM sync_outbox_lane") == []


def test_it_is_undone_with_its_transaction(stock):
    session = stock.session(autocommit=False)
    session.execute("SELECT sync_outbox_backfill('stock')")
    session.rollback()
    assert stock.outbox() == [] and stock.rows("SELECT * FROM sync_outbox_lane") == []


# Who and what

def test_the_owner_backfills_as_himself(stock):
    owner, other = stock.role("owner", "sync_outbox_admin"), stock.role("other", "sync_outbox_admin")
    stock.run(f"ALTER TABLE stock OWNER TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}; GRANT SELECT ON stock TO {other}")
    with pytest.raises(errors.InsufficientPrivilege):
        stock.session(other).execute("SELECT sync_outbox_backfill('stock')")

    session = stock.session(owner)
    session.execute("CREATE FUNCTION who() RETURNS text LANGUAGE sql AS 'SELECT current_user::text'")
    assert session.execute("SELECT sync_outbox_backfill('stock', format('who() = %L', current_user))").fetchone()[0] == 5
    session.execute("""ALTER TABLE stock ENABLE ROW LEVEL SECURITY; ALTER TABLE stock FORCE ROW LEVEL SECURITY;
                       CREATE POLICY s1 ON stock USING (store = 'S1')""")
    assert session.execute("SELECT sync_outbox_backfill('stock')").fetchone()[0] == 3
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_backfill('stock', '(SELECT count(*) FROM sync_outbox_applied) = 0')")


def test_bad_arguments(stock):
    stock.run("CREATE TABLE loose (id int PRIMARY KEY)")
    for error, call in [
            (errors.ObjectNotInPrerequisiteState, "sync_outbox_backfill('loose')"),
            (errors.InvalidParameterValue, "sync_outbox_backfill('stock', priority => 'NOW')"),
            (errors.NullValueNotAllowed, "sync_outbox_backfill(NULL)"),
            (errors.UndefinedTable, "sync_outbox_backfill(4000000000::oid)")]:
        with pytest.raises(error) as caught:
            stock.run(f"SELECT {call}")
        assert caught.value.diag.message_hint
    for condition in ["nope = 1", "qty >", "true) --", "true); DELETE FROM stock; SELECT (true"]:
        with pytest.raises(errors.DatabaseError):
            backfill(stock, "stock", condition=condition)
    assert stock.value("SELECT count(*) FROM stock") == 5
    assert stock.outbox() == []
