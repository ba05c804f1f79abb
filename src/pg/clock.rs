//! The clock, in PostgreSQL's own unit of time.

use pgrx::pg_sys;

/// Now, as a `timestamptz` datum (the clock's time, not that of the transaction's start).
pub fn now() -> pg_sys::Datum {
    pg_sys::Datum::from(now_micros())
}

/// Now, in microseconds since 2000-01-01 UTC.
pub fn now_micros() -> i64 {
    // SAFETY: plain call.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
