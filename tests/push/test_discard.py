"""sync_outbox_discard(): changes that a person gives up."""

import threading
import time

import pytest
from psycopg import errors

from support.queued import put

WHY = "sold twice by mistake"


def discard(db, ids, reason=WHY):
    return db.value("SELECT sync_outbox_discard(%s, %s)", [ids, reason])


def discarded(db):
    return db.rows("SELECT * FROM sync_outbox_discarded ORDER BY id")


@pytest.mark.parametrize("status", ["PENDING", "FAILED", "CONFLICT", "DEAD"])
def test_a_change_moves_with_all_its_columns(db, status):
    change = put(db, status=status, data={"qty": 3}, branch="S1", old='{"qty": 2}', reason="typo", attempt_count=4,
                 refusals=2, last_attempt_at="2024-01-01 UTC", next_attempt_at="2024-01-02 UTC", error_message="no")
    (before,) = db.outbox()

    assert discard(db, [change]) == 1
    assert db.outbox() == []
    (after,) = discarded(db)
    assert after[:len(before)] == before
    assert (after.discarded_by, after.discard_reason, after.discarded_at is not None) == ("postgres", WHY, True)


def test_only_the_ids_that_are_named_in_every_lane(db):
    lanes = [put(db, target_id=target, priority=priority) for target in (1, 2, 7) for priority in ("HIGH", "LOW")]
    kept = put(db)

    assert discard(db, [*lanes, 4711, None]) == len(lanes)
    assert [change.id for change in db.outbox()] == [kept]
    assert discard(db, lanes) == 0


def test_the_callers_name_and_reason_are_kept(db):
    change = put(db)
    admin = db.role("admin", "sync_outbox_admin")
    db.run("SELECT sync_outbox_pause()")
    db.session(admin).execute("SELECT sync_outbox_discard(%s, %s)", [[change], f"  {WHY} "])

    assert (discarded(db)[0].discarded_by, discarded(db)[0].discard_reason) == (admin, WHY)
    row = db.row("SELECT * FROM sync_outbox_history")
    assert (row.action, row.mode, row.status, row.target) == ("DISCARD", "MANUAL", "SUCCESS", "default")
    assert (row.who, row.reason, row.pending) == (admin, WHY, 1)


@pytest.mark.parametrize("reason", [None, "", "typo", "  typo  "])
def test_a_reason_is_required(db, reason):
    change = put(db)

    with pytest.raises(errors.CheckViolation) as caught:
        discard(db, [change], reason)
    assert caught.value.diag.message_hint
    assert len(db.outbox()) == 1


def test_ids_are_required(db):
    put(db)
    with pytest.raises(errors.InvalidParameterValue) as caught:
        discard(db, None)
    assert caught.value.diag.message_hint
    assert discard(db, []) == 0
    assert len(db.outbox()) == 1


def test_a_change_that_came_back_can_be_discarded_again(db):
    key = "0192f0c0-0000-7000-8000-000000000001"
    discard(db, [put(db, dedup_key=key)])

    assert discard(db, [put(db, dedup_key=key)], "imported again") == 1
    assert [row.discard_reason for row in discarded(db)] == ["imported again"]


def test_an_operator_may_not(db):
    session = db.session(db.role("op", "sync_outbox_operator"))
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_discard('{1}', %s)", [WHY])


# A discard of a deliverable change holds the sender's lock until its transaction ends: an open one stands in for a sender.

def test_what_may_be_in_flight_is_refused_after_lock_wait(db):
    first, second = put(db), put(db, key=2)
    dead = put(db, key=3, status="DEAD")
    db.server.set(sync_outbox__lock_wait="200ms")
    sender = db.session(autocommit=False)
    sender.execute("SELECT sync_outbox_discard(%s, %s)", [[first], WHY])

    with pytest.raises(errors.LockNotAvailable) as caught:
        discard(db, [second, dead])
    assert caught.value.diag.message_hint
    assert discard(db, [dead]) == 1
    sender.rollback()
    assert discard(db, [first, second]) == 2


def test_it_waits_for_a_sender_that_ends(db):
    first, second = put(db), put(db, key=2)
    sender = db.session(autocommit=False)
    sender.execute("SELECT sync_outbox_discard(%s, %s)", [[first], WHY])
    threading.Timer(0.3, sender.commit).start()

    begun = time.monotonic()
    assert discard(db, [first, second]) == 1
    assert 0.2 < time.monotonic() - begun < 3
    assert db.outbox() == []


def test_it_can_be_cancelled_while_it_waits(db):
    change = put(db)
    sender = db.session(autocommit=False)
    sender.execute("SELECT sync_outbox_discard(%s, %s)", [[change], WHY])

    db.run("SET statement_timeout = '100ms'")
    begun = time.monotonic()
    with pytest.raises(errors.QueryCanceled):
        discard(db, [change])
    assert time.monotonic() - begun < 1
