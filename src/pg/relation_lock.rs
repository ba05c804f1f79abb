//! Locks on relations, as PostgreSQL's own statements take them.

use super::{externs, transaction_id};
use pgrx::pg_sys;

/// The mode in which a relation is locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Nobody alters it: the lock of SELECT.
    AccessShare,
    /// Nobody alters it, and we write to it: the lock of INSERT.
    RowExclusive,
    /// Nobody writes, and neither do we: the lock of CREATE INDEX.
    Share,
    /// Nobody writes: the lock of CREATE TRIGGER.
    ShareRowExclusive,
    /// Nobody reads either: the lock of DROP TRIGGER. Taken at once, because upgrading a weaker lock deadlocks with a
    /// transaction that has read and wants to write.
    AccessExclusive,
}

impl LockMode {
    pub(super) fn number(self) -> pg_sys::LOCKMODE {
        let mode = match self {
            LockMode::AccessShare => pg_sys::AccessShareLock,
            LockMode::RowExclusive => pg_sys::RowExclusiveLock,
            LockMode::Share => pg_sys::ShareLock,
            LockMode::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            LockMode::AccessExclusive => pg_sys::AccessExclusiveLock,
        };
        mode as pg_sys::LOCKMODE
    }
}

/// Locks a relation to the end of the transaction. The relation may have been dropped when this returns.
pub fn lock(oid: pg_sys::Oid, mode: LockMode) {
    // SAFETY: inside a transaction; any oid may be locked.
    unsafe { pg_sys::LockRelationOid(oid, mode.number()) }
}

/// Relations that a transaction has locked for writing until it ends. The rollback of a savepoint does not release
/// them.
pub struct WriteLocks {
    transaction: u64,
    relations: Vec<pg_sys::Oid>,
}

impl WriteLocks {
    /// Locks of no relation.
    pub const NONE: WriteLocks = WriteLocks { transaction: 0, relations: Vec::new() };

    pub fn take(relations: impl IntoIterator<Item = pg_sys::Oid>) -> Self {
        let relations: Vec<_> = relations.into_iter().collect();
        relations.iter().for_each(|oid| lock_for_good(*oid, LockMode::RowExclusive));
        WriteLocks { transaction: transaction_id::top(), relations }
    }

    /// The id of the transaction that has taken them.
    pub fn transaction(&self) -> u64 {
        self.transaction
    }

    /// Whether the current transaction has locked the relation.
    pub(super) fn hold(&self, relation: pg_sys::Oid) -> bool {
        // SAFETY: plain getter.
        let now = unsafe { externs::GetTopFullTransactionIdIfAny() }.value;
        self.transaction == now && self.relations.contains(&relation)
    }
}

fn lock_for_good(oid: pg_sys::Oid, mode: LockMode) {
    // SAFETY: as sequence.c does it; after an error the abort puts the resource owner back.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
        lock(oid, mode);
        pg_sys::CurrentResourceOwner = owner;
    }
}
