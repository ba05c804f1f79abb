//! Giving the disk space of a long backlog back: TRUNCATE once the outbox is empty.
//!
//! Exact, because capture keeps its ROW EXCLUSIVE lock to the end of the writer's transaction: who holds ACCESS EXCLUSIVE
//! knows that nobody is about to commit a change (`hard-facts` 25). The sequence goes on.

use super::Schema;
use crate::pg::spi;
use crate::pg::xact;
use std::time::{Duration, Instant};

/// Below this size vacuum does it cheaper.
const WORTH_IT: i64 = 16 * 1024 * 1024;
/// Writers wait while we look, so the same look without the lock must have been faster than this. It is slow where an old
/// snapshot keeps the dead rows in the index.
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// Truncates the outbox if it holds nothing, is large, and its lock is to be had at once. Waits for nobody.
pub fn truncate_if_empty(schema: &Schema) {
    let started = Instant::now();
    if !is_large(schema) || !is_empty(schema) || started.elapsed() > LONGEST_LOOK {
        return;
    }
    // A busy lock is an error, and no reason to lose anything but the attempt.
    let _ = xact::subtransaction(|| {
        spi::run(&schema.sql("LOCK TABLE ONLY @.sync_outbox IN ACCESS EXCLUSIVE MODE NOWAIT"), &[]);
        if is_empty(schema) {
            spi::run(&schema.sql("TRUNCATE ONLY @.sync_outbox CONTINUE IDENTITY"), &[]);
        }
    });
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
