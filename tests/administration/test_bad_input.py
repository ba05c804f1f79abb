"""Bad input: a clear error with SQLSTATE and HINT, and nothing is lost or half done."""

import json
import re

import pytest
from psycopg import errors

from support.run import own

BAD_ARGUMENT = "22023"
# A table that exists but cannot be attached: of the wrong kind, or not in the needed state.
UNSUITABLE = ("42809", "55000", "0A000", "22023")


@pytest.fixture
def refused(sales):
    """refused(sqlstate(s), statement, parameters): raised, explained, and everything is as before."""
    sales.run("INSERT INTO sales VALUES (1, 1)")

    def everything():
        return [sales.rows(query) for query in (
            "SELECT to_jsonb(o)::text FROM sync_outbox o ORDER BY id", "SELECT * FROM sync_outbox_attached ORDER BY 1",
            "SELECT tgrelid, tgname, tgargs FROM pg_trigger ORDER BY 1, 2", "SELECT * FROM sync_outbox_target ORDER BY id",
            "SELECT count(*) FROM sync_outbox_discarded", "SELECT * FROM sync_outbox_accepted", "SELECT * FROM sales")]

    def check(sqlstates, statement, parameters=None, session=None):
        before = everything()
        with pytest.raises(errors.Error) as raised:
            (session or sales.conn).execute(statement, parameters)
        assert raised.value.sqlstate in ([sqlstates] if isinstance(sqlstates, str) else sqlstates), raised.value
        message, hint = raised.value.diag.message_primary, raised.value.diag.message_hint
        assert hint, f"no HINT: {message}"
        assert re.match(r'^([a-z"]|URL|HTTP|JSON)', message) and not message.endswith("."), message
        assert hint.endswith((".", "?", ";")), hint
        if session is None:
            assert everything() == before
        return raised.value.diag
    return check


# What cannot be attached

def test_an_unknown_table(sales):
    """regclass itself says so, before the function is called; there is no HINT to give."""
    with pytest.raises(errors.UndefinedTable):
        sales.attach("nowhere")


@pytest.mark.parametrize("create, relation", [
    ("CREATE VIEW v AS SELECT 1 AS id", "v"),
    ("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id", "mv"),
    ("CREATE SEQUENCE seq", "seq"),
    ("CREATE INDEX sales_qty ON sales (qty)", "sales_qty"),
    ("CREATE TYPE pair AS (a int)", "pair"),
    ("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE ft (id int) SERVER s", "ft"),
    ("CREATE TEMP TABLE tt (id int PRIMARY KEY)", "tt"),
    ("SELECT", "pg_catalog.pg_class"),
    ("SELECT", "information_schema.sql_features"),
    ("SELECT", "sync_outbox"), ("SELECT", "sync_outbox_target"), ("SELECT", "sync_outbox_history"),
    ("SELECT", "sync_outbox_queue"),
])
def test_what_is_no_table_of_the_user(sales, refused, create, relation):
    sales.run(create)
    refused(UNSUITABLE + ("42501",), "SELECT sync_outbox_attach(%s)", [relation])


@pytest.mark.parametrize("create", [
    "CREATE TABLE t (id int)",
    "CREATE TABLE t (id int UNIQUE)",
    "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)",
    "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX ON t (id) WHERE id > 0",
    "CREATE TABLE t (id text NOT NULL); CREATE UNIQUE INDEX ON t (lower(id))",
    "CREATE TABLE t (id int, during int4range, EXCLUDE USING gist (during WITH &&))",
], ids=["none", "nullable", "deferrable", "partial", "expression", "exclusion"])
def test_invariant_03_no_usable_key(sales, refused, create):
    sales.run(create)
    refused(UNSUITABLE, "SELECT sync_outbox_attach('t')")


@pytest.mark.parametrize("create, columns", [
    ("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL)", ["code"]),
    ("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE)", ["code"]),
    ("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE DEFERRABLE)", ["code"]),
    ("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL); CREATE UNIQUE INDEX ON t (code) WHERE id > 0", ["code"]),
    ("CREATE TABLE t (a int NOT NULL, b int NOT NULL, UNIQUE (a, b))", ["a"]),
], ids=["not unique", "nullable", "deferrable", "partial", "half of it"])
def test_key_columns_that_are_no_key(sales, refused, create, columns):
    sales.run(create)
    refused(UNSUITABLE, "SELECT sync_outbox_attach('t', key_columns => %s::name[])", [columns])


