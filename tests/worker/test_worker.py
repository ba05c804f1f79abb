"""The worker of a database: woken by COMMIT, kept by no error, gone when there is nothing to do."""

import threading
import time

import psycopg
import pytest

from support import behaviours
from support.wait import wait_for
from support.workers import settled, workers


def sold(receiver):
    return [(change["data"] or change["pk"])["id"] for change in receiver.changes]


# Waking

def test_launcher_and_worker_are_seen(shop):
    settled(shop)

    assert shop.rows(
        "SELECT backend_type, datname, state FROM pg_stat_activity WHERE backend_type LIKE 'sync_outbox%%'"
        " AND (datname IS NULL OR datname = %s) ORDER BY 1", [shop.name]) == [
            ("sync_outbox launcher", None, "idle"), ("sync_outbox worker", shop.name, "idle")]


WAITS = "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE backend_type = %s AND coalesce(datname, %s) = %s"


def test_what_they_wait_for_is_seen(shop, receiver):
    """Since PostgreSQL 17 by name; before, all extensions have one wait event."""
    def waits(backend_type, event):
        event = event if shop.conn.info.server_version >= 170000 else "Extension"
        wait_for(lambda: [tuple(row) for row in shop.rows(WAITS, [backend_type, shop.name, shop.name])] == [("Extension", event)],
                 what=f"{backend_type} in {event}")
    settled(shop)
    waits("sync_outbox launcher", "SyncOutboxIdle")
    waits("sync_outbox worker", "SyncOutboxIdle")
    release = threading.Event()

    def when_released(request, wire):
        release.wait(20)
        behaviours.ack_all(request, wire)
    receiver.behaviour = when_released
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    waits("sync_outbox worker", "SyncOutboxHttp")
    release.set()
    wait_for(lambda: shop.outbox() == [])


def test_a_commit_wakes_the_worker(shop, receiver, clock):
    settled(shop)
    for sale in range(1, 11):
        with clock(0.5):
            shop.run("INSERT INTO sales VALUES (%s, 0)", [sale])
            receiver.wait_for_requests(sale)
    assert sold(receiver) == list(range(1, 11))


def test_nothing_is_sent_before_the_commit(shop, receiver):
    with shop.session(autocommit=False) as other:
        other.execute("INSERT INTO sales VALUES (1, 0)")
        shop.run("INSERT INTO sales VALUES (2, 0)")
        receiver.wait_for_requests(1)
        assert sold(receiver) == [2]
    receiver.wait_for_requests(2)
    assert sold(receiver) == [2, 1]


def test_what_is_rolled_back_is_not_sent(shop, receiver):
    shop.run("BEGIN; INSERT INTO sales VALUES (1, 0); ROLLBACK")
    shop.run("BEGIN; INSERT INTO sales VALUES (2, 0); SAVEPOINT s; INSERT INTO sales VALUES (3, 0); ROLLBACK TO s;"
             " COMMIT")

    wait_for(lambda: shop.outbox() == [] and receiver.requests)
    assert sold(receiver) == [2]


def test_invariant_12_commit_prepared_wakes_the_worker(shop, receiver, clock):
    shop.run("BEGIN; INSERT INTO sales VALUES (1, 0); PREPARE TRANSACTION 'two phases'")
    settled(shop)
    assert receiver.requests == []

    with clock(0.5):
        shop.run("COMMIT PREPARED 'two phases'")
        receiver.wait_for_requests(1)


def test_resume_wakes_the_worker(shop, receiver, clock):
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales VALUES (1, 0)")
    settled(shop)
    assert receiver.requests == []

    with clock(0.5):
        shop.run("SELECT sync_outbox_resume()")
        receiver.wait_for_requests(1)


def test_what_is_committed_while_a_request_is_out_follows_it(shop, receiver):
    receiver.script(behaviours.slow(0.5))
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    shop.run("INSERT INTO sales VALUES (2, 0)")

    receiver.wait_for_requests(2)
    wait_for(lambda: shop.outbox() == [])
    assert sold(receiver) == [1, 2]


