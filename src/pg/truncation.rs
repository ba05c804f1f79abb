//! Which TRUNCATE statements are open, and which tables they have emptied so far.
//!
//! PostgreSQL empties all tables of a statement at once, and then fires their AFTER TRUNCATE triggers one by one. What
//! one of them writes to a table of the statement is captured before that table's own trigger is fired. This module
//! tells a row trigger that its table has been emptied, which shows in the table's file, because it is a new one. A
//! table that has got its file in the same savepoint keeps it, so that nothing shows. Then changes of its rows are held
//! back until the TRUNCATE is captured, after which the rows that are in the table are captured.
//!
//! Hooks run when such a statement begins and when it names a table, including tables of CASCADE. They pass the call on
//! in C, as in `utility.rs`. A statement that fails never ends: its entry is removed at the end of its transaction or
//! savepoint.

use super::relation::Borrowed;
use super::{externs, xact};
use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};

struct Truncate {
    /// Tables and partitions, with the files they had when they were named.
    named: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// The attached tables whose TRUNCATE has been captured, and the savepoint in which it was.
    captured: Vec<(pg_sys::Oid, pg_sys::SubTransactionId)>,
    /// The attached tables with changes of rows that were held back.
    held_back: Vec<pg_sys::Oid>,
    /// The attached tables whose own trigger has been fired.
    fired: Vec<pg_sys::Oid>,
    /// The savepoint in which it began, and its nesting level.
    savepoint: pg_sys::SubTransactionId,
    level: i32,
}

thread_local! {
    /// The outermost first.
    static OPEN: RefCell<Vec<Truncate>> = const { RefCell::new(Vec::new()) };
}

static mut NEXT: pg_sys::object_access_hook_type = None;

/// Installs the hook. Called from `_PG_init`.
pub fn init() {
    // SAFETY: a process with one thread; the hook found here is called by ours. The callback lives as long as the
    // library, which is never unloaded.
    unsafe {
        NEXT = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
        pg_sys::RegisterSubXactCallback(Some(savepoint_ends), core::ptr::null_mut());
    }
    xact::on_end(|_| OPEN.with_borrow_mut(Vec::clear));
}

/// Called before TRUNCATE; the result is for [`ends`].
pub(super) fn begins() -> usize {
    // SAFETY: plain getters.
    let (savepoint, level) =
        unsafe { (pg_sys::GetCurrentSubTransactionId(), pg_sys::GetCurrentTransactionNestLevel()) };
    let truncate = Truncate {
        named: Vec::new(),
        captured: Vec::new(),
        held_back: Vec::new(),
        fired: Vec::new(),
        savepoint,
        level,
    };
    OPEN.with_borrow_mut(|open| {
        open.push(truncate);
        open.len() - 1
    })
}

/// Raises 55000 if changes were held back and have not been captured, because somebody has disabled the trigger that
/// does it.
pub(super) fn ends(before: usize) {
    let holds_back = OPEN.with_borrow_mut(|open| open.drain(before..).any(|truncate| !truncate.held_back.is_empty()));
    if holds_back {
        // SAFETY: raises an ERROR and nothing else.
        unsafe { refuse() }
    }
}

/// Turns the Rust unwind into an `ERROR` before it reaches the unguarded caller.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn refuse() {
    Error::new(
        SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "changes of a table that was truncated could not be captured: \
         the trigger \"!sync_outbox_truncate\" was not fired",
    )
    .hint(
        "Leave that trigger enabled, and sync_outbox.capture as it is, \
         while a trigger of TRUNCATE writes to the table.",
    )
    .raise()
}

/// Whether this runs inside a trigger of an open TRUNCATE.
#[inline]
pub fn any() -> bool {
    OPEN.with_borrow(|open| !open.is_empty())
}

/// How a change of a row is captured while a TRUNCATE of its table is open.
pub enum RowCapture {
    AsUsual,
    /// After the TRUNCATE, which has to be captured first.
    AfterTruncate,
    /// Not now, because nothing shows whether it comes before or after the TRUNCATE. [`trigger_fired`] returns that
    /// something was held back.
    HeldBack,
}

