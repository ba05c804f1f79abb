"""A copy never sends, however it was made, until somebody adopts it; what takes the original's place by itself goes on."""

import subprocess

import pytest
from psycopg import errors

from support.copies import CLONED
from support.database import TOKEN, Database
from support.server import Server
from support.wait import wait_for
from support.workers import OURS, shop_on

@pytest.fixture
def source(sales, receiver):
    """One change delivered, two waiting; who knows the URL and the token is the server, as every copy on it does."""
    sales.server.set(sync_outbox__base_url=receiver.url, sync_outbox__upload_token=TOKEN)
    sales.run("UPDATE sync_outbox_target SET base_url = NULL")
    sales.run("INSERT INTO sales VALUES (1, 1)")
    assert sales.flushed()["acked"] == 1
    sales.run("INSERT INTO sales VALUES (2, 2), (3, 3)")
    return sales


@pytest.fixture
def copies(source):
    """Names of databases to copy into, dropped with the test."""
    made = []

    def copy(restore, name):
        name = f"{source.name}_{name}"
        restore(name)
        made.append(Database(source.server, name))
        return made[-1]
    yield copy
    for database in made:
        database.close()
        source.server.drop_database(database.name)


def programs(server, program, *arguments):
    return server.run.call(program, "-h", server.sockets, "-U", "postgres", *arguments)


def dump(source, name, *options):
    path = source.server.run.where / f"{source.name}_{name}.sql"
    path.write_text(programs(source.server, "pg_dump", *options, source.name))
    path.chmod(0o644)
    return path


def load(server, name, path):
    programs(server, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f", path)


def restored(source, *parts):
    """Restores dumps, each made with one of the tuples of options, one after the other into a new database."""
    def restore(name):
        programs(source.server, "createdb", name)
        for number, options in enumerate(parts):
            load(source.server, name, dump(source, f"{name}_{number}", *options))
    return restore


def from_template(source):
    def restore(name):
        source.close()
        programs(source.server, "createdb", "-T", source.name, name)
        source.conn = source.session()
    return restore


WAYS = {
    "template": from_template,
    "full": lambda source: restored(source, ()),
    "data_after_schema": lambda source: restored(source, ("--schema-only",), ("--data-only", "--disable-triggers")),
    "schema": lambda source: restored(source, ("--schema-only",)),
}


def paused(database):
    return database.row("SELECT paused, paused_reason FROM sync_outbox_overview()")


@pytest.mark.parametrize("way", WAYS)
def test_invariant_19_a_copy_is_silent_and_says_why(source, copies, receiver, way):
    copy = copies(WAYS[way](source), way)
    copy.run("INSERT INTO sales VALUES (4, 4)")
    waiting = copy.value("SELECT count(*) FROM sync_outbox")
    assert waiting == (1 if way == "schema" else 3)
    before = len(receiver.requests)

    assert copy.flush() == f'{{"ok": false, "pending": {waiting}, "sent": 0, "acked": 0, "error": "cloned"}}'
    notices = []
    copy.conn.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))
    copy.run("CALL sync_outbox_drain()")
    assert ("WARNING", "sync_outbox_drain stopped: cloned") in notices
    assert paused(copy).paused and paused(copy).paused_reason.startswith("cloned: ")
    copy.run("SELECT sync_outbox_resume()")
    assert copy.flushed()["error"] == "cloned"
    assert len(receiver.requests) == before
    assert copy.value("SELECT count(*) FROM sync_outbox") == waiting
    # The original is none the wiser.
    assert source.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("choice", ["same", "new"])
def test_adopted_it_sends_what_it_has_and_what_comes(source, copies, receiver, way, choice):
    identity = "SELECT source FROM sync_outbox_identity"
    keys = source.keys()
    copy = copies(WAYS[way](source), f"{way}_{choice}")
    copy.run(f"SELECT sync_outbox_adopt('{choice}')")
    came_along = [] if way == "schema" else keys

    assert paused(copy) == (False, None)
    assert copy.keys() == came_along
    # After a dump of the schema alone nobody knows which source it was.
    assert (copy.value(identity) == source.value(identity)) == (choice == "same" and way != "schema")
    copy.run("INSERT INTO sales VALUES (4, 4)")
    assert copy.flushed()["acked"] == len(came_along) + 1
    assert receiver.requests[-1].keys[:-1] == came_along
    assert copy.value("SELECT adopted_by FROM sync_outbox_identity") == "postgres"


def test_adopted_again_with_a_change_of_mind(source, copies):
    copy = copies(from_template(source), "twice")
    copy.run("SELECT sync_outbox_adopt('same')")
    copy.run("SELECT sync_outbox_adopt(' new ')")
    assert copy.value("SELECT source FROM sync_outbox_identity") != source.value("SELECT source FROM sync_outbox_identity")
    assert copy.flushed()["acked"] == 2


