//! Capturing states: the present rows, in place of changes that something later may have overtaken (see
//! [`super::order`]).

use super::RowBuffers;
use super::append::{self, CapturedChange, Outbox};
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

/// Captures the present state of every key that a change touches; `buffers` hold the change's columns. A key whose row
/// is gone comes first, because a row that has moved to another key keeps its other unique values.
pub fn capture_state(
    fired: &Fired<'_>,
    plan: &Plan,
    reason: Option<Varlena<'_>>,
    key_changes: bool,
    buffers: &mut RowBuffers,
) {
    let relation = fired.relation();
    let find = |row: &Columns| plan.key_index().find(&relation, row);
    // Every key that a row of this table or partition has had belongs to it, because a key includes the partition key.
    let before = (fired.event() == Operation::Delete || key_changes).then(|| find(&buffers.old));
    let after = fired.new_row().map(|new| match plan.knows_versions && !new.superseded_by_us() {
        true => Some(new),
        false => find(&buffers.new),
    });
    let standing = match fired.event() {
        _ if plan.captures_insert || key_changes => Operation::Insert,
        event => event,
    };

    let RowBuffers { old, new, present, pk, data, branch, .. } = buffers;
    let outbox = append::outbox(fired.function());
    // For both keys, before a user's cast can write to either.
    let mut ids =
        std::array::from_fn::<_, 2, _>(|_| plan.runs_users_code.then(|| outbox.draw_id())).into_iter().flatten();
    let mut append = |event, row: &Columns| {
        let id = ids.next().unwrap_or_else(|| outbox.draw_id());
        append_state(&outbox, id, plan, reason, event, row, [&mut *pk, &mut *data, &mut *branch]);
    };
    if let Some(None) = before {
        append(Operation::Delete, old);
    }
    if let Some(None) = after {
        if plan.captures_delete {
            append(Operation::Delete, new);
        } else if !is_captured_by_the_next(fired, plan) {
            // Deletions are not captured from this table, so the row stays as it was.
            append(standing, new);
        }
    }
    for row in [before, after].into_iter().flatten().flatten() {
        present.load(row);
        append(standing, present);
    }
}

/// Captures every row of a table whose TRUNCATE has just been captured: what triggers wrote to it before ours was fired
/// has been captured before that. Nearly always the table is empty, and has no block to be read.
pub fn capture_rows(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>, buffers: &mut RowBuffers) {
    if !plan.captures_insert {
        return;
    }
    let table = Open::locked(fired.relation().oid());
    if table.is_table() {
        return capture_rows_of(&table, plan, fired, reason, buffers);
    }
    let leaves = {
        let _owner = ActAs::owner();
        attached::leaves(table.borrow().oid())
    };
    for leaf in leaves.into_iter().map(Open::locked).filter(|leaf| leaf.is_table() && leaf.blocks() > 0) {
        capture_rows_of(&leaf, &Plan::of_partition(fired, &leaf.borrow()), fired, reason, buffers);
    }
}

fn capture_rows_of(
    table: &Open,
    plan: &Plan,
    fired: &Fired<'_>,
    reason: Option<Varlena<'_>>,
    buffers: &mut RowBuffers,
) {
    if table.blocks() == 0 {
        return;
    }
    let _capturing = plan.order.capture_rows();
    let RowBuffers { present, pk, data, branch, .. } = buffers;
    scan::standing(table, |row| {
        present.load(row);
        let outbox = append::outbox(fired.function());
        let id = outbox.draw_id();
        append_state(&outbox, id, plan, reason, Operation::Insert, present, [&mut *pk, &mut *data, &mut *branch]);
    });
}

/// Appends the state of a key: it has this row now, or none any more.
fn append_state(
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
    let change = CapturedChange {
        event,
        pk: Some(pk.datum()),
        data: (event != Operation::Delete).then(|| data.datum()),
        old: None,
        branch: plan.branch(row, branch),
        reason,
    };
    append::after_encoding(outbox, plan).append(plan, id, &change);
}

/// Whether the row version that a change made was replaced by an UPDATE, which is captured by itself.
fn is_captured_by_the_next(fired: &Fired<'_>, plan: &Plan) -> bool {
    plan.knows_versions && plan.captures_update && fired.new_row().is_some_and(|new| new.was_replaced())
}