@pytest.mark.parametrize("arguments", [
    "columns => '{id,nothing}'", "exclude => '{nothing}'", "branch_column => 'nothing'", "key_columns => '{nothing}'",
    "columns => '{id,ctid}'"])
def test_an_unknown_column(refused, arguments):
    refused("42703", f"SELECT sync_outbox_attach('sales', {arguments})")


@pytest.mark.parametrize("arguments", [
    "priority => 'URGENT'", "priority => ''", "operations => '{UPSERT}'", "operations => '{}'",
    "operations => '{INSERT,NULL}'", "columns => '{id,NULL}'"])
def test_attach_arguments(refused, arguments):
    refused((BAD_ARGUMENT, "22004"), f"SELECT sync_outbox_attach('sales', {arguments})")


def test_an_unknown_target(refused):
    refused(("42704", BAD_ARGUMENT), "SELECT sync_outbox_attach('sales', target => 'nowhere')")
    refused(("42704", BAD_ARGUMENT), "SELECT sync_outbox_flush(target => 'nowhere')")
    refused(("42704", BAD_ARGUMENT), "SELECT sync_outbox_pause('nowhere')")
    refused(("42704", BAD_ARGUMENT), "SELECT sync_outbox_requeue(target => 'nowhere')")


def test_nulls_where_a_value_is_needed(refused):
    for call in ("sync_outbox_attach(NULL)", "sync_outbox_detach(NULL)", "sync_outbox_configure(NULL)",
                 "sync_outbox_discard(NULL, 'five letters')"):
        refused((BAD_ARGUMENT, "22004"), f"SELECT {call}")


# URLs and tokens

@pytest.mark.parametrize("url", [
    "hub.example.org", "//hub.example.org", "ftp://hub.example.org", "file:///etc/passwd", "http://", "https://",
    "https://user:secret@hub.example.org", "https://user@hub.example.org", "https://hub.example.org/?x=1",
    "https://hub.example.org/#x", "https://hub.example.org\r\nX-Evil: 1", "https://hub example.org", "",
    "https://hub.example.org:99999", "http://hub.example.org", "http://10.0.0.1", "http://127.0.0.1.example.org"])
def test_urls(refused, url):
    diag = refused(BAD_ARGUMENT, "SELECT sync_outbox_configure(%s::json)", [json.dumps({"webapp_base_url": url})])
    assert "secret" not in diag.message_primary + (diag.message_detail or "") + diag.message_hint


def test_plain_http_to_another_host_where_it_is_allowed(sales):
    sales.server.set(sync_outbox__allow_http="on")
    sales.configure(webapp_base_url="http://10.0.0.1")


def test_the_url_of_a_target_set_by_hand_is_checked_before_it_is_used(sales, refused):
    sales.run("UPDATE sync_outbox_target SET base_url = 'gopher://x'")
    refused((BAD_ARGUMENT, "F0000", "55000"), "SELECT sync_outbox_flush()")


@pytest.mark.parametrize("token", ["", " ", "a b", "a\r\nX-Evil: 1", "tab\t", "é", "\x7f", "x" * 20_000],
                         ids=["empty", "space", "two words", "two lines", "tab", "not ASCII", "control", "too long"])
def test_tokens(refused, token):
    for statement in ("SELECT sync_outbox_set_token(%s)", "SELECT sync_outbox_configure(json_build_object('sync_upload_token', %s::text))"):
        diag = refused(BAD_ARGUMENT, statement, [token])
        assert "Evil" not in diag.message_primary + (diag.message_detail or "")


def test_invariant_21_a_bad_tokens_statement_is_not_logged(sales):
    position = sales.server.log.position()
    with pytest.raises(errors.InvalidParameterValue):
        sales.run("SELECT sync_outbox_set_token('canary 4242')")

    assert "canary" not in sales.server.log.since(position)


def test_no_token_to_keep(refused):
    refused((BAD_ARGUMENT, "55000"), "SELECT sync_outbox_set_token()")


@pytest.fixture
def untold(new_server, receiver):
    """A database whose URL comes from the settings, so that a token file of the settings belongs to it."""
    server = new_server(settings={"sync_outbox.base_url": receiver.url})
    db = server.create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run("INSERT INTO sales VALUES (1)")
    return db


def write_token(database, content, mode=0o600):
    path = database.server.data / "token_file"
    path.write_text(content)
    path.chmod(mode)
    own(path)
    database.server.set(sync_outbox__upload_token_file=path)


