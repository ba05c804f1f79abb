//! Pushing on request: `sync_outbox_flush()` and `sync_outbox_drain()`. They always try, even while the circuit breaker
//! is open, with a small probe first. Only a pause stops them, or that the database is a copy.

use super::announcements::{Announcements, NOTHING};
use super::bounds::{Bounds, Selection};
use super::report::{Report, Stop};
use super::session::{Session, Wait};
use super::transactions::{Callers, Procedures, StepError, Transactions};
use crate::error::{Error, Result, SqlState};
use crate::pg::latch::{self, Bell, WaitEvent};
use crate::pg::lock::{LockScope, SenderLock};
use crate::pg::{guc, process, role, transaction_id, xact};
use crate::settings;
use crate::store::history::{self, Action, Entry, HistoryStatus, Mode};
use crate::store::{Schema, backlog, target};
use crate::wake;
use delivery::http;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How soon to try a step again that somebody's lock has blocked.
const LOCKED: Duration = Duration::from_millis(50);
/// How many HTTP threads that were given up by cancelled calls a session may have running, before it waits for them:
/// each has memory and files of its own.
const MOST_GIVEN_UP: usize = 4;
const GIVEN_UP: Duration = Duration::from_millis(10);
/// How long to sleep where nothing is due.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a drain reports its progress.
const NOTICE_EVERY: Duration = Duration::from_secs(2);

/// `sync_outbox_flush(branch, max_rows, target)`: the answer as JSON text.
pub fn flush(branch: Option<String>, max_rows: Option<i32>, target: &str) -> Result<String> {
    let max_rows = match max_rows {
        Some(n) if n < 0 => {
            return Err(Error::argument("max_rows must not be negative").hint("Leave it out to send everything."));
        }
        n => n.map(|n| n as usize),
    };
    refuse_transaction()?;
    let own_txid = Some(transaction_id::top_if_any()).filter(|id| *id != 0);
    let bounds = Bounds {
        selection: Selection { branch, own_txid },
        max_rows,
        until: settings::flush_timeout().map(|t| Instant::now() + t),
    };
    let report = push(&mut Callers, target, bounds, &mut |_| ())?;
    let retry_at = match &report.stop {
        Some(Stop::Down { retry_in, .. }) => Some(target::iso_after(*retry_in)),
        _ => None,
    };
    Ok(report.to_json(retry_at))
}

/// `CALL sync_outbox_drain(branch, target)`: returns when nothing deliverable is left; what went wrong is a WARNING.
pub fn drain(branch: Option<String>, target: &str) -> Result<()> {
    refuse_transaction()?;
    let bounds = Bounds { selection: Selection { branch, own_txid: None }, ..Bounds::default() };
    let started = Instant::now();
    let mut reported = Instant::now();
    let mut report_progress = |report: &Report| {
        if reported.elapsed() >= NOTICE_EVERY {
            reported = Instant::now();
            pgrx::notice!("{}", progress(report, started.elapsed()));
        }
    };
    let report = push(&mut Procedures, target, bounds, &mut report_progress)?;
    pgrx::notice!("{}", progress(&report, started.elapsed()));
    if let Some(error) = report.error() {
        pgrx::warning!("sync_outbox_drain stopped: {error}");
    }
    Ok(())
}

fn progress(report: &Report, elapsed: Duration) -> String {
    let left = (report.pending - report.acked).max(0);
    let rate = report.acked as f64 / elapsed.as_secs_f64().max(0.001);
    format!("sync_outbox_drain: {} done, {left} left, {rate:.0} rows/s", report.acked)
}

/// One manual session: everything from the target's name to the row in the history.
fn push<T: Transactions>(
    transactions: &mut T,
    name: &str,
    bounds: Bounds,
    progress: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let _once = Once::enter()?;
    while http::given_up() >= MOST_GIVEN_UP && bounds.until.is_none_or(|until| until > Instant::now()) {
        latch::wait(None, GIVEN_UP, WaitEvent::Http);
    }
    let who = role::name(role::current_user());
    let branch = bounds.selection.branch.clone();
    let mut history = Entry::begin(Action::Push, Mode::Manual, who);
    let (schema, target) = until_unblocked(transactions, |transactions| {
        transactions.step(|| {
            let schema = Schema::installed()?;
            let target = target::find(&schema, name)?;
            Ok::<_, Error>((schema, target))
        })
    })?;
    let bell = Arc::new(Bell::new().map_err(|error| {
        Error::new(SqlState::ERRCODE_SYSTEM_ERROR, format!("could not make an eventfd: {error}"))
            .hint("Raise the limit of open files.")
    })?);
    let mut session = Session::new::<T>(schema.clone(), (target.id, target.name.clone()), bounds, bell.clone());
    let mut running = ManualPush { transactions, schema: &schema, target_id: target.id, bell: &bell, lock: None };
    let stop = running.run(&mut session, progress);
    let ManualPush { transactions, lock, .. } = running;
    if let Some(Stop::Unusable(error)) = stop {
        return Err(error);
    }
    let mut report = session.take_report();
    report.stop = stop;
    report.warn_of_waiting_tables(&BTreeSet::new());
    until_unblocked(transactions, |transactions| {
        transactions.step(|| {
            session.counters_mut().write(&schema, target.id);
            if report.acked > 0 {
                wake::control_at_commit(); // a worker that waits because the target was down can go on
            }
        })
    });
    drop(lock);
    until_unblocked(transactions, |transactions| transactions.step(|| backlog::watch(&schema)));
    if report.pending > 0 || report.sent > 0 {
        history.branch = branch;
        history.target = Some(target.name);
        fill(&mut history, &report);
        until_unblocked(transactions, |transactions| {
            transactions.step(|| {
                history::prune(&schema, settings::history_retention());
                history::insert(&schema, &history)
            })
        });
    }
    Ok(report)
}

