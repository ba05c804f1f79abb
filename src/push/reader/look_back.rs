//! Looking back: finding out which keys are parked, by a look at every change that parks its keys.
//!
//! It takes as many steps as it needs, each of limited length, because other targets wait meanwhile.

use super::cursors::Rescan;
use crate::pg::clock;
use crate::store::Schema;
use crate::store::queue::{self, ParkedUpTo};
use delivery::keys::{Parked, Touched};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// How long a step may look back, or pass over changes that cannot go: the other targets of a worker wait that long.
pub const STEP: Duration = Duration::from_millis(20);
/// How often looking back in steps may be disturbed before it is done in one.
const MOST_RESTARTS: u32 = 3;

/// A look back that is under way, or has come to its end.
pub struct LookBack {
    pub from: Rescan,
    pub started: Instant,
    /// The time at its beginning, and the time by which changes must have been due to go now (microseconds, as
    /// `clock::now_micros()`).
    pub now: i64,
    pub due_by: i64,
    /// Changes that have become due since the last look back may go.
    retries: bool,
    up_to: ParkedUpTo,
    pub parked: Parked,
    /// Changes that wait for a person.
    pub waiting: BTreeSet<i64>,
    /// Tables that wait as a whole because too many of their keys are parked, quoted.
    pub waiting_tables: BTreeSet<String>,
    /// How many changes it has seen, and the sum of their ids, as `queue::count_parked()` counts.
    seen: (i64, i64),
    steps: u32,
    restarts: u32,
    pub took: Duration,
}

impl LookBack {
    /// Changes that have become due since `due_before` may go only with `retries`.
    pub fn new(from: Rescan, retries: bool, due_before: i64) -> Self {
        let now = clock::now_micros();
        LookBack {
            from,
            started: Instant::now(),
            now,
            due_by: if retries { now } else { due_before },
            retries,
            up_to: ParkedUpTo::default(),
            parked: Parked::default(),
            waiting: BTreeSet::new(),
            waiting_tables: BTreeSet::new(),
            seen: (0, 0),
            steps: 0,
            restarts: 0,
            took: Duration::ZERO,
        }
    }

    /// Continues for one step, which began at `began`. Returns whether it has come to the end.
    pub fn advance(&mut self, schema: &Schema, target_id: i16, began: Instant) -> bool {
        let LookBack { due_by, up_to, parked, waiting, waiting_tables, .. } = self;
        let (mut rows, mut sum) = (0, 0);
        let whole = self.restarts >= MOST_RESTARTS;
        let stopped_at = queue::parked(schema, target_id, *due_by, up_to, |row| {
            let touched = Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
            if row.waits_for_a_person() {
                waiting.insert(row.id);
            }
            if parked.park(&touched, row.id) {
                waiting_tables.insert(format!("\"{}\".\"{}\"", row.schema_name, row.table_name));
            }
            (rows, sum) = (rows + 1, sum + row.id % queue::PARKED_MODULUS);
            let long = !whole && began.elapsed() >= STEP;
            if long { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // Counted only here, because a step that is rolled back is repeated.
        self.seen = (self.seen.0 + rows, self.seen.1 + sum);
        self.steps += 1;
        if let Some(up_to) = stopped_at {
            self.up_to = up_to;
            self.took += began.elapsed();
            return false;
        }
        // Each step has seen the table as it was then: a change that somebody moved by hand in between may have been
        // passed over.
        if self.steps > 1 && self.seen != queue::count_parked(schema, target_id, self.due_by) {
            let took = self.took + began.elapsed();
            let anew = LookBack::new(self.from, self.retries, self.due_by);
            *self = LookBack { restarts: self.restarts + 1, took, ..anew };
            return false;
        }
        true
    }
}
