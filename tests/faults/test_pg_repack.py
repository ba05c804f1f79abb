"""pg_repack rewrites the outbox, or an attached table, while everybody goes on: it copies the rows, follows what is written
meanwhile by a trigger of its own, and swaps the files in the end."""

import pytest

from support.plans import modifications
from support.stand import SETTINGS, Stand
from support.wait import wait_for

ROUNDS = 3


@pytest.fixture
def repack(run):
    """Rewrites a table of a database with pg_repack."""
    run.require("pg_repack")

    def repacked(server, database, table):
        before = server.value(f"SELECT pg_relation_filenode('{table}')", database)
        run.call("pg_repack", "--host", server.sockets, "--username", "postgres", "--dbname", database, "--table", table)
        assert server.value(f"SELECT pg_relation_filenode('{table}')", database) != before
    return repacked


@pytest.mark.parametrize("table", ["sync_outbox", "stock"])
def test_pg_repack_under_writers_worker_flush_and_drain(repack, new_server, tmp_path, table):
    server = new_server(preload=True, settings=SETTINGS)
    with Stand(server, tmp_path, seed=6) as stand:
        stand.run("CREATE EXTENSION pg_repack")
        for _ in range(ROUNDS):
            written, arrived = stand.load.counted, len(stand.hub.requests())
            repack(server, stand.db.name, table)
            wait_for(lambda: stand.load.counted > written + 500 and len(stand.hub.requests()) > arrived + 5, 30,
                     "writers and requests that go on")
        stand.proven()


def test_a_backlog_is_repacked_while_the_hub_is_away(repack, new_server, tmp_path):
    """The rows themselves are moved: of a busy outbox pg_repack finds few."""
    server = new_server(preload=True, settings=SETTINGS)
    with Stand(server, tmp_path, seed=7) as stand:
        stand.run("CREATE EXTENSION pg_repack")
        stand.hub.behave("refused")
        wait_for(lambda: stand.load.counted > 5000, 60, "a backlog")
        repack(server, stand.db.name, "sync_outbox")
        stand.proven()


def test_afterwards_capture_and_settling_are_as_fast_as_before(repack, sales):
    """Both go without SQL statements again, in a session that has seen the outbox before."""
    sales.run("CREATE EXTENSION pg_repack")
    sales.run("INSERT INTO sales VALUES (1)")
    sales.flush()
    repack(sales.server, sales.name, "sync_outbox")

    assert modifications(sales, "INSERT INTO sales VALUES (2), (3)", "Insert") == 0
    assert modifications(sales, "SELECT sync_outbox_flush()", "Delete") == 0
    assert sales.outbox() == []


def test_with_its_trigger_they_are_not(sales):
    """What the test above would see: while a trigger looks on, both take the slower way."""
    sales.run("""CREATE FUNCTION look_on() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER look_on AFTER INSERT OR UPDATE OR DELETE ON sync_outbox FOR EACH ROW EXECUTE FUNCTION look_on()""")

    assert modifications(sales, "INSERT INTO sales VALUES (2), (3)", "Insert") == 2
    assert modifications(sales, "SELECT sync_outbox_flush()", "Delete") > 0
    assert sales.outbox() == []
