//! Telling a target that is at fault from changes that are: a proxy that answers 400 to everything must not turn a
//! backlog into dead changes, and a run of changes that the target really refuses must not stop the others.
//!
//! Refusals by the status of a response (400, 422) count only if the target has given a verdict on some other change.
//! Where a batch meets nothing but such refusals, they are held back, and further changes are tried one by one: the
//! first of each of the batches that follow. One that is answered proves that the target works, and the refusals that
//! were held back count. If none is, the target is at fault. A proof holds for a while, in which each change can be
//! refused once more before another verdict is needed: so a long run of bad changes is soon dealt with, and a proxy
//! that breaks in that time makes no change DEAD.

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
    pub held: Vec<(Rc<Batch>, Vec<Judged>)>,
    samples: u32,
}

impl Suspicion {
    /// Holds back the refusals of another batch.
    pub fn hold(&mut self, batch: Rc<Batch>, refused: Vec<Judged>) {
        self.held.push((batch, refused));
        self.samples += 1;
    }

    /// Whether the target is at fault: enough other changes have been tried.
    pub fn is_certain(&self) -> bool {
        self.samples > SAMPLES
    }
}

/// How long a proof holds.
const PROOF: Duration = Duration::from_secs(60);
/// Refused changes that are remembered.
const MOST_REFUSED: usize = 100_000;

/// The proof that the target works although it refuses changes by the status of its responses.
#[derive(Default)]
pub struct Proof {
    at: Option<Instant>,
    /// When each change was last refused.
    refused: HashMap<i64, Instant>,
}

impl Proof {
    /// The target has given a verdict on a change, between others that it refused.
    pub fn give(&mut self) {
        self.at = Some(Instant::now());
    }

    /// The target has given a verdict on a change.
    pub fn renew(&mut self) {
        if self.holds() {
            self.give();
        }
    }

    pub fn holds(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < PROOF)
    }

    /// Nothing at all gets through any more.
    pub fn withdraw(&mut self) {
        *self = Proof::default();
    }

    /// Whether a refusal of this change counts: a verdict on another change has come since its last one.
    pub fn convicts(&mut self, id: i64) -> bool {
        let Some(at) = self.at.filter(|_| self.holds()) else { return false };
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
