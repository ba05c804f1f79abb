//! The worker checks now and then whether the backlog has crossed a threshold.

use crate::store::{Schema, backlog};
use std::time::{Duration, Instant};

/// A check of a long backlog reads a sample of it.
const EVERY: Duration = Duration::from_secs(5);

/// When the last check was, and what it found about the next crossing.
#[derive(Default)]
pub struct Watch {
    looked: Option<Instant>,
    too_old_at: Option<Instant>,
}

impl Watch {
    /// Warns of thresholds that have been crossed, if it is time to check again. Inside a transaction.
    pub fn look(&mut self, schema: &Schema) {
        if self.looked.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.too_old_at = backlog::watch(schema).map(|too_old_in| Instant::now() + too_old_in);
        self.looked = Some(Instant::now());
    }

    /// How long until the oldest change is too old, if it is still there then; not sooner than the next look.
    pub fn too_old_in(&self) -> Option<Duration> {
        let next_look = self.looked? + EVERY;
        self.too_old_at.map(|at| at.max(next_look).saturating_duration_since(Instant::now()))
    }
}
