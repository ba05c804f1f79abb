"""A new library meets the tables of an old version, and ALTER EXTENSION UPDATE comes while everybody works.

These versions are made up, each with what a release can change: in 0.0.8 the outbox has a column less,
in 0.0.9 a table that the sender writes has two less, and 0.2.1 gives the outbox one more and its view as well. A database gets
old by an update to an old version, which leaves it as if the library under it had been replaced by today's."""

import os
import subprocess

import pytest
from psycopg import errors

from support.ledger import Ledger
from support.stand import SETTINGS, Stand
from support.wait import wait_for
from support.workers import shop_on

QUEUE = """CREATE VIEW @extschema@.sync_outbox_queue AS
    SELECT o.id, t.name AS target, o.status, o.attempt_count, o.error_message {} FROM @extschema@.sync_outbox o
      LEFT JOIN @extschema@.sync_outbox_target t ON t.id OPERATOR(pg_catalog.=) o.target_id;"""
SCRIPTS = {
    "0.2.0--0.0.8": f"""DROP VIEW @extschema@.sync_outbox_queue;
        ALTER TABLE @extschema@.sync_outbox DROP reason;
        ALTER TABLE @extschema@.sync_outbox_discarded DROP reason;
        {QUEUE.format("")}""",
    "0.0.8--0.2.0": f"""DROP VIEW @extschema@.sync_outbox_queue;
        ALTER TABLE @extschema@.sync_outbox ADD reason text;
        ALTER TABLE @extschema@.sync_outbox_discarded ADD reason text;
        {QUEUE.format(", o.reason")}""",
    "0.2.0--0.0.9": "ALTER TABLE @extschema@.sync_outbox_target_state DROP drain_started_at, DROP drain_acked;",
    "0.0.9--0.2.0": """ALTER TABLE @extschema@.sync_outbox_target_state
        ADD drain_started_at timestamptz, ADD drain_acked bigint NOT NULL DEFAULT 0;""",
    "0.2.0--0.2.1": f"""DROP VIEW @extschema@.sync_outbox_queue;
        ALTER TABLE @extschema@.sync_outbox ADD noted_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp();
        {QUEUE.format(", o.reason, o.noted_at")}""",
}
UPDATE = "ALTER EXTENSION sync_outbox UPDATE"
# As a careful DBA: who waits for the lock on the outbox has everybody else wait behind it.
CAREFULLY = f"SET lock_timeout = '10s'; {UPDATE}"
TOO_OLD = 'the objects of extension "sync_outbox" are of version 0.0.9, too old for its library'


@pytest.fixture
def versions(run):
    """The scripts of the other versions, in the private prefix of the run; several processes may put them there."""
    sharedir = subprocess.check_output([run.bindir / "pg_config", "--sharedir"], text=True).strip()
    for name, script in SCRIPTS.items():
        path = f"{sharedir}/extension/sync_outbox--{name}.sql"
        with open(f"{path}.{os.getpid()}", "w") as new:
            new.write(script)
        os.rename(new.name, path)


@pytest.fixture
def old_shop(versions, new_server, receiver):
    """A shop whose tables are of an old version, on a server whose worker sends if it is enabled."""
    def make(version, enabled="off"):
        shop = shop_on(new_server(preload=True, settings={**SETTINGS, "sync_outbox.enabled": enabled}), receiver)
        shop.run(f"{UPDATE} TO '{version}'")
        return shop
    return make


def assert_all_arrived(shop, receiver, ids):
    ledger = Ledger(receiver.requests)
    assert (sorted(row["id"] for row in ledger.rows("sales")), ledger.duplicated(), shop.outbox()) == (ids, set(), [])


@pytest.mark.parametrize("statement", [
    "SELECT sync_outbox_flush()", "CALL sync_outbox_drain()", "SELECT * FROM sync_outbox_overview()",
    "SELECT sync_outbox_requeue()", "SELECT sync_outbox_attach('sales')"])
