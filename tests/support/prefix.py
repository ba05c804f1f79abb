"""A private copy of PostgreSQL with the extension installed into it.

PostgreSQL finds its lib and share directories relative to its own binary, so a copy that keeps the layout works anywhere.
The system's tree is never written, and replacing the library cannot crash somebody else's server.
"""

import os
import pathlib
import shutil
import subprocess

PROJECT = pathlib.Path(__file__).resolve().parents[2]


def default_pg_config():
    """The pg_config that the Makefile takes: PG_CONFIG, or what it works out itself."""
    return subprocess.run(
        ["make", "--no-print-directory", "-s", "-C", PROJECT, "print-pg-config"],
        check=True, capture_output=True, text=True).stdout.strip()


def _directory(pg_config, which):
    return pathlib.Path(subprocess.check_output([pg_config, f"--{which}"], text=True).strip())


def copy(pg_config, where):
    """Copies a server below `where`; returns the private bindir."""
    trees = {name: _directory(pg_config, name) for name in ("bindir", "pkglibdir", "sharedir")}
    root = pathlib.Path(os.path.commonpath(trees.values()))
    for tree in trees.values():
        shutil.copytree(tree, where / tree.relative_to(root), symlinks=True, dirs_exist_ok=True)
    return where / trees["bindir"].relative_to(root)


def build(where):
    """Copies the server of PG_CONFIG below `where`, installs the built extension there, returns the private bindir."""
    bindir = copy(default_pg_config(), where)
    subprocess.run(
        ["make", "--no-print-directory", "-s", "-C", PROJECT, "install-files", f"PG_CONFIG={bindir / 'pg_config'}"],
        check=True)
    return bindir
