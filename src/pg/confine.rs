//! What code of others must not do beside what PostgreSQL's security-restricted operation refuses already.
//!
//! - Leave a trigger for the end of the transaction. Up to PostgreSQL 17 a deferred one fires at COMMIT as whoever commits,
//!   outside every guard: the owner of a table that somebody else writes would run code as that somebody.
//! - Make types and the like. In the session's temporary schema they would be found before those of `pg_catalog`, also by
//!   what the session runs later.

use super::externs;
use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use std::ffi::c_char;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many guards are up, one inside the other.
static HELD: AtomicU32 = AtomicU32::new(0);

static mut NEXT: pg_sys::ProcessUtility_hook_type = None;

/// Fires what has been deferred so far, as who we are now, and has nothing deferred until the transaction ends: as
/// `SET CONSTRAINTS ALL IMMEDIATE`.
pub fn all_immediate() {
    let mut all = pg_sys::ConstraintsSetStmt {
        type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
        constraints: core::ptr::null_mut(),
        deferred: false,
    };
    // SAFETY: inside a transaction; an empty list stands for ALL, and the statement is only read.
    unsafe { pg_sys::AfterTriggerSetState(&mut all) };
}

/// As long as it lives, the statements of [`refused`] raise 42501.
pub struct Held(());

impl Held {
    pub fn new() -> Self {
        static HOOKED: Once = Once::new();
        HOOKED.call_once(|| {
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
