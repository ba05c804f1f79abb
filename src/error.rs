//! Errors that a user sees: SQLSTATE, message in PostgreSQL's style, and a hint that says what to type.

use once_cell::sync::OnceCell;
use pgrx::PgLogLevel;
pub use pgrx::PgSqlErrorCode as SqlState;
use pgrx::pg_sys::panic::ErrorReport;

/// Makes a text reportable at that level in the server's encoding.
static REPORTABLE: OnceCell<fn(String, PgLogLevel) -> String> = OnceCell::new();

/// Makes every text of an error pass through `reportable`. Called when the library is loaded.
pub fn report_through(reportable: fn(String, PgLogLevel) -> String) {
    let _ = REPORTABLE.set(reportable); // a library is loaded once in a process
}

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    pub sqlstate: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Error { sqlstate, message: message.into(), detail: None, hint: None }
    }

    /// A bad argument: 22023.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(SqlState::ERRCODE_INVALID_PARAMETER_VALUE, message)
    }

    /// The extension is not installed: 42704.
    pub fn not_installed() -> Self {
        Self::new(SqlState::ERRCODE_UNDEFINED_OBJECT, "extension \"sync_outbox\" is not installed in this database")
            .hint("CREATE EXTENSION sync_outbox;")
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes it to the server log as a `WARNING`, for background workers that go on.
    pub fn log(self) {
        self.report(PgLogLevel::WARNING);
    }

    /// Raises it as a PostgreSQL `ERROR`.
    pub fn raise(self) -> ! {
        self.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    fn report(self, level: PgLogLevel) {
        let reportable = |text: String| match REPORTABLE.get() {
            Some(reportable) => reportable(text, level),
            None => text,
        };
        let mut report = ErrorReport::new(self.sqlstate, reportable(self.message), "sync_outbox");
        if let Some(detail) = self.detail {
            report = report.set_detail(reportable(detail));
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(reportable(hint));
        }
        report.report(level);
    }
}

/// Returns the value, or raises the error.
pub fn or_raise<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| error.raise())
}
