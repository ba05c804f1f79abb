//! What a worker did for one target, in the history: one row for each period of activity. The row is inserted when the
//! period begins, and updated now and then.

use super::manual::fill;
use super::report::Report;
use super::transactions::{Own, Transactions};
use crate::settings;
use crate::store::Schema;
use crate::store::history::{self, Action, Entry, Mode};
use std::time::{Duration, Instant};

/// A period of activity ends after so long without anything to do.
const IDLE: Duration = Duration::from_secs(10);
const UPDATE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Activity(Option<OpenEntry>);

/// A row of the history that is still being written.
struct OpenEntry {
    id: i64,
    entry: Entry,
    total: Report,
    last_busy: Instant,
    written: Instant,
}

impl Activity {
    /// Adds what a session has reported.
    pub fn add(&mut self, schema: &Schema, target: &str, who: String, report: &Report) {
        if report.sent == 0 && report.stop.is_none() {
            return;
        }
        if self.0.as_ref().is_some_and(|open| open.total.stop.is_none()) {
            self.end_if_idle(schema);
        }
        let now = Instant::now();
        match &mut self.0 {
            None => {
                let mut entry = Entry::begin(Action::Push, Mode::Automatic, who);
                entry.target = Some(target.to_owned());
                fill(&mut entry, report);
                let inserted = Own.step(|| {
                    history::prune(schema, settings::history_retention());
                    history::insert(schema, &entry)
                });
                // If somebody's lock was in the way, the next report inserts the row.
                if let Ok(id) = inserted {
                    self.0 = Some(OpenEntry { id, entry, total: report.clone(), last_busy: now, written: now });
                }
            }
            Some(open) => {
                let ended_otherwise = open.total.stop != report.stop;
                open.add(report);
                open.last_busy = now;
                if ended_otherwise || open.written.elapsed() > UPDATE {
                    open.write(schema);
                }
            }
        }
    }

    /// Ends the period of activity if there has been nothing to do for a while.
    pub fn end_if_idle(&mut self, schema: &Schema) {
        if self.0.as_ref().is_some_and(|open| open.last_busy.elapsed() > IDLE) {
            self.end(schema);
        }
    }

    pub fn end(&mut self, schema: &Schema) {
        if let Some(mut open) = self.0.take() {
            open.write(schema);
        }
    }
}

impl OpenEntry {
    fn add(&mut self, report: &Report) {
        let total = &mut self.total;
        total.pending = total.pending.max(total.acked + report.pending);
        total.sent += report.sent;
        total.acked += report.acked;
        total.failed += report.failed;
        total.conflicts += report.conflicts;
        total.dead += report.dead;
        total.nothing_left = report.nothing_left;
        total.stop = report.stop.clone();
    }

    fn write(&mut self, schema: &Schema) {
        fill(&mut self.entry, &self.total);
        self.written = Instant::now();
        let _ = Own.step(|| history::update(schema, self.id, &self.entry)); // if this fails, it is done next time
    }
}