def test_two_databases_have_a_worker_each(shop, receiver):
    other = shop.server.create_database()
    other.run("CREATE EXTENSION sync_outbox")
    other.aim(receiver)
    other.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    other.attach("sales")
    shop.run("INSERT INTO sales VALUES (1, 0)")
    other.run("INSERT INTO sales VALUES (2, 0)")

    receiver.wait_for_requests(2)
    assert sorted(sold(receiver)) == [1, 2]
    assert len(workers(shop)) == len(workers(other)) == 1
    other.close()
    shop.server.drop_database(other.name)


# Coming and going

def test_an_idle_worker_leaves_and_comes_back(shop, receiver, clock):
    shop.server.set(sync_outbox__worker_idle_timeout="100ms")
    wait_for(lambda: workers(shop) == [])

    with clock(1):
        shop.run("INSERT INTO sales VALUES (1, 0)")
        receiver.wait_for_requests(1)
    wait_for(lambda: workers(shop) == [])


def test_a_worker_that_left_is_there_when_a_retry_is_due(shop, receiver):
    shop.server.set(sync_outbox__worker_idle_timeout=0, sync_outbox__retry_interval="500ms")
    receiver.stop()
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: [change.status for change in shop.outbox()] == ["FAILED"] and workers(shop) == [])

    receiver.start()
    wait_for(lambda: shop.outbox() == [])
    assert sold(receiver) == [1]


def test_switched_off_nothing_is_sent_until_it_is_switched_on(shop, receiver):
    shop.server.set(sync_outbox__enabled="off")
    wait_for(lambda: workers(shop) == [])
    shop.run("INSERT INTO sales VALUES (1, 0)")
    time.sleep(0.5)  # nothing happens, and nothing shows that it does not
    assert receiver.requests == [] and workers(shop) == []

    shop.server.set(sync_outbox__enabled="on")
    receiver.wait_for_requests(1)


def test_a_reload_reaches_the_worker(shop, receiver, new_receiver):
    pid = settled(shop)
    shop.server.set(sync_outbox__worker_idle_timeout="1h", sync_outbox__upload_path="/elsewhere")
    shop.run("INSERT INTO sales VALUES (1, 0)")

    receiver.wait_for_requests(1)
    assert receiver.requests[0].path == "/elsewhere"
    assert workers(shop) == [pid]


def test_a_terminated_worker_comes_back(shop, receiver):
    pid = settled(shop)
    shop.run("SELECT pg_terminate_backend(%s)", [pid])
    shop.run("INSERT INTO sales VALUES (1, 0)")

    receiver.wait_for_requests(1)
    assert pid not in workers(shop)


def test_a_worker_terminated_while_a_request_is_out_sends_again(shop, receiver, clock):
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    (pid,) = workers(shop)
    with clock(0.5):
        shop.run("SELECT pg_terminate_backend(%s)", [pid])
        wait_for(lambda: pid not in workers(shop))

    receiver.wait_for_requests(2)
    first, second = receiver.requests
    assert first.keys == second.keys
    wait_for(lambda: shop.outbox() == [])
    assert not shop.server.log.matches("already held")


