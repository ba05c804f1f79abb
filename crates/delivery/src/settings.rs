//! What the HTTP thread has to know, the size of batches, and when to try again.

use std::time::Duration;

/// Settings of one target, read before a request and handed to code that never sees PostgreSQL.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub batch_rows: usize,
    pub batch_bytes: usize,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    pub retry_interval: Duration,
    pub retry_max_interval: Duration,
    pub max_attempts: i32,
    pub compression: bool,
    pub allow_http: bool,
    pub ca_file: Option<String>,
    pub client_cert_file: Option<String>,
    pub client_key_file: Option<String>,
    pub proxy: Option<String>,
    pub allowed_addresses: String,
    pub signing_secret_file: Option<String>,
    /// The user that the server runs as, to whom files with secrets belong.
    pub server_uid: u32,
}
