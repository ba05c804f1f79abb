//! What a session knows from its exchanges: verdicts that are to be settled, refusals that are held back, and how the
//! target does.

use super::batch_size::BatchSize;
use crate::push::counters::Counters;
use crate::push::exchange::{Answered, ExchangeResult, Judged, Trouble};
use crate::push::reader::Reader;
use crate::push::reader::Rescan;
use crate::push::report::{Report, Stop};
use crate::push::settle::{self, Settlement};
use crate::push::suspicion::{RecentVerdict, Suspicion};
use crate::push::transactions::{StepError, Transactions};
use crate::store::Schema;
use delivery::Settings;
use delivery::batch::Batch;
use delivery::outcome::{Failure, FailureKind};
use std::collections::VecDeque;
use std::rc::Rc;
use uuid::Uuid;
use wire::answer::Verdict;

#[derive(Default)]
pub struct Results {
    pub report: Report,
    pub counters: Counters,
    unsettled: VecDeque<Settlement>,
    suspicion: Option<Suspicion>,
    recent_verdict: RecentVerdict,
    /// Everything that was tried was refused by the status of the responses.
    pub rejected: bool,
    /// Requests that failed in a row, from before this session too.
    pub failures: u32,
    pub batch_size: BatchSize,
    /// Something was settled since the outbox was last found empty.
    pub has_settled: bool,
}

impl Results {
    /// There may be something to settle from before this session.
    pub fn new() -> Self {
        Results { has_settled: true, ..Results::default() }
    }

    /// Takes note of every verdict of an exchange that is over. Returns why nothing more can be sent now, if so.
    pub fn note(&mut self, result: ExchangeResult, settings: &Settings, reader: &mut Reader) -> Option<Stop> {
        let ExchangeResult { batch, mut answered, refused_by_status, unsent, got_verdicts } = result;
        let trouble = answered.trouble.is_some();
        let (counted, refused_by_status): (Vec<Judged>, Vec<Judged>) = refused_by_status
            .into_iter()
            .partition(|judged| self.recent_verdict.count_refusal(batch.changes[judged.change].id));
        answered.judged.extend(counted);
        if got_verdicts {
            self.recent_verdict.renew();
        }
        self.report.blocked += answered.blocked.len() as i64;
        reader.leave_all_behind(&batch, answered.blocked.iter().copied());
        if !unsent.is_empty() {
            reader.leave_all_behind(&batch, unsent.iter().copied());
            reader.rescans().request(Rescan::LeftBehind);
        }
        if answered.too_large {
            self.batch_size.halve(batch.len());
        } else if got_verdicts && !trouble {
            self.batch_size.grow(settings.batch_rows);
        }
        if !refused_by_status.is_empty() {
            reader.leave_all_behind(&batch, refused_by_status.iter().map(|judged| judged.change));
            if !trouble {
                self.suspicion.get_or_insert_default().hold_back(batch.clone(), refused_by_status);
            }
        }
        let stop = self.conclude(batch, answered, settings, reader);
        let later_stop = match self.suspicion.take() {
            Some(suspicion) if got_verdicts => self.conclude_changes_at_fault(suspicion, settings, reader),
            Some(suspicion) if suspicion.is_confirmed() => self.conclude_target_at_fault(suspicion, settings, reader),
            // Other trouble shows nothing about the refused changes, which are tried again.
            suspicion => {
                self.suspicion = suspicion.filter(|_| !trouble);
                None
            }
        };
        later_stop.or(stop)
    }

    /// Whether refusals are held back, because the target may be at fault and not the changes.
    pub fn suspects_the_target(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Whether the target has lately given a verdict on a change, between others that it refused.
    pub fn has_recent_verdict(&self) -> bool {
        self.recent_verdict.exists()
    }

    /// No further change is left to be tried: the refusals that are held back are the target's fault.
    pub fn end_suspicion(&mut self, settings: &Settings, reader: &mut Reader) -> Option<Stop> {
        let suspicion = self.suspicion.take()?;
        self.conclude_target_at_fault(suspicion, settings, reader)
    }

    /// What was refused and held back is tried again.
    pub fn forget_suspicion(&mut self) {
        self.suspicion = None;
    }

    /// Has verdicts settled, while the next request is out.
    fn conclude(
        &mut self,
        batch: Rc<Batch>,
        answered: Answered,
        settings: &Settings,
        reader: &mut Reader,
    ) -> Option<Stop> {
        if answered.judged.is_empty() && answered.trouble.is_none() {
            return None;
        }
        let settlement = Settlement::new(batch, answered, settings, self.failures);
        for remaining in settlement.remaining() {
            reader.leave_behind(remaining.priority, remaining.id, remaining.waits_for_a_person);
            reader.tried(remaining.id, remaining.touched);
            remaining.due_in.into_iter().for_each(|wait| reader.rescans().due_in(wait));
        }
        self.failures = settlement.failures();
        settlement.add_to(&mut self.report);
        let stop = settlement.stop().cloned();
        self.unsettled.push_back(settlement);
        stop
    }

    /// The target has given a verdict on another change: the refusals that were held back are the changes' fault, and
    /// count.
    fn conclude_changes_at_fault(
        &mut self,
        suspicion: Suspicion,
        settings: &Settings,
        reader: &mut Reader,
    ) -> Option<Stop> {
        self.recent_verdict.note();
        let mut stop = None;
        for (batch, judged) in suspicion.held_back {
            stop = self.conclude(batch, Answered { judged, ..Answered::default() }, settings, reader).or(stop);
        }
        reader.rescans().request(Rescan::LeftBehind);
        stop
    }

    /// No other change has got a verdict: the refusals that were held back are the target's fault, and do not count.
    fn conclude_target_at_fault(
        &mut self,
        suspicion: Suspicion,
        settings: &Settings,
        reader: &mut Reader,
    ) -> Option<Stop> {
        self.recent_verdict.forget();
        self.rejected = true;
        let mut stop = None;
        for (batch, judged) in suspicion.held_back {
            let changes = judged.iter().map(|judged| judged.change).collect();
            let error = judged.into_iter().next_back().map(|Judged { verdict, .. }| match verdict {
                Verdict::Refused(error) => error,
                _ => String::new(),
            });
            let failure = Failure { kind: FailureKind::Rejected, error: error.unwrap_or_default() };
            let trouble = Some(Trouble { failure, changes });
            stop = self.conclude(batch, Answered { trouble, ..Answered::default() }, settings, reader).or(stop);
        }
        stop
    }

    /// How many exchanges are still to be settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// The keys of the changes that are held back or still to be settled.
    pub fn keys_in_hand(&self) -> impl Iterator<Item = Uuid> {
        let held_back = self.suspicion.iter().flat_map(|suspicion| &suspicion.held_back);
        let held_back = held_back.flat_map(|(batch, _)| &batch.changes).map(|change| change.dedup_key);
        held_back.chain(self.unsettled.iter().flat_map(Settlement::keys))
    }

    pub fn settle_all(
        &mut self,
        transactions: &mut impl Transactions,
        schema: &Schema,
        target_id: i16,
    ) -> Result<(), StepError> {
        while let Some(settlement) = self.unsettled.front() {
            settle::settle(transactions, schema, target_id, settlement, &mut self.counters)?;
            self.has_settled = true;
            self.unsettled.pop_front();
        }
        Ok(())
    }
}
