//! When to try again: exponential backoff with equal jitter, and Retry-After.

use std::time::{Duration, SystemTime};

/// Bounds that a server's Retry-After is clamped to.
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3600);

/// The wait after the `failures`th failure in a row: `base` doubling up to `cap`, half of it at random (`random` in
/// 0..1), so that a thousand stores whose link comes back do not return in step.
pub fn wait(failures: u32, base: Duration, cap: Duration, random: f64) -> Duration {
    let full = base.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(30))).min(cap.max(base));
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// What a Retry-After header asks for (RFC 9110, 10.2.3): seconds, or a date that counts from the response's own `Date`
/// and not from the local clock. Clamped to between a second and an hour; `None` if it cannot be read.
pub fn retry_after(header: &str, date: Option<&str>) -> Option<Duration> {
    let header = header.trim();
    let asked = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if header.bytes().all(|b| b.is_ascii_digit()) && !header.is_empty() => RETRY_AFTER_MOST,
        Err(_) => {
            let at = httpdate::parse_http_date(header).ok()?;
            let now = date.and_then(|d| httpdate::parse_http_date(d.trim()).ok()).unwrap_or_else(SystemTime::now);
            at.duration_since(now).unwrap_or_default()
        }
    };
    Some(asked.clamp(RETRY_AFTER_LEAST, RETRY_AFTER_MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn doubles_up_to_the_cap_and_never_waits_less_than_half() {
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (4_000_000, 300)] {
            assert_eq!(wait(failures, S(1), S(300), 1.0), S(full));
            assert_eq!(wait(failures, S(1), S(300), 0.0), S(full) / 2);
        }
    }

    #[test]
    fn a_cap_below_the_base_does_not_shorten_it() {
        assert_eq!(wait(5, S(10), S(1), 1.0), S(10));
    }

    #[test]
    fn retry_after_in_seconds_is_held_to_bounds() {
        assert_eq!(retry_after(" 120 ", None), Some(S(120)));
        assert_eq!(retry_after("0", None), Some(S(1)));
        assert_eq!(retry_after("99999999999999999999999", None), Some(S(3600)));
        assert_eq!(retry_after("1e99", None), None);
        assert_eq!(retry_after("", None), None);
    }

    #[test]
    fn retry_after_as_a_date_counts_from_the_servers_own_clock() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:07 GMT", Some(date)), Some(S(30)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", Some(date)), Some(S(1)));
    }

    proptest::proptest! {
        #[test]
        fn any_retry_after_is_within_bounds_or_none(
            header in "([0-9]{0,30}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT|\\PC{0,40})",
            date in proptest::option::of("([A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT|\\PC{0,40})"),
        ) {
            crate::properties::retry_after([header].into_iter().chain(date).collect::<Vec<_>>().join("\n").as_bytes());
        }

        #[test]
        fn a_wait_is_between_half_and_all_of_the_cap(
            failures: u32, base in 0..10_000u64, cap in 0..1_000_000u64, random: f64
        ) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
            let waited = wait(failures, base, cap, random);
            proptest::prop_assert!(waited >= base / 2 && waited <= cap.max(base));
        }
    }
}
