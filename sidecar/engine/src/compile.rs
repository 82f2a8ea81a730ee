//! The compiler: from policies to rules, with every error that a schema cannot find.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use toolweir_crds::{
    Action, Credential, CredentialSource, EntryApproval, EntryView, FieldError, Limit, MCPPolicySpec, OperationKind, Scope,
    Server, ServerTls, check::server_url, resource_uri, tool_name,
};

use crate::{
    access::{GivenAccess, choose_access},
    ask::{AskingPolicy, CompiledApproval},
    cel::{self, CompileBudget, Expression, ExpressionUse},
    counters::Memory,
    egress_doubts,
    egress_rules::EgressRules,
    engine::Engine,
    entry::{CompiledEntry, CompiledLimit, CompiledValidation, EntryHold},
    glob::Glob,
    pins::{PinRule, PinnedTools},
    policy::{Policy, PolicyId, Problem, Severity},
    rules::{self, Broken, PolicyRules, ServerRules},
    take::{Hold, Identity},
    window::Span,
};

/// The pod for which policies are compiled.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// True if counts can be shared with other pods.
    pub shared_store: bool,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's workload in its namespace, as `Kind/name`; empty where it is not known.
    pub workload: String,
    /// True if the policies are only checked, for no pod in particular: facts of the pod may then be missing.
    pub of_any_pod: bool,
}

impl Engine {
    /// Compiles the policies of a pod. Always returns an engine: in it, a policy that does not compile denies everything on its
    /// servers. The counts in `counters` go on for limits that are unchanged, or changed in `max` alone.
    pub fn compile(policies: &[Policy], counters: Arc<Memory>, options: &CompileOptions) -> (Self, Vec<Problem>) {
        let compile = || Ok(Self::compile_here(policies, Arc::clone(&counters), options));
        let has_expressions = policies.iter().any(|policy| {
            let mut entries = policy.spec.servers.iter().flat_map(Server::all_entries);
            entries.any(|tool| {
                !tool.validations.is_empty()
                    || tool.approval.is_some_and(|approval| approval.when.is_some() || !approval.show.is_empty())
                    || tool.limits.iter().any(|limit| limit.key.is_some() || limit.cost.is_some())
            })
        });
        if !has_expressions {
            return Self::compile_here(policies, counters, options);
        }
        cel::with_parser(compile).unwrap_or_else(|why| Self::broken(policies, &counters, options, &why))
    }

    /// Makes the engine where nothing could be compiled: every policy denies everything on its servers.
    fn broken(policies: &[Policy], counters: &Arc<Memory>, options: &CompileOptions, why: &str) -> (Self, Vec<Problem>) {
        let error = || FieldError { path: "spec".to_owned(), message: why.to_owned() };
        let bare =
            |server: &Server| Server { tools: Vec::new(), prompts: None, resources: None, requests: None, ..server.clone() };
        let broken = |policy: &Policy| Policy {
            id: policy.id.clone(),
            created: policy.created.clone(),
            version: policy.version.clone(),
            spec: MCPPolicySpec { servers: policy.spec.servers.iter().map(bare).collect(), ..MCPPolicySpec::default() },
            unreadable: Some(policy.unreadable.clone().unwrap_or_else(error)),
        };
        let policies: Vec<Policy> = policies.iter().map(broken).collect();
        Self::compile_here(&policies, Arc::clone(counters), options)
    }

