"""Which tables the hub writes: those that were accepted, by whoever owns them, and none that a replica would leave
inconsistent."""

import json

import pytest
from psycopg import errors

from support.hub_database import change, insert, keys


def test_only_accepted_tables_are_written(hub):
    hub.run("CREATE TABLE secret (id int PRIMARY KEY); CREATE SCHEMA s; CREATE TABLE s.sales (id int PRIMARY KEY)")
    refused = [insert("secret", id=1), insert("missing", id=1), change("INSERT", {"id": 1}, {"id": 1}, schema="s"),
               change("DELETE", {"oid": 1}, None, "pg_class", "pg_catalog"), insert("sync_outbox_accepted", id=1),
               change("TRUNCATE", table="secret", schema="s"), insert("Sales", id=1)]
    answer = hub.apply(*refused, good := insert(id=1))
    assert answer["acked"] == keys(good)
    assert [entry["dedup_key"] for entry in answer["errors"]] == keys(*refused)
    assert answer["errors"][0]["error"] == (
        'table "public"."secret" is not accepted here; its owner can call sync_outbox_accept()')
    assert hub.content("secret") == [] and hub.content("s.sales") == []


def test_names_cannot_leave_their_quotes(hub):
    evil = 'sales" (id) VALUES (1); DROP TABLE sales; --'
    assert "not accepted" in hub.error(insert(evil, id=1))
    assert "has no column" in hub.error(insert(**{"id": 1, 'x" int); DROP TABLE sales; --': 1}))
    hub.run("SELECT sync_outbox_accept('sales', ignore_unknown_columns => true)")
    hub.acks(insert(**{"id": 1, 'x" int); DROP TABLE sales; --': 1}))
    assert hub.content() == [(1, None, None)]
    name = 'we "ird'
    hub.run(f'CREATE TABLE "we ""ird" ("i""d" int PRIMARY KEY, "é" text)')
    hub.accept('"we ""ird"')
    hub.acks(change("INSERT", {'i"d': 1}, {'i"d': 1, "é": "x"}, name), change("UPDATE", {'i"d': 1}, {"é": "y"}, name))
    assert hub.content('"we ""ird"') == [(1, "y")]


def test_a_long_name_is_not_another_table(hub):
    name = "t" * 63
    hub.table("id int PRIMARY KEY, qty int", name)
    bad, later = change("UPDATE", {"id": 1}, {"qty": 1}, name), change("INSERT", {"id": 1}, {"id": 1}, name + "x")
    answer = hub.apply(bad, later)
    print(answer)
    assert later["dedup_key"] not in answer["acked"]


def test_accept_is_idempotent_and_follows_a_rename(hub):
    hub.accept("sales")
    assert [row.relation for row in hub.rows("SELECT relation FROM sync_outbox_accepted")] == ["sales"]
    hub.run("ALTER TABLE sales RENAME TO deals")
    hub.acks(insert("deals", id=1))
    assert "not accepted" in hub.error(insert("sales", id=2))


@pytest.mark.parametrize("make, relation, error", [
    ("CREATE VIEW v AS SELECT 1", "v", errors.WrongObjectType),
    ("CREATE MATERIALIZED VIEW m AS SELECT 1", "m", errors.WrongObjectType),
    ("CREATE SEQUENCE q", "q", errors.WrongObjectType),
    ("CREATE TEMP TABLE x (id int PRIMARY KEY)", "x", errors.WrongObjectType),
    ("CREATE TABLE k (id int)", "k", errors.ObjectNotInPrerequisiteState),
    ("CREATE TABLE d (id int PRIMARY KEY DEFERRABLE)", "d", errors.ObjectNotInPrerequisiteState),
    ("", "pg_catalog.pg_class", errors.InsufficientPrivilege),
    ("", "sync_outbox", errors.InsufficientPrivilege),
    ("", "sync_outbox_accepted", errors.InsufficientPrivilege),
    ("", "4242", errors.UndefinedTable),
    ("", None, errors.NullValueNotAllowed),
])
def test_accept_refuses(hub, make, relation, error):
    if make:
        hub.run(make)
    with pytest.raises(error) as raised:
        hub.accept(relation)
    assert raised.value.diag.message_hint
    assert len(hub.rows("SELECT FROM sync_outbox_accepted")) == 1


