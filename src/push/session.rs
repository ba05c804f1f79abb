//! A push session from beginning to end: read a batch, have it answered, settle it, until nothing deliverable is left.
//!
//! While a request is out, the batch before it is settled and the batch after it is read. A change is tried once in a
//! session. No transaction of ours is open while we wait (but for the caller's own, in a flush).

use super::books::Books;
use super::credentials::{self, Source, Token};
use super::exchange::{self, Answered, Trouble};
use super::mark::{self, Mark};
use super::reader::{Reader, Scope};
use super::report::{Report, Stop};
use super::settle::{self, Settlement};
use super::transactions::Transactions;
use crate::delivery::batch::Batch;
use crate::delivery::endpoint::Endpoint;
use crate::delivery::http::{Http, NoResponse, Reply, Request};
use crate::delivery::keys::{Parked, Touched};
use crate::delivery::signature::Secrets;
use crate::error::Result;
use crate::pg::heap;
use crate::pg::latch::{self, Bell};
use crate::pg::lock::Scope as LockScope;
use crate::settings::{self, Delivery};
use crate::store::target::Target;
use crate::store::{Schema, queue, reclaim, target};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Changes in the first request while the target is not known to answer.
const PROBE_ROWS: usize = 10;

/// The connection to one target: the HTTP thread, and the bell that it rings.
pub struct Link {
    http: Http,
    bell: Arc<Bell>,
}

impl Link {
    /// Starts the HTTP thread; the error says which file or setting is wrong.
    pub fn open(settings: &Delivery) -> std::result::Result<Self, String> {
        let bell = Arc::new(Bell::new().map_err(|e| format!("cannot make an eventfd: {e}"))?);
        let ring = bell.clone();
        let http = latch::with_signals_blocked(|| Http::start(settings, move || ring.ring()))?;
        Ok(Link { http, bell })
    }

    /// Sends a request and waits for its reply, serving interrupts. Once `until` has passed it gives up: the outcome is
    /// unknown then, as with any timeout.
    fn exchange(&mut self, request: Request, until: Option<Instant>, meanwhile: impl FnOnce()) -> Reply {
        self.bell.clear();
        self.http.send(request);
        meanwhile();
        loop {
            if let Some(reply) = self.http.reply() {
                return reply;
            }
            let left = until.map_or(Duration::from_secs(60), |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(NoResponse::Offline("timeout (flush_timeout)".into()));
            }
            latch::wait(Some(&self.bell), left);
            self.bell.clear();
        }
    }
}

/// Has a request answered; may do other work meanwhile.
pub trait Waiting {
    fn reply_to(&mut self, request: Request) -> Reply;
}

/// Where a session sends, and with what.
#[derive(Clone)]
pub struct Destination {
    pub target: Target,
    pub endpoint: Endpoint,
    pub source: Source,
    pub token: String,
    pub signing: Option<Rc<Secrets>>,
    pub settings: Delivery,
}

/// Bounds of one session.
#[derive(Clone, Default)]
pub struct Bounds {
    pub scope: Scope,
    pub max_rows: Option<usize>,
    pub until: Option<Instant>,
    /// Where to begin reading.
    pub mark: Mark,
}

pub struct Session<'a, T> {
    transactions: T,
    schema: Schema,
    destination: Destination,
    bounds: Bounds,
    link: &'a mut Link,
    reader: Reader,
    parked: Parked,
    ahead: Option<Batch>,
    unsettled: Option<Settlement>,
    /// Requests that failed in a row, from before this session too.
    failures: u32,
    batch_rows: usize,
    /// A batch was too large: their size grows in small steps from now on.
    too_large: bool,
    sent_in_pass: bool,
    last_id: i64,
    pub report: Report,
    books: &'a mut Books,
    progress: &'a mut dyn FnMut(&Report),
}

