//! The engines by which the calls of one log are decided.

use std::{collections::HashMap, sync::Arc, time::Duration};

use toolweir_crds::{
    Action, EntryApproval, Limit, Mode, OperationKind, PartDigests, PinnedPart, PinnedTool, Server, ServerPins, Tool, ToolClass,
    ToolPart, ToolPins, Validation, explain::EntryExplanation,
};
use toolweir_engine::{
    Call, CompileOptions, Engine, Memory, Operation, Policy, Problem, ReadsOfCall, SeenTool, Severity, Timestamp,
    cel::{CompileBudget, Expression, with_parser},
    shared::Peeked,
};

use crate::{
    audit_line::{LineApproval, LinePins},
    names::CallNames,
    recording::RecordedCall,
};

/// What a decision depends on and a log lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unknowns {
    /// Of the call.
    pub of_call: ReadsOfCall,
    /// The class of its tool.
    pub class: bool,
    /// How its tool compared with the pins.
    pub pins: bool,
}

impl Unknowns {
    /// Returns what it is, in words.
    pub fn as_str(self) -> &'static str {
        let Self { of_call: ReadsOfCall { arguments, session }, class, pins } = self;
        match (arguments, session, class, pins) {
            (false, false, false, false) => "nothing",
            (false, false, false, true) => "pins",
            (false, false, true, false) => "class",
            (false, false, true, true) => "class and pins",
            (false, true, false, false) => "session",
            (false, true, false, true) => "session and pins",
            (false, true, true, false) => "session and class",
            (false, true, true, true) => "session, class and pins",
            (true, false, false, false) => "arguments",
            (true, false, false, true) => "arguments and pins",
            (true, false, true, false) => "arguments and class",
            (true, false, true, true) => "arguments, class and pins",
            (true, true, false, false) => "arguments and session",
            (true, true, false, true) => "arguments, session and pins",
            (true, true, true, false) => "arguments, session and class",
            (true, true, true, true) => "arguments, session, class and pins",
        }
    }
}

/// The engines of a log. All count in the same counts.
#[derive(Debug)]
pub struct LogEngine {
    /// The policies. One that does not compile says why, whatever is taken out of it.
    policies: Vec<Policy>,
    options: CompileOptions,
    memory: Arc<Memory>,
    /// True if one that is enforced has an entry that wants approval.
    wants_approval: bool,
    /// True if one shows something of calls.
    shows: bool,
    /// That of the policies without their pins.
    full: Engine,
    /// Others, as they were first needed.
    variants: Vec<(EngineVariant, Engine)>,
    /// Whether the class of a tool makes a difference, by the number of its name.
    class_matters: HashMap<u32, bool>,
    /// The longest window of a limit.
    pub longest_window: Duration,
}

/// How an engine differs from that of the policies without their pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct EngineVariant {
    /// It has no conditions and limits that read these.
    without: ReadsOfCall,
    /// It has no entries for classes.
    without_classes: bool,
    /// A person has approved the call: what enforced policies want approved is.
    approved: bool,
    /// Nobody is shown anything of the call.
    unshown: bool,
    pins: PinView,
}

/// The pins of an engine. Logs do not say what tools looked like, only how they compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PinView {
    /// There are none: a tool that is as pinned, or of which that is not known.
    #[default]
    None,
    /// Every tool is pinned, as none looks now.
    Differs,
    /// No tool is pinned.
    New,
}

/// What decides on a call.
pub struct ChosenEngine<'a> {
    /// The engine.
    pub engine: &'a Engine,
    /// What it is to know of the tool.
    pub seen: SeenTool,
    /// What the decision would need beyond that: it is certain where that is nothing, and where the call is denied.
    pub needs: Unknowns,
}

impl LogEngine {
    /// Compiles policies for the pod of the log. Also returns what is wrong with them.
    pub fn compile(policies: &[Policy], options: &CompileOptions, counters: usize) -> (Self, Vec<Problem>) {
        let memory = Memory::new(counters);
        // Counts that pods share are kept here, whatever is known of the pod.
        let options = CompileOptions { shared_store: true, of_any_pod: true, ..options.clone() };
        let (_, problems) = Engine::compile(policies, Arc::clone(&memory), &options);
        let mut policies = policies.to_vec();
        for (index, policy) in policies.iter_mut().enumerate() {
            // What remains of a policy that does not compile might.
            let is_invalid = |problem: &&Problem| problem.policy == index && problem.severity == Severity::Invalid;
            policy.unreadable =
                policy.unreadable.take().or(problems.iter().find(is_invalid).map(|problem| problem.error.clone()));
        }
        let full = Engine::compile(&without_pins(&policies), Arc::clone(&memory), &options).0;
        let entries = policies.iter().flat_map(|policy| &policy.spec.servers).flat_map(Server::all_entries);
        let longest_window = entries.flat_map(|entry| entry.limits).map(|limit| limit.window.span()).max().unwrap_or_default();
        let (variants, class_matters) = (Vec::new(), HashMap::new());
        let shows = policies.iter().flat_map(approvals).any(|(_, approval)| !approval.show.is_empty());
        let wants_approval = policies.iter().flat_map(approvals).any(|(policy, _)| is_enforced(policy));
        (Self { policies, options, memory, wants_approval, shows, full, variants, class_matters, longest_window }, problems)
    }

