//! From a snapshot to policies in force. It always gives some: what cannot be read denies.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::value::RawValue;
use toolweir_crds::{
    API_VERSION, FieldError, MCPClusterPolicySpec, MCPPolicySpec, Metadata, ToolPins, stream::PolicyProblem, text::one_line,
};
use toolweir_engine::{CompileOptions, Engine, Memory, Policy, PolicyId, Severity};

use super::wire;
use crate::{
    in_force::{InForce, PolicyView},
    server_metrics::ServerMetrics,
};

/// The name of a policy whose own cannot be read.
pub const UNNAMED: &str = "_unreadable";

/// A policy as the operator sends it. A field beside these could loosen or tighten it, so it is not passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sent<'a> {
    api_version: Option<String>,
    kind: String,
    metadata: Metadata,
    #[serde(borrow)]
    spec: &'a RawValue,
}

/// The parts that name a policy, whatever else it holds.
#[derive(Deserialize)]
struct PolicyHead {
    kind: Option<String>,
    metadata: Metadata,
}

/// The policies of a snapshot, compiled, with what is wrong with them: one problem for each policy that denies.
pub fn in_force(
    snapshot: &wire::RawSnapshot,
    counters: &Arc<Memory>,
    options: &CompileOptions,
    metrics: &ServerMetrics,
) -> InForce {
    let policies: Vec<Policy> = snapshot.policies.iter().map(|raw| read(raw)).collect();
    let (engine, found) = Engine::compile(&policies, Arc::clone(counters), options);
    let (pins, unreadable) = read_pins(&snapshot.pins);
    let engine = engine.with_pins(&pins);
    let mut problems: BTreeMap<String, String> = BTreeMap::new();
    for problem in found {
        let policy = policies.get(problem.policy).map(|policy| policy.id.to_string()).unwrap_or_default();
        match problem.severity {
            Severity::Invalid | Severity::Closed => {
                problems.entry(policy).or_insert_with(|| problem.error.to_string());
            }
            Severity::Conflict | Severity::NoUrl | Severity::Doubt => {
                tracing::warn!(policy, error = %problem.error, "policy");
            }
        }
    }
    let views = policies.iter().cloned().map(PolicyView::from).collect();
    let (mut in_force, bad) = InForce::new(engine, views, pins, snapshot.version.clone(), metrics);
    for bad in bad {
        for policy in &policies {
            let gives = |server: &toolweir_crds::Server| server.name == bad.server && server.url.as_ref() == Some(&bad.url);
            if let Some(at) = policy.spec.servers.iter().position(gives) {
                problems.entry(policy.id.to_string()).or_insert_with(|| format!("spec.servers[{at}].url: {}", bad.why));
            }
        }
    }
    for UnreadablePins { name, why } in unreadable {
        tracing::error!(pins = name, why, "pins that cannot be read hold for nothing, so that no tool is known to be as it was");
        for policy in &policies {
            let names = |server: &toolweir_crds::Server| {
                server.pins.as_ref().is_some_and(|pins| pins.full_name(&policy.id.namespace) == name)
            };
            if let Some(at) = policy.spec.servers.iter().position(names) {
                problems.entry(policy.id.to_string()).or_insert_with(|| format!("spec.servers[{at}].pins: {name} {why}"));
            }
        }
    }
    in_force.shared_store = options.shared_store;
    in_force.problems =
        problems.into_iter().map(|(policy, message)| PolicyProblem { policy, message: one_line(&message, usize::MAX) }).collect();
    in_force
}

/// Pins of which nothing can be used.
struct UnreadablePins {
    /// Namespace and name.
    name: String,
    why: String,
}

/// Reads pins. Those that cannot be read are as if they were not there, and policies deny what they would hold.
fn read_pins(raw: &[wire::RawDocument]) -> (Vec<ToolPins>, Vec<UnreadablePins>) {
    #[derive(Deserialize)]
    struct PinsHead {
        namespace: String,
        name: String,
    }
    let (mut pins, mut unreadable) = (Vec::new(), Vec::new());
    for raw in raw {
        match serde_json::from_str::<ToolPins>(raw.get()) {
            Ok(read) => match toolweir_pins::check_texts(&read).first() {
                None => pins.push(read),
                Some(wrong) => {
                    unreadable.push(UnreadablePins { name: read.to_string(), why: format!("cannot be used: {wrong}") });
                }
            },
            Err(error) => {
                let name = serde_json::from_str::<PinsHead>(raw.get())
                    .map_or_else(|_| UNNAMED.to_owned(), |PinsHead { namespace, name }| format!("{namespace}/{name}"));
                unreadable.push(UnreadablePins { name, why: unreadable_text(&error) });
            }
        }
    }
    (pins, unreadable)
}

