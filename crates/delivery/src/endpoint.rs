//! Where changes are posted to: a base URL and a path, checked and joined.
//!
//! The origin decides where a token may go, so it has one spelling only. What is posted to is the parsed URL, never the
//! text it was parsed from: a lenient parser must not see another host than the one that was checked.

use std::net::IpAddr;
use url::{Host, Url};

/// A checked URL to post to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The full URL of the request.
    pub url: String,
    /// `scheme://host:port` in lower case, the port always there.
    pub origin: String,
    pub host: String,
    /// The address, if the host is an address and not a name, however it is spelled.
    pub address: Option<IpAddr>,
    pub loopback: bool,
}

/// Why a URL is not accepted. No message contains the URL itself, because it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the URL has neither the scheme https nor http")]
    Scheme,
    #[error("the URL has characters that do not belong into one")]
    Characters,
    #[error("the URL is not valid: {0}")]
    Invalid(url::ParseError),
    #[error("the URL contains credentials")]
    Credentials,
    #[error("the URL has a query or a fragment")]
    Query,
    #[error("the upload path is not a path")]
    UploadPath,
    #[error("plain http to the host \"{0}\" is not allowed")]
    PlainHttp(String),
}

impl EndpointError {
    /// What to type.
    pub fn hint(&self) -> &'static str {
        match self {
            EndpointError::Scheme => "Write it with its scheme, as in https://hub.example.org.",
            EndpointError::Characters => {
                "Write it without spaces, backslashes and control characters, percent-encoded where necessary."
            }
            EndpointError::Invalid(_) => "Write it as in https://hub.example.org or https://hub.example.org:8443/base.",
            EndpointError::Credentials => {
                "Leave user and password out of the URL and give the token to sync_outbox_set_token()."
            }
            EndpointError::Query => "Leave everything from ? or # on out of the URL.",
            EndpointError::UploadPath => "Write it as in /api/sync/upload_outbox.",
            EndpointError::PlainHttp(_) => {
                "Use https; or, if you accept that everybody on the way can read token and data, \
                 set sync_outbox.allow_http = on."
            }
        }
    }
}

/// Checks `base_url` and joins it with `upload_path`; the base's own path is kept, with exactly one slash in between.
/// Plain http is for this machine only, unless `allow_http`.
pub fn parse(base_url: &str, upload_path: &str, allow_http: bool) -> Result<Endpoint, EndpointError> {
    let base = base_url.trim_matches(' ');
    if base.chars().any(forbidden) {
        return Err(EndpointError::Characters);
    }
    let authority = match base.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)) => {
            rest.split(['/', '?', '#']).next().unwrap_or_default()
        }
        _ => return Err(EndpointError::Scheme),
    };
    if authority.is_empty() {
        return Err(EndpointError::Invalid(url::ParseError::EmptyHost));
    }
    if authority.contains('@') {
        return Err(EndpointError::Credentials);
    }
    if base.contains(['?', '#']) {
        return Err(EndpointError::Query);
    }
    if upload_path.chars().any(forbidden) || upload_path.contains('#') {
        return Err(EndpointError::UploadPath);
    }
    let joined = format!("{}/{}", base.trim_end_matches('/'), upload_path.trim_start_matches('/'));
    let url = Url::parse(&joined).map_err(EndpointError::Invalid)?;
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(EndpointError::Invalid(url::ParseError::EmptyHost));
    };
    let address = match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(address)),
        Host::Ipv6(address) => Some(IpAddr::V6(address)),
    };
    let loopback = match address {
        None => url.domain() == Some("localhost"),
        Some(address) => address.is_loopback(),
    };
    let host = host.to_string();
    if url.scheme() == "http" && !loopback && !allow_http {
        return Err(EndpointError::PlainHttp(host));
    }
    Ok(Endpoint { origin: format!("{}://{host}:{port}", url.scheme()), url: url.into(), host, address, loopback })
}