    /// Returns true if a condition on this, or a key or cost, reads the arguments.
    pub fn reads_arguments(&self, server: &str, operation: Operation<'_>) -> bool {
        self.full.reads(server, operation).arguments
    }

    /// Chooses the engine for a call of which this is not known.
    ///
    /// # Errors
    /// The system has no thread for the parser.
    pub fn choose(
        &mut self,
        call: &Call<'_>,
        lacking: ReadsOfCall,
        recorded: &RecordedCall,
        names: &CallNames,
    ) -> Result<ChosenEngine<'_>, String> {
        let approved = recorded.approval == LineApproval::Approved && self.wants_approval;
        // Arguments that are only shown are not missed.
        let unshown = lacking.arguments && self.shows;
        let reads = match lacking {
            ReadsOfCall { arguments: false, session: false } => lacking,
            _ => self
                .engine(EngineVariant { approved, unshown, ..EngineVariant::default() }, names)?
                .reads(call.server, call.operation),
        };
        let is_tool = call.operation.kind == OperationKind::Tool;
        let has_pins = is_tool && self.has_pins(call.server);
        let needs = Unknowns {
            of_call: ReadsOfCall { arguments: reads.arguments && lacking.arguments, session: reads.session && lacking.session },
            class: is_tool && recorded.class.is_none() && self.class_matters(call, recorded.name),
            pins: has_pins && recorded.pins == LinePins::NotSaid,
        };
        let pins = match recorded.pins {
            LinePins::Changed | LinePins::Unverified if has_pins => PinView::Differs,
            LinePins::New if has_pins => PinView::New,
            _ => PinView::None,
        };
        // A tool that changed has a definition, which no pins have.
        let mut seen = SeenTool::new(recorded.class.unwrap_or(ToolClass::Unknown), PartDigests::default());
        if recorded.pins == LinePins::Unverified {
            seen.definitions.clear();
        }
        let variant = EngineVariant { without: needs.of_call, without_classes: needs.class, approved, unshown, pins };
        let engine = self.engine(variant, names)?;
        Ok(ChosenEngine { engine, seen, needs })
    }

    fn has_pins(&self, server: &str) -> bool {
        let mut servers = self.policies.iter().flat_map(|policy| &policy.spec.servers);
        servers.any(|of_policy| of_policy.pins.is_some() && of_policy.name == server)
    }

    /// Returns true if entries for classes make a difference to a tool, so that its class does.
    fn class_matters(&mut self, call: &Call<'_>, name: u32) -> bool {
        let servers = self.policies.iter().flat_map(|policy| &policy.spec.servers);
        if !servers.flat_map(|server| &server.tools).any(|tool| tool.class.is_some()) {
            return false;
        }
        let full = &self.full;
        *self.class_matters.entry(name).or_insert_with(|| {
            let said = |class: &ToolClass| {
                let seen = SeenTool::new(*class, PartDigests::default());
                let explanation = full.explain(&Call { seen: Some(&seen), ..*call }, Timestamp(0), &Peeked::default());
                let servers = explanation.policies.into_iter().flat_map(|policy| policy.servers);
                let entries = servers.map(|server| {
                    let restricts = |entry: &EntryExplanation| {
                        !entry.validations.is_empty()
                            || !entry.limits.is_empty()
                            || entry.max_concurrent.is_some()
                            || entry.approval.is_some()
                    };
                    let restricting = server.entries.into_iter().filter(restricts).map(|entry| entry.name);
                    (server.action, server.entry, restricting.collect::<Vec<String>>())
                });
                entries.collect::<Vec<_>>()
            };
            let mut all = ToolClass::ALL.iter().map(said);
            let first = all.next();
            all.any(|other| Some(other) != first)
        })
    }

    fn engine(&mut self, variant: EngineVariant, names: &CallNames) -> Result<&Engine, String> {
        if variant == EngineVariant::default() {
            return Ok(&self.full);
        }
        let known = self.variants.iter().position(|(known, _)| *known == variant);
        let index = match known {
            Some(index) => index,
            None => {
                let engine = self.make(variant, names)?;
                self.variants.push((variant, engine));
                self.variants.len() - 1
            }
        };
        Ok(self.variants.get(index).map_or(&self.full, |(_, engine)| engine))
    }

    fn make(&self, variant: EngineVariant, names: &CallNames) -> Result<Engine, String> {
        let mut policies = match variant.pins {
            PinView::None => without_pins(&self.policies),
            PinView::Differs | PinView::New => self.policies.clone(),
        };
        if variant.without_classes {
            policies.iter_mut().for_each(remove_classes);
        }
        if variant.unshown {
            policies
                .iter_mut()
                .flat_map(entries)
                .filter_map(|entry| entry.approval.as_mut())
                .for_each(|approval| approval.show.clear());
        }
        if variant.approved {
            policies.iter_mut().filter(|policy| is_enforced(policy)).flat_map(entries).for_each(|entry| *entry.approval = None);
        }
        if variant.without != ReadsOfCall::default() {
            policies = without(&policies, variant.without)?;
        }
        let engine = Engine::compile(&policies, Arc::clone(&self.memory), &self.options).0;
        let pinned = match variant.pins {
            PinView::None => return Ok(engine),
            PinView::Differs => names.tools().map(pinned_otherwise).collect(),
            PinView::New => Vec::new(),
        };
        let pins: Vec<ToolPins> = self.named_pins(&pinned).collect();
        Ok(engine.with_pins(&pins))
    }

    /// Returns all pins that policies name, each with these tools.
    fn named_pins<'a>(&'a self, tools: &'a [PinnedTool]) -> impl Iterator<Item = ToolPins> + 'a {
        let of_policy = |policy: &'a Policy| {
            let named = policy.spec.servers.iter().filter_map(|server| server.pins.as_ref());
            named.map(|ServerPins { name, namespace, .. }| (namespace.as_ref().unwrap_or(&policy.id.namespace), name))
        };
        self.policies.iter().flat_map(of_policy).map(|(namespace, name)| {
            let mut pins = ToolPins { namespace: namespace.clone(), name: name.clone(), ..ToolPins::default() };
            pins.spec.tools = tools.to_vec();
            pins
        })
    }
}

