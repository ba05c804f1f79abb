"""Tables with rows in them, sent by the worker."""

import pytest


@pytest.fixture
def prioritised(live, receiver):
    """3,000 rows that a backfill can send, and an attached table of priority HIGH."""
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.run("INSERT INTO sales SELECT g, 0 FROM generate_series(1, 3000) g")
    live.attach("sales")
    live.run("CREATE TABLE urgent (id int PRIMARY KEY, qty int)")
    live.attach("urgent", priority="HIGH")
    return live


@pytest.fixture
def stocked(live, receiver):
    """Fifty rows to update, and a table to backfill; no timer is quick enough to help."""
    live.server.set(sync_outbox__interval="1h", sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, v int)")
    live.run("INSERT INTO sales SELECT g, 0 FROM generate_series(1, 50) g")
    live.attach("sales")
    live.run("CREATE TABLE old (id int PRIMARY KEY)")
    live.run("INSERT INTO old SELECT generate_series(1, 5)")
    live.attach("old")
    return live
