//! What the processes share about databases, in shared memory.
//!
//! A database has an entry as long as there is something to know about it: a worker, work to do, a time at which work
//! is due, or a command that keeps the worker away. Entries are created and freed under the exclusive lock; the flag
//! that a committing transaction sets is atomic and needs only the shared one.
//!
//! The table is here, and each side that uses it has a file: transactions that commit (`commits.rs`), the launcher, the
//! worker (`seat.rs`), and commands that keep the worker away (`barrier.rs`).

mod barrier;
mod commits;
mod launcher;
mod seat;

use crate::pg::Oid;
use crate::pg::process::Process;
use crate::pg::shmem::Locked;
pub use barrier::Barrier;
use commits::CommitsInProgress;
pub use commits::{
    ANYTHING, CommitNotice, NOTHING, aborted, committed, committing, control, turn_taken, want, want_here,
};
pub use launcher::{View, all, become_launcher, forget, overflowed, set_crowded, starting};
pub use seat::Seat;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// The most databases that can have an entry at the same time.
const MOST_DATABASES: usize = 1024;

static TABLE: Locked<SharedTable> = Locked::new(c"sync_outbox", SharedTable::empty);

/// The table in shared memory.
pub struct SharedTable {
    launcher: Option<Process>,
    /// No background worker slot was free for a database that needs one, so workers with nothing to do are to exit at
    /// once.
    crowded: AtomicBool,
    /// A database could not be entered because the table was full.
    overflowed: AtomicBool,
    /// The last number that was given to the [`DatabaseEntry::control`] of any database. No number is given twice.
    last_control: AtomicU64,
    /// The transactions with captured changes that are being committed now.
    commits: CommitsInProgress,
    /// Entries from here on have never been used.
    used: usize,
    entries: [DatabaseEntry; MOST_DATABASES],
}

struct DatabaseEntry {
    /// `Oid::INVALID` in a free entry.
    database: Oid,
    worker: Option<Process>,
    /// The worker has found the extension and serves the database.
    serving: bool,
    /// The last worker exited cleanly, or there was none. False while a worker runs, so that a crash can be told from a
    /// clean exit.
    exited_cleanly: bool,
    /// When the worker that exited wants to be started again, by CLOCK_MONOTONIC, which is the same for all processes.
    due: Option<Instant>,
    /// How many commands need the database to have no connections.
    barriers: u32,
    /// A transaction with work for the worker has committed since the worker last looked.
    wanted: AtomicBool,
    /// The smallest first id of the transactions that have committed since a worker last asked.
    first_id: AtomicI64,
    /// Changes after each administrative call that has committed (pause, resume, requeue, discard, import, adopt, a
    /// change of a target's row, a token, COMMIT PREPARED), and after each turn that a flush or drain has taken.
    /// Senders compare it before every request.
    control: AtomicU64,
    /// When a worker last logged that the database is a copy.
    told_cloned: Option<Instant>,
}

impl SharedTable {
    fn empty() -> Self {
        SharedTable {
            launcher: None,
            crowded: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            last_control: AtomicU64::new(0),
            commits: CommitsInProgress::none(),
            used: 0,
            entries: std::array::from_fn(|_| DatabaseEntry::of(Oid::INVALID)),
        }
    }

    fn entries(&self) -> &[DatabaseEntry] {
        &self.entries[..self.used]
    }

    fn find(&self, database: Oid) -> Option<usize> {
        self.entries().iter().position(|entry| entry.database == database)
    }

    fn entry(&mut self, database: Oid) -> Option<&mut DatabaseEntry> {
        self.find(database).map(|i| &mut self.entries[i])
    }

    /// Gives an entry its next control number.
    fn bump(&self, at: usize) {
        self.entries[at].control.store(self.last_control.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    }

    /// The entry of a database, created if necessary; `None` if the table is full.
    fn enter(&mut self, database: Oid) -> Option<usize> {
        let found = self.find(database).or_else(|| {
            let free = self.find(Oid::INVALID).or_else(|| (self.used < MOST_DATABASES).then_some(self.used))?;
            self.used = self.used.max(free + 1);
            self.entries[free] = DatabaseEntry::of(database);
            self.bump(free);
            Some(free)
        });
        if found.is_none() {
            self.overflowed.store(true, Ordering::Relaxed);
        }
        found
    }
}

impl DatabaseEntry {
    fn of(database: Oid) -> Self {
        DatabaseEntry {
            database,
            worker: None,
            serving: false,
            exited_cleanly: true,
            due: None,
            barriers: 0,
            wanted: AtomicBool::new(false),
            first_id: AtomicI64::new(NOTHING),
            control: AtomicU64::new(0),
            told_cloned: None,
        }
    }

    fn free_if_empty(&mut self) {
        if self.worker.is_none() && self.due.is_none() && self.barriers == 0 && !*self.wanted.get_mut() {
            *self = DatabaseEntry::of(Oid::INVALID);
        }
    }
}

/// Requests the shared memory for the table. Called while preloading.
pub fn init() {
    TABLE.request();
}

/// Sets the latch of a process, if there is one. To be called without the lock, because this can be a system call.
fn wake(process: Option<Process>) {
    if let Some(process) = process {
        process.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_keeps_its_entry_until_there_is_nothing_to_know() {
        let mut table = SharedTable::empty();
        let (a, b) = (Oid::from(1), Oid::from(2));
        assert_eq!((table.enter(a), table.enter(b), table.enter(a)), (Some(0), Some(1), Some(0)));
        let entry = &mut table.entries[0];
        entry.due = Some(Instant::now());
        entry.free_if_empty();
        assert_eq!(entry.database, a);
        entry.due = None;
        entry.free_if_empty();
        assert_eq!((table.find(a), table.enter(Oid::from(3))), (None, Some(0)));
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = SharedTable::empty();
        for n in 1..=MOST_DATABASES {
            assert!(table.enter(Oid::from(n as u32)).is_some());
        }
        assert!(!*table.overflowed.get_mut());
        assert_eq!(table.enter(Oid::from(u32::MAX)), None);
        assert!(*table.overflowed.get_mut());
    }
}
