//! Decisions on connections in words.

use std::net::IpAddr;

use crate::{
    egress::{Destination, EgressDecision, EgressEffect, EgressReason},
    words::display_name,
};

impl EgressReason {
    /// Returns the reason in words, as they stand behind `denied,`.
    pub fn words(self) -> &'static str {
        match self {
            Self::None => "for no reason",
            Self::NoPolicy => "no policy of the pod has `egress`",
            Self::InvalidPolicy => "a policy cannot be enforced as it is written",
            Self::NotAllowed => "no rule allows the destination",
            Self::Address => "no rule opens the address, which is not public",
            Self::OtherName => "Host, TLS server name and destination do not agree",
            Self::OtherPath => "another path of a declared server's host",
            Self::UndeclaredServer => "it leads to an MCP server by a way that no policy declares",
            Self::ServerTls => "TLS to a declared server, which the policies do not have the sidecar open",
            Self::NewPodNeeded => {
                "the pod is older than the policy that has the sidecar open TLS to the server, so that it has no certificate authority for the host"
            }
            Self::TlsHandshake => "the client did not finish the TLS handshake with the sidecar",
            Self::HiddenName => "the TLS server name is encrypted",
            Self::Direct => "the capture port was called itself",
            Self::Malformed => "its meaning is not clear",
            Self::Overloaded => "the sidecar has no room",
            Self::Unreachable => "the destination cannot be connected to",
            Self::NotResolved => "the name cannot be resolved",
            Self::Timeout => "nothing that names the destination came in time",
        }
    }

    /// Returns what helps, as a sentence; none where a policy has to be changed, or nothing is wrong.
    fn remedy(self) -> Option<&'static str> {
        match self {
            Self::None | Self::NoPolicy | Self::NotAllowed | Self::Address => None,
            Self::InvalidPolicy => Some("Correct the policy: `kubectl describe` says what is wrong with it."),
            Self::OtherName => Some("Send the Host and the TLS server name of the host that is connected to."),
            Self::OtherPath => Some("Use the path of the server's url."),
            Self::UndeclaredServer => Some("Declare the server under `spec.servers`, and call it by exactly that url."),
            Self::ServerTls => Some(
                "Write `tls: Intercept` beside the server's url and create the pod anew, or use http://127.0.0.1:15001/<server>.",
            ),
            Self::NewPodNeeded => Some("Create the pod anew."),
            Self::TlsHandshake => Some("Have the client trust the pod's certificate authority, as docs/interception.md says."),
            Self::HiddenName => Some("Turn off encrypted client hello (ECH) in the client."),
            Self::Direct => Some("Connect to the destination itself."),
            Self::Malformed => Some("Send one clear HTTP or TLS request."),
            Self::Overloaded => Some("Try again with fewer connections."),
            Self::Unreachable | Self::NotResolved => Some("Check the name, the port and the network."),
            Self::Timeout => Some("Send the request at once, or allow the address under `cidrs`."),
        }
    }
}

impl EgressDecision {
    /// Returns the decision in one line, with what to write where it is a denial.
    pub fn message(&self, to: &Destination<'_>) -> String {
        let policy = self.policy.as_deref();
        let by = policy.map(|policy| format!(" by policy {policy}")).unwrap_or_default();
        let head = match self.effect {
            // It may pass, and could not.
            EgressEffect::Allowed if self.reason != EgressReason::None => format!("Allowed{by}, but not made"),
            EgressEffect::Allowed => {
                let name = self.name.as_deref().map(|name| format!(", as {name}")).unwrap_or_default();
                return format!("Allowed{by}{name}.");
            }
            EgressEffect::Denied => format!("Denied{by}"),
            EgressEffect::WouldDeny => format!("Passes in audit mode; otherwise denied{by}"),
        };
        let host = to.name.map(|name| display_name(name).into_owned());
        let address = to.address.map(crate::egress::reached);
        let shown = host.clone().or_else(|| address.map(|address| address.to_string())).unwrap_or_else(|| "it".to_owned());
        let rule = |with_address: bool| {
            let names = host.as_ref().map(|host| format!("domainNames: [{host}]"));
            let range = address.filter(|_| with_address || host.is_none()).map(range).map(|range| format!("cidrs: [{range}]"));
            let ports = Some(format!("ports: [{}]", to.port));
            format!("{{{}}}", [names, range, ports].into_iter().flatten().collect::<Vec<_>>().join(", "))
        };
        let port = to.port;
        match self.reason {
            EgressReason::NoPolicy => {
                format!(
                    "{head}: no policy of the pod has `egress`, so only declared servers can be reached. Write {} under spec.egress.allow.",
                    rule(false)
                )
            }
            EgressReason::NotAllowed => {
                format!("{head}: no rule allows {shown} at port {port}. Write {} under spec.egress.allow.", rule(false))
            }
            EgressReason::Address if policy.is_none() => format!("{head}: {shown} is the pod itself, which no rule opens."),
            EgressReason::Address => {
                let at = address.map(|address| address.to_string()).filter(|_| host.is_some());
                let leads =
                    at.map_or_else(|| "is not a public address".to_owned(), |at| format!("leads to {at}, which is not public"));
                format!(
                    "{head}: {shown} {leads}, and no rule opens it at port {port}. Write {} under spec.egress.allow.",
                    rule(true)
                )
            }
            reason => {
                let remedy = reason.remedy().map(|remedy| format!(" {remedy}")).unwrap_or_default();
                format!("{head}: {}.{remedy}", reason.words())
            }
        }
    }
}

