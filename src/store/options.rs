//! The options of `sync_outbox_attach()`, as the trigger's argument holds them: JSON, with names and no oids, so that
//! they survive a dump and restore.

use serde::{Deserialize, Serialize};
use wire::{Operation, Priority};

/// The options of one attached table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub target: String,
    pub priority: Priority,
    /// Captured columns; the key is always among them. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,
    /// The attribute numbers that the columns of `exclude` had when they were named, in the same order, so that another
    /// column of the same name can be told from the one that was meant. Version 0.1.0 did not store them; the update
    /// adds them to its tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_attnums: Vec<i16>,
    /// The attribute numbers of `columns`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns_attnums: Vec<i16>,
    /// The positions that they had among the table's columns, which are their attribute numbers after a dump and
    /// restore if no column in front of them was dropped meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_places: Vec<i16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns_places: Vec<i16>,
    /// The oid of the table that the attribute numbers belong to. After a restore the table has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attnums_of: Option<u32>,
    /// Schema and name under which it was attached, and under which no changes of another table can wait in another
    /// lane. Empty where another table was attached under that name too. Absent where an older library attached the
    /// table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<[String; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_column: Option<String>,
    /// The columns of a unique index other than the primary key. Absent: the primary key, whatever its columns are
    /// called by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_columns: Option<Vec<String>>,
    pub operations: Vec<String>,
    #[serde(default)]
    pub include_old: bool,
    #[serde(default)]
    pub require_reason: bool,
    #[serde(default)]
    pub always: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            target: super::target::DEFAULT.to_owned(),
            priority: Priority::Normal,
            columns: None,
            exclude: None,
            exclude_attnums: Vec::new(),
            columns_attnums: Vec::new(),
            exclude_places: Vec::new(),
            columns_places: Vec::new(),
            attnums_of: None,
            named: None,
            branch_column: None,
            key_columns: None,
            operations: Operation::ALL[..3].iter().map(|operation| operation.name().to_owned()).collect(),
            include_old: false,
            require_reason: false,
            always: false,
        }
    }
}

impl Options {
    /// The columns that the options name, each with the argument of attach that it was named in.
    pub fn named_columns(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let lists = [(&self.columns, "columns"), (&self.exclude, "exclude"), (&self.key_columns, "key_columns")];
        let listed = lists
            .into_iter()
            .flat_map(|(list, argument)| list.iter().flatten().map(move |column| (column.as_str(), argument)));
        listed.chain(self.branch_column.iter().map(|column| (column.as_str(), "branch_column")))
    }
}
