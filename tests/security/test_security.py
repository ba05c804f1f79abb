"""Who may do what with every object there is, secrets that turn up nowhere, and hostile objects that are never reached."""

import base64
import json

import pytest
from psycopg import errors

from support import behaviours
from support.run import own
from support.wait import wait_for

# The role matrix. Read from the catalogs: an object that is not in it fails, and so does one that is gone.

NOBODY = set()
ADMIN = {"admin"}
OPERATOR = {"admin", "operator"}
MONITOR = {"admin", "operator", "monitor"}

EXECUTE = {
    "sync_outbox_capture": NOBODY, "sync_outbox_target_changed": NOBODY,
    "sync_outbox_attach": ADMIN, "sync_outbox_detach": ADMIN, "sync_outbox_configure": ADMIN, "sync_outbox_backfill": ADMIN,
    "sync_outbox_import": ADMIN, "sync_outbox_set_token": ADMIN, "sync_outbox_pause": ADMIN, "sync_outbox_resume": ADMIN,
    "sync_outbox_discard": ADMIN, "sync_outbox_apply": ADMIN, "sync_outbox_apply_text": ADMIN, "sync_outbox_accept": ADMIN,
    "sync_outbox_adopt": ADMIN, "sync_outbox_target_set": ADMIN, "sync_outbox_target_drop": ADMIN,
    "sync_outbox_flush": OPERATOR, "sync_outbox_drain": OPERATOR, "sync_outbox_requeue": OPERATOR,
    "sync_outbox_stats": MONITOR, "sync_outbox_overview": MONITOR, "sync_outbox_version": MONITOR,
}
SELECT = {
    "sync_outbox": ADMIN, "sync_outbox_discarded": ADMIN, "sync_outbox_target": ADMIN, "sync_outbox_target_state": ADMIN,
    "sync_outbox_throughput": ADMIN, "sync_outbox_accepted": ADMIN, "sync_outbox_identity": ADMIN, "sync_outbox_threshold": ADMIN,
    "sync_outbox_queue": MONITOR, "sync_outbox_attached": MONITOR, "sync_outbox_history": MONITOR,
    "sync_outbox_lane": NOBODY, "sync_outbox_applied": NOBODY,
    "sync_outbox_id_seq": NOBODY, "sync_outbox_target_id_seq": NOBODY, "sync_outbox_history_id_seq": NOBODY,
}
# Everything that is not reading: (relation, privilege, column or None) -> who.
WRITE = {
    **{("sync_outbox_target", "UPDATE", column): ADMIN for column in ("base_url", "upload_path")},
}
OURS = """
    SELECT d.classid::regclass::text AS kind, d.objid FROM pg_depend d
      JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'sync_outbox'
     WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'"""


@pytest.fixture
def roles(sales):
    """A role of each kind; the writer may write to the attached table and is nothing else."""
    roles = {"public": sales.role("public"), "writer": sales.role("writer"),
             "operator": sales.role("operator", "sync_outbox_operator"), "admin": sales.role("admin", "sync_outbox_admin"),
             "monitor": sales.role("monitor", "pg_monitor"), "superuser": "postgres"}
    sales.run(f"GRANT ALL ON sales TO {roles['writer']}")
    return roles


def holders(database, roles, has, oid, *further):
    """The kinds of role for which a has_.._privilege function says yes; superusers are asserted and left out."""
    arguments = ", ".join(["%s"] * (2 + len(further)))
    found = {kind for kind, role in roles.items()
             if database.value(f"SELECT {has}({arguments})", [role, oid, *further])}
    assert "superuser" in found
    return found - {"superuser"}


def test_every_function_is_for_whom_the_matrix_says(sales, roles):
    functions = sales.rows(f"SELECT p.oid::int, p.proname FROM pg_proc p JOIN ({OURS}) o ON o.objid = p.oid AND o.kind = 'pg_proc'")

    assert {row.proname: holders(sales, roles, "has_function_privilege", row.oid, "EXECUTE") for row in functions} == EXECUTE