def test_a_terminated_worker_leaves_no_lock_behind(shop, receiver):
    """The sender's lock is held while no transaction is open, so no abort releases it."""
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    shop.server.set(sync_outbox__enabled="off")
    shop.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker'")
    wait_for(lambda: workers(shop) == [])

    assert shop.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_a_worker_that_waits_for_a_lock_can_be_terminated(shop, receiver, clock):
    settled(shop)
    with shop.session(autocommit=False) as other:
        other.execute("LOCK TABLE sync_outbox_target IN ACCESS EXCLUSIVE MODE")
        shop.run("INSERT INTO sales VALUES (1, 0)")
        (pid,) = wait_for(lambda: [row.pid for row in shop.rows(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker' AND wait_event_type = 'Lock'")])
        with clock(0.5):
            shop.run("SELECT pg_terminate_backend(%s)", [pid])
            wait_for(lambda: pid not in workers(shop))
    receiver.wait_for_requests(1)


def test_statistics_know_what_the_worker_deleted(shop):
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 500) n")

    wait_for(lambda: shop.value("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'sync_outbox'") == 500)


def test_a_terminated_launcher_comes_back_and_leaves_the_workers_alone(shop, receiver):
    pid = settled(shop)
    launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'sync_outbox launcher'"
    before = shop.value(launcher)
    shop.run("SELECT pg_terminate_backend(%s)", [before])
    wait_for(lambda: shop.rows(launcher) not in ([], [(before,)]), what="another launcher")
    shop.run("INSERT INTO sales VALUES (1, 0)")

    receiver.wait_for_requests(1)
    assert workers(shop) == [pid]


def test_a_cancelled_request_is_tried_again_by_the_same_worker(shop, receiver):
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    (pid,) = workers(shop)
    shop.run("SELECT pg_cancel_backend(%s)", [pid])

    receiver.wait_for_requests(2)
    wait_for(lambda: shop.outbox() == [])
    assert workers(shop) == [pid]


@pytest.mark.expects_log("WARNING:  .*paused")
def test_an_error_is_survived_and_logged_once(shop, receiver):
    pid = settled(shop)
    shop.run("ALTER TABLE sync_outbox_target RENAME COLUMN paused TO something_else")
    position = shop.server.log.position()
    shop.run("SELECT pg_reload_conf()")  # has it look up everything that may have changed
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.server.log.matches("WARNING:  .*paused", position))
    failed = set()
    failure = ("SELECT state_change FROM pg_stat_activity WHERE query LIKE 'after an error%%'"
               " AND datname = current_database()")
    wait_for(lambda: failed.update(shop.rows(failure)) or len(failed) > 1, what="another failure")
    assert len(shop.server.log.matches("WARNING:", position)) == 1

    shop.run("ALTER TABLE sync_outbox_target RENAME COLUMN something_else TO paused")
    wait_for(lambda: shop.outbox() == [])
    assert workers(shop) == [pid]


# The extension comes and goes

def test_drop_and_create_extension_while_the_worker_runs(shop, receiver, clock):
    settled(shop)
    with clock(1):
        shop.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE")
        wait_for(lambda: workers(shop) == [])

    shop.run("CREATE EXTENSION sync_outbox")
    shop.aim(receiver)
    shop.attach("sales")
    with clock(1):
        shop.run("INSERT INTO sales VALUES (1, 0)")
        receiver.wait_for_requests(1)


def test_drop_extension_does_not_wait_for_a_request(shop, receiver, clock):
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    with clock(1):
        shop.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE")


def test_a_database_without_the_extension_is_left_alone(shop):
    bare = shop.server.create_database()
    bare.run("BEGIN; PREPARE TRANSACTION 'bare'")
    bare.run("COMMIT PREPARED 'bare'")
    shop.server.reload()
    settled(shop)

    wait_for(lambda: workers(bare) == [])
    bare.close()
    shop.server.drop_database(bare.name)


# Without preloading

def notices(database):
    """(message, hint) of every notice of the database's session from now on."""
    said = []
    database.conn.add_notice_handler(lambda notice: said.append((notice.message_primary, notice.message_hint)))
    return said


def test_create_extension_says_that_nothing_is_sent_without_preloading(quiet_server, watched):
    database = watched(quiet_server).create_database()
    said = notices(database)
    database.run("CREATE EXTENSION sync_outbox")

    assert "shared_preload_libraries" in dict(said)["changes are captured, but not sent automatically"]
    database.close()
    quiet_server.drop_database(database.name)


def test_create_extension_is_silent_with_preloading(live_server, watched):
    database = watched(live_server).create_database()
    said = notices(database)
    database.run("CREATE EXTENSION sync_outbox")

    assert said == []
    database.close()
    live_server.drop_database(database.name)


def test_other_peoples_errors_keep_their_position(shop):
    """Utility statements pass through a hook of ours."""
    for statement in ["CREATE TABLE t (a no_such_type)", "ALTER TABLE no_such_table ADD a int",
                      "CREATE EXTENSION nothing_known"]:
        with pytest.raises(psycopg.Error) as error:
            shop.run(statement)
        if "no_such_type" in statement:
            assert error.value.diag.statement_position == "19"
