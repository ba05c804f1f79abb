//! Order inside one statement: when a change can be told as it is, and what is told instead (`invariants` 2).
//!
//! PostgreSQL fires a query's AFTER triggers when it ends, and what the user's functions and triggers write meanwhile ends,
//! and is captured, first. Changes of one key then come in another order than they happened in. So a change that something
//! later may have overtaken, or that stands on one which is yet to be captured, is not told; the present state of its keys is.
//! Replayed in the order of ids, the last word of every key is the truth at COMMIT, whatever came before it, and no UPDATE
//! misses its row. `docs/design.md` has the proof.

use super::Scratch;
use super::append::{self, Change, Outbox};
use super::plan::Plan;
use crate::pg::buffer::VarlenaBuffer;
use crate::pg::heap::{Columns, Tuple};
use crate::pg::relation::Open;
use crate::pg::role::ActAs;
use crate::pg::text::Varlena;
use crate::pg::trigger::Fired;
use crate::pg::{executor, scan};
use crate::store::attached;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use wire::Operation;

/// What is remembered of an attached table, all its partitions together.
#[derive(Default)]
pub struct Order {
    /// The transaction in which `greatest` was seen.
    transaction: Cell<u64>,
    /// The greatest command id captured. What a savepoint took back is not taken out: then more is told by state than need be.
    greatest: Cell<u32>,
    /// The transaction in which a backfill has told what stood, and the command before which that was.
    told: Cell<(u64, u32)>,
    /// Rows that stand are being told one after the other: nobody knows which have been.
    tells_rows: Cell<bool>,
}

thread_local! {
    static ORDERS: RefCell<HashMap<crate::pg::Oid, Rc<Order>>> = RefCell::new(HashMap::new());
}

impl Order {
    /// That of an attached table. It outlives the plans, which may be thrown away in the middle of a transaction.
    pub fn of(root: crate::pg::Oid) -> Rc<Self> {
        let now = executor::transaction();
        ORDERS.with_borrow_mut(|orders| {
            orders.retain(|_, order| Rc::strong_count(order) > 1 || order.transaction.get() == now);
            orders.entry(root).or_default().clone()
        })
    }

    /// Whether the change of a row can be told as it is. Takes note of its command.
    pub fn holds(&self, fired: &Fired<'_>, key_changes: impl FnOnce() -> bool) -> bool {
        let (old, new) = (fired.old(), fired.new_row());
        let command = new.as_ref().map_or_else(|| old.as_ref().map(Tuple::ended_by), Tuple::made_by);
        let in_order = command.is_some_and(|command| self.note(command));
        let open = executor::open();
        if self.tells_rows.get() {
            return false; // a cast that writes to a row may have come before that is told
        }
        if command.is_some_and(|command| self.told.get().0 == executor::transaction() && command < self.told.get().1) {
            return false; // what it found is not what a backfill has told
        }
        if old.is_some_and(|old| old.made_since(open.outermost)) {
            return false; // the version that it changes may not have been told yet
        }
        if in_order {
            // Nothing that happened later has been captured. Another query may be about to leave the new key, or to take the old.
            !open.nested || !key_changes()
        } else {
            // It is the last word of its key if it still stands.
            new.is_some_and(|new| !new.superseded_by_us()) && !key_changes()
        }
    }

    /// Takes note that a backfill tells what stands now: what an open query has done before, and has yet to be captured, is
    /// overtaken by it.
    pub fn tells_what_stands(&self) {
        self.note(executor::command());
        self.told.set((executor::transaction(), executor::command()));
    }

    /// Whether nothing has been captured of a later command.
    fn note(&self, command: u32) -> bool {
        let now = executor::transaction();
        if self.transaction.replace(now) != now {
            self.greatest.set(0);
        }
        let in_order = command >= self.greatest.get();
        if in_order {
            self.greatest.set(command);
        }
        in_order
    }
}

/// Tells the present state of every key that a change touches, which has been taken apart into `scratch`. A key whose row is
/// gone comes first: a row that has moved to another key keeps its other unique values.
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

/// Tells every row that stands in a table that has just been told to be empty: what triggers wrote to it before we were asked
/// has been told before that. Nearly always there is nothing, and no block to be looked at.
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
    /// Ends the telling on every way out.
    struct Telling<'a>(&'a Order);
    impl Drop for Telling<'_> {
        fn drop(&mut self) {
            self.0.tells_rows.set(false);
        }
    }
    if table.blocks() == 0 {
        return;
    }
    plan.order.tells_rows.set(true);
    let _telling = Telling(&plan.order);
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
