"""What happens again and again while very many changes of a target wait for a person does not keep it from sending:
calls of administration, and the timer."""

import threading
import time

import pytest

from support.queued import with_dead
from support.wait import wait_for
from support.workers import settled


@pytest.mark.parametrize("call", ["COMMIT PREPARED", "SELECT sync_outbox_resume('other')"])
def test_administration_does_not_keep_a_target_from_sending(live, receiver, call):
    """Each such call has every sender look at everything, which takes longer than it takes until the next one."""
    with_dead(live, receiver, 90_000)
    live.server.set(sync_outbox__interval="1h")
    live.run("INSERT INTO sales VALUES (1000000)")
    left = "SELECT count(*) FROM sync_outbox WHERE status <> 'DEAD'"
    wait_for(lambda: receiver.changes and live.value(left) == 0, 30)
    settled(live, 30)
    live.run("CREATE TABLE other (id int)")
    live.run("SELECT sync_outbox_target_set('other', '{\"base_url\": \"http://127.0.0.1:1\"}')")
    stop, count = threading.Event(), []

    def go_on():
        with live.session() as session:
            while not stop.wait(0.1):
                if call == "COMMIT PREPARED":
                    session.execute("BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other'")
                    session.execute("COMMIT PREPARED 'other'")
                else:
                    session.execute(call)
                count.append(1)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        wait_for(lambda: len(count) > 5, 10)
        began = time.monotonic()
        sent = len(receiver.changes)
        live.run("INSERT INTO sales VALUES (1000001)")
        wait_for(lambda: len(receiver.changes) > sent, 20)
        print("sent after", time.monotonic() - began, len(count))
    finally:
        stop.set()
        thread.join()


def test_a_look_that_takes_longer_than_a_step_comes_to_an_end(live, receiver):
    """Every `interval` everything is looked at: the look must not begin anew at each of its own steps."""
    with_dead(live, receiver, 90_000)
    live.server.set(sync_outbox__interval="1s")
    for n in range(3):
        time.sleep(2)  # nothing shows that a look has begun because its time had come
        began, sent = time.monotonic(), len(receiver.changes)
        live.run("INSERT INTO sales VALUES (%s)", [1_000_000 + n])
        wait_for(lambda: len(receiver.changes) > sent, 20)
        print(time.monotonic() - began)
        assert time.monotonic() - began < 3
