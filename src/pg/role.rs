//! Who the code acts as: the extension's owner, with a search_path nobody else can put objects in.

use super::guc::Nest;
use pgrx::pg_sys;

/// While it lives, SQL runs as `user` with `search_path = pg_catalog, pg_temp`. An abort undoes both by itself.
pub struct ActAs {
    user: pg_sys::Oid,
    context: i32,
    _nest: Nest,
}

impl ActAs {
    /// As the owner of the extension: for our own statements on our own tables.
    pub fn owner() -> Self {
        Self::switch(extension_owner(), pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32)
    }

    /// As `user`, unable to leave that role or to plant anything that outlives the block: for statements that can run
    /// code of that user (`hard-facts` 1: casts, checks, expressions of indexes).
    pub fn restricted(user: pg_sys::Oid) -> Self {
        Self::switch(user, (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32)
    }

    fn switch(to: pg_sys::Oid, flags: i32) -> Self {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        let nest = Nest::new();
        nest.set("search_path", "pg_catalog, pg_temp");
        // SAFETY: plain getters and setters of miscinit.c; the previous pair is put back in Drop or by the abort.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(to, context | flags);
        }
        ActAs { user, context, _nest: nest }
    }
}

impl Drop for ActAs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: restores what `switch` read.
            unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
        }
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
