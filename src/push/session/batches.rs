//! Where a session's batches come from: what was read ahead, what comes next, and what it goes back to.

use super::Session;
use super::fetch::Fetched;
use crate::error::Error;
use crate::push::announcements::Announcements;
use crate::push::exchange::Exchange;
use crate::push::reader::Rescan;
use crate::push::report::Stop;
use crate::push::transactions::{StepError, Transactions};
use delivery::batch::Batch;
use std::collections::HashSet;

impl Session {
    /// The next batch, or `None` when nothing deliverable is left or a bound is reached.
    pub(super) fn next_batch<T: Transactions>(
        &mut self,
        transactions: &mut T,
        announcements: &dyn Announcements,
    ) -> Result<Option<Batch>, StepError> {
        loop {
            if self.bounds.is_late() {
                self.stop = Some(Stop::OutOfTime);
                return Ok(None);
            }
            if self.rows_wanted() == 0 {
                self.stop = Some(Stop::Enough);
                return Ok(None);
            }
            if self.has_to_rescan() {
                self.settle_all(transactions)?;
                if !self.rescan(transactions)? {
                    return Ok(None);
                }
            }
            if self.fetcher.has_read_ahead() {
                if let Some(ahead) = self.fetcher.take_ahead(announcements) {
                    return Ok(Some(ahead));
                }
                let high = self.read(transactions, announcements, true)?;
                if let Some(ahead) = self.fetcher.merge_high(&high) {
                    return Ok(Some(ahead));
                }
            }
            let batch = self.read(transactions, announcements, false)?;
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
            if self.has_to_rescan() {
                continue;
            }
            if self.is_under_way() {
                return Ok(None);
            }
            if self.results.suspects_the_target() {
                self.end_suspicion();
                return Ok(None);
            }
            if !(self.fetcher.reader.waits_across_priorities() && self.sent_since_rescan) {
                return Ok(None);
            }
            self.rescan_from(Rescan::LeftBehind);
        }
    }

    fn rows_wanted(&self) -> usize {
        let (most, _) = self.lookup.batch_limits();
        let rows = if self.results.suspects_the_target() { most } else { self.results.batch_size.rows() };
        rows.max(1).min(self.bounds.rows_left(self.results.report.sent))
    }

    /// Whether to go back before anything is read. Not while the target is under suspicion: the changes that come next
    /// show whether it is at fault.
    fn has_to_rescan(&self) -> bool {
        self.fetcher.has_to_rescan() && !self.results.suspects_the_target()
    }

    /// Goes back, or some of the way. Returns whether it has come to the end.
    fn rescan<T: Transactions>(&mut self, transactions: &mut T) -> Result<bool, StepError> {
        let Session { schema, id, bounds, bounded, fetcher, results, ending, .. } = self;
        let done = fetcher.rescan(transactions, schema, || {
            if *bounded {
                ending.begin(schema, *id, &bounds.selection, &mut results.report);
            }
        })?;
        if done {
            results.report.waiting_tables.append(&mut fetcher.reader.waiting_tables);
            results.report.blocked = 0;
            self.sent_since_rescan = false;
        }
        Ok(done)
    }

    fn read<T: Transactions>(
        &mut self,
        transactions: &mut T,
        announcements: &dyn Announcements,
        only_high: bool,
    ) -> Result<Batch, StepError> {
        let rows = self.rows_wanted();
        let (_, bytes) = self.lookup.batch_limits();
        let Session { schema, fetcher, exchange, results, .. } = self;
        let in_hand = || {
            let out = exchange.iter().flat_map(|exchange| &exchange.batch.changes).map(|change| change.dedup_key);
            out.chain(results.keys_in_hand()).collect::<HashSet<_>>()
        };
        match fetcher.read(transactions, schema, (rows, bytes), only_high, announcements, in_hand)? {
            Fetched::Batch(batch) => Ok(batch),
            Fetched::TooLarge(error) => {
                self.read_carefully(transactions, rows, error)?;
                Ok(Batch::default())
            }
        }
    }

    /// There is too little memory for what was to be read. From now on one change is read at a time, and one that is
    /// too large even alone is given up, so that it stops nobody.
    fn read_carefully<T: Transactions>(
        &mut self,
        transactions: &mut T,
        rows: usize,
        error: Error,
    ) -> Result<(), StepError> {
        if rows > 1 {
            self.results.batch_size.one_at_a_time();
        } else {
            let Session { schema, fetcher, .. } = self;
            let why = format!("cannot be sent: {}", error.message);
            if !transactions.step(|| fetcher.reader.give_up_on_unreadable(schema, &why))? {
                return Err(StepError::Failed(error));
            }
            self.results.report.dead += 1;
        }
        self.rescan_from(Rescan::LeftBehind);
        Ok(())
    }

    /// Picks what may go of a batch.
    pub(super) fn begin(&mut self, batch: Batch) {
        let left = self.bounds.rows_left(self.results.report.sent);
        let most = if self.results.suspects_the_target() { 1 } else { left };
        let reader = &mut self.fetcher.reader;
        let (picked, blocked) = reader.pick(&batch, most);
        self.results.report.blocked += blocked as i64;
        if !picked.is_empty() {
            self.sent_since_rescan = true;
            self.renewed_credentials = false;
            if !self.bounded {
                self.results.report.pending += picked.len() as i64;
            }
            let has_recent_verdict = self.results.has_recent_verdict();
            self.exchange = Some(Exchange::new(batch, picked, has_recent_verdict, reader.parked()));
        }
    }

    /// Does what can be done while a request is out.
    pub(super) fn work_meanwhile<T: Transactions>(
        &mut self,
        transactions: &mut T,
        announcements: &dyn Announcements,
    ) -> Result<(), StepError> {
        self.settle_all(transactions)?;
        let may_read_ahead = !self.fetcher.looked_ahead
            && !self.fetcher.has_read_ahead()
            && self.results.failures == 0
            && self.bounds.max_rows.is_none()
            && !self.results.suspects_the_target()
            && !self.fetcher.has_to_rescan()
            && self.lookup.is_current();
        if may_read_ahead {
            let batch = self.read(transactions, announcements, false)?;
            self.fetcher.keep(batch);
        }
        Ok(())
    }

    /// All that is left to be tried has been refused.
    fn end_suspicion(&mut self) {
        let Session { lookup, fetcher, results, .. } = self;
        let Some(destination) = lookup.destination() else { return };
        let stop = results.end_suspicion(&destination.settings, &mut fetcher.reader);
        self.stop = stop.or(self.stop.take());
    }
}
