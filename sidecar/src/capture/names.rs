//! Names of hosts as agents write them, and which of them mean the same.

use std::net::{IpAddr, Ipv6Addr};

use toolweir_engine::egress::{Destination, EgressDecision, reached};

/// The longest name of DNS, as a text without a final dot (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;
/// The longest part of a name between dots.
const LONGEST_LABEL: usize = 63;
/// The domain of Services below the cluster's.
const SERVICES: &str = "svc";
/// The labels of a Service's name below the cluster's domain: its own, its namespace's, and [`SERVICES`].
const SERVICE_LABELS: usize = 3;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, in lower case and without a final dot.
    Name(String),
    /// An address. An IPv4 address in one of IPv6 is that IPv4 address.
    Address(IpAddr),
}

impl Host {
    /// Reads the host of a URL or an authority: a name, an IPv4 address, or an IPv6 address in brackets or without. None where it
    /// is neither.
    pub fn read(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(reached(address)));
        }
        if text.starts_with('[') {
            return None;
        }
        let name = text.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        // A last part of digits alone is an address in one of its older forms to some (WHATWG URL, "ends in a number").
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        (is_dns_name(name) && !is_number).then(|| Self::Name(name.to_owned()))
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::Address(address) => Some(*address),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A host and a port of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostAndPort {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl HostAndPort {
    /// Says in words what was decided on a connection. `address` is where it would lead, where that is known besides the host.
    pub fn message(&self, decision: &EgressDecision, address: Option<IpAddr>) -> String {
        let address = address.or(self.host.address());
        decision.message(&Destination { name: self.host.name(), in_cluster: false, address, port: self.port })
    }
}

impl std::fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Returns whether a text in lower case can be a name of DNS that hosts have, with `_` as some have it.
pub fn is_dns_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    name.len() <= LONGEST_NAME
        && name.split('.').all(|label| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(is_inner))
}

/// An authority: a host, and a port if it names one (RFC 9110, section 7.2). None where it cannot be read or has more.
pub fn read_authority(text: &str) -> Option<(Host, Option<u16>)> {
    if text.contains('@') {
        return None;
    }
    let is_bare_address = text.parse::<Ipv6Addr>().is_ok();
    let colon = text.rfind(':').filter(|at| !is_bare_address && !text.get(*at..).is_some_and(|rest| rest.contains(']')));
    let (host, port) = match colon.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))) {
        None => (text, None),
        Some((host, "")) => (host, None),
        Some((host, port)) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|port| digits && *port != 0)?))
        }
    };
    Some((Host::read(host)?, port))
}

/// The search domains of the pod, by which names of Services are short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchDomains(Vec<String>);

impl SearchDomains {
    /// Search domains, as `/etc/resolv.conf` has them.
    pub fn new(domains: impl IntoIterator<Item = String>) -> Self {
        let plain = |domain: String| domain.trim_end_matches('.').to_ascii_lowercase();
        Self(domains.into_iter().map(plain).filter(|domain| !domain.is_empty()).collect())
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The cluster's domain, such as `cluster.local`: a search domain of a pod is that of the cluster's Services.
    fn cluster(&self) -> Option<&str> {
        self.0.iter().find_map(|domain| domain.strip_prefix(SERVICES)?.strip_prefix('.'))
    }

    /// Everything that a host may mean: an address itself, and a name itself or below a search domain.
    pub fn meanings<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = Host> + 'a {
        let below = host.name().into_iter().flat_map(|name| self.0.iter().map(move |domain| format!("{name}.{domain}")));
        std::iter::once(host.clone()).chain(below.map(Host::Name))
    }

