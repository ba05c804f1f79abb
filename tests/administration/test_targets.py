"""sync_outbox_target_set() and sync_outbox_target_drop(): targets come and go, and no change is left behind."""

import threading

import pytest
from psycopg import errors

from support.database import TOKEN
from support.queued import put
from support.wait import wait_for

URL = "https://hub.example.org"


def set_target(db, name, config="{}", session=None):
    (session or db.conn).execute("SELECT sync_outbox_target_set(%s, %s::json)", [name, config])


def drop_target(db, name, session=None):
    (session or db.conn).execute("SELECT sync_outbox_target_drop(%s)", [name])


def targets(db):
    return {row.name: row for row in db.rows("SELECT * FROM sync_outbox_target")}


def overview(db):
    return {row.target: row for row in db.rows("SELECT * FROM sync_outbox_overview()")}


def token_files(db):
    return {path.name for path in db.server.data.glob("sync_outbox/token_*")}


@pytest.fixture
def second(db):
    """A second target, and a table that is not attached yet."""
    db.run("INSERT INTO sync_outbox_target (name) VALUES ('second')")
    db.run("CREATE TABLE stock (id int PRIMARY KEY, qty int)")
    return db


# Making and changing

def test_making_and_changing_is_one_call(db):
    set_target(db, "reports", f'{{"base_url": "{URL}", "upload_path": "/in"}}')
    made = targets(db)["reports"]
    assert (made.base_url, made.upload_path, made.ca_file, made.paused) == (URL, "/in", None, False)

    set_target(db, "reports", '{"base_url": "https://two.example.org:8443"}')
    assert targets(db)["reports"].upload_path == "/in"
    assert targets(db)["reports"].base_url == "https://two.example.org:8443"
    set_target(db, "reports", '{"base_url": null, "upload_path": null}')
    assert (targets(db)["reports"].base_url, targets(db)["reports"].upload_path) == (None, None)
    assert targets(db)["reports"].id == made.id


def test_the_default_target_has_its_id_whoever_makes_it(db):
    set_target(db, "default", f'{{"base_url": "{URL}"}}')

    assert targets(db)["default"].id == 1


def test_what_is_set_is_used(sales, new_receiver):
    """Two targets with a URL and a token each, each with its own table."""
    other = new_receiver()
    set_target(sales, "second", f'{{"base_url": "{other.url}", "upload_path": "/elsewhere"}}')
    sales.run("SELECT sync_outbox_set_token('second-token', 'second')")
    sales.run("CREATE TABLE stock (id int PRIMARY KEY)")
    sales.attach("stock", target="second")
    sales.run("INSERT INTO stock VALUES (7)")

    assert sales.flushed(target="second")["acked"] == 1
    (request,) = other.requests
    assert (request.path, request.headers["authorization"]) == ("/elsewhere", "Bearer second-token")


@pytest.mark.parametrize("config, why", [
    ('{"base_ulr": "https://hub"}', 'unknown member "base_ulr"'), ("[]", "not a JSON object"), ('"x"', "not a JSON object"),
    ('{"base_url": 7}', "base_url is not a string"), ('{"base_url": ""}', "base_url is empty"),
    ('{"upload_path": "a\\u0000b"}', "control character"), ('{"base_url": "gopher://x"}', "scheme"),
    ('{"base_url": "http://hub.example.org"}', "plain http"), ('{"base_url": "https://u:p@hub"}', "credentials"),
    ('{"base_url": "https://169.254.169.254"}', "169.254.169.254"), ('{"upload_path": "/a b"}', "upload path"),
    ('{"base_url": "https://hub", "upload_path": "#"}', "upload path"), ('{"paused": true}', 'unknown member "paused"')])
def test_a_wrong_shape_is_refused_with_a_hint(db, config, why):
    with pytest.raises(errors.InvalidParameterValue, match=why) as refused:
        set_target(db, "second", config)

    assert refused.value.diag.message_hint
    if "unknown" in why:
        for member in ("base_url", "upload_path", "ca_file", "client_cert_file", "client_key_file", "signing_secret_file"):
            assert member in refused.value.diag.message_hint
    assert targets(db) == {}


