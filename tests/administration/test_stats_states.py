"""sync_outbox_stats() in states that a push would take long to bring about: what is blocked, and large queues."""

import pytest

from support.queued import not_due, put, put_many


def lanes(db, branch=None):
    return {(row.schema_name, row.table_name, row.priority): row
            for row in db.rows("SELECT * FROM sync_outbox_stats(%s)", [branch])}


def blocked(db, branch=None):
    """By table and priority, zeros left out."""
    return {f"{table} {priority}": row.blocked for (_, table, priority), row in lanes(db, branch).items() if row.blocked}


def parked(db, status="DEAD", **columns):
    return put(db, status=status, next_attempt_at=not_due(db) if status == "FAILED" else None, **columns)


# Rows

def test_a_row_for_every_lane_that_has_changes(db):
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    put(db, priority="LOW")
    put(db, schema_name="gone", table_name="receipts", priority="HIGH", target_id=3)

    assert {lane: row.total for lane, row in lanes(db).items()} == {
        ("public", "sales", "NORMAL"): 0, ("public", "sales", "LOW"): 1, ("gone", "receipts", "HIGH"): 1}


def test_rows_stand_in_order_of_table_and_priority(db):
    for table, priority in [("b", "LOW"), ("b", "HIGH"), ("a", "NORMAL"), ("b", "NORMAL")]:
        put(db, table_name=table, priority=priority)

    assert [(row.table_name, row.priority) for row in db.rows("SELECT * FROM sync_outbox_stats()")] == [
        ("a", "NORMAL"), ("b", "HIGH"), ("b", "NORMAL"), ("b", "LOW")]


def test_one_lane_over_all_targets(db):
    put(db, created_at="2024-01-02 UTC")
    put(db, target_id=2, created_at="2024-01-01 UTC")

    (row,) = lanes(db).values()
    assert (row.total, row.pending, row.oldest_pending.day, row.last_update.day) == (2, 2, 1, 2)


def test_times(db):
    put(db, status="FAILED", created_at="2024-01-01 UTC", last_attempt_at="2024-03-03 UTC")
    put(db, key=2, status="CONFLICT", created_at="2024-01-02 UTC", last_attempt_at="2024-02-02 UTC")
    put(db, key=3, created_at="2024-01-05 UTC")

    (row,) = lanes(db).values()
    assert (row.oldest_pending.day, row.last_update.month, row.last_conflict_at.month) == (5, 3, 2)


# What is blocked

@pytest.mark.parametrize("status", ["CONFLICT", "DEAD", "FAILED"])
def test_later_changes_of_a_parked_key(db, status):
    put(db)
    parked(db, status)
    put(db), put(db), put(db, key=2), put(db, table_name="stock")

    assert blocked(db) == {"sales NORMAL": 2}


def test_a_request_that_did_not_get_through_parks_nothing(db):
    put(db, status="FAILED", error_message="offline: refused")
    put(db)

    assert blocked(db) == {}


def test_a_refused_change_that_is_due_parks_nothing(db):
    put(db, status="FAILED", refusals=1, next_attempt_at="2024-01-01 UTC")
    put(db)

    assert blocked(db) == {}


def test_a_failed_change_can_be_blocked_a_parked_one_is_not(db):
    parked(db)
    put(db, status="FAILED", error_message="offline: refused")
    parked(db, "CONFLICT")

    assert blocked(db) == {"sales NORMAL": 1}
    (row,) = lanes(db).values()
    assert (row.total, row.pending, row.failed, row.conflicts, row.dead) == (3, 0, 1, 1, 1)


def test_it_ends_with_requeue_and_discard(db):
    first, second = parked(db), parked(db, key=2)
    put(db), put(db, key=2)
    assert blocked(db) == {"sales NORMAL": 2}

    db.run("SELECT sync_outbox_requeue(ids => %s)", [[first]])
    assert blocked(db) == {"sales NORMAL": 1}
    db.run("SELECT sync_outbox_discard(%s, 'no longer wanted')", [[second]])
    assert blocked(db) == {}


@pytest.mark.parametrize("one, same", [
    ({"id": 1}, '{"id":1.00}'), ({"a": 1, "b": 2}, '{"b": 2, "a": 1}'), ({"a": "é"}, '{"a": "\\u00e9"}')])
