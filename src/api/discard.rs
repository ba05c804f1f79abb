//! `sync_outbox_discard()`: changes that a person gives up.
//!
//! A discarded change is never sent afterwards: a change that a sender could have in flight is moved only while the
//! sender's lock is held, which is kept until the caller's transaction ends. Changes that wait for a person (CONFLICT,
//! DEAD) are not touched by senders, so they can be discarded in the middle of a long drain.

use super::argument::{self, IdArray, Text};
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::lock::{LockScope, SenderLock};
use crate::pg::role::{self, ActAs};
use crate::settings;
use crate::store::history::{self, Action, Entry, Mode};
use crate::store::{Schema, intervention, overview};
use crate::wake;
use std::collections::{BTreeMap, BTreeSet};

/// Moves changes to `sync_outbox_discarded`, whatever their status; returns how many. Ids that do not exist are
/// ignored. A change that is requeued at the same time stays.
///
/// Errors: 22023 without ids; 23514 if `reason` is shorter than five characters, 22001 if it has more than 1,000; 55P03
/// if the sender of one of the targets keeps its lock for longer than `sync_outbox.lock_wait`.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_discard(ids: IdArray<'_>, reason: Text<'_>) -> i64 {
    or_raise(discard(ids, reason))
}

fn discard(ids: IdArray<'_>, reason: Text<'_>) -> Result<i64> {
    let mut entry = Entry::begin(Action::Discard, Mode::Manual, role::name(role::current_user()));
    let ids = argument::ids(ids).ok_or_else(|| {
        Error::argument("ids must not be null")
            .hint("Name the changes: SELECT sync_outbox_discard('{17,18}', 'sold twice by mistake');")
    })?;
    let reason = checked(reason)?;
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let lanes = intervention::lanes(&schema);
    let mut senders: BTreeMap<i16, SenderLock> = BTreeMap::new();
    for lane in &lanes {
        if !senders.contains_key(&lane.target_id) && lane.reaches(&schema, ids) {
            senders.insert(lane.target_id, keep_out(&schema, lane.target_id)?);
        }
    }
    let mut concerned = BTreeSet::new();
    for lane in &lanes {
        let all = senders.contains_key(&lane.target_id);
        let changes = lane.discard(&schema, ids, all, &entry.who, &reason) as i64;
        if changes > 0 {
            concerned.insert(lane.target_id);
        }
        entry.pending += changes;
    }
    if concerned.len() == 1 {
        let target = overview::targets(&schema).into_iter().find(|target| concerned.contains(&target.id));
        entry.target = target.map(|target| target.name);
    }
    entry.reason = Some(reason);
    entry.finish();
    history::insert(&schema, &entry);
    wake::control_at_commit(); // later changes of the same keys can be sent now
    Ok(entry.pending)
}

fn checked(reason: Text<'_>) -> Result<String> {
    const HINT: &str = "Say why: SELECT sync_outbox_discard('{17,18}', 'sold twice by mistake');";
    // No reason is refused in the same way as an empty one.
    let reason = argument::telling_reason(reason.or(Some(b"")), "discarding changes needs a reason of", HINT)?;
    Ok(reason.unwrap_or_default())
}

/// Keeps the senders of a target out until the transaction ends. A worker or drain gives the turn up between two
/// requests.
pub(super) fn keep_out(schema: &Schema, target: i16) -> Result<SenderLock> {
    SenderLock::acquire(schema.outbox(), target, LockScope::Transaction, settings::lock_wait()).ok_or_else(|| {
        Error::new(
            SqlState::ERRCODE_LOCK_NOT_AVAILABLE,
            "a sender is at work that may have these changes in flight",
        )
        .hint("A request may be out for as long as sync_outbox.request_timeout; sync_outbox_overview() names the sender's pid.")
    })
}
