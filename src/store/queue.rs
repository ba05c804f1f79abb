//! The table `sync_outbox`: appending, reading in order, and settling.

use super::Schema;
use super::snapshot::Snapshot;
use crate::capture::Priority;
use crate::delivery::batch::{Batch, Change, Stored};
use crate::pg::spi::{self, Arg};
use crate::pg::text;
use std::ops::ControlFlow;

/// The statement capture falls back to, columns in the table's order.
pub fn insert_statement(schema: &Schema) -> String {
    schema.sql(
        "INSERT INTO @.sync_outbox (id, txid, dedup_key, created_at, target_id, priority, status, attempt_count, refusals,
            schema_name, table_name, op, pk, data, branch, old, reason, last_attempt_at, next_attempt_at, error_message)
         VALUES ($1, $2, $3, $4, $5, $6::@.sync_outbox_priority, $7::@.sync_outbox_status, $8, $9,
            $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
    )
}

/// Which of its own uncommitted changes a transaction asks for.
pub struct OwnChanges<'a> {
    pub target_id: i16,
    pub priority: Priority,
    pub schema_name: &'a [u8],
    pub table_name: &'a [u8],
    /// The first id that the transaction drew: where the scan starts.
    pub first_id: i64,
    /// Only those captured by this command or a later one.
    pub since_command: u32,
}

/// A change with its key and data as JSON text.
pub struct OwnChange {
    pub id: i64,
    pub pk: String,
    pub data: String,
}

impl OwnChanges<'_> {
    /// In the order of their ids.
    pub fn read(&self, schema: &Schema) -> Vec<OwnChange> {
        let mut changes = Vec::new();
        spi::query(
            &schema.sql(
                "SELECT id, pk::text, data::text FROM @.sync_outbox
                  WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority AND id >= $3
                    AND txid = pg_catalog.pg_current_xact_id() AND schema_name = $4 AND table_name = $5
                    AND cmin::text::bigint >= $6
                  ORDER BY id",
            ),
            &[
                self.target_id.into(),
                self.priority.name().into(),
                self.first_id.into(),
                Arg::text_bytes(self.schema_name),
                Arg::text_bytes(self.table_name),
                i64::from(self.since_command).into(),
            ],
            |row| changes.push(OwnChange { id: row.int(1), pk: row.text(2), data: row.text(3) }),
        );
        changes
    }
}

/// Gives a change of this transaction another id.
pub fn renumber(schema: &Schema, target_id: i16, priority: Priority, id: i64, new_id: i64) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET id = $4
              WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority AND id = $3",
        ),
        &[target_id.into(), priority.name().into(), id.into(), new_id.into()],
    );
}

/// What may go out now: everything that is PENDING, and FAILED changes whose time has come (those of a request that did
/// not get through have none).
pub(super) const DELIVERABLE: &str = "(status = 'PENDING' OR (status = 'FAILED'
    AND (next_attempt_at IS NULL OR next_attempt_at <= pg_catalog.clock_timestamp())))";

/// A run of deliverable changes of one lane.
pub struct Run<'a> {
    pub target_id: i16,
    pub priority: Priority,
    /// Only ids above this one.
    pub after: i64,
    /// Only changes that it sees.
    pub committed: &'a Snapshot,
    pub rows: usize,
    pub bytes: usize,
    /// The reader's own transaction, whose changes must not leave before it commits.
    pub own_txid: Option<u64>,
}

