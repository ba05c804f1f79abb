"""Defects 17 to 22: what one store, one row or one table costs everybody else at a hub."""

import json
import pathlib
import re
import threading
import time

import pytest
from psycopg import errors

from test_apply import change, delete, hub, insert, keys, update  # noqa: F401

# 17: one locked row


@pytest.fixture
def locked(hub):
    """The hub, whose row 1 somebody holds on to."""
    hub.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 5) n")
    hub.holder = hub.session(autocommit=False)
    hub.holder.execute("UPDATE sales SET note = 'held' WHERE id = 1")
    return hub


def timed(hub, *changes, session=None):
    began = time.monotonic()
    answer = hub.apply(*changes, session=session)
    return answer, time.monotonic() - began


def test_defect_17_a_locked_row_costs_its_own_change_only(locked):
    locked.db.server.set(sync_outbox__apply_lock_timeout="700ms")
    held, later, moved = update(1, qty=1), update(1, qty=2), update(2, id=1)
    others = [update(2, qty=3), insert(id=9), delete(3)]
    with locked.session() as session:
        answer, took = timed(locked, held, later, *others, moved, session=session)
        assert answer == {"acked": keys(*others), "errors": [], "conflicts": []}
        assert 0.6 < took < 2
        locked.holder.commit()
        answer, took = timed(locked, held, later, *others, session=session)
        assert (answer["acked"], took < 0.5) == (keys(held, later, *others), True)
    assert locked.content()[0] == (1, 2, "held")


def test_defect_17_the_time_is_that_of_the_whole_body(locked):
    locked.db.server.set(sync_outbox__apply_lock_timeout="600ms")
    locked.holder.execute("UPDATE sales SET note = 'held'")
    changes = [update(n, qty=1) for n in range(1, 6)]
    with locked.session() as session:
        answer, took = timed(locked, *changes, free := insert(id=9), session=session)
    assert answer["acked"] == keys(free) and took < 1.5


def test_defect_17_work_is_not_waiting(hub):
    """A slow trigger does not use the time up that a lock may be waited for."""
    hub.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(0.4); RETURN NEW; END $$;"
               "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow(); ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    hub.run("INSERT INTO sales VALUES (1, 0)")
    holder = hub.session(autocommit=False)
    holder.execute("UPDATE sales SET note = 'held'")
    hub.db.server.set(sync_outbox__apply_lock_timeout="1s")
    changes = [insert(id=n) for n in (11, 12, 13)] + [update(1, qty=1)]
    with hub.session() as session:
        releasing = threading.Timer(1.6, holder.commit)
        releasing.start()
        assert hub.apply(*changes, session=session)["acked"] == keys(*changes)
        releasing.join()


def test_defect_17_the_callers_own_limits_win_if_they_are_less(locked):
    session = locked.session()
    session.execute("SET lock_timeout = '200ms'; SET statement_timeout = '30s'")
    answer, took = timed(locked, update(1, qty=1), good := update(2, qty=1), session=session)
    assert answer["acked"] == keys(good) and took < 1.5
    session.execute("SET lock_timeout = '30s'; SET statement_timeout = '400ms'")
    with pytest.raises(errors.QueryCanceled):
        locked.apply(update(1, qty=1), update(4, qty=1), session=session)
    assert locked.content()[3] == (4, 0, None)


def test_defect_17_a_locked_table_and_a_key_that_is_just_applied(hub):
    hub.table("id int PRIMARY KEY")
    hub.db.server.set(sync_outbox__apply_lock_timeout="300ms")
    with hub.session(autocommit=False) as holder, hub.session() as session:
        same = insert(id=1)
        hub.apply(same, session=holder)
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        answer, took = timed(hub, same, insert("t", id=1), insert("t", id=2), good := insert(id=2), session=session)
        assert answer == {"acked": keys(good), "errors": [], "conflicts": []} and took < 2