def test_every_relation_is_for_whom_the_matrix_says(sales, roles):
    relations = sales.rows(f"""
        SELECT c.oid::int, c.relname, c.relkind FROM pg_class c JOIN ({OURS}) o ON o.objid = c.oid AND o.kind = 'pg_class'
         WHERE c.relkind <> 'i'""")
    reads, writes = {}, {}
    for row in relations:
        sequence = row.relkind == "S"
        has = "has_sequence_privilege" if sequence else "has_table_privilege"
        reads[row.relname] = holders(sales, roles, has, row.oid, "SELECT")
        for privilege in ["USAGE", "UPDATE"] if sequence else ["INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]:
            writes[row.relname, privilege, None] = holders(sales, roles, has, row.oid, privilege)
    for row in sales.rows(f"""
            SELECT c.oid::int, c.relname, a.attname, a.attnum::int2 AS attnum FROM pg_class c
              JOIN ({OURS}) o ON o.objid = c.oid AND o.kind = 'pg_class'
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.relkind IN ('r', 'v')"""):
        for privilege in ("INSERT", "UPDATE", "REFERENCES"):
            writes[row.relname, privilege, row.attname] = holders(
                sales, roles, "has_column_privilege", row.oid, row.attname, privilege)
        # No column is readable where the relation is not.
        assert holders(sales, roles, "has_column_privilege", row.oid, row.attname, "SELECT") == reads[row.relname]

    assert reads == SELECT
    assert {what: who for what, who in writes.items() if who} == WRITE


def test_no_function_of_ours_runs_as_somebody_else(db):
    assert db.rows(f"SELECT proname FROM pg_proc p JOIN ({OURS}) o ON o.objid = p.oid AND o.kind = 'pg_proc' WHERE prosecdef") == []


def test_a_writer_writes_and_nothing_else(sales, roles, receiver):
    writer = sales.session(roles["writer"])
    writer.execute("INSERT INTO sales VALUES (1, 1); UPDATE sales SET qty = 2; DELETE FROM sales")
    assert len(sales.outbox()) == 3
    for statement in ["SELECT * FROM sync_outbox", "DELETE FROM sync_outbox", "SELECT sync_outbox_flush()",
                      "SELECT nextval('sync_outbox_id_seq')", "BEGIN; LOCK TABLE sync_outbox", "TRUNCATE sync_outbox"]:
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(statement)
        writer.execute("ROLLBACK")


def test_capture_cannot_be_put_on_a_table_by_its_owner(sales):
    """Else an owner could forge changes: a trigger's arguments say what table they are of."""
    owner = sales.role("owner")
    sales.run(f"CREATE SCHEMA own AUTHORIZATION {owner}")
    session = sales.session(owner)
    session.execute("CREATE TABLE own.t (id int PRIMARY KEY)")
    for arguments in ("", "'{}'", "'{\"target\": \"default\"}'"):
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(f"CREATE TRIGGER t AFTER INSERT ON own.t FOR EACH ROW EXECUTE FUNCTION sync_outbox_capture({arguments})")


# Payloads

def test_row_security_of_a_table_holds_for_all_but_admins(sales, roles):
    """The outbox is not under the table's policies. Who is not an admin gets nothing from it, in whatever way; an admin sees
    what was captured, as documented, and a column left out at attach is not there even for an admin."""
    readers = ", ".join(role for kind, role in roles.items() if kind not in ("public", "superuser"))
    sales.run(f"""ALTER TABLE sales ENABLE ROW LEVEL SECURITY; CREATE POLICY small ON sales USING (qty < 10);
                  GRANT SELECT ON sales TO {readers}""")
    sales.attach("sales", exclude=["note"])
    sales.run("INSERT INTO sales VALUES (1, 4712, 'left out')")

    for kind, role in roles.items():
        if kind == "superuser":
            continue  # sees the table itself
        session = sales.session(role)
        seen = {}
        for relation in [*SELECT, "sales", "sync_outbox_overview()", "sync_outbox_stats()"]:
            try:
                seen[relation] = str(session.execute(f"SELECT * FROM {relation}").fetchall())
            except errors.InsufficientPrivilege:
                continue
        assert [relation for relation, text in seen.items() if "4712" in text] == (["sync_outbox"] if kind == "admin" else []), kind
        assert [relation for relation, text in seen.items() if "left out" in text] == [], kind


# Secrets

TOKEN = "canary-token-2f9c"
SIGNING = "canary-signing-secret-0123456789"
SECRETS = [TOKEN, SIGNING, base64.b64encode(SIGNING.encode()).decode().rstrip("="), "canary"]


@pytest.fixture
def talkative(new_server, run):
    """A preloaded server that logs all it can, and a table that is sent with a token and signed."""
    run.require("pg_stat_statements")
    server = new_server(preload=True, settings={
        "shared_preload_libraries": "pg_stat_statements,sync_outbox", "log_min_messages": "debug5",
        "log_error_verbosity": "verbose", "pg_stat_statements.track": "all"})
    where = run.directory(f"{server.name}.secrets")
    for name, content in (("signing", "whsec_" + base64.b64encode(SIGNING.encode()).decode()), ("token", TOKEN)):
        (where / name).write_text(content)
        (where / name).chmod(0o600)
        own(where / name)
    server.set(sync_outbox__signing_secret_file=where / "signing")
    database = server.create_database()
    database.create_extension("pg_stat_statements")
    database.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    database.attach("sales")
    database.secrets = where
    return database


def test_secrets_turn_up_nowhere(talkative, receiver, run):
    db, server = talkative, talkative.server
    said = []

    def attempt(query, parameters=None):
        """Runs a statement; what it answers or complains of is something to look at."""
        try:
            said.extend(map(str, db.rows(query, parameters)))
        except errors.Error as error:
            said.extend([str(error), str(error.diag.message_detail), str(error.diag.context)])

    # Sent by the worker, and by a flush; every way of giving a token, with parameters as an application does.
    attempt("SELECT sync_outbox_configure(%s::json)", [json.dumps({"webapp_base_url": receiver.url, "sync_upload_token": TOKEN})])
    attempt("SELECT sync_outbox_set_token(%s)", [TOKEN])
    db.run("INSERT INTO sales VALUES (1, 1)")
    wait_for(lambda: db.outbox() == [], what="sent by the worker")
    assert receiver.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "webhook-signature" in receiver.requests[0].headers

    # Everything that can go wrong with a token, a secret and an answer that repeats them.
    server.set(sync_outbox__enabled="off")
    db.run("INSERT INTO sales VALUES (2, 2)")
    attempt("SELECT sync_outbox_set_token(%s)", [TOKEN + " \n"])
    attempt("SELECT sync_outbox_set_token(%s, %s)", [TOKEN, "no such target"])
    attempt("SELECT sync_outbox_configure(%s::json)", [json.dumps({"sync_upload_token": [TOKEN]})])
    attempt("SELECT sync_outbox_configure(%s::json)", [json.dumps({"webapp_base_url": f"https://u:{TOKEN}@hub", "sync_upload_token": TOKEN})])
    for behaviour in (behaviours.status(401), behaviours.status(307), behaviours.vanish, behaviours.broken_json):
        receiver.script(behaviour)
        attempt("SELECT sync_outbox_flush()")
    server.set(sync_outbox__upload_token_file=db.secrets / "token")
    attempt("SELECT sync_outbox_flush()")
    for name in ("token", "signing"):
        before = (db.secrets / name).read_text()
        for content, mode in ((before, 0o644), (before + "\n\n" + before + " ü", 0o600)):
            (db.secrets / name).write_text(content)
            (db.secrets / name).chmod(mode)
            db.run("INSERT INTO sales SELECT max(id) + 1 FROM sales")
            attempt("SELECT sync_outbox_flush()")
        (db.secrets / name).write_text(before)
        (db.secrets / name).chmod(0o600)
    db.run("UPDATE sync_outbox_target SET base_url = NULL")
    server.set(sync_outbox__base_url=receiver.url)
    attempt("SELECT sync_outbox_flush()")

    places = {"answers and errors": "\n".join(said), "the server's log": server.log.since(0)}
    # Ours, and every table and view of PostgreSQL itself.
    for (relation,) in db.rows("""
            SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'v', 'm') AND n.nspname IN ('public', 'pg_catalog', 'information_schema')"""):
        places[relation] = "\n".join(str(row[0]) for row in db.rows(f"SELECT r::text FROM {relation} r"))
    places["sync_outbox_overview()"] = str(db.rows("SELECT o::text FROM sync_outbox_overview() o"))
    places["sync_outbox_stats()"] = str(db.rows("SELECT s::text FROM sync_outbox_stats() s"))
    places["pg_dumpall"] = run.call("pg_dumpall", "-h", server.sockets, "-U", "postgres")

    assert {"sync_outbox_target", "pg_settings", "pg_db_role_setting", "pg_stat_activity", "pg_proc"} <= places.keys()
    assert "DEBUG:" in places["the server's log"] and "sync_outbox_set_token" in places["pg_stat_statements"]
    # The statements above name the log's own test of what a bad URL shows; nothing else may.
    hits = {place: secret for place, text in places.items() for secret in SECRETS if secret in text}
    assert hits == {}


# Hostile objects

TRAPS = """
    CREATE FUNCTION {0}.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.count(anyelement) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.to_jsonb(int) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.to_regclass(text) RETURNS regclass LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION {0}.jsonb_same(jsonb, jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE OPERATOR {0}.= (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = {0}.jsonb_same);
    CREATE FUNCTION {0}.sync_outbox_capture() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE TABLE {0}.sync_outbox (LIKE public.sync_outbox);
    CREATE TABLE {0}.sync_outbox_target (LIKE public.sync_outbox_target);
    CREATE TABLE {0}.sync_outbox_accepted (LIKE public.sync_outbox_accepted);
    CREATE TABLE {0}.pg_class (oid oid); CREATE TABLE {0}.pg_trigger (oid oid); CREATE TABLE {0}.pg_attribute (oid oid);
    CREATE DOMAIN {0}.text AS int; CREATE DOMAIN {0}.json AS int; CREATE DOMAIN {0}.regclass AS int;
"""


@pytest.fixture
def trapped(sales):
    """A session whose search_path begins with a schema of traps, temporary objects included."""
    mallory = sales.role("mallory")
    sales.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {mallory}")
    sales.session(mallory).execute(TRAPS.format("evil"))
    for kind in ("int2", "int4", "int8", "oid", "text", "name"):
        sales.run(f"""
            CREATE FUNCTION evil.same(pg_catalog.{kind}, pg_catalog.{kind}) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
            CREATE OPERATOR evil.= (LEFTARG = pg_catalog.{kind}, RIGHTARG = pg_catalog.{kind}, FUNCTION = evil.same)""")
    sales.run("CREATE TEMP TABLE sync_outbox (id int); CREATE TEMP TABLE sync_outbox_target (id int); CREATE TEMP TABLE pg_index (id int)")
    sales.run("SET search_path = evil, pg_temp, pg_catalog, public")
    return sales


def test_hostile_objects_change_nothing(trapped, receiver):
    apply = {"changes": [{"schema": "public", "table": "sales", "op": "UPDATE", "pk": {"id": 1}, "data": {"qty": 3}, "old": {"qty": 2},
                          "dedup_key": "01920000-0000-7000-8000-000000000001"}]}
    for statement in [
            "INSERT INTO public.sales VALUES (1, 1), (2, 1)", "UPDATE public.sales SET qty = 2", "DELETE FROM public.sales WHERE id OPERATOR(pg_catalog.=) 2",
            "SELECT public.sync_outbox_flush()", "CALL public.sync_outbox_drain()",
            "SELECT public.sync_outbox_backfill('public.sales')", "SELECT public.sync_outbox_requeue()",
            "SELECT public.sync_outbox_pause()", "SELECT public.sync_outbox_resume()", "CALL public.sync_outbox_drain()",
            "SELECT public.sync_outbox_attach('public.sales', include_old => true)", "SELECT public.sync_outbox_detach('public.sales')",
            """SELECT public.sync_outbox_configure('{"uploads_local_to_remote": ["public.sales"]}')""",
            "SELECT public.sync_outbox_accept('public.sales')", f"SELECT public.sync_outbox_apply('{json.dumps(apply)}')",
            "SELECT public.sync_outbox_stats()", "SELECT public.sync_outbox_overview()",
            "SELECT FROM public.sync_outbox_queue", "SELECT FROM public.sync_outbox_attached",
            "SELECT public.sync_outbox_discard('{1000}', 'a good reason')"]:
        trapped.run(statement)

    assert [change["op"] for change in receiver.changes[:4]] == ["INSERT", "INSERT", "UPDATE", "UPDATE"]
    assert trapped.rows("SELECT id, qty FROM public.sales") == [(1, 3)]
    for table in ("evil.sync_outbox", "evil.sync_outbox_target", "evil.sync_outbox_accepted", "pg_temp.sync_outbox"):
        assert trapped.rows(f"SELECT 1 FROM {table}") == []
