//! SQL from Rust: kept plans, typed arguments and rows (SPI).
//!
//! pgrx's own `Spi` assigns a transaction id whenever a statement may write, and its read-only form does not see what the
//! same function did before. Here a statement runs with a fresh snapshot (as in PL/pgSQL) and draws no transaction id
//! until it writes, so that an idle worker costs none.

use super::heap::Columns;
use super::relation::Borrowed;
use pgrx::{FromDatum, IntoDatum, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::rc::Rc;

/// One argument: its type and value.
pub struct Arg {
    oid: pg_sys::Oid,
    datum: Option<pg_sys::Datum>,
}

impl<T: IntoDatum> From<T> for Arg {
    fn from(value: T) -> Self {
        Arg { oid: T::type_oid(), datum: value.into_datum() }
    }
}

impl Arg {
    /// NULL of the type that `T` stands for, or the value.
    pub fn opt<T: IntoDatum>(value: Option<T>) -> Self {
        Arg { oid: T::type_oid(), datum: value.and_then(IntoDatum::into_datum) }
    }

    pub fn datum(oid: pg_sys::Oid, datum: pg_sys::Datum) -> Self {
        Arg { oid, datum: Some(datum) }
    }

    pub fn null(oid: pg_sys::Oid) -> Self {
        Arg { oid, datum: None }
    }

    /// An array of row addresses.
    pub fn places(places: &[(u32, u16)]) -> Self {
        let mut tids: Vec<_> = places.iter().map(|place| super::heap::address(*place)).collect();
        let mut datums: Vec<pg_sys::Datum> = tids.iter_mut().map(|t| pg_sys::Datum::from(&raw mut *t)).collect();
        Arg::array(pg_sys::TIDARRAYOID, pg_sys::TIDOID, &mut datums, 6, b's')
    }

    /// An array of uuids.
    pub fn uuids<'a>(uuids: impl IntoIterator<Item = &'a uuid::Uuid>) -> Self {
        let mut datums: Vec<pg_sys::Datum> =
            uuids.into_iter().map(|u| pg_sys::Datum::from(u.as_bytes().as_ptr())).collect();
        Arg::array(pg_sys::UUIDARRAYOID, pg_sys::UUIDOID, &mut datums, 16, b'c')
    }

    fn array(oid: pg_sys::Oid, element: pg_sys::Oid, datums: &mut [pg_sys::Datum], length: i32, align: u8) -> Self {
        // SAFETY: the elements are fixed-length and by reference, and copied into the new array.
        let array = unsafe {
            pg_sys::construct_array(
                datums.as_mut_ptr(),
                datums.len() as i32,
                element,
                length,
                false,
                align as core::ffi::c_char,
            )
        };
        Arg::datum(oid, pg_sys::Datum::from(array))
    }

    /// A text of UTF-8, converted to the server encoding; what that cannot hold becomes a question mark.
    pub fn text_utf8(text: &str) -> Self {
        Arg::text_bytes(&super::text::from_utf8(text))
    }

    /// As [`Arg::text_utf8`], or NULL.
    pub fn opt_utf8(text: Option<&str>) -> Self {
        text.map_or(Arg::null(pg_sys::TEXTOID), Arg::text_utf8)
    }

    /// A json of UTF-8.
    pub fn json_utf8(text: &str) -> Self {
        Arg::datum(pg_sys::JSONOID, super::text::datum(&super::text::from_utf8(text)))
    }

    /// A text of bytes in the server encoding.
    pub fn text_bytes(bytes: &[u8]) -> Self {
        Arg::datum(pg_sys::TEXTOID, super::text::datum(bytes))
    }
}

/// A `bigint[]` argument of a function, as it was given: nothing of it is copied, so that a long one costs nothing here.
#[derive(Clone, Copy)]
pub struct Ids<'a>(pg_sys::Datum, PhantomData<&'a ()>);

impl<'a> Ids<'a> {
    pub fn new(array: pgrx::Array<'a, i64>) -> Self {
        Ids(pg_sys::Datum::from(array.into_array_type()), PhantomData)
    }
}

impl From<Ids<'_>> for Arg {
    fn from(ids: Ids<'_>) -> Self {
        Arg::datum(pg_sys::INT8ARRAYOID, ids.0)
    }
}

