//! The table `sync_outbox_lane`: the ids of changes that went into another lane than other changes under the name of
//! their table; and the locks of those who write into lanes or change them.

use super::Schema;
use super::relation::LOCK_WAIT_MS;
use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::lane_lock::{self, LaneLockMode, Lanes};
use crate::pg::spi::{self, Arg};
use crate::pg::xact;
use wire::Priority;

/// Keeps the lane of this table as it is until the transaction ends, for a backfill.
pub fn lock_lane(schema: &Schema, table: Oid) -> Result<()> {
    lock(
        schema,
        (Lanes::Of(table), LaneLockMode::Shared),
        "the table is just being given another priority or target",
        "Try again when the transaction that called sync_outbox_attach() has ended: see pg_locks and pg_stat_activity.",
    )
}

/// Keeps the lanes of all tables as they are until the transaction ends, for an import.
pub fn lock_all_lanes(schema: &Schema) -> Result<()> {
    lock(
        schema,
        (Lanes::OfAll, LaneLockMode::Exclusive),
        "tables are just being attached, or changes imported",
        "Try again when that transaction has ended: see pg_locks and pg_stat_activity.",
    )
}

/// Waits for the backfills and imports that write changes of this table, and keeps others out until the transaction
/// ends, for a table that gets another lane. So there are no changes that are not visible yet.
pub fn lock_to_change_lane(schema: &Schema, table: Oid) -> Result<()> {
    let hint = "Try again when the transaction that called sync_outbox_backfill() or sync_outbox_import() has ended: see pg_locks and pg_stat_activity.";
    lock(schema, (Lanes::OfAll, LaneLockMode::Shared), "changes of it may just be imported", hint)?;
    lock(schema, (Lanes::Of(table), LaneLockMode::Exclusive), "rows of it are just being backfilled", hint)
}

fn lock(schema: &Schema, (lanes, mode): (Lanes, LaneLockMode), busy: &str, hint: &str) -> Result<()> {
    lane_lock::acquire(schema.outbox(), lanes, mode, LOCK_WAIT_MS).map_err(|caught| match caught.sqlstate {
        SqlState::ERRCODE_LOCK_NOT_AVAILABLE => Error::new(caught.sqlstate, busy).hint(hint),
        _ => caught.into(),
    })
}

/// Makes the sender look across lanes for the keys of a table, as long as any change of this range is there.
pub fn record(
    schema: &Schema,
    (relation_schema, relation_name): &(Vec<u8>, Vec<u8>),
    target_id: i16,
    priority: Priority,
    (first_id, last_id): (i64, i64),
) {
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_lane (relation_schema, relation_name, target_id, priority, first_id, last_id)
             VALUES ($1, $2, $3, $4::@.sync_outbox_priority, $5, $6)",
        ),
        &[
            Arg::text_bytes(relation_schema),
            Arg::text_bytes(relation_name),
            target_id.into(),
            priority.name().into(),
            first_id.into(),
            last_id.into(),
        ],
    );
}

/// As [`record`], for this id and all later ones. One record is enough for many transactions: a transaction that relies
/// on the record of another one locks it, so that it is not forgotten before the commit.
pub fn record_from(schema: &Schema, table: &(Vec<u8>, Vec<u8>), target_id: i16, priority: Priority, first_id: i64) {
    let found = !xact::uses_one_snapshot()
        && spi::first(
            &schema.sql(
                "SELECT true FROM @.sync_outbox_lane
                  WHERE relation_schema OPERATOR(pg_catalog.=) $1 AND relation_name OPERATOR(pg_catalog.=) $2
                    AND target_id OPERATOR(pg_catalog.=) $3 AND priority OPERATOR(pg_catalog.=) $4::@.sync_outbox_priority
                    AND first_id OPERATOR(pg_catalog.<=) $5 AND last_id OPERATOR(pg_catalog.=) $6
                  LIMIT 1 FOR KEY SHARE SKIP LOCKED",
            ),
            &[
                Arg::text_bytes(&table.0),
                Arg::text_bytes(&table.1),
                target_id.into(),
                priority.name().into(),
                first_id.into(),
                i64::MAX.into(),
            ],
            |_| (),
        )
        .is_some();
    if !found {
        record(schema, table, target_id, priority, (first_id, i64::MAX));
    }
}
