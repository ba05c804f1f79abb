//! Time limits inside a statement: how long it may take, and how long of that it has waited for locks.

use super::clock;
use super::externs::{self, STATEMENT_TIMEOUT};
use super::xact;
use once_cell::sync::{Lazy, OnceCell};
use pgrx::pg_sys;
use std::ffi::c_int;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Ends the running statement with 57014, as `statement_timeout` does. That setting is read when a statement begins, so
/// that it is too late to set it inside one. The caller's own limit applies if it is earlier, and is restored when this
/// is dropped.
///
/// Code that runs inside may catch that error, as any error can be caught by its name. So the rollback of a
/// subtransaction, which every catching involves, makes the error be raised again: the first time after
/// [`TO_CLEAN_UP`], and from then on at the next check for interrupts. In PL/pgSQL that is before the next statement,
/// outside the block that has just caught the error, so that each block catches it at most once. Code in other
/// languages can catch it in a loop; its session ends after [`TO_GIVE_UP`].
pub struct StatementLimit {
    /// When the limit that we have replaced would be reached.
    replaced: Option<Option<i64>>,
    deadline: i64,
    /// The values of `DEADLINE` and `SEEN` of the call around this one, if any.
    outer: (i64, u8),
}

/// How long code that has caught the error may continue.
const TO_CLEAN_UP: i64 = 500_000;
/// How long after the deadline the session ends if its code still continues.
const TO_GIVE_UP: i64 = 5_000_000;

/// The deadline of the innermost limit; `i64::MAX` if there is none.
static DEADLINE: AtomicI64 = AtomicI64::new(i64::MAX);

/// What has become of the innermost limit's error.
static SEEN: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
/// It was raised, and has rolled a subtransaction back.
const RAISED: u8 = 1;
/// It was raised again, and so it had been caught.
const CAUGHT: u8 = 2;

/// Whether the time is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Time {
    Left,
    /// The statement has to end with 57014.
    Over,
    /// The same, and code that ran has caught that error.
    Caught,
}

impl StatementLimit {
    /// `None` is no limit.
    pub fn new(most: Option<Duration>) -> Self {
        static REGISTERED: OnceCell<()> = OnceCell::new();
        REGISTERED.get_or_init(|| xact::on_rollback_of_subtransaction(raise_again));
        let before = externs::timeout_finishes(STATEMENT_TIMEOUT);
        let ours = most.map_or(i64::MAX, |most| clock::now_micros().saturating_add(most.as_micros() as i64));
        let (replaced, deadline) = match before.unwrap_or(i64::MAX) {
            earlier if earlier <= ours => (None, earlier),
            _ => {
                externs::enable_timeout_at(STATEMENT_TIMEOUT, ours);
                (Some(before), ours)
            }
        };
        let outer = (DEADLINE.swap(deadline, Relaxed), SEEN.swap(NOTHING, Relaxed));
        StatementLimit { replaced, deadline, outer }
    }

    /// Whether it is our limit, and not an earlier one of the caller.
    pub fn is_ours(&self) -> bool {
        self.replaced.is_some()
    }

    /// To be called as soon as other people's code returns, with an error or because it has finished. Once the time is
    /// over, the error of the limit is not raised any more after this.
    pub fn look(&self, finished: bool) -> Time {
        if clock::now_micros() < self.deadline {
            return Time::Left;
        }
        let seen = SEEN.load(Relaxed);
        self.calm();
        match seen {
            CAUGHT => Time::Caught,
            RAISED if finished => Time::Caught,
            _ => Time::Over,
        }
    }

    /// Undoes what [`raise_again`] has done.
    fn calm(&self) {
        let seen = SEEN.swap(NOTHING, Relaxed);
        if seen != NOTHING {
            externs::disable_timeout(STATEMENT_TIMEOUT, false);
            // SAFETY: plain global of globals.c; set by us, or by the timeout that we have enabled.
            unsafe { pg_sys::QueryCancelPending = 0 };
        }
    }
}

