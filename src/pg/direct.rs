//! Appends, reads and deletes rows without the executor, in a table in which nothing else has to be done for a row.
//!
//! [`Direct`] knows what the table and its index looked like when it was made. Every use checks that they still do,
//! which costs a comparison per column, of data that is read for every row anyway.

use super::datum::{ColumnType, Value, wrong_type};
use super::heap;
use super::relation::Open;
use super::relation_lock::{LockMode, WriteLocks};
use super::spi::Arg;
use super::{compat, externs};
use pgrx::pg_sys;

/// A plain heap of `N` columns, and a unique btree over `K` of them.
pub struct Direct<const N: usize, const K: usize> {
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    types: [pg_sys::Oid; N],
    /// Attribute numbers, in the order of the index.
    keys: [usize; K],
}

impl<const N: usize, const K: usize> Direct<N, K> {
    /// `None` if the table does not have columns of exactly these types, if more has to be done for a row, or if the
    /// index is not one over the columns with these attribute numbers.
    pub fn of(table: &Open, index: &Open, types: [pg_sys::Oid; N], keys: [usize; K]) -> Option<Self> {
        let direct = Direct { table: table.borrow().oid(), index: index.borrow().oid(), types, keys };
        // SAFETY: open relations.
        let fits = unsafe { direct.fits(table.raw(), index.raw()) };
        (fits && table.is_plain_heap() && index.index_shape().unique).then_some(direct)
    }

    pub fn index(&self) -> pg_sys::Oid {
        self.index
    }

    /// Locks and opens both.
    pub fn open(&self, mode: LockMode) -> Opened<'_, N, K> {
        let (table, index) = (Open::relation(self.table, mode), Open::index(self.index, mode));
        // SAFETY: open relations.
        if !unsafe { self.fits(table.raw(), index.raw()) } {
            changed();
        }
        Opened { direct: self, table, index, mode }
    }

    /// Appends a row and its entry to the index.
    pub fn append(&self, locks: &WriteLocks, row: &[Arg<'_>; N]) {
        if !locks.hold(self.table) || !locks.hold(self.index) {
            pgrx::error!("a row was to be appended to a table that is not locked");
        }
        for (field, type_oid) in row.iter().zip(self.types) {
            if field.type_oid() != type_oid {
                wrong_type(field.type_oid(), &format!("a column of the type {type_oid}"));
            }
        }
        let values = row.each_ref().map(|field| field.value().unwrap_or(pg_sys::Datum::from(0)));
        let nulls = row.each_ref().map(|field| field.value().is_none());
        if self.keys.iter().any(|column| nulls[column - 1]) {
            pgrx::error!("a row without a key was to be appended");
        }
        let key = self.keys.map(|column| values[column - 1]);
        let row = externs::NewRow { values: &values, nulls: &nulls, key: &key };
        // SAFETY: the values have the types that the table is found to have, with locks that keep it so.
        if !unsafe { externs::append(self.table, self.index, &row, |table, index| self.fits(table, index)) } {
            changed();
        }
    }

    /// Whether rows of these types can be put into the two. Raises nothing.
    ///
    /// # Safety
    /// An open table and an open index.
    unsafe fn fits(&self, table: pg_sys::Relation, index: pg_sys::Relation) -> bool {
        // SAFETY: by contract; rd_index is set for an index, and indkey has indnatts entries.
        unsafe {
            let (class, columns) = (&*(*table).rd_rel, (*table).rd_att);
            let (index_class, index_columns, entry) = (&*(*index).rd_rel, (*index).rd_att, &*(*index).rd_index);
            class.relkind as u8 == pg_sys::RELKIND_RELATION
                && class.relam == pg_sys::HEAP_TABLE_AM_OID
                && (*columns).natts as usize == N
                && (0..N).all(|i| {
                    let column = compat::attribute(columns, i);
                    column.atttypid == self.types[i] && !column.attisdropped
                })
                && index_class.relam == pg_sys::BTREE_AM_OID
                && entry.indrelid == (*table).rd_id
                && entry.indnatts as usize == K
                && entry.indnkeyatts as usize == K
                && self.keys.iter().enumerate().all(|(i, key)| {
                    *entry.indkey.values.as_ptr().add(i) as usize == *key
                        && compat::attribute(index_columns, i).atttypid == self.types[key - 1]
                })
        }
    }
}

/// The catalogs have changed.
#[cold]
fn changed() -> ! {
    pgrx::error!("the outbox was altered while it was written to or read")
}

/// A table and its index, open and locked.
pub struct Opened<'a, const N: usize, const K: usize> {
    direct: &'a Direct<N, K>,
    pub(super) table: Open,
    pub(super) index: Open,
    mode: LockMode,
}

impl<const N: usize, const K: usize> Opened<'_, N, K> {
    /// The types of the key's columns.
    pub(super) fn key_types(&self) -> [pg_sys::Oid; K] {
        self.direct.keys.map(|column| self.direct.types[column - 1])
    }

    /// The length of the table in blocks, now.
    pub fn blocks(&self) -> u32 {
        self.table.blocks()
    }

    /// Deletes the row version at `place` (block and offset; the block is one that the table has) if it is there and
    /// visible, nobody has replaced or deleted it, and `is_it` recognizes it by its first three columns, none of which
    /// may be NULL. Returns whether it did. A snapshot must be active.
    pub fn delete(&self, place: (u32, u16), is_it: impl FnOnce([Value; 3]) -> bool) -> bool {
        let mut tuple = pg_sys::HeapTupleData { t_self: heap::address(place), ..Default::default() };
        let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
        let (table, columns) = (self.table.raw(), self.table.descriptor());
        // SAFETY: the table is open and locked, and a heap of these columns; the buffer is pinned while the tuple is
        // looked at.
        unsafe {
            if self.mode != LockMode::RowExclusive || !pg_sys::ActiveSnapshotSet() {
                pgrx::error!("a row was to be deleted without a lock or a snapshot");
            }
            if !pg_sys::heap_fetch(table, pg_sys::GetActiveSnapshot(), &mut tuple, &mut buffer, false) {
                return false;
            }
            let values = [0, 1, 2].map(|i| {
                let mut null = false;
                let datum = pg_sys::heap_getattr(&mut tuple, i as i32 + 1, columns, &mut null);
                (!null).then(|| Value::new(datum, ColumnType::of(columns, i)))
            });
            let known = match values {
                [Some(first), Some(second), Some(third)] => is_it([first, second, third]),
                _ => false,
            };
            pg_sys::ReleaseBuffer(buffer);
            known && {
                let mut failure = pg_sys::TM_FailureData::default();
                let result = pg_sys::heap_delete(
                    table,
                    &mut tuple.t_self,
                    pg_sys::GetCurrentCommandId(true),
                    core::ptr::null_mut(),
                    true,
                    &mut failure,
                    false,
                );
                result == pg_sys::TM_Result::TM_Ok
            }
        }
    }
}
