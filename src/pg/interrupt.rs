//! Interrupts: cancel, termination, barriers.

/// Processes pending interrupts: raises an `ERROR` on cancel or termination.
pub fn check() {
    pgrx::check_for_interrupts!();
}
