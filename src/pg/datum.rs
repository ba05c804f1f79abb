//! Values of rows: reading a datum of a known type, and a type's own functions kept ready.
//!
//! A [`Value`] is only made from a tuple and the type its descriptor gives, so the readers below may trust the type.

use super::buffer::Buffer;
use super::externs;
use pgrx::pg_sys;
use std::ffi::CStr;

/// A non-NULL datum of a row, valid as long as the row.
#[derive(Clone, Copy)]
pub struct Value(pub(super) pg_sys::Datum);

impl Value {
    pub fn bool(self) -> bool {
        self.0.value() != 0
    }
    pub fn int2(self) -> i16 {
        self.0.value() as i16
    }
    pub fn int4(self) -> i32 {
        self.0.value() as i32
    }
    pub fn int8(self) -> i64 {
        self.0.value() as i64
    }
    pub fn float4(self) -> f32 {
        f32::from_bits(self.0.value() as u32)
    }
    pub fn float8(self) -> f64 {
        f64::from_bits(self.0.value() as u64)
    }

    pub fn oid(self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.0.value() as u32)
    }

    /// The 16 bytes of a uuid.
    pub fn uuid(&self) -> &[u8; 16] {
        // SAFETY: a uuid datum points to 16 bytes inside the row.
        unsafe { &*self.0.cast_mut_ptr::<[u8; 16]>() }
    }

    /// The bytes of a varlena (text, bytea, json), detoasted if they were stored out of line or compressed.
    pub fn varlena(&self) -> &[u8] {
        varlena(&self.0)
    }

    /// Equal bytes (after detoasting), which is stricter than the type's `=`: numeric 1 and 1.0 differ.
    pub fn same_image(self, other: Value, by_value: bool, length: i16) -> bool {
        // SAFETY: both datums have the type that `by_value` and `length` describe; a positive length is that of what they
        // point to.
        unsafe {
            match (by_value, usize::try_from(length)) {
                (true, _) => self.0 == other.0,
                (false, Ok(length)) => {
                    let bytes = |value: Value| core::slice::from_raw_parts(value.0.cast_mut_ptr::<u8>(), length);
                    bytes(self) == bytes(other)
                }
                (false, Err(_)) if length == -1 && in_line(self.0) && in_line(other.0) => {
                    varlena(&self.0) == varlena(&other.0)
                }
                _ => externs::datum_image_eq(self.0, other.0, by_value, length.into()),
            }
        }
    }
}

/// Whether a varlena is neither compressed nor out of line, as most are: its bytes can be read where they are.
///
/// # Safety
/// The datum is a varlena.
unsafe fn in_line(datum: pg_sys::Datum) -> bool {
    let varlena = datum.cast_mut_ptr();
    // SAFETY: looks at the header only.
    unsafe {
        pgrx::varlena::varatt_is_4b_u(varlena)
            || (pgrx::varlena::varatt_is_1b(varlena) && !pgrx::varlena::varatt_is_1b_e(varlena))
    }
}

/// The bytes of a datum that is a varlena, detoasted if they were stored out of line or compressed.
pub(super) fn varlena(datum: &pg_sys::Datum) -> &[u8] {
    // SAFETY: a varlena by contract; the detoasted copy lives in the current memory context, longer than the row.
    unsafe {
        let mut varlena: *mut pg_sys::varlena = datum.cast_mut_ptr();
        if !in_line(*datum) {
            varlena = pg_sys::pg_detoast_datum_packed(varlena);
        }
        core::slice::from_raw_parts(
            pgrx::varlena::vardata_any(varlena).cast(),
            pgrx::varlena::varsize_any_exhdr(varlena),
        )
    }
}

/// Writes a finite float as `float8out` does with default settings. Not Rust's shortest digits: PostgreSQL takes no digits
/// that only read back by rounding to even.
pub fn shortest_float8(value: f64, out: &mut Buffer) {
    let mut buffer = [0; 32];
    // SAFETY: the longest result, with its NUL, is DOUBLE_SHORTEST_DECIMAL_LEN = 25 bytes.
    unsafe {
        externs::double_to_shortest_decimal_buf(value, buffer.as_mut_ptr());
        out.extend_from_slice(CStr::from_ptr(buffer.as_ptr()).to_bytes());
    }
}

