"""Order around administration, reasons, and keys in files: what two hostile readers broke in 0.1.0, by its number."""

import threading

import pytest
from psycopg import errors

from support import behaviours
from support.queued import put
from support.wait import wait_for
from test_tls import mutual  # noqa: F401


# 9: attach, backfill and import

@pytest.fixture
def stock(db, receiver):
    db.aim(receiver)
    db.run("""CREATE TABLE stock (id int PRIMARY KEY, qty int); INSERT INTO stock SELECT n, 0 FROM generate_series(1, 3) n;
              INSERT INTO sync_outbox_target (name, base_url) VALUES ('second', 'https://hub.example.org')""")
    db.attach("stock", priority="LOW")
    return db


ELSEWHERE = {"priority": {"priority": "HIGH"}, "target": {"priority": "LOW", "target": "second"}}


def attach(session, relation, **options):
    named = "".join(f", {name} => %({name})s" for name in options)
    session.execute(f"SELECT sync_outbox_attach(%(relation)s{named})", {"relation": relation, **options})


def refused_attach(db, error, **options):
    """A person who waits for no lock for long."""
    session = db.session()
    session.execute("SET lock_timeout = '200ms'")
    with pytest.raises(error) as refused:
        attach(session, options.pop("relation", "stock"), **options)
    assert refused.value.diag.message_hint


@pytest.mark.parametrize("change", ELSEWHERE)
def test_defect_09_attach_does_not_pass_a_backfill_that_is_not_committed(stock, receiver, change):
    backfill = stock.session(autocommit=False)
    backfill.execute("SELECT sync_outbox_backfill('stock', priority => 'LOW')")
    refused_attach(stock, errors.LockNotAvailable, **ELSEWHERE[change])
    backfill.commit()
    refused_attach(stock, errors.ObjectNotInPrerequisiteState, **ELSEWHERE[change])

    stock.run("UPDATE stock SET qty = 2")
    assert stock.flushed()["ok"]
    for id in (1, 2, 3):
        assert [change["op"] for change in receiver.changes if change["pk"]["id"] == id] == ["INSERT", "UPDATE"]
    attach(stock.session(), "stock", **ELSEWHERE[change])


def test_defect_09_a_backfill_that_is_rolled_back_is_in_nobodys_way(stock):
    backfill = stock.session(autocommit=False)
    backfill.execute("SAVEPOINT a; SELECT sync_outbox_backfill('stock'); ROLLBACK TO a")
    attach(stock.session(), "stock", priority="HIGH")
    backfill.rollback()