/// Returns what is wrong with a document, in one line.
fn unreadable_text(error: &serde_json::Error) -> String {
    // The place in a text that nobody sees helps nobody.
    let text = error.to_string();
    format!("cannot be read: {}", one_line(text.split(" at line ").next().unwrap_or_default(), 400))
}

/// Reads a policy. One that cannot be read denies everything on every server.
fn read(raw: &RawValue) -> Policy {
    policy(raw).unwrap_or_else(|error| {
        let id = match serde_json::from_str::<PolicyHead>(raw.get()) {
            Ok(PolicyHead { kind, metadata }) => {
                let cluster = kind.as_deref() == Some("MCPClusterPolicy");
                PolicyId { cluster, namespace: metadata.namespace.unwrap_or_default(), name: metadata.name }
            }
            Err(_) => PolicyId { cluster: true, namespace: String::new(), name: UNNAMED.to_owned() },
        };
        Policy::unreadable(id, error)
    })
}

fn policy(raw: &RawValue) -> Result<Policy, FieldError> {
    let failed = |path: &str, error: serde_json::Error| FieldError { path: path.to_owned(), message: unreadable_text(&error) };
    let unknown = |path: &str, text: &str| FieldError {
        path: path.to_owned(),
        message: format!("`{}` is not known to this sidecar", text.escape_debug()),
    };
    let sent: Sent<'_> = serde_json::from_str(raw.get()).map_err(|error| failed("policy", error))?;
    if let Some(version) = sent.api_version.filter(|version| version != API_VERSION) {
        return Err(unknown("apiVersion", &version));
    }
    let (cluster, spec): (bool, MCPPolicySpec) = match sent.kind.as_str() {
        "MCPPolicy" => (false, serde_json::from_str(sent.spec.get()).map_err(|error| failed("spec", error))?),
        "MCPClusterPolicy" => {
            let spec: MCPClusterPolicySpec = serde_json::from_str(sent.spec.get()).map_err(|error| failed("spec", error))?;
            (true, spec.into())
        }
        kind => return Err(unknown("kind", kind)),
    };
    let Metadata { name, namespace, creation_timestamp, uid, generation } = sent.metadata;
    let id = PolicyId { cluster, namespace: namespace.unwrap_or_default(), name };
    Ok(Policy { id, created: creation_timestamp, version: uid.zip(generation), spec, unreadable: None })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use toolweir_engine::{Call, Operation, Reason, Timestamp};

    use super::*;
    use crate::metrics::SidecarMetrics;

    fn open(name: &str, server: &str, url: &str) -> Value {
        let server = json!({"name": server, "url": url, "defaultAction": "Allow"});
        json!({"kind": "MCPPolicy", "metadata": {"name": name, "namespace": "agents"}, "spec": {"servers": [server]}})
    }

    fn enforce(policies: &[Value]) -> InForce {
        let snapshot = json!({"version": "v", "policies": policies}).to_string();
        let snapshot = serde_json::from_str(&snapshot).unwrap();
        in_force(&snapshot, &Memory::new(10), &CompileOptions::default(), &SidecarMetrics::new().unwrap().servers)
    }

    fn reason(in_force: &InForce, server: &str) -> Option<Reason> {
        let call = Call { server, operation: Operation::tool("pay"), arguments: None, session: "", seen: None };
        in_force.engine.decide(&call, Timestamp::default()).denial().map(|denial| denial.reason)
    }

    #[test]
    fn an_empty_snapshot_denies_everything() {
        let in_force = enforce(&[]);
        assert_eq!(reason(&in_force, "bank"), Some(Reason::NoPolicy));
        assert!(in_force.problems.is_empty() && in_force.version == "v");
    }

    #[test]
    fn pins_that_cannot_be_read_verify_nothing_and_the_rest_of_the_snapshot_holds() {
        let mut pinned = open("pinned", "bank", "http://bank/mcp");
        pinned["spec"]["servers"][0]["pins"] = json!({"name": "files", "onNew": "Allow"});
        let other = open("other", "shop", "http://shop/mcp");
        for (spec, reads, problem) in [
            (json!({"server": "bank"}), None, None),
            (
                json!({"server": "bank", "signature": "x"}),
                Some(Reason::PinUnverified),
                Some("spec.servers[0].pins: agents/files cannot be read: unknown field `signature`"),
            ),
        ] {
            let pins = json!([{"namespace": "agents", "name": "files", "spec": spec}]);
            let snapshot = json!({"version": "v", "policies": [pinned, other], "pins": pins}).to_string();
            let snapshot = serde_json::from_str(&snapshot).unwrap();
            let metrics = SidecarMetrics::new().unwrap();
            let in_force = in_force(&snapshot, &Memory::new(10), &CompileOptions::default(), &metrics.servers);
            assert_eq!((reason(&in_force, "bank"), reason(&in_force, "shop")), (reads, None));
            let told: Vec<(&str, bool)> =
                in_force.problems.iter().map(|told| (&*told.policy, told.message.starts_with(problem.unwrap_or("?")))).collect();
            assert_eq!(told, problem.map(|_| ("agents/pinned", true)).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_policy_that_cannot_be_read_denies_everything_and_is_told() {
        let good = open("good", "bank", "http://bank/mcp");
        assert_eq!(reason(&enforce(std::slice::from_ref(&good)), "bank"), None);
        let with = |pointer: &str, value: Value| {
            let mut policy = open("newer", "shop", "http://shop/mcp");
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            policy.pointer_mut(parent).unwrap()[key] = value;
            policy
        };
        for (bad, name, why) in [
            (with("/spec/servers/0/quota", json!(1)), "agents/newer", "spec: cannot be read: unknown field `quota`"),
            (with("/spec/mode", json!("Warn")), "agents/newer", "spec: cannot be read: unknown variant `Warn`"),
            (with("/spec/servers", json!(5)), "agents/newer", "spec: cannot be read: invalid type"),
            (with("/exceptions", json!([])), "agents/newer", "policy: cannot be read: unknown field `exceptions`"),
            (with("/kind", json!("MCPGroupPolicy")), "agents/newer", "kind: `MCPGroupPolicy` is not known to this sidecar"),
            (with("/apiVersion", json!("toolweir.dev/v2")), "agents/newer", "apiVersion: `toolweir.dev/v2` is not known"),
            (with("/spec", Value::Null), "agents/newer", "spec: cannot be read"),
            (json!({"kind": "MCPClusterPolicy", "metadata": {"name": "g"}, "spec": {"x": 1}}), "g", "spec: cannot be read"),
            (with("/metadata/name", json!(5)), UNNAMED, "policy: cannot be read: invalid type"),
            (json!(5), UNNAMED, "policy: cannot be read"),
            (with("/spec/servers/0/a\nb", json!(1)), "agents/newer", "unknown field `a b`"),
        ] {
            let in_force = enforce(&[bad.clone(), good.clone()]);
            assert_eq!(reason(&in_force, "bank"), Some(Reason::InvalidPolicy), "{bad}");
            assert!(reason(&in_force, "shop").is_some(), "{bad}");
            assert_eq!(in_force.problems.len(), 1, "{bad}");
            let problem = &in_force.problems[0];
            assert!(problem.policy == name && problem.message.contains(why), "{bad}: {problem:?}");
            assert!(!problem.message.contains(char::is_control), "{problem:?}");
        }
    }

    #[test]
    fn a_policy_that_does_not_compile_denies_its_servers_alone() {
        let bad = json!({"kind": "MCPPolicy", "metadata": {"name": "bad", "namespace": "agents"}, "spec": {"servers": [
            {"name": "shop", "url": "http://shop/mcp", "tools": [
                {"name": "a\\b"}, {"name": "pay", "validations": [{"expression": "args."}]}]}]}});
        let in_force = enforce(&[open("good", "bank", "http://bank/mcp"), bad]);
        assert_eq!((reason(&in_force, "bank"), reason(&in_force, "shop")), (None, Some(Reason::InvalidPolicy)));
        // Told once, by what denials name.
        assert_eq!(in_force.problems.len(), 1);
        assert!(in_force.problems[0].message.starts_with("spec.servers[0].tools[0].name: "), "{:?}", in_force.problems);
    }

    #[test]
    fn a_url_that_cannot_be_connected_to_closes_its_server_alone() {
        // The bounds let these pass.
        for bad in ["http://shop:port/mcp", "http://shop:65536/mcp", "http://[shop/mcp"] {
            closes_its_server_alone(bad);
        }
    }

    fn closes_its_server_alone(bad: &str) {
        let in_force = enforce(&[open("good", "bank", "http://bank/mcp"), open("bad", "shop", bad)]);
        let url = |name: &str| in_force.server(name).unwrap().url.clone();
        assert_eq!((url("bank").map(|url| url.to_string()), url("shop")), (Some("http://bank/mcp".to_owned()), None));
        assert_eq!(in_force.problems.len(), 1, "{:?}", in_force.problems);
        let problem = &in_force.problems[0];
        assert!(problem.policy == "agents/bad" && problem.message.starts_with(&format!("spec.servers[0].url: `{bad}`")));
        assert_eq!(reason(&in_force, "bank"), None);
    }

    #[test]
    fn two_of_one_name_are_told_once() {
        let in_force = enforce(&[json!(1), json!(2), open("good", "bank", "http://bank/mcp")]);
        assert_eq!(reason(&in_force, "bank"), Some(Reason::InvalidPolicy));
        assert_eq!(in_force.problems.len(), 1);
    }
}