/// As [`shortest_float8`], for `real`.
pub fn shortest_float4(value: f32, out: &mut Buffer) {
    let mut buffer = [0; 32];
    // SAFETY: the longest result, with its NUL, is FLOAT_SHORTEST_DECIMAL_LEN = 16 bytes.
    unsafe {
        externs::float_to_shortest_decimal_buf(value, buffer.as_mut_ptr());
        out.extend_from_slice(CStr::from_ptr(buffer.as_ptr()).to_bytes());
    }
}

/// A date, timestamp or timestamptz (`type_oid` says which) as JSON has it, in UTC, handed to `write`.
pub fn iso_datetime<R>(value: Value, type_oid: pg_sys::Oid, write: impl FnOnce(&[u8]) -> R) -> R {
    let mut buffer = [0; 256];
    let utc = 0;
    // SAFETY: the buffer is larger than MAXDATELEN + 1 and the datum has the type named.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value.0, type_oid, &utc);
        write(CStr::from_ptr(buffer.as_ptr()).to_bytes())
    }
}

/// A function of users, of one argument: looked up for every call, whose state ends with the current memory context. A
/// function in SQL keeps in its state where it is: after an error in a savepoint, or where it comes back to itself, that is not
/// one to go on from; and it can get another owner, body or language meanwhile.
pub struct UsersFunction(pg_sys::Oid);

impl UsersFunction {
    pub fn new(oid: pg_sys::Oid) -> Self {
        UsersFunction(oid)
    }

    /// As [`Function::write_varlena`].
    pub fn write_varlena(&self, value: Value, out: &mut Buffer) {
        // SAFETY: the function takes the value's type and returns a varlena.
        let result = unsafe { pg_sys::OidFunctionCall1Coll(self.0, pg_sys::InvalidOid, value.0) };
        out.extend_from_slice(Value(result).varlena());
    }
}

/// A function of one argument that is called for every row: looked up once.
pub struct Function(Box<pg_sys::FmgrInfo>);

impl Function {
    pub fn new(oid: pg_sys::Oid) -> Self {
        let mut info = Box::<pg_sys::FmgrInfo>::default();
        // SAFETY: the box gives the FmgrInfo a stable address; its memory context lives as long as the backend.
        unsafe { pg_sys::fmgr_info_cxt(oid, &mut *info, pg_sys::TopMemoryContext) };
        Function(info)
    }

    /// The output function of a type.
    pub fn output(type_oid: pg_sys::Oid) -> Self {
        let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
        // SAFETY: catalog look-up inside a transaction.
        unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena) };
        Self::new(function)
    }

    /// What an output function gives, handed to `write`.
    pub fn text<R>(&self, value: Value, write: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: the function is the output function of the value's type and returns a C string, which lives as long
        // as the current memory context.
        unsafe {
            let text = pg_sys::OutputFunctionCall((&raw const *self.0).cast_mut(), value.0);
            write(CStr::from_ptr(text).to_bytes())
        }
    }

    /// Writes what a function that returns json or text gives.
    pub fn write_varlena(&self, value: Value, out: &mut Buffer) {
        // SAFETY: the function takes the value's type and returns a varlena.
        let result = unsafe { pg_sys::FunctionCall1Coll((&raw const *self.0).cast_mut(), pg_sys::InvalidOid, value.0) };
        out.extend_from_slice(Value(result).varlena());
    }
}

/// `BYTEA_OUTPUT_HEX` of `utils/bytea.h`.
const BYTEA_OUTPUT_HEX: i32 = 1;

/// Whether the session prints values as a default session in UTC would.
pub fn output_settings_are_default() -> bool {
    // SAFETY: plain globals of the backend; session_timezone is always a valid zone.
    unsafe {
        pg_sys::DateStyle == pg_sys::USE_ISO_DATES as i32
            && pg_sys::IntervalStyle == pg_sys::INTSTYLE_POSTGRES as i32
            && pg_sys::extra_float_digits == 1
            && externs::bytea_output == BYTEA_OUTPUT_HEX
            && !pg_sys::quote_all_identifiers
            && CStr::from_ptr(pg_sys::pg_get_timezone_name(pg_sys::session_timezone)) == c"UTC"
    }
}
