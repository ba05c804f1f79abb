//! The worker's sender for one target: its session, and when it may go on. Senders know nothing of each other.

use super::activity::Activity;
use super::announcements::{Announcements, Announcer, Next};
use super::bounds::Bounds;
use super::report::{Report, Stop};
use super::session::{Session, Wait};
use super::settle::SLOW_PROBE;
use super::transactions::{Own, StepError, Transactions};
use crate::pg::latch::Bell;
use crate::pg::lock::{Scope, SenderLock};
use crate::pg::{role, xact};
use crate::settings;
use crate::store::target::{State, Target};
use crate::store::{Schema, stats};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How soon to look again when another sender has the turn. Its end wakes us too.
const BUSY: Duration = Duration::from_millis(100);
/// How soon to try a step again that somebody's lock was in the way of.
const LOCKED: Duration = Duration::from_millis(50);
/// How soon to try again after an ERROR; it doubles with every further one.
const AFTER_ERROR: Duration = Duration::from_secs(1);
const MOST_AFTER_ERROR: Duration = Duration::from_secs(60);

pub struct Sender {
    pub id: i16,
    name: String,
    session: Session,
    lock: Option<SenderLock>,
    /// Nothing is to be done before, but to take a reply.
    not_before: Option<Instant>,
    /// Nothing deliverable was left when it last looked.
    idle: bool,
    /// Nothing can be sent until somebody says something, or for a while.
    stopped: bool,
    stopped_at: Instant,
    /// And nobody waits for that.
    at_rest: bool,
    errors: u32,
    activity: Activity,
    /// Tables that wait as a whole, so that each is logged once.
    waiting_tables: BTreeSet<String>,
    /// The last reason for not sending, so that it is logged once.
    told: Option<String>,
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
            at_rest: false,
            errors: 0,
            activity: Activity::default(),
            waiting_tables: BTreeSet::new(),
            told: None,
            began: Instant::now(),
        }
    }

    /// What the target's row, the breaker or a setting says may be another thing now.
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

    /// Whether it has to hear of what is committed: because nothing deliverable was left when it last looked, or
    /// because it would have to say why nothing is sent.
    pub fn listens(&self) -> bool {
        self.idle || self.news_count_at().is_some_and(|at| at <= Instant::now())
    }

    /// From when on something new is a reason to try again before it is time: a target that refuses everything may take
    /// another change, and where nothing could be sent and nothing waited, somebody has to be told.
    fn news_count_at(&self) -> Option<Instant> {
        let unusable = matches!(self.session.stop(), Some(Stop::TokenMissing { .. } | Stop::Unusable(_)));
        if !self.stopped {
            None
        } else if self.session.was_rejected() {
            Some(self.stopped_at + settings::delivery().retry_interval)
        } else {
            (unusable && self.told.is_none()).then(|| self.stopped_at + AFTER_ERROR)
        }
    }

    /// Whether a request is out, or something is still to be settled.
    pub fn is_busy(&self) -> bool {
        self.session.is_busy()
    }

    /// Goes on as far as it can without waiting. With `closing`, no request is begun any more.
    pub fn advance(&mut self, schema: &Schema, announcer: &Announcer, closing: bool) -> Next {
        let announcements = announcer.for_target(self.id);
        if !self.session.is_out() {
            let now = Instant::now();
            let news_at = self.news_count_at();
            let waits = !(news_at.is_some_and(|at| at <= now) && announcements.are_there());
            if let Some(at) = self.not_before.filter(|at| waits && *at > now) {
                let at = news_at.filter(|at| *at > now).map_or(at, |news_at| news_at.min(at));
                return match self.session.stop() {
                    Some(Stop::Paused | Stop::Cloned) if self.stopped => Next { busy: self.is_busy(), ..Next::idle() },
                    _ => self.next(Some(at)),
                };
            }
            self.not_before = None;
            if self.stopped {
                self.stopped = false;
                self.session.start_again();
                self.idle = false;
            }
            if closing && !self.session.is_busy() {
                self.lock = None;
                return self.next(None);
            }
            if self.idle && !self.is_due() && !announcements.are_there() {
                return self.next(None);
            }
            if self.lock.is_none() {
                self.lock = xact::transaction(|| SenderLock::try_acquire(schema.outbox(), self.id, Scope::Session));
                if self.lock.is_none() {
                    return self.wait(BUSY);
                }
            }
        }
        if self.idle {
            (self.idle, self.began) = (false, Instant::now());
        }
        // Not while it does that: it would begin anew with each step.
        if self.session.looked_at_everything().elapsed() >= settings::interval() && !self.session.is_under_way() {
            self.session.look_at_everything();
        }
        let Sender { session, lock, .. } = self;
        // Without the lock, which an ERROR can have taken away, no request is begun.
        let turn_wanted = || closing || lock.as_ref().is_none_or(SenderLock::is_wanted);
        let result = session.advance(&mut Own, &announcements, &turn_wanted);
        if result.is_ok() {
            self.errors = 0;
        }
        match result {
            Ok(Wait::Reply) => self.next(None),
            Ok(Wait::Others) => self.next(Some(Instant::now())),
            Ok(Wait::Turn) => {
                self.lock = None;
                self.wait(BUSY)
            }
            Ok(Wait::Idle) => {
                (self.lock, self.idle) = (None, true);
                self.told = None;
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
                self.tell(&error.message.clone(), |_| error.log());
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

    /// Writes down what is written down now and then.
    pub fn write_counters(&mut self, schema: &Schema) {
        if self.session.counters().due_in() == Some(Duration::ZERO) {
            let Sender { session, id, .. } = self;
            // Another time will do.
            let _ = Own.step(|| session.counters_mut().write(schema, *id));
        }
        if self.idle {
            self.activity.end_if_idle(schema);
        }
    }

    /// Says once why nothing is sent, and when it is tried again: at the latest after a while, because a file may have
    /// been put in place by hand.
    fn stopped(&mut self, schema: &Schema) -> Next {
        let Some(stop) = self.session.stop().cloned() else { return self.next(None) };
        self.report(schema, Some(stop.clone()));
        (self.stopped, self.stopped_at) = (true, Instant::now());
        self.at_rest = !matches!(stop, Stop::Down { .. } | Stop::TokenInvalid);
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
                // Where nothing waits there is nothing to complain of.
                if Own.step(|| stats::pending(schema, *id, None, 1) > 0).unwrap_or_default() {
                    self.tell(&why, |why| pgrx::log!("sync_outbox sends nothing: {why}"));
                }
                longest
            }
        };
        self.wait(wait)
    }

    fn tell(&mut self, why: &str, log: impl FnOnce(&str)) {
        if self.told.as_deref() != Some(why) {
            log(why);
            self.told = Some(why.to_owned());
        }
    }

    /// Hands over what was done.
    fn report(&mut self, schema: &Schema, stop: Option<Stop>) {
        let report = Report { stop, ..self.session.take_report() };
        report.warn_of_waiting_tables(&self.waiting_tables);
        self.waiting_tables.clone_from(&report.waiting_tables);
        let who = xact::transaction(|| role::name(role::current_user()));
        self.activity.add(schema, &self.name, who, &report);
    }

    /// What it is doing, for `pg_stat_activity`: acknowledged changes since it began, and for how long.
    pub fn progress(&self) -> Option<(i64, Duration)> {
        (!self.idle && !self.stopped && self.session.report().acked > 0)
            .then(|| (self.session.report().acked, self.began.elapsed()))
    }

    /// Brings everything up to date that is written down now and then.
    pub fn finish(&mut self, schema: &Schema) {
        self.report(schema, None);
        let Sender { session, id, .. } = self;
        let _ = Own.step(|| session.counters_mut().write(schema, *id));
        self.activity.end(schema);
        self.lock = None;
    }
}
