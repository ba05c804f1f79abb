"""A short soak in every run of the suite; `make soak` is the long one."""

import os

import pytest

from support.soak.schedule import schedule
from support.soak.soak import FAULTS, PACE, Soak
from support.stand import HUB_SETTINGS, SETTINGS

MINUTES = float(os.environ.get("SYNC_OUTBOX_SOAK_MINUTES", 3))
SEED = int(os.environ.get("SYNC_OUTBOX_SOAK_SEED", 15))


@pytest.mark.timeout(MINUTES * 60 + 240)
@pytest.mark.expects_log("was terminated by signal 9|received immediate shutdown request")
def test_nothing_is_lost_or_made_up_under_random_faults(new_server, tmp_path):
    soak = Soak(new_server(preload=True, settings=SETTINGS), new_server(settings=HUB_SETTINGS), tmp_path, SEED, MINUTES * 60)
    soak.run()
    print(soak.report())

    assert soak.failures == []


def test_a_seed_gives_the_same_schedule_and_another_seed_another():
    lanes = {lane: (list(faults), *PACE[lane]) for lane, faults in FAULTS.items()}

    assert schedule(1, 600, lanes) == schedule(1, 600, lanes)
    assert schedule(1, 600, lanes) != schedule(2, 600, lanes)


def test_every_fault_has_its_turn():
    lanes = {lane: (list(faults), *PACE[lane]) for lane, faults in FAULTS.items()}
    dealt = {event.fault for event in schedule(3, 300, lanes)}

    assert dealt == {fault for faults in FAULTS.values() for fault in faults}
