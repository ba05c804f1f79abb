//! Keeps track of the writing queries that are open. A trigger of one of them has to know about the others.
//!
//! Hooks run when a query starts and when it finishes; its AFTER triggers are fired before it has finished. The hooks
//! pass the call on in C, as in `utility.rs`, and only look whether the query writes. A query that fails never
//! finishes: its entry is removed at the end of its transaction or savepoint.

use super::{bgworker, confine, externs, xact};
use pgrx::pg_sys;
use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::c_int;

struct Query {
    /// Null for COPY.
    query: *const pg_sys::QueryDesc,
    command: u32,
    /// The nesting level of savepoints at which it was started.
    level: i32,
}

thread_local! {
    /// The outermost first.
    static OPEN: RefCell<Vec<Query>> = const { RefCell::new(Vec::new()) };
    /// Counts the transactions that have ended: a commit twice, because it is announced before and after.
    static ENDED: Cell<u64> = const { Cell::new(0) };
    /// Counts the transactions that have ended and the savepoints that were rolled back.
    static UNDONE: Cell<u64> = const { Cell::new(1) };
    /// If this library was loaded in the middle of a statement of the client, the time at which that was sent. Until it
    /// has ended, queries may be open that were started without our hooks.
    static LOADED_DURING: Cell<Option<i64>> = const { Cell::new(None) };
    static IS_LOGICAL_WORKER: OnceCell<bool> = const { OnceCell::new() };
}

static mut NEXT_START: pg_sys::ExecutorStart_hook_type = None;
static mut NEXT_FINISH: pg_sys::ExecutorFinish_hook_type = None;

/// Installs the hooks. Called from `_PG_init`.
pub fn init() {
    // SAFETY: a process with one thread; the hooks found here are called by ours.
    unsafe {
        NEXT_START = pg_sys::ExecutorStart_hook;
        NEXT_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorStart_hook = Some(start);
        pg_sys::ExecutorFinish_hook = Some(finish);
        if !bgworker::is_preloading() && pg_sys::IsTransactionState() {
            LOADED_DURING.set(Some(pg_sys::GetCurrentStatementStartTimestamp()));
        }
    }
    xact::on_rollback_of_subtransaction(savepoint_is_rolled_back);
    xact::on_end(|_| {
        ENDED.set(ENDED.get() + 1);
        UNDONE.set(UNDONE.get() + 1);
        LOADED_DURING.set(None);
        OPEN.with_borrow_mut(Vec::clear);
    });
}

/// The writing queries that are open.
#[derive(Clone, Copy)]
pub struct OpenQueries {
    /// The command of the outermost query: earlier commands have finished, triggers included. 0 if it is not known, and
    /// greater than all commands if there is none.
    pub outermost: u32,
    /// Whether there may be more than one.
    pub nested: bool,
}

pub fn open() -> OpenQueries {
    const UNKNOWN: OpenQueries = OpenQueries { outermost: 0, nested: true };
    if let Some(since) = LOADED_DURING.get() {
        // SAFETY: plain getter.
        if unsafe { pg_sys::GetCurrentStatementStartTimestamp() } == since {
            return UNKNOWN;
        }
        LOADED_DURING.set(None);
    }
    OPEN.with_borrow(|open| match open.first() {
        None => OpenQueries { outermost: u32::MAX, nested: false },
        // Logical replication writes without the executor and COPY, so the open queries run inside it.
        Some(_) if is_logical_worker() => UNKNOWN,
        Some(first) => OpenQueries { outermost: first.command, nested: open.len() > 1 },
    })
}

fn is_logical_worker() -> bool {
    // SAFETY: plain getter, in a process that has started long ago.
    IS_LOGICAL_WORKER.with(|known| *known.get_or_init(|| unsafe { pg_sys::IsLogicalWorker() }))
}

/// A number that no other transaction of this process has.
pub fn transaction() -> u64 {
    ENDED.get()
}

/// A number that stays the same until something that this transaction has done is undone; never 0.
pub fn undone() -> u64 {
    UNDONE.get()
}

/// The number that the next writing command will have; what earlier commands have written is visible.
pub fn command() -> u32 {
    // SAFETY: plain getter inside a transaction.
    unsafe { pg_sys::GetCurrentCommandId(false) }
}

/// Called before COPY .. FROM; the result is for [`copy_ends`].
pub fn copy_begins() -> usize {
    confine::before_write();
    let before = OPEN.with_borrow(Vec::len);
    push(core::ptr::null(), command());
    before
}

pub fn copy_ends(before: usize) {
    OPEN.with_borrow_mut(|open| open.truncate(before));
}

fn push(query: *const pg_sys::QueryDesc, command: u32) {
    // SAFETY: plain getter.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    OPEN.with_borrow_mut(|open| open.push(Query { query, command, level }));
}

/// Not guarded, and without anything to drop, so that an `ERROR` jumps over it as over a C function.
unsafe extern "C-unwind" fn start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: called by PostgreSQL with the arguments of ExecutorStart; when that returns, the state is there.
    unsafe {
        match NEXT_START {
            Some(hook) => hook(query, flags),
            None => externs::standard_ExecutorStart(query, flags),
        }
        let writes = (*query).operation != pg_sys::CmdType::CMD_SELECT || (*(*query).plannedstmt).hasModifyingCTE;
        // A query that is only explained never finishes.
        if writes && flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            confine::before_write();
            push(query, (*(*query).estate).es_output_cid);
        }
    }
}

/// As above.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: called by PostgreSQL with the argument of ExecutorFinish.
    unsafe {
        match NEXT_FINISH {
            Some(hook) => hook(query),
            None => externs::standard_ExecutorFinish(query),
        }
    }
    OPEN.with_borrow_mut(|open| {
        if let Some(at) = open.iter().rposition(|open| core::ptr::eq(open.query, query)) {
            open.truncate(at);
        }
    });
}

fn savepoint_is_rolled_back() {
    UNDONE.set(UNDONE.get() + 1);
    // SAFETY: plain getter; the savepoint that is rolled back is still the current one.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    OPEN.with_borrow_mut(|open| open.retain(|query| query.level < level));
}
