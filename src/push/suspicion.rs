//! Telling a target that is at fault from changes that are: a proxy that answers 400 to everything must not turn a
//! backlog into dead changes, and a run of changes that the target really refuses must not stop the others.
//!
//! Refusals by the status of a response (400, 422) count only if the target has given a verdict on some other change.
//! Where a batch meets nothing but such refusals, they are held back, and further changes are tried one by one: the
//! first of each of the batches that follow. A verdict on one of them shows that the target works, and the refusals
//! that were held back count. If there is none, the target is at fault. Such a verdict counts as recent for a while, in
//! which each change can be refused once more before another verdict is needed: so a long run of bad changes is soon
//! dealt with, and a proxy that breaks in that time makes no change DEAD.

use super::exchange::Judged;
use delivery::batch::Batch;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Batches of which one change is tried.
const SAMPLES: u32 = 16;

/// Refusals that are held back.
#[derive(Default)]
pub struct Suspicion {
    pub held_back: Vec<(Rc<Batch>, Vec<Judged>)>,
    samples: u32,
}

impl Suspicion {
    /// Holds back the refusals of another batch.
    pub fn hold_back(&mut self, batch: Rc<Batch>, refused: Vec<Judged>) {
        self.held_back.push((batch, refused));
        self.samples += 1;
    }

    /// Whether the target is at fault: enough other changes have been tried.
    pub fn is_confirmed(&self) -> bool {
        self.samples > SAMPLES
    }
}

/// How long a verdict counts as recent.
const RECENT: Duration = Duration::from_secs(60);
/// Refused changes that are remembered.
const MOST_REFUSED: usize = 100_000;

/// The last verdict that the target gave while it refused other changes by the status of its responses: it works, and
/// what it refuses is at fault.
#[derive(Default)]
pub struct RecentVerdict {
    at: Option<Instant>,
    /// When each change was last refused.
    refused: HashMap<i64, Instant>,
}

impl RecentVerdict {
    /// The target has given a verdict on a change, between others that it refused.
    pub fn note(&mut self) {
        self.at = Some(Instant::now());
    }

    /// The target has given a verdict on a change. That alone shows nothing of those that it refuses, but a verdict
    /// that is still recent stays so for longer.
    pub fn renew(&mut self) {
        if self.exists() {
            self.note();
        }
    }

    pub fn exists(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < RECENT)
    }

    /// Nothing at all gets through any more.
    pub fn forget(&mut self) {
        *self = RecentVerdict::default();
    }

    /// Takes note of a refusal of this change. Returns whether it counts: a verdict on another change has come since
    /// its last one.
    pub fn count_refusal(&mut self, id: i64) -> bool {
        let Some(at) = self.at.filter(|_| self.exists()) else { return false };
        if self.refused.get(&id).is_some_and(|last| *last >= at) {
            return false;
        }
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(id, Instant::now());
        true
    }
}
