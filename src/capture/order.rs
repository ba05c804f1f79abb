//! Order inside one statement: when a change can be captured as it is, and what is captured instead (`invariants` 2).
//!
//! PostgreSQL fires a query's AFTER triggers when it ends, and what the user's functions and triggers write meanwhile
//! ends, and is captured, first. Changes of one key are then captured in another order than they happened in. So a
//! change that something later may have overtaken, or that follows one which is yet to be captured, is not captured as
//! it is: the present state of its keys is. Replayed in the order of ids, the last change of every key is the truth at
//! COMMIT, whatever came before it, and no UPDATE misses its row. `docs/design.md` has the proof.

use crate::pg::executor;
use crate::pg::heap::Tuple;
use crate::pg::trigger::Fired;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// What is remembered of an attached table, all its partitions together.
#[derive(Default)]
pub struct Order {
    /// The transaction in which `greatest` was seen.
    transaction: Cell<u64>,
    /// The greatest command id captured. It stays when a savepoint is rolled back: then more states are captured than
    /// necessary.
    greatest: Cell<u32>,
    /// The transaction in which a backfill has captured the present rows, and the command before which that was.
    backfilled: Cell<(u64, u32)>,
    /// The present rows are being captured one after the other, and it is not known which have been.
    captures_rows: Cell<bool>,
}

thread_local! {
    static ORDERS: RefCell<HashMap<crate::pg::Oid, Rc<Order>>> = RefCell::new(HashMap::new());
}

impl Order {
    /// The order of an attached table. It outlives the plans, which may be dropped in the middle of a transaction.
    pub fn of(root: crate::pg::Oid) -> Rc<Self> {
        let now = executor::transaction();
        ORDERS.with_borrow_mut(|orders| {
            orders.retain(|_, order| Rc::strong_count(order) > 1 || order.transaction.get() == now);
            orders.entry(root).or_default().clone()
        })
    }

    /// Whether the change of a row can be captured as it is. Takes note of its command.
    pub fn can_capture_as_it_is(&self, fired: &Fired<'_>, key_changes: impl FnOnce() -> bool) -> bool {
        let (old, new) = (fired.old(), fired.new_row());
        let command = new.as_ref().map_or_else(|| old.as_ref().map(Tuple::ended_by), Tuple::made_by);
        let in_order = command.is_some_and(|command| self.note(command));
        let open = executor::open();
        if self.captures_rows.get() {
            return false; // a cast may have written to a row before that row was captured
        }
        if command.is_some_and(|command| self.is_backfilled(command)) {
            return false; // it has not found what a backfill has captured
        }
        if old.is_some_and(|old| old.made_since(open.outermost)) {
            return false; // the version that it changes may not have been captured yet
        }
        if in_order {
            // Nothing that happened later has been captured. But another query may be about to move a row away from
            // the new key, or to give a row the old one.
            !open.nested || !key_changes()
        } else {
            // If the new version still stands, it is the last change of its key.
            new.is_some_and(|new| !new.superseded_by_us()) && !key_changes()
        }
    }

    /// Takes note that a backfill captures what stands now. It overtakes what an open query has done before and is yet
    /// to be captured.
    pub fn note_backfill(&self) {
        self.note(executor::command());
        self.backfilled.set((executor::transaction(), executor::command()));
    }

    /// Whether a backfill in this transaction has captured the effect of this command.
    fn is_backfilled(&self, command: u32) -> bool {
        let (transaction, before) = self.backfilled.get();
        transaction == executor::transaction() && command < before
    }

    /// Takes note that the present rows are captured one after the other, until the result is dropped.
    pub fn capture_rows(&self) -> CapturingRows<'_> {
        self.captures_rows.set(true);
        CapturingRows(self)
    }

    /// Whether nothing of a later command has been captured. Takes note of the command.
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

/// See [`Order::capture_rows`].
pub struct CapturingRows<'a>(&'a Order);

impl Drop for CapturingRows<'_> {
    fn drop(&mut self) {
        self.0.captures_rows.set(false);
    }
}
