//! What other people's code must not do, beyond what PostgreSQL's security-restricted operation already refuses:
//!
//! - Defer a trigger to the end of the transaction. Up to PostgreSQL 17 a deferred trigger fires at COMMIT as the user
//!   who commits, outside every guard: the owner of a table that somebody else writes could run code as that user.
//! - Create types and similar objects. In the session's temporary schema they would be found before those of
//!   `pg_catalog`, also by later statements of the session.

use super::{externs, spi};
use crate::error::{Error, SqlState};
use once_cell::sync::OnceCell;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many guards are active, one inside the other.
static HELD: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static DEFERRED: Cell<Option<Deferred>> = const { Cell::new(None) };
}

static mut NEXT: pg_sys::ProcessUtility_hook_type = None;

/// Fires what has been deferred so far as the current user, and defers nothing until the transaction ends, like `SET
/// CONSTRAINTS ALL IMMEDIATE`.
pub fn all_immediate() {
    if DEFERRED.get() == Some(Deferred::Something) {
        Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "code of the table's owner writes during a backfill while deferred triggers wait in this transaction",
        )
        .detail("They would fire as that owner.")
        .hint("SET CONSTRAINTS ALL IMMEDIATE; before the backfill, or call it in a transaction of its own.")
        .raise()
    }
    let mut all = pg_sys::ConstraintsSetStmt {
        type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
        constraints: core::ptr::null_mut(),
        deferred: false,
    };
    // SAFETY: inside a transaction; an empty list stands for ALL, and the statement is only read.
    unsafe { pg_sys::AfterTriggerSetState(&mut all) };
}

/// What had been deferred when other people's code began to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deferred {
    Nothing,
    Something,
}

/// As long as it lives, constraints become IMMEDIATE as soon as something is written, and not before, so that a
/// transaction that only reads keeps what it has deferred. Only what that code has caused itself is fired: if something
/// had been deferred before, writing is refused.
pub struct ImmediateOnWrite(Option<Deferred>);

impl ImmediateOnWrite {
    /// Looks as the current user at what has been deferred so far.
    pub fn new() -> Self {
        let mut deferred = Deferred::Nothing;
        spi::once("SELECT DISTINCT tgrelid FROM pg_catalog.pg_trigger WHERE tgdeferrable", &[], |row| {
            // SAFETY: only walks the list of events.
            if row.get(1).is_some_and(|table| unsafe { pg_sys::AfterTriggerPendingOnRel(table) }) {
                deferred = Deferred::Something;
            }
        });
        ImmediateOnWrite(DEFERRED.replace(Some(deferred)))
    }
}

impl Drop for ImmediateOnWrite {
    /// Also while an error unwinds.
    fn drop(&mut self) {
        DEFERRED.set(self.0);
    }
}

/// Runs `f`, whose writes are our own and leave constraints as they are.
pub fn our_own<R>(f: impl FnOnce() -> R) -> R {
    let _before = ImmediateOnWrite(DEFERRED.take());
    f()
}

/// Called before every query that writes; an `ERROR` jumps over the caller.
pub(super) fn before_write() {
    if DEFERRED.get().is_some() {
        // SAFETY: guarded, and called as a C function is.
        unsafe { immediate() }
    }
}

/// Turns a Rust unwind into an `ERROR` before it reaches the unguarded caller.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn immediate() {
    all_immediate();
}

/// As long as it lives, the statements of [`refused`] raise 42501.
pub struct Held(());

impl Held {
    pub fn new() -> Self {
        static HOOKED: OnceCell<()> = OnceCell::new();
        HOOKED.get_or_init(|| {
            // SAFETY: on the main thread; the hook found here is called by ours.
            unsafe {
                NEXT = pg_sys::ProcessUtility_hook;
                pg_sys::ProcessUtility_hook = Some(process_utility);
            }
        });
        HELD.fetch_add(1, Relaxed);
        Held(())
    }
}

impl Drop for Held {
    /// Also while an error unwinds: no abort knows of it.
    fn drop(&mut self) {
        HELD.fetch_sub(1, Relaxed);
    }
}

fn refused(tag: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag::*;
    matches!(
        tag,
        T_ConstraintsSetStmt
            | T_CreateDomainStmt
            | T_CompositeTypeStmt
            | T_CreateEnumStmt
            | T_CreateRangeStmt
            | T_CreateFunctionStmt
            | T_DefineStmt
            | T_CreateCastStmt
            | T_CreateConversionStmt
            | T_CreateOpClassStmt
            | T_CreateOpFamilyStmt
    )
}

/// Not guarded, and without anything to drop, so that an `ERROR` of the statement jumps over it as over a C function.
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: called by PostgreSQL with the arguments of ProcessUtility, whose node begins with its tag.
    unsafe {
        if HELD.load(Relaxed) > 0 && refused((*(*statement).utilityStmt).type_) {
            refuse();
        }
        let next = NEXT.unwrap_or(externs::standard_ProcessUtility);
        next(statement, query, read_only_tree, context, params, environment, dest, completion);
    }
}

/// Turns the Rust unwind into an `ERROR` before it reaches the unguarded caller.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn refuse() {
    Error::new(
        SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "cannot set constraints or create types, functions or operators while a change is captured or applied",
    )
    .hint("This is code of a table's owner that sync_outbox runs: do it in a session of your own.")
    .raise()
}
