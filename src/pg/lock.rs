//! The sender's lock: one sender per target.
//!
//! The tag is of the kind that DDL uses for objects, with the outbox table as class: no SQL function reaches it, unlike
//! advisory locks, which any role can take (`hard-facts` 15).

use super::latch;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// How often a busy lock is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a lock lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Until the transaction ends: a rollback gives it back together with the changes it protected.
    Transaction,
    /// Until it is released: over the transactions of a drain or a worker. Released by [`SenderLock`]'s drop, also
    /// when an error unwinds.
    Session,
}

/// The held lock of one target.
pub struct SenderLock {
    tag: pg_sys::LOCKTAG,
    scope: Scope,
}

impl SenderLock {
    /// Takes the lock, waiting at most `patience` for it.
    pub fn acquire(outbox: pg_sys::Oid, target: i16, scope: Scope, patience: Duration) -> Option<Self> {
        let until = Instant::now() + patience;
        loop {
            let lock = Self::try_acquire(outbox, target, scope);
            if lock.is_some() || Instant::now() >= until {
                return lock;
            }
            latch::wait(None, POLL);
        }
    }

    /// Takes the lock if it is free.
    pub fn try_acquire(outbox: pg_sys::Oid, target: i16, scope: Scope) -> Option<Self> {
        let tag = tag(outbox, target);
        // SAFETY: a well-formed object tag; dontWait, so this never sleeps.
        let result = unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, scope == Scope::Session, true) };
        // Lazily: a SenderLock that is dropped releases.
        (result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL).then(|| SenderLock { tag, scope })
    }
}

impl Drop for SenderLock {
    fn drop(&mut self) {
        if self.scope == Scope::Session {
            // SAFETY: a session lock we hold; LockRelease only touches the lock tables and is safe while unwinding.
            unsafe { pg_sys::LockRelease(&self.tag, pg_sys::ExclusiveLock as i32, true) };
        }
    }
}

/// The pid of the process that holds the lock of a target, if any.
pub fn holder(outbox: pg_sys::Oid, target: i16) -> Option<i32> {
    super::spi::first(
        "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'object' AND classid = $1 AND objid = $2 AND objsubid = 0
            AND granted AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        &[outbox.into(), pg_sys::Oid::from(target as u32).into()],
        |row| row.get::<i32>(1),
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
