"""Every figure of sync_outbox_stats() in a state in which it changes."""

import pytest

from support import behaviours


@pytest.fixture
def shop(db, receiver):
    """Two attached tables; a receiver that treats a change as its row's note says."""
    db.aim(receiver)
    db.server.set(sync_outbox__max_attempts=2)
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text, note text)")
    db.run("CREATE TABLE sales (id int PRIMARY KEY, store text, note text)")
    db.attach("stock", priority="HIGH", branch_column="store")
    db.attach("sales", branch_column="store")

    def by_note(change, note):
        return (change["data"] or {}).get("note") == note
    receiver.behaviour = behaviours.answer(
        acked=lambda changes: [change for change in changes if by_note(change, "good")],
        errors=lambda changes: [(change, "no") for change in changes if by_note(change, "bad")],
        conflicts=lambda changes: [change for change in changes if by_note(change, "torn")])
    return db


FIGURES = "total, pending, failed, conflicts, dead, blocked"


def figures(database, table, branch=None):
    return tuple(database.row(f"SELECT {FIGURES} FROM sync_outbox_stats(%s) WHERE table_name = %s", [branch, table]))


def test_a_row_per_attached_table_zeros_included(shop):
    rows = shop.rows("SELECT * FROM sync_outbox_stats() ORDER BY table_name")

    assert [(row.schema_name, row.table_name, row.priority) for row in rows] == [
        ("public", "sales", "NORMAL"), ("public", "stock", "HIGH")]
    for row in rows:
        assert (row.total, row.pending, row.failed, row.conflicts, row.dead, row.blocked) == (0,) * 6
        assert (row.oldest_pending, row.last_update, row.last_conflict_at, row.estimated) == (None, None, None, False)


def test_total_and_pending(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'good'), (2, 'S1', 'good')")
    assert figures(shop, "stock") == (2, 2, 0, 0, 0, 0)
    assert figures(shop, "sales") == (0, 0, 0, 0, 0, 0)

    shop.flush()
    assert figures(shop, "stock") == (0, 0, 0, 0, 0, 0)


def test_failed_and_dead(shop):
    shop.server.set(sync_outbox__retry_interval="10ms", sync_outbox__retry_max_interval="10ms")
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'bad')")
    shop.flush()
    assert figures(shop, "stock") == (1, 0, 1, 0, 0, 0)

    shop.run("SELECT pg_sleep(0.05)")
    shop.flush()
    assert figures(shop, "stock") == (1, 0, 0, 0, 1, 0)


def test_conflicts_and_when(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'torn')")
    shop.flush()

    assert figures(shop, "stock") == (1, 0, 0, 1, 0, 0)
    assert shop.value("SELECT now() - last_conflict_at < '1min' FROM sync_outbox_stats() WHERE table_name = 'stock'")


def test_blocked(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'torn')")
    shop.flush()
    shop.run("UPDATE stock SET note = 'good'; INSERT INTO stock VALUES (2, 'S1', 'good')")

    total, pending, _, conflicts, _, blocked = figures(shop, "stock")
    assert (total, conflicts, blocked) == (3, 1, 1)
    assert pending in (1, 2)  # whether a blocked change counts as pending too is not said


def test_oldest_pending(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'good')")
    shop.run("INSERT INTO stock VALUES (2, 'S1', 'good')")

    assert shop.value("SELECT oldest_pending = (SELECT min(created_at) FROM sync_outbox) FROM sync_outbox_stats() WHERE table_name = 'stock'")
    shop.flush()
    assert shop.value("SELECT oldest_pending FROM sync_outbox_stats() WHERE table_name = 'stock'") is None


def test_last_update_moves(shop):
    def last():
        return shop.value("SELECT last_update FROM sync_outbox_stats() WHERE table_name = 'stock'")
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'bad')")
    captured = last()
    shop.run("SELECT pg_sleep(0.01)")
    shop.flush()

    assert captured is not None
    assert last() > captured


def test_branch(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'good'), (2, 'S2', 'good'), (3, 'S2', 'good')")

    assert figures(shop, "stock", "S2")[0] == 2
    assert figures(shop, "stock", "S1")[0] == 1
    assert figures(shop, "stock")[0] == 3


def test_tables_no_longer_attached_are_shown_while_changes_wait(shop):
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'good'); SELECT sync_outbox_detach('stock')")
    assert figures(shop, "stock") == (1, 1, 0, 0, 0, 0)

    shop.flush()
    assert shop.rows("SELECT * FROM sync_outbox_stats() WHERE table_name = 'stock'") == []


def test_the_checklists_clean_queue_is_one_query(shop):
    clean = "SELECT coalesce(sum(total), 0) = 0 FROM sync_outbox_stats()"
    assert shop.value(clean)
    shop.run("INSERT INTO stock VALUES (1, 'S1', 'good')")
    assert not shop.value(clean)