def test_keys_are_equal_as_jsonb_is(db, one, same):
    parked(db, key=one)
    put(db, key=None, pk=same)

    assert blocked(db) == {"sales NORMAL": 1}


def test_tables_of_one_name_in_two_schemas_are_two(db):
    parked(db)
    put(db, schema_name="other")

    assert blocked(db) == {}


def test_a_key_change_waits_for_its_old_and_for_its_new_key(db):
    parked(db, key=1)
    put(db, key=1, data={"id": 2})
    parked(db, key=4)
    put(db, key=3, data={"id": 4, "qty": 1})

    assert blocked(db) == {"sales NORMAL": 2}


def test_what_is_blocked_parks_its_other_key_in_turn(db):
    put(db, key=2)
    parked(db, key=1)
    put(db, key=1, data={"id": 2})
    put(db, key=2, data={"id": 3})
    put(db, key=3)
    put(db, key=4)

    assert blocked(db) == {"sales NORMAL": 3}


def test_a_parked_key_change_parks_both_keys(db):
    parked(db, key=1, data={"id": 2})
    put(db, key=1), put(db, key=2), put(db, key=3)

    assert blocked(db) == {"sales NORMAL": 2}


def test_truncate_waits_for_every_key_and_every_key_for_truncate(db):
    parked(db, key=1)
    put(db, key=2)
    put(db, key=None, op="TRUNCATE")
    put(db, key=2)
    put(db, table_name="stock")

    assert blocked(db) == {"sales NORMAL": 2}


def test_a_parked_truncate_parks_its_table(db):
    parked(db, key=None, op="TRUNCATE")
    put(db), put(db, key=2), put(db, table_name="stock")

    assert blocked(db) == {"sales NORMAL": 2}


def test_in_the_order_of_ids_whatever_the_priority(db):
    put(db, priority="LOW")
    parked(db, priority="NORMAL")
    put(db, priority="HIGH")
    put(db, priority="LOW")

    assert blocked(db) == {"sales HIGH": 1, "sales LOW": 1}


def test_targets_do_not_wait_for_each_other(db):
    parked(db, target_id=1)
    put(db, target_id=2)
    parked(db, target_id=2, key=2)
    put(db, target_id=2, key=2)

    assert blocked(db) == {"sales NORMAL": 1}


def test_of_a_branch_also_behind_another_branch(db):
    parked(db, branch="S1")
    put(db, branch="S2")
    put(db, branch="S1")

    assert blocked(db, "S2") == {"sales NORMAL": 1}
    assert blocked(db, "S3") == {}
    assert blocked(db) == {"sales NORMAL": 2}


# Large queues

def test_exact_up_to_a_million(db):
    put_many(db, 300_000)
    put_many(db, 100, table="stock")
    parked(db)
    put(db)

    rows = lanes(db)
    assert not any(row.estimated for row in rows.values())
    assert {lane[1]: row.total for lane, row in rows.items()} == {"sales": 300_002, "stock": 100}
    assert blocked(db) == {"sales NORMAL": 1}


@pytest.mark.timeout(300)
def test_above_a_million_counts_are_estimated_and_say_so(db):
    put_many(db, 1_000_000)
    put_many(db, 500_000, table="stock", priority="HIGH")
    parked(db, table_name="stock")
    parked(db, "CONFLICT")
    put(db)

    rows = lanes(db)
    assert all(row.estimated for row in rows.values())
    sales, stock = rows["public", "sales", "NORMAL"], rows["public", "stock", "HIGH"]
    assert 900_000 < sales.pending < 1_100_000
    assert 450_000 < stock.pending < 550_000
    # What a person must look at is never estimated.
    assert (sales.conflicts, sales.dead, sales.total - sales.pending) == (1, 0, 1)
    assert rows["public", "stock", "NORMAL"].dead == 1
    assert blocked(db) == {"sales NORMAL": 1}


# Who looks, and where

def test_in_a_read_only_transaction_without_a_transaction_id(db):
    parked(db)
    put(db)
    with db.conn.transaction():
        db.run("SET TRANSACTION READ ONLY")
        assert blocked(db) == {"sales NORMAL": 1}
        assert db.value("SELECT pg_current_xact_id_if_assigned()") is None


def test_monitoring_may_look(db):
    put(db)
    session = db.session(db.role("monitor", "pg_monitor"))

    assert session.execute("SELECT total FROM sync_outbox_stats()").fetchone() == (1,)
