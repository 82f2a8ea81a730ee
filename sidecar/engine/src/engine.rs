//! The engine, and what can be asked of the policies in it apart from decisions.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
};

use toolweir_crds::{Action, Credential, Mode, OperationKind, RequestName, Scope, ToolClass, resource_uri};

use crate::{
    ask::AskingPolicy,
    call::{Call, Operation},
    cel::CelObject,
    counters::Memory,
    denial::Denial,
    egress_rules::EgressRules,
    entry::CompiledEntry,
    names::NameForms,
    pins::PinnedTools,
    rules::{NamePlan, PolicyRules, ServerRules, Step},
    seen::SeenTool,
    shared::{SharedTake, SharedUsage},
    take::instance,
    window::{Amount, Timestamp},
};

/// The policies of one pod, compiled, with the counts that they are held to.
#[derive(Debug)]
pub struct Engine {
    pub(crate) servers: BTreeMap<Arc<str>, ServerRules>,
    /// What policies say about other connections, in the order of the policies' names; only those that have a say.
    pub(crate) egress: Vec<EgressRules>,
    pub(crate) counters: Arc<Memory>,
    pub(crate) pod: CelObject<'static>,
    pub(crate) pins: PinnedTools,
}

/// A server that some policy names.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ServerView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its URL, if a policy gives it.
    pub url: Option<&'a str>,
    /// What the sidecar shows it at that URL, if a policy says so.
    pub credential: Option<&'a Credential>,
    /// True if captured TLS to that URL is opened. The URL begins with `https://` and its host is a name then.
    pub intercept: bool,
    /// True if a policy refuses captured TLS to the server. What another server says of the same URL does not open it either.
    pub refuses_tls: bool,
    /// True if the audit log has the arguments of calls: a policy says so, and none refuses it.
    pub audits_arguments: bool,
    /// True if decisions can depend on what the server's lists say of its tools: a policy has an entry for a class, or names pins.
    pub reads_definitions: bool,
    /// True if a policy asks a person about calls of some tool.
    pub asks_people: bool,
}

/// What the validations, keys and costs that can matter for a tool read of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadsOfCall {
    /// True if one reads the arguments.
    pub arguments: bool,
    /// True if one reads the session.
    pub session: bool,
}

impl<'a> ServerView<'a> {
    fn new(name: &'a str, rules: &'a ServerRules) -> Self {
        Self {
            name,
            url: rules.url.as_deref(),
            credential: rules.credential.as_ref(),
            intercept: rules.intercept,
            refuses_tls: rules.refuses_tls,
            audits_arguments: rules.audits_arguments,
            reads_definitions: rules.tools().reads_definitions(),
            asks_people: rules.policies().any(|policy| policy.asking.is_some()),
        }
    }
}

/// A limit and its usage.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LimitView<'a> {
    /// The server's name in the policy; `*` for every server.
    pub server: &'a str,
    /// The kind of what it limits.
    #[serde(skip_serializing_if = "OperationKind::is_tool")]
    pub kind: OperationKind,
    /// The entry's name.
    pub tool: &'a str,
    /// The policy.
    pub policy: &'a str,
    /// The limit in short, such as `30/minute`.
    pub limit: &'a str,
    /// True if each value of an expression has a count of its own; `used` is then that of the fullest.
    pub keyed: bool,
    /// The amount that counts now.
    pub used: f64,
    /// The maximum.
    pub max: i64,
    /// The scope whose calls are counted together.
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
    /// True if pods share the count; `used` is then what this pod knows of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

