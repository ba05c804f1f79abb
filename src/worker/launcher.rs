//! The launcher: starts the worker of each database that may have something to do.
//!
//! Level-triggered: every time it wakes it compares what the shared table asks for with what is running, so that no
//! single signal matters. It owns all restarts; the postmaster restarts only the launcher. Where it does not know (at
//! its own start, which includes a crash of the server and a promotion, and after a reload) it has one worker after the
//! other look into every database.

use super::retry::Retry;
use crate::pg::bgworker::{self, Handle};
use crate::pg::latch::{self, WaitEvent};
use crate::pg::{Oid, activity, database, guc, process, shmem, xact};
use crate::settings;
use crate::shared::{self, CommitNotice, NOTHING, View};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Sleeps until woken.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// The next database is examined when the worker of the previous one has found out what it needs, or after this time.
const PROBE: Duration = Duration::from_secs(5);
/// A worker that ran for so long before it ended without a clean exit is restarted as if it had never failed.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long databases wait that found the shared table full.
const OVERFLOWED: Duration = Duration::from_secs(60);
/// A warning that still applies is repeated at most this often.
const WARN_AGAIN: Duration = Duration::from_secs(3600);

/// Never returns: it ends by SIGTERM or an `ERROR`, in both cases with the exit status that has it restarted.
pub fn main() -> ! {
    process::handle_signals();
    bgworker::connect(None);
    guc::reload(); // a SIGHUP between fork and handle_signals() was lost
    shared::become_launcher();
    let mut launcher = Launcher::default();
    launcher.slow_down_after_crashes();
    launcher.probe_all();
    loop {
        if process::reload_requested() {
            guc::reload();
            launcher.probe_all();
        }
        let next = if settings::enabled() { launcher.reconcile() } else { None };
        activity::idle("waiting for a database to have something to send");
        latch::wait(None, next.map_or(FOREVER, until), WaitEvent::Idle);
    }
}

/// How long it is until then. Rounded up, because a sleep that ends a fraction too early would be repeated.
fn until(moment: Instant) -> Duration {
    moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
}

#[derive(Default)]
struct Launcher {
    workers: HashMap<Oid, WorkerProcess>,
    /// Databases to examine, and the one that is being examined, with the time at which to go on to the next.
    unprobed: VecDeque<Oid>,
    probing: Option<(Oid, Instant)>,
    /// The shared table was full: when to look for those that did not fit.
    probe_again: Option<Instant>,
    /// The database that got the last worker: when slots are few, the next goes to another one.
    last: Oid,
    slots: Slots,
    table_full: RepeatedWarning,
}

/// What the launcher knows of the worker of a database.
struct WorkerProcess {
    handle: Option<Handle>,
    started: Instant,
    retry: Retry,
}

/// Whether there are free background worker slots.
#[derive(Default)]
struct Slots {
    retry: Retry,
    exhausted: RepeatedWarning,
}

impl Launcher {
    /// If a worker is what takes the server down, it must not do so as fast as the server can recover. What the
    /// previous launcher knew about failures is lost with shared memory.
    fn slow_down_after_crashes(&mut self) {
        self.slots.retry = Retry::after(shmem::crashes(), Instant::now());
    }

    fn probe_all(&mut self) {
        self.unprobed = xact::transaction(database::connectable).into();
        self.probing = None;
    }

    /// Starts what is missing; returns when to look again at the latest.
    fn reconcile(&mut self) -> Option<Instant> {
        self.notice_ends();
        self.probe();
        let now = Instant::now();
        let mut next: Vec<Instant> = self.probing.map(|(_, until)| until).into_iter().chain(self.probe_again).collect();
        for entry in self.in_rotation() {
            match self.start_at(&entry, now) {
                Some(at) if at > now => next.push(at),
                Some(_) => next.extend(self.start(entry.database, now)),
                None => {}
            }
        }
        next.into_iter().min()
    }

    /// What the shared table asks for, in rotation: beginning after the database that was served last.
    fn in_rotation(&self) -> Vec<View> {
        let mut entries = shared::all();
        entries.sort_unstable_by_key(|entry| entry.database.to_u32());
        let first = entries.partition_point(|entry| entry.database.to_u32() <= self.last.to_u32());
        entries.rotate_left(first);
        entries
    }

