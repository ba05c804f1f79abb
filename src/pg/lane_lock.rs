//! Locks that keep the lane of a table's changes as it is while changes are written that are not visible yet.
//!
//! Whoever checks whether changes of a table wait in another lane does not see changes that are not committed. For
//! ordinary writers it is enough to wait for their locks on the table. A backfill or import holds no lock on the table
//! that conflicts with `sync_outbox_attach()` and nothing else. So these take a lock of the kind that `pg/lock.rs`
//! describes, in shared or exclusive mode, and keep it to the end of their transaction.

use super::xact::{self, Caught};
use pgrx::pg_sys;

/// What is locked. The lock tags differ by a number, which is 0 for the sender's lock.
#[derive(Clone, Copy)]
pub enum Lanes {
    /// The lane of one table.
    Of(pg_sys::Oid),
    /// The lanes of all tables, because an import contains changes of tables that it knows by name only.
    OfAll,
}

#[derive(Clone, Copy)]
pub enum LaneLockMode {
    Shared,
    Exclusive,
}

/// Locks to the end of the transaction. Waits at most `ms` milliseconds, after which it fails with 55P03.
pub fn acquire(outbox: pg_sys::Oid, lanes: Lanes, mode: LaneLockMode, ms: i32) -> Result<(), Caught> {
    let (object, number) = match lanes {
        Lanes::Of(table) => (table, 1),
        Lanes::OfAll => (pg_sys::InvalidOid, 2),
    };
    let mode = match mode {
        LaneLockMode::Shared => pg_sys::ShareLock,
        LaneLockMode::Exclusive => pg_sys::ExclusiveLock,
    };
    let tag = pg_sys::LOCKTAG {
        // SAFETY: set once at connection time.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: outbox.to_u32(),
        locktag_field3: object.to_u32(),
        locktag_field4: number,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    xact::subtransaction_in_time(ms, || {
        // SAFETY: a well-formed object tag, inside a transaction; an ERROR ends the subtransaction.
        unsafe { pg_sys::LockAcquire(&tag, mode as i32, false, false) };
    })
}
