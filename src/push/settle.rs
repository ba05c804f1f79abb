//! Settling: what was said about each change is written down, in one short transaction. What was acknowledged stays in
//! memory until that has happened, whoever is in its way.

use super::books::Books;
use super::exchange::{Answered, Trouble};
use super::report::{Report, Stop};
use super::transactions::{Transactions, Undone};
use crate::capture::Priority;
use crate::delivery::answer::{Word, sanitise};
use crate::delivery::backoff;
use crate::delivery::batch::{Batch, Change};
use crate::delivery::keys::Touched;
use crate::delivery::outcome::ERROR_CHARS;
use crate::error::{Error, SqlState};
use crate::settings::Delivery;
use crate::store::{Schema, queue, run, target};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How often a target that turns the token away, or is not what it should be, is tried by the worker.
pub const SLOW_PROBE: Duration = Duration::from_secs(300);
/// A target that refuses everything is tried at least so often, in intervals of `retry_interval`: the next change may be
/// one that it takes.
const MOST_REJECTED: u32 = 10;
/// The least wait after a timeout or a 429 is the backoff's; this bounds it for changes that are not mentioned.
const MOST_DOUBLINGS: u32 = 30;

/// A batch whose answers are in, ready to be written down.
pub struct Settlement {
    batch: Rc<Batch>,
    answered: Answered,
    verdicts: Vec<Verdict>,
    /// The target had a word on a change.
    heard: bool,
    /// The breaker after it: failures in a row, the wait, why.
    failures: u32,
    failures_before: u32,
    stop: Option<Stop>,
}

/// What becomes of one change.
struct Verdict {
    change: usize,
    fate: Fate,
}

enum Fate {
    Gone,
    Failed {
        error: String,
        refused: bool,
        wait: Duration,
    },
    /// `refused`: by the target, for the last time; else it cannot be sent.
    Dead {
        error: String,
        refused: bool,
    },
    Conflict {
        error: String,
    },
}

impl Settlement {
    pub fn new(batch: Rc<Batch>, answered: Answered, settings: &Delivery, failures_before: u32) -> Self {
        let verdicts = answered
            .said
            .iter()
            .map(|said| Verdict { change: said.change, fate: fate(&batch.changes[said.change], &said.word, settings) })
            .collect();
        let heard = answered.said.iter().any(|said| !matches!(said.word, Word::Unsendable(_)));
        let failures = match &answered.trouble {
            Some(Trouble::Unusable { .. }) => failures_before,
            Some(_) => failures_before.saturating_add(1),
            None if heard => 0,
            None => failures_before,
        };
        let wait = backoff::wait(failures, settings.retry_interval, settings.retry_max_interval, fastrand::f64());
        let stop = answered.trouble.as_ref().map(|trouble| match trouble {
            Trouble::NotThrough { error, retry_after, .. } => {
                Stop::Down { error: error.clone(), retry_in: wait.max(retry_after.unwrap_or_default()) }
            }
            Trouble::Rejected { error, .. } => {
                Stop::Down { error: error.clone(), retry_in: wait.min(MOST_REJECTED * settings.retry_interval) }
            }
            Trouble::Unauthorized { .. } => Stop::TokenInvalid,
            Trouble::Unusable { error } => Stop::Unusable(unusable(error.clone())),
            Trouble::Misconfigured { error } | Trouble::Gone { error } => {
                Stop::Down { error: error.clone(), retry_in: SLOW_PROBE }
            }
        });
        Settlement { batch, answered, verdicts, heard, failures, failures_before, stop }
    }

    /// Failed requests in a row after this batch.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Why nothing more can be sent now.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// The changes that were tried and stay in the outbox.
    pub fn left(&self) -> impl Iterator<Item = Left> {
        let stays = self.verdicts.iter().filter_map(|verdict| {
            let (waits_for_a_person, due_in) = match verdict.fate {
                Fate::Gone => return None,
                Fate::Failed { wait, .. } => (false, Some(wait)),
                Fate::Dead { .. } | Fate::Conflict { .. } => (true, None),
            };
            Some((&self.batch.changes[verdict.change], waits_for_a_person, due_in))
        });
        stays.chain(self.not_through().into_iter().map(|change| (change, false, None))).map(
            |(change, waits_for_a_person, due_in)| Left {
                id: change.id,
                priority: change.priority,
                touched: self.batch.touched(change),
                waits_for_a_person,
                due_in,
            },
        )
    }

    /// The keys of all changes of the batch.
    pub fn keys(&self) -> impl Iterator<Item = Uuid> {
        self.batch.changes.iter().map(|change| change.dedup_key)
    }

    fn not_through(&self) -> Vec<&Change> {
        match &self.answered.trouble {
            Some(Trouble::NotThrough { changes, .. } | Trouble::Rejected { changes, .. }) => {
                changes.iter().map(|i| &self.batch.changes[*i]).collect()
            }
            _ => Vec::new(),
        }
    }

    fn acked(&self) -> Vec<&Change> {
        self.verdicts.iter().filter(|v| matches!(v.fate, Fate::Gone)).map(|v| &self.batch.changes[v.change]).collect()
    }

