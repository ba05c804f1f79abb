//! The launcher's side: what the databases ask for, and which of them get a worker.

use super::{DatabaseEntry, MOST_DATABASES, TABLE};
use crate::pg::Oid;
use crate::pg::process::{self, Process};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// An entry as the launcher sees it.
#[derive(Clone, Copy)]
pub struct View {
    pub database: Oid,
    pub has_worker: bool,
    pub serving: bool,
    pub exited_cleanly: bool,
    pub due: Option<Instant>,
    pub barred: bool,
    pub wanted: bool,
}

impl DatabaseEntry {
    fn view(&self) -> View {
        View {
            database: self.database,
            has_worker: self.worker.is_some(),
            serving: self.serving,
            exited_cleanly: self.exited_cleanly,
            due: self.due,
            barred: self.barriers > 0,
            wanted: self.wanted.load(Ordering::SeqCst),
        }
    }
}

/// Makes this process the launcher, until it ends.
pub fn become_launcher() {
    process::at_exit(|| TABLE.exclusive().launcher = None);
    TABLE.exclusive().launcher = Some(Process::me());
}

/// The entries of all databases.
pub fn all() -> Vec<View> {
    // Allocated first: nothing may fail while the lock is held.
    let mut views = Vec::with_capacity(MOST_DATABASES);
    let table = TABLE.share();
    views.extend(table.entries().iter().filter(|e| e.database != Oid::INVALID).map(DatabaseEntry::view));
    views
}

/// A worker of this database is about to be started.
pub fn starting(database: Oid) {
    if let Some(entry) = TABLE.exclusive().entry(database) {
        entry.exited_cleanly = false;
    }
}

/// Forgets a database that is gone.
pub fn forget(database: Oid) {
    if let Some(entry) = TABLE.exclusive().entry(database) {
        entry.due = None;
        entry.wanted = AtomicBool::new(false);
        entry.free_if_empty();
    }
}

/// Whether the table has been full since the last call.
pub fn overflowed() -> bool {
    TABLE.share().overflowed.swap(false, Ordering::Relaxed)
}

/// Sets whether workers with nothing to do are to exit to make room for others.
pub fn set_crowded(crowded: bool) {
    let table = TABLE.share();
    if table.crowded.swap(crowded, Ordering::Relaxed) != crowded && crowded {
        table.entries().iter().filter_map(|entry| entry.worker).for_each(Process::wake);
    }
}
