//! Rows of the scripts' outbox that are copied into ours, with ids below those of everything that was captured.

use super::Schema;
use crate::pg::spi::{self, Arg};
use crate::pg::{Oid, memory};
use pgrx::pg_sys;
use std::collections::HashSet;
use uuid::Uuid;
use wire::Priority;

/// Ids that capture draws begin with 1; those below are of imports.
const FIRST_CAPTURED_ID: i64 = 1;
/// The greatest id that an imported change can have.
pub const LAST_ID: i64 = FIRST_CAPTURED_ID - 1;

/// The id that the last of the imported rows gets: the one before everything that is there.
pub fn last_id(schema: &Schema) -> i64 {
    spi::first(
        &schema.sql("SELECT least(pg_catalog.min(id), $1) OPERATOR(pg_catalog.-) 1 FROM @.sync_outbox"),
        &[FIRST_CAPTURED_ID.into()],
        |row| row.int(1),
    )
    .unwrap_or_default()
}

/// The keys of imported changes that are still there.
pub fn keys(schema: &Schema) -> HashSet<Uuid> {
    let mut keys = HashSet::new();
    spi::query(
        &schema.sql("SELECT dedup_key FROM @.sync_outbox WHERE id OPERATOR(pg_catalog.<) $1"),
        &[FIRST_CAPTURED_ID.into()],
        |row| {
            memory::reserve_one(&mut keys);
            keys.insert(row.uuid(1));
        },
    );
    keys
}

/// Whether a role owns the table of that name, or could make it where there is none.
pub fn could_capture(role: Oid, schema_name: &[u8], table_name: &[u8]) -> bool {
    let allowed = spi::first(
        "SELECT CASE WHEN c.oid IS NOT NULL THEN pg_catalog.pg_has_role($1, c.relowner, 'USAGE')
                     WHEN n.oid IS NOT NULL THEN pg_catalog.has_schema_privilege($1, n.oid, 'CREATE')
                     ELSE pg_catalog.has_database_privilege($1, pg_catalog.current_database()::pg_catalog.text, 'CREATE') END
           FROM (SELECT) one
           LEFT JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) $2
           LEFT JOIN pg_catalog.pg_class c
                  ON c.relnamespace OPERATOR(pg_catalog.=) n.oid AND c.relname OPERATOR(pg_catalog.=) $3",
        &[role.into(), Arg::text_bytes(schema_name), Arg::text_bytes(table_name)],
        |row| row.get(1).unwrap_or(false),
    );
    allowed.unwrap_or(false)
}

/// An imported change.
pub struct Imported<'a> {
    pub id: i64,
    pub dedup_key: Uuid,
    /// Microseconds, as [`Arg::timestamptz`] takes them.
    pub created_at: Option<i64>,
    pub target_id: i16,
    pub priority: Priority,
    pub schema_name: &'a [u8],
    pub table_name: &'a [u8],
    pub op: &'static str,
    /// JSON as text.
    pub pk: Option<&'a [u8]>,
    pub data: Option<&'a [u8]>,
    pub branch_column: Option<&'a str>,
}

impl Imported<'_> {
    /// The columns that are not named get their defaults. `txid` is this transaction's, because the old one may be of
    /// another server, and a number that this server has yet to give.
    pub fn insert(&self, schema: &Schema) {
        let text = |bytes: Option<&[u8]>| bytes.map_or_else(|| Arg::null(pg_sys::TEXTOID), Arg::text_bytes);
        spi::run(
            &schema.sql(
                "INSERT INTO @.sync_outbox (id, txid, dedup_key, created_at, target_id, priority, schema_name, table_name,
                    op, pk, data, branch)
                 VALUES ($1, pg_catalog.pg_current_xact_id(), $2, coalesce($3, pg_catalog.now()), $4,
                    $5::@.sync_outbox_priority, $6, $7, $8, $9::pg_catalog.json, $10::pg_catalog.json,
                    coalesce($10::pg_catalog.json OPERATOR(pg_catalog.->>) $11,
                             $9::pg_catalog.json OPERATOR(pg_catalog.->>) $11))",
            ),
            &[
                self.id.into(),
                pgrx::Uuid::from_bytes(*self.dedup_key.as_bytes()).into(),
                self.created_at.map_or_else(|| Arg::null(pg_sys::TIMESTAMPTZOID), Arg::timestamptz),
                self.target_id.into(),
                self.priority.name().into(),
                Arg::text_bytes(self.schema_name),
                Arg::text_bytes(self.table_name),
                self.op.into(),
                text(self.pk),
                text(self.data),
                self.branch_column.map_or_else(|| Arg::null(pg_sys::TEXTOID), Arg::text_utf8),
            ],
        );
    }
}
