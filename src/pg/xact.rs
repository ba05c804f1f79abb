//! Transactions: what kind the current one is, and short ones of our own.

use super::externs;
use super::guc::Nest;
use crate::error::{Error, SqlState};
use once_cell::sync::OnceCell;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use std::cell::{Cell, RefCell};

pub fn is_read_only() -> bool {
    // SAFETY: plain global of xact.c.
    unsafe { pg_sys::XactReadOnly }
}

/// Whether the transaction keeps one snapshot (REPEATABLE READ and above).
pub fn uses_one_snapshot() -> bool {
    // SAFETY: plain global of xact.c.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

pub fn in_recovery() -> bool {
    // SAFETY: plain getter.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether a commit does not wait for the disk.
pub fn commits_asynchronously() -> bool {
    // SAFETY: plain global of xact.c.
    unsafe { pg_sys::synchronous_commit == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 }
}

/// Makes the commit of this transaction wait until it is on this server's disk, whatever `synchronous_commit` is by
/// then, and for standbys if that requires it. Nothing can undo this.
pub fn commit_durably() {
    // SAFETY: inside a transaction; sets a flag of xact.c that the next transaction clears.
    unsafe { pg_sys::ForceSyncCommit() }
}

/// Makes everything that this transaction did visible to its next statement.
pub fn command_counter_increment() {
    // SAFETY: inside a transaction, between statements.
    unsafe { pg_sys::CommandCounterIncrement() }
}

/// Runs `f` in a transaction of its own, with a snapshot: for background workers. An `ERROR` aborts the transaction and
/// is passed on to the caller.
pub fn transaction<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: a background worker outside any transaction; an unwind leaves through the worker's main loop, which
    // aborts what is open.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let result = with_snapshot(f);
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_stat(false);
        result
    }
}

/// Runs `f` with a new snapshot, as a statement has one.
pub fn with_snapshot<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction; after an error the abort pops the snapshot.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = f();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Runs `f`, outside or between transactions, and survives what it raises: whatever is open is aborted, as the main
/// loop of a backend does after an `ERROR`. For background workers.
pub fn survive<R>(f: impl FnOnce() -> R) -> Result<R, Error> {
    catching(f, recover)
}

thread_local! {
    /// How many calls of [`catching`] are running, one inside the other.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Whether an error that is raised now is caught by us, and not by PostgreSQL.
pub fn is_catching() -> bool {
    CATCHING.get() > 0
}

/// Runs `f`, and converts an error that it raises with `caught`.
fn catching<R, E>(f: impl FnOnce() -> R, caught: fn(CaughtError) -> E) -> Result<R, E> {
    struct CatchingGuard;
    impl Drop for CatchingGuard {
        fn drop(&mut self) {
            CATCHING.set(CATCHING.get() - 1);
        }
    }
    let f = std::panic::AssertUnwindSafe(f);
    pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
        let f = f;
        CATCHING.set(CATCHING.get() + 1);
        let _running = CatchingGuard;
        Ok((f.0)())
    }))
    .catch_others(|error| Err(caught(error)))
    .catch_rust_panic(|error| Err(caught(error)))
    .execute()
}

fn recover(error: CaughtError) -> Error {
    // SAFETY: the main loop of a background worker, with no frame below that expects its transaction to live; the order
    // is that of postgres.c. The error itself was taken over by pgrx.
    unsafe {
        externs::disable_all_timeouts(false);
        pg_sys::QueryCancelPending = 0;
        pg_sys::AbortOutOfAnyTransaction();
        pg_sys::LWLockReleaseAll();
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
    }
    Error::from(error)
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is about to commit, and nothing of it is visible to others yet. Followed by one of the others.
    PreCommit,
    /// Committed, and visible to others.
    Commit,
    Abort,
    Prepare,
}

/// Registers `f` to be called at the end of every transaction, at a commit before and after it. It must not raise an
/// `ERROR`: after a commit that would be a PANIC.
pub fn on_end(f: fn(End)) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn callback(event: pg_sys::XactEvent::Type, arg: *mut core::ffi::c_void) {
        // SAFETY: the argument was made from a function pointer of this type below.
        let f = unsafe { std::mem::transmute::<*mut core::ffi::c_void, fn(End)>(arg) };
        match event {
            pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => f(End::PreCommit),
            pg_sys::XactEvent::XACT_EVENT_COMMIT => f(End::Commit),
            pg_sys::XactEvent::XACT_EVENT_ABORT => f(End::Abort),
            pg_sys::XactEvent::XACT_EVENT_PREPARE => f(End::Prepare),
            _ => {}
        }
    }
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(callback), f as *mut core::ffi::c_void) }
}

/// Registers `f` to be called for every subtransaction that is rolled back, while it still holds its locks. It must not
/// raise.
pub fn on_rollback_of_subtransaction(f: fn()) {
    /// Not guarded: nothing in it raises, and it is called for every event of every subtransaction.
    unsafe extern "C-unwind" fn callback(
        event: pg_sys::SubXactEvent::Type,
        _me: pg_sys::SubTransactionId,
        _parent: pg_sys::SubTransactionId,
        arg: *mut core::ffi::c_void,
    ) {
        if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
            // SAFETY: the argument was made from a function pointer of this type below.
            let f = unsafe { std::mem::transmute::<*mut core::ffi::c_void, fn()>(arg) };
            f()
        }
    }
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe { pg_sys::RegisterSubXactCallback(Some(callback), f as *mut core::ffi::c_void) }
}

