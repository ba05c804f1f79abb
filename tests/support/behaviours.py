"""What a receiver can do with a request: functions of (request, wire), and functions that make such."""

import time


# Answers of a receiver that works

def answer(acked=None, errors=None, conflicts=None):
    """Makes a behaviour from choosers: each gets the request's changes and returns what it says about them.

    `acked` and `conflicts` return changes, `errors` pairs of (change, message)."""
    def behaviour(request, wire):
        changes = request.changes
        says = {
            "acked": [change["dedup_key"] for change in (acked(changes) if acked else [])],
            "errors": [{"dedup_key": change["dedup_key"], "error": message}
                       for change, message in (errors(changes) if errors else [])],
            "conflicts": [change["dedup_key"] for change in (conflicts(changes) if conflicts else [])],
        }
        request.applied = says["acked"]
        wire.answer(200, says)
    return behaviour


def ack(wanted):
    """Acks the changes for which `wanted(change)`; says nothing about the others."""
    return answer(acked=lambda changes: [change for change in changes if wanted(change)])


ack_all = ack(lambda change: True)
ack_none = ack(lambda change: False)
ack_half = answer(acked=lambda changes: changes[::2])


def refuse(wanted, message="refused by the hub"):
    """An error for each change for which `wanted(change)`; acks the others."""
    return answer(acked=lambda changes: [change for change in changes if not wanted(change)],
                  errors=lambda changes: [(change, message) for change in changes if wanted(change)])


def conflict(wanted):
    """A conflict for each change for which `wanted(change)`; acks the others."""
    return answer(acked=lambda changes: [change for change in changes if not wanted(change)],
                  conflicts=lambda changes: [change for change in changes if wanted(change)])


# Statuses

def status(code, body="", headers=None):
    """Nothing taken, this status."""
    return lambda request, wire: wire.answer(code, body, headers)


def redirect(location, code=307):
    return status(code, headers={"Location": location})


def poison(wanted, code=422, then=ack_all):
    """The whole batch is refused while a change for which `wanted(change)` is in it."""
    def behaviour(request, wire):
        if any(wanted(change) for change in request.changes):
            wire.answer(code, {"error": "a change in the batch is not acceptable"})
        else:
            then(request, wire)
    return behaviour


def at_most(changes=None, size=None, then=ack_all):
    """413 for more than this many changes or bytes."""
    def behaviour(request, wire):
        if (changes is not None and len(request.changes) > changes) or (size is not None and len(request.raw) > size):
            wire.answer(413, "too large")
        else:
            then(request, wire)
    return behaviour


def require_token(token, then=ack_all):
    """401 without the bearer token."""
    def behaviour(request, wire):
        if request.headers.get("authorization") == f"Bearer {token}":
            then(request, wire)
        else:
            wire.answer(401, {"error": "unauthorized"})
    return behaviour


# Answers that are none. Where the receiver took the changes before it failed, `applied` says so.

def html(request, wire):
    """A captive portal: 200 and a page."""
    wire.answer(200, "<html><body>Welcome to the hotel</body></html>", {"Content-Type": "text/html"})


def broken_json(request, wire):
    wire.answer(200, '{"acked": [')


def truncated(with_length):
    """Applied, but the body ends in the middle; only with a Content-Length can the sender see that."""
    def behaviour(request, wire):
        request.applied = request.keys
        full = '{"acked": ["' + '", "'.join(request.keys) + '"], "errors": [], "conflicts": []}'
        length = f"Content-Length: {len(full)}\r\n" if with_length else ""
        wire.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n{full[:len(full) // 2]}".encode())
        wire.close()
    return behaviour


def vanish(request, wire):
    """Read, not applied, closed without a word."""
    wire.close()


def apply_and_vanish(request, wire):
    """Applied, but the answer is lost: the sender must send again, with the same keys."""
    request.applied = request.keys
    wire.close()


def reset(request, wire):
    wire.reset()


def drip(interval=0.2):
    """A response of one byte per interval, for ever."""
    def behaviour(request, wire):
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            wire.send(b" ")
            time.sleep(interval)
    return behaviour


def endless(request, wire):
    """A body that never ends, at full speed."""
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        wire.send(b" " * 65536)


def huge(size):
    """A body of this many bytes, correctly announced."""
    return lambda request, wire: wire.answer(200, b" " * size)


def slow(seconds, then=ack_all):
    """Thinks for a while first."""
    def behaviour(request, wire):
        time.sleep(seconds)
        then(request, wire)
    return behaviour
