"""The tests' own tools: a ledger that would miss a lost change proves nothing."""

import http.client
import json

import pytest

from support import behaviours
from support.ledger import Ledger
from support.receiver import Request


def change(key, op, pk, data=None):
    return {"schema": "public", "table": "t", "op": op, "pk": {"id": pk}, "data": data, "dedup_key": key}


def request(changes, applied=None):
    raw = json.dumps({"changes": changes}).encode()
    made = Request(0, 1, "POST", "/", {}, raw)
    made.applied = [each["dedup_key"] for each in changes] if applied is None else applied
    return made


def post(receiver, changes):
    client = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=5)
    client.request("POST", "/upload", json.dumps({"changes": changes}), {"Authorization": "Bearer t0ken"})
    answer = client.getresponse()
    return answer.status, answer.read()


def test_the_ledger_follows_inserts_updates_key_changes_and_deletes():
    ledger = Ledger([
        request([change("a", "INSERT", 1, {"id": 1, "v": "x"}), change("b", "INSERT", 2, {"id": 2, "v": "y"})]),
        request([change("c", "UPDATE", 1, {"id": 5}), change("d", "UPDATE", 5, {"v": "z"}), change("e", "DELETE", 2)])])

    assert ledger.rows("t") == [{"id": 5, "v": "z"}]


def test_the_ledger_counts_by_key():
    first = request([change("a", "INSERT", 1, {"id": 1})], applied=[])
    again = request([change("a", "INSERT", 1, {"id": 1}), change("x", "INSERT", 3, {"id": 3})], applied=["a"])
    ledger = Ledger([first, again])

    assert ledger.lost(["a", "b"]) == {"b"}
    assert ledger.phantom(["a", "b"]) == {"x"}
    assert ledger.duplicated() == {"a"}


def test_the_ledger_sees_changes_of_one_row_turned_around():
    turned = [request([change("b", "UPDATE", 1, {"v": 2}), change("a", "INSERT", 1, {"id": 1, "v": 1})])]

    assert not Ledger(turned).in_order(["a", "b"])
    assert Ledger(turned).in_order(["b", "a"])


def test_the_receiver_acks_half(receiver):
    receiver.behaviour = behaviours.ack_half

    status, answer = post(receiver, [change(key, "INSERT", key) for key in "abcd"])

    assert status == 200 and json.loads(answer)["acked"] == ["a", "c"]
    assert receiver.requests[0].headers["authorization"] == "Bearer t0ken"


def test_the_receiver_follows_a_script(receiver):
    receiver.script(behaviours.status(503), behaviours.html)

    statuses = [post(receiver, [])[0] for _ in range(3)]

    assert statuses == [503, 200, 200]


@pytest.mark.parametrize("behaviour", [behaviours.vanish, behaviours.reset])
def test_the_receiver_breaks_off(receiver, behaviour):
    receiver.behaviour = behaviour

    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        post(receiver, [])


def test_the_receiver_comes_back_on_its_port(receiver):
    receiver.stop()
    with pytest.raises(ConnectionRefusedError):
        post(receiver, [])

    receiver.start()

    assert post(receiver, [])[0] == 200
