//! Shared memory: a value that every process of the server sees, behind a lightweight lock.
//!
//! It exists only where the library was preloaded; nothing that runs without preloading may touch it. After a crash of
//! any process, the postmaster initializes it again.

use once_cell::sync::OnceCell;
use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;
use pgrx::{AssertPGRXSharedMemory, PgLwLock, PgSharedMemoryInitialization};
use std::ffi::CStr;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Types that may live in shared memory.
///
/// # Safety
/// The type holds no pointer and nothing that belongs to one process, and is `Sync`.
pub unsafe trait Shared: Sync + 'static {}

/// A value in shared memory. No `ERROR` can be raised while a guard of it lives, because interrupts are held off.
pub struct Locked<T> {
    lock: PgLwLock<AssertPGRXSharedMemory<T>>,
    initial: fn() -> T,
}

impl<T: Shared> Locked<T> {
    /// `name` is the name of the segment and of the lock's wait event.
    pub const fn new(name: &'static CStr, initial: fn() -> T) -> Self {
        // SAFETY: names must differ, and no more than one lock is ever requested, see `request`.
        Locked { lock: unsafe { PgLwLock::new(name) }, initial }
    }

    /// Makes the postmaster allocate and initialize it. Called from `_PG_init` while preloading.
    pub fn request(&'static self) {
        if SEGMENT.set(self).is_err() {
            return;
        }
        // SAFETY: single-threaded postmaster while preloading; the hooks found here are called by ours.
        unsafe {
            NEXT.request = pg_sys::shmem_request_hook;
            NEXT.startup = pg_sys::shmem_startup_hook;
            pg_sys::shmem_request_hook = Some(on_request);
            pg_sys::shmem_startup_hook = Some(on_startup);
        }
    }

    /// Read access, shared with other readers, who may change what is atomic.
    pub fn share(&self) -> impl Deref<Target = T> {
        Guard(self.lock.share())
    }

    /// Exclusive write access.
    pub fn exclusive(&self) -> impl DerefMut<Target = T> {
        Guard(self.lock.exclusive())
    }
}

/// The number of successive crashes of the server, each within a minute after the start before it; 0 after an ordinary
/// start.
///
/// Only the postmaster survives a crash. It initializes shared memory after each one, and processes that are forked
/// afterwards inherit its count.
pub fn crashes() -> u32 {
    STARTS.lock().map_or(0, |starts| starts.crashes)
}

/// How long the server has to run so that its next crash counts as the first one.
const HEALTHY: Duration = Duration::from_secs(60);

static STARTS: Mutex<Starts> = Mutex::new(Starts { last: None, crashes: 0 });

struct Starts {
    last: Option<Instant>,
    crashes: u32,
}

impl Starts {
    fn count(&mut self, now: Instant) {
        self.crashes = match self.last {
            None => 0,
            Some(last) if now.duration_since(last) > HEALTHY => 1,
            Some(_) => self.crashes.saturating_add(1),
        };
        self.last = Some(now);
    }
}

/// Hides the wrapper that pgrx wants around the value.
struct Guard<G>(G);

impl<T, G: Deref<Target = AssertPGRXSharedMemory<T>>> Deref for Guard<G> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, G: DerefMut<Target = AssertPGRXSharedMemory<T>>> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// What the hooks need from the only [`Locked`], whatever its type.
trait Segment: Sync {
    fn on_request(&'static self);
    fn on_startup(&'static self);
}

impl<T: Shared> Segment for Locked<T> {
    fn on_request(&'static self) {
        // SAFETY: called from shmem_request_hook.
        unsafe { self.lock.on_shmem_request() }
    }
    fn on_startup(&'static self) {
        // SAFETY: called from shmem_startup_hook; `Shared` says that the value may be there.
        unsafe { self.lock.on_shmem_startup(AssertPGRXSharedMemory::new((self.initial)())) }
    }
}

struct Hooks {
    request: pg_sys::shmem_request_hook_type,
    startup: pg_sys::shmem_startup_hook_type,
}

static SEGMENT: OnceCell<&'static dyn Segment> = OnceCell::new();
static mut NEXT: Hooks = Hooks { request: None, startup: None };

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_request() {
    // SAFETY: set before this hook was; the boundary turns an ERROR of a foreign hook into an unwind.
    unsafe {
        if let Some(next) = NEXT.request {
            pg_guard_ffi_boundary(|| next());
        }
    }
    if let Some(segment) = SEGMENT.get() {
        segment.on_request();
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: as above.
    unsafe {
        if let Some(next) = NEXT.startup {
            pg_guard_ffi_boundary(|| next());
        }
    }
    if let Some(segment) = SEGMENT.get() {
        segment.on_startup();
    }
    if let Ok(mut starts) = STARTS.lock() {
        starts.count(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_count_while_they_come_soon_after_another() {
        let mut starts = Starts { last: None, crashes: 0 };
        let mut now = Instant::now();
        for (seconds, crashes) in [(0, 0), (30, 1), (30, 2), (61, 1), (1, 2)] {
            now += Duration::from_secs(seconds);
            starts.count(now);
            assert_eq!(starts.crashes, crashes);
        }
    }
}