/// How a change of `written` is captured, which is the attached table `root` or a partition of it. If the answer is
/// that the TRUNCATE comes first, it counts as captured from now on, unless that is rolled back.
pub fn row_capture(root: pg_sys::Oid, written: &Borrowed<'_>) -> RowCapture {
    OPEN.with_borrow_mut(|open| {
        let of_root = |truncate: &&mut Truncate| truncate.named.iter().any(|(oid, _)| *oid == root);
        let Some(truncate) = open.iter_mut().rev().find(of_root) else { return RowCapture::AsUsual };
        let file = truncate.named.iter().rev().find(|(oid, _)| *oid == written.oid()).map(|(_, file)| *file);
        let Some(file) = file.filter(|_| !truncate.fired.contains(&root)) else { return RowCapture::AsUsual };
        // A new file that another transaction gave it, while we waited for the table's lock, does not count.
        if file != written.file() && written.has_got_its_file_now() {
            if truncate.is_captured(root) {
                return RowCapture::AsUsual;
            }
            // SAFETY: plain getter, inside a transaction.
            truncate.captured.push((root, unsafe { pg_sys::GetCurrentSubTransactionId() }));
            return RowCapture::AfterTruncate;
        }
        if !written.is_emptied_where_it_is(truncate.savepoint) {
            return RowCapture::AsUsual; // it has not been emptied yet
        }
        let holds_back = truncate.held_back.contains(&root);
        if truncate.is_captured(root) && !holds_back {
            return RowCapture::AsUsual;
        }
        if !holds_back {
            truncate.held_back.push(root);
        }
        RowCapture::HeldBack
    })
}

/// What has been captured so far of an open TRUNCATE of an attached table.
pub struct CapturedSoFar {
    /// Whether the TRUNCATE itself has been captured.
    pub truncate: bool,
    /// Whether changes of rows were held back.
    pub rows_held_back: bool,
}

/// Called by the trigger of the TRUNCATE, which captures what is missing. From now on everything is captured as usual.
pub fn trigger_fired(root: pg_sys::Oid) -> CapturedSoFar {
    OPEN.with_borrow_mut(|open| match open.last_mut() {
        None => CapturedSoFar { truncate: false, rows_held_back: false },
        Some(truncate) => {
            truncate.fired.push(root);
            let rows_held_back = truncate.held_back.contains(&root);
            truncate.held_back.retain(|oid| *oid != root);
            CapturedSoFar { truncate: truncate.is_captured(root), rows_held_back }
        }
    })
}

impl Truncate {
    fn is_captured(&self, root: pg_sys::Oid) -> bool {
        self.captured.iter().any(|(captured, _)| *captured == root)
    }
}

/// Not guarded, and without anything to drop, so that an `ERROR` jumps over it as over a C function.
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    arg: *mut c_void,
) {
    // SAFETY: called by PostgreSQL; the hook found at the beginning gets the arguments as they are.
    unsafe {
        if let Some(next) = NEXT {
            next(access, class, object, part, arg);
        }
        if access == pg_sys::ObjectAccessType::OAT_TRUNCATE && any() {
            let row = externs::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as c_int, object.into());
            if !row.is_null() {
                let header = (*row).t_data;
                let form = header.cast::<u8>().add(usize::from((*header).t_hoff)).cast::<pg_sys::FormData_pg_class>();
                let file = (*form).relfilenode;
                externs::ReleaseSysCache(row);
                OPEN.with_borrow_mut(|open| open.last_mut().map(|truncate| truncate.named.push((object, file))));
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn savepoint_ends(
    event: pg_sys::SubXactEvent::Type,
    me: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    OPEN.with_borrow_mut(|open| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            let captured = open.iter_mut().flat_map(|truncate| &mut truncate.captured);
            captured.filter(|(_, by)| *by == me).for_each(|(_, by)| *by = parent);
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            // SAFETY: plain getter; the savepoint that is rolled back is still the current one.
            let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
            open.retain(|truncate| truncate.level < level);
            open.iter_mut().for_each(|truncate| truncate.captured.retain(|(_, by)| *by != me));
        }
        _ => {}
    });
}
