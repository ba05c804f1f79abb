"""The real version 0.1.0, built from the repository's history, and servers with its library."""

import os
import subprocess

import pytest

from . import prefix
from .run import Run

SCRIPT = prefix.PROJECT / "scripts" / "release-0.1.0.sh"
NOT_TO_BE_HAD = 75


def build():
    """The directory that the old version is installed from, and that of its build; skips where it is not to be had."""
    done = subprocess.run([SCRIPT], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**_environment(), "PG_CONFIG": prefix.default_pg_config()})
    if done.returncode == NOT_TO_BE_HAD:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]
    source, target = done.stdout.split()
    return source, target


def _environment():
    """Without what a surrounding `make` says to those below it."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


class Release:
    """A private copy of the server, into which the old or the new version is installed, one over the other.

    A library that a server has mapped stays as it is: `make install-files` renames."""

    def __init__(self, run, name):
        self.name = name
        self.source, self.target = build()
        self.run = Run(run.where, f"bindir_{name}")
        self.bindir = prefix.copy(prefix.default_pg_config(), run.where / f"pg_{name}")
        (run.where / f"bindir_{name}").symlink_to(self.bindir)

    def install_old(self):
        self._install(self.source, {"CARGO_TARGET_DIR": self.target})
        return self

    def install_new(self):
        self._install(prefix.PROJECT, {})
        return self

    def _install(self, source, more):
        subprocess.run(["make", "--no-print-directory", "-s", "-C", source, "install-files",
                        f"PG_CONFIG={self.bindir / 'pg_config'}"], check=True, env={**_environment(), **more})

    def close(self):
        self.run.close()
