"""What a response means for the changes that were in the request: every row of the outcome table."""

import datetime
import math

import pytest

from support import behaviours
from support.ledger import Ledger


def number(wanted):
    return lambda change: change["pk"]["id"] == wanted


def states(database):
    return {change.pk["id"]: change.status for change in database.outbox()}


# 200 and the word on each change

def test_partial_ack(three, receiver):
    receiver.behaviour = behaviours.ack(number(2))
    three.flush()

    first, third = three.outbox()
    assert (first.pk, third.pk) == ({"id": 1}, {"id": 3})
    assert {first.status, third.status} == {"FAILED"}
    assert first.error_message == "not acknowledged"
    assert first.refusals == 0
    assert first.next_attempt_at is not None


def test_invariant_18_not_mentioned_is_never_dead(three, receiver):
    three.server.set(sync_outbox__max_attempts=2, sync_outbox__retry_interval="10ms", sync_outbox__retry_max_interval="10ms")
    receiver.behaviour = behaviours.ack_none
    for _ in range(5):
        three.flush()

    assert set(states(three).values()) == {"FAILED"}
    assert {change.refusals for change in three.outbox()} == {0}
    receiver.behaviour = behaviours.ack_all
    three.run("SELECT sync_outbox_requeue()")
    assert three.flushed()["acked"] == 3


def test_empty_answer_object(three, receiver):
    receiver.behaviour = behaviours.status(200, {})
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(three.outbox()) == 3


def test_an_error_is_a_refusal_with_its_words(three, receiver):
    receiver.behaviour = behaviours.refuse(number(2), "no such product")
    answer = three.flushed()

    assert (answer["ok"], answer["sent"], answer["acked"], answer["failed"]) == (False, 3, 2, 1)
    (change,) = three.outbox()
    assert (change.pk, change.status, change.error_message) == ({"id": 2}, "FAILED", "no such product")
    assert (change.attempt_count, change.refusals) == (1, 1)
    assert change.last_attempt_at is not None and change.next_attempt_at > change.last_attempt_at


def test_a_refused_change_is_not_sent_before_its_time(three, receiver):
    three.server.set(sync_outbox__retry_interval="1h", sync_outbox__retry_max_interval="2h")
    receiver.behaviour = behaviours.refuse(number(2))
    three.flush()
    three.flush()

    assert [change["pk"]["id"] for change in receiver.changes] == [1, 2, 3]


def test_invariant_17_refused_too_often_is_dead(three, receiver):
    three.server.set(sync_outbox__max_attempts=3, sync_outbox__retry_interval="10ms", sync_outbox__retry_max_interval="10ms")
    receiver.behaviour = behaviours.refuse(number(2))
    answers = []
    while states(three).get(2) != "DEAD" and len(answers) < 20:
        answers.append(three.flushed())

    assert three.outbox()[0].refusals == 3
    assert answers[-1]["dead"] == 1
    sent = len(receiver.changes)
    assert three.flushed()["sent"] == 0
    assert len(receiver.changes) == sent


def test_error_text_is_cleaned_and_cut(three, receiver):
    receiver.behaviour = behaviours.refuse(number(2), "bad\x00\x1b[31m\n" + "é" * 5_000)
    three.flush()

    (change,) = three.outbox()
    assert change.error_message.startswith("bad")
    assert "\x1b" not in change.error_message
    assert len(change.error_message) <= 2048


def test_a_conflict_waits_for_a_person(three, receiver):
    receiver.behaviour = behaviours.conflict(number(2))
    answer = three.flushed()

    assert (answer["ok"], answer["acked"], answer["conflicts"]) == (False, 2, 1)
    assert states(three) == {2: "CONFLICT"}
    receiver.behaviour = behaviours.ack_all
    assert three.flushed()["sent"] == 0


def test_conflicts_and_acks_that_are_objects_or_strange(three, receiver):
    """Only what can be understood counts, and nothing that was not sent."""
    def strange(request, wire):
        key = request.keys[0]
        wire.answer(200, {"acked": [key, key, 7, None, "nonsense", "00000000-0000-7000-8000-000000000000"],
                          "errors": [{"dedup_key": "also-unknown", "error": "x"}, {}], "conflicts": [], "more": 1})
    receiver.script(strange)
    answer = three.flushed()

    assert answer["acked"] <= 1
    assert {2, 3} <= set(states(three))


def test_unknown_and_repeated_keys_are_ignored(three, receiver):
    def chatty(request, wire):
        stranger = "01920000-0000-7000-8000-000000000000"
        wire.answer(200, {"acked": request.keys[:2] * 3 + [stranger], "conflicts": [stranger], "errors": []})
    receiver.script(chatty)

    assert three.flushed()["acked"] == 2
    assert states(three) == {3: "FAILED"}


