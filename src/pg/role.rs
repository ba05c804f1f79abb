//! The user that code runs as: the extension's owner, with a search_path in which nobody else can create objects.

use super::confine::Held;
use super::guc::Nest;
use pgrx::pg_sys;

/// While it lives, SQL runs as another user with `search_path = pg_catalog, pg_temp`. The end of the nest level
/// restores both, together with everything that code has set in between; so does an abort.
#[expect(dead_code, reason = "held for their Drop")]
pub struct ActAs {
    nest: Nest,
    held: Option<Held>,
}

impl ActAs {
    /// As the owner of the extension: for our own statements on our own tables.
    pub fn owner() -> Self {
        ActAs { nest: switch(extension_owner(), pg_sys::SECURITY_LOCAL_USERID_CHANGE), held: None }
    }

    /// As `user`, without a way to leave that role or to leave anything behind that outlives the block: for statements
    /// that can run code of that user (`invariants` 1: casts, checks, expressions of indexes). Call
    /// [`super::confine::all_immediate`] before, as the caller, or hold a [`super::confine::ImmediateOnWrite`].
    pub fn restricted(user: pg_sys::Oid) -> Self {
        let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        ActAs { nest: switch(user, flags), held: Some(Held::new()) }
    }

    /// As `user`, otherwise as [`ActAs::confined`]: for a statement of ours, with names as the caller writes them, that
    /// can run that user's code while it is planned or read.
    pub fn confined_as(user: pg_sys::Oid) -> Self {
        let nest = Nest::new();
        enter(user, pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION);
        ActAs { nest, held: Some(Held::new()) }
    }

    /// As the current user, otherwise as [`ActAs::restricted`]: for other people's code that PostgreSQL runs as the
    /// current user, like the triggers of a table that we write to. `search_path` stays.
    pub fn confined() -> Self {
        let nest = Nest::new();
        enter(current_user(), pg_sys::SECURITY_RESTRICTED_OPERATION);
        ActAs { nest, held: Some(Held::new()) }
    }
}

fn switch(to: pg_sys::Oid, flags: u32) -> Nest {
    let nest = Nest::new();
    nest.set("search_path", "pg_catalog, pg_temp");
    enter(to, flags);
    nest
}

/// Becomes a user until the current nest level ends.
fn enter(to: pg_sys::Oid, flags: u32) {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: plain getter and setter of miscinit.c; the nest level knows the previous pair.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(to, context | flags as i32);
    }
}

/// The role that SQL runs as right now.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: plain getter.
    unsafe { pg_sys::GetUserId() }
}

pub fn is_superuser(user: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-up inside a transaction.
    unsafe { pg_sys::superuser_arg(user) }
}

/// Whether `user` has the rights of `role` (superusers have all).
pub fn has_role(user: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-up inside a transaction.
    unsafe { pg_sys::has_privs_of_role(user, role) }
}

/// The name of a role, or its number if it has just been dropped.
pub fn name(user: pg_sys::Oid) -> String {
    // SAFETY: noerr = true; the result is a palloc'd C string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(user, true);
        if name.is_null() { user.to_u32().to_string() } else { super::text::name(std::ffi::CStr::from_ptr(name)) }
    }
}

fn extension_owner() -> pg_sys::Oid {
    super::extension::installed().map(|e| e.owner).unwrap_or(pg_sys::InvalidOid)
}
