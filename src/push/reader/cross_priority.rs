//! Keys that have changes in more than one lane.
//!
//! A backfill does that, which puts existing rows into LOW while later changes of the same rows go into their table's
//! lane; and so do tables that take each other's names. While it lasts, a change waits for every earlier one of its
//! key, whatever lane that is in.

use crate::store::{Schema, queue};
use delivery::batch::Change;
use delivery::keys::{Parked, Touched};
use std::ops::ControlFlow;
use wire::Priority;

/// The keys of the tables concerned with their first changes, by lane; loaded at the beginning of a pass.
#[derive(Default)]
pub struct CrossPriority {
    lanes: Vec<(Priority, Parked)>,
}

impl CrossPriority {
    pub fn load(schema: &Schema, target_id: i16) -> Self {
        let tables = queue::cross_priority_tables(schema, target_id);
        let lane = |priority| {
            let mut first = Parked::default();
            for table in &tables {
                queue::lane_keys(schema, target_id, priority, table, |row| {
                    let touched =
                        Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
                    // Of a table with too many keys the first change counts for all of them.
                    if first.park(&touched, row.id) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
            }
            (priority, first)
        };
        CrossPriority { lanes: Priority::ALL.into_iter().map(lane).filter(|(_, first)| !first.is_empty()).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether another lane held an earlier change of one of these keys when the pass began.
    pub fn blocks(&self, touched: &Touched, change: &Change) -> bool {
        let mut others = self.lanes.iter().filter(|(priority, _)| *priority != change.priority);
        others.any(|(_, first)| first.blocks(touched, change.id))
    }
}
