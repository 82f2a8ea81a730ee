//! Compiled rules: those of each server and kind of operation, and the plan for each name.
//!
//! A [`ServerRules`] holds [`KindRules`] for each kind, with a [`PolicyRules`] for each policy that has a say in the kind. For one name,
//! each policy gives a [`Step`]; steps that decide together are a [`Group`]; and the groups are the [`NamePlan`].

use std::{borrow::Cow, cmp::Reverse, collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;
use smallvec::SmallVec;
use toolweir_crds::{Action, Credential, MCPPolicySpec, Mode, OnStoreFailure, OperationKind, Server, ToolClass, tool_name};

use crate::{
    ask::AskingPolicy,
    call::Operation,
    case::folded,
    cel::{ArgumentNames, Expression},
    denial::{Denial, Reason},
    entry::CompiledEntry,
    glob::{Glob, Match},
    names::NameForms,
    pins::PinRule,
    result_limit::ResultLimit,
    words,
};

/// The rules of one server.
#[derive(Debug)]
pub(crate) struct ServerRules {
    pub url: Option<Arc<str>>,
    /// What the sidecar shows the server at `url`.
    pub credential: Option<Credential>,
    /// True if captured TLS to `url` is opened.
    pub intercept: bool,
    pub refuses_tls: bool,
    /// True if the audit log has the arguments of calls.
    pub audits_arguments: bool,
    /// The rules of each kind, in the order of [`OperationKind::ALL`].
    kinds: [KindRules; OperationKind::ALL.len()],
}

/// The rules of one kind of operation on one server.
#[derive(Debug)]
pub(crate) struct KindRules {
    kind: OperationKind,
    /// The rules of each policy that has a say in the kind, in the order of the policies' names.
    pub policies: Vec<Arc<PolicyRules>>,
    /// The plans for each name that some entry has exactly: one, or one for each class where a policy has entries for classes. `None`
    /// where they are made for each call.
    plans: HashMap<Box<str>, Option<SmallVec<[NamePlan; 1]>>>,
    reads: DefinitionReads,
}

/// What policies of a server read of the definitions of its tools.
#[derive(Clone, Copy, Debug)]
struct DefinitionReads {
    /// One has an entry for a class.
    classes: bool,
    /// One holds the server to pins.
    pins: bool,
}

/// How the sidecar reaches a server.
#[derive(Debug, Default)]
pub(crate) struct ServerAccess {
    pub url: Option<Arc<str>>,
    pub credential: Option<Credential>,
    pub intercept: bool,
    pub refuses_tls: bool,
}

/// The budget for plans that are made beforehand, of all servers together: comparisons of entries with names, and the weight of
/// the plans. A server with a thousand entries, a hundred of them globs, takes a tenth of it.
pub(crate) const PLAN_BUDGET: usize = 4_000_000;

/// The rules of one policy for one kind of operation on one server.
#[derive(Debug)]
pub(crate) struct PolicyRules {
    pub policy: Arc<str>,
    pub kind: OperationKind,
    pub mode: Mode,
    pub on_store_failure: OnStoreFailure,
    pub default_action: Action,
    pub server: Arc<str>,
    /// Whether the audit log has the arguments of calls, if the policy has a say in that.
    pub audit_arguments: Option<bool>,
    pub entries: Vec<CompiledEntry>,
    /// The entries with exact names, by these.
    exact: HashMap<Arc<str>, usize>,
    /// The entries with exact names, by these without case.
    folded: HashMap<Box<str>, SmallVec<[usize; 1]>>,
    /// The entries with globs, most specific first; of equals, those that deny.
    globs: Vec<(Glob, usize)>,
    /// The entries for classes.
    classes: Vec<(ToolClass, usize)>,
    /// True if what it says depends on the name.
    tells_names_apart: bool,
    pub pins: Option<PinRule>,
    /// The policy, where an entry asks for approval.
    pub asking: Option<Arc<AskingPolicy>>,
    /// The reason why the policy cannot be enforced, if so. It denies everything then, in any mode.
    pub broken: Option<Broken>,
}

/// Why a policy cannot be enforced on a server.
#[derive(Clone, Debug)]
pub(crate) enum Broken {
    /// It does not compile: the first error.
    Compile(String),
    /// It gives the server another credential than an older policy, or one for a URL that is not in force.
    Credential(String),
}

impl Broken {
    /// Returns the field, and what is wrong with it.
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Compile(why) | Self::Credential(why) => why,
        }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Compile(why) => {
                format!("it does not compile ({why}), so everything on its servers is denied until it is corrected.")
            }
            Self::Credential(why) => {
                format!("policies disagree on the server's credential ({why}), so everything on it is denied until they agree.")
            }
        }
    }
}