def test_a_template_with_nothing_in_it_makes_no_copies(quiet_server, watched, receiver):
    """The extension installed, even used once, but no table attached, nothing waiting, no URL."""
    template = watched(quiet_server).create_database()
    template.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    template.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    template.attach("sales")
    template.run("SELECT sync_outbox_detach('sales')")
    template.close()
    name = f"{template.name}_made"
    programs(quiet_server, "createdb", "-T", template.name, name)
    made = Database(quiet_server, name)
    try:
        assert paused(made) == (False, None)
        made.aim(receiver)
        made.attach("sales")
        made.run("INSERT INTO sales VALUES (1, 1)")
        assert made.flushed()["acked"] == 1
    finally:
        made.close()
        quiet_server.drop_database(name)
        quiet_server.drop_database(template.name)


def test_foreign_data_restored_into_a_live_outbox_stop_it(source, copies, receiver):
    """Two outboxes in one database: a person has to say."""
    other = copies(restored(source, ("--schema-only",)), "merged")
    other.run("SELECT sync_outbox_adopt('new'); TRUNCATE sync_outbox_target CASCADE")
    own = other.value("SELECT source FROM sync_outbox_identity")
    load(source.server, other.name, dump(source, "data", "--data-only", "--disable-triggers"))

    assert other.flushed()["error"] == "cloned"
    other.run("SELECT sync_outbox_adopt('same')")
    assert other.rows("SELECT source FROM sync_outbox_identity") == [(own,)]
    assert other.flushed()["acked"] == 2


def test_invariant_20_adopt_makes_ids_and_transactions_those_of_this_server(source, copies, receiver):
    """As after a restore into a server that has seen fewer transactions, of an outbox whose sequence was not restored."""
    copy = copies(from_template(source), "younger")
    copy.run("UPDATE sync_outbox SET txid = (pg_current_xact_id()::text::bigint + id)::text::xid8")
    copy.run("SELECT setval('sync_outbox_id_seq', 1)")
    copy.run("SELECT sync_outbox_adopt('same')")
    copy.run("INSERT INTO sales VALUES (4, 4)")

    ids = [change.id for change in copy.outbox()]
    assert ids == sorted(set(ids)) and copy.outbox()[-1].pk == {"id": 4}
    assert copy.value("SELECT count(*) FROM sync_outbox WHERE txid >= pg_current_xact_id()") == 0
    assert copy.flushed()["acked"] == 3


def test_adopt_is_for_an_admin_and_knows_two_words(sales):
    session = sales.session(sales.role("op", "sync_outbox_operator"))
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_adopt('same')")
    sales.session(sales.role("dba", "sync_outbox_admin")).execute("SELECT sync_outbox_adopt('same')")
    for word in ["'copy'", "NULL", "''"]:
        with pytest.raises(errors.InvalidParameterValue) as caught:
            sales.run(f"SELECT sync_outbox_adopt({word})")
        assert "sync_outbox_adopt" in caught.value.diag.message_hint


def test_the_worker_of_a_copy_warns_once_and_sends_once_it_is_adopted(new_server, receiver):
    server = new_server(preload=True, settings={"sync_outbox.interval": "100ms", "sync_outbox.worker_idle_timeout": "300ms"})
    shop = shop_on(server, receiver)
    server.set(sync_outbox__enabled="off")
    shop.run("INSERT INTO sales VALUES (1, 1)")
    shop.close()
    copy = server.create_database(f"TEMPLATE {shop.name}")
    server.set(sync_outbox__enabled=None, sync_outbox__base_url=receiver.url, sync_outbox__upload_token=TOKEN)
    receiver.wait_for_requests(1)

    wait_for(lambda: server.log.matches(CLONED))
    # Workers come and go; each would say it again.
    for sale in (2, 3):
        wait_for(lambda: copy.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker'"
                                    " AND datname = current_database()") == 0)
        copy.run("INSERT INTO sales VALUES (%s, 0)", [sale])
        wait_for(lambda: copy.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker'"
                                    " AND datname = current_database()") == 1)
    assert len(server.log.matches(CLONED)) == 1
    assert len(receiver.requests) == 1

    copy.run("UPDATE sync_outbox_target SET base_url = NULL; SELECT sync_outbox_adopt('new')")
    wait_for(lambda: copy.outbox() == [])


# Physical copies

def copy_directory(server, run, name):
    """What an administrator's cp makes of a stopped server."""
    subprocess.run(["cp", "-a", server.data, run.where / name], check=True)
    return run.where / name


