"""sync_outbox_version(): library and objects of one version, or of two."""

import pytest
from psycopg import errors

from support.prefix import PROJECT


def control_version():
    [line] = [line for line in (PROJECT / "sync_outbox.control").read_text().splitlines() if line.startswith("default_version")]
    return line.split("'")[1]


def test_library_and_objects_are_of_one_version(db):
    version = control_version()
    assert tuple(db.row("SELECT * FROM sync_outbox_version()")) == (version, version, True)
    assert db.value("SELECT settings -> 'version' FROM sync_outbox_overview()") == {
        "library": version, "extension": version, "matches": True}


def test_objects_of_another_version(db):
    db.run("UPDATE pg_extension SET extversion = '7.0' WHERE extname = 'sync_outbox'")
    assert tuple(db.row("SELECT * FROM sync_outbox_version()")) == (control_version(), "7.0.0", False)


def test_it_is_not_for_everybody(db):
    session = db.session(db.role("somebody"))
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT * FROM sync_outbox_version()")


def test_the_server_knows_the_version_of_the_library(db):
    """pg_get_loaded_modules() of PostgreSQL 18."""
    if db.conn.info.server_version < 180000:
        pytest.skip("pg_get_loaded_modules() is new in PostgreSQL 18")
    db.run("SELECT * FROM sync_outbox_version()")
    row = db.row("SELECT module_name, version, file_name FROM pg_get_loaded_modules() WHERE file_name LIKE '%sync_outbox%'")
    assert (row.module_name, row.version) == ("sync_outbox", control_version())
