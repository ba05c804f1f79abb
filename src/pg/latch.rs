//! Waiting: on the process latch, and on a file descriptor that a helper thread writes to.

use pgrx::pg_sys;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

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
pub fn wait(bell: Option<&Bell>, timeout: Duration) {
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
            pg_sys::PG_WAIT_EXTENSION,
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
