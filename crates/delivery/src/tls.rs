//! Certificates and keys for TLS, checked before the HTTP client gets them: it panics if a key does not belong to its
//! certificate, and treats a file of authorities that it cannot parse as an empty one.

use super::secret_file::{self, FileError};
use crate::Settings;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// The error says which setting is wrong.
pub fn config(settings: &Settings) -> Result<TlsConfig, String> {
    let roots = match &settings.ca_file {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let certificates = certificates(path, "sync_outbox.ca_file")?;
            RootCerts::Specific(Arc::new(certificates))
        }
    };
    let client = match (&settings.client_cert_file, &settings.client_key_file) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(client(certificate, key, settings.server_uid)?),
        _ => return Err("sync_outbox.client_cert_file and sync_outbox.client_key_file go together".into()),
    };
    Ok(TlsConfig::builder().root_certs(roots).client_cert(client).build())
}

fn client(certificate_file: &str, key_file: &str, server_uid: u32) -> Result<ClientCert, String> {
    let chain = certificates(certificate_file, "sync_outbox.client_cert_file")?;
    let key = private_key(key_file, server_uid)?;
    let checked = chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
    PrivateKeyDer::try_from(key.der().to_vec())
        .ok()
        .and_then(|key| CertifiedKey::from_der(checked, key, &rustls::crypto::ring::default_provider()).ok())
        .ok_or(
            "the key of sync_outbox.client_key_file does not belong to the certificate of sync_outbox.client_cert_file",
        )?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

/// The certificates of a PEM file; at least one, since ureq would ignore a broken file silently.
fn certificates(path: &str, setting: &str) -> Result<Vec<Certificate<'static>>, String> {
    let pem = std::fs::read(path).map_err(|e| format!("cannot read {setting}: {}", e.kind()))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(format!("{setting} holds no certificate")) } else { Ok(found) }
}

/// The key of a PEM file, which is a secret as a token is.
fn private_key(path: &str, server_uid: u32) -> Result<PrivateKey<'static>, String> {
    const MOST_BYTES: u64 = 1 << 20;
    let pem = secret_file::read(Path::new(path), server_uid, 0, MOST_BYTES).map_err(|error| match error {
        FileError::Missing => "cannot read sync_outbox.client_key_file: it does not exist".to_owned(),
        FileError::Unreadable(error) => format!("cannot read sync_outbox.client_key_file: {}", error.kind()),
        error => format!("the file named by sync_outbox.client_key_file {error}"),
    })?;
    PrivateKey::from_pem(&pem).map_err(|_| "sync_outbox.client_key_file holds no private key".into())
}
