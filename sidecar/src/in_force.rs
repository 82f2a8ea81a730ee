//! The policies in force, and the servers that they name.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use http::Uri;
use prometheus::{Histogram, IntCounter};
use toolweir_crds::{
    Credential, OperationKind, PinnedTool, RequestName, ToolPart, ToolPins, check::server_url, stream::PolicyProblem,
};
use toolweir_engine::{Engine, Operation, Policy, SeenTool, Verdict};

use crate::{
    credentials::{server_credential::ServerCredential, set::CredentialSet},
    mcp::{is_method, list_kind::ListKind},
    observed::ToolCalls,
    outcome::{ListingEnd, Outcome, ServerAnswerEnd},
    seen_tools::ToolsOfServer,
    server_metrics::{OTHER_NAME, ServerMetrics, TOOL_PART},
};

/// The policies in force.
#[derive(Debug)]
pub struct InForce {
    /// The compiled policies.
    pub engine: Engine,
    /// The policies, for display.
    pub policies: Vec<PolicyView>,
    /// The pins that came with them.
    pub pins: Vec<ToolPins>,
    /// The version of their content: the first 12 hex digits of the SHA-256 of the files' text, or what the operator says.
    pub version: String,
    /// Policies that cannot be enforced as they are written and deny instead. Of those from files, only such as close a server.
    pub problems: Vec<PolicyProblem>,
    /// True if the policies were compiled with a shared store. Without one, limits across pods deny.
    pub shared_store: bool,
    servers: HashMap<String, Arc<ServerInForce>>,
}

/// A policy in force, for display.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PolicyView {
    /// Namespace and name.
    pub name: String,
    /// `Enforce` or `Audit`.
    pub mode: &'static str,
    /// The policy itself.
    pub spec: toolweir_crds::MCPPolicySpec,
}

impl From<Policy> for PolicyView {
    fn from(policy: Policy) -> Self {
        let mode = policy.spec.mode.as_str();
        Self { name: policy.id.to_string(), mode, spec: policy.spec }
    }
}

/// A url that cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadUrl {
    /// The server's name.
    pub server: String,
    /// The url, as a policy has it.
    pub url: String,
    /// The fault, with the url in it.
    pub why: String,
}

/// The credential of a server, and what looks after it.
#[derive(Debug)]
pub struct CredentialSlot {
    credential: Credential,
    looked_after: OnceLock<Arc<ServerCredential>>,
}

impl CredentialSlot {
    fn new(credential: &Credential) -> Self {
        Self { credential: credential.clone(), looked_after: OnceLock::new() }
    }

    /// The credential; none where nothing looks after it, so that the server is not reached.
    pub fn get(&self) -> Option<&Arc<ServerCredential>> {
        self.looked_after.get()
    }
}

/// A server that policies name, with the handles of its metrics.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ServerInForce {
    /// The server's name.
    pub name: String,
    /// The server's url, if a policy gives one that can be connected to.
    pub url: Option<Uri>,
    /// What the sidecar shows the server at that url, if a policy says so.
    pub credential: Option<CredentialSlot>,
    /// True if captured TLS to that url is opened.
    pub intercept: bool,
    /// True if a policy refuses that, whatever others say of the same url.
    pub refuses_tls: bool,
    /// True if the audit log has the arguments of calls.
    pub audits_arguments: bool,
    /// True if decisions can depend on what the server's lists say of its tools.
    pub reads_definitions: bool,
    /// True if a policy asks a person about calls of some tool.
    pub asks_people: bool,
    /// The pins, as `namespace/name`, to which policies hold its tools.
    pub pins: Vec<Arc<str>>,
    tools_seen: OnceLock<Arc<ToolsOfServer>>,
    /// `toolweir_upstream_duration_seconds`
    pub upstream_duration: Histogram,
    /// `toolweir_overhead_seconds`
    pub overhead: Histogram,
    /// `toolweir_requests_total` of tool calls that went well.
    pub calls_ok: IntCounter,
    /// The tools that a policy names.
    pub tools: HashMap<Box<str>, NamedTool>,
    /// What a policy names of other kinds.
    others: HashMap<OperationKind, HashSet<Box<str>>>,
}

