"""What a fault test stands on: a preloaded server under load, a hub that can die, people who push by hand, and the books."""

import os
import random
import signal
import threading
import time

import psycopg

from .books import Hub, Verdict
from .database import TOKEN
from .hub import HubProcess
from .load import EXPECTED, Load, Small, prepare
from .wait import wait_for

# Quick to give up and quick to try again: a test's faults last seconds.
SETTINGS = {
    "sync_outbox.retry_interval": "50ms", "sync_outbox.retry_max_interval": "500ms", "sync_outbox.interval": "1s",
    "sync_outbox.connect_timeout": "500ms", "sync_outbox.request_timeout": "1s", "sync_outbox.lock_wait": "500ms",
    "sync_outbox.batch_rows": "500", "sync_outbox.flush_timeout": "5s", "sync_outbox.max_attempts": "1000",
    "restart_after_crash": "on", "max_prepared_transactions": "20", "wal_writer_delay": "2s", "deadlock_timeout": "50ms",
    "max_connections": "60",
}

# The database behind a hub: what it would acknowledge too early, an immediate stop takes back.
HUB_SETTINGS = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}


class Pusher:
    """A session that pushes by hand, now and then, as cron jobs do."""

    def __init__(self, stand, statement, seed, pause):
        self.stand = stand
        self.statement = statement
        self.rng = random.Random(f"{seed} {statement}")
        self.pause = pause
        self.pid = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        connection = None
        while not self.stand.ended.is_set():
            try:
                if connection is None or connection.closed:
                    connection = self.stand.load.connect(f"pusher {self.statement}")
                    self.pid = connection.info.backend_pid
                if not self.stand.calm.is_set():
                    answer = connection.execute(self.statement)
                    if answer.description and "error" in str(answer.fetchone()[0]):
                        self.stand.disturbed(time.time())  # flush_timeout may have ended it, and the request that was out
            except psycopg.Error as error:
                if error.sqlstate is not None and not isinstance(error, EXPECTED):
                    self.stand.findings.append(f"{self.statement}: {error.sqlstate} {error}")
            self.stand.ended.wait(self.rng.random() * self.pause)
        if connection is not None:
            connection.close()


class Stand:
    """`with Stand(..) as stand:` starts everything; `stand.verdict()` heals, waits for an empty outbox, closes the books;
    `stand.proven()` fails unless they agree. `more` adds tables and a database behind the hub, see soak/more.py."""

    def __init__(self, server, directory, seed=0, pushers=True, hub=None, more=None, **load):
        self.server = server
        self.position = server.log.position()
        self.db = server.create_database()
        self.db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
        self.hub = hub or HubProcess(directory)
        self.ended = threading.Event()
        self.calm = threading.Event()  # set: nobody pushes by hand
        self.findings = []
        self.disturbances = []
        self.aim(self.hub.url)
        prepare(self.db)
        self.more = more
        if more:
            more.prepare(self)
        self.load = Load(self.db, directory / "writers.book", seed, **load)
        statements = ("SELECT sync_outbox_flush()", "CALL sync_outbox_drain()") if pushers else ()
        self.pushers = [Pusher(self, statement, seed, 1.0) for statement in statements]

    def __enter__(self):
        self.load.start()
        for pusher in self.pushers:
            pusher.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.load.ended.set()
        self.hub.close()
        self.db.close()

    # What faults are made of

    def aim(self, url, token=TOKEN):
        self.run("SELECT sync_outbox_configure(json_build_object('webapp_base_url', %s::text, 'sync_upload_token', %s::text))",
                 [url, token])

    def session(self, **options):
        return self.server.connect(self.db.name, **options)

    def run(self, query, parameters=None):
        with self.session() as session:
            session.execute(query, parameters)

    def rows(self, query, parameters=None):
        with self.session() as session:
            return session.execute(query, parameters).fetchall()

    def pids(self, backend_type, pattern="%"):
        return [pid for (pid,) in self.rows(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = %s AND application_name LIKE %s"
            " AND coalesce(datname, %s) = %s", [backend_type, pattern, self.db.name, self.db.name])]

    def worker(self):
        """The worker's pid; there is one soon if there is not."""
        return wait_for(lambda: self.pids("sync_outbox worker"), 20, "a worker")[0]

    def kill9(self, pid):
        """As the kernel does when memory is short: the postmaster restarts everything."""
        os.kill(pid, signal.SIGKILL)

    def wait_until_open(self, deadline=60):
        """Until the server takes connections, and runs."""
        def answers():
            try:
                return self.rows("SELECT 1")
            except psycopg.OperationalError:
                return False
        wait_for(answers, deadline, "a server that answers")

    def late(self, rng, hold):
        """One transaction of shared rows that commits after so many seconds."""
        writer = Small(self.load, f"late{rng.randrange(2 ** 32)}", rng.random())
        writer.connection = self.load.connect("late")
        try:
            writer.transaction(lambda transaction: transaction.act(rng), hold=hold)
        finally:
            writer.connection.close()

    def restore(self):
        """Everything that faults change, as it was; for as long as it takes."""
        def restored():
            try:
                self.server.reset_settings()
                self.run("SELECT sync_outbox_resume()")
                self.aim(self.hub.url)
                if self.more:
                    self.more.restore(self)
                return True
            except psycopg.OperationalError:
                return False
        wait_for(restored, 60, "settings restored")

    def disturbed(self, began):
        """From then until a little after now, what was settled may have been undone, or an answer lost."""
        self.disturbances.append((began - 1, time.time() + 1))

    # The end

    def verdict(self, deadline=120):
        """All faults are over: lets the rest be delivered, and compares the books."""
        self.wait_until_open()
        self.load.stop()
        self.ended.set()
        for pusher in self.pushers:
            pusher.thread.join(30)
        self.hub.behave()
        self.restore()

        def empty():
            time.sleep(0.2)
            with self.session() as session:
                session.execute("SET client_min_messages = error")
                session.execute("SELECT sync_outbox_requeue(target => name) FROM sync_outbox_target")
                return session.execute("SELECT NOT EXISTS (SELECT FROM sync_outbox)").fetchone()[0]
        began = time.time()
        wait_for(empty, deadline, "an empty outbox")
        # Requeueing while a request is out makes changes of it travel again.
        self.disturbed(began)
        self.drained = time.time() - began
        if not self.more:
            return Verdict(self.load.closed(), Hub(self.hub.book), self.disturbances)
        return Verdict(self.load.closed(), Hub(self.hub.book, self.more.watched), self.disturbances, self.more.differing(self))

    def proven(self):
        """The verdict; fails with everything that must not be, in the books or of what writers and pushers met."""
        verdict = self.verdict()
        print(verdict)
        found = (verdict.failures, self.findings, self.load.findings)
        assert found == ({}, [], []), found
        return verdict
