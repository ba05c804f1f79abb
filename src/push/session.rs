//! A push session to one target: a state machine that never waits. [`Session::advance`] does what can be done now (have
//! a batch read, send a request, take its reply, settle) and says what it waits for; who waits is the caller.
//!
//! While a request is out, the batch before it is settled and the batch after it is read. Before each request the
//! session compares whether anything was said meanwhile that it must know ([`Session::is_current`]): what it has read
//! ahead is void then, and it asks again where to send and with what. No transaction of ours is open between two steps
//! (but for the caller's own, in a flush).
//!
//! A step that was undone (somebody's lock, an ERROR) leaves the session as it was before: what is out is still out,
//! and what was acknowledged is still to be settled.

use super::counters::Counters;
use super::destination::Destination;
use super::exchange::{Answered, Ended, Exchange, Judged, Trouble};
use super::http_link::HttpLink;
use super::reader::{News, Reader, Rescan, Scope};
use super::report::{Report, Stop};
use super::settle::{self, Settlement};
use super::suspicion::{Proof, Suspicion};
use super::transactions::{Transactions, Undone};
use crate::error::{Error, SqlState};
use crate::pg::latch::Bell;
use crate::pg::lock::LockScope;
use crate::settings;
use crate::store::{Schema, queue, reclaim, stats, target};
use crate::wake;
use delivery::batch::Batch;
use delivery::http::NoResponse;
use delivery::outcome::{Failure, FailureKind};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;
use wire::Priority;
use wire::answer::Verdict;

/// Changes in the first request while the target is not known to answer.
const PROBE_ROWS: usize = 10;
/// Without preloading nobody says when something has changed: it is looked up again after this time.
const CURRENT_FOR: Duration = Duration::from_millis(50);
/// How long nothing must have come before the worker looks whether disk space can be given back.
const QUIET: Duration = Duration::from_secs(1);
/// So many changes a bounded session counts exactly at its beginning.
const COUNTED: i64 = 1_000_000;
/// So many the worker counts, when a target is found down: nobody waits for the figure.
const COUNTED_WHEN_DOWN: i64 = 10_000;

/// Bounds of one session.
#[derive(Clone, Default)]
pub struct Bounds {
    pub scope: Scope,
    pub max_rows: Option<usize>,
    pub until: Option<Instant>,
}

/// What a session waits for.
pub enum Wait {
    /// The reply to a request, which rings the bell.
    Reply,
    /// Somebody else wants the turn. Everything is settled, and nothing that was read ahead counts any more.
    Turn,
    /// Nothing: it goes on as soon as the others have had their turn.
    Others,
    /// Nothing deliverable is left.
    Idle,
    /// Nothing can be sent: [`Session::stop`] says why.
    Stopped,
}

/// When a session last asked where to send, and with what.
struct Asked {
    at: Instant,
    control: Option<u64>,
}

pub struct Session {
    schema: Schema,
    /// The target.
    id: i16,
    name: String,
    bounds: Bounds,
    bounded: bool,
    bell: Arc<Bell>,
    link: Option<HttpLink>,
    destination: Option<Destination>,
    asked: Option<Asked>,
    reader: Reader,
    ahead: Option<Batch>,
    /// What comes after the request that is out has been looked for.
    looked_ahead: bool,
    exchange: Option<Exchange>,
    /// A request of the exchange was turned away, and the credentials were looked up again.
    asked_again: bool,
    unsettled: VecDeque<Settlement>,
    suspicion: Option<Suspicion>,
    proof: Proof,
    /// It was stopped because everything that was tried was refused by the status of the responses.
    rejected: bool,
    /// Requests that failed in a row, from before this session too.
    failures: u32,
    batch_rows: usize,
    /// A batch was too large: their size grows in small steps from now on.
    too_large: bool,
    sent_since_rescan: bool,
    /// The greatest id when a bounded session began.
    last_id: Option<i64>,
    stop: Option<Stop>,
    pub report: Report,
    pub counters: Counters,
    /// Something was acknowledged since the outbox was last found empty.
    draining: bool,
    /// When the worker may look whether the disk space of what was delivered can be given back.
    reclaim_at: Option<Instant>,
}

