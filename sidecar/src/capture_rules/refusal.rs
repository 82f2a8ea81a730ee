//! What a refusal of the kernel means, and what helps.

use std::io;

use super::nfmessages::NfStep;

const NOT_PERMITTED: i32 = 1;
const NO_ENTRY: i32 = 2;
const INVALID_ARGUMENT: i32 = 22;
const PROTOCOL_NOT_SUPPORTED: i32 = 93;
const OPERATION_NOT_SUPPORTED: i32 = 95;
const FAMILY_NOT_SUPPORTED: i32 = 97;

/// Why the rules were not written. Nothing of them was, then.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesRefused {
    #[error(
        "may not write rules: this container needs the capability NET_ADMIN (securityContext.capabilities.add: [NET_ADMIN], as user 0)"
    )]
    NoNetAdmin,
    #[error(
        "this kernel cannot write {what}: it has no {missing}. Load the module {module} on the node, or use a kernel with {option}; without it, capture cannot be enabled"
    )]
    Missing { what: String, missing: String, module: &'static str, option: &'static str },
    #[error("the kernel refuses {what}: {error}")]
    Refused { what: String, error: io::Error },
    #[error("the kernel did not answer to {what}: the rules may not be in force")]
    NoAnswer { what: String },
    #[error("no netlink socket for the rules: {0}")]
    Socket(#[from] io::Error),
}

/// The kernel's module and option of something that a step needs.
fn part(need: &str) -> (&'static str, &'static str) {
    match need {
        "nat chain" => ("nft_chain_nat", "CONFIG_NFT_NAT"),
        "ct" => ("nft_ct", "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK"),
        "fib" => ("nft_fib_inet", "CONFIG_NFT_FIB_INET"),
        "redir" => ("nft_redir", "CONFIG_NFT_REDIR"),
        "reject" => ("nft_reject_inet", "CONFIG_NFT_REJECT_INET"),
        "counter" => ("nft_counter", "CONFIG_NFT_COUNTER"),
        _ => ("nf_tables", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"),
    }
}

/// What of these a kernel lacks most likely: something that not every kernel with `nf_tables` has.
fn suspect<'a>(needs: &[&'a str]) -> Option<&'a str> {
    needs.iter().find(|need| part(need).0 != "nf_tables").or(needs.first()).copied()
}

/// What it means that no netlink socket for netfilter can be opened.
pub(super) fn of_socket(error: io::Error) -> RulesRefused {
    match error.raw_os_error() {
        Some(PROTOCOL_NOT_SUPPORTED | FAMILY_NOT_SUPPORTED) => RulesRefused::Missing {
            what: "any rule".to_owned(),
            missing: "netlink for netfilter".to_owned(),
            module: "nf_tables",
            option: "CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES",
        },
        _ => RulesRefused::Socket(error),
    }
}

/// What it means that the kernel answered with this error to a step, and pointed to this expression.
pub(super) fn of_step(step: Option<&NfStep>, code: i32, expression: Option<&str>) -> RulesRefused {
    let what = step.map_or("the transaction", |step| step.what.as_str()).to_owned();
    let needs = step.map_or(&[][..], |step| step.needs.as_slice());
    let missing = |need: &str| {
        let (module, option) = part(need);
        let missing = match need {
            "meta" => "owner match (meta skuid)".to_owned(),
            "table" => "nf_tables".to_owned(),
            other if other == "nat chain" || other == "set" => format!("{other}s"),
            other => format!("expression {other}"),
        };
        RulesRefused::Missing { what: what.clone(), missing, module, option }
    };
    match (code, expression) {
        (NOT_PERMITTED, _) => RulesRefused::NoNetAdmin,
        // Invalid: an older kernel does not know a value of an expression that it has.
        (NO_ENTRY | INVALID_ARGUMENT | OPERATION_NOT_SUPPORTED | PROTOCOL_NOT_SUPPORTED | FAMILY_NOT_SUPPORTED, Some(name)) => {
            missing(name)
        }
        (NO_ENTRY | OPERATION_NOT_SUPPORTED | PROTOCOL_NOT_SUPPORTED | FAMILY_NOT_SUPPORTED, None) => {
            missing(suspect(needs).unwrap_or("table"))
        }
        _ => RulesRefused::Refused { what, error: io::Error::from_raw_os_error(code) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(what: &str, needs: &[&'static str]) -> NfStep {
        NfStep { what: what.to_owned(), needs: needs.to_vec(), at: 0 }
    }

    #[test]
    fn no_capability() {
        let text = of_step(None, 1, None).to_string();
        assert!(text.contains("NET_ADMIN") && text.contains("capabilities.add"), "{text}");
    }

    #[test]
    fn the_expression_that_the_kernel_points_to_is_named() {
        let rule = step("the rule \"loopback\" of the chain capture", &["fib", "cmp", "counter", "immediate"]);
        let text = of_step(Some(&rule), 2, Some("fib")).to_string();
        assert!(text.contains("the rule \"loopback\"") && text.contains("CONFIG_NFT_FIB_INET"), "{text}");
    }

    #[test]
    fn without_a_pointer_the_rarest_part_is_suspected() {
        for (needs, option) in [
            (&["meta", "cmp", "counter", "immediate", "redir"][..], "CONFIG_NFT_COUNTER"),
            (&["meta", "cmp", "redir"], "CONFIG_NFT_REDIR"),
            (&["meta", "cmp", "reject"], "CONFIG_NFT_REJECT_INET"),
            (&["nat chain"], "CONFIG_NFT_NAT"),
            (&["table"], "CONFIG_NF_TABLES_INET"),
            (&["set"], "CONFIG_NF_TABLES"),
        ] {
            let text = of_step(Some(&step("it", needs)), 95, None).to_string();
            assert!(text.contains(option), "{text}");
        }
    }

    #[test]
    fn owner_match_is_called_by_its_name() {
        let text = of_step(Some(&step("it", &["meta"])), 95, Some("meta")).to_string();
        assert!(text.contains("owner match") && text.contains("nf_tables"), "{text}");
    }

    #[test]
    fn other_errors_are_the_kernels_words() {
        let text = of_step(Some(&step("the set ports", &["set"])), 12, None).to_string();
        assert_eq!(text, "the kernel refuses the set ports: Cannot allocate memory (os error 12)");
    }

    #[test]
    fn a_kernel_without_netfilter() {
        let text = of_socket(io::Error::from_raw_os_error(93)).to_string();
        assert!(text.contains("CONFIG_NETFILTER_NETLINK"), "{text}");
        assert!(of_socket(io::Error::from_raw_os_error(24)).to_string().starts_with("no netlink socket"));
    }
}
