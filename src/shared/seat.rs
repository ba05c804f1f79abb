//! The worker's side: a database has one worker, which has the seat.

use super::{ANYTHING, DatabaseEntry, NOTHING, TABLE, wake};
use crate::pg::Oid;
use crate::pg::process::{self, Process};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The place of a database's only worker, held until the process ends.
pub struct Seat {
    database: Oid,
}

impl Seat {
    /// Takes the seat, unless another worker has it or a command keeps workers away. Called before the process connects
    /// to the database. So the seat is freed after the process has disconnected, and whoever waits for the seat need
    /// not wait for the process as well.
    pub fn take(database: Oid) -> Option<Self> {
        let mut table = TABLE.exclusive();
        let at = table.enter(database)?;
        let entry = &mut table.entries[at];
        if entry.worker.is_some() {
            return None;
        }
        if entry.barriers > 0 {
            entry.exited_cleanly = true;
            return None;
        }
        entry.worker = Some(Process::me());
        entry.exited_cleanly = false;
        entry.due = None;
        drop(table);
        process::at_exit(vacate);
        Some(Seat { database })
    }

    fn with<R: Default>(&self, f: impl FnOnce(&DatabaseEntry) -> R) -> R {
        let table = TABLE.share();
        table.find(self.database).map(|at| f(&table.entries[at])).unwrap_or_default()
    }

    /// Announces that the extension is installed and the worker serves the database.
    pub fn serve(&self) {
        if self.with(|entry| entry.serving) {
            return;
        }
        let mut table = TABLE.exclusive();
        let launcher = table.launcher;
        if let Some(entry) = table.entry(self.database) {
            entry.serving = true;
        }
        drop(table);
        wake(launcher);
    }

    /// Clears the announcement of work and returns whether there was one. Called before looking for work.
    pub fn take_wanted(&self) -> bool {
        self.with(|entry| entry.wanted.swap(false, Ordering::SeqCst))
    }

    /// The first id of what has been committed, or may have been, since the last call. To be called after taking the
    /// snapshot that changes are read with. [`NOTHING`] if there is nothing new.
    pub fn take_first_id(&self) -> i64 {
        let table = TABLE.share();
        if !table.commits.all_have_slots() {
            return ANYTHING;
        }
        let committing = table.commits.first_id(self.database);
        // The entry is read after the slots: a process updates the entry before it clears its slot.
        let committed =
            table.find(self.database).map_or(ANYTHING, |at| table.entries[at].first_id.swap(NOTHING, Ordering::SeqCst));
        committing.min(committed)
    }

    /// Whether it is time to log again that the database is a copy: at intervals of `every`, however many workers come
    /// and go.
    pub fn tell_cloned(&self, every: Duration) -> bool {
        let mut table = TABLE.exclusive();
        let Some(entry) = table.entry(self.database) else { return true };
        let due = entry.told_cloned.is_none_or(|at| at.elapsed() >= every);
        if due {
            entry.told_cloned = Some(Instant::now());
        }
        due
    }

    /// Whether this worker is to make room for those of other databases.
    pub fn is_crowded(&self) -> bool {
        TABLE.share().crowded.load(Ordering::Relaxed)
    }

    /// Announces a clean exit of this process, which is to be started again at `due`. Refused with `false` if work has
    /// been announced meanwhile.
    pub fn leave(&self, due: Option<Instant>) -> bool {
        let mut table = TABLE.exclusive();
        let Some(entry) = table.entry(self.database) else { return true };
        if *entry.wanted.get_mut() {
            return false;
        }
        entry.exited_cleanly = true;
        entry.due = due;
        true
    }

    /// Announces a clean exit even if work has been announced, because it cannot be done now.
    pub fn leave_anyway(&self) {
        if let Some(entry) = TABLE.exclusive().entry(self.database) {
            entry.exited_cleanly = true;
        }
    }
}

/// Frees the seat when its process ends. After an exit that was not clean there may be work left.
fn vacate() {
    let me = Process::me();
    let mut table = TABLE.exclusive();
    let launcher = table.launcher;
    let used = table.used;
    if let Some(entry) = table.entries[..used].iter_mut().find(|entry| entry.worker == Some(me)) {
        if !entry.exited_cleanly {
            *entry.wanted.get_mut() = true;
            entry.exited_cleanly = entry.barriers > 0;
        }
        entry.worker = None;
        entry.serving = false;
        entry.free_if_empty();
    }
    drop(table);
    wake(launcher);
}
