//! Finds a row by its unique key in its present state, without the executor and whatever snapshot the statement has.

use super::compat;
use super::datum::ColumnType;
use super::heap::{Columns, Tuple};
use super::index::Predicate;
use super::relation::{Borrowed, Open};
use super::relation_lock::LockMode;
use pgrx::pg_sys;

/// A unique index that finds the row with a key.
pub struct KeyIndex {
    oid: pg_sys::Oid,
    columns: Vec<KeyColumn>,
}

struct KeyColumn {
    /// Position in a row of the table.
    index: usize,
    type_oid: pg_sys::Oid,
    /// The function that compares two values for equality.
    equal: pg_sys::Oid,
    collation: pg_sys::Oid,
}

impl KeyIndex {
    /// The index of a table that this transaction has locked, unique over exactly the columns at these positions of a
    /// row.
    pub fn over(table: pg_sys::Oid, columns: &[usize]) -> Option<Self> {
        let table = Open::locked(table);
        table.indexes().into_iter().find_map(|oid| {
            let index = Open::index(oid, LockMode::AccessShare);
            let shape = index.index_shape();
            let keys: Vec<usize> = shape.keys[..shape.key_columns]
                .iter()
                .map(|&n| usize::try_from(n - 1))
                .collect::<Result<_, _>>()
                .ok()?;
            let same = keys.len() == columns.len() && columns.iter().all(|column| keys.contains(column));
            (same && shape.unique && shape.btree && shape.valid && shape.predicate == Predicate::All)
                .then(|| KeyIndex {
                    oid,
                    columns: keys
                        .into_iter()
                        .enumerate()
                        .map(|(n, key)| KeyColumn::of(&table, &index, n, key))
                        .collect(),
                })
                .filter(KeyIndex::tells_apart_what_looks_different)
        })
    }

    /// Whether texts that differ are different keys. A nondeterministic collation takes some of them for equal, so that
    /// another row would be found.
    fn tells_apart_what_looks_different(&self) -> bool {
        self.columns.iter().all(|KeyColumn { collation, .. }| {
            // SAFETY: catalog look-up inside a transaction; a collation of an index exists.
            *collation == pg_sys::InvalidOid || unsafe { pg_sys::get_collation_isdeterministic(*collation) }
        })
    }

    /// The row of `table` that has the key of `row` now. It sees the writes of our own transaction up to this moment,
    /// including those of the current statement, and what others have committed. It lives in the current memory
    /// context.
    pub fn find<'a>(&self, table: &Borrowed<'a>, row: &Columns) -> Option<Tuple<'a>> {
        let index = Open::index(self.oid, LockMode::AccessShare);
        let n = self.columns.len();
        if index.indexed_table() != table.oid() {
            pgrx::error!("an index of another table was to be searched");
        }
        // SAFETY: both relations are open and locked; the keys name columns of the index, with the equality of its
        // operator classes and values of the table's types; slot and scan are given back here, or by the abort after an
        // error. The row is a copy.
        unsafe {
            let mut keys = [pg_sys::ScanKeyData::default(); pg_sys::INDEX_MAX_KEYS as usize];
            for (i, column) in self.columns.iter().enumerate() {
                let value = row.get(column.index)?.datum_of(column.type_oid);
                let strategy = pg_sys::BTEqualStrategyNumber as u16;
                pg_sys::ScanKeyInit(&mut keys[i], i as i16 + 1, strategy, column.equal, value);
                keys[i].sk_collation = column.collation;
            }
            let slot = pg_sys::table_slot_create(table.raw(), core::ptr::null_mut());
            let now = &raw mut pg_sys::SnapshotSelfData; // a constant of the server
            let scan = compat::index_beginscan(table.raw(), index.raw(), now, n);
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), n as i32, core::ptr::null_mut(), 0);
            let found = pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot);
            let row = found.then(|| pg_sys::ExecCopySlotHeapTuple(slot));
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            row.and_then(|row| Tuple::new(row, table.descriptor()))
        }
    }
}

impl KeyColumn {
    /// Column `n` of an index, which is at position `column` of the table's rows.
    fn of(table: &Open, index: &Open, n: usize, column: usize) -> Self {
        // SAFETY: an open index, whose arrays have an entry for each of its key columns, and its table, which has those
        // columns; syscache look-ups.
        unsafe {
            let relation = index.raw();
            let input = *(*relation).rd_opcintype.add(n);
            let strategy = pg_sys::BTEqualStrategyNumber as i16;
            let operator = pg_sys::get_opfamily_member(*(*relation).rd_opfamily.add(n), input, input, strategy);
            KeyColumn {
                index: column,
                type_oid: ColumnType::of(table.descriptor(), column).oid,
                equal: pg_sys::get_opcode(operator),
                collation: *(*relation).rd_indcollation.add(n),
            }
        }
    }
}
