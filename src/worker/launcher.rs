//! The launcher: starts the worker of each database that may have something to do.
//!
//! Level-triggered: every time it wakes it compares what the shared table asks for with what is running, so that no
//! single signal matters. It owns all restarts; the postmaster restarts only the launcher. Where it does not know (at its
//! own start, which includes a crash of the server and a promotion, and after a reload) it has one worker after the other
//! look into every database.

use super::backoff;
use super::shared::{self, View};
use crate::pg::bgworker::{self, Handle};
use crate::pg::{Oid, activity, database, guc, latch, process, shmem, xact};
use crate::settings;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Sleeps until woken.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// The next database is looked into when the one before has answered, or after this.
const PROBE: Duration = Duration::from_secs(5);
/// After so long a run, a worker that ended without a farewell is started again as if it had never failed.
const HEALTHY: Duration = Duration::from_secs(60);
/// At most one complaint about missing worker slots in this time.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(3600);

/// Never returns: it ends by SIGTERM or an `ERROR`, in both cases with the status that has it restarted.
pub fn main() -> ! {
    process::handle_signals();
    bgworker::connect(None);
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
        latch::wait(None, next.map_or(FOREVER, until));
    }
}

/// Rounded up: a sleep that ends a fraction too early would be repeated.
fn until(moment: Instant) -> Duration {
    moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
}

#[derive(Default)]
struct Launcher {
    workers: HashMap<Oid, Worker>,
    /// Databases to look into, and the one that is being looked into, with the time to go on at.
    unprobed: VecDeque<Oid>,
    probing: Option<(Oid, Instant)>,
    slots: Slots,
}

/// What the launcher knows of the worker of a database.
struct Worker {
    handle: Option<Handle>,
    started: Instant,
    failures: u32,
    not_before: Instant,
}

/// Whether there are free background worker slots.
#[derive(Default)]
struct Slots {
    failures: u32,
    not_before: Option<Instant>,
    complained: Option<Instant>,
}

impl Launcher {
    /// If it is a worker that takes the server down, it must not do so as fast as the server can recover. What the
    /// launcher before knew about failures is lost with shared memory.
    fn slow_down_after_crashes(&mut self) {
        let crashes = shmem::crashes();
        if crashes > 0 {
            self.slots.not_before = Some(Instant::now() + backoff(crashes));
        }
    }

    fn probe_all(&mut self) {
        self.unprobed = xact::transaction(database::connectable).into();
        self.probing = None;
    }

    /// Starts what is missing; returns when to look again at the latest.
    fn reconcile(&mut self) -> Option<Instant> {
        if shared::overflowed() {
            pgrx::warning!(
                "sync_outbox cannot serve so many databases at once: some wait until others have nothing to send"
            );
            self.probe_all();
        }
        self.notice_ends();
        self.probe();
        let now = Instant::now();
        let mut next = self.probing.map(|(_, until)| until);
        for entry in shared::all() {
            let Some(at) = self.start_at(&entry, now) else { continue };
            if at > now {
                next = next.into_iter().chain([at]).min();
            } else if let Some(retry) = self.start(entry.database, now) {
                next = next.into_iter().chain([retry]).min();
            }
        }
        next
    }

    /// Takes note of workers that have ended.
    fn notice_ends(&mut self) {
        let mut ended = Vec::new();
        for (database, worker) in &mut self.workers {
            if worker.handle.take_if(|handle| handle.has_ended()).is_some() {
                ended.push(*database);
                self.slots.not_before = None; // there is one free now
            }
        }
        // Looked at afterwards: a worker says farewell before it ends.
        let entries = shared::all();
        let now = Instant::now();
        for database in ended {
            let failed = entries.iter().any(|entry| entry.database == database && !entry.in_order);
            if let Some(worker) = self.workers.get_mut(&database) {
                worker.ended(failed, now);
            }
        }
        self.workers.retain(|database, worker| {
            worker.handle.is_some() || entries.iter().any(|entry| entry.database == *database)
        });
    }

    /// Has the next database looked into when the one before is done with.
    fn probe(&mut self) {
        if let Some((database, until)) = self.probing {
            let open = shared::all().iter().any(|entry| entry.database == database && !entry.serving);
            if open && Instant::now() < until {
                return;
            }
        }
        self.probing = self.unprobed.pop_front().map(|database| (database, Instant::now() + PROBE));
        if let Some((database, _)) = self.probing {
            shared::want(database);
        }
    }

    /// When a worker of this database is to be started, if one is needed and none is there.
    fn start_at(&self, entry: &View, now: Instant) -> Option<Instant> {
        let worker = self.workers.get(&entry.database);
        if entry.has_worker || entry.barred || worker.is_some_and(|worker| worker.handle.is_some()) {
            return None;
        }
        let due = if entry.wanted { now } else { entry.due? };
        Some([Some(due), worker.map(|worker| worker.not_before), self.slots.not_before].into_iter().flatten().max()?)
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
        let worker = self.workers.entry(database).or_insert_with(|| Worker::new(now));
        worker.handle = Some(handle);
        worker.started = now;
        None
    }
}

impl Worker {
    fn new(now: Instant) -> Self {
        Worker { handle: None, started: now, failures: 0, not_before: now }
    }

    fn ended(&mut self, failed: bool, now: Instant) {
        if !failed || now.duration_since(self.started) > HEALTHY {
            self.failures = 0;
        }
        if failed {
            self.failures = self.failures.saturating_add(1);
            self.not_before = now + backoff(self.failures);
        }
    }
}

impl Slots {
    fn found(&mut self) {
        self.failures = 0;
        shared::set_crowded(false);
    }

    /// Says so, once in a while, and returns when to try again.
    fn exhausted(&mut self, now: Instant) -> Instant {
        if self.complained.is_none_or(|at| now.duration_since(at) > COMPLAIN_AGAIN) {
            self.complained = Some(now);
            pgrx::ereport!(
                WARNING,
                pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "no background worker slot is free for sync_outbox",
                "Changes wait until one is. Raise \"max_worker_processes\" and restart the server."
            );
        }
        shared::set_crowded(true);
        self.failures = self.failures.saturating_add(1);
        let retry = now + backoff(self.failures);
        self.not_before = Some(retry);
        retry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_keeps_failing_is_started_less_and_less_often() {
        let now = Instant::now();
        let mut worker = Worker::new(now);
        for seconds in [1, 2, 4] {
            worker.ended(true, now);
            assert_eq!(worker.not_before, now + Duration::from_secs(seconds));
        }
        worker.ended(false, now);
        worker.ended(true, now);
        assert_eq!(worker.failures, 1);
    }

    #[test]
    fn a_worker_that_ran_well_for_a_while_is_started_again_soon() {
        let now = Instant::now();
        let mut worker = Worker::new(now);
        worker.failures = 5;
        let later = now + HEALTHY * 2;
        worker.ended(true, later);
        assert_eq!(worker.not_before, later + Duration::from_secs(1));
    }
}
