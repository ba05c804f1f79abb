//! C functions of the server that pgrx does not bind. Signatures are those of the server headers, equal in 15 to 18.

use super::compat;
use core::ffi::{c_char, c_int};
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, Datum, Oid};

mod raw {
    use super::*;
    unsafe extern "C-unwind" {
        /// `utils/datum.h`
        pub fn datum_image_eq(a: Datum, b: Datum, typ_by_val: bool, typ_len: c_int) -> bool;
        /// `utils/bytea.h`
        pub static bytea_output: c_int;
        /// `common/shortest_dec.h`
        pub fn double_to_shortest_decimal_buf(value: f64, result: *mut c_char) -> c_int;
        /// `common/shortest_dec.h`
        pub fn float_to_shortest_decimal_buf(value: f32, result: *mut c_char) -> c_int;
        /// `utils/timeout.h`
        pub fn disable_all_timeouts(keep_indicators: bool);
        /// `utils/timeout.h`
        pub fn enable_timeout_at(id: c_int, at: i64);
        /// `utils/timeout.h`
        pub fn disable_timeout(id: c_int, keep_indicator: bool);
        /// `utils/timeout.h`
        pub fn enable_timeout_every(id: c_int, first: i64, interval_ms: c_int);
        /// `utils/timeout.h`
        pub fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
        /// `utils/timeout.h`
        pub fn get_timeout_active(id: c_int) -> bool;
        /// `utils/timeout.h`
        pub fn get_timeout_finish_time(id: c_int) -> i64;
        /// `tcop/tcopprot.h`; here for its address, which pgrx's guarded binding does not have
        pub fn die(signal: c_int);
        /// `postmaster/interrupt.h`; as above
        pub fn SignalHandlerForConfigReload(signal: c_int);
        // For `append`, whose calls share one guard: `access/heapam.h`, `access/genam.h`, `access/table.h`,
        // `catalog/index.h`.
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
        // For `sequence`, likewise: `access/relation.h`, `access/xact.h`, `access/xlog.h`, `access/xloginsert.h`,
        // `storage/bufmgr.h`, `utils/syscache.h`.
        pub fn relation_open(relation: Oid, lock: pg_sys::LOCKMODE) -> pg_sys::Relation;
        pub fn relation_close(relation: pg_sys::Relation, lock: pg_sys::LOCKMODE);
        pub fn PreventCommandIfReadOnly(command: *const c_char);
        pub fn PreventCommandIfParallelMode(command: *const c_char);
        pub fn SearchSysCache1(cache: c_int, key: Datum) -> pg_sys::HeapTuple;
        pub fn ReleaseSysCache(tuple: pg_sys::HeapTuple);
        pub fn GetTopTransactionId() -> pg_sys::TransactionId;
        pub fn GetRedoRecPtr() -> pg_sys::XLogRecPtr;
        pub fn ReadBuffer(relation: pg_sys::Relation, block: pg_sys::BlockNumber) -> pg_sys::Buffer;
        pub fn LockBuffer(buffer: pg_sys::Buffer, mode: c_int);
        pub fn UnlockReleaseBuffer(buffer: pg_sys::Buffer);
        pub fn MarkBufferDirty(buffer: pg_sys::Buffer);
        pub fn XLogBeginInsert();
        pub fn XLogRegisterBuffer(block: u8, buffer: pg_sys::Buffer, flags: u8);
        pub fn XLogRegisterData(data: *mut c_char, length: u32);
        pub fn XLogInsert(resource_manager: pg_sys::RmgrId, info: u8) -> pg_sys::XLogRecPtr;
        /// `access/xact.h`
        pub fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;
        /// `utils/palloc.h`; raises nothing, so that it can be called while unwinding
        pub fn pfree(pointer: *mut core::ffi::c_void);
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
    GetTopFullTransactionIdIfAny, SignalHandlerForConfigReload, bytea_output, die, disable_all_timeouts,
    double_to_shortest_decimal_buf, float_to_shortest_decimal_buf,
};

/// A member of `TimeoutId` (`utils/timeout.h`), the same in every major.
pub const STATEMENT_TIMEOUT: c_int = 3;

/// Registers a timeout of our own, which runs `handler` in a signal handler.
pub fn register_timeout(handler: unsafe extern "C-unwind" fn()) -> c_int {
    // SAFETY: on the main thread of a backend; can only FATAL.
    unsafe { raw::RegisterTimeout(compat::USER_TIMEOUT, handler) }
}

/// Makes a timeout fire periodically.
pub fn enable_timeout_every(id: c_int, first: i64, interval_ms: c_int) {
    // SAFETY: as below.
    unsafe { raw::enable_timeout_every(id, first, interval_ms) }
}

/// Makes a timeout fire at this time, instead of any earlier setting.
pub fn enable_timeout_at(id: c_int, at: i64) {
    // SAFETY: on the main thread, a registered timeout; can only FATAL.
    unsafe { raw::enable_timeout_at(id, at) }
}

pub fn disable_timeout(id: c_int, keep_indicator: bool) {
    // SAFETY: as above.
    unsafe { raw::disable_timeout(id, keep_indicator) }
}

/// When an active timeout will fire.
pub fn timeout_finishes(id: c_int) -> Option<i64> {
    // SAFETY: plain getters.
    unsafe { raw::get_timeout_active(id).then(|| raw::get_timeout_finish_time(id)) }
}

// Their safety is up to the caller.
pub use raw::{
    GetRedoRecPtr, GetTopTransactionId, LockBuffer, MarkBufferDirty, PreventCommandIfParallelMode,
    PreventCommandIfReadOnly, ReadBuffer, ReleaseSysCache, SearchSysCache1, UnlockReleaseBuffer, XLogBeginInsert,
    XLogInsert, XLogRegisterBuffer, XLogRegisterData, pfree, relation_close, relation_open, standard_ExecutorFinish,
    standard_ExecutorStart, standard_ProcessUtility,
};

/// # Safety
/// Both datums have the type that `typ_by_val` and `typ_len` describe.
pub unsafe fn datum_image_eq(a: Datum, b: Datum, typ_by_val: bool, typ_len: c_int) -> bool {
    // SAFETY: by contract; an ERROR (while detoasting) becomes an unwind at the boundary.
    unsafe { pg_guard_ffi_boundary(|| raw::datum_image_eq(a, b, typ_by_val, typ_len)) }
}

/// Runs `f`, whose unguarded calls share one guard: an ERROR becomes an unwind at the boundary.
///
/// # Safety
/// On the main thread, and nothing in `f` has to be dropped.
pub unsafe fn guarded<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: by contract.
    unsafe { pg_guard_ffi_boundary(f) }
}

