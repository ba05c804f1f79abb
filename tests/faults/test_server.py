"""What happens to the server as a whole: transaction ids that wrap around, clocks that jump, commits that vanish."""

import pathlib

import pytest

from support.ledger import Ledger
from support.run import own
from support.stand import SETTINGS, Stand
from support.wait import wait_for
from support.workers import reconnected, shop_on

FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def advance(run, server, xid):
    """Freezes everything, and goes on with this transaction id."""
    with server.connect("template1") as session:
        session.execute("UPDATE pg_database SET datallowconn = true")
        for (name,) in session.execute("SELECT datname FROM pg_database").fetchall():
            with server.connect(name) as each:
                each.execute("VACUUM FREEZE")
    server.stop("fast")
    run.call("pg_resetwal", "-x", xid, server.data)
    # PostgreSQL expects the page of the commit log that the id stands on.
    segment = server.data / "pg_xact" / f"{xid // (8192 * 4 * 32):04X}"
    segment.write_bytes(bytes(262144))
    segment.chmod(0o600)
    own(segment)
    server.start()


def test_transaction_ids_wrap_around_under_load(run, new_server, receiver):
    """Ids are compared with their epoch: what was captured before the wraparound goes before what was captured after it."""
    server = new_server(preload=True)
    shop = shop_on(server, receiver)
    for xid in (2_000_000_000, 4_000_000_000, 2 ** 32 - 300):
        shop.close()
        advance(run, server, xid)
    reconnected(shop)
    assert shop.value("SELECT pg_current_xact_id()::text::bigint") < 2 ** 32
    receiver.stop()
    for sale in range(400):
        shop.run("INSERT INTO sales VALUES (%s, 0)", [sale])
    assert shop.value("SELECT pg_current_xact_id()::text::bigint") > 2 ** 32
    keys = shop.keys()
    assert len({change.txid for change in shop.outbox()}) == 400
    receiver.start()
    for sale in range(400):
        shop.run("UPDATE sales SET qty = 1 WHERE id = %s", [sale])

    wait_for(lambda: shop.outbox() == [], 30)
    ledger = Ledger(receiver.requests)
    assert ledger.lost(keys) == set()
    assert [row["qty"] for row in ledger.rows("sales")] == [1] * 400


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
@pytest.mark.parametrize("jump", ["+1h", "-1h"])
def test_the_clock_jumps(new_server, receiver, tmp_path, jump):
    """Waits are bounded whatever the clock says: a change is delivered soon after the target is back."""
    for directory in [tmp_path, *tmp_path.parents[:3]]:
        directory.chmod(directory.stat().st_mode | 0o111)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    clock.chmod(0o644)
    # Behind the change of user: the library shares its state with whoever has loaded it first.
    server = new_server(preload=True, settings={"sync_outbox.retry_max_interval": "1s"}, through=[
        "env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
    shop = shop_on(server, receiver)
    receiver.stop()
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox("status = 'FAILED'"))
    before = shop.value("SELECT extract(epoch FROM clock_timestamp())::int")
    clock.write_text(jump)
    assert abs(shop.value("SELECT extract(epoch FROM clock_timestamp())::int") - before) > 3000
    shop.run("INSERT INTO sales VALUES (2, 0)")
    receiver.start()

    wait_for(lambda: shop.outbox() == [], 20, "an empty outbox")
    assert [change["pk"]["id"] for change in receiver.changes] == [1, 2]


def test_invariant_13_commits_that_vanish_in_a_crash_were_not_sent(new_server, tmp_path):
    """Writers do not wait for the disk, and the server is stopped at once, ten times over."""
    server = new_server(preload=True, settings=SETTINGS)
    with Stand(server, tmp_path, seed=3, pushers=False, writers=("hasty", "hasty", "hasty"), pause=0.1) as stand:
        for _ in range(10):
            written, arrived = stand.load.counted, len(stand.hub.requests())
            wait_for(lambda: stand.load.counted > written + 100 and len(stand.hub.requests()) > arrived, 20, "requests under load")
            server.restart("immediate")
            stand.wait_until_open()
        stand.disturbed(0)
        verdict = stand.proven()

    assert verdict.writers.changes["kept"] > 100
