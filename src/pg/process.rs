//! Processes: the signals and exit of this one, and waking or terminating another.

use super::compat::pqsignal;
use super::externs;
use pgrx::pg_sys;

/// A running process of this server, which another one can wake or terminate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    pid: i32,
    /// Its index in the array of PGPROCs, which contains its latch.
    slot: i32,
}

impl Process {
    pub fn me() -> Self {
        // SAFETY: a process that runs our code has its PGPROC, which lies in the array.
        unsafe {
            let slot = pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs);
            Process { pid: pg_sys::MyProcPid, slot: slot as i32 }
        }
    }

    /// The index of its PGPROC.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// Sets its latch. If it has ended meanwhile, the process that has its slot now is woken for nothing.
    pub fn wake(self) {
        // SAFETY: the slot came from `me`; latches in the array of PGPROCs are there as long as the server.
        unsafe { pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.offset(self.slot as isize)).procLatch) }
    }

    /// Asks it to end, as `pg_terminate_backend` does. It must not have ended for long, so that its pid is not another
    /// process's.
    pub fn terminate(self) {
        // SAFETY: plain system call.
        unsafe { libc::kill(self.pid, libc::SIGTERM) };
    }
}

/// Handles the signals of a background worker: SIGTERM ends it even in a lock wait inside a statement, SIGHUP sets a
/// flag for [`reload_requested`].
pub fn handle_signals() {
    // SAFETY: first thing in a background worker, where signals are still blocked; the handlers are the server's own.
    unsafe {
        pqsignal(libc::SIGTERM, Some(externs::die));
        pqsignal(libc::SIGHUP, Some(externs::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Whether SIGHUP has come that was not handled yet.
pub fn reload_pending() -> bool {
    // SAFETY: a sig_atomic_t that the handler sets, together with the latch.
    unsafe { (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 }
}

/// Whether SIGHUP has come since the last call.
pub fn reload_requested() -> bool {
    let pending = reload_pending();
    // SAFETY: as above; what comes after this makes it pending again.
    unsafe { (&raw mut pg_sys::ConfigReloadPending).write_volatile(0) };
    pending
}

/// Runs `f` when this process ends, unless it crashes. Registered before the process connects to a database, it runs
/// after the process has disappeared from the others' snapshots and from `pg_stat_activity`.
pub fn at_exit(f: fn()) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn callback(_code: i32, arg: pg_sys::Datum) {
        // SAFETY: the argument was made from a function pointer of this type below.
        let f = unsafe { std::mem::transmute::<usize, fn()>(arg.value()) };
        f();
    }
    // SAFETY: the list of callbacks has room for what a process registers once.
    unsafe { pg_sys::on_shmem_exit(Some(callback), pg_sys::Datum::from(f as usize)) }
}

/// Runs `f(argument)` when it is dropped, or when the process ends before that: for cleaning up shared memory.
pub struct Cleanup {
    job: *mut Job,
}

struct Job {
    f: fn(pg_sys::Oid),
    argument: pg_sys::Oid,
}

impl Cleanup {
    pub fn new(f: fn(pg_sys::Oid), argument: pg_sys::Oid) -> Self {
        let job = Box::into_raw(Box::new(Job { f, argument }));
        // SAFETY: cancelled in Drop before the job is freed; cleanups nest like the stack, as cancelling demands.
        unsafe { pg_sys::before_shmem_exit(Some(run_cleanup), pg_sys::Datum::from(job as usize)) };
        Cleanup { job }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run_cleanup(_code: i32, arg: pg_sys::Datum) {
    // SAFETY: points to the job of a live Cleanup.
    let job = unsafe { &*arg.cast_mut_ptr::<Job>() };
    (job.f)(job.argument);
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // SAFETY: registered in `new`; afterwards nobody else knows the job.
        let job = unsafe {
            pg_sys::cancel_before_shmem_exit(Some(run_cleanup), pg_sys::Datum::from(self.job as usize));
            Box::from_raw(self.job)
        };
        (job.f)(job.argument);
    }
}
