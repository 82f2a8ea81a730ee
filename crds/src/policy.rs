//! The types of a policy, as a user writes them.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use crate::{
    approval::EntryApproval, bounds, credential::Credential, egress::Egress, operation::OperationKind, request_name::RequestName,
    tool_class::ToolClass, tool_pins::ServerPins, window::Window,
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = bounds::PROMPTS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub prompts: Option<Vec<Prompt>>,
    /// The entries for resources. Left out, with no default action for resources, this policy has no say in them. An empty list is a say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = bounds::RESOURCES),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uri"])
    )]
    pub resources: Option<Vec<Resource>>,
    /// The entries for what the server may ask of the agent: its model (`sampling`), its user (`elicitation`), its folders (`roots`). Left out,
    /// with no default action for requests, this policy has no say in that. An empty list is a say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// The answers for what no entry matches, but tools. A policy that leaves one out, and has no list of the kind, has no say in it; with a
/// list, what is left out is denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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

/// An entry of any kind, as it is written.
#[derive(Clone, Copy, Debug)]
pub struct EntryView<'a> {
    /// The name, URI or glob; empty for a class.
    pub name: &'a str,
    /// The class of tools, in place of a name.
    pub class: Option<ToolClass>,
    /// The action.
    pub action: Option<Action>,
    /// What a denied caller is told.
    pub reason: Option<&'a str>,
    /// The limits.
    pub limits: &'a [Limit],
    /// The conditions.
    pub validations: &'a [Validation],
    /// The approval.
    pub approval: Option<&'a EntryApproval>,
    /// How many may be under way at once.
    pub max_concurrent: Option<i64>,
    /// What that counts together.
    pub max_concurrent_scope: Scope,
    /// The largest result, in bytes.
    pub max_result_bytes: Option<i64>,
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
        let given = match kind {
            OperationKind::Tool => return self.default_action,
            OperationKind::Prompt => self.default_actions.prompts,
            OperationKind::Resource => self.default_actions.resources,
            OperationKind::Request => self.default_actions.requests,
            OperationKind::Other => self.default_actions.other,
        };
        given.unwrap_or_default()
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

/// Whether a tool may be called, a prompt used, a resource read, or a request put to the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It may, within the limits, validations and approvals that match.
    Allow,
    /// It may not. What is left out is denied.
    #[default]
    Deny,
}

/// What holds for one tool, for those that a glob matches, or for those of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(self.name == '') != (self.class == '')",
        "message": "an entry has a name or a class; write one of the two",
    },
    {
        "rule": "self.class != 'Unknown' || (has(self.action) && self.action == 'Deny')",
        "message": "the class Unknown allows nothing; write `action: Deny`, or name the tools",
    },
    {
        "rule": "!has(self.approval) || !has(self.action) || self.action != 'Deny'",
        "message": "nobody is asked about what `action: Deny` denies; remove `approval` or `action`",
    },
]))]
pub struct Tool {
    /// The tool's exact name, or a glob in which `*` stands for any characters. A `*` that is part of the name is written `\*`, and
    /// a backslash `\\`. What the entry allows it tells apart by case; what it denies, its limits, validations, approval and
    /// maxConcurrent hold for names in any case. Empty where the entry is for a class.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = bounds::TOOL_NAME), extend("default" = ""))]
    pub name: String,
    /// In place of a name: the class of the tools, by the definitions that their server listed last. The class of a tool that was not
    /// listed, or whose server says that its list changed, is not known: what the entry denies, its limits, validations,
    /// approval and maxConcurrent hold for such a tool too; it allows none.
    #[serde(default, with = "optional_class", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("enum" = ["", "Read", "Write", "Execute", "Destructive", "Financial", "Unknown"], "default" = ""))]
    pub class: Option<ToolClass>,
    /// Left out, an entry that names its tools allows them. The entry `*` names none: left out there, the server's
    /// `defaultAction` holds, so that `*` can carry limits for every tool without opening one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What a denied caller is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::TEXT))]
    pub reason: Option<String>,
    /// How often it may be called. All limits of all matching entries are taken together or not at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::LIMITS))]
    pub limits: Vec<Limit>,
    /// Conditions on a call; one that is false or fails denies it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::VALIDATIONS))]
    pub validations: Vec<Validation>,
    /// Calls go through only once a person has approved them. Null is refused: it would ask about none.
    #[serde(default, deserialize_with = "some_approval", skip_serializing_if = "Option::is_none")]
    pub approval: Option<EntryApproval>,
    /// How many calls may be under way at once, of all pods that `maxConcurrentScope` counts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::CONCURRENT))]
    pub max_concurrent: Option<i64>,
    /// What `maxConcurrent` counts together: `Pod`, or a scope of several pods, which needs a shared store.
    #[serde(default, skip_serializing_if = "Scope::is_default")]
    pub max_concurrent_scope: Scope,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the call counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    pub max_result_bytes: Option<i64>,
}

