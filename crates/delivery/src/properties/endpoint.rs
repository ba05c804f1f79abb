use crate::endpoint;
use std::net::IpAddr;
use url::{Host, Url};
use wire::properties::two_parts;

/// A URL that is taken posts to the origin and address it was checked for, and to this machine alone where it is plain
/// http. The second part of the input is the upload path.
pub fn endpoint(input: &[u8]) {
    let Some((base, path)) = two_parts(input) else { return };
    let path = path.unwrap_or_default();
    let Ok(endpoint) = endpoint::parse(base, path, true) else { return };
    let url = Url::parse(&endpoint.url).expect("what is posted to is a URL");
    assert_eq!((url.username(), url.password(), url.fragment()), ("", None, None));
    let (host, port) = (url.host_str().expect("a host"), url.port_or_known_default().expect("a port"));
    assert_eq!(format!("{}://{host}:{port}", url.scheme()), endpoint.origin);
    assert_eq!(endpoint.host, host);
    assert_eq!(url.host().and_then(address), endpoint.address);

    let without_plain_http = endpoint::parse(base, path, false).is_ok();
    assert_eq!(without_plain_http, url.scheme() == "https" || endpoint.loopback);
    let again = endpoint::parse(&endpoint.origin, path, true).map(|again| again.origin);
    assert_eq!(again.as_ref(), Ok(&endpoint.origin), "an origin has one spelling");
}

fn address(host: Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
    }
}
