//! The answer to a request: `{"acked": [..], "errors": [{"dedup_key", "error"}], "conflicts": [{"dedup_key",
//! "error"}]}`.
//!
//! A change that is mentioned nowhere was not acknowledged.

mod read;
mod write;

pub use read::Answer;
pub use write::{AnswerWriter, clean};

/// What became of one change.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Acked,
    Refused(String),
    Conflict(String),
    /// The answer does not mention it, which is no acknowledgement.
    Unmentioned,
    /// Not the target's verdict: it cannot be sent at all.
    Unsendable(String),
}