@pytest.mark.parametrize("name", ["", " second", "second\n", "a\tb"])
def test_a_name_is_a_name(db, name):
    with pytest.raises(errors.InvalidParameterValue) as refused:
        set_target(db, name)
    assert refused.value.diag.message_hint


@pytest.mark.parametrize("call", ["set(NULL, '{}')", "set('second', NULL)", "drop(NULL)"])
def test_arguments_are_required(db, call):
    with pytest.raises(errors.NullValueNotAllowed) as refused:
        db.run(f"SELECT sync_outbox_target_{call}")
    assert refused.value.diag.message_hint


def test_all_or_nothing(db):
    set_target(db, "second", f'{{"base_url": "{URL}"}}')
    with pytest.raises(errors.InvalidParameterValue):
        set_target(db, "second", '{"upload_path": "/new", "base_url": "gopher://x"}')

    assert targets(db)["second"].upload_path is None


@pytest.mark.parametrize("member", ["ca_file", "client_cert_file", "client_key_file", "signing_secret_file"])
def test_files_are_named_by_superusers_only(db, member):
    admin = db.session(db.role("admin", "sync_outbox_admin"))
    set_target(db, "second", f'{{"base_url": "{URL}"}}', admin)
    for value in ('"/etc/passwd"', "null"):
        with pytest.raises(errors.InsufficientPrivilege) as refused:
            set_target(db, "second", f'{{"{member}": {value}, "upload_path": "/x"}}', admin)
        assert member in refused.value.diag.message_primary and refused.value.diag.message_hint

    set_target(db, "second", f'{{"{member}": "/somewhere"}}')
    assert getattr(targets(db)["second"], member) == "/somewhere"
    assert targets(db)["second"].upload_path is None


@pytest.mark.parametrize("call", ["sync_outbox_target_set('second', '{}')", "sync_outbox_target_drop('second')"])
def test_others_may_not(second, call):
    for groups in ([], ["sync_outbox_operator"], ["pg_monitor"]):
        with pytest.raises(errors.InsufficientPrivilege):
            second.session(second.role("r" + "".join(groups), *groups)).execute(f"SELECT {call}")


def test_a_target_that_is_set_is_tried_at_once(live, receiver):
    """The worker, too, hears of it: it does not look again by itself before an hour has passed."""
    live.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    set_target(live, "second", '{"base_url": "http://127.0.0.1:1"}')
    live.run("SELECT sync_outbox_set_token('t0ken', 'second'); CREATE TABLE stock (id int PRIMARY KEY)")
    live.attach("stock", target="second")
    live.run("INSERT INTO stock VALUES (1)")
    wait_for(lambda: overview(live)["second"].breaker == "open", what="an open breaker")

    set_target(live, "second", f'{{"base_url": "{receiver.url}"}}')
    live.run(f"SELECT sync_outbox_set_token('{TOKEN}', 'second')")
    wait_for(lambda: live.outbox() == [], what="sent")
    assert len(receiver.changes) == 1


# Rights on the table

@pytest.mark.parametrize("statement", [
    "DELETE FROM sync_outbox_target", "UPDATE sync_outbox_target SET name = 'x'",
    "INSERT INTO sync_outbox_target (name) VALUES ('default')"])
def test_defect_08_an_admin_neither_deletes_nor_renames_a_target(second, statement):
    """Nor makes one by hand: a row named default with another id than 1 would have no changes."""
    with pytest.raises(errors.InsufficientPrivilege):
        second.session(second.role("admin", "sync_outbox_admin")).execute(statement)


def test_an_admin_may_set_url_and_path_by_hand_as_ever(second):
    second.session(second.role("admin", "sync_outbox_admin")).execute(
        "UPDATE sync_outbox_target SET base_url = 'https://hub.example.org', upload_path = '/x'")


