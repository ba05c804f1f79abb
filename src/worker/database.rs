//! The worker of one database: pushes, sleeps until there is a reason to push again, and leaves when it has been idle
//! for a while.
//!
//! No `ERROR` ends it: it aborts the open transaction, logs once what happened, waits and goes on. SIGTERM ends it,
//! also while it waits for a lock.

use super::retry::Retry;
use crate::error::{Error, SqlState};
use crate::pg::latch::{self, WaitEvent};
use crate::pg::{Oid, activity, bgworker, guc, process, xact};
use crate::push::{BackgroundPush, CLONED, Next, Signals};
use crate::settings;
use crate::shared::Seat;
use crate::store::identity::Copied;
use std::ops::ControlFlow::{self, Break, Continue};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Settings that the worker's own transactions depend on, whatever `ALTER DATABASE .. SET` says.
const SETTINGS: [(&str, &str); 6] = [
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("search_path", "pg_catalog, pg_temp"),
    // The process that detects a deadlock first is cancelled. It should be the worker, which repeats its work, and not
    // a DROP EXTENSION or VACUUM FULL.
    ("deadlock_timeout", "100ms"),
    // A lock on the outbox that is held for long has a reason. Steps that must not wait that long set a limit
    // themselves.
    ("lock_timeout", "0"),
];

/// Returns, with the exit status of success, when the worker has left; the launcher starts another when it is needed.
pub fn main(database: Oid) {
    process::handle_signals();
    let Some(seat) = Seat::take(database) else { return };
    bgworker::connect(Some(database));
    guc::reload(); // a SIGHUP between fork and handle_signals() was lost
    for (name, value) in SETTINGS {
        guc::pin(name, value);
    }
    if !xact::commits_asynchronously() {
        guc::pin("synchronous_commit", "local"); // a standby that is gone must not stop what is settled here
    }
    match Worker::new(seat) {
        Ok(worker) => worker.run(),
        Err(error) => pgrx::warning!("sync_outbox sends nothing: could not make an eventfd: {error}"),
    }
}

struct Worker {
    seat: Rc<Seat>,
    background: BackgroundPush,
    was_idle: bool,
    idle_since: Instant,
    retry: Retry,
    /// The last error, so that one that repeats is logged once.
    complaint: Option<String>,
}

/// Why a worker leaves.
enum Leave {
    /// There is nothing to do for a while, or until `due`.
    Idle { due: Option<Instant> },
    /// The extension is not installed, or sending is switched off.
    NotNeeded,
}

impl Signals for Seat {
    fn take_first_id(&self) -> i64 {
        Seat::take_first_id(self)
    }

    fn take_wanted(&self) -> bool {
        Seat::take_wanted(self)
    }
}

impl Worker {
    fn new(seat: Seat) -> std::io::Result<Self> {
        let seat = Rc::new(seat);
        Ok(Worker {
            background: BackgroundPush::new(seat.clone())?,
            seat,
            was_idle: false,
            idle_since: Instant::now(),
            retry: Retry::default(),
            complaint: None,
        })
    }

    fn run(mut self) {
        loop {
            match xact::survive(|| self.run_once()) {
                Ok(Continue(())) => {}
                Ok(Break(Leave::NotNeeded)) => return self.seat.leave_anyway(),
                Ok(Break(Leave::Idle { due })) if self.seat.leave(due) => return,
                Ok(Break(Leave::Idle { .. })) => self.idle_since = Instant::now(),
                Err(error) => self.failed(error),
            }
        }
    }

    /// Does what can be done now, and sleeps until there is a reason to look again.
    fn run_once(&mut self) -> ControlFlow<Leave> {
        if process::reload_requested() {
            guc::reload();
            self.retry.try_now();
            self.background.settings_changed();
        }
        let wait = self.retry.not_before().map(|t| t.saturating_duration_since(Instant::now()));
        if let Some(left) = wait.filter(|left| !left.is_zero()) {
            latch::wait(None, left, WaitEvent::Retry);
            return Continue(());
        }
        // A request that is out when sending is switched off is completed.
        let closing = !settings::enabled();
        let next = self.background.run(closing);
        if closing && !next.busy || !self.background.is_installed() {
            self.background.finish();
            return Break(Leave::NotNeeded);
        }
        self.seat.serve();
        self.recovered();
        if let Some(copied) = next.cloned
            && self.seat.tell_cloned(CLONED)
        {
            warn_cloned(copied);
        }
        self.rest(next)
    }

    /// Sleeps, or leaves.
    fn rest(&mut self, next: Next) -> ControlFlow<Leave> {
        if process::reload_pending() {
            return Continue(());
        }
        let now = Instant::now();
        let idle = next.idle && !next.busy;
        if next.busy || idle && !self.was_idle {
            self.idle_since = now;
        }
        self.was_idle = idle;
        let look = next.look_in.map(|look_in| now + look_in);
        let due = next.due.into_iter().chain(look).min();
        let stay = settings::worker_idle_timeout().saturating_sub(self.idle_since.elapsed());
        let is_due = due.is_some_and(|due| due <= now);
        if !next.busy && !is_due && (stay.is_zero() || self.seat.is_crowded()) {
            self.background.finish();
            return Break(Leave::Idle { due });
        }
        if !next.busy {
            show(&next);
        }
        let longest = settings::interval().min(if next.busy { settings::interval() } else { stay });
        let left = due.map_or(longest, |due| due.saturating_duration_since(now).min(longest));
        let event = if next.busy { WaitEvent::Http } else { WaitEvent::Idle };
        latch::wait(Some(&self.background.bell), left + Duration::from_millis(1), event);
        Continue(())
    }

    fn failed(&mut self, error: Error) {
        self.background.recover(error.sqlstate == SqlState::ERRCODE_QUERY_CANCELED);
        let left = self.retry.failed(Instant::now()).saturating_duration_since(Instant::now());
        activity::idle(&format!("after an error, next try in {left:.0?}"));
        if self.complaint.as_ref() != Some(&error.message) {
            self.complaint = Some(error.message.clone());
            error.log();
        }
    }

    fn recovered(&mut self) {
        self.retry.succeeded();
        self.complaint = None;
    }
}

fn warn_cloned(copied: Copied) {
    Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "sync_outbox sends nothing: this database is a copy")
        .detail(format!("It is paused as cloned: {}.", copied.reason()))
        .hint("SELECT sync_outbox_adopt('same'); if it replaces the original, SELECT sync_outbox_adopt('new'); if the original goes on sending.")
        .log();
}

fn show(next: &Next) {
    activity::idle(&match next.due {
        _ if next.cloned.is_some() => "cloned: nothing is sent".to_owned(),
        Some(due) => format!("next try in {:.0?}", due.saturating_duration_since(Instant::now())),
        None => "nothing to send".to_owned(),
    });
}
