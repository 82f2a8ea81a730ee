//! The decision on one call: begun with this pod's own counts, and finished with the answers for those that pods share.

use std::{borrow::Cow, cell::Cell, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::{OnStoreFailure, PartSet};

use crate::{
    ask::ApprovalAsk,
    call::{Call, CallContext},
    cel::work::Meter,
    counters::Permit,
    denial::{Denial, Reason},
    engine::Engine,
    evaluate::Evaluator,
    pin_findings::PinFindings,
    result_limit::ResultLimit,
    rules::{Group, NamePlan, Step},
    shared::{Peeked, SharedAnswer, SharedDemand, SharedGrant, SharedHold, SharedTake},
    take::TakeError,
    wants::{Origins, SharedWants, Wants},
    window::Timestamp,
};

/// The decision on a call.
#[derive(Debug)]
pub struct Decision {
    /// The effect: the call is allowed or denied.
    pub effect: Effect,
    /// The denials of policies in audit mode, the most severe first. Empty for a denied call.
    pub would_deny: Vec<Denial>,
    /// The policy that decided: that of the denial, else the first that governs the server.
    pub policy: Option<Arc<str>>,
    /// The entry of that policy.
    pub entry: Option<Arc<str>>,
    /// The action that was taken instead, where the store of shared counts did not answer.
    pub store_fallback: Option<OnStoreFailure>,
    /// The parts of the tool's definition that are not as pins have them; nothing where no pins that were looked at have the tool.
    pub changed: Option<PartSet>,
    /// The bound on the result of an allowed call.
    pub result_limit: Option<Arc<ResultLimit>>,
}

/// The effect of a [`Decision`].
#[derive(Debug)]
pub enum Effect {
    /// The call goes through. The permit is kept until the call has ended.
    Allowed(Permit),
    /// The call does not go through.
    Denied(Denial),
}

/// The result of [`Engine::begin`].
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are decided, and a box would cost them an allocation")]
pub enum DecisionStart<'a> {
    /// The decision is made: the call wants nothing of counts that pods share.
    Decided(Decision),
    /// The decision depends on counts that pods share.
    Pending(Pending<'a>),
}

/// A decision that depends on counts that pods share. The call has taken what it needs of this pod's own counts. Dropping it gives
/// that back.
#[derive(Debug)]
pub struct Pending<'a>(Box<PendingState<'a>>);

#[derive(Debug)]
struct PendingState<'a> {
    engine: &'a Engine,
    call: Call<'a>,
    now: Timestamp,
    policy: Option<Arc<str>>,
    entry: Option<Arc<str>>,
    /// The demand of each group; that of the enforced policies comes first.
    demands: Vec<SharedDemand>,
    /// For each demand, what the group took of this pod's own counts, or its denial.
    groups: Vec<Result<(LocalPermit, Origins), Denial>>,
    /// What is only reported of pins.
    pin_audits: PinAudits,
    changed: Option<PartSet>,
    result_limit: Option<Arc<ResultLimit>>,
}

/// Denials for pins that policies only report.
type PinAudits = Vec<Denial>;

/// The permit for this pod's own counts. Dropping it gives everything back, unless it is kept.
#[derive(Debug)]
struct LocalPermit(Option<Permit>);

impl LocalPermit {
    fn keep(mut self) -> Permit {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for LocalPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.give_back();
        }
    }
}

impl Decision {
    /// Makes the decision of a plan. `check` finds what is denied before anything is taken, and what is only reported. `decide` is then
    /// called for each group whose decision depends on the call: it returns the permit for all of the group's limits, or the most severe
    /// denial.
    pub(crate) fn of_plan(
        plan: &NamePlan,
        check: impl Fn(&Group) -> Result<PinAudits, Denial>,
        mut decide: impl FnMut(&Group) -> Result<Permit, Denial>,
    ) -> Self {
        let enforced = check(&plan.enforced).and_then(|audits| Ok((audits, decide(&plan.enforced)?)));
        let (audits, permit) = match enforced {
            Ok(enforced) => enforced,
            Err(denial) => return Self::denied(denial),
        };
        let audited = plan.audited.iter().map(|group| check(group).and_then(|audits| no_audit(audits, || decide(group))));
        let audited = audited.chain(audits.into_iter().map(Err));
        Self::allowed(permit, audited, plan.policy.clone(), plan.entry.clone())
    }

