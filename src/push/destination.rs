//! Where a session sends, and with which credentials and settings: everything that an administrator may have changed
//! since the last look.

use super::credentials::{self, Token};
use super::report::Stop;
use crate::error::{Error, Result, SqlState};
use crate::settings;
use crate::store::{Schema, identity, target};
use delivery::Settings;
use delivery::endpoint::Endpoint;
use std::rc::Rc;
use wire::signature::Secrets;

#[derive(Clone, PartialEq)]
pub struct Destination {
    pub endpoint: Endpoint,
    pub token: String,
    pub signing: Option<Rc<Secrets>>,
    pub settings: Settings,
}

impl Destination {
    /// Where to send changes for the target of that name, or why nothing can be sent. Inside a transaction, in
    /// which the database's identity is written if it has none, and that a token is missing. 22023 if
    /// the target does not exist, 55000 if it has no URL or the extension's objects are too old, F0000 for a file or
    /// setting that cannot be used.
    pub fn find(schema: &Schema, name: &str) -> Result<std::result::Result<Self, Stop>> {
        Schema::installed()?; // its objects may be of an old version by now
        if identity::admit(schema).is_err() {
            return Ok(Err(Stop::Cloned));
        }
        let target = target::find(schema, name)?;
        if target.paused {
            return Ok(Err(Stop::Paused));
        }
        let settings = target.settings(settings::delivery());
        let Some((endpoint, source)) = credentials::endpoint(&target, &settings)? else {
            return Err(no_url(name));
        };
        let signing = credentials::signing_secrets(&settings)?;
        Ok(match credentials::token(&target, &endpoint, source, true)? {
            Token::Found { value, .. } => Ok(Destination { endpoint, token: value, signing, settings }),
            Token::Missing { why } => {
                target::note_failure(schema, target.id, 0, 0, Some("missing"), "auth missing");
                Err(Stop::TokenMissing { why })
            }
        })
    }

    /// Whether a target that did not accept the other one's credentials may accept these.
    pub fn has_other_credentials(&self, other: &Self) -> bool {
        (&self.endpoint.url, &self.token, &self.signing) != (&other.endpoint.url, &other.token, &other.signing)
    }
}

fn no_url(name: &str) -> Error {
    Error::new(SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, format!("target \"{name}\" has no URL"))
        .hint("SELECT sync_outbox_configure('{\"webapp_base_url\": \"https://hub.example.com\", \"sync_upload_token\": \"..\"}');")
}
