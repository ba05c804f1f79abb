//! Background workers: registering ours, starting them, and connecting them to a database.
//!
//! Their main functions are found by name; `entry.rs` exports them.

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use std::time::Duration;

/// Whether `_PG_init` runs because of `shared_preload_libraries`, in a server that is not being upgraded: only then is
/// there shared memory and a launcher.
pub fn is_preloading() -> bool {
    // SAFETY: plain globals.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress && !pg_sys::IsBinaryUpgrade }
}

/// Makes the postmaster start the launcher at the end of recovery, so never on a standby, and again whenever it ends.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new("sync_outbox launcher")
        .set_type("sync_outbox launcher")
        .set_library("sync_outbox")
        .set_function("sync_outbox_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// A worker that this process has started.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

impl Handle {
    /// Starts the worker of a database; `None` if `max_worker_processes` are taken. This process's latch is set when
    /// the worker has started and when it has ended; the postmaster never restarts it.
    pub fn start(database: pg_sys::Oid) -> Option<Self> {
        // SAFETY: plain global.
        let notify = unsafe { pg_sys::MyProcPid };
        let builder = BackgroundWorkerBuilder::new("sync_outbox worker")
            .set_type("sync_outbox worker")
            .set_library("sync_outbox")
            .set_function("sync_outbox_worker_main")
            .set_argument(Some(database.into()))
            .set_notify_pid(notify)
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(None);
        let mut worker = pg_sys::BackgroundWorker::from(&builder);
        let mut handle = std::ptr::null_mut();
        // SAFETY: a complete description; the handle is allocated in the context of the launcher's whole life.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
            pg_sys::MemoryContextSwitchTo(outer);
            started.then(|| Handle(handle))
        }
    }

    /// Whether the worker has ended, or could not be started.
    pub fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: a handle of this process.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker, and nobody else has it.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// Connects this worker as the bootstrap superuser to a database, or with `None` to the shared catalogs only. Ends the
/// process if the database is gone.
pub fn connect(database: Option<pg_sys::Oid>) {
    // SAFETY: once per worker, outside a transaction, with signals unblocked. The callback is registered first, so it
    // runs after the one that aborts an open transaction.
    unsafe {
        pg_sys::before_shmem_exit(Some(release_session_locks), pg_sys::Datum::from(0));
        let database = database.unwrap_or(pg_sys::InvalidOid);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
        pg_sys::pgstat_report_appname((&raw const (*pg_sys::MyBgworkerEntry).bgw_name).cast());
    }
}

/// The abort of a transaction releases session locks too, but nothing releases them if a process ends while no
/// transaction is open: the lock would stay, and belong to whichever process gets the PGPROC next.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn release_session_locks(_code: i32, _arg: pg_sys::Datum) {
    super::lock::release_all() // no transaction is open any more
}
