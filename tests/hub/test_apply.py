"""The hub's half: what sync_outbox_apply() does with a body."""

import json
import threading

import pytest
from psycopg import errors

from support.hub_database import Hub, delete, insert, keys, truncate, update

# The four operations

def test_changes_are_applied_in_order(hub):
    hub.acks(insert(id=1, qty=1, note="a"), update(1, qty=2), insert(id=2, qty=5, note=None), delete(2),
             insert(id=3, qty=None, note="é\"'\\"))

    assert hub.content() == [(1, 2, "a"), (3, None, "é\"'\\")]


def test_the_answer_has_the_form_of_the_wire(hub):
    good, bad = insert(id=1), update(7, qty=1)
    answer = hub.value("SELECT sync_outbox_apply(%s::json)::text", [json.dumps({"changes": [good, bad]})])

    assert answer == ('{"acked": ["%s"], "errors": [{"dedup_key": "%s", "error": "row not found"}], "conflicts": []}'
                      % (good["dedup_key"], bad["dedup_key"]))
    answer = hub.value("SELECT sync_outbox_apply('{\"changes\": []}')::text")
    assert answer == '{"acked": [], "errors": [], "conflicts": []}'


def test_insert_is_an_upsert(hub):
    hub.run("INSERT INTO sales VALUES (1, 1, 'old'), (2, 2, 'kept')")
    hub.acks(insert(id=1, qty=9, note="new"), insert(id=2, qty=8))

    assert hub.content() == [(1, 9, "new"), (2, 8, "kept")]


def test_insert_of_a_key_alone(hub):
    hub.table("id int PRIMARY KEY")
    hub.acks(insert("t", id=1), insert("t", id=1))
    assert hub.content("t") == [(1,)]


def test_update_touches_the_given_columns_only(hub):
    hub.run("INSERT INTO sales VALUES (1, 1, 'mine')")
    hub.acks(update(1, qty=None))
    assert hub.content() == [(1, None, "mine")]


def test_invariant_28_update_of_a_row_that_is_not_there_is_an_error(hub):
    assert hub.error(update(1, qty=1)) == "row not found"
    hub.run("SELECT sync_outbox_accept('sales', ignore_unknown_columns => true)")
    assert hub.error(update(1, unknown_column=1)) == "row not found"


def test_delete_may_find_nothing(hub):
    hub.acks(delete(1))


def test_a_change_of_the_key(hub):
    hub.run("INSERT INTO sales VALUES (1, 1, 'a'), (3, 3, 'c')")
    hub.acks(update(1, id=2, qty=5), update(2, note="b"))
    assert hub.content() == [(2, 5, "b"), (3, 3, "c")]
    assert "duplicate key" in hub.error(update(2, id=3))


def test_truncate(hub):
    hub.run("INSERT INTO sales SELECT n FROM generate_series(1, 9) n")
    hub.acks(truncate(), insert(id=1))
    assert hub.content() == [(1, None, None)]


def test_truncate_of_a_table_that_others_reference(hub):
    hub.run("CREATE TABLE line (sale int REFERENCES sales)")
    hub.run("INSERT INTO sales VALUES (1)")
    hub.acks(truncate())
    assert hub.content() == []


# Idempotence

def test_a_key_seen_before_is_acked_and_not_applied_again(hub):
    first, second = insert(id=1, qty=1), update(1, qty=2)
    hub.acks(first, second)
    hub.run("UPDATE sales SET qty = 50")
    hub.acks(first, second)
    assert hub.content() == [(1, 50, None)]
    assert hub.applied() == set(keys(first, second))


def test_a_key_twice_in_a_body(hub):
    once = insert(id=1, qty=1)
    hub.acks(once, delete(1), once)
    assert hub.content() == []


def test_a_refused_change_is_not_remembered(hub):
    late = update(1, qty=2)
    hub.error(late)
    hub.acks(insert(id=1, qty=1))
    hub.acks(late)
    assert hub.content() == [(1, 2, None)]


