"""Sessions are interrupted, the outbox is locked and rewritten, settings change: what people and DBAs do on a busy day."""

import time

import psycopg

from ..database import TOKEN


def interrupt(stand, function, pids):
    for pid in pids:
        stand.run(f"SELECT {function}(%s)", [pid])


def terminate_worker(stand, rng):
    """pg_terminate_backend(worker)"""
    interrupt(stand, "pg_terminate_backend", [stand.worker()])


def cancel_worker(stand, rng):
    """pg_cancel_backend(worker)"""
    interrupt(stand, "pg_cancel_backend", [stand.worker()])


def terminate_pushers(stand, rng):
    """pg_terminate_backend(flush and drain)"""
    interrupt(stand, "pg_terminate_backend", stand.pids("client backend", "pusher%"))


def cancel_pushers(stand, rng):
    """pg_cancel_backend(flush and drain)"""
    interrupt(stand, "pg_cancel_backend", stand.pids("client backend", "pusher%"))


def flush_timed_out(stand, rng):
    """flush under a statement_timeout"""
    with stand.session() as session:
        session.execute(f"SET statement_timeout = '{rng.randint(5, 300)}ms'")
        try:
            session.execute("SELECT sync_outbox_flush()")
        except psycopg.errors.QueryCanceled:
            pass


def flush_rolled_back(stand, rng):
    """flush in a transaction that is rolled back"""
    with stand.session(autocommit=False) as session:
        session.execute("SELECT sync_outbox_flush()")
        session.rollback()


def terminate_writer(stand, rng):
    """pg_terminate_backend(a writer)"""
    interrupt(stand, "pg_terminate_backend", [rng.choice(stand.pids("client backend", "writer%"))])


def writer_vanishes(stand, rng):
    """a writer's client is gone without a word"""
    rng.choice(stand.load.writers).vanish()


def other_batches(stand, rng):
    """reload: another batch size, compression"""
    stand.server.set(sync_outbox__batch_rows=rng.choice([1, 3, 20, 200, 1000, 5000]),
                     sync_outbox__batch_bytes=f"{rng.choice([4, 64, 1024])}kB", sync_outbox__compression=rng.choice(["on", "off"]))
    time.sleep(1)
    stand.server.set(sync_outbox__batch_rows=500, sync_outbox__batch_bytes="1MB")


def other_target(stand, rng):
    """another URL, with its token"""
    stand.aim(rng.choice(stand.hub.urls))


def other_token(stand, rng):
    """another token set in mid-drain"""
    for token in (f"{TOKEN}-{rng.random()}", TOKEN):
        stand.run("SELECT sync_outbox_set_token(%s)", [token])
        time.sleep(0.3)


def enabled_off(stand, rng):
    """sync_outbox.enabled off and on"""
    stand.server.set(sync_outbox__enabled="off")
    time.sleep(rng.random())
    stand.server.set(sync_outbox__enabled="on")


def paused(stand, rng):
    """pause and resume"""
    stand.run("SELECT sync_outbox_pause(reason => 'soak')")
    time.sleep(rng.random())
    stand.run("SELECT sync_outbox_resume()")


def requeue(stand, rng):
    """requeue of everything"""
    stand.run("SELECT sync_outbox_requeue()")


def old_snapshot(stand, rng):
    """a long open transaction with a snapshot and an id"""
    with stand.session(autocommit=False) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT pg_current_xact_id(), count(*) FROM witness")
        time.sleep(2)
        session.rollback()


def late_commit(stand, rng):
    """a writer that commits seconds later"""
    stand.late(rng, hold=rng.uniform(1, 2))


def _on_outbox(stand, *statements, hold=0.0):
    """As a careful DBA: gives up when the lock is not to be had."""
    with stand.session() as session:
        session.execute("SET lock_timeout = '1s'")
        for statement in statements:
            try:
                session.execute("BEGIN" if hold else "")
                session.execute(statement)
                time.sleep(hold)
                session.execute("COMMIT" if hold else "")
            except psycopg.errors.LockNotAvailable:
                session.execute("ROLLBACK" if hold else "")


def lock_outbox(stand, rng):
    """LOCK TABLE sync_outbox, for a second"""
    _on_outbox(stand, "LOCK TABLE sync_outbox IN ACCESS EXCLUSIVE MODE", hold=1)


def lock_outbox_share(stand, rng):
    """LOCK TABLE sync_outbox IN SHARE MODE, for a second"""
    _on_outbox(stand, "LOCK TABLE sync_outbox IN SHARE MODE", hold=1)


def lock_state(stand, rng):
    """LOCK TABLE sync_outbox_target_state, for a second"""
    _on_outbox(stand, "LOCK TABLE sync_outbox_target_state IN ACCESS EXCLUSIVE MODE", hold=1)


def vacuum_full(stand, rng):
    """VACUUM FULL sync_outbox"""
    _on_outbox(stand, "VACUUM FULL sync_outbox")


def reindex(stand, rng):
    """REINDEX TABLE sync_outbox"""
    _on_outbox(stand, "REINDEX TABLE sync_outbox")


def reindex_concurrently(stand, rng):
    """REINDEX TABLE CONCURRENTLY sync_outbox"""
    try:
        _on_outbox(stand, "REINDEX TABLE CONCURRENTLY sync_outbox")
    finally:
        clear_away(stand)


def clear_away(stand):
    """Drops what an index command that was broken off has left, and a DBA's own index and constraint: with them capture,
    reading and settling take the slower way."""
    left = [name for (name,) in stand.rows(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'sync_outbox'::regclass"
        " AND indexrelid::regclass::text NOT IN ('sync_outbox_pkey', 'sync_outbox_left')")]
    for name in left:
        _on_outbox(stand, f"DROP INDEX {name}")
    if stand.rows("SELECT FROM pg_constraint WHERE conrelid = 'sync_outbox'::regclass AND conname = 'of_a_dba'"):
        _on_outbox(stand, "ALTER TABLE sync_outbox DROP CONSTRAINT of_a_dba")


def cluster(stand, rng):
    """CLUSTER sync_outbox"""
    _on_outbox(stand, "CLUSTER sync_outbox USING sync_outbox_pkey")


def another_index(stand, rng):
    """an index of a DBA's own on sync_outbox, for a second"""
    _on_outbox(stand, "CREATE INDEX IF NOT EXISTS of_a_dba ON sync_outbox (created_at)")
    time.sleep(1)
    clear_away(stand)


def alter_outbox(stand, rng):
    """ALTER TABLE sync_outbox: a constraint of a DBA's own, for a second"""
    _on_outbox(stand, "ALTER TABLE sync_outbox DROP CONSTRAINT IF EXISTS of_a_dba, ADD CONSTRAINT of_a_dba CHECK (id > 0)")
    time.sleep(1)
    clear_away(stand)


def vacuum_analyze(stand, rng):
    """VACUUM (FREEZE, ANALYZE) sync_outbox and CHECKPOINT"""
    _on_outbox(stand, "VACUUM (FREEZE, ANALYZE) sync_outbox", "CHECKPOINT")
