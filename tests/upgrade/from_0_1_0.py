"""The update from the real version 0.1.0, with its library, in place: `make test-upgrade`, which builds that version first.

Its name keeps this file out of `make test`, where tests/administration/test_update_of_a_site.py updates a dump instead."""

import itertools

import pytest
from psycopg import errors

from support import old_site
from support.old_release import Release
from support.server import Server
from support.workers import reconnected

UPDATE = "ALTER EXTENSION sync_outbox UPDATE"
VERSION = "SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'"
TOO_OLD = 'the loaded library of extension "sync_outbox" is older than version 0.2.0'


NUMBERS = itertools.count()


@pytest.fixture
def release(run, worker_name):
    """A copy of the server with the old version in it, which the new one can be installed over."""
    release = Release(run, f"old_{worker_name}_{next(NUMBERS)}").install_old()
    yield release
    release.close()


def start(release, watched, preload):
    server = Server(release.run, release.name, preload=preload, settings={**old_site.SETTINGS, "sync_outbox.enabled": "off"})
    server.start()
    with server.connect() as admin:
        admin.execute(old_site.ROLES)
    return watched(server)


@pytest.fixture
def server(release, watched):
    """One that preloads the old library."""
    return start(release, watched, preload=True)


@pytest.fixture
def site(server, receiver):
    site = server.create_database()
    old_site.fill(site, receiver)
    receiver.start()
    yield site
    site.close()


def restart(site, enabled):
    site.server.stop()
    site.server.write_settings({"sync_outbox.enabled": enabled})
    site.server.start()
    reconnected(site)


def test_an_update_in_place_under_load(site, release, receiver):
    """The old library sends until the server is restarted, the new one after the update; between the two nothing is sent."""
    receiver.behaviour = old_site.disagree
    known, sent = old_site.Known(site, receiver), len(receiver.requests)
    release.install_new()
    with old_site.Writers(site) as writers:
        writers.go_on()
    assert not writers.findings, writers.findings
    assert len(receiver.requests) > sent

    restart(site, "on")
    assert site.value(VERSION) == "0.1.0"
    sent = len(receiver.requests)
    with old_site.Writers(site) as more:
        more.go_on()
        assert len(receiver.requests) == sent
        with site.server.connect(site.name) as session:
            session.execute(f"SET lock_timeout = '10s'; {UPDATE}")
        # No token has to be given, nothing adopted: it is the same server.
        receiver.wait_for_requests(sent + 5, 30)
        more.go_on()
    assert not more.findings, more.findings
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    assert site.rows("SELECT clean FROM sync_outbox_overview()") == 3 * [(True,)]


def test_the_old_library_refuses_the_new_script_and_goes_on(site, release, receiver):
    """The files are installed, the server has not been restarted."""
    known = old_site.Known(site, receiver)
    release.install_new()
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
        site.run(UPDATE)

    assert refused.value.diag.message_primary == TOO_OLD
    assert refused.value.diag.message_hint.startswith("Install the new library and restart the server")
    assert site.value(VERSION) == "0.1.0"
    with old_site.Writers(site) as writers:
        writers.go_on()
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING


def test_a_session_of_the_old_library_goes_on_with_the_new_objects(release, watched, receiver):
    """Without preloading each session loads what is installed when it begins: one from before the update has the old one."""
    server = start(release, watched, preload=False)
    site = server.create_database()
    old_site.fill(site, receiver)
    receiver.start()
    known, early = old_site.Known(site, receiver), site.session()
    early.execute("SET sync_outbox.reason = 'early'; UPDATE sales SET place = place + 1 WHERE id = 1")
    release.install_new()
    with old_site.Writers(site) as late:
        late.go_on(50)
        site.conn = site.session()
        site.run(UPDATE)
        works_and_says_what_it_lacks(early)
        late.go_on(50)
    assert not late.findings, late.findings
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    site.close()


def test_the_old_library_after_the_update_loses_nothing(site, release, receiver):
    """Somebody puts the old library back, which is no way to go back: it captures and sends, and says of what it lacks that
    it is not there."""
    receiver.behaviour = old_site.disagree
    known = old_site.Known(site, receiver)
    release.install_new()
    restart(site, "off")
    site.run(UPDATE)
    release.install_old()
    restart(site, "off")
    works_and_says_what_it_lacks(site.session())
    with old_site.Writers(site) as writers:
        writers.go_on()
    assert not writers.findings, writers.findings

    release.install_new()
    restart(site, "on")
    with old_site.Writers(site) as writers:
        writers.go_on()
    assert not writers.findings, writers.findings
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING


@pytest.mark.parametrize("old_sends", [True, False])
def test_stores_and_hubs_of_both_versions_understand_each_other(server, db, receiver, old_sends):
    old = server.create_database()
    old.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    store, hub = (old, db) if old_sends else (db, old)
    assert {store.value(VERSION), hub.value(VERSION)} == {"0.1.0", "0.2.0"}
    for database in (store, hub):
        database.run("CREATE TABLE sales (id int PRIMARY KEY, place int, note text)")
    hub.run("SELECT sync_outbox_accept('sales')")
    store.aim(receiver)
    store.attach("sales", include_old=True)

    def apply(request, wire):
        wire.answer(200, hub.value("SELECT sync_outbox_apply(%s::json)", [request.text]))
    receiver.behaviour = apply
    store.run("SET sync_outbox.reason = 'both ways'; INSERT INTO sales SELECT n, 1, 'Málaga' FROM generate_series(1, 9) n")
    store.run("UPDATE sales SET place = 2 WHERE id < 5; UPDATE sales SET id = 10 WHERE id = 9; DELETE FROM sales WHERE id = 1")
    assert store.flushed()["acked"] == 15
    # In conflict, and an error: both are said and understood.
    hub.run("UPDATE sales SET place = 7 WHERE id = 2; ALTER TABLE sales ADD CHECK (place < 100)")
    store.run("UPDATE sales SET place = 3 WHERE id = 2; UPDATE sales SET place = 100 WHERE id = 3")
    store.flush()
    assert sorted(row.status for row in store.outbox()) == ["CONFLICT", "FAILED"]
    hub.run("UPDATE sales SET place = 2 WHERE id = 2; ALTER TABLE sales DROP CONSTRAINT sales_place_check")
    store.run("SELECT sync_outbox_requeue(reason => 'repaired'); UPDATE sales SET place = 4 WHERE id = 3")
    store.flush()
    rows = "SELECT * FROM sales ORDER BY id"
    assert (hub.rows(rows), store.outbox()) == (store.rows(rows), [])
    old.close()


def works_and_says_what_it_lacks(session):
    """What a session with the old library can do with new objects, and what it cannot: docs/upgrading.md has the message."""
    session.execute("SET client_min_messages = error; SET sync_outbox.reason = 'with the old library'")
    for table, (_, where) in old_site.PLACED.items():
        assert session.execute(f"UPDATE {table} SET place = place + 1 WHERE {where}", {"n": 2}).rowcount == 1
    assert "pending" in session.execute("SELECT sync_outbox_flush()").fetchone()[0]
    for statement, symbol in [("SELECT * FROM sync_outbox_overview()", "sync_outbox_overview_0_2_0_wrapper"),
                              ("SELECT sync_outbox_pause()", "sync_outbox_target_changed"),
                              ("SELECT sync_outbox_target_drop('reports')", "sync_outbox_target_drop_wrapper")]:
        with pytest.raises(errors.UndefinedFunction) as refused:
            session.execute(statement)
        assert refused.value.diag.message_primary.startswith(f'could not find function "{symbol}" in file "')
