"""What was acknowledged stays in memory until it is settled, whoever holds a lock meanwhile: it is not sent again."""

import threading

import psycopg
import pytest

from support.ledger import Ledger
from support.wait import wait_for

ROWS = 50
OF_THE_OUTBOX = "LOCK TABLE sync_outbox IN SHARE MODE"
OF_A_ROW = "SELECT FROM sync_outbox ORDER BY id LIMIT 1 FOR UPDATE"


@pytest.fixture
def locked(receiver):
    """locked(database, lock): somebody takes `lock` while a request is out, before it is answered, and keeps it."""
    taken = threading.Event()

    def lock(database, statement):
        holder = database.session(autocommit=False)

        def lock_and_ack(request, wire):
            holder.execute(statement)
            acks(request, wire)
            taken.set()
        acks = receiver.behaviour
        receiver.script(lock_and_ack)
        return holder

    lock.taken = taken
    return lock


def sell(database):
    database.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {ROWS}) n")


def waiting(database):
    """Since when the senders that wait for a lock have their transactions."""
    return [row.xact_start for row in database.rows(
        "SELECT xact_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")]


def begun_anew(database):
    """A settlement that waits does not keep its transaction, whose snapshot would hold back every vacuum."""
    (first,) = wait_for(lambda: waiting(database))
    wait_for(lambda: [start for start in waiting(database) if start > first], 10, "a newer transaction that waits")


def assert_once(receiver):
    ledger = Ledger(receiver.requests)
    assert (len(receiver.requests), len(ledger.rows("sales")), ledger.duplicated()) == (1, ROWS, set())


@pytest.mark.parametrize("lock", [OF_THE_OUTBOX, OF_A_ROW])
def test_invariant_07_the_worker_settles_when_the_lock_is_free(live, receiver, locked, lock):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    holder = locked(live, lock)
    sell(live)
    assert locked.taken.wait(10)

    begun_anew(live)
    assert len(live.outbox()) == ROWS
    holder.rollback()
    wait_for(lambda: live.outbox() == [])
    assert_once(receiver)


@pytest.mark.parametrize("lock", [OF_THE_OUTBOX, OF_A_ROW])
def test_invariant_07_a_drain_settles_when_the_lock_is_free(sales, receiver, locked, lock):
    """Also where the session's own lock_timeout is shorter than the wait."""
    holder = locked(sales, lock)
    sell(sales)
    drain = sales.session()
    drain.execute("SET lock_timeout = '100ms'")
    thread = threading.Thread(target=drain.execute, args=["CALL sync_outbox_drain()"])
    thread.start()
    assert locked.taken.wait(10)

    begun_anew(sales)
    holder.rollback()
    thread.join(20)
    assert (thread.is_alive(), sales.outbox()) == (False, [])
    assert_once(receiver)


def test_a_flush_keeps_to_the_time_limit_of_its_caller(sales, receiver, locked):
    """Its transaction is the caller's: it fails as one, and everything goes again."""
    holder = locked(sales, OF_A_ROW)
    sell(sales)
    sales.run("SET lock_timeout = '100ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        sales.flush()

    holder.rollback()
    assert sales.flushed()["acked"] == ROWS
    assert Ledger(receiver.requests).duplicated() == set(receiver.requests[0].keys)
