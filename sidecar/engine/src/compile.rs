//! From the policies that a user wrote to rules, with every error that a schema cannot find.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use toolweir_crds::{Document, FieldError, MCPPolicySpec, Scope, Server, Tool};

use crate::{
    cel::{self, Expression},
    counters::{Hold, Identity, Memory},
    glob::Glob,
    rules::{self, Engine, Entry, EntryHold, Limit, Part, ServerRules, Validation},
    window::Span,
};

/// A policy's name. Policies in a namespace come before those of the cluster, each by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// Whether it is an `MCPClusterPolicy`.
    pub cluster: bool,
    /// Its namespace; empty for an `MCPClusterPolicy`.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cluster { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A policy that governs the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub id: PolicyId,
    /// When it was created, in RFC 3339 and UTC as Kubernetes writes it.
    pub created: Option<String>,
    /// What it says.
    pub spec: MCPPolicySpec,
    /// Why it cannot be read, if so: whatever `spec` holds, the policy denies everything on its servers.
    pub unreadable: Option<FieldError>,
}

impl Policy {
    /// A policy that cannot be read, so that nobody knows which servers it names: it denies everything on every server.
    pub fn unreadable(id: PolicyId, error: FieldError) -> Self {
        let every = Server { name: "*".to_owned(), ..Server::default() };
        let spec = MCPPolicySpec { servers: vec![every], ..MCPPolicySpec::default() };
        Self { id, created: None, spec, unreadable: Some(error) }
    }
}

impl From<Document> for Policy {
    fn from(document: Document) -> Self {
        let (cluster, metadata, spec) = match document {
            Document::MCPPolicy { metadata, spec } => (false, metadata, spec),
            Document::MCPClusterPolicy { metadata, spec } => (true, metadata, spec.into()),
        };
        let id = PolicyId { cluster, namespace: metadata.namespace.unwrap_or_default(), name: metadata.name };
        Self { id, created: metadata.creation_timestamp, spec, unreadable: None }
    }
}

/// What is known of the pod and its surroundings.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether counts can be shared with other pods.
    pub shared_store: bool,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's workload in its namespace, as `Kind/name`; empty where it is not known.
    pub workload: String,
    /// Whether the policies are only checked, for whatever pod: whose counts they are is not asked then.
    pub of_any_pod: bool,
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The policy does not compile and denies everything on its servers.
    Invalid,
    /// Another policy's url holds; the rules apply all the same.
    Conflict,
    /// No policy gives the server a url, so that it cannot be reached.
    NoUrl,
    /// It compiles, and likely means another thing than it should.
    Doubt,
}

/// Something that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The policy, by its place among those given.
    pub policy: usize,
    /// How bad it is.
    pub severity: Severity,
    /// The field, and what to write instead.
    pub error: FieldError,
}

impl Engine {
    /// Compiles the policies of a pod. It always gives an engine: a policy that does not compile denies everything on
    /// its servers there. Counts live on in `counters` under limits that did not change but in `max`.
    pub fn compile(policies: &[Policy], counters: Arc<Memory>, options: &Options) -> (Self, Vec<Problem>) {
        let compile = || Ok(Self::compile_here(policies, Arc::clone(&counters), options));
        let has_expressions = policies.iter().any(|policy| {
            let mut tools = policy.spec.servers.iter().flat_map(|server| &server.tools);
            tools.any(|tool| {
                !tool.validations.is_empty() || tool.limits.iter().any(|limit| limit.key.is_some() || limit.cost.is_some())
            })
        });
        if !has_expressions {
            return Self::compile_here(policies, counters, options);
        }
        cel::with_parser(compile).unwrap_or_else(|why| Self::broken(policies, &counters, options, &why))
    }

    /// What holds where nothing could be compiled: every policy denies everything on its servers.
    fn broken(policies: &[Policy], counters: &Arc<Memory>, options: &Options, why: &str) -> (Self, Vec<Problem>) {
        let error = || FieldError { path: "spec".to_owned(), message: why.to_owned() };
        let bare = |server: &Server| Server { tools: Vec::new(), ..server.clone() };
        let broken = |policy: &Policy| Policy {
            id: policy.id.clone(),
            created: policy.created.clone(),
            spec: MCPPolicySpec { servers: policy.spec.servers.iter().map(bare).collect(), ..MCPPolicySpec::default() },
            unreadable: Some(policy.unreadable.clone().unwrap_or_else(error)),
        };
        let policies: Vec<Policy> = policies.iter().map(broken).collect();
        Self::compile_here(&policies, Arc::clone(counters), options)
    }

