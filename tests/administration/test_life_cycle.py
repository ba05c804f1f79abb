"""What happens to the outbox, its tables and its database while changes wait or are being sent: none lost, none made
up."""

import threading
import time

import pytest

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for
from support.workers import reconnected, shop_on, workers


slowly = behaviours.slow(0.05)  # so that something can happen meanwhile


def ledger_is_clean(receiver, keys):
    ledger = Ledger(receiver.requests)
    assert ledger.lost(keys) == set()
    assert ledger.phantom(keys) == set()
    assert ledger.in_order(keys)
    return ledger


# Maintenance of the outbox while it drains

@pytest.mark.parametrize("command", [
    "VACUUM FULL sync_outbox", "REINDEX TABLE sync_outbox", "REINDEX TABLE CONCURRENTLY sync_outbox",
    "CLUSTER sync_outbox USING sync_outbox_pkey", "VACUUM sync_outbox", "ANALYZE sync_outbox",
    "ALTER TABLE sync_outbox SET (fillfactor = 90)", "ALTER TABLE sync_outbox ADD COLUMN extra int"])
def test_maintenance_while_draining(sales, receiver, command):
    sales.server.set(sync_outbox__batch_rows=50)
    receiver.behaviour = slowly
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 1000) n")
    sales.run("UPDATE sales SET qty = 1 WHERE id % 2 = 0")
    keys = sales.keys()
    drain = threading.Thread(target=sales.session().execute, args=["CALL sync_outbox_drain()"], daemon=True)
    drain.start()
    receiver.wait_for_requests(2)
    for _ in range(3):
        sales.run(command.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
    drain.join(60)
    assert not drain.is_alive()

    assert sales.outbox() == []
    ledger = ledger_is_clean(receiver, keys)
    assert len(ledger.arrived) == 1500


def test_truncate_of_the_outbox_while_draining_gives_up_what_is_in_it_and_nothing_else(sales, receiver):
    """A superuser's word: what has not gone out is gone, what is written afterwards is sent."""
    sales.server.set(sync_outbox__batch_rows=50)
    receiver.script(receiver.hang)
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 500) n")
    before = sales.keys()
    drain = threading.Thread(target=sales.session().execute, args=["CALL sync_outbox_drain()"], daemon=True)
    drain.start()
    receiver.wait_for_requests(1)
    sales.run("TRUNCATE sync_outbox")
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(501, 600) n")
    after = sales.keys()
    receiver.released.set()
    drain.join(60)
    assert not drain.is_alive()
    sales.flush()

    assert sales.outbox() == []
    ledger = Ledger(receiver.requests)
    assert ledger.lost(after) == set()
    assert ledger.phantom(before + after) == set()


# Tables and the extension

def test_drop_of_an_attached_table_keeps_what_was_captured(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 1), (2, 2)")
    sales.run("DROP TABLE sales")
    assert sales.rows("SELECT * FROM sync_outbox_attached") == []
    assert [row.total for row in sales.rows("SELECT total FROM sync_outbox_stats()")] == [2]

    assert sales.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'
    sales.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    sales.run("INSERT INTO sales VALUES (3, 3)")
    assert sales.outbox() == []
    sales.attach("sales")
    sales.run("INSERT INTO sales VALUES (4, 4)")
    assert sales.flushed()["acked"] == 1


def test_drop_extension_with_changes_waiting_and_a_new_one_starts_from_nothing(shop, receiver):
    receiver.stop()
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox("status = 'FAILED'"))
    before = shop.value("SELECT source FROM sync_outbox_identity")
    shop.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE")
    wait_for(lambda: workers(shop) == [])
    shop.run("INSERT INTO sales VALUES (2, 0)")

    receiver.start()
    shop.run("CREATE EXTENSION sync_outbox")
    shop.aim(receiver)
    shop.attach("sales")
    shop.run("INSERT INTO sales VALUES (3, 0)")
    wait_for(lambda: shop.outbox() == [])
    assert [change["data"]["id"] for request in receiver.requests for change in request.changes] == [3]
    assert shop.value("SELECT source FROM sync_outbox_identity") != before


def test_invariant_10_drop_and_create_again_and_again_while_writers_write(shop, receiver):
    for round in range(5):
        shop.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series({round * 100 + 1}, {round * 100 + 50}) n")
        shop.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE")
        shop.run("CREATE EXTENSION sync_outbox")
        shop.aim(receiver)
        shop.attach("sales")
    shop.run("INSERT INTO sales VALUES (10000, 0)")
    keys = shop.keys()
    wait_for(lambda: shop.outbox() == [])
    assert Ledger(receiver.requests).lost(keys) == set()
    assert len(workers(shop)) == 1


# Databases

def test_a_renamed_database_goes_on_as_the_same_source(shop, receiver):
    receiver.stop()
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox("status = 'FAILED'"))
    name = shop.name
    shop.close()
    with shop.server.connect() as admin:
        admin.execute(f"ALTER DATABASE {name} RENAME TO {name}_renamed")
        receiver.start()
        admin.execute(f"ALTER DATABASE {name}_renamed RENAME TO {name}")
    reconnected(shop).run("SELECT sync_outbox_requeue()")
    wait_for(lambda: shop.outbox() == [])


