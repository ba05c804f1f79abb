"""The two ways to the newest version: what `CREATE EXTENSION` makes, and what `ALTER EXTENSION UPDATE` makes of an older one.

Both must give the same, object by object: whoever adds to one script and forgets the other finds the object named here. And
until somebody types the update, the new library meets the old objects."""

import re

import pytest
from psycopg import errors
from psycopg.rows import tuple_row

from support.prefix import PROJECT
from support.wait import wait_for

OLDEST = "0.1.0"
UPDATE = "ALTER EXTENSION sync_outbox UPDATE"


def newest():
    return re.search(r"default_version = '(.*)'", (PROJECT / "sync_outbox.control").read_text()).group(1)


# What there is to compare: for each kind of thing a query that gives its name and, in a few columns, all that is known of
# it. `member` is the extension's objects; oids are never shown, for they differ.
MEMBERS = """
    WITH member AS (
        SELECT d.classid, d.objid, d.objsubid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'sync_outbox'),
    relation AS (SELECT c.* FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
                  UNION SELECT i.* FROM pg_class i JOIN pg_index x ON x.indexrelid = i.oid
                          JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = x.indrelid),
    routine AS (SELECT p.* FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid)
"""
# Who gave what to whom, whatever the order of the grants was.
ACL = """(SELECT array_agg(format('%s by %s to %s%s', a.privilege_type, a.grantor::regrole,
                            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                            CASE WHEN a.is_grantable THEN ' with grant option' ELSE '' END) ORDER BY 1)
            FROM (SELECT (aclexplode({})).*) a)"""
QUERIES = {
    "member": "SELECT i.type || ' ' || i.identity, '' FROM member m, pg_identify_object(m.classid, m.objid, m.objsubid) i",
    "comment": """
        SELECT i.type || ' ' || i.identity, d.description FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
         WHERE (d.classoid, d.objoid) IN (SELECT classid, objid FROM member UNION SELECT 'pg_class'::regclass, oid FROM relation)
            OR d.classoid = 'pg_extension'::regclass AND i.identity = 'sync_outbox'""",
    "relation": f"""
        SELECT c.oid::regclass, c.relkind, c.relowner::regrole, c.relpersistence, c.reloptions, c.relrowsecurity, c.relforcerowsecurity,
               c.relreplident, (SELECT amname FROM pg_am WHERE oid = c.relam), c.reltablespace,
               (SELECT t.reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid), c.reltoastrelid <> 0,
               {ACL.format("coalesce(c.relacl, acldefault('r', c.relowner))")},
               CASE WHEN c.relkind IN ('i', 'I') THEN pg_get_indexdef(c.oid) WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END
          FROM relation c""",
    # PostgreSQL 15.20 numbers what was added to a table with an option pg_attver, which is another one in every database.
    # The place among the columns that are there. The outbox's own must be what capture knows, with nothing dropped in between.
    "column": f"""
        SELECT c.oid::regclass || '.' || a.attname,
               row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), CASE WHEN c.relname = 'sync_outbox' THEN a.attnum END,
               format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attstorage, a.attcompression,
               a.attstattarget, ARRAY(SELECT o FROM unnest(a.attoptions) o WHERE o NOT LIKE 'pg_attver=%' ORDER BY o), (SELECT collname FROM pg_collation WHERE oid = a.attcollation),
               pg_get_expr(d.adbin, d.adrelid), {ACL.format("a.attacl")}
          FROM relation c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum""",
    "constraint": """
        SELECT format('%s of %s', n.conname, n.conrelid::regclass), pg_get_constraintdef(n.oid), n.convalidated, n.condeferrable,
               n.connoinherit, n.conislocal
          FROM pg_constraint n JOIN relation c ON c.oid = n.conrelid""",
    "index": """
        SELECT x.indexrelid::regclass, x.indisprimary, x.indisunique, x.indimmediate, x.indisvalid, x.indisreplident, x.indisclustered
          FROM pg_index x JOIN relation c ON c.oid = x.indexrelid""",
    "sequence": """
        SELECT s.seqrelid::regclass, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
               pg_get_serial_sequence(d.refobjid::regclass::text, a.attname)
          FROM pg_sequence s JOIN relation c ON c.oid = s.seqrelid
          LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.deptype IN ('a', 'i')
          LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid""",
    "trigger": """
        SELECT format('%s on %s', t.tgname, t.tgrelid::regclass), pg_get_triggerdef(t.oid), t.tgenabled
          FROM pg_trigger t JOIN relation c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal""",
    "policy": "SELECT format('%s on %s', p.polname, c.oid::regclass), p::text FROM pg_policy p JOIN relation c ON c.oid = p.polrelid",
    "rule": """
        SELECT format('%s on %s', r.rulename, c.oid::regclass), pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN relation c ON c.oid = r.ev_class""",
    "routine": f"""
        SELECT p.oid::regprocedure, pg_get_functiondef(p.oid), p.proowner::regrole, p.prokind, p.prosecdef, p.proconfig, p.provolatile,
               p.proparallel, p.proisstrict, p.procost, p.prorows, p.proleakproof,
               {ACL.format("coalesce(p.proacl, acldefault('f', p.proowner))")}
          FROM routine p""",
    "type": f"""
        SELECT t.oid::regtype, t.typtype, t.typowner::regrole, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,
               (SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),
               {ACL.format("coalesce(t.typacl, acldefault('T', t.typowner))")}
          FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid""",
    # What a dump takes for given, and so does not write down.
    "initial privilege": f"""
        SELECT i.type || ' ' || i.identity, p.privtype, {ACL.format("p.initprivs")}
          FROM pg_init_privs p JOIN member m ON (m.classid, m.objid) = (p.classoid, p.objoid),
               pg_identify_object(p.classoid, p.objoid, p.objsubid) i""",
    "dependency": """
        SELECT DISTINCT format('%s %s on %s %s', i.type, i.identity, r.type, r.identity), d.deptype
          FROM pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) i, pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) r
         WHERE (d.classid, d.objid) IN (SELECT classid, objid FROM member UNION SELECT 'pg_class'::regclass, oid FROM relation)
           AND i.identity NOT LIKE '%pg_toast%' AND r.identity NOT LIKE '%pg_toast%'""",
    "dumped": """
        SELECT t.relation::regclass, t.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) t (relation, condition)
         WHERE e.extname = 'sync_outbox'""",
    "extension": """
        SELECT e.extname, e.extversion, e.extowner::regrole, e.extrelocatable, e.extnamespace::regnamespace
          FROM pg_extension e WHERE e.extname = 'sync_outbox'""",
    "default privilege": "SELECT d.oid::text, d::text FROM pg_default_acl d",
}


