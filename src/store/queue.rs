//! The table `sync_outbox`, by SQL: the INSERT that replaces capture's direct append, what is written to changes that
//! were tried and stay, and what is asked about those that are there. Reading them in order and deleting what was
//! acknowledged, for which SQL is the second choice, is in `queue_scan.rs`.

use super::Schema;
use super::shape::{ColumnKind, OutboxColumn};
use crate::pg::guc::Nest;
use crate::pg::spi::{self, Arg};
use crate::pg::xact;
use delivery::batch::Change;
use std::ops::ControlFlow;
use std::time::Duration;
use wire::{Priority, Status};

/// How long a statement that locks writers out waits for those that hold the lock.
const LOCK_WAIT_MS: i32 = 5_000;

/// The INSERT that capture falls back to, for these columns.
pub fn insert_statement(schema: &Schema, columns: &[OutboxColumn]) -> String {
    let names: Vec<_> = columns.iter().map(|column| column.name).collect();
    let value = |(n, column): (usize, &OutboxColumn)| match column.kind {
        ColumnKind::Type(_) => format!("${}", n + 1),
        ColumnKind::Priority => format!("${}::@.sync_outbox_priority", n + 1),
        ColumnKind::Status => format!("${}::@.sync_outbox_status", n + 1),
    };
    let values: Vec<_> = columns.iter().enumerate().map(value).collect();
    // OVERRIDING, because the id has been drawn already, even if somebody has made the column GENERATED ALWAYS.
    schema.sql(&format!(
        "INSERT INTO @.sync_outbox ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
        names.join(", "),
        values.join(", ")
    ))
}

/// The condition that a change may be sent at a time: it is PENDING, or it is FAILED and due. FAILED changes of a
/// request that did not get through have no time at which they are due, and are due always.
fn deliverable_at(time: &str) -> String {
    format!(
        "(status OPERATOR(pg_catalog.=) 'PENDING' OR (status OPERATOR(pg_catalog.=) 'FAILED'
            AND (next_attempt_at IS NULL OR next_attempt_at OPERATOR(pg_catalog.<=) {time})))"
    )
}

/// The time that is given as $2, in microseconds as `clock::now_micros()` returns them.
const AT_MICROS: &str = "('2000-01-01 00:00:00+00'::pg_catalog.timestamptz
    OPERATOR(pg_catalog.+) ($2 OPERATOR(pg_catalog.*) interval '1 microsecond'))";

/// The condition that a change may be sent now.
pub(super) fn deliverable() -> String {
    deliverable_at("pg_catalog.clock_timestamp()")
}

/// The lanes that have changes, as `lane (target_id, priority)`: one look-up in the index for each.
pub(super) const LANES: &str = "WITH RECURSIVE lane AS (
    (SELECT target_id, priority FROM @.sync_outbox ORDER BY target_id, priority LIMIT 1)
    UNION ALL
    SELECT next.target_id, next.priority FROM lane CROSS JOIN LATERAL (
        SELECT o.target_id, o.priority FROM @.sync_outbox o
         WHERE ROW(o.target_id, o.priority) OPERATOR(pg_catalog.>) ROW(lane.target_id, lane.priority)
         ORDER BY o.target_id, o.priority LIMIT 1) next)";

/// The columns that say which keys a change has, in UTF-8.
pub struct KeyRow {
    pub status: String,
    pub id: i64,
    pub schema_name: String,
    pub table_name: String,
    pub pk: Option<String>,
    pub data: Option<String>,
}

impl KeyRow {
    /// In conflict or dead.
    pub fn waits_for_a_person(&self) -> bool {
        Status::parse(&self.status).is_some_and(Status::waits_for_a_person)
    }
}

/// How far [`parked`] has read, in the order of status and id.
#[derive(Clone, Debug)]
pub struct ParkedUpTo {
    status: String,
    id: i64,
}

impl Default for ParkedUpTo {
    fn default() -> Self {
        ParkedUpTo { status: Status::Pending.name().into(), id: i64::MIN }
    }
}

/// The columns of a [`KeyRow`]. Only the data of an UPDATE can name another key than `pk` does.
const KEY_ROW: &str = "status::pg_catalog.text, id, schema_name, table_name, pk,
    CASE WHEN op OPERATOR(pg_catalog.=) 'UPDATE' THEN data END";

