"""Defect 16: what a hub has acked survives a crash, whatever synchronous_commit says there."""

import json
import uuid
from concurrent import futures

import pytest
from psycopg import errors

from support.wait import wait_for

# The WAL writer, which writes asynchronous commits down, comes late.
SETTINGS = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "autovacuum": "off"}


def change(row, op="INSERT", table="sales"):
    return {"schema": "public", "table": table, "op": op, "pk": {"id": row}, "data": {"id": row, "qty": row}, "dedup_key": str(uuid.uuid4())}


def apply(session, *changes):
    body = json.dumps({"changes": changes})
    return session.execute("SELECT sync_outbox_apply(%s::json)", [body]).fetchone()[0]["acked"]


@pytest.fixture
def hub(new_server):
    db = new_server(settings=SETTINGS).create_database()
    db.run("SET synchronous_commit = on; SET client_min_messages = warning; CREATE EXTENSION sync_outbox;"
           "CREATE TABLE sales (id int PRIMARY KEY, qty int); SELECT sync_outbox_accept('sales'); RESET synchronous_commit")
    return db


def crash(db):
    db.close()
    db.server.stop("immediate")
    db.server.start()
    db.conn = db.session()


def remembered(db):
    return {str(row.dedup_key) for row in db.rows("SELECT dedup_key FROM sync_outbox_applied")}


@pytest.mark.expects_log("immediate shutdown")
def test_defect_16_acked_changes_survive_immediate_stops(hub):
    """Ten times fifty changes, each acked in a transaction of its own."""
    acked = []
    for stop in range(10):
        for row in range(stop * 50, stop * 50 + 50):
            acked += apply(hub.conn, change(row))
        crash(hub)
        assert set(acked) - remembered(hub) == set(), f"after stop {stop + 1}"
    assert len(acked) == 500
    assert hub.value("SELECT array_agg(id ORDER BY id) FROM sales") == list(range(500))


@pytest.mark.expects_log("immediate shutdown")
def test_defect_16_nobody_turns_it_off_again(hub):
    """Neither the caller afterwards, nor code of the table's owner, nor a savepoint that is rolled back."""
    hub.run("SET synchronous_commit = on")
    hub.run("""CREATE FUNCTION off() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); RETURN NEW; END $$;
        CREATE TRIGGER off BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION off(); ALTER TABLE sales ENABLE ALWAYS TRIGGER off""")
    with hub.session(autocommit=False) as caller:
        acked = apply(caller, change(1))
        caller.execute("SAVEPOINT s")
        apply(caller, change(2))
        caller.execute("ROLLBACK TO s; SET LOCAL synchronous_commit = off")
    crash(hub)
    assert remembered(hub) == set(acked)
    assert hub.value("SELECT array_agg(id) FROM sales") == [1]


@pytest.mark.expects_log("immediate shutdown")
def test_defect_16_a_retry_is_no_ack_of_what_may_vanish(hub):
    """What the hub knows already may have been committed by somebody who did not wait for the disk."""
    known = change(1)
    hub.run("INSERT INTO sales VALUES (1, 1)")
    hub.run("INSERT INTO sync_outbox_applied (dedup_key) VALUES (%s)", [known["dedup_key"]])
    assert apply(hub.conn, known) == [known["dedup_key"]]
    crash(hub)
    assert remembered(hub) == {known["dedup_key"]}
    assert hub.value("SELECT array_agg(id) FROM sales") == [1]


def test_defect_16_standbys_are_waited_for_as_the_server_says(hub):
    """More than the local disk is never taken away, and a retry waits for what it acks as well."""
    again = change(1)
    apply(hub.conn, again)
    hub.server.set(synchronous_commit="on", synchronous_standby_names="nobody")
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    for one in (change(2), again):
        with hub.session() as session, futures.ThreadPoolExecutor() as pool:
            acked = pool.submit(apply, session, one)
            wait_for(lambda: hub.rows(waits), what="a commit that waits for a standby")
            assert not acked.done()
            hub.rows(f"SELECT pg_cancel_backend(pid) FROM ({waits}) w")
            assert acked.result(10) == [one["dedup_key"]]
    with hub.session() as session:
        session.execute("SET synchronous_commit = off")
        assert apply(session, change(3))
    hub.server.set(synchronous_standby_names="")


@pytest.mark.parametrize("make", ["CREATE UNLOGGED TABLE u (id int PRIMARY KEY, qty int)",
                                  "CREATE TABLE u (id int PRIMARY KEY, qty int) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE leaf PARTITION OF u DEFAULT"])
def test_defect_16_an_unlogged_table_is_not_accepted(hub, make):
    """A crash empties it."""
    hub.run(make)
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
        hub.run("SELECT sync_outbox_accept('u')")
    assert "not permanent" in refused.value.diag.message_primary and refused.value.diag.message_hint
    hub.run("ALTER TABLE sales SET UNLOGGED")
    answer = hub.value("SELECT sync_outbox_apply(%s::json)", [json.dumps({"changes": [change(1)]})])
    assert answer["acked"] == [] and "a crash empties public.sales" in answer["errors"][0]["error"]
