"""Every figure of sync_outbox_overview() in a state in which it changes."""

import threading

import pytest

from support import behaviours
from support.wait import wait_for


@pytest.fixture
def shop(sales):
    sales.run("INSERT INTO sales VALUES (1, 0), (2, 0), (3, 0)")
    return sales


def overview(database):
    return database.row("SELECT * FROM sync_outbox_overview() WHERE target = 'default'")


def test_clean_and_the_totals(shop, receiver):
    row = overview(shop)
    assert (row.clean, row.total, row.pending, row.failed, row.conflicts, row.dead) == (False, 3, 3, 0, 0, 0)
    assert row.oldest_pending == shop.value("SELECT min(created_at) FROM sync_outbox")

    receiver.behaviour = behaviours.answer(errors=lambda changes: [(changes[0], "no")], conflicts=lambda changes: changes[1:2],
                                           acked=lambda changes: changes[2:])
    shop.flush()
    row = overview(shop)
    assert (row.clean, row.total, row.pending, row.failed, row.conflicts) == (False, 2, 0, 1, 1)

    receiver.behaviour = behaviours.ack_all
    shop.run("SELECT sync_outbox_requeue()")
    shop.flush()
    row = overview(shop)
    assert (row.clean, row.total, row.oldest_pending) == (True, 0, None)


def test_dead(shop, receiver):
    shop.server.set(sync_outbox__max_attempts=1)
    receiver.behaviour = behaviours.refuse(lambda change: change["pk"]["id"] == 1)
    shop.flush()

    assert overview(shop).dead == 1


def test_paused_and_why(shop):
    assert (overview(shop).paused, overview(shop).paused_reason) == (False, None)
    shop.run("SELECT sync_outbox_pause(reason => 'stock taking')")
    assert (overview(shop).paused, overview(shop).paused_reason) == (True, "stock taking")
    shop.run("SELECT sync_outbox_resume()")
    assert not overview(shop).paused


def test_auth(shop, receiver):
    receiver.behaviour = behaviours.require_token("another")
    shop.flush()
    assert overview(shop).auth == "invalid"

    receiver.behaviour = behaviours.ack_all
    shop.flush()
    assert overview(shop).auth is None


def test_the_breaker_and_the_next_try(shop, receiver):
    calm = overview(shop)
    assert (calm.breaker, calm.consecutive_failures, calm.next_try_at) == ("closed", 0, None)
    receiver.stop()
    for failures in range(1, 7):
        shop.flush()
        assert overview(shop).consecutive_failures == failures
    row = overview(shop)
    assert row.breaker == "open"
    assert row.next_try_at > shop.value("SELECT now()")

    receiver.start()
    shop.flush()
    assert (overview(shop).breaker, overview(shop).consecutive_failures, overview(shop).next_try_at) == ("closed", 0, None)


def test_requeue_closes_the_breaker(shop, receiver):
    receiver.stop()
    for _ in range(6):
        shop.flush()
    shop.run("SELECT sync_outbox_requeue()")

    assert (overview(shop).breaker, overview(shop).next_try_at) == ("closed", None)


def test_last_success_and_last_error(shop, receiver):
    assert (overview(shop).last_success_at, overview(shop).last_error, overview(shop).last_error_at) == (None, None, None)
    receiver.stop()
    shop.flush()
    row = overview(shop)
    assert row.last_error.startswith("offline") and row.last_error_at is not None and row.last_success_at is None

    receiver.start()
    shop.flush()
    assert overview(shop).last_success_at > row.last_error_at


def test_rate_and_success(shop, receiver):
    receiver.behaviour = behaviours.ack(lambda change: change["pk"]["id"] < 3)
    shop.flush()

    row = overview(shop)
    assert row.rows_per_minute > 0
    assert 0 < row.success_rate <= 100


def test_percent_done_and_estimate_while_a_backlog_drains(shop, receiver):
    shop.server.set(sync_outbox__batch_rows=10)
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(10, 109) n")
    receiver.script(*[behaviours.ack_all] * 5, receiver.hang)
    session = shop.session()
    thread = threading.Thread(target=session.execute, args=["CALL sync_outbox_drain()"], daemon=True)
    thread.start()
    receiver.wait_for_requests(6)
    try:
        row = wait_for(lambda: (row := overview(shop)).percent_done and row)
        assert 0 < row.percent_done < 100
        assert row.estimated_completion > shop.value("SELECT now()")
        assert row.sender_pid == session.info.backend_pid
    finally:
        receiver.released.set()
        thread.join(10)


def test_the_source_of_each_setting(shop, receiver):
    shop.server.set(sync_outbox__batch_rows=77)
    settings = overview(shop).settings

    assert settings["batch_rows"]["value"] == "77"
    assert settings["base_url"] == {"value": receiver.url, "source": "sync_outbox_target.base_url"}
    assert settings["interval"]["source"] == "default"
    assert "t0ken" not in str(settings)
