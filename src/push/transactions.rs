//! Whose transactions a session's short database steps run in.

use crate::error::{Error, SqlState};
use crate::pg::lock::Scope;
use crate::pg::role::ActAs;
use crate::pg::xact;
use crate::store;

/// How long a settlement waits for somebody's lock before it lets go of its own locks and its snapshot, and begins again.
const LOCK_WAIT_MS: i32 = 1000;

/// Runs a step of a session as the extension's owner.
pub trait Transactions {
    /// How long the sender's lock has to live.
    const LOCK: Scope;
    /// Up to so many changes, a session counts exactly what is waiting when it begins.
    const COUNTED: i64;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> R;

    /// A step that must happen, whoever holds a lock and for however long: it is begun anew until it succeeds.
    fn settling(&mut self, mut f: impl FnMut()) {
        while !self.step(|| in_time(&mut f)) {}
    }
}

/// The caller's transaction: `sync_outbox_flush()`. It holds a snapshot while a request is out, which is why it has a time
/// budget.
pub struct Callers;

/// A transaction per step, committed by the procedure: `sync_outbox_drain()`. Between steps there is no snapshot.
pub struct Procedures;

/// A transaction per step: the background worker.
pub struct Own;

impl Transactions for Callers {
    const LOCK: Scope = Scope::Transaction;
    const COUNTED: i64 = 1_000_000;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> R {
        as_owner(f)
    }

    /// Only once: no lock is let go before the caller's transaction ends, and its time limits are the caller's.
    fn settling(&mut self, f: impl FnMut()) {
        self.step(f)
    }
}

impl Transactions for Procedures {
    const LOCK: Scope = Scope::Session;
    const COUNTED: i64 = 1_000_000;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let result = as_owner(f);
        xact::commit_procedure();
        result
    }
}

impl Transactions for Own {
    const LOCK: Scope = Scope::Session;
    /// Few: it begins a session whenever it is woken, and nobody waits for the figure.
    const COUNTED: i64 = 10_000;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> R {
        xact::transaction(|| as_owner(f))
    }
}

fn as_owner<R>(f: impl FnOnce() -> R) -> R {
    let _owner = ActAs::owner();
    let _plans = store::index_order();
    f()
}

/// Runs `f`; `false` if it had to wait for a lock for too long, or gave way in a deadlock, and nothing of it happened.
fn in_time(f: impl FnOnce()) -> bool {
    match xact::subtransaction_in_time(LOCK_WAIT_MS, f) {
        Ok(()) => true,
        Err(caught) => match caught.sqlstate {
            SqlState::ERRCODE_LOCK_NOT_AVAILABLE | SqlState::ERRCODE_T_R_DEADLOCK_DETECTED => false,
            _ => Error::from(caught).raise(),
        },
    }
}
