"""Bodies that are not what they should be: refused as a whole or change by change, and never the end of the server."""

import itertools
import json

import psycopg
import pytest
from psycopg import errors

from support.hub_database import change, delete, insert, keys, own_hub, truncate, update
from support.large import nested_json
from support.process import MB


@pytest.mark.parametrize("body, sqlstate", [
    ("nonsense", "22P02"), ("", "22P02"),
    ("[]", "22023"), ('"x"', "22023"), ("null", "22023"), ("{}", "22023"), ('{"changes": {}}', "22023"),
    ('{"changes": [7]}', "22023"), ('{"changes": [{}]}', "22023"), ('{"changes": [["a"]]}', "22023"),
    (json.dumps({"changes": [{**insert(id=1), "schema": 7}]}), "22023"),
    (json.dumps({"changes": [{**insert(id=1), "op": "insert"}]}), "22023"),
    (json.dumps({"changes": [{**insert(id=1), "pk": [1]}]}), "22023"),
    (json.dumps({"changes": [{**insert(id=1), "pk": {}}]}), "22023"),
    (json.dumps({"changes": [{**insert(id=1), "data": None}]}), "22023"),
    (json.dumps({"changes": [{**insert(id=1), "dedup_key": "k"}]}), "22023"),
    (json.dumps({"changes": [insert(id=1), {**insert(id=1), "table": None}]}), "22023"),
    (None, "22004"),
], ids=itertools.count())
def test_what_is_no_body_of_changes_is_refused_as_a_whole(hub, body, sqlstate):
    with pytest.raises(psycopg.Error) as raised:
        hub.run("SELECT sync_outbox_apply(%s::json)", [body])
    assert raised.value.sqlstate == sqlstate
    assert raised.value.diag.message_hint or sqlstate == "22P02"  # the json type's own error
    assert hub.content() == []


@pytest.mark.parametrize("body, sqlstate", [("nonsense", "22023"), ("[]", "22023"), ("", "22023"), ('{"changes": [}', "22023"), (None, "22004")])
def test_defect_18_bad_bodies_as_text(hub, body, sqlstate):
    with pytest.raises(errors.Error) as raised:
        hub.run("SELECT sync_outbox_apply_text(%s)", [body])
    assert raised.value.sqlstate == sqlstate and raised.value.diag.message_hint


def test_a_body_that_is_too_large(hub):
    with pytest.raises(errors.ProgramLimitExceeded) as raised:
        hub.run("SELECT sync_outbox_apply((('{\"x\": \"' || repeat('x', 64 * 1024 * 1024)) || '\"}')::json)")
    assert "batch_bytes" in raised.value.diag.message_hint


def test_a_large_body_is_applied(hub):
    text = "é" * (1 << 22)
    hub.acks(insert(id=1, note=text))
    assert hub.value("SELECT note FROM sales") == text


def test_members_beyond_the_six_are_ignored(hub):
    hub.acks({**insert(id=1, qty=1), "id": 5, "txid": "7", "branch": None, "reason": "why", "created_at": "x", "old": {"a": 1}})


def test_a_read_only_transaction(hub):
    session = hub.session(autocommit=False)
    session.execute("SET TRANSACTION READ ONLY")
    with pytest.raises(errors.ReadOnlySqlTransaction) as raised:
        hub.apply(insert(id=1), session=session)
    assert raised.value.diag.message_hint


# Nesting

def test_a_value_nested_too_deep_harms_only_its_change(hub):
    hub.table("id int PRIMARY KEY, doc jsonb")
    deep, good = insert("t", id=1, doc="DEEP"), insert("t", id=2, doc={"a": [1]})
    body = json.dumps({"changes": [deep, good]}).replace('"DEEP"', "[" * 6000 + "]" * 6000)
    answer = hub.value("SELECT sync_outbox_apply(%s::json)", [body])
    assert good["dedup_key"] in answer["acked"]


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


@pytest.mark.parametrize("table", ["sales", "nobody_accepted_this"])
def test_a_small_body_does_not_overflow_the_stack(new_server, table):
    """400 kB of nested strings in pk: SIGSEGV, and the whole server restarts."""
    hub = own_hub(new_server)
    good, bad = insert(id=1), change("DELETE", {"id": "BOMB"}, None, table)
    body = json.dumps({"changes": [good, bad]}).replace('"BOMB"', nested_json(400))
    print("bytes", len(body))
    answer = hub.value("SELECT sync_outbox_apply_text(%s)", [body])
    assert answer["acked"] == keys(good)


@pytest.mark.parametrize("levels", [150, 200, 250, 300])
def test_how_small_a_body_overflows_the_stack(new_server, levels):
    hub = own_hub(new_server)
    bad = change("DELETE", {"id": "BOMB"}, None, "nobody")
    body = json.dumps({"changes": [bad]}).replace('"BOMB"', nested_json(levels))
    print("bytes", len(body))
    assert hub.value("SELECT sync_outbox_apply_text(%s)", [body])["errors"]


# Names with a NUL

@pytest.mark.parametrize("op", ["INSERT", "DELETE", "TRUNCATE"])
@pytest.mark.parametrize("where", ["schema", "table"])
def test_a_name_with_a_nul_is_not_acked_without_being_applied(hub, op, where):
    hub.run("INSERT INTO sales VALUES (1, 0)")
    one = {"INSERT": insert(id=2, qty=1), "DELETE": delete(1), "TRUNCATE": truncate()}[op]
    one[where] += "\0x"
    before = hub.content()
    answer = hub.apply(one)
    assert answer["acked"] == [] or hub.content() != before, (answer, hub.content())


@pytest.mark.parametrize("table", ["sales\u0000x", "sales\u0000"])
def test_a_nul_in_a_name_is_not_acknowledged(hub, table):
    bad = change("INSERT", {"id": 1}, {"id": 1, "qty": 1}, table)
    answer = hub.value("SELECT sync_outbox_apply_text(%s)", [json.dumps({"changes": [bad]})])
    print(answer, hub.content())
    assert answer["acked"] == [] or hub.content()


# What is told of a bad body

def test_a_bad_body_is_not_told_at_length(hub):
    """What is wrong is told with all that was sent: to the log, to the sender, through the receiver."""
    body = json.dumps({"changes": [insert(id=1) | {"dedup_key": "x" * (4 * MB)}]})
    with pytest.raises(errors.InvalidParameterValue) as refused:
        hub.run("SELECT sync_outbox_apply_text(%s)", [body])
    assert len(refused.value.diag.message_detail) < 2000


@pytest.mark.parametrize("member", ["dedup_key", "op", "schema"])
def test_a_bad_body_does_not_fill_the_log(hub, member):
    bad = change("DELETE", {"id": 1})
    bad[member] = "x" * (10 << 20)
    position = hub.db.server.log.position()
    try:
        hub.value("SELECT sync_outbox_apply_text(%s)", [json.dumps({"changes": [bad]})])
    except psycopg.Error as error:
        print(len(str(error)))
        assert len(error.diag.message_detail or "") < 10_000
    assert hub.db.server.log.position() - position < 1 << 20
