//! Memory contexts.

use pgrx::pg_sys;

/// A memory context for one round of a loop: emptied after each.
pub struct Scratch(pg_sys::MemoryContext);

impl Scratch {
    pub fn new() -> Self {
        // SAFETY: a child of the current context, which deletes it if an error gets in the way of Drop.
        Scratch(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"sync_outbox scratch".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `f` with everything PostgreSQL allocates in this context, then empties it. The result must not point there.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the context lives as long as self; after an error the handler sets its own context.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(self.0);
            let result = f();
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextReset(self.0);
            result
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made in `new`, and not the current context: `run` has switched back.
            unsafe { pg_sys::MemoryContextDelete(self.0) }
        }
    }
}