# Dropping

def test_a_target_without_changes_and_tables_is_dropped(second, receiver):
    second.attach("stock", target="second")
    set_target(second, "second", f'{{"base_url": "{receiver.url}"}}')
    second.run(f"SELECT sync_outbox_set_token('{TOKEN}', 'second')")
    second.run("INSERT INTO stock VALUES (1)")
    assert second.flushed(target="second")["ok"]
    second.run("SELECT sync_outbox_detach('stock')")
    drop_target(second, "second")

    assert set(overview(second)) == {"default"}
    assert second.rows("SELECT FROM sync_outbox_target_state WHERE target_id = 2") == []
    assert second.rows("SELECT FROM sync_outbox_throughput WHERE target_id = 2") == []
    with pytest.raises(errors.InvalidParameterValue, match='"second" does not exist') as refused:
        drop_target(second, "second")
    assert refused.value.diag.message_hint


def test_the_default_target_stays(db):
    for _ in range(2):
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
            drop_target(db, "default")
        assert "base_url" in refused.value.diag.message_hint
        set_target(db, "default")


@pytest.mark.parametrize("status", ["PENDING", "FAILED", "CONFLICT", "DEAD"])
@pytest.mark.parametrize("priority", ["HIGH", "LOW"])
def test_defect_08_not_while_changes_wait(second, status, priority):
    change = put(second, target_id=targets(second)["second"].id, status=status, priority=priority)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="changes wait") as refused:
        drop_target(second, "second")

    # What the hint says can be typed.
    hint = refused.value.diag.message_hint
    assert "CALL sync_outbox_drain(target => 'second')" in hint
    assert second.value("SELECT" + hint.split("SELECT", 1)[1].split(";")[0]) == 1
    assert second.rows("SELECT FROM sync_outbox_discarded WHERE id = %s", [change])
    drop_target(second, "second")


def test_defect_08_not_while_a_table_is_attached(second):
    second.attach("stock", target="second")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="tables are attached") as refused:
        drop_target(second, "second")

    assert "public.stock" in refused.value.diag.message_detail
    second.run(refused.value.diag.message_hint.split(";")[0])
    drop_target(second, "second")


def test_defect_08_what_is_captured_and_not_committed_counts(second):
    """A writer that detaches the table in its own transaction: nobody sees its change, nor that the table is detached."""
    second.attach("stock", target="second")
    writer = second.session(autocommit=False)
    writer.execute("INSERT INTO stock VALUES (1)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="attached"):
        drop_target(second, "second")
    writer.execute("SELECT sync_outbox_detach('stock')")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="attached"):
        drop_target(second, "second")
    writer.commit()
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="changes wait"):
        drop_target(second, "second")


def test_defect_08_a_detach_waits_for_a_writer_and_the_drop_sees_what_it_wrote(second):
    second.attach("stock", target="second")
    writer = second.session(autocommit=False)
    writer.execute("INSERT INTO stock VALUES (1)")
    detacher = second.session()
    thread = threading.Thread(target=lambda: detacher.execute("SELECT sync_outbox_detach('stock')"))
    thread.start()
    wait_for(lambda: second.rows("SELECT FROM pg_locks WHERE NOT granted AND relation = 'stock'::regclass"))
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="attached"):
        drop_target(second, "second")
    writer.commit()
    thread.join()
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="changes wait"):
        drop_target(second, "second")


