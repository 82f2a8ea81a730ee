//! Compiled policies: what holds for each server, and for each tool of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use smallvec::SmallVec;
use toolweir_crds::{Action, MCPPolicySpec, Mode, OnStoreFailure, Scope, Server, Window, bounds};

use crate::{
    case::folded,
    cel::{Data, Expression, Names},
    counters::{Counters, Hold, Identity, Memory, instance},
    denial::{Denial, Reason, shown},
    glob::{Glob, Match},
    shared::{Known, SharedTake},
    window::{Amount, Span, Timestamp},
};

/// The policies of one pod, compiled, with the counts that they are held to.
#[derive(Debug)]
pub struct Engine {
    pub(crate) servers: BTreeMap<Arc<str>, ServerRules>,
    pub(crate) counters: Arc<Memory>,
    pub(crate) pod: Data<'static>,
}

/// A server that some policy names.
#[derive(Clone, Copy, Debug)]
pub struct ServerView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is, if a policy says so.
    pub url: Option<&'a str>,
}

/// A limit and how full it is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LimitView<'a> {
    /// The server's name in the policy; `*` for every server.
    pub server: &'a str,
    /// The entry's name.
    pub tool: &'a str,
    /// The policy.
    pub policy: &'a str,
    /// The limit in short, such as `30/minute`.
    pub limit: &'a str,
    /// Whether each value of an expression has a count of its own; what is used is then that of the fullest.
    pub keyed: bool,
    /// What counts now.
    pub used: f64,
    /// The maximum.
    pub max: i64,
    /// What is counted together.
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
    /// Whether pods share the count; what is used is then what this pod knows of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

#[derive(Debug)]
pub(crate) struct ServerRules {
    pub url: Option<Arc<str>>,
    /// What each policy says, in the order of the policies' names.
    pub parts: Vec<Arc<Part>>,
    /// What holds for each tool that some entry names exactly; nothing where that is made for each call.
    plans: HashMap<Box<str>, Option<Plan>>,
}

/// What it may take to make plans beforehand, in all servers together: comparisons of entries with names, and what the plans hold.
/// A server with a thousand entries, a hundred of them globs, takes a tenth of it.
pub(crate) const PREPARED: usize = 4_000_000;

/// What one policy says about one server.
#[derive(Debug)]
pub(crate) struct Part {
    pub policy: Arc<str>,
    pub mode: Mode,
    pub on_store_failure: OnStoreFailure,
    pub default_action: Action,
    pub server: Arc<str>,
    pub entries: Vec<Entry>,
    exact: HashMap<Arc<str>, usize>,
    /// The entries with exact names, by these without case.
    folded: HashMap<Box<str>, SmallVec<[usize; 1]>>,
    /// Most specific first; of equals, those that deny.
    globs: Vec<(Glob, usize)>,
    /// Why the policy does not compile. It denies everything then, in whatever mode.
    pub broken: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub name: Arc<str>,
    pub action: Option<Action>,
    pub reason: Option<String>,
    pub limits: Vec<Arc<Limit>>,
    pub validations: Vec<Validation>,
    pub hold: Option<EntryHold>,
}

impl Entry {
    /// What it says of the tools that it matches: `*` has no say unless it says so, nor have several `*`.
    pub(crate) fn effective_action(&self) -> Option<Action> {
        self.action.or_else(|| self.name.contains(|c| c != '*').then_some(Action::Allow))
    }

    /// Whether some count of it is one that pods share.
    pub(crate) fn shares(&self) -> bool {
        self.whose().next().is_some()
    }

    /// The pods that count together, for each count that pods share.
    fn whose(&self) -> impl Iterator<Item = &Arc<str>> {
        let hold = self.hold.iter().filter_map(|hold| hold.whose.as_ref());
        self.limits.iter().filter_map(|limit| limit.whose.as_ref()).chain(hold)
    }

    /// Whether it can deny for what a call's arguments are.
    pub(crate) fn has_expressions(&self) -> bool {
        self.expressions().next().is_some()
    }

    /// Its expressions.
    fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let limits = self.limits.iter().flat_map(|limit| limit.key.iter().chain(&limit.cost));
        self.validations.iter().map(|validation| &validation.expression).chain(limits.map(|(expression, _)| expression))
    }
}

#[derive(Debug)]
pub(crate) struct Limit {
    pub identity: Identity,
    pub span: Span,
    pub max: i64,
    pub window: Window,
    pub window_text: Arc<str>,
    pub scope: Scope,
    pub key: Option<(Expression, String)>,
    pub cost: Option<(Expression, String)>,
    pub label: String,
    /// The pods that count together, where that is more than this one.
    pub whose: Option<Arc<str>>,
}