impl Session {
    pub fn new<T: Transactions>(schema: Schema, (id, name): (i16, String), bounds: Bounds, bell: Arc<Bell>) -> Self {
        Session {
            schema,
            id,
            name,
            reader: Reader::new(id, bounds.scope.clone(), T::BOUNDED),
            bounds,
            bounded: T::BOUNDED,
            bell,
            link: None,
            destination: None,
            asked: None,
            ahead: None,
            looked_ahead: false,
            exchange: None,
            asked_again: false,
            unsettled: VecDeque::new(),
            suspicion: None,
            proof: Proof::default(),
            rejected: false,
            failures: 0,
            batch_rows: 0,
            too_large: false,
            sent_since_rescan: false,
            last_id: None,
            stop: None,
            report: Report::default(),
            counters: Counters::default(),
            draining: true,
            reclaim_at: None,
        }
    }

    /// Goes on as far as it can without waiting. The caller holds the sender's lock; `turn_wanted` says whether
    /// somebody waits for it.
    pub fn advance<T: Transactions>(
        &mut self,
        transactions: &mut T,
        news: &dyn News,
        turn_wanted: &dyn Fn() -> bool,
    ) -> Result<Wait, Undone> {
        loop {
            if self.exchange.as_ref().is_some_and(Exchange::is_out) {
                if !self.take_reply() {
                    self.meanwhile(transactions, news)?;
                    return Ok(Wait::Reply);
                }
            } else if self.has_to_ask_now() {
                self.ask_in_passing(transactions)?;
            } else if let Some(exchange) = &mut self.exchange {
                if exchange.is_over() {
                    if !self.has_other_credentials(transactions)? {
                        self.take_note(transactions)?;
                    }
                } else if !self.is_current() || turn_wanted() || self.is_late() {
                    self.exchange.iter_mut().for_each(Exchange::abandon);
                } else {
                    self.send()?;
                }
            } else if turn_wanted() {
                self.settle_all(transactions)?;
                self.forget_what_was_read();
                return Ok(Wait::Turn);
            } else if self.stop.is_some() {
                self.settle_all(transactions)?;
                self.link = None; // renewed certificates, authorities and keys are read again
                return Ok(Wait::Stopped);
            } else if !self.is_current() {
                self.settle_all(transactions)?;
                self.ask(transactions)?;
            } else if self.unsettled.len() > 1 {
                self.settle_all(transactions)?;
            } else if let Some(batch) = self.next_batch(transactions, news)? {
                self.begin(batch);
            } else if self.reader.is_under_way() {
                return Ok(Wait::Others);
            } else if self.stop.is_none() {
                self.settle_all(transactions)?;
                self.rest(transactions)?;
                return Ok(Wait::Idle);
            }
        }
    }

    /// Why nothing can be sent.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Whether it was stopped because everything that was tried was refused: another change may be taken.
    pub fn was_rejected(&self) -> bool {
        self.rejected
    }

    /// Tries again after a stop: as after an administrative call, but for what was read.
    pub fn start_again(&mut self) {
        self.stop = None;
        self.rejected = false;
        self.asked = None;
        self.reader.start_again();
    }

    /// Settings of the server have changed, or may have.
    pub fn settings_changed(&mut self) {
        self.asked = None;
    }

    /// Has the session look at everything again.
    pub fn look_at_everything(&mut self) {
        self.reader.ask_for_rescan(Rescan::Head);
    }

    /// Another sender may have had the turn: what was read ahead, parked and tried is void.
    pub fn forget_what_was_read(&mut self) {
        self.leave_what_was_read_ahead();
        self.suspicion = None;
        self.reader.forget();
    }

