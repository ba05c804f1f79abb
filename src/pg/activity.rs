//! What this process says of itself in `pg_stat_activity`.

use pgrx::pg_sys;
use std::ffi::CString;

/// Shows `text` as the running query.
pub fn report(text: &str) {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: the text is copied into shared memory, truncated to track_activity_query_size.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()) }
}

/// Shows the process as idle.
pub fn idle() {
    // SAFETY: as above; no text.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, core::ptr::null()) }
}
