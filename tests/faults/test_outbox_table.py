"""What happens to the table: the disk is full, somebody holds it, rewrites it, or gives it another shape."""

import contextlib
import os
import subprocess

import psycopg
import pytest

from support import run as runs
from support.ledger import Ledger
from support.wait import wait_for
from support.workers import shop_on

ROWS = 20_000


@contextlib.contextmanager
def small_disk(directory, megabytes):
    """A file system of its own, so small that it fills up."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=777", "none", directory]).returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        runs.own(directory)
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_fails_the_writer_and_loses_nothing(new_server, receiver, run):
    """The writer gets PostgreSQL's own error, what committed before is delivered, and then there is room again."""
    with small_disk(run.where / f"disk_{os.getpid()}", 16) as disk:
        server = new_server(preload=True)
        shop = shop_on(server, receiver)
        server.set(sync_outbox__enabled="off")
        shop.run(f"CREATE TABLESPACE small LOCATION '{disk}'")
        shop.run("ALTER TABLE sync_outbox SET TABLESPACE small")
        committed = 0
        with pytest.raises(psycopg.errors.DiskFull):
            for block in range(1000):
                shop.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series({block * 1000 + 1}, {block * 1000 + 1000}) n")
                committed += 1000
        assert shop.value("SELECT count(*) FROM sales") == shop.value("SELECT count(*) FROM sync_outbox") == committed > 0

        server.set(sync_outbox__enabled="on")
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 60)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        shop.run("INSERT INTO sales VALUES (0, 0)")
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 20)
        ledger = Ledger(receiver.requests)
        assert sorted(row["id"] for row in ledger.rows("sales")) == list(range(committed + 1))
        assert ledger.duplicated() == set()
        shop.run("ALTER TABLE sync_outbox SET TABLESPACE pg_default")
        shop.run("DROP TABLESPACE small")
        server.stop()


def test_an_outbox_with_an_index_of_a_dbas_own_is_settled_at_speed(sales):
    """Nothing is known about the new rows yet; a plan that believes there is one must not compare each with all others."""
    sales.run("CREATE INDEX of_a_dba ON sync_outbox (created_at)")
    sales.run("ANALYZE sync_outbox")
    sales.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {ROWS}) n")

    sales.run("SET statement_timeout = '20s'")
    sales.run("CALL sync_outbox_drain()")
    assert sales.outbox() == []


@pytest.mark.parametrize("statement", ["VACUUM FULL sync_outbox", "CLUSTER sync_outbox USING sync_outbox_pkey", "REINDEX TABLE sync_outbox"])
def test_invariant_07_rewritten_while_a_request_is_out(sales, receiver, statement):
    """Every row is somewhere else when the answer comes, and where it was there is no block any more."""
    with sales.session(autocommit=False) as session:
        session.execute("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20000) n")
        session.rollback()
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 3000) n")
    other = sales.session()
    rewrites = []

    def rewrite_then_ack(request, wire):
        rewrites.append(other.execute(statement))
        acks(request, wire)
    acks = receiver.behaviour
    receiver.script(rewrite_then_ack)
    # A drain holds no lock on the outbox while its request is out; a flush would.
    sales.run("CALL sync_outbox_drain()")

    ledger = Ledger(receiver.requests)
    assert (len(rewrites), sales.outbox(), ledger.duplicated()) == (1, [], set())
    assert len(ledger.rows("sales")) == 3000


def test_a_lock_on_the_outbox_delays_and_loses_nothing(live, receiver):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    with live.session(autocommit=False) as holder:
        holder.execute("LOCK TABLE sync_outbox IN SHARE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable), live.session() as writer:
            writer.execute("SET lock_timeout = '100ms'")
            writer.execute("INSERT INTO sales VALUES (1, 0)")
        holder.rollback()
    live.run("INSERT INTO sales VALUES (1, 0)")

    wait_for(lambda: live.outbox() == [])
    assert [change["pk"]["id"] for change in receiver.changes] == [1]


@pytest.mark.parametrize("statement, error", [
    ("ALTER SEQUENCE sync_outbox_id_seq MAXVALUE 2", psycopg.errors.SequenceGeneratorLimitExceeded),
    ("ALTER TABLE sync_outbox ADD CHECK (op <> 'UPDATE')", psycopg.errors.CheckViolation),
    ("ALTER TABLE sync_outbox DROP COLUMN data", psycopg.Error),
    ("ALTER TABLE sync_outbox ALTER pk SET DATA TYPE int USING 0", psycopg.Error),
    ("ALTER TABLE sync_outbox RENAME TO elsewhere", psycopg.Error),
], ids=["ids used up", "a constraint", "a column less", "another type", "another name"])
def test_capture_that_cannot_write_fails_the_writer(sales, statement, error):
    """Better no sale than one that the hub never hears of."""
    sales.run("INSERT INTO sales VALUES (1, 0), (2, 0)")
    sales.run("SET client_min_messages = error")
    sales.run(statement)
    with pytest.raises(error):
        sales.run("UPDATE sales SET qty = 1")

    assert sales.value("SELECT max(qty) FROM sales") == 0


@pytest.mark.expects_log("sync_outbox_target_state")
def test_delivery_that_cannot_work_fails_no_writer(live, receiver):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    live.run("ALTER TABLE sync_outbox_target_state RENAME TO elsewhere")
    for sale in range(100):
        live.run("INSERT INTO sales VALUES (%s, 0)", [sale])
    assert len(live.outbox()) == 100

    live.run("ALTER TABLE elsewhere RENAME TO sync_outbox_target_state")
    wait_for(lambda: live.outbox() == [], 30)
    assert sorted(change["pk"]["id"] for change in receiver.changes) == list(range(100))
