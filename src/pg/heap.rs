//! Heap rows: taking them apart, and appending one with its index entry.

use super::datum::Value;
use super::externs;
use super::relation::Open;
use pgrx::pg_sys;
use std::marker::PhantomData;

/// A row that PostgreSQL handed to us.
#[derive(Clone, Copy)]
pub struct Tuple<'a>(pg_sys::HeapTuple, PhantomData<&'a ()>);

impl Tuple<'_> {
    pub(super) fn new(tuple: pg_sys::HeapTuple) -> Option<Self> {
        (!tuple.is_null()).then_some(Tuple(tuple, PhantomData))
    }

    /// Whether this version has been replaced or deleted by our own transaction already (`invariants` 2).
    pub fn superseded_by_us(&self) -> bool {
        // SAFETY: the header of a live tuple.
        unsafe {
            let header = &*(*self.0).t_data;
            let mask = u32::from(header.t_infomask);
            if mask & pg_sys::HEAP_XMAX_INVALID != 0 || mask & pg_sys::HEAP_XMAX_LOCK_ONLY != 0 {
                return false;
            }
            let xmax = if mask & pg_sys::HEAP_XMAX_IS_MULTI != 0 {
                pg_sys::HeapTupleGetUpdateXid((*self.0).t_data)
            } else {
                header.t_choice.t_heap.t_xmax
            };
            xmax != pg_sys::InvalidTransactionId && pg_sys::TransactionIdIsCurrentTransactionId(xmax)
        }
    }
}

/// Command ids of row versions, as their stored headers tell them: only for versions of a heap that an AFTER trigger was
/// handed, whose header is that of the moment in which the trigger was fired.
impl Tuple<'_> {
    /// The command that made this version, which our transaction has made. `None` if the header no longer says so: a version
    /// that COPY .. FREEZE made keeps no command id when it is replaced.
    pub fn made_by(&self) -> Option<u32> {
        match self.flags() {
            flags if flags & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN => None,
            // SAFETY: xmin is ours, as combo command ids are made for nobody else's.
            flags if flags & pg_sys::HEAP_COMBOCID != 0 => unsafe {
                Some(pg_sys::HeapTupleHeaderGetCmin((*self.0).t_data))
            },
            _ => Some(self.stored_command()),
        }
    }

    /// The command of our transaction that replaced or deleted this version.
    pub fn ended_by(&self) -> u32 {
        if self.flags() & pg_sys::HEAP_COMBOCID == 0 {
            return self.stored_command();
        }
        // SAFETY: xmax is ours.
        unsafe { pg_sys::HeapTupleHeaderGetCmax((*self.0).t_data) }
    }

    /// Whether our transaction has made this version, which it has replaced or deleted since, by `command` or a later one.
    pub fn made_since(&self, command: u32) -> bool {
        let flags = self.flags();
        // A version that was made and ended by one transaction has a combo command id, unless it was born frozen.
        if flags & pg_sys::HEAP_COMBOCID == 0 {
            // SAFETY: the header of a live tuple. Frozen ages ago with an id like ours: then it is taken for ours.
            return flags & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN
                && unsafe { pg_sys::TransactionIdIsCurrentTransactionId((*(*self.0).t_data).t_choice.t_heap.t_xmin) };
        }
        self.made_by().is_none_or(|made_by| made_by >= command)
    }

    /// Whether this version, which our transaction has ended, was replaced by another one, and not deleted.
    pub fn was_replaced(&self) -> bool {
        // SAFETY: the header of a live tuple, and the tuple's own address. A row that moved to another partition was deleted
        // and inserted.
        unsafe {
            let next = &(*(*self.0).t_data).t_ctid;
            let here = &(*self.0).t_self;
            next.ip_posid != pg_sys::MovedPartitionsOffsetNumber as u16
                && (next.ip_posid, next.ip_blkid.bi_hi, next.ip_blkid.bi_lo)
                    != (here.ip_posid, here.ip_blkid.bi_hi, here.ip_blkid.bi_lo)
        }
    }

    fn flags(&self) -> u32 {
        // SAFETY: the header of a live tuple.
        unsafe { (*(*self.0).t_data).t_infomask }.into()
    }

    fn stored_command(&self) -> u32 {
        // SAFETY: as above; of a heap, where this place of the header holds the command id.
        unsafe { (*(*self.0).t_data).t_choice.t_heap.t_field3.t_cid }
    }
}

