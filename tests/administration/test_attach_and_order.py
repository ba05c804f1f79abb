"""Attach, backfill and import wait for each other and for writers, so that no change overtakes an earlier one of its
key."""

import threading

import pytest
from psycopg import errors

from support.wait import wait_for


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
