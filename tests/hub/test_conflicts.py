"""Conflicts: rows that are not as the sender saw them."""

import threading

from support.hub_database import change, keys


def old_update(pk, old, **data):
    return change("UPDATE", {"id": pk}, data, old=old)


def old_delete(pk, **old):
    return change("DELETE", {"id": pk}, old=old)


def test_a_row_that_is_as_the_sender_saw_it_is_changed(hub):
    hub.run("INSERT INTO sales VALUES (1, 1, 'a'), (2, 2, NULL)")
    hub.acks(old_update(1, {"qty": 1}, qty=5), old_update(2, {"note": None}, note="b"),
             old_delete(1, id=1, qty=5, note="a"))
    assert hub.content() == [(2, 2, "b")]


def conflict(hub, change):
    """Applies one change that is in conflict; returns why."""
    answer = hub.apply(change)
    assert answer["acked"] == [] and answer["errors"] == []
    assert [entry["dedup_key"] for entry in answer["conflicts"]] == keys(change)
    return answer["conflicts"][0]["error"]


def test_a_row_that_differs_is_a_conflict_and_is_not_touched(hub):
    hub.run("INSERT INTO sales VALUES (1, 1, 'a'), (2, NULL, 'b')")

    both = old_update(1, {"qty": 7, "note": "x"}, qty=5, note="c")
    assert conflict(hub, both) == "the row has other values in note, qty"
    assert conflict(hub, old_update(2, {"qty": 1}, qty=5)) == "the row has other values in qty"
    assert conflict(hub, old_delete(1, id=1, qty=1, note=None)) == "the row has other values in note"
    assert hub.content() == [(1, 1, "a"), (2, None, "b")]


def test_a_conflict_is_not_remembered_as_applied(hub):
    hub.run("INSERT INTO sales VALUES (1, 1)")
    change = old_update(1, {"qty": 7}, qty=5)
    conflict(hub, change)
    assert hub.applied() == set()

    hub.run("UPDATE sales SET qty = 7")
    hub.acks(change)
    assert hub.content() == [(1, 5, None)]


def test_a_conflict_ends_its_key_and_nothing_else(hub):
    hub.run("INSERT INTO sales VALUES (1, 1), (2, 1)")
    first, later = old_update(1, {"qty": 9}, qty=2), old_update(1, {"qty": 2}, qty=3)
    other = old_update(2, {"qty": 1}, qty=3)
    answer = hub.apply(first, later, other)

    assert [entry["dedup_key"] for entry in answer["conflicts"]] == keys(first)
    assert answer["acked"] == keys(other) and answer["errors"] == []
    assert hub.content() == [(1, 1, None), (2, 3, None)]


def test_a_retry_of_what_was_applied_is_no_conflict(hub):
    hub.run("INSERT INTO sales VALUES (1, 1)")
    change = old_update(1, {"qty": 1}, qty=5)
    hub.acks(change)
    hub.acks(change)


def test_a_row_that_is_gone_is_no_conflict(hub):
    assert hub.error(old_update(1, {"qty": 1}, qty=5)) == "row not found"
    hub.acks(old_delete(1, id=1, qty=1, note="a"))


def test_columns_that_the_hub_lacks_or_computes_are_not_compared(hub):
    hub.table("id int PRIMARY KEY, a int, double int GENERATED ALWAYS AS (a * 2) STORED")
    hub.run("INSERT INTO t VALUES (1, 1)")
    hub.acks(change("UPDATE", {"id": 1}, {"a": 2, "double": 9}, "t", old={"a": 1, "double": 7, "alien": 5}))
    assert hub.content("t") == [(1, 2, 4)]
    hub.acks(change("DELETE", {"id": 1}, None, "t", old={"alien": 5}))


def test_values_are_compared_in_every_type(hub):
    """Also in types without an equality, and those whose equality says yes to different values."""
    hub.create_extension("citext")
    hub.run("CREATE TYPE pair AS (a int, b text)")
    hub.table("id int PRIMARY KEY, j json, x xml, p point, c citext, n numeric, pair pair, arr int[], b bytea,"
              " ts timestamptz, f float8")
    hub.run("""INSERT INTO t VALUES (1, '{"a": [1]}', '<a/>', '(1,2)', 'Case', 1.50, '(1,x)', '{1,NULL}', '\\x00ff',
        '2026-01-01 00:00+01', 'NaN')""")
    seen = {"j": {"a": [1]}, "x": "<a/>", "p": "(1,2)", "c": "Case", "n": 1.5, "pair": {"a": 1, "b": "x"},
            "arr": [1, None],
            "b": "\\x00ff", "ts": "2025-12-31T23:00:00+00:00", "f": "NaN"}
    other = {"j": {"a": [2]}, "x": "<b/>", "p": "(1,3)", "c": "case", "n": 1.51, "pair": {"a": 1, "b": "y"}, "arr": [1],
             "b": "\\x00", "ts": "2026-01-01T00:00:00+00:00", "f": 1}
    for column, value in other.items():
        said = conflict(hub, change("UPDATE", {"id": 1}, {column: None}, "t", old={**seen, column: value}))
        assert said == f"the row has other values in {column}"
    hub.acks(change("UPDATE", {"id": 1}, {"n": 2}, "t", old=seen))


def test_a_row_changed_while_it_was_waited_for_is_a_conflict(hub):
    hub.run("INSERT INTO sales VALUES (1, 1)")
    other = hub.session(autocommit=False)
    other.execute("UPDATE sales SET qty = 2")
    said = []
    applying = threading.Thread(target=lambda: said.append(hub.apply(old_update(1, {"qty": 1}, qty=5))))
    applying.start()
    hub.db.wait_until_blocked(hub.db.conn)
    other.commit()
    applying.join()

    assert [entry["error"] for entry in said[0]["conflicts"]] == ["the row has other values in qty"]
    assert hub.content() == [(1, 2, None)]


def test_what_include_old_captures_is_compared(hub, new_server):
    """From a store's capture to the hub's word, without the wire in between."""
    hub.run("CREATE SCHEMA store;"
            " CREATE TABLE store.sales (id int PRIMARY KEY, qty int, price numeric, at timestamptz, doc jsonb)")
    hub.accept("store.sales")
    hub.attach("store.sales", include_old=True)
    hub.run("INSERT INTO store.sales VALUES (1, 1, 2.50, now(), '{\"a\": 1.0}')")
    hub.run("UPDATE store.sales SET qty = 2, price = 3, at = NULL, doc = NULL; DELETE FROM store.sales")
    captured = [change(row.op, row.pk, row.data, "sales", "store",
                       **({"old": row.old} if row.old else {})) for row in hub.outbox()]
    hub.acks(*captured)
    assert hub.content("store.sales") == []
