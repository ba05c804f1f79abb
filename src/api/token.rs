//! `sync_outbox_set_token()`: keeps the upload token in a private file.

use super::argument::{self, Text};
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::secret::HiddenStatement;
use crate::pg::{Oid, xact};
use crate::push::credentials::{self, UrlSource};
use crate::store::Schema;
use crate::store::target::{self, Target};
use crate::{settings, wake};
use wire::token;

/// Stores `token` for the origin of the target's URL; without one, the token in the server's environment. It is not
/// transactional. It works on a standby, where it must be called again, because the file is not replicated.
///
/// 22023 for a text that cannot be a token, 55000 if there is no URL or nothing in the environment, 42501 if the
/// environment's token would be sent to a URL that the caller, who is not a superuser, may have set.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_set_token(token: Text<'_>, target: Text<'_>) {
    let _hidden = HiddenStatement::new();
    or_raise((|| {
        let (token, target) = (argument::utf8(token, "token")?, argument::utf8(target, "target")?);
        token.as_deref().map_or(Ok(()), check)?;
        let caller = role::current_user();
        let _owner = ActAs::owner();
        let schema = Schema::installed()?;
        let target = target::find(&schema, argument::target(target.as_deref()))?;
        keep(&schema, caller, &target, token.as_deref())
    })())
}

/// 22023 with a hint unless the text can be a token; the message does not contain it.
pub(super) fn check(text: &str) -> Result<()> {
    token::check(text).map_err(|error| {
        Error::argument(format!("the token {error}")).hint("Give the token alone, without quotes, spaces and newlines.")
    })
}

/// Writes the file. Called last, because an error afterwards does not undo it.
pub(super) fn keep(schema: &Schema, caller: Oid, target: &Target, token: Option<&str>) -> Result<()> {
    let Some((endpoint, source)) = credentials::endpoint(target, &settings::delivery())? else {
        return Err(Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("target \"{}\" has no URL that the token could be kept for", target.name),
        )
        .hint(
            "Give it one first: SELECT sync_outbox_configure('{\"webapp_base_url\": \"https://hub.example.org\"}');",
        ));
    };
    let token = match token {
        Some(token) => token.to_owned(),
        None => from_environment(caller, source)?,
    };
    if !xact::in_recovery() && !xact::is_read_only() {
        target::close_breaker(schema, target.id);
    }
    wake::control_at_commit(); // the file exists, whatever becomes of the transaction
    credentials::keep(target, &endpoint, token)
}

fn from_environment(caller: Oid, source: UrlSource) -> Result<String> {
    if source == UrlSource::Target && !role::is_superuser(caller) {
        return Err(Error::new(
            SqlState::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("the environment's token is not given to a URL of {}", source.name()),
        )
        .hint("Call it as superuser, or give a token of your own: SELECT sync_outbox_set_token(:'token');"));
    }
    credentials::environment_token()?.ok_or_else(|| {
        Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "there is no SYNC_UPLOAD_TOKEN in the environment of the server process",
        )
        .hint("Give the token as an argument, or set the variable where the server is started and restart it.")
    })
}
