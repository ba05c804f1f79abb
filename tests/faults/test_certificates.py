"""Certificates are renewed while changes come: the hub's, its authority's, and our own, in the files they have always been in.
Nobody restarts or reloads anything."""

import pathlib
import tempfile

import pytest

from support.authority import Authority
from support.ledger import Ledger
from support.run import own
from support.stand import SETTINGS
from support.wait import wait_for
from support.workers import shop_on


class Files:
    """The PEM files that the settings name, where the server may read them."""

    def __init__(self, run, authority):
        self.where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
        own(self.where)
        self.paths = {name: self.where / f"{name}.pem" for name in ("ca_file", "client_cert_file", "client_key_file")}
        self.hold(authority)

    def hold(self, authority):
        """From now on they hold this authority, and a client's certificate of it."""
        for path, new in zip(self.paths.values(), (authority.ca_file, *authority.client_files())):
            path.write_bytes(new.read_bytes())
            path.chmod(0o600)
            own(path)

    @property
    def settings(self):
        return {f"sync_outbox.{name}": path for name, path in self.paths.items()}


@pytest.mark.parametrize("first", ["the hub", "the files"])
def test_certificates_and_authorities_are_renewed_while_changes_come(new_server, new_receiver, authority, tmp_path, run, first):
    receiver = new_receiver(tls=authority.context("127.0.0.1", require_client=True))
    files = Files(run, authority)
    shop = shop_on(new_server(preload=True, settings={**SETTINGS, **files.settings}), receiver)
    shop.run("INSERT INTO sales VALUES (1)")
    wait_for(lambda: shop.outbox() == [], what="the first change delivered")
    directory = tmp_path / "renewed"
    directory.mkdir()
    renewed = Authority(directory)

    def renew_the_hub():
        receiver.stop()
        receiver.tls = renewed.context("127.0.0.1", require_client=True)
        receiver.start()
    steps = [renew_the_hub, lambda: files.hold(renewed)]
    steps = steps if first == "the hub" else reversed(steps)
    for sale, step in enumerate(steps, 2):
        step()
        shop.run("INSERT INTO sales VALUES (%s)", [sale])
        wait_for(lambda: all(change.attempt_count for change in shop.outbox()), what="an attempt")

    wait_for(lambda: shop.outbox() == [], what="an empty outbox")
    ledger = Ledger(receiver.requests)
    assert (sorted(row["id"] for row in ledger.rows("sales")), ledger.duplicated()) == ([1, 2, 3], set())
