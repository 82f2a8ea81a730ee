//! Where else than to declared servers a pod with captured connections may connect to.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{bounds, text::escaped};

/// Where a pod with captured connections may connect to, besides the servers of its policies. All policies that have it must allow a
/// connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "rules for connections, such as {default: Deny}")]
pub struct Egress {
    /// What becomes of a connection that no rule allows.
    #[serde(default, skip_serializing_if = "EgressDefault::is_deny")]
    pub default: EgressDefault,
    /// The connections that are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::EGRESS_RULES))]
    pub allow: Vec<EgressRule>,
}

/// What becomes of a connection that no rule allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EgressDefault {
    /// It is denied. What is left out is denied.
    #[default]
    Deny,
    /// It is allowed, to public addresses alone.
    Allow,
}

impl EgressDefault {
    /// Returns whether it denies, which is the default.
    pub fn is_deny(&self) -> bool {
        *self == Self::Deny
    }
}

/// Connections that are allowed: to names, or to addresses, at these ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a rule, such as {domainNames: [api.example.com], ports: [443]}"
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.domainNames) && self.domainNames.size() > 0) || (has(self.cidrs) && self.cidrs.size() > 0)",
    "message": "names no destination; write domainNames, cidrs or both",
}]))]
pub struct EgressRule {
    /// Names of hosts: exact, or `*.` and a name for every name below it, but not that name itself. They may resolve to public
    /// addresses, to the cluster's own Services, and to those in `cidrs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::DOMAIN_NAMES),
        inner(length(min = 1, max = bounds::DOMAIN_NAME)),
        extend(
            "x-kubernetes-list-type" = "set",
            "x-kubernetes-validations" = [{
                "rule": "self.all(name, name.matches('^([*][.])?([a-z0-9_]([-a-z0-9_]*[a-z0-9_])?[.])*[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?$'))",
                "message": "holds what is not a domain name; write it in lower case and without a final dot, as in api.example.com or *.example.com",
            }]
        )
    )]
    pub domain_names: Vec<String>,
    /// Ranges of addresses, such as `10.20.0.0/16`. Beside `domainNames`: addresses that these names may resolve to besides public
    /// ones. Alone: addresses that may be connected to, with whatever name or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::CIDRS),
        inner(length(min = 1, max = bounds::CIDR)),
        extend(
            "x-kubernetes-list-type" = "set",
            "x-kubernetes-validations" = [{
                "rule": "self.all(range, range.contains('/'))",
                "message": "holds what is not a range of addresses; write ADDRESS/BITS, as in 10.20.0.0/16, or 10.20.0.5/32 for one address",
            }]
        )
    )]
    pub cidrs: Vec<String>,
    /// The ports.
    #[schemars(
        length(min = 1, max = bounds::PORTS),
        inner(range(min = 1, max = 65535)),
        extend("x-kubernetes-list-type" = "set"),
        with = "Vec<i32>"
    )]
    pub ports: Vec<u16>,
}

/// Returns what is wrong with a domain name of a rule, if something is, and what to write instead.
pub fn domain_name_problem(text: &str) -> Option<String> {
    let shown = escaped(text, 80);
    if text == "*" || text == "*." {
        return Some(format!("`{shown}` is every name; write `default: Allow` for that, or `*.` and a domain"));
    }
    if text.is_empty() || text.len() > bounds::DOMAIN_NAME {
        return Some(format!("has {} bytes; from 1 to {} are possible", text.len(), bounds::DOMAIN_NAME));
    }
    let address = text.trim_matches(['[', ']']);
    if address.parse::<IpAddr>().is_ok() {
        let bits = if address.contains(':') { 128 } else { 32 };
        return Some(format!("`{shown}` is an address; write it under `cidrs`, as {address}/{bits}"));
    }
    if let Some(name) = text.strip_suffix('.') {
        return Some(format!("`{shown}` ends with a dot; write `{}`", escaped(name, 80)));
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(format!("`{shown}` is not in lower case; write `{}`", escaped(&text.to_ascii_lowercase(), 80)));
    }
    if !text.is_ascii() {
        return Some(format!("`{shown}` is not ASCII; write its labels as they are in DNS, beginning with xn--"));
    }
    if text.contains("://") || text.contains(['/', ':']) {
        return Some(format!("`{shown}` is more than a name; write the host alone, and its port under `ports`"));
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return Some(format!("`{shown}` has a `*` that is not its whole first label; write `*.` and a domain, or each name"));
    }
    if !name.split('.').all(is_label) {
        return Some(format!(
            "`{shown}` is not a domain name; write labels of 1 to 63 lower case letters, digits, `-` and `_`, joined by dots"
        ));
    }
    // What ends with a number is read as an address (WHATWG URL, "ends in a number").
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_number.then(|| format!("`{shown}` ends with a number, which clients read as an address; write it under `cidrs`"))
}

fn is_label(label: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len()) && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
}

