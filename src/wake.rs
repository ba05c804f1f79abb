//! Waking the worker when a transaction that gave it something to do commits.

/// Wakes the worker of this database once the current transaction has committed; does nothing if it rolls back.
pub fn at_commit() {}