/// A row for [`append`]: values and NULLs by column.
pub struct NewRow<'a> {
    pub values: &'a [Datum],
    pub nulls: &'a [bool],
    pub key: &'a [Datum],
}

/// Appends a row to a heap and its entry to one unique index over columns that are not NULL, if `fits` accepts the two.
///
/// # Safety
/// Both relations are locked by this transaction; `fits` says of the open ones that values and NULLs are as many as the
/// table has columns, and `key` as the index has, of their types, and that the index is a btree. It raises nothing.
pub unsafe fn append(
    table: Oid,
    index: Oid,
    row: &NewRow<'_>,
    fits: impl FnOnce(pg_sys::Relation, pg_sys::Relation) -> bool,
) -> bool {
    const KEY_NULLS: [bool; 8] = [false; 8];
    let no_lock = pg_sys::NoLock as pg_sys::LOCKMODE;
    // SAFETY: by contract; an ERROR becomes an unwind at the boundary, and nothing inside has to be dropped.
    unsafe {
        pg_guard_ffi_boundary(|| {
            let table = raw::table_open(table, no_lock);
            let index = raw::index_open(index, no_lock);
            if !fits(table, index) {
                raw::index_close(index, no_lock);
                raw::table_close(table, no_lock);
                return false;
            }
            let tuple = raw::heap_form_tuple((*table).rd_att, row.values.as_ptr(), row.nulls.as_ptr());
            raw::heap_insert(table, tuple, raw::GetCurrentCommandId(true), 0, core::ptr::null_mut());
            let info = raw::BuildIndexInfo(index);
            let place = &raw mut (*tuple).t_self;
            let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
            raw::index_insert(index, row.key.as_ptr(), KEY_NULLS.as_ptr(), place, table, unique, false, info);
            compat::index_insert_cleanup(index, info);
            raw::index_close(index, no_lock);
            raw::table_close(table, no_lock);
            true
        })
    }
}
