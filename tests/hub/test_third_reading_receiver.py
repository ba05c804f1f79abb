"""A hostile reader at the example receiver."""

import json
import threading
import time

from test_example_receiver import PATH, TOKEN, Example, body, insert, new_example, raw  # noqa: F401

MB = 1 << 20


def test_a_bad_body_of_one_store_does_not_stop_the_others(new_example):  # noqa: F811
    """What is wrong is told with all 30 MB of it: in the database's log, in the receiver's, and in the answer."""
    example = new_example()
    bad = json.dumps({"changes": [insert(1) | {"dedup_key": "\u00e9" * (5 * MB)}]})
    assert len(bad) < 32 * MB
    done = []
    thread = threading.Thread(target=lambda: done.append(example.post(bad)[0]))
    before = len(example.said())
    thread.start()
    slowest, began = 0, time.monotonic()
    while thread.is_alive():
        at = time.monotonic()
        connection = example.connect()
        connection.request("GET", "/")
        connection.getresponse().read()
        slowest = max(slowest, time.monotonic() - at)
    print("status", done, "took", time.monotonic() - began, "slowest other", slowest, "log MB", (len(example.said()) - before) / MB)
    assert len(example.said()) - before < 100_000 and slowest < 1
