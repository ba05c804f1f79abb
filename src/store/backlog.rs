//! The backlog as a whole against the thresholds that a DBA has set, and the table `sync_outbox_threshold`, which
//! remembers which warnings have been given, so that there is one for each crossing, whoever notices it.
//!
//! A crossing has no other effect: the outbox grows as long as there is room on the disk.

use super::queue::LANES;
use super::{Schema, stats};
use crate::error::{Error, SqlState};
use crate::pg::spi::{self, Arg};
use crate::pg::xact;
use crate::settings::{self, Thresholds};
use std::time::Duration;

/// Whoever holds the lock for longer is writing the same row, so that we need not write it.
const LOCK_WAIT_MS: i32 = 100;

/// The size of the backlog.
#[derive(Clone, Copy, Debug, Default)]
struct Backlog {
    /// Changes, whatever their status; estimated from a sample if the backlog is long.
    rows: i64,
    /// On disk, indexes included.
    bytes: i64,
    /// Of the oldest change.
    age: Duration,
}

/// A threshold, and what was measured.
struct Measured {
    name: &'static str,
    setting: &'static str,
    value: i64,
    /// 0 is none.
    limit: i64,
}

impl Measured {
    fn is_crossed(&self) -> bool {
        self.limit > 0 && self.value > self.limit
    }

    /// Whether the value is so far below the limit that the next crossing is a new one.
    fn is_over(&self) -> bool {
        self.limit == 0 || self.value <= self.limit / 10 * 9
    }
}

/// The names of the thresholds that are crossed now: `rows`, `bytes`, `age`. Reads only.
pub fn crossed(schema: &Schema) -> Vec<&'static str> {
    let thresholds = settings::thresholds();
    let measured = measure(schema, &thresholds);
    measured.iter().filter(|measured| measured.is_crossed()).map(|measured| measured.name).collect()
}

/// Logs a WARNING for each threshold that has been crossed since the last check. Returns when the oldest change will be
/// too old.
pub fn watch(schema: &Schema) -> Option<Duration> {
    let thresholds = settings::thresholds();
    let mut known = Vec::new();
    spi::query(&schema.sql("SELECT name FROM @.sync_outbox_threshold"), &[], |row| known.push(row.text(1)));
    if thresholds == Thresholds::default() && known.is_empty() {
        return None;
    }
    let measured = measure(schema, &thresholds);
    for measured in &measured {
        let is_known = known.iter().any(|name| name == measured.name);
        if measured.is_crossed() && !is_known {
            let first = "INSERT INTO @.sync_outbox_threshold (name) VALUES ($1) ON CONFLICT DO NOTHING";
            if note(schema, first, measured) {
                warn(measured);
            }
        } else if measured.is_over() && is_known {
            note(schema, "DELETE FROM @.sync_outbox_threshold WHERE name OPERATOR(pg_catalog.=) $1", measured);
        }
    }
    let [_, _, age] = measured;
    (age.value > 0 && age.limit >= age.value).then(|| Duration::from_secs((age.limit - age.value + 1) as u64))
}

/// Whether the statement changed a row. Of several processes that try at the same time it does so for one.
fn note(schema: &Schema, statement: &str, measured: &Measured) -> bool {
    let attempt = xact::subtransaction_in_time(LOCK_WAIT_MS, || {
        spi::run(&schema.sql(statement), &[Arg::text_utf8(measured.name)])
    });
    match attempt {
        Ok(rows) => rows > 0,
        Err(caught) if caught.sqlstate == SqlState::ERRCODE_LOCK_NOT_AVAILABLE => false,
        Err(caught) => Error::from(caught).raise(),
    }
}

fn warn(measured: &Measured) {
    let Measured { name, setting, value, limit } = measured;
    let unit = if *name == "age" { " seconds" } else { "" };
    Error::new(SqlState::ERRCODE_WARNING, format!("the backlog of sync_outbox has passed its threshold of {name}"))
        .detail(format!("It is at {value}{unit}, sync_outbox.{setting} is {limit}{unit}. Nothing is dropped."))
        .hint("SELECT * FROM sync_outbox_overview(); says whether and why nothing is sent.")
        .log();
}

/// Measures only what has a threshold.
fn measure(schema: &Schema, thresholds: &Thresholds) -> [Measured; 3] {
    let backlog = Backlog {
        rows: if thresholds.rows > 0 { stats::rows_above(schema, thresholds.rows) } else { 0 },
        bytes: if thresholds.bytes > 0 { bytes(schema) } else { 0 },
        age: if thresholds.age.is_zero() { Duration::ZERO } else { age(schema) },
    };
    let measured = |name, setting, value, limit| Measured { name, setting, value, limit };
    [
        measured("rows", "backlog_rows_warning", backlog.rows, thresholds.rows),
        measured("bytes", "backlog_size_warning", backlog.bytes, thresholds.bytes),
        measured("age", "backlog_age_warning", backlog.age.as_secs() as i64, thresholds.age.as_secs() as i64),
    ]
}

fn bytes(schema: &Schema) -> i64 {
    spi::first(
        "SELECT pg_catalog.pg_total_relation_size($1::pg_catalog.oid::pg_catalog.regclass)",
        &[schema.outbox().into()],
        |row| row.int(1),
    )
    .unwrap_or_default()
}

/// Of the first change of each target and priority: ids are drawn in the order of capture.
fn age(schema: &Schema) -> Duration {
    let _plans = super::index_order();
    let seconds = spi::first(
        &schema.sql(&format!(
            "{LANES} SELECT extract(epoch FROM
                        pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.min(first.created_at)
                            FILTER (WHERE pg_catalog.isfinite(first.created_at)))::bigint
               FROM lane CROSS JOIN LATERAL (
                    SELECT o.created_at FROM @.sync_outbox o
                     WHERE o.target_id OPERATOR(pg_catalog.=) lane.target_id
                       AND o.priority OPERATOR(pg_catalog.=) lane.priority
                     ORDER BY o.target_id, o.priority, o.id LIMIT 1) first"
        )),
        &[],
        |row| row.int(1),
    );
    Duration::from_secs(seconds.unwrap_or_default().max(0) as u64)
}
