//! Whose transactions a session's short database steps run in.

use crate::error::{Error, SqlState};
use crate::pg::lock::LockScope;
use crate::pg::role::ActAs;
use crate::pg::xact;
use crate::store;

/// How long a step waits for somebody's lock before it releases its own locks and its snapshot, to be tried again.
const LOCK_WAIT_MS: i32 = 50;

/// Why a step was rolled back. None of it has happened.
#[derive(Debug)]
pub enum StepError {
    /// Somebody's lock was in its way for too long.
    Locked,
    Failed(Error),
}

/// Runs a step of a session as the extension's owner.
pub trait Transactions {
    /// How long the sender's lock is held at most.
    const LOCK: LockScope;
    /// The session ends when everything that was committed at its beginning has been dealt with.
    const BOUNDED: bool;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, StepError>;

    /// Runs `f`, which may wait for a lock without a limit. An `ERROR` is passed on to the caller.
    fn patiently<R>(&mut self, f: impl FnOnce() -> R) -> R;
}

/// The caller's transaction: `sync_outbox_flush()`. It holds a snapshot while a request is out, which is why it has a
/// time budget. The limits of its time are the caller's.
pub struct Callers;

/// A transaction per step, committed by the procedure: `sync_outbox_drain()`. Between steps there is no snapshot.
pub struct Procedures;

/// A transaction per step: the background worker. An `ERROR` rolls back the step alone.
pub struct Own;

impl Transactions for Callers {
    const LOCK: LockScope = LockScope::Transaction;
    const BOUNDED: bool = true;

    /// No lock is released before the caller's transaction ends, so trying again would change nothing.
    fn step<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, StepError> {
        as_owner(|| xact::subtransaction(f)).map_err(|caught| StepError::Failed(caught.into()))
    }

    fn patiently<R>(&mut self, f: impl FnOnce() -> R) -> R {
        as_owner(f)
    }
}

impl Transactions for Procedures {
    const LOCK: LockScope = LockScope::Session;
    const BOUNDED: bool = true;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, StepError> {
        let result = as_owner(|| in_time(f));
        xact::commit_procedure();
        result
    }

    fn patiently<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let result = as_owner(f);
        xact::commit_procedure();
        result
    }
}

impl Transactions for Own {
    const LOCK: LockScope = LockScope::Session;
    const BOUNDED: bool = false;

    fn step<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, StepError> {
        xact::transaction(|| as_owner(|| in_time(f)))
    }

    fn patiently<R>(&mut self, f: impl FnOnce() -> R) -> R {
        xact::transaction(|| as_owner(f))
    }
}

fn as_owner<R>(f: impl FnOnce() -> R) -> R {
    let _owner = ActAs::owner();
    let _plans = store::index_order();
    f()
}

/// Runs `f` in a subtransaction, so that session locks, of other targets too, survive its failure.
fn in_time<R>(f: impl FnOnce() -> R) -> Result<R, StepError> {
    xact::subtransaction_in_time(LOCK_WAIT_MS, f).map_err(|caught| match caught.sqlstate {
        SqlState::ERRCODE_LOCK_NOT_AVAILABLE | SqlState::ERRCODE_T_R_DEADLOCK_DETECTED => StepError::Locked,
        _ => StepError::Failed(caught.into()),
    })
}