    /// Whether a request is out, or something is to be settled: neither may be forgotten.
    pub fn is_busy(&self) -> bool {
        self.exchange.is_some() || !self.unsettled.is_empty()
    }

    /// Whether a request is out.
    pub fn is_out(&self) -> bool {
        self.exchange.as_ref().is_some_and(Exchange::is_out)
    }

    /// Gives up on the reply that is out: its outcome is unknown, as with any timeout.
    pub fn give_up(&mut self, why: &str) {
        self.link = None;
        if let Some(exchange) = &mut self.exchange {
            exchange.take(Err(NoResponse::Offline(why.into())), self.reader.parked());
        }
    }

    /// When it has to have ended.
    pub fn until(&self) -> Option<Instant> {
        self.bounds.until
    }

    /// When something is due although nothing new is committed.
    pub fn due(&self) -> Option<Instant> {
        let across = self.reader.waits_across_priorities().then(|| Instant::now() + Duration::from_secs(1));
        [self.reader.next_due(), across, self.reclaim_at].into_iter().flatten().min()
    }

    /// Whether it has gone only some of the way, back or forward.
    pub fn is_under_way(&self) -> bool {
        self.reader.is_under_way()
    }

    /// When it last came to the end of a look back to the head of the outbox.
    pub fn looked_at_everything(&self) -> Instant {
        self.reader.looked_at_everything()
    }

    /// Whether nothing has been said since it last asked that it must know.
    pub fn is_current(&self) -> bool {
        let Some(asked) = &self.asked else { return false };
        match (asked.control, wake::control()) {
            (None, None) => asked.at.elapsed() < CURRENT_FOR,
            (then, now) => then == now,
        }
    }

    /// Whether it is time to ask although nobody has said anything: without preloading nobody does.
    fn has_to_ask_now(&self) -> bool {
        self.asked.is_some() && self.stop.is_none() && wake::control().is_none() && !self.is_current()
    }

