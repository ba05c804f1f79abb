//! What differs between PostgreSQL's majors: the only module that asks which one it is compiled for.
//!
//! A condition names the old majors that do it the old way, and `not(..)` is how the newest does it. So a new major
//! takes the newest branch, and stops compiling, or linking, where it differs from the major before. What is written by
//! hand does neither: the prototypes in `externs.rs`, and the number of `USER_TIMEOUT`. Compare these with the headers.

use pgrx::pg_sys::{self, Oid};

#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
pub(super) use pgrx::pg_sys::pqsignal;
#[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
pub(super) use pgrx::pg_sys::pqsignal_be as pqsignal;

/// The member of `TimeoutId` (`utils/timeout.h`) that stands for the next timeout that is free. 17 has put
/// TRANSACTION_TIMEOUT before it.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub(super) const USER_TIMEOUT: core::ffi::c_int = 12;
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub(super) const USER_TIMEOUT: core::ffi::c_int = 13;

/// The location of a relation's file, as WAL records contain it. Since 16 it is called a locator.
#[cfg(feature = "pg15")]
pub(super) type FileLocator = pg_sys::RelFileNode;
#[cfg(not(feature = "pg15"))]
pub(super) type FileLocator = pg_sys::RelFileLocator;

/// Where the file of a relation is.
///
/// # Safety
/// An open relation. Raises nothing.
pub(super) unsafe fn file_locator(relation: pg_sys::Relation) -> FileLocator {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*relation).rd_node;
        #[cfg(not(feature = "pg15"))]
        return (*relation).rd_locator;
    }
}

/// The savepoint of this transaction that gave a relation its present file; 0 for none.
///
/// # Safety
/// An open relation. Raises nothing.
pub(super) unsafe fn new_file_in(relation: pg_sys::Relation) -> pg_sys::SubTransactionId {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*relation).rd_newRelfilenodeSubid;
        #[cfg(not(feature = "pg15"))]
        return (*relation).rd_newRelfilelocatorSubid;
    }
}

/// The savepoint of this transaction that was the first to give a relation another file, 0 for none.
///
/// # Safety
/// An open relation. Raises nothing.
pub(super) unsafe fn first_new_file_in(relation: pg_sys::Relation) -> pg_sys::SubTransactionId {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*relation).rd_firstRelfilenodeSubid;
        #[cfg(not(feature = "pg15"))]
        return (*relation).rd_firstRelfilelocatorSubid;
    }
}

/// The attribute at position `i` of a descriptor.
///
/// # Safety
/// The descriptor lives as long as the result is used, and has more than `i` attributes.
pub(super) unsafe fn attribute<'a>(descriptor: pg_sys::TupleDesc, i: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: by contract.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return &*(*descriptor).attrs.as_ptr().add(i);
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        // Like TupleDescAttr of `access/tupdesc.h`, which pgrx binds as a guarded call: the attributes come after the
        // compact ones. This is called for every column of every captured row.
        return &*(*descriptor)
            .compact_attrs
            .as_ptr()
            .add((*descriptor).natts as usize)
            .cast::<pg_sys::FormData_pg_attribute>()
            .add(i);
    }
}

/// Begins a scan of an index, which counts nothing for EXPLAIN and orders by no operator.
///
/// # Safety
/// Both relations are open and locked, the index is one of the table's, and the snapshot lives as long as the scan.
pub(super) unsafe fn index_beginscan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: usize,
) -> pg_sys::IndexScanDesc {
    // SAFETY: by contract.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return pg_sys::index_beginscan(table, index, snapshot, keys as i32, 0);
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        return pg_sys::index_beginscan(table, index, snapshot, core::ptr::null_mut(), keys as i32, 0);
    }
}

/// Frees what an index keeps between insertions. Before 17 it kept nothing.
///
/// # Safety
/// An open index, into which rows have been put with this description. Unguarded: an `ERROR` jumps over the caller.
pub(super) unsafe fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let _ = (index, info);
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    {
        unsafe extern "C-unwind" {
            /// `access/genam.h`
            fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo);
        }
        // SAFETY: by contract.
        unsafe { index_insert_cleanup(index, info) }
    }
}

/// The number of a wait event of ours. Before 17 all extensions share one.
pub(super) fn wait_event(name: &core::ffi::CStr) -> u32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        let _ = name;
        pg_sys::PG_WAIT_EXTENSION
    }
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: a backend or worker with shared memory. The name is copied; the same name has the same number in every
    // process.
    unsafe {
        pg_sys::WaitEventExtensionNew(name.as_ptr())
    }
}

/// Whether a user owns a database (superusers own all).
pub(super) fn is_database_owner(database: Oid, user: Oid) -> bool {
    // SAFETY: catalog look-up inside a transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_database_ownercheck(database, user);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, user);
    }
}