impl Tool {
    fn view(&self) -> EntryView<'_> {
        EntryView {
            name: &self.name,
            class: self.class,
            action: self.action,
            reason: self.reason.as_deref(),
            limits: &self.limits,
            validations: &self.validations,
            approval: self.approval.as_ref(),
            max_concurrent: self.max_concurrent,
            max_concurrent_scope: self.max_concurrent_scope,
            max_result_bytes: self.max_result_bytes,
        }
    }
}

/// Defines what holds for entries of another kind than tools: a field that says what they match, and what all entries have.
macro_rules! entry {
    (
        $(#[$doc:meta])* $entry:ident,
        $(#[$name_doc:meta])* $name:ident: $text:ty = $view:expr,
        $($(#[$more_doc:meta])* $more:ident: $more_type:ty)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        #[schemars(extend("x-kubernetes-validations" = [{
            "rule": "!has(self.approval) || !has(self.action) || self.action != 'Deny'",
            "message": "nobody is asked about what `action: Deny` denies; remove `approval` or `action`",
        }]))]
        pub struct $entry {
            $(#[$name_doc])*
            pub $name: $text,
            /// Left out, an entry that names something allows it. The entry `*` names nothing: left out there, the default action holds.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub action: Option<Action>,
            /// What a denied caller is told.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = bounds::TEXT))]
            pub reason: Option<String>,
            /// How often it may be used. All limits of all matching entries are taken together or not at all.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = bounds::LIMITS))]
            pub limits: Vec<Limit>,
            /// Conditions; one that is false or fails denies.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = bounds::VALIDATIONS))]
            pub validations: Vec<Validation>,
            /// It goes through only once a person has approved it. Null is refused: it would ask about nothing.
            #[serde(default, deserialize_with = "some_approval", skip_serializing_if = "Option::is_none")]
            pub approval: Option<EntryApproval>,
            /// How many may be under way at once, of all pods that `maxConcurrentScope` counts together.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = 1, max = bounds::CONCURRENT))]
            pub max_concurrent: Option<i64>,
            /// What `maxConcurrent` counts together: `Pod`, or a scope of several pods, which needs a shared store.
            #[serde(default, skip_serializing_if = "Scope::is_default")]
            pub max_concurrent_scope: Scope,
            $(
                $(#[$more_doc])*
                pub $more: $more_type,
            )?
        }

        impl $entry {
            fn view(&self) -> EntryView<'_> {
                let name: fn(&$text) -> &str = $view;
                EntryView {
                    name: name(&self.$name),
                    class: None,
                    action: self.action,
                    reason: self.reason.as_deref(),
                    limits: &self.limits,
                    validations: &self.validations,
                    approval: self.approval.as_ref(),
                    max_concurrent: self.max_concurrent,
                    max_concurrent_scope: self.max_concurrent_scope,
                    $($more: self.$more,)?
                    ..NO_ENTRY
                }
            }
        }
    };
}

/// An entry that says nothing.
const NO_ENTRY: EntryView<'static> = EntryView {
    name: "",
    class: None,
    action: None,
    reason: None,
    limits: &[],
    validations: &[],
    approval: None,
    max_concurrent: None,
    max_concurrent_scope: Scope::Pod,
    max_result_bytes: None,
};

