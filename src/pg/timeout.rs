//! Time limits inside a statement: how long it may take, and whether it has waited for a lock.

use super::externs::{self, DEADLOCK_TIMEOUT, STATEMENT_TIMEOUT};
use pgrx::pg_sys;
use std::time::Duration;

/// Right now, in PostgreSQL's microseconds.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Ends the statement that runs with 57014, as `statement_timeout` does, unless it is over before. That setting is looked
/// at when a statement begins, so that setting it inside one comes too late. The caller's own limit counts if it is
/// earlier, and is put back when this is dropped.
pub struct StatementLimit {
    /// When the limit was to be reached that we have replaced.
    replaced: Option<Option<i64>>,
    deadline: i64,
}

impl StatementLimit {
    /// `None` is no limit.
    pub fn new(most: Option<Duration>) -> Self {
        let before = externs::timeout_finishes(STATEMENT_TIMEOUT);
        let ours = most.map_or(i64::MAX, |most| now().saturating_add(most.as_micros() as i64));
        if before.unwrap_or(i64::MAX) <= ours {
            return StatementLimit { replaced: None, deadline: before.unwrap_or(i64::MAX) };
        }
        externs::enable_timeout_at(STATEMENT_TIMEOUT, ours);
        StatementLimit { replaced: Some(before), deadline: ours }
    }

    /// Whether the time is over. The timer goes off only once, and code that ran may have caught its error.
    pub fn is_over(&self) -> bool {
        now() >= self.deadline
    }
}

impl Drop for StatementLimit {
    /// Also while an error unwinds: no abort knows of it.
    fn drop(&mut self) {
        match self.replaced {
            None => {}
            Some(None) => externs::disable_timeout(STATEMENT_TIMEOUT, false),
            Some(Some(at)) => externs::enable_timeout_at(STATEMENT_TIMEOUT, at),
        }
    }
}

/// Whether this process has begun to wait for a heavyweight lock since then: each such wait starts the deadlock timer.
pub fn has_waited_since(then: i64) -> bool {
    externs::timeout_started(DEADLOCK_TIMEOUT) >= then
}