impl Run<'_> {
    /// Adds the run's changes to `batch` until it has as many rows or bytes as wanted (a change larger than all of
    /// `bytes` still goes, alone). `wanted` can leave a change out. Returns the last id looked at, and whether there may
    /// be more.
    pub fn read(&self, schema: &Schema, batch: &mut Batch, mut wanted: impl FnMut(i64) -> bool) -> (i64, bool) {
        let (mut last, mut more) = (self.after, false);
        let mut created_at = Vec::new();
        spi::scan_by(
            &schema.sql(&format!(
                "SELECT id, ctid, dedup_key, txid, schema_name, table_name, op, pk, data, old, branch, reason, created_at,
                        attempt_count, refusals, status = 'FAILED' AND next_attempt_at IS NULL
                   FROM @.sync_outbox
                  WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority AND id > $3 AND {DELIVERABLE}
                    AND (txid < $4
                         -- The number of another cluster's transaction, from a dump.
                         OR txid >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()))
                  ORDER BY id"
            )),
            &[
                self.target_id.into(),
                self.priority.name().into(),
                self.after.into(),
                Arg::xid8(self.committed.xmax()),
            ],
            &mut |row| {
                let json = [8, 9, 10].map(|n| row.bytes(n));
                let size: usize = json.iter().flatten().map(|part| part.len()).sum();
                if batch.len() >= self.rows || (!batch.is_empty() && batch.bytes() + size > self.bytes) {
                    more = true;
                    return 0;
                }
                let (id, txid) = (row.int(1), row.xid8(4));
                last = id;
                let committed = txid >= self.committed.xmax() || self.committed.sees(txid);
                if committed && Some(txid) != self.own_txid && wanted(id) {
                    created_at.clear();
                    row.iso_time(13, &mut created_at);
                    self.take(row, json, &created_at, batch);
                }
                self.rows_to_come(batch)
            },
        );
        (last, more)
    }

    /// How many rows may still fit, and one more to see whether there are any.
    fn rows_to_come(&self, batch: &Batch) -> usize {
        let by_bytes =
            batch.bytes().checked_div(batch.len()).map_or(1, |each| self.bytes.saturating_sub(batch.bytes()) / each);
        by_bytes.min(self.rows - batch.len()) + 1
    }

    fn take(&self, row: &spi::Row<'_>, json: [Option<&[u8]>; 3], created_at: &[u8], batch: &mut Batch) {
        let [schema, table, op, branch, reason] = [5, 6, 7, 11, 12].map(|n| row.bytes(n).map(text::to_utf8));
        let [pk, data, old] = json.map(|part| part.map(text::to_utf8));
        batch.push(&Stored {
            id: row.int(1),
            priority: self.priority,
            place: row.place(2),
            dedup_key: row.uuid(3),
            txid: row.xid8(4),
            schema: schema.as_deref().unwrap_or_default(),
            table: table.as_deref().unwrap_or_default(),
            op: op.as_deref().unwrap_or_default(),
            pk: pk.as_deref(),
            data: data.as_deref(),
            old: old.as_deref(),
            branch: branch.as_deref(),
            reason: reason.as_deref(),
            created_at: std::str::from_utf8(created_at).unwrap_or_default(),
            attempts: row.get(14).unwrap_or_default(),
            refusals: row.get(15).unwrap_or_default(),
            was_offline: row.get(16).unwrap_or_default(),
        });
    }
}

/// The keys that a change has, as read for parking: schema, table, pk and data (UTF-8).
pub struct KeyRow {
    pub id: i64,
    pub schema_name: String,
    pub table_name: String,
    pub pk: Option<String>,
    pub data: Option<String>,
}

fn key_row(row: &spi::Row<'_>) -> KeyRow {
    KeyRow {
        id: row.int(1),
        schema_name: row.utf8(2).unwrap_or_default(),
        table_name: row.utf8(3).unwrap_or_default(),
        pk: row.utf8(4),
        data: row.utf8(5),
    }
}

/// Every change behind which later changes of its keys have to wait: in conflict, dead, or refused and not due.
pub fn parked(schema: &Schema, target_id: i16, mut each: impl FnMut(KeyRow)) {
    spi::scan(
        &schema.sql(&format!(
            "SELECT id, schema_name, table_name, pk, CASE WHEN op = 'UPDATE' THEN data END FROM @.sync_outbox
              WHERE target_id = $1 AND status <> 'PENDING' AND NOT {DELIVERABLE} ORDER BY status, id"
        )),
        &[target_id.into()],
        |row| {
            each(key_row(row));
            ControlFlow::Continue(())
        },
    );
}

