"""Who may do what: nothing for PUBLIC, an operator looks and pushes, an admin configures, payloads are for the admin."""

import pytest
from psycopg import errors

PUSH = ["SELECT sync_outbox_flush()", "CALL sync_outbox_drain()", "SELECT sync_outbox_requeue()"]
LOOK = ["SELECT * FROM sync_outbox_stats()", "SELECT * FROM sync_outbox_overview()", "SELECT * FROM sync_outbox_version()",
        "SELECT * FROM sync_outbox_queue",
        "SELECT * FROM sync_outbox_attached", "SELECT * FROM sync_outbox_history"]
CONFIGURE = ["SELECT sync_outbox_pause()", "SELECT sync_outbox_resume()", "SELECT sync_outbox_set_token('x')",
             "SELECT sync_outbox_configure('{}')", "SELECT sync_outbox_adopt('same')",
             "SELECT sync_outbox_target_set('second', '{}')", "SELECT sync_outbox_target_drop('second')",
             "SELECT sync_outbox_discard('{}', 'a good reason')"]
PAYLOAD = ["SELECT * FROM sync_outbox", "SELECT * FROM sync_outbox_discarded", "SELECT * FROM sync_outbox_target",
           "SELECT * FROM sync_outbox_identity"]
NOBODY = ["SELECT sync_outbox_capture()", "INSERT INTO sync_outbox (op) VALUES ('INSERT')", "DELETE FROM sync_outbox",
          "UPDATE sync_outbox_target SET ca_file = '/etc/passwd'", "DELETE FROM sync_outbox_target",
          "UPDATE sync_outbox_target SET name = 'x'", "INSERT INTO sync_outbox_target (name) VALUES ('x')",
          "UPDATE sync_outbox_target_state SET auth = NULL",
          "INSERT INTO sync_outbox_accepted VALUES ('pg_class', 'x')", "UPDATE sync_outbox_identity SET host = ''"]


@pytest.fixture
def as_role(sales):
    """A session of a new role with these memberships."""
    sales.run("INSERT INTO sales VALUES (1, 5, 'payload')")

    def session(*member_of):
        return sales.session(sales.role("_".join(["r", *member_of]), *member_of))
    return session


def may(session, statement):
    """Whether rights allow it; any other error is no answer to that."""
    try:
        session.execute(statement)
    except errors.InsufficientPrivilege:
        return False
    except errors.UndefinedFunction:
        return False  # a trigger function called as a plain one
    except (errors.FeatureNotSupported, errors.NotNullViolation):
        pass
    return True


def allowed(session, statements):
    return [statement for statement in statements if may(session, statement)]


def test_public_may_nothing(as_role):
    session = as_role()

    assert allowed(session, PUSH + LOOK + CONFIGURE + PAYLOAD + NOBODY) == []


def test_an_operator_pushes_and_looks(as_role):
    session = as_role("sync_outbox_operator")

    assert allowed(session, LOOK + PUSH) == LOOK + PUSH
    assert allowed(session, CONFIGURE + PAYLOAD + NOBODY) == []


def test_an_admin_configures_and_sees_payloads(as_role):
    session = as_role("sync_outbox_admin")

    assert allowed(session, PAYLOAD + LOOK + CONFIGURE + PUSH) == PAYLOAD + LOOK + CONFIGURE + PUSH
    assert allowed(session, NOBODY) == []


def test_monitoring_looks(as_role):
    session = as_role("pg_monitor")

    assert allowed(session, LOOK) == LOOK
    assert allowed(session, PUSH + CONFIGURE + PAYLOAD + NOBODY) == []


def test_an_operator_sees_no_payload_anywhere(sales, as_role):
    session = as_role("sync_outbox_operator")
    for statement in LOOK:
        assert "payload" not in str(session.execute(statement).fetchall())


def test_an_operators_flush_sends_everything(sales, as_role, receiver):
    session = as_role("sync_outbox_operator")

    assert session.execute("SELECT sync_outbox_flush()::text").fetchone()[0] == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'
    assert sales.outbox() == []


def test_attach_needs_the_tables_owner_and_an_admin(sales):
    admin, owner, both = sales.role("a", "sync_outbox_admin"), sales.role("o"), sales.role("b", "sync_outbox_admin")
    for role in (owner, both):
        sales.run(f"CREATE SCHEMA s_{role} AUTHORIZATION {role}; CREATE TABLE s_{role}.t (id int PRIMARY KEY); ALTER TABLE s_{role}.t OWNER TO {role}")

    for role, relation in ((admin, f"s_{owner}.t"), (owner, f"s_{owner}.t"), (admin, "sales")):
        with pytest.raises(errors.InsufficientPrivilege):
            sales.session(role).execute("SELECT sync_outbox_attach(%s)", [relation])
    sales.session(both).execute("SELECT sync_outbox_attach(%s)", [f"s_{both}.t"])
    sales.session(both).execute("SELECT sync_outbox_detach(%s)", [f"s_{both}.t"])


def test_a_hostile_search_path_runs_nothing_of_its_owners(sales, receiver):
    """Functions and operators that shadow pg_catalog's must not run inside an operator's or superuser's flush."""
    mallory = sales.role("mallory")
    sales.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}")
    sales.session(mallory).execute("""
        CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
        CREATE FUNCTION evil.eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
        CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq)""")
    sales.run("SET search_path = evil, pg_catalog, public")
    sales.run("INSERT INTO sales VALUES (1, 1)")
    assert sales.flushed()["acked"] == 1
    for statement in LOOK + ["SELECT sync_outbox_requeue()", "SELECT sync_outbox_pause()", "SELECT sync_outbox_resume()"]:
        sales.run(statement)
    sales.attach("sales")


def test_the_token_is_hidden_from_monitoring(sales, as_role):
    sales.server.set(sync_outbox__upload_token="canary-99")
    monitor = as_role("sync_outbox_operator")
    monitor.execute("SELECT * FROM sync_outbox_stats()")

    rows = monitor.execute("SELECT setting FROM pg_settings WHERE name LIKE 'sync_outbox.%'").fetchall()
    assert "canary" not in str(rows)
    assert "canary" not in str(sales.rows("SELECT * FROM sync_outbox_overview()"))
