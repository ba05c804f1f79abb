"""What PostgreSQL 17 and later can do to a table that 15 cannot."""

import pytest
from psycopg import errors

from support.hub_database import Hub, delete, insert, update


@pytest.fixture
def since(db):
    """Skips the test on a server before that major, by name."""
    def since(major, what):
        if db.conn.info.server_version < major * 10000:
            pytest.skip(f"{what} is new in PostgreSQL {major}")
    return since


@pytest.fixture
def hub(db):
    return Hub(db)


# MERGE

def test_merge_by_source_and_returning(db, since):
    since(17, "MERGE .. RETURNING")
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int)")
    db.run("INSERT INTO stock VALUES (1, 1), (2, 2), (3, 3)")
    db.attach("stock")
    actions = db.rows("""
        MERGE INTO stock s USING (VALUES (1, 10), (4, 40)) n (id, qty) ON s.id = n.id
         WHEN MATCHED THEN UPDATE SET qty = n.qty
         WHEN NOT MATCHED THEN INSERT VALUES (n.id, n.qty)
         WHEN NOT MATCHED BY SOURCE AND s.id = 3 THEN DELETE
        RETURNING merge_action(), s.id""")
    assert sorted(map(tuple, actions)) == [("DELETE", 3), ("INSERT", 4), ("UPDATE", 1)]
    assert sorted(db.changes(), key=lambda change: change[0]) == [
        ("DELETE", {"id": 3}, None), ("INSERT", {"id": 4}, {"id": 4, "qty": 40}), ("UPDATE", {"id": 1}, {"qty": 10})]


def test_a_row_that_merge_moves_to_another_partition(db, since):
    since(17, "MERGE .. RETURNING")
    db.run("""CREATE TABLE stock (id int, shop int, qty int, PRIMARY KEY (id, shop)) PARTITION BY LIST (shop);
        CREATE TABLE stock_1 PARTITION OF stock FOR VALUES IN (1); CREATE TABLE stock_2 PARTITION OF stock FOR VALUES IN (2)""")
    db.run("INSERT INTO stock VALUES (1, 1, 5)")
    db.attach("stock")
    db.rows("MERGE INTO stock s USING (VALUES (1, 2)) n (id, shop) ON s.id = n.id WHEN MATCHED THEN UPDATE SET shop = n.shop RETURNING 1")
    assert db.changes() == [
        ("DELETE", {"id": 1, "shop": 1}, None), ("INSERT", {"id": 1, "shop": 2}, {"id": 1, "shop": 2, "qty": 5})]


def test_returning_old_and_new(db, since):
    since(18, "RETURNING old and new")
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int); INSERT INTO stock VALUES (1, 1)")
    db.attach("stock")
    assert tuple(db.row("UPDATE stock SET qty = 2 RETURNING old.qty, new.qty")) == (1, 2)
    assert db.changes() == [("UPDATE", {"id": 1}, {"qty": 2})]


# Virtual generated columns: computed when they are read, so no row has them.

PRICES = "id int PRIMARY KEY, net numeric, gross numeric GENERATED ALWAYS AS (net * 2) VIRTUAL"


@pytest.fixture
def prices(db, since):
    since(18, "a virtual generated column")
    db.run(f"CREATE TABLE prices ({PRICES}, note text)")
    return db


def test_virtual_columns_are_left_out(prices):
    prices.run("INSERT INTO prices VALUES (7, 7)")
    prices.attach("prices", include_old=True)
    prices.run("INSERT INTO prices VALUES (1, 1.5); UPDATE prices SET net = 2, note = 'x' WHERE id = 1; DELETE FROM prices WHERE id = 1")
    prices.run("SELECT sync_outbox_backfill('prices')")
    rows = [(row.op, row.data, row.old) for row in prices.rows("SELECT op, data, old FROM sync_outbox ORDER BY id")]
    assert rows == [
        ("INSERT", {"id": 1, "net": 1.5, "note": None}, None),
        ("UPDATE", {"net": 2, "note": "x"}, {"net": 1.5, "note": None}),
        ("DELETE", None, {"id": 1, "net": 2, "note": "x"}),
        ("INSERT", {"id": 7, "net": 7, "note": None}, None)]


