"""JSON that is nested deeper than a parser follows, in a key or beside one: changes wait for what they have to wait
for."""

import pytest
from psycopg import errors

from support import behaviours


def deep(depth=200):
    return "[" * depth + "1" + "]" * depth


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_suspicion_3_a_key_change_beside_a_deep_document_belongs_to_both_keys(db, receiver, type):
    db.aim(receiver)
    db.run(f"CREATE TABLE docs (id int PRIMARY KEY, doc {type})")
    db.attach("docs")
    db.run("INSERT INTO docs VALUES (1)")
    assert db.flushed()["ok"]
    db.server.set(sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    receiver.behaviour = behaviours.refuse(lambda change: (change["data"] or {}).get("id") == 2)
    db.run(f"UPDATE docs SET id = 2, doc = '{deep()}' WHERE id = 1")
    assert db.flushed()["failed"] == 1
    receiver.behaviour = behaviours.ack_all
    db.run("UPDATE docs SET doc = '7' WHERE id = 2; INSERT INTO docs VALUES (3)")
    answer = db.flushed()

    assert (answer["acked"], answer["blocked"]) == (1, 1), "only the row that has nothing to do with it"
    assert [change.op for change in db.outbox()] == ["UPDATE", "UPDATE"]
    stats = db.row("SELECT * FROM sync_outbox_stats()")
    assert (stats.total, stats.blocked) == (2, 1)


def test_suspicion_3_a_document_is_no_key(db):
    """So a key that is nested at all is one that a cast of somebody's makes, or one that was imported."""
    db.run("CREATE TABLE j (k jsonb PRIMARY KEY)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.attach("j")


def test_suspicion_3_an_imported_key_that_is_nested_too_deep_waits_for_its_whole_table(db, receiver):
    db.aim(receiver)
    db.server.set(sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    db.run("CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json)")
    db.run("INSERT INTO old VALUES (1, 'public', 'j', 'INSERT', %s, NULL), (2, 'public', 'j', 'INSERT', '{\"k\": 1}', NULL)",
           [f'{{"k": {deep()}}}'])
    db.run("SELECT sync_outbox_import('old')")
    receiver.behaviour = behaviours.refuse(lambda change: change["pk"]["k"] != 1)
    db.flush(max_rows=1)
    receiver.behaviour = behaviours.ack_all
    assert db.flushed().get("blocked") == 1
