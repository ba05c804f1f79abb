//! Waiting: on the process latch, and on a file descriptor that a helper thread writes to.

use super::compat;
use pgrx::pg_sys;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a process waits for, as `pg_stat_activity.wait_event` shows it since PostgreSQL 17.
#[derive(Clone, Copy)]
pub enum WaitEvent {
    /// There is nothing to do.
    Idle,
    /// The answer of a target.
    Http,
    /// The time at which something that failed is tried again.
    Retry,
    /// A lock that another transaction holds, which is tried again.
    Lock,
    /// The end of a worker.
    WorkerExit,
}

impl WaitEvent {
    const COUNT: usize = WaitEvent::WorkerExit as usize + 1;

    fn name(self) -> &'static CStr {
        match self {
            WaitEvent::Idle => c"SyncOutboxIdle",
            WaitEvent::Http => c"SyncOutboxHttp",
            WaitEvent::Retry => c"SyncOutboxRetry",
            WaitEvent::Lock => c"SyncOutboxLock",
            WaitEvent::WorkerExit => c"SyncOutboxWorkerExit",
        }
    }

    /// The number that the server has for it: asked for once per process.
    fn number(self) -> u32 {
        static NUMBERS: [AtomicU32; WaitEvent::COUNT] = [const { AtomicU32::new(0) }; WaitEvent::COUNT];
        let number = &NUMBERS[self as usize];
        if number.load(Ordering::Relaxed) == 0 {
            number.store(compat::wait_event(self.name()), Ordering::Relaxed);
        }
        number.load(Ordering::Relaxed)
    }
}

/// An eventfd: a thread signals it, the main thread waits for it together with its latch. A thread must not call
/// `SetLatch`, which belongs to the main thread.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: plain system call; the descriptor is owned by us from here on.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(Bell(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// Wakes the waiter; may be called on any thread.
    pub fn ring(&self) {
        let one: u64 = 1;
        // SAFETY: writes eight bytes from a live variable to our own descriptor.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Clears the signal, so that the next wait blocks.
    pub fn clear(&self) {
        let mut count: u64 = 0;
        // SAFETY: reads eight bytes into a live variable from our own non-blocking descriptor.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Sleeps until the latch is set, `bell` rings or `timeout` is over. Processes interrupts (raises on cancel or
/// termination). Exits the process if the postmaster has died.
pub fn wait(bell: Option<&Bell>, timeout: Duration, event: WaitEvent) {
    let event = event.number();
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if bell.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    // SAFETY: MyLatch is this process's latch; the descriptor lives as long as the borrow.
    unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            bell.map_or(pg_sys::PGINVALID_SOCKET, Bell::fd),
            i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).min(i32::MAX.into()),
            event,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    super::interrupt::check();
}

/// Runs `f` with every signal blocked: a thread made inside inherits the mask, so that PostgreSQL's handlers only ever
/// run on the main thread.
pub fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: both masks are live, and the old one is restored before returning.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}