/// The step of one policy in the decision on one name: its entries that match, and their verdict.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub rules: Arc<PolicyRules>,
    /// The entries that match, most specific first, and how far.
    entries: SmallVec<[(usize, Reach); 2]>,
    /// The reason to deny every call.
    reason: Option<Reason>,
}

/// How far an entry applies to a tool that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// As it is written.
    Whole,
    /// Only as far as it restricts: it names the tool in another case, or the tool's class is not known.
    Restricts,
}

impl From<Match> for Reach {
    fn from(how: Match) -> Self {
        match how {
            Match::Exact => Self::Whole,
            Match::Folded => Self::Restricts,
        }
    }
}

impl Step {
    /// Returns the entries that match.
    pub(crate) fn matching(&self) -> impl Iterator<Item = &CompiledEntry> {
        self.entries_with_actions().map(|(entry, _)| entry)
    }

    /// Returns the entries that match, each with its action on the tool. An entry that denies matches without regard to case, so
    /// that no other spelling gets around it; an entry that allows matches the exact spelling only. The same holds for entries of classes
    /// and a tool whose class is not known.
    pub(crate) fn entries_with_actions(&self) -> impl Iterator<Item = (&CompiledEntry, Option<Action>)> {
        let of = |(index, reach): &(usize, Reach)| {
            let entry = self.rules.entries.get(*index)?;
            let action = entry.effective_action();
            Some((entry, if *reach == Reach::Restricts { action.filter(|action| *action == Action::Deny) } else { action }))
        };
        self.entries.iter().filter_map(of)
    }

    /// Returns the entry that decides, and its action.
    fn verdict(&self) -> Option<(&CompiledEntry, Action)> {
        self.entries_with_actions().find_map(|(entry, action)| Some((entry, action?)))
    }

    /// Returns true if it allows the tool, as far as that does not depend on the call.
    pub(crate) fn allows(&self) -> bool {
        self.reason.is_none()
    }

    /// Returns the entry that decides.
    pub(crate) fn deciding(&self) -> Option<&CompiledEntry> {
        self.verdict().map(|(entry, _)| entry)
    }

    /// Returns the denial that does not depend on the call, if it denies what is asked for.
    pub(crate) fn denial(&self, name: &str) -> Option<Denial> {
        let (reason, entry, operation) = (self.reason?, self.deciding(), Operation { kind: self.rules.kind, name, method: "" });
        let what = match (reason, entry.and_then(|entry| entry.reason.as_ref()), &self.rules.broken) {
            (Reason::Malformed, ..) => NameForms::of(operation).unclear.unwrap_or_default(),
            (_, _, Some(broken)) => broken.sentence(),
            (Reason::NotListed, ..) => words::not_among(operation),
            (_, Some(reason), _) => reason.clone(),
            _ => words::may_not(operation),
        };
        Some(Denial::of_policy(&self.rules.policy, entry.map(|entry| &entry.name), reason, operation, &what))
    }

    /// Returns the smallest bound on results among the entries that match, with its entry.
    pub(crate) fn result_limit(&self) -> Option<(u64, &Arc<str>)> {
        self.matching().filter_map(|entry| Some((entry.max_result_bytes?, &entry.name))).min_by_key(|(most, _)| *most)
    }
}

/// The steps of policies that decide together on one name: all that are enforced, or one in audit mode.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub steps: SmallVec<[Step; 1]>,
    /// The denial that does not depend on the call: the most severe.
    pub denial: Option<Denial>,
    /// The names that their expressions could read of the arguments; `None` where none reads them.
    pub names: Option<ArgumentNames>,
    /// True if one of their entries may ask a person about the call.
    pub asks: bool,
}

impl Group {
    /// Groups the steps of policies that decide together on a name.
    pub(crate) fn new(steps: SmallVec<[Step; 1]>, name: &str) -> Self {
        let denies = steps.iter().filter(|step| step.reason.is_some()).min_by_key(|step| step.reason);
        let denial = denies.and_then(|step| step.denial(name));
        let expressions = || steps.iter().flat_map(Step::matching).flat_map(CompiledEntry::expressions);
        let names = || expressions().flat_map(Expression::names).collect();
        let names = expressions().any(Expression::reads_arguments).then(names);
        let asks = steps.iter().flat_map(Step::matching).any(|entry| entry.approval.is_some());
        Self { steps, denial, names, asks }
    }
}