def test_accept_is_for_the_owner(hub):
    admin = hub.role("admin", "sync_outbox_admin")
    hub.run("CREATE TABLE mine (id int PRIMARY KEY)")
    hub.run(f"ALTER TABLE mine OWNER TO {admin}")
    session = hub.session(user=admin)
    session.execute("SELECT sync_outbox_accept('mine')")
    with pytest.raises(errors.InsufficientPrivilege) as raised:
        session.execute("SELECT sync_outbox_accept('sales')")
    assert raised.value.diag.message_hint
    assert hub.row("SELECT accepted_by FROM sync_outbox_accepted WHERE relation = 'mine'::regclass").accepted_by == admin
    nobody = hub.session(user=hub.role("nobody"))
    with pytest.raises(errors.InsufficientPrivilege):
        nobody.execute("SELECT sync_outbox_accept('sales')")


def test_tables_accepted_under_0_1_0_keep_their_way_and_rights_stay(quiet_server, watched):
    watched(quiet_server)
    db = quiet_server.create_database()
    try:
        db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox VERSION '0.1.0'")
        helper, receiver = db.role("helper"), db.role("receiver")
        db.run(f"CREATE TABLE sales (id int PRIMARY KEY, qty int, note text); INSERT INTO sync_outbox_accepted VALUES ('public.sales', 'postgres');"
               f"GRANT EXECUTE ON FUNCTION sync_outbox_accept(regclass) TO {helper} WITH GRANT OPTION;"
               f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {receiver}")
        session = db.session()
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            session.execute("SELECT sync_outbox_accept('sales')")  # a new library, and old objects
        db.run("ALTER EXTENSION sync_outbox UPDATE")
        body = json.dumps({"changes": [insert(id=1, colour="red")]})
        assert db.session(user=receiver).execute("SELECT sync_outbox_apply(%s)", [body]).fetchone()[0]["acked"]
        for function, role in [("sync_outbox_accept(regclass)", helper), ("sync_outbox_apply(json)", receiver)]:
            assert db.value("SELECT has_function_privilege(%s, %s, 'EXECUTE')", [role, function])
        db.run("CREATE TABLE other (id int PRIMARY KEY); SELECT sync_outbox_accept('other')")
        assert db.rows("SELECT relation::text, ignore_unknown_columns FROM sync_outbox_accepted ORDER BY 1") == [("other", False), ("sales", True)]
    finally:
        db.close()
        quiet_server.drop_database(db.name)


def test_defect_18_a_right_on_one_function_is_none_on_the_other(hub):
    """And what an argument of unknown type means stays what it was."""
    receiver = hub.role("receiver")
    hub.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {receiver}")
    session = hub.session(user=receiver)
    assert session.execute("SELECT sync_outbox_apply('{\"changes\": []}')").fetchone()[0]["acked"] == []
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_apply_text('{\"changes\": []}')")


# Constraints that a replica does not enforce

DEFERRABLE = ["folio int UNIQUE DEFERRABLE", "folio int UNIQUE DEFERRABLE INITIALLY DEFERRED",
              "folio int, EXCLUDE USING btree (folio WITH =) DEFERRABLE"]


@pytest.mark.parametrize("columns", DEFERRABLE)
def test_defect_22_a_deferrable_constraint_is_not_accepted(hub, columns):
    hub.run(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    hub.run("CREATE TABLE p (id int PRIMARY KEY, folio int) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF p DEFAULT;"
            "ALTER TABLE leaf ADD UNIQUE (folio) DEFERRABLE")
    for table in ("t", "p"):
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
            hub.accept(table)
        assert "DEFERRABLE" in refused.value.diag.message_primary and refused.value.diag.message_hint


@pytest.mark.parametrize("columns", DEFERRABLE)
def test_defect_22_nor_are_changes_of_a_table_that_gets_one_later(hub, columns):
    added = columns.removeprefix("folio int").lstrip(", ")
    hub.table("id int PRIMARY KEY, folio int")
    hub.run(f"ALTER TABLE t ADD {added.replace('UNIQUE', 'UNIQUE (folio)')}")
    error = hub.error(insert("t", id=1, folio=7))
    assert "DEFERRABLE constraint public.t_folio_" in error and "not enforced" in error
    hub.run("ALTER TABLE t DROP CONSTRAINT " + hub.value("SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass AND condeferrable"))
    hub.run("ALTER TABLE t ADD UNIQUE (folio)")
    answer = hub.apply(first := insert("t", id=1, folio=7), insert("t", id=2, folio=7))
    assert answer["acked"] == keys(first) and "duplicate key" in answer["errors"][0]["error"]
