//! `sync_outbox_apply(payload json) returns json`: applies a request body on a hub. `sync_outbox_apply_text(payload
//! text)` does the same, and is what a receiver calls: PostgreSQL's json type parses a value by recursion and raises
//! 54001 for one that is nested too deeply, before the function is called. Passed as text, such a value is the error of
//! its own change only.
//!
//! Answers `{"acked": [..], "errors": [{"dedup_key": .., "error": ..}], "conflicts": []}`. Raises 22004 for NULL, 22023
//! for a payload that is not a body of changes, 54000 for one that is too large, 25006 in a read-only transaction; and
//! 40xxx, 53xxx or 57xxx when the server could not do it now. Then nothing was applied, and the same body should be
//! sent again.

use crate::error::{Error, Result, SqlState, or_raise};
use crate::hub;
use crate::pg::{text, xact};

/// Takes json as bytes, because the server encoding is not always UTF-8, and returns it as text, which is its internal
/// form.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_apply(payload: Option<&[u8]>) -> String {
    or_raise(apply(payload))
}

/// A name of its own and not an overload: PostgreSQL would prefer the overload for an argument of unknown type, and
/// whoever may call the first function need not have the privilege to call this one.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_apply_text(payload: Option<&[u8]>) -> String {
    or_raise(apply(payload))
}

/// The largest body. A sender keeps requests at about a mebibyte, except that one change may be as large as a row.
const MOST_BYTES: usize = 64 * 1024 * 1024;

fn apply(payload: Option<&[u8]>) -> Result<String> {
    let payload = payload.ok_or_else(|| {
        Error::new(SqlState::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the payload is NULL")
            .hint("Pass the body of the request: SELECT sync_outbox_apply('{\"changes\": [..]}');")
    })?;
    if payload.len() > MOST_BYTES {
        return Err(Error::new(SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "the payload is too large")
            .detail(format!("It has {} bytes, the most is {MOST_BYTES}.", payload.len()))
            .hint("Send the changes in several bodies, in order; on the sender: lower sync_outbox.batch_bytes."));
    }
    if xact::is_read_only() {
        return Err(Error::new(
            SqlState::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            "changes cannot be applied in a read-only transaction",
        )
        .hint("Connect to the primary, and call it in a read-write transaction."));
    }
    hub::apply(&text::to_utf8(payload))
}