def test_invariant_23_the_launcher_discovers_every_database_after_a_restart(new_server, receiver):
    """`invariants` 23: it sees no extension and no queue; it has to look into each database."""
    server = new_server(preload=True, settings={"sync_outbox.interval": "1h", "sync_outbox.enabled": "off"})
    shops = [shop_on(server, receiver) for _ in range(4)]
    for sale, each in enumerate(shops):
        each.run("INSERT INTO sales VALUES (%s, 0)", [sale])
        each.close()
    bare = server.create_database()
    bare.close()
    with server.connect() as admin:
        admin.execute("CREATE DATABASE closed")
        admin.execute("ALTER DATABASE closed ALLOW_CONNECTIONS false")
    server.write_settings({"sync_outbox.enabled": "on"})
    server.stop()
    position = server.log.position()
    server.start()

    receiver.wait_for_requests(4)
    wait_for(lambda: all(reconnected(each).outbox() == [] for each in shops))
    assert not server.log.matches("FATAL", position)


# Prepared transactions

@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_invariant_12_prepared_transactions_over_a_restart(new_server, receiver, mode):
    """What is prepared is neither sent nor forgotten, and keeps its place in the order of its key."""
    server = new_server(preload=True)
    shop = shop_on(server, receiver)
    shop.run("INSERT INTO sales VALUES (1, 0), (2, 0)")
    wait_for(lambda: shop.outbox() == [])
    for name, key in (("kept", 1), ("given_up", 2)):
        shop.run(f"BEGIN; UPDATE sales SET qty = 10 WHERE id = {key}; PREPARE TRANSACTION '{name}'")
    shop.run("INSERT INTO sales VALUES (3, 0)")
    wait_for(lambda: shop.outbox() == [])
    shop.close()
    server.restart(mode)
    reconnected(shop).run("INSERT INTO sales VALUES (4, 0)")
    wait_for(lambda: shop.outbox() == [])
    requests = len(receiver.requests)

    shop.run("COMMIT PREPARED 'kept'")
    shop.run("UPDATE sales SET qty = 11 WHERE id = 1")
    shop.run("ROLLBACK PREPARED 'given_up'")
    shop.run("UPDATE sales SET qty = 12 WHERE id = 2")
    wait_for(lambda: shop.outbox() == [] and Ledger(receiver.requests).rows("sales")[:2] == [
        {"id": 1, "qty": 11}, {"id": 2, "qty": 12}])
    after = [change["data"] for request in receiver.requests[requests:] for change in request.changes]
    assert sorted(after, key=lambda data: data["qty"]) == [{"qty": 10}, {"qty": 11}, {"qty": 12}]


# Truncate when empty (`invariants` 25)

def test_invariant_25_truncate_when_empty_against_writers(shop, receiver):
    """Writers that commit and roll back while the outbox becomes empty, and is truncated, over and over."""
    # Only a look from the head on can say that the outbox is empty.
    shop.server.set(sync_outbox__interval="100ms")
    shop.run("ALTER TABLE sales ADD COLUMN note text")
    outbox = "SELECT pg_relation_filenode('sync_outbox')"
    files = {shop.value(outbox)}
    kept = []
    for round in range(4):
        # More than the 16 MB above which it is worth it.
        shop.run(f"INSERT INTO sales SELECT n, 0, (SELECT string_agg(md5(n * i || ''), '')"
                 f" FROM generate_series(1::bigint, 60) i) FROM generate_series({round}00001, {round}12000) n")
        sessions = [shop.session(autocommit=False) for _ in range(3)]
        stop = threading.Event()

        def write(session, base):
            n = base
            while not stop.is_set():
                n += 1
                session.execute("INSERT INTO sales VALUES (%s, 1)", [n])
                if n % 3:
                    session.commit()
                    kept.append(n)
                else:
                    session.rollback()
        threads = [threading.Thread(target=write, args=[session, (round * 3 + i + 1) * 10_000_000], daemon=True)
                   for i, session in enumerate(sessions)]
        for thread in threads:
            thread.start()
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") < 100, 60)
        so_far = len(kept)
        wait_for(lambda: len(kept) > so_far + 100, 20)
        stop.set()
        for thread in threads:
            thread.join(10)
        for session in sessions:
            session.close()
        wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0, 60)
        # A session that ends on an empty outbox truncates it.
        for more in range(20):
            shop.run(f"INSERT INTO sales VALUES (-{round * 100 + more + 1}, 2)")
            wait_for(lambda: shop.value("SELECT count(*) FROM sync_outbox") == 0)
            if shop.value(outbox) not in files:
                break
            time.sleep(0.2)  # so that the session has ended before the next change comes
        files.add(shop.value(outbox))
    rows = {row["id"] for row in Ledger(receiver.requests).rows("sales")}
    assert rows == {row.id for row in shop.rows("SELECT id FROM sales")}
    assert set(kept) <= rows
    assert len(files) > 1, "it was never truncated"
