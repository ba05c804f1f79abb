//! Appending to the outbox: directly to the heap while the table is exactly as the install script made it, by SQL if
//! somebody has altered it.

use super::plan::Plan;
use crate::pg::buffer;
use crate::pg::clock;
use crate::pg::executor;
use crate::pg::function;
use crate::pg::relation_lock::{LockMode, WriteLocks};
use crate::pg::role::ActAs;
use crate::pg::sequence;
use crate::pg::spi::{self, Arg};
use crate::pg::text::{KeptText, Varlena};
use crate::pg::transaction_id;
use crate::store::shape::{COLUMN_COUNT, COLUMNS, ColumnKind, NewChange, Null, Shape};
use crate::store::{Schema, lane, queue};
use pgrx::pg_sys::{self, Oid};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use wire::{Operation, Priority, Status};

/// A change about to be written. `pk`, `data` and `old` are json, the others text.
pub struct CapturedChange<'a> {
    pub event: Operation,
    pub pk: Option<Varlena<'a>>,
    pub data: Option<Varlena<'a>>,
    pub old: Option<Varlena<'a>>,
    pub branch: Option<Varlena<'a>>,
    pub reason: Option<Varlena<'a>>,
}

/// The outbox that a capture function writes to: the one in its own schema.
pub struct Outbox {
    function: Oid,
    pub schema: Oid,
    shape: Shape,
    /// The names of operations, by [`Operation`].
    operations: [KeptText; 4],
    /// The locks of the last transaction that has locked it.
    locks: RefCell<WriteLocks>,
}

thread_local! {
    static OUTBOX: RefCell<Option<Rc<Outbox>>> = const { RefCell::new(None) };
    static STALE: Cell<bool> = const { Cell::new(false) };
}

/// Takes note that a relation has changed; called from an invalidation callback. Where no outbox is kept, one may be
/// being looked up right now, and nobody knows yet which relations that depends on. So the one that is found counts as
/// stale.
pub fn forget(oid: Oid) {
    OUTBOX.with(|outbox| match outbox.try_borrow().as_deref() {
        Ok(Some(outbox)) if !outbox.shape.is_made_from(oid) => {}
        _ => STALE.set(true),
    });
}

/// The outbox of a capture function, locked to the end of the transaction: so its shape stays as it is, and a process
/// that truncates it when it is empty knows that nobody is about to commit a change (`invariants` 25).
pub fn outbox(function: Oid) -> Rc<Outbox> {
    let txid = transaction_id::top();
    let known = OUTBOX.with_borrow(Clone::clone).filter(|outbox| outbox.function == function);
    if let Some(outbox) = &known {
        if outbox.locks.borrow().transaction() != txid {
            outbox.lock();
        }
        if !STALE.get() {
            return outbox.clone();
        }
    }
    OUTBOX.take();
    STALE.set(false);
    let outbox = Rc::new(Outbox::look_up(function));
    outbox.lock();
    OUTBOX.set(Some(outbox.clone()));
    outbox
}

/// The outbox to write to after a row has been encoded: users' code that ran may have altered the table.
pub fn after_encoding(outbox: &Rc<Outbox>, plan: &Plan) -> Rc<Outbox> {
    if plan.runs_users_code { self::outbox(outbox.function) } else { outbox.clone() }
}

impl Outbox {
    fn look_up(function: Oid) -> Self {
        let schema = function::schema(function);
        Outbox {
            function,
            schema,
            shape: Shape::of(schema, LockMode::RowExclusive),
            operations: Operation::ALL.map(|event| KeptText::new(event.name().as_bytes())),
            locks: RefCell::new(WriteLocks::NONE),
        }
    }

    fn lock(&self) {
        let locks = self.shape.lock_for_writing();
        self.locks.replace(locks);
    }

    /// Draws the id of one change. The source row is locked, and so the order of ids is the order of the changes of a
    /// key. This comes before the values are written as JSON: a user's cast may write to this very row, which is a
    /// later change.
    pub fn draw_id(&self) -> i64 {
        sequence::draw(&self.locks.borrow(), self.shape.sequence, 1)
    }

    /// Writes one change.
    pub fn append(&self, plan: &Plan, id: i64, change: &CapturedChange<'_>) {
        buffer::check_row([change.pk, change.data, change.old, change.branch]);
        let key = uuid::Uuid::now_v7();
        let fields = NewChange {
            id: id.into(),
            txid: Arg::xid8(self.locks.borrow().transaction()),
            dedup_key: Arg::uuid(&key),
            created_at: Arg::timestamptz(clock::now_micros()),
            target_id: plan.target_id.into(),
            priority: self.shape.priority(plan.priority),
            status: self.shape.status_pending(),
            attempt_count: 0_i32.into(),
            refusals: 0_i32.into(),
            schema_name: Arg::text(plan.schema_name.datum()),
            table_name: Arg::text(plan.table_name.datum()),
            op: Arg::text(self.operations[change.event as usize].datum()),
            pk: Arg::opt_json(change.pk),
            data: Arg::opt_json(change.data),
            branch: Arg::opt_text(change.branch),
            old: Arg::opt_json(change.old),
            reason: Arg::opt_text(change.reason),
            last_attempt_at: Arg::null(pg_sys::TIMESTAMPTZOID),
            next_attempt_at: Arg::null(pg_sys::TIMESTAMPTZOID),
            error_message: Arg::null(pg_sys::TEXTOID),
        }
        .in_order();
        match self.shape.appendable() {
            Some(direct) => direct.append(&self.locks.borrow(), &fields),
            None => self.insert(fields, plan.priority),
        }
        crate::wake::at_commit(id);
        if plan.is_renamed {
            let (when, from) = plan.renaming_recorded.get();
            // A change that a cast has made meanwhile has a greater id, and was appended first.
            if when != executor::undone() || id < from {
                plan.renaming_recorded.set((executor::undone(), id));
                self.record_renaming(plan, id);
            }
        }
    }

    /// Changes of another table may wait under the same name with another priority.
    #[cold]
    fn record_renaming(&self, plan: &Plan, id: i64) {
        let _owner = ActAs::owner();
        let name = (plan.schema_name.bytes().to_vec(), plan.table_name.bytes().to_vec());
        lane::record_from(&Schema::new(self.schema), &name, plan.target_id, plan.priority, id);
    }

    /// The slower way, for an outbox that somebody has altered. Everything has been encoded as the writer by now.
    fn insert(&self, fields: [Arg; COLUMN_COUNT], priority: Priority) {
        let _owner = ActAs::owner();
        let written = COLUMNS
            .into_iter()
            .zip(fields)
            .filter(|(column, field)| !field.is_null() || column.null != Null::LeftToDefault);
        let (columns, args): (Vec<_>, Vec<Arg>) = written
            .map(|(column, field)| {
                let arg = match column.kind {
                    ColumnKind::Priority => priority.name().into(),
                    ColumnKind::Status => Status::Pending.name().into(),
                    ColumnKind::Type(_) => field,
                };
                (column, arg)
            })
            .unzip();
        spi::run(&queue::insert_statement(&Schema::new(self.schema), &columns), &args);
    }
}
