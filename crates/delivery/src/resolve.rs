//! Name resolution that leaves out the addresses which may not be connected to.
//!
//! The filter is applied between the look-up and the connection, so that the address that was checked is the one that
//! is connected to: a name that resolves differently the next time does not get around it. It sees every request, also
//! on a kept connection.

use super::address::{Allowed, Refused};
use std::fmt;
use std::net::IpAddr;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// A host has no address that may be connected to.
#[derive(Debug)]
pub struct NotAllowed {
    host: String,
    address: IpAddr,
    why: Refused,
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the address {} of the host \"{}\" {}", self.address, self.host, self.why)
    }
}

impl std::error::Error for NotAllowed {}

/// The system's resolver, and the filter behind it.
#[derive(Debug)]
pub struct Filtered {
    system: DefaultResolver,
    allowed: Allowed,
}

impl Filtered {
    pub fn new(allowed: Allowed) -> Self {
        Filtered { system: DefaultResolver::default(), allowed }
    }
}

impl Resolver for Filtered {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.system.resolve(uri, config, timeout)?;
        let mut left = self.empty();
        let mut refused = None;
        for address in found.iter() {
            match self.allowed.check(address.ip()) {
                Ok(()) => left.push(*address),
                Err(why) => refused = Some((address.ip(), why)),
            }
        }
        match refused {
            Some((address, why)) if left.is_empty() => {
                let host = uri.host().unwrap_or_default().to_owned();
                Err(ureq::Error::Other(Box::new(NotAllowed { host, address, why })))
            }
            _ => Ok(left),
        }
    }
}
