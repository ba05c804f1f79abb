//! Heap rows, and their values.

use super::datum::{ColumnType, Value};
use pgrx::pg_sys;
use std::marker::PhantomData;

/// A row that PostgreSQL passed to us, and its descriptor.
#[derive(Clone, Copy)]
pub struct Tuple<'a>(pg_sys::HeapTuple, pg_sys::TupleDesc, PhantomData<&'a ()>);

impl Tuple<'_> {
    /// # Safety
    /// Null, or a tuple of that descriptor; both live as long as the result.
    pub(super) unsafe fn new(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Option<Self> {
        (!tuple.is_null()).then_some(Tuple(tuple, descriptor, PhantomData))
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

/// Command ids of row versions, read from their headers. Only for row versions of a heap that were passed to an AFTER
/// trigger, whose headers are those of the moment at which the trigger was fired.
impl Tuple<'_> {
    /// The command that made this version, which our transaction has made. `None` if the header no longer says so: a
    /// version that COPY .. FREEZE made keeps no command id when it is replaced.
    pub fn made_by(&self) -> Option<u32> {
        match self.flags() {
            flags if flags & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN => None,
            // Only the transaction that has made a combo command id can resolve it.
            flags if flags & pg_sys::HEAP_COMBOCID != 0 => self.is_made_by_us().then(|| {
                // SAFETY: xmin is ours.
                unsafe { pg_sys::HeapTupleHeaderGetCmin((*self.0).t_data) }
            }),
            _ => Some(self.stored_command()),
        }
    }

    /// The command of our transaction that replaced or deleted this version.
    pub fn ended_by(&self) -> u32 {
        if self.flags() & pg_sys::HEAP_COMBOCID == 0 || !self.superseded_by_us() {
            return self.stored_command();
        }
        // SAFETY: xmax is ours.
        unsafe { pg_sys::HeapTupleHeaderGetCmax((*self.0).t_data) }
    }

    /// Whether our transaction has made this version, which it has replaced or deleted since, by `command` or a later
    /// one.
    pub fn made_since(&self, command: u32) -> bool {
        let flags = self.flags();
        // A version that one transaction has both made and ended has a combo command id, unless it was frozen from the
        // start.
        if flags & pg_sys::HEAP_COMBOCID == 0 {
            // A version that was frozen long ago, with an id that equals ours by now, is taken for ours.
            return flags & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN && self.is_made_by_us();
        }
        self.made_by().is_none_or(|made_by| made_by >= command)
    }

    /// Whether this version, which our transaction has ended, was replaced by another one, and not deleted.
    pub fn was_replaced(&self) -> bool {
        // SAFETY: the header of a live tuple, and the tuple's own address. A row that moved to another partition was
        // deleted and inserted.
        unsafe {
            let next = &(*(*self.0).t_data).t_ctid;
            let here = &(*self.0).t_self;
            next.ip_posid != pg_sys::MovedPartitionsOffsetNumber as u16
                && (next.ip_posid, next.ip_blkid.bi_hi, next.ip_blkid.bi_lo)
                    != (here.ip_posid, here.ip_blkid.bi_hi, here.ip_blkid.bi_lo)
        }
    }

    fn is_made_by_us(&self) -> bool {
        // SAFETY: the header of a live tuple.
        unsafe { pg_sys::TransactionIdIsCurrentTransactionId((*(*self.0).t_data).t_choice.t_heap.t_xmin) }
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

/// The values of one row; reused from row to row.
#[derive(Default)]
pub struct Columns {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    types: Vec<ColumnType>,
}

impl Columns {
    /// Reads the values of `tuple`.
    pub fn load(&mut self, Tuple(tuple, descriptor, _): Tuple<'_>) {
        // SAFETY: a tuple of that descriptor, whose number of attributes both arrays have; the datums point into the
        // tuple.
        unsafe {
            let n = (*descriptor).natts as usize;
            self.values.resize(n, pg_sys::Datum::from(0));
            self.nulls.resize(n, true);
            self.types.clear();
            self.types.extend((0..n).map(|i| ColumnType::of(descriptor, i)));
            pg_sys::heap_deform_tuple(tuple, descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
        }
    }

    /// Reads the values of a whole row of `relation` that a query returned as one value (`SELECT t FROM t`).
    ///
    /// # Safety
    /// `row` is a non-NULL datum of the relation's row type.
    pub(super) unsafe fn load_whole_row(&mut self, row: pg_sys::Datum, relation: &super::relation::Borrowed<'_>) {
        // SAFETY: by contract a composite datum, which starts with a tuple header; the copy lives as long as the
        // current memory context, as long as the values are used.
        unsafe {
            let header: pg_sys::HeapTupleHeader = pg_sys::pg_detoast_datum(row.cast_mut_ptr()).cast();
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::varlena::varsize(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            if let Some(tuple) = Tuple::new(&mut tuple, relation.descriptor()) {
                self.load(tuple);
            }
        }
    }

    /// The value at index `i` (attribute number minus one); `None` for NULL.
    pub fn get(&self, i: usize) -> Option<Value> {
        // SAFETY: of the row that was taken apart last, whose types were taken down with it.
        (!self.nulls[i]).then(|| unsafe { Value::new(self.values[i], self.types[i]) })
    }
}

/// A row's address as PostgreSQL stores it.
pub(super) fn address((block, offset): (u32, u16)) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: block as u16 },
        ip_posid: offset,
    }
}