/// Returns the range of one address.
fn range(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{bits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(effect: EgressEffect, reason: EgressReason, policy: Option<&str>, to: Destination<'_>) -> String {
        EgressDecision { effect, reason, policy: policy.map(Into::into), name: None }.message(&to)
    }

    #[test]
    fn a_denial_of_tls_to_a_server_names_its_remedy() {
        for (reason, remedy) in [
            (
                EgressReason::ServerTls,
                "Write `tls: Intercept` beside the server's url and create the pod anew, or use http://127.0.0.1:15001/<server>.",
            ),
            (EgressReason::NewPodNeeded, "Create the pod anew."),
            (EgressReason::TlsHandshake, "Have the client trust the pod's certificate authority, as docs/interception.md says."),
        ] {
            let to = Destination { name: Some("a.com"), in_cluster: false, address: None, port: 443 };
            let expected = format!("Denied: {}. {remedy}", reason.words());
            assert_eq!(said(EgressEffect::Denied, reason, None, to), expected);
        }
    }

    #[test]
    fn a_denial_says_what_to_write() {
        let to = |name: Option<&'static str>, address: Option<&str>| Destination {
            name,
            in_cluster: false,
            address: address.map(|address| address.parse().unwrap()),
            port: 443,
        };
        let denied = |reason, policy, to| said(EgressEffect::Denied, reason, policy, to);
        let policy = Some("agents/p");
        for (text, expected) in [
            (
                denied(EgressReason::NoPolicy, None, to(Some("a.com"), None)),
                "Denied: no policy of the pod has `egress`, so only declared servers can be reached. \
                 Write {domainNames: [a.com], ports: [443]} under spec.egress.allow.",
            ),
            (
                denied(EgressReason::NotAllowed, policy, to(Some("a.com"), Some("1.1.1.1"))),
                "Denied by policy agents/p: no rule allows a.com at port 443. \
                 Write {domainNames: [a.com], ports: [443]} under spec.egress.allow.",
            ),
            (
                denied(EgressReason::NotAllowed, policy, to(None, Some("1.1.1.1"))),
                "Denied by policy agents/p: no rule allows 1.1.1.1 at port 443. \
                 Write {cidrs: [1.1.1.1/32], ports: [443]} under spec.egress.allow.",
            ),
            (
                denied(EgressReason::Address, policy, to(Some("a.com"), Some("::ffff:10.0.0.1"))),
                "Denied by policy agents/p: a.com leads to 10.0.0.1, which is not public, and no rule opens it at port 443. \
                 Write {domainNames: [a.com], cidrs: [10.0.0.1/32], ports: [443]} under spec.egress.allow.",
            ),
            (
                denied(EgressReason::Address, policy, to(None, Some("fd00::1"))),
                "Denied by policy agents/p: fd00::1 is not a public address, and no rule opens it at port 443. \
                 Write {cidrs: [fd00::1/128], ports: [443]} under spec.egress.allow.",
            ),
            (denied(EgressReason::Address, None, to(None, Some("::1"))), "Denied: ::1 is the pod itself, which no rule opens."),
            (
                denied(EgressReason::HiddenName, None, to(Some("a.com"), None)),
                "Denied: the TLS server name is encrypted. Turn off encrypted client hello (ECH) in the client.",
            ),
            (
                said(EgressEffect::WouldDeny, EgressReason::NotAllowed, policy, to(Some("a.com"), None)),
                "Passes in audit mode; otherwise denied by policy agents/p: no rule allows a.com at port 443. \
                 Write {domainNames: [a.com], ports: [443]} under spec.egress.allow.",
            ),
            (said(EgressEffect::Allowed, EgressReason::None, policy, to(Some("a.com"), None)), "Allowed by policy agents/p."),
            (
                said(EgressEffect::Allowed, EgressReason::NotResolved, policy, to(Some("a.com"), None)),
                "Allowed by policy agents/p, but not made: the name cannot be resolved. Check the name, the port and the network.",
            ),
        ] {
            assert_eq!(text, expected);
        }
        for reason in EgressReason::ALL {
            let text = denied(reason, policy, to(Some("a\n.com"), None));
            assert!(!text.contains(char::is_control) && text.ends_with('.'), "{text}");
        }
    }
}