def everything(db):
    """All that the catalogs know of the extension: {(kind, name): what}."""
    found = {}
    for kind, query in QUERIES.items():
        for name, *what in db.conn.cursor(row_factory=tuple_row).execute(f"{MEMBERS} {query}"):
            assert (kind, str(name)) not in found, (kind, name)
            found[kind, str(name)] = tuple(what)
    return found


@pytest.fixture
def fresh_and_updated(quiet_server, watched):
    databases = []
    for way in ("CREATE EXTENSION sync_outbox", f"CREATE EXTENSION sync_outbox VERSION '{OLDEST}'; {UPDATE}"):
        database = watched(quiet_server).create_database()
        databases.append(database)
        database.run(f"SET client_min_messages = warning; {way}; RESET client_min_messages")
    yield databases
    for database in databases:
        database.close()
        quiet_server.drop_database(database.name)


def test_a_fresh_extension_is_an_updated_one(fresh_and_updated):
    fresh, updated = map(everything, fresh_and_updated)

    assert {kind for kind, _ in fresh} >= {"member", "comment", "relation", "column", "constraint", "index", "sequence", "routine",
                                           "type", "rule", "initial privilege", "dependency", "dumped", "extension"}
    assert ("extension", "sync_outbox") in fresh and fresh["extension", "sync_outbox"][0] == newest()
    differs = [f"{kind} {name}:\n  fresh:   {fresh.get((kind, name), 'missing')}\n  updated: {updated.get((kind, name), 'missing')}"
               for kind, name in sorted({*fresh, *updated}) if fresh.get((kind, name)) != updated.get((kind, name))]
    assert not differs, "sql/ says one thing to CREATE EXTENSION and another to ALTER EXTENSION UPDATE:\n" + "\n".join(differs)


@pytest.mark.parametrize("statement", [
    "COMMENT ON COLUMN sync_outbox.reason IS 'another'", "ALTER TABLE sync_outbox ALTER reason SET STORAGE PLAIN",
    "ALTER TABLE sync_outbox_target ALTER paused SET DEFAULT true", "GRANT SELECT (name) ON sync_outbox_target TO sync_outbox_operator",
    "GRANT EXECUTE ON FUNCTION sync_outbox_pause(text, text) TO PUBLIC", "CREATE INDEX extra ON sync_outbox_history (who)",
    "ALTER TABLE sync_outbox_history DROP CONSTRAINT sync_outbox_history_mode_check", "ALTER TABLE sync_outbox SET (fillfactor = 90)",
    "ALTER TYPE sync_outbox_status ADD VALUE 'LATE' BEFORE 'DEAD'", "ALTER SEQUENCE sync_outbox_id_seq CACHE 2",
    "ALTER FUNCTION sync_outbox_flush(text, integer, text) STABLE", "ALTER EXTENSION sync_outbox DROP VIEW sync_outbox_queue",
    "ALTER FUNCTION sync_outbox_flush(text, integer, text) SECURITY DEFINER",
    "UPDATE pg_extension SET extcondition[1] = 'WHERE false' WHERE extname = 'sync_outbox'",
    "DELETE FROM pg_init_privs WHERE objoid = 'sync_outbox_target'::regclass AND objsubid <> 0"])
