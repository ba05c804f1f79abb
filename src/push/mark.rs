//! The low-water mark: the id from which on a worker has to read.
//!
//! Up to it everything has been delivered, or waits for a person, and nothing can appear any more. It only saves reading
//! over the dead rows in front, which stay there as long as somebody holds an old snapshot; it never withholds a change.
//! Who frees a change behind it tells the worker, but only after the commit: until then a pass sees that there are fewer of
//! those that wait, and begins at the head, lest later changes of its key go first.

use crate::store::snapshot::Snapshot;
use crate::store::{Schema, queue};

/// Below every id.
pub const HEAD: i64 = i64::MIN;

#[derive(Clone, Debug)]
pub struct Mark {
    at: i64,
    /// Changes up to it that wait for a person.
    waiting: usize,
    /// An id, and a transaction: once all before that one have ended, nobody brings a change up to that id any more
    /// (`hard-facts` 11; prepared transactions have not ended).
    horizon: Option<(i64, u64)>,
}

impl Default for Mark {
    fn default() -> Self {
        Mark { at: HEAD, waiting: 0, horizon: None }
    }
}

impl Mark {
    pub fn at(&self) -> i64 {
        self.at
    }

    /// Called before the snapshot of a pass is taken; `parked` are the ids of the changes that wait.
    pub fn look_ahead(&mut self, schema: &Schema, parked: &[i64]) {
        self.verify(parked);
        if self.horizon.is_none() {
            self.horizon = Some(queue::drawn(schema));
        }
    }

    /// Back to the head, if what it passed over is not as it was.
    fn verify(&mut self, parked: &[i64]) {
        if up_to(self.at, parked) != self.waiting {
            *self = Mark::default();
        }
    }

    /// A pass over everything that `committed` sees has come to its end without sending anything; `first` is the first
    /// change it found that does not wait for a person, `parked` are the ids of those that did when it began.
    pub fn advance(&mut self, committed: &Snapshot, first: Option<i64>, parked: &[i64]) {
        if let Some((id, before)) = self.horizon
            && committed.is_past(before)
        {
            self.at = self.at.max(first.map_or(id, |first| id.min(first - 1)));
            self.waiting = up_to(self.at, parked);
            self.horizon = None;
        }
    }
}

fn up_to(at: i64, ids: &[i64]) -> usize {
    ids.iter().filter(|id| **id <= at).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at: i64, id: i64, before: u64) -> Mark {
        Mark { at, waiting: 0, horizon: Some((id, before)) }
    }

    fn advanced(mut mark: Mark, committed: &str, first: Option<i64>) -> i64 {
        mark.advance(&Snapshot::parse(committed), first, &[]);
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

    #[test]
    fn it_goes_back_when_what_it_passed_over_is_not_as_it_was() {
        let mut mark = mark(5, 100, 20);
        mark.advance(&Snapshot::parse("25:25:"), None, &[7, 40, 120]);
        mark.verify(&[40, 7, 130]);
        assert_eq!(mark.at(), 100, "what is above it is read anyway");
        mark.verify(&[40, 120]);
        assert_eq!(mark.at(), HEAD);
        mark.verify(&[40, 120]);
        assert_eq!(mark.at(), HEAD);
    }
}