fn key_row(row: &spi::Row<'_>) -> KeyRow {
    KeyRow {
        status: row.text(1),
        id: row.int(2),
        schema_name: row.utf8(3).unwrap_or_default(),
        table_name: row.utf8(4).unwrap_or_default(),
        pk: row.utf8(5),
        data: row.utf8(6),
    }
}

/// The condition that later changes of the same key have to wait: in conflict, dead, or refused and not due at $2.
fn parks() -> String {
    format!(
        "target_id OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.<>) 'PENDING' AND NOT {}",
        deliverable_at(AT_MICROS)
    )
}

/// The changes behind which later changes of their keys have to wait at `now` (microseconds, as `clock::now_micros()`),
/// from `up_to` on, until `each` breaks. Returns how far it got, or `None` if it reached the end.
pub fn parked(
    schema: &Schema,
    target_id: i16,
    now: i64,
    up_to: &ParkedUpTo,
    mut each: impl FnMut(&KeyRow) -> ControlFlow<()>,
) -> Option<ParkedUpTo> {
    let mut stopped_at = None;
    spi::scan(
        &schema.sql(&format!(
            "SELECT {KEY_ROW} FROM @.sync_outbox o
              WHERE {} AND ROW(status, id) OPERATOR(pg_catalog.>) ROW($3::@.sync_outbox_status, $4)
              ORDER BY o.status, o.id",
            parks()
        )),
        &[target_id.into(), now.into(), up_to.status.as_str().into(), up_to.id.into()],
        |row| {
            let row = key_row(row);
            let next = each(&row);
            if next.is_break() {
                stopped_at = Some(ParkedUpTo { status: row.status, id: row.id });
            }
            next
        },
    );
    stopped_at
}

/// How many changes [`parked`] would return, and a checksum of their ids.
pub fn count_parked(schema: &Schema, target_id: i16, now: i64) -> (i64, i64) {
    spi::first(
        &schema.sql(&format!(
            "SELECT pg_catalog.count(*),
                    pg_catalog.sum((id OPERATOR(pg_catalog.%) {PARKED_MODULUS})::pg_catalog.int4)
               FROM @.sync_outbox WHERE {}",
            parks()
        )),
        &[target_id.into(), now.into()],
        |row| (row.int(1), row.get(2).unwrap_or_default()),
    )
    .unwrap_or_default()
}

/// [`count_parked`] sums up the ids modulo this number.
pub const PARKED_MODULUS: i64 = 1_000_003;

/// Gives changes that came from another server the id of this transaction, if the id of theirs could be that of a
/// running or future transaction of this server. The caller keeps the senders out.
pub fn claim(schema: &Schema) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET txid = pg_catalog.pg_current_xact_id()
              WHERE txid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())",
        ),
        &[],
    );
}

/// Makes capture draw ids above all existing ones. Waits for writers and locks them out only if it does not do so
/// already.
pub fn draw_ids_above(schema: &Schema) {
    let behind = schema.sql(
        "SELECT pg_catalog.max(o.id) FROM @.sync_outbox o
         HAVING pg_catalog.max(o.id) OPERATOR(pg_catalog.>) (SELECT last_value FROM @.sync_outbox_id_seq)",
    );
    if spi::first(&behind, &[], |_| ()).is_none() {
        return;
    }
    let limited = Nest::new();
    limited.limit_lock_wait(LOCK_WAIT_MS);
    spi::run(&schema.sql("LOCK TABLE ONLY @.sync_outbox IN EXCLUSIVE MODE"), &[]);
    if let Some(last) = spi::first(&behind, &[], |row| row.int(1)) {
        spi::run(&schema.sql("SELECT pg_catalog.setval('@.sync_outbox_id_seq', $1)"), &[last.into()]);
    }
}

