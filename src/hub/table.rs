//! What one call of apply knows of the tables it writes, looked up once per table.
//!
//! A table stays locked against DDL from the look-up to the end of the transaction, so that what is known stays true.

use super::body::Change;
use super::shape::{Column, Shape};
use crate::pg::Oid;
use crate::pg::guc::Nest;
use crate::pg::relation::Open;
use crate::pg::xact::{self, Caught};
use crate::store::{Schema, accepted, quote_ident};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

pub struct Table {
    pub owner: Oid,
    pub shape: Shape,
}

/// Tables by schema and name; `Err` says why changes of a table are refused.
pub struct Tables<'a> {
    schema: &'a Schema,
    known: HashMap<(String, String), Result<Table, String>>,
}

impl<'a> Tables<'a> {
    pub fn new(schema: &'a Schema) -> Self {
        Tables { schema, known: HashMap::new() }
    }

    /// The table of a change. Looked up in a subtransaction of its own, whose locks outlive a change that fails.
    pub fn get(&mut self, change: &Change<'_>) -> Result<&Result<Table, String>, Caught> {
        match self.known.entry((change.schema.to_string(), change.table.to_string())) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(vacant) => {
                let table = xact::subtransaction(|| load(self.schema, &change.schema, &change.table))?;
                Ok(vacant.insert(table))
            }
        }
    }
}

fn load(schema: &Schema, schema_name: &str, table_name: &str) -> Result<Table, String> {
    // Entering and leaving the replica role throws all plans away, so these are made once in every call: the joins are
    // written in the order that is wanted, and searching for a better one takes longer than all the rest.
    let plans = Nest::new();
    plans.set("join_collapse_limit", "1");
    let name = format!("{}.{}", quote_ident(schema_name), quote_ident(table_name));
    let find = || accepted::find(schema, schema_name, table_name);
    let not_accepted = || format!("table {name} is not accepted here; its owner can call sync_outbox_accept()");
    let found = find().ok_or_else(not_accepted)?;
    // Not as it was found, since it may have been given away until it was locked: its new owner's code would run as the old one.
    let owner = Open::table(found.oid).borrow().owner();
    // Until now it could be renamed, and another one take its name.
    if find().is_none_or(|again| again.oid != found.oid) {
        return Err(not_accepted());
    }
    if let Some(flaw) = accepted::flaw(found.oid) {
        return Err(format!("table {name} {}", flaw.why));
    }
    let columns = accepted::columns(found.oid)
        .into_iter()
        .map(|c| {
            let known = Column { type_name: c.type_name, generated: c.generated, always_identity: c.always_identity };
            (c.name, known)
        })
        .collect();
    let shape = Shape {
        name,
        partitioned: found.partitioned,
        referenced: found.referenced,
        ignore_unknown: found.ignore_unknown,
        columns,
        keys: accepted::keys(found.oid),
    };
    Ok(Table { owner, shape })
}
