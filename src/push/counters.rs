//! What the overview shows of a target's traffic, written at most once a second: rows that every batch updates would
//! grow without bound while an old snapshot is held somewhere.

use crate::store::{Schema, target};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// What has not been written yet, and when something last was.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    sent: i64,
    acked: i64,
    /// Acknowledged changes of a drain that has not come to its end.
    drained: i64,
    answered: bool,
    written: Option<Instant>,
}

impl Counters {
    /// Takes note of a batch; `answered` is whether the target gave a verdict on any change of it.
    pub fn add(&mut self, sent: usize, acked: usize, answered: bool) {
        self.sent += sent as i64;
        self.acked += acked as i64;
        self.drained += acked as i64;
        self.answered |= answered;
    }

    /// The outbox is empty: the next drain counts from the beginning.
    pub fn end_drain(&mut self, schema: &Schema, target_id: i16) {
        self.drained = 0;
        target::end_drain(schema, target_id);
    }

    /// How long what has not been written may wait; `None` if there is nothing.
    pub fn due_in(&self) -> Option<Duration> {
        (self.sent > 0).then(|| self.written.map_or(Duration::ZERO, |at| EVERY.saturating_sub(at.elapsed())))
    }

    /// Writes what is due, inside a transaction.
    pub fn write_if_due(&mut self, schema: &Schema, target_id: i16) {
        if self.due_in() == Some(Duration::ZERO) {
            self.write(schema, target_id);
        }
    }

    /// Writes everything, inside a transaction.
    pub fn write(&mut self, schema: &Schema, target_id: i16) {
        if self.sent == 0 {
            return;
        }
        target::count(schema, target_id, self.sent, self.acked);
        if self.drained > 0 {
            target::count_drained(schema, target_id, self.drained);
        }
        if self.answered {
            target::note_success(schema, target_id);
        }
        *self = Counters { written: Some(Instant::now()), ..Counters::default() };
    }
}
