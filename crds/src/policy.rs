//! The types of a policy, as a user writes them.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    bounds,
    credential::Credential,
    egress::Egress,
    entry::{Action, EntryView, Prompt, Resource, ServerRequest, Tool},
    not_null::not_null,
    operation::OperationKind,
    tool_pins::ServerPins,
};

/// What the agents that `podSelector` names may call, and how often. It governs pods of its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource),
    kube(
        group = "toolweir.dev",
        version = "v1alpha1",
        kind = "MCPPolicy",
        doc = "What agents may call, and how often: one policy of a namespace.",
        plural = "mcppolicies",
        shortname = "mcpp",
        category = "toolweir",
        namespaced,
        status = "crate::status::PolicyStatus",
        label("gateway.networking.k8s.io/policy", "Direct"),
        printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode"}"#,
        printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
        printcolumn = r#"{"name": "Programmed", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].status"}"#,
        printcolumn = r#"{"name": "Sidecars", "type": "string", "jsonPath": ".status.sidecars", "description": "Pods that enforce it, of pods that it governs"}"#,
        printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.egress) || (has(self.servers) && self.servers.size() > 0)",
    "message": "has neither servers nor egress; write `servers`, `egress` or both",
}]))]
pub struct MCPPolicySpec {
    /// The agents it governs; empty selects every pod of the namespace.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub pod_selector: LabelSelector,
    /// Whether a denial turns the call away or is only counted and logged.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of a call with a limit that is counted across pods while the shared store does not answer.
    #[serde(default, skip_serializing_if = "OnStoreFailure::is_default")]
    pub on_store_failure: OnStoreFailure,
    /// The MCP servers that this policy has a say in. No other policy can loosen what one says. May be left out beside `egress`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::SERVERS),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = [
                {
                    "rule": "self.all(server, server.name != '*')",
                    "message": "`*` is for an MCPClusterPolicy; name the server",
                },
                {
                    "rule": "self.all(server, !has(server.pins) || !has(server.pins.namespace))",
                    "message": "the pins of an MCPPolicy are in its own namespace; remove `namespace`",
                },
            ]
        )
    )]
    pub servers: Vec<Server>,
    /// Where else pods with captured connections may connect to. A policy without it has no say in that; where no policy of a pod has
    /// it, nothing but declared servers can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// The platform team's guardrail: the same as [`MCPPolicySpec`] for pods of many namespaces. A server name of `*`
/// means every server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource),
    kube(
        group = "toolweir.dev",
        version = "v1alpha1",
        kind = "MCPClusterPolicy",
        doc = "What agents of many namespaces may call, and how often: the guardrail of the platform team.",
        plural = "mcpclusterpolicies",
        shortname = "mcpcp",
        category = "toolweir",
        status = "crate::status::PolicyStatus",
        label("gateway.networking.k8s.io/policy", "Inherited"),
        printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode"}"#,
        printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
        printcolumn = r#"{"name": "Programmed", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].status"}"#,
        printcolumn = r#"{"name": "Sidecars", "type": "string", "jsonPath": ".status.sidecars", "description": "Pods that enforce it, of pods that it governs"}"#,
        printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.egress) || (has(self.servers) && self.servers.size() > 0)",
    "message": "has neither servers nor egress; write `servers`, `egress` or both",
}]))]
pub struct MCPClusterPolicySpec {
    /// The namespaces whose pods it governs; empty selects every namespace.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub namespace_selector: LabelSelector,
    /// The agents it governs; empty selects every pod of those namespaces.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub pod_selector: LabelSelector,
    /// Whether a denial turns the call away or is only counted and logged.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of a call with a limit that is counted across pods while the shared store does not answer.
    #[serde(default, skip_serializing_if = "OnStoreFailure::is_default")]
    pub on_store_failure: OnStoreFailure,
    /// The MCP servers that this policy has a say in; the name `*` means every server. May be left out beside `egress`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::SERVERS),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = [{
                "rule": "self.all(server, !has(server.pins) || has(server.pins.namespace))",
                "message": "an MCPClusterPolicy has no namespace; write that of the pins beside their name",
            }]
        )
    )]
    pub servers: Vec<Server>,
    /// Where else pods with captured connections may connect to. A policy without it has no say in that; where no policy of a pod has
    /// it, nothing but declared servers can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

