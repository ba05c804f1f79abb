"""The hub and the way to it: each fault lasts a while, then all is well again."""

import time
from email.utils import formatdate


def behaving(name, how, **more):
    def fault(stand, rng):
        stand.hub.behave(how, **more)
        time.sleep(rng.uniform(0.5, 1.5))
        stand.hub.behave()
    fault.__doc__ = name
    return fault


def dying(name, how):
    def fault(stand, rng):
        stand.hub.behave(how)
        try:
            stand.hub.process.wait(3)
        except Exception:
            stand.hub.kill9()  # nothing came that could have killed it
        time.sleep(rng.uniform(0.1, 0.8))
        stand.hub.behave()
        stand.hub.start()
    fault.__doc__ = name
    return fault


def status(code, **headers):
    return behaving(f"status {code}", "status", status=code, headers=headers or None)


def any_status(stand, rng):
    """any status from 100 to 599"""
    status(rng.randint(100, 599))(stand, rng)
    stand.run("SELECT sync_outbox_resume(name) FROM sync_outbox_target")  # a 410 has paused the target


def any_retry_after(stand, rng):
    """503 with Retry-After in any form"""
    now = time.time()
    soon = time.gmtime(now + 2)
    form = rng.choice(["0", "1", "+1", "-5", "1.5", "", "soon", "9" * 40, formatdate(now - 3600, usegmt=True),
                       formatdate(now + 2, usegmt=True), time.strftime("%A, %d-%b-%y %H:%M:%S GMT", soon), time.asctime(soon)])
    headers = {"Retry-After": form, **({"Date": formatdate(now, usegmt=True)} if rng.random() < 0.5 else {})}
    status(503, **headers)(stand, rng)


FAULTS = [
    any_status, any_retry_after,
    behaving("refused", "refused"),
    behaving("reset at once", "reset before", read=0),
    behaving("reset in the head", "reset before", read=60),
    behaving("reset in the body", "reset before", read=1500),
    behaving("reset after reading", "reset after reading"),
    behaving("reset, changes taken", "take and reset"),
    behaving("reset in the answer", "reset in the answer"),
    behaving("reset behind the answer", "reset after the answer"),
    behaving("closed, nothing taken", "vanish"),
    behaving("closed, changes taken", "take and vanish"),
    behaving("black hole", "early silence"),
    behaving("silent, nothing taken", "silent"),
    behaving("silent, changes taken", "take and be silent"),
    behaving("drips for ever, nothing taken", "drip"),
    behaving("drips for ever, changes taken", "take and drip"),
    behaving("endless at full speed, changes taken", "take and never end"),
    behaving("the answer in small pieces", "ack in pieces"),
    behaving("half closed, nothing taken", "half close"),
    behaving("half closed, changes taken", "take and half close"),
    behaving("Content-Length too small, changes taken", "wrong length", off=-20),
    behaving("Content-Length too large, changes taken", "wrong length", off=20),
    behaving("flood of headers, changes taken", "header flood"),
    behaving("gzip bomb", "gzip bomb"),
    behaving("500 with 10 MB of control characters", "long error"),
    behaving("slow", "ack in time", delay=0.4),
    behaving("slower than request_timeout", "ack in time", delay=1.2),
    behaving("401, another token wanted", "ack", token="another"),
    behaving("401 before the body is read", "early status", status=401),
    behaving("413 before the body is read", "early status", status=413),
    status(400), status(403), status(404), status(408), status(409), status(413), status(429), status(500),
    status(502), status(503), status(504),
    behaving("429 with Retry-After", "status", status=429, headers={"Retry-After": "1"}),
    behaving("503 with a senseless Retry-After", "status", status=503, headers={"Retry-After": "1e99"}),
    behaving("200 with HTML", "html"),
    behaving("200 with broken JSON", "broken json"),
    behaving("200 that mentions nothing", "nothing mentioned"),
    behaving("half of the keys acked", "half"),
    behaving("foreign and repeated keys acked", "strange acks"),
    behaving("poison: 422 while it is in the batch", "poison"),
    behaving("changes refused", "refuse"),
    behaving("changes in conflict", "conflict"),
    dying("killed before it wrote", "die before it is written"),
    dying("killed after it wrote, before it answered", "die after it is written"),
    dying("killed in the answer", "die in the answer"),
]
