//! Counts the changes in the outbox, and reads those behind the first parked change in the order of their ids.

use super::Schema;
use super::queue::deliverable;
use crate::pg::spi::{self, Arg, Row};
use pgrx::datum::TimestampWithTimeZone;
use std::ops::{AddAssign, ControlFlow};
use wire::Priority;

/// Up to this number of changes every figure is exact.
const EXACT_UP_TO: f64 = 1_000_000.0;

/// By how much an estimate from a sample may be too low without breaking that promise: many times the error of a sample
/// of this size.
const MARGIN: f64 = 1.2;

/// Pages in a sample, which hold about 50,000 changes and are read in a fraction of a second.
const SAMPLE_PAGES: f64 = 2_000.0;

/// Up to this size in bytes of the index over changes that are not PENDING, they are counted one by one.
const COUNTED_ONE_BY_ONE: i64 = 32 << 20;

/// What changes are grouped by when they are counted: one table in one lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatsKey {
    pub target_id: i16,
    pub schema_name: String,
    pub table_name: String,
    pub priority: Priority,
}

/// How many changes there are by status, and since when.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub pending: i64,
    pub failed: i64,
    pub conflicts: i64,
    pub dead: i64,
    pub oldest_pending: Option<TimestampWithTimeZone>,
    pub last_update: Option<TimestampWithTimeZone>,
    pub last_conflict_at: Option<TimestampWithTimeZone>,
}

impl Figures {
    pub fn total(&self) -> i64 {
        self.pending + self.failed + self.conflicts + self.dead
    }
}

impl AddAssign<&Figures> for Figures {
    fn add_assign(&mut self, other: &Figures) {
        self.pending += other.pending;
        self.failed += other.failed;
        self.conflicts += other.conflicts;
        self.dead += other.dead;
        self.oldest_pending = [self.oldest_pending, other.oldest_pending].into_iter().flatten().min();
        self.last_update = self.last_update.max(other.last_update);
        self.last_conflict_at = self.last_conflict_at.max(other.last_conflict_at);
    }
}

/// The figures of every group that has changes; a group can occur more than once.
pub struct Count {
    pub figures: Vec<(StatsKey, Figures)>,
    /// Whether the number of PENDING changes was estimated from a sample.
    pub estimated: bool,
}

/// Counts the changes, or those of one branch.
pub fn count(schema: &Schema, branch: Option<&str>) -> Count {
    let mut figures = Vec::new();
    let Some(share) = share_to_sample(schema) else {
        read(schema, "@.sync_outbox", branch, 1.0, &mut figures);
        return Count { figures, estimated: false };
    };
    let sample = sample(share);
    if left_behind_bytes(schema) <= COUNTED_ONE_BY_ONE {
        read(schema, &format!("{sample} WHERE status OPERATOR(pg_catalog.=) 'PENDING'"), branch, share, &mut figures);
        let _plans = super::index_order();
        read(schema, "@.sync_outbox WHERE status OPERATOR(pg_catalog.<>) 'PENDING'", branch, 1.0, &mut figures);
    } else {
        read(schema, &sample, branch, share, &mut figures);
    }
    Count { figures, estimated: true }
}

