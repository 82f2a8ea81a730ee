//! `toolweir-sidecar capture`: writes the rules of capture into the network namespace of the pod, and proves them.
//!
//! ```text
//!  arguments, resolvers ─> rules (what is written) ─> nfmessages (bytes) ─> netlink (one transaction) ─> kernel
//!                                                      refusal (what the kernel lacks) <───────────────────┘
//!  proof: connections to addresses that nobody has
//! ```

mod arguments;
mod netlink;
mod nfmessages;
mod proof;
mod refusal;
mod resolvers;
mod rules;

pub use arguments::CaptureRulesArgs;

use anyhow::Context;

use rules::CaptureRules;

/// Writes the rules in one transaction and proves them. Rules that are there already are replaced; nothing is taken away if this
/// fails.
pub fn capture(arguments: &CaptureRulesArgs) -> anyhow::Result<()> {
    arguments.check()?;
    let path = &arguments.resolv_conf;
    let text = std::fs::read_to_string(path).with_context(|| format!("--resolv-conf {}", path.display()))?;
    let resolvers = resolvers::parse(&text);
    for line in &resolvers.unusable {
        tracing::warn!("{}: {line:?} is not an IP address that can be asked; its DNS stays closed", path.display());
    }
    if resolvers.v4.is_empty() && resolvers.v6.is_empty() {
        tracing::warn!("{} names no resolver outside the pod: DNS stays closed", path.display());
    }
    let set = CaptureRules {
        uid: arguments.uid,
        gid: arguments.gid,
        capture: arguments.capture_port,
        ports: arguments.ports(),
        resolvers4: resolvers.v4,
        resolvers6: resolvers.v6,
    };
    let rules = rules::write(&set, None);
    let mut netlink = netlink::Netlink::open()?;
    netlink.commit(&rules)?;
    // The proof listens on the capture port, where the rules let the sidecar's user alone answer.
    netlink.commit(&rules::write(&set, Some(rustix::process::geteuid().as_raw())))?;
    let proof = proof::prove(set.capture);
    netlink.commit(&rules)?;
    let proof = proof?;
    tracing::info!(
        "capture: the rules for uid {} and gid {} are written and proven; IPv4: {}; IPv6: {}",
        set.uid,
        set.gid,
        proof.v4,
        proof.v6
    );
    Ok(())
}
