//! The value and source of each effective setting of a target, but never a secret.
//!
//! A setting that cannot be used is reported and raises no error, because whoever looks at the overview wants to know
//! why nothing is sent.

use super::version;
use crate::error::Result;
use crate::pg::Oid;
use crate::push::credentials::{self, Token, UrlSource};
use crate::settings;
use crate::store::overview::{self, Setting};
use crate::store::target::Target;
use delivery::endpoint::Endpoint;
use delivery::secret_file;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Settings that are reported in another way, or belong to a session and not to a target.
const NOT_AS_THEY_ARE: [&str; 6] =
    ["base_url", "upload_path", "upload_token", "upload_token_file", "capture", "reason"];

/// Settings that only roles that may read every setting see, as in `pg_settings`.
const PRIVATE: [&str; 5] = ["ca_file", "client_cert_file", "client_key_file", "signing_secret_file", "proxy"];

/// The settings of the server, read once for all targets.
pub struct SettingsReport {
    delivery: delivery::Settings,
    all: Vec<Setting>,
    with_private: bool,
}

impl SettingsReport {
    /// Reads them, as far as `caller` may see them.
    pub fn read(caller: Oid) -> Self {
        SettingsReport {
            delivery: settings::delivery(),
            all: overview::settings(),
            with_private: overview::reads_all_settings(caller),
        }
    }

    /// The settings that apply to a target.
    pub fn of(&self, target: &Target) -> Value {
        let mut report = Map::new();
        report.insert("version".to_owned(), version::report());
        for setting in &self.all {
            if !NOT_AS_THEY_ARE.contains(&setting.name.as_str()) {
                report.insert(setting.name.clone(), self.one(setting, None));
            }
        }
        for (name, column) in [
            ("upload_path", &target.upload_path),
            ("ca_file", &target.ca_file),
            ("client_cert_file", &target.client_cert_file),
            ("client_key_file", &target.client_key_file),
            ("signing_secret_file", &target.signing_secret_file),
        ] {
            if let Some(setting) = self.all.iter().find(|setting| setting.name == name) {
                report.insert(name.to_owned(), self.one(setting, column.as_deref()));
            }
        }
        let delivery = target.settings(self.delivery.clone());
        let key = delivery.client_key_file.as_deref();
        let key = key.and_then(|key| secret_file::open(Path::new(key), delivery.server_uid, 0).err());
        let signing = credentials::signing_secrets(&delivery).err();
        for (name, error) in [
            ("client_key_file", key.map(|error| format!("the file named by sync_outbox.client_key_file {error}"))),
            ("signing_secret_file", signing.map(|error| error.message)),
        ] {
            if let (Some(error), Some(Value::Object(setting))) = (error, report.get_mut(name)) {
                setting.insert("error".to_owned(), error.into());
            }
        }
        let endpoint = credentials::endpoint(target, &self.delivery);
        report.insert("base_url".to_owned(), base_url(target, &endpoint));
        report.insert("upload_token".to_owned(), token(target, endpoint.ok().flatten()));
        Value::Object(report)
    }

    /// A setting's value, or that of the target's column, which takes precedence.
    fn one(&self, setting: &Setting, column: Option<&str>) -> Value {
        let (value, source) = match column {
            Some(value) => (value, "target"),
            None => (setting.value.as_str(), setting.source.as_str()),
        };
        match PRIVATE.contains(&setting.name.as_str()) && !self.with_private {
            true => json!({ "source": source }),
            false => json!({ "value": without_credentials(value), "source": source }),
        }
    }
}

/// The URL as it was given. One that cannot be used is not shown: it may hold a password.
fn base_url(target: &Target, endpoint: &Result<Option<(Endpoint, UrlSource)>>) -> Value {
    let Some((url, source)) = credentials::base_url(target) else { return json!({ "source": "missing" }) };
    match endpoint {
        Ok(_) => json!({ "value": url, "source": source.name() }),
        Err(error) => json!({ "source": source.name(), "error": error.message, "hint": error.hint }),
    }
}

/// Where the token comes from.
fn token(target: &Target, endpoint: Option<(Endpoint, UrlSource)>) -> Value {
    let Some((endpoint, source)) = endpoint else {
        return json!({ "source": "missing", "error": "without a usable URL no token is looked for" });
    };
    match credentials::token(target, &endpoint, source, false) {
        Ok(Token::Found { source, .. }) => json!({ "source": source }),
        Ok(Token::Missing { why: None }) => json!({ "source": "missing" }),
        Ok(Token::Missing { why: Some(why) }) => json!({ "source": "missing", "error": why }),
        Err(error) => json!({ "error": error.message, "hint": error.hint }),
    }
}

/// Removes user and password, which the URL of a proxy can contain.
fn without_credentials(value: &str) -> String {
    match value.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::without_credentials;

    #[test]
    fn credentials_are_taken_out_of_urls_only() {
        assert_eq!(without_credentials("http://user:p@ss@proxy:3128"), "http://proxy:3128");
        assert_eq!(without_credentials("http://proxy:3128"), "http://proxy:3128");
        assert_eq!(without_credentials("/etc/ssl/a@b.pem"), "/etc/ssl/a@b.pem");
    }
}