    fn compile_here(policies: &[Policy], counters: Arc<Memory>, options: &CompileOptions) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut order: Vec<usize> = (0..policies.len()).collect();
        order.sort_by_key(|index| policies.get(*index).map(|policy| &policy.id));
        let mut all_rules: Vec<Arc<PolicyRules>> = Vec::new();
        let mut all_egress = Vec::new();
        let mut given: BTreeMap<&str, Vec<GivenAccess<'_>>> = BTreeMap::new();
        let mut before: Option<&PolicyId> = None;
        for (index, policy) in order.iter().filter_map(|index| Some((*index, policies.get(*index)?))) {
            let is_twin = before.replace(&policy.id) == Some(&policy.id);
            let (rules, egress) = compile_policy(index, policy, is_twin, options, &mut problems);
            // Of a policy that cannot be enforced nothing is shown to anybody, and it opens nothing; its servers are closed.
            let is_broken = rules.iter().any(|rules| rules.broken.is_some());
            all_rules.extend(rules);
            all_egress.extend(egress);
            for (at, server) in policy.spec.servers.iter().enumerate() {
                if let Some(url) = &server.url {
                    let credential = server.credential.as_ref().filter(|_| !is_broken);
                    let tls = server.tls.filter(|tls| !is_broken || *tls == ServerTls::Refuse);
                    let access = GivenAccess { policy: index, at, url, credential, tls };
                    given.entry(&server.name).or_default().push(access);
                }
            }
        }
        let mut servers: BTreeMap<Arc<str>, ServerRules> = BTreeMap::new();
        let mut budget = rules::PLAN_BUDGET;
        for rules in all_rules.iter().filter(|rules| &*rules.server != "*") {
            if servers.contains_key(&rules.server) {
                continue;
            }
            let given = given.get(&*rules.server).map_or(&[][..], Vec::as_slice);
            let (access, conflicts) = choose_access(policies, given, &mut problems);
            let own = all_rules.iter().filter(|other| other.server == rules.server || &*other.server == "*").cloned();
            let own: Vec<_> = own
                .map(|rules| match conflicts.iter().find(|(policy, _)| *policy == *rules.policy) {
                    Some((_, why)) if &*rules.server != "*" => Arc::new(rules.closed_by(why)),
                    _ => rules,
                })
                .collect();
            servers.insert(Arc::clone(&rules.server), ServerRules::new(access, &own, &mut budget));
        }
        for (index, policy) in policies.iter().enumerate() {
            for (at, server) in policy.spec.servers.iter().enumerate() {
                if servers.get(server.name.as_str()).is_some_and(|rules| rules.url.is_none()) {
                    let path = format!("spec.servers[{at}].url");
                    let message =
                        "is left out, and no other policy gives it; write where the server is, or, if a command starts it, use \
                                   `toolweir-sidecar stdio`"
                            .to_owned();
                    problems.push(Problem { policy: index, severity: Severity::NoUrl, error: FieldError { path, message } });
                }
            }
        }
        let pod = cel::pod(&options.pod, &options.namespace, &options.service_account);
        (Self { servers, egress: all_egress, counters, pod, pins: PinnedTools::default() }, problems)
    }
}

