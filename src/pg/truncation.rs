//! Which TRUNCATE statements are open, and what they have emptied by now.
//!
//! PostgreSQL empties all tables of a statement at once, and fires their AFTER TRUNCATE triggers one by one then: what one of
//! them writes to a table of the statement is captured before that table's own trigger is fired. Here a trigger of a row learns
//! that its table has been emptied.
//!
//! Hooks where such a statement begins and where it names a table, also one that CASCADE has brought; passed through in C, as in
//! `utility.rs`. A statement that fails never ends: what it leaves here goes with its transaction or savepoint.

use super::relation::Borrowed;
use super::{externs, xact};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};

struct Truncate {
    /// Tables and partitions, with the files they had when they were named.
    named: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// The attached tables whose TRUNCATE has been told, with the savepoint in which.
    told: Vec<(pg_sys::Oid, pg_sys::SubTransactionId)>,
    /// How deep in savepoints it began.
    level: i32,
}

thread_local! {
    /// The outermost first.
    static OPEN: RefCell<Vec<Truncate>> = const { RefCell::new(Vec::new()) };
}

static mut NEXT: pg_sys::object_access_hook_type = None;

/// Installs the hook. Called from `_PG_init`.
pub fn init() {
    // SAFETY: a process with one thread; the hook found here is called by ours. The callback lives as long as the library,
    // which is never unloaded.
    unsafe {
        NEXT = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
        pg_sys::RegisterSubXactCallback(Some(savepoint_ends), core::ptr::null_mut());
    }
    xact::on_end(|_| OPEN.with_borrow_mut(Vec::clear));
}

/// Called before TRUNCATE; the result is for [`ends`].
pub(super) fn begins() -> usize {
    // SAFETY: plain getter.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    OPEN.with_borrow_mut(|open| {
        open.push(Truncate { named: Vec::new(), told: Vec::new(), level });
        open.len() - 1
    })
}

pub(super) fn ends(before: usize) {
    OPEN.with_borrow_mut(|open| open.truncate(before));
}

/// Whether one is open of which this is a trigger, or code of a trigger's.
#[inline]
pub fn any() -> bool {
    OPEN.with_borrow(|open| !open.is_empty())
}

/// Whether an open TRUNCATE of `root` has emptied `written`, which is that table or a partition of it, and nobody has
/// been told. From now on somebody has, unless that is rolled back.
///
/// A table that has got its file in this savepoint is emptied where it is, and not recognized.
pub fn tell(root: pg_sys::Oid, written: &Borrowed<'_>) -> bool {
    OPEN.with_borrow_mut(|open| {
        let of_root = |truncate: &&mut Truncate| truncate.named.iter().any(|(oid, _)| *oid == root);
        let Some(truncate) = open.iter_mut().rev().find(of_root) else { return false };
        let file = truncate.named.iter().rev().find(|(oid, _)| *oid == written.oid()).map(|(_, file)| *file);
        // Another file by somebody else, who had the table when it was named, is none of ours.
        let emptied = file.is_some_and(|file| file != written.file()) && written.has_got_its_file_now();
        if !emptied || truncate.is_told(root) {
            return false;
        }
        // SAFETY: plain getter, inside a transaction.
        truncate.told.push((root, unsafe { pg_sys::GetCurrentSubTransactionId() }));
        true
    })
}

/// Whether the open TRUNCATE of an attached table has been told already.
pub fn is_told(root: pg_sys::Oid) -> bool {
    OPEN.with_borrow(|open| open.last().is_some_and(|truncate| truncate.is_told(root)))
}

impl Truncate {
    fn is_told(&self, root: pg_sys::Oid) -> bool {
        self.told.iter().any(|(told, _)| *told == root)
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
            let told = open.iter_mut().flat_map(|truncate| &mut truncate.told);
            told.filter(|(_, by)| *by == me).for_each(|(_, by)| *by = parent);
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            // SAFETY: plain getter; the savepoint that is rolled back is still the current one.
            let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
            open.retain(|truncate| truncate.level < level);
            open.iter_mut().for_each(|truncate| truncate.told.retain(|(_, by)| *by != me));
        }
        _ => {}
    });
}