    /// Makes the decision on a call that the enforced policies allow. `audited` holds the results of those in audit mode.
    fn allowed(
        permit: Permit,
        audited: impl Iterator<Item = Result<Permit, Denial>>,
        policy: Option<Arc<str>>,
        entry: Option<Arc<str>>,
    ) -> Self {
        let effect = Effect::Allowed(permit);
        let mut decision =
            Self { effect, would_deny: Vec::new(), policy, entry, store_fallback: None, changed: None, result_limit: None };
        for result in audited {
            match (result, &mut decision.effect) {
                (Ok(taken), Effect::Allowed(permit)) => permit.join(taken),
                (Ok(_), Effect::Denied(_)) => {}
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

    /// Makes the decision on what is let through whatever policies say.
    pub fn allowed_freely() -> Self {
        Self::allowed(Permit::default(), std::iter::empty(), None, None)
    }

    /// Makes the decision of a denial.
    pub fn denied(denial: Denial) -> Self {
        Self {
            policy: denial.policy.clone(),
            entry: denial.entry.clone(),
            effect: Effect::Denied(denial),
            would_deny: Vec::new(),
            store_fallback: None,
            changed: None,
            result_limit: None,
        }
    }

    /// Returns the values of the labels `decision` and `reason`, as in metrics and the audit log. The first is `allowed`,
    /// `denied`, `would_deny` or `would_ask`.
    pub fn labels(&self) -> (&'static str, Reason) {
        match (&self.effect, self.would_deny.first()) {
            (Effect::Denied(denial), _) => ("denied", denial.reason),
            (Effect::Allowed(_), Some(denial)) if denial.ask.is_some() => ("would_ask", denial.reason),
            (Effect::Allowed(_), Some(denial)) => ("would_deny", denial.reason),
            (Effect::Allowed(_), None) => ("allowed", Reason::None),
        }
    }

    /// Returns the denial of a denied call.
    pub fn denial(&self) -> Option<&Denial> {
        match &self.effect {
            Effect::Denied(denial) => Some(denial),
            Effect::Allowed(_) => None,
        }
    }
}

/// Decides for a policy in audit mode, unless pins have something to report: nothing that it says is more than reported.
fn no_audit<T>(audits: PinAudits, decide: impl FnOnce() -> Result<T, Denial>) -> Result<T, Denial> {
    match audits.into_iter().next() {
        Some(denial) => Err(denial),
        None => decide(),
    }
}

impl Engine {
    /// Returns the denial of a group that does not depend on the call's arguments, or what its pins only report. Adds to `changed` the parts
    /// of the tool that are not as pins have them.
    pub(crate) fn check_group(
        &self,
        plan: &NamePlan,
        group: &Group,
        call: &Call<'_>,
        changed: &Cell<Option<PartSet>>,
    ) -> Result<PinAudits, Denial> {
        if let Some(denial) = &group.denial {
            return Err(denial.clone());
        }
        if !plan.has_pins {
            return Ok(PinAudits::new());
        }
        let PinFindings { denied, audited, changed: parts } = self.pin_findings(group, call);
        changed.set(changed.get().into_iter().chain(parts).reduce(PartSet::union));
        denied.map_or(Ok(audited), Err)
    }

    /// Decides on a call. Every enforced policy must allow it; denials of policies in audit mode are only reported. The limits
    /// of all policies that decide together are taken, or none is. A call that wants shared counts is denied: use
    /// [`Engine::begin`] for these.
    pub fn decide(&self, call: &Call<'_>, now: Timestamp) -> Decision {
        match self.begin(call, now) {
            DecisionStart::Decided(decision) => decision,
            DecisionStart::Pending(pending) => pending.finish([], now),
        }
    }

    /// Decides whether this may be used at all, as lists show it. Conditions and limits have no say, and nothing is taken.
    pub fn decide_use(&self, call: &Call<'_>) -> Decision {
        let plan = match self.plan(call) {
            Ok(plan) => plan,
            Err(denial) => return Decision::denied(*denial),
        };
        let check = |group: &Group| self.check_group(&plan, group, call, &Cell::new(None));
        let mut decision = Decision::of_plan(&plan, check, |_| Ok(Permit::default()));
        decision.result_limit.clone_from(&plan.result_limit);
        decision
    }

    /// Returns true where the decision may have to wait: for counts that pods share, or for a person.
    pub fn may_wait(&self, call: &Call<'_>) -> bool {
        let asks = |plan: &NamePlan| std::iter::once(&plan.enforced).chain(&plan.audited).any(|group| group.asks);
        self.plan(call).is_ok_and(|plan| plan.shares || asks(&plan))
    }

    /// Begins to decide on a call as [`Engine::decide`] does, as far as that depends on this pod alone.
    pub fn begin<'a>(&'a self, call: &Call<'a>, now: Timestamp) -> DecisionStart<'a> {
        self.begin_approved(call, None, now)
    }

    /// Begins to decide on a call, as [`Engine::begin`] does, of which a person has approved this. A policy that asks and is not among
    /// those that were named to the person, in the same state, asks again.
    pub fn begin_approved<'a>(&'a self, call: &Call<'a>, approved: Option<&ApprovalAsk>, now: Timestamp) -> DecisionStart<'a> {
        let plan = match self.plan(call) {
            Ok(plan) => plan,
            Err(denial) => return DecisionStart::Decided(Decision::denied(*denial)),
        };
        if plan.shares {
            return self.begin_shared(&plan, call, approved, now);
        }
        // One budget for all policies, the enforced ones first.
        let context = CallContext::new(call, approved);
        let decide = |group: &Group| self.evaluator(group, &context, now).take(&group.steps, &mut Wants::default());
        let changed = Cell::new(None);
        let mut decision = Decision::of_plan(&plan, |group| self.check_group(&plan, group, call, &changed), decide);
        decision.changed = changed.get();
        decision.result_limit.clone_from(&plan.result_limit);
        DecisionStart::Decided(decision)
    }

    /// Returns the plan for a call.
    ///
    /// # Errors
    /// No policy has a say in it.
    pub(crate) fn plan(&self, call: &Call<'_>) -> Result<Cow<'_, NamePlan>, Box<Denial>> {
        let operation = call.operation;
        let rules =
            self.servers.get(call.server).ok_or_else(|| Box::new(Denial::no_policy(call.server, operation)))?.of(operation.kind);
        if rules.policies.is_empty() {
            return Err(Box::new(Denial::no_say(call.server, operation)));
        }
        Ok(rules.plan(operation.name, call.class()))
    }

    fn begin_shared<'a>(
        &'a self,
        plan: &NamePlan,
        call: &Call<'a>,
        approved: Option<&ApprovalAsk>,
        now: Timestamp,
    ) -> DecisionStart<'a> {
        let context = CallContext::new(call, approved);
        let take = |group: &Group| {
            let mut wants = Wants::default();
            let permit = self.evaluator(group, &context, now).take(&group.steps, &mut wants)?;
            Ok((LocalPermit(Some(permit)), wants.shared))
        };
        let changed = Cell::new(None);
        let check = |group: &Group| self.check_group(plan, group, call, &changed);
        let (pin_audits, enforced) = match check(&plan.enforced).and_then(|audits| Ok((audits, take(&plan.enforced)?))) {
            Ok((audits, enforced)) => (audits, Ok(enforced)),
            Err(denial) => {
                return DecisionStart::Decided(Decision { changed: changed.get(), ..Decision::denied(denial) });
            }
        };
        let audited = plan.audited.iter().map(|group| check(group).and_then(|audits| no_audit(audits, || take(group))));
        let (mut demands, mut groups) = (Vec::new(), Vec::new());
        for taken in std::iter::once(enforced).chain(audited) {
            let (demand, group) = match taken {
                Ok((local, SharedWants { demand, origins })) => (demand, Ok((local, origins))),
                Err(denial) => (SharedDemand::default(), Err(denial)),
            };
            demands.push(demand);
            groups.push(group);
        }
        let nothing = demands.iter().all(SharedDemand::is_empty);
        let (policy, entry) = (plan.policy.clone(), plan.entry.clone());
        let changed = changed.get();
        let result_limit = plan.result_limit.clone();
        let state =
            PendingState { engine: self, call: *call, now, policy, entry, demands, groups, pin_audits, changed, result_limit };
        let pending = Pending(Box::new(state));
        if nothing { DecisionStart::Decided(pending.finish([], now)) } else { DecisionStart::Pending(pending) }
    }
}

impl Pending<'_> {
    /// Returns what the call wants of counts that pods share: first the demand of the enforced policies together, then that of
    /// each policy in audit mode. Demands can be empty.
    pub fn demands(&self) -> &[SharedDemand] {
        &self.0.demands
    }

    /// Decides by the answers to [`Pending::demands`], in the same order. A missing answer is [`SharedAnswer::Unavailable`].
    /// This pod's own counts count from `now` on, the moment at which the answers are there.
    pub fn finish(self, answers: impl IntoIterator<Item = SharedAnswer>, now: Timestamp) -> Decision {
        let PendingState { engine, call, now: begun, policy, entry, demands, groups, pin_audits, changed, result_limit } =
            *self.0;
        let late = (now > begun).then_some(now);
        let meter = Meter::default();
        let name = call.operation.name;
        let evaluator =
            Evaluator { engine, call: &call, name, now, arguments: Ok(None), meter: &meter, asks: false, approved: None };
        let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let mut store_fallback = None;
        let settled = groups.into_iter().zip(demands).zip(answers).map(|((group, demand), answer)| {
            let answer = answer.unwrap_or(SharedAnswer::Unavailable);
            let (result, fallback) = evaluator.settle(group, &demand, answer, late);
            store_fallback = store_fallback.or(fallback);
            result
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
                Decision::allowed(permit, settled.chain(pin_audits.into_iter().map(Err)), policy, entry)
            }
        };
        decision.store_fallback = store_fallback;
        decision.changed = changed;
        decision.result_limit = result_limit;
        decision
    }
}

impl Evaluator<'_> {
    /// Takes all of this pod's own limits of the steps. Collects in `wants` what is wanted of shared counts.
    ///
    /// # Errors
    /// The most severe denial.
    fn take<'s>(&self, steps: &'s [Step], wants: &mut Wants<'s>) -> Result<Permit, Denial> {
        self.collect(steps, wants)?;
        self.engine.counters.take(&wants.takes, &wants.holds, self.now).map_err(|error| self.take_denial(&error, wants))
    }

    /// Checks what [`Engine::begin`] and [`Pending::finish`] would decide for the steps, by the counts that were looked up, if
    /// `new_counts` counts had been made newly. Takes nothing. Adds to `new_counts` the counts that the call would make.
    ///
    /// # Errors
    /// The most severe denial.
    pub fn check(&self, steps: &[Step], new_counts: &mut usize, peeked: &Peeked) -> Result<(), Denial> {
        let mut wants = Wants::default();
        self.collect(steps, &mut wants)?;
        let new = self.engine.counters.check(&wants.takes, &wants.holds, *new_counts, self.now);
        *new_counts += new.map_err(|error| self.take_denial(&error, &wants))?;
        self.check_shared(&wants.shared, peeked)
    }

    fn check_shared(&self, SharedWants { demand, origins }: &SharedWants, peeked: &Peeked) -> Result<(), Denial> {
        let (mut full, mut busy, mut unknown) = (SmallVec::new(), None, false);
        for (index, SharedTake { take, failure, .. }) in demand.takes.iter().enumerate() {
            match peeked.take(&take.identity, &take.instance) {
                Some((_, Ok(()))) => {}
                Some((_, Err(why))) => full.push((index, why)),
                None => unknown |= *failure == OnStoreFailure::Deny,
            }
        }
        for (index, SharedHold { hold, failure, .. }) in demand.holds.iter().enumerate() {
            match peeked.hold(&hold.identity) {
                Some(in_flight) if in_flight < hold.max => {}
                Some(_) => busy = busy.or(Some(TakeError::Busy(index))),
                None => unknown |= *failure == OnStoreFailure::Deny,
            }
        }
        let error = if full.is_empty() { busy } else { Some(TakeError::Full(full)) };
        match error {
            Some(error) => Err(self.take_denial(&error, &(demand, origins))),
            None if unknown => Err(self.store_denial(demand, origins)),
            None => Ok(()),
        }
    }

    /// Decides for one group by the answer to its demand. Also returns the action that was taken instead, where the store did
    /// not answer. `late` is the time from which the pod's own counts count, if that is not the one at which they were taken.
    fn settle(
        &self,
        group: Result<(LocalPermit, Origins), Denial>,
        demand: &SharedDemand,
        answer: SharedAnswer,
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
            SharedAnswer::Taken(SharedGrant { amounts, places, store_fallback }) => {
                let mut permit = keep();
                permit.join(Permit::from_shared(amounts, places));
                (Ok(permit), store_fallback)
            }
            _ if demand.is_empty() => (Ok(keep()), None),
            SharedAnswer::Refused(error) => (Err(self.take_denial(&error, &(demand, &origins))), None),
            SharedAnswer::RefusedAlone(error) => {
                (Err(self.take_denial(&error, &(demand, &origins))), Some(OnStoreFailure::PerPod))
            }
            // Something else denies the call.
            SharedAnswer::NotAsked => (Err(self.store_denial(demand, &origins)), None),
            SharedAnswer::Unavailable => (Err(self.store_denial(demand, &origins)), Some(OnStoreFailure::Deny)),
        }
    }
}
