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
        /// `tcop/utility.h`; unguarded, for a caller that an ERROR may jump over
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
pub use raw::standard_ProcessUtility;

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