impl Drop for StatementLimit {
    /// Also while an error unwinds: no abort knows of it.
    fn drop(&mut self) {
        self.calm();
        let (deadline, seen) = self.outer;
        DEADLINE.store(deadline, Relaxed);
        SEEN.store(seen, Relaxed);
        match self.replaced {
            None => {}
            Some(None) => externs::disable_timeout(STATEMENT_TIMEOUT, false),
            Some(Some(at)) => externs::enable_timeout_at(STATEMENT_TIMEOUT, at),
        }
    }
}

/// Called when a subtransaction is rolled back: by the error of the limit, or when the time is over anyway.
fn raise_again() {
    let deadline = DEADLINE.load(Relaxed);
    if deadline == i64::MAX || clock::now_micros() < deadline {
        return;
    }
    // SAFETY: a flag of globals.c, read on the main thread.
    let pending = unsafe { pg_sys::QueryCancelPending } != 0;
    if pending || externs::timeout_finishes(STATEMENT_TIMEOUT).is_some() {
        return; // the timeout has not been raised since it was set
    }
    if SEEN.load(Relaxed) == NOTHING {
        SEEN.store(RAISED, Relaxed);
        externs::enable_timeout_at(STATEMENT_TIMEOUT, clock::now_micros() + TO_CLEAN_UP);
        return;
    }
    SEEN.store(CAUGHT, Relaxed);
    let gives_up = clock::now_micros() > deadline.saturating_add(TO_GIVE_UP);
    if gives_up {
        // SAFETY: raises like a C function, if at all; nothing here is to be dropped.
        unsafe { tell() };
    }
    // SAFETY: flags of globals.c, set as the handlers of SIGINT and SIGTERM set them, and served at the next look.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        if gives_up {
            pg_sys::ProcDiePending = 1;
        }
        pg_sys::InterruptPending = 1;
    }
}

/// Logs the reason, because PostgreSQL will report that an administrator has ended the session.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn tell() {
    pgrx::log!("sync_outbox ends this session: code of a table catches the error of a time limit again and again");
}

/// Measures, while it lives, how long this process waits for heavyweight locks, by checking every [`TICK_MS`] whether
/// it does. PostgreSQL's timers show when a wait begins but not when it ends.
pub struct LockWaits(());

const TICK_MS: c_int = 10;

/// How many of these clocks are running, one inside the other.
static CLOCKS: AtomicU32 = AtomicU32::new(0);
/// The number of ticks that found this process waiting.
static WAITING: AtomicI64 = AtomicI64::new(0);

impl LockWaits {
    pub fn new() -> Self {
        if CLOCKS.fetch_add(1, Relaxed) == 0 {
            externs::enable_timeout_every(*TICK_TIMEOUT, clock::now_micros() + 1000 * i64::from(TICK_MS), TICK_MS);
        }
        LockWaits(())
    }

    /// The total microseconds of waiting. The difference of two such numbers is off by up to a tick at either end.
    pub fn waited(&self) -> i64 {
        1000 * i64::from(TICK_MS) * WAITING.load(Relaxed)
    }
}

impl Drop for LockWaits {
    /// Also while an error unwinds: no abort knows of it.
    fn drop(&mut self) {
        if CLOCKS.fetch_sub(1, Relaxed) == 1 {
            externs::disable_timeout(*TICK_TIMEOUT, false);
        }
    }
}

/// The number that PostgreSQL gives the timeout of [`tick`] in this process.
static TICK_TIMEOUT: Lazy<c_int> = Lazy::new(|| externs::register_timeout(tick));

/// Runs in a signal handler.
unsafe extern "C-unwind" fn tick() {
    const CLASS: u32 = 0xFF00_0000;
    // SAFETY: a volatile read of a pointer that a process clears on its way out, and of what the code writes that the
    // signal has interrupted: a session that ends while it applies still ticks.
    let waits_for = unsafe {
        let process = (&raw const pg_sys::MyProc).read_volatile();
        if process.is_null() {
            return;
        }
        (&raw const (*process).wait_event_info).read_volatile()
    };
    if waits_for & CLASS == pg_sys::PG_WAIT_LOCK {
        WAITING.fetch_add(1, Relaxed);
    }
}
