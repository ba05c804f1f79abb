//! Values of rows: reading a datum of a known type, and functions of types that are called for every row.
//!
//! A [`Value`] knows the type that its row's descriptor gives it. Readers that follow a pointer check it first and
//! raise XX000 if it is another one, so that no datum is read as a value of another type.

use super::buffer::Buffer;
use super::{compat, externs, types};
use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use std::ffi::CStr;

/// What has to be known about the type of a column to read its values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ColumnType {
    pub oid: pg_sys::Oid,
    /// As `pg_type.typlen`: -1 is a varlena.
    pub length: i16,
    pub by_value: bool,
}

impl ColumnType {
    /// # Safety
    /// The descriptor is alive and has more than `i` attributes.
    pub unsafe fn of(descriptor: pg_sys::TupleDesc, i: usize) -> Self {
        // SAFETY: by contract.
        let attribute = unsafe { compat::attribute(descriptor, i) };
        ColumnType { oid: attribute.atttypid, length: attribute.attlen, by_value: attribute.attbyval }
    }
}

/// A value was about to be read as one of another type, because of a bug in this library or a damaged catalog.
#[cold]
pub(super) fn wrong_type(found: pg_sys::Oid, wanted: &str) -> ! {
    Error::new(SqlState::ERRCODE_INTERNAL_ERROR, format!("a value of the type {found} cannot be read as {wanted}"))
        .raise()
}

/// A non-NULL datum of a row, valid as long as the row.
#[derive(Clone, Copy)]
pub struct Value {
    datum: pg_sys::Datum,
    of: ColumnType,
}

impl Value {
    /// # Safety
    /// A non-NULL datum of that type, which lives as long as the result is used.
    pub(super) unsafe fn new(datum: pg_sys::Datum, of: ColumnType) -> Self {
        Value { datum, of }
    }

    /// The datum, if it is of that type.
    pub(super) fn datum_of(self, type_oid: pg_sys::Oid) -> pg_sys::Datum {
        if self.of.oid != type_oid {
            wrong_type(self.of.oid, &format!("one of the type {type_oid}"));
        }
        self.datum
    }

    pub fn bool(self) -> bool {
        self.datum.value() != 0
    }
    pub fn int2(self) -> i16 {
        self.datum.value() as i16
    }
    pub fn int4(self) -> i32 {
        self.datum.value() as i32
    }
    pub fn int8(self) -> i64 {
        self.datum.value() as i64
    }
    pub fn float4(self) -> f32 {
        f32::from_bits(self.datum.value() as u32)
    }
    pub fn float8(self) -> f64 {
        f64::from_bits(self.datum.value() as u64)
    }

    /// The 16 bytes of a uuid.
    pub fn uuid(&self) -> &[u8; 16] {
        if self.of.by_value || self.of.length != 16 {
            wrong_type(self.of.oid, "16 bytes");
        }
        // SAFETY: a datum of this type points to 16 bytes inside the row.
        unsafe { &*self.datum.cast_mut_ptr::<[u8; 16]>() }
    }

    /// The bytes of a varlena (text, bytea, json), detoasted if they were stored out of line or compressed.
    pub fn varlena(&self) -> &[u8] {
        if self.of.by_value || self.of.length != -1 {
            wrong_type(self.of.oid, "bytes of any length");
        }
        // SAFETY: a varlena of a row that is still there.
        unsafe { varlena(&self.datum) }
    }

    /// Whether the bytes are equal after detoasting, which is stricter than the type's `=`: numeric 1 and 1.0 differ.
    pub fn same_image(self, other: Value) -> bool {
        let of = self.of;
        if of != other.of {
            wrong_type(other.of.oid, &format!("one of the type {}", of.oid));
        }
        // SAFETY: both datums have the same type; a positive length is that of what they point to.
        unsafe {
            match (of.by_value, usize::try_from(of.length)) {
                (true, _) => self.datum == other.datum,
                (false, Ok(length)) => {
                    let bytes = |value: Value| core::slice::from_raw_parts(value.datum.cast_mut_ptr::<u8>(), length);
                    bytes(self) == bytes(other)
                }
                (false, Err(_)) if of.length == -1 && in_line(self.datum) && in_line(other.datum) => {
                    varlena(&self.datum) == varlena(&other.datum)
                }
                _ => externs::datum_image_eq(self.datum, other.datum, of.by_value, of.length.into()),
            }
        }
    }
}

