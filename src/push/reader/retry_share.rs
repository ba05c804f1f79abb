//! When changes that were tried before may go again.
//!
//! **They have at most half of the time** while others have not been tried at all: a run of changes that the target
//! refuses, one request each, would otherwise be due again before it is through, and nothing behind it would ever be
//! sent.

use delivery::batch::Batch;
use std::time::Instant;

/// How the time is shared between changes that have become due again and those that have not been tried.
pub struct RetryShare {
    /// Since when a batch has held any of them, until one holds none.
    retrying_since: Option<Instant>,
    /// Those that have become due wait until then for changes that have not been tried yet.
    untried_until: Instant,
}

impl RetryShare {
    pub fn new() -> Self {
        RetryShare { retrying_since: None, untried_until: Instant::now() }
    }

    /// Whether changes that have become due may go: the untried ones have had their share.
    pub fn allows_retries(&self, now: Instant) -> bool {
        self.retrying_since.is_none() && self.untried_until <= now
    }

    /// Takes note of a batch that goes now. The time of the retries begins with the first batch that holds one, and
    /// ends with the first that holds none: untried changes have as much time from then on as those have had.
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
    /// time counts as nobody's share.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}
