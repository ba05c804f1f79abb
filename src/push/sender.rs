//! The worker's sender for one target: its session, and when it may go on. Senders know nothing of each other.

use super::activity::Activity;
use super::announcements::{Announcements, Announcer, Next};
use super::bounds::Bounds;
use super::report::{Report, Stop};
use super::session::{Session, Wait};
use super::settle::SLOW_PROBE;
use super::transactions::{Own, StepError, Transactions};
use crate::pg::latch::Bell;
use crate::pg::lock::{LockScope, SenderLock};
use crate::pg::{role, xact};
use crate::settings;
use crate::store::target::{State, Target};
use crate::store::{Schema, stats};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How soon to look again when another sender has the turn. Its end wakes us too.
const BUSY: Duration = Duration::from_millis(100);
/// How soon to try a step again that somebody's lock has blocked.
const LOCKED: Duration = Duration::from_millis(50);
/// How soon to try again after an ERROR; it doubles with every further one.
const AFTER_ERROR: Duration = Duration::from_secs(1);
const MOST_AFTER_ERROR: Duration = Duration::from_secs(60);

pub struct Sender {
    pub id: i16,
    name: String,
    session: Session,
    lock: Option<SenderLock>,
    /// Nothing is to be done before this time, except to take a reply.
    not_before: Option<Instant>,
    /// Nothing deliverable was left when it last looked.
    idle: bool,
    /// Nothing can be sent for a while, or until an administrator changes something.
    stopped: bool,
    stopped_at: Instant,
    errors: u32,
    activity: Activity,
    /// Tables that wait as a whole, so that each is logged once.
    waiting_tables: BTreeSet<String>,
    /// The last reason for not sending that was logged, so that it is logged once.
    logged: Option<String>,
    began: Instant,
}

impl Sender {
    pub fn new(schema: &Schema, target: &Target, state: &State, bell: &Arc<Bell>) -> Self {
        let Target { id, name, .. } = target.clone();
        let until = |ms: i64| Instant::now() + Duration::from_millis(ms as u64);
        Sender {
            id,
            session: Session::new::<Own>(schema.clone(), (id, name.clone()), Bounds::default(), bell.clone()),
            name,
            lock: None,
            not_before: state.wait_ms.map(until),
            idle: false,
            stopped: state.wait_ms.is_some(),
            stopped_at: Instant::now(),
            errors: 0,
            activity: Activity::default(),
            waiting_tables: BTreeSet::new(),
            logged: None,
            began: Instant::now(),
        }
    }

    /// The target's row, the breaker or a setting may have changed.
    pub fn control(&mut self, state: &State) {
        self.session.settings_changed();
        self.not_before = state.wait_ms.map(|ms| Instant::now() + Duration::from_millis(ms as u64));
        if self.stopped && self.not_before.is_none() {
            self.stopped = false;
            self.session.start_again();
        }
        self.idle = false;
    }

    /// Every lock of the process has been released.
    pub fn recover(&mut self, cancelled: bool) {
        if let Some(lock) = self.lock.take() {
            lock.was_lost();
        }
        self.session.forget_what_was_read();
        if cancelled {
            self.session.give_up("cancelled");
        }
        self.idle = false;
    }

    /// Whether it needs to know of commits: because nothing deliverable was left when it last looked, or because it
    /// would have to log why nothing is sent.
    pub fn listens(&self) -> bool {
        self.idle || self.retries_on_commit_at().is_some_and(|at| at <= Instant::now())
    }

    /// From when on new changes are a reason to try again early: a target that refuses everything may take another
    /// change, and where nothing could be sent and nothing waited, the reason has to be logged once something waits.
    fn retries_on_commit_at(&self) -> Option<Instant> {
        let unusable = matches!(self.session.stop(), Some(Stop::TokenMissing { .. } | Stop::Unusable(_)));
        if !self.stopped {
            None
        } else if self.session.was_rejected() {
            Some(self.stopped_at + settings::delivery().retry_interval)
        } else {
            (unusable && self.logged.is_none()).then(|| self.stopped_at + AFTER_ERROR)
        }
    }

    /// Whether a request is out, or something is still to be settled.
    pub fn is_busy(&self) -> bool {
        self.session.is_busy()
    }

    /// Goes on as far as it can without waiting. With `closing`, no new request is begun.
    pub fn advance(&mut self, schema: &Schema, announcer: &Announcer, closing: bool) -> Next {
        let announcements = announcer.for_target(self.id);
        if !self.session.is_out()
            && let Some(next) = self.prepare(schema, &announcements, closing)
        {
            return next;
        }
        if self.idle {
            (self.idle, self.began) = (false, Instant::now());
        }
        // Not while it is already doing that: it would start over with each step.
        if self.session.looked_at_everything().elapsed() >= settings::interval() && !self.session.is_under_way() {
            self.session.look_at_everything();
        }
        let Sender { session, lock, .. } = self;
        // Without the lock, which an ERROR can have taken away, no request is begun.
        let turn_wanted = || closing || lock.as_ref().is_none_or(SenderLock::is_wanted);
        let result = session.advance(&mut Own, &announcements, &turn_wanted);
        self.next_after(result, schema)
    }

