//! Rows of results.

use crate::pg::datum::{self, Value};
use crate::pg::heap::Columns;
use crate::pg::relation::Borrowed;
use crate::pg::text;
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// One row of a result, taken apart; valid during the closure that receives it.
pub struct Row<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    desc: pg_sys::TupleDesc,
}

impl<'a> Row<'a> {
    pub(in crate::pg) fn new(values: &'a [pg_sys::Datum], nulls: &'a [bool], desc: pg_sys::TupleDesc) -> Self {
        Row { values, nulls, desc }
    }

    /// Column `n`, from 1; `None` for NULL. The column's type must be the one `T` reads.
    pub fn get<T: FromDatum + IntoDatum>(&self, n: usize) -> Option<T> {
        let (datum, null) = self.raw(n);
        // SAFETY: the datum belongs to this tuple and the statements in `store` name types that match `T`.
        unsafe { T::from_polymorphic_datum(datum, null, pg_sys::SPI_gettypeid(self.desc, n as i32)) }
    }

    /// Column `n` of a text type as UTF-8, empty for NULL.
    pub fn text(&self, n: usize) -> String {
        self.utf8(n).unwrap_or_default()
    }

    /// Column `n` as 64-bit integer, 0 for NULL.
    pub fn int(&self, n: usize) -> i64 {
        let (datum, null) = self.raw(n);
        if null { 0 } else { datum.value() as i64 }
    }

    /// The bytes of a text, json or bytea column, detoasted where necessary, without a copy where not.
    pub fn bytes(&self, n: usize) -> Option<&[u8]> {
        // A detoasted copy lives in the current memory context, as long as the row.
        (!self.nulls[n - 1]).then(|| datum::varlena(&self.values[n - 1]))
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
        let (datum, null) = self.raw(n);
        // SAFETY: the column is a text[] by contract, and its elements are read as the bytes that they are.
        let array = unsafe { pgrx::Array::<&[u8]>::from_polymorphic_datum(datum, null, pg_sys::TEXTARRAYOID) };
        let elements = array.iter().flat_map(|array| array.iter().flatten());
        elements.map(|bytes| text::to_utf8(bytes).into_owned()).collect()
    }

    /// Writes column `n`, a timestamptz, as ISO 8601 in UTC; nothing for NULL.
    pub fn iso_time(&self, n: usize, out: &mut Vec<u8>) {
        let (datum, null) = self.raw(n);
        if !null {
            datum::iso_datetime(Value(datum), pg_sys::TIMESTAMPTZOID, |text| out.extend_from_slice(text));
        }
    }

    /// Column `n`, a ctid: block and offset.
    pub fn place(&self, n: usize) -> (u32, u16) {
        let (datum, _) = self.raw(n);
        // SAFETY: a tid datum points to an ItemPointerData inside the row.
        let tid = unsafe { *datum.cast_mut_ptr::<pg_sys::ItemPointerData>() };
        ((u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo), tid.ip_posid)
    }

    /// Column `n`, a uuid.
    pub fn uuid(&self, n: usize) -> uuid::Uuid {
        let (datum, _) = self.raw(n);
        uuid::Uuid::from_bytes(*Value(datum).uuid())
    }

    /// Column `n`, an oid or an enum.
    pub fn oid(&self, n: usize) -> Option<pg_sys::Oid> {
        let (datum, null) = self.raw(n);
        (!null).then(|| Value(datum).oid())
    }

    /// Column `n`, a timestamptz, in microseconds since 2000-01-01 UTC.
    pub fn micros(&self, n: usize) -> Option<i64> {
        let (datum, null) = self.raw(n);
        (!null).then_some(datum.value() as i64)
    }

    /// Column `n`, an xid8.
    pub fn xid8(&self, n: usize) -> u64 {
        self.raw(n).0.value() as u64
    }

    /// Takes column `n` apart, which is a whole row of `relation`; `false` for NULL.
    pub fn whole_row(&self, n: usize, relation: &Borrowed<'_>, into: &mut Columns) -> bool {
        let (datum, null) = self.raw(n);
        if !null {
            // SAFETY: the statement selects the relation's rows; a table's row type changes only with a lock that
            // conflicts with the open relation's.
            unsafe { into.load_whole_row(datum, relation) }
        }
        !null
    }

    /// Column `n` as a datum, and whether it is NULL.
    pub fn raw(&self, n: usize) -> (pg_sys::Datum, bool) {
        (self.values[n - 1], self.nulls[n - 1])
    }
}
