"""A receiver that wants a client's certificate."""

import pathlib
import tempfile

import pytest

from support.run import own


@pytest.fixture
def mutual(three, new_receiver, authority, run):
    """Aims at a receiver that wants a client's certificate; gives the files of one, where the server may read them."""
    receiver = new_receiver(tls=authority.context("127.0.0.1", require_client=True))
    where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
    files = {}
    paths = authority.ca_file, *authority.client_files()
    for name, path in zip(("ca_file", "client_cert_file", "client_key_file"), paths):
        files[name] = where / path.name
        files[name].write_bytes(path.read_bytes())
        files[name].chmod(0o600)
        own(files[name])
    own(where)
    three.server.set(**{f"sync_outbox__{name}": path for name, path in files.items()})
    three.aim(receiver)
    three.files, three.receiver = files, receiver
    return three
