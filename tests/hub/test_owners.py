"""Whose code runs while changes are applied: the table's owner's, as that owner, and it leaves nothing behind in the
session."""

import json

import pytest
from psycopg import errors

from support.hub_database import change, delete, insert, update


def test_a_login_that_may_only_execute_apply(hub):
    receiver = hub.role("receiver")
    session = hub.session(user=receiver)
    with pytest.raises(errors.InsufficientPrivilege):
        hub.apply(insert(id=1), session=session)
    hub.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {receiver}")
    assert hub.apply(insert(id=1), session=session)["acked"]
    for attempt in ["SELECT * FROM sales", "SELECT * FROM sync_outbox_applied", "SELECT sync_outbox_accept('sales')"]:
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(attempt)
    assert session.execute("SELECT current_user").fetchone()[0] == receiver


@pytest.fixture
def mallory(hub):
    """A role whose table `bait` is accepted, and who wants to be superuser."""
    role = hub.role("mallory", "sync_outbox_admin")
    hub.run(f"CREATE SCHEMA m AUTHORIZATION {role}")
    session = hub.session(user=role)
    session.execute("CREATE TABLE m.who (what text, who text)")
    session.execute("""
        CREATE FUNCTION m.act(what text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE format('INSERT INTO m.who VALUES (%L, current_user)', what);
            BEGIN
                EXECUTE 'ALTER ROLE ' || quote_ident(current_user) || ' SUPERUSER';
                EXECUTE $q$INSERT INTO m.who VALUES ('escalated', current_user)$q$;
            EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            BEGIN
                EXECUTE 'RESET ROLE'; EXECUTE 'RESET SESSION AUTHORIZATION';
                IF current_user <> %R THEN EXECUTE $q$INSERT INTO m.who VALUES ('left', current_user)$q$; END IF;
            EXCEPTION WHEN OTHERS THEN NULL; END;
            RETURN 1;
        END $$""".replace("%R", f"'{role}'"))
    # Where only immutable functions may stand, one that says it is will do.
    session.execute("CREATE FUNCTION m.note(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS "
                    "$$ BEGIN RETURN m.act(what); END $$")
    session.execute("CREATE FUNCTION m.noted(what text, x anyelement) RETURNS anyelement LANGUAGE plpgsql IMMUTABLE AS "
                    "$$ BEGIN PERFORM m.note(what); RETURN x; END $$")
    session.execute("CREATE FUNCTION m.trigger() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN PERFORM m.note(TG_NAME); RETURN coalesce(NEW, OLD); END $$")
    session.execute("CREATE DOMAIN m.dom AS int CHECK (m.note('domain') = 1)")
    session.execute("""
        CREATE TABLE m.bait (id int PRIMARY KEY, a int CHECK (m.note('check') = 1), b int DEFAULT m.note('default'), c m.dom,
            g int GENERATED ALWAYS AS (m.noted('generated', id)) STORED);
        CREATE INDEX ON m.bait (m.noted('index', id));
        CREATE INDEX ON m.bait (id) WHERE m.noted('predicate', id) > 0;
        CREATE TRIGGER before BEFORE INSERT OR UPDATE OR DELETE ON m.bait FOR EACH ROW EXECUTE FUNCTION m.trigger();
        CREATE TRIGGER after AFTER INSERT OR UPDATE OR DELETE ON m.bait FOR EACH ROW EXECUTE FUNCTION m.trigger();
        CREATE TRIGGER truncates AFTER TRUNCATE ON m.bait EXECUTE FUNCTION m.trigger();
        ALTER TABLE m.bait ENABLE ALWAYS TRIGGER before;
        ALTER TABLE m.bait ENABLE REPLICA TRIGGER after;
        ALTER TABLE m.bait ENABLE ALWAYS TRIGGER truncates;
        ALTER TABLE m.bait ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON m.bait USING (m.note('policy') = 1)""")
    session.execute("SELECT sync_outbox_accept('m.bait')")
    session.role = role
    return session


def test_invariant_01_code_of_a_tables_owner_runs_as_that_owner(hub, mallory):
    bait = {"schema": "m", "table": "bait"}
    changes = [change("INSERT", {"id": 1}, {"id": 1, "a": 1, "c": 1}, **bait), change("UPDATE", {"id": 1}, {"a": 2, "c": 2}, **bait),
               change("DELETE", {"id": 1}, None, **bait), change("TRUNCATE", **bait)]
    assert hub.apply(*changes)["errors"] == []  # applied by a superuser

    seen = hub.rows("SELECT DISTINCT what, who FROM m.who")
    assert {row.what for row in seen} >= {"check", "default", "domain", "generated", "index", "predicate", "policy",
                                          "before", "after", "truncates"}
    assert {row.who for row in seen} == {mallory.role}
    assert not {row.what for row in seen} & {"escalated", "left"}
    assert hub.value("SELECT current_user") == "postgres"


def test_code_of_a_tables_owner_cannot_plant_anything(hub, mallory):
    mallory.execute("""CREATE FUNCTION m.plant() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN CREATE TEMP TABLE planted (x int); RETURN NEW; END $$;
        CREATE TRIGGER plant BEFORE INSERT ON m.bait FOR EACH ROW EXECUTE FUNCTION m.plant();
        ALTER TABLE m.bait ENABLE ALWAYS TRIGGER plant""")
    error = hub.error(change("INSERT", {"id": 1}, {"id": 1}, "bait", "m"))
    assert "security-restricted operation" in error


def test_objects_of_the_caller_are_not_looked_at(hub, mallory):
    """Names in our statements mean pg_catalog, whatever the session's search_path says."""
    mallory.execute("CREATE FUNCTION m.json_to_record(json) RETURNS record LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;"
                    "CREATE FUNCTION m.eq(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;"
                    "CREATE OPERATOR m.= (LEFTARG = int, RIGHTARG = int, FUNCTION = m.eq)")
    hub.run("SET search_path = m, pg_catalog, public")
    hub.run("CREATE TEMP TABLE sales (id int)")
    assert hub.value("SELECT public.sync_outbox_apply(%s::json)->'errors'", [json.dumps({"changes": [insert(id=1), update(1, qty=1), delete(1)]})]) == []
