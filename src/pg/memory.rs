//! Memory that PostgreSQL's functions leave behind, in loops over many rows.

use pgrx::pg_sys;

/// A memory context that is emptied after every run.
pub struct PerRow(pg_sys::MemoryContext);

impl PerRow {
    pub fn new() -> Self {
        // SAFETY: a child of the current context, which outlives the loop and takes the child along at an abort.
        PerRow(unsafe {
            pg_sys::AllocSetContextCreateExtended(
                pg_sys::CurrentMemoryContext,
                c"sync_outbox row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `f`, whose result must not point into PostgreSQL's memory, and frees what it left.
    pub fn run<R: 'static>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the context lives as long as self; an unwind leaves the old one to the abort.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.0);
            let result = f();
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.0);
            result
        }
    }
}

impl Drop for PerRow {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by us, and nothing of it is in use: `run` is over.
            unsafe { pg_sys::MemoryContextDelete(self.0) }
        }
    }
}
