"""Defect 15, the class: a table's owner wants to be more. Whatever code of his runs inside ours, it runs as him where we chose who
runs it, and it leaves nothing behind: no setting, no search_path, no role, nothing planted.

`mallory` owns the schema `evil`; `evil.spoil(what)` is what all his code calls: it notes who runs it, tries to make him superuser, and
tries to leave something of every kind in the session that it runs in."""

import json
import uuid

import pytest
from psycopg import errors

# What he sets for the session that runs his code.
SETTINGS = {
    "search_path": "evil, pg_catalog", "statement_timeout": "1", "lock_timeout": "1", "idle_in_transaction_session_timeout": "1",
    "session_replication_role": "replica", "TimeZone": "Asia/Kathmandu", "DateStyle": "German", "IntervalStyle": "sql_standard",
    "bytea_output": "escape", "extra_float_digits": "-15", "quote_all_identifiers": "on", "row_security": "off", "xmloption": "document",
    "synchronous_commit": "off", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
    "client_min_messages": "debug5", "application_name": "spoilt", "work_mem": "64", "check_function_bodies": "off",
    "sync_outbox.reason": "spoilt", "sync_outbox.capture": "off", "plan_cache_mode": "force_custom_plan", "evil.mine": "spoilt",
    "standard_conforming_strings": "off", "backslash_quote": "on", "transform_null_equals": "on", "role": "MALLORY",
    "session_authorization": "MALLORY",
}
# What he plants.
PLANTED = ["CREATE TEMP TABLE pg_class_too (x int)", "CREATE TEMP TABLE sync_outbox_accepted (relation regclass)",
           "CREATE FUNCTION pg_temp.planted() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (evil.spoil('text') = 1)", "CREATE TYPE pg_temp.json AS (x int)",
           "CREATE TYPE pg_temp.int8 AS ENUM ('x')", "CREATE TEMP VIEW pg_class AS SELECT 1", "CREATE TEMP SEQUENCE planted",
           "CREATE OPERATOR pg_temp.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.o0)", "LISTEN planted", "PREPARE planted AS SELECT 1",
           "DECLARE planted CURSOR WITH HOLD FOR SELECT evil.spoil('held')", "DEALLOCATE ALL", "DISCARD PLANS",
           "SET ROLE MALLORY", "SET SESSION AUTHORIZATION MALLORY", "RESET ROLE", "RESET SESSION AUTHORIZATION",
           "SET LOCAL search_path = evil, pg_catalog"]

# Operators that shadow those of pg_catalog where search_path lets them.
SHADOWED = [("=", "oid", "oid"), ("=", "name", "text"), ("=", "name", "name"), ("=", "regclass", "oid"), ("<>", "oid", "oid"),
            ("=", "bigint", "bigint"), ("=", "smallint", "smallint"), ("=", "smallint", "int"), ("=", "int", "int"), ("=", "text", "text"),
            ("=", '"char"', '"char"'), ("=", "uuid", "uuid"), ("<", "timestamptz", "timestamptz"), ("=", "xid8", "xid8")]


