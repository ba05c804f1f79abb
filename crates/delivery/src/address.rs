//! Which addresses may be connected to: never a cloud's metadata service or a link-local neighbour, and nothing outside
//! the operator's list, if there is one.
//!
//! An admin of one database chooses the URL, and the server posts from its own place in the network: what only machines
//! there can reach must not become reachable for that admin. Private ranges are allowed, because that is where hubs
//! are.

use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of metadata services that no general class covers: Alibaba Cloud, Oracle Cloud, Azure.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// First segments of the networks that hold those of Amazon and Google.
const METADATA_V6: [[u16; 2]; 2] = [[0xfd00, 0x0ec2], [0xfd20, 0x00ce]];

/// Why an address is not connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("is link-local")]
    LinkLocal,
    #[error("is that of a cloud's metadata service")]
    Metadata,
    #[error("is not the address of one machine")]
    NotOneMachine,
    #[error("is not in sync_outbox.allowed_addresses")]
    NotListed,
}

/// The networks that may be connected to; without any, every address that is not refused for what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<IpNet>);

impl Allowed {
    /// Reads a list of networks (`10.0.0.0/8`) and single addresses, between commas or spaces. `Err` is the part that
    /// is neither.
    pub fn parse(list: &str) -> Result<Self, String> {
        list.split(|c: char| c == ',' || c.is_whitespace())
            .filter(|part| !part.is_empty())
            .map(|part| {
                let network = part.parse::<IpNet>().ok();
                network.or_else(|| part.parse::<IpAddr>().ok().map(IpNet::from)).ok_or_else(|| part.to_owned())
            })
            .map(|network| network.map(canonical))
            .collect::<Result<_, _>>()
            .map(Allowed)
    }

    /// As [`parse`](Self::parse), with a message that names the setting.
    pub fn from_setting(list: &str) -> Result<Self, String> {
        Self::parse(list).map_err(|part| {
            let part = wire::text::sanitise(&part, 60);
            format!("sync_outbox.allowed_addresses holds \"{part}\", which is neither a network nor an address")
        })
    }

    /// Whether `address` may be connected to. Being listed does not help an address that is refused for what it is.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let address = address.to_canonical();
        refused(address).map_or(Ok(()), Err)?;
        match self.0.is_empty() || self.0.iter().any(|network| network.contains(&address)) {
            true => Ok(()),
            false => Err(Refused::NotListed),
        }
    }
}

