//! The session's reason, as it is stored with every change that the session makes.

use super::plan::Plan;
use crate::error::{Error, SqlState};
use crate::pg::text;
use crate::settings;
use pgrx::pg_sys::Datum;

/// Characters a reason needs where `require_reason` is set (the rule of the header X-Reason).
pub const REASON_MIN_CHARS: usize = 5;
/// Characters a reason may have: it is a sentence, and it travels with every change.
pub const REASON_MAX_CHARS: usize = 1_000;

/// The reason as a text datum in the current memory context. 23514 if the table wants one and there is none or a
/// shorter one, 22001 if it is too long.
pub fn of_session(plan: &Plan) -> Option<Datum> {
    settings::with_reason(|reason| {
        if plan.require_reason && reason.map_or(0, text::characters) < REASON_MIN_CHARS {
            too_short(plan);
        }
        // No character is shorter than a byte, so that the characters of most need not be counted.
        if let Some(reason) = reason.filter(|reason| reason.len() > REASON_MAX_CHARS)
            && text::characters(reason) > REASON_MAX_CHARS
        {
            too_long();
        }
        reason.map(text::datum)
    })
}

#[cold]
fn too_short(plan: &Plan) -> ! {
    Error::new(
        SqlState::ERRCODE_CHECK_VIOLATION,
        format!(
            "writing to \"{}\" needs a reason of at least {REASON_MIN_CHARS} characters",
            text::to_utf8(plan.table_name.bytes())
        ),
    )
    .hint("Say why first: SET sync_outbox.reason = 'stock count of store 12'; or SET LOCAL inside a transaction.")
    .raise()
}

#[cold]
fn too_long() -> ! {
    Error::new(
        SqlState::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
        format!("sync_outbox.reason is longer than {REASON_MAX_CHARS} characters"),
    )
    .hint("Give the reason in a sentence: SET sync_outbox.reason = 'stock count of store 12'; and keep the rest in a table.")
    .raise()
}
