"""The reason that a person gives for requeue, discard or pause says something, and has an end."""

import pytest
from psycopg import errors

from support.queued import put

CALLS = {"requeue": "sync_outbox_requeue(reason => %s)", "discard": "sync_outbox_discard('{}', %s)",
         "pause": "sync_outbox_pause(reason => %s)"}


def say(db, call, reason):
    return db.value(f"SELECT {CALLS[call]}", [reason])


@pytest.mark.parametrize("call", ["requeue", "discard"])
@pytest.mark.parametrize("reason", ["abc", "", "  typo  ", "ñññ"])
def test_defect_24_a_reason_says_something(db, call, reason):
    put(db, status="DEAD")
    with pytest.raises(errors.CheckViolation) as refused:
        say(db, call, reason)
    assert "at least 5 characters" in refused.value.diag.message_primary and refused.value.diag.message_hint
    assert [change.status for change in db.outbox()] == ["DEAD"]
    assert db.rows("SELECT FROM sync_outbox_history") == []


def test_defect_24_a_requeue_needs_no_reason(db):
    put(db, status="DEAD")
    assert say(db, "requeue", None) == 1
    assert say(db, "requeue", " ñañañ ") == 0


@pytest.mark.parametrize("call", CALLS)
def test_defect_24_a_reason_has_an_end(db, call):
    for reason in ("ñ" * 1001, "x" * 2_000_000):
        with pytest.raises(errors.StringDataRightTruncation) as refused:
            say(db, call, reason)
        assert "1000 characters" in refused.value.diag.message_primary and refused.value.diag.message_hint
    say(db, call, " " + "ñ" * 1000 + "\n")
