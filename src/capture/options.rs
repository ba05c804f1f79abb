//! What attach was told, as it stands in the trigger's argument: JSON, with names and no oids, so that it survives a
//! dump and restore.

use serde::{Deserialize, Serialize};

/// What goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Priority {
    High,
    Normal,
    Low,
}

impl Priority {
    /// In the order in which they are sent.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    pub fn name(self) -> &'static str {
        match self {
            Priority::High => "HIGH",
            Priority::Normal => "NORMAL",
            Priority::Low => "LOW",
        }
    }

    /// Reads a name in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(name.trim()))
    }
}

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_column: Option<String>,
    /// Columns of another unique index than the primary key. Absent: the primary key, whatever it is called today.
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
