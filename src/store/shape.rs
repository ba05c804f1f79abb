//! The table `sync_outbox` as PostgreSQL's catalogs describe it: whether it is exactly as `sql/` makes it, so that its
//! rows can be appended, read and deleted without the executor, or somebody has altered it, which leaves us SQL.

use crate::error::{Error, SqlState};
use crate::pg::direct::{Direct, Opened};
use crate::pg::index::Predicate;
use crate::pg::relation::{self, Open};
use crate::pg::relation_lock::{self, LockMode, WriteLocks};
use crate::pg::spi::Arg;
use crate::pg::{Oid, pg_sys, types};
use std::ffi::CStr;
use wire::Priority;

pub const COLUMN_COUNT: usize = 20;

/// The columns of the outbox as `sql/` makes it, in their order.
pub const COLUMNS: [(&CStr, Kind); COLUMN_COUNT] = [
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
/// Attribute numbers: positions in [`COLUMNS`], from 1.
pub mod column {
    pub const ID: usize = 1;
    pub const TXID: usize = 2;
    pub const DEDUP_KEY: usize = 3;
    pub const CREATED_AT: usize = 4;
    pub const TARGET_ID: usize = 5;
    pub const PRIORITY: usize = 6;
    pub const STATUS: usize = 7;
    pub const ATTEMPT_COUNT: usize = 8;
    pub const REFUSALS: usize = 9;
    pub const SCHEMA_NAME: usize = 10;
    pub const TABLE_NAME: usize = 11;
    pub const OP: usize = 12;
    pub const PK: usize = 13;
    pub const DATA: usize = 14;
    pub const BRANCH: usize = 15;
    pub const OLD: usize = 16;
    pub const REASON: usize = 17;
    pub const NEXT_ATTEMPT_AT: usize = 19;
}

/// The columns of the primary key, in its order.
pub const KEY: [usize; 3] = [column::TARGET_ID, column::PRIORITY, column::ID];

/// The columns that may be NULL as `sql/` makes them.
const NULLABLE: [usize; 8] = [column::PK, column::DATA, column::BRANCH, column::OLD, column::REASON, 18, 19, 20];

/// The columns that capture leaves to the table where it has nothing to say, so that a default that somebody gave one
/// of them counts. In `pk`, `data` and `old` NULL says something.
pub const LEFT_TO_DEFAULT: [usize; 5] = [column::BRANCH, column::REASON, 18, 19, 20];

#[derive(Clone, Copy)]
pub enum Kind {
    Type(Oid),
    Priority,
    Status,
}

/// The outbox where it is as `sql/` makes it.
pub type DirectOutbox = Direct<COLUMN_COUNT, 3>;

/// What the catalogs say of the outbox of one schema.
pub struct Shape {
    table: Oid,
    pub sequence: Oid,
    /// The types of the columns `priority` and `status`.
    enums: [Oid; 2],
    priorities: [Oid; 3],
    pub pending: Oid,
    pub failed: Oid,
    /// The table and its primary key, if the table is as it was made.
    direct: Option<DirectOutbox>,
    indexes: Vec<Oid>,
}

impl Shape {
    /// Locks the outbox, so that what is found stays true. Raises 42P01 if there is none in the schema, 42703 if it
    /// lacks a column that the statements on it name.
    pub fn of(schema: Oid, mode: LockMode) -> Self {
        Self::look_up(schema, mode).unwrap_or_else(|| {
            Error::new(SqlState::ERRCODE_UNDEFINED_TABLE, "the table sync_outbox is gone")
                .hint("DROP EXTENSION sync_outbox CASCADE; and CREATE EXTENSION sync_outbox; make it again.")
                .raise()
        })
    }

    fn look_up(schema: Oid, mode: LockMode) -> Option<Self> {
        let table = relation::lookup(schema, c"sync_outbox")?;
        let sequence = relation::lookup(schema, c"sync_outbox_id_seq")?;
        let priority = types::lookup(schema, c"sync_outbox_priority")?;
        let status = types::lookup(schema, c"sync_outbox_status")?;
        let label = |label| types::enum_value(priority, label);
        let mut shape = Shape {
            table,
            sequence,
            enums: [priority, status],
            priorities: [label(c"HIGH")?, label(c"NORMAL")?, label(c"LOW")?],
            pending: types::enum_value(status, c"PENDING")?,
            failed: types::enum_value(status, c"FAILED")?,
            direct: None,
            indexes: Vec::new(),
        };
        relation_lock::lock(table, mode);
        let open = Open::locked(table);
        require_columns(&open);
        shape.indexes = open.indexes();
        shape.direct = direct_index(&open, &shape.indexes, priority, status, shape.pending);
        Some(shape)
    }

    /// The outbox and its primary key, open for `mode`, if the table is as it was made.
    pub fn direct(&self, mode: LockMode) -> Option<Opened<'_, COLUMN_COUNT, 3>> {
        self.direct.as_ref().map(|direct| direct.open(mode))
    }

    /// Whether a change with this status is left alone until somebody decides about it.
    pub fn waits_for_a_person(&self, status: Option<Oid>) -> bool {
        status != Some(self.pending) && status != Some(self.failed)
    }

    /// Whether this was made from the description of that relation; `Oid::INVALID` stands for any.
    pub fn is_made_from(&self, relation: Oid) -> bool {
        relation == Oid::INVALID
            || relation == self.table
            || relation == self.sequence
            || self.indexes.contains(&relation)
    }

    /// Locks the outbox, its primary key and its sequence for writing, to the end of the transaction whatever becomes
    /// of savepoints.
    pub fn lock_for_writing(&self) -> WriteLocks {
        let index = self.direct.as_ref().map(Direct::index);
        WriteLocks::take([self.table, self.sequence].into_iter().chain(index))
    }

    /// The outbox, to append to, if the table is as it was made.
    pub fn appendable(&self) -> Option<&DirectOutbox> {
        self.direct.as_ref()
    }

    /// The value of the column `priority`.
    pub fn priority(&self, priority: Priority) -> Arg<'static> {
        Arg::label(self.enums[0], self.label_of(priority))
    }

    /// The oid of a priority's label.
    pub fn label_of(&self, priority: Priority) -> Oid {
        self.priorities[priority as usize]
    }

    /// The value PENDING of the column `status`.
    pub fn status_pending(&self) -> Arg<'static> {
        Arg::label(self.enums[1], self.pending)
    }
}