def test_a_key_both_acked_and_refused_is_not_lost(three, receiver):
    def torn(request, wire):
        wire.answer(200, {"acked": request.keys, "errors": [{"dedup_key": request.keys[1], "error": "no"}], "conflicts": []})
    receiver.script(torn)
    three.flush()

    assert set(states(three)) in ({2}, set())


def test_upper_case_keys_are_the_same_keys(three, receiver):
    receiver.script(lambda request, wire: wire.answer(200, {"acked": [key.upper() for key in request.keys]}))

    assert three.flushed()["acked"] == 3


# What is parked is the key, nothing else

def test_a_refusal_parks_its_key_only(three, receiver):
    three.server.set(sync_outbox__retry_interval="1h")
    three.run("UPDATE sales SET qty = 1 WHERE id IN (1, 2)")
    receiver.behaviour = stop_at_first_refusal(number(2))
    answer = three.flushed()

    assert {change.pk["id"] for change in three.outbox()} == {2}
    assert [change.op for change in three.outbox()] == ["INSERT", "UPDATE"]
    assert answer["acked"] == 3

    three.run("UPDATE sales SET qty = 2")
    receiver.behaviour = behaviours.ack_all
    answer = three.flushed()
    assert (answer["acked"], answer["blocked"]) == (2, 1)


def stop_at_first_refusal(wanted):
    """The documented receiver: a key ends at its first error, its later changes are not mentioned."""
    def behaviour(request, wire):
        stopped, acked, errors = set(), [], []
        for change in request.changes:
            key = str(change["pk"])
            if key in stopped:
                continue
            if wanted(change):
                stopped.add(key)
                errors.append({"dedup_key": change["dedup_key"], "error": "no"})
            else:
                acked.append(change["dedup_key"])
        request.applied = acked
        wire.answer(200, {"acked": acked, "errors": errors, "conflicts": []})
    return behaviour


def test_a_dead_change_parks_its_key(three, receiver):
    three.server.set(sync_outbox__max_attempts=1)
    receiver.behaviour = stop_at_first_refusal(number(2))
    three.flush()
    assert states(three) == {2: "DEAD"}
    three.run("UPDATE sales SET qty = 5")
    receiver.behaviour = behaviours.ack_all

    answer = three.flushed()

    assert (answer["acked"], answer["blocked"]) == (2, 1)
    assert [change.op for change in three.outbox()] == ["INSERT", "UPDATE"]


def test_invariant_04_a_key_change_waits_for_both_its_keys(three, receiver):
    three.server.set(sync_outbox__retry_interval="1h")
    receiver.behaviour = stop_at_first_refusal(number(2))
    three.flush()
    receiver.behaviour = behaviours.ack_all
    three.run("DELETE FROM sales WHERE id = 2; UPDATE sales SET id = 2 WHERE id = 1; UPDATE sales SET qty = 7 WHERE id = 3")

    assert three.flushed()["acked"] == 1
    assert receiver.changes[-1]["pk"] == {"id": 3}