/// How many calls of an entry may be under way at once.
#[derive(Debug)]
pub(crate) struct EntryHold {
    pub hold: Hold,
    pub scope: Scope,
    /// The pods that count together, where that is more than this one.
    pub whose: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Validation {
    pub expression: Expression,
    pub source: String,
    pub message: Option<String>,
}

/// What one policy says about one tool.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub part: Arc<Part>,
    /// The entries that match, most specific first, and how.
    entries: SmallVec<[(usize, Match); 2]>,
    /// The reason to deny it whatever the call is.
    reason: Option<Reason>,
}

impl Step {
    pub(crate) fn matching(&self) -> impl Iterator<Item = &Entry> {
        self.said().map(|(entry, _)| entry)
    }

    /// The entries that match, and what each says of the tool. What restricts matches without regard to case, so that no other
    /// spelling gets around it; what allows matches as it stands there.
    pub(crate) fn said(&self) -> impl Iterator<Item = (&Entry, Option<Action>)> {
        let of = |(index, how): &(usize, Match)| {
            let entry = self.part.entries.get(*index)?;
            let action = entry.effective_action();
            Some((entry, if *how == Match::Folded { action.filter(|action| *action == Action::Deny) } else { action }))
        };
        self.entries.iter().filter_map(of)
    }

    /// The entry that gives the action, and the action.
    fn verdict(&self) -> Option<(&Entry, Action)> {
        self.said().find_map(|(entry, action)| Some((entry, action?)))
    }

    /// Whether it lets the tool through, as far as that does not hang on the call.
    pub(crate) fn allows(&self) -> bool {
        self.reason.is_none()
    }

    /// The entry that gives the action.
    pub(crate) fn deciding(&self) -> Option<&Entry> {
        self.verdict().map(|(entry, _)| entry)
    }

    /// The denial that needs no look at the call.
    fn denial(&self, tool: &str) -> Option<Denial> {
        let (reason, entry) = (self.reason?, self.deciding());
        let what = match (reason, entry.and_then(|entry| entry.reason.as_ref()), &self.part.broken) {
            (Reason::Malformed, ..) => too_long(tool),
            (_, _, Some(why)) => {
                format!("it does not compile ({why}), so everything on its servers is denied until it is corrected.")
            }
            (Reason::NotListed, ..) => {
                format!("{} is not among the tools that may be called. Use one that tools/list shows.", shown(tool))
            }
            (_, Some(reason), _) => reason.clone(),
            _ => format!("{} may not be called.", shown(tool)),
        };
        Some(Denial::by(&self.part.policy, entry.map(|entry| &entry.name), reason, tool, &what))
    }
}

/// What is said of a name that no tool has.
fn too_long(tool: &str) -> String {
    format!(
        "the tool's name has {} bytes; at most {} are possible. Use a tool that tools/list shows.",
        tool.len(),
        bounds::TOOL_NAME
    )
}

/// What policies that decide together say about one tool: all that are enforced, or one in audit mode.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub steps: SmallVec<[Step; 1]>,
    /// The denial that needs no look at the call: the most severe.
    pub denial: Option<Denial>,
    /// The names that they could read of the arguments; nothing where they do not read them.
    pub names: Option<Names>,
}

impl Group {
    pub(crate) fn new(steps: SmallVec<[Step; 1]>, tool: &str) -> Self {
        let denies = steps.iter().filter(|step| step.reason.is_some()).min_by_key(|step| step.reason);
        let denial = denies.and_then(|step| step.denial(tool));
        let expressions = || steps.iter().flat_map(Step::matching).flat_map(Entry::expressions);
        let names = || expressions().flat_map(Expression::names).collect();
        let names = expressions().any(Expression::reads_arguments).then(names);
        Self { steps, denial, names }
    }
}

/// What holds for one tool of one server.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub enforced: Group,
    /// The policies in audit mode, each on its own.
    pub audited: SmallVec<[Group; 1]>,
    /// The first policy and its entry: where all allow, the call is counted under it.
    pub policy: Option<Arc<str>>,
    pub entry: Option<Arc<str>>,
    /// Whether some count is one that pods share.
    pub shares: bool,
}

impl Plan {
    /// About how much it holds, in entries and names.
    fn weight(&self) -> usize {
        let of = |group: &Group| {
            let entries: usize = group.steps.iter().map(|step| step.entries.len()).sum();
            entries + group.names.as_ref().map_or(0, Names::len)
        };
        8 * (of(&self.enforced) + self.audited.iter().map(of).sum::<usize>())
    }
}

