//! Transactions: what kind we are in, and short ones of our own.

use pgrx::pg_sys;

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

/// Makes everything this transaction did visible to its next statement.
pub fn command_counter_increment() {
    // SAFETY: inside a transaction, between statements.
    unsafe { pg_sys::CommandCounterIncrement() }
}

/// Runs `f` in a transaction of its own, with a snapshot: for background workers. An `ERROR` aborts the transaction and
/// goes on to the caller.
pub fn transaction<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: a background worker outside any transaction; an unwind leaves through the worker's main loop, which
    // aborts what is open.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = f();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_stat(false);
        result
    }
}

/// Commits the transaction of a procedure and starts the next, which holds no snapshot until it runs a statement.
/// The procedure was called outside a transaction block ([`is_nonatomic`]).
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
        let f = std::panic::AssertUnwindSafe(f);
        let result = pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
            let f = f;
            Ok((f.0)())
        }))
        .catch_others(|error| Err(Caught::from(error)))
        .catch_rust_panic(|error| Err(Caught::from(error)))
        .execute();
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

/// An error that a subtransaction caught.
pub struct Caught {
    pub sqlstate: pgrx::PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl From<Caught> for crate::error::Error {
    fn from(Caught { sqlstate, message, detail, hint }: Caught) -> Self {
        crate::error::Error { sqlstate, message, detail, hint }
    }
}

impl From<pgrx::pg_sys::panic::CaughtError> for Caught {
    fn from(error: pgrx::pg_sys::panic::CaughtError) -> Self {
        use pgrx::pg_sys::panic::CaughtError::*;
        match &error {
            PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. } => Caught {
                sqlstate: report.sql_error_code(),
                message: report.message().to_owned(),
                detail: report.detail().map(str::to_owned),
                hint: report.hint().map(str::to_owned),
            },
        }
    }
}
