//! The worker's sender for one target: it remembers from one session to the next what makes the next one short.

use super::background::Next;
use super::books::Books;
use super::manual::find_destination;
use super::mark::{HEAD, Mark};
use super::report::{Report, Stop};
use super::session::{Bounds, Destination, Link, Session};
use super::stretch::Stretch;
use super::transactions::{Own, Transactions};
use crate::error::Error;
use crate::pg::lock::{Scope, SenderLock};
use crate::pg::{activity, role};
use crate::settings::{self, Delivery};
use crate::store::target::{State, Target};
use crate::store::{Schema, queue};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How soon to look again when another sender holds the lock.
const BUSY: Duration = Duration::from_millis(500);
/// How often the breaker is looked at while it is open: requeue and resume close it.
const BREAKER_LOOK: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Sender {
    link: Option<(Delivery, Link)>,
    mark: Mark,
    /// When a session last began at the head.
    looked_at_everything: Option<Instant>,
    books: Books,
    stretch: Stretch,
    /// Tables that wait as a whole, so that each is logged once.
    waiting_tables: BTreeSet<String>,
    /// The last reason for not sending, so that it is logged once.
    told: Option<String>,
}

impl Sender {
    /// Changes behind the mark may be deliverable now.
    pub fn look_at_everything(&mut self) {
        self.mark = Mark::default();
    }

    /// The id from which on there may be something to do.
    pub fn begin_at(&mut self) -> i64 {
        if self.looked_at_everything.is_none_or(|at| at.elapsed() >= settings::interval()) {
            self.look_at_everything();
        }
        if self.mark.at() == HEAD {
            self.looked_at_everything = Some(Instant::now());
        }
        self.mark.at()
    }

    /// Pushes what waits for the target, if anything does.
    pub fn run(&mut self, schema: &Schema, target: Target, state: &State, waiting: bool) -> Next {
        let next = self.push_or_wait(schema, &target, state, waiting);
        let books_due = self.books.due_in();
        if books_due == Some(Duration::ZERO) {
            Own.step(|| self.books.write(schema, target.id));
            return next;
        }
        Next { due_in: [next.due_in, books_due].into_iter().flatten().min(), ..next }
    }

    fn push_or_wait(&mut self, schema: &Schema, target: &Target, state: &State, waiting: bool) -> Next {
        if target.paused {
            return Next::idle();
        }
        if !waiting {
            self.stretch.end_if_idle(schema);
            return Next::idle();
        }
        if let Some(ms) = state.wait_ms {
            let due_in = Duration::from_millis(ms as u64);
            return Next { deaf_for: due_in.min(BREAKER_LOOK), ..Next::not_before(due_in) };
        }
        let user = role::current_user();
        let (lock, destination, who) = Own.step(|| {
            let Some(lock) = SenderLock::try_acquire(schema.outbox(), target.id, Scope::Session) else {
                return (None, Ok(Err(Stop::Busy)), String::new());
            };
            (Some(lock), find_destination(schema, &target.name), role::name(user))
        });
        match (lock, destination) {
            (None, _) => Next::not_before(BUSY),
            (Some(_lock), Ok(Ok(destination))) => self.push(schema, destination, who),
            (_, Ok(Err(stop))) => self.cannot_send(stop.to_string()),
            (_, Err(error)) => self.cannot_send(error.message),
        }
    }

    /// One session. The caller holds the sender's lock.
    fn push(&mut self, schema: &Schema, destination: Destination, who: String) -> Next {
        let settings = destination.settings.clone();
        let mut link = match self.link.take().filter(|(with, _)| *with == settings) {
            Some((_, link)) => link,
            None => match Link::open(&settings) {
                Ok(link) => link,
                Err(error) => return self.cannot_send(error),
            },
        };
        self.told = None;
        let Target { id, name, .. } = destination.target.clone();
        let started = Instant::now();
        let mut tell = |report: &Report| {
            let left = (report.pending - report.acked).max(0);
            let rate = report.acked as f64 / started.elapsed().as_secs_f64().max(0.001);
            activity::report(&format!("sending: {} done, {left} left, {rate:.0} rows/s", report.acked));
        };
        let bounds = Bounds { mark: self.mark.clone(), ..Bounds::default() };
        let books = &mut self.books;
        let mut session = Session::new(Own, schema.clone(), destination, bounds, &mut link, books, &mut tell);
        let result: Result<(), Error> = session.run();
        self.mark = session.mark().clone();
        let report = session.report;
        report.warn_of_waiting_tables(&self.waiting_tables);
        self.waiting_tables.clone_from(&report.waiting_tables);
        // After a failure its files are read again: certificates, authorities and keys may have been renewed.
        let down = matches!(report.stop, Some(Stop::Down { .. }));
        self.link = (!down).then_some((settings, link));
        self.stretch.add(schema, &name, who, &report);
        match (result, &report.stop) {
            (Err(error), _) => self.cannot_send(error.message),
            (Ok(()), Some(Stop::Down { retry_in, .. })) => Next::not_before(*retry_in),
            (Ok(()), _) => {
                let due = Own.step(|| queue::due_in_ms(schema, id)).map(|ms| Duration::from_millis(ms.max(1) as u64));
                due.map_or(Next::idle(), Next::not_before)
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

    /// Brings everything up to date that is written down now and then.
    pub fn finish(&mut self, schema: &Schema, target_id: i16) {
        Own.step(|| self.books.write(schema, target_id));
        self.stretch.end(schema);
    }
}