def waits(db, session):
    """Whether a session's backend waits for a lock."""
    return db.rows("SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [session.info.backend_pid])


USES = {"attach": "SELECT sync_outbox_attach('stock', target => 'second')",
        "configure": """SELECT sync_outbox_configure('{"uploads_local_to_remote": [{"table": "stock", "target": "second"}]}')"""}


@pytest.mark.parametrize("use", USES)
def test_defect_08_a_drop_waits_for_an_attach(second, use):
    attacher = second.session(autocommit=False)
    attacher.execute(USES[use])
    second.run("SET lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable) as refused:
        drop_target(second, "second")
    assert refused.value.diag.message_hint
    attacher.commit()
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="attached"):
        drop_target(second, "second")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_defect_08_an_attach_waits_for_a_drop(second, use, outcome):
    dropper, attacher = second.session(autocommit=False), second.session()
    drop_target(second, "second", dropper)
    result = []

    def attach():
        try:
            attacher.execute(USES[use])
            result.append(None)
        except errors.InvalidParameterValue as error:
            result.append(error)
    thread = threading.Thread(target=attach)
    thread.start()
    wait_for(lambda: waits(second, attacher))
    getattr(dropper, outcome)()
    thread.join()
    if outcome == "commit":
        assert '"second" does not exist' in str(result[0])
    else:
        assert result == [None]
    assert bool(second.rows("SELECT FROM sync_outbox_attached")) == (outcome == "rollback")


@pytest.mark.parametrize("call", ["sync_outbox_backfill('stock')", "sync_outbox_import('old')"])
def test_defect_08_a_drop_waits_for_a_backfill_and_an_import(second, call):
    second.attach("stock", target="second")
    second.run("""INSERT INTO stock VALUES (1); CREATE TABLE old (id bigint, schema_name text, table_name text, op text, pk json, data json);
                  INSERT INTO old VALUES (1, 'public', 'stock', 'INSERT', '{"id": 2}', '{"id": 2}')""")
    second.run("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'not wanted')")
    second.server.set(sync_outbox__lock_wait="100ms")
    other = second.session(autocommit=False)
    other.execute(f"SELECT {call}")
    second.run("SET lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable) as refused:
        drop_target(second, "second")
    assert refused.value.diag.message_hint
    other.rollback()


def test_defect_08_a_drop_waits_for_a_sender(second):
    """Which notes in the target's state how it went."""
    put(second, target_id=2)
    sender = second.session(autocommit=False)
    sender.execute("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'holds the lock')")
    second.server.set(sync_outbox__lock_wait="100ms")
    with pytest.raises(errors.LockNotAvailable) as refused:
        drop_target(second, "second")
    assert refused.value.diag.message_hint
    sender.commit()
    drop_target(second, "second")


def test_a_target_that_is_set_while_it_is_dropped_is_made_again(second):
    dropper, other = second.session(autocommit=False), second.session()
    drop_target(second, "second", dropper)
    thread = threading.Thread(target=set_target, args=[second, "second", f'{{"base_url": "{URL}"}}', other])
    thread.start()
    wait_for(lambda: waits(second, other))
    dropper.commit()
    thread.join()
    assert (targets(second)["second"].id, targets(second)["second"].base_url) == (3, URL)


def test_no_drop_in_a_transaction_that_keeps_one_snapshot(second):
    session = second.session(autocommit=False)
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    with pytest.raises(errors.ActiveSqlTransaction) as refused:
        drop_target(second, "second", session)
    assert refused.value.diag.message_hint


def test_defect_08_a_session_with_an_old_plan_writes_for_no_target_that_is_gone(second):
    """It wrote for the target before that was dropped; one of the same name is another one."""
    old_plan = second.session()
    second.attach("stock", target="second")
    old_plan.execute("INSERT INTO stock VALUES (1)")
    first_id = targets(second)["second"].id
    second.run("""SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'not wanted'); SELECT sync_outbox_detach('stock');
                  SELECT sync_outbox_target_drop('second')""")
    old_plan.execute("INSERT INTO stock VALUES (2)")
    assert second.outbox() == []

    set_target(second, "second")
    second.attach("stock", target="second")
    old_plan.execute("INSERT INTO stock VALUES (3)")
    (change,) = second.outbox()
    assert change.target_id == targets(second)["second"].id != first_id


def test_an_id_never_comes_again(db):
    """Not even where the default target, which has the lowest id, is made last."""
    ids = []
    for name in ("second", "third", "default", "fourth"):
        set_target(db, name)
        ids.append(targets(db)[name].id)
        if name != "default":
            drop_target(db, name)
    assert len(set(ids)) == 4
    db.run("INSERT INTO sync_outbox_target (id, name) VALUES (100, 'by hand')")
    set_target(db, "fifth")
    assert targets(db)["fifth"].id == 101


def test_what_the_worker_still_had_to_note_of_a_target_goes_with_it(new_server, receiver):
    """It writes down how things went once a second at most, and when it leaves."""
    shop = new_server(preload=True, settings={"sync_outbox.worker_idle_timeout": "1s"}).create_database()
    shop.run("CREATE EXTENSION sync_outbox; CREATE TABLE stock (id int PRIMARY KEY)")
    set_target(shop, "second", f'{{"base_url": "{receiver.url}"}}')
    shop.run(f"SELECT sync_outbox_set_token('{TOKEN}', 'second')")
    shop.attach("stock", target="second")
    for id in (1, 2, 3):
        shop.run(f"INSERT INTO stock VALUES ({id})")
        wait_for(lambda: shop.outbox() == [], what="sent")
    shop.run("SELECT sync_outbox_detach('stock'); SELECT sync_outbox_target_drop('second')")
    wait_for(lambda: not shop.rows("SELECT FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker'"), 20, "a worker that leaves")

    assert not shop.server.log.matches("foreign key|ERROR:")
    shop.close()


# The token

@pytest.fixture
def with_token(second, receiver):
    set_target(second, "second", f'{{"base_url": "{receiver.url}"}}')
    before = token_files(second)
    second.run(f"SELECT sync_outbox_set_token('{TOKEN}', 'second')")
    (second.file,) = token_files(second) - before
    return second


def test_the_token_goes_with_its_target(with_token, receiver):
    drop_target(with_token, "second")
    assert with_token.file not in token_files(with_token)

    set_target(with_token, "second", f'{{"base_url": "{receiver.url}"}}')
    with_token.attach("stock", target="second")
    with_token.run("INSERT INTO stock VALUES (1)")
    assert with_token.flushed(target="second")["auth"] == "missing"


def test_the_token_stays_where_the_target_does(with_token):
    """A drop that is rolled back, as a whole or to a savepoint."""
    session = with_token.session(autocommit=False)
    drop_target(with_token, "second", session)
    session.rollback()
    assert with_token.file in token_files(with_token)

    session.execute("SAVEPOINT a")
    drop_target(with_token, "second", session)
    session.execute("ROLLBACK TO a")
    session.commit()
    assert with_token.file in token_files(with_token)

    session.execute("SAVEPOINT a; SAVEPOINT b")
    drop_target(with_token, "second", session)
    session.execute("RELEASE b; ROLLBACK TO a; SAVEPOINT c")
    drop_target(with_token, "second", session)
    session.execute("RELEASE c")
    assert with_token.file in token_files(with_token)
    session.commit()
    assert with_token.file not in token_files(with_token)


# What a superuser does by hand

def test_defect_08_an_orphaned_change_is_not_clean(second):
    second.attach("stock", target="second")
    second.run("INSERT INTO stock VALUES (1), (2); DELETE FROM sync_outbox_target WHERE name = 'second'")
    orphan = overview(second)[None]
    assert (orphan.clean, orphan.total, orphan.pending) == (False, 2, 2)
    assert "no target with id 2" in orphan.last_error
    assert overview(second)["default"].clean
    assert [row.pending for row in second.rows("SELECT * FROM sync_outbox_stats() WHERE table_name = 'stock'")] == [2]

    # Made again, the target is another one.
    set_target(second, "second")
    assert overview(second)["second"].clean and not overview(second)[None].clean
    monitor = second.session(second.role("monitor", "pg_monitor"))
    assert monitor.execute("SELECT bool_and(clean) FROM sync_outbox_overview()").fetchone()[0] is False

    second.run("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox_queue WHERE target IS NULL), 'its target is gone')")
    assert None not in overview(second)