def test_invariant_04_a_truncate_waits_for_every_key_of_its_table(db, receiver):
    db.aim(receiver)
    db.server.set(sync_outbox__retry_interval="1h")
    db.run("CREATE TABLE log (id int PRIMARY KEY)")
    db.attach("log", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    db.run("INSERT INTO log VALUES (1), (2)")
    receiver.behaviour = stop_at_first_refusal(number(2))
    db.flush()
    receiver.behaviour = behaviours.ack_all
    db.run("TRUNCATE log; INSERT INTO log VALUES (9)")

    answer = db.flushed()

    assert (answer["acked"], answer["blocked"]) == (0, 2)


def test_a_later_change_acked_without_the_earlier_is_a_conflict(three, receiver):
    three.run("UPDATE sales SET qty = 1 WHERE id = 2")
    receiver.script(behaviours.ack(lambda change: change["op"] == "UPDATE" or change["pk"]["id"] != 2))
    three.flush()

    (change,) = three.outbox()
    assert (change.op, change.status, change.error_message) == ("INSERT", "CONFLICT", "later change acked")
    assert three.flushed()["sent"] == 0


# Whole answers that say nothing about the changes

@pytest.mark.parametrize("behaviour", [
    behaviours.broken_json, behaviours.html, behaviours.truncated(True), behaviours.truncated(False),
    behaviours.status(200, ""), behaviours.status(200, "[]"), behaviours.status(200, "null"), behaviours.status(204),
    behaviours.status(200, {"acked": "all"}), behaviours.status(200, b"\xff\xfe\x00"),
    behaviours.status(200, '{"acked": ' + "[" * 100_000)],
    ids=["broken json", "html", "truncated with length", "truncated", "empty", "array", "null", "204", "not a list",
         "not utf-8", "deep nesting"])
def test_an_answer_that_is_none_acks_nothing(three, receiver, behaviour):
    keys = three.keys()
    receiver.script(behaviour)
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert three.keys() == keys
    assert {change.refusals for change in three.outbox()} == {0}
    three.run("SELECT sync_outbox_requeue()")
    assert three.flushed()["acked"] == 3
    assert Ledger(receiver.requests).lost(keys) == set()


def test_an_answer_lost_after_applying_is_sent_again_with_the_same_keys(three, receiver):
    keys = three.keys()
    receiver.script(behaviours.apply_and_vanish)
    three.flush()
    assert three.keys() == keys
    three.flush()

    ledger = Ledger(receiver.requests)
    assert ledger.lost(keys) == ledger.phantom(keys) == set()
    assert ledger.duplicated() == set(keys)
    assert [row["id"] for row in ledger.rows("sales")] == [1, 2, 3]


# 3xx and the statuses of a wrong address or token: the rows are not to blame

@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(three, receiver, new_receiver, code):
    other = new_receiver()
    before = three.outbox()
    receiver.behaviour = behaviours.redirect(other.url + "/elsewhere", code)
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert other.requests == []
    assert [change.refusals for change in three.outbox()] == [0, 0, 0]
    assert three.keys() == [str(change.dedup_key) for change in before]


@pytest.mark.parametrize("code", [401, 403, 407])
def test_auth_refused_touches_no_row(three, receiver, code):
    before = three.outbox()
    receiver.behaviour = behaviours.status(code, {"error": "who are you"})
    answer = three.flushed()

    assert (answer["ok"], answer["acked"], answer["auth"]) == (False, 0, "invalid")
    assert three.outbox() == before


@pytest.mark.parametrize("code", [404, 405, 406, 415, 501, 505])
def test_a_wrong_endpoint_costs_no_refusal(three, receiver, code):
    receiver.behaviour = behaviours.status(code)
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert answer["error"]
    assert len(receiver.requests) <= 2
    assert [change.refusals for change in three.outbox()] == [0, 0, 0]
    assert "DEAD" not in states(three).values()
    receiver.behaviour = behaviours.ack_all
    assert three.flushed()["acked"] == 3


def test_gone_costs_no_refusal(three, receiver):
    receiver.behaviour = behaviours.status(410)

    before = three.outbox()
    assert three.flushed()["acked"] == 0
    assert three.outbox() == before


def test_gone_pauses_until_a_person_resumes(three, receiver):
    receiver.script(behaviours.status(410))
    assert three.flushed()["error"] == "http 410"

    row = three.row("SELECT paused, paused_reason FROM sync_outbox_overview()")
    assert (row.paused, row.paused_reason) == (True, "http 410")
    assert three.flushed()["error"] == "paused"
    assert len(receiver.requests) == 1
    three.run("SELECT sync_outbox_resume()")
    assert three.flushed()["acked"] == 3


@pytest.mark.parametrize("code", [411, 414, 416, 418, 426, 428, 431, 451])
def test_other_4xx_blame_no_change(three, receiver, code):
    before = three.outbox()
    receiver.behaviour = behaviours.status(code)

    assert three.flushed()["error"].startswith(f"http {code}")
    assert three.outbox() == before


def test_misdirected_on_a_kept_connection_is_tried_on_a_new_one(three, receiver):
    three.server.set(sync_outbox__batch_rows=1)
    connections = []

    def behaviour(request, wire):
        connections.append(request.connection)
        if len(connections) == 2:
            wire.answer(421)
        else:
            behaviours.ack_all(request, wire)
    receiver.behaviour = behaviour

    assert three.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert connections[0] == connections[1] != connections[2]
    assert receiver.requests[1].text == receiver.requests[2].text


def test_misdirected_on_a_new_connection_is_not_tried_again(three, receiver):
    receiver.behaviour = behaviours.status(421)
    three.flush()
    assert len(receiver.requests) == 1


# 5xx, 429 and the like: try again later

@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 507, 521, 599])
def test_a_target_in_trouble(three, receiver, code):
    receiver.behaviour = behaviours.status(code)
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert answer["error"]
    assert len(receiver.requests) == 1
    for change in three.outbox():
        assert (change.status, change.attempt_count, change.refusals) == ("FAILED", 1, 0)
        assert change.next_attempt_at is None
        assert str(code) in change.error_message
    receiver.behaviour = behaviours.ack_all
    assert three.flushed()["acked"] == 3


def test_a_network_that_wants_a_login_is_offline(three, receiver):
    receiver.behaviour = behaviours.status(511, "<html>please log in</html>", {"Content-Type": "text/html"})

    assert three.flushed()["error"] == "offline"
    assert {change.error_message.split(":")[0] for change in three.outbox()} == {"offline"}


