//! `sync_outbox_pause()` and `sync_outbox_resume()`: stop sending while capture goes on, and start it again.

use super::argument::{self, Text};
use crate::error::{Result, or_raise};
use crate::pg::role::ActAs;
use crate::store::{Schema, target};
use crate::wake;

/// Stops sending to a target, by worker, flush and drain alike; a request that has been sent is still settled. Called
/// again, it replaces the reason. An unknown target is 22023, a reason of more than 1,000 characters 22001.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_pause(target: Text<'_>, reason: Text<'_>) {
    or_raise(set_paused(target, true, reason))
}

/// Ends a pause. The worker tries at once, even if the breaker is open. An unknown target is 22023.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_resume(target: Text<'_>) {
    or_raise(set_paused(target, false, None))
}

fn set_paused(target: Text<'_>, paused: bool, reason: Text<'_>) -> Result<()> {
    let reason = argument::reason(reason)?;
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let target = target::find(&schema, argument::target(argument::utf8(target, "target")?.as_deref()))?;
    target::set_paused(&schema, target.id, paused, reason.as_deref());
    if !paused {
        target::close_breaker(&schema, target.id);
    }
    wake::control_at_commit(); // active senders must notice a pause, too
    Ok(())
}