impl MCPPolicySpec {
    /// Returns whether a limit or a `maxConcurrent` counts calls of more than one pod together, which needs a shared store.
    pub fn counts_across_pods(&self) -> bool {
        self.servers.iter().flat_map(Server::all_entries).any(|entry| {
            entry.limits.iter().any(|limit| limit.scope.is_shared())
                || (entry.max_concurrent.is_some() && entry.max_concurrent_scope.is_shared())
        })
    }
}

impl From<MCPClusterPolicySpec> for MCPPolicySpec {
    /// Drops the namespace selector.
    fn from(spec: MCPClusterPolicySpec) -> Self {
        Self {
            pod_selector: spec.pod_selector,
            mode: spec.mode,
            on_store_failure: spec.on_store_failure,
            servers: spec.servers,
            egress: spec.egress,
        }
    }
}

/// A Kubernetes label selector: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "labels of pods, such as {matchLabels: {app: agent}}")]
pub struct LabelSelector {
    /// Labels that must have exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::SELECTOR_REQUIREMENTS))]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

impl LabelSelector {
    /// Returns whether it has no requirement, and so selects everything.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a requirement, such as {key: app, operator: Exists}")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && self.values.size() > 0)",
    "message": "operators In and NotIn take at least one value, Exists and DoesNotExist no values",
}]))]
pub struct LabelSelectorRequirement {
    /// The label's key.
    pub key: String,
    /// How the label's value relates to `values`.
    pub operator: SelectorOperator,
    /// The values of `In` and `NotIn`; empty for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// The operator of a [`LabelSelectorRequirement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// What happens to a call that the policy denies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The call is turned away.
    #[default]
    Enforce,
    /// The call is let through; that it would have been denied is counted and logged.
    Audit,
}

impl Mode {
    /// Returns the mode as policies, metrics and the audit log name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "Enforce",
            Self::Audit => "Audit",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What becomes of a call with a limit that is counted across pods while the shared store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnStoreFailure {
    /// It is denied.
    #[default]
    Deny,
    /// Each pod holds its own calls to `max` divided by the pods that were last known to count together, rounded down, at
    /// least 1. Where that number was never known, it is denied.
    PerPod,
    /// It is let through.
    Allow,
}

impl OnStoreFailure {
    /// Returns whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the name that policies, metrics and the audit log have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::PerPod => "PerPod",
            Self::Allow => "Allow",
        }
    }
}

