"""sync_outbox_history: a row per push session, requeue and discard."""

import pytest

from support import behaviours


@pytest.fixture
def three(sales):
    sales.run("INSERT INTO sales VALUES (1, 0), (2, 0), (3, 0)")
    return sales


def last(database):
    return database.rows("SELECT * FROM sync_outbox_history ORDER BY id")[-1]


def test_a_flush_that_delivered_everything(three):
    three.flush()

    row = last(three)
    assert (row.action, row.mode, row.status, row.target, row.who) == ("PUSH", "MANUAL", "SUCCESS", "default", "postgres")
    assert (row.pending, row.sent, row.acked, row.failed, row.error) == (3, 3, 3, 0, None)
    assert row.started <= row.finished


def test_a_flush_that_delivered_a_part(three, receiver):
    receiver.behaviour = behaviours.refuse(lambda change: change["pk"]["id"] == 2)
    three.flush()

    row = last(three)
    assert (row.status, row.sent, row.acked, row.failed) == ("PARTIAL", 3, 2, 1)


def test_a_flush_that_delivered_nothing(three, receiver):
    receiver.stop()
    three.flush()

    row = last(three)
    assert (row.status, row.acked) == ("FAILED", 0)
    assert row.error.startswith("offline")


def test_the_branch_of_a_flush(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text)")
    db.attach("stock", branch_column="store")
    db.run("INSERT INTO stock VALUES (1, 'S1'), (2, 'S2')")
    db.flush(branch="S1")

    assert (last(db).branch, last(db).pending) == ("S1", 1)


def test_the_one_who_flushed(three):
    role = three.role("operator", "sync_outbox_operator")
    three.session(role).execute("SELECT sync_outbox_flush()")

    assert last(three).who == role


def test_a_flush_of_many_requests_is_one_row(three):
    three.server.set(sync_outbox__batch_rows=1)
    three.flush()

    assert three.value("SELECT count(*) FROM sync_outbox_history") == 1


def test_discarding_frees_the_key(three, receiver):
    receiver.script(behaviours.conflict(lambda change: change["pk"]["id"] == 2))
    three.flush()
    three.run("UPDATE sales SET qty = 9 WHERE id = 2")
    assert three.flushed()["blocked"] == 1

    three.run("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox WHERE status = 'CONFLICT'), 'theirs counts')")
    assert three.flushed()["acked"] == 1


def test_old_rows_are_pruned(three):
    three.flush()
    three.run("UPDATE sync_outbox_history SET started = started - interval '40 days', finished = finished - interval '40 days'")
    three.run("INSERT INTO sales VALUES (4, 0)")
    three.flush()

    assert three.value("SELECT count(*) FROM sync_outbox_history") == 1