/// The plan for one name of one kind on one server: all that does not depend on the call.
#[derive(Clone, Debug)]
pub(crate) struct NamePlan {
    pub enforced: Group,
    /// The policies in audit mode, each on its own.
    pub audited: SmallVec<[Group; 1]>,
    /// The first policy and its entry: where all allow, the call is counted under it.
    pub policy: Option<Arc<str>>,
    pub entry: Option<Arc<str>>,
    /// True if pods share one of the counts.
    pub shares: bool,
    /// True if a policy holds the server to pins.
    pub has_pins: bool,
    /// The bound on results of the enforced policies.
    pub result_limit: Option<Arc<ResultLimit>>,
}

impl NamePlan {
    /// Returns true where another plan for the same tool decides every call alike.
    fn decides_as(&self, other: &Self) -> bool {
        let steps = |plan: &Self| {
            let groups = std::iter::once(&plan.enforced).chain(&plan.audited);
            let restricting = |step: &Step| {
                let restricts =
                    |(index, _): &&(usize, Reach)| step.rules.entries.get(*index).is_some_and(CompiledEntry::restricts);
                let entries = step.entries.iter().filter(restricts).map(|(index, _)| *index);
                (step.reason, step.deciding().map(|entry| Arc::clone(&entry.name)), entries.collect::<SmallVec<[usize; 2]>>())
            };
            groups.flat_map(|group| &group.steps).map(restricting).collect::<SmallVec<[_; 2]>>()
        };
        steps(self) == steps(other)
    }

    /// Returns the approximate size, in entries and names.
    fn weight(&self) -> usize {
        let of = |group: &Group| {
            let entries: usize = group.steps.iter().map(|step| step.entries.len()).sum();
            entries + group.names.as_ref().map_or(0, ArgumentNames::len)
        };
        8 * (of(&self.enforced) + self.audited.iter().map(of).sum::<usize>())
    }
}

impl PolicyRules {
    /// Indexes the entries of a policy for one server. `broken` is the reason why the policy cannot be enforced, if so.
    pub(crate) fn new(
        policy: Arc<str>,
        spec: &MCPPolicySpec,
        server: &Server,
        kind: OperationKind,
        pins: Option<PinRule>,
        entries: Vec<CompiledEntry>,
        broken: Option<Broken>,
    ) -> Self {
        let (mut exact, mut globs, mut classes) = (HashMap::new(), Vec::new(), Vec::new());
        let mut by_folded: HashMap<Box<str>, SmallVec<[usize; 1]>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            if let Some(class) = entry.class {
                classes.push((class, index));
                continue;
            }
            // Policies with other names do not compile.
            let literals = tool_name::literals(&entry.name).unwrap_or_default();
            if let [name] = literals.as_slice() {
                exact.insert(Arc::from(&**name), index);
                by_folded.entry(folded(name).into()).or_default().push(index);
                // Servers read a URI with a last slash as one without.
                if let Some(trimmed) = name.strip_suffix('/').filter(|_| kind == OperationKind::Resource) {
                    by_folded.entry(folded(trimmed).into()).or_default().push(index);
                }
            } else if let Some(glob) = Glob::new(&literals) {
                globs.push((glob, index));
            }
        }
        let denies = |index: usize| entries.get(index).and_then(CompiledEntry::effective_action) == Some(Action::Deny);
        globs.sort_by_key(|(glob, index)| (Reverse(glob.weight()), !denies(*index), *index));
        let tells_names_apart =
            entries.iter().any(|entry| entry.tells_names_apart() || entry.expressions().any(Expression::reads_name));
        Self {
            policy,
            kind,
            mode: spec.mode,
            on_store_failure: spec.on_store_failure,
            default_action: server.default_action_of(kind),
            server: server.name.as_str().into(),
            // Of a policy that cannot be enforced nothing is opened.
            audit_arguments: server.audit_arguments.filter(|audits| !audits || broken.is_none()),
            entries,
            exact,
            folded: by_folded,
            globs,
            classes,
            tells_names_apart,
            pins: pins.filter(|_| kind == OperationKind::Tool),
            asking: None,
            broken,
        }
    }

    /// Returns the rules of the same policy, which deny everything on the server since policies disagree on its credential.
    pub(crate) fn closed_by(&self, why: &str) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            kind: self.kind,
            mode: self.mode,
            on_store_failure: self.on_store_failure,
            default_action: self.default_action,
            server: Arc::clone(&self.server),
            audit_arguments: self.audit_arguments.filter(|audits| !audits),
            entries: Vec::new(),
            exact: HashMap::new(),
            folded: HashMap::new(),
            globs: Vec::new(),
            classes: Vec::new(),
            tells_names_apart: false,
            pins: None,
            asking: None,
            broken: Some(self.broken.clone().unwrap_or_else(|| Broken::Credential(why.to_owned()))),
        }
    }

    /// Matches a name, for a tool of this class, with the entries. The class is a stranger's text: where it allows, every name and glob
    /// counts more; where it denies, only the exact name does.
    pub(crate) fn step(self: &Arc<Self>, forms: &NameForms<'_>, class: ToolClass) -> Step {
        if self.broken.is_some() {
            return Step { rules: Arc::clone(self), entries: SmallVec::new(), reason: Some(Reason::InvalidPolicy) };
        }
        if forms.unclear.is_some() && (self.tells_names_apart || self.kind != OperationKind::Resource) {
            return Step { rules: Arc::clone(self), entries: SmallVec::new(), reason: Some(Reason::Malformed) };
        }
        let exact = self.exact.get(&*forms.exact).copied();
        let mut entries: SmallVec<[(usize, Reach); 2]> = exact.into_iter().map(|index| (index, Reach::Whole)).collect();
        for lower in &forms.folded {
            for index in self.folded.get(&**lower).into_iter().flatten() {
                if !entries.iter().any(|(known, _)| known == index) {
                    entries.push((*index, Reach::Restricts));
                }
            }
        }
        entries.extend(self.of_class(class, true));
        entries.extend(self.globs.iter().filter_map(|(glob, index)| {
            let entry = self.entries.get(*index)?;
            Some((*index, forms.matched_by(glob, &entry.name)?.into()))
        }));
        entries.extend(self.of_class(class, false));
        let mut step = Step { rules: Arc::clone(self), entries, reason: None };
        step.reason = match step.verdict().map(|(_, action)| action) {
            Some(Action::Allow) => None,
            Some(Action::Deny) => Some(Reason::Denied),
            None if self.default_action == Action::Allow => None,
            None => Some(Reason::NotListed),
        };
        step
    }
}

