"""Names and routes fail: the resolver is down, silent or slow, says something else than before, points where nobody may be
sent, or the way to the hub is gone. The target is away then, as always: nothing is lost, and it goes on by itself.

How long anybody waits for a silent resolver is measured in test_response_times.py."""

import time
from types import SimpleNamespace

import pytest

from support.hub import HubProcess
from support.ledger import Ledger
from support.names import NXDOMAIN, REFUSED, SERVFAIL
from support.network import LOSSES
from support.stand import SETTINGS, Stand
from support.wait import wait_for
from support.workers import shop_on

PORT = 8080
URL = f"http://hub.test:{PORT}"
OLD, NEW, METADATA = "10.1.0.1", "10.1.0.2", "169.254.169.254"
TIMES = {"sync_outbox.connect_timeout": "500ms", "sync_outbox.request_timeout": "1s"}


@pytest.fixture
def listen(network, new_receiver):
    """A receiver at an address of the network."""
    def listening(address):
        network.add(address)
        with network.inside():
            return new_receiver(host=address, port=PORT)
    return listening


class Flush:
    """A shop whose changes are sent when somebody calls flush."""
    enabled = "off"

    def __init__(self, shop):
        self.shop = shop

    def try_now(self):
        self.shop.flush()

    def sell(self, *ids):
        """Returns when an attempt has been made to send them."""
        self.shop.run("INSERT INTO sales SELECT unnest(%s::int[])", [list(ids)])
        self.try_now()
        wait_for(lambda: all(change.attempt_count for change in self.shop.outbox()), what="an attempt")

    def delivers(self):
        """Returns when the outbox is empty."""
        wait_for(lambda: self.try_now() or self.shop.outbox() == [], what="an empty outbox")


class Worker(Flush):
    """A shop whose changes are sent by the worker: nobody does anything but wait."""
    enabled = "on"

    def try_now(self):
        pass


@pytest.fixture(params=[Flush, Worker])
def shop(request, network, new_server):
    """Sends to a name, by flush or by worker; one second is all that an attempt may take."""
    kind = request.param
    server = new_server(preload=True, within=network.within, settings={
        **SETTINGS, **TIMES, "sync_outbox.allow_http": "on", "sync_outbox.enabled": kind.enabled})
    return kind(shop_on(server, SimpleNamespace(url=URL)))


def assert_offline(shop, ids, why):
    """Every change has been tried and kept, and no change is blamed."""
    changes = shop.shop.outbox()
    assert [(change.pk["id"], change.status, change.refusals) for change in changes] == [(id, "FAILED", 0) for id in ids]
    assert all(why in change.error_message for change in changes), changes[0].error_message


def assert_each_came_once(ids, *receivers):
    ledger = Ledger([request for receiver in receivers for request in receiver.requests])
    assert (sorted(row["id"] for row in ledger.rows("sales")), ledger.duplicated()) == (ids, set())


# Names

@pytest.mark.parametrize("trouble, why", [
    ({"code": NXDOMAIN}, "failed to lookup address"), ({"code": SERVFAIL}, "failed to lookup address"),
    ({"code": REFUSED}, "failed to lookup address"), ({}, "failed to lookup address"),
    ({"delay": None}, "timeout (resolve)"), ({"delay": 2.0}, "timeout (resolve)")],
    ids=["no such name", "a failure", "refused", "no address", "silence", "an answer that is too late"])
def test_a_name_that_cannot_be_looked_up(shop, network, listen, clock, trouble, why):
    hub = listen(OLD)
    network.names.behave(**trouble)
    with clock(1.5):
        shop.sell(1, 2, 3)
    assert_offline(shop, [1, 2, 3], why)

    network.names.behave(OLD)
    shop.delivers()
    assert_each_came_once([1, 2, 3], hub)


def test_a_slow_resolver_delays_and_no_more(shop, network, listen):
    hub = listen(OLD)
    network.names.behave(OLD, delay=0.3)
    shop.sell(1, 2, 3)
    shop.delivers()

    assert_each_came_once([1, 2, 3], hub)
    assert len(hub.requests) == 1


def test_a_name_that_moves_when_the_old_hub_is_gone_is_followed(shop, network, listen):
    old, new = listen(OLD), listen(NEW)
    network.names.behave(OLD)
    shop.sell(1)
    shop.delivers()
    old.stop()
    shop.sell(2)
    assert_offline(shop, [2], "refused")

    network.names.behave(NEW)
    shop.delivers()
    assert_each_came_once([1], old)
    assert_each_came_once([2], new)


