//! Rows of results. Every column is read as the type that it has: XX000 is raised if a statement returns another one
//! than the reader expects.

use crate::pg::datum::{self, ColumnType, Value, wrong_type};
use crate::pg::heap::Columns;
use crate::pg::relation::Borrowed;
use crate::pg::{text, types};
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// The values of one row of a result; valid during the call of the closure that receives it.
pub struct Row<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    types: &'a [ColumnType],
}

/// The types of a descriptor's columns, which are those of every row of a result.
///
/// # Safety
/// The descriptor is alive.
pub(in crate::pg) unsafe fn types_of(descriptor: pg_sys::TupleDesc) -> Vec<ColumnType> {
    // SAFETY: by contract.
    unsafe { (0..(*descriptor).natts as usize).map(|i| ColumnType::of(descriptor, i)).collect() }
}

impl<'a> Row<'a> {
    /// # Safety
    /// Three slices of one length, and the values that are not NULL are of these types and live as long.
    pub(in crate::pg) unsafe fn new(values: &'a [pg_sys::Datum], nulls: &'a [bool], types: &'a [ColumnType]) -> Self {
        Row { values, nulls, types }
    }

    /// Column `n`, from 1; `None` for NULL.
    pub fn get<T: FromDatum + IntoDatum>(&self, n: usize) -> Option<T> {
        let type_oid = self.types[n - 1].oid;
        if !T::is_compatible_with(type_oid) {
            wrong_type(type_oid, std::any::type_name::<T>());
        }
        // SAFETY: a value of a type that `T` reads.
        unsafe { T::from_polymorphic_datum(self.values[n - 1], self.nulls[n - 1], type_oid) }
    }

    /// Column `n` of a text type as UTF-8, empty for NULL.
    pub fn text(&self, n: usize) -> String {
        self.utf8(n).unwrap_or_default()
    }

    /// Column `n` as 64-bit integer, 0 for NULL.
    pub fn int(&self, n: usize) -> i64 {
        self.by_value(n, pg_sys::INT8OID, "a bigint").map_or(0, |datum| datum.value() as i64)
    }

    /// The bytes of a text, json or bytea column, detoasted where necessary, without a copy where not.
    pub fn bytes(&self, n: usize) -> Option<&[u8]> {
        const TEXTS: [pg_sys::Oid; 5] =
            [pg_sys::TEXTOID, pg_sys::JSONOID, pg_sys::BYTEAOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID];
        let type_oid = self.types[n - 1].oid;
        if !TEXTS.contains(&type_oid) && !TEXTS.contains(&types::base_type(type_oid)) {
            wrong_type(type_oid, "a text");
        }
        // SAFETY: a varlena. A detoasted copy lives in the current memory context, as long as the row.
        (!self.nulls[n - 1]).then(|| unsafe { datum::varlena(&self.values[n - 1]) })
    }

    /// Column `n` of a text or json type as UTF-8, whatever the server encoding is.
    pub fn utf8(&self, n: usize) -> Option<String> {
        let bytes = self.bytes(n)?;
        let mut out = Vec::new();
        text::write_utf8(bytes, &mut out);
        Some(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The elements of column `n`, a text[], as UTF-8; none for NULL.
    pub fn texts(&self, n: usize) -> Vec<String> {
        self.must_be(n, pg_sys::TEXTARRAYOID, "a text[]");
        let (datum, null) = (self.values[n - 1], self.nulls[n - 1]);
        // SAFETY: a text[], whose elements are read as the bytes that they are.
        let array = unsafe { pgrx::Array::<&[u8]>::from_polymorphic_datum(datum, null, pg_sys::TEXTARRAYOID) };
        let elements = array.iter().flat_map(|array| array.iter().flatten());
        elements.map(|bytes| text::to_utf8(bytes).into_owned()).collect()
    }

    /// Writes column `n`, a timestamptz, as ISO 8601 in UTC; nothing for NULL.
    pub fn iso_time(&self, n: usize, out: &mut Vec<u8>) {
        self.must_be(n, pg_sys::TIMESTAMPTZOID, "a timestamptz");
        if !self.nulls[n - 1] {
            // SAFETY: a value of that type.
            let value = unsafe { Value::new(self.values[n - 1], self.types[n - 1]) };
            datum::iso_datetime(value, pg_sys::TIMESTAMPTZOID, |text| out.extend_from_slice(text));
        }
    }

    /// Column `n`, a ctid that is not NULL: block and offset.
    pub fn place(&self, n: usize) -> (u32, u16) {
        let datum = self.not_null(n, pg_sys::TIDOID, "a tid");
        // SAFETY: a tid datum points to an ItemPointerData inside the row.
        let tid = unsafe { *datum.cast_mut_ptr::<pg_sys::ItemPointerData>() };
        ((u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo), tid.ip_posid)
    }

    /// Column `n`, a uuid that is not NULL.
    pub fn uuid(&self, n: usize) -> uuid::Uuid {
        let datum = self.not_null(n, pg_sys::UUIDOID, "a uuid");
        // SAFETY: a uuid datum points to 16 bytes inside the row.
        uuid::Uuid::from_bytes(unsafe { *datum.cast_mut_ptr::<[u8; 16]>() })
    }

    /// Column `n`, an enum: the oid of its label.
    pub fn label(&self, n: usize) -> Option<pg_sys::Oid> {
        let of = self.types[n - 1];
        // Whether a type is an enum is in the catalogs; a look-up for every row would be too slow.
        if !of.by_value || of.length != 4 || !types::is_users_type(of.oid) {
            wrong_type(of.oid, "an enum");
        }
        (!self.nulls[n - 1]).then(|| pg_sys::Oid::from(self.values[n - 1].value() as u32))
    }

    /// Column `n`, a timestamptz, in microseconds since 2000-01-01 UTC.
    pub fn micros(&self, n: usize) -> Option<i64> {
        self.by_value(n, pg_sys::TIMESTAMPTZOID, "a timestamptz").map(|datum| datum.value() as i64)
    }

    /// Column `n`, an xid8.
    pub fn xid8(&self, n: usize) -> u64 {
        self.by_value(n, pg_sys::XID8OID, "an xid8").map_or(0, |datum| datum.value() as u64)
    }

    /// Reads the values of column `n`, which is a whole row of `relation`; `false` for NULL.
    pub fn whole_row(&self, n: usize, relation: &Borrowed<'_>, into: &mut Columns) -> bool {
        self.must_be(n, relation.row_type(), "a row of the table");
        if !self.nulls[n - 1] {
            // SAFETY: a value of the relation's row type, which changes only with a lock that conflicts with the open
            // relation's.
            unsafe { into.load_whole_row(self.values[n - 1], relation) }
        }
        !self.nulls[n - 1]
    }

    fn must_be(&self, n: usize, type_oid: pg_sys::Oid, what: &str) {
        let found = self.types[n - 1].oid;
        if found != type_oid {
            wrong_type(found, what);
        }
    }

    fn by_value(&self, n: usize, type_oid: pg_sys::Oid, what: &str) -> Option<pg_sys::Datum> {
        self.must_be(n, type_oid, what);
        (!self.nulls[n - 1]).then_some(self.values[n - 1])
    }

    fn not_null(&self, n: usize, type_oid: pg_sys::Oid, what: &str) -> pg_sys::Datum {
        self.by_value(n, type_oid, what).unwrap_or_else(|| pgrx::error!("column {n} is NULL, where {what} was wanted"))
    }
}
