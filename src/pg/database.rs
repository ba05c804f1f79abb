//! Databases of this server, as the shared catalogs know them.

use pgrx::pg_sys;
use std::ffi::CStr;

/// `datconnlimit` of a database whose DROP was interrupted, so that nobody can connect any more (PostgreSQL 15.4 and
/// later).
const INVALID_DATABASE: i32 = -2;

/// The database that this process is connected to.
pub fn current() -> pg_sys::Oid {
    // SAFETY: plain global, set once at connection time.
    unsafe { pg_sys::MyDatabaseId }
}

/// The databases that a worker may connect to. Templates are not among them, so that they can be copied. Works without
/// a database, inside a transaction.
pub fn connectable() -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    // SAFETY: a sequential scan of a shared catalog, the only kind that works without a database; closed at the end, or
    // by the abort.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let (snapshot, keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot, 0, keys);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*(pg_sys::GETSTRUCT(tuple) as *const pg_sys::FormData_pg_database);
            if form.datallowconn && !form.datistemplate && form.datconnlimit != INVALID_DATABASE {
                found.push(form.oid);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// The database of that name, if there is one.
pub fn by_name(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-up inside a transaction; missing_ok.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Whether the current user owns it (superusers own all).
pub fn is_owned(oid: pg_sys::Oid) -> bool {
    super::compat::is_database_owner(oid, super::role::current_user())
}