impl Part {
    pub(crate) fn new(
        policy: Arc<str>,
        spec: &MCPPolicySpec,
        server: &Server,
        entries: Vec<Entry>,
        broken: Option<String>,
    ) -> Self {
        let (mut exact, mut globs) = (HashMap::new(), Vec::new());
        let mut by_folded: HashMap<Box<str>, SmallVec<[usize; 1]>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            match Glob::parse(&entry.name) {
                Some(glob) => globs.push((glob, index)),
                None => {
                    exact.insert(Arc::clone(&entry.name), index);
                    by_folded.entry(folded(&entry.name).into()).or_default().push(index);
                }
            }
        }
        let denies = |index: usize| entries.get(index).and_then(Entry::effective_action) == Some(Action::Deny);
        globs.sort_by_key(|(glob, index)| (std::cmp::Reverse(glob.weight()), !denies(*index), *index));
        Self {
            policy,
            mode: spec.mode,
            on_store_failure: spec.on_store_failure,
            default_action: server.default_action,
            server: server.name.as_str().into(),
            entries,
            exact,
            folded: by_folded,
            globs,
            broken,
        }
    }

    fn step(self: &Arc<Self>, tool: &str) -> Step {
        if self.broken.is_some() {
            return Step { part: Arc::clone(self), entries: SmallVec::new(), reason: Some(Reason::InvalidPolicy) };
        }
        if tool.len() > bounds::TOOL_NAME {
            return Step { part: Arc::clone(self), entries: SmallVec::new(), reason: Some(Reason::Malformed) };
        }
        let exact = self.exact.get(tool).copied();
        let lower = folded(tool);
        let mut entries: SmallVec<[(usize, Match); 2]> = exact.into_iter().map(|index| (index, Match::Exact)).collect();
        let others = self.folded.get(&*lower).into_iter().flatten().filter(|index| Some(**index) != exact);
        entries.extend(others.map(|index| (*index, Match::Folded)));
        entries.extend(self.globs.iter().filter_map(|(glob, index)| Some((*index, glob.match_of(tool, &lower)?))));
        let mut step = Step { part: Arc::clone(self), entries, reason: None };
        step.reason = match step.verdict().map(|(_, action)| action) {
            Some(Action::Allow) => None,
            Some(Action::Deny) => Some(Reason::Denied),
            None if self.default_action == Action::Allow => None,
            None => Some(Reason::NotListed),
        };
        step
    }
}

impl ServerRules {
    pub(crate) fn new(url: Option<Arc<str>>, parts: Vec<Arc<Part>>, room: &mut usize) -> Self {
        let mut rules = Self { url, parts, plans: HashMap::new() };
        let names: BTreeSet<Arc<str>> = rules.parts.iter().flat_map(|part| part.exact.keys().cloned()).collect();
        let globs: usize = rules.parts.iter().map(|part| 1 + part.globs.len()).sum();
        for name in names {
            let mut left = room.checked_sub(globs.saturating_mul(1 + name.len() / 16));
            let plan = left.map(|_| rules.build(&name));
            if let (Some(plan), Some(rest)) = (&plan, left) {
                left = rest.checked_sub(plan.weight());
            }
            *room = left.unwrap_or(0);
            rules.plans.insert(Box::from(&*name), plan.filter(|_| left.is_some()));
        }
        rules
    }

    /// What holds for a tool: made ready for those that are named exactly, else made now.
    pub(crate) fn plan(&self, tool: &str) -> std::borrow::Cow<'_, Plan> {
        let ready = self.plans.get(tool).and_then(Option::as_ref);
        ready.map_or_else(|| std::borrow::Cow::Owned(self.build(tool)), std::borrow::Cow::Borrowed)
    }

    fn build(&self, tool: &str) -> Plan {
        let all: SmallVec<[Step; 2]> = self.parts.iter().map(|part| part.step(tool)).collect();
        let policy = all.first().map(|step| Arc::clone(&step.part.policy));
        let entry = all.first().and_then(Step::deciding).map(|entry| Arc::clone(&entry.name));
        let shares = all.iter().flat_map(Step::matching).any(Entry::shares);
        let (enforced, audited): (SmallVec<_>, SmallVec<[Step; 1]>) =
            all.into_iter().partition(|step| step.part.mode == Mode::Enforce || step.part.broken.is_some());
        let audited = audited.chunk_by(|a, b| a.part.policy == b.part.policy).map(|own| Group::new(own.into(), tool)).collect();
        Plan { enforced: Group::new(enforced, tool), audited, policy, entry, shares }
    }
}

