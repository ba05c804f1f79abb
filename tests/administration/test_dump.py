"""Dumps, DROP EXTENSION, and a database that is a copy of another."""

import pytest
from psycopg import errors

from support import behaviours
from support.database import Database

TABLES = ["sync_outbox", "sync_outbox_target", "sync_outbox_identity", "sync_outbox_history", "sync_outbox_discarded",
          "sync_outbox_accepted", "sync_outbox_applied"]


@pytest.fixture
def used(db, receiver):
    """A database in which every table that a dump carries has something in it."""
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    db.aim(receiver)
    db.attach("sales", priority="HIGH", exclude=["qty"])
    db.run("SELECT sync_outbox_accept('sales')")
    db.run("INSERT INTO sales VALUES (1, 1), (2, 2), (3, 3)")
    receiver.behaviour = behaviours.ack(lambda change: change["pk"]["id"] == 1)
    db.flush()
    db.run("SELECT sync_outbox_discard(ARRAY[min(id)], 'given up on purpose') FROM sync_outbox")
    receiver.behaviour = behaviours.ack_all
    return db


def contents(database):
    return {table: database.rows(f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY 1") for table in TABLES}


def check_copy(used, receiver, name, make):
    """Makes a copy and checks it: all contents, no token, and it sends when it is adopted and given one."""
    before = contents(used)
    make(name)
    restored = Database(used.server, name)
    try:
        assert contents(restored) == before
        assert [row.priority for row in restored.rows("SELECT priority FROM sync_outbox_attached")] == ["HIGH"]
        requests = len(receiver.requests)
        assert restored.flushed()["error"] == "cloned"
        restored.run("SELECT sync_outbox_adopt('same')")
        missing = restored.flushed()
        assert (missing["auth"], missing["sent"], len(receiver.requests)) == ("missing", 0, requests)
        restored.run("INSERT INTO sales VALUES (4, 4)")
        restored.run("SELECT sync_outbox_requeue(); SELECT sync_outbox_set_token('another')")
        assert restored.flushed()["acked"] == 2
        restored.run("SELECT sync_outbox_pause()")
    finally:
        restored.close()
        used.server.drop_database(name)


def test_invariant_20_a_restored_dump_has_everything_but_the_token(used, receiver):
    def restore(name):
        used.server.run.call("createdb", "-h", used.server.sockets, "-U", "postgres", name)
        dump = used.server.run.call("pg_dump", "-h", used.server.sockets, "-U", "postgres", used.name)
        path = used.server.run.where / f"{name}.sql"
        path.write_text(dump)
        path.chmod(0o644)
        used.server.run.call("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", used.server.sockets, "-U", "postgres", "-d", name, "-f", path)
        assert "t0ken" not in dump
    check_copy(used, receiver, f"{used.name}_restored", restore)


def test_a_template_copy_has_everything_but_the_token(used, receiver):
    def clone(name):
        used.close()
        used.server.run.call("createdb", "-h", used.server.sockets, "-U", "postgres", "-T", used.name, name)
        used.conn = used.session()
    check_copy(used, receiver, f"{used.name}_clone", clone)


def test_drop_extension_needs_cascade_while_tables_are_attached(used):
    with pytest.raises(errors.DependentObjectsStillExist):
        used.run("DROP EXTENSION sync_outbox")
    used.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE")
    used.run("INSERT INTO sales VALUES (5, 5)")
    assert used.rows("SELECT FROM pg_roles WHERE rolname IN ('sync_outbox_admin', 'sync_outbox_operator')") == [(), ()]

    used.run("CREATE EXTENSION sync_outbox")
    assert used.outbox() == [] and used.rows("SELECT * FROM sync_outbox_attached") == []
