//! `sync_outbox_target_set()` and `sync_outbox_target_drop()`: create, change and drop targets.

use super::argument::{self, Text};
use super::configure::notice_token_elsewhere;
use super::discard::keep_out;
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::secret::HiddenStatement;
use crate::pg::xact;
use crate::push::credentials;
use crate::store::target::{self, Target};
use crate::store::{Schema, attached, identity, quote_literal};
use crate::{settings, wake};
use delivery::endpoint;
use serde_json::{Map, Value};

/// A member of `config`, and the column of `sync_outbox_target` that it is stored in.
struct Member {
    name: &'static str,
    /// Only superusers may set it, because it names a file that the server then reads.
    superuser: bool,
    /// Says what is wrong with a value that is not null.
    check: fn(&Value) -> std::result::Result<(), &'static str>,
    /// The field of the target.
    of: fn(&mut Target) -> &mut Option<String>,
}

const MEMBERS: [Member; 6] = [
    Member { name: "base_url", superuser: false, check: text, of: |target| &mut target.base_url },
    Member { name: "upload_path", superuser: false, check: text, of: |target| &mut target.upload_path },
    Member { name: "ca_file", superuser: true, check: text, of: |target| &mut target.ca_file },
    Member { name: "client_cert_file", superuser: true, check: text, of: |target| &mut target.client_cert_file },
    Member { name: "client_key_file", superuser: true, check: text, of: |target| &mut target.client_key_file },
    Member { name: "signing_secret_file", superuser: true, check: text, of: |target| &mut target.signing_secret_file },
];

fn text(value: &Value) -> std::result::Result<(), &'static str> {
    match value.as_str() {
        None => Err("is not a string"),
        Some(text) if text.trim().is_empty() => Err("is empty: write null for the server-wide setting"),
        Some(text) if text.chars().any(char::is_control) => Err("contains a control character"),
        Some(_) => Ok(()),
    }
}

/// `config` after its own checks: the members that it names, and the object as it is stored.
#[derive(Default)]
struct TargetConfig {
    members: Vec<&'static Member>,
    object: Map<String, Value>,
}

impl TargetConfig {
    fn parse(json: &str) -> Result<Self> {
        let Some(Value::Object(object)) = super::json::value(json) else {
            return Err(wrong("config is not a JSON object"));
        };
        let mut members = Vec::with_capacity(object.len());
        for (name, value) in &object {
            let Some(member) = MEMBERS.iter().find(|member| member.name == name) else {
                return Err(wrong(format!("unknown member \"{name}\" in config")));
            };
            if !value.is_null() {
                (member.check)(value).map_err(|why| wrong(format!("{name} {why}")))?;
            }
            members.push(member);
        }
        Ok(TargetConfig { members, object })
    }

