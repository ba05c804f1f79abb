//! In which order the priorities are read, and which share of a request each may have.

use wire::Priority;

/// The lower priorities come first in one of so many requests, with a quarter of its changes and bytes each.
const FAIR_EVERY: u32 = 8;

/// What is read for the request with this number: the priorities in order, each with the number of changes and bytes
/// that the batch may have after it.
pub fn of_request(request: u32, rows: usize, bytes: usize) -> Vec<(Priority, usize, usize)> {
    use Priority::{High, Low, Normal};
    let mut shares = vec![(High, rows, bytes), (Normal, rows, bytes), (Low, rows, bytes)];
    if request % FAIR_EVERY == FAIR_EVERY - 1 {
        let share = |all: usize, of: usize| (all / of).max(1);
        // Which of them comes first alternates, for requests that have room for one change only.
        let (first, second) = if (request / FAIR_EVERY).is_multiple_of(2) { (Low, Normal) } else { (Normal, Low) };
        shares.splice(0..0, [(first, share(rows, 4), share(bytes, 4)), (second, share(rows, 2), share(bytes, 2))]);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{High, Low, Normal};

    fn order(request: u32) -> Vec<Priority> {
        of_request(request, 100, 1000).into_iter().map(|(priority, ..)| priority).collect()
    }

    #[test]
    fn the_higher_priority_is_read_first() {
        assert_eq!(of_request(0, 100, 1000), [(High, 100, 1000), (Normal, 100, 1000), (Low, 100, 1000)]);
    }

    #[test]
    fn every_eighth_request_begins_with_a_share_for_alternating_lower_ones() {
        assert_eq!(of_request(7, 100, 1000)[..2], [(Low, 25, 250), (Normal, 50, 500)]);
        assert_eq!(order(7), [Low, Normal, High, Normal, Low]);
        assert_eq!(order(15), [Normal, Low, High, Normal, Low]);
        assert_eq!((0..64).filter(|request| order(*request)[0] != High).count(), 8);
    }

    #[test]
    fn a_share_is_at_least_one_change() {
        assert_eq!(of_request(7, 1, 1)[..2], [(Low, 1, 1), (Normal, 1, 1)]);
    }
}