fn require_columns(table: &Open) {
    let columns = table.columns();
    let missing = COLUMNS.iter().find(|(name, _)| !columns.iter().any(|column| column.name == name.to_bytes()));
    if let Some((name, _)) = missing {
        Error::new(
            SqlState::ERRCODE_UNDEFINED_COLUMN,
            format!("the table sync_outbox has no column \"{}\"", name.to_string_lossy()),
        )
        .hint("ALTER EXTENSION sync_outbox UPDATE; brings it to the version of the library.")
        .raise()
    }
}

/// The primary key's index, if nothing is to be done for a row but to put it into the heap and into that index. Looked
/// at is all that an INSERT would heed: the columns in their places, with the types and without the modifiers,
/// constraints and defaults of `sql/`, and the two indexes by what they are, not by their names. What PostgreSQL does
/// below INSERT (storage, compression, tablespace, logging) holds for an appended row too.
fn direct_index(table: &Open, indexes: &[Oid], priority: Oid, status: Oid, pending: Oid) -> Option<DirectOutbox> {
    let columns = table.columns();
    let types = COLUMNS.map(|(_, kind)| match kind {
        Kind::Type(oid) => oid,
        Kind::Priority => priority,
        Kind::Status => status,
    });
    // A column that was dropped still has its place in a row.
    let as_made = columns.len() == COLUMNS.len()
        && table.borrow().natts() == COLUMNS.len()
        && columns.iter().zip(COLUMNS).enumerate().all(|(i, (column, (name, _)))| {
            column.index == i
                && column.name == name.to_bytes()
                && column.type_oid == types[i]
                && !column.has_modifier
                && column.not_null != NULLABLE.contains(&(i + 1))
                && !(column.has_default && LEFT_TO_DEFAULT.contains(&(i + 1)))
        });
    if !as_made || !table.is_plain_heap() || indexes.len() != 2 {
        return None;
    }
    let shapes = indexes.iter().map(|oid| (*oid, Open::index(*oid, LockMode::AccessShare).index_shape()));
    let mut shapes: Vec<_> = shapes.collect();
    shapes.sort_by_key(|(_, shape)| !shape.unique);
    let [(oid, primary), (_, left)] = shapes.try_into().ok()?;
    let keys = |columns: [usize; 3]| columns.map(|column| column as i16);
    let primary_as_made =
        primary.plain && primary.unique && primary.keys == keys(KEY) && primary.predicate == Predicate::All;
    // A PENDING row has no entry in it.
    let left_as_made = left.plain
        && !left.unique
        && left.keys == keys([column::TARGET_ID, column::STATUS, column::ID])
        && left.predicate == Predicate::EnumIsNot(column::STATUS as i16, pending);
    (primary_as_made && left_as_made)
        .then(|| Direct::of(table, &Open::index(oid, LockMode::AccessShare), types, KEY))
        .flatten()
}
