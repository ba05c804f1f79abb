//! The table `sync_outbox_accepted`: tables that this hub lets senders write, and what the catalogs say of them.

use super::Schema;
use crate::pg::Oid;
use crate::pg::spi::{self, Arg};
use std::collections::{BTreeMap, HashMap};

/// An accepted table.
pub struct Accepted {
    pub oid: Oid,
    pub partitioned: bool,
    /// Foreign keys of other tables refer to it.
    pub referenced: bool,
    /// Members of a change that are not among its columns are left out.
    pub ignore_unknown: bool,
}

/// The accepted table of that name.
pub fn find(schema: &Schema, schema_name: &str, table_name: &str) -> Option<Accepted> {
    spi::first(
        &schema.sql(
            "SELECT c.oid, c.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog.\"char\",
                    EXISTS (SELECT FROM pg_catalog.pg_constraint f
                             WHERE f.confrelid OPERATOR(pg_catalog.=) c.oid
                               AND f.contype OPERATOR(pg_catalog.=) 'f'::pg_catalog.\"char\"
                               AND f.conrelid OPERATOR(pg_catalog.<>) c.oid),
                    a.ignore_unknown_columns
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
               JOIN @.sync_outbox_accepted a
                 ON a.relation::pg_catalog.oid OPERATOR(pg_catalog.=) c.oid
              WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name
                AND c.relname OPERATOR(pg_catalog.=) $2::pg_catalog.name
                AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.\"char\"[])",
        ),
        &[Arg::text_utf8(schema_name), Arg::text_utf8(table_name)],
        |row| Accepted {
            oid: row.get(1).unwrap_or(Oid::INVALID),
            partitioned: row.get(2).unwrap_or_default(),
            referenced: row.get(3).unwrap_or_default(),
            ignore_unknown: row.get(4).unwrap_or_default(),
        },
    )
}

