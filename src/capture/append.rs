//! Appending to the outbox: straight into the heap while the table is exactly as we made it, by SQL if somebody altered
//! it.

use super::options::Priority;
use super::plan::Plan;
use crate::error::{Error, SqlState};
use crate::pg::heap::{self, Field};
use crate::pg::relation::{self, Open};
use crate::pg::role::ActAs;
use crate::pg::spi::{self, Arg};
use crate::pg::text;
use crate::store::{Schema, queue};
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

/// A change about to be written. `pk`, `data` and `old` are json datums.
pub struct Change {
    pub op: &'static str,
    pub pk: Option<Datum>,
    pub data: Option<Datum>,
    pub old: Option<Datum>,
    pub branch: Option<Vec<u8>>,
    pub reason: Option<Vec<u8>>,
}

/// The columns of the outbox as `sql/` makes it, in their order.
const COLUMNS: [(&CStr, Kind); 20] = [
    (c"id", Kind::Type(pg_sys::INT8OID)),
    (c"txid", Kind::Type(pg_sys::XID8OID)),
    (c"dedup_key", Kind::Type(pg_sys::UUIDOID)),
    (c"created_at", Kind::Type(pg_sys::TIMESTAMPTZOID)),
    (c"target_id", Kind::Type(pg_sys::INT2OID)),
    (c"priority", Kind::Priority),
    (c"status", Kind::Status),
    (c"attempt_count", Kind::Type(pg_sys::INT4OID)),
    (c"refusals", Kind::Type(pg_sys::INT4OID)),
    (c"schema_name", Kind::Type(pg_sys::TEXTOID)),
    (c"table_name", Kind::Type(pg_sys::TEXTOID)),
    (c"op", Kind::Type(pg_sys::TEXTOID)),
    (c"pk", Kind::Type(pg_sys::JSONOID)),
    (c"data", Kind::Type(pg_sys::JSONOID)),
    (c"branch", Kind::Type(pg_sys::TEXTOID)),
    (c"old", Kind::Type(pg_sys::JSONOID)),
    (c"reason", Kind::Type(pg_sys::TEXTOID)),
    (c"last_attempt_at", Kind::Type(pg_sys::TIMESTAMPTZOID)),
    (c"next_attempt_at", Kind::Type(pg_sys::TIMESTAMPTZOID)),
    (c"error_message", Kind::Type(pg_sys::TEXTOID)),
];
const ID: usize = 0;
const TARGET: usize = 4;
const PRIORITY: usize = 5;

#[derive(Clone, Copy)]
enum Kind {
    Type(Oid),
    Priority,
    Status,
}

/// The outbox that a capture function writes to: the one in its own schema.
pub struct Outbox {
    function: Oid,
    pub schema: Oid,
    table: Oid,
    sequence: Oid,
    priorities: [Oid; 3],
    pending: Oid,
    /// The primary key's index, if a row may be appended directly.
    direct: Option<Oid>,
    indexes: Vec<Oid>,
    /// This transaction, and the first id it drew.
    first: std::cell::Cell<(u64, i64)>,
}