    /// Asks between two requests; what has been read stays as it is if the answer is that of before.
    fn ask_in_passing<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let before = self.destination.clone();
        self.ask(transactions)?;
        if self.stop.is_some() || self.destination != before {
            self.exchange.iter_mut().for_each(Exchange::abandon);
        }
        Ok(())
    }

    fn is_late(&self) -> bool {
        self.bounds.until.is_some_and(|until| until <= Instant::now())
    }

    /// Asks where to send, with what, and how the target was lately. What was read ahead under the old word is void.
    fn ask<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let control = wake::control(); // before the snapshot
        let at = Instant::now();
        let Session { schema, id, name, .. } = self;
        let (found, state) = transactions.step(|| (Destination::find(schema, name), target::state(schema, *id)))?;
        let said = self.asked.as_ref().is_none_or(|asked| asked.control != control);
        let first = self.asked.is_none() && self.destination.is_none();
        self.asked = Some(Asked { at, control });
        if said && !first {
            self.leave_what_was_read_ahead();
            self.suspicion = None;
            self.reader.ask_for_rescan(Rescan::Head);
        }
        match found {
            Ok(Ok(destination)) => {
                if self.link.as_ref().is_some_and(|link| link.settings != destination.settings) {
                    self.link = None;
                }
                let most = destination.settings.batch_rows;
                if said || first {
                    self.failures = state.consecutive_failures;
                    if self.failures > 0 {
                        self.batch_rows = PROBE_ROWS;
                    } else if !self.too_large {
                        self.batch_rows = most;
                    }
                }
                self.batch_rows = self.batch_rows.min(most);
                self.destination = Some(destination);
            }
            Ok(Err(stop)) => self.stop = Some(stop),
            Err(error) => self.stop = Some(Stop::Unusable(error)),
        }
        Ok(())
    }

    /// After a 401: whether the target is to be asked again because token, secrets or URL are others now. Once an
    /// exchange.
    fn has_other_credentials<T: Transactions>(&mut self, transactions: &mut T) -> Result<bool, Undone> {
        if self.asked_again || !self.exchange.as_ref().is_some_and(Exchange::is_unauthorized) {
            return Ok(false);
        }
        let Session { schema, name, .. } = self;
        let found = transactions.step(|| Destination::find(schema, name))?;
        self.asked_again = true;
        let Ok(Ok(new)) = found else { return Ok(false) };
        let others = self.destination.as_ref().is_none_or(|old| new.has_other_credentials(old));
        if others {
            self.destination = Some(new);
            self.exchange.iter_mut().for_each(Exchange::resume);
        }
        Ok(others)
    }

    fn rows_wanted(&self) -> usize {
        let left = self.bounds.max_rows.map_or(usize::MAX, |max| max.saturating_sub(self.report.sent as usize));
        let most = self.destination.as_ref().map_or(1, |destination| destination.settings.batch_rows);
        let rows = if self.suspicion.is_some() { most } else { self.batch_rows };
        rows.max(1).min(left)
    }

    /// The next batch, or `None` when nothing deliverable is left or a bound is reached.
    fn next_batch<T: Transactions>(&mut self, transactions: &mut T, news: &dyn News) -> Result<Option<Batch>, Undone> {
        loop {
            if self.is_late() {
                self.stop = Some(Stop::OutOfTime);
                return Ok(None);
            }
            if self.rows_wanted() == 0 {
                self.stop = Some(Stop::Enough);
                return Ok(None);
            }
            if self.has_to_rescan() && self.suspicion.is_none() {
                self.settle_all(transactions)?;
                if !self.rescan(transactions)? {
                    return Ok(None);
                }
            }
            if let Some(ahead) = &self.ahead {
                // What was read of a priority goes in the order in which it was read.
                let holds_high = ahead.changes.iter().any(|change| change.priority == Priority::High);
                if holds_high || !self.reader.may_have_high(news) {
                    return Ok(self.ahead.take());
                }
                let high = self.read(transactions, news, true)?;
                if high.is_empty() {
                    return Ok(self.ahead.take());
                }
                // It goes with the next request, and so does what has room beside it: all is read once more.
                self.reader.take_back(&high);
                self.ahead.take().iter().for_each(|ahead| self.reader.take_back(ahead));
            }
            let batch = self.read(transactions, news, false)?;
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
            if self.has_to_rescan() && self.suspicion.is_none() {
                continue;
            }
            if self.reader.is_under_way() {
                return Ok(None);
            }
            if let Some(suspicion) = self.suspicion.take() {
                self.blame_the_target(suspicion);
                return Ok(None);
            }
            if !(self.reader.waits_across_priorities() && self.sent_since_rescan) {
                return Ok(None);
            }
            self.reader.ask_for_rescan(Rescan::Left);
        }
    }

    /// Leaves what was read ahead where it is: the cursor has passed it.
    fn leave_what_was_read_ahead(&mut self) {
        if let Some(batch) = self.ahead.take() {
            self.reader.leave_all(&batch, 0..batch.len());
        }
    }

    fn has_to_rescan(&self) -> bool {
        self.reader.has_to_rescan(self.ahead.is_some())
    }

    /// Goes back, or some of the way: whether it has come to the end.
    fn rescan<T: Transactions>(&mut self, transactions: &mut T) -> Result<bool, Undone> {
        let ahead = self.ahead.is_some();
        self.leave_what_was_read_ahead();
        let Session { schema, id, reader, report, last_id, bounded, bounds, .. } = self;
        let done = transactions.step(|| {
            if *bounded && last_id.is_none() {
                report.pending = stats::pending(schema, *id, bounds.scope.branch.as_deref(), COUNTED);
                *last_id = Some(queue::last_id(schema, *id));
            }
            reader.look_back(schema, ahead)
        })?;
        if !done {
            return Ok(false);
        }
        self.report.waiting_tables.append(&mut self.reader.waiting_tables);
        self.report.blocked = 0;
        self.sent_since_rescan = false;
        Ok(true)
    }

    fn read<T: Transactions>(
        &mut self,
        transactions: &mut T,
        news: &dyn News,
        only_high: bool,
    ) -> Result<Batch, Undone> {
        let rows = self.rows_wanted();
        let bytes = self.destination.as_ref().map_or(1, |destination| destination.settings.batch_bytes);
        let Session { schema, reader, ahead, exchange, unsettled, suspicion, .. } = self;
        let in_hand = || {
            let read = ahead.iter().flat_map(|batch| &batch.changes);
            let out = exchange.iter().flat_map(|exchange| &exchange.batch.changes);
            let held = suspicion.iter().flat_map(|s| &s.held).flat_map(|(batch, _)| &batch.changes);
            let keys = read.chain(out).chain(held).map(|change| change.dedup_key);
            keys.chain(unsettled.iter().flat_map(Settlement::keys)).collect::<HashSet<Uuid>>()
        };
        let position = reader.position();
        let started = Instant::now();
        match transactions.step(|| reader.read(schema, (rows, bytes), only_high, news, in_hand)) {
            Ok(batch) => {
                reader.confirm(started.elapsed(), only_high);
                Ok(batch)
            }
            Err(Undone::Failed(error)) if is_too_large(&error) => {
                reader.put_back(position);
                self.read_carefully(transactions, rows, error)?;
                Ok(Batch::default())
            }
            Err(undone) => {
                reader.put_back(position);
                Err(undone)
            }
        }
    }

    /// There is too little memory for what was to be read: one change at a time is, and one that is too large for
    /// itself is given up, so that it stops nobody.
    fn read_carefully<T: Transactions>(
        &mut self,
        transactions: &mut T,
        rows: usize,
        error: Error,
    ) -> Result<(), Undone> {
        if rows > 1 {
            (self.batch_rows, self.too_large) = (1, true);
        } else {
            let Session { schema, id, reader, .. } = self;
            let why = format!("cannot be sent: {}", error.message);
            transactions.step(|| reader.give_up_on_next(schema, *id, &why))?;
            self.report.dead += 1;
        }
        self.reader.ask_for_rescan(Rescan::Left);
        Ok(())
    }

    /// Picks what may go of a batch.
    fn begin(&mut self, batch: Batch) {
        let left = self.bounds.max_rows.map_or(usize::MAX, |max| max.saturating_sub(self.report.sent as usize));
        let most = if self.suspicion.is_some() { 1 } else { left };
        let (picked, blocked) = self.reader.pick(&batch, most);
        self.report.blocked += blocked as i64;
        if !picked.is_empty() {
            self.sent_since_rescan = true;
            self.asked_again = false;
            if !self.bounded {
                self.report.pending += picked.len() as i64;
            }
            self.exchange = Some(Exchange::new(batch, picked, self.proof.holds(), self.reader.parked()));
        }
    }

    /// Sends the next request of the exchange, if there is one.
    fn send(&mut self) -> Result<(), Undone> {
        let (Some(exchange), Some(destination)) = (&mut self.exchange, &self.destination) else { return Ok(()) };
        if self.link.is_none() {
            match HttpLink::open(&destination.settings, &self.bell) {
                Ok(link) => self.link = Some(link),
                Err(why) => {
                    exchange.abandon();
                    self.stop = Some(Stop::Unusable(settle::unusable(why)));
                    return Ok(());
                }
            }
        }
        if let (Some(link), Some(request)) = (&mut self.link, exchange.next_request(destination, self.reader.parked()))
        {
            link.send(request);
            self.looked_ahead = false;
        }
        Ok(())
    }

    /// Takes the reply, if it is there.
    fn take_reply(&mut self) -> bool {
        let reply = match &mut self.link {
            Some(link) => link.reply(),
            None => Some(Err(NoResponse::Offline("the connection was closed".into()))),
        };
        let (Some(reply), Some(exchange)) = (reply, &mut self.exchange) else { return false };
        exchange.take(reply, self.reader.parked());
        true
    }

    /// What can be done while a request is out.
    fn meanwhile<T: Transactions>(&mut self, transactions: &mut T, news: &dyn News) -> Result<(), Undone> {
        self.settle_all(transactions)?;
        let wanted = !self.looked_ahead
            && self.ahead.is_none()
            && self.failures == 0
            && self.bounds.max_rows.is_none()
            && self.suspicion.is_none()
            && !self.has_to_rescan()
            && self.is_current();
        if wanted {
            let batch = self.read(transactions, news, false)?;
            self.looked_ahead = true;
            self.ahead = Some(batch).filter(|batch| !batch.is_empty());
        }
        Ok(())
    }

    /// Takes note of every word of an exchange that is over.
    fn take_note<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let trouble = self.exchange.as_ref().is_some_and(Exchange::in_trouble);
        if trouble && !self.bounded && self.failures == 0 {
            let Session { schema, id, .. } = self;
            let pending = transactions.step(|| stats::pending(schema, *id, None, COUNTED_WHEN_DOWN))?;
            self.report.pending = self.report.acked + pending;
        }
        let Some(exchange) = self.exchange.take() else { return Ok(()) };
        let Ended { batch, mut answered, refused_by_status, unsent, got_verdicts } = exchange.end();
        let (convicted, refused_by_status): (Vec<Judged>, Vec<Judged>) =
            refused_by_status.into_iter().partition(|judged| self.proof.convicts(batch.changes[judged.change].id));
        answered.judged.extend(convicted);
        if got_verdicts {
            self.proof.renew();
        }
        self.report.blocked += answered.blocked.len() as i64;
        self.reader.leave_all(&batch, answered.blocked.iter().copied());
        if !unsent.is_empty() {
            self.reader.leave_all(&batch, unsent.iter().copied());
            self.reader.ask_for_rescan(Rescan::Left);
        }
        let most = self.destination.as_ref().map_or(1, |destination| destination.settings.batch_rows);
        if answered.too_large {
            self.batch_rows = (batch.len() / 2).max(1);
            self.too_large = true;
        } else if got_verdicts && !trouble {
            // After a probe it doubles: over a slow link most batches get through before one takes too long.
            let step = if self.too_large { self.batch_rows / 10 + 1 } else { self.batch_rows };
            self.batch_rows = (self.batch_rows + step).min(most);
        }
        if !refused_by_status.is_empty() {
            self.reader.leave_all(&batch, refused_by_status.iter().map(|judged| judged.change));
            if !trouble {
                self.suspicion.get_or_insert_default().hold(batch.clone(), refused_by_status);
            }
        }
        self.conclude(batch, answered);
        match self.suspicion.take() {
            Some(suspicion) if got_verdicts => self.blame_the_changes(suspicion),
            Some(suspicion) if suspicion.is_certain() => self.blame_the_target(suspicion),
            // In other trouble nothing is proven, and the refused changes are tried again.
            suspicion => self.suspicion = suspicion.filter(|_| !trouble),
        }
        Ok(())
    }

    /// Has words settled, while the next request is out.
    fn conclude(&mut self, batch: Rc<Batch>, answered: Answered) {
        let Some(destination) = &self.destination else { return };
        if answered.judged.is_empty() && answered.trouble.is_none() {
            return;
        }
        let settlement = Settlement::new(batch, answered, &destination.settings, self.failures);
        for left in settlement.left() {
            self.reader.leave(left.priority, left.id, left.waits_for_a_person);
            self.reader.tried(left.id, left.touched);
            left.due_in.into_iter().for_each(|wait| self.reader.due_in(wait));
        }
        self.failures = settlement.failures();
        settlement.add_to(&mut self.report);
        if let Some(stop) = settlement.stop() {
            self.stop = Some(stop.clone());
        }
        self.unsettled.push_back(settlement);
    }

    /// The target has had a word on another change: the refusals that were held back count.
    fn blame_the_changes(&mut self, suspicion: Suspicion) {
        self.proof.give();
        for (batch, judged) in suspicion.held {
            self.conclude(batch, Answered { judged, ..Answered::default() });
        }
        self.reader.ask_for_rescan(Rescan::Left);
    }

    /// Nothing at all gets through.
    fn blame_the_target(&mut self, suspicion: Suspicion) {
        self.proof.withdraw();
        self.rejected = true;
        for (batch, judged) in suspicion.held {
            let changes = judged.iter().map(|judged| judged.change).collect();
            let error = judged.into_iter().next_back().map(|Judged { verdict, .. }| match verdict {
                Verdict::Refused(error) => error,
                _ => String::new(),
            });
            let failure = Failure { kind: FailureKind::Rejected, error: error.unwrap_or_default() };
            let trouble = Some(Trouble { failure, changes });
            self.conclude(batch, Answered { trouble, ..Answered::default() });
        }
    }

    fn settle_all<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let Session { schema, id, unsettled, counters, draining, .. } = self;
        while let Some(settlement) = unsettled.front() {
            settle::settle(transactions, schema, *id, settlement, counters)?;
            *draining = true;
            unsettled.pop_front();
        }
        Ok(())
    }

    /// Nothing deliverable is left, and all is settled.
    fn rest<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let whole = self.bounds.scope.branch.is_none();
        if !self.bounded {
            return self.rest_of_endless(transactions);
        }
        let Session { schema, id, bounds, last_id, counters, .. } = self;
        let left = transactions.step(|| {
            let branch = bounds.scope.branch.as_deref();
            let left = queue::any_left(schema, *id, branch, last_id.unwrap_or(i64::MIN));
            if !left && whole {
                counters.end_drain(schema, *id);
                if T::LOCK == LockScope::Session && settings::truncate_when_empty() {
                    reclaim::truncate_if_empty(schema);
                }
            }
            left
        })?;
        self.report.nothing_left = !left;
        Ok(())
    }

    /// The worker's session comes here after every change: what costs more than a moment waits until nothing has come
    /// for a while.
    fn rest_of_endless<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        self.report.nothing_left = self.reader.is_empty();
        if !self.report.nothing_left {
            self.reclaim_at = None;
            return Ok(());
        }
        let now = Instant::now();
        if self.draining {
            self.draining = false;
            self.reclaim_at = Some(self.reclaim_at.unwrap_or(now).max(now + QUIET));
        } else if self.reclaim_at.is_some_and(|at| at <= now) {
            let Session { schema, id, counters, .. } = self;
            transactions.step(|| {
                counters.end_drain(schema, *id);
                if settings::truncate_when_empty() {
                    reclaim::truncate_if_empty(schema);
                }
            })?;
            self.reclaim_at = None;
        }
        Ok(())
    }

    /// What a bounded session has left, when it was stopped before it came to its end.
    pub fn count_what_is_left<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), Undone> {
        let Session { schema, id, bounds, last_id, report, .. } = self;
        let branch = bounds.scope.branch.as_deref();
        match *last_id {
            Some(last_id) => {
                let left = transactions.step(|| queue::any_left(schema, *id, branch, last_id))?;
                report.nothing_left = !left;
            }
            None => report.pending = transactions.step(|| stats::pending(schema, *id, branch, COUNTED))?,
        }
        Ok(())
    }
}

/// Whether a step failed because of the size of what it read: 53200 and 54000 (a value that PostgreSQL cannot allocate
/// at all is XX000, `invalid memory alloc request size`).
fn is_too_large(error: &Error) -> bool {
    matches!(error.sqlstate, SqlState::ERRCODE_OUT_OF_MEMORY | SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED)
        || error.message.starts_with("invalid memory alloc request size")
}
