//! `sync_outbox_import()`: takes over the changes that the scripts' outbox has not delivered.
//!
//! The old changes are older than everything captured since, so they get the ids before it. The old table is read as
//! its owner, because reading it may run the owner's casts; the rows are written as the extension's owner.

use super::argument;
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::lock::{LockScope, SenderLock};
use crate::pg::memory::{self, ScratchContext};
use crate::pg::relation_lock::LockMode;
use crate::pg::role::{self, ActAs};
use crate::pg::spi::{self, Row};
use crate::pg::{Oid, confine, interrupt, text, xact};
use crate::store::import::{self, Imported};
use crate::store::options::Options;
use crate::store::relation::{self, Relation, RelationKind};
use crate::store::{Schema, attached, identity, lane, quote_literal, target};
use crate::{settings, wake};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use uuid::Uuid;
use wire::Operation;

/// Columns of the scripts' outbox, which is another table than ours.
const REQUIRED: [&str; 6] = ["id", "schema_name", "table_name", "op", "pk", "data"];

/// Imports every row of `old_table`, whatever its status there, in the order of its `id`; returns how many. Keys that
/// are uuids or 32 hex digits are kept. A row gets the target and priority of its table, or the default target and
/// NORMAL if the table is not attached. Rows that an earlier import has taken over and that still wait are skipped with
/// a NOTICE.
///
/// All or nothing: 42501 if the caller does not own the table, or one that its changes are of, 42809 or 42703 if it is
/// not such a table, 54000 if its changes are of too many tables, 22023 for a row that cannot be sent, 25001 in
/// REPEATABLE READ, 55000 if later changes of a table that is not attached wait elsewhere, 55P03 if the table or the
/// sender is busy, or while tables are being attached.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_import(old_table: Option<Oid>) -> i64 {
    or_raise((|| import(argument::required(old_table, "old_table")?))())
}

