//! Attached tables, as the system catalogs know them: triggers, keys, partitions.

use super::{Schema, target};
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::{self, Arg};
use crate::pg::{Oid, text};
use crate::store::options::Options;

/// The table that was attached, given the oid of a trigger: a partition's clone leads up to the root's trigger.
pub fn root_of(trigger: Oid) -> Option<Oid> {
    spi::first(
        "WITH RECURSIVE up AS (
            SELECT tgrelid, tgparentid FROM pg_catalog.pg_trigger WHERE oid OPERATOR(pg_catalog.=) $1
            UNION ALL
            SELECT t.tgrelid, t.tgparentid FROM pg_catalog.pg_trigger t
              JOIN up ON t.oid OPERATOR(pg_catalog.=) up.tgparentid)
         SELECT tgrelid FROM up WHERE tgparentid OPERATOR(pg_catalog.=) 0",
        &[trigger.into()],
        |row| row.get::<Oid>(1),
    )
    .flatten()
}

/// The partitions of a partitioned table that have none themselves.
pub fn leaves(relation: Oid) -> Vec<Oid> {
    let mut found = Vec::new();
    spi::query(
        "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf",
        &[relation.into()],
        |row| found.extend(row.get::<Oid>(1)),
    );
    found
}

/// Schema and name of a relation, in the server encoding.
pub fn name(relation: Oid) -> (Vec<u8>, Vec<u8>) {
    spi::first(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[relation.into()],
        |row| (row.bytes(1).unwrap_or_default().to_vec(), row.bytes(2).unwrap_or_default().to_vec()),
    )
    .unwrap_or_default()
}

/// The attribute numbers of these columns, in their order, and their positions among the existing columns; 0 for a
/// column that does not exist.
pub fn attribute_numbers(relation: Oid, columns: &[String]) -> Vec<(i16, i16)> {
    let mut found = vec![(0, 0); columns.len()];
    if columns.is_empty() {
        return found;
    }
    spi::query(
        "SELECT attname::pg_catalog.text, attnum, (pg_catalog.row_number() OVER (ORDER BY attnum))::pg_catalog.int2
           FROM pg_catalog.pg_attribute
          WHERE attrelid OPERATOR(pg_catalog.=) $1 AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped",
        &[relation.into()],
        |row| {
            let name = row.utf8(1);
            if let Some(i) = columns.iter().position(|column| Some(column) == name.as_ref()) {
                found[i] = (row.get(2).unwrap_or_default(), row.get(3).unwrap_or_default());
            }
        },
    );
    found
}

/// A unique index, and the reason why it cannot be the key of changes, if there is one.
struct CandidateKey {
    columns: Vec<String>,
    primary: bool,
    replica_identity: bool,
    objection: Option<String>,
}

/// The key columns of a relation, in the order of their index: those asked for, or the primary key, or the replica
/// identity's index. The index must give ids an order (`invariants` 3): valid, immediate, neither partial nor over
/// expressions, on NOT NULL columns, and of types whose equal values look the same (numbers excepted, which are
/// compared as numbers).
pub fn key_of(relation: Oid, wanted: Option<&[String]>) -> Result<Vec<String>> {
    let mut candidates = candidates(relation);
    let position = match wanted {
        Some(wanted) => candidates
            .iter()
            .position(|c| c.columns.len() == wanted.len() && wanted.iter().all(|w| c.columns.contains(w))),
        None => candidates.iter().position(|c| c.primary).or(candidates.iter().position(|c| c.replica_identity)),
    };
    let table = text::to_utf8(&name(relation).1).into_owned();
    let no_key = |why: String| {
        Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, format!("table \"{table}\" has no usable key"))
            .detail(why)
    };
    let Some(position) = position else {
        return Err(match wanted {
            Some(columns) => no_key(format!("There is no unique index on exactly ({}).", columns.join(", "))),
            None => no_key("It has no primary key and no replica identity index.".into()),
        }
        .hint("Add a primary key, or name the NOT NULL columns of a unique index with key_columns."));
    };
    let chosen = candidates.swap_remove(position);
    match chosen.objection {
        None => Ok(chosen.columns),
        Some(objection) => Err(no_key(format!("The index on ({}) {objection}.", chosen.columns.join(", ")))
            .hint("Use a valid, immediate unique index without expressions or WHERE, on NOT NULL columns, as primary key or with key_columns.")),
    }
}