/// One MCP server and what may be called there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a server, such as {name: github}")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.name != '*' || !has(self.url)",
        "message": "the server `*` is every server and has no url; remove it",
    },
    {
        "rule": "self.name != '*' || !has(self.pins)",
        "message": "pins are of one server, and `*` is every server; write them at a server that you name",
    },
    {
        "rule": "has(self.url) || !has(self.credential)",
        "message": "a credential goes only to a url that the same policy gives; write the url beside it",
    },
    {
        "rule": "has(self.url) || !has(self.tls)",
        "message": "`tls` is for a url that the same policy gives; write the url beside it",
    },
    {
        "rule": "!has(self.tls) || self.tls != 'Intercept' || !has(self.url) || self.url.startsWith('https://')",
        "message": "`tls: Intercept` is for an https:// url; write one, or leave `tls` out: http is governed without it",
    },
    {
        // Brackets, or a last label that is a number: what clients take for an address (WHATWG URL, "ends in a number").
        "rule": "!has(self.tls) || self.tls != 'Intercept' || !has(self.url) || \
                 !self.url.matches('^https://(\\\\[|([^/?:]*[.])?([0-9]+|0[xX][0-9a-fA-F]*)[.]?([/?:]|$))')",
        "message": "`tls: Intercept` is for a host with a name, since no pod's authority vouches for addresses; write the name",
    },
]))]
pub struct Server {
    /// The name under which agents reach it: `http://127.0.0.1:15001/<name>`.
    #[schemars(
        length(min = 1, max = bounds::SERVER_NAME),
        extend("x-kubernetes-validations" = [{
            "rule": "self == '*' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "is not a server name; write 1 to 63 lower case letters, digits and `-`, with a letter or digit first and last",
        }])
    )]
    pub name: String,
    /// Where the server really is; may be left out where another policy of the pod gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = bounds::URL),
        extend("x-kubernetes-validations" = [{
            "rule": "self.startsWith('http://') || self.startsWith('https://')",
            "message": "is not a URL of an MCP server; write http://HOST[:PORT]/PATH or https://...",
        }])
    )]
    pub url: Option<String>,
    /// What the sidecar shows the server, in place of anything that the agent sends as `Authorization`. It goes to `url` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// What becomes of a captured HTTPS connection to `url`. Left out, this policy has no say in that; where no policy says
    /// `Intercept`, or one says `Refuse`, it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Whether the audit log has the arguments of the calls, which may be secret. Left out, this policy has no say in that; they are
    /// written where a policy of the pod says true for the server and none says false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_arguments: Option<bool>,
    /// What the server's tools looked like when a person looked at them, and what becomes of those that look otherwise. Left out, this
    /// policy has no say in that.
    #[serde(default, deserialize_with = "some_pins", skip_serializing_if = "Option::is_none")]
    pub pins: Option<ServerPins>,
    /// The answer for tools that no entry matches.
    #[serde(default = "deny")]
    pub default_action: Action,
    /// The entries. For a tool, the most specific one gives the action; limits, validations and approvals of all that match apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::TOOLS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name", "class"])
    )]
    pub tools: Vec<Tool>,
    /// The entries for prompts. Left out, with no default action for prompts, this policy has no say in them. An empty list is a say.
    #[serde(default, deserialize_with = "some_prompts", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = bounds::PROMPTS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub prompts: Option<Vec<Prompt>>,
    /// The entries for resources. Left out, with no default action for resources, this policy has no say in them. An empty list is a say.
    #[serde(default, deserialize_with = "some_resources", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = bounds::RESOURCES),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uri"])
    )]
    pub resources: Option<Vec<Resource>>,
    /// The entries for what the server may ask of the agent: its model (`sampling`), its user (`elicitation`), its folders (`roots`). Left out,
    /// with no default action for requests, this policy has no say in that. An empty list is a say.
    #[serde(default, deserialize_with = "some_requests", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = bounds::REQUESTS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub requests: Option<Vec<ServerRequest>>,
    /// The answers for prompts, resources, requests and other methods that no entry matches. A kind of these in which no policy of a pod
    /// has a say is denied.
    #[serde(default, skip_serializing_if = "DefaultActions::is_empty")]
    pub default_actions: DefaultActions,
}

fn deny() -> Action {
    Action::Deny
}

fn some_prompts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Prompt>>, D::Error> {
    not_null(deserializer, "`prompts` is null, and would say nothing of prompts; write [] to let none through, or remove it")
}

fn some_resources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Resource>>, D::Error> {
    not_null(deserializer, "`resources` is null, and would say nothing of resources; write [] to let none through, or remove it")
}

fn some_requests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ServerRequest>>, D::Error> {
    not_null(deserializer, "`requests` is null, and would say nothing of requests; write [] to let none through, or remove it")
}

fn some_pins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ServerPins>, D::Error> {
    not_null(deserializer, "`pins` is null, and would pin nothing; write the name of the pins, or remove it")
}

