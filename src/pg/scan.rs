//! Reads a table without the executor: along one of its indexes, for the one query that runs for every change, and in
//! its present state.

use super::datum::{ColumnType, wrong_type};
use super::direct::Opened;
use super::heap::Tuple;
use super::memory::ScratchContext;
use super::relation::Open;
use super::spi::{Row, types_of};
use super::{compat, types};
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// The rows whose first index columns equal given values and whose next one is above a bound.
pub struct Range<'a, const N: usize> {
    /// Its index is over a smallint, an enum and a bigint column, in this order.
    pub opened: &'a Opened<'a, N, 3>,
    pub equal: (i16, pg_sys::Oid),
    pub above: i64,
}

impl<const N: usize> Range<'_, N> {
    /// Passes the rows that are visible now to `each` in the order of the index, until it breaks. A row has the table's
    /// columns and after them its address (a ctid). Interrupts are processed between rows.
    pub fn read(&self, mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>) {
        let (smallint, priority) = self.equal;
        let (table, index) = (&self.opened.table, &self.opened.index);
        let [first, second, third] = self.opened.key_types();
        if first != pg_sys::INT2OID || !types::is_users_type(second) || third != pg_sys::INT8OID {
            wrong_type(second, "part of the key of a lane");
        }
        let strategy = pg_sys::BTEqualStrategyNumber;
        let keys = [
            (1, strategy, pg_sys::F_INT2EQ, smallint.into()),
            (2, strategy, pg_sys::F_ENUM_EQ, priority.into()),
            (3, pg_sys::BTGreaterStrategyNumber, pg_sys::F_INT8GT, self.above.into()),
        ];
        // SAFETY: both relations are open and locked; the keys name columns of the index and comparison functions of
        // their types; the slot and the scan are given back here, or by the abort after an error.
        super::xact::with_snapshot(|| unsafe {
            let mut scan_keys = [pg_sys::ScanKeyData::default(); 3];
            for (scan_key, (column, strategy, function, value)) in scan_keys.iter_mut().zip(keys) {
                pg_sys::ScanKeyInit(scan_key, column, strategy as u16, pg_sys::Oid::from(function), value);
            }
            let slot = pg_sys::table_slot_create(table.raw(), core::ptr::null_mut());
            let snapshot = pg_sys::GetActiveSnapshot();
            let scan = compat::index_beginscan(table.raw(), index.raw(), snapshot, scan_keys.len());
            pg_sys::index_rescan(scan, scan_keys.as_mut_ptr(), scan_keys.len() as i32, core::ptr::null_mut(), 0);

            let memory = ScratchContext::new();
            let mut types = types_of(table.descriptor());
            let columns = types.len();
            types.push(ColumnType {
                oid: pg_sys::TIDOID,
                length: size_of::<pg_sys::ItemPointerData>() as i16,
                by_value: false,
            });
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); columns + 1], vec![false; columns + 1]);
            while pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                if ((*slot).tts_nvalid as usize) < columns {
                    pg_sys::slot_getsomeattrs_int(slot, columns as i32);
                }
                values[..columns].copy_from_slice(core::slice::from_raw_parts((*slot).tts_values, columns));
                nulls[..columns].copy_from_slice(core::slice::from_raw_parts((*slot).tts_isnull, columns));
                values[columns] = pg_sys::Datum::from(&raw mut (*slot).tts_tid);
                // What is detoasted for a row is freed after it.
                if memory.run(|| each(&Row::new(&values, &nulls, &types))).is_break() {
                    break;
                }
                super::interrupt::check();
            }
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        })
    }
}

/// Passes every row that is in a table now to `each`. It sees the writes of our own transaction, including those of the
/// current statement, and what others have committed. Interrupts are processed between rows; what is allocated for a
/// row is freed after it.
pub fn standing(table: &Open, mut each: impl FnMut(Tuple<'_>)) {
    let memory = ScratchContext::new();
    // SAFETY: the relation is open and locked; without an index this reads any table from its beginning; the scan is
    // given back here, or by the abort after an error. A row is valid until the next is asked for.
    unsafe {
        let now = &raw mut pg_sys::SnapshotSelfData;
        let scan = pg_sys::systable_beginscan(table.raw(), pg_sys::InvalidOid, false, now, 0, core::ptr::null_mut());
        while let Some(row) = Tuple::new(pg_sys::systable_getnext(scan), table.descriptor()) {
            memory.run(|| each(row));
            super::interrupt::check();
        }
        pg_sys::systable_endscan(scan);
    }
}