fn read(schema: &Schema, from: &str, branch: Option<&str>, share: f64, figures: &mut Vec<(StatsKey, Figures)>) {
    let scaled = |n: i64| (n as f64 / share).round() as i64;
    spi::once(
        &schema.sql(&format!(
            "SELECT target_id, schema_name, table_name, priority::pg_catalog.text,
                    pg_catalog.count(*) FILTER (WHERE status OPERATOR(pg_catalog.=) 'PENDING'),
                    pg_catalog.count(*) FILTER (WHERE status OPERATOR(pg_catalog.=) 'FAILED'),
                    pg_catalog.count(*) FILTER (WHERE status OPERATOR(pg_catalog.=) 'CONFLICT'),
                    pg_catalog.count(*) FILTER (WHERE status OPERATOR(pg_catalog.=) 'DEAD'),
                    pg_catalog.min(created_at) FILTER (WHERE status OPERATOR(pg_catalog.=) 'PENDING'),
                    pg_catalog.max(greatest(created_at, last_attempt_at)),
                    pg_catalog.max(last_attempt_at) FILTER (WHERE status OPERATOR(pg_catalog.=) 'CONFLICT')
               FROM (SELECT * FROM {from}) o WHERE $1 IS NULL OR branch OPERATOR(pg_catalog.=) $1
              GROUP BY target_id, schema_name, table_name, priority"
        )),
        &[Arg::opt_utf8(branch)],
        |row| {
            let key = StatsKey {
                target_id: row.get(1).unwrap_or_default(),
                schema_name: row.utf8(2).unwrap_or_default(),
                table_name: row.utf8(3).unwrap_or_default(),
                priority: priority(row, 4),
            };
            figures.push((
                key,
                Figures {
                    pending: scaled(row.int(5)),
                    failed: scaled(row.int(6)),
                    conflicts: scaled(row.int(7)),
                    dead: scaled(row.int(8)),
                    oldest_pending: row.get(9),
                    last_update: row.get(10),
                    last_conflict_at: row.get(11),
                },
            ));
        },
    );
}

/// How many changes wait, whatever their status: exact up to `exact`, and estimated from a sample above.
pub fn pending(schema: &Schema, target_id: i16, branch: Option<&str>, exact: i64) -> i64 {
    let counted = spi::first(
        &schema.sql(
            "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM @.sync_outbox
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND ($2 IS NULL OR branch OPERATOR(pg_catalog.=) $2) LIMIT $3) AS waiting",
        ),
        &[target_id.into(), Arg::opt_utf8(branch), (exact + 1).into()],
        |row| row.int(1),
    )
    .unwrap_or_default();
    if counted <= exact { counted } else { estimate(schema, target_id, branch).max(counted) }
}

/// How many changes a target has, or one branch of it, estimated from a sample.
fn estimate(schema: &Schema, target_id: i16, branch: Option<&str>) -> i64 {
    let share = (SAMPLE_PAGES / pages(schema)).min(1.0);
    let mut sampled = 0;
    spi::once(
        &schema.sql(&format!(
            "SELECT pg_catalog.count(*) FROM {}
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND ($2 IS NULL OR branch OPERATOR(pg_catalog.=) $2)",
            sample(share)
        )),
        &[target_id.into(), Arg::opt_utf8(branch)],
        |row| sampled = row.int(1),
    );
    (sampled as f64 / share).round() as i64
}

/// How many changes there are, if there can be more than `limit`; otherwise some number up to `limit`.
pub fn rows_above(schema: &Schema, limit: i64) -> i64 {
    /// MaxHeapTuplesPerPage with pages of 8 kB; the largest pages have four times as many.
    const MOST_PER_PAGE: f64 = 4.0 * 291.0;
    let pages = pages(schema);
    if pages * MOST_PER_PAGE <= limit as f64 {
        return 0;
    }
    sampled_rows(schema, (SAMPLE_PAGES / pages).min(1.0)).round() as i64
}

/// How many changes the outbox has, estimated from a sample of that share.
fn sampled_rows(schema: &Schema, share: f64) -> f64 {
    let mut sampled = 0;
    spi::once(&schema.sql(&format!("SELECT pg_catalog.count(*) FROM {}", sample(share))), &[], |row| {
        sampled = row.int(1)
    });
    sampled as f64 / share
}

fn pages(schema: &Schema) -> f64 {
    let pages = spi::first(
        "SELECT pg_catalog.pg_relation_size($1::pg_catalog.regclass)
                OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::bigint",
        &[schema.outbox().into()],
        |row| row.int(1),
    );
    pages.unwrap_or_default().max(1) as f64
}

/// The share of the outbox to sample, if it holds too many changes to count them. Planner statistics are of no use,
/// because the outbox fills and empties faster than it is analyzed.
fn share_to_sample(schema: &Schema) -> Option<f64> {
    let pages = pages(schema);
    if pages <= SAMPLE_PAGES {
        return None;
    }
    let share = SAMPLE_PAGES / pages;
    (sampled_rows(schema, share) > EXACT_UP_TO * MARGIN).then_some(share)
}

