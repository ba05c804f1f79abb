"""A site that the real 0.1.0 has filled, restored and updated under load: nothing is lost, made up or reordered, and what
people had granted and built on it is there afterwards.

tests/upgrade does the same without a dump, with the old library."""

import json
from collections import Counter

import pytest
from psycopg import errors

from support import old_site

UPDATE = "SET lock_timeout = '10s'; ALTER EXTENSION sync_outbox UPDATE"


@pytest.fixture
def restore(new_server):
    """Makes a database of the dump, as docs/upgrading.md says: the version of the dump first."""
    server = new_server(preload=True, settings=old_site.SETTINGS)
    with server.connect() as admin:
        admin.execute(old_site.ROLES)
    made = []

    def make(**options):
        made.append(old_site.restore(server, **options))
        return made[-1]
    yield make
    for database in made:
        database.close()


@pytest.fixture
def site(restore):
    return restore()


def test_the_dump_has_everything_that_a_site_can_have(site):
    assert site.value("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'") == "0.1.0"
    assert {row.status for row in site.outbox()} == {"PENDING", "FAILED", "CONFLICT", "DEAD"}
    assert {row.op for row in site.outbox()} == {"INSERT", "UPDATE", "DELETE"}
    assert {(row.name, row.paused) for row in site.rows("SELECT name, paused FROM sync_outbox_target")} == {
        ("default", False), ("reports", False), ("archive", True)}
    for table in ("history", "discarded", "lane", "identity", "accepted", "applied"):
        assert site.value(f"SELECT count(*) FROM sync_outbox_{table}") > 0, table
    assert {row.action for row in site.rows("SELECT action FROM sync_outbox_history")} == {"PUSH", "REQUEUE", "DISCARD"}
    attached = {row.table_name: row for row in site.rows("SELECT * FROM sync_outbox_attached")}
    assert attached.keys() == old_site.OPTIONS.keys()
    parked = {str(row.pk) for row in site.outbox("status = 'DEAD' OR status = 'CONFLICT'")}
    assert parked & {str(row.pk) for row in site.outbox("status = 'PENDING'")}


def test_an_update_under_load_loses_makes_up_and_reorders_nothing(site, receiver):
    known = old_site.Known(site, receiver)
    waiting = site.rows("SELECT id, status, attempt_count, refusals, error_message FROM sync_outbox ORDER BY id")
    with old_site.Writers(site) as writers:
        writers.go_on()
        # The new library sends nothing while the objects are old, and says why to whoever pushes.
        said = [answer for answer in writers.answers if isinstance(answer, tuple)]
        assert ("55000", 'the objects of extension "sync_outbox" are of version 0.1.0, too old for its library',
                "ALTER EXTENSION sync_outbox UPDATE;") in said
        with site.server.connect(site.name) as session:
            session.execute(UPDATE)
        writers.go_on()
        assert receiver.requests == []
        assert site.rows("SELECT id, status, attempt_count, refusals, error_message FROM sync_outbox WHERE id <= %s"
                         " ORDER BY id", [waiting[-1].id]) == waiting
        old_site.adopt(site, receiver)
        receiver.wait_for_requests(5, 30)
        writers.go_on()
    assert not writers.findings, writers.findings
    old_site.deliver(site, receiver)

    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    assert len(known.backlog) > 100 and writers.written > 600


def test_a_loss_a_phantom_and_a_wrong_order_would_be_seen(site, receiver):
    """The counting above is worth something."""
    known = old_site.Known(site, receiver)
    site.run(UPDATE)
    old_site.adopt(site, receiver)
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    site.run("UPDATE sales SET place = place + 1 WHERE id = 1; INSERT INTO sales VALUES (2000, 'S1', 1, '4111')")
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
    # What nobody captures, and what the receiver has that nobody wrote.
    site.run("SET sync_outbox.capture = off; UPDATE sales SET place = place + 1 WHERE id = 1")
    assert len(old_site.counted(site, receiver, known)["lost"]) == 1
    site.run("UPDATE sales SET place = place - 2 WHERE id = 1")
    assert len(old_site.counted(site, receiver, known)["phantom"]) == 1
    site.run("UPDATE sales SET place = place + 1 WHERE id = 1; DELETE FROM sales WHERE id = 2000")
    assert len(old_site.counted(site, receiver, known)["phantom"]) == 1
    known.backlog.reverse()
    assert old_site.counted(site, receiver, known)["disordered"] != []


# What people had made with the old objects

