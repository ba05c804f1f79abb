//! What one call of apply knows about the tables that it writes. Each is looked up once.
//!
//! A table stays locked against DDL from the look-up to the end of the transaction, so that what is known stays true.

use super::definition::TableDefinition;
use crate::error::{Error, SqlState};
use crate::pg::Oid;
use crate::pg::guc::Nest;
use crate::pg::relation::Open;
use crate::pg::text;
use crate::pg::xact::{self, Caught};
use crate::store::{Schema, accepted, quote_ident};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use wire::body::Incoming;

pub struct HubTable {
    oid: Oid,
    /// In the server's encoding.
    schema_name: Vec<u8>,
    table_name: Vec<u8>,
    pub owner: Oid,
    pub definition: TableDefinition,
}

impl HubTable {
    /// Raises if the table was renamed, replaced or given to another owner: no lock of ours keeps code that an earlier
    /// change of the same call has run from doing that to tables that it may alter.
    pub fn must_be_as_it_was(&self) {
        let open = Open::table(self.oid);
        let now = open.borrow();
        if now.owner() != self.owner || !now.is_named(&self.schema_name, &self.table_name) {
            Error::new(
                SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {} is another one now", self.definition.name),
            )
            .hint("Code of an earlier change has replaced it or changed its owner.")
            .raise();
        }
    }
}

/// Tables by schema and name; `Err` says why changes of a table are refused.
pub struct HubTables<'a> {
    schema: &'a Schema,
    known: HashMap<(String, String), Result<HubTable, String>>,
}

impl<'a> HubTables<'a> {
    pub fn new(schema: &'a Schema) -> Self {
        HubTables { schema, known: HashMap::new() }
    }

    /// The table of a change. It is looked up in a subtransaction of its own, so that its locks are kept if the change
    /// fails.
    pub fn get(&mut self, change: &Incoming<'_>) -> Result<&Result<HubTable, String>, Caught> {
        match self.known.entry((change.schema.to_string(), change.table.to_string())) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(vacant) => {
                let table = xact::subtransaction(|| load(self.schema, &change.schema, &change.table))?;
                Ok(vacant.insert(table))
            }
        }
    }
}

fn load(schema: &Schema, schema_name: &str, table_name: &str) -> Result<HubTable, String> {
    // Entering and leaving the replica role discards all plans, so these are made anew in every call. The joins are
    // written in a good order, and searching for a better one would take longer than all the rest.
    let plans = Nest::new();
    plans.set("join_collapse_limit", "1");
    let name = format!("{}.{}", quote_ident(schema_name), quote_ident(table_name));
    let find = || accepted::find(schema, schema_name, table_name);
    let not_accepted = || format!("table {name} is not accepted here; its owner can call sync_outbox_accept()");
    let (schema_bytes, table_bytes) = (text::from_utf8(schema_name), text::from_utf8(table_name));
    // The cast to a name would truncate it, and another table would be found.
    if [&schema_bytes, &table_bytes].iter().any(|name| name.len() >= text::NAME_BYTES || name.contains(&0)) {
        return Err("the table's name is too long, or contains a NUL".into());
    }
    let found = find().ok_or_else(not_accepted)?;
    // The owner is read after locking, because the table may have been given away before: the new owner's code would
    // run as the old owner.
    let owner = Open::table(found.oid).borrow().owner();
    // Before it was locked it could be renamed, and another table could take its name.
    if find().is_none_or(|again| again.oid != found.oid) {
        return Err(not_accepted());
    }
    if let Some(flaw) = accepted::flaw(found.oid) {
        return Err(format!("table {name} {}", flaw.why));
    }
    let definition = TableDefinition {
        name,
        partitioned: found.partitioned,
        referenced: found.referenced,
        ignore_unknown: found.ignore_unknown,
        columns: accepted::columns(found.oid),
        keys: accepted::keys(found.oid),
    };
    Ok(HubTable { oid: found.oid, schema_name: schema_bytes, table_name: table_bytes, owner, definition })
}
