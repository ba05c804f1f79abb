//! Memory contexts, and allocations in Rust's memory that may fail.

use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use std::collections::HashSet;
use std::hash::Hash;

/// Reserves room for `more` items, a number that depends on values. Raises 53200 if there is no memory, which would end
/// the server otherwise. On the main thread.
pub fn reserve<T>(items: &mut Vec<T>, more: usize) {
    if items.try_reserve(more).is_err() {
        Error::new(SqlState::ERRCODE_OUT_OF_MEMORY, "out of memory")
            .detail(format!("Failed on request of size {}.", more.saturating_mul(size_of::<T>())))
            .raise()
    }
}

/// Reserves room for one more member of a set whose size depends on the number of rows; as [`reserve`].
pub fn reserve_one<T: Eq + Hash>(set: &mut HashSet<T>) {
    if set.try_reserve(1).is_err() {
        Error::new(SqlState::ERRCODE_OUT_OF_MEMORY, "out of memory")
            .detail(format!("Failed to make room for more than {} keys.", set.len()))
            .raise()
    }
}

/// A copy of `bytes`; as [`reserve`].
pub fn copy(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::new();
    reserve(&mut copy, bytes.len());
    copy.extend_from_slice(bytes);
    copy
}

/// A memory context for one iteration of a loop, reset after each.
pub struct ScratchContext(pg_sys::MemoryContext);

impl ScratchContext {
    pub fn new() -> Self {
        // SAFETY: a child of the current context, which deletes it if an error gets in the way of Drop.
        ScratchContext(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"sync_outbox scratch".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `f` with this context as the current one, then resets it. The result must not point into it.
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

impl Drop for ScratchContext {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made in `new`, and not the current context: `run` has switched back.
            unsafe { pg_sys::MemoryContextDelete(self.0) }
        }
    }
}
