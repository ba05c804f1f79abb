//! Keys that have changes in more than one priority.
//!
//! A backfill causes this, because it puts existing rows into LOW while later changes of the same rows get the priority
//! of their table. So do tables that take each other's names. While it lasts, a change waits for every earlier one of
//! its key, whatever priority that has.

use crate::store::{Schema, queue};
use delivery::batch::Change;
use delivery::keys::{Parked, Touched};
use std::ops::ControlFlow;
use wire::Priority;

/// The keys of the tables concerned with their first changes, by priority, as they were when they were last loaded.
#[derive(Default)]
pub struct CrossPriority {
    priorities: Vec<(Priority, Parked)>,
}

impl CrossPriority {
    pub fn load(schema: &Schema, target_id: i16) -> Self {
        let tables = queue::cross_priority_tables(schema, target_id);
        let first_changes = |priority| {
            let mut first = Parked::default();
            for table in &tables {
                queue::lane_keys(schema, target_id, priority, table, |row| {
                    let touched =
                        Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
                    first.park(&touched, row.id);
                    // The first change counts for all that follow: it is a TRUNCATE, or the table has too many keys.
                    match first.is_parked_as_a_whole(&touched) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
            }
            (priority, first)
        };
        let priorities = Priority::ALL.into_iter().map(first_changes).filter(|(_, first)| !first.is_empty()).collect();
        CrossPriority { priorities }
    }

    pub fn is_empty(&self) -> bool {
        self.priorities.is_empty()
    }

    /// Whether another priority held an earlier change of one of these keys when they were loaded.
    pub fn blocks(&self, touched: &Touched, change: &Change) -> bool {
        let mut others = self.priorities.iter().filter(|(priority, _)| *priority != change.priority);
        others.any(|(_, first)| first.blocks(touched, change.id))
    }
}
