//! Signed requests, as Standard Webhooks describes them: HMAC-SHA256 over `id.timestamp.body`, the body as JSON before
//! compression, which is what a receiver's handler sees.
//!
//! The headers are `webhook-id`, `webhook-timestamp` (seconds since 1970, of this attempt) and `webhook-signature`,
//! which holds one signature per secret: with two of them a receiver can be moved from the old one to the new one.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const PREFIX: &str = "whsec_";
/// The length of the random secret that the specification requires.
const LEAST_BYTES: usize = 24;
const MOST_BYTES: usize = 64;
/// The secret in use, and a second one during a rotation.
const MOST_SECRETS: usize = 2;

/// Libraries differ in whether they write the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why signing secrets are not accepted. No message shows any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("holds no secret")]
    Empty,
    #[error("holds more than {MOST_SECRETS} secrets")]
    TooMany,
    #[error("holds a line that is not {PREFIX} and base64")]
    Format,
    #[error("holds a secret that has not between {LEAST_BYTES} and {MOST_BYTES} bytes")]
    Length,
}

/// The secrets of a target.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<Vec<u8>>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// The secrets in the content of a file: one `whsec_<base64>` a line.
    pub fn from_file(content: &[u8]) -> Result<Self, SecretError> {
        let content = std::str::from_utf8(content).map_err(|_| SecretError::Format)?;
        let lines = content.lines().map(str::trim).filter(|line| !line.is_empty());
        let secrets = lines.map(secret).collect::<Result<Vec<_>, _>>()?;
        match secrets.len() {
            0 => Err(SecretError::Empty),
            1..=MOST_SECRETS => Ok(Secrets(secrets)),
            _ => Err(SecretError::TooMany),
        }
    }

    /// The value of `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        self.0.iter().map(|secret| sign(secret, id, timestamp, body)).collect::<Vec<_>>().join(" ")
    }
}

fn secret(line: &str) -> Result<Vec<u8>, SecretError> {
    let encoded = line.strip_prefix(PREFIX).ok_or(SecretError::Format)?;
    let bytes = BASE64.decode(encoded).map_err(|_| SecretError::Format)?;
    if (LEAST_BYTES..=MOST_BYTES).contains(&bytes.len()) { Ok(bytes) } else { Err(SecretError::Length) }
}

fn sign(secret: &[u8], id: &str, timestamp: u64, body: &[u8]) -> String {
    // HMAC accepts a key of any length, so this does not fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(itoa::Buffer::new().format(timestamp).as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn secrets(content: &str) -> Secrets {
        Secrets::from_file(content.as_bytes()).unwrap()
    }

    #[test]
    fn the_specifications_own_vector() {
        let body = br#"{"test": 2432232314}"#;
        let signature = secrets(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_vector_of_the_specifications_rust_library() {
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        let signature = secrets(OTHER).sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1649367553, body);
        assert_eq!(signature, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
    }

    #[test]
    fn two_secrets_make_two_signatures() {
        let both = secrets(&format!("{SECRET}\n\r\n {OTHER} \r\n")).sign("a", 1, b"{}");
        assert_eq!(both, format!("{} {}", secrets(SECRET).sign("a", 1, b"{}"), secrets(OTHER).sign("a", 1, b"{}")));
    }

    #[test]
    fn every_part_is_signed() {
        let sign = |id, timestamp, body: &str| secrets(SECRET).sign(id, timestamp, body.as_bytes());
        let first = sign("a", 1, "{}");
        assert!([sign("b", 1, "{}"), sign("a", 2, "{}"), sign("a", 1, "{ }")].iter().all(|other| *other != first));
    }

    #[test]
    fn bad_files_say_why_and_show_nothing() {
        for (content, expected) in [
            ("", SecretError::Empty),
            ("\n \n", SecretError::Empty),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SecretError::Format),
            ("whsec_!fKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SecretError::Format),
            ("whsec_", SecretError::Length),
            ("whsec_c2hvcnQ=", SecretError::Length),
            (&format!("{SECRET}\n{SECRET}\n{SECRET}"), SecretError::TooMany),
        ] {
            assert_eq!(Secrets::from_file(content.as_bytes()), Err(expected), "{content:?}");
        }
        assert_eq!(Secrets::from_file(&[0xff]), Err(SecretError::Format));
        assert_eq!(format!("{:?}", secrets(SECRET)), "Secrets(1)");
    }

    proptest::proptest! {
        #[test]
        fn any_content_is_read_or_refused(content: Vec<u8>, text in "(whsec_)?[A-Za-z0-9+/=\n]{0,90}") {
            crate::properties::signing_secret(&content);
            crate::properties::signing_secret(text.as_bytes());
        }
    }
}
