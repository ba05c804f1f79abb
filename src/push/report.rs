//! What a session did, and how a flush reports it.

use crate::error::Error;
use delivery::keys::MOST_KEYS;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a session has counted. A change counts once, however often halving and bisecting have sent it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The changes that it was about when it began, whatever their status; of the worker: those that it has picked.
    pub pending: i64,
    pub sent: i64,
    pub acked: i64,
    pub failed: i64,
    pub conflicts: i64,
    pub dead: i64,
    pub blocked: i64,
    /// Tables that wait as a whole because too many of their keys are parked, quoted.
    pub waiting_tables: BTreeSet<String>,
    /// None of the changes that it was about is left.
    pub nothing_left: bool,
    /// Why it ended before everything was tried.
    pub stop: Option<Stop>,
}

/// Why a session ended early, or did not begin.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Stop {
    #[error("flush_busy")]
    Busy,
    #[error("paused")]
    Paused,
    /// This database is a copy that nobody has adopted.
    #[error("cloned")]
    Cloned,
    #[error("auth missing{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    TokenMissing { why: Option<String> },
    #[error("auth invalid")]
    TokenInvalid,
    /// The target did not answer, or is not what it should be; not before `retry_in` again.
    #[error("{error}")]
    Down { error: String, retry_in: Duration },
    /// `flush_timeout` is over.
    #[error("flush_timeout")]
    OutOfTime,
    /// `max_rows` are sent.
    #[error("max_rows")]
    Enough,
    /// A setting, a file or the target's row cannot be used.
    #[error("{}", .0.message)]
    Unusable(Error),
}

impl Report {
    /// Warns of tables that wait as a whole and are not in `known`.
    pub fn warn_of_waiting_tables(&self, known: &BTreeSet<String>) {
        for table in self.waiting_tables.difference(known) {
            pgrx::warning!("more than {MOST_KEYS} keys of {table} are parked: the whole table waits for them");
        }
    }

    /// The answer of `sync_outbox_flush()`: four members always, the others only where they apply.
    pub fn to_json(&self, retry_at: Option<String>) -> String {
        let mut members: Vec<(&str, Value)> = vec![
            ("ok", self.nothing_left.into()),
            ("pending", self.pending.into()),
            ("sent", self.sent.into()),
            ("acked", self.acked.into()),
        ];
        for (name, count) in
            [("failed", self.failed), ("conflicts", self.conflicts), ("dead", self.dead), ("blocked", self.blocked)]
        {
            if count > 0 {
                members.push((name, count.into()));
            }
        }
        match &self.stop {
            Some(Stop::Busy) => members.push(("error", "flush_busy".into())),
            Some(Stop::Paused) => members.push(("error", "paused".into())),
            Some(Stop::Cloned) => members.push(("error", "cloned".into())),
            Some(Stop::OutOfTime) => members.push(("error", "flush_timeout".into())),
            Some(Stop::TokenMissing { why }) => {
                members.push(("auth", "missing".into()));
                members.extend(why.as_ref().map(|why| ("error", why.as_str().into())));
            }
            Some(Stop::TokenInvalid) => members.push(("auth", "invalid".into())),
            Some(Stop::Down { error, .. }) => members.push(("error", short(error).into())),
            Some(Stop::Unusable(error)) => members.push(("error", error.message.as_str().into())),
            Some(Stop::Enough) | None => {}
        }
        members.extend(retry_at.map(|at| ("retry_at", at.into())));
        let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    }

    /// The error of a session, as the history keeps it.
    pub fn error(&self) -> Option<String> {
        match self.stop.as_ref()? {
            Stop::TokenMissing { .. } => Some("auth missing".into()),
            Stop::Enough => None,
            stop => Some(stop.to_string()),
        }
    }
}

/// `offline` alone where the connection failed: what a cron job looks for. The details are in `error_message`.
fn short(error: &str) -> &str {
    if error.starts_with("offline") { "offline" } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_the_scripts() {
        let report = Report { pending: 3, sent: 3, acked: 3, nothing_left: true, ..Report::default() };
        assert_eq!(report.to_json(None), r#"{"ok": true, "pending": 3, "sent": 3, "acked": 3}"#);
    }

    #[test]
    fn further_members_appear_only_when_they_say_something() {
        let report = Report { pending: 3, stop: Some(Stop::TokenMissing { why: None }), ..Report::default() };
        assert_eq!(report.to_json(None), r#"{"ok": false, "pending": 3, "sent": 0, "acked": 0, "auth": "missing"}"#);
        let stop = Stop::Down { error: "offline: connection refused".into(), retry_in: Duration::from_secs(1) };
        let report = Report { pending: 2, sent: 1, failed: 1, stop: Some(stop), ..Report::default() };
        assert_eq!(
            report.to_json(Some("2026-01-01T00:00:00+00:00".into())),
            r#"{"ok": false, "pending": 2, "sent": 1, "acked": 0, "failed": 1, "error": "offline", "retry_at": "2026-01-01T00:00:00+00:00"}"#
        );
    }
}