def test_keys_are_echoed_as_they_were_written(hub):
    shouted = insert(id=1)
    shouted["dedup_key"] = shouted["dedup_key"].upper()
    hub.acks(shouted)
    hub.acks({**shouted, "dedup_key": shouted["dedup_key"].lower()})
    assert len(hub.applied()) == 1


def test_two_requests_with_the_same_change_apply_it_once(hub):
    hub.run("CREATE TABLE log (n int); CREATE FUNCTION logs() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.log VALUES (1); RETURN NEW; END $$;"
            "CREATE TRIGGER logs AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION logs();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER logs")
    same = insert(id=1)
    first, second = hub.session(autocommit=False), hub.session()
    assert hub.apply(same, session=first)["acked"] == keys(same)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(hub.apply(same, session=second)))
    waiting.start()
    hub.db.wait_until_blocked(second)
    assert not answers, "the second request waits for the first"
    first.commit()
    waiting.join()
    assert answers[0]["acked"] == keys(same)
    assert hub.value("SELECT count(*) FROM log") == 1


def test_two_bodies_with_the_same_key_under_a_lock_timeout(hub):
    """The same body from two sessions: both are acknowledged, applied once, and the later ack is not before the first
    commit."""
    one = insert(id=1, qty=1)
    holder = hub.session(autocommit=False)
    hub.apply(one, session=holder)
    answers = []
    with hub.session() as other:
        thread = threading.Thread(target=lambda: answers.append(hub.apply(one, session=other)))
        thread.start()
        hub.db.wait_until_blocked(other)
        assert answers == []
        holder.rollback()
        thread.join()
    assert answers[0]["acked"] == keys(one) and hub.content()[0][:2] == (1, 1)


def test_the_memory_of_keys_is_pruned_by_age(db):
    db.server.set(sync_outbox__applied_retention="1h")
    hub = Hub(db)
    hub.run("INSERT INTO sync_outbox_applied SELECT gen_random_uuid(), now() - interval '2 hours'"
            " FROM generate_series(1, 5000)")
    hub.run("INSERT INTO sync_outbox_applied SELECT gen_random_uuid(), now() - interval '30 minutes'"
            " FROM generate_series(1, 10)")
    with hub.session() as session:
        for n in range(10):
            hub.apply(insert(id=n), session=session)
    assert len(hub.applied()) == 20


# As a replica

def test_invariant_26_nothing_is_captured_and_foreign_keys_are_not_checked(hub):
    hub.run("CREATE TABLE line (id int PRIMARY KEY, sale int REFERENCES sales ON DELETE CASCADE)")
    hub.accept("line")
    hub.attach("sales")
    hub.attach("line", always=True)
    hub.acks(insert("line", id=1, sale=9), insert(id=1), update(1, qty=1), insert("line", id=2, sale=1), delete(1))
    assert hub.content("line") == [(1, 9), (2, 1)]  # the cascade arrives as a change of its own
    assert hub.outbox() == []
    hub.run("INSERT INTO sales VALUES (5)")
    assert len(hub.outbox()) == 1, "the session captures again"
    with pytest.raises(errors.ForeignKeyViolation):
        hub.run("INSERT INTO line VALUES (9, 99)")


def test_settings_come_back_after_errors_too(hub):
    odd = {"TimeZone": "Asia/Kathmandu", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard",
           "search_path": "public, pg_temp"}
    for name, value in odd.items():
        hub.run("SELECT set_config(%s, %s, false)", [name, value])
    hub.table("id int PRIMARY KEY, at timestamptz, i interval")
    hub.apply(insert("t", id=1, at="2024-02-01T00:30:00+00:00", i="-1 mons +3 days"), update(5, "t"),
              insert("t", id="x"))
    with pytest.raises(errors.InvalidParameterValue):
        hub.run("SELECT sync_outbox_apply('[]')")
    for name, value in odd.items():
        assert hub.value("SELECT current_setting(%s)", [name]) == value
    assert hub.value("SELECT current_setting('session_replication_role')") == "origin"
    assert hub.value("SELECT current_setting('sync_outbox.capture')") == "on"
    hub.run("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'")
    assert hub.row("SELECT at::text, i::text FROM t") == ("2024-02-01 00:30:00+00", "-1 mons +3 days")
