//! `sync_outbox_adopt()`: a person decides that this database sends although it is a copy.
//!
//! Capture and sender treat the changes that were copied as if they had been captured here.

use super::argument::{self, Text};
use super::discard::keep_out;
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::xact;
use crate::store::{Schema, identity, overview, queue, target};
use crate::wake;

/// To be called on a copy. With `same` the database goes on as the source that was copied, which must not send any
/// more; with `new` it becomes a new source. Either way the changes in the outbox keep their keys and are sent. It may
/// also be called where no copy was noticed.
///
/// Errors: 22023 for another word; 55000 on a standby; 55P03 if a sender is active, or writers are while the sequence
/// has to be moved.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_adopt(as_: Text<'_>) {
    or_raise(adopt(as_))
}

fn adopt(as_: Text<'_>) -> Result<()> {
    let who = role::name(role::current_user());
    let same = match argument::trimmed(as_, "as")?.as_deref() {
        Some("same") => true,
        Some("new") => false,
        _ => {
            return Err(Error::argument("the argument must be 'same' or 'new'").hint(
                "'same' if this database replaces the original, 'new' if the original goes on sending: SELECT sync_outbox_adopt('same');",
            ));
        }
    };
    if xact::in_recovery() {
        return Err(Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "a standby cannot be adopted")
            .hint("Nothing needs to be done: it sends nothing, and goes on by itself when it is promoted."));
    }
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let targets = overview::targets(&schema);
    let _senders = targets.iter().map(|target| keep_out(&schema, target.id)).collect::<Result<Vec<_>>>()?;
    identity::adopt(&schema, same, &who);
    queue::claim(&schema);
    queue::draw_ids_above(&schema);
    for target in &targets {
        if same { target::close_breaker(&schema, target.id) } else { target::forget(&schema, target.id) }
    }
    wake::control_at_commit();
    Ok(())
}
