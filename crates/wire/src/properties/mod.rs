//! What holds whatever a parser is fed: one function a parser, that panics where it does not hold.
//!
//! Each is stated once and fed three times: by property tests with what nearly fits, by the fuzz targets in `fuzz/`
//! with what a fuzzer makes up, and by `make unit` with what was worth keeping of that.

mod answer;
mod body;
mod json;
mod signing_secret;
mod token;

pub use answer::answer;
pub use body::body;
pub use json::json;
pub use signing_secret::signing_secret;
pub use token::token;

/// The text of an input, for a parser whose caller has made sure that it is one.
pub fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// An input of two parts: its first line, and the rest if there is one.
pub fn two_parts(input: &[u8]) -> Option<(&str, Option<&str>)> {
    let input = text(input)?;
    Some(input.split_once('\n').map_or((input, None), |(first, rest)| (first, Some(rest))))
}