    /// Gets the session ready to go on while no request is out: it must be time, there must be a reason, and it needs
    /// the lock. Otherwise returns when to look again.
    fn prepare(&mut self, schema: &Schema, announcements: &dyn Announcements, closing: bool) -> Option<Next> {
        let now = Instant::now();
        let early_at = self.retries_on_commit_at();
        let waits = !(early_at.is_some_and(|at| at <= now) && announcements.clear_flag_and_check());
        if let Some(at) = self.not_before.filter(|at| waits && *at > now) {
            let at = early_at.filter(|at| *at > now).map_or(at, |early_at| early_at.min(at));
            return Some(match self.session.stop() {
                Some(Stop::Paused | Stop::Cloned) if self.stopped => Next { busy: self.is_busy(), ..Next::idle() },
                _ => self.next(Some(at)),
            });
        }
        self.not_before = None;
        if self.stopped {
            self.stopped = false;
            self.session.start_again();
            self.idle = false;
        }
        if closing && !self.session.is_busy() {
            self.lock = None;
            return Some(self.next(None));
        }
        if self.idle && !self.is_due() && !announcements.clear_flag_and_check() {
            return Some(self.next(None));
        }
        if self.lock.is_none() {
            self.lock = xact::transaction(|| SenderLock::try_acquire(schema.outbox(), self.id, LockScope::Session));
            if self.lock.is_none() {
                return Some(self.wait(BUSY));
            }
        }
        None
    }

    /// When to look again, after the session has gone as far as it could.
    fn next_after(&mut self, result: Result<Wait, StepError>, schema: &Schema) -> Next {
        if result.is_ok() {
            self.errors = 0;
        }
        match result {
            Ok(Wait::Reply) => self.next(None),
            Ok(Wait::OtherTargets) => self.next(Some(Instant::now())),
            Ok(Wait::Turn) => {
                self.lock = None;
                self.wait(BUSY)
            }
            Ok(Wait::Idle) => {
                (self.lock, self.idle) = (None, true);
                self.logged = None;
                self.report(schema, None);
                self.next(None)
            }
            Ok(Wait::Stopped) => {
                self.lock = None;
                self.stopped(schema)
            }
            Err(StepError::Locked) => self.wait(LOCKED),
            Err(StepError::Failed(error)) => {
                self.session.look_at_everything();
                let wait = (AFTER_ERROR * 2u32.saturating_pow(self.errors)).min(MOST_AFTER_ERROR);
                self.errors = (self.errors + 1).min(16);
                self.log_once(&error.message.clone(), |_| error.log());
                self.wait(wait)
            }
        }
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        self.session.due().is_some_and(|due| due <= now)
            || self.session.looked_at_everything().elapsed() >= settings::interval()
            || !self.session.is_current()
    }

    fn wait(&mut self, wait: Duration) -> Next {
        let at = Instant::now() + wait;
        self.not_before = Some(at);
        self.next(Some(at))
    }

    fn next(&self, at: Option<Instant>) -> Next {
        let due = at.or_else(|| if self.idle { self.session.due() } else { None });
        let due = due.max(self.not_before);
        Next {
            due: due.into_iter().chain(self.counters_due()).min(),
            idle: self.idle,
            busy: self.is_busy(),
            ..Next::idle()
        }
    }

    fn counters_due(&self) -> Option<Instant> {
        self.session.counters().due_in().map(|due_in| Instant::now() + due_in)
    }

    /// Writes the counters, if it is time.
    pub fn write_counters(&mut self, schema: &Schema) {
        if self.session.counters().due_in() == Some(Duration::ZERO) {
            let Sender { session, id, .. } = self;
            // If this fails, it is done next time.
            let _ = Own.step(|| session.counters_mut().write(schema, *id));
        }
        if self.idle {
            self.activity.end_if_idle(schema);
        }
    }

    /// Logs once why nothing is sent, and decides when to try again: not later than after `retry_max_interval`, because
    /// a missing file may have been put in place.
    fn stopped(&mut self, schema: &Schema) -> Next {
        let Some(stop) = self.session.stop().cloned() else { return self.next(None) };
        self.report(schema, Some(stop.clone()));
        (self.stopped, self.stopped_at) = (true, Instant::now());
        let longest = settings::delivery().retry_max_interval;
        let wait = match stop {
            Stop::Down { retry_in, .. } => retry_in,
            Stop::TokenInvalid => SLOW_PROBE,
            Stop::Paused | Stop::Cloned => {
                self.not_before = Some(Instant::now() + longest);
                return Next { busy: self.is_busy(), ..Next::idle() };
            }
            stop => {
                let why = stop.to_string();
                let Sender { id, .. } = self;
                // Where nothing waits, there is nothing to warn of.
                if Own.step(|| stats::pending(schema, *id, None, 1) > 0).unwrap_or_default() {
                    self.log_once(&why, |why| pgrx::log!("sync_outbox sends nothing: {why}"));
                }
                longest
            }
        };
        self.wait(wait)
    }

    fn log_once(&mut self, why: &str, log: impl FnOnce(&str)) {
        if self.logged.as_deref() != Some(why) {
            log(why);
            self.logged = Some(why.to_owned());
        }
    }

    /// Adds what was done to the history.
    fn report(&mut self, schema: &Schema, stop: Option<Stop>) {
        let report = Report { stop, ..self.session.take_report() };
        report.warn_of_waiting_tables(&self.waiting_tables);
        self.waiting_tables.clone_from(&report.waiting_tables);
        let who = xact::transaction(|| role::name(role::current_user()));
        self.activity.add(schema, &self.name, who, &report);
    }

    /// What it is doing, for `pg_stat_activity`: how many changes were acknowledged since it began, and how long ago
    /// that was.
    pub fn progress(&self) -> Option<(i64, Duration)> {
        (!self.idle && !self.stopped && self.session.report().acked > 0)
            .then(|| (self.session.report().acked, self.began.elapsed()))
    }

    /// Writes everything that is otherwise written now and then.
    pub fn finish(&mut self, schema: &Schema) {
        self.report(schema, None);
        let Sender { session, id, .. } = self;
        let _ = Own.step(|| session.counters_mut().write(schema, *id));
        self.activity.end(schema);
        self.lock = None;
    }
}