    /// Takes note of workers that have ended.
    fn notice_ends(&mut self) {
        let mut ended = Vec::new();
        for (database, worker) in &mut self.workers {
            if worker.handle.take_if(|handle| handle.has_ended()).is_some() {
                ended.push(*database);
                self.slots.retry.try_now(); // there is one free now
            }
        }
        // Read afterwards, because a worker that leaves records its clean exit before it ends.
        let entries = shared::all();
        let now = Instant::now();
        for database in ended {
            let failed = entries.iter().any(|entry| entry.database == database && !entry.exited_cleanly);
            if let Some(worker) = self.workers.get_mut(&database) {
                worker.ended(failed, now);
            }
        }
        self.workers.retain(|database, worker| {
            worker.handle.is_some() || entries.iter().any(|entry| entry.database == *database)
        });
    }

    /// Has the next database examined when the previous one is done.
    fn probe(&mut self) {
        let now = Instant::now();
        if shared::overflowed() && self.probe_again.is_none() {
            self.probe_again = Some(now + OVERFLOWED);
            self.table_full.log(now, || {
                pgrx::warning!(
                    "too many databases have something to send with sync_outbox: some wait for others to be done"
                )
            });
        }
        if self.probe_again.is_some_and(|at| at <= now) {
            self.probe_again = None;
            self.probe_all();
        }
        if let Some((database, until)) = self.probing {
            let open = shared::all().iter().any(|entry| entry.database == database && !entry.serving);
            if open && now < until {
                return;
            }
        }
        self.probing = self.unprobed.pop_front().map(|database| (database, now + PROBE));
        if let Some((database, _)) = self.probing {
            shared::want(database, CommitNotice { first_id: NOTHING, control: false });
        }
    }

    /// When a worker of this database is to be started, if one is needed and none is there.
    fn start_at(&self, entry: &View, now: Instant) -> Option<Instant> {
        let worker = self.workers.get(&entry.database);
        if entry.has_worker || entry.barred || worker.is_some_and(|worker| worker.handle.is_some()) {
            return None;
        }
        let due = if entry.wanted { now } else { entry.due? };
        let retry = worker.and_then(|worker| worker.retry.not_before());
        [Some(due), retry, self.slots.retry.not_before()].into_iter().flatten().max()
    }

    /// Starts a worker; returns when to try again if that was not possible.
    fn start(&mut self, database: Oid, now: Instant) -> Option<Instant> {
        if !xact::transaction(database::connectable).contains(&database) {
            shared::forget(database);
            return None;
        }
        shared::starting(database);
        let Some(handle) = Handle::start(database) else { return Some(self.slots.exhausted(now)) };
        self.slots.found();
        self.last = database;
        let worker = self.workers.entry(database).or_insert_with(|| WorkerProcess::new(now));
        worker.handle = Some(handle);
        worker.started = now;
        None
    }
}

impl WorkerProcess {
    fn new(now: Instant) -> Self {
        WorkerProcess { handle: None, started: now, retry: Retry::default() }
    }

    fn ended(&mut self, failed: bool, now: Instant) {
        if !failed || now.duration_since(self.started) > HEALTHY {
            self.retry.succeeded();
        }
        if failed {
            self.retry.failed(now);
        }
    }
}

impl Slots {
    fn found(&mut self) {
        self.retry.succeeded();
        shared::set_crowded(false);
    }

    /// Warns of it now and then, and returns when to try again.
    fn exhausted(&mut self, now: Instant) -> Instant {
        self.exhausted.log(now, || {
            pgrx::ereport!(
                WARNING,
                pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "no background worker slot is free for sync_outbox",
                "Changes wait until one is. Raise \"max_worker_processes\" and restart the server."
            )
        });
        shared::set_crowded(true);
        self.retry.failed(now)
    }
}

/// A warning that is logged when its reason first occurs, and now and then while it persists.
#[derive(Default)]
struct RepeatedWarning(Option<Instant>);

impl RepeatedWarning {
    fn log(&mut self, now: Instant, warn: impl FnOnce()) {
        if self.0.is_none_or(|last| now.duration_since(last) > WARN_AGAIN) {
            self.0 = Some(now);
            warn();
        }
    }
}
