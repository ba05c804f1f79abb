"""pg_upgrade: what waited comes along, nothing is sent until the new cluster is adopted, and then every change arrives once
and in order.

From the server of PG_CONFIG to the one whose pg_config NEWER_PG_CONFIG names, into which the extension has been installed.
Where that is not set, from 15 to the 16 of `make postgresql-16`."""

import os
import pathlib
import re
import shlex
from collections import Counter

import pytest

from support import behaviours, old_site, prefix
from support.copies import CLONED, kept
from support.database import TOKEN, Database
from support.document import Document
from support.ledger import Ledger
from support.run import Run
from support.server import Server
from support.wait import wait_for
from support.workers import reconnected, shop_on

POSTGRESQL_16 = prefix.PROJECT / "target" / "postgresql-16" / "bin" / "pg_config"

# What an operator writes into the new cluster's postgresql.conf as it stood in the old one's. One refusal is enough to die.
SETTINGS = {"sync_outbox.max_attempts": "1", "sync_outbox.retry_max_interval": "1s"}

# Every table of the extension whose rows somebody would miss, but for the state that follows the sending.
KEPT = [
    "SELECT * FROM sync_outbox ORDER BY id", "SELECT * FROM sync_outbox_attached ORDER BY 1, 2",
    "SELECT * FROM sync_outbox_target ORDER BY 1", "SELECT * FROM sync_outbox_identity", "SELECT * FROM sync_outbox_discarded",
    "SELECT * FROM sync_outbox_history ORDER BY id",
]

# What the 16 of `make postgresql-16` cannot take, taken away: it is built without lz4, and it is 16.14, older than a version
# that 15.20 notes in the options of every column it makes.
ACCEPTABLE = """
    ALTER TABLE sync_outbox ALTER pk SET COMPRESSION pglz, ALTER data SET COMPRESSION pglz, ALTER old SET COMPRESSION pglz;
    SET allow_system_table_mods = on;
    UPDATE pg_attribute
       SET attoptions = (SELECT array_agg(option) FROM unnest(attoptions) AS option WHERE option NOT LIKE 'pg_attver=%')
     WHERE attrelid >= 16384 AND attoptions IS NOT NULL"""

REFUSED = 77


def major(run):
    """The major version of a run's programs."""
    return int(re.search(r"\(PostgreSQL\) (\d+)", run.call("postgres", "--version"))[1])


def newer_pg_config(run):
    """The pg_config of the newer server; skips, or fails on a CI machine, where there is none."""
    named = os.environ.get("NEWER_PG_CONFIG")
    if named:
        return pathlib.Path(named)
    if major(run) != 15:
        pytest.skip(f"no server newer than PostgreSQL {major(run)} is named by NEWER_PG_CONFIG")
    if not POSTGRESQL_16.exists():
        missing = f"no PostgreSQL 16 in {POSTGRESQL_16.parents[1]}: make postgresql-16"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return POSTGRESQL_16


@pytest.fixture(scope="module")
def newer(run, worker_name):
    """The test run, with the programs of the newer server."""
    pg_config = newer_pg_config(run)
    programs = f"newer_bindir_{worker_name}"
    (run.where / programs).symlink_to(prefix.copy(pg_config, run.where / f"newer_pg_{worker_name}"))
    newer = Run(run.where, programs)
    assert major(newer) > major(run), f"{pg_config} is not newer than the server of PG_CONFIG"
    newer.require("sync_outbox")
    newer.acceptable = ACCEPTABLE if pg_config == POSTGRESQL_16 else "SELECT"
    yield newer
    newer.close()


@pytest.fixture
def hub(receiver):
    """A receiver that wants the token, and refuses one sale."""
    receiver.behaviour = behaviours.require_token(TOKEN, then=behaviours.refuse(lambda change: change["pk"]["id"] == REFUSED))
    return receiver


@pytest.fixture
def old(new_server, newer, hub):
    """A stopped server: three changes delivered, one dead, and a backlog of all kinds from while the hub was away."""
    server = new_server(preload=True, settings=SETTINGS)
    shop = shop_on(server, hub)
    shop.run("CREATE TABLE prices (id int, branch text, price numeric, PRIMARY KEY (id, branch)) PARTITION BY LIST (branch)")
    shop.run("CREATE TABLE prices_rest PARTITION OF prices DEFAULT")
    shop.attach("prices", branch_column="branch", priority="HIGH")
    shop.run("INSERT INTO sales VALUES (1, 1), (2, 2), (3, 3)")
    shop.run("INSERT INTO sales VALUES (%s, 0)", [REFUSED])
    wait_for(lambda: [change.status for change in shop.outbox()] == ["DEAD"], what="one dead change")

    hub.stop()
    shop.run("INSERT INTO sales SELECT n, n FROM generate_series(100, 399) n")
    shop.run("UPDATE sales SET qty = qty + 1 WHERE id < 200")
    shop.run("UPDATE sales SET id = id + 1000 WHERE id BETWEEN 150 AND 159")
    shop.run("DELETE FROM sales WHERE id BETWEEN 300 AND 349")
    shop.run("INSERT INTO prices SELECT n, 'S1', 0.99 FROM generate_series(1, 50) n")
    wait_for(lambda: shop.outbox("status = 'FAILED'"), what="a change that found no hub")
    # No worker writes any more.
    server.set(sync_outbox__enabled="off")
    server.restart()
    server.shop = shop = reconnected(shop)
    shop.run(newer.acceptable)
    server.source = shop.value("SELECT source FROM sync_outbox_identity")
    server.kept = {query: shop.rows(query) for query in KEPT}
    shop.close()
    server.stop()
    return server


