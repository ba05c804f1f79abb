//! What the processes share about databases, in shared memory.
//!
//! A database has an entry as long as there is something to know about it: a worker, work to do, a time at which work
//! is due, or a command that keeps the worker away. Entries are created and freed under the exclusive lock; the flag
//! that a committing transaction sets is atomic and needs only the shared one.

use crate::pg::Oid;
use crate::pg::process::{self, Process};
use crate::pg::shmem::Locked;
use crate::pg::{database, latch};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The most databases that can have an entry at the same time.
const MOST_DATABASES: usize = 1024;
/// The number of slots for processes that commit captured changes. A process uses the one with the number of its
/// PGPROC.
const SLOTS: usize = 8192;
/// How long a command waits for the worker of its database to leave: as long as PostgreSQL itself waits for others.
const LEAVING: Duration = Duration::from_secs(5);

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
    commits: [Commit; SLOTS],
    /// Slots from here on have never been used.
    commits_used: AtomicUsize,
    /// The number of commits in progress of processes that have no slot.
    commits_elsewhere: AtomicU32,
    /// Entries from here on have never been used.
    used: usize,
    entries: [DatabaseEntry; MOST_DATABASES],
}

/// The slot of a process. It is set before the transaction becomes visible, and cleared after the entry of the database
/// has been updated. So a process that takes a snapshot, and then reads the slots and after them the entry, misses no
/// transaction that the snapshot sees.
struct Commit {
    database: AtomicU32,
    /// The first id that the transaction drew; [`NOTHING`] in a slot that is not in use.
    first_id: AtomicI64,
}

/// No id.
pub const NOTHING: i64 = i64::MAX;
/// Any id, from the first on.
pub const ANYTHING: i64 = i64::MIN;

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

impl SharedTable {
    fn empty() -> Self {
        SharedTable {
            launcher: None,
            crowded: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            last_control: AtomicU64::new(0),
            commits: std::array::from_fn(|_| Commit { database: AtomicU32::new(0), first_id: AtomicI64::new(NOTHING) }),
            commits_used: AtomicUsize::new(0),
            commits_elsewhere: AtomicU32::new(0),
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

/// Requests the shared memory for the table. Called while preloading.
pub fn init() {
    TABLE.request();
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
    let slot = Process::me().slot();
    let table = TABLE.share();
    match table.commits.get(slot) {
        Some(commit) => {
            table.commits_used.fetch_max(slot + 1, Ordering::SeqCst);
            commit.database.store(database::current().to_u32(), Ordering::SeqCst);
            commit.first_id.store(first_id, Ordering::SeqCst);
        }
        None => drop(table.commits_elsewhere.fetch_add(1, Ordering::SeqCst)),
    }
}

/// The transaction for which [`committing`] was called has committed. Announces it, and frees the slot.
pub fn committed(notice: CommitNotice) {
    want(database::current(), notice);
    aborted();
}

/// The transaction for which [`committing`] was called is over.
pub fn aborted() {
    let table = TABLE.share();
    match table.commits.get(Process::me().slot()) {
        Some(commit) => commit.first_id.store(NOTHING, Ordering::SeqCst),
        None => drop(table.commits_elsewhere.fetch_sub(1, Ordering::SeqCst)),
    }
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

/// Sets the latch of a process, if there is one. To be called without the lock, because this can be a system call.
fn wake(process: Option<Process>) {
    if let Some(process) = process {
        process.wake();
    }
}

// The launcher's side

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

// The worker's side

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
        if table.commits_elsewhere.load(Ordering::SeqCst) > 0 {
            return ANYTHING;
        }
        let used = table.commits_used.load(Ordering::SeqCst).min(SLOTS);
        let here = self.database.to_u32();
        let committing = table.commits[..used]
            .iter()
            .map(|commit| (commit.first_id.load(Ordering::SeqCst), commit))
            .filter(|(first_id, commit)| *first_id != NOTHING && commit.database.load(Ordering::SeqCst) == here)
            .map(|(first_id, _)| first_id)
            .min();
        // The entry is read after the slots: a process updates the entry before it clears its slot.
        let committed =
            table.find(self.database).map_or(ANYTHING, |at| table.entries[at].first_id.swap(NOTHING, Ordering::SeqCst));
        committing.map_or(committed, |id| id.min(committed))
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

// The side of commands that need a database empty

/// While it lives, no worker of ours is connected to the database, and none can connect.
pub struct Barrier {
    _cleanup: Option<process::Cleanup>,
}

impl Barrier {
    /// Terminates the worker and waits until it has exited, for five seconds at most.
    pub fn new(database: Oid) -> Self {
        let entered = {
            let mut table = TABLE.exclusive();
            table.enter(database).map(|at| table.entries[at].barriers += 1).is_some()
        };
        let cleanup = entered.then(|| process::Cleanup::new(lift, database));
        let until = Instant::now() + LEAVING;
        let mut told = None;
        while let Some(worker) = worker_of(database)
            && Instant::now() < until
        {
            if told.replace(worker) != Some(worker) {
                worker.terminate();
            }
            latch::wait(None, Duration::from_millis(5), latch::WaitEvent::WorkerExit);
        }
        Barrier { _cleanup: cleanup }
    }
}

fn lift(database: Oid) {
    let mut table = TABLE.exclusive();
    let launcher = table.launcher;
    if let Some(entry) = table.entry(database) {
        entry.barriers = entry.barriers.saturating_sub(1);
        entry.free_if_empty();
    }
    drop(table);
    wake(launcher);
}

fn worker_of(database: Oid) -> Option<Process> {
    let table = TABLE.share();
    table.find(database).and_then(|at| table.entries[at].worker)
}

/// Announces what a transaction has committed in the database of this process.
pub fn want_here(notice: CommitNotice) {
    want(database::current(), notice);
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
