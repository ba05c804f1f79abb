//! Waking the worker when a transaction that gave it something to do commits.
//!
//! At COMMIT, once per transaction, after the commit is visible to others: no NOTIFY, which would serialize commits, and no
//! polling. An abort forgets it; a prepared transaction too, whose COMMIT PREPARED wakes by itself. A savepoint that is
//! rolled back does not: a worker that is woken for nothing is harmless.

use crate::pg::xact::{self, End};
use crate::worker::shared;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// What the current transaction has given the worker to do: nothing, new changes, or a look at everything. An atomic only
/// to be a `static` that is written to: a backend has one thread.
static MARKED: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
const CHANGES: u8 = 1;
const EVERYTHING: u8 = 2;

/// Wakes the worker of this database once the current transaction has committed, because it has captured something; does
/// nothing if it rolls back.
#[inline]
pub fn at_commit() {
    if MARKED.load(Relaxed) == NOTHING {
        MARKED.store(CHANGES, Relaxed);
    }
}

/// As [`at_commit`], because changes that have been in the outbox for long may go out now.
pub fn anew_at_commit() {
    MARKED.store(EVERYTHING, Relaxed);
}

/// Listens to the ends of transactions. Without it, as where the library is not preloaded, the mark is never read.
pub fn init() {
    xact::on_end(|end| {
        let marked = MARKED.load(Relaxed);
        if marked != NOTHING {
            MARKED.store(NOTHING, Relaxed);
            if end == End::Commit {
                shared::want_here(marked == EVERYTHING);
            }
        }
    });
}