/// A URL parser drops some of these characters and turns others into slashes. Here they are errors.
fn forbidden(c: char) -> bool {
    c.is_control() || c.is_whitespace() || c == '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/api/sync/upload_outbox";

    fn url(base: &str, path: &str) -> String {
        parse(base, path, false).unwrap().url
    }

    #[test]
    fn base_path_is_kept_and_joined_with_one_slash() {
        for (base, path, expected) in [
            ("https://hub", PATH, "https://hub/api/sync/upload_outbox"),
            ("https://hub/", PATH, "https://hub/api/sync/upload_outbox"),
            ("https://hub/shop", "up", "https://hub/shop/up"),
            ("https://hub/shop//", "//up", "https://hub/shop/up"),
            ("https://hub/shop", "", "https://hub/shop/"),
            ("https://hub/shop", "/up?store=5", "https://hub/shop/up?store=5"),
            (" https://hub ", "/a%20b", "https://hub/a%20b"),
            ("https://hub/größe", "/ü", "https://hub/gr%C3%B6%C3%9Fe/%C3%BC"),
        ] {
            assert_eq!(url(base, path), expected);
        }
    }

    #[test]
    fn an_origin_has_one_spelling() {
        for base in ["https://hub.example.org", "HTTPS://HUB.Example.ORG:443", "https://hub.example.org:0443/x"] {
            assert_eq!(parse(base, PATH, false).unwrap().origin, "https://hub.example.org:443");
        }
        assert_eq!(parse("http://[0:0::1]", PATH, false).unwrap().origin, "http://[::1]:80");
        assert_eq!(parse("https://MÜNCHEN.de", PATH, false).unwrap().origin, "https://xn--mnchen-3ya.de:443");
        assert_ne!(parse("https://hub", PATH, false).unwrap().origin, parse("http://hub", PATH, true).unwrap().origin);
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for base in
            ["http://localhost:1", "http://LOCALHOST", "http://127.0.0.1", "http://127.9.9.9:8", "http://[::1]:9"]
        {
            assert!(parse(base, PATH, false).unwrap().loopback, "{base}");
        }
        for base in
            ["http://hub", "http://128.0.0.1", "http://localhost.evil.org", "http://127.0.0.1.nip.io", "http://[::2]"]
        {
            assert!(matches!(parse(base, PATH, false), Err(EndpointError::PlainHttp(_))), "{base}");
            assert!(!parse(base, PATH, true).unwrap().loopback, "{base}");
        }
    }

    #[test]
    fn an_address_is_seen_in_every_spelling() {
        let address = |base| parse(base, PATH, true).unwrap().address;
        for base in [
            "https://169.254.169.254",
            "https://2852039166",
            "https://0xa9fea9fe",
            "https://0xa9.0xfe.0xa9.0xfe",
            "https://0251.0376.0251.0376",
            "https://169.254.43518",
            "https://169.254.169.254.",
            "https://%31%36%39.254.169.254",
            "https://１６９。254｡169.254",
        ] {
            assert_eq!(address(base), Some("169.254.169.254".parse().unwrap()), "{base}");
        }
        assert_eq!(address("https://[::ffff:a9fe:a9fe]"), Some("::ffff:169.254.169.254".parse().unwrap()));
        assert_eq!(address("https://metadata.google.internal"), None);
    }

    #[test]
    fn bad_urls_say_why() {
        use EndpointError::*;
        for (base, expected) in [
            ("hub.example.org", Scheme),
            ("//hub", Scheme),
            ("https:/hub", Scheme),
            ("ftp://hub", Scheme),
            ("file:///etc/passwd", Scheme),
            ("", Scheme),
            ("https://", Invalid(url::ParseError::EmptyHost)),
            ("https:///path", Invalid(url::ParseError::EmptyHost)),
            ("https://hub:99999", Invalid(url::ParseError::InvalidPort)),
            ("https://user:secret@hub", Credentials),
            ("https://@hub", Credentials),
            ("https://hub?x=1", Query),
            ("https://hub/#x", Query),
            ("https://h\tub", Characters),
            ("https://hub\n", Characters),
            ("https://good\\@evil", Characters),
            ("https://hub/a b", Characters),
        ] {
            assert_eq!(parse(base, PATH, true), Err(expected), "{base}");
        }
        assert_eq!(parse("https://hub", "/a\nb", false), Err(UploadPath));
        assert_eq!(parse("https://hub", "/a#b", false), Err(UploadPath));
    }

    #[test]
    fn no_message_shows_the_url() {
        let error = parse("https://user:hunter2@hub", PATH, false).unwrap_err();
        assert!(!format!("{error} {}", error.hint()).contains("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_taken_posts_to_its_own_origin(base in "https?://[\\PC]{1,30}", path in "\\PC{0,20}") {
            crate::properties::endpoint(format!("{base}\n{path}").as_bytes());
        }
    }
}