/// Whether a varlena is neither compressed nor out of line, so that its bytes can be read in place, as most can.
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
///
/// # Safety
/// A varlena that lives as long as the result is used.
pub(super) unsafe fn varlena(datum: &pg_sys::Datum) -> &[u8] {
    // SAFETY: by contract; the detoasted copy lives in the current memory context, longer than the row.
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

/// Writes a finite float as `float8out` does with default settings. Rust's shortest digits differ: PostgreSQL avoids
/// digits that read back only by rounding to even.
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

/// Passes a date, timestamp or timestamptz (which one, `type_oid` says) to `write` in the form that it has in JSON, in
/// UTC.
pub fn iso_datetime<R>(value: Value, type_oid: pg_sys::Oid, write: impl FnOnce(&[u8]) -> R) -> R {
    if ![pg_sys::DATEOID, pg_sys::TIMESTAMPOID, pg_sys::TIMESTAMPTZOID].contains(&type_oid) || !value.of.by_value {
        wrong_type(value.of.oid, "a date or a time stamp");
    }
    let mut buffer = [0; 256];
    let utc = 0;
    // SAFETY: the buffer is larger than MAXDATELEN + 1, and these types are passed by value.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value.datum, type_oid, &utc);
        write(CStr::from_ptr(buffer.as_ptr()).to_bytes())
    }
}

/// A user's function that converts a type to json. It is looked up for every call, and its state is freed with the
/// current memory context. An SQL function keeps its position in that state, which cannot be used again after an error
/// in a savepoint or in a recursive call; and the function can get another owner, body or language meanwhile.
pub struct UsersFunction {
    oid: pg_sys::Oid,
    takes: pg_sys::Oid,
}

impl UsersFunction {
    /// As [`Function::to_json`].
    pub fn to_json(type_oid: pg_sys::Oid) -> Option<Self> {
        Some(UsersFunction { oid: types::json_function(type_oid)?, takes: type_oid })
    }

    /// As [`Function::write_varlena`].
    pub fn write_varlena(&self, value: Value, out: &mut Buffer) {
        let argument = value.datum_of(self.takes);
        // SAFETY: the function takes the value's type and returns a json, which lives as long as the memory context.
        unsafe {
            let result = pg_sys::OidFunctionCall1Coll(self.oid, pg_sys::InvalidOid, argument);
            out.extend_from_slice(varlena(&result));
        }
    }
}

/// A function of one argument that is called for every row: looked up once.
pub struct Function {
    info: Box<pg_sys::FmgrInfo>,
    takes: pg_sys::Oid,
}

impl Function {
    /// # Safety
    /// The function takes one argument, of the type `takes`.
    unsafe fn new(oid: pg_sys::Oid, takes: pg_sys::Oid) -> Self {
        let mut info = Box::<pg_sys::FmgrInfo>::default();
        // SAFETY: the box gives the FmgrInfo a stable address; its memory context lives as long as the backend.
        unsafe { pg_sys::fmgr_info_cxt(oid, &mut *info, pg_sys::TopMemoryContext) };
        Function { info, takes }
    }

    /// The function that converts a type to json; `None` if its json is the text of the output function.
    pub fn to_json(type_oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: what is looked up takes that type.
        types::json_function(type_oid).map(|function| unsafe { Self::new(function, type_oid) })
    }

    /// The output function of a type.
    pub fn output(type_oid: pg_sys::Oid) -> Output {
        let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
        // SAFETY: catalog look-up inside a transaction; an output function takes its type, and domains over that.
        Output(unsafe {
            pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
            Self::new(function, type_oid)
        })
    }

    /// Writes the json that the function returns.
    pub fn write_varlena(&self, value: Value, out: &mut Buffer) {
        let argument = value.datum_of(self.takes);
        // SAFETY: the function takes the value's type and returns a json, which lives as long as the memory context.
        unsafe {
            let result = pg_sys::FunctionCall1Coll((&raw const *self.info).cast_mut(), pg_sys::InvalidOid, argument);
            out.extend_from_slice(varlena(&result));
        }
    }
}

/// The output function of a type.
pub struct Output(Function);

impl Output {
    /// Passes its result to `write`.
    pub fn text<R>(&self, value: Value, write: impl FnOnce(&[u8]) -> R) -> R {
        let argument = value.datum_of(self.0.takes);
        // SAFETY: the output function of the value's type returns a C string, which lives as long as the current memory
        // context.
        unsafe {
            let text = pg_sys::OutputFunctionCall((&raw const *self.0.info).cast_mut(), argument);
            write(CStr::from_ptr(text).to_bytes())
        }
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