def test_what_needs_newer_tables_says_so_and_what_to_do(old_shop, receiver, statement):
    shop = old_shop("0.0.9")
    shop.run("INSERT INTO sales VALUES (1), (2)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
        shop.run(statement)

    assert refused.value.diag.message_primary == TOO_OLD
    assert refused.value.diag.message_hint == f"{UPDATE};"
    assert (receiver.requests, len(shop.outbox("status = 'PENDING'"))) == ([], 2)

    shop.run(UPDATE)
    shop.run(statement)
    shop.flush()
    assert_all_arrived(shop, receiver, [1, 2])


def test_a_worker_says_so_once_and_goes_on_after_the_update(old_shop, receiver):
    shop = old_shop("0.0.9", enabled="on")
    shop.run("INSERT INTO sales VALUES (1), (2)")
    wait_for(lambda: shop.rows("SELECT FROM pg_stat_activity WHERE query LIKE 'after an error, next try in%'"), 20)
    log = shop.server.log
    assert len(log.matches(f"WARNING:  {TOO_OLD}")) == len(log.matches(f"HINT:  {UPDATE};")) == 1
    assert receiver.requests == []

    shop.run(UPDATE)
    wait_for(lambda: shop.outbox() == [], 20, "an empty outbox")
    assert_all_arrived(shop, receiver, [1, 2])


def test_an_outbox_that_cannot_take_a_change_fails_the_writer_clearly(old_shop, receiver):
    """Rather that than a change that nobody hears of; also in a session that wrote before."""
    shop = old_shop("0.2.0")
    shop.run("INSERT INTO sales VALUES (1)")
    shop.run(f"{UPDATE} TO '0.0.8'")
    with pytest.raises(errors.UndefinedColumn) as refused:
        shop.run("INSERT INTO sales VALUES (2)")

    assert refused.value.diag.message_primary == 'the table sync_outbox has no column "reason"'
    assert refused.value.diag.message_hint.startswith(f"{UPDATE};")
    assert shop.value("SELECT array_agg(id) FROM sales") == [1]

    shop.run(UPDATE)
    shop.run("INSERT INTO sales VALUES (2)")
    shop.flush()
    assert_all_arrived(shop, receiver, [1, 2])


def test_tables_that_became_old_are_updated_under_load(versions, new_server, tmp_path):
    """While they are too old, writers go on, and nothing is sent; the update finds everything."""
    server = new_server(preload=True, settings=SETTINGS)
    with Stand(server, tmp_path, seed=8, pushers=False) as stand:
        wait_for(lambda: len(stand.hub.requests()) > 5, 20, "requests")
        stand.run(f"{CAREFULLY} TO '0.0.9'")
        wait_for(lambda: server.log.matches(TOO_OLD), 20, "a worker that complains")
        # A request can have been out when the worker complained: it has arrived by the time that so much is written.
        written = stand.load.counted
        wait_for(lambda: stand.load.counted > written + 1000, 20, "writers that go on")
        written, arrived = stand.load.counted, len(stand.hub.requests())
        wait_for(lambda: stand.load.counted > written + 2000, 20, "writers that go on")
        assert len(stand.hub.requests()) == arrived
        stand.run(CAREFULLY)
        wait_for(lambda: len(stand.hub.requests()) > arrived + 5, 60, "requests again")
        stand.proven()


def test_an_update_to_a_newer_version_under_load(versions, new_server, tmp_path):
    """A column and a view are new to the library, which goes on with them as with any other that a DBA has added."""
    server = new_server(preload=True, settings=SETTINGS)
    with Stand(server, tmp_path, seed=9) as stand:
        wait_for(lambda: len(stand.hub.requests()) > 5, 20, "requests")
        stand.run(f"{CAREFULLY} TO '0.2.1'")
        written, arrived = stand.load.counted, len(stand.hub.requests())
        wait_for(lambda: stand.load.counted > written + 2000 and len(stand.hub.requests()) > arrived + 5, 30,
                 "writers and requests that go on")
        stand.proven()
        version = stand.rows("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'")

    assert version == [("0.2.1",)]