    fn names(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// Changes the target accordingly.
    fn apply(&self, target: &mut Target) {
        for member in &self.members {
            *(member.of)(target) = self.object[member.name].as_str().map(str::to_owned);
        }
    }
}

/// 22023, with the members that there are in the hint.
fn wrong(message: impl Into<String>) -> Error {
    let known: Vec<&str> = MEMBERS.iter().map(|member| member.name).collect();
    Error::argument(message).hint(format!(
        "The members are {}; null is the server-wide setting: SELECT sync_outbox_target_set('second', '{{\"base_url\": \"https://hub.example.org\"}}');",
        known.join(", ")
    ))
}

/// Creates the target `name`, or changes the members that `config` names: `base_url`, `upload_path`; and for superusers
/// `ca_file`, `client_cert_file`, `client_key_file`, `signing_secret_file`. null stands for the server-wide setting;
/// members that are absent stay as they are.
///
/// All or nothing. 22023 for an object of the wrong shape, an unknown member, a URL that cannot be used or an invalid
/// name; 42501 for a member that only superusers may set.
#[pgrx::pg_extern(sql = false)] // json is a text with another name, and both are bytes
fn sync_outbox_target_set(name: Text<'_>, config: Text<'_>) {
    let _hidden = HiddenStatement::new();
    or_raise(set(name, config))
}

fn set(name: Text<'_>, config: Text<'_>) -> Result<()> {
    let name = argument::required(argument::utf8(name, "name")?, "name")?;
    let config = TargetConfig::parse(&argument::required(argument::utf8(config, "config")?, "config")?)?;
    if let Some(member) = config.members.iter().find(|member| member.superuser)
        && !role::is_superuser(role::current_user())
    {
        return Err(Error::new(
            SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("only a superuser may set {} of a target", member.name),
        )
        .hint("The server reads the file that it names: ask a superuser, or leave it out."));
    }
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    if target::look_up(&schema, &name).is_none() {
        // A new target takes one of 32,767 ids for ever, so everything is checked before it is created.
        check_name(&name)?;
        let mut made = Target { name: name.to_string(), ..Target::default() };
        config.apply(&mut made);
        check_url(&made, &config)?;
    }
    let _ = identity::admit(&schema); // as attach does; before there is a target, because a template database has none
    let mut target = target::find_or_make(&schema, &name)?;
    config.apply(&mut target);
    check_url(&target, &config)?;
    if !config.members.is_empty() {
        let columns: Vec<&str> = config.members.iter().map(|member| member.name).collect();
        target::set(&schema, target.id, &columns, &Value::Object(config.object.clone()).to_string());
        target::close_breaker(&schema, target.id);
    }
    wake::control_at_commit();
    if config.names("base_url") { notice_token_elsewhere(&target) } else { Ok(()) }
}

/// The most characters of a target's name: people read and type it, and it has to fit into an index.
const NAME_MAX_CHARS: usize = 200;

/// Refuses a name that a target must not have. Only targets that were created by hand can have such a name.
fn check_name(name: &str) -> Result<()> {
    let why = match name {
        "" => "is empty",
        _ if name.chars().count() > NAME_MAX_CHARS => "is too long",
        _ if name.trim() != name => "begins or ends with white space",
        _ if name.chars().any(char::is_control) => "contains a control character",
        _ => return Ok(()),
    };
    Err(Error::argument(format!("the name of the target {why}"))
        .hint("Call it as people do: 'default', 'hub', 'reports'."))
}

/// Checks the URL that would be posted to, as far as the call changes it.
fn check_url(target: &Target, config: &TargetConfig) -> Result<()> {
    let delivery = settings::delivery();
    if let Some(url) = target.base_url.as_deref().filter(|_| config.names("base_url")) {
        return credentials::parse(target, url, &delivery).map(drop);
    }
    if let Some(path) = target.upload_path.as_deref().filter(|_| config.names("upload_path")) {
        // The path is checked with any URL, because that of the target may be unusable.
        endpoint::parse("https://localhost", path, false)
            .map_err(|error| Error::argument(error.to_string()).hint(error.hint()))?;
    }
    Ok(())
}

/// Drops a target that is not used any more: no table is attached to it, and no change waits for it, whatever its
/// status. `default` cannot be dropped, because it is used wherever no target is named.
///
/// 22023 for an unknown target; 55000 with what is in the way; 55P03 while somebody attaches, backfills, imports or
/// sends to it; 25001 in REPEATABLE READ.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_target_drop(name: Text<'_>) {
    or_raise(drop_target(name))
}

fn drop_target(name: Text<'_>) -> Result<()> {
    let name = argument::required(argument::utf8(name, "name")?, "name")?;
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    if xact::uses_one_snapshot() {
        return Err(Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "cannot drop a target in a REPEATABLE READ transaction",
        )
        .hint("Call it in a READ COMMITTED transaction: this one might not see what was captured last."));
    }
    if name == target::DEFAULT {
        return Err(in_the_way("the target \"default\" cannot be dropped")
            .detail("It is meant wherever no target is named, and changes are captured for it before anybody makes it.")
            .hint("To forget its URL: SELECT sync_outbox_target_set('default', '{\"base_url\": null}');"));
    }
    let id = target::find(&schema, &name)?.id;
    // The order is the same everywhere: first the sender's lock, then the target's row. A sender records what happened
    // in the target's state.
    let _sender = keep_out(&schema, id)?;
    let target = lock_row(&schema, &name)?;
    if target.id != id {
        return Err(Error::new(SqlState::ERRCODE_LOCK_NOT_AVAILABLE, "the target was made anew at this very moment")
            .hint("Try again."));
    }
    check_unused(&schema, &target)?;
    target::drop(&schema, target.id);
    credentials::forget_at_commit(&target)?;
    wake::control_at_commit();
    Ok(())
}

