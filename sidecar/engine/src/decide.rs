//! The decision on one call.

use std::{borrow::Cow, cell::OnceCell, cmp::Reverse, sync::Arc, time::Duration};

use smallvec::SmallVec;
use toolweir_crds::{OnStoreFailure, Scope};

use crate::{
    cel::{
        self, ArgumentsError, Data, Expression, Failure, Inputs,
        work::{Meter, units},
    },
    counters::{Counters, Hold, Instance, Permit, Refusal, Take, instance},
    denial::{Denial, LimitInfo, Reason, shown, whole_seconds},
    json::Raw,
    rules::{Engine, Entry, Group, Limit, Plan, Step, Validation},
    shared::{Answer, Peeked, SharedHold, SharedTake, Taken, Wanted},
    window::{Amount, Full, Timestamp},
};

/// A tool call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The server's name in the policies.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// The arguments as they stand in the request.
    pub arguments: Option<Raw<'a>>,
    /// The MCP session; empty where there is none.
    pub session: &'a str,
}

/// The answer for a call.
#[derive(Debug)]
pub struct Decision {
    /// Whether it goes through.
    pub outcome: Outcome,
    /// What policies in audit mode would have denied it for; the most severe first. Empty for a denied call.
    pub would_deny: Vec<Denial>,
    /// The policy that decided: that of the denial, else the first that governs the server.
    pub policy: Option<Arc<str>>,
    /// The entry of that policy.
    pub entry: Option<Arc<str>>,
    /// What was done instead of asking the store of shared counts, where it did not answer.
    pub without_store: Option<OnStoreFailure>,
}

/// A decision that is begun.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are decided, and a box would cost them an allocation")]
pub enum Begun<'a> {
    /// It is made: the call wants nothing of counts that pods share.
    Decided(Decision),
    /// It hangs on counts that pods share.
    Pending(Pending<'a>),
}

/// A decision that hangs on counts that pods share. What the call takes of this pod's own counts is taken; dropped, it is
/// given back.
#[derive(Debug)]
pub struct Pending<'a>(Box<Halfway<'a>>);

#[derive(Debug)]
struct Halfway<'a> {
    engine: &'a Engine,
    call: Call<'a>,
    now: Timestamp,
    policy: Option<Arc<str>>,
    entry: Option<Arc<str>>,
    /// What each group wants, and what is known of it otherwise: those of the enforced policies come first.
    wanted: Vec<Wanted>,
    groups: Vec<Result<(Local, Origins), Denial>>,
}

/// What was taken of this pod's own counts; given back, unless it is kept.
#[derive(Debug)]
struct Local(Option<Permit>);

impl Local {
    fn keep(mut self) -> Permit {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.give_back();
        }
    }
}

/// Whether a call goes through.
#[derive(Debug)]
pub enum Outcome {
    /// It does. The permit is kept until the call has ended.
    Allowed(Permit),
    /// It does not.
    Denied(Denial),
}

impl Decision {
    /// What the policies of a plan say together. `ask` gives what those that decide together say where that hangs on the
    /// call: all of their limits taken, or the most severe denial.
    pub(crate) fn by(plan: &Plan, ask: impl FnMut(&Group) -> Result<Permit, Denial>) -> Self {
        let mut ask = ask;
        let mut ask = |group: &Group| match &group.denial {
            Some(denial) => Err(denial.clone()),
            None => ask(group),
        };
        let permit = match ask(&plan.enforced) {
            Ok(permit) => permit,
            Err(denial) => return Self::denied(denial),
        };
        Self::allowed(permit, plan.audited.iter().map(ask), plan.policy.clone(), plan.entry.clone())
    }