    /// Names by which clients call the same host as by this one, which is in lower case: for a Service, with more of the search domains
    /// and with less.
    pub fn spellings(&self, name: &str) -> Vec<String> {
        let host = Host::Name(name.to_owned());
        let is_service = |whole: &str| self.in_cluster(whole).is_some_and(|service| service.split('.').count() == SERVICE_LABELS);
        let meanings = self.meanings(&host).filter_map(|meaning| meaning.name().map(str::to_owned));
        let whole: Vec<String> = meanings.filter(|meaning| meaning == name || is_service(meaning)).collect();
        let bare = |name: &String, domain: &String| Some(name.strip_suffix(domain)?.strip_suffix('.')?.to_owned());
        let short = whole.iter().flat_map(|name| self.0.iter().filter_map(move |domain| bare(name, domain)));
        let mut all: Vec<String> = short.chain(whole.iter().cloned()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The name of a Service's DNS below the cluster's domain, such as `db.tools.svc`, from a whole name. None for names that are
    /// not the cluster's.
    pub fn in_cluster<'a>(&self, whole: &'a str) -> Option<&'a str> {
        let rest = whole.strip_suffix(self.cluster()?)?.strip_suffix('.')?;
        (rest.rsplit('.').next() == Some(SERVICES)).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains() -> SearchDomains {
        SearchDomains::new(["agents.svc.cluster.local", "svc.cluster.local", "Cluster.Local."].map(str::to_owned))
    }

    fn host(text: &str) -> Host {
        Host::read(text).unwrap()
    }

    /// Returns whether two hosts have a meaning in common.
    fn may_be_same(domains: &SearchDomains, one: &Host, other: &Host) -> bool {
        domains.meanings(one).any(|meaning| domains.meanings(other).any(|other| other == meaning))
    }

    #[test]
    fn every_form_of_the_name_of_a_service_is_the_same_server() {
        let domains = domains();
        let declared = host("bank.tools.svc");
        for form in
            ["bank.tools", "bank.tools.svc", "BANK.tools.svc.", "bank.tools.svc.cluster.local", "bank.tools.svc.cluster.local."]
        {
            assert!(may_be_same(&domains, &host(form), &declared), "{form}");
            assert!(may_be_same(&domains, &declared, &host(form)), "{form}");
        }
        for other in ["bank", "bank.other.svc", "bank.tools.example", "tools.svc", "192.0.2.1"] {
            assert!(!may_be_same(&domains, &host(other), &declared), "{other}");
        }
        // Of the pod's own namespace.
        assert!(may_be_same(&domains, &host("bank"), &host("bank.agents.svc")));
    }

    #[test]
    fn addresses_are_the_same_in_every_form() {
        for (one, other) in
            [("[::ffff:192.0.2.1]", "192.0.2.1"), ("[2001:DB8::1]", "2001:db8:0:0::1"), ("2001:db8::1", "[2001:db8::1]")]
        {
            assert_eq!(host(one), host(other));
        }
        assert_eq!(host("[2001:db8::1]").to_string(), "[2001:db8::1]");
    }

    #[test]
    fn what_some_read_as_an_address_and_others_as_a_name_is_neither() {
        for text in ["", ".", "a..b", "1", "127.1", "0x7f.1", "a.0x7f", "192.0.2.300", "[a]", "[::1", "a b", "ä.example", "a/b"]
        {
            assert_eq!(Host::read(text), None, "{text}");
        }
        let long = "a".repeat(64);
        assert_eq!(Host::read(&long), None);
    }

    #[test]
    fn an_authority_has_one_host_and_at_most_one_port() {
        for (text, read) in [
            ("a.example", Some(("a.example", None))),
            ("a.example:8000", Some(("a.example", Some(8000)))),
            ("a.example:", Some(("a.example", None))),
            ("[2001:db8::1]:80", Some(("[2001:db8::1]", Some(80)))),
            ("[2001:db8::1]", Some(("[2001:db8::1]", None))),
            ("2001:db8::1", Some(("[2001:db8::1]", None))),
            ("a@b", None),
            ("a:0", None),
            ("a:+80", None),
            ("a:65536", None),
            ("a:80:80", None),
        ] {
            let read = read.map(|(name, port)| (host(name), port));
            assert_eq!(read_authority(text), read, "{text}");
        }
    }

    #[test]
    fn a_whole_name_of_the_cluster_is_known_by_the_search_domains() {
        let domains = domains();
        assert_eq!(domains.in_cluster("db-0.db.tools.svc.cluster.local"), Some("db-0.db.tools.svc"));
        assert_eq!(domains.in_cluster("db.example.cluster.local"), None);
        assert_eq!(domains.in_cluster("db.tools.svc"), None);
        assert_eq!(SearchDomains::default().in_cluster("db.tools.svc.cluster.local"), None);
    }

    #[test]
    fn every_spelling_of_a_service_is_found_from_any() {
        let domains = SearchDomains::new(["agents.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned));
        let all = ["bank.tools", "bank.tools.svc", "bank.tools.svc.cluster.local"];
        for name in all {
            let found = domains.spellings(name);
            assert!(all.iter().all(|spelling| found.iter().any(|found| found == spelling)), "{name}: {found:?}");
        }
        let near = domains.spellings("bank.agents.svc.cluster.local");
        assert!(near.iter().any(|name| name == "bank") && near.iter().any(|name| name == "bank.agents"), "{near:?}");
        for name in ["mcp.example.com", "a.b.c.d.example.com"] {
            assert_eq!(domains.spellings(name), [name], "it is no Service's");
        }
        assert_eq!(domains.spellings("example.com"), ["example.com", "example.com.svc", "example.com.svc.cluster.local"]);
    }
}
