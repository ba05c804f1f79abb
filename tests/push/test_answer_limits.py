"""Answers that are large or deeply nested end neither a session nor the server, and take a bounded amount of memory."""

import json
import time

import psycopg
import pytest

from support.large import nested_json
from support.process import MB, peak_memory
from support.wait import wait_for


@pytest.mark.parametrize("rows", [1000, 5000])
@pytest.mark.parametrize("kind", ["acked", "words"])
def test_an_answer_of_very_many_parts_is_no_crash(new_server, new_receiver, rows, kind):
    """As long as an answer may be (4 kB for each change), made of parts of two bytes."""
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; RESET client_min_messages;"
           " CREATE TABLE sales (id int PRIMARY KEY)")
    length = rows * 4096 // 2

    def behaviour(request, wire):
        key = request.keys[0]
        wire.answer(200, {"acked": '{"acked":[' + "1," * length + "1]}",
                          "words": '{"errors":[{"dedup_key":"%s","error":[' % key + "1," * length + "1]}]}"}[kind])
    receiver = new_receiver(behaviour)
    db.aim(receiver)
    db.attach("sales")
    server.set(sync_outbox__batch_rows=str(rows), sync_outbox__batch_bytes="64MB")
    db.run(f"INSERT INTO sales SELECT generate_series(1, {rows})")
    bystander = db.session()
    try:
        with db.session() as session:
            print(session.execute("SELECT sync_outbox_flush()::text").fetchone()[0][:300])
    except psycopg.OperationalError as error:
        assert error.sqlstate, f"the server went away: {error}"
    bystander.execute("SELECT 1")


def own(new_server, receiver, **options):
    server = new_server(preload=True, **options)
    database = server.create_database()
    database.run("CREATE EXTENSION sync_outbox")
    database.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, note text)")
    database.attach("sales")
    return server, database


def test_an_answer_does_not_overflow_the_workers_stack(new_server, receiver):
    """Words that are JSON are read as a value: strings in it that hold JSON are followed without a limit."""
    server, db = own(new_server, receiver)

    def bomb(request, wire):
        body = json.dumps({"acked": [], "errors": [{"dedup_key": request.keys[0], "error": "BOMB"}]})
        wire.answer(200, body.replace('"BOMB"', nested_json(400)))
    receiver.behaviour = bomb
    position = server.log.position()
    db.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 1000) n")
    db.aim(receiver)
    receiver.wait_for_requests(2, 20)
    answered = ("SELECT consecutive_failures > 0 OR EXISTS (SELECT FROM sync_outbox WHERE error_message IS NOT NULL)"
                " FROM sync_outbox_target_state")
    wait_for(lambda: db.value(answered), 20)
    print(len(receiver.requests), [r.raw and len(r.raw) for r in receiver.requests[:5]])
    assert not server.log.matches("terminated by signal", position)


@pytest.mark.parametrize("rows", [1000, 20_000])
def test_the_memory_of_an_answer_is_bounded(sales, receiver, rows):
    sales.server.set(sync_outbox__batch_rows=rows, sync_outbox__batch_bytes="64MB")
    sales.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {rows}) n")

    def large(request, wire):
        most = 64 * 1024 + 4096 * len(request.changes) - 100
        wire.answer(200, '{"acked": [' + "0," * (most // 2 - 20) + "0]}")
    receiver.behaviour = large
    with sales.session() as session:
        began = time.monotonic()
        print(session.execute("SELECT sync_outbox_flush()::text").fetchone()[0][:300])
        most = peak_memory(session.info.backend_pid)
    print(rows, "rows ->", most, "MiB", round(time.monotonic() - began, 1), "s",
          [len(r.changes) for r in receiver.requests])
    assert most < 300


def test_an_imported_key_does_not_overflow_the_workers_stack(new_server, receiver):
    """What an application wrote into the scripts' outbox is stored with us: the worker dies of it again and again."""
    server, db = own(new_server, receiver)
    server.set(sync_outbox__retry_interval="200ms")
    db.run("CREATE TABLE old (id bigserial PRIMARY KEY, schema_name text, table_name text, op text, pk jsonb,"
           " data jsonb, dedup_key text,"
           "txid bigint DEFAULT txid_current(), created_at timestamptz DEFAULT now())")
    db.run("INSERT INTO old (schema_name, table_name, op, pk, dedup_key)"
           " VALUES ('public', 'sales', 'DELETE', %s::jsonb, gen_random_uuid()::text)",
           ['{"id": ' + nested_json(260, nest=100) + "}"])
    position = server.log.position()
    receiver.behaviour = lambda request, wire: wire.answer(200, {"acked": [], "errors": [
        {"dedup_key": key, "error": "no"} for key in request.keys]})
    db.run("SELECT sync_outbox_import('old')")
    db.aim(receiver)
    # It has survived the answer, keeping what it refused for later, and looking at that again.
    receiver.wait_for_requests(3, 20)
    died = server.log.matches("terminated by signal", position)
    print(len(receiver.requests), died)
    assert not died
