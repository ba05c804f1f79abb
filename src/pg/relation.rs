//! Relations: guards of open ones, and what their descriptors contain.

use super::compat;
use super::relation_lock::LockMode;
use pgrx::pg_sys;
use std::ffi::CStr;
use std::marker::PhantomData;

/// One column of a relation.
#[derive(Clone, Debug)]
pub struct Column {
    /// Position among the values of a row: attribute number minus one.
    pub index: usize,
    pub name: Vec<u8>,
    pub type_oid: pg_sys::Oid,
    pub not_null: bool,
    pub has_default: bool,
    /// `varchar(10)` has one, `text` does not.
    pub has_modifier: bool,
}

/// A relation that somebody else keeps open.
pub struct Borrowed<'a>(pg_sys::Relation, PhantomData<&'a ()>);

impl Borrowed<'_> {
    /// # Safety
    /// `relation` is open, and stays so while the result lives.
    pub(super) unsafe fn new(relation: pg_sys::Relation) -> Self {
        Borrowed(relation, PhantomData)
    }

    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: an open relation.
        unsafe { (*self.0).rd_id }
    }

    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relowner }
    }

    /// The type of its rows.
    pub(super) fn row_type(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).reltype }
    }

    /// Whether this is its schema and name.
    pub fn is_named(&self, schema: &[u8], name: &[u8]) -> bool {
        // SAFETY: an open relation's pg_class row; its name is NUL-terminated.
        let (namespace, own) = unsafe {
            let class = &*(*self.0).rd_rel;
            (class.relnamespace, std::ffi::CStr::from_ptr(class.relname.data.as_ptr()).to_bytes())
        };
        own == name && schema_name(namespace) == schema
    }

    pub fn natts(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_att).natts as usize }
    }

    /// Whether its rows are heap tuples.
    pub fn is_heap(&self) -> bool {
        // SAFETY: as above; the routine is a constant of the server.
        unsafe { (*self.0).rd_tableam == pg_sys::GetHeapamTableAmRoutine() }
    }

    /// The number of its file; 0 for a partitioned table.
    pub fn file(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relfilenode }
    }

    /// Whether our own transaction has given it its present file.
    pub fn has_got_its_file_now(&self) -> bool {
        self.got_its_file_in() != 0
    }

    /// Whether a TRUNCATE in that savepoint keeps its file, because it was created or got the file in the same
    /// savepoint.
    pub fn is_emptied_where_it_is(&self, savepoint: pg_sys::SubTransactionId) -> bool {
        // SAFETY: as above.
        self.got_its_file_in() == savepoint || unsafe { (*self.0).rd_createSubid } == savepoint
    }

    /// The savepoint that has given it its present file, 0 for none.
    fn got_its_file_in(&self) -> pg_sys::SubTransactionId {
        // SAFETY: as above.
        unsafe { compat::new_file_in(self.0) }
    }

    pub(super) fn raw(&self) -> pg_sys::Relation {
        self.0
    }

    pub(super) fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: as above.
        unsafe { (*self.0).rd_att }
    }

    /// The columns that rows of this relation actually store: neither dropped nor virtual.
    pub fn columns(&self) -> Vec<Column> {
        (0..self.natts()).filter_map(|i| self.column(i)).collect()
    }

    pub(super) fn column(&self, i: usize) -> Option<Column> {
        // SAFETY: i is below natts.
        unsafe {
            let att = compat::attribute(self.descriptor(), i);
            (!att.attisdropped && att.attgenerated as u8 != b'v').then(|| Column {
                index: i,
                name: CStr::from_ptr(att.attname.data.as_ptr()).to_bytes().to_vec(),
                type_oid: att.atttypid,
                not_null: att.attnotnull,
                has_default: att.atthasdef,
                has_modifier: att.atttypmod != -1,
            })
        }
    }
}

/// A relation opened by us: closed when dropped, its lock kept to the end of the transaction (`invariants` 25).
pub struct Open {
    relation: pg_sys::Relation,
    is_index: bool,
}

impl Open {
    /// Opens a table for writing.
    pub fn table(oid: pg_sys::Oid) -> Self {
        // SAFETY: raises an ERROR if it is gone.
        Open { relation: unsafe { pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32) }, is_index: false }
    }

    /// Opens a table for reading.
    pub fn for_reading(oid: pg_sys::Oid) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::table_open(oid, pg_sys::AccessShareLock as i32) }, is_index: false }
    }

    /// Opens a table with a lock of that mode.
    pub(super) fn relation(oid: pg_sys::Oid, mode: LockMode) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::table_open(oid, mode.number()) }, is_index: false }
    }

    /// Opens a table that this transaction has locked. XX000 if it has not.
    pub fn locked(oid: pg_sys::Oid) -> Self {
        // SAFETY: as above; what is found without a lock is only asked for its locks.
        unsafe {
            let relation = pg_sys::table_open(oid, pg_sys::NoLock as i32);
            if !pg_sys::CheckRelationLockedByMe(relation, pg_sys::AccessShareLock as i32, true) {
                pgrx::error!("a table was to be opened that is not locked");
            }
            Open { relation, is_index: false }
        }
    }

    pub fn borrow(&self) -> Borrowed<'_> {
        // SAFETY: open as long as self.
        unsafe { Borrowed::new(self.relation) }
    }

    /// Opens an index.
    pub fn index(oid: pg_sys::Oid, mode: LockMode) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::index_open(oid, mode.number()) }, is_index: true }
    }

    pub(super) fn raw(&self) -> pg_sys::Relation {
        self.relation
    }

    pub(super) fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.relation).rd_att }
    }

    pub fn columns(&self) -> Vec<Column> {
        self.borrow().columns()
    }

    /// Whether a row can be added to this table or deleted without anything else to do: a heap without rules, triggers,
    /// row security or constraints to check.
    pub fn is_plain_heap(&self) -> bool {
        // SAFETY: fields of an open relation; trigdesc and constr may be null.
        unsafe {
            let form = &*(*self.relation).rd_rel;
            let constraints = (*self.descriptor()).constr;
            form.relkind as u8 == pg_sys::RELKIND_RELATION
                && form.relam == pg_sys::HEAP_TABLE_AM_OID
                && !form.relispartition
                && !form.relhasrules
                && !form.relrowsecurity
                && (*self.relation).trigdesc.is_null()
                && (constraints.is_null() || ((*constraints).num_check == 0 && !(*constraints).has_generated_stored))
        }
    }

    /// Whether it is a table that stores rows itself.
    pub fn is_table(&self) -> bool {
        // SAFETY: an open relation.
        unsafe { (*(*self.relation).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION }
    }

    /// Its length in blocks, now.
    pub fn blocks(&self) -> u32 {
        // SAFETY: an open relation with storage.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    /// The oids of its indexes.
    pub fn indexes(&self) -> Vec<pg_sys::Oid> {
        // SAFETY: RelationGetIndexList returns a fresh list of oids.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let oids = (0..pg_sys::list_length(list)).map(|i| pg_sys::list_nth_oid(list, i)).collect();
            pg_sys::list_free(list);
            oids
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the abort closes the relation
        }
        // SAFETY: opened in `table` or `index`; NoLock keeps the lock to the end of the transaction.
        unsafe {
            if self.is_index {
                pg_sys::index_close(self.relation, pg_sys::NoLock as i32)
            } else {
                pg_sys::table_close(self.relation, pg_sys::NoLock as i32)
            }
        }
    }
}

/// The oid of a relation in a schema, if there is one.
pub fn lookup(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up inside a transaction.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The name of a schema, in the server encoding.
pub fn schema_name(oid: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: returns a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_namespace_name(oid);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}
