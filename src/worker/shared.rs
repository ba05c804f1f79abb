//! What the processes tell each other about databases, in shared memory.
//!
//! A database has an entry for as long as there is something to know about it: a worker, work, a time at which work is
//! due, or a command that keeps the worker away. Entries are made and freed under the exclusive lock; the flag that a
//! committing transaction raises is atomic and needs only the shared one.

use crate::pg::Oid;
use crate::pg::process::{self, Process};
use crate::pg::shmem::Locked;
use crate::pg::{database, latch};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Databases with something to know about at the same time.
const MOST_DATABASES: usize = 1024;
/// How long a command waits for the worker of its database to leave: as long as PostgreSQL itself waits for others.
const LEAVING: Duration = Duration::from_secs(5);

static TABLE: Locked<Table> = Locked::new(c"sync_outbox", Table::empty);

/// The table in shared memory.
pub struct Table {
    launcher: Option<Process>,
    /// No background worker slot was free for a database that needs one: workers with nothing to do leave at once.
    crowded: AtomicBool,
    /// A database could not be entered because the table was full.
    overflowed: AtomicBool,
    /// Entries from here on have never been used.
    used: usize,
    entries: [Entry; MOST_DATABASES],
}

struct Entry {
    /// Invalid in a free entry.
    database: Oid,
    worker: Option<Process>,
    /// The worker has found the extension and serves the database.
    serving: bool,
    /// The last worker left in order, or there was none. One that is still running has not, so that its sudden end can be
    /// told from a farewell.
    in_order: bool,
    /// When the worker that left wants to be started again. CLOCK_MONOTONIC, the same for all processes.
    due: Option<Instant>,
    /// Commands that need the database empty.
    barriers: u32,
    /// A transaction with work for the worker has committed since the worker last looked.
    wanted: AtomicBool,
    /// And it concerns changes that may have been there for long.
    anew: AtomicBool,
    /// When a worker last said that the database is a copy.
    told_cloned: Option<Instant>,
}

/// An entry as the launcher sees it.
#[derive(Clone, Copy)]
pub struct View {
    pub database: Oid,
    pub has_worker: bool,
    pub serving: bool,
    pub in_order: bool,
    pub due: Option<Instant>,
    pub barred: bool,
    pub wanted: bool,
}

impl Table {
    fn empty() -> Self {
        Table {
            launcher: None,
            crowded: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            used: 0,
            entries: std::array::from_fn(|_| Entry::of(Oid::INVALID)),
        }
    }

    fn entries(&self) -> &[Entry] {
        &self.entries[..self.used]
    }

    fn find(&self, database: Oid) -> Option<usize> {
        self.entries().iter().position(|entry| entry.database == database)
    }

    fn entry(&mut self, database: Oid) -> Option<&mut Entry> {
        self.find(database).map(|i| &mut self.entries[i])
    }

    /// The entry of a database, made if necessary; `None` if the table is full.
    fn enter(&mut self, database: Oid) -> Option<usize> {
        let found = self.find(database).or_else(|| {
            let free = self.find(Oid::INVALID).or_else(|| (self.used < MOST_DATABASES).then_some(self.used))?;
            self.used = self.used.max(free + 1);
            self.entries[free] = Entry::of(database);
            Some(free)
        });
        if found.is_none() {
            self.overflowed.store(true, Ordering::Relaxed);
        }
        found
    }
}

impl Entry {
    fn of(database: Oid) -> Self {
        Entry {
            database,
            worker: None,
            serving: false,
            in_order: true,
            due: None,
            barriers: 0,
            wanted: AtomicBool::new(false),
            anew: AtomicBool::new(false),
            told_cloned: None,
        }
    }

    fn free_if_empty(&mut self) {
        if self.worker.is_none() && self.due.is_none() && self.barriers == 0 && !*self.wanted.get_mut() {
            *self = Entry::of(Oid::INVALID);
        }
    }

    fn view(&self) -> View {
        View {
            database: self.database,
            has_worker: self.worker.is_some(),
            serving: self.serving,
            in_order: self.in_order,
            due: self.due,
            barred: self.barriers > 0,
            wanted: self.wanted.load(Ordering::SeqCst),
        }
    }
}

/// Has the table made. Called while preloading.
pub fn init() {
    TABLE.request();
}

/// Says that there may be work in a database, with `anew` also among changes that were there before: raises its flag and wakes its worker, or else the launcher. What was
/// committed before is seen by the worker that takes the flag down. Raises no `ERROR`, as it runs right after a commit.
pub fn want(database: Oid, anew: bool) {
    // A backend's database never changes, and its entry seldom moves.
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let last = LAST.load(Ordering::Relaxed);
    let table = TABLE.share();
    let at = if table.entries[last].database == database { Some(last) } else { table.find(database) };
    let waker = match at {
        Some(at) => {
            LAST.store(at, Ordering::Relaxed);
            let entry = &table.entries[at];
            if anew {
                entry.anew.store(true, Ordering::SeqCst);
            }
            // Whoever raised it has woken the worker, which has not looked yet.
            if entry.wanted.swap(true, Ordering::SeqCst) { None } else { entry.worker.or(table.launcher) }
        }
        None => {
            drop(table);
            let mut table = TABLE.exclusive();
            match table.enter(database) {
                Some(at) => {
                    table.entries[at].anew.store(anew, Ordering::SeqCst);
                    table.entries[at].wanted.store(true, Ordering::SeqCst);
                    table.entries[at].worker.or(table.launcher)
                }
                None => table.launcher,
            }
        }
    };
    wake(waker);
}

