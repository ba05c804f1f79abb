//! Waking the worker when a transaction that gave it something to do commits.
//!
//! At COMMIT, once per transaction, after the commit is visible to others: no NOTIFY, which would serialize commits, and no
//! polling. An abort forgets it; a prepared transaction too, whose COMMIT PREPARED wakes by itself. A savepoint that is
//! rolled back does not: a worker that is woken for nothing is harmless.

use crate::pg::xact::{self, End};
use crate::worker::shared;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether the current transaction has given the worker something to do. An atomic only to be a `static` that is written
/// to: a backend has one thread.
static MARKED: AtomicBool = AtomicBool::new(false);

/// Wakes the worker of this database once the current transaction has committed; does nothing if it rolls back.
#[inline]
pub fn at_commit() {
    MARKED.store(true, Relaxed);
}

/// Listens to the ends of transactions. Without it, as where the library is not preloaded, the mark is never read.
pub fn init() {
    xact::on_end(|end| {
        if MARKED.load(Relaxed) {
            MARKED.store(false, Relaxed);
            if end == End::Commit {
                shared::want_here();
            }
        }
    });
}