entry! {
    /// What holds for one prompt, or for those that a glob matches.
    Prompt,
    /// The prompt's exact name, or a glob in which `*` stands for any characters. A `*` that is part of the name is written `\*`, and
    /// a backslash `\\`. What the entry allows it tells apart by case; what it denies, and how it restricts, holds for names in any case.
    #[schemars(length(min = 1, max = bounds::TOOL_NAME))]
    name: String = |name| name,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the use counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    max_result_bytes: Option<i64>
}

entry! {
    /// What holds for one resource, or for those that a glob matches.
    Resource,
    /// The resource's URI without percent-encoding and dot segments, or a glob in which `*` stands for any characters, `/` included. What
    /// the entry denies, and how it restricts, holds for URIs in any case, and with any query or fragment.
    #[schemars(length(min = 1, max = bounds::RESOURCE_URI))]
    uri: String = |uri| uri,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the read counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    max_result_bytes: Option<i64>
}

entry! {
    /// What holds for one thing that the server may ask of the agent.
    ServerRequest,
    /// What the server asks for.
    name: RequestName = |name| name.as_str(),
}

/// Reads an approval that may be left out, and not be null.
fn some_approval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EntryApproval>, D::Error> {
    struct SomeApproval;
    impl<'de> Visitor<'de> for SomeApproval {
        type Value = Option<EntryApproval>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an approval")
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            EntryApproval::deserialize(deserializer).map(Some)
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Err(E::custom("`approval` is null, and would ask about no call; write {} for every call, or remove it"))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            self.visit_none()
        }
    }
    deserializer.deserialize_option(SomeApproval)
}

/// Reads a class that may be empty: Kubernetes writes the empty text where it is left out, since it is a key of the list.
mod optional_class {
    use std::fmt;

    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, IntoDeserializer, Visitor},
    };

    use crate::ToolClass;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ToolClass>, D::Error> {
        deserializer.deserialize_str(ClassOrEmpty)
    }

    #[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(class: &Option<ToolClass>, serializer: S) -> Result<S::Ok, S::Error> {
        class.map_or("", ToolClass::as_str).serialize(serializer)
    }

    /// Refuses a text while the reader still knows its place.
    struct ClassOrEmpty;

    impl Visitor<'_> for ClassOrEmpty {
        type Value = Option<ToolClass>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a class")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() { Ok(None) } else { ToolClass::deserialize(text.into_deserializer()).map(Some) }
        }
    }
}

/// At most `max` in any span of `window`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// The most that is let through in any span of `window`: calls, or the sum of `cost`. At most 9 000 000 000 where it is
    /// counted across pods.
    #[schemars(range(min = 1, max = bounds::MAX))]
    pub max: i64,
    /// `second`, `minute`, `hour`, `day`, or a duration such as `90s`.
    pub window: Window,
    /// What each gets a count of its own.
    #[serde(default)]
    pub scope: Scope,
    /// A CEL value; each value of it gets a count of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub key: Option<String>,
    /// A CEL number that a call adds, instead of 1. Negative or not a number denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub cost: Option<String>,
    /// Limits of one policy that name the same counter and have the same window and scope count together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::COUNTER_NAME))]
    pub counter: Option<String>,
}

/// What a limit counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// One MCP session of one pod.
    Session,
    /// One pod.
    #[default]
    Pod,
    /// All pods of one workload, such as a Deployment. Needs a shared store.
    Workload,
    /// All pods of one service account. Needs a shared store.
    ServiceAccount,
    /// All pods of one namespace. Needs a shared store.
    Namespace,
    /// All pods that the policy governs. Needs a shared store.
    Policy,
}

impl Scope {
    /// Returns whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether it counts calls of more than one pod together.
    pub fn is_shared(self) -> bool {
        !matches!(self, Self::Session | Self::Pod)
    }
}

/// A condition on a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validation {
    /// A CEL expression over `args`, `server`, `session`, `pod` and the name of what is used (`tool`, `prompt`, `uri` or `request`) that is
    /// true for what may pass.
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub expression: String,
    /// What a denied caller is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::TEXT))]
    pub message: Option<String>,
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