/// Compiles one policy: its rules for each of its servers, and for other connections if it has a say in them. Adds its problems to `problems`. `is_twin` says that another policy has
/// the same name.
fn compile_policy(
    index: usize,
    policy: &Policy,
    is_twin: bool,
    options: &CompileOptions,
    problems: &mut Vec<Problem>,
) -> (Vec<Arc<PolicyRules>>, Option<EgressRules>) {
    let (id, budget) = (policy.id.to_string(), CompileBudget::default());
    let mut compiler = Compiler { options, policy: &policy.id, id, errors: Vec::new(), doubts: Vec::new(), budget };
    if is_twin {
        compiler.at("metadata.name", format!("there is another policy `{}`; rename one", policy.id));
    }
    match &policy.unreadable {
        Some(error) => compiler.errors.push(error.clone()),
        None => compiler.errors.extend(toolweir_crds::check::check(&policy.spec, policy.id.cluster)),
    }
    let servers: Vec<Vec<KindEntries>> =
        policy.spec.servers.iter().enumerate().map(|(at, server)| compiler.server(at, server)).collect();
    if let Some(egress) = &policy.spec.egress {
        compiler.doubts.extend(egress_doubts::doubts(egress, &policy.spec.servers));
    }
    let broken = compiler.errors.first().map(|error| Broken::Compile(error.to_string()));
    let name: Arc<str> = compiler.id.as_str().into();
    let egress = match &policy.spec.egress {
        Some(egress) if broken.is_none() => Some(EgressRules::new(Arc::clone(&name), policy.spec.mode, egress)),
        // What a policy that cannot be read says is not known.
        egress => (egress.is_some() || policy.unreadable.is_some()).then(|| EgressRules::broken(Arc::clone(&name))),
    };
    let mut asking: Option<Arc<AskingPolicy>> = None;
    let rules =
        policy.spec.servers.iter().zip(servers).flat_map(|(server, kinds)| kinds.into_iter().map(move |kind| (server, kind)));
    // A policy that cannot be enforced denies everything, also of kinds in which it has no say.
    let rules = rules.filter(|(server, (kind, _))| server.has_say(*kind) || broken.is_some()).map(|(server, (kind, entries))| {
        let entries = if broken.is_some() { Vec::new() } else { entries };
        let pins = server.pins.as_ref().map(|pins| PinRule::new(pins, &policy.id.namespace));
        let asking = entries
            .iter()
            .any(|entry| entry.approval.is_some())
            .then(|| Arc::clone(asking.get_or_insert_with(|| Arc::new(AskingPolicy::of(policy)))));
        let mut rules = PolicyRules::new(Arc::clone(&name), &policy.spec, server, kind, pins, entries, broken.clone());
        rules.asking = asking;
        Arc::new(rules)
    });
    let rules = rules.collect();
    // Doubts are reported for policies that compile.
    let doubts = if broken.is_some() { Vec::new() } else { compiler.doubts };
    let found = |severity| move |error| Problem { policy: index, severity, error };
    problems.extend(compiler.errors.into_iter().map(found(Severity::Invalid)));
    problems.extend(doubts.into_iter().map(found(Severity::Doubt)));
    (rules, egress)
}

/// Makes the identity of a count: with the pods that share it, so that it is the same in all of them and in no other.
fn identity(pod_group: Option<&Arc<str>>, text: &str) -> Identity {
    match pod_group {
        Some(pod_group) => Identity::new(&format!("{pod_group}|{text}")),
        None => Identity::new(text),
    }
}

/// Returns the path of the expression of a validation of an entry.
fn validation_path(entry: &str, at: usize) -> String {
    format!("{entry}.validations[{at}].expression")
}

/// Returns the doubts about an expression.
fn doubts(path: &str, expression: &Expression, used: ExpressionUse, before: &[&Expression]) -> Vec<FieldError> {
    let at = |message| FieldError { path: path.to_owned(), message };
    expression.doubts(used, before).into_iter().map(at).collect()
}

/// Returns doubts about a credential that goes over the network in clear text.
fn clear_text(path: &str, credential: &Credential, url: Option<&str>) -> Vec<FieldError> {
    let is_clear = |url: &str| {
        let url = server_url(url).ok().filter(|url| url.scheme_str() == Some("http"));
        let host = url.as_ref().and_then(|url| url.host()).map(|host| host.trim_matches(['[', ']']));
        host.is_some_and(|host| host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
    };
    let token_url = match credential.source() {
        Some(CredentialSource::OAuth2ClientCredentials(of)) => Some(("oauth2ClientCredentials.tokenUrl", of.token_url.as_str())),
        Some(CredentialSource::TokenExchange(of)) => Some(("tokenExchange.tokenUrl", of.token_url.as_str())),
        _ => None,
    };
    let server = url.filter(|url| is_clear(url)).map(|_| path.to_owned());
    let token = token_url.filter(|(_, url)| is_clear(url)).map(|(field, _)| format!("{path}.{field}"));
    let message = "goes over http://, where anybody on the way can read the credential; write an https:// URL";
    server.into_iter().chain(token).map(|path| FieldError { path, message: message.to_owned() }).collect()
}

/// The entries of a kind.
type KindEntries = (OperationKind, Vec<CompiledEntry>);

/// The compiler of one policy.
struct Compiler<'a> {
    options: &'a CompileOptions,
    policy: &'a PolicyId,
    id: String,
    errors: Vec<FieldError>,
    doubts: Vec<FieldError>,
    /// The budget that is left for its expressions.
    budget: CompileBudget,
}