/// A function to be called, and the subtransaction in which it was registered.
type Waiting = (pg_sys::SubTransactionId, Box<dyn FnOnce()>);

thread_local! {
    static AT_COMMIT: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` once the current transaction has committed, and never if the transaction is rolled back or prepared, or the
/// current savepoint is rolled back. It must not raise an `ERROR`: after a commit that would be a PANIC.
pub fn at_commit(f: impl FnOnce() + 'static) {
    static REGISTERED: OnceCell<()> = OnceCell::new();
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn transaction(event: pg_sys::XactEvent::Type, _arg: *mut core::ffi::c_void) {
        match event {
            pg_sys::XactEvent::XACT_EVENT_COMMIT => AT_COMMIT.take().into_iter().for_each(|(_, f)| f()),
            pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => drop(AT_COMMIT.take()),
            _ => {}
        }
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn subtransaction(
        event: pg_sys::SubXactEvent::Type,
        me: pg_sys::SubTransactionId,
        parent: pg_sys::SubTransactionId,
        _arg: *mut core::ffi::c_void,
    ) {
        AT_COMMIT.with_borrow_mut(|waiting| match event {
            pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
                waiting.iter_mut().filter(|(of, _)| *of == me).for_each(|(of, _)| *of = parent)
            }
            pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => waiting.retain(|(of, _)| *of != me),
            _ => {}
        })
    }
    // SAFETY: the callbacks live as long as the library, which is never unloaded.
    REGISTERED.get_or_init(|| unsafe {
        pg_sys::RegisterXactCallback(Some(transaction), core::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction), core::ptr::null_mut());
    });
    // SAFETY: plain getter, inside a transaction.
    let current = unsafe { pg_sys::GetCurrentSubTransactionId() };
    AT_COMMIT.with_borrow_mut(|waiting| waiting.push((current, Box::new(f))));
}

/// Makes this transaction refuse PREPARE TRANSACTION: what it holds must not outlive the session (`invariants` 12).
pub fn forbid_prepare() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    static FORBIDDEN: AtomicBool = AtomicBool::new(false);
    static REGISTERED: OnceCell<()> = OnceCell::new();
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn callback(event: pg_sys::XactEvent::Type, _arg: *mut core::ffi::c_void) {
        match event {
            pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE if FORBIDDEN.load(Relaxed) => Error::new(
                SqlState::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that holds the sender's lock",
            )
            .hint("Call sync_outbox_flush() and sync_outbox_import() in transactions of their own.")
            .raise(),
            pg_sys::XactEvent::XACT_EVENT_COMMIT | pg_sys::XactEvent::XACT_EVENT_ABORT => {
                FORBIDDEN.store(false, Relaxed)
            }
            _ => {}
        }
    }
    FORBIDDEN.store(true, Relaxed);
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    REGISTERED.get_or_init(|| unsafe { pg_sys::RegisterXactCallback(Some(callback), core::ptr::null_mut()) });
}

/// Commits the transaction of a procedure and starts the next, which holds no snapshot until it runs a statement.
/// The procedure was called outside a transaction block.
pub fn commit_procedure() {
    // SAFETY: a non-atomic SPI connection is opened for the call, as SPI_commit demands.
    unsafe {
        pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
        pg_sys::SPI_commit();
        pg_sys::SPI_finish();
    }
}

/// Runs `f` in a subtransaction. `Err` holds the error's message and SQLSTATE, and everything `f` did is undone.
pub fn subtransaction<R>(f: impl FnOnce() -> R) -> Result<R, Caught> {
    // SAFETY: the pattern of PL/pgSQL's exception blocks: memory context and resource owner are put back on both paths.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(core::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = catching(f, Caught::from);
        pg_sys::MemoryContextSwitchTo(context);
        if result.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// As [`subtransaction`], but waits for each lock at most `ms` milliseconds, or as long as the session allows if that
/// is less.
pub fn subtransaction_in_time<R>(ms: i32, f: impl FnOnce() -> R) -> Result<R, Caught> {
    subtransaction(|| {
        let limits = Nest::new();
        limits.limit_lock_wait(ms);
        f()
    })
}

/// An error that a subtransaction caught.
pub struct Caught {
    pub sqlstate: pgrx::PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Whether a RAISE of PL/pgSQL raised it. Then somebody has chosen the SQLSTATE, which says nothing about the
    /// server.
    pub raised_by_code: bool,
}

impl From<Caught> for crate::error::Error {
    fn from(Caught { sqlstate, message, detail, hint, .. }: Caught) -> Self {
        crate::error::Error { sqlstate, message, detail, hint }
    }
}

impl From<CaughtError> for Caught {
    fn from(error: CaughtError) -> Self {
        use CaughtError::*;
        match &error {
            PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. } => Caught {
                sqlstate: report.sql_error_code(),
                message: report.message().to_owned(),
                detail: report.detail().map(str::to_owned),
                hint: report.hint().map(str::to_owned),
                // The file of exec_stmt_raise(); an error that is caught and raised again keeps its file.
                raised_by_code: report.file().ends_with("pl_exec.c"),
            },
        }
    }
}

impl From<CaughtError> for Error {
    fn from(error: CaughtError) -> Self {
        use CaughtError::*;
        let (PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. }) = &error;
        let mut caught = Error::new(report.sql_error_code(), report.message());
        caught.detail = report.detail().map(str::to_owned);
        caught.hint = report.hint().map(str::to_owned);
        caught
    }
}
