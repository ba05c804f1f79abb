//! A push session to one target: a state machine that never waits. [`Session::advance`] does what can be done now (have
//! a batch read, send a request, take its reply, settle) and says what it waits for. The caller does the waiting.
//!
//! While a request is out, the batch before it is settled and the batch after it is read. Before each request the
//! session checks whether anything has changed that it must know ([`Lookup::is_current`]). If so, what it has read
//! ahead is void, and it looks up again where to send and with what. No transaction of the session's own is open
//! between two steps; in a flush it is the caller's.
//!
//! A step that is rolled back (because of somebody's lock, or an ERROR) leaves the session as it was before: what is
//! out is still out, and what was acknowledged is still to be settled.

mod batch_size;
mod batches;
mod ending;
mod fetch;
mod lookup;
mod requests;
mod results;

use super::announcements::Announcements;
use super::bounds::Bounds;
use super::counters::Counters;
use super::exchange::Exchange;
use super::http_link::HttpLink;
use super::reader::{Reader, Rescan};
use super::report::{Report, Stop};
use super::transactions::{StepError, Transactions};
use crate::pg::latch::Bell;
use crate::store::Schema;
use delivery::http::NoResponse;
use ending::Ending;
use fetch::Fetcher;
use lookup::{Found, Lookup};
use results::Results;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a session waits for.
pub enum Wait {
    /// The reply to a request, which rings the bell.
    Reply,
    /// The turn, which is the sender's lock, is to be given away. Everything is settled, and nothing that was read
    /// ahead counts any more.
    Turn,
    /// Nothing: it has done one step of many, and goes on as soon as the other targets have been seen to.
    OtherTargets,
    /// Nothing deliverable is left.
    Idle,
    /// Nothing can be sent: [`Session::stop`] says why.
    Stopped,
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
    lookup: Lookup,
    fetcher: Fetcher,
    exchange: Option<Exchange>,
    /// A request of the exchange was turned away, and the credentials were looked up again.
    renewed_credentials: bool,
    results: Results,
    sent_since_rescan: bool,
    stop: Option<Stop>,
    ending: Ending,
}

impl Session {
    pub fn new<T: Transactions>(schema: Schema, (id, name): (i16, String), bounds: Bounds, bell: Arc<Bell>) -> Self {
        Session {
            schema,
            id,
            name,
            fetcher: Fetcher::new(Reader::new(id, bounds.selection.clone(), T::BOUNDED)),
            bounds,
            bounded: T::BOUNDED,
            bell,
            link: None,
            lookup: Lookup::default(),
            exchange: None,
            renewed_credentials: false,
            results: Results::new(),
            sent_since_rescan: false,
            stop: None,
            ending: Ending::default(),
        }
    }

    /// Goes on as far as it can without waiting. The caller holds the sender's lock; `turn_wanted` says that
    /// no further request is to be begun: somebody waits for the lock, it was lost, or sending is being switched off.
    pub fn advance<T: Transactions>(
        &mut self,
        transactions: &mut T,
        announcements: &dyn Announcements,
        turn_wanted: &dyn Fn() -> bool,
    ) -> Result<Wait, StepError> {
        loop {
            if self.is_out() {
                if !self.take_reply() {
                    self.work_meanwhile(transactions, announcements)?;
                    return Ok(Wait::Reply);
                }
            } else if self.stop.is_none() && self.lookup.has_expired() {
                self.look_up_in_passing(transactions)?;
            } else if let Some(exchange) = &mut self.exchange {
                if exchange.is_over() {
                    if !self.has_other_credentials(transactions)? {
                        self.note_results(transactions)?;
                    }
                } else if !self.lookup.is_current() || turn_wanted() || self.bounds.is_late() {
                    exchange.abandon();
                } else {
                    self.send();
                }
            } else if turn_wanted() {
                self.settle_all(transactions)?;
                self.forget_what_was_read();
                return Ok(Wait::Turn);
            } else if self.stop.is_some() {
                self.settle_all(transactions)?;
                self.link = None; // renewed certificates, authorities and keys are read again
                return Ok(Wait::Stopped);
            } else if !self.lookup.is_current() {
                self.settle_all(transactions)?;
                self.look_up(transactions)?;
            } else if self.results.unsettled() > 1 {
                // One exchange is settled while the next request is out. There are more where nothing was sent in
                // between, or where refusals were held back and count now: they must not pile up in memory.
                self.settle_all(transactions)?;
            } else if let Some(batch) = self.next_batch(transactions, announcements)? {
                self.begin(batch);
            } else if self.is_under_way() {
                return Ok(Wait::OtherTargets);
            } else if self.stop.is_none() {
                self.settle_all(transactions)?;
                self.rest(transactions)?;
                self.fetcher.reader.rescans().rest();
                return Ok(Wait::Idle);
            }
        }
    }

