"""sync_outbox_flush(): what it takes, in which order, and what it answers. Answers are compared as text where the
contract gives the text."""

import json
import threading

import pytest
from psycopg import errors

from support import behaviours
from support.database import TOKEN
from support.ledger import Ledger


def insert(database, *ids):
    for each in ids:
        database.run("INSERT INTO sales VALUES (%s, 0)", [each])


def sent_ids(receiver):
    return [change["pk"]["id"] for change in receiver.changes]


# The answer

def test_an_empty_queue_is_ok(sales):
    assert sales.flush() == '{"ok": true, "pending": 0, "sent": 0, "acked": 0}'


def test_max_rows_leaves_the_rest(sales, receiver):
    insert(sales, 1, 2, 3)

    assert sales.flush(max_rows=2) == '{"ok": false, "pending": 3, "sent": 2, "acked": 2}'
    assert sent_ids(receiver) == [1, 2]
    assert sales.flush(max_rows=2) == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_half_acked_leaves_exactly_the_other_half(sales, receiver):
    insert(sales, *range(10))
    keys = sales.keys()
    receiver.behaviour = behaviours.ack_half

    answer = sales.flushed()

    assert (answer["ok"], answer["pending"], answer["sent"], answer["acked"]) == (False, 10, 10, 5)
    assert sales.keys() == keys[1::2]


def test_invariant_18_nothing_is_attempted_twice_in_one_flush(sales, receiver):
    insert(sales, 1, 2, 3)
    receiver.behaviour = behaviours.ack_none

    answer = sales.flushed()

    assert (answer["ok"], answer["sent"], answer["acked"]) == (False, 3, 0)
    assert sent_ids(receiver) == [1, 2, 3]


def test_pending_counts_every_state_in_scope(sales, receiver):
    insert(sales, 1, 2, 3)
    receiver.behaviour = behaviours.conflict(lambda change: change["pk"]["id"] == 2)
    sales.flush()
    insert(sales, 4)
    receiver.behaviour = behaviours.ack_all

    answer = sales.flushed()

    assert (answer["ok"], answer["pending"], answer["sent"], answer["acked"]) == (False, 2, 1, 1)
    assert list(answer)[:4] == ["ok", "pending", "sent", "acked"]


# Order and batches

def test_priorities_go_high_normal_low(db, receiver):
    db.aim(receiver)
    for priority in ("LOW", "NORMAL", "HIGH"):
        db.run(f"CREATE TABLE t_{priority} (id int PRIMARY KEY)")
        db.attach(f"t_{priority}", priority=priority)
        db.run(f"INSERT INTO t_{priority} VALUES (1), (2)")

    assert db.flush() == '{"ok": true, "pending": 6, "sent": 6, "acked": 6}'
    assert [change["table"] for change in receiver.changes] == ["t_high"] * 2 + ["t_normal"] * 2 + ["t_low"] * 2


def test_batches_are_bounded_by_rows(sales, receiver):
    sales.server.set(sync_outbox__batch_rows=4)
    insert(sales, *range(10))

    assert sales.flushed()["acked"] == 10
    assert sent_ids(receiver) == list(range(10))
    assert max(len(request.changes) for request in receiver.requests) <= 4


def test_batches_are_bounded_by_bytes(sales, receiver):
    sales.server.set(sync_outbox__batch_bytes="64kB")
    sales.run("INSERT INTO sales SELECT n, 0, repeat('x', 10000) FROM generate_series(1, 30) n")

    assert sales.flushed()["acked"] == 30
    assert max(len(request.raw) for request in receiver.requests) <= 65536
    assert len(receiver.requests) >= 5


def test_a_change_larger_than_a_batch_goes_alone(sales, receiver):
    sales.server.set(sync_outbox__batch_bytes="64kB")
    sales.run("INSERT INTO sales VALUES (1, 0, ''), (2, 0, repeat('x', 500000)), (3, 0, '')")

    assert sales.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert sent_ids(receiver) == [1, 2, 3]


