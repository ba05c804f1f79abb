//! Where to send, and with which token.
//!
//! A token goes only to the origin it was set for. A token from the settings or the environment has no origin of its
//! own: it belongs to the URL that the server's operator has set in the same way, and never goes to a URL of the
//! target's row, which an admin of this database may set (`invariants` 22).

use super::token_file::{self, CredentialFileError, StoredToken, TokenFile};
use crate::error::{Error, Result, SqlState};
use crate::pg::{extension, xact};
use crate::settings;
use crate::store::target::Target;
use delivery::address::Allowed;
use delivery::endpoint::{self, Endpoint};
use delivery::secret_file;
use std::path::Path;
use std::rc::Rc;
use wire::signature::Secrets;
use wire::token as rules;

const URL_VARIABLE: &str = "WEBAPP_BASE_URL";
const TOKEN_VARIABLE: &str = "SYNC_UPLOAD_TOKEN";

/// Where a target's URL comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlSource {
    Target,
    Setting,
    Environment,
}

impl UrlSource {
    pub fn name(self) -> &'static str {
        match self {
            UrlSource::Target => "sync_outbox_target.base_url",
            UrlSource::Setting => "sync_outbox.base_url",
            UrlSource::Environment => "environment WEBAPP_BASE_URL",
        }
    }
}

/// The base URL of a target as it was set, unchecked, and where it comes from; `None` if there is none.
pub fn base_url(target: &Target) -> Option<(String, UrlSource)> {
    [
        (target.base_url.clone(), UrlSource::Target),
        (settings::base_url(), UrlSource::Setting),
        (variable(URL_VARIABLE), UrlSource::Environment),
    ]
    .into_iter()
    .find_map(|(url, source)| url.filter(|u| !u.trim().is_empty()).map(|url| (url, source)))
}

/// A target's URL, checked, and where it comes from; `None` if there is none.
pub fn endpoint(target: &Target, delivery: &delivery::Settings) -> Result<Option<(Endpoint, UrlSource)>> {
    let Some((url, source)) = base_url(target) else { return Ok(None) };
    parse(target, &url, delivery)
        .map(|endpoint| Some((endpoint, source)))
        .map_err(|error| error.detail(format!("The URL comes from {}.", source.name())))
}

/// What `base_url` would mean for a target: 22023 with a hint if it cannot be used.
pub fn parse(target: &Target, base_url: &str, delivery: &delivery::Settings) -> Result<Endpoint> {
    let path = target.upload_path.clone().unwrap_or_else(settings::upload_path);
    let endpoint = endpoint::parse(base_url, &path, delivery.allow_http)
        .map_err(|error| Error::argument(error.to_string()).hint(error.hint()))?;
    // A host name is checked when it has been resolved. An address can be checked at once, also where a proxy connects.
    if let Some(address) = endpoint.address {
        let allowed = Allowed::from_setting(&delivery.allowed_addresses).map_err(|error| {
            Error::new(SqlState::ERRCODE_CONFIG_FILE_ERROR, error)
                .hint("Write networks and addresses between commas, as in 10.0.0.0/8, 192.168.1.7.")
        })?;
        allowed.check(address).map_err(|why| {
            Error::argument(format!("the address {address} {why}"))
                .hint("Use the URL of the remote server; sync_outbox.allowed_addresses lists what may be connected to.")
        })?;
    }
    Ok(endpoint)
}

/// The secrets that requests to a target are signed with, if any.
pub fn signing_secrets(delivery: &delivery::Settings) -> Result<Option<Rc<Secrets>>> {
    let Some(path) = &delivery.signing_secret_file else { return Ok(None) };
    token_file::read_secrets(Path::new(path)).map(|secrets| Some(Rc::new(secrets))).map_err(|error| {
        file_error("the file named by sync_outbox.signing_secret_file", error).hint(
            "Put one whsec_<base64> a line into a file that belongs to the server's user and has mode 0600, and name it in sync_outbox.signing_secret_file.",
        )
    })
}