impl PolicyRules {
    /// Returns the entries for a class that deny, or the others.
    fn of_class(&self, class: ToolClass, denies: bool) -> impl Iterator<Item = (usize, Reach)> {
        let is_denial = |index: usize| self.entries.get(index).and_then(CompiledEntry::effective_action) == Some(Action::Deny);
        self.classes.iter().filter(move |(_, index)| is_denial(*index) == denies).filter_map(move |(of, index)| {
            let reach = if class == ToolClass::Unknown { Reach::Restricts } else { Reach::Whole };
            (*of == class || class == ToolClass::Unknown).then_some((*index, reach))
        })
    }
}

impl ServerRules {
    /// Makes the plans of the names that entries have exactly, as far as the budget goes. It takes what it spends from `budget`.
    /// `policies` are those of every kind.
    pub(crate) fn new(access: ServerAccess, policies: &[Arc<PolicyRules>], budget: &mut usize) -> Self {
        let ServerAccess { url, credential, intercept, refuses_tls } = access;
        let says = |audits: bool| policies.iter().any(|rules| rules.audit_arguments == Some(audits));
        let audits_arguments = says(true) && !says(false);
        let kinds = OperationKind::ALL.map(|kind| {
            let own = policies.iter().filter(|rules| rules.kind == kind).cloned().collect();
            KindRules::new(kind, own, budget)
        });
        Self { url, credential, intercept, refuses_tls, audits_arguments, kinds }
    }

    /// Returns the rules of a kind.
    pub(crate) fn of(&self, kind: OperationKind) -> &KindRules {
        let [tools, prompts, resources, requests, other] = &self.kinds;
        match kind {
            OperationKind::Tool => tools,
            OperationKind::Prompt => prompts,
            OperationKind::Resource => resources,
            OperationKind::Request => requests,
            OperationKind::Other => other,
        }
    }

    /// Returns the rules for tools. Every policy that names the server has a say in them.
    pub(crate) fn tools(&self) -> &KindRules {
        self.of(OperationKind::Tool)
    }

    /// Returns the rules of each policy, of every kind.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Arc<PolicyRules>> {
        self.kinds.iter().flat_map(|rules| &rules.policies)
    }
}

