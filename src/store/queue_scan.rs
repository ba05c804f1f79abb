//! How changes leave the outbox: they are read in order, and deleted when they have been acknowledged.
//!
//! As long as the outbox is as `sql/` makes it, this does not use the executor; otherwise it uses SQL, which does the
//! same. Everything else that is done to the table is in `queue.rs`.

use super::Schema;
use super::shape::{self, Shape, column};
use super::snapshot::Snapshot;
use crate::pg::datum::Value;
use crate::pg::interrupt;
use crate::pg::relation_lock::LockMode;
use crate::pg::scan::Range;
use crate::pg::spi::{self, Arg, Row};
use crate::pg::text;
use crate::pg::transaction_id;
use crate::pg::xact;
use delivery::batch::{Batch, Change, StoredChange};
use delivery::keys::Touched;
use std::borrow::Cow;
use std::ops::ControlFlow;
use uuid::Uuid;
use wire::body::Outgoing;
use wire::{Operation, Priority};

/// A scan of one lane for deliverable changes.
pub struct QueueScan<'a> {
    /// The shape of the outbox, which is locked for reading.
    pub shape: &'a Shape,
    pub target_id: i16,
    pub priority: Priority,
    /// Only ids above this one.
    pub after: i64,
    /// Only changes that this snapshot sees.
    pub committed: &'a Snapshot,
    /// Of FAILED changes only those that are due by this time, in microseconds as `clock::now_micros()` returns them.
    pub due_by: i64,
    pub rows: usize,
    pub bytes: usize,
    /// The reader's own transaction, whose changes must not be sent before it commits.
    pub own_txid: Option<u64>,
}

/// Where a scan ended.
pub struct ScanEnd {
    /// The last id looked at.
    pub at: i64,
    /// The scan ended because the batch was full, or because the caller wanted no more: there may be more changes.
    pub full: bool,
}

/// A change that is committed and not deliverable.
pub struct SkippedChange {
    pub id: i64,
    pub touched: Touched,
    /// It is in conflict or dead; otherwise it is not due yet.
    pub waits_for_a_person: bool,
}

impl QueueScan<'_> {
    /// Adds changes to `batch` until it has `rows` changes or `bytes` bytes. A change that is larger than `bytes` goes
    /// alone. `wanted` can leave a change out; `left` gets those that are not deliverable, and can end the scan.
    pub fn read(
        &self,
        schema: &Schema,
        batch: &mut Batch,
        mut wanted: impl FnMut(i64, &dyn Fn() -> Uuid) -> bool,
        mut left: impl FnMut(SkippedChange) -> ControlFlow<()>,
    ) -> ScanEnd {
        let shape = self.shape;
        let mut ended = ScanEnd { at: self.after, full: false };
        let mut created_at = Vec::new();
        let mut take = |row: &Row<'_>| {
            if batch.len() >= self.rows {
                ended.full = true;
                return 0;
            }
            let id = row.int(column::ID);
            if !self.is_visible(row) || !wanted(id, &|| row.uuid(column::DEDUP_KEY)) {
                ended.at = id;
                return self.rows_to_come(batch);
            }
            if !self.is_deliverable(row) {
                ended.at = id;
                let waits_for_a_person = shape.waits_for_a_person(row.label(column::STATUS));
                if left(SkippedChange { id, touched: touched(row), waits_for_a_person }).is_break() {
                    ended.full = true;
                    return 0;
                }
                return self.rows_to_come(batch);
            }
            let json = [column::PK, column::DATA, column::OLD].map(|n| row.bytes(n));
            let size: usize = json.iter().flatten().map(|part| part.len()).sum();
            if !batch.is_empty() && batch.bytes() + size > self.bytes {
                ended.full = true;
                return 0;
            }
            ended.at = id;
            created_at.clear();
            row.iso_time(column::CREATED_AT, &mut created_at);
            batch.push(&stored(row, self.priority, json, &created_at, shape));
            self.rows_to_come(batch)
        };
        match shape.direct(LockMode::AccessShare) {
            Some(opened) => {
                let lane = (self.target_id, shape.label_of(self.priority));
                Range { opened: &opened, equal: lane, above: self.after }
                    .read(|row| if take(row) > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            }
            None => self.read_by_sql(schema, &mut take),
        }
        ended
    }

    fn read_by_sql(&self, schema: &Schema, take: &mut dyn FnMut(&Row<'_>) -> usize) {
        let columns = shape::column_list();
        spi::scan_by(
            &schema.sql(&format!(
                "SELECT {columns}, ctid FROM @.sync_outbox
                  WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                    AND id OPERATOR(pg_catalog.>) $3 ORDER BY id"
            )),
            &[self.target_id.into(), self.priority.name().into(), self.after.into()],
            take,
        );
    }

    /// Whether the snapshot sees a change as committed, by another transaction than the reader's.
    fn is_visible(&self, row: &Row<'_>) -> bool {
        let txid = row.xid8(column::TXID);
        // A number that this server has yet to give is that of another server's transaction, and came with a dump.
        (self.committed.sees(txid) || txid >= transaction_id::next()) && Some(txid) != self.own_txid
    }

    /// PENDING, or FAILED and due. Those of a request that did not get through are due always.
    fn is_deliverable(&self, row: &Row<'_>) -> bool {
        let status = row.label(column::STATUS);
        let due = || row.micros(column::NEXT_ATTEMPT_AT).is_none_or(|at| at <= self.due_by);
        status == Some(self.shape.pending) || (status == Some(self.shape.failed) && due())
    }

    /// How many more rows are expected to fit, and one to see whether there are any.
    fn rows_to_come(&self, batch: &Batch) -> usize {
        let left = self.bytes.saturating_sub(batch.bytes());
        let by_bytes = batch.bytes().checked_div(batch.len()).map_or(0, |each| left / each.max(1));
        by_bytes.min(self.rows - batch.len()) + 1
    }
}