thread_local! {
    static OUTBOX: RefCell<Option<Rc<Outbox>>> = const { RefCell::new(None) };
    static STALE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Takes note that a relation has changed; called from an invalidation callback.
pub fn forget(oid: Oid) {
    OUTBOX.with(|outbox| match outbox.try_borrow() {
        Ok(outbox) => {
            if let Some(outbox) = &*outbox
                && (oid == Oid::INVALID || oid == outbox.table || outbox.indexes.contains(&oid))
            {
                STALE.set(true);
            }
        }
        Err(_) => STALE.set(true),
    });
}

/// The outbox of a capture function.
pub fn outbox(function: Oid) -> Rc<Outbox> {
    if let Some(outbox) = OUTBOX.with_borrow(Clone::clone)
        && outbox.function == function
        && !STALE.get()
    {
        return outbox;
    }
    STALE.set(false);
    let outbox = Rc::new(Outbox::look_up(function));
    OUTBOX.set(Some(outbox.clone()));
    outbox
}

impl Outbox {
    fn look_up(function: Oid) -> Self {
        let schema = relation::schema_of_function(function);
        let found = (|| {
            let table = relation::lookup(schema, c"sync_outbox")?;
            let sequence = relation::lookup(schema, c"sync_outbox_id_seq")?;
            let priority = relation::type_lookup(schema, c"sync_outbox_priority")?;
            let status = relation::type_lookup(schema, c"sync_outbox_status")?;
            let label = |label| relation::enum_value(priority, label);
            Some((
                Outbox {
                    function,
                    schema,
                    table,
                    sequence,
                    priorities: [label(c"HIGH")?, label(c"NORMAL")?, label(c"LOW")?],
                    pending: relation::enum_value(status, c"PENDING")?,
                    direct: None,
                    indexes: Vec::new(),
                    first: Default::default(),
                },
                priority,
                status,
            ))
        })();
        let Some((mut outbox, priority, status)) = found else {
            Error::new(SqlState::ERRCODE_UNDEFINED_TABLE, "the table sync_outbox is gone")
                .hint("DROP EXTENSION sync_outbox CASCADE; and CREATE EXTENSION sync_outbox; make it again.")
                .raise()
        };
        let table = Open::table(outbox.table);
        outbox.indexes = table.indexes();
        outbox.direct = direct_index(&table, &outbox.indexes, schema, priority, status);
        outbox
    }

    /// Writes one change; returns its id. The id is drawn here, while the source row is locked: that is what makes the
    /// order of ids the order of the changes of a key.
    pub fn append(&self, plan: &Plan, change: &Change) -> i64 {
        let table = Open::table(self.table); // also keeps its lock, for truncate-when-empty
        let txid = heap::top_transaction_id();
        let id = self.next_id();
        if self.first.get().0 != txid {
            self.first.set((txid, id));
        }
        let key = uuid::Uuid::now_v7();
        let priority = self.priorities[plan.priority as usize];
        let fields: [Field; 20] = [
            Some(id.into()),
            Some(Datum::from(txid as i64)),
            Some(Datum::from(key.as_bytes().as_ptr())),
            Some(heap::now()),
            Some(Datum::from(plan.target_id)),
            Some(priority.into()),
            Some(self.pending.into()),
            Some(0.into()),
            Some(0.into()),
            Some(text::datum(&plan.schema_name)),
            Some(text::datum(&plan.table_name)),
            Some(text::datum(change.op.as_bytes())),
            change.pk,
            change.data,
            change.branch.as_deref().map(text::datum),
            change.old,
            change.reason.as_deref().map(text::datum),
            None,
            None,
            None,
        ];
        match self.direct {
            Some(index) => heap::append(&table, &fields, &Open::index(index), &[TARGET, PRIORITY, ID]),
            None => self.insert(&fields, plan.priority),
        }
        crate::wake::at_commit();
        id
    }

    pub fn next_id(&self) -> i64 {
        heap::next_value(self.sequence)
    }

    /// The first id that this transaction drew.
    pub fn first_own_id(&self) -> i64 {
        self.first.get().1
    }

    /// The slower way, for an outbox that somebody has altered. Everything has been encoded as the writer by now.
    fn insert(&self, fields: &[Field; 20], priority: Priority) {
        let _owner = ActAs::owner();
        let args: Vec<Arg> = COLUMNS
            .iter()
            .zip(fields)
            .map(|((_, kind), field)| match (kind, field) {
                (Kind::Priority, _) => priority.name().into(),
                (Kind::Status, _) => "PENDING".into(),
                (Kind::Type(oid), Some(datum)) => Arg::datum(*oid, *datum),
                (Kind::Type(oid), None) => Arg::null(*oid),
            })
            .collect();
        spi::run(&queue::insert_statement(&Schema::new(self.schema)), &args);
    }
}

/// The primary key's index, if the table is exactly as `sql/` makes it.
fn direct_index(table: &Open, indexes: &[Oid], schema: Oid, priority: Oid, status: Oid) -> Option<Oid> {
    let columns = table.columns();
    let as_made = columns.len() == COLUMNS.len()
        && columns.iter().zip(COLUMNS).enumerate().all(|(i, (column, (name, kind)))| {
            let expected = match kind {
                Kind::Type(oid) => oid,
                Kind::Priority => priority,
                Kind::Status => status,
            };
            column.index == i && column.name == name.to_bytes() && column.type_oid == expected
        });
    if !as_made || !table.is_plain_heap() || indexes.len() != 2 {
        return None;
    }
    let mut primary = None;
    for oid in indexes {
        let shape = Open::index(*oid).index_shape();
        if shape.unique && !shape.partial && shape.keys == [TARGET as i16 + 1, PRIORITY as i16 + 1, ID as i16 + 1] {
            primary = Some(*oid);
        } else if Some(*oid) != relation::lookup(schema, c"sync_outbox_left") || !shape.partial || shape.unique {
            return None; // a PENDING row may belong into it: let PostgreSQL find out
        }
    }
    primary
}
