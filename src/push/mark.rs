//! The low-water mark: the id from which on a worker has to read.
//!
//! Up to it everything has been delivered, or waits for a person, and nothing can appear any more. It only saves reading
//! over the dead rows in front, which stay there as long as somebody holds an old snapshot; it never withholds a change.
//! What changes behind it without a word to the worker is found when the worker looks at everything again, now and then.

use crate::store::snapshot::Snapshot;
use crate::store::{Schema, queue};

/// Below every id.
pub const HEAD: i64 = i64::MIN;

#[derive(Clone, Debug)]
pub struct Mark {
    at: i64,
    /// An id, and a transaction: once all before that one have ended, nobody brings a change up to that id any more
    /// (`hard-facts` 11; prepared transactions have not ended).
    horizon: Option<(i64, u64)>,
}

impl Default for Mark {
    fn default() -> Self {
        Mark { at: HEAD, horizon: None }
    }
}

impl Mark {
    pub fn at(&self) -> i64 {
        self.at
    }

    /// Called before the snapshot of a pass is taken.
    pub fn look_ahead(&mut self, schema: &Schema) {
        if self.horizon.is_none() {
            self.horizon = Some(queue::drawn(schema));
        }
    }

    /// A pass over everything that `committed` sees has come to its end without sending anything; `first` is the first
    /// change it found that does not wait for a person.
    pub fn advance(&mut self, committed: &Snapshot, first: Option<i64>) {
        if let Some((id, before)) = self.horizon
            && committed.is_past(before)
        {
            self.at = self.at.max(first.map_or(id, |first| id.min(first - 1)));
            self.horizon = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at: i64, id: i64, before: u64) -> Mark {
        Mark { at, horizon: Some((id, before)) }
    }

    fn advanced(mut mark: Mark, committed: &str, first: Option<i64>) -> i64 {
        mark.advance(&Snapshot::parse(committed), first);
        mark.at()
    }

    #[test]
    fn it_stays_while_somebody_may_still_bring_a_change() {
        assert_eq!(advanced(mark(5, 100, 20), "19:25:19,22", None), 5);
        assert_eq!(advanced(mark(5, 100, 20), "20:25:20,22", None), 100);
    }

    #[test]
    fn it_stays_before_what_is_left() {
        assert_eq!(advanced(mark(5, 100, 20), "25:25:", Some(40)), 39);
        assert_eq!(advanced(mark(5, 100, 20), "25:25:", Some(400)), 100);
    }
}
