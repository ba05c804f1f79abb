//! Transaction ids, in 64 bits: unlike those in row headers, they are never assigned twice.

use pgrx::pg_sys;

/// The top-level transaction id, assigned if there is none yet.
pub fn top() -> u64 {
    // SAFETY: inside a transaction that may write.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// The transaction id that will be assigned next; it is greater than every id of this server that is visible to
/// anybody.
pub fn next() -> u64 {
    // SAFETY: plain getter.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// The top-level transaction id, 0 if none has been assigned, because this transaction has written nothing.
pub fn top_if_any() -> u64 {
    // SAFETY: plain getter.
    unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value
}
