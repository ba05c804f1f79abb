//! `sync_outbox_accept(relation regclass)`: lets `sync_outbox_apply()` write a table of this hub.
//!
//! Raises 22004 for NULL, 42P01 for a relation that is gone, 42809 for what is no ordinary table, 42501 for who does not
//! own it and for system tables, 55000 for a table without a usable key.

use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::{Oid, role};
use crate::store::{Schema, accepted};

#[pgrx::pg_extern(sql = false)]
fn sync_outbox_accept(relation: Option<Oid>) {
    or_raise(accept(relation))
}

fn accept(relation: Option<Oid>) -> Result<()> {
    let caller = role::current_user();
    let _owner = role::ActAs::owner();
    let schema = Schema::installed()?;
    let relation = relation.ok_or_else(|| {
        Error::new(SqlState::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the relation is NULL")
            .hint("SELECT sync_outbox_accept('your_table');")
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
    accepted::accept(&schema, relation, &role::name(caller));
    Ok(())
}
