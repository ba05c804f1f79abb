//! Which tables can be attached, and with which options. What could not work is refused, with a hint what to do
//! instead.

use crate::error::{Error, Result, SqlState};
use crate::pg::{Oid, text};
use crate::store::options::Options;
use crate::store::relation::{self, Relation, RelationKind};
use crate::store::{Schema, attached, quote_literal};

/// The relation, if `caller` may attach it with these options. Runs as the extension's owner.
pub fn check(schema: &Schema, caller: Oid, oid: Oid, options: &Options) -> Result<Relation> {
    let table = relation::find(schema, oid)?;
    table.require_owner(caller)?;
    check_kind(&table)?;
    check_surroundings(schema, &table)?;
    check_columns(&table, options)?;
    Ok(table)
}

/// What a user should know about a table that is attached now.
pub fn notice(table: &Relation) {
    if table.unlogged {
        pgrx::notice!("{} is unlogged: a crash empties it, and that is not captured", table.name);
    }
    let children = relation::inheritance_children(table.oid);
    if table.kind == RelationKind::Table && !children.is_empty() {
        pgrx::notice!(
            "writes to the children of {} are not captured with it; attach them one by one: {}",
            table.name,
            children.join(", ")
        );
    }
}

fn check_kind(table: &Relation) -> Result<()> {
    let refused = |why: String, hint: &str| {
        Err(Error::new(SqlState::ERRCODE_WRONG_OBJECT_TYPE, format!("{} cannot be attached: it is {why}", table.name))
            .hint(hint))
    };
    if let RelationKind::Other(what) = table.kind {
        return refused(what.to_owned(), "Attach the ordinary or partitioned tables that it is made from.");
    }
    if table.system {
        return refused("a system catalog".into(), "Attach tables of your own.");
    }
    if table.ours {
        return refused("a table of sync_outbox itself".into(), "Attach tables of your own.");
    }
    if table.temporary {
        return refused("a temporary table".into(), "Attach a table that other sessions and restarts know.");
    }
    if text::server_is_sql_ascii() {
        return Err(Error::new(
            SqlState::ERRCODE_FEATURE_NOT_SUPPORTED,
            "tables of a database with encoding SQL_ASCII cannot be attached",
        )
        .detail("Nobody can tell what its bytes mean, so they cannot be sent as UTF-8.")
        .hint("Dump it and restore it into a database made with ENCODING 'UTF8'."));
    }
    Ok(())
}

/// What else is on the table, above it and below it.
fn check_surroundings(schema: &Schema, table: &Relation) -> Result<()> {
    let capture = schema.capture();
    let refused = |message| Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message);
    if let Some(root) = attached::attached_ancestor(capture, table.oid) {
        return Err(refused(format!("{} is a partition of {root}, which is attached", table.name)).hint(format!(
            "Its writes are captured already, as changes of {root}; SELECT sync_outbox_detach({}); ends that.",
            quote_literal(&root)
        )));
    }
    if let Some(leaf) = attached::attached_partition(capture, table.oid) {
        return Err(refused(format!("{leaf}, a partition of {}, is attached by itself", table.name)).hint(format!(
            "SELECT sync_outbox_detach({}); and attach {} then.",
            quote_literal(&leaf),
            table.name
        )));
    }
    let scripts = relation::script_triggers(capture, table.oid);
    if !scripts.is_empty() {
        return Err(refused(format!("{} still has the triggers of the outbox scripts", table.name))
            .detail("Every write would be captured twice.")
            .hint(format!("In one transaction with attaching, so that no write is missed: {}", scripts.join(" "))));
    }
    Ok(())
}

fn check_columns(table: &Relation, options: &Options) -> Result<()> {
    options.named_columns().try_for_each(|(column, argument)| table.require_column(column, argument))?;
    let key = attached::key_of(table.oid, options.key_columns.as_deref())?;
    let excluded = options.exclude.iter().flatten();
    for column in excluded {
        if key.contains(column) {
            return Err(Error::argument(format!("column \"{column}\" is part of the key of {}", table.name))
                .hint("Leave it out of exclude: without its key a change cannot be applied anywhere."));
        }
        if options.columns.iter().flatten().any(|c| c == column) {
            return Err(Error::argument(format!("column \"{column}\" is named in columns and in exclude"))
                .hint("Name it in one of them."));
        }
    }
    Ok(())
}
