"""kill -9 of the process that sends, at every moment of a request: the server recovers, and what may not have been settled
goes out again with the same keys."""

import os
import signal
import threading

import pytest

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for
from support.workers import reconnected, settled, shop_on, workers

pytestmark = pytest.mark.expects_log("was terminated by signal 9")

SALES = 50


@pytest.fixture
def shop(new_server, receiver):
    return shop_on(new_server(preload=True), receiver)


def sell(shop):
    shop.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {SALES}) n")


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def delivered(shop, receiver):
    """After the crash: the outbox is empty, each sale has arrived, no other change has; the keys that came twice."""
    def empty():
        try:
            return shop.outbox() == []
        except Exception:
            reconnect(shop)
            return False
    wait_for(empty, 30, "an empty outbox")
    ledger = Ledger(receiver.requests)
    assert sorted(row["id"] for row in ledger.rows("sales")) == list(range(1, SALES + 1))
    assert len(ledger.arrived) == SALES
    return ledger.duplicated()


def recovered(shop):
    return len(shop.server.log.matches("ready to accept connections")) > 1


def reconnect(shop):
    try:
        reconnected(shop)
    except Exception:
        pass  # not yet


def test_kill_9_before_the_request(shop, receiver):
    pid = settled(shop)
    with shop.session(autocommit=False) as session:
        session.execute(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {SALES}) n")
        session.commit()
        kill(pid)

    assert len(delivered(shop, receiver)) in (0, SALES)


def test_kill_9_while_the_request_is_out(shop, receiver):
    def die(request, wire):
        kill(workers(shop)[0])
        wire.close()
    receiver.script(die)
    sell(shop)

    receiver.wait_for_requests(2)
    assert len(delivered(shop, receiver)) == SALES


def test_kill_9_after_the_receiver_took_it_and_before_it_answered(shop, receiver):
    def take_and_die(request, wire):
        request.applied = request.keys
        kill(workers(shop)[0])
    receiver.script(take_and_die)
    sell(shop)

    receiver.wait_for_requests(2)
    assert len(delivered(shop, receiver)) == SALES


def test_kill_9_between_the_answer_and_its_settlement(shop, receiver):
    """The settlement waits for a lock on the outbox when its process is killed."""
    holder = shop.session(autocommit=False)
    answered = threading.Event()

    def lock_and_ack(request, wire):
        holder.execute("LOCK TABLE sync_outbox IN SHARE MODE")
        behaviours.ack_all(request, wire)
        answered.set()
    receiver.script(lock_and_ack)
    sell(shop)
    assert answered.wait(10)
    (pid,) = wait_for(lambda: [row.pid for row in shop.rows(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker' AND wait_event_type = 'Lock'")])
    kill(pid)

    assert len(delivered(shop, receiver)) == SALES


def test_kill_9_after_the_settlement(shop, receiver):
    sell(shop)
    wait_for(lambda: shop.outbox() == [])
    # A settlement need not be on disk: what was acked comes again at worst.
    shop.run("CHECKPOINT")
    kill(settled(shop))

    wait_for(lambda: recovered(shop), 30)
    assert delivered(shop, receiver) == set()


def test_kill_9_of_a_flush_in_its_request(shop, receiver):
    """As the kernel does when memory is short."""
    shop.server.set(sync_outbox__enabled="off")
    wait_for(lambda: workers(shop) == [])
    session = shop.session()
    receiver.script(lambda request, wire: (kill(session.info.backend_pid), wire.close()))
    sell(shop)
    with pytest.raises(Exception):
        session.execute("SELECT sync_outbox_flush()")

    wait_for(lambda: recovered(shop), 30)
    shop.server.set(sync_outbox__enabled="on")
    assert len(delivered(shop, receiver)) == SALES
