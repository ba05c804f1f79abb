"""The server dies, wholly or in part, and comes back."""

import pathlib
import time

from ..wait import wait_for


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
    children = _children(stand.server.process.pid)
    stand.server.kill9()
    # While one of its children is left the shared memory is in use, and no other postmaster starts.
    wait_for(lambda: not any(_command(pid) for pid in children), 20,
             lambda: f"the postmaster's children gone; left are {[_command(pid) for pid in children if _command(pid)]}")
    stand.server.start()


def _children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid):
    """Of a process that has not ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def immediate_stop(stand, rng):
    """immediate shutdown and start"""
    stand.server.restart("immediate")


def immediate_stop_twice(stand, rng):
    """immediate shutdown, and again while it recovers or has just begun"""
    stand.server.restart("immediate")
    time.sleep(rng.random() * 0.5)
    stand.server.restart("immediate")


def hub_database_stops(stand, rng):
    """immediate shutdown of the hub's database, and start"""
    stand.more.server.restart("immediate")


def fast_restart(stand, rng):
    """fast shutdown and start"""
    began = time.monotonic()
    stand.server.stop("fast")
    took = time.monotonic() - began
    if took > 10:
        stand.findings.append(f"fast shutdown took {took:.1f} s")
    stand.server.start()
