"""Arguments that are very long or deeply nested are refused before anything is done, and end no server. Arrays of ids
are taken in any form."""

import psycopg
import pytest
from psycopg import errors

from support.hub_database import own_hub
from support.large import nested_json
from support.process import MB

CALLS = {
    "requeue ids": "SELECT sync_outbox_requeue(array_fill(1::bigint, ARRAY[{n} / 8]))",
    "discard ids": "SELECT sync_outbox_discard(array_fill(1::bigint, ARRAY[{n} / 8]), 'for no reason')",
    "requeue target": "SELECT sync_outbox_requeue(target => repeat('x', {n}))",
    "flush branch": "SELECT sync_outbox_flush(branch => repeat('x', {n}))",
    "flush target": "SELECT sync_outbox_flush(target => repeat('x', {n}))",
    "target name": "SELECT sync_outbox_target_set(repeat('x', {n}), '{{}}')",
    "target config": "SELECT sync_outbox_target_set('x', json_build_object(repeat('x', {n}), 1))",
    "configure": "SELECT sync_outbox_configure(json_build_object(repeat('x', {n}), 1))",
    "columns": "SELECT sync_outbox_attach('t', columns => ARRAY[repeat('x', {n})])",
    "condition": "SELECT sync_outbox_backfill('t', repeat(' ', {n}) || 'true')",
    "import": "SELECT sync_outbox_import('old')",
    "drain branch": "CALL sync_outbox_drain(branch => repeat('x', {n}))",
    "drain target": "CALL sync_outbox_drain(target => repeat('x', {n}))",
    "discard reason": "SELECT sync_outbox_discard('{{1}}', repeat(' ', {n}))",
    "pause": "SELECT sync_outbox_pause(repeat('x', {n}))",
    "resume": "SELECT sync_outbox_resume(repeat('x', {n}))",
    "target drop": "SELECT sync_outbox_target_drop(repeat('x', {n}))",
    "token": "SELECT sync_outbox_set_token(repeat('x', {n}))",
    "token target": "SELECT sync_outbox_set_token('x', repeat('x', {n}))",
    "adopt": "SELECT sync_outbox_adopt(repeat(' ', {n}))",
    "stats": "SELECT * FROM sync_outbox_stats(repeat('x', {n}))",
    "priority": "SELECT sync_outbox_attach('t', repeat('x', {n}))",
    "attach target": "SELECT sync_outbox_attach('t', target => repeat('x', {n}))",
    "key columns": "SELECT sync_outbox_attach('t', key_columns => array_fill('id'::name, ARRAY[{n} / 64]))",
    "operations": "SELECT sync_outbox_attach('t', operations => array_fill(''::text, ARRAY[{n} / 4]))",
    "configured list": "SELECT sync_outbox_configure(('{{\"uploads_local_to_remote\": [1' || repeat(',1',"
                       " {n} / 2) || ']}}')::json)",
}


@pytest.fixture
def limited(new_server):
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    db.operator = db.role("operator", "sync_outbox_operator")
    yield db


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("size", [120, 200])
def test_no_argument_ends_the_server(limited, call, size):
    db = limited
    db.run("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    db.attach("t")
    db.run(f"""DROP TABLE IF EXISTS old;
        CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json, dedup_key text);
        INSERT INTO old SELECT n, 's', 't', 'INSERT', '{{"id": 1}}', '{{"id": 1}}', 'x' FROM generate_series(1, 2) n""")
    if call == "import":
        try:
            db.run(f"UPDATE old SET dedup_key = repeat('x', {size * MB})")
        except psycopg.Error:
            pytest.skip("no memory for the table")
    session = db.session(user="postgres" if call != "requeue ids" else db.operator)
    try:
        session.execute(CALLS[call].format(n=size * MB))
    except psycopg.Error as error:
        assert error.sqlstate, f"the server went away: {error}"
    assert db.value("SELECT 1") == 1
    session.close()


@pytest.mark.parametrize("call", [
    "SELECT sync_outbox_flush(target => repeat('x', (1 << 20) + 1))",
    "CALL sync_outbox_drain(branch => repeat('x', (1 << 20) + 1))",
    "SELECT sync_outbox_stats(repeat('x', (1 << 20) + 1))",
    "SELECT sync_outbox_configure(to_json(repeat('x', 1 << 20)))",
    "SELECT sync_outbox_attach('sync_outbox', columns => ARRAY[repeat('x', 1 << 20), 'y'])",
    "SELECT sync_outbox_attach('sync_outbox', exclude => array_fill('x'::text, ARRAY[1601]))",
    "SELECT sync_outbox_attach('sync_outbox', key_columns => array_fill('x'::name, ARRAY[1601]))",
])
def test_an_argument_that_is_too_long_is_refused_before_anything_is_done(db, call):
    with pytest.raises(errors.ProgramLimitExceeded, match="is too long") as caught:
        db.run(call)
    assert caught.value.diag.message_detail and caught.value.diag.message_hint


def test_a_text_of_a_mebibyte_is_taken(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    db.attach("t")
    assert db.value("SELECT sync_outbox_backfill('t', repeat(' ', (1 << 20) - 6) || 'id = 1')") == 1


def test_a_million_ids_and_a_null(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    db.run("INSERT INTO t SELECT generate_series(1, 3)")
    db.run("UPDATE sync_outbox SET status = 'DEAD' WHERE (pk->>'id')::int < 3")
    assert db.value("SELECT sync_outbox_requeue(ARRAY(SELECT generate_series(2, 1000000)) || NULL::bigint)") == 1
    assert db.value("SELECT sync_outbox_discard(ARRAY(SELECT generate_series(1, 1000000)) || NULL::bigint,"
                    " 'no longer wanted')") == 3


@pytest.mark.parametrize("call", ["sync_outbox_configure(%s::json)", "sync_outbox_target_set('x', %s::json)"])
def test_a_configuration_does_not_overflow_the_stack(new_server, call):
    hub = own_hub(new_server)
    admin = hub.db.role("adm", "sync_outbox_admin")
    session = hub.db.session(user=admin)
    with pytest.raises(psycopg.Error) as raised:
        session.execute("SELECT " + call, ['{"webapp_base_url": ' + nested_json(400) + "}"])
    print(str(raised.value)[:200])
    assert raised.value.sqlstate and not hub.db.server.log.matches("terminated by signal")


def test_ids_from_a_stored_array(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE arrays (n int, ids bigint[])")
    db.attach("t")
    db.run("INSERT INTO t SELECT generate_series(1, 50); UPDATE sync_outbox SET status = 'DEAD'")
    db.run("INSERT INTO arrays SELECT 0, ARRAY(SELECT generate_series(1, 5000))")
    assert db.value("SELECT sum(sync_outbox_requeue(ids)) FROM arrays") == 50
    db.run("UPDATE sync_outbox SET status = 'DEAD'")
    db.run("""DO $$ DECLARE ids bigint[] := '{}'; n bigint; BEGIN
        FOR i IN 1..1000 LOOP ids := ids || i::bigint; END LOOP;
        n := sync_outbox_requeue(ids); IF n <> 50 THEN RAISE 'n %', n; END IF;
        n := sync_outbox_discard(ids[10:20], 'no longer wanted'); IF n <> 11 THEN RAISE 'n %', n; END IF;
        n := sync_outbox_discard(ids, 'no longer wanted'); IF n <> 39 THEN RAISE 'n %', n; END IF;
        PERFORM sync_outbox_requeue('{}'), sync_outbox_requeue(ARRAY[[1, 2], [3, 4]]::bigint[]);
    END $$""")
