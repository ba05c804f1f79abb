"""sync_outbox_requeue(): what was refused, in conflict or dead is tried again."""

import pytest
from psycopg import errors

from support.queued import not_due, put


def requeue(db, **arguments):
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    return db.value(f"SELECT sync_outbox_requeue({named})", arguments)


def history(db):
    return db.rows("SELECT * FROM sync_outbox_history ORDER BY id")


@pytest.mark.parametrize("status", ["FAILED", "CONFLICT", "DEAD"])
def test_what_was_left_behind_becomes_pending(db, status):
    put(db, status=status, attempt_count=7, refusals=3, next_attempt_at=not_due(db), last_attempt_at="2024-01-01 UTC",
        error_message="no such product")

    assert requeue(db) == 1
    (change,) = db.outbox()
    assert (change.status, change.attempt_count, change.refusals, change.next_attempt_at) == ("PENDING", 0, 0, None)
    assert (change.error_message, change.last_attempt_at.year) == ("no such product", 2024)


def test_pending_changes_are_left_alone(db):
    put(db, attempt_count=2)
    before = db.value("SELECT ctid FROM sync_outbox")

    assert requeue(db) == 0
    assert db.value("SELECT ctid FROM sync_outbox") == before


def test_only_the_ids_that_are_named(db):
    first, second, pending = put(db, status="DEAD"), put(db, key=2, status="DEAD"), put(db, key=3)

    assert requeue(db, ids=[second, pending, 4711, None]) == 1
    assert [change.id for change in db.outbox("status = 'DEAD'")] == [first]
    assert requeue(db, ids=[]) == 0


def test_only_the_table_that_is_named(db):
    db.run("CREATE TABLE sales (id int); CREATE SCHEMA other; CREATE TABLE other.sales (id int)")
    put(db, status="DEAD")
    put(db, status="DEAD", schema_name="other")

    assert requeue(db, relation="other.sales") == 1
    assert [change.schema_name for change in db.outbox("status = 'DEAD'")] == ["public"]


def test_only_the_target_that_is_named(db):
    db.run("INSERT INTO sync_outbox_target (name) VALUES ('second')")
    put(db, status="DEAD")
    put(db, status="DEAD", target_id=2)

    assert requeue(db, target="second") == 1
    assert [change.target_id for change in db.outbox("status = 'DEAD'")] == [1]
    assert requeue(db, target=None) == 1


def test_every_priority(db):
    for priority in ("HIGH", "NORMAL", "LOW"):
        put(db, status="DEAD", priority=priority)

    assert requeue(db) == 3


def test_it_leaves_a_history_row_in_the_callers_name(db):
    put(db, status="DEAD")
    operator = db.role("op", "sync_outbox_operator")
    session = db.session(operator)
    session.execute("SELECT sync_outbox_requeue(reason => ' hub repaired ')")

    (row,) = history(db)
    assert (row.action, row.mode, row.status, row.target) == ("REQUEUE", "MANUAL", "SUCCESS", "default")
    assert (row.who, row.reason, row.pending) == (operator, "hub repaired", 1)
    assert row.finished >= row.started


def test_history_is_pruned_by_age(db):
    requeue(db)
    db.run("UPDATE sync_outbox_history SET started = now() - interval '31 days'")
    requeue(db)

    assert len(history(db)) == 1


def test_the_target_is_tried_again_at_once(db):
    requeue(db)
    db.run("INSERT INTO sync_outbox_target_state (target_id, consecutive_failures, next_try_at, auth, last_error)"
           " VALUES (1, 9, now() + interval '5 min', 'invalid', 'offline: refused')")
    requeue(db)

    state = db.row("SELECT * FROM sync_outbox_target_state")
    assert (state.consecutive_failures, state.next_try_at, state.auth) == (0, None, None)
    assert state.last_error == "offline: refused"


def test_an_unknown_target_is_refused(db):
    with pytest.raises(errors.InvalidParameterValue) as caught:
        requeue(db, target="nowhere")
    assert "nowhere" in caught.value.diag.message_primary
    assert caught.value.diag.message_hint


def test_a_stranger_may_not(db):
    session = db.session(db.role("stranger"))
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_requeue()")