impl Engine {
    /// Returns the servers that policies name, by name.
    pub fn servers(&self) -> impl Iterator<Item = ServerView<'_>> {
        self.servers.iter().map(|(name, rules)| ServerView::new(name, rules))
    }

    /// Returns a server, if some policy names it.
    pub fn server(&self, name: &str) -> Option<ServerView<'_>> {
        self.servers.get_key_value(name).map(|(name, rules)| ServerView::new(name, rules))
    }

    /// Returns true if lists show what their server lists so: no enforced policy denies it regardless of the call.
    pub fn may_use(&self, server: &str, operation: Operation<'_>, seen: Option<&SeenTool>) -> bool {
        let call = Call { server, operation, arguments: None, session: "", seen };
        self.plan(&call).is_ok_and(|plan| {
            plan.enforced.denial.is_none() && (!plan.has_pins || self.pin_findings(&plan.enforced, &call).denied.is_none())
        })
    }

    /// Returns true if a server may ask its client for anything and tell it of any resource, whatever that is, without a limit or a
    /// condition of an enforced policy: then a message that cannot be read may pass unread.
    pub fn asks_are_free(&self, server: &str) -> bool {
        let Some(rules) = self.servers.get(server) else { return false };
        let asks = RequestName::ALL.into_iter().map(Operation::request).chain([Operation::other("any")]);
        let is_free = |operation| {
            let call = Call { server, operation, arguments: None, session: "", seen: None };
            let free = |plan: &NamePlan| {
                plan.enforced.denial.is_none()
                    && plan.enforced.steps.iter().flat_map(Step::matching).all(|entry| !entry.restricts())
            };
            self.plan(&call).is_ok_and(|plan| free(&plan))
        };
        let resources = &rules.of(OperationKind::Resource).policies;
        let tells_all = |policy: &Arc<PolicyRules>| {
            let denies = |entry: &CompiledEntry| entry.effective_action() == Some(Action::Deny);
            policy.broken.is_none()
                && (policy.mode != Mode::Enforce
                    || (policy.default_action == Action::Allow && !policy.entries.iter().any(denies)))
        };
        !resources.is_empty() && resources.iter().all(tells_all) && asks.into_iter().all(is_free)
    }

    /// Returns a URI of a resource template that may be read at all, else any that the template has; none where it has none with a clear
    /// meaning (RFC 6570; MCP 2025-11-25, Resources, "Resource Templates").
    pub fn template_witness(&self, server: &str, template: &str) -> Option<String> {
        let rules = self.servers.get(server).map(|rules| rules.of(OperationKind::Resource));
        let entries = rules.into_iter().flat_map(|rules| &rules.policies).flat_map(|rules| &rules.entries);
        let mut witnesses = resource_uri::template_witnesses(template, entries.map(|entry| &*entry.name));
        let usable = witnesses.iter().position(|uri| self.may_use(server, Operation::resource(uri), None));
        let first = usable.unwrap_or_default();
        (first < witnesses.len()).then(|| witnesses.swap_remove(first))
    }

    /// Returns true if what a server's lists say of a tool can make a difference to calls of it.
    pub fn depends_on_definition(&self, server: &str, tool: &str) -> bool {
        self.servers.get(server).is_some_and(|rules| rules.tools().depends_on_definition(tool))
    }

    /// Returns what the decision on this may read of a call, whatever a tool's class. Nothing where it is denied regardless of the call.
    pub fn reads(&self, server: &str, operation: Operation<'_>) -> ReadsOfCall {
        let Some(rules) = self.servers.get(server).map(|rules| rules.of(operation.kind)) else { return ReadsOfCall::default() };
        let mut reads = ReadsOfCall::default();
        for plan in rules.plans(operation.name).filter(|plan| plan.enforced.denial.is_none()) {
            let groups = iter::once(&plan.enforced).chain(plan.audited.iter().filter(|group| group.denial.is_none()));
            for expression in groups.flat_map(|group| &group.steps).flat_map(Step::matching).flat_map(CompiledEntry::expressions)
            {
                reads.arguments |= expression.reads_arguments();
                reads.session |= expression.reads_session();
            }
        }
        reads
    }

    /// Returns the denial of everything on a server, if one of its policies cannot be enforced.
    pub fn closed(&self, server: &str) -> Option<Denial> {
        let rules = self.servers.get(server)?.tools().policies.iter().find(|rules| rules.broken.is_some())?;
        rules.step(&NameForms::default(), ToolClass::Unknown).denial("")
    }

    /// Returns the first policy that governs a server: where all allow, calls are counted under it.
    pub fn first_policy(&self, server: &str) -> Option<&Arc<str>> {
        self.servers.get(server)?.tools().policies.first().map(|rules| &rules.policy)
    }

    /// Returns the names of a kind that some policy has exactly.
    pub fn names(&self, server: &str, kind: OperationKind) -> impl Iterator<Item = &str> {
        self.servers.get(server).into_iter().flat_map(move |rules| rules.of(kind).names())
    }

    /// Returns true if some policy has a say in a kind on a server.
    pub fn has_say(&self, server: &str, kind: OperationKind) -> bool {
        self.servers.get(server).is_some_and(|rules| !rules.of(kind).policies.is_empty())
    }

    /// Returns true if some limit or `maxConcurrent` counts calls of several pods together.
    pub fn shares(&self) -> bool {
        self.pod_groups().next().is_some()
    }

    /// Returns the groups of pods that share some count in force, such as `Workload agents/Deployment/social`.
    pub fn groups(&self) -> BTreeSet<Arc<str>> {
        self.pod_groups().cloned().collect()
    }

    fn pod_groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.policy_rules().into_iter().flat_map(|rules| rules.entries.iter().flat_map(CompiledEntry::pod_groups))
    }

    /// Returns what a call would take of each limit that pods share and that has a single count. Each count comes once.
    pub fn shared_counts(&self) -> Vec<SharedTake> {
        let mut takes: Vec<SharedTake> = Vec::new();
        for rules in self.policy_rules() {
            for limit in rules.entries.iter().flat_map(|entry| &entry.limits).filter(|limit| limit.key.is_none()) {
                let Some(pod_group) = &limit.pod_group else { continue };
                if !takes.iter().any(|known| known.take.identity == limit.identity) {
                    let take = limit.take(instance(""), Amount::ONE);
                    takes.push(SharedTake { take, pod_group: Arc::clone(pod_group), failure: rules.on_store_failure });
                }
            }
        }
        takes
    }

    /// Returns the policies that ask a person about calls.
    pub fn asking_policies(&self) -> impl Iterator<Item = &AskingPolicy> {
        self.servers.values().flat_map(ServerRules::policies).filter_map(|rules| rules.asking.as_deref())
    }

    /// Returns the rules in force, each once: those of the server `*` stand under every server.
    fn policy_rules(&self) -> Vec<&Arc<PolicyRules>> {
        let mut policies: Vec<&Arc<PolicyRules>> = self.servers.values().flat_map(ServerRules::policies).collect();
        policies.sort_by_key(|rules| Arc::as_ptr(rules));
        policies.dedup_by_key(|rules| Arc::as_ptr(rules));
        policies
    }

    /// Returns every limit with its usage; `known` gives that of the limits that pods share.
    pub fn limits(&self, now: Timestamp, known: &dyn SharedUsage) -> Vec<LimitView<'_>> {
        let mut policies = self.policy_rules();
        policies.sort_by(|a, b| (&a.policy, &a.server, a.kind).cmp(&(&b.policy, &b.server, b.kind)));
        let mut views = Vec::new();
        for rules in policies {
            for entry in &rules.entries {
                for limit in &entry.limits {
                    let used = match &limit.pod_group {
                        None => limit.used(&self.counters, now),
                        Some(_) => known.used(&limit.identity).unwrap_or_default(),
                    };
                    views.push(LimitView {
                        server: &rules.server,
                        kind: rules.kind,
                        tool: &entry.name,
                        policy: &rules.policy,
                        limit: &limit.label,
                        keyed: limit.key.is_some(),
                        used: used.as_f64(),
                        max: limit.max,
                        scope: limit.scope,
                        shared: limit.pod_group.is_some(),
                    });
                }
            }
        }
        views
    }

    /// Returns the counts that calls are held to.
    pub fn counters(&self) -> &Arc<Memory> {
        &self.counters
    }
}
