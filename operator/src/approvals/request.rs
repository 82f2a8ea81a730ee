//! What a sidecar asks, checked before it becomes an object: whoever has a pod's token may say anything here. Plain functions, no I/O.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use toolweir_crds::{
    EntryApproval,
    approval_request::{ApprovalAgent, ApprovalPolicy, MCPApprovalSpec, ShownValue},
    bounds,
    text::{one_line, shown},
};

use crate::{auth::PodIdentity, index::IncludedPolicy};

/// The longest name of a request: a label of DNS.
const LONGEST_NAME: usize = 63;

/// Returns whether a request may have this name: a label of DNS (RFC 1123).
pub fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Returns whether a policy governs in exactly the state in which it asked.
pub fn governs(policy: &ApprovalPolicy, governing: &[IncludedPolicy]) -> bool {
    let same = |included: &IncludedPolicy| {
        (included.id.namespace.as_str(), included.id.name.as_str()) == (policy.namespace.as_str(), policy.name.as_str())
            && (included.uid.as_str(), included.generation) == (policy.uid.as_str(), policy.generation)
    };
    !policy.uid.is_empty() && governing.iter().any(same)
}

/// Returns a text of a sidecar as one line of at most so many bytes, without what cannot be seen.
pub fn bounded(text: &str, most: usize) -> String {
    let mut line = shown(&one_line(text, most)).into_owned();
    line.truncate(line.floor_char_boundary(most));
    line
}

/// Returns a time as objects have it.
pub fn written(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Returns what an object is to say of a request. Who asks is what the token review says; `governing` are the policies of the pod.
///
/// # Errors
/// Why no object is made, in words for the agent and for people.
pub fn checked(
    asked: &MCPApprovalSpec,
    agent: &PodIdentity,
    governing: &[IncludedPolicy],
    now: Timestamp,
) -> Result<MCPApprovalSpec, String> {
    let wrong =
        |field: &str| format!("the sidecar's request has an invalid {field}; use a sidecar and an operator of the same version");
    if !(1..=bounds::SERVER_NAME).contains(&asked.server.len()) {
        return Err(wrong("server"));
    }
    if !(1..=bounds::ASKED_NAME).contains(&asked.tool.len()) {
        return Err(wrong("tool"));
    }
    let hash = asked.arguments_sha256.as_str();
    if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Err(wrong("argumentsSha256"));
    }
    if !(1..=bounds::ASKING_POLICIES).contains(&asked.policies.len()) {
        return Err(wrong("list of policies"));
    }
    if let Some(policy) = asked.policies.iter().find(|policy| !governs(policy, governing)) {
        let place = if policy.namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", bounded(&policy.namespace, bounds::OBJECT_NAME))
        };
        let name = bounded(&policy.name, bounds::OBJECT_NAME);
        return Err(format!("policy {place}{name} has changed, or does not govern the pod"));
    }
    let requested = asked.requested_at.parse().map_or(now, |requested: Timestamp| requested.min(now));
    let latest = now + EntryApproval::LONGEST_EXPIRY;
    let expires = asked.expires_at.parse::<Timestamp>().map_err(|_| wrong("expiresAt"))?.min(latest);
    if expires <= now {
        return Err("the time for a decision is over by the operator's clock; compare the clocks of the nodes".to_owned());
    }
    let mut policies = asked.policies.clone();
    policies.sort();
    policies.dedup();
    Ok(MCPApprovalSpec {
        server: asked.server.clone(),
        tool: asked.tool.clone(),
        arguments_sha256: asked.arguments_sha256.clone(),
        agent: ApprovalAgent {
            pod: agent.pod.name.clone(),
            pod_uid: agent.uid.clone(),
            service_account: agent.service_account.clone(),
        },
        policies,
        message: bounded(&asked.message, bounds::APPROVAL_MESSAGE),
        shown: asked.shown.iter().take(bounds::APPROVAL_SHOWN).map(shown_value).collect(),
        requested_at: written(requested),
        expires_at: written(expires),
        usable_seconds: asked.usable_seconds.clamp(1, longest_use()),
    })
}

fn longest_use() -> u64 {
    const LONGEST: Duration = EntryApproval::LONGEST_EXPIRY;
    LONGEST.as_secs()
}

fn shown_value(value: &ShownValue) -> ShownValue {
    let is_cut = value.value.len() > bounds::SHOWN_VALUE;
    ShownValue {
        expression: bounded(&value.expression, bounds::SHOWN_EXPRESSION),
        value: bounded(&value.value, bounds::SHOWN_VALUE),
        cut: value.cut || is_cut,
    }
}