impl Compiler<'_> {
    fn at(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError { path: path.into(), message: message.into() });
    }

    fn server(&mut self, at: usize, server: &Server) -> Vec<KindEntries> {
        let path = format!("spec.servers[{at}]");
        let kinds = OperationKind::ALL.map(|kind| {
            let path = format!("{path}.{}", kind.field());
            let entries = server.entries(kind).into_iter().enumerate();
            let entries: Vec<CompiledEntry> =
                entries.map(|(at, entry)| self.entry(&format!("{path}[{at}]"), &server.name, kind, &entry)).collect();
            self.contradictions(&path, kind, &entries);
            self.closes_by_silence(&path, kind, server, &entries);
            (kind, entries)
        });
        if let Some(credential) = &server.credential {
            self.doubts.extend(clear_text(&format!("{path}.credential"), credential, server.url.as_deref()));
        }
        kinds.into()
    }

    /// Doubts a list that allows nothing and does not say that it is to close its kind.
    fn closes_by_silence(&mut self, path: &str, kind: OperationKind, server: &Server, entries: &[CompiledEntry]) {
        let closes = |entry: &CompiledEntry| match entry.effective_action() {
            Some(Action::Deny) => entry.tells_names_apart(),
            Some(Action::Allow) => false,
            None => true,
        };
        if server.written_default_action_of(kind).is_none() && !entries.is_empty() && entries.iter().all(closes) {
            let list = kind.field();
            let message = format!(
                "allows nothing, so that all {list} are denied; write an entry with `action: Allow`, or `defaultActions: {{{list}: Allow}}` \
                 (or `Deny`, to keep them closed)"
            );
            self.doubts.push(FieldError { path: path.to_owned(), message });
        }
    }

    /// Globs of equal weight that both match some tool must not say different things about it.
    fn contradictions(&mut self, path: &str, kind: OperationKind, entries: &[CompiledEntry]) {
        let list = kind.field();
        let mut by_weight: HashMap<usize, Vec<(usize, Glob, &CompiledEntry)>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some(glob) = Glob::parse(&entry.name).filter(|_| entry.class.is_none()) else { continue };
            let same = by_weight.entry(glob.weight()).or_default();
            let contradicts = |other: &&(usize, Glob, &CompiledEntry)| {
                other.2.effective_action() != entry.effective_action() && other.1.overlaps(&glob)
            };
            if let Some((first, _, other)) = same.iter().find(contradicts) {
                let message = format!(
                    "`{}` and `{}` ({list}[{first}]) are equally specific, match the same {list} and have different actions; \
                     give both the same action or make one longer",
                    tool_name::shown(&entry.name),
                    tool_name::shown(&other.name)
                );
                let field = if kind == OperationKind::Resource { "uri" } else { "name" };
                self.errors.push(FieldError { path: format!("{path}[{index}].{field}"), message });
            }
            same.push((index, glob, entry));
        }
    }

    /// Returns the pods that a scope counts together. `None` where it is this one alone, or where they are not known, which is an
    /// error at this path. `else_write` are the scopes that need no store.
    fn pod_group(&mut self, path: &str, scope: Scope, else_write: &str) -> Option<Arc<str>> {
        let CompileOptions { shared_store, namespace, service_account, workload, of_any_pod, .. } = self.options;
        if !scope.is_shared() {
            return None;
        }
        if !shared_store {
            self.at(
                path,
                format!("{scope:?} counts across pods, which needs a shared store, and none is configured; write {else_write}"),
            );
            return None;
        }
        // What is counted together, what has to be known of the pod for that, and the text that names it.
        let of_namespace = ("namespace", "--pod-namespace", namespace.as_str());
        let (together, needs, pod_group) = match scope {
            Scope::Session | Scope::Pod => return None,
            Scope::Workload => (
                "the pods of one workload",
                vec![of_namespace, ("workload", "--pod-workload", workload)],
                format!("Workload {namespace}/{workload}"),
            ),
            Scope::ServiceAccount => (
                "the pods of one service account",
                vec![of_namespace, ("service account", "--pod-service-account", service_account)],
                format!("ServiceAccount {namespace}/{service_account}"),
            ),
            Scope::Namespace => ("the pods of one namespace", vec![of_namespace], format!("Namespace {namespace}")),
            // No name has a colon.
            Scope::Policy if self.policy.cluster => ("", Vec::new(), format!("Policy cluster:{}", self.id)),
            Scope::Policy => ("", Vec::new(), format!("Policy {}", self.id)),
        };
        let missing = needs.iter().find(|(_, _, value)| value.is_empty() && !of_any_pod);
        if let Some((what, flag, _)) = missing {
            let own = if together.ends_with(what) { String::new() } else { format!(" {what}") };
            let known =
                if namespace.is_empty() || scope == Scope::Namespace { "Pod or Policy" } else { "Pod, Namespace or Policy" };
            self.at(
                path,
                format!("{scope:?} counts {together} together, and this pod's{own} is not known; write {known}, or give {flag}"),
            );
            return None;
        }
        Some(pod_group.into())
    }

    /// Compiles an entry of a server.
    fn entry(&mut self, path: &str, server: &str, kind: OperationKind, tool: &EntryView<'_>) -> CompiledEntry {
        let mut doubts = tool_name::doubts(tool.name, kind);
        if kind == OperationKind::Resource {
            doubts.extend(resource_uri::pattern_doubts(tool.name));
        }
        for message in doubts {
            let field = if kind == OperationKind::Resource { "uri" } else { "name" };
            self.doubts.push(FieldError { path: format!("{path}.{field}"), message });
        }
        // No name has a control character.
        let (name, place) = match tool.class {
            Some(class) => (format!("class:{}", class.as_str()), format!("\u{0}class:{}", class.as_str())),
            None if kind == OperationKind::Tool => (tool.name.to_owned(), tool.name.to_owned()),
            None => (tool.name.to_owned(), format!("\u{0}{kind}:{}", tool.name)),
        };
        let place = format!("{}|{server}|{place}", self.id);
        let mut twins: HashMap<String, usize> = HashMap::new();
        let limits = tool.limits.iter().enumerate();
        let limits: Vec<Arc<CompiledLimit>> = limits
            .filter_map(|(at, limit)| self.limit(&format!("{path}.limits[{at}]"), &place, kind, limit, &mut twins))
            .collect();
        let validations: Vec<CompiledValidation> = tool
            .validations
            .iter()
            .enumerate()
            .filter_map(|(at, validation)| {
                let expression = self.optional(&validation_path(path, at), kind, Some(&validation.expression))?;
                let (source, message) = (validation.expression.clone(), validation.message.clone());
                Some(CompiledValidation { expression, source, message })
            })
            .collect();
        let approval = tool.approval.map(|approval| self.approval(&format!("{path}.approval"), kind, approval));
        self.expression_doubts(path, &limits, &validations, approval.as_ref());
        let hold = tool.max_concurrent.map(|max| {
            let scope = tool.max_concurrent_scope;
            let pod_group = self.pod_group(&format!("{path}.maxConcurrentScope"), scope, "Pod");
            let identity = identity(pod_group.as_ref(), &format!("{place}|maxConcurrent"));
            EntryHold { hold: Hold { identity, max: u64::try_from(max).unwrap_or(0) }, scope, pod_group }
        });
        CompiledEntry {
            name: name.into(),
            class: tool.class,
            action: tool.action,
            reason: tool.reason.map(str::to_owned),
            limits,
            validations,
            approval,
            hold,
            max_result_bytes: tool.max_result_bytes.and_then(|most| u64::try_from(most).ok()),
        }
    }

    /// Compiles the approval of an entry.
    fn approval(&mut self, path: &str, kind: OperationKind, approval: &EntryApproval) -> CompiledApproval {
        let when = approval.when.as_ref();
        let when = when.and_then(|source| Some((self.optional(&format!("{path}.when"), kind, Some(source))?, source.clone())));
        let show =
            approval.show.iter().enumerate().filter_map(|(at, source)| {
                Some((self.optional(&format!("{path}.show[{at}]"), kind, Some(source))?, source.clone()))
            });
        let show = show.collect();
        CompiledApproval::new(approval, when, show)
    }

    /// Compiles a limit of the entry at `place`. `twins` counts the limits of the entry that differ in `max` alone.
    fn limit(
        &mut self,
        path: &str,
        place: &str,
        kind: OperationKind,
        limit: &Limit,
        twins: &mut HashMap<String, usize>,
    ) -> Option<Arc<CompiledLimit>> {
        let pod_group = self.pod_group(&format!("{path}.scope"), limit.scope, "Pod or Session");
        let key = self.optional(&format!("{path}.key"), kind, limit.key.as_deref());
        let cost = self.optional(&format!("{path}.cost"), kind, limit.cost.as_deref());
        let nanos = limit.window.span().as_nanos();
        let text = if let Some(counter) = &limit.counter {
            format!("{}|counter|{counter}|{nanos}|{:?}", self.id, limit.scope)
        } else {
            let text = format!(
                "{place}|{nanos}|{:?}|{}|{}",
                limit.scope,
                limit.key.as_deref().unwrap_or_default(),
                limit.cost.as_deref().unwrap_or_default()
            );
            // Two limits that differ in `max` alone: each is counted, and the stricter decides.
            let twin = twins.entry(text.clone()).and_modify(|n| *n += 1).or_insert(0);
            format!("{text}|{twin}")
        };
        let mut label = format!("{}/{}", limit.max, limit.window);
        if limit.scope != Scope::Pod {
            label.push_str(&format!("/{:?}", limit.scope));
        }
        if let Some(counter) = &limit.counter {
            label.push_str(&format!("/{counter}"));
        }
        Some(Arc::new(CompiledLimit {
            identity: identity(pod_group.as_ref(), &text),
            span: Span::new(limit.window.span()),
            max: limit.max,
            window: limit.window.clone(),
            window_text: limit.window.as_str().into(),
            scope: limit.scope,
            key: match &limit.key {
                Some(source) => Some((key?, source.clone())),
                None => None,
            },
            cost: match &limit.cost {
                Some(source) => Some((cost?, source.clone())),
                None => None,
            },
            label,
            pod_group,
        }))
    }

    /// Collects the doubts about the expressions of an entry.
    fn expression_doubts(
        &mut self,
        path: &str,
        limits: &[Arc<CompiledLimit>],
        validations: &[CompiledValidation],
        approval: Option<&CompiledApproval>,
    ) {
        let conditions: Vec<&Expression> = validations.iter().map(|validation| &validation.expression).collect();
        for (at, condition) in conditions.iter().enumerate() {
            self.doubts.extend(doubts(&validation_path(path, at), condition, ExpressionUse::Condition, &[]));
        }
        for (at, limit) in limits.iter().enumerate() {
            for (field, expression, used) in [("key", &limit.key, ExpressionUse::Key), ("cost", &limit.cost, ExpressionUse::Cost)]
            {
                let found = expression
                    .iter()
                    .flat_map(|(expression, _)| doubts(&format!("{path}.limits[{at}].{field}"), expression, used, &conditions));
                self.doubts.extend(found);
            }
        }
        let Some(approval) = approval else { return };
        if let Some((when, _)) = &approval.when {
            self.doubts.extend(doubts(&format!("{path}.approval.when"), when, ExpressionUse::Approval, &conditions));
        }
        for (at, (shown, _)) in approval.show.iter().enumerate() {
            self.doubts.extend(doubts(&format!("{path}.approval.show[{at}]"), shown, ExpressionUse::Shown, &conditions));
        }
    }

    /// Compiles an expression, if there is one. Its fault becomes an error at `path`.
    fn optional(&mut self, path: &str, kind: OperationKind, source: Option<&str>) -> Option<Expression> {
        match Expression::compile_in(source?, kind, &mut self.budget) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.at(path, why);
                None
            }
        }
    }
}