/// One row of a result, taken apart; valid during the closure that receives it.
pub struct Row<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    desc: pg_sys::TupleDesc,
}

impl<'a> Row<'a> {
    pub(super) fn new(values: &'a [pg_sys::Datum], nulls: &'a [bool], desc: pg_sys::TupleDesc) -> Self {
        Row { values, nulls, desc }
    }

    /// Column `n`, from 1; `None` for NULL. The column's type must be the one `T` reads.
    pub fn get<T: FromDatum + IntoDatum>(&self, n: usize) -> Option<T> {
        let (datum, null) = self.raw(n);
        // SAFETY: the datum belongs to this tuple and the statements in `store` name types that match `T`.
        unsafe { T::from_polymorphic_datum(datum, null, pg_sys::SPI_gettypeid(self.desc, n as i32)) }
    }

    /// Column `n` of a text type as UTF-8, empty for NULL.
    pub fn text(&self, n: usize) -> String {
        self.utf8(n).unwrap_or_default()
    }

    /// Column `n` as 64-bit integer, 0 for NULL.
    pub fn int(&self, n: usize) -> i64 {
        let (datum, null) = self.raw(n);
        if null { 0 } else { datum.value() as i64 }
    }

    /// The bytes of a text, json or bytea column, detoasted where necessary, without a copy where not.
    pub fn bytes(&self, n: usize) -> Option<&[u8]> {
        // A detoasted copy lives in the current memory context, as long as the row.
        (!self.nulls[n - 1]).then(|| super::datum::varlena(&self.values[n - 1]))
    }

    /// Column `n` of a text or json type as UTF-8, whatever the server encoding is.
    pub fn utf8(&self, n: usize) -> Option<String> {
        let bytes = self.bytes(n)?;
        let mut out = Vec::new();
        super::text::write_utf8(bytes, &mut out);
        Some(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The elements of column `n`, a text[], as UTF-8; none for NULL.
    pub fn texts(&self, n: usize) -> Vec<String> {
        let (datum, null) = self.raw(n);
        // SAFETY: the column is a text[] by contract, and its elements are read as the bytes that they are.
        let array = unsafe { pgrx::Array::<&[u8]>::from_polymorphic_datum(datum, null, pg_sys::TEXTARRAYOID) };
        let elements = array.iter().flat_map(|array| array.iter().flatten());
        elements.map(|bytes| super::text::to_utf8(bytes).into_owned()).collect()
    }

    /// Writes column `n`, a timestamptz, as ISO 8601 in UTC; nothing for NULL.
    pub fn iso_time(&self, n: usize, out: &mut Vec<u8>) {
        let (datum, null) = self.raw(n);
        if !null {
            super::datum::iso_datetime(super::datum::Value(datum), pg_sys::TIMESTAMPTZOID, |text| {
                out.extend_from_slice(text)
            });
        }
    }

    /// Column `n`, a ctid: block and offset.
    pub fn place(&self, n: usize) -> (u32, u16) {
        let (datum, _) = self.raw(n);
        // SAFETY: a tid datum points to an ItemPointerData inside the row.
        let tid = unsafe { *datum.cast_mut_ptr::<pg_sys::ItemPointerData>() };
        ((u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo), tid.ip_posid)
    }

    /// Column `n`, a uuid.
    pub fn uuid(&self, n: usize) -> uuid::Uuid {
        let (datum, _) = self.raw(n);
        uuid::Uuid::from_bytes(*super::datum::Value(datum).uuid())
    }

    /// Column `n`, an oid or an enum.
    pub fn oid(&self, n: usize) -> Option<pg_sys::Oid> {
        let (datum, null) = self.raw(n);
        (!null).then(|| super::datum::Value(datum).oid())
    }

    /// Column `n`, a timestamptz, in microseconds since 2000-01-01 UTC.
    pub fn micros(&self, n: usize) -> Option<i64> {
        let (datum, null) = self.raw(n);
        (!null).then_some(datum.value() as i64)
    }

    /// Column `n`, an xid8.
    pub fn xid8(&self, n: usize) -> u64 {
        self.raw(n).0.value() as u64
    }

    /// Takes column `n` apart, which is a whole row of `relation`; `false` for NULL.
    pub fn whole_row(&self, n: usize, relation: &Borrowed<'_>, into: &mut Columns) -> bool {
        let (datum, null) = self.raw(n);
        if !null {
            // SAFETY: the statement selects the relation's rows; a table's row type changes only with a lock that
            // conflicts with the open relation's.
            unsafe { into.load_whole_row(datum, relation) }
        }
        !null
    }

    /// Column `n` as a datum, and whether it is NULL.
    pub fn raw(&self, n: usize) -> (pg_sys::Datum, bool) {
        (self.values[n - 1], self.nulls[n - 1])
    }
}

/// Hands the rows of a result to `each`, one after the other, until it says stop; whether it did.
///
/// # Safety
/// `table` is the result of the statement just executed in this connection, with `count` rows.
unsafe fn each_row(
    table: *mut pg_sys::SPITupleTable,
    count: usize,
    mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // SAFETY: by contract; both arrays have the descriptor's number of attributes, and the datums point into the tuples.
    unsafe {
        let desc = (*table).tupdesc;
        let columns = (*desc).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); columns], vec![true; columns]);
        for i in 0..count {
            pg_sys::heap_deform_tuple(*(*table).vals.add(i), desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            each(&Row::new(&values, &nulls, desc))?;
        }
    }
    ControlFlow::Continue(())
}