RIGHTS = """
    SELECT format('%s of %s %s', a.privilege_type, o.kind, o.name), a.grantee, a.is_grantable
      FROM (SELECT 'function' AS kind, oid::regprocedure::text AS name, coalesce(proacl, acldefault('f', proowner)) AS acl
              FROM pg_proc UNION ALL
            SELECT 'relation', oid::regclass::text, coalesce(relacl, acldefault('r', relowner)) FROM pg_class
             WHERE relkind IN ('r', 'v') UNION ALL
            SELECT 'column', attrelid::regclass || '.' || attname, attacl FROM pg_attribute WHERE attacl IS NOT NULL) o,
           aclexplode(o.acl) a
     WHERE o.name LIKE 'sync_outbox%' OR o.name = 'dashboard'"""

# What 0.2.0 takes from sync_outbox_admin, and says so in its changelog.
TAKEN = {"INSERT of column sync_outbox_target.name", "INSERT of column sync_outbox_target.base_url",
         "INSERT of column sync_outbox_target.upload_path", "UPDATE of column sync_outbox_target.name",
         "DELETE of relation sync_outbox_target"}


def test_every_right_that_was_granted_stays(site):
    before = Counter(site.rows(RIGHTS))
    site.run(UPDATE)

    lost = before - Counter(site.rows(RIGHTS))
    assert {row[0] for row in lost} == TAKEN
    assert {row.grantee for row in lost} == {site.value("SELECT 'sync_outbox_admin'::regrole::oid")}
    # What the site had taken from a role is not given back.
    assert site.value("SELECT has_function_privilege('shop_dba', 'sync_outbox_pause(text, text)', 'EXECUTE')")
    assert not site.value("SELECT has_function_privilege('shop_dba', 'sync_outbox_discard(bigint[], text)', 'EXECUTE')")
    as_watcher, as_receiver = site.session(user="shop_watcher"), site.session(user="shop_receiver")
    assert len(as_watcher.execute("SELECT * FROM dashboard").fetchall()) == 3
    assert len(as_watcher.execute("SELECT sender_since FROM sync_outbox_overview()").fetchall()) == 3
    assert as_watcher.execute("SELECT count(*) FROM sync_outbox_queue").fetchone()[0] > 0
    as_receiver.execute("""SELECT sync_outbox_apply('{"changes": []}')""")


def test_views_on_every_function_and_table_survive(site):
    """No function of 0.1.0 has another signature in 0.2.0, so that none is dropped and made again, and no view is in the
    way of the update. What a view shows, and how a dump writes it down, stays as well."""
    functions = site.rows("""
        SELECT p.oid::regprocedure::text AS signature, p.oid, p.proretset AS is_set, p.prorettype = 'void'::regtype AS is_void,
               format('%I(%s)', p.proname, (SELECT string_agg(format('NULL::%s', format_type(t, NULL)), ', ')
                                              FROM unnest(p.proargtypes) t)) AS call
          FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'sync_outbox'
         WHERE p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype""")
    relations = site.rows("""
        SELECT c.oid::regclass::text AS name FROM pg_class c
          JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'sync_outbox' WHERE c.relkind IN ('r', 'v')""")
    assert len(functions) >= 16 and len(relations) >= 13
    for number, function in enumerate(functions):
        site.run(f"CREATE VIEW on_function_{number} AS SELECT {'*' if function.is_set else '1 AS one'} FROM {function.call} AS f")
        if not function.is_set and not function.is_void:
            site.run(f"CREATE VIEW by_function_{number} AS SELECT {function.call} AS f")
    for number, relation in enumerate(relations):
        site.run(f"CREATE VIEW on_relation_{number} AS SELECT * FROM {relation.name}")
    views = """SELECT c.oid, c.relname, pg_get_viewdef(c.oid) AS definition,
                      ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) AS columns
                 FROM pg_class c WHERE c.relkind = 'v' AND c.relname NOT LIKE 'sync_outbox%' AND c.oid >= 16384 ORDER BY 2"""
    before = site.rows(views)
    assert len(before) > len(functions) + len(relations)
    site.run(UPDATE)

    assert site.rows(views) == before
    assert {site.value("SELECT %s::regprocedure::oid", [f.signature]) for f in functions} == {f.oid for f in functions}
    for view in before:
        site.run(f"CREATE OR REPLACE VIEW {view.relname} AS {view.definition}")
    for view in old_site.VIEWS:
        assert site.rows(f"SELECT * FROM {view}")


# The hub's half

