//! The table `sync_outbox_accepted`: tables that this hub lets senders write, and what the catalogs say of them.

use super::Schema;
use crate::pg::Oid;
use crate::pg::spi::{self, Arg};
use std::collections::BTreeMap;

/// An accepted table.
pub struct Accepted {
    pub oid: Oid,
    pub owner: Oid,
    pub partitioned: bool,
    /// By foreign keys of other tables.
    pub referenced: bool,
}

/// The accepted table of that name.
pub fn find(schema: &Schema, schema_name: &str, table_name: &str) -> Option<Accepted> {
    spi::first(
        &schema.sql(
            "SELECT c.oid, c.relowner, c.relkind = 'p',
                    EXISTS (SELECT FROM pg_catalog.pg_constraint f
                             WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.conrelid <> c.oid)
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
               JOIN @.sync_outbox_accepted a ON a.relation = c.oid
              WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
        ),
        &[Arg::text_utf8(schema_name), Arg::text_utf8(table_name)],
        |row| Accepted {
            oid: row.get(1).unwrap_or(Oid::INVALID),
            owner: row.get(2).unwrap_or(Oid::INVALID),
            partitioned: row.get(3).unwrap_or_default(),
            referenced: row.get(4).unwrap_or_default(),
        },
    )
}

/// A column of a table, its type as it is written in SQL.
pub struct Column {
    pub name: String,
    pub type_name: String,
    pub generated: bool,
    pub always_identity: bool,
}

pub fn columns(relation: Oid) -> Vec<Column> {
    let mut columns = Vec::new();
    spi::query(
        "SELECT attname::text, pg_catalog.format_type(atttypid, atttypmod), attgenerated <> '', attidentity = 'a'
           FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
        &[relation.into()],
        |row| {
            columns.push(Column {
                name: row.utf8(1).unwrap_or_default(),
                type_name: row.utf8(2).unwrap_or_default(),
                generated: row.get(3).unwrap_or_default(),
                always_identity: row.get(4).unwrap_or_default(),
            })
        },
    );
    columns
}

/// The columns of each unique index that tells rows apart at any moment (valid, immediate, neither partial nor over
/// expressions), each with the operator the index compares by. The primary key comes first.
pub fn keys(relation: Oid) -> Vec<BTreeMap<String, String>> {
    let mut keys = Vec::new();
    let mut last = None;
    spi::query(
        "SELECT i.indexrelid, a.attname::text,
                pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
           FROM pg_catalog.pg_index i
          CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
           JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
           JOIN pg_catalog.pg_opclass oc ON oc.oid = i.indclass[k.n - 1]
           JOIN pg_catalog.pg_amop p ON p.amopfamily = oc.opcfamily AND p.amopstrategy = 3
                AND p.amoplefttype = oc.opcintype AND p.amoprighttype = oc.opcintype
           JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
           JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
          WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indisready
            AND i.indpred IS NULL AND i.indexprs IS NULL AND k.n <= i.indnkeyatts
          ORDER BY i.indisprimary DESC, i.indexrelid",
        &[relation.into()],
        |row| {
            let index = row.get::<Oid>(1);
            if last != index {
                keys.push(BTreeMap::new());
                last = index;
            }
            if let (Some(key), Some(column), Some(operator)) = (keys.last_mut(), row.utf8(2), row.utf8(3)) {
                key.insert(column, operator);
            }
        },
    );
    keys
}

/// What accept has to know of a relation before it takes it.
pub struct Candidate {
    pub name: String,
    pub kind: u8,
    pub temporary: bool,
    pub system: bool,
    /// It belongs to this extension.
    pub ours: bool,
    pub owner: Oid,
}

pub fn candidate(relation: Oid) -> Option<Candidate> {
    spi::first(
        "SELECT c.oid::pg_catalog.regclass::text, c.relkind, c.relpersistence = 't',
                n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast'),
                EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
                         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                           AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
                           AND d.deptype = 'e' AND e.extname = 'sync_outbox'),
                c.relowner
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[relation.into()],
        |row| Candidate {
            name: row.utf8(1).unwrap_or_default(),
            kind: row.get::<i8>(2).unwrap_or_default() as u8,
            temporary: row.get(3).unwrap_or_default(),
            system: row.get(4).unwrap_or_default(),
            ours: row.get(5).unwrap_or_default(),
            owner: row.get(6).unwrap_or(Oid::INVALID),
        },
    )
}

/// Accepts a table, and forgets the ones that are gone, whose numbers could come back as other tables.
pub fn accept(schema: &Schema, relation: Oid, by: &str) {
    spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_accepted a
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = a.relation)",
        ),
        &[],
    );
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_accepted (relation, accepted_by) VALUES ($1, $2::text::name) ON CONFLICT DO NOTHING",
        ),
        &[relation.into(), Arg::text_utf8(by)],
    );
}
