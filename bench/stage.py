"""Where a part plays: a server of its own, a database with the extension, and a receiver.

The server's settings are those of the tables in docs/performance.md, and what is measured is durable: fsync is on."""

import contextlib
import shutil

from receiver import Receiver
from support.database import Database
from support.server import Server

SETTINGS = {
    "fsync": "on", "full_page_writes": "on", "shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "1h",
    "jit": "off", "synchronous_commit": "off", "autovacuum": "off", "maintenance_work_mem": "256MB",
}

SOURCE = """
    CREATE TABLE {name} (
        id bigint PRIMARY KEY, branch text NOT NULL, product int NOT NULL, quantity numeric(10, 2) NOT NULL,
        price numeric(10, 2) NOT NULL, sold_at timestamptz NOT NULL, note text)"""

# About 130 bytes a row.
ROWS = """
    SELECT n, 'store-' || n % 50, (n * 7919 % 10000)::int, (n % 90 + 1)::numeric(10, 2), (n % 10000 / 100.0)::numeric(10, 2),
           timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second', 'sold at counter ' || n % 12 || ', paid in cash'
      FROM generate_series({first}::bigint, {last}) n"""


@contextlib.contextmanager
def stage(run, name, **settings):
    """Yields a Stage whose server has `settings` beyond the usual (`sync_outbox__x` is `sync_outbox.x`)."""
    receiver = Receiver()
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    server = Server(run, name, preload=True, settings={**SETTINGS, "sync_outbox.enabled": "off", **settings}).start()
    with server.connect() as admin:
        admin.execute("CREATE DATABASE bench")
    db = Database(server, "bench")
    try:
        db.run("CREATE EXTENSION sync_outbox")
        db.aim(receiver)
        yield Stage(server, db, receiver)
    finally:
        db.close()
        server.stop("immediate")
        receiver.close()
        shutil.rmtree(server.data)  # gigabytes of WAL, of which the next part keeps as many


class Stage:
    def __init__(self, server, db, receiver):
        self.server = server
        self.db = db
        self.receiver = receiver

    def create_source(self, name):
        self.db.run(f"DROP TABLE IF EXISTS {name}")
        self.db.run(SOURCE.format(name=name))

    def insert(self, name, rows, first=1):
        self.db.run(f"INSERT INTO {name} {ROWS.format(first=first, last=first + rows - 1)}")

    def fill(self, rows):
        """Puts that many captured INSERTs into the outbox, and nothing else to write is left to the server."""
        self.db.run("TRUNCATE sync_outbox")
        self.create_source("sales")
        self.db.attach("sales")
        self.insert("sales", rows)
        self.db.run("DROP TABLE sales")
        self.db.run("CHECKPOINT")

    def workers(self, *kinds):
        """The pids of our background processes of these kinds: "launcher", "worker"."""
        names = [f"sync_outbox {kind}" for kind in kinds]
        rows = self.db.rows("SELECT pid FROM pg_stat_activity WHERE backend_type = ANY(%s)", [names])
        return [row.pid for row in rows]
