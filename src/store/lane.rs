//! The table `sync_outbox_lane`: which ids went into another lane than their table's.

use super::Schema;
use crate::capture::Priority;
use crate::pg::spi::{self, Arg};

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
