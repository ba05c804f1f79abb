//! `sync_outbox_attach()` and `sync_outbox_detach()`: what a table's capture is told.

use super::argument::{self, Texts};
use crate::capture::{Options, Priority, install};
use crate::error::{Error, Result, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::{Oid, text};
use crate::store::Schema;
use std::ffi::CStr;

const OPERATIONS: [&str; 4] = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// A `name[]` as SQL gives it.
type Names<'a> = Option<pgrx::Array<'a, &'a CStr>>;

/// Captures the writes to `relation` from now on; again with other options, it changes them.
///
/// 42501 if the caller does not own it, 42809 if it is no table of the user's, 55000 if it has no usable key, is a partition
/// of an attached table, has the scripts' triggers, or if its changes wait with another priority or target; 42703
/// and 22023 for the other arguments, 55P03 if its lock is not to be had within 5 s.
#[allow(clippy::too_many_arguments)] // the SQL signature
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_attach(
    relation: Option<Oid>,
    priority: Option<&str>,
    columns: Texts,
    exclude: Texts,
    branch_column: Option<&CStr>,
    key_columns: Names<'_>,
    operations: Texts,
    target: Option<&str>,
    include_old: Option<bool>,
    require_reason: Option<bool>,
    always: Option<bool>,
) {
    or_raise((|| {
        let relation = argument::required(relation, "relation")?;
        let options = Options {
            target: argument::target(target).to_owned(),
            priority: priority.map_or(Ok(Priority::Normal), argument::priority)?,
            columns: argument::list(columns, "columns")?,
            exclude: argument::list(exclude, "exclude")?,
            branch_column: branch_column.map(text::name),
            key_columns: argument::list(
                key_columns.map(|names| names.iter().map(|n| n.map(text::name)).collect()),
                "key_columns",
            )?,
            operations: parse_operations(argument::list(operations, "operations")?)?,
            include_old: include_old.unwrap_or(false),
            require_reason: require_reason.unwrap_or(false),
            always: always.unwrap_or(false),
        };
        let caller = role::current_user();
        let _owner = ActAs::owner();
        install::install(&Schema::installed()?, caller, relation, &options).map(|_| ())
    })())
}

/// Ends capture on `relation`; changes already captured stay and are sent. 42704 if it is not attached, 42501 if the caller
/// does not own it, 55P03 if its lock is not to be had within 5 s.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_detach(relation: Option<Oid>) {
    or_raise((|| {
        let relation = argument::required(relation, "relation")?;
        let caller = role::current_user();
        let _owner = ActAs::owner();
        install::remove(&Schema::installed()?, caller, relation)
    })())
}

/// Operations in any case and order, as the trigger needs them. Absent: all but TRUNCATE.
pub(super) fn parse_operations(given: Option<Vec<String>>) -> Result<Vec<String>> {
    let given: Vec<String> = match given {
        None => return Ok(OPERATIONS[..3].iter().map(|&op| op.to_owned()).collect()),
        Some(given) => given.iter().map(|op| op.trim().to_ascii_uppercase()).collect(),
    };
    argument::no_duplicates(&given, "operations")?;
    match given.iter().find(|op| !OPERATIONS.contains(&op.as_str())) {
        Some(unknown) => Err(Error::argument(format!("unknown operation \"{unknown}\""))
            .hint("Use any of 'INSERT', 'UPDATE', 'DELETE' and 'TRUNCATE'.")),
        None => Ok(OPERATIONS.iter().filter(|op| given.iter().any(|g| g == *op)).map(|&op| op.to_owned()).collect()),
    }
}
