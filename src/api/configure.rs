//! `sync_outbox_configure()`: one JSON object says where to send and what to capture.
//!
//! Takes the configuration files of the scripts as they are. All or nothing: everything is checked and written inside the
//! caller's transaction, and the token's file, which no rollback takes back, comes last.

use super::argument::{self, Text};
use super::token;
use crate::capture::install::{self, Outcome};
use crate::capture::{Options, Priority};
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::secret::HiddenStatement;
use crate::pg::spi::{self, Arg};
use crate::pg::{Oid, text, xact};
use crate::push::credentials;
use crate::store::{Schema, attached, identity, relation, target};
use crate::{settings, wake};
use serde::Serialize;
use serde_json::{Map, Value};

const URL: &str = "webapp_base_url";
const TOKEN: &str = "sync_upload_token";
const TABLES: &str = "uploads_local_to_remote";
const SHAPE: &str = "Write it as in {\"webapp_base_url\": \"https://hub.example.org\", \"sync_upload_token\": \"...\", \"uploads_local_to_remote\": [\"sales\", {\"table\": \"shop.stock\", \"priority\": \"HIGH\"}]}.";

/// What was done, in the order in which it is answered.
#[derive(Default, Serialize)]
struct Answer {
    webapp_base_url: bool,
    sync_upload_token: bool,
    attached: Vec<String>,
    changed: Vec<String>,
    unchanged: Vec<String>,
    detached: Vec<String>,
    no_longer_listed: Vec<String>,
    ignored: Vec<String>,
}

/// Sets the URL and token of the default target and attaches tables. Members that are absent or null stay as they are, and
/// so do the options of a table that its entry does not name. With `prune`, tables that are not listed are detached.
///
/// 22023 for a wrong shape, 42P01 for an unknown table, and what `sync_outbox_attach()` and `sync_outbox_set_token()` raise.
#[pgrx::pg_extern(sql = false)] // json is a text with another name, and both are bytes
fn sync_outbox_configure(config: Text<'_>, prune: Option<bool>) -> Vec<u8> {
    let _hidden = HiddenStatement::new();
    let answer = or_raise(configure(argument::utf8(config).as_deref(), prune.unwrap_or(false)));
    text::from_utf8(&serde_json::to_string(&answer).unwrap_or_default())
}

fn configure(config: Option<&str>, prune: bool) -> Result<Answer> {
    let config = Config::parse(argument::required(config, "config")?)?;
    // Names mean what they mean to the caller, so they are looked up before search_path is pinned.
    let tables = config.tables.map(resolve).transpose()?;
    let caller = role::current_user();
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let mut answer = Answer { ignored: config.ignored, ..Answer::default() };

    let _ = identity::admit(&schema); // as attach does; before there is a URL, which a template has not
    let mut target = target::find(&schema, target::DEFAULT)?;
    if let Some(url) = config.url {
        credentials::parse(&target, &url, &settings::delivery())?;
        target::set_base_url(&schema, target.id, Some(&url));
        target.base_url = Some(url);
        answer.webapp_base_url = true;
    }
    if let Some(tables) = tables {
        for table in &tables {
            attach(&schema, caller, table, &mut answer)?;
        }
        leave_out(&schema, caller, &tables, prune, &mut answer)?;
    }
    wake::anew_at_commit();
    match config.token {
        Some(text) => {
            token::keep(&schema, caller, &target, Some(&text))?;
            answer.sync_upload_token = true;
        }
        None if answer.webapp_base_url => notice_token_elsewhere(&target)?,
        None => {}
    }
    Ok(answer)
}

/// The object taken apart.
struct Config {
    url: Option<String>,
    token: Option<String>,
    tables: Option<Vec<Entry>>,
    ignored: Vec<String>,
}

/// An element of `uploads_local_to_remote`.
struct Entry {
    table: String,
    given: Given,
}

/// The options that an entry names.
#[derive(Default)]
struct Given {
    target: Option<String>,
    priority: Option<Priority>,
    columns: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    branch_column: Option<String>,
    key_columns: Option<Vec<String>>,
    operations: Option<Vec<String>>,
    include_old: Option<bool>,
    require_reason: Option<bool>,
    always: Option<bool>,
}

impl Config {
    fn parse(json: &str) -> Result<Self> {
        let Ok(Value::Object(mut members)) = serde_json::from_str(json) else {
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
                Some(entries.map(|(i, entry)| Entry::parse(entry, i, &mut ignored)).collect::<Result<_>>()?)
            }
            Some(_) => return Err(wrong(format!("{TABLES} is not an array"))),
        };
        ignored.extend(members.into_iter().map(|(name, _)| name));
        Ok(Config { url, token, tables, ignored })
    }
}

