//! Which transactions were committed at some moment, without holding a snapshot of PostgreSQL.

use crate::pg::spi;

/// The transactions whose changes a snapshot sees (`pg_snapshot`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// The transactions in progress between the two, ascending.
    running: Vec<u64>,
}

impl Snapshot {
    /// Takes the current snapshot.
    pub fn take() -> Self {
        spi::first("SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text", &[], |row| Self::parse(&row.text(1)))
            .unwrap_or_default()
    }

    /// Reads `xmin:xmax:xip,xip,..`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|n| n.parse().ok()).unwrap_or_default();
        let (xmin, xmax) = (number(), number());
        let running = parts.next().unwrap_or_default().split(',').filter_map(|n| n.parse().ok()).collect();
        Snapshot { xmin, xmax, running }
    }

    /// Whether the snapshot sees the changes of this top-level transaction, provided that it was committed.
    pub fn sees(&self, txid: u64) -> bool {
        txid < self.xmin || (txid < self.xmax && self.running.binary_search(&txid).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_ended() {
        let snapshot = Snapshot::parse("10:20:12,15");
        assert_eq!(
            [9, 10, 12, 14, 15, 19, 20].map(|txid| snapshot.sees(txid)),
            [true, true, false, true, false, true, false]
        );
    }

    #[test]
    fn nothing_may_be_running() {
        let snapshot = Snapshot::parse("7:7:");
        assert!(snapshot.sees(6) && !snapshot.sees(7));
    }
}