class Mallory:
    def __init__(self, db):
        self.db = db
        self.role = db.role("mallory", "sync_outbox_admin")
        db.run(f"CREATE SCHEMA evil AUTHORIZATION {self.role}; GRANT USAGE ON SCHEMA evil TO PUBLIC")
        self.session = db.session(user=self.role)
        self.run("CREATE TABLE evil.who (what text, who text); GRANT INSERT ON evil.who TO PUBLIC")
        tries = [f"PERFORM pg_catalog.set_config('{name}', '{value}', false)" for name, value in SETTINGS.items()]
        tries += [f"EXECUTE $x${statement}$x$" for statement in PLANTED]
        tries += [f"EXECUTE 'ALTER ROLE {self.role} SUPERUSER'; EXECUTE $x$INSERT INTO evil.who VALUES ('escalated', current_user)$x$"]
        blocks = "".join(f"BEGIN {statement}; EXCEPTION WHEN OTHERS THEN NULL; END;\n" for statement in tries)
        self.run(f"""
            CREATE FUNCTION evil.spoil(what text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO evil.who VALUES (what, current_user);
                {blocks.replace("MALLORY", self.role)}
                RETURN 1;
            END $$;
            CREATE FUNCTION evil.spoils(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN RETURN evil.spoil(what); END $$;
            CREATE FUNCTION evil.spoilt(what text, x anyelement) RETURNS anyelement LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN PERFORM evil.spoil(what); RETURN x; END $$;
            CREATE FUNCTION evil.trigger() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM evil.spoil(TG_NAME); RETURN coalesce(NEW, OLD); END $$;
            CREATE TYPE evil.mood AS ENUM ('sad', 'happy');
            CREATE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN PERFORM evil.spoil('cast'); RETURN pg_catalog.to_json($1::text); END $$;
            CREATE FUNCTION evil.mood_text(evil.mood) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN PERFORM evil.spoil('cast'); RETURN 'INSERT'; END $$;
            CREATE CAST (evil.mood AS json) WITH FUNCTION evil.mood_json(evil.mood);""")
        for n, (operator, left, right) in enumerate(SHADOWED):
            self.run(f"""CREATE FUNCTION evil.o{n}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM evil.spoil('operator'); RETURN true; END $$;
                CREATE OPERATOR evil.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.o{n})""")

    def run(self, statement, parameters=None):
        self.session.execute(statement, parameters)

    def ran(self):
        """What ran, and as whom."""
        return {(row.what, row.who) for row in self.db.rows("SELECT what, who FROM evil.who")}

    def assert_contained(self, ran, as_whom=None):
        """What ran was this, and nothing came of it."""
        assert self.ran() == {(what, as_whom or self.role) for what in ran}
        assert not self.db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [self.role])


# With a library come its settings.
LOADED = "LOAD 'sync_outbox'; LOAD 'plpgsql'"


def left_in(session):
    """Everything that a session keeps and foreign code could have changed, as a set."""
    asked = ["SELECT current_user, session_user, pg_catalog.current_schemas(true)::text", "SELECT * FROM pg_catalog.pg_listening_channels()",
             "SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql", "SELECT name FROM pg_catalog.pg_cursors WHERE is_holdable",
             "SELECT relname FROM pg_catalog.pg_class WHERE relpersistence = 't'",
             "SELECT typname FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema()", "SELECT nullif(pg_catalog.current_setting('evil.mine', true), '')",
             "SELECT name, setting FROM pg_catalog.pg_settings WHERE name <> 'transaction_isolation' ORDER BY name",
             "SELECT locktype FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'advisory'"]
    return {(question.split()[-1], *row) for question in asked for row in session.execute(question).fetchall()}


@pytest.fixture
def mallory(db):
    db.run("CREATE TABLE other (id int PRIMARY KEY)")
    db.run("SELECT sync_outbox_accept('other')")
    return Mallory(db)


@pytest.fixture
def session(mallory):
    """A superuser's session, in which everything is run; what it is like must not change."""
    session = mallory.db.session()
    session.execute("SET sync_outbox.reason = 'mine'; SET TimeZone = 'Europe/Madrid'; SET search_path = public")
    session.execute(LOADED)
    before = left_in(session)
    yield session
    assert left_in(session) ^ before == set()


def change(op, pk=None, data=None, table="bait", schema="evil", **more):
    return {"schema": schema, "table": table, "op": op, "pk": pk, "data": data, "dedup_key": str(uuid.uuid4()), **more}


def other(n):
    """A change of a table that nothing is wrong with; applying it looks the table up."""
    return change("INSERT", {"id": n}, {"id": n}, "other", "public")


def apply(session, *changes):
    body = json.dumps({"changes": changes})
    return json.loads(session.execute("SELECT sync_outbox_apply(%s::json)::text", [body]).fetchone()[0])


# On the hub

