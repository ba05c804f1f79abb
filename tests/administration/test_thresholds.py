"""The backlog is watched: a threshold that is passed is a WARNING once, shows in the overview, and drops nothing."""

import pytest

from support.queued import put, put_many
from support.wait import wait_for
from support.workers import workers

ROWS = "WARNING:  the backlog of sync_outbox has passed its threshold of rows"
AGE = "WARNING:  the backlog of sync_outbox has passed its threshold of age"
BYTES = "WARNING:  the backlog of sync_outbox has passed its threshold of bytes"


@pytest.fixture
def logged(sales):
    """How often the server has logged something since the test began."""
    position = sales.server.log.position()
    return lambda pattern: len(sales.server.log.matches(pattern, position))


def over(db):
    return db.value("SELECT over_threshold FROM sync_outbox_overview()")


def test_rows_warn_once_per_crossing(sales, receiver, logged):
    sales.server.set(sync_outbox__backlog_rows_warning=5)
    receiver.stop()
    sales.run("INSERT INTO sales SELECT generate_series(1, 5)")
    sales.flush()
    assert (over(sales), logged(ROWS)) == (None, 0)

    sales.run("INSERT INTO sales VALUES (6)")
    assert over(sales) == "rows"
    for _ in range(3):
        sales.flush()
    assert logged(ROWS) == 1
    assert logged("It is at 6, sync_outbox.backlog_rows_warning is 5. Nothing is dropped.") == 1
    assert len(sales.outbox()) == 6

    receiver.start()
    assert sales.flushed()["acked"] == 6
    assert over(sales) is None
    receiver.stop()
    sales.run("INSERT INTO sales SELECT generate_series(11, 16)")
    sales.flush()
    assert logged(ROWS) == 2
    receiver.start()


def test_hovering_at_the_threshold_is_one_crossing(sales, receiver, logged):
    sales.server.set(sync_outbox__backlog_rows_warning=100)
    sales.run("SELECT sync_outbox_pause()")
    put_many(sales, 101)
    sales.flush()
    sales.run("DELETE FROM sync_outbox WHERE id = 1")
    sales.flush()
    put(sales, 1000)
    sales.flush()
    assert logged(ROWS) == 1


def test_age(sales, logged):
    sales.server.set(sync_outbox__backlog_age_warning="1h")
    sales.run("SELECT sync_outbox_pause()")
    put(sales, 1, created_at=sales.value("SELECT now() - interval '59 min'"))
    sales.flush()
    assert (over(sales), logged(AGE)) == (None, 0)

    put(sales, 2, priority="LOW", created_at=sales.value("SELECT now() - interval '61 min'"))
    assert over(sales) == "age"
    sales.flush()
    sales.flush()
    assert logged(AGE) == 1


def test_bytes_and_several_at_once(sales, logged):
    sales.server.set(sync_outbox__backlog_size_warning="1MB", sync_outbox__backlog_rows_warning=1000)
    sales.run("SELECT sync_outbox_pause()")
    put_many(sales, 20_000)
    assert over(sales) == "rows, bytes"
    sales.flush()
    assert (logged(BYTES), logged(ROWS)) == (1, 1)


def test_what_is_rolled_back_is_said_again(sales, logged):
    sales.server.set(sync_outbox__backlog_rows_warning=1)
    sales.run("SELECT sync_outbox_pause()")
    put_many(sales, 2)
    for end in ("ROLLBACK", "COMMIT", "COMMIT"):
        sales.run("BEGIN; SELECT sync_outbox_flush()")
        sales.run(end)
    assert logged(ROWS) == 2


def test_zero_is_never(sales, logged):
    sales.server.set(sync_outbox__backlog_size_warning=0, sync_outbox__backlog_age_warning=0)
    sales.run("SELECT sync_outbox_pause()")
    put(sales, 1, created_at="2001-01-01")
    sales.flush()
    assert over(sales) is None
    assert logged("has passed its threshold") == 0


def test_a_change_of_a_day_ago_warns_by_default(sales, logged):
    sales.run("SELECT sync_outbox_pause()")
    put(sales, 1, created_at=sales.value("SELECT now() - interval '25 h'"))
    sales.flush()
    assert (over(sales), logged(AGE)) == ("age", 1)


def test_the_worker_warns_while_offline(shop, receiver):
    position = shop.server.log.position()
    shop.server.set(sync_outbox__backlog_rows_warning=3, sync_outbox__interval="1s")
    receiver.stop()
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 4) n")
    wait_for(lambda: shop.server.log.matches(ROWS, position), 15)
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(5, 8) n")
    shop.flush()
    assert len(shop.server.log.matches(ROWS, position)) == 1
    receiver.start()
    shop.run("SELECT sync_outbox_requeue()")
    wait_for(lambda: shop.outbox() == [])


def test_the_worker_notices_when_a_change_grows_old(shop):
    """Nothing is written meanwhile, and the worker leaves before."""
    position = shop.server.log.position()
    shop.server.set(sync_outbox__backlog_age_warning="12s", sync_outbox__worker_idle_timeout="7s", sync_outbox__interval="1s")
    shop.run("SELECT sync_outbox_pause()")
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: workers(shop) == [], 11)
    assert not shop.server.log.matches(AGE, position)
    wait_for(lambda: shop.server.log.matches(AGE, position), 10)


def test_a_lock_on_the_memory_of_warnings_holds_nobody_up(sales, clock):
    sales.server.set(sync_outbox__backlog_rows_warning=1)
    sales.run("SELECT sync_outbox_pause()")
    put_many(sales, 2)
    other = sales.session(autocommit=False)
    other.execute("SELECT sync_outbox_flush()")
    with clock(3):
        sales.run("SELECT sync_outbox_resume()")
        sales.server.set(sync_outbox__lock_wait="100ms")
        assert sales.flushed()["error"] == "flush_busy"
    other.rollback()