    fn compile_here(policies: &[Policy], counters: Arc<Memory>, options: &Options) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut order: Vec<usize> = (0..policies.len()).collect();
        order.sort_by_key(|index| policies.get(*index).map(|policy| &policy.id));
        let mut parts: Vec<Arc<Part>> = Vec::new();
        let mut urls: BTreeMap<&str, Vec<(usize, usize, &str)>> = BTreeMap::new();
        let mut before: Option<&PolicyId> = None;
        for (index, policy) in order.iter().filter_map(|index| Some((*index, policies.get(*index)?))) {
            let (id, room) = (policy.id.to_string(), cel::Room::default());
            let mut compiler = Compiler { options, policy: &policy.id, id, errors: Vec::new(), doubts: Vec::new(), room };
            if before.replace(&policy.id) == Some(&policy.id) {
                compiler.at("metadata.name", format!("there is another policy `{}`; rename one", policy.id));
            }
            match &policy.unreadable {
                Some(error) => compiler.errors.push(error.clone()),
                None => compiler.errors.extend(toolweir_crds::bounds::check(&policy.spec, policy.id.cluster)),
            }
            let servers: Vec<Vec<Entry>> =
                policy.spec.servers.iter().enumerate().map(|(at, server)| compiler.server(at, server)).collect();
            let broken = compiler.errors.first().map(ToString::to_string);
            let name: Arc<str> = compiler.id.as_str().into();
            for (at, (server, entries)) in policy.spec.servers.iter().zip(servers).enumerate() {
                parts.push(Arc::new(Part::new(
                    Arc::clone(&name),
                    &policy.spec,
                    server,
                    if broken.is_some() { Vec::new() } else { entries },
                    broken.clone(),
                )));
                if let Some(url) = &server.url {
                    urls.entry(&server.name).or_default().push((index, at, url));
                }
            }
            // Doubts are told of what compiles.
            let doubts = if broken.is_some() { Vec::new() } else { compiler.doubts };
            let found = |severity| move |error| Problem { policy: index, severity, error };
            problems.extend(compiler.errors.into_iter().map(found(Severity::Invalid)));
            problems.extend(doubts.into_iter().map(found(Severity::Doubt)));
        }
        let mut servers: BTreeMap<Arc<str>, ServerRules> = BTreeMap::new();
        let mut room = rules::PREPARED;
        for part in parts.iter().filter(|part| &*part.server != "*") {
            if servers.contains_key(&part.server) {
                continue;
            }
            let url = choose_url(policies, urls.get(&*part.server).map_or(&[], Vec::as_slice), &mut problems);
            let own = parts.iter().filter(|other| other.server == part.server || &*other.server == "*").cloned().collect();
            servers.insert(Arc::clone(&part.server), ServerRules::new(url, own, &mut room));
        }
        for (index, policy) in policies.iter().enumerate() {
            for (at, server) in policy.spec.servers.iter().enumerate() {
                if servers.get(server.name.as_str()).is_some_and(|rules| rules.url.is_none()) {
                    let path = format!("spec.servers[{at}].url");
                    let message = "is left out, and no other policy gives it; write where the server is".to_owned();
                    problems.push(Problem { policy: index, severity: Severity::NoUrl, error: FieldError { path, message } });
                }
            }
        }
        let pod = cel::pod(&options.pod, &options.namespace, &options.service_account);
        (Self { servers, counters, pod }, problems)
    }
}

/// Of the urls that policies give a server: that of the oldest, by creation and then by name.
fn choose_url(policies: &[Policy], given: &[(usize, usize, &str)], problems: &mut Vec<Problem>) -> Option<Arc<str>> {
    let age = |index: usize| policies.get(index).map(|policy| (policy.created.is_none(), &policy.created, &policy.id));
    let (oldest, _, url) = given.iter().min_by_key(|(index, at, _)| (age(*index), *at))?;
    let holder = policies.get(*oldest).map(|policy| policy.id.to_string()).unwrap_or_default();
    for (index, at, other) in given.iter().filter(|(_, _, other)| other != url) {
        let path = format!("spec.servers[{at}].url");
        let message =
            format!("is {other}, but the older policy {holder} says {url}, which holds; write the same or leave it out");
        problems.push(Problem { policy: *index, severity: Severity::Conflict, error: FieldError { path, message } });
    }
    Some((*url).into())
}

/// What a count is known by: with the pods that share it, so that it is the same in all of them and in no other.
fn named(whose: Option<&Arc<str>>, text: &str) -> Identity {
    match whose {
        Some(whose) => Identity::new(&format!("{whose}|{text}")),
        None => Identity::new(text),
    }
}

/// What is likely meant otherwise in an expression.
fn doubts(path: &str, expression: &Expression, before: &[&Expression]) -> Vec<FieldError> {
    let at = |message| FieldError { path: path.to_owned(), message };
    expression.doubts(before).into_iter().map(at).collect()
}

struct Compiler<'a> {
    options: &'a Options,
    policy: &'a PolicyId,
    id: String,
    errors: Vec<FieldError>,
    doubts: Vec<FieldError>,
    /// What its expressions may still take.
    room: cel::Room,
}