def test_a_token_file(untold, receiver):
    write_token(untold, "t0ken\n")

    assert untold.flushed()["acked"] == 1
    assert receiver.requests[0].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("content, mode", [("", 0o600), ("\n", 0o600), ("t0ken", 0o644), ("t0ken", 0o604), ("a b", 0o600), ("x\ny\n", 0o600), ("x" * 100_000, 0o600)],
                         ids=["empty", "newline", "0644", "0604", "space", "two lines", "large"])
def test_token_files_that_are_not_used(untold, receiver, content, mode):
    write_token(untold, content, mode)
    assert_token_file_refused(untold, receiver)


def test_a_token_file_that_is_missing(untold, receiver):
    untold.server.set(sync_outbox__upload_token_file=untold.server.data / "nowhere")
    assert_token_file_refused(untold, receiver)


def assert_token_file_refused(database, receiver):
    with pytest.raises(errors.Error) as raised:
        database.flush()
    assert raised.value.sqlstate in ("F0000", "58P01", "42501", "22023", "55000"), raised.value
    assert "upload_token_file" in raised.value.diag.message_hint
    assert "t0ken" not in str(raised.value)
    assert receiver.requests == []
    assert len(database.outbox()) == 1


# Settings

@pytest.mark.parametrize("setting", [
    "batch_rows = 0", "batch_rows = -1", "batch_bytes = -1", "batch_bytes = 0", "interval = -1", "retry_interval = -1",
    "retry_max_interval = '-1s'", "connect_timeout = -1", "request_timeout = 0", "flush_timeout = -1", "lock_wait = -2",
    "max_attempts = 0", "history_retention = -1", "worker_idle_timeout = -1"])
def test_settings_out_of_range(sales, setting):
    sales.run("LOAD 'sync_outbox'")
    with pytest.raises(errors.InvalidParameterValue):
        sales.run(f"ALTER SYSTEM SET sync_outbox.{setting}")


@pytest.mark.parametrize("url", ["hub.example.org", "ftp://hub.example.org", "https://user:secret@hub.example.org", "http://10.0.0.1"])
def test_a_url_of_the_settings_is_checked_before_it_is_used(new_server, url):
    db = new_server(settings={"sync_outbox.base_url": url, "sync_outbox.upload_token": "t0ken"}).create_database()
    db.run("CREATE EXTENSION sync_outbox")
    with pytest.raises(errors.Error) as raised:
        db.flush()

    assert raised.value.sqlstate in (BAD_ARGUMENT, "F0000", "55000"), raised.value
    assert raised.value.diag.message_hint
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("setting", ["base_url", "upload_token", "enabled", "batch_rows", "request_timeout", "ca_file", "max_attempts"])
def test_delivery_settings_cannot_be_set_in_a_session(sales, setting):
    with pytest.raises(errors.CantChangeRuntimeParam):
        sales.run(f"SET sync_outbox.{setting} = '5'")


def test_unknown_settings_are_refused(sales):
    sales.run("LOAD 'sync_outbox'")
    with pytest.raises(errors.Error) as raised:
        sales.run("SET sync_outbox.bach_rows = 5")
    assert raised.value.sqlstate in ("42602", "42704")


# Configuration of the wrong shape

@pytest.mark.parametrize("config", [
    "[]", '"x"', "5", "null", '{"webapp_base_url": 5}', '{"webapp_base_url": null, "sync_upload_token": 5}',
    '{"sync_upload_token": ["x"]}', '{"uploads_local_to_remote": "sales"}', '{"uploads_local_to_remote": {"sales": true}}',
    '{"uploads_local_to_remote": [5]}', '{"uploads_local_to_remote": [{}]}', '{"uploads_local_to_remote": [{"table": 5}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "priority": 1}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "priority": "URGENT"}]}', '{"uploads_local_to_remote": [null]}'])
def test_configurations(refused, config):
    refused(BAD_ARGUMENT, "SELECT sync_outbox_configure(%s::json)", [config])


@pytest.mark.parametrize("table, sqlstates", [
    ("nowhere", "42P01"), ("no.where", ("42P01", "3F000")), ("", (BAD_ARGUMENT, "42P01", "42602")), ("a.b.c.d", (BAD_ARGUMENT, "42601", "42P01", "0A000", "42602")),
    ('sales"; DROP TABLE sales', ("42P01", BAD_ARGUMENT, "42602")), ("sync_outbox", UNSUITABLE)])
