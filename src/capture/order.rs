//! Order inside one statement: when a change can be told as it is, and what is told instead (`invariants` 2).
//!
//! PostgreSQL fires a query's AFTER triggers when it ends, and what the user's functions and triggers write meanwhile
//! ends, and is captured, first. Changes of one key then come in another order than they happened in. So a change that
//! something later may have overtaken, or that stands on one which is yet to be captured, is not told; the present
//! state of its keys is. Replayed in the order of ids, the last word of every key is the truth at COMMIT, whatever came
//! before it, and no UPDATE misses its row. `docs/design.md` has the proof.

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
    /// The greatest command id captured. What a savepoint took back is not taken out: then more is told by state than
    /// need be.
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
            // Nothing that happened later has been captured. Another query may be about to leave the new key, or to
            // take the old.
            !open.nested || !key_changes()
        } else {
            // It is the last word of its key if it still stands.
            new.is_some_and(|new| !new.superseded_by_us()) && !key_changes()
        }
    }

    /// Takes note that a backfill tells what stands now: what an open query has done before, and has yet to be
    /// captured, is overtaken by it.
    pub fn tells_what_stands(&self) {
        self.note(executor::command());
        self.told.set((executor::transaction(), executor::command()));
    }

    /// Takes note that rows which stand are told one after the other, until the result is dropped.
    pub fn tell_rows(&self) -> TellingRows<'_> {
        self.tells_rows.set(true);
        TellingRows(self)
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

/// See [`Order::tell_rows`].
pub struct TellingRows<'a>(&'a Order);

impl Drop for TellingRows<'_> {
    fn drop(&mut self) {
        self.0.tells_rows.set(false);
    }
}
