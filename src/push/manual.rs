//! Pushing by hand or by cron: `sync_outbox_flush()` and `sync_outbox_drain()`. They always try, whatever the breaker
//! says, with a small probe first; only a pause stops them, and that the database is a copy.

use super::books::Books;
use super::credentials::{self, Token};
use super::mark::Mark;
use super::reader::Scope;
use super::report::{Report, Stop};
use super::session::{Bounds, Destination, Link, Session};
use super::transactions::{Callers, Procedures, Transactions};
use crate::error::{Error, Result, SqlState};
use crate::pg::lock::{Scope as LockScope, SenderLock};
use crate::pg::{heap, role, xact};
use crate::settings;
use crate::store::history::{self, Action, Entry, Mode, Status};
use crate::store::{Schema, backlog, identity, queue, target};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often a drain says how far it is.
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
    let own_txid = Some(heap::top_transaction_id_if_any()).filter(|id| *id != 0);
    let bounds = Bounds {
        scope: Scope { branch, own_txid },
        max_rows,
        until: settings::flush_timeout().map(|t| Instant::now() + t),
        mark: Mark::default(),
    };
    let report = push(&mut || Callers, target, bounds, &mut |_| ())?;
    let retry_at = match &report.stop {
        Some(Stop::Down { retry_in, .. }) => Some(target::iso_after(*retry_in)),
        _ => None,
    };
    Ok(report.to_json(retry_at))
}

/// `CALL sync_outbox_drain(branch, target)`: returns when nothing deliverable is left; what went wrong is a WARNING.
pub fn drain(branch: Option<String>, target: &str) -> Result<()> {
    refuse_transaction()?;
    let bounds = Bounds { scope: Scope { branch, own_txid: None }, ..Bounds::default() };
    let started = Instant::now();
    let mut told = Instant::now();
    let mut tell = |report: &Report| {
        if told.elapsed() >= NOTICE_EVERY {
            told = Instant::now();
            pgrx::notice!("{}", progress(report, started.elapsed()));
        }
    };
    let report = push(&mut || Procedures, target, bounds, &mut tell)?;
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
    transactions: &mut dyn FnMut() -> T,
    name: &str,
    bounds: Bounds,
    progress: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let _once = Once::enter()?;
    let who = role::name(role::current_user());
    let branch = bounds.scope.branch.clone();
    let mut history = Entry::begin(Action::Push, Mode::Manual, who);
    let (schema, target, report) = {
        let (schema, target) = transactions().step(|| {
            let schema = Schema::installed()?;
            let target = target::find(&schema, name)?;
            Ok::<_, Error>((schema, target))
        })?;
        let lock = acquire::<T>(&schema, target.id);
        let report = match &lock {
            None => unsent(transactions(), &schema, target.id, branch.as_deref(), Stop::Busy),
            Some(_) => match destination(&mut transactions(), &schema, name)? {
                Err(stop) => unsent(transactions(), &schema, target.id, branch.as_deref(), stop),
                Ok(destination) => match Link::open(&destination.settings) {
                    Err(error) => {
                        return Err(Error::new(SqlState::ERRCODE_CONFIG_FILE_ERROR, error)
                            .hint("Correct the setting and reload: SELECT pg_reload_conf();"));
                    }
                    Ok(mut link) => {
                        let mut books = Books::default();
                        let mut session = Session::new(
                            transactions(),
                            schema.clone(),
                            destination,
                            bounds,
                            &mut link,
                            &mut books,
                            progress,
                        );
                        session.run()?;
                        let report = session.report;
                        report.warn_of_waiting_tables(&BTreeSet::new());
                        transactions().step(|| books.write(&schema, target.id));
                        report
                    }
                },
            },
        };
        (schema, target, report)
    };
    transactions().step(|| backlog::watch(&schema));
    if report.pending > 0 || report.sent > 0 {
        history.branch = branch;
        history.target = Some(target.name);
        fill(&mut history, &report);
        transactions().step(|| {
            history::prune(&schema, settings::history_retention());
            history::insert(&schema, &history)
        });
    }
    Ok(report)
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
        (true, _) => Status::Success,
        (false, 0) => Status::Failed,
        _ => Status::Partial,
    };
}

/// Where a session sends; or why nothing can be sent. Raises 55000 where nobody has said where.
fn destination<T: Transactions>(
    transactions: &mut T,
    schema: &Schema,
    name: &str,
) -> Result<std::result::Result<Destination, Stop>> {
    transactions.step(|| find_destination(schema, name))
}

/// As [`destination`], inside a transaction.
pub fn find_destination(schema: &Schema, name: &str) -> Result<std::result::Result<Destination, Stop>> {
    if identity::admit(schema).is_err() {
        return Ok(Err(Stop::Cloned));
    }
    let target = target::find(schema, name)?; // again: it may have been paused while we waited for the lock
    if target.paused {
        return Ok(Err(Stop::Paused));
    }
    let settings = settings::delivery().for_target(&target);
    let Some((endpoint, source)) = credentials::endpoint(&target, &settings)? else {
        return Err(no_url(name));
    };
    let signing = credentials::signing_secrets(&settings)?;
    Ok(match credentials::token(&target, &endpoint, source, true)? {
        Token::Found { value, .. } => Ok(Destination { target, endpoint, source, token: value, signing, settings }),
        Token::Missing { why } => {
            target::note_failure(schema, target.id, 0, 0, Some("missing"), "auth missing");
            Err(Stop::TokenMissing { why })
        }
    })
}

fn no_url(name: &str) -> Error {
    Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, format!("target \"{name}\" has no URL"))
        .hint("SELECT sync_outbox_configure('{\"webapp_base_url\": \"https://hub.example.com\", \"sync_upload_token\": \"..\"}');")
}

fn unsent<T: Transactions>(
    mut transactions: T,
    schema: &Schema,
    target_id: i16,
    branch: Option<&str>,
    stop: Stop,
) -> Report {
    let pending = transactions.step(|| queue::count(schema, target_id, branch, T::COUNTED));
    Report { pending, stop: Some(stop), ..Report::default() }
}

/// Takes the sender's lock, waiting up to `sync_outbox.lock_wait` for another sender.
fn acquire<T: Transactions>(schema: &Schema, target_id: i16) -> Option<SenderLock> {
    if T::LOCK == LockScope::Transaction {
        xact::forbid_prepare();
    }
    SenderLock::acquire(schema.outbox(), target_id, T::LOCK, settings::lock_wait())
}

/// Refuses, before anything is sent, a transaction in which a flush cannot be right (`hard-facts` 8).
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

/// Refuses a push inside a push of the same session, which the lock would let pass.
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
