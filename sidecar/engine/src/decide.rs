//! The decision on one call.

use std::{borrow::Cow, cmp::Reverse, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::Scope;

use crate::{
    cel::{self, Data, Expression, Inputs},
    counters::{Counters, Hold, Instance, Permit, Refusal, Take, instance},
    denial::{Denial, LimitInfo, Reason, shown, whole_seconds},
    json::Raw,
    rules::{Engine, Group, Limit, Plan, Step, Validation},
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
        let mut decision = Self {
            policy: plan.policy.clone(),
            entry: plan.entry.clone(),
            outcome: Outcome::Allowed(permit),
            would_deny: Vec::new(),
        };
        for group in &plan.audited {
            match (ask(group), &mut decision.outcome) {
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

    pub(crate) fn denied(denial: Denial) -> Self {
        Self {
            policy: denial.policy.clone(),
            entry: denial.entry.clone(),
            outcome: Outcome::Denied(denial),
            would_deny: Vec::new(),
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
    /// are all taken, or none is.
    pub fn decide(&self, call: &Call<'_>, now: Timestamp) -> Decision {
        let Some(rules) = self.servers.get(call.server) else {
            return Decision::denied(Denial::no_policy(call.server, call.tool));
        };
        Decision::by(&rules.plan(call.tool), |group| self.look(group, call, now).take(&group.steps))
    }

    /// A look at a call by policies that decide together.
    pub(crate) fn look<'a>(&'a self, group: &Group, call: &'a Call<'a>, now: Timestamp) -> Look<'a> {
        let arguments = group.names.as_ref().map(|names| cel::arguments(call.arguments, names)).transpose();
        Look { engine: self, call, now, arguments }
    }
}

/// One look at one call.
pub(crate) struct Look<'a> {
    pub engine: &'a Engine,
    pub call: &'a Call<'a>,
    pub now: Timestamp,
    /// Read where an expression reads them.
    pub arguments: Result<Option<Data<'a>>, cel::ArgumentsError>,
}

/// What a call would take.
#[derive(Default)]
pub(crate) struct Wants<'s> {
    pub takes: SmallVec<[Take; 4]>,
    /// Which limit each take stands for.
    sources: SmallVec<[(&'s Step, &'s Arc<str>, &'s Limit); 4]>,
    holds: SmallVec<[Hold; 2]>,
    holders: SmallVec<[(&'s Step, &'s Arc<str>); 2]>,
}

impl<'s> Wants<'s> {
    /// Adds what a limit wants. Limits that count together count a call once: the dearest, against the smallest maximum.
    pub fn add(&mut self, step: &'s Step, entry: &'s Arc<str>, limit: &'s Limit, instance: Instance, amount: Amount) {
        let twin = self.takes.iter().position(|take| take.identity == limit.identity && take.instance == instance);
        if let Some((take, source)) = twin.and_then(|at| Some((self.takes.get_mut(at)?, self.sources.get_mut(at)?))) {
            take.amount = take.amount.max(amount);
            if limit.maximum() < take.max {
                take.max = limit.maximum();
                *source = (step, entry, limit);
            }
        } else {
            let max = limit.maximum();
            self.takes.push(Take { identity: limit.identity.clone(), instance, span: limit.span, max, amount });
            self.sources.push((step, entry, limit));
        }
    }
}

impl Look<'_> {
    /// All limits of the steps taken, or the most severe denial.
    fn take(&self, steps: &[Step]) -> Result<Permit, Denial> {
        let mut wants = Wants::default();
        self.collect(steps, &mut wants)?;
        self.engine.counters.take(&wants.takes, &wants.holds, self.now).map_err(|refusal| self.refusal(&refusal, &wants))
    }

    /// What [`Look::take`] would say, when `before` counts had been made newly; nothing is taken. Gives how many counts it
    /// would make newly.
    pub fn check(&self, steps: &[Step], before: usize) -> Result<usize, Denial> {
        let mut wants = Wants::default();
        self.collect(steps, &mut wants)?;
        let counters = &self.engine.counters;
        counters.check(&wants.takes, &wants.holds, before, self.now).map_err(|refusal| self.refusal(&refusal, &wants))
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
                    let (instance, amount) = self.counted(step, &entry.name, limit)?;
                    wants.add(step, &entry.name, limit, instance, amount);
                }
                if let Some(hold) = &entry.hold {
                    wants.holds.push(hold.clone());
                    wants.holders.push((step, &entry.name));
                }
            }
        }
        Ok(())
    }

    fn inputs(&self, step: &Step, entry: &Arc<str>, expression: &Expression) -> Result<Inputs<'_>, Denial> {
        let args = match &self.arguments {
            Ok(args) => args.as_ref(),
            Err(_) if !expression.reads_arguments() => None,
            Err(error) => {
                let what = format!("the call's `arguments` {error}. Correct that and try again.");
                return Err(self.denial(step, entry, Reason::Malformed, &what));
            }
        };
        Ok(Inputs { args, tool: self.call.tool, server: self.call.server, session: self.call.session, pod: &self.engine.pod })
    }

    fn denial(&self, step: &Step, entry: &Arc<str>, reason: Reason, what: &str) -> Denial {
        Denial::by(&step.part.policy, Some(entry), reason, self.call.tool, what)
    }

    /// Whether a condition holds, or why that could not be told.
    pub fn holds(&self, step: &Step, entry: &Arc<str>, validation: &Validation) -> Result<Result<bool, String>, Denial> {
        let inputs = self.inputs(step, entry, &validation.expression)?;
        Ok(validation.expression.holds(&inputs))
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
                return Err(self.denial(step, &entry.name, Reason::Validation, &what));
            }
        }
        Ok(())
    }

    /// The denial of a call for which a limit's key or cost cannot be computed.
    fn failed(&self, step: &Step, entry: &Arc<str>, what: &str, source: &str, why: &str) -> Denial {
        self.denial(step, entry, Reason::Validation, &format!("the {what} `{source}` of a limit {why}."))
    }

    /// The value of a limit's key; nothing where it has none.
    pub fn key(&self, step: &Step, entry: &Arc<str>, limit: &Limit) -> Result<Option<String>, Denial> {
        let Some((key, source)) = &limit.key else { return Ok(None) };
        let value = key.key(&self.inputs(step, entry, key)?).map_err(|why| self.failed(step, entry, "key", source, &why))?;
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
                let amount = cost.cost(&self.inputs(step, entry, cost)?);
                amount.map_err(|why| self.failed(step, entry, "cost", source, &why))?
            }
        };
        Ok((instance(&which), amount))
    }

    fn refusal(&self, refusal: &Refusal, wants: &Wants<'_>) -> Denial {
        let Wants { takes, sources, holds, holders } = wants;
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
                let found = longest.and_then(|(index, why)| Some((takes.get(*index)?, sources.get(*index)?, why)));
                found.map(|(take, (step, entry, limit), why)| self.limit(step, entry, limit, take, *why))
            }
            Refusal::Busy(index) => holds.get(*index).zip(holders.get(*index)).map(|(hold, (step, entry))| {
                let many = if hold.max == 1 { "1 call" } else { &format!("{} calls", hold.max) };
                let what = format!("at most {many} of {entry} may be under way at once. Try again when one has ended.");
                self.denial(step, entry, Reason::Concurrency, &what)
            }),
            Refusal::OutOfCounters(index) => sources.get(*index).map(|(step, entry, _)| {
                let what = format!(
                    "{tool} is counted for each session or key, and there are more of those than are kept. Try again later."
                );
                self.denial(step, entry, Reason::CountersExhausted, &what)
            }),
        }
        .unwrap_or_else(|| Denial::no_policy(self.call.server, self.call.tool))
    }

    fn limit(&self, step: &Step, entry: &Arc<str>, limit: &Limit, take: &Take, why: Full) -> Denial {
        let tool = shown(self.call.tool);
        let whose = match limit.scope {
            Scope::Session => " in each session",
            Scope::Pod => "",
            Scope::Workload => " for its workload",
            Scope::ServiceAccount => " for its service account",
            Scope::Namespace => " for its namespace",
            Scope::Policy => " for all that the policy governs",
        };
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
        let mut denial = self.denial(step, entry, Reason::RateLimit, &what);
        denial.limit = Some(LimitInfo { max: limit.max, window: Arc::clone(&limit.window_text), scope: limit.scope });
        denial.retry_after = retry_after;
        denial
    }
}
