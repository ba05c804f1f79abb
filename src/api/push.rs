//! `sync_outbox_flush` and `sync_outbox_drain`.

use super::argument::{self, Text, TextResult};
use crate::error::{Result, or_raise};
use crate::pg::text;
use crate::push;
use std::borrow::Cow;

/// Sends now; returns JSON text (json is stored as text). Errors: 22023 bad argument or URL, 55000 no URL or standby,
/// 25001 isolation level, 25006 read-only transaction, 54000 an argument that is too long. An unreachable server is not
/// an error; the answer reports it.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_flush(branch: Text<'_>, max_rows: Option<i32>, target: Text<'_>) -> TextResult {
    let answer = Which::read(branch, target).and_then(|which| push::flush(which.branch, max_rows, &which.target));
    text::from_utf8(&or_raise(answer))
}

/// `CALL sync_outbox_drain(branch, target)`, whose entry point knows from the raw call whether it may commit.
pub fn drain(branch: Text<'_>, target: Text<'_>) -> Result<()> {
    Which::read(branch, target).and_then(|which| push::drain(which.branch, &which.target))
}

/// What is to be sent. It outlives the transactions that a drain commits.
struct Which {
    branch: Option<String>,
    target: String,
}

impl Which {
    fn read(branch: Text<'_>, target: Text<'_>) -> Result<Self> {
        Ok(Which {
            branch: argument::utf8(branch, "branch")?.map(Cow::into_owned),
            target: argument::target(argument::utf8(target, "target")?.as_deref()).to_owned(),
        })
    }
}