def test_configured_tables(refused, table, sqlstates):
    refused(sqlstates, "SELECT sync_outbox_configure(%s::json)", [json.dumps({"uploads_local_to_remote": ["sales", table]})])


# Flush, drain, requeue, discard

@pytest.mark.parametrize("arguments", ["max_rows => -1", "target => ''"])
def test_flush_arguments(refused, arguments):
    refused((BAD_ARGUMENT, "22004", "42704"), f"SELECT sync_outbox_flush({arguments})")


@pytest.mark.parametrize("mode, sqlstate", [
    ("ISOLATION LEVEL REPEATABLE READ", "25001"), ("ISOLATION LEVEL SERIALIZABLE", "25001"), ("READ ONLY", "25006")])
def test_invariant_08_flush_in_a_transaction_that_cannot(sales, refused, receiver, mode, sqlstate):
    session = sales.session(autocommit=False)
    session.execute(f"SET TRANSACTION {mode}")
    refused(sqlstate, "SELECT sync_outbox_flush()", session=session)

    assert receiver.requests == []


def test_invariant_14_drain_in_a_transaction(sales, refused, receiver):
    session = sales.session(autocommit=False)
    diag = refused("25001", "CALL sync_outbox_drain()", session=session)

    assert "sync_outbox_flush()" in diag.message_hint
    assert receiver.requests == []


def test_invariant_14_drain_inside_a_function(sales):
    with pytest.raises(errors.Error) as raised:
        sales.run("DO $$ BEGIN PERFORM 1; BEGIN CALL sync_outbox_drain(); EXCEPTION WHEN division_by_zero THEN NULL; END; END $$")
    assert raised.value.sqlstate in ("25001", "2D000")


def test_invariant_08_flush_on_a_standby(new_server, run):
    primary = new_server(settings={"wal_level": "replica"})
    db = primary.create_database()
    db.run("CREATE EXTENSION sync_outbox")
    copy = run.directory(f"{primary.name}_standby")
    run.call("pg_basebackup", "-h", primary.sockets, "-U", "postgres", "-D", copy, "-R", "--checkpoint=fast", "--no-sync")
    standby = new_server(data=copy)

    with pytest.raises(errors.ObjectNotInPrerequisiteState) as raised:
        standby.connect(db.name).execute("SELECT sync_outbox_flush()")
    assert raised.value.diag.message_hint


@pytest.mark.parametrize("reason", [None, "", "oops", "     "])
def test_discard_without_a_reason(sales, refused, reason):
    refused("23514", "SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), %s)", [reason])


def test_invariant_29_direct_writes_are_refused(sales):
    clerk = sales.session(sales.role("clerk", "sync_outbox_admin"))
    for statement in ("DELETE FROM sync_outbox", "UPDATE sync_outbox SET status = 'DEAD'", "TRUNCATE sync_outbox",
                      "INSERT INTO sync_outbox_history (action) VALUES ('PUSH')"):
        with pytest.raises(errors.InsufficientPrivilege):
            clerk.execute(statement)


# Apply

@pytest.mark.parametrize("payload, sqlstates", [
    ("[]", BAD_ARGUMENT), ("5", BAD_ARGUMENT), ("null", BAD_ARGUMENT), ("{}", BAD_ARGUMENT), ('{"changes": 5}', BAD_ARGUMENT),
    ('{"changes": [5]}', BAD_ARGUMENT)])
def test_bodies_that_cannot_be_applied(refused, payload, sqlstates):
    refused(sqlstates, "SELECT sync_outbox_apply(%s::json)", [payload])


def test_a_body_that_is_not_json(sales):
    with pytest.raises(errors.InvalidTextRepresentation):
        sales.run("SELECT sync_outbox_apply('{\"changes\": ')")


def test_a_table_that_was_not_accepted_is_an_error_of_its_change(sales):
    key = "01920000-0000-7000-8000-000000000001"
    answer = sales.value("SELECT sync_outbox_apply(%s::json)", [json.dumps({"changes": [
        {"schema": "public", "table": "sales", "op": "INSERT", "pk": {"id": 9}, "data": {"id": 9}, "dedup_key": key}]})])

    assert answer["acked"] == []
    assert answer["errors"][0]["dedup_key"] == key
    assert sales.rows("SELECT * FROM sales") == []
