"""How long a database waits for a receiver that hangs, or for a resolver that does: not at all. Every way to end a sender, for
every kind of sender, and for what others want meanwhile; docs/reliability.md has the table. The bound is a second; measured
is a few milliseconds."""

import os
import threading
import time
from types import SimpleNamespace

import psycopg
import pytest

from support.wait import wait_for
from support.workers import shop_on, workers

BOUND = 1.0
STATEMENTS = {"flush": "SELECT sync_outbox_flush()", "drain": "CALL sync_outbox_drain()"}
SENDERS = ["flush", "drain", "worker"]


class Sender:
    """A sender whose request hangs; `hangs()` waits until it does."""

    def __init__(self, kind, db, hangs):
        self.kind, self.db, self.hangs = kind, db, hangs
        self.ended = threading.Event()

    def begin(self, before=None):
        """Writes a change, and waits until its request hangs."""
        if self.kind != "worker":
            session = self.db.session()
            session.execute(before or "")
            self.pid = session.info.backend_pid
            self.db.run("INSERT INTO sales VALUES (1, 0)")
            threading.Thread(target=self.push, args=[session], daemon=True).start()
            self.hangs()
        else:
            self.db.run("INSERT INTO sales VALUES (1, 0)")
            self.hangs()
            (self.pid,) = workers(self.db)
        return self

    def push(self, session):
        began = time.monotonic()
        try:
            session.execute(STATEMENTS[self.kind])
        except psycopg.Error as error:
            self.error = error
        self.took = time.monotonic() - began
        self.ended.set()

    def over(self):
        """The request has been given up: the statement has ended, or the worker has let go of the target."""
        return self.locks() == [] if self.kind == "worker" else self.ended.is_set()

    def locks(self):
        """What the sender holds besides its own session."""
        return [tuple(row) for row in self.db.rows(
            "SELECT locktype, mode FROM pg_locks WHERE pid = %s AND locktype NOT IN ('virtualxid')", [self.pid])]


@pytest.fixture(params=["receiver", "resolver"])
def sender(request, new_server):
    """begin(kind): a sender on a server of its own, hanging; `measured` bounds and notes what is done to it."""
    def make(kind):
        target, within, hangs = request.getfixturevalue(f"hanging_{request.param}")
        server = new_server(preload=True, within=within, settings={
            "sync_outbox.enabled": "on" if kind == "worker" else "off", "sync_outbox.allow_http": "on"})
        return Sender(kind, shop_on(server, target), hangs)
    return make


@pytest.fixture
def hanging_receiver(receiver):
    """A target, the way of a server to it, and how to wait for a request that hangs."""
    receiver.script(receiver.hang)
    return receiver, (), lambda: receiver.wait_for_requests(1)


@pytest.fixture
def hanging_resolver(network):
    network.names.behave(delay=None)
    target = SimpleNamespace(url="http://hub.test:8080")
    return target, network.within, lambda: wait_for(lambda: network.names.questions, what="the name is looked up")


@pytest.fixture
def measured(request, record_property):
    def measure(what):
        began = time.monotonic()
        note(what() or time.monotonic() - began)

    def note(took):
        record_property("milliseconds", round(1000 * took, 1))
        if path := os.environ.get("SYNC_OUTBOX_TIMES"):
            with open(path, "a") as times:
                times.write(f"{request.node.name} {1000 * took:.0f} ms\n")
        assert took < BOUND
    return measure


@pytest.mark.parametrize("kind", SENDERS)
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_an_interrupt_ends_the_request(sender, measured, kind, how):
    hanging = sender(kind).begin()

    def interrupt():
        hanging.db.run(f"SELECT {how}(%s)", [hanging.pid])
        wait_for(hanging.over, 5)
    measured(interrupt)


@pytest.mark.parametrize("kind", ["flush", "drain"])
def test_statement_timeout_ends_the_request(sender, measured, kind):
    hanging = sender(kind)
    hanging.begin("SET statement_timeout = '500ms'")

    def time_out():
        wait_for(hanging.over, 5)
        return hanging.took - 0.5
    measured(time_out)
    assert isinstance(hanging.error, psycopg.errors.QueryCanceled)


@pytest.mark.parametrize("kind", SENDERS)
def test_another_database_is_dropped_meanwhile(sender, measured, kind):
    hanging = sender(kind)
    other = hanging.db.server.create_database()
    other.close()
    hanging.begin()

    measured(lambda: hanging.db.server.drop_database(other.name))
    assert not hanging.over()


@pytest.mark.parametrize("kind", SENDERS)
def test_fast_shutdown_does_not_wait(sender, measured, kind):
    hanging = sender(kind).begin()

    measured(lambda: hanging.db.server.stop("fast"))


@pytest.mark.parametrize("kind", SENDERS)
def test_writers_do_not_notice(sender, measured, kind):
    hanging = sender(kind).begin()

    measured(lambda: hanging.db.run("INSERT INTO sales VALUES (2, 0); UPDATE sales SET qty = 1; DELETE FROM sales"))
    assert not hanging.over()


@pytest.mark.parametrize("kind", ["drain", "worker"])
def test_nothing_is_held_while_a_request_is_out(sender, kind):
    """No snapshot, no transaction id, no lock but the sender's own; vacuum removes what died meanwhile."""
    hanging = sender(kind).begin()
    look = "SELECT backend_xid, backend_xmin FROM pg_stat_activity WHERE pid = %s"
    wait_for(lambda: tuple(hanging.db.row(look, [hanging.pid])) == (None, None), what="neither snapshot nor transaction id")

    assert hanging.locks() == [("object", "ExclusiveLock")]
    # Nobody's vacuum is kept from removing what dies while the request is out.
    hanging.db.run("CREATE TABLE other AS SELECT n FROM generate_series(1, 100) n; DELETE FROM other")
    hanging.db.run("VACUUM other")
    assert hanging.db.value("SELECT pg_relation_size('other')") == 0
