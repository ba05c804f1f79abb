"""sync_outbox_pause() and sync_outbox_resume()."""

import pytest
from psycopg import errors


def target(db, name="default"):
    return db.row("SELECT * FROM sync_outbox_target WHERE name = %s", [name])


def test_pause_keeps_its_reason_until_resume(db):
    db.run("SELECT sync_outbox_pause(reason => 'stock taking')")
    paused = target(db)
    assert (paused.paused, paused.paused_reason, paused.paused_at is not None) == (True, "stock taking", True)

    db.run("SELECT sync_outbox_resume()")
    resumed = target(db)
    assert (resumed.paused, resumed.paused_reason, resumed.paused_at) == (False, None, None)


def test_a_second_pause_replaces_the_reason(db):
    db.run("SELECT sync_outbox_pause(reason => 'stock taking'); SELECT sync_outbox_pause()")

    assert (target(db).paused, target(db).paused_reason) == (True, None)


def test_only_the_named_target_even_if_it_was_made_first(db):
    db.run("INSERT INTO sync_outbox_target (name) VALUES ('second')")
    db.run("SELECT sync_outbox_pause(); SELECT sync_outbox_pause('second'); SELECT sync_outbox_resume('default')")

    assert (target(db).paused, target(db, "second").paused) == (False, True)


def test_resume_tries_at_once_whatever_the_breaker_says(db):
    db.run("SELECT sync_outbox_pause()")
    db.run("INSERT INTO sync_outbox_target_state (target_id, consecutive_failures, next_try_at)"
           " VALUES (1, 9, now() + interval '5 min')")
    db.run("SELECT sync_outbox_resume()")

    assert db.row("SELECT consecutive_failures, next_try_at FROM sync_outbox_target_state") == (0, None)


@pytest.mark.parametrize("call", ["sync_outbox_pause('nowhere')", "sync_outbox_resume('nowhere')"])
def test_an_unknown_target_is_refused(db, call):
    with pytest.raises(errors.InvalidParameterValue) as caught:
        db.run(f"SELECT {call}")
    assert "nowhere" in caught.value.diag.message_primary
    assert caught.value.diag.message_hint


def test_an_operator_may_not(db):
    session = db.session(db.role("op", "sync_outbox_operator"))
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_pause()")