fn candidates(relation: Oid) -> Vec<CandidateKey> {
    let mut found = Vec::new();
    spi::query(
        "SELECT k.names, i.indisprimary, i.indisreplident,
                CASE WHEN i.indisexclusion THEN 'keeps ranges from overlapping, and is not searched by equality'
                     WHEN NOT (i.indisvalid AND i.indisready) THEN 'is not valid'
                     WHEN i.indpred IS NOT NULL THEN 'covers only some rows (it has a WHERE clause)'
                     WHEN i.indexprs IS NOT NULL THEN 'is over expressions'
                     WHEN NOT i.indimmediate THEN 'is deferrable: two rows may hold one key for a while'
                     WHEN NOT k.not_null THEN 'allows NULL'
                     WHEN k.blank THEN 'is of type bpchar without a length, whose equal values can look different'
                     WHEN NOT k.same_image THEN 'has a type or collation whose equal values can look different' END
           FROM pg_catalog.pg_index i
          CROSS JOIN LATERAL (
                SELECT pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY c.n) AS names,
                       -- Since 18 a constraint that is not valid sets attnotnull, whatever the rows hold.
                       pg_catalog.bool_and(a.attnotnull AND NOT EXISTS (
                           SELECT FROM pg_catalog.pg_constraint v
                            WHERE v.conrelid OPERATOR(pg_catalog.=) a.attrelid
                              AND v.contype OPERATOR(pg_catalog.=) 'n'::pg_catalog.\"char\" AND NOT v.convalidated
                              AND a.attnum OPERATOR(pg_catalog.=) ANY (v.conkey))) AS not_null,
                       pg_catalog.bool_or(oc.opcintype OPERATOR(pg_catalog.=) 1042::pg_catalog.oid
                           AND a.atttypmod OPERATOR(pg_catalog.=) -1
                           AND t.typtypmod OPERATOR(pg_catalog.=) -1) AS blank,
                       pg_catalog.bool_and(
                           -- real, double precision, numeric
                           oc.opcintype OPERATOR(pg_catalog.=) ANY ('{700,701,1700}'::pg_catalog.oid[])
                           OR (EXISTS (SELECT FROM pg_catalog.pg_amproc p
                                        WHERE p.amprocfamily OPERATOR(pg_catalog.=) oc.opcfamily
                                          AND p.amproclefttype OPERATOR(pg_catalog.=) oc.opcintype
                                          AND p.amprocnum OPERATOR(pg_catalog.=) 4)
                               AND coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l
                                              WHERE l.oid OPERATOR(pg_catalog.=) i.indcollation[c.n OPERATOR(pg_catalog.-) 1]),
                                            true))) AS same_image
                  FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS c (attnum, n)
                  JOIN pg_catalog.pg_attribute a
                    ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) c.attnum
                  JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
                  JOIN pg_catalog.pg_opclass oc ON oc.oid OPERATOR(pg_catalog.=) i.indclass[c.n OPERATOR(pg_catalog.-) 1]
                 WHERE c.n OPERATOR(pg_catalog.<=) i.indnkeyatts) k
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisunique AND k.names IS NOT NULL",
        &[relation.into()],
        |row| {
            found.push(CandidateKey {
                columns: row.texts(1),
                primary: row.get(2).unwrap_or_default(),
                replica_identity: row.get(3).unwrap_or_default(),
                objection: row.utf8(4),
            })
        },
    );
    found
}

/// One of our triggers on an attached table (not the clone on a partition of one).
#[derive(Clone, Debug)]
pub struct Trigger {
    pub name: String,
    /// As its argument has them; `None` if that cannot be read.
    pub options: Option<Options>,
    /// `O` for origin, `A` for always, `D` for disabled, `R` for replica.
    pub enabled: String,
}

/// Our triggers on a relation, the row trigger first.
pub fn triggers(capture: Oid, relation: Oid) -> Vec<Trigger> {
    let mut found = Vec::new();
    spi::query(
        "SELECT tgname::pg_catalog.text, tgargs, tgenabled::pg_catalog.text FROM pg_catalog.pg_trigger
          WHERE tgrelid OPERATOR(pg_catalog.=) $1 AND tgfoid OPERATOR(pg_catalog.=) $2 AND tgparentid OPERATOR(pg_catalog.=) 0
          ORDER BY tgtype OPERATOR(pg_catalog.&) 1 DESC, 1",
        &[relation.into(), capture.into()],
        |row| {
            found.push(Trigger {
                name: row.utf8(1).unwrap_or_default(),
                options: row.bytes(2).and_then(of_argument),
                enabled: row.text(3),
            })
        },
    );
    found
}

/// The options that a relation was attached with.
pub fn options(capture: Oid, relation: Oid) -> Option<Options> {
    triggers(capture, relation).into_iter().find_map(|t| t.options)
}

/// Whether another relation was attached under that name.
pub fn another_is_named(capture: Oid, relation: Oid, name: &[String; 2]) -> bool {
    let mut found = false;
    spi::query(
        "SELECT tgargs FROM pg_catalog.pg_trigger
          WHERE tgfoid OPERATOR(pg_catalog.=) $1 AND tgparentid OPERATOR(pg_catalog.=) 0 AND tgrelid OPERATOR(pg_catalog.<>) $2",
        &[capture.into(), relation.into()],
        |row| found |= row.bytes(1).and_then(of_argument).is_some_and(|options| options.named.as_ref() == Some(name)),
    );
    found
}

