//! What the system catalogs say about a relation that is to be attached, backfilled or imported.

use super::Schema;
use crate::error::{Error, Result, SqlState};
use crate::pg::relation_lock::{self, LockMode};
use crate::pg::{Oid, role, spi, xact};

/// The longest wait for the lock of a table that others are using.
pub const LOCK_WAIT_MS: i32 = 5_000;

/// A relation as the catalogs describe it right now.
#[derive(Clone, Debug)]
pub struct Relation {
    pub oid: Oid,
    /// Schema and name, each quoted where necessary: for messages and hints that can be pasted.
    pub name: String,
    /// Schema and name, both quoted, for our own statements.
    pub sql_name: String,
    pub owner: Oid,
    pub kind: RelationKind,
    pub temporary: bool,
    pub unlogged: bool,
    /// Made by initdb.
    pub system: bool,
    /// A member of this extension.
    pub ours: bool,
    /// The columns that are stored, in their order.
    pub columns: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    Table,
    Partitioned,
    /// Anything else, by the name that PostgreSQL has for it.
    Other(&'static str),
}

impl RelationKind {
    fn of(relkind: &str) -> Self {
        match relkind {
            "r" => RelationKind::Table,
            "p" => RelationKind::Partitioned,
            "v" => RelationKind::Other("a view"),
            "m" => RelationKind::Other("a materialized view"),
            "f" => RelationKind::Other("a foreign table"),
            "S" => RelationKind::Other("a sequence"),
            "i" | "I" => RelationKind::Other("an index"),
            "c" => RelationKind::Other("a composite type"),
            _ => RelationKind::Other("not a table"),
        }
    }
}

/// Looks a relation up: 42P01 if it is gone.
pub fn find(schema: &Schema, oid: Oid) -> Result<Relation> {
    spi::first(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname::pg_catalog.text,
                c.relname::pg_catalog.text, c.relowner, c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text,
                c.oid::bigint OPERATOR(pg_catalog.<) 16384,
                EXISTS (SELECT FROM pg_catalog.pg_depend d
                          JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
                         WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
                           AND d.objid OPERATOR(pg_catalog.=) c.oid
                           AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
                           AND d.deptype OPERATOR(pg_catalog.=) 'e'
                           AND e.extname OPERATOR(pg_catalog.=) 'sync_outbox' AND e.extnamespace OPERATOR(pg_catalog.=) $2),
                ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                       WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0
                         AND NOT a.attisdropped AND a.attgenerated OPERATOR(pg_catalog.<>) 'v'
                       ORDER BY a.attnum)
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[oid.into(), schema.oid.into()],
        |row| Relation {
            oid,
            name: row.utf8(1).unwrap_or_default(),
            sql_name: [2, 3].map(|n| super::quote_ident(&row.utf8(n).unwrap_or_default())).join("."),
            owner: row.get(4).unwrap_or(Oid::INVALID),
            kind: RelationKind::of(&row.text(5)),
            temporary: row.text(6) == "t",
            unlogged: row.text(6) == "u",
            system: row.get(7).unwrap_or_default(),
            ours: row.get(8).unwrap_or_default(),
            columns: row.texts(9),
        },
    )
    .ok_or_else(|| {
        Error::new(SqlState::ERRCODE_UNDEFINED_TABLE, format!("relation with OID {} does not exist", oid.to_u32()))
            .hint("SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'p'); lists the tables.")
    })
}

/// Runs `f` with the relation locked. Waits a limited time for the lock, because every writer queues behind one that
/// waits.
pub fn with_lock<R>(oid: Oid, mode: LockMode, f: impl FnOnce() -> Result<R>) -> Result<R> {
    xact::subtransaction_in_time(LOCK_WAIT_MS, || {
        relation_lock::lock(oid, mode);
        f()
    })
    .map_err(|caught| {
        let timed_out = caught.sqlstate == SqlState::ERRCODE_LOCK_NOT_AVAILABLE;
        let error = Error::from(caught);
        if timed_out {
            error.hint("A transaction is writing to the table; try again when it has ended: see pg_locks and pg_stat_activity.")
        } else {
            error
        }
    })?
}

impl Relation {
    /// 42501 unless `user` owns it or is a superuser.
    pub fn require_owner(&self, user: Oid) -> Result<()> {
        if role::has_role(user, self.owner) {
            return Ok(());
        }
        let owner = role::name(self.owner);
        Err(Error::new(SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of {}", self.name))
            .hint(format!("Call it as {owner}, as a member of {owner} or as superuser.")))
    }

    /// 42703 if there is no such column.
    pub fn require_column(&self, name: &str, argument: &str) -> Result<()> {
        if self.columns.iter().any(|c| c == name) {
            return Ok(());
        }
        Err(Error::new(
            SqlState::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{name}\" named in {argument} does not exist in {}", self.name),
        )
        .hint(format!("The columns of {} are: {}.", self.name, self.columns.join(", "))))
    }
}

/// The inheritance children of a table that is not partitioned.
pub fn inheritance_children(relation: Oid) -> Vec<String> {
    names(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
           FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE i.inhparent OPERATOR(pg_catalog.=) $1 AND NOT c.relispartition ORDER BY 1",
        &[relation.into()],
    )
}

/// The statements that drop the scripts' triggers on a relation and its partitions: triggers with the names that they
/// use, which call another function than ours.
pub fn script_triggers(capture: Oid, relation: Oid) -> Vec<String> {
    names(
        "SELECT pg_catalog.format('DROP TRIGGER %I ON %I.%I;', t.tgname, n.nspname, c.relname)
           FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
           JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          WHERE (t.tgrelid OPERATOR(pg_catalog.=) $1
                 OR t.tgrelid OPERATOR(pg_catalog.=) ANY (SELECT p.relid FROM pg_catalog.pg_partition_tree($1) p))
            AND t.tgparentid OPERATOR(pg_catalog.=) 0 AND NOT t.tgisinternal AND t.tgfoid OPERATOR(pg_catalog.<>) $2
            AND (t.tgname OPERATOR(pg_catalog.=)
                     ANY ('{sync_outbox_ins,sync_outbox_upd,sync_outbox_del}'::pg_catalog.name[])
                 OR pg_catalog.starts_with(t.tgname::pg_catalog.text, 'sync_outbox_aiud_'))
          ORDER BY 1",
        &[relation.into(), capture.into()],
    )
}

fn names(sql: &str, args: &[spi::Arg]) -> Vec<String> {
    let mut names = Vec::new();
    spi::query(sql, args, |row| names.push(row.utf8(1).unwrap_or_default()));
    names
}