def test_invariant_06_many_changes_of_one_row_arrive_in_order(sales, receiver):
    sales.server.set(sync_outbox__batch_rows=7)
    insert(sales, 1)
    for qty in range(50):
        sales.run("UPDATE sales SET qty = %s", [qty + 1])
    keys = sales.keys()

    sales.flush()

    assert [change["dedup_key"] for change in receiver.changes] == keys
    assert Ledger(receiver.requests).rows("sales") == [{"id": 1, "qty": 50, "note": None}]


# What is not sent

def test_its_own_transactions_changes_are_not_sent(sales, receiver):
    with sales.conn.transaction():
        insert(sales, 1)
        assert sales.flushed()["sent"] == 0
    assert receiver.changes == []

    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_a_rolled_back_flush_gives_the_changes_back(sales, receiver):
    insert(sales, 1, 2)
    keys = sales.keys()
    with sales.conn.transaction(force_rollback=True):
        assert sales.flushed()["acked"] == 2

    assert sales.keys() == keys
    assert sales.flushed()["acked"] == 2
    assert Ledger(receiver.requests).duplicated() == set(keys)


def test_invariant_09_a_change_that_commits_late_is_still_sent(sales, receiver):
    late = sales.session(autocommit=False)
    late.execute("INSERT INTO sales VALUES (1)")
    insert(sales, 2, 3)
    assert sales.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'

    late.commit()
    insert(sales, 4)

    assert sales.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'
    assert sent_ids(receiver) == [2, 3, 1, 4]


def test_invariant_07_a_change_that_commits_during_the_flush_is_not_lost(sales, receiver):
    late = sales.session(autocommit=False)
    late.execute("INSERT INTO sales VALUES (1)")
    insert(sales, *range(2, 10))

    def commit_then_ack(request, wire):
        late.commit()
        behaviours.ack_all(request, wire)
    sales.server.set(sync_outbox__batch_rows=2)
    receiver.script(commit_then_ack)
    sales.flush()
    sales.flush()

    assert sorted(sent_ids(receiver)) == list(range(1, 10))
    assert sales.outbox() == []


def test_paused_sends_nothing(sales, receiver):
    insert(sales, 1)
    sales.run("SELECT sync_outbox_pause(reason => 'inventory')")

    assert sales.flush() == '{"ok": false, "pending": 1, "sent": 0, "acked": 0, "error": "paused"}'
    assert receiver.requests == []

    sales.run("SELECT sync_outbox_resume()")
    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_invariant_16_enabled_off_stops_only_automatic_sending(sales):
    sales.server.set(sync_outbox__enabled="off")
    insert(sales, 1)

    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


# Branches

