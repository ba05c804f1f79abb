//! Settings that apply to a block (nest levels of `guc.c`). Nothing that is set in between applies any longer.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// A nest level. When it is dropped, every setting and the current user are restored: not only what was set through it,
/// but also what code that ran in between has set, even with `set_config(.., false)`. PostgreSQL does the same around
/// code of a table's owner, for instance when it builds an index.
///
/// While an error unwinds, nothing is restored here: the abort of the transaction, or of the subtransaction that
/// catches the error, restores both, because it was opened before this level was.
pub struct Nest {
    level: i32,
    user: pg_sys::Oid,
    context: i32,
}

impl Nest {
    pub fn new() -> Self {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: inside a transaction; increments guc.c's nest level and reads two globals of miscinit.c.
        let level = unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::NewGUCNestLevel()
        };
        Nest { level, user, context }
    }

    /// Sets the default output settings in UTC, with which values are captured, and read by a hub. Real settings and
    /// not just C variables: a user's cast may change and restore them in between.
    pub fn neutral_output() -> Self {
        let nest = Nest::new();
        nest.set("DateStyle", "ISO")
            .set("IntervalStyle", "postgres")
            .set("TimeZone", "UTC")
            .set("extra_float_digits", "1")
            .set("bytea_output", "hex")
            .set("quote_all_identifiers", "off");
        nest
    }

    /// Makes names of objects be written with their schema, unless they are PostgreSQL's own.
    pub fn names_in_full() -> Self {
        let nest = Nest::new();
        nest.set("search_path", "pg_catalog, pg_temp");
        nest
    }

    /// Sets `name`; the value must be valid, otherwise PostgreSQL raises an `ERROR`.
    pub fn set(&self, name: &str, value: &str) -> &Self {
        set(name, value);
        self
    }
}

/// Sets `name` until the current nest level ends.
fn set(name: &str, value: &str) {
    let name = CString::new(name).unwrap_or_default();
    let value = CString::new(value).unwrap_or_default();
    // SAFETY: both strings are NUL-terminated and copied by guc.c; GUC_ACTION_SAVE ties the value to the nest level.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

impl Nest {
    /// As [`limit_lock_wait`], for this level.
    pub fn limit_lock_wait(&self, ms: i32) -> &Self {
        limit_lock_wait(ms);
        self
    }
}

/// Limits the wait for a lock to `ms` milliseconds, or to what the session allows if that is less, until the current
/// nest level ends.
pub fn limit_lock_wait(ms: i32) {
    // SAFETY: plain global of proc.c; 0 is no limit.
    let session = unsafe { pg_sys::LockTimeout };
    if session == 0 || session > ms {
        set("lock_timeout", &ms.to_string());
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the level was opened by us, and what was opened above it ends with it: guards nest like the
            // stack. As an abort, not as a commit, which would hand a SET made in between on to the level below. The
            // user comes last, because restoring the setting `role` or `session_authorization` also sets the current
            // user.
            unsafe {
                pg_sys::AtEOXact_GUC(false, self.level);
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
            }
        }
    }
}

/// Sets `name` for the rest of this process, with precedence over settings of the database or role. For background
/// workers.
pub fn pin(name: &str, value: &str) {
    let name = CString::new(name).unwrap_or_default();
    let value = CString::new(value).unwrap_or_default();
    // SAFETY: both strings are NUL-terminated and copied by guc.c.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        )
    }
}

/// Passes the bytes of a text setting to `f`, which must not change settings.
pub fn with_text<R>(setting: &'static pgrx::GucSetting<Option<CString>>, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    // SAFETY: on the main thread; guc.c keeps a C string there, or null, until the setting is set again.
    unsafe {
        let text = *setting.as_ptr();
        f((!text.is_null()).then(|| CStr::from_ptr(text).to_bytes()))
    }
}

/// Reads the configuration files again after SIGHUP.
pub fn reload() {
    // SAFETY: called between transactions from a worker's main loop, as postgres.c does.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) }
}

/// Refuses placeholders of our prefix from now on: a misspelt setting is an error and not ignored.
pub fn reserve_prefix() {
    // SAFETY: called from _PG_init, after all settings are defined.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"sync_outbox".as_ptr()) }
}
