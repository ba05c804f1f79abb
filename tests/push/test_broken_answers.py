"""No answer, or one that is meant to do harm: given up in time and within bounds, and every change is still there."""

import gzip
import json
import socket
import time

import pytest

from support import behaviours


# No answer at all

@pytest.fixture
def impatient(three):
    three.server.set(sync_outbox__request_timeout="700ms", sync_outbox__connect_timeout="500ms")
    return three


def assert_offline(database, answer):
    assert (answer["ok"], answer["acked"], answer["error"]) == (False, 0, "offline")
    for change in database.outbox():
        assert (change.status, change.attempt_count, change.refusals) == ("FAILED", 1, 0)
        assert change.error_message.startswith("offline")
        assert change.last_attempt_at is not None and change.next_attempt_at is None


def test_refused(three, receiver):
    receiver.stop()
    assert_offline(three, three.flushed())


@pytest.mark.parametrize("behaviour", [behaviours.vanish, behaviours.reset], ids=["closed", "reset"])
def test_broken_off(three, receiver, behaviour):
    receiver.behaviour = behaviour
    assert_offline(three, three.flushed())


def test_a_connection_that_idled_and_was_closed_is_tried_once_more(three, receiver):
    """Not the target's trouble: the connection came from the pool, and its end was under way."""
    three.flush()
    receiver.stop()
    receiver.start()
    three.run("INSERT INTO sales VALUES (10)")

    assert three.flush() == '{"ok": true, "pending": 1, "sent": 1, "acked": 1}'


def test_no_such_host(three, clock):
    three.configure(webapp_base_url="https://hub.invalid:1", sync_upload_token="t0ken")
    with clock(15):
        answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(three.outbox()) == 3


def test_a_silent_target_is_given_up_in_time(impatient, receiver, clock):
    receiver.behaviour = receiver.hang
    with clock(3):
        answer = impatient.flushed()
    assert_offline(impatient, answer)


def test_a_dripping_answer_is_given_up_in_time(impatient, receiver, clock):
    receiver.behaviour = behaviours.drip()
    with clock(4):
        answer = impatient.flushed()
    assert_offline(impatient, answer)


def test_an_endless_answer_is_given_up(impatient, receiver, clock):
    receiver.behaviour = behaviours.endless
    with clock(4):
        answer = impatient.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(impatient.outbox()) == 3


def test_a_huge_answer_does_not_fill_the_memory(three, receiver):
    receiver.behaviour = behaviours.huge(300 << 20)
    pid = three.conn.info.backend_pid
    before = peak_memory(pid)
    answer = three.flushed()

    assert answer["acked"] == 0
    assert peak_memory(pid) - before < 64 << 10


def test_a_bomb_is_not_unpacked(three, receiver):
    """What came compressed is no answer, whatever it would unpack to."""
    bomb = gzip.compress(b" " * (200 << 20), 9)
    receiver.behaviour = lambda request, wire: wire.answer(200, bomb, {"Content-Encoding": "gzip"})
    pid = three.conn.info.backend_pid
    before = peak_memory(pid)
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert peak_memory(pid) - before < 64 << 10
    assert all("accept-encoding" not in request.headers for request in receiver.requests)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_an_answer_that_was_compressed_unasked_acks_nothing(three, receiver, encoding):
    def behaviour(request, wire):
        wire.answer(200, gzip.compress(json.dumps({"acked": request.keys}).encode()), {"Content-Encoding": encoding})
    receiver.behaviour = behaviour

    assert three.flushed()["acked"] == 0
    assert len(three.outbox()) == 3


def test_headers_that_drip_are_given_up_in_time(impatient, receiver, clock):
    def behaviour(request, wire):
        wire.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            wire.send(b"X: y\r\n")
            time.sleep(0.1)
    receiver.behaviour = behaviour
    with clock(4):
        answer = impatient.flushed()
    assert_offline(impatient, answer)


def test_one_endless_header_is_given_up(impatient, receiver, clock):
    def behaviour(request, wire):
        wire.send(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            wire.send(b"y" * 65536)
    receiver.behaviour = behaviour
    pid = impatient.conn.info.backend_pid
    before = peak_memory(pid)
    with clock(4):
        answer = impatient.flushed()
    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert peak_memory(pid) - before < 64 << 10


def test_an_error_of_ten_megabytes_with_control_characters(three, receiver):
    receiver.behaviour = behaviours.status(500, b"\x00\x1b[31m\xff\r\nbad " * 1_000_000)
    three.flush()

    for change in three.outbox():
        assert change.error_message.isprintable() and len(change.error_message) <= 2048


def peak_memory(pid):
    """VmHWM in kB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def test_not_http_at_all(three, receiver):
    def garbage(request, wire):
        wire.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        wire.close()
    receiver.behaviour = garbage
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(three.outbox()) == 3


def test_a_flood_of_headers(three, receiver):
    receiver.behaviour = lambda request, wire: wire.answer(200, {"acked": []}, {f"X-{n}": "y" * 200 for n in range(5000)})
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert len(three.outbox()) == 3


# Connections that are closed in one direction

def test_closed_behind_the_request_is_no_answer(three, receiver):
    """A half close: the target will say nothing more, but has not gone."""
    def half_close(request, wire):
        wire.connection.shutdown(socket.SHUT_WR)
        receiver.released.wait()
        wire.close()
    receiver.behaviour = half_close

    assert_offline(three, three.flushed())


def test_an_answer_that_ends_with_a_half_close_counts(three, receiver):
    """Its length is not known before: RFC 9112, 6.3."""
    def until_closed(request, wire):
        wire.answer(200, {"acked": request.keys}, {"Content-Length": None})
        wire.connection.shutdown(socket.SHUT_WR)
        receiver.released.wait()
        wire.close()
    receiver.behaviour = until_closed

    assert three.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'


@pytest.mark.parametrize("length", ["1", "5000", "-1", "x", "2, 3", "18446744073709551616"])
def test_an_answer_whose_length_is_wrong_acks_nothing(three, receiver, length):
    """Too short cuts the JSON off, too long never comes, and what is no length is no HTTP."""
    def mismeasured(request, wire):
        wire.answer(200, {"acked": request.keys}, {"Content-Length": length})
        wire.close()
    receiver.behaviour = mismeasured
    answer = three.flushed()

    assert (answer["ok"], answer["acked"]) == (False, 0)
    assert {change.refusals for change in three.outbox()} == {0}
    receiver.behaviour = behaviours.ack_all
    assert three.flushed()["acked"] == 3
