//! The session's reason, as it is stored with every change that the session makes.

use super::plan::Plan;
use crate::error::{Error, SqlState};
use crate::pg::text::{self, Varlena};
use crate::settings;
use wire::reason::{MAX_CHARS, MIN_CHARS};

/// The reason as a text in the current memory context. 23514 if the table wants one and there is none or a
/// shorter one, 22001 if it is too long.
pub fn of_session(plan: &Plan) -> Option<Varlena<'static>> {
    settings::with_reason(|reason| {
        if plan.require_reason && reason.map_or(0, text::characters) < MIN_CHARS {
            too_short(plan);
        }
        // No character is shorter than a byte, so that the characters of most need not be counted.
        if let Some(reason) = reason.filter(|reason| reason.len() > MAX_CHARS)
            && text::characters(reason) > MAX_CHARS
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
            "writing to \"{}\" needs a reason of at least {MIN_CHARS} characters",
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
        format!("sync_outbox.reason is longer than {MAX_CHARS} characters"),
    )
    .hint("Give the reason in a sentence: SET sync_outbox.reason = 'stock count of store 12'; and keep the rest in a table.")
    .raise()
}
