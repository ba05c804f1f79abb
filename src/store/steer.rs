//! What a person decides about changes in the outbox: try again, or give up.

use super::Schema;
use crate::pg::spi::{self, Arg};

/// Which changes a requeue means, all of one target.
pub struct Scope<'a> {
    pub target_id: i16,
    /// Absent: all.
    pub ids: Option<&'a [i64]>,
    /// Schema and name, in the server encoding. Absent: of all tables.
    pub table: Option<&'a (Vec<u8>, Vec<u8>)>,
}

/// Makes changes that are not PENDING look like new ones, but for the words of the last attempt; returns how many.
///
/// They are locked in the order in which a sender settles them, so that the two never wait for each other.
pub fn requeue(schema: &Schema, scope: &Scope) -> u64 {
    spi::run(
        &schema.sql(
            "WITH scope AS (
                 SELECT priority, id FROM @.sync_outbox
                  WHERE target_id = $1 AND status <> 'PENDING' AND ($2 IS NULL OR id = ANY ($2))
                    AND ($3 IS NULL OR (schema_name, table_name) = ($3, $4))
                  ORDER BY priority, id FOR UPDATE)
             UPDATE @.sync_outbox o SET status = 'PENDING', attempt_count = 0, refusals = 0, next_attempt_at = NULL
               FROM scope WHERE o.target_id = $1 AND o.priority = scope.priority AND o.id = scope.id",
        ),
        &[
            scope.target_id.into(),
            Arg::opt(scope.ids.map(<[i64]>::to_vec)),
            text(scope.table.map(|table| &table.0)),
            text(scope.table.map(|table| &table.1)),
        ],
    )
}

fn text(bytes: Option<&Vec<u8>>) -> Arg {
    bytes.map_or_else(|| Arg::opt(None::<&str>), |bytes| Arg::text_bytes(bytes))
}

/// Finds changes by id through the primary key, whose first columns a person who knows ids does not know: the lanes that
/// have changes are walked one by one, and the ids are looked up in each.
const BY_ID: &str = "
    WITH RECURSIVE lane AS (
        (SELECT target_id, priority FROM @.sync_outbox ORDER BY target_id, priority LIMIT 1)
        UNION ALL
        SELECT next.target_id, next.priority FROM lane CROSS JOIN LATERAL (
            SELECT o.target_id, o.priority FROM @.sync_outbox o
             WHERE (o.target_id, o.priority) > (lane.target_id, lane.priority)
             ORDER BY o.target_id, o.priority LIMIT 1) next),
    wanted AS (
        SELECT o.target_id, o.priority, o.id, o.status
          FROM lane JOIN @.sync_outbox o ON o.target_id = lane.target_id AND o.priority = lane.priority
         WHERE o.id = ANY ($1))";

/// The targets whose sender can have one of these changes in flight, in the order in which their locks are taken.
pub fn targets_in_reach(schema: &Schema, ids: &[i64]) -> Vec<i16> {
    let mut targets = Vec::new();
    spi::query(
        &schema.sql(&format!(
            "{BY_ID} SELECT DISTINCT target_id FROM wanted WHERE status IN ('PENDING', 'FAILED') ORDER BY 1"
        )),
        &[ids.to_vec().into()],
        |row| targets.extend(row.get::<i16>(1)),
    );
    targets
}

/// What a discard did: how many changes moved, and the name of their target if all had the same.
#[derive(Default)]
pub struct Discarded {
    pub changes: i64,
    pub target: Option<String>,
}

/// Moves changes to `sync_outbox_discarded`: those that wait for a person, and those of targets that cannot send now
/// because the caller holds their sender's lock (`held`).
///
/// A `dedup_key` can come again, by import or restore after a discard: then the last decision counts.
pub fn discard(schema: &Schema, ids: &[i64], held: &[i16], who: &str, reason: &str) -> Discarded {
    const COLUMNS: &str = "id, txid, dedup_key, created_at, target_id, priority, status, attempt_count, refusals,
        schema_name, table_name, op, pk, data, branch, old, reason, last_attempt_at, next_attempt_at, error_message";
    spi::first(
        &schema.sql(&format!(
            "{BY_ID},
             gone AS (
                 DELETE FROM @.sync_outbox o USING wanted w
                  WHERE o.target_id = w.target_id AND o.priority = w.priority AND o.id = w.id
                    AND (o.status IN ('CONFLICT', 'DEAD') OR o.target_id = ANY ($2)) RETURNING o.*),
             kept AS (
                 INSERT INTO @.sync_outbox_discarded ({COLUMNS}, discarded_by, discard_reason)
                 SELECT {COLUMNS}, $3, $4 FROM gone
                     ON CONFLICT (dedup_key) DO UPDATE SET discarded_at = excluded.discarded_at,
                        discarded_by = excluded.discarded_by, discard_reason = excluded.discard_reason,
                        status = excluded.status, error_message = excluded.error_message)
             SELECT count(*), CASE WHEN min(target_id) = max(target_id) THEN
                    (SELECT name FROM @.sync_outbox_target t WHERE t.id = min(gone.target_id)) END
               FROM gone"
        )),
        &[ids.to_vec().into(), held.to_vec().into(), who.into(), reason.into()],
        |row| Discarded { changes: row.int(1), target: row.get(2) },
    )
    .unwrap_or_default()
}
