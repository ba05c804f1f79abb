//! Settling: the verdict on each change is written down, in one short transaction. What was acknowledged stays in
//! memory until that has succeeded, whoever's lock is in its way.

use super::counters::Counters;
use super::exchange::{Answered, Judged, Trouble};
use super::report::{Report, Stop};
use super::transactions::{StepError, Transactions};
use crate::error::{Error, SqlState};
use crate::store::queue::{self, Mark};
use crate::store::{Schema, queue_scan, target};
use delivery::Settings;
use delivery::backoff;
use delivery::batch::{Batch, Change};
use delivery::keys::Touched;
use delivery::outcome::{ERROR_CHARS, Failure, FailureKind};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;
use wire::answer::Verdict;
use wire::text::sanitise;
use wire::{Priority, Status};

/// How often the worker tries a target that does not accept the token, or is not what it should be.
pub const SLOW_PROBE: Duration = Duration::from_secs(300);
/// A target that refuses everything is tried again after at most so many times `retry_interval`: the next change may be
/// one that it accepts.
const MOST_REJECTED: u32 = 10;
/// Bounds the backoff of a single change.
const MOST_DOUBLINGS: u32 = 30;

/// A batch whose answers are in, ready to be written down.
pub struct Settlement {
    batch: Rc<Batch>,
    answered: Answered,
    /// What is written to the row of each change that has a verdict, by its position; `None`: the row is deleted.
    marks: Vec<(usize, Option<Mark>)>,
    /// The target gave a verdict on a change.
    heard: bool,
    /// Requests that have failed in a row after it, and before it.
    failures: u32,
    failures_before: u32,
    /// Why nothing more can be sent now.
    stop: Option<Stop>,
}

