//! Telling a target's trouble from a change's: a proxy that answers 400 to everything must not turn a backlog into dead
//! changes, and a run of changes that the target really refuses must not stop the others.
//!
//! Refusals by the status of a response (400, 422) count only if the target has had a word on some other change of the
//! same session. Where a batch meets nothing but such refusals, they are held back, and further changes are tried one by one:
//! the first of each of the batches that follow. One that is answered proves the target; the refusals that were held back
//! count then. If none is, it is the target's trouble.

use super::exchange::Said;
use crate::delivery::batch::Batch;
use std::rc::Rc;

/// Batches of which one change is tried.
const SAMPLES: u32 = 16;

/// Refusals that are held back.
#[derive(Default)]
pub struct Suspicion {
    pub held: Vec<(Rc<Batch>, Vec<Said>)>,
    samples: u32,
}

impl Suspicion {
    /// Holds back the refusals of another batch.
    pub fn hold(&mut self, batch: Rc<Batch>, refused: Vec<Said>) {
        self.held.push((batch, refused));
        self.samples += 1;
    }

    /// Whether it is the target's trouble: enough others have been tried.
    pub fn is_certain(&self) -> bool {
        self.samples > SAMPLES
    }
}