/// The answers for what no entry matches, but tools. A policy that leaves one out, and has no list of the kind, has no say in it; with a
/// list, what is left out is denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "an action for each kind, such as {prompts: Deny}")]
pub struct DefaultActions {
    /// For prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Action>,
    /// For resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Action>,
    /// For what the server may ask of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Action>,
    /// For `logging/setLevel`, and for every method that the sidecar does not know, in both directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Action>,
}

impl DefaultActions {
    /// Returns whether none is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Server {
    /// Returns whether a policy that says this of a server has a say in a kind.
    pub fn has_say(&self, kind: OperationKind) -> bool {
        let Self { prompts, resources, requests, default_actions, .. } = self;
        match kind {
            OperationKind::Tool => true,
            OperationKind::Prompt => prompts.is_some() || default_actions.prompts.is_some(),
            OperationKind::Resource => resources.is_some() || default_actions.resources.is_some(),
            OperationKind::Request => requests.is_some() || default_actions.requests.is_some(),
            OperationKind::Other => default_actions.other.is_some(),
        }
    }

    /// Returns the answer for what no entry of the kind matches.
    pub fn default_action_of(&self, kind: OperationKind) -> Action {
        self.written_default_action_of(kind).unwrap_or_default()
    }

    /// The same, if it is written. That for tools is `Deny` where it is not.
    pub fn written_default_action_of(&self, kind: OperationKind) -> Option<Action> {
        match kind {
            OperationKind::Tool => Some(self.default_action),
            OperationKind::Prompt => self.default_actions.prompts,
            OperationKind::Resource => self.default_actions.resources,
            OperationKind::Request => self.default_actions.requests,
            OperationKind::Other => self.default_actions.other,
        }
    }

    /// Returns the entries of a kind, in their order.
    pub fn entries(&self, kind: OperationKind) -> Vec<EntryView<'_>> {
        match kind {
            OperationKind::Tool => self.tools.iter().map(Tool::view).collect(),
            OperationKind::Prompt => self.prompts.iter().flatten().map(Prompt::view).collect(),
            OperationKind::Resource => self.resources.iter().flatten().map(Resource::view).collect(),
            OperationKind::Request => self.requests.iter().flatten().map(ServerRequest::view).collect(),
            OperationKind::Other => Vec::new(),
        }
    }

    /// Returns the entries of every kind.
    pub fn all_entries(&self) -> impl Iterator<Item = EntryView<'_>> {
        OperationKind::ALL.into_iter().flat_map(|kind| self.entries(kind))
    }
}

/// What becomes of a captured HTTPS connection to `url`: it is refused, or the sidecar opens it and governs the calls in it. Where no
/// policy of the pod says `Intercept`, or one says `Refuse`, it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ServerTls {
    /// It is reset, since the calls in it cannot be seen.
    Refuse,
    /// The sidecar opens it with a certificate of the pod's own authority, which the agent's containers trust, and governs the
    /// calls in it. Needs a pod that is created after the policy.
    Intercept,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_counts_across_pods_where_some_scope_is_wider_than_a_pod() {
        for (tool, expected) in [
            ("limits: [{max: 1, window: minute}]", false),
            ("limits: [{max: 1, window: minute, scope: Session}], maxConcurrent: 1", false),
            ("limits: [{max: 1, window: minute}, {max: 9, window: day, scope: Workload}]", true),
            ("limits: [{max: 9, window: day, scope: Policy}]", true),
            ("maxConcurrent: 1, maxConcurrentScope: Namespace", true),
            ("maxConcurrent: 1, maxConcurrentScope: Pod", false),
        ] {
            let text = format!("{{servers: [{{name: a}}, {{name: s, tools: [{{name: u}}, {{name: t, {tool}}}]}}]}}");
            let spec: MCPPolicySpec = serde_yaml::from_str(&text).unwrap();
            assert_eq!(spec.counts_across_pods(), expected, "{tool}");
        }
    }
}