/// The options in a trigger's argument; `None` if they cannot be read.
fn of_argument(argument: &[u8]) -> Option<Options> {
    serde_json::from_str(&text::to_utf8(argument.strip_suffix(b"\0")?)).ok()
}

/// The options of the attached relation of that schema and name.
pub fn options_by_name(capture: Oid, schema_name: &[u8], table_name: &[u8]) -> Option<Options> {
    let relation = spi::first(
        "SELECT c.oid FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE n.nspname OPERATOR(pg_catalog.=) $1 AND c.relname OPERATOR(pg_catalog.=) $2",
        &[Arg::text_bytes(schema_name), Arg::text_bytes(table_name)],
        |row| row.get::<Oid>(1),
    );
    options(capture, relation.flatten()?)
}

/// Every attached relation with its quoted name.
pub fn all(capture: Oid) -> Vec<(Oid, String)> {
    let mut found = Vec::new();
    spi::query(
        "SELECT DISTINCT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname)
           FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE t.tgfoid OPERATOR(pg_catalog.=) $1 AND t.tgparentid OPERATOR(pg_catalog.=) 0 ORDER BY 2",
        &[capture.into()],
        |row| found.push((row.get(1).unwrap_or(Oid::INVALID), row.utf8(2).unwrap_or_default())),
    );
    found
}

/// The attached relations whose changes go to the target of that name.
pub fn aimed_at(capture: Oid, target: &str) -> Vec<String> {
    aimed(capture, |name| name == target)
}

/// The attached relations whose changes go to a target that does not exist.
pub fn aimed_at_nothing(schema: &Schema) -> Vec<String> {
    aimed(schema.capture(), |name| name != target::DEFAULT && target::look_up(schema, name).is_none())
}

fn aimed(capture: Oid, at: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = all(capture);
    found.retain(|(oid, _)| {
        triggers(capture, *oid).iter().any(|trigger| trigger.options.as_ref().is_some_and(|o| at(&o.target)))
    });
    found.into_iter().map(|(_, name)| name).collect()
}

/// The name of the attached table that this relation is a partition of.
pub fn attached_ancestor(capture: Oid, relation: Oid) -> Option<String> {
    relative("pg_catalog.pg_partition_ancestors($1)", capture, relation)
}

/// The name of a partition of this table that is attached by itself.
pub fn attached_partition(capture: Oid, relation: Oid) -> Option<String> {
    relative("pg_catalog.pg_partition_tree($1)", capture, relation)
}

fn relative(relatives: &str, capture: Oid, relation: Oid) -> Option<String> {
    spi::first(
        &format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
               FROM {relatives} AS p (relid) JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.relid
               JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
              WHERE p.relid OPERATOR(pg_catalog.<>) $1 AND EXISTS (
                    SELECT FROM pg_catalog.pg_trigger t
                     WHERE t.tgrelid OPERATOR(pg_catalog.=) p.relid AND t.tgfoid OPERATOR(pg_catalog.=) $2
                       AND t.tgparentid OPERATOR(pg_catalog.=) 0)
              ORDER BY 1"
        ),
        &[relation.into(), capture.into()],
        |row| row.utf8(1).unwrap_or_default(),
    )
}

/// Whether any change of a table waits in a lane other than (`target_id`, `priority`). Four ranges of the primary key,
/// so that the lane itself, which may be long, is not read.
pub fn waits_elsewhere(schema: &Schema, table: &(Vec<u8>, Vec<u8>), target_id: i16, priority: &str) -> bool {
    let of_table = "SELECT true FROM @.sync_outbox
                     WHERE schema_name OPERATOR(pg_catalog.=) $1 AND table_name OPERATOR(pg_catalog.=) $2 AND";
    spi::first(
        &schema.sql(&format!(
            "{of_table} target_id OPERATOR(pg_catalog.<) $3
             UNION ALL {of_table} target_id OPERATOR(pg_catalog.>) $3
             UNION ALL {of_table} target_id OPERATOR(pg_catalog.=) $3
                    AND priority OPERATOR(pg_catalog.<) $4::@.sync_outbox_priority
             UNION ALL {of_table} target_id OPERATOR(pg_catalog.=) $3
                    AND priority OPERATOR(pg_catalog.>) $4::@.sync_outbox_priority LIMIT 1"
        )),
        &[Arg::text_bytes(&table.0), Arg::text_bytes(&table.1), target_id.into(), priority.into()],
        |_| (),
    )
    .is_some()
}