impl ServerInForce {
    /// Returns true if a policy, or MCP itself, has this name of a kind: it can stand in metrics.
    pub fn names(&self, kind: OperationKind, name: &str) -> bool {
        match kind {
            OperationKind::Tool => self.tools.contains_key(name),
            OperationKind::Prompt | OperationKind::Resource => self.others.get(&kind).is_some_and(|names| names.contains(name)),
            OperationKind::Request => RequestName::ALL.into_iter().any(|known| known.as_str() == name),
            OperationKind::Other => is_method(name),
        }
    }

    /// What the server's lists said of its tools; none where no policy reads it.
    pub fn tools_seen(&self) -> Option<&Arc<ToolsOfServer>> {
        self.tools_seen.get()
    }

    /// Sets where [`InForce::seen`] looks. The second time, it does nothing.
    pub fn set_tools(&self, tools: Arc<ToolsOfServer>) {
        let _ = self.tools_seen.set(tools);
    }
}

/// A tool that a policy names, with the handles that its calls need.
#[derive(Debug)]
pub struct NamedTool {
    /// `toolweir_tool_calls_total` of allowed calls.
    pub allowed: IntCounter,
    /// The record of its calls, from the first one on; none where there was no room for it.
    pub calls: OnceLock<Option<Arc<ToolCalls>>>,
}

/// Has what policies can say of other operations than calls of tools, hide of lists, and refuse of messages of servers begin
/// at 0.
fn begin_operations(engine: &Engine, server: &str, metrics: &ServerMetrics) {
    let begin = |verdict: &Verdict<'_>, operation: Operation<'_>| {
        let Operation { name, method, .. } = operation;
        let labels = [server, method, name, verdict.decision, verdict.reason.as_str(), &verdict.policy];
        metrics.operations.with_label_values(&labels);
    };
    for list in ListKind::ALL {
        metrics.hidden(server, list);
    }
    for end in ServerAnswerEnd::ALL {
        metrics.server_answers.with_label_values(&[server, end.as_str()]);
    }
    metrics.messages_refused.with_label_values(&[server]);
    for verdict in engine.verdicts(server, OperationKind::Prompt) {
        begin(&verdict, Operation::prompt(verdict.name.unwrap_or(OTHER_NAME)));
    }
    for verdict in engine.verdicts(server, OperationKind::Resource) {
        begin(&verdict, Operation::resource(verdict.name.unwrap_or(OTHER_NAME)));
    }
    let requests = engine.verdicts(server, OperationKind::Request);
    for name in RequestName::ALL {
        let own = requests.iter().any(|verdict| verdict.name == Some(name.as_str()));
        let of = requests.iter().filter(|verdict| verdict.name == own.then_some(name.as_str()));
        of.for_each(|verdict| begin(verdict, Operation::request(name)));
    }
}

/// Has what becomes of a server's messages that clients do not get begin at 0.
fn begin_messages(server: &str, metrics: &ServerMetrics) {
    for end in ServerAnswerEnd::ALL {
        metrics.server_answers.with_label_values(&[server, end.as_str()]);
    }
    metrics.messages_refused.with_label_values(&[server]);
}

