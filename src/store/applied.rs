//! The table `sync_outbox_applied`: keys that this hub has applied.

use super::Schema;
use crate::pg::spi;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Remembers a key; `false` if it was known. If another session is applying the same key, this waits until that has
/// ended.
pub fn remember(schema: &Schema, key: &uuid::Uuid) -> bool {
    let key = pgrx::Uuid::from_bytes(*key.as_bytes());
    spi::run(
        &schema.sql("INSERT INTO @.sync_outbox_applied (dedup_key) VALUES ($1) ON CONFLICT DO NOTHING"),
        &[key.into()],
    ) == 1
}

/// Gives this transaction something to commit. A transaction that has only read does not wait until what it has read is
/// on disk, or on the standbys that commits wait for.
pub fn commit_something() {
    spi::run("SELECT pg_catalog.pg_logical_emit_message(true, 'sync_outbox', 'applied before')", &[]);
}

/// How often a session looks for keys that are old enough to go.
const EVERY: Duration = Duration::from_secs(60);

/// Forgets keys of a certain age, at least as many as the caller added, so that the table cannot outgrow its sessions.
pub fn prune_now_and_then(schema: &Schema, added: usize) {
    thread_local! {
        static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    if NEXT.get().is_some_and(|next| now < next) {
        return;
    }
    let most = (2 * added).max(1000) as i64;
    let age = crate::settings::applied_retention().as_secs_f64();
    // SKIP LOCKED, because another session may be deleting the same rows.
    let gone = spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_applied WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY(
                SELECT ctid FROM @.sync_outbox_applied
                 WHERE applied_at OPERATOR(pg_catalog.<)
                       (pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $1))
                 ORDER BY applied_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        ),
        &[age.into(), most.into()],
    );
    // If there may be more of them, the next call goes on.
    NEXT.set((gone < most as u64).then(|| now + EVERY));
}