@pytest.fixture
def stopped(new_server, receiver):
    """A preloaded server with a change that waits, stopped."""
    server = new_server(preload=True, settings={"sync_outbox.enabled": "off"})
    shop = shop_on(server, receiver)
    shop.run("INSERT INTO sales VALUES (1, 1)")
    shop.close()
    server.stop()
    server.shop = shop
    return server


def started(run, watched, original, data, **options):
    server = watched(Server(run, data.name, preload=True, data=data, **options).start())
    return server, Database(server, original.shop.name)


def switch_on(server):
    server.set(sync_outbox__enabled="on")


def is_silent(copy, database, receiver):
    """Switched on, it says that it is a copy, and sends nothing."""
    switch_on(copy)
    wait_for(lambda: copy.log.matches(CLONED))
    assert database.flushed()["error"] == "cloned"
    assert receiver.requests == []


def test_invariant_19_a_copied_data_directory_is_silent_beside_the_original(stopped, run, watched, receiver):
    data = copy_directory(stopped, run, f"{stopped.name}_cp")
    copy, database = started(run, watched, stopped, data)
    switch_on(copy)
    wait_for(lambda: copy.log.matches(CLONED))
    assert database.flushed()["error"] == "cloned"
    assert paused(database).paused_reason == "cloned: the data directory was copied or moved, or the host has another name"
    assert receiver.requests == []

    stopped.start()
    switch_on(stopped)
    receiver.wait_for_requests(1)
    database.run("SELECT sync_outbox_adopt('same')")
    receiver.wait_for_requests(2)
    assert receiver.requests[0].keys == receiver.requests[1].keys
    database.close()
    copy.stop("immediate")


def test_another_host_name_counts_as_another_machine(stopped, receiver):
    stopped.start()
    shop = Database(stopped, stopped.shop.name)
    shop.run("UPDATE sync_outbox_identity SET host = 'another'")
    assert shop.flushed()["error"] == "cloned"
    shop.run("SELECT sync_outbox_adopt('same')")
    assert shop.flushed()["acked"] == 1
    shop.close()


def test_a_restart_and_a_link_to_the_directory_change_nothing(stopped, run, receiver):
    link = run.where / f"{stopped.name}_link"
    link.symlink_to(stopped.data)
    stopped.data = link
    stopped.start()
    switch_on(stopped)
    receiver.wait_for_requests(1)
    assert not stopped.log.matches(CLONED)


def test_another_system_identifier_is_a_copy_as_after_pg_upgrade(stopped, run, receiver):
    control = stopped.data / "global" / "pg_control"
    before = stopped.run.call("pg_controldata", stopped.data)
    # The identifier leads the file; pg_resetwal takes no other, but it mends the checksum that no longer fits.
    with open(control, "r+b") as file:
        identifier = int.from_bytes(file.read(8), "little")
        file.seek(0)
        file.write((identifier + 1).to_bytes(8, "little"))
    run.call("pg_resetwal", "-f", stopped.data)
    assert stopped.run.call("pg_controldata", stopped.data).splitlines()[2] != before.splitlines()[2]
    stopped.start()
    switch_on(stopped)
    wait_for(lambda: stopped.log.matches(CLONED))
    shop = Database(stopped, stopped.shop.name)
    assert shop.flushed()["error"] == "cloned"
    assert receiver.requests == []
    shop.run("SELECT sync_outbox_adopt('same')")
    receiver.wait_for_requests(1)
    shop.close()


def base_backup(run, server, name, *options):
    data = run.directory(name)
    run.call("pg_basebackup", "-D", data, "-d", server.dsn(), "-X", "stream", "-c", "fast", *options)
    return data


def test_a_base_backup_started_as_it_is_is_silent(stopped, run, watched, receiver):
    stopped.start()
    data = base_backup(run, stopped, f"{stopped.name}_backup")
    copy, database = started(run, watched, stopped, data)
    is_silent(copy, database, receiver)
    database.close()
    copy.stop("immediate")


def test_invariant_19_a_promoted_standby_goes_on_and_a_copy_of_it_does_not(stopped, run, watched, receiver):
    stopped.start()
    data = base_backup(run, stopped, f"{stopped.name}_standby", "-R")
    standby, database = started(run, watched, stopped, data)
    switch_on(standby)
    assert standby.value(OURS) == 0
    assert database.row("SELECT paused, total FROM sync_outbox_overview()") == (False, 1)
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        database.run("SELECT sync_outbox_adopt('same')")
    stopped.stop()

    assert standby.value("SELECT pg_promote()")
    receiver.wait_for_requests(1)
    assert not standby.log.matches(CLONED)
    where = wait_for(lambda: database.rows("SELECT data_directory, timeline FROM sync_outbox_identity WHERE timeline = 2"))
    assert where == [(str(data.resolve()), 2)]

    wait_for(lambda: database.outbox() == [])
    database.close()
    standby.reset_settings()
    standby.stop()
    copied, database = started(run, watched, stopped, copy_directory(standby, run, f"{stopped.name}_again"))
    database.run("INSERT INTO sales VALUES (2, 2)")
    assert database.flushed()["error"] == "cloned"
    database.close()
    copied.stop("immediate")