impl KindRules {
    fn new(kind: OperationKind, policies: Vec<Arc<PolicyRules>>, budget: &mut usize) -> Self {
        let reads = DefinitionReads {
            classes: policies.iter().any(|rules| !rules.classes.is_empty()),
            pins: policies.iter().any(|rules| rules.pins.is_some()),
        };
        let mut rules = Self { kind, policies, plans: HashMap::new(), reads };
        let names: BTreeSet<Arc<str>> = rules.policies.iter().flat_map(|rules| rules.exact.keys().cloned()).collect();
        let globs: usize = rules.policies.iter().map(|rules| 1 + rules.globs.len() + rules.classes.len()).sum();
        for name in names {
            let work = globs.saturating_mul(1 + name.len() / 16).saturating_mul(rules.classes().len());
            let mut left = budget.checked_sub(work);
            let plans = left.map(|_| rules.classes().iter().map(|class| rules.build(&name, *class)).collect());
            let plans: Option<SmallVec<[NamePlan; 1]>> = plans;
            if let (Some(plans), Some(rest)) = (&plans, left) {
                left = rest.checked_sub(plans.iter().map(NamePlan::weight).sum());
            }
            *budget = left.unwrap_or(0);
            rules.plans.insert(Box::from(&*name), plans.filter(|_| left.is_some()));
        }
        rules
    }

    /// Returns true if decisions can depend on what the server lists.
    pub(crate) fn reads_definitions(&self) -> bool {
        self.reads.classes || self.reads.pins
    }

    /// Returns true if the class of a tool, or its pins, can make a difference to calls of it.
    pub(crate) fn depends_on_definition(&self, tool: &str) -> bool {
        if !self.reads_definitions() {
            return false;
        }
        let plans: SmallVec<[Cow<'_, NamePlan>; 6]> = self.plans(tool).collect();
        let is_open = plans.iter().any(|plan| plan.enforced.denial.is_none());
        let differs = || plans.windows(2).any(|pair| matches!(pair, [a, b] if !a.decides_as(b)));
        is_open && (self.reads.pins || differs())
    }

    /// Returns the classes that make a difference.
    fn classes(&self) -> &'static [ToolClass] {
        if self.reads.classes { &ToolClass::ALL } else { &[ToolClass::Unknown] }
    }

    /// Returns the plans for a name, whatever a tool's class.
    pub(crate) fn plans(&self, name: &str) -> impl Iterator<Item = Cow<'_, NamePlan>> {
        self.classes().iter().map(move |class| self.plan(name, *class))
    }

    /// Returns the plans for a name that only entries of stars alone match, whatever a tool's class.
    pub(crate) fn plans_of_others(&self) -> impl Iterator<Item = NamePlan> {
        self.classes().iter().map(|class| self.build_forms("", &NameForms::default(), *class))
    }

    /// Returns the names that some entry has exactly.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.plans.keys().map(|name| &**name)
    }

    /// Returns the plan for a name, of a tool of this class: the prepared one, or one that is made now.
    pub(crate) fn plan(&self, name: &str, class: ToolClass) -> Cow<'_, NamePlan> {
        let index = if self.reads.classes { class as usize } else { 0 };
        let ready = self.plans.get(name).and_then(|plans| plans.as_ref()?.get(index));
        ready.map_or_else(|| Cow::Owned(self.build(name, class)), Cow::Borrowed)
    }

    fn build(&self, name: &str, class: ToolClass) -> NamePlan {
        self.build_forms(name, &NameForms::of(Operation { kind: self.kind, name, method: "" }), class)
    }

    fn build_forms(&self, name: &str, forms: &NameForms<'_>, class: ToolClass) -> NamePlan {
        let all: SmallVec<[Step; 2]> = self.policies.iter().map(|rules| rules.step(forms, class)).collect();
        let policy = all.first().map(|step| Arc::clone(&step.rules.policy));
        let entry = all.first().and_then(Step::deciding).map(|entry| Arc::clone(&entry.name));
        let shares = all.iter().flat_map(Step::matching).any(CompiledEntry::shares);
        let (enforced, audited): (SmallVec<_>, SmallVec<[Step; 1]>) =
            all.into_iter().partition(|step| step.rules.mode == Mode::Enforce || step.rules.broken.is_some());
        let audited = audited.chunk_by(|a, b| a.rules.policy == b.rules.policy).map(|own| Group::new(own.into(), name)).collect();
        let limits = enforced.iter().filter_map(|step: &Step| Some((step.result_limit()?, &step.rules.policy)));
        let result_limit = limits
            .min_by_key(|((max, _), _)| *max)
            .map(|((max, entry), policy)| Arc::new(ResultLimit { max, policy: Arc::clone(policy), entry: Arc::clone(entry) }));
        let has_pins = self.reads.pins;
        NamePlan { enforced: Group::new(enforced, name), audited, policy, entry, shares, has_pins, result_limit }
    }
}
