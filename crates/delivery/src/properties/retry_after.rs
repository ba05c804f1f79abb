use crate::backoff;
use std::time::Duration;
use wire::properties::two_parts;

/// What a server asks for is between a second and an hour, or nothing. The second line of the input is the response's
/// `Date`.
pub fn retry_after(input: &[u8]) {
    let Some((header, date)) = two_parts(input) else { return };
    if let Some(wait) = backoff::retry_after(header, date) {
        assert!((Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&wait), "{wait:?}");
    }
}
