//! What other people's code does with locks in our session: advisory locks that it leaves behind or releases, and the
//! room in the lock table that it uses up.
//!
//! A rollback does not undo this: an advisory lock of the session stays until it is released, and
//! `pg_advisory_unlock_all()` releases those of other code, too.

use super::guc::Nest;
use super::xact;
use once_cell::sync::OnceCell;
use pgrx::pg_sys;
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The most locks that this process was seen to hold when a subtransaction was rolled back.
static MOST: AtomicUsize = AtomicUsize::new(0);

/// When it is dropped, the session holds the advisory locks that it held before, and no others.
pub struct SessionLocks(Vec<Advisory>);

/// An advisory lock of the session, and how often it is held.
struct Advisory {
    tag: pg_sys::LOCKTAG,
    mode: pg_sys::LOCKMODE,
    times: usize,
}

impl SessionLocks {
    pub fn new() -> Self {
        static REGISTERED: OnceCell<()> = OnceCell::new();
        REGISTERED.get_or_init(|| {
            xact::on_rollback_of_subtransaction(|| {
                MOST.fetch_max(held(|_| {}), Relaxed);
            })
        });
        let mut advisory = Vec::new();
        held(|lock| {
            // SAFETY: a lock of this process, and its partition is locked.
            let (tag, modes) = unsafe { ((*(*lock).tag.myLock).tag, (*lock).holdMask) };
            if tag.locktag_lockmethodid == pg_sys::USER_LOCKMETHOD as u8 {
                advisory.extend((1..=8).filter(|mode| modes & (1 << mode) != 0).map(|mode| (tag, mode)));
            }
        });
        if advisory.is_empty() {
            return SessionLocks(Vec::new());
        }
        // PostgreSQL does not tell how often the session holds a lock. It warns when the lock is released once too
        // often.
        let quiet = Nest::new();
        quiet.set("client_min_messages", "error").set("log_min_messages", "fatal");
        SessionLocks(
            advisory
                .into_iter()
                .filter_map(|(tag, mode)| {
                    let mut lock = Advisory { tag, mode, times: 0 };
                    // The transaction holds the lock too, whatever happens to that of the session.
                    lock.acquire(false);
                    while lock.release(true) {
                        lock.times += 1;
                    }
                    (0..lock.times).for_each(|_| lock.acquire(true));
                    if lock.times == 0 {
                        lock.release(false);
                    }
                    (lock.times > 0).then_some(lock)
                })
                .collect(),
        )
    }

    /// Releases the locks that code has left behind, and acquires again those that it has released.
    pub fn restore(&self) {
        // SAFETY: touches only the lock tables, and is safe while unwinding.
        unsafe { pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as u16) }
        self.0.iter().for_each(|lock| (0..lock.times).for_each(|_| lock.acquire(true)));
    }
}

impl Drop for SessionLocks {
    /// Also while an error unwinds: no abort knows of the session's locks. Those of the transaction end with it then.
    fn drop(&mut self) {
        self.restore();
        if !std::thread::panicking() {
            self.0.iter().for_each(|lock| _ = lock.release(false));
        }
    }
}

impl Advisory {
    /// Acquires it once more. The process holds it already, so this only counts and does not wait.
    fn acquire(&self, for_session: bool) {
        // SAFETY: the tag of a lock that this process holds in this mode.
        unsafe { pg_sys::LockAcquire(&self.tag, self.mode, for_session, false) };
    }

    fn release(&self, of_session: bool) -> bool {
        // SAFETY: a well-formed tag; only touches the lock tables.
        unsafe { pg_sys::LockRelease(&self.tag, self.mode, of_session) }
    }
}

/// Forgets how many locks were held.
pub fn watch() {
    MOST.store(0, Relaxed);
}

/// Whether this process held many times `max_locks_per_transaction` when something was rolled back since [`watch`].
/// Then it has itself used up the room for locks.
pub fn has_held_very_many() -> bool {
    const TIMES: usize = 8;
    // SAFETY: plain global of lock.c, set when the server starts.
    let share = unsafe { pg_sys::max_locks_per_xact };
    MOST.load(Relaxed) > TIMES * usize::try_from(share).unwrap_or(usize::MAX / TIMES)
}

/// Calls `f` with each lock that this process has in the shared table of locks; returns how many there are. `f` must
/// not raise, nor take locks.
fn held(mut f: impl FnMut(*const pg_sys::PROCLOCK)) -> usize {
    let mut count = 0;
    for partition in 0..pg_sys::NUM_LOCK_PARTITIONS as usize {
        // SAFETY: a list in the PGPROC of this process. Its links are those of dlist_node also where it is the older
        // SHM_QUEUE. Only this process removes from it; another one may add a lock that we hold by the fast path, so
        // the list is read under the lock of its partition, unless it is empty.
        unsafe {
            let head = (&raw mut (*pg_sys::MyProc).myProcLocks[partition]).cast::<pg_sys::dlist_node>();
            let first = (&raw const (*head).next).read_volatile();
            if first.is_null() || first == head {
                continue;
            }
            let lock = pg_sys::MainLWLockArray
                .add(pg_sys::LOCK_MANAGER_LWLOCK_OFFSET as usize + partition)
                .cast::<pg_sys::LWLock>();
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
            let mut node = (*head).next;
            while node != head {
                f(node.byte_sub(offset_of!(pg_sys::PROCLOCK, procLink)).cast());
                count += 1;
                node = (*node).next;
            }
            pg_sys::LWLockRelease(lock);
        }
    }
    count
}
