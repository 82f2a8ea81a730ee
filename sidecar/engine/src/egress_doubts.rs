//! What in an `egress` likely means something else than intended.

use std::net::IpAddr;

use ipnet::IpNet;
use toolweir_crds::{Egress, EgressDefault, EgressRule, FieldError, Server, check::server_url, egress::read_cidr, port_of};

/// Returns the doubts about the `egress` of a policy with these servers.
pub(crate) fn doubts(egress: &Egress, servers: &[Server]) -> Vec<FieldError> {
    let mut found = Vec::new();
    if egress.default == EgressDefault::Allow {
        let message = "lets pods connect to every public address, where anybody can run a relay to anywhere; \
                       write the names under `allow` and leave `default` out";
        found.push(FieldError { path: "spec.egress.default".to_owned(), message: message.to_owned() });
    }
    let hosts: Vec<(usize, String, u16)> = servers.iter().enumerate().filter_map(|(at, server)| host(at, server)).collect();
    for (index, rule) in egress.allow.iter().enumerate() {
        let path = format!("spec.egress.allow[{index}]");
        found.extend(declared(&path, rule, &hosts));
        found.extend(near(&path, rule));
    }
    found
}

/// Returns where a server is: its index, its host and its port.
fn host(at: usize, server: &Server) -> Option<(usize, String, u16)> {
    let url = server_url(server.url.as_deref()?).ok()?;
    Some((at, url.host()?.trim_end_matches('.').to_ascii_lowercase(), port_of(&url)?))
}

/// A rule for a declared server's own name and port is never asked: the server's rules hold first.
fn declared(path: &str, rule: &EgressRule, hosts: &[(usize, String, u16)]) -> Vec<FieldError> {
    let of = |(index, name): (usize, &String)| {
        let (at, _, port) = hosts.iter().find(|(_, host, port)| host == name && rule.ports.contains(port))?;
        let message =
            format!("`{name}` at port {port} is spec.servers[{at}], whose tools are governed all the same; remove it here");
        Some(FieldError { path: format!("{path}.domainNames[{index}]"), message })
    };
    rule.domain_names.iter().enumerate().filter_map(of).collect()
}

/// Ranges that open more than networks: link-local and metadata addresses, and all addresses.
fn near(path: &str, rule: &EgressRule) -> Vec<FieldError> {
    let of = |(index, text): (usize, &String)| {
        let range = read_cidr(text).ok()?;
        let message = if range.prefix_len() == 0 {
            format!("`{text}` is every address, with the metadata of the cloud and the node; write the ranges that are meant")
        } else {
            let metadata = crate::address::metadata().find(|address| range.contains(address));
            let what = metadata.or_else(|| link_local(range))?;
            format!(
                "`{text}` has {what}, where clouds hand out the node's credentials; write a range without link-local and metadata addresses"
            )
        };
        Some(FieldError { path: format!("{path}.cidrs[{index}]"), message })
    };
    rule.cidrs.iter().enumerate().filter_map(of).collect()
}

/// Returns a link-local address of a range, if it has one.
fn link_local(range: IpNet) -> Option<IpAddr> {
    ["169.254.0.0/16", "fe80::/10"].iter().filter_map(|text| text.parse::<IpNet>().ok()).find_map(|local| {
        let overlaps = range.contains(&local) || local.contains(&range);
        overlaps.then(|| if range.contains(&local) { local.network() } else { range.network() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(egress: &str, servers: &str) -> Vec<String> {
        let egress: Egress = serde_yaml::from_str(egress).unwrap();
        let servers: Vec<Server> = serde_yaml::from_str(servers).unwrap();
        doubts(&egress, &servers).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_likely_not_meant_is_told() {
        let servers = "[{name: a, url: 'http://A.tools.svc:8000/mcp'}, {name: b, url: 'https://b.example/mcp'}, {name: c}]";
        for (egress, expected) in [
            ("{default: Allow}", "spec.egress.default: lets pods connect to every public address"),
            (
                "{allow: [{domainNames: [x.com, a.tools.svc], ports: [8000]}]}",
                "spec.egress.allow[0].domainNames[1]: `a.tools.svc` at port 8000 is spec.servers[0]",
            ),
            (
                "{allow: [{domainNames: [b.example], ports: [80, 443]}]}",
                "spec.egress.allow[0].domainNames[0]: `b.example` at port 443 is spec.servers[1]",
            ),
            (
                "{allow: [{cidrs: [169.254.169.254/32], ports: [80]}]}",
                "spec.egress.allow[0].cidrs[0]: `169.254.169.254/32` has 169.254.169.254",
            ),
            (
                "{allow: [{cidrs: [169.254.7.0/24], ports: [80]}]}",
                "spec.egress.allow[0].cidrs[0]: `169.254.7.0/24` has 169.254.7.0",
            ),
            (
                "{allow: [{cidrs: [160.0.0.0/4], ports: [80]}]}",
                "spec.egress.allow[0].cidrs[0]: `160.0.0.0/4` has 169.254.169.254",
            ),
            (
                "{allow: [{cidrs: [100.64.0.0/10], ports: [80]}]}",
                "spec.egress.allow[0].cidrs[0]: `100.64.0.0/10` has 100.100.100.200",
            ),
            ("{allow: [{cidrs: ['fe80::/64'], ports: [80]}]}", "spec.egress.allow[0].cidrs[0]: `fe80::/64` has fe80::"),
            ("{allow: [{cidrs: ['fd00::/8'], ports: [80]}]}", "spec.egress.allow[0].cidrs[0]: `fd00::/8` has fd00:ec2::254"),
            ("{allow: [{cidrs: ['::/0'], ports: [80]}]}", "spec.egress.allow[0].cidrs[0]: `::/0` is every address"),
        ] {
            let told = told(egress, servers);
            assert!(told.len() == 1 && told[0].starts_with(expected), "{egress}: {told:?}");
        }
        let fine = "{allow: [{domainNames: [a.tools.svc, '*.tools.svc'], cidrs: [10.0.0.0/8, 'fd00:20::/32', 1.1.1.1/32], ports: [443]}]}";
        assert_eq!(told(fine, servers), Vec::<String>::new());
    }
}