/// A token for an endpoint, or why there is none.
pub enum Token {
    Found { value: String, source: &'static str },
    Missing { why: Option<String> },
}

const KEPT: &str = "sync_outbox_set_token()";
const FILE: &str = "sync_outbox.upload_token_file";
const SETTING: &str = "sync_outbox.upload_token";
const ENVIRONMENT: &str = "environment SYNC_UPLOAD_TOKEN";

/// The token for `endpoint`. With `persist`, one that is found only in the environment is kept in our own file.
pub fn token(target: &Target, endpoint: &Endpoint, source: UrlSource, persist: bool) -> Result<Token> {
    let own = own_file(target)?;
    let elsewhere = match read(&own)? {
        Some(kept) if kept.origin == endpoint.origin => return Ok(Token::Found { value: kept.token, source: KEPT }),
        Some(kept) => {
            let why = format!("the token was set for {} and is not sent to {}", kept.origin, endpoint.origin);
            Some(why)
        }
        None => None,
    };
    match server_wide()? {
        Some((_, name)) if source == UrlSource::Target => Ok(Token::Missing {
            why: elsewhere.or_else(|| Some(format!("the token of {name} is not sent to a URL of {}", source.name()))),
        }),
        Some((value, name)) => {
            if persist && name == ENVIRONMENT && elsewhere.is_none() {
                persist_quietly(&own, &endpoint.origin, &value);
            }
            Ok(Token::Found { value, source: name })
        }
        None => Ok(Token::Missing { why: elsewhere }),
    }
}

/// The origin that the token kept for a target was set for.
pub fn kept_for(target: &Target) -> Result<Option<String>> {
    Ok(read(&own_file(target)?)?.map(|kept| kept.origin))
}

/// Keeps a token for the origin of `endpoint`: replaces what was kept for the target. The token has been checked.
pub fn keep(target: &Target, endpoint: &Endpoint, token: String) -> Result<()> {
    own_file(target)?.write(&StoredToken { origin: endpoint.origin.clone(), token }).map_err(|error| {
        Error::new(SqlState::ERRCODE_IO_ERROR, format!("could not write the token file: {error}"))
            .hint("The server's user must be able to write to the directory sync_outbox below the data directory.")
    })
}

/// Removes the token that was kept for a target that is being dropped, once it is. One that cannot be removed, or that
/// is on another server, is of no use to anybody: no target ever has that id again.
pub fn forget_at_commit(target: &Target) -> Result<()> {
    let own = own_file(target)?;
    xact::at_commit(move || own.remove());
    Ok(())
}

/// The token in the server's environment, checked.
pub fn environment_token() -> Result<Option<String>> {
    variable(TOKEN_VARIABLE).map(|token| checked(token, ENVIRONMENT)).transpose()
}

/// The token that holds for the whole server, and where it comes from.
fn server_wide() -> Result<Option<(String, &'static str)>> {
    if let Some(path) = settings::upload_token_file() {
        let token = token_file::read(Path::new(&path)).map_err(|error| {
            file_error("the file named by sync_outbox.upload_token_file", error).hint(
                "Put the token alone into a file that belongs to the server's user and has mode 0600, and name it in sync_outbox.upload_token_file.",
            )
        })?;
        return Ok(Some((token, FILE)));
    }
    if let Some(token) = settings::upload_token() {
        return checked(token, SETTING).map(|token| Some((token, SETTING)));
    }
    Ok(environment_token()?.map(|token| (token, ENVIRONMENT)))
}

fn checked(token: String, name: &str) -> Result<String> {
    rules::check(&token).map(|()| token).map_err(|error| {
        Error::new(SqlState::ERRCODE_CONFIG_FILE_ERROR, format!("the token of {name} {error}"))
            .hint("Give the token alone, without quotes, spaces and newlines.")
    })
}

/// A token that cannot be kept is still good for this flush.
fn persist_quietly(own: &TokenFile, origin: &str, token: &str) {
    let kept = StoredToken { origin: origin.to_owned(), token: token.to_owned() };
    if let Err(error) = own.write(&kept) {
        pgrx::warning!("could not keep the token of {ENVIRONMENT}: {error}");
    }
}

fn read(own: &TokenFile) -> Result<Option<StoredToken>> {
    own.read().map_err(|error| {
        file_error("the token file written by sync_outbox_set_token()", error)
            .hint("Call sync_outbox_set_token() again; it writes the file anew.")
    })
}

fn own_file(target: &Target) -> Result<TokenFile> {
    let extension = extension::installed().ok_or_else(Error::not_installed)?;
    Ok(TokenFile::new(extension.oid, target.id))
}

fn file_error(which: &str, error: CredentialFileError) -> Error {
    let sqlstate = match error {
        CredentialFileError::File(secret_file::FileError::Missing) => SqlState::ERRCODE_UNDEFINED_FILE,
        CredentialFileError::File(secret_file::FileError::Unreadable(_)) => SqlState::ERRCODE_IO_ERROR,
        _ => SqlState::ERRCODE_CONFIG_FILE_ERROR,
    };
    Error::new(sqlstate, format!("{which} {error}"))
}

/// A variable of the server process's environment, if it is not blank.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}