    /// What enforced policies let through; `audited` is what those in audit mode say.
    fn allowed(
        permit: Permit,
        audited: impl Iterator<Item = Result<Permit, Denial>>,
        policy: Option<Arc<str>>,
        entry: Option<Arc<str>>,
    ) -> Self {
        let outcome = Outcome::Allowed(permit);
        let mut decision = Self { outcome, would_deny: Vec::new(), policy, entry, without_store: None };
        for said in audited {
            match (said, &mut decision.outcome) {
                (Ok(taken), Outcome::Allowed(permit)) => permit.join(taken),
                (Ok(_), Outcome::Denied(_)) => {}
                (Err(denial), _) => decision.would_deny.push(denial),
            }
        }
        decision.would_deny.sort_by_key(|denial| denial.reason);
        if let Some(denial) = decision.would_deny.first() {
            decision.policy.clone_from(&denial.policy);
            decision.entry.clone_from(&denial.entry);
        }
        decision
    }

    /// A denial that was found otherwise.
    pub fn denied(denial: Denial) -> Self {
        Self {
            policy: denial.policy.clone(),
            entry: denial.entry.clone(),
            outcome: Outcome::Denied(denial),
            would_deny: Vec::new(),
            without_store: None,
        }
    }

    /// `allowed`, `denied` or `would_deny`, and why: as metrics and the audit log say it.
    pub fn told(&self) -> (&'static str, Reason) {
        match (&self.outcome, self.would_deny.first()) {
            (Outcome::Denied(denial), _) => ("denied", denial.reason),
            (Outcome::Allowed(_), Some(denial)) => ("would_deny", denial.reason),
            (Outcome::Allowed(_), None) => ("allowed", Reason::None),
        }
    }

    /// The denial, if it is one.
    pub fn denial(&self) -> Option<&Denial> {
        match &self.outcome {
            Outcome::Denied(denial) => Some(denial),
            Outcome::Allowed(_) => None,
        }
    }
}

impl Engine {
    /// Decides on a call. Every enforced policy must allow it; what policies in audit mode say is only told. Its limits
    /// are all taken, or none is. Nobody is asked for counts that pods share: a call that wants one is denied.
    pub fn decide(&self, call: &Call<'_>, now: Timestamp) -> Decision {
        match self.begin(call, now) {
            Begun::Decided(decision) => decision,
            Begun::Pending(pending) => pending.finish([], now),
        }
    }

    /// Begins to decide on a call, as [`Engine::decide`] does: as far as that hangs on this pod alone.
    pub fn begin<'a>(&'a self, call: &Call<'a>, now: Timestamp) -> Begun<'a> {
        let Some(rules) = self.servers.get(call.server) else {
            return Begun::Decided(Decision::denied(Denial::no_policy(call.server, call.tool)));
        };
        let plan = rules.plan(call.tool);
        if plan.shares {
            return self.begin_shared(&plan, call, now);
        }
        // One budget for all policies, the enforced ones first.
        let asked = Asked::new(call);
        Begun::Decided(Decision::by(&plan, |group| self.look(group, &asked, now).take(&group.steps, &mut Wants::default())))
    }

    fn begin_shared<'a>(&'a self, plan: &Plan, call: &Call<'a>, now: Timestamp) -> Begun<'a> {
        let asked = Asked::new(call);
        let take = |group: &Group| {
            if let Some(denial) = &group.denial {
                return Err(denial.clone());
            }
            let mut wants = Wants::default();
            let permit = self.look(group, &asked, now).take(&group.steps, &mut wants)?;
            Ok((Local(Some(permit)), wants.shared))
        };
        let enforced = match take(&plan.enforced) {
            Ok(enforced) => Ok(enforced),
            Err(denial) => return Begun::Decided(Decision::denied(denial)),
        };
        let (mut wanted, mut groups) = (Vec::new(), Vec::new());
        for said in std::iter::once(enforced).chain(plan.audited.iter().map(take)) {
            let (wants, group) = match said {
                Ok((local, Shared { wanted, origins })) => (wanted, Ok((local, origins))),
                Err(denial) => (Wanted::default(), Err(denial)),
            };
            wanted.push(wants);
            groups.push(group);
        }
        let nothing = wanted.iter().all(Wanted::is_empty);
        let (policy, entry) = (plan.policy.clone(), plan.entry.clone());
        let pending = Pending(Box::new(Halfway { engine: self, call: *call, now, policy, entry, wanted, groups }));
        if nothing { Begun::Decided(pending.finish([], now)) } else { Begun::Pending(pending) }
    }

