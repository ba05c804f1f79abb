//! What `pg_stat_activity` and the cumulative statistics say about this process.

use pgrx::pg_sys;
use std::ffi::CString;

/// Shows `text` as the running query.
pub fn report(text: &str) {
    show(pg_sys::BackendState::STATE_RUNNING, text);
}

/// Shows the process as idle, with `text` as the reason, and reports its statistics: a process that sleeps before it
/// has done so hides its writes from autovacuum. Called outside a transaction.
pub fn idle(text: &str) {
    show(pg_sys::BackendState::STATE_IDLE, text);
    // SAFETY: outside a transaction by contract.
    unsafe { pg_sys::pgstat_report_stat(true) };
}

fn show(state: pg_sys::BackendState::Type, text: &str) {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: the text is copied into shared memory, truncated to track_activity_query_size.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) }
}
