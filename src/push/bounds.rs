//! What a session is about, and where it ends.

use std::time::Instant;

/// Which changes a session is about.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub branch: Option<String>,
    /// The caller's own transaction, whose changes are not sent.
    pub own_txid: Option<u64>,
}

/// Bounds of one session.
#[derive(Clone, Default)]
pub struct Bounds {
    pub selection: Selection,
    pub max_rows: Option<usize>,
    pub until: Option<Instant>,
}

impl Bounds {
    /// Whether its time is over.
    pub fn is_late(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }

    /// How many more changes may be sent after so many.
    pub fn rows_left(&self, sent: i64) -> usize {
        self.max_rows.map_or(usize::MAX, |max| max.saturating_sub(sent as usize))
    }
}