/// Sets the latch of a process, if there is one; outside the lock, because it can be a system call.
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

/// Everything there is to know.
pub fn all() -> Vec<View> {
    // Allocated first: nothing may fail while the lock is held.
    let mut views = Vec::with_capacity(MOST_DATABASES);
    let table = TABLE.share();
    views.extend(table.entries().iter().filter(|e| e.database != Oid::INVALID).map(Entry::view));
    views
}

/// A worker of this database is about to be started.
pub fn starting(database: Oid) {
    if let Some(entry) = TABLE.exclusive().entry(database) {
        entry.in_order = false;
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

/// Says whether workers with nothing to do shall make room for others.
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
    /// Takes the seat, unless another worker has it or a command keeps workers away. Before the process connects to the
    /// database, so that whoever waits for the seat to be free need not wait for the process to disappear.
    pub fn take(database: Oid) -> Option<Self> {
        let mut table = TABLE.exclusive();
        let at = table.enter(database)?;
        let entry = &mut table.entries[at];
        if entry.worker.is_some() {
            return None;
        }
        if entry.barriers > 0 {
            entry.in_order = true;
            return None;
        }
        entry.worker = Some(Process::me());
        entry.in_order = false;
        entry.due = None;
        drop(table);
        process::at_exit(vacate);
        Some(Seat { database })
    }

    fn with<R: Default>(&self, f: impl FnOnce(&Entry) -> R) -> R {
        let table = TABLE.share();
        table.find(self.database).map(|at| f(&table.entries[at])).unwrap_or_default()
    }

    /// Says that the extension is here.
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

    /// Whether work has been announced.
    pub fn is_wanted(&self) -> bool {
        self.with(|entry| entry.wanted.load(Ordering::SeqCst))
    }

    /// Takes the announcement of work down, before looking for it.
    pub fn take_wanted(&self) -> bool {
        self.with(|entry| entry.wanted.swap(false, Ordering::SeqCst))
    }

    /// Whether the work that was announced is among changes that were there before; asked after [`Seat::take_wanted`].
    pub fn take_anew(&self) -> bool {
        self.with(|entry| entry.anew.swap(false, Ordering::SeqCst))
    }

    /// Whether it is time to say again that the database is a copy: `every` so often, however many workers come and go.
    pub fn tell_cloned(&self, every: Duration) -> bool {
        let mut table = TABLE.exclusive();
        let Some(entry) = table.entry(self.database) else { return true };
        let due = entry.told_cloned.is_none_or(|at| at.elapsed() >= every);
        if due {
            entry.told_cloned = Some(Instant::now());
        }
        due
    }

    /// Whether to make room for the workers of other databases.
    pub fn is_crowded(&self) -> bool {
        TABLE.share().crowded.load(Ordering::Relaxed)
    }

    /// Says farewell: the process is about to end in order, and wants to be started again at `due`. Refused with `false`
    /// if work has been announced meanwhile.
    pub fn leave(&self, due: Option<Instant>) -> bool {
        let mut table = TABLE.exclusive();
        let Some(entry) = table.entry(self.database) else { return true };
        if *entry.wanted.get_mut() {
            return false;
        }
        entry.in_order = true;
        entry.due = due;
        true
    }

    /// Says farewell even if work has been announced: it cannot be done now.
    pub fn leave_anyway(&self) {
        if let Some(entry) = TABLE.exclusive().entry(self.database) {
            entry.in_order = true;
        }
    }
}

/// Frees the seat when its process ends. One that ended without a farewell may have left work behind.
fn vacate() {
    let me = Process::me();
    let mut table = TABLE.exclusive();
    let launcher = table.launcher;
    let used = table.used;
    if let Some(entry) = table.entries[..used].iter_mut().find(|entry| entry.worker == Some(me)) {
        if !entry.in_order {
            *entry.wanted.get_mut() = true;
            entry.in_order = entry.barriers > 0;
        }
        entry.worker = None;
        entry.serving = false;
        entry.free_if_empty();
    }
    drop(table);
    wake(launcher);
}

// The side of commands that need a database empty

/// While it lives, no worker of ours is in the database, or will come.
pub struct Barrier {
    _cleanup: Option<process::Cleanup>,
}

impl Barrier {
    /// Sends the worker away and waits until it has left, five seconds at most.
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
            latch::wait(None, Duration::from_millis(5));
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

/// Says that there may be work in this process's database.
pub fn want_here(anew: bool) {
    want(database::current(), anew);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_keeps_its_entry_until_there_is_nothing_to_know() {
        let mut table = Table::empty();
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
        let mut table = Table::empty();
        for n in 1..=MOST_DATABASES {
            assert!(table.enter(Oid::from(n as u32)).is_some());
        }
        assert!(!*table.overflowed.get_mut());
        assert_eq!(table.enter(Oid::from(u32::MAX)), None);
        assert!(*table.overflowed.get_mut());
    }
}
