//! SQL from Rust: kept plans, typed arguments and rows (SPI).
//!
//! pgrx's own `Spi` assigns a transaction id whenever a statement may write, and its read-only form does not see what
//! the same function did before. Here a statement runs with a fresh snapshot (as in PL/pgSQL) and draws no transaction
//! id until it writes, so that an idle worker uses none.

mod argument;
mod plans;
mod row;

pub use argument::{Arg, Ids};
use pgrx::pg_sys;
pub use row::Row;
pub(super) use row::types_of;
use std::ops::ControlFlow;

/// Passes the rows of a result to `each`, one after the other, until it breaks; returns whether it did.
///
/// # Safety
/// `table` is the result of the statement just executed in this connection, with `count` rows.
unsafe fn each_row(
    table: *mut pg_sys::SPITupleTable,
    count: usize,
    mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // SAFETY: by contract; both arrays have the descriptor's number of attributes, and the datums point into the
    // tuples.
    unsafe {
        let desc = (*table).tupdesc;
        let types = types_of(desc);
        let columns = types.len();
        let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); columns], vec![true; columns]);
        for i in 0..count {
            pg_sys::heap_deform_tuple(*(*table).vals.add(i), desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            each(&Row::new(&values, &nulls, &types))?;
        }
    }
    ControlFlow::Continue(())
}

struct SpiConnection;

impl SpiConnection {
    fn open() -> Self {
        // SAFETY: inside a transaction, and no commit comes in between; closed in Drop, or by the abort after an error.
        // Not with SPI_OPT_NONATOMIC, whose memory belongs to the portal that runs us: the abort of a savepoint around
        // that frees it once with the portal, and once more with the connection.
        if unsafe { pg_sys::SPI_connect() } != pg_sys::SPI_OK_CONNECT as i32 {
            pgrx::error!("SPI_connect failed");
        }
        SpiConnection
    }
}

impl Drop for SpiConnection {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pairs with SPI_connect above.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// Values and NULLs in the form that SPI expects.
fn bind(args: &[Arg]) -> (Vec<pg_sys::Datum>, Vec<core::ffi::c_char>) {
    let value = |arg: &Arg| arg.datum.unwrap_or(pg_sys::Datum::from(0));
    let null = |arg: &Arg| if arg.datum.is_some() { b' ' } else { b'n' } as core::ffi::c_char;
    (args.iter().map(value).collect(), args.iter().map(null).collect())
}

fn execute(plan: pg_sys::SPIPlanPtr, args: &[Arg], read_only: bool) -> u64 {
    let (mut values, nulls) = bind(args);
    // SAFETY: the plan belongs to this backend and was prepared with these types; arrays have its number of arguments.
    unsafe {
        let code = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), read_only, 0);
        if code < 0 {
            pgrx::error!("SPI_execute_plan failed: {code}");
        }
        pg_sys::SPI_processed
    }
}

/// Passes every row of the last result to `each` and frees the result.
fn rows(mut each: impl FnMut(&Row<'_>)) {
    // SAFETY: SPI_tuptable is the result of the statement just executed in this connection, or null.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() {
            return;
        }
        let _ = each_row(table, (*table).numvals as usize, |row| {
            each(row);
            ControlFlow::Continue(())
        });
        pg_sys::SPI_freetuptable(table);
    }
}

/// Runs a statement with a plan kept for the session; returns the number of rows processed.
pub fn run(sql: &str, args: &[Arg]) -> u64 {
    let _spi = SpiConnection::open();
    execute(plans::kept(sql, args), args, false)
}

/// As [`run`], for statements whose text depends on input: only a number of plans is kept, the most recently used ones.
pub fn run_varied(sql: &str, args: &[Arg]) -> u64 {
    let _spi = SpiConnection::open();
    let plan = plans::varied(sql, args);
    execute(plan.of(args), args, false)
}

/// Runs a query with a plan kept for the session and passes its rows to `each`.
pub fn query(sql: &str, args: &[Arg], each: impl FnMut(&Row<'_>)) -> u64 {
    let _spi = SpiConnection::open();
    let processed = execute(plans::kept(sql, args), args, false);
    rows(each);
    processed
}

/// Runs a query once, without keeping its plan: for DDL and for text made of user input.
pub fn once(sql: &str, args: &[Arg], each: impl FnMut(&Row<'_>)) -> u64 {
    let _spi = SpiConnection::open();
    let processed = execute(plans::prepare(sql, args), args, false);
    rows(each);
    processed
}

/// Runs a query and passes its rows to `each` until it breaks. They are fetched a few at a time, so that a reader that
/// stops at a number of bytes never holds many times as much.
pub fn scan(sql: &str, args: &[Arg], mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>) {
    scan_by(sql, args, &mut |row| match each(row) {
        ControlFlow::Continue(()) => FEW,
        ControlFlow::Break(()) => 0,
    });
}

/// As [`scan`], but `each` returns how many more rows it wants at most, 0 for none. The first fetch has [`FEW`].
pub fn scan_by(sql: &str, args: &[Arg], each: &mut dyn FnMut(&Row<'_>) -> usize) {
    let _spi = SpiConnection::open();
    scan_plan(plans::kept(sql, args), args, each);
}

/// As [`scan`], without keeping the plan: for text made of user input.
pub fn scan_once(sql: &str, args: &[Arg], mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>) {
    let _spi = SpiConnection::open();
    scan_plan(plans::prepare(sql, args), args, &mut |row| match each(row) {
        ControlFlow::Continue(()) => FEW,
        ControlFlow::Break(()) => 0,
    });
}

/// The number of rows that are fetched at a time if nothing is known about their size.
const FEW: usize = 64;

fn scan_plan(plan: pg_sys::SPIPlanPtr, args: &[Arg], each: &mut dyn FnMut(&Row<'_>) -> usize) {
    let (mut values, nulls) = bind(args);
    // SAFETY: as in `execute`; the portal is closed before the connection, or by the abort.
    unsafe {
        let portal = pg_sys::SPI_cursor_open(core::ptr::null(), plan, values.as_mut_ptr(), nulls.as_ptr(), false);
        let mut wanted = FEW;
        while wanted > 0 {
            let asked = wanted;
            pg_sys::SPI_cursor_fetch(portal, true, asked as core::ffi::c_long);
            let table = pg_sys::SPI_tuptable;
            let fetched = pg_sys::SPI_processed as usize;
            let _ = each_row(table, fetched, |row| {
                wanted = each(row);
                if wanted == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            pg_sys::SPI_freetuptable(table);
            if fetched < asked {
                break;
            }
        }
        pg_sys::SPI_cursor_close(portal);
    }
}

/// The first row of a query, if there is one.
pub fn first<T>(sql: &str, args: &[Arg], mut read: impl FnMut(&Row<'_>) -> T) -> Option<T> {
    let mut found = None;
    query(sql, args, |row| {
        if found.is_none() {
            found = Some(read(row));
        }
    });
    found
}