impl Engine {
    /// The servers that policies name, by name.
    pub fn servers(&self) -> impl Iterator<Item = ServerView<'_>> {
        self.servers.iter().map(|(name, rules)| ServerView { name, url: rules.url.as_deref() })
    }

    /// A server, if some policy names it.
    pub fn server(&self, name: &str) -> Option<ServerView<'_>> {
        self.servers.get_key_value(name).map(|(name, rules)| ServerView { name, url: rules.url.as_deref() })
    }

    /// Whether `tools/list` shows a tool: whether no enforced policy denies it whatever the arguments are.
    pub fn shows(&self, server: &str, tool: &str) -> bool {
        self.servers.get(server).is_some_and(|rules| rules.plan(tool).enforced.denial.is_none())
    }

    /// The denial of everything on a server, if a policy of it does not compile.
    pub fn closed(&self, server: &str) -> Option<Denial> {
        let part = self.servers.get(server)?.parts.iter().find(|part| part.broken.is_some())?;
        part.step("").denial("")
    }

    /// The first policy that governs a server: where all allow, the one that a call is counted under.
    pub fn first_policy(&self, server: &str) -> Option<&Arc<str>> {
        self.servers.get(server)?.parts.first().map(|part| &part.policy)
    }

    /// The tools that some policy names exactly.
    pub fn tools(&self, server: &str) -> impl Iterator<Item = &str> {
        self.servers.get(server).into_iter().flat_map(|rules| rules.plans.keys().map(|name| &**name))
    }

    /// Whether some limit or `maxConcurrent` counts calls of several pods together.
    pub fn shares(&self) -> bool {
        self.whose().next().is_some()
    }

    /// The groups of pods that some count in force counts together, such as `Workload agents/Deployment/social`.
    pub fn groups(&self) -> BTreeSet<Arc<str>> {
        self.whose().cloned().collect()
    }

    fn whose(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().into_iter().flat_map(|part| part.entries.iter().flat_map(Entry::whose))
    }

    /// What a call would take of each limit that pods share and that has one count, each count once: for looking at it.
    pub fn shared_counts(&self) -> Vec<SharedTake> {
        let mut takes: Vec<SharedTake> = Vec::new();
        for part in self.parts() {
            for limit in part.entries.iter().flat_map(|entry| &entry.limits).filter(|limit| limit.key.is_none()) {
                let Some(whose) = &limit.whose else { continue };
                if !takes.iter().any(|known| known.take.identity == limit.identity) {
                    let take = limit.take(instance(""), Amount::ONE);
                    takes.push(SharedTake { take, whose: Arc::clone(whose), failure: part.on_store_failure });
                }
            }
        }
        takes
    }

    /// Each part in force once: one of the server `*` stands under every server.
    fn parts(&self) -> Vec<&Arc<Part>> {
        let mut parts: Vec<&Arc<Part>> = self.servers.values().flat_map(|rules| &rules.parts).collect();
        parts.sort_by_key(|part| Arc::as_ptr(part));
        parts.dedup_by_key(|part| Arc::as_ptr(part));
        parts
    }

    /// Every limit and how full it is; `known` says what is known of those that pods share.
    pub fn limits(&self, now: Timestamp, known: &dyn Known) -> Vec<LimitView<'_>> {
        let mut parts = self.parts();
        parts.sort_by(|a, b| (&a.policy, &a.server).cmp(&(&b.policy, &b.server)));
        let mut views = Vec::new();
        for part in parts {
            for entry in &part.entries {
                for limit in &entry.limits {
                    let used = match &limit.whose {
                        None => self.counters.used(&limit.identity, limit.span, now),
                        Some(_) => known.used(&limit.identity).unwrap_or_default(),
                    };
                    views.push(LimitView {
                        server: &part.server,
                        tool: &entry.name,
                        policy: &part.policy,
                        limit: &limit.label,
                        keyed: limit.key.is_some(),
                        used: used.as_f64(),
                        max: limit.max,
                        scope: limit.scope,
                        shared: limit.whose.is_some(),
                    });
                }
            }
        }
        views
    }

    /// The counts that calls are held to.
    pub fn counters(&self) -> &Arc<Memory> {
        &self.counters
    }
}

impl Limit {
    pub(crate) fn maximum(&self) -> Amount {
        Amount::whole(u64::try_from(self.max).unwrap_or(0))
    }
}