    /// Counts it.
    pub fn add_to(&self, report: &mut Report) {
        let not_through = self.not_through().len() as i64;
        report.sent += self.sent() as i64;
        report.failed += not_through;
        for verdict in &self.verdicts {
            match verdict.fate {
                Fate::Gone => report.acked += 1,
                Fate::Failed { .. } => report.failed += 1,
                Fate::Dead { .. } => report.dead += 1,
                Fate::Conflict { .. } => report.conflicts += 1,
            }
        }
    }

    /// Changes that went out.
    fn sent(&self) -> usize {
        let unsendable = |v: &&Verdict| matches!(v.fate, Fate::Dead { refused: false, .. });
        self.verdicts.len() - self.verdicts.iter().filter(unsendable).count() + self.not_through().len()
    }
}

/// A change that was tried and is still there.
pub struct Left {
    pub id: i64,
    pub priority: Priority,
    pub touched: Touched,
    /// In conflict or dead.
    pub waits_for_a_person: bool,
    /// When it may be tried again; `None` with the target, or when a person says so.
    pub due_in: Option<Duration>,
}

/// A setting, or a file that one names, that the HTTP thread cannot use.
pub fn unusable(why: String) -> Error {
    Error::new(SqlState::ERRCODE_CONFIG_FILE_ERROR, why)
        .hint("Correct the setting and reload: SELECT pg_reload_conf();")
}

fn fate(change: &Change, word: &Word, settings: &Delivery) -> Fate {
    let wait = || {
        let tries = u32::try_from(change.attempts).unwrap_or_default().saturating_add(1).min(MOST_DOUBLINGS);
        backoff::wait(tries, settings.retry_interval, settings.retry_max_interval, fastrand::f64())
    };
    let words = |text: &str, otherwise: &str| {
        let clean = sanitise(text, ERROR_CHARS);
        if clean.is_empty() { otherwise.to_owned() } else { clean }
    };
    match word {
        Word::Acked => Fate::Gone,
        Word::Silent => Fate::Failed { error: "not acknowledged".into(), refused: false, wait: wait() },
        Word::Conflict(error) => Fate::Conflict { error: words(error, "conflict") },
        Word::Refused(error) if change.refusals + 1 >= settings.max_attempts => {
            Fate::Dead { error: words(error, "refused"), refused: true }
        }
        Word::Unsendable(why) => Fate::Dead { error: words(&format!("cannot be sent: {why}"), ""), refused: false },
        Word::Refused(error) => Fate::Failed { error: words(error, "refused"), refused: true, wait: wait() },
    }
}

/// Writes a settlement down. Where that cannot be done now it is tried again later: it must happen. What never succeeds
/// loses nothing: it is sent again with the same keys.
pub fn settle(
    transactions: &mut impl Transactions,
    schema: &Schema,
    target_id: i16,
    settlement: &Settlement,
    books: &mut Books,
) -> Result<(), Undone> {
    let before = books.clone();
    let settled = transactions.step(|| write(schema, target_id, settlement, books));
    if settled.is_err() {
        *books = before; // of an attempt that was undone nothing is counted
    }
    settled
}

fn write(schema: &Schema, target_id: i16, settlement: &Settlement, books: &mut Books) {
    let acked = settlement.acked();
    if !acked.is_empty() {
        run::delete(schema, target_id, &acked);
    }
    for verdict in &settlement.verdicts {
        let change = &settlement.batch.changes[verdict.change];
        let mark = |status, error, refused, wait: Option<Duration>| queue::Mark {
            change,
            status,
            error,
            refused,
            wait_ms: wait.map(|w| w.as_millis() as i64),
        };
        let mark = match &verdict.fate {
            Fate::Gone => continue,
            Fate::Failed { error, refused, wait } => mark("FAILED", error, *refused, Some(*wait)),
            Fate::Dead { error, refused } => mark("DEAD", error, *refused, None),
            Fate::Conflict { error } => mark("CONFLICT", error, false, None),
        };
        queue::mark(schema, target_id, &mark);
    }
    let not_through = settlement.not_through();
    books.add(settlement.sent(), acked.len(), settlement.heard);
    note_outcome(schema, target_id, settlement, &not_through, books);
    books.write_if_due(schema, target_id);
}

/// What the target's breaker learns from it.
fn note_outcome(schema: &Schema, target_id: i16, settlement: &Settlement, not_through: &[&Change], books: &mut Books) {
    let answered = settlement.heard;
    if answered && settlement.failures_before > 0 {
        books.write(schema, target_id); // closes the breaker
    }
    if answered && (settlement.failures_before > 0 || settlement.batch.changes.iter().any(|c| c.was_offline)) {
        queue::revive_offline(schema, target_id);
    }
    let (wait, auth, error) = match (&settlement.stop, &settlement.answered.trouble) {
        (Some(Stop::TokenInvalid), Some(Trouble::Unauthorized { error })) => (SLOW_PROBE, Some("invalid"), error),
        (Some(Stop::Down { error, retry_in }), _) => (*retry_in, None, error),
        _ => return,
    };
    if let Some(Trouble::NotThrough { error, .. } | Trouble::Rejected { error, .. }) = &settlement.answered.trouble {
        queue::mark_offline(schema, not_through, error);
    }
    if let Some(Trouble::Gone { error }) = &settlement.answered.trouble {
        target::set_paused(schema, target_id, true, Some(error));
    }
    books.write(schema, target_id); // before, because a success closes the breaker
    let failures = if answered { 1 } else { settlement.failures };
    target::note_failure(schema, target_id, failures, wait.as_millis() as i64, auth, error);
}
