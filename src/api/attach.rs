//! `sync_outbox_attach()` and `sync_outbox_detach()`: begin, change and end the capture of a table.

use super::argument::{self, NameArray, Text, TextArray};
use crate::capture::install;
use crate::error::or_raise;
use crate::pg::role::{self, ActAs};
use crate::pg::{Oid, text};
use crate::store::Schema;
use crate::store::options::Options;
use std::ffi::CStr;

/// Captures the writes to `relation` from now on. Called again with other options, it changes them.
///
/// 42501 if the caller does not own it, 42809 if it is not a user's table, 55000 if it has no usable key, is a
/// partition of an attached table, has the scripts' triggers, or if its changes wait with another priority or target;
/// 42703 and 22023 for the other arguments, 55P03 if its lock could not be acquired within 5 s, or while its rows are
/// being backfilled or changes imported, 25001 for another priority or target in REPEATABLE READ.
#[allow(clippy::too_many_arguments)] // the SQL signature
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_attach(
    relation: Option<Oid>,
    priority: Text<'_>,
    columns: TextArray<'_>,
    exclude: TextArray<'_>,
    branch_column: Option<&CStr>,
    key_columns: NameArray<'_>,
    operations: TextArray<'_>,
    target: Text<'_>,
    include_old: Option<bool>,
    require_reason: Option<bool>,
    always: Option<bool>,
) {
    or_raise((|| {
        let relation = argument::required(relation, "relation")?;
        let defaults = Options::default();
        let options = Options {
            target: argument::target(argument::utf8(target, "target")?.as_deref()).to_owned(),
            priority: argument::utf8(priority, "priority")?
                .map_or(Ok(defaults.priority), |name| argument::priority(&name))?,
            columns: argument::list(argument::texts(columns, "columns")?, "columns")?,
            exclude: argument::list(argument::texts(exclude, "exclude")?, "exclude")?,
            exclude_attnums: defaults.exclude_attnums,
            columns_attnums: defaults.columns_attnums,
            exclude_places: defaults.exclude_places,
            columns_places: defaults.columns_places,
            attnums_of: defaults.attnums_of,
            named: defaults.named,
            branch_column: branch_column.map(text::name),
            key_columns: argument::list(argument::names(key_columns, "key_columns")?, "key_columns")?,
            operations: argument::list(argument::texts(operations, "operations")?, "operations")?
                .map_or(Ok(defaults.operations), argument::operations)?,
            include_old: include_old.unwrap_or(defaults.include_old),
            require_reason: require_reason.unwrap_or(defaults.require_reason),
            always: always.unwrap_or(defaults.always),
        };
        let caller = role::current_user();
        let _owner = ActAs::owner();
        install::install(&Schema::installed()?, caller, relation, &options).map(|_| ())
    })())
}

/// Ends capture on `relation`; changes already captured stay and are sent. 42704 if it is not attached, 42501 if the
/// caller does not own it, 55P03 if its lock could not be acquired within 5 s.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_detach(relation: Option<Oid>) {
    or_raise((|| {
        let relation = argument::required(relation, "relation")?;
        let caller = role::current_user();
        let _owner = ActAs::owner();
        install::remove(&Schema::installed()?, caller, relation)
    })())
}