/// Reads a range of addresses.
///
/// # Errors
/// The error and what to write instead, in one line without the field's path.
pub fn read_cidr(text: &str) -> Result<IpNet, String> {
    let shown = escaped(text, 80);
    if let Ok(address) = text.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Err(format!("`{shown}` is one address and not a range; write `{address}/{bits}`"));
    }
    // IpNet takes some bits with a sign.
    let plain = text.split_once('/').is_some_and(|(_, bits)| bits.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(range) = text.parse::<IpNet>().ok().filter(|_| plain) else {
        return Err(format!("`{shown}` is not a range of addresses; write ADDRESS/BITS, as in 10.20.0.0/16 or fd00:1::/32"));
    };
    if range.addr() != range.network() {
        let own = if range.addr().is_ipv4() { 32 } else { 128 };
        let (address, all) = (range.addr(), range.trunc());
        return Err(format!(
            "`{shown}` has bits set behind its first {}; write `{all}`, or `{address}/{own}`",
            range.prefix_len()
        ));
    }
    if let IpNet::V6(v6) = range
        && let Some(remedy) = ipv4_within(v6)
    {
        return Err(format!("`{shown}` is judged as the IPv4 addresses in it; write {remedy}"));
    }
    if is_pod_itself(range) {
        return Err(format!("`{shown}` is the pod itself, which no rule opens; remove it"));
    }
    Ok(range)
}

/// Of IPv6 addresses that all hold an IPv4 address, returns what to write instead.
fn ipv4_within(range: Ipv6Net) -> Option<String> {
    let bits = range.prefix_len();
    match range.network().segments() {
        // `::` and `::1` hold none.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            if bits >= 96 =>
        {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(format!("`{}/{}`", Ipv4Addr::new(a, b, c, d), bits - 96))
        }
        [0x2002, ..] if bits >= 16 => Some("the range of those".to_owned()),
        [0x2001, 0, ..] if bits >= 32 => Some("the range of those".to_owned()),
        _ => None,
    }
}

fn is_pod_itself(range: IpNet) -> bool {
    let (first, last) = (range.network(), range.broadcast());
    first.is_loopback() && last.is_loopback() || first.is_unspecified() && last.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_name_is_written_in_one_way() {
        for good in ["api.example.com", "*.example.com", "*.com", "db", "_x.example.com", "xn--bcher-kva.example", "a1.b-2.c3"] {
            assert_eq!(domain_name_problem(good), None, "{good}");
        }
        for (bad, remedy) in [
            ("*", "write `default: Allow`"),
            ("*.", "write `default: Allow`"),
            ("", "from 1 to 253"),
            ("10.0.0.1", "write it under `cidrs`, as 10.0.0.1/32"),
            ("[fd00::1]", "write it under `cidrs`, as fd00::1/128"),
            ("fd00::1", "write it under `cidrs`, as fd00::1/128"),
            ("10.1", "ends with a number"),
            ("a.0x7f", "ends with a number"),
            ("api.example.com.", "write `api.example.com`"),
            ("API.example.com", "write `api.example.com`"),
            ("bücher.example", "xn--"),
            ("https://api.example.com", "write the host alone"),
            ("api.example.com:443", "write the host alone"),
            ("*a.example.com", "not its whole first label"),
            ("a.*.com", "not its whole first label"),
            ("*.*.com", "not its whole first label"),
            ("a..b", "is not a domain name"),
            ("-a.b", "is not a domain name"),
            ("a b", "is not a domain name"),
        ] {
            let problem = domain_name_problem(bad).unwrap_or_else(|| panic!("{bad} is taken"));
            assert!(problem.contains(remedy), "{bad}: {problem}");
        }
        assert!(domain_name_problem(&format!("{}.com", "a".repeat(64))).is_some());
        assert!(domain_name_problem(&"a.".repeat(127)).is_some());
    }

    #[test]
    fn a_range_is_written_in_one_way() {
        for good in ["10.20.0.0/16", "10.20.0.5/32", "fd00::/8", "0.0.0.0/0", "::/0", "fd00::1/128", "2000::/3", "126.0.0.0/7"] {
            assert_eq!(read_cidr(good).map(|range| range.to_string()).as_deref(), Ok(good));
        }
        for (bad, remedy) in [
            ("10.20.0.5", "write `10.20.0.5/32`"),
            ("fd00::1", "write `fd00::1/128`"),
            ("10.20.0.5/16", "write `10.20.0.0/16`, or `10.20.0.5/32`"),
            ("fd00::1/8", "write `fd00::/8`, or `fd00::1/128`"),
            ("::ffff:10.0.0.0/104", "write `10.0.0.0/8`"),
            ("::10.0.0.0/104", "write `10.0.0.0/8`"),
            ("64:ff9b::/96", "write `0.0.0.0/0`"),
            ("2002:a00::/24", "write the range of those"),
            ("2001::/32", "write the range of those"),
            ("127.0.0.0/8", "is the pod itself"),
            ("127.0.0.1/32", "is the pod itself"),
            ("0.0.0.0/32", "is the pod itself"),
            ("::1/128", "is the pod itself"),
            ("::/128", "is the pod itself"),
            ("10.0.0.0/33", "write ADDRESS/BITS"),
            ("10.0.0.0/+8", "write ADDRESS/BITS"),
            ("10.0.0.0/", "write ADDRESS/BITS"),
            ("10/8", "write ADDRESS/BITS"),
            ("example.com/8", "write ADDRESS/BITS"),
        ] {
            let problem = read_cidr(bad).expect_err(bad);
            assert!(problem.contains(remedy), "{bad}: {problem}");
        }
    }
}
