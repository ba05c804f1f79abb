"""Launcher and workers over the life of a server: crash, shutdown, standby, upgrade, too few slots."""

import os
import signal

import pytest

from support.server import Server
from support.wait import wait_for
from support.workers import OURS, reconnected, shop_on, workers
from support.workers import workers

def gone(pid):
    """Has ended, whether or not the process that inherited it has collected it yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_nothing_of_ours_outlives_the_postmaster(new_server, receiver):
    server = new_server(preload=True)
    shop = shop_on(server, receiver)
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    pids = [row.pid for row in shop.rows("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'sync_outbox%'")]
    assert len(pids) == 2

    server.kill9()
    wait_for(lambda: all(gone(pid) for pid in pids), 5, "launcher and worker gone")


def test_fast_shutdown_does_not_wait_for_a_request(new_server, receiver, clock):
    server = new_server(preload=True)
    shop = shop_on(server, receiver)
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)

    with clock(1):
        server.stop("fast")
    server.start()
    receiver.wait_for_requests(2)
    assert receiver.requests[0].keys == receiver.requests[1].keys


@pytest.mark.expects_log("was terminated by signal 9")
def test_the_worker_comes_back_after_a_crash(new_server, receiver):
    server = new_server(preload=True)
    shop = shop_on(server, receiver)
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)

    os.kill(workers(shop)[0], signal.SIGKILL)
    receiver.wait_for_requests(2)
    assert receiver.requests[0].keys == receiver.requests[1].keys
    wait_for(lambda: reconnected(shop).outbox() == [])


def test_invariant_23_a_backlog_is_found_at_start(new_server, receiver):
    server = new_server(preload=True, settings={"sync_outbox.interval": "1h"})
    shop = shop_on(server, receiver)
    server.set(sync_outbox__enabled="off")
    wait_for(lambda: workers(shop) == [])
    shop.run("INSERT INTO sales VALUES (1, 0)")
    shop.close()
    server.write_settings({"sync_outbox.enabled": "on"})
    server.set(sync_outbox__enabled=None)
    server.restart()

    receiver.wait_for_requests(1)


def test_a_standby_is_silent_and_sends_once_promoted(run, new_server, receiver):
    primary = new_server(preload=True)
    shop = shop_on(primary, receiver)
    receiver.stop()
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox("status = 'FAILED'"))
    data = run.directory(f"{primary.name}_standby")
    run.call("pg_basebackup", "-D", data, "-d", primary.dsn(), "-R", "-X", "stream", "-c", "fast")
    standby = Server(run, f"{primary.name}_standby", preload=True, data=data).start()
    assert standby.value(OURS) == 0

    shop.close()
    primary.stop()
    receiver.start()
    assert standby.value("SELECT pg_promote()")
    receiver.wait_for_requests(1)
    standby.stop()


def test_nothing_runs_during_a_binary_upgrade(new_server, receiver):
    server = new_server(preload=True)
    shop_on(server, receiver).close()
    server.stop()
    server.start("-b")

    assert server.value(OURS) == 0
    assert server.value("SELECT current_setting('shared_preload_libraries')") == "sync_outbox"


def test_workers_make_room_for_each_other(new_server, receiver):
    """Slots for the launcher of logical replication, our launcher, and one worker."""
    server = new_server(preload=True, settings={"max_worker_processes": "3", "sync_outbox.interval": "1h"})
    shops = [shop_on(server, receiver) for _ in range(3)]
    for sale, shop in enumerate(shops):
        shop.run("INSERT INTO sales VALUES (%s, 0)", [sale])

    wait_for(lambda: all(shop.outbox() == [] for shop in shops))
    assert len(server.log.matches("no background worker slot is free")) == 1
    assert not server.log.matches("FATAL")


def test_without_a_slot_the_launcher_waits(new_server, receiver):
    server = new_server(preload=True, settings={"max_worker_processes": "2"})
    shop = shop_on(server, receiver)
    shop.run("INSERT INTO sales VALUES (1, 0)")

    wait_for(lambda: server.log.matches("no background worker slot is free"))
    assert server.value(OURS) == 1
    assert not server.log.matches("FATAL")