/// Why a table would not keep changes that it acknowledges.
pub struct Flaw {
    /// The rest of a message that begins with the table's name.
    pub why: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// What is wrong with a table or one of its partitions, if anything is.
pub fn flaw(relation: Oid) -> Option<Flaw> {
    let (unlogged, deferrable, foreign) = spi::first(
        "SELECT pg_catalog.min(CASE WHEN l.relpersistence OPERATOR(pg_catalog.<>) 'p'::pg_catalog.\"char\"
                                    THEN r.oid::pg_catalog.regclass::pg_catalog.text END),
                pg_catalog.min(CASE WHEN NOT i.indimmediate
                                    THEN i.indexrelid::pg_catalog.regclass::pg_catalog.text END),
                pg_catalog.min(CASE WHEN l.relowner OPERATOR(pg_catalog.<>) o.relowner
                                    THEN r.oid::pg_catalog.regclass::pg_catalog.text END)
           FROM (SELECT $1 UNION ALL
                 SELECT p.relid::pg_catalog.oid FROM pg_catalog.pg_class c
                  CROSS JOIN LATERAL pg_catalog.pg_partition_tree(c.oid::pg_catalog.regclass) p
                  WHERE c.oid OPERATOR(pg_catalog.=) $1
                    AND c.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog.\"char\") r (oid)
           JOIN pg_catalog.pg_class l ON l.oid OPERATOR(pg_catalog.=) r.oid
           JOIN pg_catalog.pg_class o ON o.oid OPERATOR(pg_catalog.=) $1
           LEFT JOIN pg_catalog.pg_index i ON i.indrelid OPERATOR(pg_catalog.=) r.oid",
        &[relation.into()],
        |row| (row.utf8(1), row.utf8(2), row.utf8(3)),
    )?;
    if let Some(unlogged) = unlogged {
        return Some(Flaw {
            why: format!("is not permanent: a crash empties {unlogged}"),
            hint: "ALTER TABLE .. SET LOGGED, or accept another table: what is acknowledged must survive a crash.",
        });
    }
    if let Some(partition) = foreign {
        return Some(Flaw {
            why: format!("has the partition {partition} of another owner, whose code would run as the table's owner"),
            hint: "ALTER TABLE .. OWNER TO: one owner for the table and all its partitions.",
        });
    }
    deferrable.map(|index| Flaw {
        why: format!("has the DEFERRABLE constraint {index}, which is not enforced when changes are applied"),
        hint: "Make it NOT DEFERRABLE: drop the constraint and add it again.",
    })
}

/// A column of an accepted table.
#[derive(Debug)]
pub struct HubColumn {
    /// As it is written in SQL.
    pub type_name: String,
    /// The hub computes it.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: may be inserted, never updated.
    pub always_identity: bool,
}

/// The columns of a table by name.
pub fn columns(relation: Oid) -> HashMap<String, HubColumn> {
    let mut columns = HashMap::new();
    spi::query(
        "SELECT attname::pg_catalog.text, pg_catalog.format_type(atttypid, atttypmod),
                attgenerated OPERATOR(pg_catalog.<>) ''::pg_catalog.\"char\",
                attidentity OPERATOR(pg_catalog.=) 'a'::pg_catalog.\"char\"
           FROM pg_catalog.pg_attribute
          WHERE attrelid OPERATOR(pg_catalog.=) $1 AND attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2
            AND NOT attisdropped",
        &[relation.into()],
        |row| {
            let column = HubColumn {
                type_name: row.utf8(2).unwrap_or_default(),
                generated: row.get(3).unwrap_or_default(),
                always_identity: row.get(4).unwrap_or_default(),
            };
            columns.insert(row.utf8(1).unwrap_or_default(), column);
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
        "SELECT i.indexrelid, a.attname::pg_catalog.text,
                pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
           FROM pg_catalog.pg_index i
          CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, n)
           JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
                AND a.attnum OPERATOR(pg_catalog.=) k.attnum
           JOIN pg_catalog.pg_opclass oc ON oc.oid OPERATOR(pg_catalog.=)
                i.indclass[k.n::pg_catalog.int4 OPERATOR(pg_catalog.-) 1]
           JOIN pg_catalog.pg_amop p ON p.amopfamily OPERATOR(pg_catalog.=) oc.opcfamily
                AND p.amopstrategy OPERATOR(pg_catalog.=) 3::pg_catalog.int2
                AND p.amoplefttype OPERATOR(pg_catalog.=) oc.opcintype
                AND p.amoprighttype OPERATOR(pg_catalog.=) oc.opcintype
           JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) p.amopopr
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisunique AND i.indimmediate AND i.indisvalid
            AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion
            AND k.n OPERATOR(pg_catalog.<=) i.indnkeyatts::pg_catalog.int8
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

/// What `sync_outbox_accept()` has to know about a relation.
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
        "SELECT c.oid::pg_catalog.regclass::pg_catalog.text, c.relkind,
                c.relpersistence OPERATOR(pg_catalog.=) 't'::pg_catalog.\"char\",
                n.nspname OPERATOR(pg_catalog.=)
                    ANY ('{pg_catalog,information_schema,pg_toast}'::pg_catalog.name[]),
                EXISTS (SELECT FROM pg_catalog.pg_depend d
                          JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
                         WHERE d.classid OPERATOR(pg_catalog.=)
                               'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
                           AND d.objid OPERATOR(pg_catalog.=) c.oid
                           AND d.refclassid OPERATOR(pg_catalog.=)
                               'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid
                           AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\"
                           AND e.extname OPERATOR(pg_catalog.=) 'sync_outbox'::pg_catalog.name),
                c.relowner
           FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE c.oid OPERATOR(pg_catalog.=) $1",
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

/// Accepts a table, or changes its option, and forgets the tables that are gone: their oids could be given to other
/// tables.
pub fn accept(schema: &Schema, relation: Oid, by: &str, ignore_unknown: bool) {
    spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_accepted a
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c
                                 WHERE c.oid OPERATOR(pg_catalog.=) a.relation::pg_catalog.oid)",
        ),
        &[],
    );
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_accepted (relation, accepted_by, ignore_unknown_columns)
             VALUES ($1, $2::pg_catalog.name, $3)
             ON CONFLICT (relation) DO UPDATE SET ignore_unknown_columns = excluded.ignore_unknown_columns",
        ),
        &[relation.into(), Arg::text_utf8(by), ignore_unknown.into()],
    );
}