@pytest.mark.parametrize("options", [{"columns": ["id", "gross"]}, {"branch_column": "gross"}, {"exclude": ["gross"]}])
def test_a_virtual_column_cannot_be_named(prices, options):
    with pytest.raises(errors.UndefinedColumn) as caught:
        prices.attach("prices", **options)
    assert "gross" in str(caught.value)


def test_a_table_that_gets_a_virtual_column(prices):
    prices.run("CREATE TABLE plain (id int PRIMARY KEY, net int)")
    prices.attach("plain")
    prices.run("ALTER TABLE plain ADD twice int GENERATED ALWAYS AS (net * 2) VIRTUAL; INSERT INTO plain (id, net) VALUES (1, 2)")
    prices.run("ALTER TABLE plain ADD kept int GENERATED ALWAYS AS (net * 3) STORED; UPDATE plain SET net = 3")
    assert prices.changes() == [
        ("INSERT", {"id": 1}, {"id": 1, "net": 2}), ("UPDATE", {"id": 1}, {"net": 3, "kept": 9})]


def test_an_outbox_with_a_virtual_column(prices):
    prices.attach("prices")
    prices.run("ALTER TABLE sync_outbox ADD twice bigint GENERATED ALWAYS AS (id * 2) VIRTUAL")
    prices.run("INSERT INTO prices VALUES (1, 1), (2, 2)")
    assert prices.value("SELECT bool_and(twice = id * 2) AND count(*) = 2 FROM sync_outbox")


def test_a_hub_with_a_virtual_column(hub, since):
    since(18, "a virtual generated column")
    hub.table(PRICES)
    hub.acks(insert("t", id=1, net=1, gross=9), update(1, "t", net=3, gross=9), insert("t", id=2, net=5), delete(2, "t"))
    assert hub.content("t") == [(1, 3, 6)]


# Keys

def test_a_key_without_overlaps_is_no_key(db, since):
    """It is searched by overlap, not by equality; a unique index beside it is a key."""
    since(18, "WITHOUT OVERLAPS")
    db.create_extension("btree_gist")
    db.run("CREATE TABLE rates (n bigint NOT NULL UNIQUE, id int, valid daterange, rate numeric, PRIMARY KEY (id, valid WITHOUT OVERLAPS))")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        db.attach("rates")
    assert "keeps ranges from overlapping" in caught.value.diag.message_detail
    assert "key_columns" in caught.value.diag.message_hint
    db.attach("rates", key_columns=["n"])
    db.run("INSERT INTO rates VALUES (1, 1, '[2026-01-01,2026-02-01)', 1.5); UPDATE rates SET rate = 2")
    assert db.changes() == [
        ("INSERT", {"n": 1}, {"n": 1, "id": 1, "valid": "[2026-01-01,2026-02-01)", "rate": 1.5}), ("UPDATE", {"n": 1}, {"rate": 2})]


def test_a_hub_whose_key_is_without_overlaps(hub, since):
    since(18, "WITHOUT OVERLAPS")
    hub.create_extension("btree_gist")
    hub.run("CREATE TABLE t (id int, valid daterange, rate int, PRIMARY KEY (id, valid WITHOUT OVERLAPS))")
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        hub.accept("t")


def test_unique_nulls_not_distinct_is_no_key_while_it_allows_null(db):
    db.run("CREATE TABLE t (id int, note text, UNIQUE NULLS NOT DISTINCT (id))")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        db.attach("t", key_columns=["id"])
    assert "allows NULL" in caught.value.diag.message_detail
    db.run("ALTER TABLE t ALTER id SET NOT NULL")
    db.attach("t", key_columns=["id"])
    db.run("INSERT INTO t VALUES (1)")
    assert db.changes() == [("INSERT", {"id": 1}, {"id": 1, "note": None})]


def test_not_null_that_is_not_valid_is_no_key(db, since):
    """A NOT VALID constraint marks the column although rows may hold NULL."""
    since(18, "NOT NULL .. NOT VALID")
    db.run("CREATE TABLE t (id int UNIQUE, note text); INSERT INTO t VALUES (NULL); ALTER TABLE t ADD CONSTRAINT n NOT NULL id NOT VALID")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        db.attach("t", key_columns=["id"])
    assert "allows NULL" in caught.value.diag.message_detail
    db.run("DELETE FROM t; ALTER TABLE t VALIDATE CONSTRAINT n")
    db.attach("t", key_columns=["id"])
