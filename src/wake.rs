//! What a transaction tells the worker when it commits.
//!
//! At COMMIT, once per transaction, after the commit is visible to others: no NOTIFY, which would serialize commits,
//! and no polling. Together with the wake-up goes the first id that the transaction drew, so that the worker knows how
//! far back it has to look, and whether the transaction was an administrative call, so that a sender asks again what
//! holds. An abort forgets it; a prepared transaction too, whose COMMIT PREPARED speaks for it. A savepoint that is
//! rolled back does not: a worker that is woken for nothing is harmless.

use crate::pg::xact::{self, End};
use crate::shared::{self, ANYTHING, CommitNotice, NOTHING};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the current transaction has to say.
#[derive(Clone, Copy)]
struct PendingNotice {
    captured: bool,
    control: bool,
    first_id: i64,
    /// The others have been told that it is about to become visible.
    committing: bool,
}

const NO_NOTICE: PendingNotice =
    PendingNotice { captured: false, control: false, first_id: NOTHING, committing: false };

thread_local! {
    static PENDING: Cell<PendingNotice> = const { Cell::new(NO_NOTICE) };
}

/// Wakes the worker of this database once the current transaction has committed, because it has captured a change with
/// this id; does nothing if it rolls back. Ids of a transaction need not ascend.
#[inline]
pub fn at_commit(id: i64) {
    let pending = PENDING.get();
    if !pending.captured || id < pending.first_id {
        PENDING.set(PendingNotice { captured: true, first_id: pending.first_id.min(id), ..pending });
    }
}

/// Tells every sender of this database once the current transaction has committed that what it knows may be out of
/// date: settings of its target, a token, which changes are free to go. Also wakes the worker.
pub fn control_at_commit() {
    PENDING.set(PendingNotice { captured: true, control: true, ..PENDING.get() });
}

/// As [`control_at_commit`], for a transaction that is about to make the changes of a prepared one visible, of which
/// nobody remembers anything: until it has ended, a worker looks at everything.
pub fn before_commit_prepared() {
    if !PENDING.get().committing {
        shared::committing(ANYTHING);
    }
    PENDING.set(PendingNotice { captured: true, control: true, first_id: ANYTHING, committing: true });
}

/// Tells every other sender of this database that somebody has taken the turn: what it has read ahead is void. Called
/// with the sender's lock held.
pub fn turn_taken() {
    if LISTENING.load(Ordering::Relaxed) {
        shared::turn_taken();
    }
}

/// A number that changes whenever an administrative call has committed in this database, or a turn was taken; `None`
/// without preloading, where nobody counts.
pub fn control() -> Option<u64> {
    LISTENING.load(Ordering::Relaxed).then(shared::control)
}

static LISTENING: AtomicBool = AtomicBool::new(false);

/// Listens to the ends of transactions. Without it, as where the library is not preloaded, nothing that is noted is ever read.
pub fn init() {
    LISTENING.store(true, Ordering::Relaxed);
    xact::on_end(|end| {
        let pending = PENDING.get();
        if !pending.captured {
            return;
        }
        match end {
            End::PreCommit => {
                if pending.first_id != NOTHING && !pending.committing {
                    shared::committing(pending.first_id);
                    PENDING.set(PendingNotice { committing: true, ..pending });
                }
                return;
            }
            End::Commit => {
                let news = CommitNotice { first_id: pending.first_id, control: pending.control };
                if pending.committing { shared::committed(news) } else { shared::want_here(news) }
            }
            End::Abort | End::Prepare if pending.committing => shared::aborted(),
            End::Abort | End::Prepare => {}
        }
        PENDING.set(NO_NOTICE);
    });
}
