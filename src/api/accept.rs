//! `sync_outbox_accept(relation regclass [, ignore_unknown_columns boolean])`: lets `sync_outbox_apply()` write a table
//! of this hub. Called again, it changes the option.
//!
//! Raises 22004 for NULL, 42P01 for a relation that is gone, 42809 for anything but an ordinary table, 42501 for a
//! caller who does not own it and for system tables, 55000 for a table without a usable key, an unlogged one, and one
//! with a DEFERRABLE constraint.

use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::{Oid, role};
use crate::store::{Schema, accepted};

#[pgrx::pg_extern(sql = false)]
fn sync_outbox_accept(relation: Option<Oid>) {
    or_raise(accept(relation, Some(false)))
}

/// The same with the option. A function of its own and not an argument with a default, so that a privilege that was
/// granted on the first one under 0.1.0 stays valid.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_accept_with(relation: Option<Oid>, ignore_unknown_columns: Option<bool>) {
    or_raise(accept(relation, ignore_unknown_columns))
}

fn accept(relation: Option<Oid>, ignore_unknown_columns: Option<bool>) -> Result<()> {
    let caller = role::current_user();
    let _owner = role::ActAs::owner();
    let schema = Schema::installed()?;
    let relation = relation.ok_or_else(|| {
        Error::new(SqlState::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the relation is NULL")
            .hint("SELECT sync_outbox_accept('your_table');")
    })?;
    let ignore_unknown = ignore_unknown_columns.ok_or_else(|| {
        Error::new(SqlState::ERRCODE_NULL_VALUE_NOT_ALLOWED, "ignore_unknown_columns is NULL")
            .hint("SELECT sync_outbox_accept('your_table', ignore_unknown_columns => true);")
    })?;
    let table = accepted::candidate(relation).ok_or_else(|| {
        Error::new(SqlState::ERRCODE_UNDEFINED_TABLE, format!("relation with OID {} does not exist", relation.to_u32()))
            .hint("SELECT sync_outbox_accept('your_table');")
    })?;
    let name = &table.name;
    if table.system || table.ours {
        return Err(Error::new(
            SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("\"{name}\" is not for senders to write"),
        )
        .hint("Accept your own tables only, not those of the system or of this extension."));
    }
    if !matches!(table.kind, b'r' | b'p') || table.temporary {
        return Err(Error::new(
            SqlState::ERRCODE_WRONG_OBJECT_TYPE,
            format!("\"{name}\" is not a permanent, ordinary or partitioned table"),
        )
        .hint("Accept the table that holds the rows."));
    }
    if !role::has_role(caller, table.owner) {
        return Err(Error::new(SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table \"{name}\""))
            .hint(format!("Ask its owner, {}, or a superuser.", role::name(table.owner))));
    }
    if accepted::keys(relation).is_empty() {
        return Err(Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table \"{name}\" has no usable key"),
        )
        .detail("There is no valid, immediate unique index without WHERE and expressions.")
        .hint(format!("ALTER TABLE {name} ADD PRIMARY KEY (..), the columns that are the key at the sender.")));
    }
    if let Some(flaw) = accepted::flaw(relation) {
        return Err(Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table \"{name}\" {}", flaw.why),
        )
        .hint(flaw.hint));
    }
    accepted::accept(&schema, relation, &role::name(caller), ignore_unknown);
    Ok(())
}
