//! The table `sync_outbox`: appending, reading in order, and settling.

use super::Schema;
use crate::capture::Priority;
use crate::pg::spi::{self, Arg};

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