/// Always takes the same pages, so that the figures do not vary while the outbox stays the same.
fn sample(share: f64) -> String {
    format!("@.sync_outbox TABLESAMPLE pg_catalog.system ({}) REPEATABLE (0)", 100.0 * share)
}

fn left_behind_bytes(schema: &Schema) -> i64 {
    spi::first(&schema.sql("SELECT pg_catalog.pg_relation_size('@.sync_outbox_left')"), &[], |row| row.int(1))
        .unwrap_or_default()
}

/// The changes of a target that are not sent for now, and for which later changes of the same keys wait.
pub struct ParkedChanges {
    pub target_id: i16,
    first_id: i64,
}

/// One for each target that has parked changes.
pub fn parked(schema: &Schema) -> Vec<ParkedChanges> {
    let mut parked = Vec::new();
    let _plans = super::index_order();
    spi::query(
        &schema.sql(&format!(
            "SELECT target_id, pg_catalog.min(id) FROM @.sync_outbox
              WHERE status OPERATOR(pg_catalog.<>) 'PENDING' AND NOT {}
              GROUP BY target_id",
            deliverable()
        )),
        &[],
        |row| parked.push(ParkedChanges { target_id: row.get(1).unwrap_or_default(), first_id: row.int(2) }),
    );
    parked
}

/// The key and the state of a change.
pub struct Queued {
    pub key: StatsKey,
    pub pk: Option<String>,
    /// The data of an UPDATE, which may name another key.
    pub data: Option<String>,
    pub parked: bool,
    /// Whether it belongs to the branch that was asked for.
    pub in_branch: bool,
}

impl ParkedChanges {
    /// Reads the changes from the first parked one on in the order of their ids, but only those of tables with parked
    /// changes.
    pub fn followed_by(&self, schema: &Schema, branch: Option<&str>, mut each: impl FnMut(Queued) -> ControlFlow<()>) {
        // One index scan per lane, merged by id. Each is ordered by itself, because otherwise PostgreSQL would sort
        // them all.
        let _plans = super::index_order();
        let deliverable = deliverable();
        let lanes = Priority::ALL.map(|priority| {
            format!(
                "(SELECT id, schema_name, table_name, '{0}' AS priority, pk,
                         CASE WHEN op OPERATOR(pg_catalog.=) 'UPDATE' THEN data::pg_catalog.text END,
                         NOT {deliverable}, $3 IS NULL OR branch OPERATOR(pg_catalog.=) $3
                    FROM @.sync_outbox
                   WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) '{0}'
                     AND id OPERATOR(pg_catalog.>=) $2 AND table_name OPERATOR(pg_catalog.=) ANY (ARRAY(
                         SELECT table_name FROM @.sync_outbox
                          WHERE target_id OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.<>) 'PENDING'
                            AND NOT {deliverable} GROUP BY table_name))
                   ORDER BY id)",
                priority.name()
            )
        });
        spi::scan(
            &schema.sql(&format!("{} ORDER BY id", lanes.join(" UNION ALL "))),
            &[self.target_id.into(), self.first_id.into(), Arg::opt_utf8(branch)],
            |row| {
                each(Queued {
                    key: StatsKey {
                        target_id: self.target_id,
                        schema_name: row.utf8(2).unwrap_or_default(),
                        table_name: row.utf8(3).unwrap_or_default(),
                        priority: priority(row, 4),
                    },
                    pk: row.utf8(5),
                    data: row.utf8(6),
                    parked: row.get(7).unwrap_or_default(),
                    in_branch: row.get(8).unwrap_or_default(),
                })
            },
        );
    }
}

/// Schema, name and priority of every attached table.
pub fn attached(schema: &Schema) -> Vec<(String, String, Priority)> {
    let mut tables = Vec::new();
    spi::query(
        &schema.sql(
            "SELECT schema_name::pg_catalog.text, table_name::pg_catalog.text, priority FROM @.sync_outbox_attached",
        ),
        &[],
        |row| tables.push((row.utf8(1).unwrap_or_default(), row.utf8(2).unwrap_or_default(), priority(row, 3))),
    );
    tables
}

fn priority(row: &Row, column: usize) -> Priority {
    Priority::parse(&row.text(column)).unwrap_or(Priority::Normal)
}
