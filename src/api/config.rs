//! Parses the argument of `sync_outbox_configure()` into plain data, without looking anything up.

use super::{argument, token};
use crate::error::{Error, Result};
use crate::store::options::Options;
use serde_json::{Map, Value};
use wire::Priority;

pub const URL: &str = "webapp_base_url";
pub const TOKEN: &str = "sync_upload_token";
pub const TABLES: &str = "uploads_local_to_remote";
const SHAPE: &str = "Write it as in {\"webapp_base_url\": \"https://hub.example.org\", \"sync_upload_token\": \"...\", \"uploads_local_to_remote\": [\"sales\", {\"table\": \"shop.stock\", \"priority\": \"HIGH\"}]}.";

/// The whole object.
pub struct Config {
    pub url: Option<String>,
    pub token: Option<String>,
    pub tables: Option<Vec<TableEntry>>,
    pub ignored: Vec<String>,
}

/// An element of `uploads_local_to_remote`.
pub struct TableEntry {
    pub table: String,
    pub given: Given,
}

/// The options that an entry names.
#[derive(Default)]
pub struct Given {
    pub target: Option<String>,
    pub priority: Option<Priority>,
    pub columns: Option<Vec<String>>,
    pub exclude: Option<Vec<String>>,
    pub branch_column: Option<String>,
    pub key_columns: Option<Vec<String>>,
    pub operations: Option<Vec<String>>,
    pub include_old: Option<bool>,
    pub require_reason: Option<bool>,
    pub always: Option<bool>,
}

impl Config {
    pub fn parse(json: &str) -> Result<Self> {
        let Some(Value::Object(mut members)) = super::json::value(json) else {
            return Err(wrong("config is not a JSON object"));
        };
        let url = string(&mut members, URL, "")?;
        let token = string(&mut members, TOKEN, "")?;
        token.as_deref().map_or(Ok(()), token::check)?;
        let mut ignored = Vec::new();
        let tables = match members.remove(TABLES) {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) => {
                let entries = list.into_iter().enumerate();
                Some(entries.map(|(i, entry)| TableEntry::parse(entry, i, &mut ignored)).collect::<Result<_>>()?)
            }
            Some(_) => return Err(wrong(format!("{TABLES} is not an array"))),
        };
        ignored.extend(members.into_iter().map(|(name, _)| name));
        Ok(Config { url, token, tables, ignored })
    }
}

impl TableEntry {
    fn parse(entry: Value, i: usize, ignored: &mut Vec<String>) -> Result<Self> {
        let at = format!("{TABLES}[{i}]");
        let mut members = match entry {
            Value::String(table) => return Ok(TableEntry { table, given: Given::default() }),
            Value::Object(members) => members,
            _ => return Err(wrong(format!("{at} is neither the name of a table nor an object"))),
        };
        let at = format!("{at}.");
        let Some(table) = string(&mut members, "table", &at)? else {
            return Err(wrong(format!("{at}table is missing")));
        };
        let given = Given {
            target: string(&mut members, "target", &at)?,
            priority: string(&mut members, "priority", &at)?.as_deref().map(argument::priority).transpose()?,
            columns: strings(&mut members, "columns", &at)?,
            exclude: strings(&mut members, "exclude", &at)?,
            branch_column: string(&mut members, "branch_column", &at)?,
            key_columns: strings(&mut members, "key_columns", &at)?,
            operations: strings(&mut members, "operations", &at)?.map(argument::operations).transpose()?,
            include_old: flag(&mut members, "include_old", &at)?,
            require_reason: flag(&mut members, "require_reason", &at)?,
            always: flag(&mut members, "always", &at)?,
        };
        ignored.extend(members.into_iter().map(|(name, _)| format!("{at}{name}")));
        Ok(TableEntry { table, given })
    }
}

impl Given {
    /// These options, and those of `before` where none is given, which are the present ones if the table is attached.
    pub fn over(&self, before: Option<Options>) -> Options {
        let before = before.unwrap_or_default();
        // If columns are named again, those are meant that have these names now.
        let named_again = self.exclude.is_some() || self.columns.is_some();
        Options {
            target: self.target.clone().unwrap_or(before.target),
            priority: self.priority.unwrap_or(before.priority),
            columns: self.columns.clone().or(before.columns),
            exclude_attnums: if named_again { Vec::new() } else { before.exclude_attnums },
            columns_attnums: if named_again { Vec::new() } else { before.columns_attnums },
            exclude_places: if named_again { Vec::new() } else { before.exclude_places },
            columns_places: if named_again { Vec::new() } else { before.columns_places },
            named: before.named,
            attnums_of: before.attnums_of.filter(|_| !named_again),
            exclude: self.exclude.clone().or(before.exclude),
            branch_column: self.branch_column.clone().or(before.branch_column),
            key_columns: self.key_columns.clone().or(before.key_columns),
            operations: self.operations.clone().unwrap_or(before.operations),
            include_old: self.include_old.unwrap_or(before.include_old),
            require_reason: self.require_reason.unwrap_or(before.require_reason),
            always: self.always.unwrap_or(before.always),
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::argument(message).hint(SHAPE)
}

fn string(members: &mut Map<String, Value>, name: &str, at: &str) -> Result<Option<String>> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
        Some(Value::String(_)) => Err(wrong(format!("{at}{name} is empty: leave it out instead"))),
        Some(_) => Err(wrong(format!("{at}{name} is not a string"))),
    }
}

fn flag(members: &mut Map<String, Value>, name: &str, at: &str) -> Result<Option<bool>> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(_) => Err(wrong(format!("{at}{name} is neither true nor false"))),
    }
}

fn strings(members: &mut Map<String, Value>, name: &str, at: &str) -> Result<Option<Vec<String>>> {
    let list = match members.remove(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong(format!("{at}{name} is not an array"))),
    };
    let strings = list.into_iter().map(|value| match value {
        Value::String(text) => Ok(Some(text)),
        _ => Err(wrong(format!("{at}{name} contains something else than strings"))),
    });
    argument::list(Some(strings.collect::<Result<_>>()?), &format!("{at}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_config_is_taken_or_refused_with_a_hint(
            config in wire::properties::json(&[
                URL, TOKEN, TABLES, "table", "target", "priority", "HIGH", "columns", "exclude", "branch_column", "key_columns",
                "operations", "INSERT", "include_old", "require_reason", "always", "s.t",
            ])
        ) {
            crate::properties::config(config.as_bytes());
        }
    }
}