fn import(oid: Oid) -> Result<i64> {
    let caller = role::current_user();
    let schema = Schema::installed()?;
    let old = lock(&schema, caller, oid)?;
    confine::all_immediate();
    let (tables, rows) = {
        let _restricted = ActAs::restricted(old.owner);
        tables(&old)?
    };
    let (routes, mut next_id, last_id, before) = {
        let _owner = ActAs::owner();
        let _ = identity::admit(&schema); // while the outbox is empty; a copy may import, and send later
        lane::lock_all_lanes(&schema)?;
        let routes = routes(&schema, caller, tables)?;
        keep_senders_out(&schema, &routes)?;
        let last_id = import::last_id(&schema);
        (routes, last_id - rows + 1, last_id, import::keys(&schema))
    };
    let mut keys = DedupKeys { before, now: HashSet::new() };
    let (mut imported, mut skipped) = (0, 0);
    let memory = ScratchContext::new();
    let mut outcome = Ok(());
    let restricted = ActAs::restricted(old.owner);
    spi::scan_once(&select(&old), &[], |row| {
        interrupt::check();
        if next_id > last_id {
            outcome = Err(other_rows(&old)); // the next ids belong to captured changes
            return ControlFlow::Break(());
        }
        match memory.run(|| take(&schema, &routes, &mut keys, next_id, row)) {
            Ok(true) => {
                imported += 1;
                next_id += 1;
            }
            Ok(false) => skipped += 1,
            Err(error) => outcome = Err(error),
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    drop(restricted);
    outcome?;
    if skipped > 0 {
        pgrx::notice!("{skipped} of {rows} changes were imported before and still wait: skipped");
    }
    wake::control_at_commit();
    Ok(imported)
}

/// Checks the old table and locks its writers out, because what they wrote from now on would be lost with the table.
fn lock(schema: &Schema, caller: Oid, oid: Oid) -> Result<Relation> {
    let _owner = ActAs::owner();
    if xact::uses_one_snapshot() {
        return Err(Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "cannot import in a REPEATABLE READ transaction",
        )
        .hint("Call it in a READ COMMITTED transaction: this one might not see the latest rows."));
    }
    check(schema, caller, oid)?;
    relation::with_lock(oid, LockMode::Share, || check(schema, caller, oid))
}

fn check(schema: &Schema, caller: Oid, oid: Oid) -> Result<Relation> {
    let old = relation::find(schema, oid)?;
    old.require_owner(caller)?;
    let hint = "Name the table that the scripts made, which you have renamed: columns id, schema_name, table_name, op, pk, data, dedup_key, created_at.";
    if old.ours || !matches!(old.kind, RelationKind::Table | RelationKind::Partitioned) {
        return Err(Error::new(
            SqlState::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{} is not an outbox table made by scripts", old.name),
        )
        .hint(hint));
    }
    match REQUIRED.iter().find(|column| !has(&old, column)) {
        Some(column) => {
            Err(Error::new(SqlState::ERRCODE_UNDEFINED_COLUMN, format!("{} has no column \"{column}\"", old.name))
                .hint(hint))
        }
        None => Ok(old),
    }
}

fn has(table: &Relation, column: &str) -> bool {
    table.columns.iter().any(|c| c == column)
}

/// Schema and name of a table, as bytes in the server encoding.
type TableName = (Vec<u8>, Vec<u8>);

/// The most bytes that such a name may have: many times the length of a name in PostgreSQL.
const MOST_NAME_BYTES: usize = 1024;
/// The most tables that the changes of an old outbox may belong to.
const MOST_TABLES: usize = 10_000;

/// The tables that the old changes belong to, and the number of changes. The names are kept in Rust's memory, so their
/// number and length are limited.
fn tables(old: &Relation) -> Result<(Vec<TableName>, i64)> {
    let (mut tables, mut rows) = (Vec::new(), 0);
    let count = format!(
        "SELECT schema_name::pg_catalog.text, table_name::pg_catalog.text, pg_catalog.count(*) FROM {} GROUP BY 1, 2
          LIMIT {}",
        old.sql_name,
        MOST_TABLES + 1
    );
    let mut long = false;
    spi::once(&count, &[], |row| {
        let (schema, table) = (row.bytes(1).unwrap_or_default(), row.bytes(2).unwrap_or_default());
        if schema.len().max(table.len()) > MOST_NAME_BYTES {
            long = true;
        } else {
            tables.push((schema.to_vec(), table.to_vec()));
        }
        rows += row.int(3);
    });
    let too_much = |what: &str, hint: &str| {
        Error::new(SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED, format!("table {} {what}", old.sql_name)).hint(hint)
    };
    if long {
        let what = format!("has a schema_name or table_name of more than {MOST_NAME_BYTES} bytes");
        return Err(too_much(&what, "Correct or delete such rows: they are of no table of PostgreSQL."));
    }
    if tables.len() > MOST_TABLES {
        let what = format!("holds changes of more than {MOST_TABLES} tables");
        return Err(too_much(
            &what,
            "Copy the rows of some of the tables into another one, and import one after the other.",
        ));
    }
    Ok((tables, rows))
}

/// Where the changes of a table go.
struct Route {
    target_id: i16,
    options: Options,
    /// Other changes under this name wait in another lane, and the sender does not know yet that it has to compare
    /// them.
    crosses: Cell<bool>,
}

fn routes(schema: &Schema, caller: Oid, tables: Vec<TableName>) -> Result<HashMap<TableName, Route>> {
    let capture = schema.capture();
    tables
        .into_iter()
        .map(|name| {
            check_caller(caller, &name)?;
            let attached = attached::options_by_name(capture, &name.0, &name.1);
            let is_attached = attached.is_some();
            let options = attached.unwrap_or_default();
            let target_id = target::find(schema, &options.target)?.id;
            let crosses = attached::waits_elsewhere(schema, &name, target_id, options.priority.name());
            // For an attached table these can come from a backfill, or from another table that had its name. The sender
            // keeps their order.
            if !is_attached && crosses {
                return Err(Error::new(
                    SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("changes of table \"{}\" wait with another priority or target", text::to_utf8(&name.1)),
                )
                .detail("They would overtake those that are imported, which are older.")
                .hint("Attach the table as it was, or CALL sync_outbox_drain(); first."));
            }
            Ok((name, Route { target_id, options, crosses: Cell::new(crosses) }))
        })
        .collect()
}

/// Callers may import only changes that they could have made: of tables that they own, or could create.
fn check_caller(caller: Oid, name: &TableName) -> Result<()> {
    if import::could_capture(caller, &name.0, &name.1) {
        return Ok(());
    }
    let [schema, table] = [&name.0, &name.1].map(|name| text::to_utf8(name));
    Err(Error::new(
        SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("changes of table \"{schema}.{table}\" can be imported by its owner only"),
    )
    .detail("Of a table that is gone, by who may make it: who may create in its schema.")
    .hint("Call it as superuser, or ask that owner; changes that nobody needs can be deleted from the old table."))
}

/// A running session does not look behind its cursor for these ids, and would send a later change of a key first. So
/// nobody sends until the imported changes are committed.
fn keep_senders_out(schema: &Schema, routes: &HashMap<TableName, Route>) -> Result<()> {
    let targets: BTreeSet<i16> = routes.values().map(|route| route.target_id).collect();
    let outbox = schema.outbox();
    xact::forbid_prepare();
    for target in targets {
        if SenderLock::acquire(outbox, target, LockScope::Transaction, settings::lock_wait()).is_none() {
            return Err(Error::new(SqlState::ERRCODE_LOCK_NOT_AVAILABLE, "changes are being sent right now")
                .hint("SELECT sync_outbox_pause(); import, commit, and SELECT sync_outbox_resume();"));
        }
    }
    // After the sender's lock, in the same order as `sync_outbox_target_drop()`.
    for route in routes.values() {
        if target::find_and_keep(schema, &route.options.target)?.id != route.target_id {
            return Err(Error::new(SqlState::ERRCODE_LOCK_NOT_AVAILABLE, "a target was made anew at this very moment")
                .hint("Try again."));
        }
    }
    Ok(())
}

/// The second read of the old table can return more rows, because of policies or functions.
fn other_rows(old: &Relation) -> Error {
    Error::new(
        SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {} showed more rows when it was read than when it was counted", old.sql_name),
    )
    .hint("Copy its rows into a plain table, and import that.")
}

fn select(old: &Relation) -> String {
    let optional = |column: &str| if has(old, column) { column.to_owned() } else { "NULL".to_owned() };
    format!(
        "SELECT id::bigint, schema_name::pg_catalog.text, table_name::pg_catalog.text, op::pg_catalog.text,
                pk::pg_catalog.text, data::pg_catalog.text, {}::pg_catalog.text, {}::pg_catalog.timestamptz
           FROM {} ORDER BY id",
        optional("dedup_key"),
        optional("created_at"),
        old.sql_name
    )
}

/// Imports one row; `false` if an earlier import has taken it over.
fn take(schema: &Schema, routes: &HashMap<TableName, Route>, keys: &mut DedupKeys, id: i64, row: &Row) -> Result<bool> {
    let old_id = row.int(1);
    let bad = |what: &str| {
        Error::argument(format!("the old change with id {old_id} {what}"))
            .hint(format!("Correct or delete it in the old table; nothing has been imported: ... WHERE id = {old_id};"))
    };
    let (Some(schema_name), Some(table_name)) = (row.bytes(2), row.bytes(3)) else {
        return Err(bad("has no schema_name or table_name"));
    };
    let word = text::to_utf8(row.bytes(4).map_or(b"", |word| &word[..word.len().min(MOST_NAME_BYTES)]));
    let Some(op) = Operation::ALL.map(Operation::name).into_iter().find(|op| op.eq_ignore_ascii_case(word.trim()))
    else {
        return Err(bad(&format!("has the unknown op {}", quote_literal(&word))));
    };
    if row.bytes(5).is_none() && op != Operation::Truncate.name() {
        return Err(bad("has no pk"));
    }
    memory::reserve_one(&mut keys.now);
    let Some(dedup_key) = keys.of(row.bytes(7).map(text::to_utf8).as_deref(), old_id) else { return Ok(false) };
    let short = schema_name.len().max(table_name.len()) <= MOST_NAME_BYTES;
    let route = short.then(|| routes.get(&(schema_name.to_vec(), table_name.to_vec()))).flatten();
    let Some(route) = route else {
        return Err(bad("is of a table that was not there before"));
    };
    let _owner = ActAs::owner();
    Imported {
        id,
        dedup_key,
        created_at: row.micros(8),
        target_id: route.target_id,
        priority: route.options.priority,
        schema_name,
        table_name,
        op,
        pk: row.bytes(5),
        data: row.bytes(6),
        branch_column: route.options.branch_column.as_deref(),
    }
    .insert(schema);
    if route.crosses.take() {
        let name = (schema_name.to_vec(), table_name.to_vec());
        lane::record(schema, &name, route.target_id, route.options.priority, (id, import::LAST_ID));
    }
    Ok(true)
}

/// The keys of an import, so that no two changes have the same key and none is imported twice.
struct DedupKeys {
    /// The keys of changes of earlier imports that still wait.
    before: HashSet<Uuid>,
    now: HashSet<Uuid>,
}

impl DedupKeys {
    /// The key of the next change, for which there is room, or `None` if an earlier import has taken it over.
    ///
    /// The scripts gave two changes of one row in one transaction the same key; the second change gets a key that is
    /// computed from that key and the row's id, so that a repeated import computes the same one.
    fn of(&mut self, text: Option<&str>, old_id: i64) -> Option<Uuid> {
        let text = text.unwrap_or_default().trim();
        let old_id = old_id.to_string();
        let mut key = match Uuid::parse_str(text) {
            Ok(key) => key,
            Err(_) if text.is_empty() => digest(&["id ", &old_id]),
            Err(_) => digest(&[text]),
        };
        if self.now.contains(&key) {
            key = digest(&[text, " id ", &old_id]);
        }
        self.now.insert(key);
        (!self.before.contains(&key)).then_some(key)
    }
}

/// A key computed from a text that is not a uuid. It is passed in parts and not copied, because it can be long.
fn digest(parts: &[&str]) -> Uuid {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn keys(before: &[Uuid]) -> DedupKeys {
        DedupKeys { before: before.iter().copied().collect(), now: HashSet::new() }
    }

    #[test]
    fn hex_and_uuids_stay_what_they_are() {
        let mut keys = keys(&[]);
        assert_eq!(keys.of(Some(MD5), 1).unwrap().simple().to_string(), MD5);
        let text = "0192d0e5-7b1c-7c3e-8a2f-1b2c3d4e5f60";
        assert_eq!(keys.of(Some(text), 2).unwrap().to_string(), text);
    }

    #[test]
    fn no_key_stands_for_two_changes() {
        let mut all = keys(&[]);
        let texts = [Some(MD5), Some(MD5), Some(MD5), Some("sales:7"), Some("sales:7"), Some(""), None];
        let found: Vec<Uuid> = texts.iter().zip(1..).map(|(text, id)| all.of(*text, id).unwrap()).collect();
        assert_eq!(found.iter().collect::<HashSet<_>>().len(), texts.len());

        // When the import is repeated, every key is found again.
        let mut again = keys(&found);
        assert!(texts.iter().zip(1..).all(|(text, id)| again.of(*text, id).is_none()));
    }
}
