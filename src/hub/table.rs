//! What one call of apply knows of the tables it writes, looked up once per table.
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
    /// Raises if its name has another owner's table by now: no lock of ours keeps code that an earlier change of the
    /// same call has run from dropping, renaming or giving away what it may.
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

    /// The table of a change. Looked up in a subtransaction of its own, whose locks outlive a change that fails.
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
    // Entering and leaving the replica role throws all plans away, so these are made once in every call: the joins are
    // written in the order that is wanted, and searching for a better one takes longer than all the rest.
    let plans = Nest::new();
    plans.set("join_collapse_limit", "1");
    let name = format!("{}.{}", quote_ident(schema_name), quote_ident(table_name));
    let find = || accepted::find(schema, schema_name, table_name);
    let not_accepted = || format!("table {name} is not accepted here; its owner can call sync_outbox_accept()");
    let (schema_bytes, table_bytes) = (text::from_utf8(schema_name), text::from_utf8(table_name));
    // The cast to a name would cut it, and find another table.
    if [&schema_bytes, &table_bytes].iter().any(|name| name.len() >= text::NAME_BYTES || name.contains(&0)) {
        return Err("the table's name is too long, or contains a NUL".into());
    }
    let found = find().ok_or_else(not_accepted)?;
    // Not as it was found, since it may have been given away until it was locked: its new owner's code would run as the
    // old one.
    let owner = Open::table(found.oid).borrow().owner();
    // Until now it could be renamed, and another one take its name.
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
