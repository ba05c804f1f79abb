//! Keys that have changes in more than one lane.
//!
//! Only a backfill does that: it puts existing rows into LOW while later changes of the same rows go into their table's
//! lane. While it lasts, a change waits for every earlier one of its key, whatever lane that is in.

use crate::store::{Schema, queue};
use delivery::batch::Change;
use delivery::keys::{self, Touched};
use std::collections::HashMap;
use std::ops::ControlFlow;
use wire::Priority;

/// The first id of every key of the tables concerned, by lane; loaded at the beginning of a pass.
#[derive(Default)]
pub struct CrossPriority {
    lanes: Vec<(Priority, HashMap<u64, FirstIds>)>,
}

/// The first ids of one table in one lane.
#[derive(Default)]
struct FirstIds {
    /// Of the table; counts for every key once there are too many to remember.
    any: Option<i64>,
    /// Of a TRUNCATE or a change without a key.
    whole: Option<i64>,
    keys: HashMap<u64, i64>,
    too_many: bool,
}

impl CrossPriority {
    pub fn load(schema: &Schema, target_id: i16) -> Self {
        let mut crossing = CrossPriority::default();
        for table in queue::cross_priority_tables(schema, target_id) {
            for priority in Priority::ALL {
                let mut first = FirstIds::default();
                let mut hash = None;
                queue::lane_keys(schema, target_id, priority, &table, |row| {
                    let touched =
                        Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
                    hash = Some(touched.table());
                    first.add(&touched, row.id);
                    if first.too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                if let Some(hash) = hash {
                    crossing.lanes.push((priority, HashMap::from([(hash, first)])));
                }
            }
        }
        crossing
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether another lane held an earlier change of one of these keys when the pass began.
    pub fn blocks(&self, touched: &Touched, change: &Change) -> bool {
        self.lanes
            .iter()
            .filter(|(priority, _)| *priority != change.priority)
            .filter_map(|(_, tables)| tables.get(&touched.table()))
            .any(|first| first.of(touched).is_some_and(|id| id < change.id))
    }
}

impl FirstIds {
    /// Takes note of a change; they come in order of ids.
    fn add(&mut self, touched: &Touched, id: i64) {
        self.any.get_or_insert(id);
        match touched.keys() {
            None => drop(self.whole.get_or_insert(id)),
            Some((old, new)) => {
                self.keys.entry(old).or_insert(id);
                if let Some(new) = new {
                    self.keys.entry(new).or_insert(id);
                }
            }
        }
        self.too_many = self.keys.len() > keys::MOST_KEYS;
    }

    fn of(&self, touched: &Touched) -> Option<i64> {
        match touched.keys() {
            Some((old, new)) if !self.too_many => {
                [self.keys.get(&old).copied(), new.and_then(|n| self.keys.get(&n).copied()), self.whole]
                    .into_iter()
                    .flatten()
                    .min()
            }
            _ => self.any,
        }
    }
}
