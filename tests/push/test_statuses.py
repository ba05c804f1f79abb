"""Every status there is, one after the other: the table of the wire, read from outside."""

import pytest

from support import behaviours
from support.wait import wait_for

MISCONFIGURED = ("PENDING", 0, 0)
TOKEN = ("PENDING", 0, 0)
IN_TROUBLE = ("FAILED", 1, 0)
REFUSED = ("FAILED", 1, 1)
# What is left of the change: its status, attempts and refusals.
# A 400 that nothing else gets past is no word on the change: it counts no refusal.
SAYS = {101: MISCONFIGURED, 400: IN_TROUBLE, 422: IN_TROUBLE, 413: REFUSED, 401: TOKEN, 403: TOKEN, 407: TOKEN, 501: MISCONFIGURED, 505: MISCONFIGURED,
        **dict.fromkeys([408, 409, 421, 425, 429], IN_TROUBLE)}


def expected(code):
    """Of an answer without a body. A 1xx is no answer (but for 101, which ends HTTP), and none follows; a 2xx names no key."""
    if code in SAYS:
        return SAYS[code]
    return MISCONFIGURED if 300 <= code < 500 else IN_TROUBLE


@pytest.mark.parametrize("hundred", range(1, 6))
def test_every_status_does_what_the_table_says(sales, receiver, hundred):
    sales.run("INSERT INTO sales VALUES (1, 0)")
    found = {}
    for code in range(100 * hundred, 100 * hundred + 100):
        def answer(request, wire, code=code):
            wire.answer(code)
            wire.close()
        receiver.behaviour = answer
        said = sales.flushed()
        assert (said["ok"], said["acked"]) == (False, 0), code
        (change,) = sales.outbox()
        found[code] = (change.status, change.attempt_count, change.refusals)
        sales.run("UPDATE sync_outbox SET status = 'PENDING', attempt_count = 0, refusals = 0, next_attempt_at = NULL")
        sales.run("SELECT sync_outbox_resume()")

    assert {code: state for code, state in found.items() if state != expected(code)} == {}
    receiver.behaviour = behaviours.ack_all
    wait_for(lambda: sales.flushed()["ok"])
    assert sales.outbox() == []
