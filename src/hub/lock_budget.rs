//! The time that one call may spend on waiting for locks of others.

use crate::pg::guc;
use crate::pg::timeout::LockWaits;
use crate::settings;

pub struct LockBudget {
    left_micros: i64,
    clock: LockWaits,
}

impl LockBudget {
    /// `None` is no limit.
    pub fn new() -> Option<Self> {
        let left_micros = settings::apply_lock_timeout()?.as_micros() as i64;
        let budget = LockBudget { left_micros, clock: LockWaits::new() };
        budget.set_limit();
        Some(budget)
    }

    /// How long this call has waited so far, in microseconds.
    pub fn waited(&self) -> i64 {
        self.clock.waited()
    }

    /// Subtracts the time that was spent waiting since [`waited`](Self::waited) returned `before`.
    pub fn spend_since(&mut self, before: i64) {
        let waited = self.waited() - before;
        if waited > 0 {
            self.left_micros -= waited;
            self.set_limit();
        }
    }

    /// The next wait may take as long as is left, or less if the session says so. Applies until the current nest level
    /// ends.
    fn set_limit(&self) {
        guc::limit_lock_wait((self.left_micros / 1000).max(1) as i32);
    }
}