def test_defect_17_a_statement_has_an_end(hub):
    """Also where code of the table's owner catches the error. The caller's own limit is in force again afterwards."""
    hub.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN BEGIN PERFORM pg_catalog.pg_sleep(60);"
            "EXCEPTION WHEN query_canceled THEN IF NEW.qty = 1 THEN RAISE; END IF; END; RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.qty IS NOT NULL) EXECUTE FUNCTION slow();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    session = hub.session()
    with pytest.raises(errors.QueryCanceled) as raised:  # handed on
        hub.apply(insert(id=1), insert(id=2, qty=1), session=session)
    assert "statement timeout" in raised.value.diag.message_primary
    assert hub.content() == []
    # Kept: what is applied by then is answered, and the rest left unmentioned, or that change would come again for ever.
    caught = [insert(id=1), insert(id=2, qty=2)]
    answer, took = timed(hub, *caught, insert(id=4), session=session)
    assert answer == {"acked": keys(*caught), "errors": [], "conflicts": []} and took < 1.5
    assert [row[0] for row in hub.content()] == [1, 2]
    assert hub.apply(insert(id=5), session=session)["acked"]
    session.execute("SET statement_timeout = '1200ms'")
    body = json.dumps({"changes": [insert(id=3)]})
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT sync_outbox_apply(%s::json), pg_sleep(60)", [body])
    session.execute("RESET statement_timeout")
    session.execute("SELECT sync_outbox_apply(%s::json), pg_sleep(1)", [body])  # ours ends with the call
    session.execute("DO $$ BEGIN PERFORM sync_outbox_apply('{\"changes\": 1}'); EXCEPTION WHEN invalid_parameter_value THEN PERFORM pg_sleep(1); END $$")


# 18: what is too much of one change is refused alone


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
@pytest.mark.parametrize("levels", [130, 5_000, 14_553, 500_000])
def test_defect_18_a_value_nested_too_deep_is_the_error_of_its_change(hub, kind, levels):
    hub.table(f"id int PRIMARY KEY, doc {kind}")
    bad, good = insert("t", id=1, doc="DEEP"), insert("t", id=2, doc=[1])
    later = update(1, "t", doc="DEEP", id=5)
    body = json.dumps({"changes": [bad, good, later]}).replace('"DEEP"', deep(levels))
    answer = hub.value("SELECT sync_outbox_apply_text(%s)", [body])
    assert good["dedup_key"] in answer["acked"]
    refused = [entry["dedup_key"] for entry in answer["errors"]]
    assert refused in ([], keys(bad)) and (levels < 500_000 or refused)
    assert set(answer["acked"]) == set(keys(good) if refused else keys(bad, good, later))


@pytest.mark.parametrize("member", ["pk", "old", "branch", "dedup_key"])
def test_defect_18_depth_where_no_value_belongs(hub, member):
    bad, good = change("UPDATE", {"id": 1}, {"qty": 1}), insert(id=2)
    bad[member] = {"id": "DEEP"} if member in ("pk", "old") else "DEEP"
    body = json.dumps({"changes": [bad, good]}).replace('"DEEP"', deep(500_000))
    if member == "dedup_key":
        with pytest.raises(errors.InvalidParameterValue):
            hub.value("SELECT sync_outbox_apply_text(%s)", [body])
    else:
        answer = hub.value("SELECT sync_outbox_apply_text(%s)", [body])
        assert len(answer["errors"]) == 1 and set(answer["acked"]) <= set(keys(good))


@pytest.mark.parametrize("sqlstate", ["54001", "54000", "22003", "23514", "XX000", "P0001", "40001", "40P01", "57014", "53200", "25006", "55P03", "58030"])
def test_defect_18_errors_of_the_change_refuse_the_change(hub, sqlstate):
    """Also those that would say something about the server, if it were not a trigger that raises them."""
    hub.run(f"CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'bad' USING ERRCODE = '{sqlstate}'; END $$;"
            "CREATE TRIGGER bad BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION bad();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER bad")
    answer = hub.apply(bad := insert(id=1), good := insert(id=2))
    assert answer["acked"] == keys(good) and [entry["dedup_key"] for entry in answer["errors"]] == keys(bad)


@pytest.mark.parametrize("body, sqlstate", [("nonsense", "22023"), ("[]", "22023"), ("", "22023"), ('{"changes": [}', "22023"), (None, "22004")])
def test_defect_18_bad_bodies_as_text(hub, body, sqlstate):
    with pytest.raises(errors.Error) as raised:
        hub.run("SELECT sync_outbox_apply_text(%s)", [body])
    assert raised.value.sqlstate == sqlstate and raised.value.diag.message_hint


TINY = {
    "changes": lambda parts: '{"changes": [' + "1," * parts + "1]}",
    "columns": lambda parts: json.dumps({"changes": [update(1, qty=1)]}).replace(
        '"data": {', '"data": {' + "".join(f'"{n:x}":1,' for n in range(parts)), 1),
    "a key of many parts": lambda parts: json.dumps({"changes": [
        update(1, nowhere=1), {**update(1, qty=1), "pk": {"id": "PARTS"}}]}).replace('"PARTS"', "[" + "1," * parts + "1]"),
}


