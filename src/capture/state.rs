//! Telling by state: the rows that stand, in place of changes that something later may have overtaken (see
//! [`super::order`]).

use super::Scratch;
use super::append::{self, Change, Outbox};
use super::plan::Plan;
use crate::pg::buffer::VarlenaBuffer;
use crate::pg::heap::Columns;
use crate::pg::relation::Open;
use crate::pg::role::ActAs;
use crate::pg::scan;
use crate::pg::text::Varlena;
use crate::pg::trigger::Fired;
use crate::store::attached;
use std::rc::Rc;
use wire::Operation;

/// Tells the present state of every key that a change touches, which has been taken apart into `scratch`. A key whose
/// row is gone comes first: a row that has moved to another key keeps its other unique values.
pub fn tell_state(
    fired: &Fired<'_>,
    plan: &Plan,
    reason: Option<Varlena<'_>>,
    key_changes: bool,
    scratch: &mut Scratch,
) {
    let relation = fired.relation();
    let find = |row: &Columns| plan.key_index().find(&relation, row);
    // Every key that a row of this table or partition has had belongs into it: a key includes what partitions go by.
    let before = (fired.event() == Operation::Delete || key_changes).then(|| find(&scratch.old));
    let after = fired.new_row().map(|new| match plan.knows_versions && !new.superseded_by_us() {
        true => Some(new),
        false => find(&scratch.new),
    });
    let standing = match fired.event() {
        _ if plan.captures_insert || key_changes => Operation::Insert,
        event => event,
    };

    let Scratch { old, new, present, pk, data, branch, .. } = scratch;
    let outbox = append::outbox(fired.function());
    // Of both, before a user's cast can write to either.
    let mut ids =
        std::array::from_fn::<_, 2, _>(|_| plan.runs_users_code.then(|| outbox.draw_id())).into_iter().flatten();
    let mut tell = |event, row: &Columns| {
        let id = ids.next().unwrap_or_else(|| outbox.draw_id());
        tell(&outbox, id, plan, reason, event, row, [&mut *pk, &mut *data, &mut *branch]);
    };
    if let Some(None) = before {
        tell(Operation::Delete, old);
    }
    if let Some(None) = after {
        if plan.captures_delete {
            tell(Operation::Delete, new);
        } else if !is_told_by_the_next(fired, plan) {
            // Nobody asked for deletions, so the row stays as it was.
            tell(standing, new);
        }
    }
    for row in [before, after].into_iter().flatten().flatten() {
        present.load(row);
        tell(standing, present);
    }
}

/// Tells every row that stands in a table that has just been told to be empty: what triggers wrote to it before we were
/// asked has been told before that. Nearly always there is nothing, and no block to be looked at.
pub fn tell_rows(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>, scratch: &mut Scratch) {
    if !plan.captures_insert {
        return;
    }
    let table = Open::locked(fired.relation().oid());
    if table.is_table() {
        return tell_rows_of(&table, plan, fired, reason, scratch);
    }
    let leaves = {
        let _owner = ActAs::owner();
        attached::leaves(table.borrow().oid())
    };
    for leaf in leaves.into_iter().map(Open::locked).filter(|leaf| leaf.is_table() && leaf.blocks() > 0) {
        tell_rows_of(&leaf, &Plan::of_partition(fired, &leaf.borrow()), fired, reason, scratch);
    }
}

fn tell_rows_of(table: &Open, plan: &Plan, fired: &Fired<'_>, reason: Option<Varlena<'_>>, scratch: &mut Scratch) {
    if table.blocks() == 0 {
        return;
    }
    let _telling = plan.order.tell_rows();
    let Scratch { present, pk, data, branch, .. } = scratch;
    scan::standing(table, |row| {
        present.load(row);
        let outbox = append::outbox(fired.function());
        let id = outbox.draw_id();
        tell(&outbox, id, plan, reason, Operation::Insert, present, [&mut *pk, &mut *data, &mut *branch]);
    });
}

/// Tells that a key has this row now, or none any more.
fn tell(
    outbox: &Rc<Outbox>,
    id: i64,
    plan: &Plan,
    reason: Option<Varlena<'_>>,
    event: Operation,
    row: &Columns,
    [pk, data, branch]: [&mut VarlenaBuffer; 3],
) {
    plan.write_key(row, pk.clear());
    if event != Operation::Delete {
        plan.write_all(row, data.clear());
    }
    let change = Change {
        event,
        pk: Some(pk.datum()),
        data: (event != Operation::Delete).then(|| data.datum()),
        old: None,
        branch: plan.branch(row, branch),
        reason,
    };
    append::after_encoding(outbox, plan).append(plan, id, &change);
}

/// Whether the row version that a change made was replaced by an UPDATE, which speaks for itself.
fn is_told_by_the_next(fired: &Fired<'_>, plan: &Plan) -> bool {
    plan.knows_versions && plan.captures_update && fired.new_row().is_some_and(|new| new.was_replaced())
}
