//! The names for properties of a change that the database, the wire and the settings share. Each is defined here only.

use serde::{Deserialize, Serialize};

/// What was done to a row, or to all rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Operation {
    /// In the order of a trigger's events.
    pub const ALL: [Operation; 4] = [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate];

    pub const fn name(self) -> &'static str {
        match self {
            Operation::Insert => "INSERT",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Truncate => "TRUNCATE",
        }
    }

    /// Reads a name as it is written on the wire and in the outbox.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }
}

/// In which order changes are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    /// In the order in which they are sent.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    pub const fn name(self) -> &'static str {
        match self {
            Priority::High => "HIGH",
            Priority::Normal => "NORMAL",
            Priority::Low => "LOW",
        }
    }

    /// Reads a name in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.name().eq_ignore_ascii_case(name.trim()))
    }
}

/// The state of a captured change. An acknowledged change is deleted and has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Not sent yet.
    Pending,
    /// Tried without success; tried again when its time has come.
    Failed,
    /// The target holds other values than the change expects. A person decides.
    Conflict,
    /// Refused for the last time, or impossible to send. A person decides.
    Dead,
}

impl Status {
    /// In the order of the enum type in the database.
    pub const ALL: [Status; 4] = [Status::Pending, Status::Failed, Status::Conflict, Status::Dead];

    pub const fn name(self) -> &'static str {
        match self {
            Status::Pending => "PENDING",
            Status::Failed => "FAILED",
            Status::Conflict => "CONFLICT",
            Status::Dead => "DEAD",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether it stays as it is until a person requeues or discards the change.
    pub const fn waits_for_a_person(self) -> bool {
        matches!(self, Status::Conflict | Status::Dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        assert!(Operation::ALL.into_iter().all(|operation| Operation::parse(operation.name()) == Some(operation)));
        assert!(Priority::ALL.into_iter().all(|priority| Priority::parse(priority.name()) == Some(priority)));
        assert!(Status::ALL.into_iter().all(|status| Status::parse(status.name()) == Some(status)));
        assert_eq!(
            (Operation::parse("insert"), Priority::parse(" low "), Status::parse("")),
            (None, Some(Priority::Low), None)
        );
    }

    #[test]
    fn serde_writes_the_same_names() {
        for operation in Operation::ALL {
            assert_eq!(serde_json::to_string(&operation).unwrap(), format!("\"{}\"", operation.name()));
        }
        for priority in Priority::ALL {
            assert_eq!(serde_json::to_string(&priority).unwrap(), format!("\"{}\"", priority.name()));
        }
    }
}
