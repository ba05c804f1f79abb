"""The server dies, wholly or in part, and comes back."""

import time


def kill_worker(stand, rng):
    """kill -9 of the worker"""
    stand.kill9(stand.worker())


def kill_launcher(stand, rng):
    """kill -9 of the launcher"""
    stand.kill9(stand.pids("sync_outbox launcher")[0])


def kill_writer(stand, rng):
    """kill -9 of a writer's backend"""
    stand.kill9(rng.choice(stand.pids("client backend", "writer%")))


def kill_pusher(stand, rng):
    """kill -9 of a backend that flushes or drains"""
    stand.kill9(rng.choice(stand.pids("client backend", "pusher%")))


def kill_postmaster(stand, rng):
    """kill -9 of the postmaster"""
    stand.server.kill9()
    # Until the last of its children has noticed, the shared memory is in use and no other postmaster may start.
    for _ in range(100):
        try:
            return stand.server.start()
        except AssertionError:
            time.sleep(0.1)
    raise AssertionError("no server starts after kill -9 of the postmaster")


def immediate_stop(stand, rng):
    """immediate shutdown and start"""
    stand.server.restart("immediate")


def immediate_stop_twice(stand, rng):
    """immediate shutdown, and again while it recovers or has just begun"""
    stand.server.restart("immediate")
    time.sleep(rng.random() * 0.5)
    stand.server.restart("immediate")


def fast_restart(stand, rng):
    """fast shutdown and start"""
    began = time.monotonic()
    stand.server.stop("fast")
    took = time.monotonic() - began
    if took > 10:
        stand.findings.append(f"fast shutdown took {took:.1f} s")
    stand.server.start()
