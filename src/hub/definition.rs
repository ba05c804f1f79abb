//! What the statements need to know about a hub table: names, types and keys. Plain data.

use crate::store::accepted::HubColumn;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug)]
pub struct TableDefinition {
    /// Schema and name, quoted.
    pub name: String,
    pub partitioned: bool,
    /// Other tables' foreign keys point here, so TRUNCATE would be refused.
    pub referenced: bool,
    /// Members of a change that are not columns of the table are left out; otherwise the change is refused.
    pub ignore_unknown: bool,
    pub columns: HashMap<String, HubColumn>,
    /// Unique indexes that can tell rows apart at any moment, the primary key first.
    pub keys: Vec<Key>,
}

/// Columns of a unique index, each with the operator that the index compares it by: `OPERATOR("schema".=)`. The
/// operator is qualified because the operators of extension types (citext) are outside `pg_catalog`.
pub type Key = BTreeMap<String, String>;

impl TableDefinition {
    /// The key over exactly these columns.
    pub fn key<'a>(&self, columns: impl Iterator<Item = &'a str> + Clone) -> Result<&Key, String> {
        let wanted: Vec<&str> = columns.collect();
        self.keys
            .iter()
            .find(|key| key.len() == wanted.len() && wanted.iter().all(|column| key.contains_key(*column)))
            .ok_or_else(|| {
                format!("table {} has no unique, immediate index on exactly ({})", self.name, wanted.join(", "))
            })
    }
}
