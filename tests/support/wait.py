"""Waiting for something observable: the only place where a test sleeps."""

import time


def wait_for(predicate, deadline=10.0, what=None):
    """Polls until `predicate()` is true and returns its value; fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            what = what() if callable(what) else what
            raise AssertionError(f"not within {deadline} s: {what or getattr(predicate, '__doc__', None) or 'the awaited state'}")
        time.sleep(0.01)
