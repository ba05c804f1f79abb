//! `sync_outbox_requeue()`: tries changes again that were refused, in conflict or dead.

use super::argument::{self, IdArray, Text};
use crate::error::{Result, or_raise};
use crate::pg::Oid;
use crate::pg::role::{self, ActAs};
use crate::settings;
use crate::store::history::{self, Action, Entry, Mode};
use crate::store::intervention::{self, Selection};
use crate::store::{Schema, attached, target};
use crate::wake;

/// FAILED, CONFLICT and DEAD changes become PENDING with `attempt_count` 0, and the target is tried again at once;
/// returns how many. Without `ids`, this means all of them; with `relation`, only those of that table. Ids that do not
/// exist or are pending are ignored.
///
/// Errors: 22023 for an unknown target; 23514 if a reason is given that is shorter than five characters, 22001 if it
/// has more than 1,000.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_requeue(ids: IdArray<'_>, reason: Text<'_>, relation: Option<Oid>, target: Text<'_>) -> i64 {
    or_raise(requeue(ids, reason, relation, target))
}

fn requeue(ids: IdArray<'_>, reason: Text<'_>, relation: Option<Oid>, target: Text<'_>) -> Result<i64> {
    let mut entry = Entry::begin(Action::Requeue, Mode::Manual, role::name(role::current_user()));
    const HINT: &str = "Say why, or leave the reason out: SELECT sync_outbox_requeue(reason => 'hub repaired');";
    let reason = argument::telling_reason(reason, "the reason of a requeue needs", HINT)?;
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let target = target::find(&schema, argument::target(argument::utf8(target, "target")?.as_deref()))?;
    let table = relation.map(attached::name);
    let selection = Selection { target_id: target.id, ids: argument::ids(ids), table: table.as_ref() };
    let changes = intervention::requeue(&schema, &selection) as i64;
    target::close_breaker(&schema, target.id);
    entry.target = Some(target.name);
    entry.reason = reason;
    entry.pending = changes;
    entry.finish();
    history::insert(&schema, &entry);
    history::prune(&schema, settings::history_retention());
    wake::control_at_commit();
    Ok(changes)
}
