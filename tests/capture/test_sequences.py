"""The sequence of the outbox, and those of the application."""

import pytest


def test_swap_of_outbox_sequence(db):
    """The sequence loses its place in an altered outbox."""
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1)")
    with db.conn.transaction():
        db.run("INSERT INTO t VALUES (2)")
        db.run("ALTER SEQUENCE sync_outbox_id_seq RESTART WITH 1000")
        db.run("INSERT INTO t VALUES (3)")
    assert [c.id for c in db.outbox()] == [1, 2, 1000]


@pytest.mark.parametrize("operations", [["UPDATE"], ["INSERT", "UPDATE"], ["UPDATE", "DELETE"]])
def test_a_sequence_state_of_the_application(db, operations):
    db.run("CREATE TABLE t (id serial PRIMARY KEY, v int)")
    db.attach("t", operations=operations)
    db.alter_outbox()
    fresh = db.session()
    fresh.execute("INSERT INTO t (v) VALUES (1), (2)")
    assert fresh.execute("SELECT lastval()").fetchone()[0] == 2
    fresh.execute("UPDATE t SET v = 3")
    assert fresh.execute("SELECT lastval()").fetchone()[0] == 2
