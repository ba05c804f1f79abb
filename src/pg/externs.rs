//! C functions of the server that pgrx does not bind. Signatures are those of the server headers, equal in 15 to 18.

use core::ffi::{c_char, c_int};
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, Datum, Oid};

mod raw {
    use super::*;
    unsafe extern "C-unwind" {
        /// `utils/datum.h`
        pub fn datum_image_eq(a: Datum, b: Datum, typ_by_val: bool, typ_len: c_int) -> bool;
        /// `commands/sequence.h`
        pub fn nextval_internal(relid: Oid, check_permissions: bool) -> i64;
        /// `utils/bytea.h`
        pub static bytea_output: c_int;
        /// `common/shortest_dec.h`
        pub fn double_to_shortest_decimal_buf(value: f64, result: *mut c_char) -> c_int;
        /// `common/shortest_dec.h`
        pub fn float_to_shortest_decimal_buf(value: f32, result: *mut c_char) -> c_int;
        /// `utils/timeout.h`
        pub fn disable_all_timeouts(keep_indicators: bool);
        /// `tcop/tcopprot.h`; here for its address, which pgrx's guarded binding has not
        pub fn die(signal: c_int);
        /// `postmaster/interrupt.h`; as above
        pub fn SignalHandlerForConfigReload(signal: c_int);
        // For `append`, whose calls share one guard: `access/heapam.h`, `access/genam.h`, `access/table.h`, `catalog/index.h`.
        pub fn table_open(relation: Oid, lock: pg_sys::LOCKMODE) -> pg_sys::Relation;
        pub fn table_close(relation: pg_sys::Relation, lock: pg_sys::LOCKMODE);
        pub fn index_open(relation: Oid, lock: pg_sys::LOCKMODE) -> pg_sys::Relation;
        pub fn index_close(relation: pg_sys::Relation, lock: pg_sys::LOCKMODE);
        pub fn heap_form_tuple(desc: pg_sys::TupleDesc, values: *const Datum, nulls: *const bool) -> pg_sys::HeapTuple;
        pub fn heap_insert(
            relation: pg_sys::Relation,
            tuple: pg_sys::HeapTuple,
            command: pg_sys::CommandId,
            options: c_int,
            state: *mut pg_sys::BulkInsertStateData,
        );
        pub fn GetCurrentCommandId(used: bool) -> pg_sys::CommandId;
        pub fn BuildIndexInfo(index: pg_sys::Relation) -> *mut pg_sys::IndexInfo;
        pub fn index_insert(
            index: pg_sys::Relation,
            values: *const Datum,
            nulls: *const bool,
            place: pg_sys::ItemPointer,
            table: pg_sys::Relation,
            unique: pg_sys::IndexUniqueCheck::Type,
            unchanged: bool,
            info: *mut pg_sys::IndexInfo,
        ) -> bool;
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pub fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo);
        /// `executor/executor.h`; unguarded, for a caller that an ERROR may jump over
        pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
        /// As above.
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        /// `tcop/utility.h`; unguarded, as above
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

// Cannot raise errors, so they need no guard.
pub use raw::{
    SignalHandlerForConfigReload, bytea_output, die, disable_all_timeouts, double_to_shortest_decimal_buf,
    float_to_shortest_decimal_buf,
};

// The caller's business.
pub use raw::{standard_ExecutorFinish, standard_ExecutorStart, standard_ProcessUtility};

/// # Safety
/// Both datums have the type that `typ_by_val` and `typ_len` describe.
pub unsafe fn datum_image_eq(a: Datum, b: Datum, typ_by_val: bool, typ_len: c_int) -> bool {
    // SAFETY: by contract; an ERROR (while detoasting) becomes an unwind at the boundary.
    unsafe { pg_guard_ffi_boundary(|| raw::datum_image_eq(a, b, typ_by_val, typ_len)) }
}

/// # Safety
/// Inside a transaction, on the main thread.
pub unsafe fn nextval_internal(relid: Oid, check_permissions: bool) -> i64 {
    // SAFETY: by contract; an ERROR becomes an unwind at the boundary.
    unsafe { pg_guard_ffi_boundary(|| raw::nextval_internal(relid, check_permissions)) }
}

/// A row for [`append`]: values and NULLs by column.
pub struct NewRow<'a> {
    pub values: &'a [Datum],
    pub nulls: &'a [bool],
    pub key: &'a [Datum],
}

/// Appends a row to a heap and its entry to one unique index over columns that are not NULL.
///
/// # Safety
/// Both relations are locked by this transaction; values and NULLs are as many as the table has columns, and `key` as the
/// index has, of their types; the index is a plain unique btree.
pub unsafe fn append(table: Oid, index: Oid, row: &NewRow<'_>) {
    const KEY_NULLS: [bool; 8] = [false; 8];
    let no_lock = pg_sys::NoLock as pg_sys::LOCKMODE;
    // SAFETY: by contract; an ERROR becomes an unwind at the boundary, and nothing inside has to be dropped.
    unsafe {
        pg_guard_ffi_boundary(|| {
            let table = raw::table_open(table, no_lock);
            let tuple = raw::heap_form_tuple((*table).rd_att, row.values.as_ptr(), row.nulls.as_ptr());
            raw::heap_insert(table, tuple, raw::GetCurrentCommandId(true), 0, core::ptr::null_mut());
            let index = raw::index_open(index, no_lock);
            let info = raw::BuildIndexInfo(index);
            let place = &raw mut (*tuple).t_self;
            let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
            raw::index_insert(index, row.key.as_ptr(), KEY_NULLS.as_ptr(), place, table, unique, false, info);
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            raw::index_insert_cleanup(index, info);
            raw::index_close(index, no_lock);
            raw::table_close(table, no_lock);
        })
    }
}
