//! The reason for a change: how long it may be, and how it travels as a header.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The fewest characters that a reason needs where one is required.
pub const MIN_CHARS: usize = 5;
/// The most characters that a reason may have: it is a sentence, and it travels with every change.
pub const MAX_CHARS: usize = 1_000;

/// Unreserved characters and spaces of a reason stay readable; everything else is percent-encoded (UTF-8).
const READABLE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b' ').remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b',');
/// Servers limit the size of headers; a longer reason stands in the body alone.
const MOST_HEADER_BYTES: usize = 1024;

/// The value of `X-Reason`, or `None` where the reason is too long for a header.
pub fn header(reason: &str) -> Option<String> {
    if reason.len() > MOST_HEADER_BYTES {
        return None;
    }
    Some(utf8_percent_encode(reason, READABLE).to_string()).filter(|encoded| encoded.len() <= MOST_HEADER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_readable_ascii() {
        assert_eq!(header("stock count, store 12").as_deref(), Some("stock count, store 12"));
        assert_eq!(
            header("caf\u{e9}\r\nX-Evil: 1").as_deref(),
            Some("caf%C3%A9%0D%0AX%2DEvil%3A 1".replace("%2D", "-").as_str())
        );
    }

    #[test]
    fn a_long_reason_has_no_header() {
        assert!(header(&"x".repeat(MOST_HEADER_BYTES)).is_some());
        assert_eq!(header(&"x".repeat(MOST_HEADER_BYTES + 1)), None);
        assert_eq!(header(&"\u{e9}".repeat(MOST_HEADER_BYTES / 2)), None, "it is longer when it is encoded");
    }
}