/// How many changes wait, whatever their status: exact up to a million, then by the statistics of the table.
pub fn count(schema: &Schema, target_id: i16, branch: Option<&str>) -> i64 {
    const EXACT: i64 = 1_000_000;
    let counted = spi::first(
        &schema.sql(
            "SELECT count(*) FROM (SELECT 1 FROM @.sync_outbox
              WHERE target_id = $1 AND ($2 IS NULL OR branch = $2) LIMIT 1000001) AS waiting",
        ),
        &[target_id.into(), Arg::opt(branch)],
        |row| row.int(1),
    )
    .unwrap_or_default();
    if counted <= EXACT || branch.is_some() {
        return counted;
    }
    let estimate = spi::first(
        "SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = $1",
        &[schema.outbox().into()],
        |row| row.int(1),
    );
    estimate.unwrap_or_default().max(counted)
}

/// The greatest id there is: what a session that starts now has to deliver.
pub fn last_id(schema: &Schema, target_id: i16) -> i64 {
    Priority::ALL
        .into_iter()
        .filter_map(|priority| {
            spi::first(
                &schema.sql(
                    "SELECT id FROM @.sync_outbox WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority
                      ORDER BY id DESC LIMIT 1",
                ),
                &[target_id.into(), priority.name().into()],
                |row| row.int(1),
            )
        })
        .max()
        .unwrap_or(i64::MIN)
}

/// Whether anything up to `last_id` is left, whatever its status.
pub fn any_left(schema: &Schema, target_id: i16, branch: Option<&str>, last_id: i64) -> bool {
    spi::first(
        &schema.sql(
            "SELECT true FROM @.sync_outbox WHERE target_id = $1 AND id <= $2 AND ($3 IS NULL OR branch = $3) LIMIT 1",
        ),
        &[target_id.into(), last_id.into(), Arg::opt(branch)],
        |_| (),
    )
    .is_some()
}

/// Milliseconds until the next FAILED change is due.
pub fn due_in_ms(schema: &Schema, target_id: i16) -> Option<i64> {
    spi::first(
        &schema.sql(
            "SELECT (extract(epoch FROM min(next_attempt_at) - pg_catalog.clock_timestamp()) * 1000)::bigint
               FROM @.sync_outbox WHERE target_id = $1 AND status = 'FAILED'",
        ),
        &[target_id.into()],
        |row| row.get::<i64>(1),
    )
    .flatten()
}

/// Deletes acknowledged changes: exactly those that were read, by address and key. A row that has moved meanwhile (VACUUM
/// FULL, an update) is found by its primary key; one that is gone is no error.
pub fn delete(schema: &Schema, target_id: i16, changes: &[&Change]) {
    let places: Vec<_> = changes.iter().map(|c| c.place).collect();
    let deleted = spi::run(
        // Joined, because PostgreSQL compares every row with every element of an array that is a parameter.
        &schema.sql(
            "DELETE FROM @.sync_outbox o USING unnest($1, $2) AS acked (place, dedup_key)
              WHERE o.ctid = acked.place AND o.dedup_key = acked.dedup_key",
        ),
        &[Arg::places(&places), Arg::uuids(changes.iter().map(|c| &c.dedup_key))],
    );
    if deleted as usize == changes.len() {
        return;
    }
    for priority in Priority::ALL {
        let ids: Vec<i64> = changes.iter().filter(|c| c.priority == priority).map(|c| c.id).collect();
        if !ids.is_empty() {
            spi::run(
                &schema.sql(
                    "DELETE FROM @.sync_outbox WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority
                        AND id = ANY ($3) AND dedup_key = ANY ($4)",
                ),
                &[
                    target_id.into(),
                    priority.name().into(),
                    ids.into(),
                    Arg::uuids(changes.iter().map(|c| &c.dedup_key)),
                ],
            );
        }
    }
}