def test_a_name_that_moves_while_the_old_hub_still_answers_is_followed_in_time(shop, network, listen):
    """A busy sender keeps its connection, but not for ever: nobody has to switch the old hub off."""
    old, new = listen(OLD), listen(NEW)
    network.names.behave(OLD)
    sold = []

    def sell_one():
        sold.append(len(sold) + 1)
        shop.sell(sold[-1])
        shop.delivers()
    sell_one()
    network.names.behave(NEW)
    wait_for(lambda: sell_one() or new.requests, 20, "a request at the new address")

    assert_each_came_once(sold, old, new)


def test_a_name_that_comes_to_point_at_a_metadata_service_is_refused(shop, network, listen):
    """Also where a connection is still open to where the name pointed before. No change is to blame, so none is marked."""
    hub, metadata = listen(OLD), listen(METADATA)
    network.names.behave(OLD)
    shop.sell(1)
    shop.delivers()

    network.names.behave(METADATA)
    shop.shop.run("INSERT INTO sales VALUES (2)")
    refused = 'the address 169.254.169.254 of the host "hub.test" is'
    shop.try_now()
    wait_for(lambda: refused in (shop.shop.value("SELECT last_error FROM sync_outbox_target_state") or ""), what="a refusal")
    assert [(change.status, change.attempt_count) for change in shop.shop.outbox()] == [("PENDING", 0)]
    assert metadata.connections == 0

    # The worker asks every five minutes whether this has been put right; a flush asks at once.
    network.names.behave(OLD)
    shop.shop.flush()
    shop.delivers()
    assert_each_came_once([1, 2], hub)


def test_what_was_checked_is_what_is_connected_to(shop, network, listen):
    """DNS rebinding: every second look-up points at a metadata service, so that a second one for the connection would."""
    hub, metadata = listen(OLD), listen(METADATA)
    network.names.behave(OLD, METADATA)
    for sale in range(1, 7):
        shop.shop.run("INSERT INTO sales VALUES (%s)", [sale])
        wait_for(lambda: shop.shop.flush() and shop.shop.outbox() == [], what="an empty outbox")

    assert_each_came_once([1, 2, 3, 4, 5, 6], hub)
    assert metadata.connections == 0


# Routes

@pytest.mark.parametrize("how", LOSSES)
def test_the_way_to_the_hub_is_gone(shop, network, listen, clock, how):
    hub = listen(OLD)
    network.names.behave(OLD)
    shop.sell(1)
    shop.delivers()
    network.lose(OLD, how)
    with clock(2.5):
        shop.sell(2, 3)
    assert_offline(shop, [2, 3], "offline: ")

    network.find(OLD, how)
    shop.delivers()
    assert_each_came_once([1, 2, 3], hub)


# All of it together

def test_nothing_is_lost_while_names_and_routes_come_and_go(network, new_server, tmp_path):
    """Writers, worker, flush and drain go on through all of it, and in the end the books agree."""
    network.add(OLD)
    network.names.behave(OLD)
    server = new_server(preload=True, within=network.within, settings={**SETTINGS, "sync_outbox.allow_http": "on"})
    with network.inside():
        hub = HubProcess(tmp_path, name="hub.test", listen=OLD)
    with Stand(server, tmp_path, seed=4, hub=hub) as stand:
        def requests_go_on():
            before = len(hub.requests())
            wait_for(lambda: len(hub.requests()) > before + 2, 20, "requests")

        def writers_go_on():
            before = stand.load.counted
            wait_for(lambda: stand.load.counted > before + 500, 20, "writers that go on")
        for _ in range(2):
            for trouble in ({"code": SERVFAIL}, {"code": NXDOMAIN}, {"delay": None}):
                requests_go_on()
                network.names.behave(**trouble)
                writers_go_on()
                network.names.behave(OLD)
            for how in LOSSES:
                requests_go_on()
                began = time.time()
                network.lose(OLD, how)
                writers_go_on()
                network.find(OLD, how)
                stand.disturbed(began)  # an answer may have been on its way
        verdict = stand.proven()

    assert verdict.hub.changes > 5000
