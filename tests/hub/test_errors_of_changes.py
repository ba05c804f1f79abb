"""An error belongs to the change that made it: it stops its key, is told in one bounded line, and everything else is
applied."""

import json

import pytest
from psycopg import errors

from support.bait import mallory
from support.hub_database import change, delete, insert, keys, truncate, update


def test_an_error_stops_its_key_and_nothing_else(hub):
    changes = [insert(id=1, qty="many"), update(1, qty=2), insert(id=2, qty=2), update(2, qty=3), delete(1)]
    answer = hub.apply(*changes)
    assert answer["acked"] == keys(changes[2], changes[3])
    assert [entry["dedup_key"] for entry in answer["errors"]] == keys(changes[0])
    assert answer["errors"][0]["error"] == 'invalid input syntax for type integer: "many"'
    assert hub.content() == [(2, 3, None)]


def test_a_failed_key_change_stops_both_keys(hub):
    hub.run("INSERT INTO sales VALUES (1), (2)")
    moved, old, new, other = update(1, id=2), update(1, qty=1), update({"id": 2.0}, qty=2), insert(id=3)
    answer = hub.apply(moved, old, new, other)
    assert answer["acked"] == keys(other)
    assert [entry["dedup_key"] for entry in answer["errors"]] == keys(moved)


def test_a_change_into_a_failed_key_waits(hub):
    hub.run("INSERT INTO sales VALUES (1)")
    answer = hub.apply(update(2, qty=1), update(1, id=2))
    assert answer["acked"] == [] and len(answer["errors"]) == 1


def test_truncate_waits_for_failed_keys_and_stops_the_table(hub):
    hub.run("INSERT INTO sales VALUES (1)")
    hub.table("id int PRIMARY KEY")
    other = insert("t", id=1)
    answer = hub.apply(update(9, qty=1), truncate(), insert(id=2), other)
    assert len(answer["errors"]) == 1
    # The key of id 2 is not parked, but TRUNCATE itself was left unmentioned.
    assert set(answer["acked"]) >= set(keys(other))
    assert hub.value("SELECT count(*) FROM sales WHERE id = 1") == 1


def test_what_a_change_did_before_its_error_is_undone(hub):
    hub.run("CREATE TABLE log (n int); CREATE FUNCTION logs() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.log VALUES (1); RAISE EXCEPTION 'no %%', NEW.id USING DETAIL = 'inner detail'; END $$;"
            "CREATE TRIGGER logs AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION logs();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER logs".replace("%%", "%"))
    assert hub.error(insert(id=1)) == "no 1"
    assert hub.content() == [] and hub.content("log") == [] and hub.applied() == set()


def test_error_texts_are_one_bounded_line(hub):
    error = hub.error(insert(id=1, qty="a\nb\t" + "é" * 5000))
    assert error.startswith('invalid input syntax for type integer: "a b ') and len(error) == 501


def test_cancel_and_timeout_end_the_whole_request(hub):
    hub.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(60); RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION slow();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    hub.run("SET statement_timeout = '300ms'")
    with pytest.raises(errors.QueryCanceled):
        hub.apply(insert(id=1), insert(id=2), insert(id=3))
    hub.run("RESET statement_timeout")
    assert hub.content() == [] and hub.applied() == set()
    hub.acks(insert(id=1))


def test_serialization_ends_the_whole_request(hub):
    hub.run("INSERT INTO sales VALUES (1, 1)")
    holder = hub.session(autocommit=False)
    holder.execute("UPDATE sales SET qty = 2")
    repeatable = hub.session(autocommit=False)
    repeatable.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    repeatable.execute("SELECT 1")
    holder.commit()
    with pytest.raises(errors.SerializationFailure) as raised:
        hub.apply(update(1, qty=3), session=repeatable)
    assert "same body again" in raised.value.diag.message_hint


# Errors that the code of a table's owner raises

