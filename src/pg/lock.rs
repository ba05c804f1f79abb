//! The sender's lock: one sender per target.
//!
//! The tag is of the kind that DDL uses for objects, with the outbox table as class: no SQL function reaches it, unlike
//! advisory locks, which any role can take (`invariants` 15). Processes that wait are in PostgreSQL's own queue for the
//! lock, first come, first served. The holder checks between two requests whether somebody waits.

use super::xact;
use crate::error::{Error, SqlState};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use std::time::Duration;

/// How long a lock is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LockScope {
    /// Until the transaction ends: a rollback releases it together with the changes that it protected.
    Transaction,
    /// Until it is released, across the transactions of a drain or worker. Dropping the [`SenderLock`] releases it,
    /// also when an error unwinds.
    Session,
}

/// The held lock of one target.
pub struct SenderLock {
    tag: pg_sys::LOCKTAG,
    scope: LockScope,
}

impl SenderLock {
    /// Takes the lock, waiting in the queue at most `patience` for it, or as long as the session's `lock_timeout`
    /// allows, if that is less. Inside a transaction. Raises on cancel.
    pub fn acquire(outbox: pg_sys::Oid, target: i16, scope: LockScope, patience: Duration) -> Option<Self> {
        let lock = Self::try_acquire(outbox, target, scope);
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        if lock.is_some() || patience == 0 {
            return lock;
        }
        match xact::subtransaction_in_time(patience, || Self::lock(outbox, target, scope, false)) {
            Ok(lock) => lock,
            Err(caught) if caught.sqlstate == SqlState::ERRCODE_LOCK_NOT_AVAILABLE => None,
            Err(caught) => Error::from(caught).raise(),
        }
    }

    /// Takes the lock if it is free.
    pub fn try_acquire(outbox: pg_sys::Oid, target: i16, scope: LockScope) -> Option<Self> {
        Self::lock(outbox, target, scope, true)
    }

    fn lock(outbox: pg_sys::Oid, target: i16, scope: LockScope, only_if_free: bool) -> Option<Self> {
        let tag = tag(outbox, target);
        // SAFETY: a well-formed object tag, inside a transaction; an ERROR while waiting takes us out of the queue.
        let result = unsafe {
            pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, scope == LockScope::Session, only_if_free)
        };
        // Not `then_some`, because dropping a SenderLock releases the lock.
        (result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL).then(|| SenderLock { tag, scope })
    }

    /// Whether somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        // SAFETY: a lock that this process holds in this mode, or has lost with an aborted transaction, of which
        // LockHasWaiters says nothing worse than a WARNING.
        unsafe { pg_sys::LockHasWaiters(&self.tag, pg_sys::ExclusiveLock as i32, self.scope == LockScope::Session) }
    }

    /// Forgets a lock that was released with all other locks of the process.
    pub fn was_lost(self) {
        std::mem::forget(self);
    }
}

/// Releases every lock of the process, including session locks, as the abort of an open transaction does.
pub fn release_all() {
    // SAFETY: outside a transaction, where the process holds only locks that it has taken for its session.
    unsafe { pg_sys::LockReleaseAll(pg_sys::DEFAULT_LOCKMETHOD as u16, true) }
}

impl Drop for SenderLock {
    fn drop(&mut self) {
        if self.scope == LockScope::Session {
            // SAFETY: a session lock we hold; LockRelease only touches the lock tables and is safe while unwinding.
            unsafe { pg_sys::LockRelease(&self.tag, pg_sys::ExclusiveLock as i32, true) };
        }
    }
}

/// Who holds the lock of a target.
pub struct Holder {
    pub pid: i32,
    /// Since when its transaction has been open; `None` between two transactions, or if the caller may not see it.
    pub since: Option<TimestampWithTimeZone>,
}

/// The process that holds the lock of a target, if any.
pub fn holder(outbox: pg_sys::Oid, target: i16) -> Option<Holder> {
    super::spi::first(
        "SELECT l.pid, a.xact_start FROM pg_catalog.pg_locks l
           LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
          WHERE l.locktype OPERATOR(pg_catalog.=) 'object' AND l.classid OPERATOR(pg_catalog.=) $1
            AND l.objid OPERATOR(pg_catalog.=) $2 AND l.objsubid OPERATOR(pg_catalog.=) 0 AND l.granted
            AND l.database OPERATOR(pg_catalog.=) (SELECT oid FROM pg_catalog.pg_database
                WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())",
        &[outbox.into(), pg_sys::Oid::from(target as u32).into()],
        |row| row.get::<i32>(1).map(|pid| Holder { pid, since: row.get(2) }),
    )
    .flatten()
}

fn tag(outbox: pg_sys::Oid, target: i16) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        // SAFETY: set once at connection time.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: outbox.to_u32(),
        locktag_field3: target as u32,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}
