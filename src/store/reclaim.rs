//! Gives the disk space of a long backlog back by TRUNCATE once the outbox is empty.
//!
//! No change is lost, because capture keeps its ROW EXCLUSIVE lock to the end of the writer's transaction: whoever
//! holds ACCESS EXCLUSIVE knows that nobody is about to commit a change (`invariants` 25). The sequence is not reset.

use super::Schema;
use crate::error::{Error, SqlState};
use crate::pg::spi;
use crate::pg::xact;
use std::time::{Duration, Instant};

/// Below this size a vacuum is cheaper.
const WORTH_IT: i64 = 16 * 1024 * 1024;
/// Writers wait while we look whether the outbox is empty, so the same look without the lock must have been faster than
/// this. It is slow if an old snapshot keeps dead rows in the index.
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// Truncates the outbox if it is empty and large, and its lock is free. Waits for nobody.
pub fn truncate_if_empty(schema: &Schema) {
    let started = Instant::now();
    if !is_large(schema) || !is_empty(schema) || started.elapsed() > LONGEST_LOOK {
        return;
    }
    let attempt = xact::subtransaction(|| {
        spi::run(&schema.sql("LOCK TABLE ONLY @.sync_outbox IN ACCESS EXCLUSIVE MODE NOWAIT"), &[]);
        if is_empty(schema) {
            spi::run(&schema.sql("TRUNCATE ONLY @.sync_outbox CONTINUE IDENTITY"), &[]);
        }
    });
    // A lock that is not free is not an error, because there will be another time. Being cancelled is.
    if let Err(caught) = attempt
        && caught.sqlstate != SqlState::ERRCODE_LOCK_NOT_AVAILABLE
    {
        Error::new(caught.sqlstate, caught.message)
            .hint("SET sync_outbox.truncate_when_empty = off in postgresql.conf does without.")
            .raise()
    }
}

fn is_large(schema: &Schema) -> bool {
    let size = spi::first(
        "SELECT pg_catalog.pg_relation_size($1::pg_catalog.oid::pg_catalog.regclass)",
        &[schema.outbox().into()],
        |row| row.int(1),
    );
    size.is_some_and(|size| size >= WORTH_IT)
}

/// Whether there is no row at all, whatever its status and target.
fn is_empty(schema: &Schema) -> bool {
    spi::first(&schema.sql("SELECT true FROM @.sync_outbox LIMIT 1"), &[], |_| ()).is_none()
}