/// The greatest id of a target: a session that starts now has to deliver everything up to it.
pub fn last_id(schema: &Schema, target_id: i16) -> i64 {
    let lanes = Priority::ALL.map(|priority| {
        format!(
            "(SELECT id FROM @.sync_outbox WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) '{}'
               ORDER BY priority DESC, id DESC LIMIT 1)",
            priority.name()
        )
    });
    spi::first(
        &schema.sql(&format!("SELECT pg_catalog.max(id) FROM ({}) o", lanes.join(" UNION ALL "))),
        &[target_id.into()],
        |row| row.get::<i64>(1),
    )
    .flatten()
    .unwrap_or(i64::MIN)
}

/// Whether any change with an id up to `last_id` is left, whatever its status.
pub fn any_left(schema: &Schema, target_id: i16, branch: Option<&str>, last_id: i64) -> bool {
    let lanes = Priority::ALL.map(|priority| {
        format!(
            "EXISTS (SELECT FROM @.sync_outbox
                      WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) '{}'
                        AND id OPERATOR(pg_catalog.<=) $2
                        AND ($3 IS NULL OR branch OPERATOR(pg_catalog.=) $3))",
            priority.name()
        )
    });
    spi::first(
        &schema.sql(&format!("SELECT {}", lanes.join(" OR "))),
        &[target_id.into(), last_id.into(), Arg::opt_utf8(branch)],
        |row| row.get(1).unwrap_or_default(),
    )
    .unwrap_or_default()
}

/// Milliseconds from `now` (microseconds, as `clock::now_micros()`) until the next FAILED change is due that was not
/// due at `now`.
pub fn due_in_ms(schema: &Schema, target_id: i16, now: i64) -> Option<i64> {
    spi::first(
        &schema.sql(&format!(
            "SELECT pg_catalog.ceil(
                        extract(epoch FROM pg_catalog.min(next_attempt_at) OPERATOR(pg_catalog.-) {AT_MICROS})
                        OPERATOR(pg_catalog.*) 1000)::bigint
               FROM @.sync_outbox
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.=) 'FAILED'
                AND next_attempt_at OPERATOR(pg_catalog.>) {AT_MICROS}",
        )),
        &[target_id.into(), now.into()],
        |row| row.get::<i64>(1),
    )
    .flatten()
}

/// What is recorded of a change that was not acknowledged.
pub struct Mark {
    pub status: Status,
    pub error: String,
    /// Whether this counts as a refusal by the target.
    pub refused: bool,
    /// How long the change has to wait for its next attempt; `None`: it waits for a person.
    pub wait: Option<Duration>,
}

/// Records an attempt that failed.
pub fn mark(schema: &Schema, target_id: i16, change: &Change, mark: &Mark) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox
                SET status = $5::@.sync_outbox_status, attempt_count = attempt_count OPERATOR(pg_catalog.+) 1,
                    refusals = refusals OPERATOR(pg_catalog.+) $6,
                    last_attempt_at = pg_catalog.clock_timestamp(), error_message = $7,
                    next_attempt_at = pg_catalog.clock_timestamp()
                        OPERATOR(pg_catalog.+) ($8 OPERATOR(pg_catalog.*) interval '1 millisecond')
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                AND id OPERATOR(pg_catalog.=) $3 AND dedup_key OPERATOR(pg_catalog.=) ANY ($4)",
        ),
        &[
            target_id.into(),
            change.priority.name().into(),
            change.id.into(),
            Arg::uuids([&change.dedup_key]),
            mark.status.name().into(),
            i32::from(mark.refused).into(),
            Arg::text_utf8(&mark.error),
            Arg::opt(mark.wait.map(|wait| wait.as_millis() as i64)),
        ],
    );
}

/// Makes a change that cannot be read DEAD, unless it waits for a person already. Returns whether it has done so.
pub fn give_up(schema: &Schema, target_id: i16, priority: Priority, id: i64, why: &str) -> bool {
    let given_up = spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET status = 'DEAD', last_attempt_at = pg_catalog.clock_timestamp(), error_message = $4
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                AND id OPERATOR(pg_catalog.=) $3 AND status OPERATOR(pg_catalog.=) ANY ('{PENDING,FAILED}')",
        ),
        &[target_id.into(), priority.name().into(), id.into(), Arg::text_utf8(why)],
    );
    given_up > 0
}

