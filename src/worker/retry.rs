//! When to try again after a failure: after a second, and twice as long each time up to a minute.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Failures in a row of one thing, and when it may be tried again.
#[derive(Default)]
pub struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

impl Retry {
    /// As after `failures` in a row, which somebody else has counted.
    pub fn after(failures: u32, now: Instant) -> Self {
        Retry { failures, not_before: (failures > 0).then(|| now + pause(failures)) }
    }

    /// Takes note of a failure; returns when to try again.
    pub fn failed(&mut self, now: Instant) -> Instant {
        *self = Self::after(self.failures.saturating_add(1), now);
        self.not_before.unwrap_or(now)
    }

    /// The failures are over.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Allows a try at once. Another failure counts as one more in a row.
    pub fn try_now(&mut self) {
        self.not_before = None;
    }

    /// The time before which it is not to be tried again, if there was a failure.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_second_to_a_minute() {
        let now = Instant::now();
        let mut retry = Retry::default();
        assert_eq!(retry.not_before(), None);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(retry.failed(now), now + Duration::from_secs(seconds));
        }
        assert_eq!(Retry::after(u32::MAX, now).not_before(), Some(now + LONGEST));
    }

    #[test]
    fn success_begins_anew_and_an_early_try_does_not() {
        let now = Instant::now();
        let mut retry = Retry::after(3, now);
        retry.try_now();
        assert_eq!(retry.not_before(), None);
        assert_eq!(retry.failed(now), now + Duration::from_secs(8));
        retry.succeeded();
        assert_eq!(retry.failed(now), now + Duration::from_secs(1));
    }
}
