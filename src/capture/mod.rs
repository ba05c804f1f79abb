//! Capture: a write to an attached table becomes a row of the outbox, in the writer's own transaction.
//!
//! Runs as the writer, because encoding a value can run a user's cast (`hard-facts` 1); it needs no rights on the outbox,
//! because the row is appended to the heap directly. Any error here fails the writer's statement: a change is never lost
//! quietly.

mod append;
mod eligible;
mod encode;
pub mod install;
mod options;
mod order;
mod plan;
mod writer;

use crate::error::{Error, SqlState};
use crate::pg::heap::{Columns, VarlenaBuffer};
use crate::pg::trigger::{Event, Fired};
use crate::pg::{executor, utility};
use crate::settings;
pub use options::{OPERATIONS, Options, Priority};
use plan::Plan;
use std::cell::RefCell;
pub use writer::Writer;

/// Characters a reason needs where `require_reason` is set (the seeds' X-Reason rule).
pub const REASON_MIN_CHARS: usize = 5;

pub fn init() {
    executor::init();
    utility::init();
    plan::init();
}

/// What one capture works with; kept from row to row so that nothing is allocated in the steady state.
#[derive(Default)]
struct Scratch {
    new: Columns,
    old: Columns,
    present: Columns,
    pk: VarlenaBuffer,
    data: VarlenaBuffer,
    before: VarlenaBuffer,
    changed: Vec<bool>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// The trigger function's work.
pub fn capture(fired: &Fired<'_>) {
    if !settings::capture() {
        return;
    }
    let plan = plan::of(fired);
    let reason = settings::reason();
    if plan.require_reason {
        check_reason(reason.as_deref(), &plan);
    }
    // Taken, not borrowed: a user's cast may write to an attached table and bring us here again.
    let mut scratch = SCRATCH.take().unwrap_or_default();
    capture_change(fired, &plan, reason, &mut scratch);
    SCRATCH.set(Some(scratch));
}

fn capture_change(fired: &Fired<'_>, plan: &Plan, reason: Option<Vec<u8>>, scratch: &mut Scratch) {
    let Scratch { new, old, pk, data, before, changed, .. } = scratch;
    let event = fired.event();
    let relation = fired.relation();
    let _settings = plan.neutral_settings();

    if let Some(tuple) = fired.old() {
        old.load(tuple, &relation);
    }
    if let Some(tuple) = fired.new_row() {
        new.load(tuple, &relation);
    }
    if event == Event::Update && !plan.mark_changed(old, new, changed) {
        return;
    }
    let key_changes = || event == Event::Update && plan.changes_key(changed);
    if event != Event::Truncate && !(plan.knows_versions && plan.order.holds(fired, key_changes)) {
        return order::tell_state(fired, plan, reason, key_changes(), scratch);
    }
    let mut change = append::Change { event, pk: None, data: None, old: None, branch: None, reason };
    match event {
        Event::Insert => {
            plan.write_key(new, pk.clear());
            plan.write_all(new, data.clear());
            change.data = Some(data.datum());
            change.branch = plan.branch(new);
        }
        Event::Update => {
            plan.write_key(old, pk.clear());
            plan.write_changed(new, changed, data.clear());
            change.data = Some(data.datum());
            change.branch = plan.branch(new);
            if plan.include_old {
                plan.write_changed(old, changed, before.clear());
                change.old = Some(before.datum());
            }
        }
        Event::Delete => {
            plan.write_key(old, pk.clear());
            change.branch = plan.branch(old);
            if plan.include_old {
                plan.write_all(old, before.clear());
                change.old = Some(before.datum());
            }
        }
        Event::Truncate => {}
    }
    if event != Event::Truncate {
        change.pk = Some(pk.datum());
    }
    append::outbox(fired.function()).append(plan, &change);
}

fn check_reason(reason: Option<&[u8]>, plan: &Plan) {
    let chars = reason.map_or(0, |r| String::from_utf8_lossy(r).chars().count());
    if chars < REASON_MIN_CHARS {
        Error::new(
            SqlState::ERRCODE_CHECK_VIOLATION,
            format!(
                "writing to \"{}\" needs a reason of at least {REASON_MIN_CHARS} characters",
                String::from_utf8_lossy(plan.table_name.bytes())
            ),
        )
        .hint("Say why first: SET sync_outbox.reason = 'stock count of store 12'; or SET LOCAL inside a transaction.")
        .raise()
    }
}
