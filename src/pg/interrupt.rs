//! Interrupts: cancel, termination, barriers.

/// Serves whatever is pending: raises an `ERROR` on cancel or termination.
pub fn check() {
    pgrx::check_for_interrupts!();
}