impl Compiler<'_> {
    fn at(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError { path: path.into(), message: message.into() });
    }

    fn server(&mut self, at: usize, server: &Server) -> Vec<Entry> {
        let path = format!("spec.servers[{at}]");
        let entries: Vec<Entry> = server
            .tools
            .iter()
            .enumerate()
            .map(|(at, tool)| self.entry(&format!("{path}.tools[{at}]"), &server.name, tool))
            .collect();
        self.contradictions(&path, &entries);
        entries
    }

    /// Globs of equal weight that both match some tool must not say different things about it.
    fn contradictions(&mut self, path: &str, entries: &[Entry]) {
        let mut by_weight: HashMap<usize, Vec<(usize, Glob, &Entry)>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some(glob) = Glob::parse(&entry.name) else { continue };
            let same = by_weight.entry(glob.weight()).or_default();
            let contradicts = |other: &&(usize, Glob, &Entry)| {
                other.2.effective_action() != entry.effective_action() && other.1.overlaps(&glob)
            };
            if let Some((first, _, other)) = same.iter().find(contradicts) {
                let message = format!(
                    "`{}` and `{}` (tools[{first}]) are equally specific, match the same tools and have different actions; \
                     give both the same action or make one longer",
                    entry.name.escape_debug(),
                    other.name.escape_debug()
                );
                self.errors.push(FieldError { path: format!("{path}.tools[{index}].name"), message });
            }
            same.push((index, glob, entry));
        }
    }

    /// The pods that a scope counts together; nothing where it is this one alone, or where they cannot be told, which is an
    /// error at this path. `else_write` are the scopes that need no store.
    fn whose(&mut self, path: &str, scope: Scope, else_write: &str) -> Option<Arc<str>> {
        let Options { shared_store, namespace, service_account, workload, of_any_pod, .. } = self.options;
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
        let (together, needs, whose) = match scope {
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
        Some(whose.into())
    }

    fn entry(&mut self, path: &str, server: &str, tool: &Tool) -> Entry {
        let place = format!("{}|{server}|{}", self.id, tool.name);
        let mut seen: HashMap<String, usize> = HashMap::new();
        let limits = tool.limits.iter().enumerate().filter_map(|(at, limit)| {
            let path = format!("{path}.limits[{at}]");
            let whose = self.whose(&format!("{path}.scope"), limit.scope, "Pod or Session");
            let key = self.optional(&format!("{path}.key"), limit.key.as_deref());
            let cost = self.optional(&format!("{path}.cost"), limit.cost.as_deref());
            let nanos = limit.window.span().as_nanos();
            let identity = if let Some(counter) = &limit.counter {
                format!("{}|counter|{counter}|{nanos}|{:?}", self.id, limit.scope)
            } else {
                let text = format!(
                    "{place}|{nanos}|{:?}|{}|{}",
                    limit.scope,
                    limit.key.as_deref().unwrap_or_default(),
                    limit.cost.as_deref().unwrap_or_default()
                );
                // Two limits that differ in `max` alone: each is counted, and the stricter decides.
                let twin = seen.entry(text.clone()).and_modify(|n| *n += 1).or_insert(0);
                format!("{text}|{twin}")
            };
            let mut label = format!("{}/{}", limit.max, limit.window);
            if limit.scope != Scope::Pod {
                label.push_str(&format!("/{:?}", limit.scope));
            }
            if let Some(counter) = &limit.counter {
                label.push_str(&format!("/{counter}"));
            }
            Some(Arc::new(Limit {
                identity: named(whose.as_ref(), &identity),
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
                whose,
            }))
        });
        let limits: Vec<Arc<Limit>> = limits.collect();
        let validations = tool.validations.iter().enumerate().filter_map(|(at, validation)| {
            let expression = self.optional(&format!("{path}.validations[{at}].expression"), Some(&validation.expression))?;
            Some(Validation { expression, source: validation.expression.clone(), message: validation.message.clone() })
        });
        let validations: Vec<Validation> = validations.collect();
        let conditions: Vec<&Expression> = validations.iter().map(|validation| &validation.expression).collect();
        for (at, condition) in conditions.iter().enumerate() {
            self.doubts.extend(doubts(&format!("{path}.validations[{at}].expression"), condition, &[]));
        }
        for (at, limit) in limits.iter().enumerate() {
            for (field, expression) in [("key", &limit.key), ("cost", &limit.cost)] {
                let of = expression
                    .iter()
                    .flat_map(|(expression, _)| doubts(&format!("{path}.limits[{at}].{field}"), expression, &conditions));
                self.doubts.extend(of);
            }
        }
        let hold = tool.max_concurrent.map(|max| {
            let scope = tool.max_concurrent_scope;
            let whose = self.whose(&format!("{path}.maxConcurrentScope"), scope, "Pod");
            let identity = named(whose.as_ref(), &format!("{place}|maxConcurrent"));
            EntryHold { hold: Hold { identity, max: u64::try_from(max).unwrap_or(0) }, scope, whose }
        });
        Entry { name: tool.name.as_str().into(), action: tool.action, reason: tool.reason.clone(), limits, validations, hold }
    }

    fn optional(&mut self, path: &str, source: Option<&str>) -> Option<Expression> {
        match Expression::compile_in(source?, &mut self.room) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.at(path, why);
                None
            }
        }
    }
}