impl InForce {
    /// Resolves the handles of the policies' metrics. `pins` are those that the engine has. Returns the urls that cannot be connected to as well: such a server is as
    /// one without a url, so that nothing reaches it.
    pub fn new(
        engine: Engine,
        policies: Vec<PolicyView>,
        pins: Vec<ToolPins>,
        version: String,
        metrics: &ServerMetrics,
    ) -> (Self, Vec<BadUrl>) {
        let (mut servers, mut bad) = (HashMap::new(), Vec::new());
        for view in engine.servers() {
            let url = view.url.and_then(|url| {
                let found = server_url(url);
                if let Err(why) = &found {
                    bad.push(BadUrl { server: view.name.to_owned(), url: url.to_owned(), why: why.clone() });
                }
                found.ok()
            });
            let policy = engine.first_policy(view.name).map_or("", |policy| policy);
            let named = |tool: &str| {
                let allowed = metrics.tool_calls.with_label_values(&[view.name, tool, "allowed", "none", policy]);
                (tool.into(), NamedTool { allowed, calls: OnceLock::new() })
            };
            let tools = engine.names(view.name, OperationKind::Tool).map(named).collect();
            let others = [OperationKind::Prompt, OperationKind::Resource]
                .map(|kind| (kind, engine.names(view.name, kind).map(Box::from).collect()))
                .into();
            // A series that appears with the value 1 has no rise; so what these policies can say begins at 0.
            for end in ListingEnd::ALL.into_iter().filter(|_| view.reads_definitions) {
                metrics.own_lists.with_label_values(&[view.name, end.as_str()]);
            }
            let named_pins: Vec<Arc<str>> = engine.named_pins(view.name).into_iter().cloned().collect();
            if !named_pins.is_empty() {
                let parts = ToolPart::ALL.into_iter().map(ToolPart::as_str).chain([TOOL_PART]);
                parts.for_each(|part| drop(metrics.tool_drift.with_label_values(&[view.name, part])));
                metrics.tools_drifted.with_label_values(&[view.name]);
            }
            begin_operations(&engine, view.name, metrics);
            begin_messages(view.name, metrics);
            for verdict in engine.verdicts(view.name, OperationKind::Tool) {
                let tool = verdict.name.unwrap_or(OTHER_NAME);
                metrics.tool_calls.with_label_values(&[
                    view.name,
                    tool,
                    verdict.decision,
                    verdict.reason.as_str(),
                    &verdict.policy,
                ]);
            }
            let server = ServerInForce {
                name: view.name.to_owned(),
                url,
                credential: view.credential.map(CredentialSlot::new),
                intercept: view.intercept,
                refuses_tls: view.refuses_tls,
                audits_arguments: view.audits_arguments,
                reads_definitions: view.reads_definitions,
                asks_people: view.asks_people,
                pins: named_pins,
                tools_seen: OnceLock::new(),
                upstream_duration: metrics.upstream_duration.with_label_values(&[view.name]),
                overhead: metrics.overhead.with_label_values(&[view.name]),
                calls_ok: metrics.requests.with_label_values(&[view.name, "tools/call", Outcome::Ok.as_str()]),
                tools,
                others,
            };
            servers.insert(server.name.clone(), Arc::new(server));
        }
        (Self { engine, policies, pins, version, problems: Vec::new(), shared_store: false, servers }, bad)
    }

    /// Has the credentials looked after by `set`. Until then, servers that have one are not reached.
    pub fn attach_credentials(&self, set: &CredentialSet) {
        let slots = || self.servers().filter_map(|server| Some((server.name.as_str(), server.credential.as_ref()?)));
        let mut looked_after = set.look_after(slots().map(|(server, slot)| (server, &slot.credential)));
        for (server, slot) in slots() {
            if let Some(of) = looked_after.remove(server) {
                slot.looked_after.get_or_init(|| of);
            }
        }
    }

    /// The servers that some policy names, in no order.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<ServerInForce>> {
        self.servers.values()
    }

    /// Returns true if the same policies govern a server here and there, with the same pins.
    pub fn governs_alike(&self, other: &Self, server: &str) -> bool {
        let names = |policy: &&PolicyView| policy.spec.servers.iter().any(|named| named.name == server || named.name == "*");
        let same_pins = || self.engine.named_pins(server).iter().all(|name| self.pins_named(name) == other.pins_named(name));
        self.policies.iter().filter(names).eq(other.policies.iter().filter(names)) && same_pins()
    }

    /// What the pins of this name, `namespace/name`, have of a tool.
    pub fn pinned_tool(&self, pins: &str, tool: &str) -> Option<&PinnedTool> {
        self.pins_named(pins)?.spec.tools.iter().find(|pinned| pinned.name == tool)
    }

    fn pins_named(&self, name: &str) -> Option<&ToolPins> {
        // Of two with the same name, the last holds.
        self.pins.iter().rev().find(|pins| pins.to_string() == name)
    }

    /// What a server's lists said last of a tool; none where that is not known, or no policy reads it. What an earlier run saw counts where it
    /// is not as pinned, so that calls are denied. What it allows has to be seen again.
    pub fn seen(&self, server: &str, tool: &str) -> Option<Arc<SeenTool>> {
        let of = self.server(server)?;
        let tools = of.tools_seen()?;
        let denies = |kept: &Arc<SeenTool>| self.engine.drift(server, tool, kept).iter().any(|drift| drift.denies);
        tools.get(tool).or_else(|| tools.kept(tool).filter(|_| !of.pins.is_empty()).filter(denies))
    }

    /// The same for what an operation asks for; none but for tools.
    pub fn seen_by(&self, server: &str, operation: Operation<'_>) -> Option<Arc<SeenTool>> {
        if operation.kind == OperationKind::Tool { self.seen(server, operation.name) } else { None }
    }

    /// A server, if some policy names it.
    pub fn server(&self, name: &str) -> Option<&Arc<ServerInForce>> {
        self.servers.get(name)
    }
}
