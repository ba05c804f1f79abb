//! What holds whatever a parser is fed: one function a parser, that panics where it does not hold.
//!
//! Each is stated once and fed three times: by property tests with what nearly fits, by the fuzz targets in `fuzz/` with
//! what a fuzzer makes up, and by [`corpus`] on every `make unit` with what was worth keeping of that.

mod address_list;
mod answer;
mod body;
mod config;
#[cfg(test)]
mod corpus;
mod endpoint;
mod kept_token;
mod retry_after;
mod signing_secret;
mod token;

pub use address_list::address_list;
pub use answer::answer;
pub use body::body;
pub use config::config;
pub use endpoint::endpoint;
pub use kept_token::kept_token;
pub use retry_after::retry_after;
pub use signing_secret::signing_secret;
pub use token::token;

/// The text of an input, for a parser whose caller has made sure that it is one.
fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// An input of two parts: its first line, and the rest if there is one.
fn two_parts(input: &[u8]) -> Option<(&str, Option<&str>)> {
    let input = text(input)?;
    Some(input.split_once('\n').map_or((input, None), |(first, rest)| (first, Some(rest))))
}