impl Settlement {
    pub fn new(batch: Rc<Batch>, answered: Answered, settings: &Settings, failures_before: u32) -> Self {
        let mark = |judged: &Judged| mark(&batch.changes[judged.change], &judged.verdict, settings);
        let marks = answered.judged.iter().map(|judged| (judged.change, mark(judged))).collect();
        let heard = answered.judged.iter().any(|judged| !matches!(judged.verdict, Verdict::Unsendable(_)));
        let failures = match answered.trouble.as_ref().map(|trouble| trouble.failure.kind) {
            Some(FailureKind::Unusable) => failures_before,
            Some(_) => failures_before.saturating_add(1),
            None if heard => 0,
            None => failures_before,
        };
        let wait = backoff::wait(failures, settings.retry_interval, settings.retry_max_interval, fastrand::f64());
        let stop = answered.trouble.as_ref().map(|Trouble { failure: Failure { kind, error }, .. }| {
            let down = |retry_in| Stop::Down { error: error.clone(), retry_in };
            match kind {
                FailureKind::NotThrough { retry_after } => down(wait.max(retry_after.unwrap_or_default())),
                FailureKind::Rejected => down(wait.min(MOST_REJECTED * settings.retry_interval)),
                FailureKind::Unauthorized => Stop::TokenInvalid,
                FailureKind::Unusable => Stop::Unusable(unusable(error.clone())),
                FailureKind::Misconfigured | FailureKind::Gone => down(SLOW_PROBE),
            }
        });
        Settlement { batch, answered, marks, heard, failures, failures_before, stop }
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
    pub fn remaining(&self) -> impl Iterator<Item = Remaining> {
        let stays = self.marks.iter().filter_map(|(change, mark)| {
            let mark = mark.as_ref()?;
            Some((&self.batch.changes[*change], mark.status.waits_for_a_person(), mark.wait))
        });
        stays.chain(self.not_through().into_iter().map(|change| (change, false, None))).map(
            |(change, waits_for_a_person, due_in)| Remaining {
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
        let changes = self.answered.trouble.iter().flat_map(|trouble| &trouble.changes);
        changes.map(|i| &self.batch.changes[*i]).collect()
    }

    fn acked(&self) -> Vec<&Change> {
        let acked = self.marks.iter().filter(|(_, mark)| mark.is_none());
        acked.map(|(change, _)| &self.batch.changes[*change]).collect()
    }

    /// Adds it to the counts of a report.
    pub fn add_to(&self, report: &mut Report) {
        let not_through = self.not_through().len() as i64;
        report.sent += self.sent() as i64;
        report.failed += not_through;
        for (_, mark) in &self.marks {
            match mark.as_ref().map(|mark| mark.status) {
                None => report.acked += 1,
                Some(Status::Dead) => report.dead += 1,
                Some(Status::Conflict) => report.conflicts += 1,
                Some(Status::Pending | Status::Failed) => report.failed += 1,
            }
        }
    }

    /// Changes that went out.
    fn sent(&self) -> usize {
        let unsendable = |judged: &&Judged| matches!(judged.verdict, Verdict::Unsendable(_));
        let judged = &self.answered.judged;
        judged.len() - judged.iter().filter(unsendable).count() + self.not_through().len()
    }
}

/// A change that was tried and is still there.
pub struct Remaining {
    pub id: i64,
    pub priority: Priority,
    pub touched: Touched,
    /// In conflict or dead.
    pub waits_for_a_person: bool,
    /// When it may be tried again; `None` where that depends on the target or on a person.
    pub due_in: Option<Duration>,
}

/// A setting, or a file that one names, that the HTTP thread cannot use.
pub fn unusable(why: String) -> Error {
    Error::new(SqlState::ERRCODE_CONFIG_FILE_ERROR, why)
        .hint("Correct the setting and reload: SELECT pg_reload_conf();")
}

/// What is written to the row of a change; `None` if it was acknowledged, and the row is deleted.
fn mark(change: &Change, verdict: &Verdict, settings: &Settings) -> Option<Mark> {
    let wait = || {
        let tries = u32::try_from(change.attempts).unwrap_or_default().saturating_add(1).min(MOST_DOUBLINGS);
        Some(backoff::wait(tries, settings.retry_interval, settings.retry_max_interval, fastrand::f64()))
    };
    let text_or = |text: &str, otherwise: &str| {
        let clean = sanitise(text, ERROR_CHARS);
        if clean.is_empty() { otherwise.to_owned() } else { clean }
    };
    let mark = |status, error, refused, wait| Some(Mark { status, error, refused, wait });
    match verdict {
        Verdict::Acked => None,
        Verdict::Unmentioned => mark(Status::Failed, "not acknowledged".into(), false, wait()),
        Verdict::Conflict(error) => mark(Status::Conflict, text_or(error, "conflict"), false, None),
        Verdict::Refused(error) if change.refusals + 1 >= settings.max_attempts => {
            mark(Status::Dead, text_or(error, "refused"), true, None)
        }
        Verdict::Refused(error) => mark(Status::Failed, text_or(error, "refused"), true, wait()),
        Verdict::Unsendable(why) => mark(Status::Dead, text_or(&format!("cannot be sent: {why}"), ""), false, None),
    }
}

/// Writes a settlement. If that fails, the caller tries it again later. If it never succeeds, nothing is lost: the
/// changes are sent again with the same keys.
pub fn settle(
    transactions: &mut impl Transactions,
    schema: &Schema,
    target_id: i16,
    settlement: &Settlement,
    counters: &mut Counters,
) -> Result<(), StepError> {
    let before = counters.clone();
    let settled = transactions.step(|| write(schema, target_id, settlement, counters));
    if settled.is_err() {
        *counters = before; // an attempt that was rolled back does not count
    }
    settled
}

fn write(schema: &Schema, target_id: i16, settlement: &Settlement, counters: &mut Counters) {
    let acked = settlement.acked();
    if !acked.is_empty() {
        queue_scan::delete(schema, target_id, &acked);
    }
    for (change, mark) in &settlement.marks {
        if let Some(mark) = mark {
            queue::mark(schema, target_id, &settlement.batch.changes[*change], mark);
        }
    }
    let not_through = settlement.not_through();
    counters.add(settlement.sent(), acked.len(), settlement.heard);
    note_outcome(schema, target_id, settlement, &not_through, counters);
    counters.write_if_due(schema, target_id);
}

/// Updates the target's circuit breaker.
fn note_outcome(
    schema: &Schema,
    target_id: i16,
    settlement: &Settlement,
    not_through: &[&Change],
    counters: &mut Counters,
) {
    let heard = settlement.heard;
    if heard && settlement.failures_before > 0 {
        counters.write(schema, target_id); // closes the breaker
    }
    if heard && (settlement.failures_before > 0 || settlement.batch.changes.iter().any(|c| c.was_offline)) {
        queue::revive_offline(schema, target_id);
    }
    let Some(Trouble { failure: Failure { kind, error }, .. }) = &settlement.answered.trouble else { return };
    let (wait, auth) = match &settlement.stop {
        Some(Stop::TokenInvalid) => (SLOW_PROBE, Some("invalid")),
        Some(Stop::Down { retry_in, .. }) => (*retry_in, None),
        _ => return,
    };
    match kind {
        FailureKind::NotThrough { .. } | FailureKind::Rejected => queue::mark_offline(schema, not_through, error),
        FailureKind::Gone => target::set_paused(schema, target_id, true, Some(error)),
        _ => {}
    }
    counters.write(schema, target_id); // before, because a success closes the breaker
    // A verdict ends a series of failures, so the request that failed after it is the first of a new one.
    let failures = if heard { 1 } else { settlement.failures };
    target::note_failure(schema, target_id, failures, wait.as_millis() as i64, auth, error);
}