def upgraded(old, newer, watched, mode):
    """What an operator does: initdb, settings, the command of docs/operations.md, start."""
    data = newer.directory(f"{old.name}_{mode}")
    # Both clusters must have checksums or neither; since 18 initdb makes them unless it is told not to.
    newer.initialise(data, *(["--no-data-checksums"] if major(old.run) < 18 <= major(newer) else []))
    server = Server(newer, data.name, preload=True, settings=SETTINGS, data=data)
    places = {
        "/usr/lib/postgresql/15/bin": old.run.bindir, "/usr/lib/postgresql/16/bin": newer.bindir,
        "/srv/15": old.data, "/srv/16": data, "--link": f"--{mode}",
    }
    [block] = Document("docs/operations.md").below("Major upgrade")
    program, *arguments = shlex.split(block.text)
    assert places.keys() <= set(arguments)
    newer.call(program, *[places.get(argument, argument) for argument in arguments],
               "-U", "postgres", "--socketdir", server.sockets, cwd=server.sockets)
    return watched(server.start())


def delivered(hub):
    """How often each change was taken."""
    return Counter(key for request in list(hub.requests) for key in request.applied)


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_what_waited_comes_along_and_is_sent_once_the_new_cluster_is_adopted(old, newer, watched, hub, mode):
    before = delivered(hub)
    hub.start()
    asked = len(hub.requests)
    new = upgraded(old, newer, watched, mode)
    shop = Database(new, old.shop.name)
    assert shop.value("SELECT current_setting('server_version_num')::int / 10000") == major(newer)

    # All there, and silent: the server's system identifier is another one.
    assert {query: shop.rows(query) for query in KEPT} == old.kept
    wait_for(lambda: new.log.matches(CLONED), what="the worker's warning")
    assert new.log.matches("HINT:  SELECT sync_outbox_adopt\\('same'\\);")
    shop.run("INSERT INTO sales VALUES (5, 5)")
    assert shop.flushed()["error"] == "cloned"
    assert len(hub.requests) == asked

    # Adopted, it would send; the token stayed in the old data directory, in a file whose name is not that of the new one.
    shop.run("SELECT sync_outbox_adopt('same')")
    wait_for(lambda: shop.row("SELECT auth FROM sync_outbox_overview()").auth, what="a token that is missing")
    assert len(hub.requests) == asked
    shop.run("UPDATE sales SET qty = 6 WHERE id = 5")
    captured = shop.keys()
    shop.run("SELECT sync_outbox_set_token(%s)", [TOKEN])
    assert kept(new).keys().isdisjoint(kept(old))
    wait_for(lambda: [change.pk["id"] for change in shop.outbox()] == 2 * [REFUSED], what="the dead change and what it holds back")

    # Somebody decides about the dead one, as in the old cluster.
    hub.behaviour = behaviours.require_token(TOKEN)
    shop.run("SELECT sync_outbox_requeue()")
    wait_for(lambda: shop.outbox() == [], what="an empty outbox")
    ledger = Ledger(hub.requests)
    assert delivered(hub) == before + Counter(captured)
    assert ledger.in_order([*before, *captured])
    for table in ("sales", "prices"):
        held = sorted(ledger.rows(table), key=lambda row: row["id"])
        assert held == [row for (row,) in shop.rows(f"SELECT to_jsonb({table}) FROM {table} ORDER BY id")]
    assert shop.value("SELECT source FROM sync_outbox_identity") == old.source
    shop.close()
    new.stop()


def test_objects_of_0_1_0_come_along_and_are_updated_in_the_new_cluster(new_server, newer, watched, receiver):
    """Somebody goes to the new PostgreSQL first: the new library makes the old objects there."""
    old = new_server(preload=True, settings=old_site.SETTINGS)
    with old.connect() as admin:
        admin.execute(old_site.ROLES)
    site = old_site.restore(old)
    known = old_site.Known(site, receiver)
    site.run(newer.acceptable)
    site.close()
    old.stop()
    new = upgraded(old, newer, watched, "copy")
    site = Database(new, site.name)
    assert site.value("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'") == "0.1.0"
    assert site.keys() == known.backlog

    with old_site.Writers(site) as writers:
        writers.go_on()
        with new.connect(site.name) as session:
            session.execute("SET lock_timeout = '10s'; ALTER EXTENSION sync_outbox UPDATE")
        old_site.adopt(site, receiver)
        writers.go_on()
    assert not writers.findings, writers.findings
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    site.close()
    new.stop()
