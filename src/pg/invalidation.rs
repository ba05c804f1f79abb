//! Notifications that the catalogs have changed.

use once_cell::sync::OnceCell;
use pgrx::pg_sys;

/// Registers `changed` to be called with the oid of every relation whose description has changed, and with 0 if any may
/// have changed (also when schemas are renamed or casts change). It must only set a flag, because it can run in the
/// middle of a look-up.
pub fn on_change(changed: fn(pg_sys::Oid)) {
    static CALLBACK: OnceCell<fn(pg_sys::Oid)> = OnceCell::new();
    if CALLBACK.set(changed).is_err() {
        return;
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn relation(_arg: pg_sys::Datum, oid: pg_sys::Oid) {
        if let Some(changed) = CALLBACK.get() {
            changed(oid)
        }
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn catalog(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
        if let Some(changed) = CALLBACK.get() {
            changed(pg_sys::InvalidOid)
        }
    }
    // SAFETY: registered once per backend; the functions live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation), pg_sys::Datum::from(0));
        for cache in [pg_sys::SysCacheIdentifier::NAMESPACEOID, pg_sys::SysCacheIdentifier::CASTSOURCETARGET] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(catalog), pg_sys::Datum::from(0));
        }
    }
}

/// Processes the invalidations of other transactions' commits, as acquiring a lock does.
pub fn accept_changes() {
    // SAFETY: inside a transaction; relations that are open stay so.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}
