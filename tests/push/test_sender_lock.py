"""One sender at a time for a target: who has the turn is shown, and hands it on when something goes wrong."""

from support import behaviours
from support.wait import wait_for


def test_defect_14_the_overview_names_who_keeps_the_turn(shop, receiver):
    shop.run("INSERT INTO sales VALUES (1, 0)")
    wait_for(lambda: shop.outbox() == [])
    with shop.session(autocommit=False) as flusher:
        flusher.execute("SELECT sync_outbox_flush()")
        pid = flusher.execute("SELECT pg_backend_pid()").fetchone()[0]
        began = flusher.execute("SELECT now()").fetchone()[0]
        assert shop.rows("SELECT sender_pid, sender_since FROM sync_outbox_overview()") == [(pid, began)]
        shop.run("INSERT INTO sales VALUES (2, 0)")
        assert len(receiver.requests) == 1
    wait_for(lambda: shop.outbox() == [])


def test_an_error_while_a_request_is_out_does_not_send_without_the_lock(prioritised, receiver):
    prioritised.server.set(sync_outbox__batch_rows="1")
    receiver.behaviour = behaviours.slow(1.5)
    prioritised.run("INSERT INTO urgent SELECT g, 0 FROM generate_series(1, 20) g")
    receiver.wait_for_requests(1)
    # Something goes wrong where the worker looks around, for a moment.
    prioritised.run("ALTER TABLE sync_outbox_target RENAME COLUMN ca_file TO ca_file_")
    position = prioritised.server.log.position()
    prioritised.server.set(sync_outbox__interval="1h")  # reload: it looks around
    wait_for(lambda: prioritised.server.log.matches("ca_file", position))
    prioritised.run("ALTER TABLE sync_outbox_target RENAME COLUMN ca_file_ TO ca_file")
    wait_for(lambda: len(receiver.requests) >= 3, 20)
    held = prioritised.value("SELECT count(*) FROM pg_locks WHERE locktype = 'object'"
                             " AND classid = 'sync_outbox'::regclass"
                      " AND granted AND mode = 'ExclusiveLock'")
    assert held == 1


def test_a_flush_that_gets_through_sets_a_waiting_worker_going_again(prioritised, receiver):
    prioritised.server.set(sync_outbox__retry_interval="60s")
    receiver.stop()
    prioritised.run("INSERT INTO urgent VALUES (1, 0)")
    wait_for(lambda: prioritised.value("SELECT count(*) FROM sync_outbox_target_state WHERE consecutive_failures > 0"))
    prioritised.run("INSERT INTO urgent VALUES (2, 0)")
    receiver.start()
    assert prioritised.flushed()["acked"] == 2
    prioritised.run("INSERT INTO urgent VALUES (3, 0)")
    wait_for(lambda: prioritised.value("SELECT count(*) FROM sync_outbox") == 0, 5)
