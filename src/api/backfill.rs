//! `sync_outbox_backfill()`: puts existing rows into the outbox, so that a hub can start empty.

use super::argument::{self, Text};
use crate::capture::{self, Writer};
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::confine::ImmediateOnWrite;
use crate::pg::guc::Nest;
use crate::pg::relation::Open;
use crate::pg::relation_lock::{self, LockMode};
use crate::pg::role::{self, ActAs};
use crate::pg::{Oid, interrupt, spi, xact};
use crate::store::options::Options;
use crate::store::relation::{self, Relation, RelationKind};
use crate::store::{Schema, attached, lane, quote_ident, quote_literal, target};
use std::ops::ControlFlow;
use wire::Priority;

/// Puts the rows of an attached table for which `condition` (an SQL expression over its columns) is true into the
/// outbox as INSERTs; returns how many. They are locked FOR SHARE until the transaction ends.
///
/// Reads as the caller: row security and rights on functions in `condition` are the caller's. 42501 if the caller does
/// not own the table, 55000 if it is not attached, 22023 for an unknown priority, 25001 in REPEATABLE READ, 55P03 while
/// the table is given another priority or target.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_backfill(relation: Option<Oid>, condition: Text<'_>, priority: Text<'_>) -> i64 {
    or_raise((|| {
        let relation = argument::required(relation, "relation")?;
        let priority =
            argument::utf8(priority, "priority")?.map_or(Ok(Priority::Low), |name| argument::priority(&name))?;
        backfill(relation, argument::trimmed(condition, "condition")?, priority)
    })())
}

/// An attached table, and the key that its rows are ordered by.
struct SourceTable {
    table: Relation,
    options: Options,
    target_id: i16,
    key: Vec<String>,
}

fn backfill(oid: Oid, condition: Option<String>, priority: Priority) -> Result<i64> {
    if xact::uses_one_snapshot() {
        return Err(Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "cannot backfill in a REPEATABLE READ transaction",
        )
        .hint("Call it in a READ COMMITTED transaction: this one might not see where the table's changes go by now."));
    }
    let caller = role::current_user();
    let schema = Schema::installed()?;
    let source = SourceTable::find(&schema, caller, oid)?;
    let options = Options { priority, ..source.options.clone() };
    let mut writer = Writer::new(&schema, Open::for_reading(oid), &options);
    let (mut count, mut ids) = (0, None);
    // The condition, the expressions of indexes and row security policies may call functions of other users.
    let policies = Nest::new();
    if role::is_superuser(caller) {
        // Policies do not apply to a superuser. If one applies to the owner, as whom the rows may be read, this fails
        // instead of leaving rows out.
        policies.set("row_security", "off");
    }
    // The owner of the table runs this like any SELECT; only the casts may be somebody else's.
    let others = caller != source.table.owner;
    let immediate = (others || writer.runs_users_code()).then(ImmediateOnWrite::new);
    let guard = others.then(|| ActAs::confined_as(source.table.owner));
    let mut select = source.select(condition.as_deref());
    let mut draws_ids_first = writer.runs_users_code();
    if draws_ids_first {
        select = all_at_once(&select);
    }
    spi::scan_once(&select, &[], |row| {
        interrupt::check();
        if std::mem::take(&mut draws_ids_first) {
            writer.draw_ids(row.int(2));
        }
        if let Some(id) = writer.insert(row, 1) {
            count += 1;
            ids = Some(ids.map_or((id, id), |(first, _)| (first, id)));
        }
        ControlFlow::Continue(())
    });
    drop(guard);
    drop(immediate);
    drop(policies);
    if let Some(ids) = ids {
        let _owner = ActAs::owner();
        // If the table was renamed, its first change has recorded this already.
        if priority != source.options.priority && !writer.is_renamed() {
            lane::record(&schema, &attached::name(oid), source.target_id, priority, ids);
        }
    }
    Ok(count)
}

impl SourceTable {
    fn find(schema: &Schema, caller: Oid, oid: Oid) -> Result<Self> {
        let _owner = ActAs::owner();
        relation::find(schema, oid)?.require_owner(caller)?;
        lane::lock_lane(schema, oid)?;
        relation_lock::lock(oid, LockMode::AccessShare); // so that what is looked up from here on stays as it is
        let table = relation::find(schema, oid)?;
        table.require_owner(caller)?;
        let Some(options) = attached::options(schema.capture(), oid) else { return Err(not_attached(schema, &table)) };
        let target_id = target::find_and_keep(schema, &options.target)?.id;
        let gone = options.named_columns().find(|(column, _)| !table.columns.iter().any(|c| c == column));
        if let Some((column, argument)) = gone {
            return Err(capture::missing_column(column, argument, &attached::name(oid)));
        }
        let key = attached::key_of(oid, options.key_columns.as_deref())?;
        Ok(SourceTable { table, options, target_id, key })
    }

    /// Whole rows in the order of their key. ONLY, because the writes to inheritance children are not captured with
    /// their parent either. `coalesce` makes the name stand for the whole row even if a column has the table's name.
    fn select(&self, condition: Option<&str>) -> String {
        let name = &self.table.sql_name;
        let only = if self.table.kind == RelationKind::Table { "ONLY" } else { "" };
        let key: Vec<String> = self.key.iter().map(|column| format!("{name}.{}", quote_ident(column))).collect();
        // On lines of its own: a comment at the end of the condition ends there.
        let condition = condition.map(|c| format!("WHERE (\n{c}\n)")).unwrap_or_default();
        format!("SELECT coalesce({name}.*) FROM {only} {name} {condition} ORDER BY {} FOR SHARE", key.join(", "))
    }
}

/// The same rows and their number, all of them read and locked before the first one is returned. If a user's cast
/// writes to rows that have not been returned yet, those are captured as they were, and what the cast did comes after
/// them.
fn all_at_once(select: &str) -> String {
    format!("SELECT whole, pg_catalog.count(*) OVER () FROM ({select}) AS locked (whole)")
}

fn not_attached(schema: &Schema, table: &Relation) -> Error {
    let error =
        Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, format!("{} is not attached", table.name));
    match attached::attached_ancestor(schema.capture(), table.oid) {
        Some(root) => error.hint(format!("It is a partition: SELECT sync_outbox_backfill({});", quote_literal(&root))),
        None => error.hint(format!("SELECT sync_outbox_attach({}); first.", quote_literal(&table.name))),
    }
}
