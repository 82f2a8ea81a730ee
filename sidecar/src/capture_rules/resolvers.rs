//! Which resolvers a `resolv.conf` names.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The resolvers of a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PodResolvers {
    pub(super) v4: BTreeSet<Ipv4Addr>,
    pub(super) v6: BTreeSet<Ipv6Addr>,
    /// What is named and cannot be a resolver.
    pub(super) unusable: Vec<String>,
}

/// Reads the text of a `resolv.conf`. Resolvers in the pod itself need no rule and are left out. Of a link-local address with a
/// scope (`fe80::1%eth0`) only the address counts: it is open on every device.
pub(super) fn parse(text: &str) -> PodResolvers {
    let mut found = PodResolvers::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(name)) = (words.next(), words.next()) else { continue };
        let address = name.split_once('%').map_or(name, |(address, _scope)| address);
        match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if address.is_loopback() || address.is_unspecified() => {}
            Ok(IpAddr::V4(address)) if !address.is_multicast() && !address.is_broadcast() => {
                found.v4.insert(address);
            }
            Ok(IpAddr::V6(address)) if !address.is_multicast() => {
                found.v6.insert(address);
            }
            Ok(_) | Err(_) => found.unusable.push(name.to_owned()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kubelet_writes() {
        let found =
            parse("search a.svc.cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n");
        assert_eq!(found.v4, BTreeSet::from([Ipv4Addr::new(10, 96, 0, 10)]));
        assert_eq!(found.v6, BTreeSet::from(["fd00::a".parse().unwrap()]));
        assert!(found.unusable.is_empty());
    }

    #[test]
    fn link_local_resolvers_count_without_their_scope() {
        let found = parse("nameserver 169.254.20.10\n\tnameserver\tfe80::1%eth0 # the router\n");
        assert_eq!(found.v4, BTreeSet::from([Ipv4Addr::new(169, 254, 20, 10)]));
        assert_eq!(found.v6, BTreeSet::from(["fe80::1".parse().unwrap()]));
    }

    #[test]
    fn a_mapped_address_is_the_one_inside() {
        assert_eq!(parse("nameserver ::ffff:10.0.0.1").v4, BTreeSet::from([Ipv4Addr::new(10, 0, 0, 1)]));
    }

    #[test]
    fn resolvers_in_the_pod_need_no_rule() {
        assert_eq!(parse("nameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\n"), PodResolvers::default());
    }

    #[test]
    fn names_what_cannot_be_a_resolver() {
        let found = parse(
            "#nameserver 10.0.0.1\n;nameserver 10.0.0.2\nnameserver\nnameserver dns.example\nnameserver 224.0.0.251\nnameserver 255.255.255.255\n",
        );
        assert_eq!(found.unusable, ["dns.example", "224.0.0.251", "255.255.255.255"]);
        assert!(found.v4.is_empty());
    }
}
