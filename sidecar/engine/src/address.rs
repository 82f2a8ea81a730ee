//! Classes of addresses: to whom a connection to an address may lead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The ranges and addresses that only the pod's surroundings know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRanges {
    /// The pod's own addresses.
    pub pod: Vec<IpAddr>,
    /// The addresses of its node.
    pub node: Vec<IpAddr>,
    /// Ranges that are private here, besides those that are private everywhere: pods and Services with addresses of another kind.
    pub private: Vec<IpNet>,
}

impl AddressRanges {
    /// Returns whether an address is one that anybody can reach.
    pub fn is_public(&self, address: IpAddr) -> bool {
        class(address, self) == AddressClass::Public
    }

    /// Returns whether no name of a server may lead to an address: it is the pod's own, its node's, link-local, of metadata, or of no one
    /// host.
    pub fn is_off_limits(&self, address: IpAddr) -> bool {
        matches!(class(address, self), AddressClass::Own | AddressClass::Restricted)
    }
}

/// What an address is, as far as egress is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressClass {
    /// The pod itself: nothing opens it.
    Own,
    /// Link-local, metadata, the node, multicast, reserved: only an address range of a policy opens it.
    Restricted,
    /// Private: the cluster's own names may resolve to it.
    Private,
    /// Any other.
    Public,
}

/// Where clouds answer with credentials, besides link-local addresses.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// Returns the addresses where clouds answer with credentials.
pub(crate) fn metadata() -> impl Iterator<Item = IpAddr> {
    let link_local = Ipv4Addr::new(169, 254, 169, 254);
    let v4 = std::iter::once(link_local).chain(METADATA_V4).map(IpAddr::V4);
    v4.chain(METADATA_V6.into_iter().map(IpAddr::V6))
}

/// Returns the address that packets to an address reach in the end: of an IPv6 address that holds an IPv4 address (IPv4-mapped,
/// IPv4-compatible, IPv4-translated, 6to4, NAT64, Teredo) that one, of any other the address itself.
pub fn reached(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        // `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        // RFC 4291, sections 2.5.5.1 and 2.5.5.2; RFC 2765, section 2.1; RFC 6052, section 2.1.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            of(high, low)
        }
        // RFC 3056, section 2.
        [0x2002, high, low, ..] => of(high, low),
        // RFC 4380, section 4: the client's address, inverted.
        [0x2001, 0, .., high, low] => of(!high, !low),
        _ => address,
    }
}

/// Returns what an address is. An address that holds another is what that one is.
pub(crate) fn class(address: IpAddr, ranges: &AddressRanges) -> AddressClass {
    let at = reached(address);
    let among = |known: &[IpAddr]| known.iter().any(|known| reached(*known) == at);
    let is_private_here = || ranges.private.iter().any(|range| range.contains(&at) || range.contains(&address));
    if at.is_loopback() || at.is_unspecified() || among(&ranges.pod) {
        return AddressClass::Own;
    }
    let anywhere = match at {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    };
    match anywhere {
        _ if among(&ranges.node) => AddressClass::Restricted,
        AddressClass::Public if is_private_here() => AddressClass::Private,
        class => class,
    }
}

fn class_v4(address: Ipv4Addr) -> AddressClass {
    if METADATA_V4.contains(&address) {
        return AddressClass::Restricted;
    }
    match address.octets() {
        [0 | 224..=255, ..] | [169, 254, ..] => AddressClass::Restricted,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] | [192, 0, 0, _] => {
            AddressClass::Private
        }
        _ => AddressClass::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> AddressClass {
    if METADATA_V6.contains(&address) {
        return AddressClass::Restricted;
    }
    let [first, ..] = address.segments();
    match first {
        0xfe80..=0xfebf | 0xff00..=0xffff => AddressClass::Restricted,
        // Global unicast. What is nobody's, unique-local and site-local addresses can lead somewhere nearby.
        0x2000..=0x3fff => AddressClass::Public,
        _ => AddressClass::Private,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> AddressRanges {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        AddressRanges {
            pod: addresses(&["10.1.0.7", "fd00:1::7"]),
            node: addresses(&["203.0.113.9", "10.0.0.9", "2001:db8::9"]),
            private: vec!["203.0.112.0/24".parse().unwrap(), "2a00:1::/32".parse().unwrap()],
        }
    }

    /// IPv6 forms of an IPv4 address.
    fn forms(v4: Ipv4Addr) -> [IpAddr; 7] {
        let [a, b, c, d] = v4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2002, high, low, 7, 1, 2, 3, 4),
            Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0x8000, 0x63bf, !high, !low),
        ]
        .map(IpAddr::V6)
    }

    #[test]
    fn every_ipv4_address_is_of_one_class_in_every_form() {
        use AddressClass::{Own, Private, Public, Restricted};
        for (text, expected) in [
            ("127.0.0.1", Own),
            ("127.255.255.254", Own),
            ("10.1.0.7", Own),
            ("0.1.2.3", Restricted),
            ("169.254.0.1", Restricted),
            ("169.254.169.254", Restricted),
            ("100.100.100.200", Restricted),
            ("168.63.129.16", Restricted),
            ("192.0.0.192", Restricted),
            ("224.0.0.1", Restricted),
            ("239.255.255.255", Restricted),
            ("240.0.0.1", Restricted),
            ("255.255.255.255", Restricted),
            ("203.0.113.9", Restricted),
            ("10.0.0.9", Restricted),
            ("10.0.0.8", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("100.127.255.255", Private),
            ("198.18.0.1", Private),
            ("198.19.255.255", Private),
            ("192.0.0.1", Private),
            ("203.0.112.5", Private),
            ("1.1.1.1", Public),
            ("172.32.0.1", Public),
            ("100.128.0.1", Public),
            ("198.20.0.1", Public),
            ("192.0.1.1", Public),
            ("203.0.113.8", Public),
            ("223.255.255.255", Public),
        ] {
            let v4: Ipv4Addr = text.parse().unwrap();
            assert_eq!(class(IpAddr::V4(v4), &ranges()), expected, "{text}");
            for form in forms(v4) {
                assert_eq!(class(form, &ranges()), expected, "{text} as {form}");
            }
        }
        assert_eq!(class(IpAddr::V4(Ipv4Addr::UNSPECIFIED), &ranges()), Own);
    }

    #[test]
    fn every_ipv6_address_is_of_one_class() {
        use AddressClass::{Own, Private, Public, Restricted};
        for (text, expected) in [
            ("::", Own),
            ("::1", Own),
            ("fd00:1::7", Own),
            ("fe80::1", Restricted),
            ("febf::1", Restricted),
            ("ff02::1", Restricted),
            ("fd00:ec2::254", Restricted),
            ("fd20:ce::254", Restricted),
            ("fd00:42::42", Restricted),
            ("2001:db8::9", Restricted),
            ("fc00::1", Private),
            ("fd00:1::8", Private),
            ("fec0::1", Private),
            ("2a00:1::1", Private),
            ("64:ff9b:1::a00:1", Private),
            ("4000::1", Private),
            ("2a00:2::1", Public),
            ("2001:db8::1", Public),
            ("2606:4700::1111", Public),
        ] {
            assert_eq!(class(text.parse().unwrap(), &ranges()), expected, "{text}");
        }
    }
}
