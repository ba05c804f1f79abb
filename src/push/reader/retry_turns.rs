//! When changes that were tried before may go again.
//!
//! **They have at most half of the time** while others have not been tried at all: a run of changes that the target
//! refuses, one request each, would otherwise be due again before it is through, and nothing behind it would ever be
//! sent.

use std::time::Instant;

/// The turns that changes which have become due again share with those that have not been tried.
pub struct RetryTurns {
    /// Since when they are tried again, until a batch holds none of them.
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

    /// What has become due goes from now on.
    pub fn begin(&mut self) {
        self.retrying_since = Some(Instant::now());
    }

    /// Ends the turn of the retries if none of them is left: untried changes have as much time as those have had.
    pub fn end_if(&mut self, none_is_left: impl FnOnce() -> bool) {
        if let Some(since) = self.retrying_since
            && none_is_left()
        {
            (self.retrying_since, self.untried_until) = (None, Instant::now() + since.elapsed());
        }
    }

    /// Everything that is due may go at once.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}