/// Locks the target's row, which attach, backfill and import lock until their transactions end.
fn lock_row(schema: &Schema, name: &str) -> Result<Target> {
    const LOCK_WAIT_MS: i32 = 5_000;
    xact::subtransaction_in_time(LOCK_WAIT_MS, || target::find_to_drop(schema, name)).map_err(|caught| match caught
        .sqlstate
    {
        SqlState::ERRCODE_LOCK_NOT_AVAILABLE => Error::new(
            caught.sqlstate,
            format!(
                "target \"{name}\" is in use: a table is just being attached to it, or its rows backfilled or imported"
            ),
        )
        .hint("Try again when that transaction has ended: see pg_locks and pg_stat_activity."),
        _ => caught.into(),
    })?
}

/// 55000 while anything is, or may still be, captured for the target.
///
/// The order of the two checks matters, and each has a snapshot of its own. Whoever captures for the target holds a
/// lock on the table until its transaction ends, for which detaching the table waits: so where no table is attached,
/// everything that was captured is committed, and the second check sees it. Nothing new can be attached while the row
/// is locked.
fn check_unused(schema: &Schema, target: &Target) -> Result<()> {
    let Target { name, id, .. } = target;
    // These may belong to a target that was renamed or deleted by hand: sessions refer to it by its id.
    let dangling = attached::aimed_at_nothing(schema);
    if let [first, ..] = &dangling[..] {
        return Err(in_the_way(format!(
            "target \"{name}\" cannot be dropped: tables are attached to targets that do not exist"
        ))
        .detail(format!(
            "They are: {}. One that had its target renamed by hand may be writing for this one.",
            dangling.join(", ")
        ))
        .hint(format!(
            "Say where their changes go: SELECT sync_outbox_attach({}, target => ..); or detach them.",
            quote_literal(first)
        )));
    }
    let tables = attached::aimed_at(schema.capture(), name);
    if let [first, ..] = &tables[..] {
        return Err(in_the_way(format!("target \"{name}\" cannot be dropped: tables are attached to it"))
            .detail(format!("They are: {}.", tables.join(", ")))
            .hint(format!("SELECT sync_outbox_detach({}); or attach each to another target.", quote_literal(first))));
    }
    if target::has_changes(schema, *id) {
        let name = quote_literal(name);
        return Err(in_the_way(format!("target \"{}\" cannot be dropped: changes wait for it", target.name)).hint(format!(
            "CALL sync_outbox_drain(target => {name}); sends them, and SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox_queue WHERE target = {name}), 'no longer wanted'); gives them up."
        )));
    }
    Ok(())
}

fn in_the_way(message: impl Into<String>) -> Error {
    Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_changed_and_the_rest_stays() {
        let mut target = Target { upload_path: Some("/a".into()), ca_file: Some("/ca".into()), ..Target::default() };
        let config = TargetConfig::parse(r#"{"base_url": "https://hub", "upload_path": null}"#).unwrap();
        config.apply(&mut target);
        assert_eq!(
            (target.base_url.as_deref(), target.upload_path, target.ca_file.as_deref()),
            (Some("https://hub"), None, Some("/ca"))
        );
    }

    proptest::proptest! {
        #[test]
        fn any_config_is_taken_or_refused_with_a_hint(
            config in wire::properties::json(&["base_url", "upload_path", "ca_file", "https://hub", ""])
        ) {
            match TargetConfig::parse(&config) {
                Ok(config) => assert!(config.members.iter().all(|member| config.names(member.name))),
                Err(error) => assert!(error.hint.is_some()),
            }
        }
    }
}