impl<'a, T: Transactions> Session<'a, T> {
    pub fn new(
        transactions: T,
        schema: Schema,
        destination: Destination,
        bounds: Bounds,
        link: &'a mut Link,
        books: &'a mut Books,
        progress: &'a mut dyn FnMut(&Report),
    ) -> Self {
        Session {
            reader: Reader::new(destination.target.id, bounds.scope.clone(), bounds.mark.clone()),
            transactions,
            schema,
            batch_rows: destination.settings.batch_rows,
            destination,
            bounds,
            link,
            parked: Parked::default(),
            ahead: None,
            unsettled: None,
            failures: 0,
            too_large: false,
            sent_in_pass: false,
            last_id: i64::MIN,
            report: Report::default(),
            books,
            progress,
        }
    }

    /// Runs the session. The caller holds the sender's lock.
    pub fn run(&mut self) -> Result<()> {
        self.begin();
        while let Some(batch) = self.next_batch() {
            self.deliver(batch)?;
            (self.progress)(&self.report);
            if self.report.stop.is_some() {
                break;
            }
        }
        self.finish();
        Ok(())
    }

    fn begin(&mut self) {
        let Session { transactions, schema, destination, bounds, reader, .. } = self;
        let id = destination.target.id;
        transactions.step(|| {
            self.failures = target::state(schema, id).consecutive_failures;
            if self.failures > 0 {
                self.batch_rows = self.batch_rows.min(PROBE_ROWS);
            }
            self.report.pending = queue::count(schema, id, bounds.scope.branch.as_deref(), T::COUNTED);
            self.last_id = queue::last_id(schema, id);
            self.parked = begin_pass(schema, id, reader, &mut self.report);
        });
    }

    /// The next batch of this pass or the next; `None` when a pass found nothing to send, or when a bound is reached.
    fn next_batch(&mut self) -> Option<Batch> {
        loop {
            if self.bounds.until.is_some_and(|until| until <= Instant::now()) {
                self.report.stop = Some(Stop::OutOfTime);
                return None;
            }
            if self.rows_wanted() == 0 {
                self.report.stop = Some(Stop::Enough);
                return None;
            }
            let batch = self.ahead.take().unwrap_or_default();
            let batch = if batch.is_empty() { self.read() } else { batch };
            if !batch.is_empty() {
                return Some(batch);
            }
            if !self.sent_in_pass {
                self.reader.at_rest();
                return None;
            }
            self.next_pass();
        }
    }

    fn next_pass(&mut self) {
        self.settle();
        let Session { transactions, schema, destination, reader, report, .. } = self;
        self.parked = transactions.step(|| begin_pass(schema, destination.target.id, reader, report));
        self.reader.park_tried(&mut self.parked);
        self.sent_in_pass = false;
        self.report.blocked = 0;
    }

    fn rows_wanted(&self) -> usize {
        let left = self.bounds.max_rows.map_or(usize::MAX, |max| max.saturating_sub(self.report.sent as usize));
        self.batch_rows.min(left)
    }

    fn read(&mut self) -> Batch {
        let rows = self.rows_wanted();
        let Session { transactions, schema, destination, reader, .. } = self;
        transactions.step(|| reader.read(schema, rows, destination.settings.batch_bytes))
    }

    /// Sends a batch and takes note of every word; settled later, while the next request is out.
    fn deliver(&mut self, batch: Batch) -> Result<()> {
        let (mut picked, blocked) = self.reader.pick(&batch, &mut self.parked);
        self.report.blocked += blocked as i64;
        if let Some(max) = self.bounds.max_rows {
            picked.truncate(max.saturating_sub(self.report.sent as usize));
        }
        if picked.is_empty() {
            return Ok(());
        }
        self.sent_in_pass = true;
        let mut answered = self.exchange(&batch, picked.clone());
        if matches!(answered.trouble, Some(Trouble::Unauthorized { .. })) && self.credentials_changed()? {
            let rest = picked.into_iter().filter(|i| !answered.said.iter().any(|s| s.change == *i)).collect();
            let before = std::mem::take(&mut answered.said);
            answered = self.exchange(&batch, rest);
            answered.said.splice(0..0, before);
        }
        self.take_note(batch, answered);
        Ok(())
    }

    fn exchange(&mut self, batch: &Batch, picked: Vec<usize>) -> Answered {
        let mut parked = std::mem::take(&mut self.parked);
        let destination = self.destination.clone();
        let answered = exchange::exchange(batch, picked, &mut parked, &destination, self);
        self.parked = parked;
        answered
    }

