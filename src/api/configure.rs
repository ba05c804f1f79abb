//! `sync_outbox_configure()`: one JSON object says where to send and what to capture.
//!
//! It accepts the scripts' configuration files as they are. All or nothing: everything is checked and written inside
//! the caller's transaction. The token's file comes last, because a rollback does not undo it.

use super::argument::{self, Text};
use super::config::{Config, Given, TABLES, TableEntry};
use super::token;
use crate::capture::install::{self, AttachOutcome};
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::secret::HiddenStatement;
use crate::pg::spi::{self, Arg};
use crate::pg::{Oid, text, xact};
use crate::push::credentials;
use crate::store::{Schema, attached, identity, relation, target};
use crate::{settings, wake};
use serde::Serialize;

/// What was done, in the order of the answer's members.
#[derive(Default, Serialize)]
struct Summary {
    webapp_base_url: bool,
    sync_upload_token: bool,
    attached: Vec<String>,
    changed: Vec<String>,
    unchanged: Vec<String>,
    detached: Vec<String>,
    no_longer_listed: Vec<String>,
    ignored: Vec<String>,
}

/// Sets the URL and token of the default target and attaches tables. Members that are absent or null stay as they are,
/// and so do the options of a table that its entry does not name. With `prune`, tables that are not listed are
/// detached.
///
/// Raises 22023 for an object of the wrong shape, 42P01 for an unknown table, and what `sync_outbox_attach()` and
/// `sync_outbox_set_token()` raise.
#[pgrx::pg_extern(sql = false)] // json is a text with another name, and both are bytes
fn sync_outbox_configure(config: Text<'_>, prune: Option<bool>) -> Vec<u8> {
    let _hidden = HiddenStatement::new();
    let answer = or_raise(
        argument::utf8(config, "config").and_then(|config| configure(config.as_deref(), prune.unwrap_or(false))),
    );
    text::from_utf8(&serde_json::to_string(&answer).unwrap_or_default())
}

fn configure(config: Option<&str>, prune: bool) -> Result<Summary> {
    let config = Config::parse(argument::required(config, "config")?)?;
    // Names are resolved with the caller's search_path, so they are looked up before it is pinned.
    let tables = config.tables.map(resolve).transpose()?;
    let caller = role::current_user();
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let mut answer = Summary { ignored: config.ignored, ..Summary::default() };

    let _ = identity::admit(&schema); // as attach does; before there is a URL, because a template database has none
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
    wake::control_at_commit();
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

/// A listed table that was found.
struct Listed {
    oid: Oid,
    given: Given,
}

fn resolve(entries: Vec<TableEntry>) -> Result<Vec<Listed>> {
    let mut listed: Vec<Listed> = Vec::with_capacity(entries.len());
    for TableEntry { table, given } in entries {
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

/// The table of that name: spelled exactly so, or as SQL reads it (unquoted names in lower case).
fn look_up(name: &str) -> Option<Oid> {
    let exact = name.split('.').map(crate::store::quote_ident).collect::<Vec<_>>().join(".");
    regclass(&exact).or_else(|| regclass(name))
}

fn regclass(name: &str) -> Option<Oid> {
    // Up to PostgreSQL 15, a text that is not a name raises an error.
    let found = xact::subtransaction(|| {
        spi::first("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[Arg::text_utf8(name)], |row| {
            row.get::<Oid>(1)
        })
    });
    found.ok().flatten().flatten()
}

fn attach(schema: &Schema, caller: Oid, table: &Listed, answer: &mut Summary) -> Result<()> {
    let options = table.given.over(attached::options(schema.capture(), table.oid));
    let outcome = install::install(schema, caller, table.oid, &options)?;
    let list = match outcome {
        AttachOutcome::Attached => &mut answer.attached,
        AttachOutcome::Changed => &mut answer.changed,
        AttachOutcome::Unchanged => &mut answer.unchanged,
    };
    list.push(relation::find(schema, table.oid)?.name);
    Ok(())
}

/// Detaches or reports attached tables that are not listed.
fn leave_out(schema: &Schema, caller: Oid, listed: &[Listed], prune: bool, answer: &mut Summary) -> Result<()> {
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

/// If only the URL is changed, the token stays that of the old URL. A NOTICE says so.
pub(super) fn notice_token_elsewhere(target: &target::Target) -> Result<()> {
    if let Some((endpoint, _)) = credentials::endpoint(target, &settings::delivery())?
        // A file that cannot be read is reported by the flush.
        && let Some(origin) = credentials::kept_for(target).unwrap_or_default()
        && origin != endpoint.origin
    {
        pgrx::notice!(
            "the token was set for {origin} and is not sent to {}: call sync_outbox_set_token()",
            endpoint.origin
        );
    }
    Ok(())
}
