"""A link so slow that a whole batch takes longer than a request may: what fits gets through, and in the end all of it."""

import pytest

from support.ledger import Ledger
from support.slow_link import SlowLink
from support.wait import wait_for
from support.workers import shop_on

RATE = 64 * 1024
ROWS = 300
"""Of 1 kB each: five seconds of that link, in a batch of which none may take more than one."""


@pytest.fixture
def slow(receiver):
    link = SlowLink(receiver, RATE)
    yield link
    link.close()


def test_a_batch_that_takes_too_long_becomes_smaller(new_server, receiver, slow):
    server = new_server(preload=True, settings={
        "sync_outbox.request_timeout": "1s", "sync_outbox.retry_interval": "50ms", "sync_outbox.retry_max_interval": "100ms"})
    shop = shop_on(server, slow)
    shop.run("ALTER TABLE sales ADD note text")
    shop.run(f"INSERT INTO sales SELECT n, 0, repeat('x', 1000) FROM generate_series(1, {ROWS}) n")

    wait_for(lambda: shop.outbox() == [], 60)
    assert len(Ledger(receiver.requests).rows("sales")) == ROWS
    # With ten rows a request it would be thirty and more.
    assert len(receiver.requests) < 25


def test_a_slow_link_is_no_fault(new_server, receiver, slow):
    """With the time that a request has by default nothing is given up, and nothing sent twice."""
    shop = shop_on(new_server(preload=True), slow)
    shop.run("ALTER TABLE sales ADD note text")
    shop.run(f"INSERT INTO sales SELECT n, 0, repeat('x', 1000) FROM generate_series(1, {ROWS}) n")

    wait_for(lambda: shop.outbox() == [], 60)
    ledger = Ledger(receiver.requests)
    assert (len(ledger.rows("sales")), ledger.duplicated()) == (ROWS, set())
