//! When changes that were tried before may go again.
//!
//! **They have at most half of the time** while others have not been tried at all: a run of changes that the target
//! refuses, one request each, would otherwise be due again before it is through, and nothing behind it would ever be
//! sent.

use delivery::batch::Batch;
use std::time::Instant;

/// The turns that changes which have become due again share with those that have not been tried.
pub struct RetryTurns {
    /// Since when a batch has held any of them, until one holds none.
    retrying_since: Option<Instant>,
    /// Those that have become due wait until then for changes that have not been tried yet.
    untried_until: Instant,
}

impl RetryTurns {
    pub fn new() -> Self {
        RetryTurns { retrying_since: None, untried_until: Instant::now() }
    }

    /// Whether the untried changes have had their turn.
    pub fn is_their_turn(&self, now: Instant) -> bool {
        self.retrying_since.is_none() && self.untried_until <= now
    }

    /// Takes note of a batch that goes now. The turn of the retries begins with the first that holds one, and ends with
    /// the first that holds none: untried changes have as much time from then on as those have had.
    pub fn note_batch(&mut self, batch: &Batch) {
        let retries = batch.changes.iter().any(|change| change.attempts > 0);
        match self.retrying_since {
            None if retries => self.retrying_since = Some(Instant::now()),
            Some(since) if !retries => {
                (self.retrying_since, self.untried_until) = (None, Instant::now() + since.elapsed());
            }
            _ => {}
        }
    }

    /// Everything that is due may go at once: there is nothing else to send, or the target was down meanwhile. Such a
    /// time is nobody's turn.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}