/// Pins a tool as none is seen here.
fn pinned_otherwise(tool: &str) -> PinnedTool {
    let part = PinnedPart { part: ToolPart::Description, sha256: "0".repeat(64), text: String::new(), cut: false };
    PinnedTool { name: tool.to_owned(), parts: vec![part] }
}

/// The parts of an entry that can be taken out of it.
struct EntryParts<'a> {
    kind: OperationKind,
    limits: &'a mut Vec<Limit>,
    validations: &'a mut Vec<Validation>,
    approval: &'a mut Option<EntryApproval>,
}

/// Returns the parts of each entry of a list.
macro_rules! parts {
    ($kind:ident, $list:expr) => {
        $list.map(|entry| EntryParts {
            kind: OperationKind::$kind,
            limits: &mut entry.limits,
            validations: &mut entry.validations,
            approval: &mut entry.approval,
        })
    };
}

/// Returns the entries of a policy, of every kind.
fn entries(policy: &mut Policy) -> impl Iterator<Item = EntryParts<'_>> {
    policy.spec.servers.iter_mut().flat_map(|server| {
        let Server { tools, prompts, resources, requests, .. } = server;
        parts!(Tool, tools.iter_mut())
            .chain(parts!(Prompt, prompts.iter_mut().flatten()))
            .chain(parts!(Resource, resources.iter_mut().flatten()))
            .chain(parts!(Request, requests.iter_mut().flatten()))
    })
}

/// Returns the approvals that entries of a policy want.
fn approvals(policy: &Policy) -> impl Iterator<Item = (&Policy, &EntryApproval)> {
    policy.spec.servers.iter().flat_map(Server::all_entries).filter_map(move |entry| Some((policy, entry.approval?)))
}

fn is_enforced(policy: &Policy) -> bool {
    policy.spec.mode == Mode::Enforce
}

fn without_pins(policies: &[Policy]) -> Vec<Policy> {
    let mut policies = policies.to_vec();
    policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).for_each(|server| server.pins = None);
    policies
}

/// Removes the entries for classes. Where one could allow, everything that no other entry denies is let through.
fn remove_classes(policy: &mut Policy) {
    for server in &mut policy.spec.servers {
        let allows = |tool: &Tool| tool.class.is_some() && tool.action != Some(Action::Deny);
        if server.tools.iter().any(allows) {
            server.default_action = Action::Allow;
        }
        server.tools.retain(|tool| tool.class.is_none());
    }
}

/// Returns the policies without validations, limits and approvals whose conditions read what is lacking. The limits that remain keep their identities, and so
/// their counts: a limit that differs from another in `max` alone goes or stays with it.
fn without(policies: &[Policy], lacking: ReadsOfCall) -> Result<Vec<Policy>, String> {
    with_parser(|| {
        let remaining = policies.iter().map(|policy| {
            let mut policy = policy.clone();
            let mut budget = CompileBudget::default();
            let mut reads = |source: &str, kind: OperationKind| {
                // One that does not compile stays, and so does its error.
                Expression::compile_in(source, kind, &mut budget).is_ok_and(|expression| {
                    lacking.arguments && expression.reads_arguments() || lacking.session && expression.reads_session()
                })
            };
            for EntryParts { kind, limits, validations, approval } in entries(&mut policy) {
                approval.take_if(|approval| approval.when.as_deref().is_some_and(|when| reads(when, kind)));
                validations.retain(|validation| !reads(&validation.expression, kind));
                limits.retain(|limit| ![&limit.key, &limit.cost].into_iter().flatten().any(|source| reads(source, kind)));
            }
            policy
        });
        Ok(remaining.collect())
    })
}
