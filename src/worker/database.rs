//! The worker of one database: pushes, sleeps until there is a reason to push again, and leaves when it has been idle for a
//! while.
//!
//! No `ERROR` ends it: it aborts what is open, says once what happened, waits and goes on. It is ended by SIGTERM, also in
//! a lock wait.

use super::retry::Retry;
use super::shared::Seat;
use crate::error::{Error, SqlState};
use crate::pg::extension::{self, Extension};
use crate::pg::{Oid, activity, bgworker, guc, latch, process, xact};
use crate::push::{Background, CLONED, Next};
use crate::settings;
use crate::store::identity::Copied;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::{Duration, Instant};

/// What our own transactions depend on, whatever `ALTER DATABASE .. SET` says.
const SETTINGS: [(&str, &str); 6] = [
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("search_path", "pg_catalog, pg_temp"),
    // Who looks first gives way: the worker does its work again, and a DROP EXTENSION or VACUUM FULL goes on.
    ("deadlock_timeout", "100ms"),
    // Whoever locks the outbox for long has a reason; what must not wait for that long sets a limit itself.
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
    Worker::new(seat).run();
}

struct Worker {
    seat: Seat,
    /// The installed extension and the sender made for it.
    sender: Option<(Extension, Background)>,
    was_idle: bool,
    idle_since: Instant,
    retry: Retry,
    /// While the target's breaker is open: nothing can change before.
    deaf_until: Option<Instant>,
    /// The last error, so that one that repeats is logged once.
    complaint: Option<String>,
}

/// Why a worker leaves.
enum Leave {
    /// Nothing to do for a while, or until then.
    Idle { due: Option<Instant> },
    /// The extension is not installed, or sending is switched off.
    NotNeeded,
}

impl Worker {
    fn new(seat: Seat) -> Self {
        Worker {
            seat,
            sender: None,
            was_idle: false,
            idle_since: Instant::now(),
            retry: Retry::default(),
            deaf_until: None,
            complaint: None,
        }
    }

    fn run(mut self) {
        loop {
            match xact::survive(|| self.turn()) {
                Ok(Continue(())) => {}
                Ok(Break(Leave::NotNeeded)) => return self.seat.leave_anyway(),
                Ok(Break(Leave::Idle { due })) if self.seat.leave(due) => return,
                Ok(Break(Leave::Idle { .. })) => {}
                Err(error) => self.failed(error),
            }
        }
    }

    /// Pushes once and sleeps until there is a reason for the next turn.
    fn turn(&mut self) -> ControlFlow<Leave> {
        if process::reload_requested() {
            guc::reload();
            self.retry.try_now();
            self.deaf_until = None;
        }
        if !settings::enabled() {
            self.finish();
            return Break(Leave::NotNeeded);
        }
        let deaf = self.retry.not_before().max(self.deaf_until).map(|t| t.saturating_duration_since(Instant::now()));
        if let Some(left) = deaf.filter(|left| !left.is_zero()) {
            latch::wait(None, left);
            return Continue(());
        }
        if self.seat.take_wanted() {
            self.idle_since = Instant::now();
        }
        if self.seat.take_anew()
            && let Some((_, background)) = &mut self.sender
        {
            background.look_at_everything();
        }
        let Some(next) = self.push() else { return Break(Leave::NotNeeded) };
        self.recovered();
        if let Some(copied) = next.cloned
            && self.seat.tell_cloned(CLONED)
        {
            warn_cloned(copied);
        }
        self.rest(next)
    }

    /// One push session; `None` without the extension.
    fn push(&mut self) -> Option<Next> {
        let installed = xact::transaction(extension::installed)?;
        self.seat.serve();
        let sender = match self.sender.take().filter(|(of, _)| *of == installed) {
            Some(sender) => sender,
            None => (installed, Background::default()),
        };
        let (_, background) = self.sender.insert(sender);
        Some(background.run())
    }

    /// Sleeps, or leaves.
    fn rest(&mut self, next: Next) -> ControlFlow<Leave> {
        if !next.idle && next.due_in.is_none() {
            return Continue(());
        }
        self.deaf_until = (!next.deaf_for.is_zero()).then(|| Instant::now() + next.deaf_for);
        if self.seat.is_wanted() || process::reload_pending() {
            // While deaf the announcement of work stays up, so that committing writers have nobody to wake.
            if self.deaf_until.is_some() {
                show(&next);
            }
            return Continue(());
        }
        if next.idle && !self.was_idle {
            self.idle_since = Instant::now();
        }
        self.was_idle = next.idle;
        let due_in = [next.due_in, next.look_in].into_iter().flatten().min();
        let due = due_in.map(|due_in| Instant::now() + due_in);
        let stay = settings::worker_idle_timeout().saturating_sub(self.idle_since.elapsed());
        if stay.is_zero() || self.seat.is_crowded() {
            self.finish();
            return Break(Leave::Idle { due });
        }
        show(&next);
        let longest = stay.min(settings::interval());
        latch::wait(None, due_in.map_or(longest, |due_in| due_in.min(longest)) + Duration::from_millis(1));
        Continue(())
    }

    /// Has the sender write down what it did, before the worker leaves.
    fn finish(&mut self) {
        if let Some((_, background)) = &mut self.sender {
            background.finish();
        }
    }

    fn failed(&mut self, error: Error) {
        self.sender = None; // its connection and what it remembers may be in any state
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
    activity::idle(&match next.due_in {
        _ if next.cloned.is_some() => "cloned: nothing is sent".to_owned(),
        Some(due_in) => format!("next try in {due_in:.0?}"),
        None => "nothing to send".to_owned(),
    });
}
