//! What a person decides about changes in the outbox: try again, or give up.

use super::Schema;
use super::queue::LANES;
use super::shape;
use crate::pg::spi::{self, Arg, Ids};
use pgrx::pg_sys;
use wire::Priority;

/// The changes of one target that are requeued.
pub struct Selection<'a> {
    pub target_id: i16,
    /// `None`: all.
    pub ids: Option<Ids<'a>>,
    /// Schema and name, in the server encoding. `None`: of all tables.
    pub table: Option<&'a (Vec<u8>, Vec<u8>)>,
}

/// Makes changes that are not PENDING look like new ones, except that the error message of the last attempt stays;
/// returns how many.
pub fn requeue(schema: &Schema, selection: &Selection) -> u64 {
    let name = |bytes: Option<&Vec<u8>>| bytes.map_or(Arg::opt_utf8(None), |bytes| Arg::text_bytes(bytes));
    let _plans = super::index_order();
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox SET status = 'PENDING', attempt_count = 0, refusals = 0, next_attempt_at = NULL
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.<>) 'PENDING'
                AND ($2 IS NULL OR id OPERATOR(pg_catalog.=) ANY ($2))
                AND ($3 IS NULL OR (schema_name OPERATOR(pg_catalog.=) $3 AND table_name OPERATOR(pg_catalog.=) $4))",
        ),
        &[
            selection.target_id.into(),
            selection.ids.map_or_else(|| Arg::null(pg_sys::INT8ARRAYOID), Arg::from),
            name(selection.table.map(|table| &table.0)),
            name(selection.table.map(|table| &table.1)),
        ],
    )
}

/// Where changes wait: one target, one priority.
pub struct Lane {
    pub target_id: i16,
    priority: Priority,
}

/// The lanes that have changes, of targets that are gone too. The primary key begins with target and priority, so an id
/// alone is looked up in each lane.
pub fn lanes(schema: &Schema) -> Vec<Lane> {
    let mut lanes = Vec::new();
    let _plans = super::index_order();
    spi::query(&schema.sql(&format!("{LANES} SELECT target_id, priority::pg_catalog.text FROM lane")), &[], |row| {
        lanes.extend(
            row.get(1).zip(Priority::parse(&row.text(2))).map(|(target_id, priority)| Lane { target_id, priority }),
        )
    });
    lanes
}

impl Lane {
    /// Whether a sender can have one of these changes in flight.
    pub fn reaches(&self, schema: &Schema, ids: Ids<'_>) -> bool {
        let _plans = super::index_order();
        spi::first(
            &schema.sql(
                "SELECT true FROM @.sync_outbox
                  WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                    AND id OPERATOR(pg_catalog.=) ANY ($3)
                    AND status OPERATOR(pg_catalog.=) ANY ('{PENDING,FAILED}'::@.sync_outbox_status[]) LIMIT 1",
            ),
            &[self.target_id.into(), self.priority.name().into(), ids.into()],
            |_| (),
        )
        .is_some()
    }

    /// Moves changes to `sync_outbox_discarded`: those that wait for a person, and with `all` the others too, for which
    /// the caller holds the sender's lock. Returns how many.
    ///
    /// A `dedup_key` can come again by an import or restore after a discard. Then the last decision counts.
    pub fn discard(&self, schema: &Schema, ids: Ids<'_>, all: bool, who: &str, reason: &str) -> u64 {
        let columns = shape::column_list();
        let _plans = super::index_order();
        spi::run(
            &schema.sql(&format!(
                "WITH gone AS (
                     DELETE FROM @.sync_outbox
                      WHERE target_id OPERATOR(pg_catalog.=) $1 AND priority OPERATOR(pg_catalog.=) $2::@.sync_outbox_priority
                        AND id OPERATOR(pg_catalog.=) ANY ($3)
                        AND ($4 OR status OPERATOR(pg_catalog.=) ANY ('{{CONFLICT,DEAD}}'::@.sync_outbox_status[]))
                     RETURNING {columns})
                 INSERT INTO @.sync_outbox_discarded ({columns}, discarded_by, discard_reason)
                 SELECT {columns}, $5, $6 FROM gone
                     ON CONFLICT (dedup_key) DO UPDATE SET discarded_at = excluded.discarded_at,
                        discarded_by = excluded.discarded_by, discard_reason = excluded.discard_reason,
                        status = excluded.status, error_message = excluded.error_message"
            )),
            &[
                self.target_id.into(),
                self.priority.name().into(),
                ids.into(),
                all.into(),
                Arg::text_utf8(who),
                Arg::text_utf8(reason),
            ],
        )
    }
}