struct Connection;

impl Connection {
    fn open() -> Self {
        // SAFETY: inside a transaction, and no commit comes in between; closed in Drop, or by the abort after an error. Not
        // with SPI_OPT_NONATOMIC, whose memory belongs to the portal that runs us: the abort of a savepoint around that
        // frees it once with the portal, and once more with the connection.
        if unsafe { pg_sys::SPI_connect() } != pg_sys::SPI_OK_CONNECT as i32 {
            pgrx::error!("SPI_connect failed");
        }
        Connection
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pairs with SPI_connect above.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

thread_local! {
    /// Kept plans by statement text: PostgreSQL's plan cache revalidates them after DDL.
    static PLANS: RefCell<HashMap<String, pg_sys::SPIPlanPtr>> = RefCell::new(HashMap::new());
    /// Kept plans of statements whose text follows from input, as many as [`VARIED_MOST`].
    static VARIED: RefCell<Varied> = RefCell::new(Varied::default());
}

/// Plans of statements whose text follows from input that a session keeps. A plan of apply takes about 30 kB, and
/// each one costs a little whenever the plan cache is told that it is stale, which apply does twice in a call.
const VARIED_MOST: usize = 500;
/// And bytes of their text: the plan of a statement takes about a hundred times its text.
const VARIED_MOST_BYTES: usize = 256 * 1024;

#[derive(Default)]
struct Varied {
    plans: HashMap<String, Rc<VariedPlan>>,
    /// Of the texts of all statements.
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

/// A kept plan, which goes with the last one who holds it: one that is being executed can be thrown out meanwhile, by
/// statements that its own triggers run.
struct VariedPlan {
    plan: pg_sys::SPIPlanPtr,
    used: Cell<u64>,
}

impl Drop for VariedPlan {
    fn drop(&mut self) {
        // SAFETY: a kept plan that nobody executes: it belongs to the backend, not to a transaction, so that it can be
        // freed while an error unwinds too.
        unsafe { pg_sys::SPI_freeplan(self.plan) };
    }
}

impl Varied {
    fn get(&mut self, sql: &str) -> Option<Rc<VariedPlan>> {
        self.clock += 1;
        let found = self.plans.get(sql)?;
        found.used.set(self.clock);
        Some(found.clone())
    }

    /// Keeps a plan, in place of the one that has not been used for longest. Looking for that one costs much less than
    /// making the plan did.
    fn keep(&mut self, sql: &str, plan: pg_sys::SPIPlanPtr) -> (Rc<VariedPlan>, Vec<Rc<VariedPlan>>) {
        let mut out = Vec::new();
        while self.plans.len() >= VARIED_MOST || !self.plans.is_empty() && self.bytes + sql.len() > VARIED_MOST_BYTES {
            let oldest = self.plans.iter().min_by_key(|(_, plan)| plan.used.get()).map(|(sql, _)| sql.clone());
            let Some(oldest) = oldest else { break };
            self.bytes -= oldest.len();
            out.extend(self.plans.remove(&oldest));
        }
        self.bytes += sql.len();
        let plan = Rc::new(VariedPlan { plan, used: Cell::new(self.clock) });
        self.plans.insert(sql.to_owned(), plan.clone());
        (plan, out)
    }
}

fn plan(sql: &str, args: &[Arg]) -> pg_sys::SPIPlanPtr {
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(sql).copied()) {
        return plan;
    }
    let plan = prepare_and_keep(sql, args);
    PLANS.with_borrow_mut(|plans| plans.insert(sql.to_owned(), plan));
    plan
}

fn prepare_and_keep(sql: &str, args: &[Arg]) -> pg_sys::SPIPlanPtr {
    let plan = prepare(sql, args);
    // SAFETY: a plan just made by SPI_prepare in this connection.
    if unsafe { pg_sys::SPI_keepplan(plan) } != 0 {
        pgrx::error!("SPI_keepplan failed");
    }
    plan
}

fn prepare(sql: &str, args: &[Arg]) -> pg_sys::SPIPlanPtr {
    let mut types: Vec<pg_sys::Oid> = args.iter().map(|a| a.oid).collect();
    // Names in it come from the catalogs, so the server encoding has their characters.
    let Ok(text) = CString::new(super::text::from_utf8(sql)) else {
        pgrx::error!("a statement contains a NUL"); // cut there, it would be another one
    };
    // SAFETY: NUL-terminated text and as many types as arguments; errors are raised by the parser.
    let plan = unsafe { pg_sys::SPI_prepare(text.as_ptr(), types.len() as i32, types.as_mut_ptr()) };
    if plan.is_null() {
        pgrx::error!("SPI_prepare failed: {sql}");
    }
    plan
}

/// Values and NULLs as SPI takes them.
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

/// Hands every row of the last result to `each` and frees the result.
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
    let _spi = Connection::open();
    execute(plan(sql, args), args, false)
}

/// As [`run`], for statements whose text follows from input: a number of plans is kept, those that were used last.
pub fn run_varied(sql: &str, args: &[Arg]) -> u64 {
    let _spi = Connection::open();
    let plan = match VARIED.with_borrow_mut(|varied| varied.get(sql)) {
        Some(plan) => plan,
        None => {
            let plan = prepare_and_keep(sql, args);
            // What is thrown out is dropped when nothing is borrowed any more.
            let (plan, _out) = VARIED.with_borrow_mut(|varied| varied.keep(sql, plan));
            plan
        }
    };
    execute(plan.plan, args, false)
}

/// Runs a query with a plan kept for the session and hands its rows to `each`.
pub fn query(sql: &str, args: &[Arg], each: impl FnMut(&Row<'_>)) -> u64 {
    let _spi = Connection::open();
    let processed = execute(plan(sql, args), args, false);
    rows(each);
    processed
}

/// Runs a query once, without keeping its plan: for DDL and for text made of user input.
pub fn once(sql: &str, args: &[Arg], each: impl FnMut(&Row<'_>)) -> u64 {
    let _spi = Connection::open();
    let processed = execute(prepare(sql, args), args, false);
    rows(each);
    processed
}

/// Runs a query and hands over its rows until `each` says stop. They are fetched a few at a time, so that a reader that
/// stops at a number of bytes never holds many times that.
pub fn scan(sql: &str, args: &[Arg], mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>) {
    scan_by(sql, args, &mut |row| match each(row) {
        ControlFlow::Continue(()) => FEW,
        ControlFlow::Break(()) => 0,
    });
}

/// As [`scan`]; `each` says how many more rows it wants at most, 0 for none. At first it is handed a few.
pub fn scan_by(sql: &str, args: &[Arg], each: &mut dyn FnMut(&Row<'_>) -> usize) {
    let _spi = Connection::open();
    scan_plan(plan(sql, args), args, each);
}

/// As [`scan`], without keeping the plan: for text made of user input.
pub fn scan_once(sql: &str, args: &[Arg], mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>) {
    let _spi = Connection::open();
    scan_plan(prepare(sql, args), args, &mut |row| match each(row) {
        ControlFlow::Continue(()) => FEW,
        ControlFlow::Break(()) => 0,
    });
}

/// Rows fetched at a time where nothing is known of their size.
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
