//! Pushing in the background: what the worker of a database calls whenever it is woken.

use super::manual::{destination, fill};
use super::report::{Report, Stop};
use super::session::{Bounds, Link, Session};
use super::transactions::{Own, Transactions};
use crate::error::Error;
use crate::pg::lock::{Scope as LockScope, SenderLock};
use crate::pg::role;
use crate::settings;
use crate::store::history::{self, Action, Entry, Mode};
use crate::store::{Schema, queue, target};
use std::time::{Duration, Instant};

/// How soon to look again when another sender holds the lock.
const BUSY: Duration = Duration::from_millis(500);
/// How often the breaker is looked at while it is open: requeue and resume close it.
const BREAKER_LOOK: Duration = Duration::from_millis(500);
/// A session in the history ends after so long without anything to do, and is brought up to date so often.
const SESSION_IDLE: Duration = Duration::from_secs(10);
const SESSION_UPDATE: Duration = Duration::from_secs(10);

/// When to look again.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// A retry is due then, whether or not anything new is committed.
    pub due_in: Option<Duration>,
    /// Nothing deliverable is left.
    pub idle: bool,
    /// Nothing can change before, whatever is committed: writers may go on without waking anybody.
    pub deaf_for: Duration,
}

impl Next {
    fn idle() -> Self {
        Next { due_in: None, idle: true, deaf_for: Duration::ZERO }
    }
}

/// The sender of one database's worker. Lives as long as the worker, so that its connection is kept.
pub struct Background {
    link: Option<(settings::Delivery, Link)>,
    sessions: Option<Running>,
    /// The last reason for not sending, so that it is logged once.
    told: Option<String>,
}

/// A row of the history that is still being written.
struct Running {
    id: i64,
    entry: Entry,
    total: Report,
    last_busy: Instant,
    written: Instant,
}

impl Default for Background {
    fn default() -> Self {
        Self::new()
    }
}

impl Background {
    pub fn new() -> Self {
        Background { link: None, sessions: None, told: None }
    }

    /// Pushes everything that may be pushed now, for every target. Called outside any transaction. PostgreSQL's ERRORs
    /// come out as unwinds; the caller aborts what is open.
    pub fn run(&mut self) -> Next {
        if !settings::enabled() {
            return Next::idle();
        }
        let Ok((schema, names)) = Own.step(|| {
            let schema = Schema::installed()?;
            let names = target::names(&schema);
            Ok::<_, Error>((schema, names))
        }) else {
            return Next::idle();
        };
        let mut next = Next { deaf_for: Duration::MAX, ..Next::idle() };
        for name in names {
            let one = self.run_target(&schema, &name);
            next.idle &= one.idle;
            next.due_in = [next.due_in, one.due_in].into_iter().flatten().min();
            next.deaf_for = next.deaf_for.min(one.deaf_for);
        }
        if next.deaf_for == Duration::MAX {
            next.deaf_for = Duration::ZERO; // no target yet
        }
        next
    }