/// What becomes of a change that was not acknowledged.
pub struct Mark<'a> {
    pub change: &'a Change,
    pub status: &'static str,
    pub error: &'a str,
    /// Counts as a refusal by the target.
    pub refused: bool,
    /// Not before so many milliseconds from now; `None`: as soon as the target answers.
    pub wait_ms: Option<i64>,
}

/// Marks a change after an attempt.
pub fn mark(schema: &Schema, target_id: i16, mark: &Mark<'_>) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox
                SET status = $5::@.sync_outbox_status, attempt_count = attempt_count + 1, refusals = refusals + $6,
                    last_attempt_at = pg_catalog.clock_timestamp(), error_message = $7,
                    next_attempt_at = pg_catalog.clock_timestamp() + $8 * interval '1 millisecond'
              WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority AND id = $3 AND dedup_key = ANY ($4)",
        ),
        &[
            target_id.into(),
            mark.change.priority.name().into(),
            mark.change.id.into(),
            Arg::uuids([&mark.change.dedup_key]),
            mark.status.into(),
            i32::from(mark.refused).into(),
            Arg::text_utf8(mark.error),
            Arg::opt(mark.wait_ms),
        ],
    );
}

/// After a request that did not get through: its changes are FAILED, park nothing and stay first in line.
pub fn mark_offline(schema: &Schema, changes: &[&Change], error: &str) {
    let places: Vec<_> = changes.iter().map(|c| c.place).collect();
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox
                SET status = 'FAILED', attempt_count = attempt_count + 1, next_attempt_at = NULL,
                    last_attempt_at = pg_catalog.clock_timestamp(), error_message = $3
              WHERE ctid = ANY ($1) AND dedup_key = ANY ($2)",
        ),
        &[Arg::places(&places), Arg::uuids(changes.iter().map(|c| &c.dedup_key)), Arg::text_utf8(error)],
    );
}

/// The target answers again: what failed only because it did not is PENDING, as if it had never been tried.
pub fn revive_offline(schema: &Schema, target_id: i16) -> u64 {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET status = 'PENDING', attempt_count = 0
              WHERE target_id = $1 AND status = 'FAILED' AND next_attempt_at IS NULL",
        ),
        &[target_id.into()],
    )
}

/// Ranges of ids that a backfill put into another lane than their table's: tables whose keys need a look across lanes.
/// Ranges that are drained are forgotten.
pub fn crossing_tables(schema: &Schema, target_id: i16) -> Vec<(String, String)> {
    let mut tables = Vec::new();
    let list =
        schema.sql("SELECT DISTINCT relation_schema, relation_name FROM @.sync_outbox_lane WHERE target_id = $1");
    let any = spi::query(&list, &[target_id.into()], |_| ());
    if any == 0 {
        return tables;
    }
    spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_lane l WHERE target_id = $1 AND NOT EXISTS (
                SELECT FROM @.sync_outbox o WHERE o.target_id = l.target_id AND o.priority = l.priority
                    AND o.id BETWEEN l.first_id AND l.last_id)",
        ),
        &[target_id.into()],
    );
    spi::query(&list, &[target_id.into()], |row| {
        tables.push((row.utf8(1).unwrap_or_default(), row.utf8(2).unwrap_or_default()))
    });
    tables
}

/// The keys of one table's changes in one lane, in order, until `each` says stop.
pub fn lane_keys(
    schema: &Schema,
    target_id: i16,
    priority: Priority,
    table: &(String, String),
    mut each: impl FnMut(KeyRow) -> ControlFlow<()>,
) {
    spi::scan(
        &schema.sql(
            "SELECT id, schema_name, table_name, pk, CASE WHEN op = 'UPDATE' THEN data END FROM @.sync_outbox
              WHERE target_id = $1 AND priority = $2::@.sync_outbox_priority AND schema_name = $3 AND table_name = $4
              ORDER BY id",
        ),
        &[target_id.into(), priority.name().into(), Arg::text_utf8(&table.0), Arg::text_utf8(&table.1)],
        |row| each(key_row(row)),
    );
}
