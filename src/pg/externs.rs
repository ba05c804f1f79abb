//! C functions of the server that pgrx does not bind. Signatures are those of the server headers, equal in 15 to 18.

use core::ffi::{c_char, c_int};
use pgrx::pg_sys;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    /// `utils/datum.h`
    pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, typ_by_val: bool, typ_len: c_int) -> bool;
    /// `commands/sequence.h`
    pub fn nextval_internal(relid: pg_sys::Oid, check_permissions: bool) -> i64;
    /// `common/shortest_dec.h`
    pub fn float8_to_shortest_decimal_buf(value: f64, result: *mut c_char) -> c_int;
    /// `common/shortest_dec.h`
    pub fn float_to_shortest_decimal_buf(value: f32, result: *mut c_char) -> c_int;
}
