//! Locks that keep the lane of a table's changes as it is, while changes of it are written that nobody sees yet.
//!
//! A change that is not committed is invisible to whoever asks whether changes of a table wait in another lane. An
//! ordinary writer's lock on its table tells; a backfill and an import have none that would stand in the way of
//! `sync_outbox_attach()` and of nobody else. So they take a lock of the kind that `pg/lock.rs` describes, in the
//! shared mode or the other, and keep it to the end of their transaction.

use super::xact::{self, Caught};
use pgrx::pg_sys;

/// What is locked. The number tells the tags apart, of which 0 is the sender's.
#[derive(Clone, Copy)]
pub enum Lanes {
    /// That of one table.
    Of(pg_sys::Oid),
    /// Those of all tables: an import brings changes of tables that it knows by name only.
    OfAll,
}

#[derive(Clone, Copy)]
pub enum LaneLockMode {
    Shared,
    Exclusive,
}

/// Locks to the end of the transaction, waiting at most `ms` milliseconds: 55P03 then.
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