    /// Looks up where to send, with what, and how the target did lately. What was read ahead under the old control
    /// number is void.
    fn look_up<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        let found = self.lookup.look_up(transactions, &self.schema, (self.id, &self.name))?;
        let Found { stop, control_changed, is_first, failures } = found;
        if control_changed && !is_first {
            self.fetcher.leave_ahead();
            self.results.forget_suspicion();
            self.rescan_from(Rescan::Head);
        }
        if stop.is_some() {
            self.stop = stop;
            return Ok(());
        }
        let settings = self.lookup.destination().map(|destination| &destination.settings);
        if self.link.as_ref().is_some_and(|link| Some(&link.settings) != settings) {
            self.link = None;
        }
        let (most, _) = self.lookup.batch_limits();
        if control_changed {
            self.results.failures = failures;
            self.results.batch_size.begin(most, failures > 0);
        }
        self.results.batch_size.limit(most);
        Ok(())
    }

    /// Looks up between two requests. What has been read stays as it is if nothing has changed.
    fn look_up_in_passing<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        let before = self.lookup.destination().cloned();
        self.look_up(transactions)?;
        if self.stop.is_some() || self.lookup.destination() != before.as_ref() {
            self.exchange.iter_mut().for_each(Exchange::abandon);
        }
        Ok(())
    }

    fn settle_all<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        self.results.settle_all(transactions, &self.schema, self.id)
    }

    /// Nothing deliverable is left, and all is settled.
    fn rest<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        let Session { schema, id, bounds, fetcher, results, ending, .. } = self;
        let Results { report, counters, has_settled, .. } = results;
        if self.bounded {
            let left = ending.end_bounded(transactions, schema, *id, &bounds.selection, counters)?;
            report.nothing_left = !left;
            return Ok(());
        }
        report.nothing_left = fetcher.reader.is_empty();
        if !report.nothing_left {
            ending.forget();
            return Ok(());
        }
        ending.rest(transactions, schema, *id, std::mem::take(has_settled), counters)
    }

    /// What a bounded session has left, when it was stopped before it came to its end.
    pub fn count_what_is_left<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        let Session { schema, id, bounds, results, ending, .. } = self;
        ending.count_what_is_left(transactions, schema, *id, &bounds.selection, &mut results.report)
    }

    /// Why nothing can be sent.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Whether it was stopped because everything that was tried was refused: another change may be taken.
    pub fn was_rejected(&self) -> bool {
        self.results.rejected
    }

    /// Tries again after a stop: as after an administrative call, except that what was read stays valid.
    pub fn start_again(&mut self) {
        self.stop = None;
        self.results.rejected = false;
        self.lookup.invalidate();
        self.fetcher.reader.rescans().retry_at_once();
    }

    /// Settings of the server have changed, or may have.
    pub fn settings_changed(&mut self) {
        self.lookup.invalidate();
    }

    /// Has the session look at everything again.
    pub fn look_at_everything(&mut self) {
        self.rescan_from(Rescan::Head);
    }

    fn rescan_from(&mut self, from: Rescan) {
        self.fetcher.reader.rescans().request(from);
    }

    /// Another sender may have had the turn: what was read ahead, parked and tried is void.
    pub fn forget_what_was_read(&mut self) {
        self.fetcher.leave_ahead();
        self.results.forget_suspicion();
        self.fetcher.reader.forget();
    }

    /// Whether a request is out, or something is to be settled: neither may be forgotten.
    pub fn is_busy(&self) -> bool {
        self.exchange.is_some() || self.results.unsettled() > 0
    }

    /// Whether a request is out.
    pub fn is_out(&self) -> bool {
        self.exchange.as_ref().is_some_and(Exchange::is_out)
    }

    /// Gives up on the reply that is out: its outcome is unknown, as with any timeout.
    pub fn give_up(&mut self, why: &str) {
        self.link = None;
        if let Some(exchange) = &mut self.exchange {
            exchange.take(Err(NoResponse::Offline(why.into())), self.fetcher.reader.parked());
        }
    }

    /// When it has to have ended.
    pub fn until(&self) -> Option<Instant> {
        self.bounds.until
    }

    /// When something is due although nothing new is committed.
    pub fn due(&self) -> Option<Instant> {
        let reader = &self.fetcher.reader;
        let across = reader.waits_across_priorities().then(|| Instant::now() + Duration::from_secs(1));
        [reader.next_due(), across, self.ending.due()].into_iter().flatten().min()
    }

    /// Whether it has gone only some of the way, back or forward.
    pub fn is_under_way(&self) -> bool {
        self.fetcher.reader.is_under_way()
    }

    /// When it last came to the end of a look back to the head of the outbox.
    pub fn looked_at_everything(&self) -> Instant {
        self.fetcher.reader.looked_at_everything()
    }

    /// Whether nothing has changed since the last look that it must know.
    pub fn is_current(&self) -> bool {
        self.lookup.is_current()
    }

    /// What it has done so far.
    pub fn report(&self) -> &Report {
        &self.results.report
    }

    /// Hands over what it has done, and begins a new report.
    pub fn take_report(&mut self) -> Report {
        std::mem::take(&mut self.results.report)
    }

    /// What it has not written down yet.
    pub fn counters(&self) -> &Counters {
        &self.results.counters
    }

    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.results.counters
    }
}
