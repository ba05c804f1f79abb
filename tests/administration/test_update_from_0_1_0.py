"""ALTER EXTENSION UPDATE from 0.1.0: views and rights of others stay, and tables that it attached keep what was asked
for."""

import json

import pytest
from psycopg import errors


@pytest.fixture
def database(quiet_server, watched):
    """One with the objects of 0.1.0."""
    database = watched(quiet_server).create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
    yield database
    database.close()
    quiet_server.drop_database(database.name)


def test_the_update_with_a_view_on_the_overview(database):
    database.run("CREATE VIEW monitoring AS SELECT target, clean FROM sync_outbox_overview()")
    database.run("ALTER EXTENSION sync_outbox UPDATE TO '0.2.0'")


def test_an_update_with_a_view_of_somebody_on_the_overview(database):
    database.run("""CREATE VIEW dashboard AS SELECT target, pending FROM sync_outbox_overview();
        CREATE VIEW everything AS SELECT * FROM sync_outbox_overview();
        CREATE VIEW whole AS SELECT o::text AS o FROM sync_outbox_overview() o;
        GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO pg_read_all_stats""")
    database.run("ALTER EXTENSION sync_outbox UPDATE")
    assert database.rows("SELECT target, pending FROM dashboard") == [("default", 0)]
    (row,) = database.rows("SELECT target, over_threshold, settings::text LIKE '{%' FROM everything")
    assert row == ("default", None, True)
    assert database.value("SELECT o LIKE '(default,%' FROM whole") is True
    # As a dump writes the view, and reads it again.
    definition = database.value("SELECT pg_get_viewdef('everything'::regclass)")
    database.run(f"DROP VIEW everything; CREATE VIEW everything AS {definition}")
    assert database.value("SELECT count(*) FROM everything") == 1
    assert database.rows("SELECT target, sender_since FROM sync_outbox_overview()") == [("default", None)]
    assert database.value("SELECT has_function_privilege('pg_read_all_stats', 'sync_outbox_overview()', 'EXECUTE')")


def test_grants_on_0_1_0_survive(database):
    """Rights that people gave on the old objects, and the roles, after the update."""
    watcher = database.role("watcher")
    database.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO {watcher} WITH GRANT OPTION")
    session = database.session(user=watcher)
    session.execute("GRANT EXECUTE ON FUNCTION sync_outbox_overview() TO PUBLIC")
    database.run("ALTER EXTENSION sync_outbox UPDATE TO '0.2.0'")
    assert database.value("SELECT has_function_privilege('pg_read_all_data', 'sync_outbox_overview()', 'EXECUTE')")
    assert not database.value("SELECT has_table_privilege('sync_outbox_admin', 'sync_outbox_target', 'DELETE')")


def test_tables_that_0_1_0_attached_get_the_numbers_of_their_columns(database):
    """As attaching them again would give them: of a partitioned table those of its root, and none where no column is named."""
    database.run("""CREATE TABLE parts (gone int, id int PRIMARY KEY, "a ""b" text, ü text, pan text) PARTITION BY LIST (id);
        ALTER TABLE parts DROP gone; CREATE TABLE part (ü text, pan text, id int NOT NULL, "a ""b" text);
        ALTER TABLE parts ATTACH PARTITION part DEFAULT; CREATE TABLE plain (id int PRIMARY KEY)""")
    for table, named in [("parts", r',"columns":["pan","a \"b"],"exclude":["ü"]'), ("plain", "")]:
        database.run(f"""CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION
            sync_outbox_capture('{{"target":"default","priority":"NORMAL"{named},"operations":["INSERT","UPDATE","DELETE"],"include_old":false,"require_reason":false,"always":false}}')""")
    database.run("ALTER EXTENSION sync_outbox UPDATE")
    kept = "SELECT tgargs FROM pg_trigger WHERE tgfoid = 'sync_outbox_capture'::regproc ORDER BY tgrelid"
    updated = database.rows(kept)
    options = json.loads(bytes(updated[0].tgargs)[:-1])
    assert (options["columns_attnums"], options["columns_places"]) == ([5, 3], [4, 2])
    assert (options["exclude_attnums"], options["exclude_places"]) == ([4], [3])
    assert options["attnums_of"] == database.value("SELECT 'parts'::regclass::oid::bigint")
    marks = "SELECT oid, xmin FROM pg_trigger WHERE tgfoid = 'sync_outbox_capture'::regproc ORDER BY oid"
    before = database.rows(marks)
    database.attach("parts", columns=["pan", 'a "b'], exclude=["ü"])
    database.attach("plain")
    assert database.rows(marks) == before, "nothing to change"
    database.run("INSERT INTO parts VALUES (1, 'x', 'y', '4111')")
    assert [data for _, _, data in database.changes()] == [{"id": 1, 'a "b': "x", "pan": "4111"}]
    database.run("ALTER TABLE parts RENAME pan TO pan_old; ALTER TABLE parts ADD pan text")
    with pytest.raises(errors.UndefinedColumn):
        database.run("INSERT INTO part (id) VALUES (2)")


def test_an_excluded_column_of_a_table_that_0_1_0_attached_stays_excluded(database):
    database.run("CREATE TABLE cards (id int PRIMARY KEY, pan text)")
    # As 0.1.0's library wrote it.
    database.run("""CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON cards FOR EACH ROW EXECUTE FUNCTION
        sync_outbox_capture('{"target":"default","priority":"NORMAL","exclude":["pan"],"operations":["INSERT","UPDATE","DELETE"],"include_old":false,"require_reason":false,"always":false}')""")
    database.run("ALTER EXTENSION sync_outbox UPDATE")
    database.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    try:
        database.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return
    assert "4111" not in json.dumps([data for _, _, data in database.changes()])


def test_an_event_trigger_that_reads_the_overview_during_the_update(database):
    """The version is the new one from the beginning, and the function still the old one."""
    database.run("""CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM count(*) FROM sync_outbox_overview(); END $$;
        CREATE EVENT TRIGGER look ON ddl_command_end EXECUTE FUNCTION look()""")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        database.run("ALTER EXTENSION sync_outbox UPDATE")
    assert "event trigger" in caught.value.diag.message_hint
    database.run("ALTER EVENT TRIGGER look DISABLE; ALTER EXTENSION sync_outbox UPDATE; ALTER EVENT TRIGGER look ENABLE")
    assert database.value("SELECT count(*) FROM sync_outbox_overview()") == 1


def test_a_trigger_of_0_2_0_stays_as_it_is(database):
    """As a dump of a table brings it into a database with the objects of 0.1.0."""
    database.run("CREATE TABLE sales (id int PRIMARY KEY)")
    options = ('{"target":"default","priority":"NORMAL","operations":["INSERT","UPDATE","DELETE"],"include_old":false,'
               '"require_reason":false,"always":false,"named":["public","sales"]}')
    database.run(f"""CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON sales FOR EACH ROW EXECUTE FUNCTION
        sync_outbox_capture('{options}')""")
    database.run("ALTER EXTENSION sync_outbox UPDATE; INSERT INTO sales VALUES (1)")
    assert bytes(database.value("SELECT tgargs FROM pg_trigger WHERE tgfoid = 'sync_outbox_capture'::regproc")) == options.encode() + b"\0"
    assert [data for _, _, data in database.changes()] == [{"id": 1}]