    /// After a 401: whether the token or the signing secrets have been changed since the session began.
    fn credentials_changed(&mut self) -> Result<bool> {
        let Session { transactions, destination, .. } = self;
        let Destination { target, endpoint, source, token, signing, settings } = destination;
        let secrets = credentials::signing_secrets(settings)?;
        let mut changed = secrets != *signing;
        *signing = secrets;
        if let Token::Found { value, .. } =
            transactions.step(|| credentials::token(target, endpoint, *source, false))?
        {
            changed |= value != *token;
            *token = value;
        }
        Ok(changed)
    }

    fn take_note(&mut self, batch: Batch, answered: Answered) {
        self.report.blocked += answered.blocked.len() as i64;
        if answered.too_large {
            self.batch_rows = (batch.len() / 2).max(1);
            self.too_large = true;
        } else if answered.trouble.is_none() {
            // After a probe it doubles: over a slow link most batches get through before one takes too long.
            let step = if self.too_large { self.batch_rows / 10 + 1 } else { self.batch_rows };
            self.batch_rows = (self.batch_rows + step).min(self.destination.settings.batch_rows);
        }
        let settlement = Settlement::new(batch, answered, &self.destination.settings, self.failures);
        settlement.left().for_each(|(id, touched)| self.reader.tried(id, touched));
        self.failures = settlement.failures();
        settlement.add_to(&mut self.report);
        if let Some(earlier) = self.unsettled.take() {
            self.write(earlier); // only when a batch went out without waiting, which settles what came before it
        }
        self.unsettled = Some(settlement);
    }

    fn settle(&mut self) {
        if let Some(settlement) = self.unsettled.take() {
            self.write(settlement);
        }
    }

    fn write(&mut self, settlement: Settlement) {
        let Session { transactions, schema, destination, books, .. } = self;
        settle::settle(transactions, schema, destination.target.id, &settlement, books);
    }

    fn finish(&mut self) {
        self.settle();
        let Session { transactions, schema, destination, bounds, reader, last_id, books, .. } = self;
        let branch = bounds.scope.branch.as_deref();
        let from = bounds.mark.at().min(reader.mark().at());
        let id = destination.target.id;
        let left = transactions.step(|| {
            let left = queue::any_left(schema, id, branch, from, *last_id);
            if !left && branch.is_none() {
                books.end_drain(schema, id);
                if T::LOCK == LockScope::Session && from == mark::HEAD && settings::truncate_when_empty() {
                    reclaim::truncate_if_empty(schema);
                }
            }
            left
        });
        self.report.nothing_left = !left;
    }

    /// Where the next session may begin.
    pub fn mark(&self) -> &Mark {
        self.reader.mark()
    }
}

impl<T: Transactions> Waiting for Session<'_, T> {
    fn reply_to(&mut self, request: Request) -> Reply {
        let unsettled = self.unsettled.take();
        let read_ahead = self.ahead.is_none() && self.failures == 0 && self.bounds.max_rows.is_none();
        let rows = self.rows_wanted();
        let Session { transactions, schema, destination, bounds, link, reader, ahead, books, .. } = self;
        link.exchange(request, bounds.until, || {
            if let Some(settlement) = unsettled {
                settle::settle(transactions, schema, destination.target.id, &settlement, books);
            }
            if read_ahead {
                *ahead = Some(transactions.step(|| reader.read(schema, rows, destination.settings.batch_bytes)));
            }
        })
    }
}

/// Begins a pass, inside a transaction: what is parked in it.
fn begin_pass(schema: &Schema, target_id: i16, reader: &mut Reader, report: &mut Report) -> Parked {
    let (mut parked, mut ids) = (Parked::default(), Vec::new());
    let now = heap::now_micros();
    queue::parked(schema, target_id, now, |row| {
        ids.push(row.id);
        let touched = Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
        if parked.park(&touched, row.id) {
            report.waiting_tables.insert(format!("\"{}\".\"{}\"", row.schema_name, row.table_name));
        }
    });
    reader.begin_pass(schema, now, ids);
    parked
}
