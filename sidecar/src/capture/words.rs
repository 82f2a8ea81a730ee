//! What a client, the log and `explain` are told about a captured connection.

use toolweir_engine::egress::{EgressDecision, EgressEffect, EgressReason};

/// Says what became of a connection, and what helps.
pub fn words(decision: &EgressDecision, destination: &str) -> String {
    let policy = decision.policy.as_deref().map(|policy| format!(" of the policy {policy}")).unwrap_or_default();
    let why = match decision.reason {
        EgressReason::None => return format!("The connection to {destination} passes: `egress`{policy} allows it."),
        EgressReason::NoPolicy => {
            "no policy of this pod has `egress`, so that nothing leaves but calls to declared servers. Declare the server in `servers`, or \
             allow the host in `egress`"
                .to_owned()
        }
        EgressReason::InvalidPolicy => {
            format!("the policy {} cannot be enforced as it is written. Mend it", decision.policy.as_deref().unwrap_or("of this pod"))
        }
        EgressReason::NotAllowed => format!("`egress`{policy} does not allow it. Add its name and port to `egress.allow`"),
        EgressReason::Address => format!(
            "the address that it leads to is one of this pod, its node or another internal one, and no `cidrs` in `egress`{policy} allow it. \
             Add the range to `cidrs` of the rule"
        ),
        EgressReason::OtherName => {
            "the names that it gives (Host, TLS server name, CONNECT) or their ports differ from each other or from where it goes".to_owned()
        }
        EgressReason::OtherPath => {
            "a declared MCP server is on that host, and this is not its path. Use the server's URL exactly as the policy has it".to_owned()
        }
        EgressReason::UndeclaredServer => {
            "it leads to an MCP server by a way that no policy declares. Declare its URL in `servers`, and use that URL".to_owned()
        }
        EgressReason::ServerTls => {
            "a declared MCP server is there, and its calls cannot be seen through TLS. Use the server's URL at the sidecar".to_owned()
        }
        EgressReason::HiddenName => "its TLS server name may be hidden (encrypted client hello). Turn that off in the client".to_owned(),
        EgressReason::Direct => "the capture port is not to be called itself".to_owned(),
        EgressReason::Malformed => "its first bytes cannot be read".to_owned(),
        EgressReason::Overloaded => "the sidecar has no room for another connection. Try again in a moment".to_owned(),
        EgressReason::Unreachable => "it cannot be connected to".to_owned(),
        EgressReason::NotResolved => "its name cannot be resolved".to_owned(),
        EgressReason::Timeout => "nothing came in time that says where it leads".to_owned(),
    };
    match decision.effect {
        EgressEffect::Allowed => format!("The connection to {destination} may pass, but {why}."),
        EgressEffect::WouldDeny => {
            format!("The connection to {destination} passes, but only since the policy is in audit mode: {why}.")
        }
        EgressEffect::Denied => format!("Toolweir denies the connection to {destination}: {why}."),
    }
}
