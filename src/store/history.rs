//! The table `sync_outbox_history`: one row per push session, requeue and discard.
//!
//! A long session writes its row when it begins and updates it now and then, so that a crash leaves a trace. It does
//! not write a row per request.

use super::Schema;
use crate::pg::spi::{self, Arg};
use pgrx::datum::TimestampWithTimeZone;
use std::time::Duration;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Push,
    Requeue,
    Discard,
}

/// Who did it: the worker, or somebody who called a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Automatic,
    Manual,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryStatus {
    Success,
    Partial,
    Failed,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Push => "PUSH",
            Action::Requeue => "REQUEUE",
            Action::Discard => "DISCARD",
        }
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Automatic => "AUTOMATIC",
            Mode::Manual => "MANUAL",
        }
    }
}

impl HistoryStatus {
    fn name(self) -> &'static str {
        match self {
            HistoryStatus::Success => "SUCCESS",
            HistoryStatus::Partial => "PARTIAL",
            HistoryStatus::Failed => "FAILED",
        }
    }
}

/// A row of the table. The numbers are numbers of changes; `pending` is how many there were to send at the beginning.
#[derive(Clone, Debug)]
pub struct Entry {
    pub action: Action,
    pub mode: Mode,
    pub status: HistoryStatus,
    pub target: Option<String>,
    pub branch: Option<String>,
    /// The role that asked for it, never the owner that our statements run as.
    pub who: String,
    pub reason: Option<String>,
    pub started: TimestampWithTimeZone,
    pub finished: TimestampWithTimeZone,
    pub pending: i64,
    pub sent: i64,
    pub acked: i64,
    pub failed: i64,
    pub error: Option<String>,
}

impl Entry {
    /// An entry that begins now, with nothing counted yet.
    pub fn begin(action: Action, mode: Mode, who: String) -> Self {
        let now = pgrx::datum::clock_timestamp();
        Entry {
            action,
            mode,
            status: HistoryStatus::Success,
            target: None,
            branch: None,
            who,
            reason: None,
            started: now,
            finished: now,
            pending: 0,
            sent: 0,
            acked: 0,
            failed: 0,
            error: None,
        }
    }

    /// Sets the end to now.
    pub fn finish(&mut self) {
        self.finished = pgrx::datum::clock_timestamp();
    }

    /// The values of all columns except `id`, in the order of the statements below.
    fn values(&self) -> Vec<Arg<'_>> {
        vec![
            self.action.name().into(),
            self.mode.name().into(),
            self.status.name().into(),
            Arg::opt_utf8(self.target.as_deref()),
            Arg::opt_utf8(self.branch.as_deref()),
            Arg::text_utf8(&self.who),
            Arg::opt_utf8(self.reason.as_deref()),
            self.started.into(),
            self.finished.into(),
            self.pending.into(),
            self.sent.into(),
            self.acked.into(),
            self.failed.into(),
            Arg::opt_utf8(self.error.as_deref()),
        ]
    }
}

/// Writes a new row; returns its id.
pub fn insert(schema: &Schema, entry: &Entry) -> i64 {
    spi::first(
        &schema.sql(
            "INSERT INTO @.sync_outbox_history (action, mode, status, target, branch, who, reason, started, finished,
                    pending, sent, acked, failed, error)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING id",
        ),
        &entry.values(),
        |row| row.int(1),
    )
    .unwrap_or_default()
}

/// Updates a row. If somebody has deleted it meanwhile, nothing is written.
pub fn update(schema: &Schema, id: i64, entry: &Entry) {
    let mut values = entry.values();
    values.push(id.into());
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox_history SET action = $1, mode = $2, status = $3, target = $4, branch = $5, who = $6,
                    reason = $7, started = $8, finished = $9, pending = $10, sent = $11, acked = $12, failed = $13,
                    error = $14
              WHERE id OPERATOR(pg_catalog.=) $15",
        ),
        &values,
    );
}

/// Deletes the rows of everything that began longer ago than `retention`.
pub fn prune(schema: &Schema, retention: Duration) {
    spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_history
              WHERE started OPERATOR(pg_catalog.<)
                    (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) ($1 OPERATOR(pg_catalog.*) interval '1 second'))",
        ),
        &[(retention.as_secs() as f64).into()],
    );
}