def test_the_hub_keeps_its_memory_and_its_way_with_unknown_columns(site):
    keys = [str(row.dedup_key) for row in site.rows("SELECT dedup_key FROM sync_outbox_applied")]
    site.run(UPDATE)
    site.run("CREATE TABLE hub_stock (id int PRIMARY KEY); SELECT sync_outbox_accept('hub_stock')")

    def apply(table, n, dedup_key):
        data = {"id": n, "unknown": n} if table == "hub_stock" else {"id": n, "qty": n, "unknown": n}
        body = {"changes": [{"schema": "public", "table": table, "op": "INSERT", "pk": {"id": n}, "data": data,
                             "dedup_key": dedup_key}]}
        return site.value("SELECT sync_outbox_apply(%s::json)", [json.dumps(body)])
    # Applied before: acknowledged, and not applied again.
    for n, dedup_key in enumerate(keys, 1):
        assert apply("hub_sales", n, dedup_key)["acked"] == [dedup_key]
    assert site.value("SELECT qty FROM hub_sales WHERE id = 3") == 30
    new = ["00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"]
    assert apply("hub_sales", 4, new[0])["acked"] == [new[0]]
    assert site.rows("SELECT id, qty FROM hub_sales WHERE id = 4") == [(4, 4)]
    answer = apply("hub_stock", 4, new[1])
    assert (answer["acked"], len(answer["errors"])) == ([], 1) and "unknown" in answer["errors"][0]["error"]


# Attached tables whose columns are missing

@pytest.mark.parametrize("rename, listed", [
    ("ALTER TABLE sales RENAME pan TO card_number", ["sales lacks pan (exclude)."]),
    ("ALTER TABLE products DROP code CASCADE", ["products lacks code (columns)."]),
    ("ALTER TABLE tariffs RENAME code TO tariff; ALTER TABLE sales RENAME pan TO \"Pan\"; ALTER TABLE stock RENAME store TO shop",
     ["sales lacks pan (exclude).", "stock lacks store (branch_column).", "tariffs lacks code (key_columns)."])])
def test_missing_columns_stop_the_update_which_lists_them(site, receiver, rename, listed):
    known = old_site.Known(site, receiver)
    site.run(rename)
    with pytest.raises(errors.UndefinedColumn) as stopped:
        site.run(UPDATE)

    said = stopped.value.diag
    assert said.message_primary == "attached tables lack columns that their options name"
    assert said.message_detail.splitlines() == listed
    assert said.message_hint.startswith("Give the columns their names back, or attach these tables anew in the transaction")
    assert site.value("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'") == "0.1.0"
    assert site.keys() == known.backlog


def test_a_missing_column_that_has_its_name_back_does_not_stop_the_update(site):
    site.run("ALTER TABLE sales RENAME pan TO card_number")
    with pytest.raises(errors.UndefinedColumn):
        site.run(UPDATE)
    site.run("ALTER TABLE sales RENAME card_number TO pan")
    site.run(UPDATE)
    site.run("INSERT INTO sales VALUES (200, 'S1', 1, '4111')")
    assert site.outbox()[-1].data == {"id": 200, "store": "S1", "place": 1}


def test_a_table_with_a_missing_column_is_attached_anew_with_the_update(site):
    """What the HINT says, in one transaction: no write comes in between that is not captured."""
    site.run("ALTER TABLE sales RENAME pan TO card_number; ALTER TABLE tariffs RENAME code TO tariff")
    writer = site.session()
    with site.session().transaction() as transaction:
        session = transaction.connection
        session.execute('DROP TRIGGER "!sync_outbox_row" ON sales; DROP TRIGGER "!sync_outbox_row" ON tariffs;'
                        'DROP TRIGGER "!sync_outbox_truncate" ON tariffs')
        session.execute("ALTER EXTENSION sync_outbox UPDATE")
        writer.execute("SET lock_timeout = '100ms'")
        with pytest.raises(errors.LockNotAvailable):
            writer.execute("INSERT INTO sales VALUES (200, 'S1', 1, '4111')")
        session.execute("SELECT sync_outbox_attach('sales', 'HIGH', exclude => '{card_number}', branch_column => 'store');"
                        "SELECT sync_outbox_attach('tariffs', key_columns => '{tariff}')")
    writer.execute("INSERT INTO sales VALUES (200, 'S1', 1, '4111'); INSERT INTO tariffs VALUES (1, 'T200', 1)")
    assert [change.data for change in site.outbox()[-2:]] == [
        {"id": 200, "store": "S1", "place": 1}, {"number": 1, "tariff": "T200", "place": 1}]


# A restore that does not name the version

def test_a_dump_that_is_restored_into_the_new_version_sends_everything_too(restore, receiver):
    """What 0.1.0 left in a dump has no numbers of columns: excluded columns are known by name until attach is called."""
    site = restore(create="SELECT")
    known = old_site.Known(site, receiver)
    assert site.value("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'") != "0.1.0"
    assert site.value("SELECT ignore_unknown_columns FROM sync_outbox_accepted")
    old_site.adopt(site, receiver)
    with old_site.Writers(site) as writers:
        writers.go_on()
    old_site.deliver(site, receiver)
    assert old_site.counted(site, receiver, known) == old_site.NOTHING
