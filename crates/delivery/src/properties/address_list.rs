use crate::address::Allowed;
use std::net::{IpAddr, Ipv4Addr};
use wire::properties::text;

/// A list allows what it names and nothing else, never a metadata service; what it is refused for stands in it.
pub fn address_list(input: &[u8]) {
    let Some(list) = text(input) else { return };
    let allowed = match Allowed::parse(list) {
        Ok(allowed) => allowed,
        Err(part) => return assert!(!part.is_empty() && list.contains(&part)),
    };
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    assert!(allowed.check(metadata.into()).is_err() && allowed.check(metadata.to_ipv6_mapped().into()).is_err());

    let parts: Vec<&str> = list.split([',', ' ', '\t', '\n']).filter(|part| !part.is_empty()).collect();
    let addresses: Vec<IpAddr> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    for address in &addresses {
        let refused_for_what_it_is = Allowed::default().check(*address);
        assert_eq!(allowed.check(*address), refused_for_what_it_is, "{address} is listed");
    }
    if !addresses.is_empty() && addresses.len() == parts.len() {
        let another: IpAddr = Ipv4Addr::new(203, 0, 113, 7).into();
        let listed = addresses.iter().any(|address| address.to_canonical() == another);
        assert_eq!(allowed.check(another).is_ok(), listed, "a list of addresses allows these");
    }
}
