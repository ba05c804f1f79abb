//! Capturing rows that exist already, as if they were inserted now: what backfill does.
//!
//! The same plan, encoders and append as for a trigger, so that a backfilled row looks exactly like a captured one.
//! Rows are read and encoded as the table's owner, because that may run the owner's code, which must not run as whoever
//! calls the backfill. The caller has locked the row, so that the id of any later change of it is greater.

use super::append::{self, CapturedChange, Outbox};
use super::plan::Plan;
use super::reason;
use crate::pg::buffer::VarlenaBuffer;
use crate::pg::confine;
use crate::pg::heap::Columns;
use crate::pg::interrupt;
use crate::pg::memory::{self, ScratchContext};
use crate::pg::relation::Open;
use crate::pg::role::ActAs;
use crate::pg::spi::Row;
use crate::pg::text::Varlena;
use crate::store::Schema;
use crate::store::options::Options;
use std::rc::Rc;
use wire::Operation;

pub struct Writer {
    table: Open,
    plan: Plan,
    outbox: Rc<Outbox>,
    reason: Option<Varlena<'static>>,
    /// Ids that were drawn before the first row was encoded, from the last to the first.
    ids: Vec<i64>,
    memory: ScratchContext,
    row: Columns,
    pk: VarlenaBuffer,
    data: VarlenaBuffer,
    branch: VarlenaBuffer,
}

impl Writer {
    /// For the rows of an attached table; `options` give their target and priority.
    pub fn new(schema: &Schema, table: Open, options: &Options) -> Self {
        let _owner = ActAs::owner();
        let plan = Plan::new(table.borrow().oid(), &table.borrow(), options);
        Writer {
            // Lives as long as the function's call.
            reason: reason::of_session(&plan),
            plan,
            outbox: append::outbox(schema.capture()),
            table,
            ids: Vec::new(),
            memory: ScratchContext::new(),
            row: Columns::default(),
            pk: VarlenaBuffer::default(),
            data: VarlenaBuffer::default(),
            branch: VarlenaBuffer::default(),
        }
    }

    /// Whether a row's encoding can run casts of users, which can write to rows that are still to come. Then
    /// [`Writer::draw_ids`] comes first.
    pub fn runs_users_code(&self) -> bool {
        self.plan.runs_users_code
    }

    /// Draws the ids of the next `n` rows, which have been read and locked.
    pub fn draw_ids(&mut self, n: i64) {
        memory::reserve(&mut self.ids, usize::try_from(n).unwrap_or_default());
        for _ in 0..n {
            self.ids.push(self.outbox.draw_id());
            interrupt::check();
        }
        self.ids.reverse();
    }

    /// Whether another table may have had the name of this one.
    pub fn is_renamed(&self) -> bool {
        self.plan.is_renamed
    }

    /// Writes the row that is in column `n` of a result as a whole. Returns its id.
    pub fn insert(&mut self, result: &Row, n: usize) -> Option<i64> {
        let Writer { table, plan, outbox, reason, ids, memory, row, pk, data, branch } = self;
        memory.run(|| {
            if !result.whole_row(n, &table.borrow(), row) {
                return None;
            }
            let id = ids.pop().unwrap_or_else(|| outbox.draw_id());
            let restricted = plan.runs_users_code.then(|| ActAs::restricted(table.borrow().owner()));
            let settings = plan.neutral_settings();
            plan.write_key(row, pk.clear());
            plan.write_all(row, data.clear());
            let branch = plan.branch(row, branch);
            drop(settings);
            drop(restricted);
            let change = CapturedChange {
                event: Operation::Insert,
                pk: Some(pk.datum()),
                data: Some(data.datum()),
                old: None,
                branch,
                reason: *reason,
            };
            *outbox = append::after_encoding(outbox, plan);
            plan.order.note_backfill();
            confine::our_own(|| outbox.append(plan, id, &change));
            Some(id)
        })
    }
}
