//! Looking up where to send and with what, and knowing how long that is valid.

use crate::push::destination::Destination;
use crate::push::report::Stop;
use crate::push::transactions::{StepError, Transactions};
use crate::store::{Schema, target};
use crate::wake;
use std::time::{Duration, Instant};

/// Without preloading nobody announces that something has changed: it is looked up again after this time.
const CURRENT_FOR: Duration = Duration::from_millis(50);

/// The destination, as it was last looked up.
#[derive(Default)]
pub struct Lookup {
    last: Option<Last>,
    destination: Option<Destination>,
}

/// When it was last looked up, and under which control number.
struct Last {
    at: Instant,
    control: Option<u64>,
}

/// What a session learns from a new look.
pub struct Found {
    /// Why nothing can be sent.
    pub stop: Option<Stop>,
    /// An administrative call has committed since the last look, or there was none.
    pub control_changed: bool,
    /// The session has just begun.
    pub is_first: bool,
    /// Requests that failed in a row.
    pub failures: u32,
}

impl Lookup {
    pub fn destination(&self) -> Option<&Destination> {
        self.destination.as_ref()
    }

    /// Most changes and bytes of a batch.
    pub fn batch_limits(&self) -> (usize, usize) {
        let settings = self.destination.as_ref().map(|destination| &destination.settings);
        settings.map_or((1, 1), |settings| (settings.batch_rows, settings.batch_bytes))
    }

    /// Has the next one look again.
    pub fn invalidate(&mut self) {
        self.last = None;
    }

    /// Whether nothing has changed since the last look that a sender must know.
    pub fn is_current(&self) -> bool {
        let Some(last) = &self.last else { return false };
        match (last.control, wake::control()) {
            (None, None) => last.at.elapsed() < CURRENT_FOR,
            (then, now) => then == now,
        }
    }

    /// Whether it is time to look again although no change was announced: without preloading none is.
    pub fn has_expired(&self) -> bool {
        self.last.is_some() && wake::control().is_none() && !self.is_current()
    }

    /// Looks again, and also how the target did lately.
    pub fn look_up<T: Transactions>(
        &mut self,
        transactions: &mut T,
        schema: &Schema,
        (id, name): (i16, &str),
    ) -> Result<Found, StepError> {
        let control = wake::control(); // before the snapshot
        let at = Instant::now();
        let (found, state) = transactions.step(|| (Destination::find(schema, name), target::state(schema, id)))?;
        let control_changed = self.last.as_ref().is_none_or(|last| last.control != control);
        let is_first = self.last.is_none() && self.destination.is_none();
        self.last = Some(Last { at, control });
        let stop = match found {
            Ok(Ok(destination)) => {
                self.destination = Some(destination);
                None
            }
            Ok(Err(stop)) => Some(stop),
            Err(error) => Some(Stop::Unusable(error)),
        };
        Ok(Found { stop, control_changed, is_first, failures: state.consecutive_failures })
    }

    /// Looks up where to send and with what, but not the state of the target. Returns whether token, secrets or URL
    /// have changed.
    pub fn renew_credentials<T: Transactions>(
        &mut self,
        transactions: &mut T,
        schema: &Schema,
        name: &str,
    ) -> Result<bool, StepError> {
        let found = transactions.step(|| Destination::find(schema, name))?;
        let Ok(Ok(new)) = found else { return Ok(false) };
        let have_changed = self.destination.as_ref().is_none_or(|old| new.has_other_credentials(old));
        if have_changed {
            self.destination = Some(new);
        }
        Ok(have_changed)
    }
}
