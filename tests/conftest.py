"""Servers per xdist worker, and per test a fresh database and a fresh receiver.

`db` lives on a server without preloading, where nothing is sent unless the test says so: tests of capture and flush.
`live` lives on a server with shared_preload_libraries = 'sync_outbox': tests of the worker."""

import contextlib
import os
import pathlib
import re
import tempfile
import time

import pytest

from support import run as runs
from support.authority import Authority
from support.database import Database
from support.network import Network
from support.receiver import Receiver
from support.server import Server


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.stash[RUN] = runs.create()


def pytest_unconfigure(config):
    if RUN in config.stash:
        config.stash[RUN].remove()


RUN = pytest.StashKey()


@pytest.fixture(scope="session")
def run():
    """This process's view of the test run; every server it starts is stopped when it ends."""
    run = runs.Run()
    yield run
    run.close()


@pytest.fixture(scope="session")
def worker_name():
    """Tells the directories of xdist's workers apart."""
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture(scope="session")
def quiet_server(run, worker_name):
    return Server(run, f"quiet_{worker_name}").start()


@pytest.fixture(scope="session")
def live_server(run, worker_name):
    return Server(run, f"live_{worker_name}", preload=True).start()


@pytest.fixture
def watched(request):
    """Registers a server whose log is scanned, and whose settings are undone, when the test ends."""
    expected = [re.compile(marker.args[0]) for marker in request.node.iter_markers("expects_log")]
    servers = []

    def watch(server):
        servers.append((server, server.log.position()))
        return server
    yield watch
    for server, position in servers:
        if server.process is not None:
            server.reset_settings()
        lines = server.log.since(position).splitlines()
        for pattern in expected:
            assert any(pattern.search(line) for line in lines), f"not in the server's log: {pattern.pattern}"
        alarming = server.log.alarming(position, expected)
        assert not alarming, "the server's log says:\n" + "\n".join(alarming)


@pytest.fixture
def new_server(run, worker_name, watched, request):
    """Makes servers of a test's own: new_server(preload=True, settings={...}, env={...})."""
    servers = []

    def make(**options):
        name = f"own_{worker_name}_{new_server.count}"
        new_server.count += 1
        server = watched(Server(run, name, **options).start())
        servers.append(server)
        return server
    yield make
    for server in servers:
        server.stop("immediate")


new_server.count = 0


def _database(server):
    database = server.create_database()
    database.run("SET client_min_messages = warning")
    database.run("CREATE EXTENSION sync_outbox")
    database.run("RESET client_min_messages")
    return database


def _drop(database):
    database.close()
    if database.server.process is not None:
        database.server.drop_database(database.name)


@pytest.fixture
def db(quiet_server, watched):
    """A fresh database with the extension; changes leave it by flush or drain only."""
    database = _database(watched(quiet_server))
    yield database
    _drop(database)


@pytest.fixture(params=["direct", "altered"])
def append(request):
    """Both ways in which capture writes: a module whose tests have to hold for both overrides `db` with append(db)."""
    return {"direct": lambda db: db, "altered": Database.alter_outbox}[request.param]


@pytest.fixture
def live(live_server, watched):
    """A fresh database with the extension on a preloaded server; its worker sends by itself."""
    database = _database(watched(live_server))
    yield database
    _drop(database)


@pytest.fixture
def new_receiver():
    """Makes receivers that end with the test."""
    receivers = []

    def make(*arguments, **options):
        receivers.append(Receiver(*arguments, **options))
        return receivers[-1]
    yield make
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def receiver(new_receiver):
    """A receiver that acks everything."""
    return new_receiver()


@pytest.fixture
def network(run, worker_name):
    """A network of the test's own; tests that need one are skipped where it cannot be had."""
    if not Network.possible():
        pytest.skip("needs root and network namespaces")
    with Network(run, worker_name) as network:
        yield network


@pytest.fixture
def clock():
    """`with clock(2):` fails when its body takes longer than two seconds."""
    @contextlib.contextmanager
    def at_most(seconds):
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        assert took <= seconds, f"took {took:.2f} s, {seconds} s were allowed"
    return at_most


@pytest.fixture
def new_authority(run):
    """Makes private certificate authorities, whose files the servers' user may read."""
    def make():
        where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
        where.chmod(0o755)
        return Authority(where)
    return make


@pytest.fixture
def authority(new_authority):
    return new_authority()


@pytest.fixture
def sales(db, receiver):
    """A small attached table, aimed at the receiver."""
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, note text)")
    db.attach("sales")
    return db


@pytest.fixture
def three(sales):
    """Three sales that wait."""
    sales.run("INSERT INTO sales VALUES (1, 0), (2, 0), (3, 0)")
    return sales


@pytest.fixture
def shop(live, receiver):
    """A small attached table whose changes are sent by the worker; no timer is quick enough to help."""
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    return live
