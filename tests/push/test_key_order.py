"""A key whose columns are called otherwise, or whose equal values look otherwise, stays one key to the sender."""

import pytest


def refusing(*ids):
    def behaviour(request, wire):
        refused = [c["dedup_key"] for c in request.changes if c["pk"] and c["op"] == "INSERT"]
        wire.answer(200, {"acked": [k for k in request.keys if k not in refused],
                          "errors": [{"dedup_key": k, "error": "no"} for k in refused]})
    return behaviour


@pytest.mark.parametrize("how", ["rename", "another key"])
def test_the_order_of_a_row_whose_key_is_called_otherwise(sales, receiver, how):
    receiver.behaviour = refusing()
    sales.run("ALTER TABLE sales ADD code int UNIQUE; UPDATE sales SET code = id;"
              " ALTER TABLE sales ALTER code SET NOT NULL")
    sales.run("INSERT INTO sales (id, qty, code) VALUES (1, 0, 1)")
    print(sales.flush())
    if how == "rename":
        sales.run("ALTER TABLE sales RENAME id TO number")
        sales.run("UPDATE sales SET qty = 1")
    else:
        sales.attach("sales", key_columns=["code"])
        sales.run("UPDATE sales SET qty = 1")
    print(sales.flush())
    print([(c["op"], c["pk"]) for c in receiver.changes])
    assert "UPDATE" not in [c["op"] for c in receiver.changes]


@pytest.mark.parametrize("kind, one, same", [("float8", "0", "-0"), ("numeric", "1", "1.0")])
def test_the_order_of_equal_keys_that_look_otherwise(sales, receiver, kind, one, same):
    receiver.behaviour = refusing()
    sales.run(f"CREATE TABLE k (id {kind} PRIMARY KEY, v int)")
    sales.attach("k")
    sales.run(f"INSERT INTO k VALUES ('{one}', 0)")
    print(sales.flush())
    sales.run(f"UPDATE k SET id = '{same}'")
    sales.run("DELETE FROM k")
    print(sales.flush())
    print([(c["op"], c["pk"]) for c in receiver.changes])
    assert [c["op"] for c in receiver.changes] == ["INSERT"]


def test_the_order_of_a_row_in_two_priorities_whose_key_is_called_otherwise(sales, receiver):
    """What a backfill puts into LOW is older than the change in NORMAL, whose key has another name by then."""
    sales.run("INSERT INTO sales VALUES (1, 0)")
    sales.flush()
    sales.run("SELECT sync_outbox_backfill('sales', priority => 'LOW')")
    sales.run("ALTER TABLE sales RENAME COLUMN id TO number; UPDATE sales SET qty = 1")
    before = len(receiver.changes)

    sales.flush()
    sales.flush()

    assert [(change["op"], change["pk"]) for change in receiver.changes[before:]] == [
        ("INSERT", {"id": 1}), ("UPDATE", {"number": 1})]
