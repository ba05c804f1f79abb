"""make install puts three kinds of files where pg_config says, below DESTDIR, and uninstall takes them away."""

import subprocess

import pytest

from support.prefix import PROJECT

FILES = ["sync_outbox--0.1.0--0.2.0.sql", "sync_outbox--0.1.0.sql", "sync_outbox--0.2.0.sql", "sync_outbox.control",
         "sync_outbox.so"]


@pytest.fixture
def make(run, tmp_path):
    """make <target> for the private server, below a directory of the test's own; returns what is there then."""
    def make(target):
        subprocess.run(["make", "-s", "-C", PROJECT, target, f"PG_CONFIG={run.bindir / 'pg_config'}", f"DESTDIR={tmp_path}"],
                       check=True, capture_output=True)
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    return make


def test_install_and_uninstall(make):
    assert make("install-files") == FILES
    assert make("install-files") == FILES
    assert make("uninstall") == []


def test_a_running_server_keeps_its_library(make, tmp_path):
    make("install-files")
    (library,) = tmp_path.rglob("sync_outbox.so")
    before = library.stat().st_ino
    make("install-files")

    assert library.stat().st_ino != before
