//! Capture: a write to an attached table becomes a row of the outbox, in the writer's own transaction.
//!
//! Runs as the writer, because encoding a value can run a user's cast (`invariants` 1); it needs no rights on the
//! outbox, because the row is appended to the heap directly. Any error here fails the writer's statement: a change is
//! never lost quietly.

mod append;
mod eligible;
mod encode;
pub mod install;
mod order;
mod plan;
mod reason;
mod state;
mod writer;

use crate::pg::buffer::VarlenaBuffer;
use crate::pg::heap::Columns;
use crate::pg::text::Varlena;
use crate::pg::trigger::Fired;
use crate::pg::truncation::{self, RowCapture};
use crate::pg::{executor, invalidation, utility};
use crate::settings;
use plan::Plan;
pub use plan::missing as missing_column;
use std::cell::RefCell;
use wire::Operation;
pub use writer::Writer;

pub fn init() {
    executor::init();
    utility::init();
    truncation::init();
    invalidation::on_change(|oid| {
        append::forget(oid);
        plan::forget(oid);
    });
}

/// Buffers for one row, which are kept from row to row so that nothing is allocated in the steady state.
#[derive(Default)]
struct RowBuffers {
    new: Columns,
    old: Columns,
    present: Columns,
    pk: VarlenaBuffer,
    data: VarlenaBuffer,
    before: VarlenaBuffer,
    branch: VarlenaBuffer,
    changed: Vec<bool>,
}

impl RowBuffers {
    /// Gives back the memory that a large row needed.
    fn shrink(&mut self) {
        [&mut self.pk, &mut self.data, &mut self.before, &mut self.branch].into_iter().for_each(VarlenaBuffer::shrink);
    }
}

thread_local! {
    static BUFFERS: RefCell<Option<Box<RowBuffers>>> = const { RefCell::new(None) };
}

/// The trigger function's work.
pub fn capture(fired: &Fired<'_>) {
    if !settings::capture() {
        return;
    }
    let plan = plan::of(fired);
    let reason = reason::of_session(&plan);
    // Taken, not borrowed: a user's cast may write to an attached table, and so call this function again.
    let mut buffers = BUFFERS.take().unwrap_or_default();
    capture_change(fired, &plan, reason, &mut buffers);
    buffers.shrink();
    BUFFERS.set(Some(buffers));
}

fn capture_change(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>, buffers: &mut RowBuffers) {
    let RowBuffers { new, old, pk, data, before, branch, changed, .. } = buffers;
    let event = fired.event();
    if event == Operation::Truncate {
        return capture_truncate(fired, plan, reason, buffers);
    }
    let _settings = plan.neutral_settings();

    if let Some(tuple) = fired.old() {
        old.load(tuple);
    }
    if let Some(tuple) = fired.new_row() {
        new.load(tuple);
    }
    if event == Operation::Update && !plan.mark_changed(old, new, changed) {
        return;
    }
    let key_changes = || event == Operation::Update && plan.changes_key(changed);
    if !captures_row_now(fired, plan, reason) {
        return;
    }
    if !(plan.knows_versions && plan.order.can_capture_as_it_is(fired, key_changes)) {
        return state::capture_state(fired, plan, reason, key_changes(), buffers);
    }
    let mut change = append::CapturedChange { event, pk: None, data: None, old: None, branch: None, reason };
    let outbox = append::outbox(fired.function());
    let id = outbox.draw_id();
    match event {
        Operation::Insert => {
            plan.write_key(new, pk.clear());
            plan.write_all(new, data.clear());
            change.data = Some(data.datum());
            change.branch = plan.branch(new, branch);
        }
        Operation::Update => {
            plan.write_key(old, pk.clear());
            plan.write_changed(new, changed, data.clear());
            change.data = Some(data.datum());
            change.branch = plan.branch(new, branch);
            if plan.include_old {
                plan.write_changed(old, changed, before.clear());
                change.old = Some(before.datum());
            }
        }
        Operation::Delete => {
            plan.write_key(old, pk.clear());
            change.branch = plan.branch(old, branch);
            if plan.include_old {
                plan.write_all(old, before.clear());
                change.old = Some(before.datum());
            }
        }
        Operation::Truncate => return,
    }
    change.pk = Some(pk.datum());
    append::after_encoding(&outbox, plan).append(plan, id, &change);
}

/// Captures a TRUNCATE that is still open before the first change of a row after it. Returns whether the change itself
/// is captured now: otherwise the trigger of the TRUNCATE captures the rows that stand.
fn captures_row_now(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>) -> bool {
    if !(plan.captures_truncate && plan.captures_insert && truncation::any()) {
        return true;
    }
    match truncation::row_capture(plan.root(), &fired.relation()) {
        RowCapture::AsUsual => true,
        RowCapture::AfterTruncate => {
            append_truncate(fired, plan, reason);
            true
        }
        RowCapture::HeldBack => false,
    }
}

/// What other triggers, which were fired before ours, have written to the table since it was emptied must come after
/// the TRUNCATE: either the first of these changes has captured the TRUNCATE, or all the rows are captured now.
fn capture_truncate(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>, buffers: &mut RowBuffers) {
    let captured = truncation::trigger_fired(plan.root());
    if !captured.truncate {
        append_truncate(fired, plan, reason);
    }
    if !captured.truncate || captured.rows_held_back {
        let _settings = plan.neutral_settings();
        state::capture_rows(fired, plan, reason, buffers);
    }
}

fn append_truncate(fired: &Fired<'_>, plan: &Plan, reason: Option<Varlena<'_>>) {
    let outbox = append::outbox(fired.function());
    let id = outbox.draw_id();
    let change =
        append::CapturedChange { event: Operation::Truncate, pk: None, data: None, old: None, branch: None, reason };
    outbox.append(plan, id, &change);
}