/// A session that is run to its end, waiting where it has to.
struct ManualPush<'a, T> {
    transactions: &'a mut T,
    schema: &'a Schema,
    target_id: i16,
    bell: &'a Bell,
    lock: Option<SenderLock>,
}

impl<T: Transactions> ManualPush<'_, T> {
    /// Runs the session to its end; returns why it ended early.
    fn run(&mut self, session: &mut Session, progress: &mut dyn FnMut(&Report)) -> Option<Stop> {
        if !self.take_the_turn(session) {
            until_unblocked(self.transactions, |transactions| session.count_what_is_left(transactions));
            return Some(Stop::Busy);
        }
        loop {
            if process::reload_pending() && T::LOCK == LockScope::Session {
                process::reload_requested();
                guc::reload();
            }
            let lock = self.lock.as_ref();
            // A flush keeps its turn: what it has deleted is not committed before its caller's transaction is.
            let turn_wanted = || T::LOCK == LockScope::Session && lock.is_some_and(SenderLock::is_wanted);
            self.bell.clear();
            match session.advance(self.transactions, &NoAnnouncements, &turn_wanted) {
                Ok(Wait::Reply) => self.wait_for_reply(session),
                Ok(Wait::Turn) => {
                    self.lock = None;
                    if !self.take_the_turn(session) {
                        until_unblocked(self.transactions, |transactions| session.count_what_is_left(transactions));
                        return Some(Stop::Busy);
                    }
                }
                Ok(Wait::OtherTargets) => {}
                Ok(Wait::Idle) => return None,
                Ok(Wait::Stopped) => {
                    until_unblocked(self.transactions, |transactions| session.count_what_is_left(transactions));
                    return session.stop().cloned();
                }
                Err(StepError::Failed(error)) => error.raise(),
                Err(StepError::Locked) => latch::wait(Some(self.bell), LOCKED, WaitEvent::Lock),
            }
            progress(session.report());
        }
    }

    fn wait_for_reply(&self, session: &mut Session) {
        match session.until().map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) if left.is_zero() => session.give_up("timeout (flush_timeout)"),
            left => latch::wait(Some(self.bell), left.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT), WaitEvent::Http),
        }
    }

    /// Takes the sender's lock, waiting up to `sync_outbox.lock_wait` for another sender; a drain that has had its turn
    /// queues again behind all that wait.
    fn take_the_turn(&mut self, session: &mut Session) -> bool {
        if T::LOCK == LockScope::Transaction {
            xact::forbid_prepare();
        }
        let ManualPush { transactions, schema, target_id, .. } = self;
        let patience = settings::lock_wait();
        self.lock = transactions.patiently(|| SenderLock::acquire(schema.outbox(), *target_id, T::LOCK, patience));
        if self.lock.is_some() {
            wake::turn_taken();
        }
        session.forget_what_was_read();
        self.lock.is_some()
    }
}

/// Nobody announces anything to a session that sees what was committed at its beginning.
struct NoAnnouncements;

impl Announcements for NoAnnouncements {
    fn take_first_id(&self) -> i64 {
        NOTHING
    }

    fn clear_flag_and_check(&self) -> bool {
        false
    }
}

/// Repeats a step until it succeeds, however long somebody's lock blocks it.
fn until_unblocked<T: Transactions, R>(
    transactions: &mut T,
    mut step: impl FnMut(&mut T) -> std::result::Result<R, StepError>,
) -> R {
    loop {
        match step(transactions) {
            Ok(result) => return result,
            Err(StepError::Failed(error)) => error.raise(),
            Err(StepError::Locked) => latch::wait(None, LOCKED, WaitEvent::Lock),
        }
    }
}

/// Copies what a session did into its row of the history.
pub fn fill(entry: &mut Entry, report: &Report) {
    entry.finish();
    entry.pending = report.pending;
    entry.sent = report.sent;
    entry.acked = report.acked;
    entry.failed = report.failed + report.conflicts + report.dead;
    entry.error = report.error();
    entry.status = match (report.nothing_left, report.acked) {
        (true, _) => HistoryStatus::Success,
        (false, 0) => HistoryStatus::Failed,
        _ => HistoryStatus::Partial,
    };
}

/// Refuses, before anything is sent, a transaction in which a flush cannot be right (`invariants` 8).
fn refuse_transaction() -> Result<()> {
    if xact::in_recovery() {
        return Err(Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "a standby does not send changes")
            .hint("Call it on the primary; after a promotion this server goes on by itself."));
    }
    if xact::is_read_only() {
        return Err(Error::new(
            SqlState::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            "cannot send changes in a read-only transaction",
        )
        .hint("SET TRANSACTION READ WRITE; or SET default_transaction_read_only = off;"));
    }
    if xact::uses_one_snapshot() {
        return Err(Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "cannot send changes in a transaction that keeps one snapshot",
        )
        .detail("It would send again what another sender has delivered meanwhile.")
        .hint("SET TRANSACTION ISOLATION LEVEL READ COMMITTED; before the first query."));
    }
    Ok(())
}

thread_local! {
    static SENDING: Cell<bool> = const { Cell::new(false) };
}

/// Refuses a push inside a push of the same session, which the sender's lock would allow.
struct Once;

impl Once {
    fn enter() -> Result<Self> {
        if SENDING.replace(true) {
            return Err(Error::new(SqlState::ERRCODE_OBJECT_IN_USE, "this session is sending already")
                .hint("Do not call it from a trigger on the outbox."));
        }
        Ok(Once)
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        SENDING.set(false);
    }
}
