//! What a session does when nothing deliverable is left: it finds out whether anything of what it was about is left,
//! ends the drain, and gives disk space back.

use crate::pg::lock::LockScope;
use crate::push::bounds::Selection;
use crate::push::counters::Counters;
use crate::push::report::Report;
use crate::push::transactions::{StepError, Transactions};
use crate::settings;
use crate::store::{Schema, queue, reclaim, stats};
use std::time::{Duration, Instant};

/// How long nothing must have come before the worker looks whether disk space can be given back.
const QUIET: Duration = Duration::from_secs(1);
/// A bounded session counts up to so many changes exactly when it begins.
const COUNTED: i64 = 1_000_000;

#[derive(Default)]
pub struct Ending {
    /// The greatest id when a bounded session began.
    last_id: Option<i64>,
    /// When the worker may look whether the disk space of what was delivered can be given back.
    reclaim_at: Option<Instant>,
}

impl Ending {
    /// Counts what a bounded session is about, when it begins. Inside a step.
    pub fn begin(&mut self, schema: &Schema, target_id: i16, selection: &Selection, report: &mut Report) {
        if self.last_id.is_none() {
            report.pending = stats::pending(schema, target_id, selection.branch.as_deref(), COUNTED);
            self.last_id = Some(queue::last_id(schema, target_id));
        }
    }

    /// When something is to be done here although nothing new is committed.
    pub fn due(&self) -> Option<Instant> {
        self.reclaim_at
    }

    /// A bounded session has come to its end, and everything is settled.
    pub fn end_bounded<T: Transactions>(
        &self,
        transactions: &mut T,
        schema: &Schema,
        target_id: i16,
        selection: &Selection,
        counters: &mut Counters,
    ) -> Result<bool, StepError> {
        let branch = selection.branch.as_deref();
        let left = transactions.step(|| {
            let left = queue::any_left(schema, target_id, branch, self.last_id.unwrap_or(i64::MIN));
            if !left && branch.is_none() {
                counters.end_drain(schema, target_id);
                if T::LOCK == LockScope::Session && settings::truncate_when_empty() {
                    reclaim::truncate_if_empty(schema);
                }
            }
            left
        })?;
        Ok(left)
    }

    /// The worker's session comes here after every change: what costs more than a moment waits until nothing has come
    /// for a while. `has_settled`: something was settled since it was last here.
    pub fn rest<T: Transactions>(
        &mut self,
        transactions: &mut T,
        schema: &Schema,
        target_id: i16,
        has_settled: bool,
        counters: &mut Counters,
    ) -> Result<(), StepError> {
        let now = Instant::now();
        if has_settled {
            self.reclaim_at = Some(self.reclaim_at.unwrap_or(now).max(now + QUIET));
        } else if self.reclaim_at.is_some_and(|at| at <= now) {
            transactions.step(|| {
                counters.end_drain(schema, target_id);
                if settings::truncate_when_empty() {
                    reclaim::truncate_if_empty(schema);
                }
            })?;
            self.reclaim_at = None;
        }
        Ok(())
    }

    /// Something is left: no disk space can be given back.
    pub fn forget(&mut self) {
        self.reclaim_at = None;
    }

    /// What a bounded session has left, when it was stopped before it came to its end.
    pub fn count_what_is_left<T: Transactions>(
        &self,
        transactions: &mut T,
        schema: &Schema,
        target_id: i16,
        selection: &Selection,
        report: &mut Report,
    ) -> Result<(), StepError> {
        let branch = selection.branch.as_deref();
        match self.last_id {
            Some(last_id) => {
                let left = transactions.step(|| queue::any_left(schema, target_id, branch, last_id))?;
                report.nothing_left = !left;
            }
            None => report.pending = transactions.step(|| stats::pending(schema, target_id, branch, COUNTED))?,
        }
        Ok(())
    }
}
