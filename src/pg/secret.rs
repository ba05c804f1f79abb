//! Keeps the text of a statement that contains a secret out of the server's log.

use pgrx::pg_sys;

/// While it lives, and for the error that ends it, the log shows neither STATEMENT nor CONTEXT of an error.
///
/// An error is logged only when the unwind has reached the function's entry point. So an unwind leaves the callback in
/// place, and whoever catches the error restores PostgreSQL's stack of callbacks.
pub struct HiddenStatement(*mut pg_sys::ErrorContextCallback);

impl HiddenStatement {
    pub fn new() -> Self {
        // SAFETY: the callback has a stable address until it is taken off the stack again.
        unsafe {
            let callback = Box::into_raw(Box::new(pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(hide),
                arg: core::ptr::null_mut(),
            }));
            pg_sys::error_context_stack = callback;
            HiddenStatement(callback)
        }
    }
}

impl Drop for HiddenStatement {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: guards nest like the stack, so ours is on top; nothing refers to it afterwards.
            unsafe {
                pg_sys::error_context_stack = (*self.0).previous;
                drop(Box::from_raw(self.0));
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn hide(_arg: *mut core::ffi::c_void) {
    // SAFETY: called by errfinish while an error is being reported.
    unsafe {
        pg_sys::errhidestmt(true);
        pg_sys::errhidecontext(true);
    }
}
