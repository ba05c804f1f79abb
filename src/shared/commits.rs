//! The side of transactions: which of them are committing, and what they announce when they have committed. Here a
//! sender also announces that it has taken the turn.

use super::{TABLE, wake};
use crate::pg::process::Process;
use crate::pg::{Oid, database};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

/// The number of slots for processes that commit captured changes. A process uses the one with the number of its
/// PGPROC.
const SLOTS: usize = 8192;

/// No id.
pub const NOTHING: i64 = i64::MAX;
/// Any id, from the first on.
pub const ANYTHING: i64 = i64::MIN;

/// The transactions with captured changes that are being committed now.
pub(super) struct CommitsInProgress {
    slots: [Commit; SLOTS],
    /// Slots from here on have never been used.
    used: AtomicUsize,
    /// The number of commits in progress of processes that have no slot.
    elsewhere: AtomicU32,
}

/// The slot of a process. It is set before the transaction becomes visible, and cleared after the entry of the database
/// has been updated. So a process that takes a snapshot, and then reads the slots and after them the entry, misses no
/// transaction that the snapshot sees.
struct Commit {
    database: AtomicU32,
    /// The first id that the transaction drew; [`NOTHING`] in a slot that is not in use.
    first_id: AtomicI64,
}

impl CommitsInProgress {
    pub(super) fn none() -> Self {
        CommitsInProgress {
            slots: std::array::from_fn(|_| Commit { database: AtomicU32::new(0), first_id: AtomicI64::new(NOTHING) }),
            used: AtomicUsize::new(0),
            elsewhere: AtomicU32::new(0),
        }
    }

    /// This process begins to commit a transaction in this database with changes from `first_id` on.
    fn begin(&self, database: Oid, first_id: i64) {
        let slot = Process::me().slot();
        match self.slots.get(slot) {
            Some(commit) => {
                self.used.fetch_max(slot + 1, Ordering::SeqCst);
                commit.database.store(database.to_u32(), Ordering::SeqCst);
                commit.first_id.store(first_id, Ordering::SeqCst);
            }
            None => drop(self.elsewhere.fetch_add(1, Ordering::SeqCst)),
        }
    }

    /// The transaction of this process is over.
    fn end(&self) {
        match self.slots.get(Process::me().slot()) {
            Some(commit) => commit.first_id.store(NOTHING, Ordering::SeqCst),
            None => drop(self.elsewhere.fetch_sub(1, Ordering::SeqCst)),
        }
    }

    /// Whether every process that is committing has a slot. Otherwise nothing is known of its first id.
    pub(super) fn all_have_slots(&self) -> bool {
        self.elsewhere.load(Ordering::SeqCst) == 0
    }

    /// The smallest first id in the slots of this database, or [`NOTHING`].
    pub(super) fn first_id(&self, database: Oid) -> i64 {
        let used = self.used.load(Ordering::SeqCst).min(SLOTS);
        let database = database.to_u32();
        self.slots[..used]
            .iter()
            .map(|commit| (commit.first_id.load(Ordering::SeqCst), commit))
            .filter(|(first_id, commit)| *first_id != NOTHING && commit.database.load(Ordering::SeqCst) == database)
            .map(|(first_id, _)| first_id)
            .min()
            .unwrap_or(NOTHING)
    }
}

/// What a transaction announces when it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitNotice {
    /// The first id of the changes that it captured, or [`NOTHING`].
    pub first_id: i64,
    /// It was an administrative call: everything that a sender knows may be out of date.
    pub control: bool,
}

/// The transaction of this process is about to become visible, with captured changes from `first_id` on. Followed by
/// [`committed`] or [`aborted`].
pub fn committing(first_id: i64) {
    TABLE.share().commits.begin(database::current(), first_id);
}

/// The transaction for which [`committing`] was called has committed. Announces it, and frees the slot.
pub fn committed(notice: CommitNotice) {
    want(database::current(), notice);
    aborted();
}

/// The transaction for which [`committing`] was called is over.
pub fn aborted() {
    TABLE.share().commits.end();
}

/// Announces that a sender of this database has taken the turn. If there is no entry, there is nobody to tell.
pub fn turn_taken() {
    let table = TABLE.share();
    if let Some(at) = table.find(database::current()) {
        table.bump(at);
    }
}

/// The control number of this database, which changes whenever something was announced that a sender must know. 0 as
/// long as there is no entry.
pub fn control() -> u64 {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let here = database::current();
    let table = TABLE.share();
    let last = LAST.load(Ordering::Relaxed);
    let at = if table.entries[last].database == here { Some(last) } else { table.find(here) };
    at.map_or(0, |at| {
        LAST.store(at, Ordering::Relaxed);
        table.entries[at].control.load(Ordering::SeqCst)
    })
}

/// Announces that there may be work in a database: sets its flag and wakes its worker, or the launcher if there is
/// none. The worker that clears the flag sees everything that was committed before. Raises no `ERROR`, because it runs
/// right after a commit.
pub fn want(database: Oid, notice: CommitNotice) {
    // The database of a backend never changes, and its entry rarely moves.
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let last = LAST.load(Ordering::Relaxed);
    let table = TABLE.share();
    let at = if table.entries[last].database == database { Some(last) } else { table.find(database) };
    let waker = match at {
        Some(at) => {
            LAST.store(at, Ordering::Relaxed);
            let entry = &table.entries[at];
            entry.first_id.fetch_min(notice.first_id, Ordering::SeqCst);
            if notice.control {
                table.bump(at);
            }
            // If it was set, the worker has been woken and has not looked yet.
            let raised = entry.wanted.swap(true, Ordering::SeqCst);
            if raised && !notice.control { None } else { entry.worker.or(table.launcher) }
        }
        None => {
            drop(table);
            let mut table = TABLE.exclusive();
            match table.enter(database) {
                Some(at) => {
                    table.entries[at].first_id.fetch_min(notice.first_id, Ordering::SeqCst);
                    table.entries[at].wanted.store(true, Ordering::SeqCst);
                    table.entries[at].worker.or(table.launcher)
                }
                None => table.launcher,
            }
        }
    };
    wake(waker);
}

/// Announces what a transaction has committed in the database of this process.
pub fn want_here(notice: CommitNotice) {
    want(database::current(), notice);
}
