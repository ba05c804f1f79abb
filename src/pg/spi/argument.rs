//! Typed arguments of statements.

use crate::pg::heap;
use crate::pg::text::{self, Varlena};
use pgrx::{IntoDatum, pg_sys};
use std::marker::PhantomData;

/// One argument of a statement, or a column of a row: its type, and its value or NULL. It lives as long as what it
/// borrows.
pub struct Arg<'a> {
    pub(super) oid: pg_sys::Oid,
    pub(super) datum: Option<pg_sys::Datum>,
    borrows: PhantomData<&'a ()>,
}

impl<T: IntoDatum> From<T> for Arg<'_> {
    fn from(value: T) -> Self {
        Arg::new(T::type_oid(), value.into_datum())
    }
}

impl<'a> Arg<'a> {
    fn new(oid: pg_sys::Oid, datum: Option<pg_sys::Datum>) -> Self {
        Arg { oid, datum, borrows: PhantomData }
    }

    pub(in crate::pg) fn type_oid(&self) -> pg_sys::Oid {
        self.oid
    }

    pub(in crate::pg) fn value(&self) -> Option<pg_sys::Datum> {
        self.datum
    }

    pub fn is_null(&self) -> bool {
        self.datum.is_none()
    }

    /// The value, or NULL of the type that `T` stands for.
    pub fn opt<T: IntoDatum>(value: Option<T>) -> Self {
        Arg::new(T::type_oid(), value.and_then(IntoDatum::into_datum))
    }

    pub fn null(oid: pg_sys::Oid) -> Self {
        Arg::new(oid, None)
    }

    /// A label of an enum, by its oid.
    pub fn label(type_oid: pg_sys::Oid, label: pg_sys::Oid) -> Self {
        Arg::new(type_oid, Some(label.into()))
    }

    pub fn xid8(id: u64) -> Self {
        Arg::new(pg_sys::XID8OID, Some(pg_sys::Datum::from(id as i64)))
    }

    /// A timestamptz, in microseconds since 2000-01-01 UTC.
    pub fn timestamptz(micros: i64) -> Self {
        Arg::new(pg_sys::TIMESTAMPTZOID, Some(micros.into()))
    }

    pub fn uuid(uuid: &'a uuid::Uuid) -> Self {
        Arg::new(pg_sys::UUIDOID, Some(pg_sys::Datum::from(uuid.as_bytes().as_ptr())))
    }

    pub fn text(text: Varlena<'a>) -> Self {
        Arg::new(pg_sys::TEXTOID, Some(text.datum()))
    }

    /// A json, whose text is valid.
    pub fn json(json: Varlena<'a>) -> Self {
        Arg::new(pg_sys::JSONOID, Some(json.datum()))
    }

    pub fn opt_text(text: Option<Varlena<'a>>) -> Self {
        text.map_or(Arg::null(pg_sys::TEXTOID), Arg::text)
    }

    pub fn opt_json(json: Option<Varlena<'a>>) -> Self {
        json.map_or(Arg::null(pg_sys::JSONOID), Arg::json)
    }

    /// An array of row addresses.
    pub fn places(places: &[(u32, u16)]) -> Self {
        let mut tids: Vec<_> = places.iter().map(|place| heap::address(*place)).collect();
        let mut datums: Vec<pg_sys::Datum> = tids.iter_mut().map(|t| pg_sys::Datum::from(&raw mut *t)).collect();
        Arg::array(pg_sys::TIDARRAYOID, pg_sys::TIDOID, &mut datums, 6, b's')
    }

    /// An array of uuids.
    pub fn uuids<'u>(uuids: impl IntoIterator<Item = &'u uuid::Uuid>) -> Self {
        let mut datums: Vec<pg_sys::Datum> =
            uuids.into_iter().map(|u| pg_sys::Datum::from(u.as_bytes().as_ptr())).collect();
        Arg::array(pg_sys::UUIDARRAYOID, pg_sys::UUIDOID, &mut datums, 16, b'c')
    }

    fn array(oid: pg_sys::Oid, element: pg_sys::Oid, datums: &mut [pg_sys::Datum], length: i32, align: u8) -> Self {
        // SAFETY: the elements are fixed-length and by reference, and copied into the new array.
        let array = unsafe {
            pg_sys::construct_array(
                datums.as_mut_ptr(),
                datums.len() as i32,
                element,
                length,
                false,
                align as core::ffi::c_char,
            )
        };
        Arg::new(oid, Some(pg_sys::Datum::from(array)))
    }

    /// A text from UTF-8, converted to the server encoding; characters that it lacks become question marks.
    pub fn text_utf8(text: &str) -> Self {
        Arg::text_bytes(&text::from_utf8(text))
    }

    /// As [`Arg::text_utf8`], or NULL.
    pub fn opt_utf8(text: Option<&str>) -> Self {
        text.map_or(Arg::null(pg_sys::TEXTOID), Arg::text_utf8)
    }

    /// A json from UTF-8.
    pub fn json_utf8(text: &str) -> Self {
        Arg::json(text::datum(&text::from_utf8(text)))
    }

    /// A text of bytes in the server encoding.
    pub fn text_bytes(bytes: &[u8]) -> Self {
        Arg::text(text::datum(bytes))
    }
}

/// A `bigint[]` argument of a function, without a copy, so that a long one costs nothing here.
#[derive(Clone, Copy)]
pub struct Ids<'a>(pg_sys::Datum, PhantomData<&'a ()>);

impl<'a> Ids<'a> {
    pub fn new(array: pgrx::Array<'a, i64>) -> Self {
        Ids(pg_sys::Datum::from(array.into_array_type()), PhantomData)
    }
}

impl<'a> From<Ids<'a>> for Arg<'a> {
    fn from(ids: Ids<'a>) -> Self {
        Arg::new(pg_sys::INT8ARRAYOID, Some(ids.0))
    }
}
