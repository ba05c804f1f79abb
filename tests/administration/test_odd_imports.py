"""Rows of an old outbox that no library wrote: strange times, keys and operations stop nobody."""

import pytest

from support.wait import wait_for

OLD = "CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json, dedup_key text, created_at timestamptz)"
READS = ["SELECT * FROM sync_outbox_overview()", "SELECT * FROM sync_outbox_stats()", "SELECT sync_outbox_flush()",
         "CALL sync_outbox_drain()"]


@pytest.mark.parametrize("when", ["infinity", "-infinity", "294276-01-01", "4713-01-01 BC"])
@pytest.mark.parametrize("statement", READS)
def test_a_strange_time_in_an_old_outbox_stops_nobody(db, receiver, when, statement):
    db.aim(receiver)
    db.run(OLD + f"""; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{{"id": 1}}', '{{"id": 1}}', NULL, '{when}')""")
    db.run("SELECT sync_outbox_import('old')")
    db.run(statement)


@pytest.mark.parametrize("pk, data", [("null", "null"), ("1", "2"), ("[]", "[1]"), ('"x"', '{}'), ("{}", "{}"), ('{"id": {"a": 1}}', 'null'),
                                      ('{"id":1,"id":2}', '{"id":3}')])
@pytest.mark.parametrize("op", ["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
def test_a_strange_row_in_an_old_outbox_stops_nobody(db, receiver, pk, data, op):
    db.aim(receiver)
    db.run(OLD)
    db.run("INSERT INTO old VALUES (1, 's', 't', %s, %s, %s), (2, 's', 'u', 'INSERT', '{\"id\": 1}', '{\"id\": 1}')", [op, pk, data])
    db.run("SELECT sync_outbox_import('old')")
    for statement in READS:
        db.run(statement)
    assert db.value("SELECT count(*) FROM sync_outbox WHERE status = 'PENDING'") == 0


def test_a_live_worker_and_an_infinite_time(live, receiver):
    live.aim(receiver)
    live.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    live.run("SELECT sync_outbox_import('old')")
    wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox") == 0)


def test_a_change_of_an_infinite_time_stops_no_flush(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    db.run("SELECT sync_outbox_import('old')")
    # As it is when the hub has refused it once and it waits for its next time.
    db.run("UPDATE sync_outbox SET status = 'FAILED', next_attempt_at = now() + interval '1 hour'")
    db.run("INSERT INTO sales VALUES (1)")
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox WHERE table_name = 'sales'") == 0


def test_a_change_of_an_infinite_time_stops_no_worker(live, receiver):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY)")
    live.attach("sales")
    live.run(OLD + """; INSERT INTO old VALUES (1, 's', 't', 'INSERT', '{"id": 1}', '{"id": 1}', NULL, '-infinity')""")
    live.run("BEGIN; SELECT sync_outbox_import('old'); UPDATE sync_outbox SET status = 'FAILED', next_attempt_at = now() + interval '1 hour'; COMMIT")
    for n in range(5):
        live.run("INSERT INTO sales VALUES (%s)", [n])
        wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox WHERE table_name = 'sales'") == 0)
