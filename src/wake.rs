//! What a transaction tells the worker when it commits.
//!
//! At COMMIT, once per transaction, after the commit is visible to others: no NOTIFY, which would serialize commits,
//! and no polling. Together with the wake-up goes the first id that the transaction drew, so that the worker knows how
//! far back it has to look, and whether the transaction was an administrative call, so that a sender asks again what
//! holds. An abort forgets it; a prepared transaction too, whose COMMIT PREPARED speaks for it. A savepoint that is
//! rolled back does not: a worker that is woken for nothing is harmless.

use crate::pg::xact::{self, End};
use crate::shared::{self, ANYTHING, NOTHING, News};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the current transaction has to say.
#[derive(Clone, Copy)]
struct Mark {
    captured: bool,
    control: bool,
    first_id: i64,
    /// The others have been told that it is about to become visible.
    committing: bool,
}

const NO_MARK: Mark = Mark { captured: false, control: false, first_id: NOTHING, committing: false };

thread_local! {
    static MARK: Cell<Mark> = const { Cell::new(NO_MARK) };
}

/// Wakes the worker of this database once the current transaction has committed, because it has captured a change with
/// this id; does nothing if it rolls back. Ids of a transaction need not ascend.
#[inline]
pub fn at_commit(id: i64) {
    let mark = MARK.get();
    if !mark.captured || id < mark.first_id {
        MARK.set(Mark { captured: true, first_id: mark.first_id.min(id), ..mark });
    }
}

/// Tells every sender of this database once the current transaction has committed that what it knows may be out of
/// date: settings of its target, a token, which changes are free to go. Also wakes the worker.
pub fn control_at_commit() {
    MARK.set(Mark { captured: true, control: true, ..MARK.get() });
}

/// As [`control_at_commit`], for a transaction that is about to make the changes of a prepared one visible, of which
/// nobody remembers anything: until it has ended, a worker looks at everything.
pub fn before_commit_prepared() {
    if !MARK.get().committing {
        shared::committing(ANYTHING);
    }
    MARK.set(Mark { captured: true, control: true, first_id: ANYTHING, committing: true });
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

/// Listens to the ends of transactions. Without it, as where the library is not preloaded, the mark is never read.
pub fn init() {
    LISTENING.store(true, Ordering::Relaxed);
    xact::on_end(|end| {
        let mark = MARK.get();
        if !mark.captured {
            return;
        }
        match end {
            End::PreCommit => {
                if mark.first_id != NOTHING && !mark.committing {
                    shared::committing(mark.first_id);
                    MARK.set(Mark { committing: true, ..mark });
                }
                return;
            }
            End::Commit => {
                let news = News { first_id: mark.first_id, control: mark.control };
                if mark.committing { shared::committed(news) } else { shared::want_here(news) }
            }
            End::Abort | End::Prepare if mark.committing => shared::aborted(),
            End::Abort | End::Prepare => {}
        }
        MARK.set(NO_MARK);
    });
}
