//! Utility statements: a hook around COPY and TRUNCATE, which write without the executor, and around the few that the
//! background processes must know about.
//!
//! All others pass straight through, in C: an `ERROR` that travels through Rust loses the position and object names
//! that psql shows, and errors of other people's DDL must not look different because this library is loaded.

use super::{executor, externs, truncation};
use once_cell::sync::OnceCell;
use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;
use std::ffi::{CStr, c_char};

static mut NEXT: pg_sys::ProcessUtility_hook_type = None;

/// What is called around other people's statements for the background processes.
pub struct BackgroundHooks {
    /// Called before CREATE, ALTER or DROP EXTENSION.
    pub before_extension_change: fn(),
    /// Called before COMMIT PREPARED.
    pub before_commit_prepared: fn(),
    /// Runs a statement, which needs the named database to have no connections. It calls its last argument exactly
    /// once.
    pub without_worker: fn(Option<&CStr>, &mut dyn FnMut()),
}

/// Set once if there are background processes.
static BACKGROUND: OnceCell<BackgroundHooks> = OnceCell::new();

/// Sets these hooks. Called from `_PG_init` while preloading.
pub fn set_background_hooks(background: BackgroundHooks) {
    let _ = BACKGROUND.set(background); // a library is loaded once in a process
}

/// Installs the hook. Called from `_PG_init`.
pub fn init() {
    // SAFETY: a process with one thread; the hook found here is called by ours.
    unsafe {
        NEXT = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// The arguments of one call.
#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
}

impl Call {
    /// Runs the statement. An `ERROR` jumps over the caller, which must have nothing to drop.
    unsafe fn next(self) {
        let Call { statement, query, read_only_tree, context, params, environment, dest, completion } = self;
        // SAFETY: the arguments as PostgreSQL gave them.
        unsafe {
            match NEXT {
                Some(hook) => hook(statement, query, read_only_tree, context, params, environment, dest, completion),
                None => externs::standard_ProcessUtility(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    params,
                    environment,
                    dest,
                    completion,
                ),
            }
        }
    }
}

/// The kinds of statements that we handle.
#[derive(Clone, Copy)]
#[repr(C)]
enum StatementKind {
    Other,
    CopyFrom,
    Truncate,
    /// CREATE, ALTER or DROP EXTENSION, of any extension, because CASCADE can create or drop ours.
    Extension,
    CommitPrepared,
    /// A database that it names must have no connection except the user's.
    EmptiesDatabase,
}

fn kind(statement: *mut pg_sys::PlannedStmt) -> StatementKind {
    use pg_sys::{NodeTag::*, ObjectType, TransactionStmtKind};
    // SAFETY: a utility statement's node is of the struct that its tag names.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            T_CopyStmt if (*node.cast::<pg_sys::CopyStmt>()).is_from => StatementKind::CopyFrom,
            T_TruncateStmt => StatementKind::Truncate,
            _ if BACKGROUND.get().is_none() => StatementKind::Other,
            T_TransactionStmt => {
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                if kind == TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED {
                    StatementKind::CommitPrepared
                } else {
                    StatementKind::Other
                }
            }
            T_CreateExtensionStmt | T_AlterExtensionStmt => StatementKind::Extension,
            T_DropStmt if (*node.cast::<pg_sys::DropStmt>()).removeType == ObjectType::OBJECT_EXTENSION => {
                StatementKind::Extension
            }
            T_RenameStmt if (*node.cast::<pg_sys::RenameStmt>()).renameType == ObjectType::OBJECT_DATABASE => {
                StatementKind::EmptiesDatabase
            }
            T_DropdbStmt | T_CreatedbStmt | T_AlterDatabaseStmt => StatementKind::EmptiesDatabase,
            _ => StatementKind::Other,
        }
    }
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
    let call = Call { statement, query, read_only_tree, context, params, environment, dest, completion };
    // SAFETY: called by PostgreSQL with the arguments of ProcessUtility.
    unsafe {
        match kind(statement) {
            StatementKind::Other => call.next(),
            StatementKind::CopyFrom => {
                let before = executor::copy_begins();
                call.next();
                executor::copy_ends(before);
            }
            StatementKind::Truncate => {
                let before = truncation::begins();
                call.next();
                truncation::ends(before);
            }
            kind @ (StatementKind::Extension | StatementKind::CommitPrepared) => {
                before(kind);
                call.next();
            }
            StatementKind::EmptiesDatabase => around(call),
        }
    }
}

/// Turns a Rust unwind into an `ERROR` before it reaches the unguarded caller.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(kind: StatementKind) {
    let Some(background) = BACKGROUND.get() else { return };
    match kind {
        StatementKind::CommitPrepared => (background.before_commit_prepared)(),
        _ => (background.before_extension_change)(),
    }
}

/// Runs the statement while the worker of the database is kept away.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn around(call: Call) {
    // SAFETY: as in `kind`; the names live as long as the statement. The boundary turns an ERROR into an unwind, so
    // that the guard in `without_worker` is dropped.
    unsafe {
        let name = database_named(call.statement).map(|name| CStr::from_ptr(name));
        let mut statement = || pg_guard_ffi_boundary(|| call.next());
        match BACKGROUND.get() {
            Some(background) => (background.without_worker)(name, &mut statement),
            None => statement(),
        }
    }
}

/// The database that must be empty: the one dropped, renamed, moved, or copied.
unsafe fn database_named(statement: *mut pg_sys::PlannedStmt) -> Option<*const c_char> {
    use pg_sys::NodeTag::*;
    // SAFETY: by contract, as in `kind`.
    unsafe {
        let node = (*statement).utilityStmt;
        let name = match (*node).type_ {
            T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            T_RenameStmt => (*node.cast::<pg_sys::RenameStmt>()).subname,
            T_CreatedbStmt => option((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template")?,
            T_AlterDatabaseStmt => {
                let statement = node.cast::<pg_sys::AlterDatabaseStmt>();
                option((*statement).options, c"tablespace")?;
                (*statement).dbname
            }
            _ => return None,
        };
        (!name.is_null()).then_some(name.cast_const())
    }
}

/// The text of an option, if it is given a value.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut c_char> {
    // SAFETY: the options of a statement are a list of DefElem.
    unsafe {
        (0..pg_sys::list_length(options))
            .map(|i| pg_sys::list_nth(options, i).cast::<pg_sys::DefElem>())
            .find(|&option| CStr::from_ptr((*option).defname) == name && !(*option).arg.is_null())
            .map(|option| pg_sys::defGetString(option))
    }
}