    /// A look at a call by policies that decide together.
    pub(crate) fn look<'a>(&'a self, group: &Group, asked: &'a Asked<'_>, now: Timestamp) -> Look<'a> {
        let arguments = group.names.as_ref().map(|names| {
            let data = asked.arguments()?;
            data.check(names, &asked.meter)?;
            Ok(data)
        });
        Look { engine: self, call: asked.call, now, arguments: arguments.transpose(), meter: &asked.meter }
    }
}

/// A call on which is decided: what all policies that look at it share.
pub(crate) struct Asked<'a> {
    pub call: &'a Call<'a>,
    pub meter: Meter,
    /// Read once, where an expression reads them.
    arguments: OnceCell<Result<Data<'a>, ArgumentsError>>,
}

impl<'a> Asked<'a> {
    pub fn new(call: &'a Call<'a>) -> Self {
        Self::with(call, Meter::default())
    }

    pub fn with(call: &'a Call<'a>, meter: Meter) -> Self {
        Self { call, meter, arguments: OnceCell::new() }
    }

    fn arguments(&self) -> Result<&Data<'a>, ArgumentsError> {
        self.arguments.get_or_init(|| cel::arguments(self.call.arguments, &self.meter)).as_ref().map_err(Clone::clone)
    }
}

impl Pending<'_> {
    /// What the call wants of counts that pods share: first what the enforced policies want together, then what each policy in
    /// audit mode wants. Nothing, for those that want none.
    pub fn wanted(&self) -> &[Wanted] {
        &self.0.wanted
    }

    /// Decides by the answers to each of [`Pending::wanted`], in the same order. One that is missing is
    /// [`Answer::Unavailable`]. What this pod counts itself counts from `now` on, when the answers are there.
    pub fn finish(self, answers: impl IntoIterator<Item = Answer>, now: Timestamp) -> Decision {
        let Halfway { engine, call, now: begun, policy, entry, wanted, groups } = *self.0;
        let late = (now > begun).then_some(now);
        let meter = Meter::default();
        let look = Look { engine, call: &call, now, arguments: Ok(None), meter: &meter };
        let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let mut without_store = None;
        let settled = groups.into_iter().zip(wanted).zip(answers).map(|((group, wanted), answer)| {
            let (said, without) = look.settle(group, &wanted, answer.unwrap_or(Answer::Unavailable), late);
            without_store = without_store.or(without);
            said
        });
        // All of them, so that nothing stays taken of which nobody knows.
        let settled: SmallVec<[Result<Permit, Denial>; 2]> = settled.collect();
        let mut settled = settled.into_iter();
        let mut decision = match settled.next() {
            Some(Err(denial)) => {
                settled.flatten().for_each(Permit::give_back);
                Decision::denied(denial)
            }
            enforced => {
                let permit = enforced.and_then(Result::ok).unwrap_or_default();
                Decision::allowed(permit, settled, policy, entry)
            }
        };
        decision.without_store = without_store;
        decision
    }
}

/// One look at one call.
pub(crate) struct Look<'a> {
    pub engine: &'a Engine,
    pub call: &'a Call<'a>,
    pub now: Timestamp,
    /// Read where an expression reads them.
    pub arguments: Result<Option<&'a Data<'a>>, ArgumentsError>,
    /// What the decision may still cost.
    pub meter: &'a Meter,
}

