//! Fetching batches: the steps in which the reader reads or goes back, and the batch that was read ahead.

use crate::error::{Error, SqlState};
use crate::push::announcements::Announcements;
use crate::push::reader::Reader;
use crate::push::transactions::{StepError, Transactions};
use crate::store::Schema;
use delivery::batch::Batch;
use std::collections::HashSet;
use std::time::Instant;
use uuid::Uuid;
use wire::Priority;

/// Reads the batches of a session.
pub struct Fetcher {
    pub reader: Reader,
    /// What was read while a request was out.
    ahead: Option<Batch>,
    /// It has been looked for, whether or not there was anything.
    pub looked_ahead: bool,
}

/// What comes of a read.
pub enum Fetched {
    /// A batch, which may be empty.
    Batch(Batch),
    /// There is too little memory for what was to be read. Nothing was.
    TooLarge(Error),
}

impl Fetcher {
    pub fn new(reader: Reader) -> Self {
        Fetcher { reader, ahead: None, looked_ahead: false }
    }

    pub fn has_read_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Keeps a batch for later.
    pub fn keep(&mut self, batch: Batch) {
        self.looked_ahead = true;
        self.ahead = Some(batch).filter(|batch| !batch.is_empty());
    }

    /// Leaves what was read ahead where it is: the cursor has passed it.
    pub fn leave_ahead(&mut self) {
        if let Some(batch) = self.ahead.take() {
            self.reader.leave_all_behind(&batch, 0..batch.len());
        }
    }

    /// The batch that was read ahead, unless changes that have come in HIGH meanwhile may have to go first.
    pub fn take_ahead(&mut self, announcements: &dyn Announcements) -> Option<Batch> {
        // If it has HIGH changes itself, it goes as it is: those that have come later go after them.
        let has_high = self.ahead.as_ref()?.changes.iter().any(|change| change.priority == Priority::High);
        if has_high || !self.reader.may_have_high(announcements) { self.ahead.take() } else { None }
    }

    /// Compares what was read ahead with the changes that have come in HIGH since. These go with the next request, and
    /// so does what has room beside them: all of it is read once more.
    pub fn merge_high(&mut self, high: &Batch) -> Option<Batch> {
        let ahead = self.ahead.take();
        if high.is_empty() {
            return ahead;
        }
        self.reader.put_back(high);
        ahead.iter().for_each(|ahead| self.reader.put_back(ahead));
        None
    }

    pub fn has_to_rescan(&self) -> bool {
        self.reader.has_to_rescan(self.ahead.is_some())
    }

    /// Goes back, or some of the way, in one step that begins with `before`. Returns whether it has come to the end.
    pub fn rescan<T: Transactions>(
        &mut self,
        transactions: &mut T,
        schema: &Schema,
        before: impl FnOnce(),
    ) -> Result<bool, StepError> {
        let had_ahead = self.ahead.is_some();
        self.leave_ahead();
        let Fetcher { reader, .. } = self;
        transactions.step(|| {
            before();
            reader.rescan(schema, had_ahead)
        })
    }

    /// Reads a batch of at most so many changes and bytes. `in_hand` are the keys of what the session has sent and not
    /// settled.
    pub fn read<T: Transactions>(
        &mut self,
        transactions: &mut T,
        schema: &Schema,
        limits: (usize, usize),
        only_high: bool,
        announcements: &dyn Announcements,
        in_hand: impl Fn() -> HashSet<Uuid>,
    ) -> Result<Fetched, StepError> {
        let Fetcher { reader, ahead, .. } = self;
        let in_hand = || {
            let mut keys = in_hand();
            keys.extend(ahead.iter().flat_map(|batch| &batch.changes).map(|change| change.dedup_key));
            keys
        };
        let position = reader.position();
        let started = Instant::now();
        match transactions.step(|| reader.read(schema, limits, only_high, announcements, in_hand)) {
            Ok(batch) => {
                reader.confirm(started.elapsed(), only_high);
                Ok(Fetched::Batch(batch))
            }
            Err(error) => {
                reader.restore(position);
                match error {
                    StepError::Failed(error) if is_too_large(&error) => Ok(Fetched::TooLarge(error)),
                    error => Err(error),
                }
            }
        }
    }
}

/// Whether a step failed because of the size of what it read: 53200 and 54000 (a value that PostgreSQL cannot allocate
/// at all is XX000, `invalid memory alloc request size`).
fn is_too_large(error: &Error) -> bool {
    matches!(error.sqlstate, SqlState::ERRCODE_OUT_OF_MEMORY | SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED)
        || error.message.starts_with("invalid memory alloc request size")
}