def test_a_captive_portal_is_called_a_web_page(three, receiver):
    receiver.behaviour = behaviours.html
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert "a web page" in answer["error"]
    assert {change.refusals for change in three.outbox()} == {0}
    assert "hotel" not in str(three.outbox())


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_in_seconds(three, receiver, code):
    receiver.script(behaviours.status(code, headers={"Retry-After": "120"}))
    answer = three.flushed()

    wait = datetime.datetime.fromisoformat(answer["retry_at"]) - three.value("SELECT now()")
    assert 100 <= wait.total_seconds() <= 180


def test_retry_after_as_a_date_of_the_targets_clock(three, receiver):
    receiver.script(behaviours.status(503, headers={
        "Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:30:00 GMT"}))
    answer = three.flushed()

    wait = datetime.datetime.fromisoformat(answer["retry_at"]) - three.value("SELECT now()")
    assert 100 <= wait.total_seconds() <= 180


@pytest.mark.parametrize("nonsense", ["1e99", "-5", "tomorrow", "", "99999999999999999999", "Wed, 99 Foo 2015"])
def test_a_senseless_retry_after(three, receiver, nonsense):
    receiver.script(behaviours.status(503, headers={"Retry-After": nonsense}))
    answer = three.flushed()

    if "retry_at" in answer:
        wait = datetime.datetime.fromisoformat(answer["retry_at"]) - three.value("SELECT now()")
        assert wait.total_seconds() <= 3700
    assert three.flushed()["acked"] == 3


# 400, 422 and 413: the batch is to blame, or something in it

@pytest.mark.parametrize("code", [400, 422])
def test_the_poison_change_is_found_and_all_others_are_delivered(sales, receiver, code):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 200) n")
    receiver.behaviour = behaviours.poison(number(137), code)
    answer = sales.flushed()

    assert answer["acked"] == 199
    (change,) = sales.outbox()
    assert change.pk == {"id": 137}
    assert change.status in ("FAILED", "DEAD")
    assert change.refusals == 1
    # Halving: two requests a level, and the rest of the batch.
    assert len(receiver.requests) <= 2 * math.ceil(math.log2(200)) + 4


def test_two_poison_changes(sales, receiver):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 100) n")
    receiver.behaviour = behaviours.poison(lambda change: change["pk"]["id"] in (1, 100))

    assert sales.flushed()["acked"] == 98
    assert set(states(sales)) == {1, 100}


def test_a_receiver_that_calls_everything_bad_is_not_asked_for_ever(sales, receiver, clock):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 64) n")
    receiver.behaviour = behaviours.status(400)
    with clock(10):
        answer = sales.flushed()

    assert answer["acked"] == 0
    assert len(receiver.requests) <= 2 * 64
    assert len(sales.outbox()) == 64


def test_poison_keeps_the_order_of_its_key(sales, receiver):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20) n")
    sales.run("UPDATE sales SET qty = 1")
    keys = sales.keys()
    receiver.behaviour = behaviours.poison(lambda change: change["pk"]["id"] == 5 and change["op"] == "INSERT")
    sales.flush()

    assert [change.op for change in sales.outbox("pk->>'id' = '5'")] == ["INSERT", "UPDATE"]
    assert Ledger(receiver.requests).in_order(keys)
    assert {change.pk["id"] for change in sales.outbox()} == {5}


def test_a_batch_too_large_is_halved(sales, receiver):
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 50) n")
    receiver.behaviour = behaviours.at_most(changes=7)

    assert sales.flush() == '{"ok": true, "pending": 50, "sent": 50, "acked": 50}'
    assert len(Ledger(receiver.requests).rows("sales")) == 50


def test_a_single_change_too_large_does_not_stop_the_others(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 0, ''), (2, 0, repeat('x', 200000)), (3, 0, '')")
    receiver.behaviour = behaviours.at_most(size=10_000)

    assert sales.flushed()["acked"] == 2
    (change,) = sales.outbox()
    assert change.pk == {"id": 2}
    assert "too_large" in change.error_message or "413" in change.error_message
    assert change.status in ("FAILED", "DEAD")


# Large bodies ask first

@pytest.fixture
def large(sales):
    sales.server.set(sync_outbox__batch_bytes="4MB")
    sales.run("INSERT INTO sales SELECT n, 0, repeat('x', 100000) FROM generate_series(1, 20) n")
    return sales


def test_a_large_body_asks_first(large, receiver):
    large.flush()
    assert receiver.requests[0].headers["expect"] == "100-continue"


def test_a_server_that_does_not_know_expect_gets_none(large, receiver):
    def behaviour(request, wire):
        if "expect" in request.headers:
            wire.answer(417)
        else:
            behaviours.ack_all(request, wire)
    receiver.behaviour = behaviour

    assert large.flush() == '{"ok": true, "pending": 20, "sent": 20, "acked": 20}'