/// Makes the changes of a request that did not get through FAILED. They do not park their keys, and stay first in line.
pub fn mark_offline(schema: &Schema, changes: &[&Change], error: &str) {
    let places: Vec<_> = changes.iter().map(|c| c.place).collect();
    spi::run(
        &schema.sql(
            // A join, because PostgreSQL compares every row with every element of an array that is a parameter.
            "UPDATE @.sync_outbox o
                SET status = 'FAILED', attempt_count = attempt_count OPERATOR(pg_catalog.+) 1, next_attempt_at = NULL,
                    last_attempt_at = pg_catalog.clock_timestamp(), error_message = $3
               FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS unsent (place, dedup_key)
              WHERE o.ctid OPERATOR(pg_catalog.=) unsent.place AND o.dedup_key OPERATOR(pg_catalog.=) unsent.dedup_key",
        ),
        &[Arg::places(&places), Arg::uuids(changes.iter().map(|c| &c.dedup_key)), Arg::text_utf8(error)],
    );
}

/// Called when a target answers again: what failed only because it did not answer becomes PENDING, as if it had never
/// been tried.
pub fn revive_offline(schema: &Schema, target_id: i16) -> u64 {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET status = 'PENDING', attempt_count = 0
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.=) 'FAILED'
                AND next_attempt_at IS NULL",
        ),
        &[target_id.into()],
    )
}

/// The tables with changes in more than one lane, whose keys the sender must compare across lanes. Ranges of ids that
/// have been delivered are forgotten.
pub fn cross_priority_tables(schema: &Schema, target_id: i16) -> Vec<(String, String)> {
    let mut tables = Vec::new();
    let list = schema.sql(
        "SELECT DISTINCT relation_schema, relation_name FROM @.sync_outbox_lane
          WHERE target_id OPERATOR(pg_catalog.=) $1",
    );
    let any = spi::query(&list, &[target_id.into()], |_| ());
    if any == 0 {
        return tables;
    }
    if !xact::uses_one_snapshot() {
        forget_drained(schema, target_id);
    }
    spi::query(&list, &[target_id.into()], |row| {
        tables.push((row.utf8(1).unwrap_or_default(), row.utf8(2).unwrap_or_default()))
    });
    tables
}

/// Writers that rely on a range hold a lock on it. Once it is locked here nobody does so any more, and the next
/// statement sees what those writers have written.
fn forget_drained(schema: &Schema, target_id: i16) {
    let drained = "NOT EXISTS (SELECT FROM @.sync_outbox o
                 WHERE o.target_id OPERATOR(pg_catalog.=) l.target_id AND o.priority OPERATOR(pg_catalog.=) l.priority
                   AND o.id OPERATOR(pg_catalog.>=) l.first_id AND o.id OPERATOR(pg_catalog.<=) l.last_id)";
    let mut ranges: Vec<i64> = Vec::new();
    spi::query(
        &schema.sql(&format!(
            "SELECT first_id FROM @.sync_outbox_lane l
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND {drained} FOR UPDATE SKIP LOCKED"
        )),
        &[target_id.into()],
        |row| ranges.extend(row.get::<i64>(1)),
    );
    for first_id in ranges {
        spi::run(
            &schema.sql(&format!(
                "DELETE FROM @.sync_outbox_lane l
                  WHERE target_id OPERATOR(pg_catalog.=) $1 AND first_id OPERATOR(pg_catalog.=) $2 AND {drained}"
            )),
            &[target_id.into(), first_id.into()],
        );
    }
}

/// The keys of one table's changes in one lane, in order, until `each` breaks.
pub fn lane_keys(
    schema: &Schema,
    target_id: i16,
    priority: Priority,
    table: &(String, String),
    mut each: impl FnMut(KeyRow) -> ControlFlow<()>,
) {
    spi::scan(
        &schema.sql(&format!(
            "SELECT {KEY_ROW} FROM @.sync_outbox
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                AND schema_name OPERATOR(pg_catalog.=) $3 AND table_name OPERATOR(pg_catalog.=) $4
              ORDER BY id"
        )),
        &[target_id.into(), priority.name().into(), Arg::text_utf8(&table.0), Arg::text_utf8(&table.1)],
        |row| each(key_row(row)),
    );
}