@pytest.mark.parametrize("change", ELSEWHERE)
def test_defect_09_a_backfill_does_not_pass_an_attach_that_is_not_committed(stock, change):
    attacher, backfill = stock.session(autocommit=False), stock.session()
    attach(attacher, "stock", **ELSEWHERE[change])
    backfill.execute("SET lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable) as refused:
        backfill.execute("SELECT sync_outbox_backfill('stock')")
    assert refused.value.diag.message_hint
    attacher.commit()
    backfill.execute("SELECT sync_outbox_backfill('stock')")
    assert {change.target_id for change in stock.outbox()} == {2 if change == "target" else 1}


def test_defect_09_who_waits_for_a_backfill_keeps_no_writer_waiting(stock):
    backfill, attacher = stock.session(autocommit=False), stock.session()
    backfill.execute("SELECT sync_outbox_backfill('stock', 'id = 1')")

    def wait():
        try:
            attach(attacher, "stock", priority="HIGH")
        except errors.DatabaseError:
            pass
    thread = threading.Thread(target=wait)
    thread.start()
    pid = attacher.info.backend_pid
    wait_for(lambda: stock.rows("SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]))
    stock.run("SET statement_timeout = '1s'; INSERT INTO stock VALUES (9, 9); UPDATE stock SET qty = 1 WHERE id = 2; SELECT FROM stock")
    # Other options are no other lane.
    attach(stock.session(), "stock", priority="LOW", include_old=True)
    backfill.rollback()
    thread.join()


def test_defect_09_two_backfills_at_a_time(stock):
    one, two = stock.session(autocommit=False), stock.session(autocommit=False)
    one.execute("SELECT sync_outbox_backfill('stock', 'id = 1')")
    two.execute("SELECT sync_outbox_backfill('stock', 'id > 1')")
    one.commit()
    two.commit()
    assert len(stock.outbox()) == 3


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_defect_09_no_backfill_in_a_transaction_that_keeps_one_snapshot(stock, level):
    """It would put the rows where the table's changes went when the transaction began."""
    session = stock.session(autocommit=False)
    session.execute(f"SET TRANSACTION ISOLATION LEVEL {level}; SELECT FROM stock")
    attach(stock.session(), "stock", target="second")
    with pytest.raises(errors.ActiveSqlTransaction) as refused:
        session.execute("SELECT sync_outbox_backfill('stock')")
    assert refused.value.diag.message_hint


@pytest.mark.parametrize("change", ELSEWHERE)
@pytest.mark.parametrize("statement", ["INSERT INTO stock VALUES (9, 0)", "DELETE FROM stock"])
def test_defect_09_attach_waits_for_writers(stock, change, statement):
    """And looks at what they wrote after it has waited, with a snapshot of its own."""
    writer, attacher = stock.session(autocommit=False), stock.session()
    writer.execute(statement)
    refused_attach(stock, errors.LockNotAvailable, **ELSEWHERE[change])
    result = []

    def wait():
        try:
            attach(attacher, "stock", **ELSEWHERE[change])
        except errors.DatabaseError as error:
            result.append(error)
    thread = threading.Thread(target=wait)
    thread.start()
    pid = attacher.info.backend_pid
    wait_for(lambda: stock.rows("SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]))
    writer.commit()
    thread.join()
    assert isinstance(result[0], errors.ObjectNotInPrerequisiteState), result


@pytest.mark.parametrize("change", ELSEWHERE)
def test_defect_09_attach_waits_for_who_writes_to_a_partition(stock, change):
    stock.run("""CREATE TABLE parts (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
                 CREATE TABLE middle PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
                 CREATE TABLE leaf PARTITION OF middle FOR VALUES FROM (0) TO (10)""")
    stock.attach("parts", priority="LOW")
    writer = stock.session(autocommit=False)
    writer.execute("INSERT INTO leaf VALUES (1, 1)")
    refused_attach(stock, errors.LockNotAvailable, relation="parts", **ELSEWHERE[change])
    writer.commit()
    refused_attach(stock, errors.ObjectNotInPrerequisiteState, relation="parts", **ELSEWHERE[change])


def test_defect_09_no_other_lane_in_a_transaction_that_keeps_one_snapshot(stock):
    session = stock.session(autocommit=False)
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM stock")
    stock.run("UPDATE stock SET qty = 5")
    with pytest.raises(errors.ActiveSqlTransaction):
        attach(session, "stock", priority="HIGH")


@pytest.fixture
def old(stock):
    """An outbox that scripts made, with a change of an attached table and one of a table that is not."""
    stock.run("""CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json);
                 CREATE TABLE loose (id int PRIMARY KEY);
                 INSERT INTO old VALUES (1, 'public', 'stock', 'INSERT', '{"id": 1}', '{"id": 1}'),
                                        (2, 'public', 'loose', 'INSERT', '{"id": 1}', '{"id": 1}')""")
    return stock


@pytest.mark.parametrize("relation", ["stock", "loose"])
@pytest.mark.parametrize("change", ELSEWHERE)
def test_defect_09_attach_does_not_pass_an_import_that_is_not_committed(old, relation, change):
    importer = old.session(autocommit=False)
    importer.execute("SELECT sync_outbox_import('old')")
    refused_attach(old, errors.LockNotAvailable, relation=relation, **ELSEWHERE[change])
    importer.commit()
    refused_attach(old, errors.ObjectNotInPrerequisiteState, relation=relation, **ELSEWHERE[change])


@pytest.mark.parametrize("relation", ["stock", "loose"])
def test_defect_09_an_import_does_not_pass_an_attach_that_is_not_committed(old, relation):
    attacher, importer = old.session(autocommit=False), old.session()
    attach(attacher, relation, priority="HIGH")
    importer.execute("SET lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable) as refused:
        importer.execute("SELECT sync_outbox_import('old')")
    assert refused.value.diag.message_hint
    attacher.commit()
    importer.execute("SELECT sync_outbox_import('old')")
    assert [change.priority for change in old.outbox("table_name = %r" % relation)] == ["HIGH"]


def test_defect_09_an_import_goes_where_later_changes_of_its_table_wait(old):
    """Of a table that was detached since: what is imported is older, and would come after them."""
    old.attach("loose", priority="HIGH")
    old.run("INSERT INTO loose VALUES (7)")
    old.run("SELECT sync_outbox_detach('loose')")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="loose") as refused:
        old.run("SELECT sync_outbox_import('old')")
    assert refused.value.diag.message_hint
    old.attach("loose", priority="HIGH")
    assert old.value("SELECT sync_outbox_import('old')") == 2


def test_attaching_and_importing_in_one_transaction(old):
    """As the page about the scripts says."""
    session = old.session(autocommit=False)
    attach(session, "loose", priority="HIGH")
    session.execute("SELECT sync_outbox_import('old')")
    session.execute("SELECT sync_outbox_backfill('stock')")
    session.commit()
    assert len(old.outbox()) == 5


# 9: whoever is sending hears of it

def test_defect_09_a_token_reaches_the_worker_whatever_transaction_it_is_set_in(live, receiver):
    live.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    live.run(f"""SELECT sync_outbox_configure('{{"webapp_base_url": "{receiver.url}"}}'); CREATE TABLE stock (id int PRIMARY KEY)""")
    live.attach("stock")
    live.run("INSERT INTO stock VALUES (1)")
    wait_for(lambda: live.rows("SELECT FROM sync_outbox_overview() WHERE auth = 'missing'"), what="a worker that has no token")
    live.session(options="-c default_transaction_read_only=on").execute("SELECT sync_outbox_set_token('t0ken')")
    wait_for(lambda: live.outbox() == [], what="sent")


# 24: reasons

CALLS = {"requeue": "sync_outbox_requeue(reason => %s)", "discard": "sync_outbox_discard('{}', %s)",
         "pause": "sync_outbox_pause(reason => %s)"}


def say(db, call, reason):
    return db.value(f"SELECT {CALLS[call]}", [reason])


@pytest.mark.parametrize("call", ["requeue", "discard"])
@pytest.mark.parametrize("reason", ["abc", "", "  typo  ", "ñññ"])
def test_defect_24_a_reason_says_something(db, call, reason):
    put(db, status="DEAD")
    with pytest.raises(errors.CheckViolation) as refused:
        say(db, call, reason)
    assert "at least 5 characters" in refused.value.diag.message_primary and refused.value.diag.message_hint
    assert [change.status for change in db.outbox()] == ["DEAD"]
    assert db.rows("SELECT FROM sync_outbox_history") == []


def test_defect_24_a_requeue_needs_no_reason(db):
    put(db, status="DEAD")
    assert say(db, "requeue", None) == 1
    assert say(db, "requeue", " ñañañ ") == 0


@pytest.mark.parametrize("call", CALLS)
def test_defect_24_a_reason_has_an_end(db, call):
    for reason in ("ñ" * 1001, "x" * 2_000_000):
        with pytest.raises(errors.StringDataRightTruncation) as refused:
            say(db, call, reason)
        assert "1000 characters" in refused.value.diag.message_primary and refused.value.diag.message_hint
    say(db, call, " " + "ñ" * 1000 + "\n")


# 23: the key of a client certificate

@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_defect_23_a_key_that_others_can_read_is_refused(mutual, mode):  # noqa: F811
    key = mutual.files["client_key_file"]
    key.chmod(mode)
    with pytest.raises(errors.ConfigFileError) as refused:
        mutual.flush()
    why = f"the file named by sync_outbox.client_key_file can be read or written by others (its mode is {mode:04o})"
    assert refused.value.diag.message_primary == why
    assert mutual.receiver.connections == 0
    (setting,) = [row.settings["client_key_file"] for row in mutual.rows("SELECT * FROM sync_outbox_overview()")]
    assert setting["error"] == why

    key.chmod(0o640)
    assert mutual.flushed()["ok"]
    assert "error" not in mutual.value("SELECT settings FROM sync_outbox_overview()")["client_key_file"]


def test_defect_23_a_key_of_somebody_else_is_refused(mutual):  # noqa: F811
    import os
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(mutual.files["client_key_file"], 12345, -1)
    mutual.files["client_key_file"].chmod(0o600)
    with pytest.raises(errors.ConfigFileError):
        mutual.flush()


def test_defect_23_certificates_are_no_secret(mutual):  # noqa: F811
    for name in ("ca_file", "client_cert_file"):
        mutual.files[name].chmod(0o644)
    assert mutual.flushed()["ok"]


# The third suspicion: JSON nested deeper than a parser follows

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
