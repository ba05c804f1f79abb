"""What a session says about its writes: sync_outbox.capture and sync_outbox.reason."""

import pytest
from psycopg import errors


def test_the_session_gives_a_reason(sales):
    sales.run("SET sync_outbox.reason = 'inventory count'; INSERT INTO sales VALUES (1)")
    sales.run("RESET sync_outbox.reason; INSERT INTO sales VALUES (2)")

    assert [change.reason for change in sales.outbox()] == ["inventory count", None]


def test_a_reason_of_one_transaction_ends_with_it(sales):
    with sales.conn.transaction():
        sales.run("SET LOCAL sync_outbox.reason = 'inventory count'; INSERT INTO sales VALUES (1)")
    sales.run("INSERT INTO sales VALUES (2)")

    assert [change.reason for change in sales.outbox()] == ["inventory count", None]


@pytest.fixture
def audited(db):
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int)")
    db.attach("stock", require_reason=True)
    return db


@pytest.mark.parametrize("reason", ["", "oops", "    ", "ab   "])
@pytest.mark.parametrize("write", ["INSERT INTO stock VALUES (2, 0)", "UPDATE stock SET qty = 9", "DELETE FROM stock"])
def test_a_write_without_a_reason_is_refused(audited, reason, write):
    audited.run("SET sync_outbox.reason = 'first delivery'; INSERT INTO stock VALUES (1, 5)")
    audited.run("SELECT set_config('sync_outbox.reason', %s, false)", [reason])

    with pytest.raises(errors.CheckViolation) as refused:
        audited.run(write)

    assert "sync_outbox.reason" in refused.value.diag.message_hint
    assert audited.rows("SELECT * FROM stock") == [(1, 5)]
    assert len(audited.outbox()) == 1


def test_five_characters_are_a_reason_whatever_their_bytes(audited):
    audited.run("SET sync_outbox.reason = 'añeja'; INSERT INTO stock VALUES (1, 5)")

    assert audited.outbox()[0].reason == "añeja"


def test_capture_off_captures_nothing(sales):
    sales.run("SET sync_outbox.capture = off; INSERT INTO sales VALUES (1)")
    sales.run("SET sync_outbox.capture = on; INSERT INTO sales VALUES (2)")

    assert [pk for _, pk, _ in sales.changes()] == [{"id": 2}]


def test_capture_off_is_for_superusers(sales):
    clerk = sales.session(sales.role("clerk"))
    sales.run("GRANT INSERT ON sales TO PUBLIC")
    clerk.execute("INSERT INTO sales VALUES (1)")

    with pytest.raises(errors.InsufficientPrivilege):
        clerk.execute("SET sync_outbox.capture = off")


def test_invariant_26_replica_role_is_not_captured(sales):
    sales.run("SET session_replication_role = replica; INSERT INTO sales VALUES (1)")

    assert sales.outbox() == []


def test_invariant_26_always_captures_replica_role_too(db):
    db.run("CREATE TABLE relay (id int PRIMARY KEY)")
    db.attach("relay", always=True)
    db.run("SET session_replication_role = replica; INSERT INTO relay VALUES (1)")

    assert len(db.outbox()) == 1
