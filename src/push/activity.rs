//! What a worker did for one target, in the history: one row per period of activity of work, however many sessions that
//! were. It is written when the period of activity begins, and brought up to date now and then.

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
pub struct Activity(Option<Running>);

/// A row of the history that is still being written.
struct Running {
    id: i64,
    entry: Entry,
    total: Report,
    last_busy: Instant,
    written: Instant,
}

impl Activity {
    /// Adds a session.
    pub fn add(&mut self, schema: &Schema, target: &str, who: String, report: &Report) {
        if report.sent == 0 && report.stop.is_none() {
            return;
        }
        if self.0.as_ref().is_some_and(|running| running.total.stop.is_none()) {
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
                // Where somebody's lock was in the way, the next report begins the row.
                if let Ok(id) = inserted {
                    self.0 = Some(Running { id, entry, total: report.clone(), last_busy: now, written: now });
                }
            }
            Some(running) => {
                let ended_otherwise = running.total.stop != report.stop;
                running.add(report);
                running.last_busy = now;
                if ended_otherwise || running.written.elapsed() > UPDATE {
                    running.write(schema);
                }
            }
        }
    }

    /// Ends the period of activity if there has been nothing to do for long.
    pub fn end_if_idle(&mut self, schema: &Schema) {
        if self.0.as_ref().is_some_and(|running| running.last_busy.elapsed() > IDLE) {
            self.end(schema);
        }
    }

    pub fn end(&mut self, schema: &Schema) {
        if let Some(mut running) = self.0.take() {
            running.write(schema);
        }
    }
}

impl Running {
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
        let _ = Own.step(|| history::update(schema, self.id, &self.entry)); // another time will do
    }
}
