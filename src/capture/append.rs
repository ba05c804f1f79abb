//! Appending to the outbox: straight into the heap while the table is exactly as we made it, by SQL if somebody altered
//! it.

use super::options::Priority;
use super::plan::Plan;
use crate::pg::buffer;
use crate::pg::executor;
use crate::pg::heap::{self, Field};
use crate::pg::relation::{self, LockMode};
use crate::pg::role::ActAs;
use crate::pg::sequence;
use crate::pg::spi::{self, Arg};
use crate::pg::text::Kept;
use crate::pg::trigger::Event;
use crate::store::shape::{self, Kind, Shape};
use crate::store::{Schema, lane, queue};
use pgrx::pg_sys::{Datum, Oid};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A change about to be written. `pk`, `data` and `old` are json datums, the others texts.
pub struct Change {
    pub event: Event,
    pub pk: Option<Datum>,
    pub data: Option<Datum>,
    pub old: Option<Datum>,
    pub branch: Option<Datum>,
    pub reason: Option<Datum>,
}

/// The outbox that a capture function writes to: the one in its own schema.
pub struct Outbox {
    function: Oid,
    pub schema: Oid,
    shape: Shape,
    /// The names of operations, by [`Event`].
    operations: [Kept; 4],
    /// The transaction that has locked it.
    locked_by: Cell<u64>,
}

thread_local! {
    static OUTBOX: RefCell<Option<Rc<Outbox>>> = const { RefCell::new(None) };
    static STALE: Cell<bool> = const { Cell::new(false) };
}

/// Takes note that a relation has changed; called from an invalidation callback. While there is none, one may be looked
/// up right now: then anything can be what it is made from.
pub fn forget(oid: Oid) {
    OUTBOX.with(|outbox| match outbox.try_borrow().as_deref() {
        Ok(Some(outbox)) if !outbox.shape.is_made_from(oid) => {}
        _ => STALE.set(true),
    });
}

/// The outbox of a capture function, locked to the end of the transaction: so its shape stays as it is, and whoever
/// truncates it when it is empty knows that nobody is about to commit a change (`invariants` 25).
pub fn outbox(function: Oid) -> Rc<Outbox> {
    let txid = heap::top_transaction_id();
    let known = OUTBOX.with_borrow(Clone::clone).filter(|outbox| outbox.function == function);
    if let Some(outbox) = &known {
        if outbox.locked_by.get() != txid {
            outbox.lock(txid);
        }
        if !STALE.get() {
            return outbox.clone();
        }
    }
    OUTBOX.take();
    STALE.set(false);
    let outbox = Rc::new(Outbox::look_up(function));
    outbox.lock(txid);
    OUTBOX.set(Some(outbox.clone()));
    outbox
}

/// The same, to write to, as it is after a row has been encoded: code of users that ran may have altered it.
pub fn after_encoding(outbox: &Rc<Outbox>, plan: &Plan) -> Rc<Outbox> {
    if plan.runs_users_code { self::outbox(outbox.function) } else { outbox.clone() }
}

impl Outbox {
    fn look_up(function: Oid) -> Self {
        let schema = relation::schema_of_function(function);
        Outbox {
            function,
            schema,
            shape: Shape::of(schema, LockMode::RowExclusive),
            operations: Event::ALL.map(|event| Kept::new(event.name().as_bytes())),
            locked_by: Cell::new(0),
        }
    }

    fn lock(&self, txid: u64) {
        self.shape.lock_for_writing();
        self.locked_by.set(txid);
    }

    /// Draws the id of one change, while the source row is locked: that is what makes the order of ids the order of the changes
    /// of a key. Before its values are written as JSON: a user's cast may write to the very row, and what it does comes later.
    pub fn draw_id(&self) -> i64 {
        sequence::draw(self.shape.sequence, 1)
    }

    /// Writes one change.
    pub fn append(&self, plan: &Plan, id: i64, change: &Change) {
        buffer::check_row([change.pk, change.data, change.old, change.branch]);
        let txid = self.locked_by.get();
        let key = uuid::Uuid::now_v7();
        let priority = self.shape.priority(plan.priority);
        let fields: [Field; 20] = [
            Some(id.into()),
            Some(Datum::from(txid as i64)),
            Some(Datum::from(key.as_bytes().as_ptr())),
            Some(heap::now()),
            Some(Datum::from(plan.target_id)),
            Some(priority.into()),
            Some(self.shape.pending.into()),
            Some(0.into()),
            Some(0.into()),
            Some(plan.schema_name.datum()),
            Some(plan.table_name.datum()),
            Some(self.operations[change.event as usize].datum()),
            change.pk,
            change.data,
            change.branch,
            change.old,
            change.reason,
            None,
            None,
            None,
        ];
        match self.shape.direct_oids() {
            Some((table, index)) => heap::append(table, index, &fields, &shape::KEY),
            None => self.insert(&fields, plan.priority),
        }
        crate::wake::at_commit(id);
        if plan.is_renamed && plan.renaming_told.replace(executor::undone()) != executor::undone() {
            self.tell_renaming(plan, id);
        }
    }

    /// Changes of another table may wait under the same name in another lane.
    #[cold]
    fn tell_renaming(&self, plan: &Plan, id: i64) {
        let _owner = ActAs::owner();
        let name = (plan.schema_name.bytes().to_vec(), plan.table_name.bytes().to_vec());
        lane::record_from(&Schema::new(self.schema), &name, plan.target_id, plan.priority, id);
    }

    /// The slower way, for an outbox that somebody has altered. Everything has been encoded as the writer by now.
    fn insert(&self, fields: &[Field; 20], priority: Priority) {
        let _owner = ActAs::owner();
        let written = shape::COLUMNS
            .iter()
            .zip(fields)
            .enumerate()
            .filter(|(i, (_, field))| field.is_some() || !shape::LEFT_TO_DEFAULT.contains(&(i + 1)));
        let (columns, args): (Vec<_>, Vec<Arg>) = written
            .map(|(_, (column, field))| {
                let arg = match (column.1, field) {
                    (Kind::Priority, _) => priority.name().into(),
                    (Kind::Status, _) => "PENDING".into(),
                    (Kind::Type(oid), Some(datum)) => Arg::datum(oid, *datum),
                    (Kind::Type(oid), None) => Arg::null(oid),
                };
                (column, arg)
            })
            .unzip();
        spi::run(&queue::insert_statement(&Schema::new(self.schema), &columns), &args);
    }
}