impl Entry {
    fn parse(entry: Value, i: usize, ignored: &mut Vec<String>) -> Result<Self> {
        let at = format!("{TABLES}[{i}]");
        let mut members = match entry {
            Value::String(table) => return Ok(Entry { table, given: Given::default() }),
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
        Ok(Entry { table, given })
    }
}

impl Given {
    /// The options of a table that has been attached with `before`, if at all.
    fn over(&self, before: Option<Options>) -> Options {
        let before = before.unwrap_or_default();
        Options {
            target: self.target.clone().unwrap_or(before.target),
            priority: self.priority.unwrap_or(before.priority),
            columns: self.columns.clone().or(before.columns),
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

/// A listed table that was found.
struct Listed {
    oid: Oid,
    given: Given,
}

fn resolve(entries: Vec<Entry>) -> Result<Vec<Listed>> {
    let mut listed: Vec<Listed> = Vec::with_capacity(entries.len());
    for Entry { table, given } in entries {
        let Some(oid) = look_up(&table) else {
            return Err(Error::new(SqlState::ERRCODE_UNDEFINED_TABLE, format!("table \"{table}\" does not exist"))
                .detail(format!("It is listed in {TABLES}."))
                .hint("Name its schema, as in \"shop.stock\", if that is not in your search_path; or take it off the list."));
        };
        if listed.iter().any(|l| l.oid == oid) {
            return Err(Error::argument(format!("table \"{table}\" is listed twice in {TABLES}")).hint("List it once."));
        }
        listed.push(Listed { oid, given });
    }
    Ok(listed)
}

/// The table of that name: spelled exactly so, else as SQL reads it (unquoted names in lower case).
fn look_up(name: &str) -> Option<Oid> {
    let exact = name.split('.').map(crate::store::quote_ident).collect::<Vec<_>>().join(".");
    regclass(&exact).or_else(|| regclass(name))
}

fn regclass(name: &str) -> Option<Oid> {
    // What is no name at all raises an error up to PostgreSQL 15.
    let found = xact::subtransaction(|| {
        spi::first("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[Arg::text_utf8(name)], |row| {
            row.get::<Oid>(1)
        })
    });
    found.ok().flatten().flatten()
}

fn attach(schema: &Schema, caller: Oid, table: &Listed, answer: &mut Answer) -> Result<()> {
    let options = table.given.over(attached::options(schema.capture(), table.oid));
    let outcome = install::install(schema, caller, table.oid, &options)?;
    let list = match outcome {
        Outcome::Attached => &mut answer.attached,
        Outcome::Changed => &mut answer.changed,
        Outcome::Unchanged => &mut answer.unchanged,
    };
    list.push(relation::find(schema, table.oid)?.name);
    Ok(())
}

/// Attached tables that are not listed.
fn leave_out(schema: &Schema, caller: Oid, listed: &[Listed], prune: bool, answer: &mut Answer) -> Result<()> {
    for (oid, name) in attached::all(schema.capture()) {
        if listed.iter().any(|l| l.oid == oid) {
            continue;
        }
        if prune {
            install::remove(schema, caller, oid)?;
            answer.detached.push(name);
        } else {
            answer.no_longer_listed.push(name);
        }
    }
    Ok(())
}

/// A new URL without a token leaves the old token where it was set for.
fn notice_token_elsewhere(target: &target::Target) -> Result<()> {
    if let Some((endpoint, _)) = credentials::endpoint(target, &settings::delivery())?
        && let Some(origin) = credentials::kept_for(target).unwrap_or_default() // an unreadable file is for the flush to report
        && origin != endpoint.origin
    {
        pgrx::notice!(
            "the token was set for {origin} and is not sent to {}: call sync_outbox_set_token()",
            endpoint.origin
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_config_is_taken_or_refused_with_a_hint(
            config in crate::arbitrary::json(&[
                URL, TOKEN, TABLES, "table", "target", "priority", "HIGH", "columns", "exclude", "branch_column", "key_columns",
                "operations", "INSERT", "include_old", "require_reason", "always", "s.t",
            ])
        ) {
            if let Err(error) = Config::parse(&config) {
                let told = error.hint.is_some() && !error.message.is_empty();
                proptest::prop_assert!(told);
            }
        }
    }
}