@pytest.mark.parametrize("kind", TINY)
def test_defect_18_tiny_parts_do_not_take_many_times_their_size(hub, kind):
    """Memory for which nobody has asked PostgreSQL ends the whole server where there is none."""
    body = TINY[kind](3_000_000)

    def peak(session):
        pathlib.Path(f"/proc/{session.info.backend_pid}/clear_refs").write_text("5")
        try:
            session.execute("SELECT sync_outbox_apply_text(%s)", [body])
        except errors.InvalidParameterValue as error:
            assert len(str(error)) < 1000
        status = pathlib.Path(f"/proc/{session.info.backend_pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    with hub.session() as session:
        assert peak(session) < 8 * len(body) + (64 << 20)


def test_defect_18_a_right_on_one_function_is_none_on_the_other(hub):
    """And what an argument of unknown type means stays what it was."""
    receiver = hub.role("receiver")
    hub.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {receiver}")
    session = hub.session(user=receiver)
    assert session.execute("SELECT sync_outbox_apply('{\"changes\": []}')").fetchone()[0]["acked"] == []
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_apply_text('{\"changes\": []}')")


# 19: many statements


def test_defect_19_a_session_that_has_seen_many_statements_is_as_fast_as_before(hub):
    columns = 12
    hub.table("id int PRIMARY KEY, " + ", ".join(f"c{n} int" for n in range(columns)))
    hub.run("INSERT INTO t SELECT n FROM generate_series(1, 2000) n")
    session = hub.session()

    def body(number):
        """A thousand updates of one kind."""
        given = {f"c{n}": 1 for n in range(columns) if number >> n & 1}
        return json.dumps({"changes": [change("UPDATE", {"id": row}, given, "t") for row in range(1, 1001)]})

    def rate(session):
        """Of one kind of update that neither session has seen before; each round is a request."""
        began = time.monotonic()
        answer = session.execute("SELECT sync_outbox_apply(%s::json)", [body(4001)]).fetchone()[0]
        assert len(answer["acked"]) == 1000
        return 1000 / (time.monotonic() - began)

    for start in range(3, 3000, 1000):  # one of each kind
        changes = [change("UPDATE", {"id": 1}, {f"c{n}": 1 for n in range(columns) if number >> n & 1}, "t") for number in range(start, start + 1000)]
        assert hub.apply(*changes, session=session)["errors"] == []
    fresh = hub.session()
    rates = [(rate(fresh), rate(session)) for _ in range(5)]
    best = [max(one) for one in zip(*rates)]
    print("changes/s in a fresh session and in one that has seen 3,000 statements: {:.0f}, {:.0f}".format(*best))
    assert best[1] > best[0] / 2
    kept = session.execute("SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE 'UPDATE%'").fetchone()[0]
    assert kept == 500


# 20: an answer that the sender reads


@pytest.mark.parametrize("poison", ["\U0001f600", "\x01", "\x7f", '"', "\\", "\u2028", "é"])
def test_defect_20_the_answer_is_not_longer_than_the_sender_reads(hub, poison):
    changes = [insert(id=n, qty=poison * 600) for n in range(1000)]
    body = json.dumps({"changes": changes})
    text = hub.value("SELECT sync_outbox_apply_text(%s)::text", [body])
    assert len(text) < 4096 * 1000 and text.isascii()
    answer = json.loads(text)
    assert len(answer["errors"]) == 1000 and all(entry["error"].startswith("invalid input syntax") for entry in answer["errors"])


# 22: constraints that a replica does not enforce

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


# Columns that the hub lacks


def test_a_column_that_the_hub_lacks_is_an_error(hub):
    good = insert(id=2, qty=2)
    answer = hub.apply(insert(id=1, qty=1, colour="red", size=5), good)
    assert answer["acked"] == keys(good)
    assert answer["errors"][0]["error"] == ('table "public"."sales" has no column "colour", "size"; add it, or accept the table with'
                                            ' ignore_unknown_columns => true')
    assert "has no column" in hub.error(update(2, colour="red"))


def test_accept_again_changes_whether_columns_are_ignored(hub):
    option = "SELECT ignore_unknown_columns FROM sync_outbox_accepted"
    assert hub.value(option) is False
    hub.run("SELECT sync_outbox_accept('sales', ignore_unknown_columns => true)")
    assert hub.value(option) is True
    hub.acks(insert(id=1, colour="red"))
    hub.accept("sales")
    assert hub.value(option) is False
    with pytest.raises(errors.NullValueNotAllowed) as refused:
        hub.run("SELECT sync_outbox_accept('sales', ignore_unknown_columns => NULL)")
    assert refused.value.diag.message_hint


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