@pytest.fixture
def branches(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE stock (id int PRIMARY KEY, store text, qty int)")
    db.attach("stock", branch_column="store")
    return db


def test_a_branch_flush_sends_that_branch(branches, receiver):
    branches.run("INSERT INTO stock VALUES (1, 'S1', 0), (2, 'S2', 0), (3, NULL, 0), (4, 'S1', 0)")

    assert branches.flush(branch="S1") == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'
    assert sent_ids(receiver) == [1, 4]
    assert branches.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'


def test_invariant_05_a_row_that_moved_to_another_branch_waits_for_the_earlier_change(branches, receiver):
    branches.run("INSERT INTO stock VALUES (1, 'S1', 0), (2, 'S2', 0)")
    branches.run("UPDATE stock SET store = 'S2' WHERE id = 1")

    answer = branches.flushed(branch="S2")

    assert (answer["acked"], answer["blocked"], answer["ok"]) == (1, 1, False)
    assert sent_ids(receiver) == [2]
    assert branches.flushed()["acked"] == 2
    assert [change["op"] for change in receiver.changes] == ["INSERT", "INSERT", "UPDATE"]


# One sender at a time, and none who waits on it for ever

@pytest.fixture
def hanging(sales, receiver):
    """A flush of another session that waits for its answer; a function that lets it go and returns its answer."""
    insert(sales, 1)
    receiver.script(receiver.hang)
    session = sales.session()
    answers = []

    def flush():
        try:
            answers.append(session.execute("SELECT sync_outbox_flush()::text").fetchone()[0])
        except Exception as error:
            answers.append(error)
    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    receiver.wait_for_requests(1)

    def finish():
        receiver.released.set()
        thread.join(10)
        return answers[0]
    finish.pid = session.info.backend_pid
    finish.answers = answers
    finish.thread = thread
    yield finish
    receiver.released.set()
    thread.join(10)


def test_a_second_flush_says_busy(sales, hanging):
    sales.server.set(sync_outbox__lock_wait="200ms")

    assert sales.flush() == '{"ok": false, "pending": 1, "sent": 0, "acked": 0, "error": "flush_busy"}'


def test_a_second_flush_waits_its_turn(sales, receiver, hanging):
    threading.Timer(0.5, receiver.released.set).start()

    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_writers_do_not_wait_for_the_network(sales, hanging):
    sales.run("SET statement_timeout = '1s'")
    insert(sales, 2)
    sales.run("UPDATE sales SET qty = 9 WHERE id = 1")


@pytest.mark.parametrize("interrupt", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_hanging_flush_can_be_interrupted(sales, receiver, hanging, interrupt):
    keys = sales.keys()
    sales.run(f"SELECT {interrupt}({hanging.pid})")
    hanging.thread.join(1)

    assert not hanging.thread.is_alive()
    assert isinstance(hanging.answers[0], Exception)
    assert sales.keys() == keys
    assert sales.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_statement_timeout_ends_a_flush(sales, receiver, clock):
    insert(sales, 1)
    receiver.script(receiver.hang)
    sales.run("SET statement_timeout = '300ms'")

    with clock(1.3), pytest.raises(Exception, match="statement timeout"):
        sales.flush()
    sales.run("RESET statement_timeout")
    assert sales.flushed()["acked"] == 1


def test_another_database_can_be_dropped_meanwhile(sales, hanging, clock):
    other = sales.server.create_database()
    other.close()
    with clock(1):
        sales.server.drop_database(other.name)


def test_flush_timeout_bounds_the_whole(sales, receiver, clock):
    sales.server.set(sync_outbox__batch_rows=1, sync_outbox__flush_timeout="1s")
    insert(sales, *range(100))
    receiver.behaviour = behaviours.slow(0.1)

    with clock(2.5):
        answer = sales.flushed()

    assert answer["pending"] == 100 and not answer["ok"]
    assert 0 < answer["acked"] < 50
    assert answer["acked"] == 100 - len(sales.outbox())


def test_invariant_15_the_lock_is_free_after_an_error_in_a_pooled_session(sales, receiver):
    insert(sales, 1)
    with sales.conn.transaction(force_rollback=True):
        sales.flush()

    other = sales.session()
    other.execute("SET statement_timeout = '2s'")
    assert json.loads(other.execute("SELECT sync_outbox_flush()::text").fetchone()[0])["acked"] == 1


def test_invariant_15_advisory_locks_do_not_keep_the_sender_out(sales):
    """Any role may take them, with the very numbers that pg_locks shows of the sender's lock: they are another kind."""
    insert(sales, 1)
    sender, hostile = sales.session(autocommit=False), sales.session(sales.role("anybody"))
    sender.execute("SELECT sync_outbox_flush()")
    table, target = sales.row(
        "SELECT classid::int, objid::int FROM pg_locks WHERE locktype = 'object' AND mode = 'ExclusiveLock' AND pid = %s",
        [sender.info.backend_pid])

    granted = hostile.execute(
        "SELECT pg_try_advisory_lock(%s::int, %s::int) AS by_two, pg_try_advisory_lock(%s::bigint << 32 | %s) AS by_one",
        [table, target] * 2)
    assert granted.fetchone() == (True, True)
    sender.commit()
    insert(sales, 2)
    assert sales.flushed()["acked"] == 1


def test_invariant_12_preparing_a_transaction_that_flushed_is_refused(sales):
    insert(sales, 1)
    session = sales.session(autocommit=False)
    session.execute("SELECT sync_outbox_flush()")

    with pytest.raises(Exception) as refused:
        session.execute("PREPARE TRANSACTION 'flushed'")

    assert refused.value.sqlstate == "0A000" or refused.value.sqlstate.startswith("55")
    session.rollback()
    assert sales.flushed()["acked"] == 1


# Arguments

def test_null_and_default_target_are_the_same(sales):
    insert(sales, 1)

    assert sales.flush(target="default", branch=None, max_rows=None) == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


# Where it goes and with which token

@pytest.fixture
def elsewhere(new_server):
    """A server whose environment names a receiver, and a database there with three changes."""
    def make(**options):
        db = new_server(**options).create_database()
        db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int)")
        db.attach("sales")
        insert(db, 1, 2, 3)
        return db
    return make


def test_url_and_token_from_the_environment(elsewhere, receiver):
    db = elsewhere(env={"WEBAPP_BASE_URL": receiver.url, "SYNC_UPLOAD_TOKEN": TOKEN})

    assert db.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert receiver.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_url_and_token_from_settings(elsewhere, receiver):
    db = elsewhere(settings={"sync_outbox.base_url": receiver.url, "sync_outbox.upload_token": TOKEN})

    assert db.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert receiver.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_the_targets_url_wins_over_setting_and_environment(sales, new_receiver):
    other = new_receiver()
    sales.server.set(sync_outbox__base_url=other.url, sync_outbox__upload_token="another")
    insert(sales, 1)

    assert sales.flushed()["acked"] == 1
    assert other.requests == []


def test_invariant_22_a_token_goes_only_to_the_origin_it_was_set_for(sales, receiver, new_receiver):
    other = new_receiver()
    insert(sales, 1)
    sales.configure(webapp_base_url=other.url)

    answer = sales.flushed()

    assert (answer["auth"], answer["sent"]) == ("missing", 0)
    assert other.requests == [] and receiver.requests == []


@pytest.mark.parametrize("rows, text", [
    (3, '{"ok": false, "pending": 3, "sent": 0, "acked": 0, "auth": "missing"}'),
    (0, '{"ok": false, "pending": 0, "sent": 0, "acked": 0, "auth": "missing"}')])
def test_without_a_token_nothing_is_sent(db, receiver, rows, text):
    db.configure(webapp_base_url=receiver.url)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    db.attach("sales")
    insert(db, *range(rows))

    assert db.flush() == text
    assert receiver.requests == []


def test_without_a_url_the_error_says_what_to_type(db):
    """Nothing was ever configured: a mistake of the caller's, not a server out of reach."""
    db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    db.attach("sales")
    insert(db, 1)

    with pytest.raises(errors.ObjectNotInPrerequisiteState) as raised:
        db.flush()
    assert "sync_outbox_configure" in raised.value.diag.message_hint
    assert len(db.outbox()) == 1


def test_a_refused_token_leaves_the_rows_untouched(sales, receiver):
    insert(sales, 1, 2, 3)
    before = sales.outbox()
    receiver.behaviour = behaviours.require_token("another")

    answer = sales.flushed()

    assert (answer["ok"], answer["acked"], answer["auth"]) == (False, 0, "invalid")
    assert sales.outbox() == before

    sales.run("SELECT sync_outbox_set_token('another')")
    assert sales.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'


def test_the_token_is_in_no_table_view_log_or_setting(sales):
    """`configure` is called with the token as a parameter, so that not even the statement shows it."""
    sales.server.set(log_statement="all", log_min_duration_statement="0")
    canary = "canary-7f3a"
    position = sales.server.log.position()
    sales.run("SELECT set_config('log_parameter_max_length', '0', false)")
    sales.configure(sync_upload_token=canary)
    insert(sales, 1)
    sales.flush()

    assert canary not in sales.server.log.since(position)
    for (table,) in sales.rows("""SELECT c.oid::regclass::text FROM pg_class c WHERE relkind IN ('r', 'v') AND relname LIKE 'sync\\_outbox%'"""):
        assert sales.value(f"SELECT count(*) FROM {table} t WHERE to_jsonb(t)::text LIKE '%{canary}%'") == 0
    assert canary not in str(sales.rows("SELECT * FROM sync_outbox_overview()"))
    assert sales.value(f"SELECT count(*) FROM pg_settings WHERE setting LIKE '%{canary}%'") == 0
