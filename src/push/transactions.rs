//! Whose transactions a session's short database steps run in.

use crate::pg::lock::Scope;
use crate::pg::role::ActAs;
use crate::pg::xact;
use crate::store;

/// Runs a step of a session as the extension's owner.
pub trait Transactions {
    /// How long the sender's lock has to live.
    const LOCK: Scope;
    /// Up to so many changes, a session counts exactly what is waiting when it begins.
    const COUNTED: i64;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> R;
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