/// What a call would take.
#[derive(Default)]
pub(crate) struct Wants<'s> {
    takes: SmallVec<[Take; 4]>,
    /// Which limit each take stands for.
    sources: SmallVec<[(&'s Step, &'s Arc<str>, &'s Limit); 4]>,
    holds: SmallVec<[Hold; 2]>,
    holders: SmallVec<[(&'s Step, &'s Arc<str>); 2]>,
    pub shared: Shared,
}

/// What a call would take of counts that pods share.
#[derive(Default)]
pub(crate) struct Shared {
    pub wanted: Wanted,
    origins: Origins,
}

/// What each shared take and hold stands for.
#[derive(Debug, Default)]
struct Origins {
    takes: SmallVec<[Origin<Arc<Limit>>; 2]>,
    holds: SmallVec<[Origin<Scope>; 1]>,
}

/// The policy, the entry, and what of it.
#[derive(Debug)]
struct Origin<T> {
    policy: Arc<str>,
    entry: Arc<str>,
    of: T,
}

impl<'s> Wants<'s> {
    /// Adds what a limit wants. Limits that count together count a call once: the dearest, against the smallest maximum.
    pub fn add(&mut self, step: &'s Step, entry: &'s Arc<str>, limit: &'s Arc<Limit>, instance: Instance, amount: Amount) {
        if let Some(whose) = &limit.whose {
            return self.shared.add(step, entry, limit, whose, instance, amount);
        }
        let twin = self.takes.iter().position(|take| take.identity == limit.identity && take.instance == instance);
        if let Some((take, source)) = twin.and_then(|at| Some((self.takes.get_mut(at)?, self.sources.get_mut(at)?))) {
            if take.with(limit, amount) {
                *source = (step, entry, limit);
            }
        } else {
            self.takes.push(limit.take(instance, amount));
            self.sources.push((step, entry, limit));
        }
    }

    /// What is wanted of a count, together with all limits that count there.
    pub fn of(&self, limit: &Limit, instance: &Instance) -> Option<&Take> {
        let shared = self.shared.wanted.takes.iter().map(|shared| &shared.take);
        self.takes.iter().chain(shared).find(|take| take.identity == limit.identity && take.instance == *instance)
    }

    /// Adds the place that an entry wants.
    fn hold(&mut self, step: &'s Step, entry: &'s Entry) {
        let Some(of) = &entry.hold else { return };
        if of.whose.is_some() {
            return self.shared.hold(step, entry);
        }
        self.holds.push(of.hold.clone());
        self.holders.push((step, &entry.name));
    }
}

impl Shared {
    fn add(&mut self, step: &Step, entry: &Arc<str>, limit: &Arc<Limit>, whose: &Arc<str>, instance: Instance, amount: Amount) {
        let origin = || Origin { policy: Arc::clone(&step.part.policy), entry: Arc::clone(entry), of: Arc::clone(limit) };
        let mut others = self.wanted.takes.iter_mut().zip(&mut self.origins.takes);
        let twin = others.find(|(other, _)| other.take.identity == limit.identity && other.take.instance == instance);
        if let Some((other, from)) = twin {
            if other.take.with(limit, amount) {
                *from = origin();
            }
            return;
        }
        let failure = step.part.on_store_failure;
        self.wanted.takes.push(SharedTake { take: limit.take(instance, amount), whose: Arc::clone(whose), failure });
        self.origins.takes.push(origin());
    }

    /// Adds the place that an entry wants, if it is one that pods share.
    pub fn hold(&mut self, step: &Step, entry: &Entry) {
        let Some(of) = &entry.hold else { return };
        let Some(whose) = &of.whose else { return };
        let failure = step.part.on_store_failure;
        self.wanted.holds.push(SharedHold { hold: of.hold.clone(), whose: Arc::clone(whose), failure });
        let (policy, entry) = (Arc::clone(&step.part.policy), Arc::clone(&entry.name));
        self.origins.holds.push(Origin { policy, entry, of: of.scope });
    }
}

impl Take {
    /// Adds what another limit of the same count wants; gives whether its maximum is the smaller one.
    fn with(&mut self, limit: &Limit, amount: Amount) -> bool {
        self.amount = self.amount.max(amount);
        let smaller = limit.maximum() < self.max;
        if smaller {
            self.max = limit.maximum();
        }
        smaller
    }
}

impl Limit {
    /// What a call takes of it.
    pub(crate) fn take(&self, instance: Instance, amount: Amount) -> Take {
        Take { identity: self.identity.clone(), instance, span: self.span, max: self.maximum(), amount }
    }
}

/// Of which policies and entries what was not taken is.
trait Named {
    fn take(&self, index: usize) -> Option<(&Take, &Arc<str>, &Arc<str>, &Limit)>;
    fn hold(&self, index: usize) -> Option<(&Hold, &Arc<str>, &Arc<str>, Scope)>;
}

impl Named for Wants<'_> {
    fn take(&self, index: usize) -> Option<(&Take, &Arc<str>, &Arc<str>, &Limit)> {
        let (step, entry, limit) = self.sources.get(index)?;
        Some((self.takes.get(index)?, &step.part.policy, entry, limit))
    }

    fn hold(&self, index: usize) -> Option<(&Hold, &Arc<str>, &Arc<str>, Scope)> {
        let (step, entry) = self.holders.get(index)?;
        Some((self.holds.get(index)?, &step.part.policy, entry, Scope::Pod))
    }
}

