"""Exactly what was committed arrives, once and in the order of each key, whatever the writers do to each other while the
worker drains."""

import os

import pytest

from support import writers
from support.arrivals import Arrivals
from support.wait import wait_for

# Fewer while working on the test itself.
CHANGES = int(os.environ.get("SYNC_OUTBOX_TEST_CHANGES", 1_000_000))


@pytest.mark.timeout(600)
def test_invariant_10_a_million_changes_of_entangled_writers_arrive_once_and_in_order(live, new_receiver):
    arrivals = Arrivals()
    live.aim(new_receiver(arrivals))
    writers.prepare(live)

    writers.write(live, least=CHANGES)
    wait_for(lambda: arrivals.quiet(0.5) and live.value("SELECT NOT EXISTS (SELECT FROM sync_outbox)"), 180, "an empty outbox")

    count, truth = writers.committed(live)
    arrived = arrivals.histories
    lost, phantom = truth.without(arrived), arrived.without(truth)
    assert (lost, phantom) == ({}, {})
    assert (arrivals.count, arrivals.duplicates) == (count, 0)
    # Nothing is missing and nothing too much: what differs now is the order.
    disordered = {name: (words, arrived[name]) for name, words in truth.items() if arrived[name] != words}
    assert disordered == {}
    assert count >= CHANGES
