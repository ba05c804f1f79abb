//! The clock, in PostgreSQL's own unit of time.

use pgrx::pg_sys;

/// Now, in microseconds since 2000-01-01 UTC.
pub fn now_micros() -> i64 {
    // SAFETY: plain call.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
