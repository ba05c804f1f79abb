//! The table `sync_outbox` as PostgreSQL's catalogs describe it: whether it is exactly as `sql/` makes it, so that its
//! rows can be appended, read and deleted without the executor, or somebody has altered it, so that SQL has to do it.

use crate::error::{Error, SqlState};
use crate::pg::direct::{Direct, Opened};
use crate::pg::index::Predicate;
use crate::pg::relation::{self, Open};
use crate::pg::relation_lock::{self, LockMode, WriteLocks};
use crate::pg::spi::Arg;
use crate::pg::{Oid, pg_sys, types};
use std::sync::LazyLock;
use wire::Priority;

/// A column of the outbox.
pub struct OutboxColumn {
    pub name: &'static str,
    pub kind: ColumnKind,
    pub null: Null,
}

#[derive(Clone, Copy)]
pub enum ColumnKind {
    Type(Oid),
    Priority,
    Status,
}

/// What a NULL in a column means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Null {
    /// Nothing, because the column is NOT NULL.
    Forbidden,
    /// The change has no key, data or old values. Capture writes NULL, whatever the default of the column is.
    Written,
    /// Capture has no value for the column. It leaves the column out, so that a default that somebody gave it counts.
    LeftToDefault,
}

/// Makes everything that depends on the list of columns: the list, the attribute numbers, and a row to be written.
macro_rules! columns {
    ($($number:ident $name:ident: $kind:expr, $null:ident;)*) => {
        /// The columns of the outbox as `sql/` makes it, in their order.
        pub const COLUMNS: [OutboxColumn; COLUMN_COUNT] =
            [$(OutboxColumn { name: stringify!($name), kind: $kind, null: Null::$null }),*];
        pub const COLUMN_COUNT: usize = [$(stringify!($name)),*].len();

        /// Attribute numbers: positions in [`COLUMNS`], from 1.
        #[allow(dead_code, reason = "only the statements of SQL use some of the columns")]
        pub mod column {
            #[allow(non_camel_case_types, reason = "named like the columns")]
            enum ColumnIndex { $($name),* }
            $(pub const $number: usize = ColumnIndex::$name as usize + 1;)*
        }

        /// A value for each column.
        pub struct NewChange<'a> {
            $(pub $name: Arg<'a>),*
        }

        impl<'a> NewChange<'a> {
            pub fn in_order(self) -> [Arg<'a>; COLUMN_COUNT] {
                [$(self.$name),*]
            }
        }
    };
}

columns! {
    ID id: ColumnKind::Type(pg_sys::INT8OID), Forbidden;
    TXID txid: ColumnKind::Type(pg_sys::XID8OID), Forbidden;
    DEDUP_KEY dedup_key: ColumnKind::Type(pg_sys::UUIDOID), Forbidden;
    CREATED_AT created_at: ColumnKind::Type(pg_sys::TIMESTAMPTZOID), Forbidden;
    TARGET_ID target_id: ColumnKind::Type(pg_sys::INT2OID), Forbidden;
    PRIORITY priority: ColumnKind::Priority, Forbidden;
    STATUS status: ColumnKind::Status, Forbidden;
    ATTEMPT_COUNT attempt_count: ColumnKind::Type(pg_sys::INT4OID), Forbidden;
    REFUSALS refusals: ColumnKind::Type(pg_sys::INT4OID), Forbidden;
    SCHEMA_NAME schema_name: ColumnKind::Type(pg_sys::TEXTOID), Forbidden;
    TABLE_NAME table_name: ColumnKind::Type(pg_sys::TEXTOID), Forbidden;
    OP op: ColumnKind::Type(pg_sys::TEXTOID), Forbidden;
    PK pk: ColumnKind::Type(pg_sys::JSONOID), Written;
    DATA data: ColumnKind::Type(pg_sys::JSONOID), Written;
    BRANCH branch: ColumnKind::Type(pg_sys::TEXTOID), LeftToDefault;
    OLD old: ColumnKind::Type(pg_sys::JSONOID), Written;
    REASON reason: ColumnKind::Type(pg_sys::TEXTOID), LeftToDefault;
    LAST_ATTEMPT_AT last_attempt_at: ColumnKind::Type(pg_sys::TIMESTAMPTZOID), LeftToDefault;
    NEXT_ATTEMPT_AT next_attempt_at: ColumnKind::Type(pg_sys::TIMESTAMPTZOID), LeftToDefault;
    ERROR_MESSAGE error_message: ColumnKind::Type(pg_sys::TEXTOID), LeftToDefault;
}

/// The names of all columns, to be put into a statement. The table `sync_outbox_discarded` begins with the same ones.
pub fn column_list() -> &'static str {
    static LIST: LazyLock<String> = LazyLock::new(|| COLUMNS.map(|column| column.name).join(", "));
    &LIST
}

/// The columns of the primary key, in its order.
pub const KEY: [usize; 3] = [column::TARGET_ID, column::PRIORITY, column::ID];

/// The outbox, if it is as `sql/` makes it.
pub type DirectOutbox = Direct<COLUMN_COUNT, 3>;

/// What the catalogs say about the outbox of one schema.
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
    /// Locks the outbox, so that what the catalogs say stays true. Raises 42P01 if there is none in the schema, 42703
    /// if it lacks a column that the statements on it name.
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
    let missing = COLUMNS.iter().find(|wanted| !columns.iter().any(|column| column.name == wanted.name.as_bytes()));
    if let Some(OutboxColumn { name, .. }) = missing {
        Error::new(SqlState::ERRCODE_UNDEFINED_COLUMN, format!("the table sync_outbox has no column \"{name}\""))
            .hint("ALTER EXTENSION sync_outbox UPDATE; brings it to the version of the library.")
            .raise()
    }
}

/// The primary key's index, if nothing is to be done for a row but to put it into the heap and into that index. This
/// compares everything that an INSERT would respect: positions and types of the columns, their modifiers, constraints
/// and defaults, and the definitions of the two indexes, whatever their names are. What PostgreSQL does below an INSERT
/// (storage, compression, tablespace, logging) applies to an appended row too.
fn direct_index(table: &Open, indexes: &[Oid], priority: Oid, status: Oid, pending: Oid) -> Option<DirectOutbox> {
    let columns = table.columns();
    let types = COLUMNS.map(|column| match column.kind {
        ColumnKind::Type(oid) => oid,
        ColumnKind::Priority => priority,
        ColumnKind::Status => status,
    });
    // A dropped column still has its position in a row.
    let as_made = columns.len() == COLUMNS.len()
        && table.borrow().natts() == COLUMNS.len()
        && columns.iter().zip(COLUMNS).enumerate().all(|(i, (column, made))| {
            column.index == i
                && column.name == made.name.as_bytes()
                && column.type_oid == types[i]
                && !column.has_modifier
                && column.not_null == (made.null == Null::Forbidden)
                && !(column.has_default && made.null == Null::LeftToDefault)
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
    // PENDING rows have no entry in this index.
    let left_as_made = left.plain
        && !left.unique
        && left.keys == keys([column::TARGET_ID, column::STATUS, column::ID])
        && left.predicate == Predicate::EnumIsNot(column::STATUS as i16, pending);
    (primary_as_made && left_as_made)
        .then(|| Direct::of(table, &Open::index(oid, LockMode::AccessShare), types, KEY))
        .flatten()
}