impl Named for (&Wanted, &Origins) {
    fn take(&self, index: usize) -> Option<(&Take, &Arc<str>, &Arc<str>, &Limit)> {
        let origin = self.1.takes.get(index)?;
        Some((&self.0.takes.get(index)?.take, &origin.policy, &origin.entry, &origin.of))
    }

    fn hold(&self, index: usize) -> Option<(&Hold, &Arc<str>, &Arc<str>, Scope)> {
        let origin = self.1.holds.get(index)?;
        Some((&self.0.holds.get(index)?.hold, &origin.policy, &origin.entry, origin.of))
    }
}

impl Look<'_> {
    /// All limits of the steps taken, or the most severe denial. What is wanted of shared counts is only collected.
    fn take<'s>(&self, steps: &'s [Step], wants: &mut Wants<'s>) -> Result<Permit, Denial> {
        self.collect(steps, wants)?;
        self.engine.counters.take(&wants.takes, &wants.holds, self.now).map_err(|refusal| self.refusal(&refusal, wants))
    }

    /// What [`Look::take`] would say, and what [`Pending::finish`] would by what was looked up, when `before` counts had been
    /// made newly; nothing is taken. `before` grows by how many counts it would make newly.
    pub fn check(&self, steps: &[Step], before: &mut usize, peeked: &Peeked) -> Result<(), Denial> {
        let mut wants = Wants::default();
        self.collect(steps, &mut wants)?;
        let new = self.engine.counters.check(&wants.takes, &wants.holds, *before, self.now);
        *before += new.map_err(|refusal| self.refusal(&refusal, &wants))?;
        self.check_shared(&wants.shared, peeked)
    }

    fn check_shared(&self, Shared { wanted, origins }: &Shared, peeked: &Peeked) -> Result<(), Denial> {
        let (mut full, mut busy, mut unknown) = (SmallVec::new(), None, false);
        for (index, SharedTake { take, failure, .. }) in wanted.takes.iter().enumerate() {
            match peeked.of_take(&take.identity, &take.instance) {
                Some((_, Ok(()))) => {}
                Some((_, Err(why))) => full.push((index, why)),
                None => unknown |= *failure == OnStoreFailure::Deny,
            }
        }
        for (index, SharedHold { hold, failure, .. }) in wanted.holds.iter().enumerate() {
            match peeked.of_hold(&hold.identity) {
                Some(under_way) if under_way < hold.max => {}
                Some(_) => busy = busy.or(Some(Refusal::Busy(index))),
                None => unknown |= *failure == OnStoreFailure::Deny,
            }
        }
        let refusal = if full.is_empty() { busy } else { Some(Refusal::Full(full)) };
        match refusal {
            Some(refusal) => Err(self.refusal(&refusal, &(wanted, origins))),
            None if unknown => Err(self.unavailable(wanted, origins)),
            None => Ok(()),
        }
    }

    /// What policies that decide together say, by the answer to what they want; and what was done instead of asking the store.
    fn settle(
        &self,
        group: Result<(Local, Origins), Denial>,
        wanted: &Wanted,
        answer: Answer,
        late: Option<Timestamp>,
    ) -> (Result<Permit, Denial>, Option<OnStoreFailure>) {
        let (local, origins) = match group {
            Ok(group) => group,
            Err(denial) => return (Err(denial), None),
        };
        let keep = || {
            let mut permit = local.keep();
            if let Some(now) = late {
                permit.restamp(now);
            }
            permit
        };
        match answer {
            Answer::Taken(Taken { amounts, places, without_store }) => {
                let mut permit = keep();
                permit.join(Permit::elsewhere(amounts, places));
                (Ok(permit), without_store)
            }
            _ if wanted.is_empty() => (Ok(keep()), None),
            Answer::Refused(refusal) => (Err(self.refusal(&refusal, &(wanted, &origins))), None),
            Answer::RefusedAlone(refusal) => (Err(self.refusal(&refusal, &(wanted, &origins))), Some(OnStoreFailure::PerPod)),
            // Something else denies the call.
            Answer::NotAsked => (Err(self.unavailable(wanted, &origins)), None),
            Answer::Unavailable => (Err(self.unavailable(wanted, &origins)), Some(OnStoreFailure::Deny)),
        }
    }

    /// The denial of a call for which the store of shared counts does not answer.
    fn unavailable(&self, wanted: &Wanted, origins: &Origins) -> Denial {
        let takes = wanted.takes.iter().map(|take| take.failure);
        let takes = takes.zip(origins.takes.iter().map(|origin| (&origin.policy, &origin.entry)));
        let holds = wanted.holds.iter().map(|hold| hold.failure);
        let holds = holds.zip(origins.holds.iter().map(|origin| (&origin.policy, &origin.entry)));
        let mut all = takes.chain(holds);
        let first = all.clone().next();
        let Some((_, (policy, entry))) = all.find(|(failure, _)| *failure == OnStoreFailure::Deny).or(first) else {
            return Denial::no_policy(self.call.server, self.call.tool);
        };
        let wait = Duration::from_secs(1);
        let what = format!(
            "{} is limited across pods, and the shared store of counts does not answer. Try again in {} s.",
            shown(self.call.tool),
            whole_seconds(wait)
        );
        let mut denial = self.denial(policy, entry, Reason::StoreUnavailable, &what);
        denial.retry_after = Some(wait);
        denial
    }

    /// What the call would take of shared counts, also where something denies it. Limits whose key or cost has no value are
    /// passed over.
    pub fn shared_of(&self, steps: &[Step]) -> Wanted {
        let mut shared = Shared::default();
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    if let Some(whose) = &limit.whose
                        && let Ok((instance, amount)) = self.counted(step, &entry.name, limit)
                    {
                        shared.add(step, &entry.name, limit, whose, instance, amount);
                    }
                }
                shared.hold(step, entry);
            }
        }
        shared.wanted
    }

    /// What the call would take, or the most severe denial that does not hang on what was before.
    fn collect<'s>(&self, steps: &'s [Step], wants: &mut Wants<'s>) -> Result<(), Denial> {
        let mut denials: SmallVec<[Denial; 1]> = SmallVec::new();
        for step in steps {
            denials.extend(self.conditions(step).err());
        }
        if let Some(denial) = denials.into_iter().min_by_key(|denial| denial.reason) {
            return Err(denial);
        }
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    // Each is compared with those before it.
                    let before = units(wants.takes.len() + wants.shared.wanted.takes.len());
                    self.meter.charge(2 * before).map_err(|_| self.spent(step, &entry.name))?;
                    let (instance, amount) = self.counted(step, &entry.name, limit)?;
                    wants.add(step, &entry.name, limit, instance, amount);
                }
                wants.hold(step, entry);
            }
        }
        Ok(())
    }

    fn inputs(&self, step: &Step, entry: &Arc<str>, expression: &Expression) -> Result<Inputs<'_>, Denial> {
        let args = match &self.arguments {
            Ok(args) => *args,
            Err(_) if !expression.reads_arguments() => None,
            Err(ArgumentsError::Spent) => return Err(self.spent(step, entry)),
            Err(error) => {
                let what = format!("the call's `arguments` {error}. Correct that and try again.");
                return Err(self.denial(&step.part.policy, entry, Reason::Malformed, &what));
            }
        };
        Ok(Inputs { args, tool: self.call.tool, server: self.call.server, session: self.call.session, pod: &self.engine.pod })
    }

    fn denial(&self, policy: &Arc<str>, entry: &Arc<str>, reason: Reason, what: &str) -> Denial {
        Denial::by(policy, Some(entry), reason, self.call.tool, what)
    }

    /// The denial of a call on which expressions take more work than one call is given.
    fn spent(&self, step: &Step, entry: &Arc<str>) -> Denial {
        let what = "the conditions on this call take more work than one call is given. Send smaller arguments.";
        self.denial(&step.part.policy, entry, Reason::ExpressionBudget, what)
    }

    /// Whether a condition holds, or why that could not be told.
    pub fn holds(&self, step: &Step, entry: &Arc<str>, validation: &Validation) -> Result<Result<bool, String>, Denial> {
        let inputs = self.inputs(step, entry, &validation.expression)?;
        match validation.expression.holds(&inputs, self.meter) {
            Ok(holds) => Ok(Ok(holds)),
            Err(Failure::Failed(why)) => Ok(Err(why)),
            Err(Failure::Spent) => Err(self.spent(step, entry)),
        }
    }

    fn conditions(&self, step: &Step) -> Result<(), Denial> {
        for entry in step.matching() {
            for validation in &entry.validations {
                let failed = match self.holds(step, &entry.name, validation)? {
                    Ok(true) => continue,
                    Ok(false) => String::new(),
                    Err(why) => format!(" (`{}` could not be evaluated: {why}.)", validation.source),
                };
                let what = match &validation.message {
                    Some(message) => format!("{message}{failed}"),
                    None if failed.is_empty() => format!("the call does not meet the condition `{}`.", validation.source),
                    None => format!("the call does not meet a condition.{failed}"),
                };
                return Err(self.denial(&step.part.policy, &entry.name, Reason::Validation, &what));
            }
        }
        Ok(())
    }

    /// The denial of a call for which a limit's key or cost cannot be computed.
    fn failed(&self, step: &Step, entry: &Arc<str>, what: &str, source: &str, why: &Failure) -> Denial {
        if *why == Failure::Spent {
            return self.spent(step, entry);
        }
        self.denial(&step.part.policy, entry, Reason::Validation, &format!("the {what} `{source}` of a limit {why}."))
    }

    /// The value of a limit's key; nothing where it has none.
    pub fn key(&self, step: &Step, entry: &Arc<str>, limit: &Limit) -> Result<Option<String>, Denial> {
        let Some((key, source)) = &limit.key else { return Ok(None) };
        let value =
            key.key(&self.inputs(step, entry, key)?, self.meter).map_err(|why| self.failed(step, entry, "key", source, &why))?;
        Ok(Some(value))
    }

    /// In which of a limit's counts the call counts, and what it adds.
    pub fn counted(&self, step: &Step, entry: &Arc<str>, limit: &Limit) -> Result<(Instance, Amount), Denial> {
        let mut which = Cow::Borrowed("");
        if limit.scope == Scope::Session {
            which = Cow::Borrowed(self.call.session);
        }
        if let Some(value) = self.key(step, entry, limit)? {
            which = Cow::Owned(format!("{which}\u{1}{value}"));
        }
        let amount = match &limit.cost {
            None => Amount::ONE,
            Some((cost, source)) => {
                let amount = cost.cost(&self.inputs(step, entry, cost)?, self.meter);
                amount.map_err(|why| self.failed(step, entry, "cost", source, &why))?
            }
        };
        Ok((instance(&which), amount))
    }

    fn refusal(&self, refusal: &Refusal, wants: &impl Named) -> Denial {
        let tool = shown(self.call.tool);
        match refusal {
            Refusal::Full(full) => {
                // The one that takes longest to come free: who waits for it has waited for all.
                let longest = full.iter().max_by_key(|(index, why)| {
                    let until = match why {
                        Full::Until(then) => then.0,
                        Full::Never => u64::MAX,
                    };
                    (until, Reverse(*index))
                });
                let found = longest.and_then(|(index, why)| Some((wants.take(*index)?, why)));
                found.map(|((take, policy, entry, limit), why)| self.limit(policy, entry, limit, take, *why))
            }
            Refusal::Busy(index) => wants.hold(*index).map(|(hold, policy, entry, scope)| {
                let many = if hold.max == 1 { "1 call" } else { &format!("{} calls", hold.max) };
                let whose = whose(scope);
                let what = format!("at most {many} of {entry} may be under way at once{whose}. Try again when one has ended.");
                self.denial(policy, entry, Reason::Concurrency, &what)
            }),
            Refusal::OutOfCounters(index) => wants.take(*index).map(|(_, policy, entry, _)| {
                let what = format!(
                    "{tool} is counted for each session or key, and there are more of those than are kept. Try again later."
                );
                self.denial(policy, entry, Reason::CountersExhausted, &what)
            }),
        }
        .unwrap_or_else(|| Denial::no_policy(self.call.server, self.call.tool))
    }

    fn limit(&self, policy: &Arc<str>, entry: &Arc<str>, limit: &Limit, take: &Take, why: Full) -> Denial {
        let tool = shown(self.call.tool);
        let whose = whose(limit.scope);
        let per = limit.window.per();
        let many = |noun: &str| if limit.max == 1 { noun.to_owned() } else { format!("{noun}s") };
        let counted = if limit.cost.is_some() { "a total cost of ".to_owned() } else { String::new() };
        let noun = if limit.cost.is_some() { String::new() } else { format!(" {}", many("call")) };
        let each = limit.key.as_ref().map(|(_, source)| format!(" for each `{source}`")).unwrap_or_default();
        let shared = if **entry == *self.call.tool {
            String::new()
        } else {
            format!(" (counted together with every tool that `{entry}` matches)")
        };
        let (retry_after, advice) = match why {
            Full::Until(then) => {
                let wait = then.since(self.now);
                (Some(wait), format!("Try again in {} s.", whole_seconds(wait)))
            }
            Full::Never => (None, format!("This call costs {} and can never pass.", take.amount.as_f64())),
        };
        let what = format!("{tool} is limited to {counted}{}{noun} {per}{whose}{each}{shared}. {advice}", limit.max);
        let mut denial = self.denial(policy, entry, Reason::RateLimit, &what);
        denial.limit = Some(LimitInfo { max: limit.max, window: Arc::clone(&limit.window_text), scope: limit.scope });
        denial.retry_after = retry_after;
        denial
    }
}

/// Whose calls a scope counts together, for the text of a denial.
fn whose(scope: Scope) -> &'static str {
    match scope {
        Scope::Session => " in each session",
        Scope::Pod => "",
        Scope::Workload => " for its workload",
        Scope::ServiceAccount => " for its service account",
        Scope::Namespace => " for its namespace",
        Scope::Policy => " for all that the policy governs",
    }
}