def test_whatever_differs_is_seen(fresh_and_updated, statement):
    fresh, other = fresh_and_updated
    other.run(statement)

    assert everything(fresh) != everything(other)


# The new library on the old objects

TRIGGER = """CREATE TRIGGER "!sync_outbox_row" AFTER INSERT OR UPDATE OR DELETE ON {0} FOR EACH ROW EXECUTE FUNCTION
    sync_outbox_capture('{{"target":"{1}","priority":"NORMAL","operations":["INSERT","UPDATE","DELETE"]}}')"""


def old_shop(server, receiver):
    """As the last version left it: a target and two tables that were attached then, with what its own library wrote."""
    shop = server.create_database()
    shop.run(f"SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '{OLDEST}'; RESET client_min_messages")
    shop.run(f"""INSERT INTO sync_outbox_target (id, name, base_url) VALUES (1, 'default', '{receiver.url}');
                 INSERT INTO sync_outbox_target (name, base_url) VALUES ('second', '{receiver.url}');
                 CREATE TABLE sales (id int PRIMARY KEY, qty int); CREATE TABLE stock (id int PRIMARY KEY)""")
    shop.run(TRIGGER.format("sales", "default") + ";" + TRIGGER.format("stock", "second"))
    return shop


CALLS = ["SELECT sync_outbox_flush()", "CALL sync_outbox_drain()", "SELECT * FROM sync_outbox_overview()",
         "SELECT * FROM sync_outbox_stats()", "SELECT sync_outbox_requeue()", "SELECT sync_outbox_discard('{1}', 'no longer')",
         "SELECT sync_outbox_attach('sales')", "SELECT sync_outbox_detach('sales')", "SELECT sync_outbox_configure('{}')",
         "SELECT sync_outbox_backfill('sales')", "SELECT sync_outbox_import('sales')", "SELECT sync_outbox_set_token('x')",
         "SELECT sync_outbox_pause()", "SELECT sync_outbox_resume()", "SELECT sync_outbox_adopt('same')"]


def test_a_new_library_on_old_objects_captures_and_says_what_to_do(quiet_server, watched, receiver):
    shop = old_shop(watched(quiet_server), receiver)
    try:
        shop.run("INSERT INTO sales VALUES (1, 1); UPDATE sales SET qty = 2; INSERT INTO stock VALUES (7)")
        for call in CALLS:
            with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
                shop.run(call)
            assert f"are of version {OLDEST}, too old for its library" in refused.value.diag.message_primary, call
            assert refused.value.diag.message_hint == f"{UPDATE};"
        session = shop.session()
        session.execute("DELETE FROM sales")
        shop.run(UPDATE)
        session.execute("INSERT INTO sales VALUES (2, 0)")  # it has plans from before
        assert [change.op for change in shop.outbox()] == ["INSERT", "UPDATE", "INSERT", "DELETE", "INSERT"]

        # Nobody has said yet that this database sends: with changes and without an identity it counts as a copy.
        shop.run("SELECT sync_outbox_adopt('same'); SELECT sync_outbox_set_token('t0ken'); SELECT sync_outbox_set_token('t0ken', 'second')")
        assert shop.flush() == '{"ok": true, "pending": 4, "sent": 4, "acked": 4}'
        assert shop.flushed(target="second")["acked"] == 1
        assert [change["op"] for change in receiver.changes] == ["INSERT", "UPDATE", "DELETE", "INSERT", "INSERT"]
    finally:
        shop.close()
        quiet_server.drop_database(shop.name)


def test_the_worker_of_a_new_library_waits_for_the_update(live_server, watched, receiver):
    server = watched(live_server)
    position = server.log.position()
    shop = old_shop(server, receiver)
    try:
        shop.run("INSERT INTO sales VALUES (1, 1)")
        wait_for(lambda: server.log.matches(f"are of version {OLDEST}, too old", position), 20, "a worker that complains")
        shop.run("INSERT INTO sales VALUES (2, 1)")
        assert (receiver.requests, len(shop.outbox())) == ([], 2)
        shop.run(f"{UPDATE}; SELECT sync_outbox_adopt('same'); SELECT sync_outbox_set_token('t0ken')")
        wait_for(lambda: shop.outbox() == [], 20, "an empty outbox")
        assert [change["pk"]["id"] for change in receiver.changes] == [1, 2]
    finally:
        shop.close()
        server.drop_database(shop.name)