INSERT = [change("INSERT", {"id": 1}, {"id": 1, "a": 1})]
DELETE = [*INSERT, change("DELETE", {"id": 1})]
ALWAYS = "; ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER x"
CODE = {
    "before": ("CREATE TRIGGER x BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.trigger()" + ALWAYS, INSERT, "x"),
    "after": ("CREATE TRIGGER x AFTER INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.trigger()" + ALWAYS, INSERT, "x"),
    "statement": ("CREATE TRIGGER x AFTER DELETE ON evil.bait EXECUTE FUNCTION evil.trigger()" + ALWAYS, DELETE, "x"),
    "when": ("CREATE TRIGGER x BEFORE INSERT ON evil.bait FOR EACH ROW WHEN (evil.spoil('when') = 0) EXECUTE FUNCTION evil.trigger()" + ALWAYS,
             INSERT, "when"),
    "truncate": ("CREATE TRIGGER x AFTER TRUNCATE ON evil.bait EXECUTE FUNCTION evil.trigger()" + ALWAYS, [change("TRUNCATE")], "x"),
    "constraint": ("CREATE CONSTRAINT TRIGGER x AFTER INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.trigger()" + ALWAYS, INSERT, "x"),
    "default": ("ALTER TABLE evil.bait ALTER b SET DEFAULT evil.spoil('x')", INSERT, "x"),
    "check": ("ALTER TABLE evil.bait ADD CHECK (evil.spoil('x') = 1)", INSERT, "x"),
    "domain": ("CREATE DOMAIN evil.dom AS int CHECK (evil.spoil('x') = 1); ALTER TABLE evil.bait ALTER a TYPE evil.dom", INSERT, "x"),
    "generated": ("ALTER TABLE evil.bait ADD g int GENERATED ALWAYS AS (evil.spoilt('x', id)) STORED", INSERT, "x"),
    "index": ("CREATE INDEX ON evil.bait (evil.spoilt('x', id))", INSERT, "x"),
    "predicate": ("CREATE INDEX ON evil.bait (id) WHERE evil.spoilt('x', id) > 0", INSERT, "x"),
    "policy": ("ALTER TABLE evil.bait ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
               "CREATE POLICY p ON evil.bait USING (evil.spoil('x') = 1)", INSERT, "x"),
    "rule": ("CREATE RULE r AS ON DELETE TO evil.bait DO ALSO SELECT evil.spoil('x'); ALTER TABLE evil.bait ENABLE ALWAYS RULE r", DELETE, "x"),
    "partition": ("CREATE TRIGGER x BEFORE INSERT ON evil.leaf FOR EACH ROW EXECUTE FUNCTION evil.trigger();"
                  "ALTER TABLE evil.leaf ENABLE ALWAYS TRIGGER x", [change("INSERT", {"id": 1}, {"id": 1}, "root")], "x"),
    "cast": ("CREATE CAST (evil.mood AS jsonb) WITH FUNCTION evil.mood_jsonb(evil.mood)",
             [*INSERT, change("UPDATE", {"id": 1}, {"a": 2}, old={"m": None, "a": 1})], None),
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
def test_defect_15_code_on_the_hub_leaves_nothing(mallory, session, kind, fails):
    mallory.run("""CREATE TABLE evil.bait (id int PRIMARY KEY, a int, b int, m evil.mood);
        CREATE TABLE evil.root (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
        CREATE TABLE evil.leaf PARTITION OF evil.root DEFAULT;
        CREATE FUNCTION evil.mood_jsonb(evil.mood) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS
            $$ BEGIN PERFORM evil.spoil('x'); RETURN '1'; END $$;
        SELECT sync_outbox_accept('evil.bait'), sync_outbox_accept('evil.root')""")
    make, changes, ran = CODE[kind]
    mallory.run("BEGIN")
    mallory.run(make)
    mallory.run("TRUNCATE evil.who")  # making an index or a check may have run it
    mallory.run("COMMIT")
    if fails:
        # After what it has set; noting it down is undone with the change, so that it is noted as it runs.
        mallory.run("""CREATE FUNCTION evil.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
            CREATE TRIGGER z AFTER INSERT OR DELETE OR TRUNCATE ON evil.bait EXECUTE FUNCTION evil.fail();
            CREATE TRIGGER z AFTER INSERT OR DELETE OR TRUNCATE ON evil.root EXECUTE FUNCTION evil.fail();
            ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER z; ALTER TABLE evil.root ENABLE ALWAYS TRIGGER z""")
    answer = apply(session, other(1), *changes, other(2))
    assert len(answer["acked"]) == (2 if fails else 2 + len(changes)), answer
    assert len(apply(session, *[change("INSERT", {"id": 9}, {"id": 9}, "gone"), other(3)])["acked"]) == 1
    mallory.assert_contained(set() if fails or not ran else {ran})


def test_defect_15_as_it_was_found(mallory, session):
    """A trigger leaves a search_path, in which the next look-up of a table finds an operator of his."""
    mallory.run("""CREATE TABLE evil.bait (id int PRIMARY KEY);
        CREATE FUNCTION evil.set() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false); RETURN NEW; END $$;
        CREATE TRIGGER x BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.set();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER x; SELECT sync_outbox_accept('evil.bait')""")
    apply(session, change("INSERT", {"id": 1}, {"id": 1}), other(1))
    mallory.assert_contained(set())


def test_defect_15_inside_the_callers_transaction(mallory):
    """Also what is set for the rest of a transaction, and where the caller has set something himself."""
    mallory.run("CREATE TABLE evil.bait (id int PRIMARY KEY, b int DEFAULT evil.spoil('default')); SELECT sync_outbox_accept('evil.bait')")
    with mallory.db.session(autocommit=False) as caller:
        caller.execute(LOADED)
        caller.execute("SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL lock_timeout = '77s'; SAVEPOINT s; SET search_path = public, pg_temp")
        before = left_in(caller)
        assert len(apply(caller, change("INSERT", {"id": 1}, {"id": 1}))["acked"]) == 1
        assert left_in(caller) ^ before == set()
        caller.execute("ROLLBACK TO s")
        caller.execute("RELEASE s")
        assert len(apply(caller, change("INSERT", {"id": 1}, {"id": 1}))["acked"]) == 1
        assert caller.execute("SHOW lock_timeout").fetchone()[0] == "77s"
    mallory.assert_contained({"default"})


def test_defect_15_functions_that_open_levels_of_their_own(mallory, session):
    """SET clauses, exception blocks and errors in between open and leave levels of settings, one in the other."""
    mallory.run("""CREATE TABLE evil.bait (id int PRIMARY KEY, a int);
        CREATE FUNCTION evil.deep(n int) RETURNS int LANGUAGE plpgsql SET search_path = evil SET lock_timeout = '5s' AS $$
        BEGIN
            PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false);
            BEGIN
                PERFORM evil.spoil('deep');
                IF n > 0 THEN PERFORM evil.deep(n - 1); END IF;
                IF n % 2 = 1 THEN RAISE 'odd'; END IF;
            EXCEPTION WHEN raise_exception THEN PERFORM evil.spoil('deep');
            END;
            PERFORM pg_catalog.set_config('lock_timeout', '7s', n % 3 = 0);
            RETURN n;
        END $$;
        ALTER TABLE evil.bait ADD CHECK (evil.deep(4) = 4); SELECT sync_outbox_accept('evil.bait')""")
    assert len(apply(session, change("INSERT", {"id": 1}, {"id": 1}), other(1))["acked"]) == 2
    mallory.assert_contained({"deep", "operator"})  # his own, under his own search_path


@pytest.mark.parametrize("again", ["", "SET CONSTRAINTS ALL DEFERRED"])
def test_defect_15_deferred_triggers_run_as_their_owner_too(mallory, session, again):
    """PostgreSQL fires them at COMMIT, as whoever commits."""
    mallory.run("""CREATE TABLE evil.bait (id int PRIMARY KEY); CREATE TABLE evil.second (id int);
        CREATE FUNCTION evil.later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            BEGIN AGAIN; EXCEPTION WHEN insufficient_privilege THEN PERFORM evil.spoil('refused'); END;
            INSERT INTO evil.second VALUES (NEW.id); RETURN NEW; END $$;
        CREATE TRIGGER b BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.later();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER b;
        CREATE CONSTRAINT TRIGGER c AFTER INSERT ON evil.bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.trigger();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER c;
        CREATE CONSTRAINT TRIGGER d AFTER INSERT ON evil.second DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.trigger();
        ALTER TABLE evil.second ENABLE ALWAYS TRIGGER d;
        SELECT sync_outbox_accept('evil.bait')""".replace("AGAIN", again or "NULL"))
    assert len(apply(session, change("INSERT", {"id": 1}, {"id": 1}))["acked"]) == 1
    mallory.assert_contained({"c", "d"} | ({"refused"} if again else set()))


def test_defect_15_the_callers_own_deferred_triggers_are_the_callers(mallory):
    db = mallory.db
    mallory.run("CREATE TABLE evil.bait (id int PRIMARY KEY); SELECT sync_outbox_accept('evil.bait')")
    db.run("""CREATE TABLE mine (id int); CREATE TABLE ran (who text, path text);
        CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO ran VALUES (current_user, current_setting('search_path')); RETURN NEW; END $$;
        CREATE CONSTRAINT TRIGGER m AFTER INSERT ON mine DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mine()""")
    with db.session(autocommit=False) as caller:
        caller.execute("SET search_path = public; INSERT INTO mine VALUES (1)")
        apply(caller, change("INSERT", {"id": 1}, {"id": 1}))
        caller.execute("INSERT INTO mine VALUES (2); SET CONSTRAINTS ALL DEFERRED; INSERT INTO mine VALUES (3)")
    assert db.rows("SELECT * FROM ran") == [("postgres", "public")] * 3


# On the capturing side


CAPTURED = "CREATE TABLE evil.t (id int PRIMARY KEY, m evil.mood, i interval, ms evil.mood[])"


@pytest.fixture
def captured(mallory, append):
    append(mallory.db)
    mallory.run(CAPTURED)
    mallory.run("SELECT sync_outbox_attach('evil.t')")
    mallory.run("GRANT ALL ON evil.t TO PUBLIC")
    return mallory


def test_defect_15_a_cast_leaves_nothing_in_the_writers_session(captured):
    """It runs as the writer, as every trigger of a table does."""
    writer = captured.db.role("writer")
    session = captured.db.session(user=writer)
    session.execute("SET search_path = public; SET sync_outbox.reason = 'mine'")
    session.execute("DO 'BEGIN END'; INSERT INTO evil.t VALUES (0)")  # loads libraries and their settings
    before = left_in(session)
    session.execute("INSERT INTO evil.t VALUES (1, 'sad', '-1 mons +3 days', '{sad,happy}')")
    session.execute("UPDATE evil.t SET m = 'happy', i = '-1 mons +4 days' WHERE id = 1; DELETE FROM evil.t WHERE id = 1")
    assert left_in(session) ^ before == set()
    captured.assert_contained({"cast"}, writer)
    data = [row.data for row in captured.db.outbox()][1:]
    assert [row and row.get("i") for row in data] == ["-1 mons +3 days", "-1 mons +4 days", None]


def test_defect_15_a_cast_that_fails_leaves_nothing(captured, session):
    captured.run("""CREATE OR REPLACE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false); RAISE 'no'; END $$""")
    with pytest.raises(errors.RaiseException):
        session.execute("INSERT INTO evil.t VALUES (1, 'sad')")
    session.execute("DO $$ BEGIN INSERT INTO evil.t VALUES (1, 'sad'); EXCEPTION WHEN raise_exception THEN NULL; END $$")


def test_defect_15_a_backfill_runs_the_owners_casts_as_the_owner(mallory, session):
    mallory.run(CAPTURED)
    mallory.run("INSERT INTO evil.t VALUES (1, 'sad', '-1 mons +3 days', '{sad}')")
    session.execute("SELECT sync_outbox_attach('evil.t')")
    assert session.execute("SELECT sync_outbox_backfill('evil.t')").fetchone()[0] == 1
    mallory.assert_contained({"cast"})
    assert mallory.db.outbox()[0].data["i"] == "-1 mons +3 days"


LATE = """CREATE TABLE evil.bait (id int);
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON evil.bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.trigger();
    CREATE OR REPLACE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
        BEGIN INSERT INTO evil.bait VALUES (1); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
        INSERT INTO evil.bait VALUES (1); RETURN '"cast"'; END $$"""


def test_a_backfill_leaves_no_deferred_trigger_of_the_owner(mallory):
    """What his code defers fires as him, and the transaction's own are not his to fire."""
    mallory.run(CAPTURED + "; " + LATE + "; INSERT INTO evil.t VALUES (1, 'sad')")
    db = mallory.db
    db.attach("evil.t")
    with db.session(autocommit=False) as session:
        session.execute("SELECT sync_outbox_backfill('evil.t')")
    mallory.assert_contained({"late"})
    assert db.outbox()[0].data["m"] == "cast"
    db.run("""CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)""")
    with db.session(autocommit=False) as session:
        session.execute("INSERT INTO c VALUES (1, 1)")
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused, session.transaction():
            session.execute("SELECT sync_outbox_backfill('evil.t')")
        assert "deferred" in str(refused.value) and "SET CONSTRAINTS" in refused.value.diag.message_hint
        session.execute("INSERT INTO p VALUES (1)")
        session.execute("SET CONSTRAINTS ALL IMMEDIATE")
        session.execute("SELECT sync_outbox_backfill('evil.t')")
    mallory.assert_contained({"late"})


def test_a_backfill_of_ones_own_table_leaves_no_deferred_trigger_of_a_casts_owner(mallory):
    mallory.run(LATE)
    db = mallory.db
    db.run("GRANT ALL ON evil.bait TO PUBLIC; CREATE TABLE mine (id int PRIMARY KEY, m evil.mood); INSERT INTO mine VALUES (1, 'sad')")
    db.attach("mine")
    with db.session(autocommit=False) as session:
        session.execute("SELECT sync_outbox_backfill('mine')")
        assert session.execute("SELECT count(*) FROM evil.who WHERE what = 'late'").fetchone()[0] == 1  # confined, and not at COMMIT


def test_defect_15_the_condition_of_a_backfill_leaves_nothing(mallory, session):
    """It runs as who typed it."""
    db = mallory.db
    db.run("""CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
        CREATE FUNCTION sets() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            PERFORM set_config('search_path', 'evil, pg_catalog', false), set_config('role', current_user, false); RETURN true; END $$""")
    session.execute("SELECT sync_outbox_attach('t')")
    assert session.execute("SELECT sync_outbox_backfill('t', 'sets()')").fetchone()[0] == 2
    mallory.assert_contained(set())


def test_defect_15_an_import_reads_the_old_table_as_its_owner(mallory, session):
    mallory.run("""CREATE CAST (evil.mood AS text) WITH FUNCTION evil.mood_text(evil.mood);
        CREATE TABLE evil.old (id int, schema_name text, table_name text, op evil.mood, pk json, data json);
        INSERT INTO evil.old VALUES (1, 's', 't', 'sad', '{"id": 1}', '{"id": 1}')""")
    assert session.execute("SELECT sync_outbox_import('evil.old')").fetchone()[0] == 1
    mallory.assert_contained({"cast"})


def test_defect_15_attach_and_accept_run_nothing(mallory, session):
    mallory.run("""CREATE TABLE evil.bait (id int PRIMARY KEY, a int CHECK (evil.spoil('check') = 1), b int DEFAULT evil.spoil('default'));
        CREATE INDEX ON evil.bait (evil.spoilt('index', id)); TRUNCATE evil.who""")
    for statement in ["SELECT sync_outbox_attach('evil.bait')", "SELECT sync_outbox_accept('evil.bait')", "SELECT * FROM sync_outbox_attached",
                      "SELECT * FROM sync_outbox_stats()", "SELECT sync_outbox_detach('evil.bait')"]:
        session.execute(statement)
    mallory.assert_contained(set())
