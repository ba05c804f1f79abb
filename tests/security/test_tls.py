"""Certificates: the target's must be good, ours are shown where they are wanted, and what does not fit is an error."""


import pytest
from psycopg import errors

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for
from support.workers import shop_on


def assert_nothing_sent(database, receiver, why):
    """The certificate was refused before a byte of the changes left, and that is nobody's refusal."""
    answer = database.flushed()
    assert (answer["ok"], answer["acked"], answer["error"]) == (False, 0, "offline")
    assert receiver.requests == []
    for change in database.outbox():
        assert (change.status, change.refusals) == ("FAILED", 0)
        assert why in change.error_message, change.error_message


# The target's certificate

@pytest.fixture
def over_tls(three, new_receiver, authority):
    """Aims at a TLS receiver whose certificate is for these names, trusting the authority."""
    def make(*names, trusted=None, host="127.0.0.1", tls=None):
        receiver = new_receiver(tls=tls or authority.context(*names), host="127.0.0.1")
        receiver.host = host
        three.server.set(sync_outbox__ca_file=(trusted or authority).ca_file)
        three.aim(receiver)
        return receiver
    return make


def test_https_with_a_ca_file(three, over_tls):
    receiver = over_tls("127.0.0.1")

    assert three.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert receiver.connections == 1


def test_https_with_a_host_name(three, over_tls):
    over_tls("localhost", host="localhost")

    assert three.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'


def test_an_authority_that_is_not_trusted(three, over_tls, new_authority):
    receiver = over_tls("127.0.0.1", trusted=new_authority())

    assert_nothing_sent(three, receiver, "UnknownIssuer")


def test_the_systems_roots_do_not_know_our_authority(three, over_tls):
    receiver = over_tls("127.0.0.1")
    three.server.set(sync_outbox__ca_file=None)

    assert_nothing_sent(three, receiver, "UnknownIssuer")


def test_a_certificate_for_another_name(three, over_tls):
    receiver = over_tls("hub.example.org")

    assert_nothing_sent(three, receiver, "not valid for name")


@pytest.mark.parametrize("flaw, why", [
    ({"starts": -10, "ends": -1}, "certificate expired"),
    ({"starts": 1, "ends": 10}, "not valid yet"),
    ({"alternative_name": False}, "not valid for name"),
    ({"is_authority": True}, "CaUsedAsEndEntity"),
], ids=["expired", "not valid yet", "only a common name", "an authority's own"])
def test_a_certificate_that_is_not_as_it_should_be(three, over_tls, authority, flaw, why):
    receiver = over_tls(host="localhost", tls=authority.flawed_context("localhost", **flaw))

    assert_nothing_sent(three, receiver, why)


def test_a_certificate_that_is_replaced_under_load(sales, new_receiver, authority):
    """Half way the target closes its connections and comes back with another certificate of the same authority."""
    receiver = new_receiver(tls=authority.context("127.0.0.1"))
    sales.server.set(sync_outbox__ca_file=authority.ca_file, sync_outbox__batch_rows=10)
    sales.aim(receiver)
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 400) n")

    def replace(request, wire):
        receiver.tls = authority.context("127.0.0.1")
        behaviours.ack_all(request, wire)
        wire.close()
    receiver.script(*[behaviours.ack_all] * 10, replace, *[behaviours.ack_all] * 10, replace)
    sales.run("CALL sync_outbox_drain()")

    ledger = Ledger(receiver.requests)
    assert (len(ledger.rows("sales")), ledger.duplicated(), sales.outbox()) == (400, set(), [])
    assert receiver.connections == 3


def test_an_authority_that_is_replaced_under_load(new_server, new_receiver, authority, new_authority):
    """The worker gets the new one with a reload, and goes on; while they do not fit, nothing is sent and nothing refused."""
    server = new_server(preload=True, settings={"sync_outbox.ca_file": authority.ca_file, "sync_outbox.retry_interval": "50ms"})
    receiver = new_receiver(tls=authority.context("127.0.0.1"))
    shop = shop_on(server, receiver)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox() == [])

    new = new_authority()
    receiver.stop()
    receiver.tls = new.context("127.0.0.1")
    receiver.start()
    shop.run("INSERT INTO sales VALUES (2, 0)")
    wait_for(lambda: [change for change in shop.outbox() if "UnknownIssuer" in (change.error_message or "")])
    server.set(sync_outbox__ca_file=new.ca_file)
    wait_for(lambda: shop.outbox() == [])
    assert [change["pk"]["id"] for change in receiver.changes] == [1, 2]


def test_https_to_a_port_that_speaks_http(three, receiver):
    three.configure(webapp_base_url=receiver.url.replace("http:", "https:"), sync_upload_token="t0ken")
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(three.outbox()) == 3


# Client certificates

def test_a_client_certificate(mutual):
    assert mutual.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'


def test_a_client_certificate_that_is_missing(mutual):
    mutual.server.set(sync_outbox__client_cert_file=None, sync_outbox__client_key_file=None)
    answer = mutual.flushed()

    assert (answer["ok"], answer["acked"], answer["error"]) == (False, 0, "offline")
    assert mutual.receiver.requests == []


def test_a_client_certificate_of_another_authority(mutual, new_authority):
    """It fits its key, and the target does not know who issued it."""
    for name, path in zip(("client_cert_file", "client_key_file"), new_authority().client_files()):
        mutual.files[name].write_bytes(path.read_bytes())
    answer = mutual.flushed()

    assert (answer["ok"], answer["acked"], answer["error"]) == (False, 0, "offline")
    assert mutual.receiver.requests == []
    assert {change.refusals for change in mutual.outbox()} == {0}


@pytest.mark.parametrize("file, content, why", [
    ("client_key_file", None, "cannot read sync_outbox.client_key_file"),
    ("client_key_file", b"", "sync_outbox.client_key_file holds no private key"),
    ("client_key_file", b"other", "does not belong to the certificate"),
    ("client_cert_file", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "does not belong to the certificate"),
    ("client_cert_file", b"nothing", "sync_outbox.client_cert_file holds no certificate"),
    ("ca_file", b"\xff\x00", "sync_outbox.ca_file holds no certificate"),
], ids=["missing", "empty", "another key", "no certificate", "no pem", "no authority"])
def test_certificate_files_that_do_not_fit_are_errors_and_no_panics(mutual, new_authority, file, content, why):
    if content is None:
        mutual.files[file].unlink()
    elif content == b"other":
        mutual.files[file].write_bytes(new_authority().client_files()[1].read_bytes())
    else:
        mutual.files[file].write_bytes(content)
    with pytest.raises(errors.ConfigFileError, match=why):
        mutual.flush()
    assert mutual.receiver.connections == 0
    assert {change.status for change in mutual.outbox()} == {"PENDING"}
