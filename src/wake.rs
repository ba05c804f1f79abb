//! What a transaction tells the worker when it commits.
//!
//! The worker is woken at COMMIT, once per transaction, after the commit is visible to others, without NOTIFY, which
//! would serialize commits, and without polling. It is also told the first id that the transaction drew, so that it
//! knows how far back it has to look, and whether the transaction was an administrative call, so that senders read
//! settings and state again. An abort forgets this, and so does PREPARE TRANSACTION, because COMMIT PREPARED wakes the
//! worker. A savepoint that is rolled back does not, because it does no harm to wake a worker for nothing.

use crate::pg::xact::{self, End};
use crate::shared::{self, ANYTHING, CommitNotice, NOTHING};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the current transaction will announce at its commit.
#[derive(Clone, Copy)]
struct PendingNotice {
    captured: bool,
    control: bool,
    first_id: i64,
    /// The other processes have been told that the transaction is about to become visible.
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

/// Once the current transaction has committed, tells every sender of this database that what it knows may be out of
/// date: the settings of its target, a token, which changes can be sent. Also wakes the worker.
pub fn control_at_commit() {
    PENDING.set(PendingNotice { captured: true, control: true, ..PENDING.get() });
}

/// As [`control_at_commit`], for a transaction that is about to commit a prepared one. Nobody knows the ids of its
/// changes any more, so until this transaction has ended, a worker reads from the first change on.
pub fn before_commit_prepared() {
    if !PENDING.get().committing {
        shared::committing(ANYTHING);
    }
    PENDING.set(PendingNotice { captured: true, control: true, first_id: ANYTHING, committing: true });
}

/// Tells every other sender of this database that this process has taken the turn, so that what they have read ahead is
/// void. Called with the sender's lock held.
pub fn turn_taken() {
    if LISTENING.load(Ordering::Relaxed) {
        shared::turn_taken();
    }
}

/// A number that changes whenever an administrative call has committed in this database, or a turn was taken; `None` if
/// the library is not preloaded.
pub fn control() -> Option<u64> {
    LISTENING.load(Ordering::Relaxed).then(shared::control)
}

static LISTENING: AtomicBool = AtomicBool::new(false);

/// Registers the callback at the end of transactions. It is not called if the library is not preloaded; then nothing is
/// announced.
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
                let notice = CommitNotice { first_id: pending.first_id, control: pending.control };
                if pending.committing { shared::committed(notice) } else { shared::want_here(notice) }
            }
            End::Abort | End::Prepare if pending.committing => shared::aborted(),
            End::Abort | End::Prepare => {}
        }
        PENDING.set(NO_NOTICE);
    });
}