# What PostgreSQL 17 has brought

def test_a_combined_incremental_backup_is_silent(new_server, run, watched, receiver):
    if not (run.bindir / "pg_combinebackup").exists():
        pytest.skip("incremental backups are new in PostgreSQL 17")
    server = new_server(preload=True, settings={"sync_outbox.enabled": "off", "summarize_wal": "on"})
    server.shop = shop = shop_on(server, receiver)
    shop.run("INSERT INTO sales VALUES (1, 1)")
    full = base_backup(run, server, f"{server.name}_full")
    shop.run("INSERT INTO sales VALUES (2, 2)")
    further = base_backup(run, server, f"{server.name}_further", f"--incremental={full / 'backup_manifest'}")
    data = run.directory(f"{server.name}_combined")
    run.call("pg_combinebackup", full, further, "-o", data)
    copy, database = started(run, watched, server, data)
    assert len(database.outbox()) == 2
    is_silent(copy, database, receiver)
    shop.close()
    database.close()
    copy.stop("immediate")


def test_what_pg_createsubscriber_makes_is_silent(new_server, run, watched, receiver):
    """A standby becomes a logical subscriber, with another system identifier."""
    if not (run.bindir / "pg_createsubscriber").exists():
        pytest.skip("pg_createsubscriber is new in PostgreSQL 17")
    publisher = new_server(preload=True, settings={"sync_outbox.enabled": "off", "wal_level": "logical"})
    publisher.shop = shop = shop_on(publisher, receiver)
    shop.run("INSERT INTO sales VALUES (1, 1)")
    data = base_backup(run, publisher, f"{publisher.name}_subscriber", "-R")
    standby, database = started(run, watched, publisher, data)
    database.close()
    standby.stop()
    run.call("pg_createsubscriber", "-D", data, "-P", publisher.dsn(shop.name), "-d", shop.name, "-U", "postgres",
             "--socketdir", standby.sockets)
    standby.start()
    switch_on(standby)
    wait_for(lambda: standby.log.matches(CLONED))
    subscriber = Database(standby, shop.name)
    shop.run("INSERT INTO sales VALUES (2, 2)")
    wait_for(lambda: subscriber.value("SELECT count(*) FROM sync_outbox") == 2, what="a change that was replicated")
    assert subscriber.flushed()["error"] == "cloned"
    assert receiver.requests == []
    [name] = [row.subname for row in subscriber.rows("SELECT subname FROM pg_subscription")]
    subscriber.run(f"DROP SUBSCRIPTION {name}")
    shop.close()
    subscriber.close()
    standby.stop("immediate")


# Logical replication

def test_a_logical_subscriber_that_receives_the_outbox_is_silent(new_server, receiver):
    publisher = new_server(settings={"wal_level": "logical"})
    shop = shop_on(publisher, receiver)
    shop.run("INSERT INTO sales VALUES (1, 1); CREATE PUBLICATION everything FOR ALL TABLES")
    subscriber = new_server(preload=True)
    # Servers of these tests are copies of one data directory: another database makes the hub's oid another one.
    subscriber.create_database().close()
    hub = subscriber.create_database()
    hub.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    hub.run(f"CREATE SUBSCRIPTION s CONNECTION '{publisher.dsn(shop.name)}' PUBLICATION everything")
    wait_for(lambda: hub.value("SELECT count(*) FROM sync_outbox") == 1)
    # Tables are copied one after the other, and this server may have written an identity of its own before.
    source = shop.value("SELECT source FROM sync_outbox_identity")
    wait_for(lambda: hub.value("SELECT count(*) FROM sync_outbox_identity WHERE source = %s", [source]) == 1)
    subscriber.set(sync_outbox__base_url=receiver.url, sync_outbox__upload_token=TOKEN)

    assert hub.flushed()["error"] == "cloned"
    shop.run("INSERT INTO sales VALUES (2, 2)")
    wait_for(lambda: hub.value("SELECT count(*) FROM sync_outbox") == 2)
    assert hub.flushed() == {"ok": False, "pending": 2, "sent": 0, "acked": 0, "error": "cloned"}
    assert receiver.requests == []
    hub.run("DROP SUBSCRIPTION s")
    hub.close()
    shop.close()