/// The columns of one row, taken apart; reused from row to row.
#[derive(Default)]
pub struct Columns {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Columns {
    /// Takes `tuple` apart; its shape is that of `relation`.
    pub fn load(&mut self, tuple: Tuple<'_>, relation: &super::relation::Borrowed<'_>) {
        let n = relation.natts();
        self.values.resize(n, pg_sys::Datum::from(0));
        self.nulls.resize(n, true);
        // SAFETY: both arrays have the descriptor's number of attributes; the datums point into the tuple.
        unsafe {
            pg_sys::heap_deform_tuple(tuple.0, relation.descriptor(), self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
        }
    }

    /// Takes a whole row of `relation` apart that a query gave as one value (`SELECT t FROM t`).
    ///
    /// # Safety
    /// `row` is a non-NULL datum of the relation's row type.
    pub(super) unsafe fn load_whole_row(&mut self, row: pg_sys::Datum, relation: &super::relation::Borrowed<'_>) {
        // SAFETY: by contract a composite datum, which starts with a tuple header; the copy lives as long as the current
        // memory context, as long as the values are used.
        unsafe {
            let header: pg_sys::HeapTupleHeader = pg_sys::pg_detoast_datum(row.cast_mut_ptr()).cast();
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::varlena::varsize(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            if let Some(tuple) = Tuple::new(&mut tuple) {
                self.load(tuple, relation);
            }
        }
    }

    /// The value at index `i` (attribute number minus one); `None` for NULL.
    pub fn get(&self, i: usize) -> Option<Value> {
        (!self.nulls[i]).then(|| Value(self.values[i]))
    }
}

/// A column of a row to be appended.
pub type Field = Option<pg_sys::Datum>;

/// Appends a row to a table and its entry to the unique index over the columns with the attribute numbers `keys` (none of
/// them NULL). Both are locked; `fields` match the table's columns, which is a plain heap, and the index is a plain btree.
pub fn append<const N: usize, const K: usize>(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    fields: &[Field; N],
    keys: &[usize; K],
) {
    let nothing = pg_sys::Datum::from(0);
    let values = fields.map(|field| field.unwrap_or(nothing));
    let nulls = fields.map(|field| field.is_none());
    let key = keys.map(|column| values[column - 1]);
    // SAFETY: what has to match was verified by the caller, with the locks that keep it so.
    unsafe { externs::append(table, index, &externs::NewRow { values: &values, nulls: &nulls, key: &key }) }
}

/// Deletes the row version at `place` (block and offset; the block is one that the table has) if it is there and visible, nobody has replaced or deleted it, and
/// `is_it` knows it by its first three columns, which are not NULL and of fixed length. Returns whether it did.
pub fn delete(table: &Open, place: (u32, u16), is_it: impl FnOnce([Value; 3]) -> bool) -> bool {
    let mut tuple = pg_sys::HeapTupleData { t_self: address(place), ..Default::default() };
    let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
    // SAFETY: the table is open with ROW EXCLUSIVE and a snapshot is active; the buffer is pinned while the tuple is looked
    // at. The caller has verified the table's first columns, so that none of their datums points elsewhere.
    unsafe {
        if !pg_sys::heap_fetch(table.raw(), pg_sys::GetActiveSnapshot(), &mut tuple, &mut buffer, false) {
            return false;
        }
        let mut null = false;
        let columns = [1, 2, 3].map(|n| Value(pg_sys::heap_getattr(&mut tuple, n, table.descriptor(), &mut null)));
        let known = is_it(columns);
        pg_sys::ReleaseBuffer(buffer);
        known && {
            let mut failure = pg_sys::TM_FailureData::default();
            let result = pg_sys::heap_delete(
                table.raw(),
                &mut tuple.t_self,
                pg_sys::GetCurrentCommandId(true),
                core::ptr::null_mut(),
                true,
                &mut failure,
                false,
            );
            result == pg_sys::TM_Result::TM_Ok
        }
    }
}

/// A row's address as PostgreSQL has it.
pub(super) fn address((block, offset): (u32, u16)) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: block as u16 },
        ip_posid: offset,
    }
}

/// The top-level transaction id, assigned if there is none yet.
pub fn top_transaction_id() -> u64 {
    // SAFETY: inside a transaction that may write.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// The transaction id that will be given out next: above every one of this cluster that is visible to anybody.
pub fn next_transaction_id() -> u64 {
    // SAFETY: plain getter.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// Now, as a `timestamptz` datum (the clock's time, not that of the transaction's start).
pub fn now() -> pg_sys::Datum {
    pg_sys::Datum::from(now_micros())
}

/// Now, in microseconds since 2000-01-01 UTC.
pub fn now_micros() -> i64 {
    // SAFETY: plain call.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The top-level transaction id, 0 if none has been assigned: then this transaction has written nothing.
pub fn top_transaction_id_if_any() -> u64 {
    // SAFETY: plain getter.
    unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value
}