    fn run_target(&mut self, schema: &Schema, name: &str) -> Next {
        let wake_in = |due_in| Next { due_in: Some(due_in), idle: false, deaf_for: Duration::ZERO };
        let Some(target) = Own.step(|| target::look_up(schema, name)).filter(|t| !t.paused) else {
            return Next::idle();
        };
        let id = target.id;
        let (state, waiting) = Own.step(|| (target::state(schema, id), queue::any_left(schema, id, None, i64::MAX)));
        if !waiting {
            self.close_session(schema);
            return Next::idle();
        }
        if let Some(ms) = state.wait_ms {
            let due_in = Duration::from_millis(ms as u64);
            return Next { deaf_for: due_in.min(BREAKER_LOOK), ..wake_in(due_in) };
        }
        let Some(_lock) = Own.step(|| SenderLock::try_acquire(schema.outbox(), id, LockScope::Session)) else {
            return wake_in(BUSY);
        };
        let settings = settings::delivery().for_target(&target);
        let destination = match destination(&mut Own, schema, name, &settings) {
            Ok(Ok(destination)) => destination,
            Ok(Err(stop)) => return self.cannot_send(format!("{stop:?}")),
            Err(error) => return self.cannot_send(error.message),
        };
        let mut link = match self.link.take().filter(|(with, _)| *with == settings).map(|(_, link)| link) {
            Some(link) => link,
            None => match Link::open(&settings) {
                Ok(link) => link,
                Err(error) => return self.cannot_send(error),
            },
        };
        self.told = None;
        let user = role::current_user();
        let who = Own.step(|| role::name(user));
        let started = Instant::now();
        let mut tell = |report: &Report| {
            let left = (report.pending - report.acked).max(0);
            let rate = report.acked as f64 / started.elapsed().as_secs_f64().max(0.001);
            crate::pg::activity::report(&format!("sending: {} done, {left} left, {rate:.0} rows/s", report.acked));
        };
        let bounds = Bounds::default();
        let mut session =
            Session::new(Own, schema.clone(), settings.clone(), destination, bounds, &mut link, &mut tell);
        let result = session.run();
        let report = session.report;
        self.link = Some((settings, link));
        self.keep_history(schema, name, who, &report);
        match (result, &report.stop) {
            (Err(error), _) => self.cannot_send(error.message),
            (Ok(()), Some(Stop::Down { retry_in, .. })) => wake_in(*retry_in),
            (Ok(()), _) => {
                let due = Own.step(|| queue::due_in_ms(schema, id)).map(|ms| Duration::from_millis(ms.max(1) as u64));
                Next { due_in: due, idle: due.is_none(), deaf_for: Duration::ZERO }
            }
        }
    }

    /// Says once why nothing is sent. A reload, a new setting or any commit brings us back, and so does time: a file may
    /// have been put in place by hand.
    fn cannot_send(&mut self, why: String) -> Next {
        if self.told.as_deref() != Some(&why) {
            pgrx::log!("sync_outbox sends nothing: {why}");
            self.told = Some(why);
        }
        Next { due_in: Some(settings::delivery().retry_max_interval), ..Next::idle() }
    }

    /// One row per stretch of work: it is written when the stretch begins, and brought up to date now and then.
    fn keep_history(&mut self, schema: &Schema, target: &str, who: String, report: &Report) {
        if report.sent == 0 && report.stop.is_none() {
            return;
        }
        let now = Instant::now();
        if self.sessions.as_ref().is_some_and(|s| s.last_busy.elapsed() > SESSION_IDLE && s.total.stop.is_none()) {
            self.close_session(schema);
        }
        match &mut self.sessions {
            None => {
                let mut entry = Entry::begin(Action::Push, Mode::Automatic, who);
                entry.target = Some(target.to_owned());
                fill(&mut entry, report);
                let id = Own.step(|| {
                    history::prune(schema, settings::history_retention());
                    history::insert(schema, &entry)
                });
                self.sessions = Some(Running { id, entry, total: report.clone(), last_busy: now, written: now });
            }
            Some(running) => {
                let ended_otherwise = running.total.stop != report.stop;
                running.add(report);
                running.last_busy = now;
                if ended_otherwise || running.written.elapsed() > SESSION_UPDATE {
                    running.write(schema);
                }
            }
        }
    }

    fn close_session(&mut self, schema: &Schema) {
        if self.sessions.as_ref().is_some_and(|s| s.last_busy.elapsed() > SESSION_IDLE)
            && let Some(mut running) = self.sessions.take()
        {
            running.write(schema);
        }
    }

    /// Brings the history up to date before the worker leaves.
    pub fn finish(&mut self) {
        if let Some(mut running) = self.sessions.take()
            && let Ok(schema) = Own.step(Schema::installed)
        {
            running.write(&schema);
        }
    }
}

impl Running {
    fn add(&mut self, report: &Report) {
        let total = &mut self.total;
        total.pending = total.pending.max(total.acked + report.pending);
        total.sent += report.sent;
        total.acked += report.acked;
        total.failed += report.failed;
        total.conflicts += report.conflicts;
        total.dead += report.dead;
        total.nothing_left = report.nothing_left;
        total.stop = report.stop.clone();
    }

    fn write(&mut self, schema: &Schema) {
        fill(&mut self.entry, &self.total);
        self.written = Instant::now();
        Own.step(|| history::update(schema, self.id, &self.entry));
    }
}
