//! Typed arguments of statements.

use crate::pg::{heap, text};
use pgrx::{IntoDatum, pg_sys};
use std::marker::PhantomData;

/// One argument: its type and value.
pub struct Arg {
    pub(super) oid: pg_sys::Oid,
    pub(super) datum: Option<pg_sys::Datum>,
}

impl<T: IntoDatum> From<T> for Arg {
    fn from(value: T) -> Self {
        Arg { oid: T::type_oid(), datum: value.into_datum() }
    }
}

impl Arg {
    /// NULL of the type that `T` stands for, or the value.
    pub fn opt<T: IntoDatum>(value: Option<T>) -> Self {
        Arg { oid: T::type_oid(), datum: value.and_then(IntoDatum::into_datum) }
    }

    pub fn datum(oid: pg_sys::Oid, datum: pg_sys::Datum) -> Self {
        Arg { oid, datum: Some(datum) }
    }

    pub fn null(oid: pg_sys::Oid) -> Self {
        Arg { oid, datum: None }
    }

    /// An array of row addresses.
    pub fn places(places: &[(u32, u16)]) -> Self {
        let mut tids: Vec<_> = places.iter().map(|place| heap::address(*place)).collect();
        let mut datums: Vec<pg_sys::Datum> = tids.iter_mut().map(|t| pg_sys::Datum::from(&raw mut *t)).collect();
        Arg::array(pg_sys::TIDARRAYOID, pg_sys::TIDOID, &mut datums, 6, b's')
    }

    /// An array of uuids.
    pub fn uuids<'a>(uuids: impl IntoIterator<Item = &'a uuid::Uuid>) -> Self {
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
        Arg::datum(oid, pg_sys::Datum::from(array))
    }

    /// A text of UTF-8, converted to the server encoding; what that cannot hold becomes a question mark.
    pub fn text_utf8(text: &str) -> Self {
        Arg::text_bytes(&text::from_utf8(text))
    }

    /// As [`Arg::text_utf8`], or NULL.
    pub fn opt_utf8(text: Option<&str>) -> Self {
        text.map_or(Arg::null(pg_sys::TEXTOID), Arg::text_utf8)
    }

    /// A json of UTF-8.
    pub fn json_utf8(text: &str) -> Self {
        Arg::datum(pg_sys::JSONOID, text::datum(&text::from_utf8(text)))
    }

    /// A text of bytes in the server encoding.
    pub fn text_bytes(bytes: &[u8]) -> Self {
        Arg::datum(pg_sys::TEXTOID, text::datum(bytes))
    }
}

/// A `bigint[]` argument of a function, as it was given: nothing of it is copied, so that a long one costs nothing here.
#[derive(Clone, Copy)]
pub struct Ids<'a>(pg_sys::Datum, PhantomData<&'a ()>);

impl<'a> Ids<'a> {
    pub fn new(array: pgrx::Array<'a, i64>) -> Self {
        Ids(pg_sys::Datum::from(array.into_array_type()), PhantomData)
    }
}

impl From<Ids<'_>> for Arg {
    fn from(ids: Ids<'_>) -> Self {
        Arg::datum(pg_sys::INT8ARRAYOID, ids.0)
    }
}
