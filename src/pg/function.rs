//! Functions, as the catalogs describe them.

use pgrx::pg_sys;
use std::ffi::CStr;

/// The oid of a function without arguments in a schema, if there is one.
pub fn lookup_trigger(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up by name, an empty vector of argument types, and schema.
    let oid = unsafe {
        let no_arguments = pg_sys::buildoidvector(core::ptr::null(), 0);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            name.as_ptr().into(),
            no_arguments.into(),
            schema.into(),
            pg_sys::Datum::from(0),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The schema a function is in.
pub fn schema(oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: syscache look-up.
    unsafe { pg_sys::get_func_namespace(oid) }
}