@pytest.mark.parametrize("sqlstate", ["54001", "54000", "22003", "23514", "XX000", "P0001", "40001", "40P01", "57014", "53200", "25006", "55P03", "58030"])
def test_defect_18_errors_of_the_change_refuse_the_change(hub, sqlstate):
    """Also those that would say something about the server, if it were not a trigger that raises them."""
    hub.run(f"CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'bad' USING ERRCODE = '{sqlstate}'; END $$;"
            "CREATE TRIGGER bad BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION bad();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER bad")
    answer = hub.apply(bad := insert(id=1), good := insert(id=2))
    assert answer["acked"] == keys(good) and [entry["dedup_key"] for entry in answer["errors"]] == keys(bad)


@pytest.mark.parametrize("code", ["EXECUTE 'VACUUM'", "EXECUTE 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'",
                                  "PERFORM set_config('transaction_read_only', 'on', true); INSERT INTO note VALUES (1)"])
def test_an_error_of_transaction_state_in_a_trigger_is_its_changes_alone(hub, code):
    hub.run("CREATE TABLE note (id int);"
            f"CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $x$ BEGIN {code}; RETURN NEW; END $x$;"
            "CREATE TRIGGER odd BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION odd(); ALTER TABLE sales ENABLE ALWAYS TRIGGER odd")
    hub.table("id int PRIMARY KEY")
    good = insert("t", id=1)
    answer = hub.apply(insert(id=1), good)
    assert answer["acked"] == keys(good) and len(answer["errors"]) == 1


POISON = {
    "set transaction": "EXECUTE 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'",
    "vacuum": "EXECUTE 'VACUUM evil.bait'",
    "read only": "PERFORM set_config('transaction_read_only', 'on', true); UPDATE evil.bait SET a = 1",
    "bad deadlock": "EXECUTE 'PREPARE TRANSACTION ''x'''",
    "large objects": "PERFORM lo_open(1, 1)",
    "commit": "COMMIT",
    "raise": "RAISE SQLSTATE '40001'",
    "reraise": "BEGIN RAISE SQLSTATE '40001'; EXCEPTION WHEN OTHERS THEN RAISE; END",
    "sql": "PERFORM evil.inner()",
    "savepoint": "EXECUTE 'SAVEPOINT a'",
    "cursor": "EXECUTE 'DECLARE x CURSOR WITH HOLD FOR SELECT 1'",
    "advisory": "PERFORM pg_advisory_xact_lock(n) FROM generate_series(1, 100000) n",
    "terminate": "PERFORM pg_terminate_backend(pg_backend_pid())",
    "cancel": "PERFORM pg_cancel_backend(pg_backend_pid())",
    "nowait": "PERFORM 1; EXECUTE 'LOCK TABLE evil.bait IN ACCESS EXCLUSIVE MODE NOWAIT'",
    "own lock timeout": "PERFORM set_config('lock_timeout', '1', false); PERFORM pg_sleep(0.1)",
}


@pytest.mark.parametrize("what", POISON)
def test_code_that_always_fails_is_the_error_of_its_change(hub, what):
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.inner() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57014'; END $$;
        CREATE FUNCTION evil.poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {POISON[what]}; RETURN NEW; END $$;
        CREATE TRIGGER poison BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.poison();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER poison""")
    good, bait = insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")
    answer = hub.apply(good, bait)
    print(answer)
    assert good["dedup_key"] in answer["acked"]


# The answer

@pytest.mark.parametrize("poison", ["\U0001f600", "\x01", "\x7f", '"', "\\", "\u2028", "é"])
def test_defect_20_the_answer_is_not_longer_than_the_sender_reads(hub, poison):
    changes = [insert(id=n, qty=poison * 600) for n in range(1000)]
    body = json.dumps({"changes": changes})
    text = hub.value("SELECT sync_outbox_apply_text(%s)::text", [body])
    assert len(text) < 4096 * 1000 and text.isascii()
    answer = json.loads(text)
    assert len(answer["errors"]) == 1000 and all(entry["error"].startswith("invalid input syntax") for entry in answer["errors"])