/// An IPv4 network that is written as IPv6, as `::ffff:10.0.0.0/104`, becomes that IPv4 network, as every address that
/// is checked does.
fn canonical(network: IpNet) -> IpNet {
    match (network, network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpNet::V6(_), IpAddr::V4(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(network, IpNet::V4),
        _ => network,
    }
}

fn refused(address: IpAddr) -> Option<Refused> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => refused_v6(address).or_else(|| {
            let mut within = embedded(address).into_iter().filter_map(refused_v4);
            // Zeros, where another form would have its address, mean nothing.
            within.find(|why| *why != Refused::NotOneMachine)
        }),
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<Refused> {
    if address == Ipv4Addr::new(169, 254, 169, 254) || METADATA_V4.contains(&address) {
        Some(Refused::Metadata)
    } else if address.is_link_local() {
        Some(Refused::LinkLocal)
    } else if address.octets()[0] == 0 || address.is_multicast() || address.is_broadcast() {
        Some(Refused::NotOneMachine)
    } else {
        None
    }
}

fn refused_v6(address: Ipv6Addr) -> Option<Refused> {
    let segments = address.segments();
    if METADATA_V6.iter().any(|network| segments.starts_with(network)) {
        Some(Refused::Metadata)
    } else if segments[0] & 0xffc0 == 0xfe80 || segments[0] & 0xffc0 == 0xfec0 {
        Some(Refused::LinkLocal) // fec0::/10 was "site-local" once
    } else if address.is_unspecified() || address.is_multicast() {
        Some(Refused::NotOneMachine)
    } else {
        None
    }
}

/// The IPv4 addresses that an IPv6 address can lead to, where its form says so. A NAT64 prefix of a network's own
/// cannot be told from any other.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let o = address.octets();
    let at = |i: [usize; 4]| Ipv4Addr::from(i.map(|i| o[i]));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        // ::1 is loopback and no IPv4 address.
        [0, 0, 0, 0, 0, 0, 0, 1] => vec![],
        // IPv4-compatible, IPv4-mapped, IPv4-translated (RFC 4291, RFC 2765).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => vec![last],
        // NAT64: the well-known prefix (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![last],
        // NAT64 for local use (RFC 8215): a /48 in which the address stands where the prefix in use ends.
        [0x64, 0xff9b, 1, ..] => vec![at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), last],
        // 6to4 (RFC 3056).
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo: server, and client with its bits inverted (RFC 4380).
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from(!u32::from(last))],
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![last],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, address: &str) -> Result<(), Refused> {
        Allowed::parse(list).unwrap().check(address.parse().unwrap())
    }

    #[test]
    fn metadata_services_are_refused() {
        for address in [
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:ffa9:fe:a9fe::",
            "64:ff9b:1:ffff:a9:fea9:fe00:0",
            "64:ff9b:1:fffe::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::1",
            "2001:0:102:304:0:0:5601:5601",
            "2001:db8::5efe:a9fe:a9fe",
            "2001:db8::200:5efe:a9fe:a9fe",
        ] {
            assert_eq!(check("", address), Err(Refused::Metadata), "{address}");
        }
    }

    #[test]
    fn link_local_addresses_are_refused() {
        for address in ["169.254.0.1", "169.254.170.2", "::ffff:169.254.1.1", "fe80::1", "febf::1", "fec0::1"] {
            assert_eq!(check("", address), Err(Refused::LinkLocal), "{address}");
        }
    }

    #[test]
    fn what_is_not_one_machine_is_refused() {
        for address in ["0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:0.0.0.0"] {
            assert_eq!(check("", address), Err(Refused::NotOneMachine), "{address}");
        }
    }

    #[test]
    fn private_ranges_loopback_and_the_world_are_allowed() {
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "fd12:3456::1",
            "93.184.216.34",
            "2606:2800:220:1::1",
            "64:ff9b::93.184.216.34",
            "64:ff9b:1::10.0.0.1",
            "2002:5db8:d822::1",
            "169.253.255.255",
            "169.255.0.0",
        ] {
            assert_eq!(check("", address), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_list_is_all_that_is_allowed() {
        let list = "10.1.0.0/16, 192.168.1.7 fd12::/16";
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "192.168.1.7", "fd12::1"] {
            assert_eq!(check(list, address), Ok(()), "{address}");
        }
        for address in ["10.2.0.1", "192.168.1.8", "127.0.0.1", "::1", "fd13::1"] {
            assert_eq!(check(list, address), Err(Refused::NotListed), "{address}");
        }
    }

    #[test]
    fn a_list_does_not_allow_what_is_always_refused() {
        assert_eq!(check("0.0.0.0/0, ::/0", "169.254.169.254"), Err(Refused::Metadata));
        assert_eq!(check("169.254.0.0/16", "169.254.1.1"), Err(Refused::LinkLocal));
    }

    #[test]
    fn a_list_that_is_none_says_where() {
        for (list, part) in [("10.0.0.0/8, hub", "hub"), ("10.0.0.0/33", "10.0.0.0/33"), ("10.1", "10.1")] {
            assert_eq!(Allowed::parse(list), Err(part.to_owned()));
        }
        assert_eq!(Allowed::parse(" , "), Ok(Allowed::default()));
    }

    #[test]
    fn a_list_may_spell_ipv4_as_ipv6() {
        for list in ["::ffff:10.1.2.3", "::ffff:10.1.0.0/112", "::ffff:0:0/96"] {
            assert_eq!(check(list, "10.1.2.3"), Ok(()), "{list}");
            assert_eq!(check(list, "::ffff:10.1.2.3"), Ok(()), "{list}");
            assert_eq!(check(list, "fd12::1"), Err(Refused::NotListed), "{list}");
        }
        assert_eq!(check("::ffff:10.1.0.0/112", "10.2.0.1"), Err(Refused::NotListed));
    }

    proptest::proptest! {
        #[test]
        fn no_spelling_of_a_link_local_address_gets_through(low: u16, prefix in 0..6usize) {
            let v4 = Ipv4Addr::from(0xa9fe_0000 | u32::from(low));
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let spelling: IpAddr = match prefix {
                0 => v4.into(),
                1 => v4.to_ipv6_mapped().into(),
                2 => Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
                3 => Ipv6Addr::new(0x2002, high, low, 7, 0, 0, 0, 1).into(),
                4 => Ipv6Addr::new(0x2001, 0, 0x0102, 0x0304, 0, 0, !high, !low).into(),
                _ => Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
            };
            proptest::prop_assert!(Allowed::default().check(spelling).is_err());
        }

        #[test]
        fn any_list_is_read_or_refused(list in "([0-9.:a-f/]{1,20}[, ]?){0,4}|\\PC{0,40}") {
            crate::properties::address_list(list.as_bytes());
        }
    }
}
