//! Plans that a session keeps.

use super::Arg;
use crate::pg::text;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

thread_local! {
    /// Kept plans by statement text: PostgreSQL's plan cache revalidates them after DDL.
    static PLANS: RefCell<HashMap<String, KeptPlan>> = RefCell::new(HashMap::new());
    /// Kept plans of statements whose text depends on input, [`VARIED_MOST`] at most.
    static VARIED: RefCell<Varied> = RefCell::new(Varied::default());
}

/// The most plans that a session keeps of statements whose text depends on input. A plan of apply takes about 30 kB,
/// and each one costs a little whenever the plan cache is invalidated, which apply does twice in a call.
const VARIED_MOST: usize = 500;
/// The most bytes of the texts of these statements; a plan takes about a hundred times as much.
const VARIED_MOST_BYTES: usize = 256 * 1024;

/// A plan, and the types that it was made for.
struct KeptPlan {
    plan: pg_sys::SPIPlanPtr,
    types: Box<[pg_sys::Oid]>,
}

impl KeptPlan {
    fn new(sql: &str, args: &[Arg]) -> Self {
        let plan = prepare(sql, args);
        // SAFETY: a plan just made by SPI_prepare in this connection.
        if unsafe { pg_sys::SPI_keepplan(plan) } != 0 {
            pgrx::error!("SPI_keepplan failed");
        }
        KeptPlan { plan, types: args.iter().map(|arg| arg.oid).collect() }
    }

    /// The plan, if the arguments have the types that it was made for. Values of other types would be misread.
    fn of(&self, args: &[Arg]) -> pg_sys::SPIPlanPtr {
        if !self.types.iter().copied().eq(args.iter().map(|arg| arg.oid)) {
            pgrx::error!("a kept plan was made for arguments of other types");
        }
        self.plan
    }
}

#[derive(Default)]
struct Varied {
    plans: HashMap<String, Rc<VariedPlan>>,
    /// The total length of the texts of all statements.
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

/// A kept plan, which is freed with the last reference to it: a plan can be evicted while it is executed, by statements
/// that its own triggers run.
pub(super) struct VariedPlan {
    plan: KeptPlan,
    used: Cell<u64>,
}

impl Drop for VariedPlan {
    fn drop(&mut self) {
        // SAFETY: a kept plan that nobody executes: it belongs to the backend, not to a transaction, so that it can be
        // freed while an error unwinds too.
        unsafe { pg_sys::SPI_freeplan(self.plan.plan) };
    }
}

impl VariedPlan {
    pub(super) fn of(&self, args: &[Arg]) -> pg_sys::SPIPlanPtr {
        self.plan.of(args)
    }
}

impl Varied {
    fn get(&mut self, sql: &str) -> Option<Rc<VariedPlan>> {
        self.clock += 1;
        let found = self.plans.get(sql)?;
        found.used.set(self.clock);
        Some(found.clone())
    }

    /// Keeps a plan in place of the least recently used one. To look for that one costs much less than making the plan
    /// did.
    fn keep(&mut self, sql: &str, plan: KeptPlan) -> (Rc<VariedPlan>, Vec<Rc<VariedPlan>>) {
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

/// The plan of a statement, made when it is first asked for and kept for the session.
pub(super) fn kept(sql: &str, args: &[Arg]) -> pg_sys::SPIPlanPtr {
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(sql).map(|plan| plan.of(args))) {
        return plan;
    }
    let made = KeptPlan::new(sql, args);
    let plan = made.plan;
    PLANS.with_borrow_mut(|plans| plans.insert(sql.to_owned(), made));
    plan
}

/// As [`kept`], for statements whose text depends on input: only a number of plans is kept, the most recently used
/// ones.
pub(super) fn varied(sql: &str, args: &[Arg]) -> Rc<VariedPlan> {
    VARIED.with_borrow_mut(|varied| varied.get(sql)).unwrap_or_else(|| {
        let plan = KeptPlan::new(sql, args);
        // Evicted plans are dropped when nothing is borrowed any more.
        let (plan, _out) = VARIED.with_borrow_mut(|varied| varied.keep(sql, plan));
        plan
    })
}

/// A plan that is not kept: it is freed with the connection.
pub(super) fn prepare(sql: &str, args: &[Arg]) -> pg_sys::SPIPlanPtr {
    let mut types: Vec<pg_sys::Oid> = args.iter().map(|a| a.oid).collect();
    // Names in it come from the catalogs, so the server encoding has their characters.
    let Ok(text) = CString::new(text::from_utf8(sql)) else {
        pgrx::error!("a statement contains a NUL"); // truncated there, it would be another statement
    };
    // SAFETY: NUL-terminated text and as many types as arguments; errors are raised by the parser.
    let plan = unsafe { pg_sys::SPI_prepare(text.as_ptr(), types.len() as i32, types.as_mut_ptr()) };
    if plan.is_null() {
        pgrx::error!("SPI_prepare failed: {sql}");
    }
    plan
}