fn stored<'a>(
    row: &'a Row<'_>,
    priority: Priority,
    json: [Option<&'a [u8]>; 3],
    created_at: &'a [u8],
    shape: &Shape,
) -> StoredChange<'a> {
    let mut unsendable = None;
    let mut text = |n| row.bytes(n).map(|bytes| utf8(bytes, &mut unsendable));
    let (schema, table) = (text(column::SCHEMA_NAME), text(column::TABLE_NAME));
    let (op, branch, reason) = (text(column::OP), text(column::BRANCH), text(column::REASON));
    let [pk, data, old] = json.map(|part| part.map(|part| utf8(part, &mut unsendable)));
    let outgoing = Outgoing {
        schema: schema.unwrap_or_default(),
        table: table.unwrap_or_default(),
        op: op.unwrap_or_default(),
        pk,
        data,
        old,
        dedup_key: row.uuid(column::DEDUP_KEY),
        id: row.int(column::ID),
        txid: row.xid8(column::TXID),
        branch,
        reason,
        created_at: String::from_utf8_lossy(created_at),
    };
    StoredChange {
        outgoing,
        priority,
        place: row.place(shape::COLUMN_COUNT + 1),
        attempts: row.get(column::ATTEMPT_COUNT).unwrap_or_default(),
        refusals: row.get(column::REFUSALS).unwrap_or_default(),
        was_offline: row.label(column::STATUS) == Some(shape.failed) && row.micros(column::NEXT_ATTEMPT_AT).is_none(),
        unsendable,
    }
}

/// Text as UTF-8. What cannot be converted is replaced, so that the key can still be told from others, and the reason
/// is put into `unsendable`.
fn utf8<'a>(bytes: &'a [u8], unsendable: &mut Option<String>) -> Cow<'a, str> {
    text::checked_utf8(bytes).unwrap_or_else(|why| {
        *unsendable = Some(why);
        String::from_utf8_lossy(bytes)
    })
}

/// The keys of a change that is not sent now.
fn touched(row: &Row<'_>) -> Touched {
    let mut ignored = None;
    let mut text = |n| row.bytes(n).map(|bytes| utf8(bytes, &mut ignored));
    let (schema, table, op) = (text(column::SCHEMA_NAME), text(column::TABLE_NAME), text(column::OP));
    let pk = text(column::PK);
    let data = if op.as_deref() == Some(Operation::Update.name()) { text(column::DATA) } else { None };
    Touched::new(&schema.unwrap_or_default(), &table.unwrap_or_default(), pk.as_deref(), data.as_deref())
}

/// Deletes acknowledged changes: exactly the rows that were read, by address, id and key. A row that has moved
/// meanwhile (by VACUUM FULL or an update) is found by its primary key. A row that is gone is not an error.
pub fn delete(schema: &Schema, target_id: i16, changes: &[&Change]) {
    let shape = Shape::of(schema.oid, LockMode::RowExclusive);
    let missed: Vec<&Change> = match shape.direct(LockMode::RowExclusive) {
        Some(outbox) => xact::with_snapshot(|| {
            let blocks = outbox.blocks(); // a vacuum may have truncated the table since
            let delete = |change: &Change| {
                interrupt::check();
                let is_it =
                    |[id, _, key]: [Value; 3]| id.int8() == change.id && key.uuid() == change.dedup_key.as_bytes();
                change.place.0 < blocks && outbox.delete(change.place, is_it)
            };
            changes.iter().copied().filter(|change| !delete(change)).collect()
        }),
        None => changes.to_vec(),
    };
    xact::command_counter_increment();
    for change in missed {
        // One at a time: the plan of a statement for all of them would be the planner's choice, which is wrong for a
        // queue.
        spi::run(
            &schema.sql(
                "DELETE FROM @.sync_outbox
                  WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                    AND id OPERATOR(pg_catalog.=) $3 AND dedup_key OPERATOR(pg_catalog.=) ANY ($4)",
            ),
            &[target_id.into(), change.priority.name().into(), change.id.into(), Arg::uuids([&change.dedup_key])],
        );
    }
}
