//! The evaluation of one call by policies that decide together: validations, keys and costs.

use std::{borrow::Cow, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::Scope;

use crate::{
    ask::ApprovalAsk,
    call::{Call, CallContext},
    cel::{
        ArgumentsError, CelObject, EvalError, Expression, Inputs,
        work::{Meter, units},
    },
    denial::{Denial, Reason},
    engine::Engine,
    entry::{CompiledLimit, CompiledValidation},
    rules::{Group, Step},
    shared::SharedDemand,
    take::{Instance, instance},
    wants::{SharedWants, Wants},
    window::{Amount, Timestamp},
};

/// Evaluates a call for one [`Group`] of policies.
pub(crate) struct Evaluator<'a> {
    pub engine: &'a Engine,
    pub call: &'a Call<'a>,
    /// The name of what is asked for, as expressions see it.
    pub name: &'a str,
    pub now: Timestamp,
    /// Read where an expression reads them.
    pub arguments: Result<Option<&'a CelObject<'a>>, ArgumentsError>,
    /// The work that expressions may still do.
    pub meter: &'a Meter,
    /// True if a policy may ask a person about the call.
    pub asks: bool,
    /// What a person has approved of this call.
    pub approved: Option<&'a ApprovalAsk>,
}

impl Engine {
    /// Returns the evaluator of a call for policies that decide together.
    pub(crate) fn evaluator<'a>(&'a self, group: &Group, context: &'a CallContext<'_>, now: Timestamp) -> Evaluator<'a> {
        let arguments = group.names.as_ref().map(|names| {
            let object = context.arguments()?;
            object.check(names, &context.meter)?;
            Ok(object)
        });
        Evaluator {
            engine: self,
            call: context.call,
            name: &context.name,
            now,
            arguments: arguments.transpose(),
            meter: &context.meter,
            asks: group.asks,
            approved: context.approved,
        }
    }
}

impl Evaluator<'_> {
    /// Collects what the call wants of its limits.
    ///
    /// # Errors
    /// The most severe denial that does not depend on counts.
    pub fn collect<'s>(&self, steps: &'s [Step], wants: &mut Wants<'s>) -> Result<(), Denial> {
        let mut denials: SmallVec<[Denial; 1]> = SmallVec::new();
        for step in steps {
            denials.extend(self.validate(step).err());
        }
        if let Some(denial) = denials.into_iter().min_by_key(|denial| denial.reason) {
            return Err(denial);
        }
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    // Each is compared with those before it.
                    let before = units(wants.take_count());
                    self.meter.charge(2 * before).map_err(|_| self.budget_denial(step, &entry.name))?;
                    let (instance, amount) = self.instance_and_amount(step, &entry.name, limit)?;
                    wants.add(step, &entry.name, limit, instance, amount);
                }
                wants.add_hold(step, entry);
            }
        }
        // Last, so that nobody is asked about a call that is denied anyway.
        if self.asks { self.check_approval(steps, wants) } else { Ok(()) }
    }

    /// Returns what the call would take of shared counts, also where something denies it. Skips limits whose key or cost has
    /// no value.
    pub fn shared_demand(&self, steps: &[Step]) -> SharedDemand {
        let mut shared = SharedWants::default();
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    if let Some(pod_group) = &limit.pod_group
                        && let Ok((instance, amount)) = self.instance_and_amount(step, &entry.name, limit)
                    {
                        shared.add(step, &entry.name, limit, pod_group, instance, amount);
                    }
                }
                shared.add_hold(step, entry);
            }
        }
        shared.demand
    }

    pub(crate) fn inputs(&self, step: &Step, entry: &Arc<str>, expression: &Expression) -> Result<Inputs<'_>, Denial> {
        let args = match &self.arguments {
            Ok(args) => *args,
            Err(_) if !expression.reads_arguments() => None,
            Err(ArgumentsError::Spent) => return Err(self.budget_denial(step, entry)),
            Err(error) => {
                let what = format!("the call's `arguments` {error}. Correct that and try again.");
                return Err(self.denial(&step.rules.policy, entry, Reason::Malformed, &what));
            }
        };
        Ok(Inputs { args, name: self.name, server: self.call.server, session: self.call.session, pod: &self.engine.pod })
    }

    /// Returns a denial of the call. The message says `Denied by policy NAME: WHAT`.
    pub fn denial(&self, policy: &Arc<str>, entry: &Arc<str>, reason: Reason, what: &str) -> Denial {
        Denial::of_policy(policy, Some(entry), reason, self.call.operation, what)
    }

    /// Returns the denial of a call on which expressions take more work than one call is given.
    pub(crate) fn budget_denial(&self, step: &Step, entry: &Arc<str>) -> Denial {
        let what = "the conditions on this call take more work than one call is given. Send smaller arguments.";
        self.denial(&step.rules.policy, entry, Reason::ExpressionBudget, what)
    }

    /// Evaluates a validation: true or false, or the reason why it could not be evaluated.
    ///
    /// # Errors
    /// The denial of a call whose arguments cannot be read, or that takes too much work.
    pub fn holds(&self, step: &Step, entry: &Arc<str>, validation: &CompiledValidation) -> Result<Result<bool, String>, Denial> {
        let inputs = self.inputs(step, entry, &validation.expression)?;
        match validation.expression.holds(&inputs, self.meter) {
            Ok(holds) => Ok(Ok(holds)),
            Err(EvalError::Failed(why)) => Ok(Err(why)),
            Err(EvalError::Spent) => Err(self.budget_denial(step, entry)),
        }
    }

    /// Checks all validations of a step, up to the first that does not hold.
    fn validate(&self, step: &Step) -> Result<(), Denial> {
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
                return Err(self.denial(&step.rules.policy, &entry.name, Reason::Validation, &what));
            }
        }
        Ok(())
    }

    /// Returns the denial of a call for which a limit's key or cost cannot be computed.
    fn limit_denial(&self, step: &Step, entry: &Arc<str>, what: &str, source: &str, why: &EvalError) -> Denial {
        if *why == EvalError::Spent {
            return self.budget_denial(step, entry);
        }
        self.denial(&step.rules.policy, entry, Reason::Validation, &format!("the {what} `{source}` of a limit {why}."))
    }

    /// Returns the value of a limit's key; `None` for a limit without one.
    ///
    /// # Errors
    /// The denial of a call for which it cannot be computed.
    pub fn key(&self, step: &Step, entry: &Arc<str>, limit: &CompiledLimit) -> Result<Option<String>, Denial> {
        let Some((key, source)) = &limit.key else { return Ok(None) };
        let value = key
            .key(&self.inputs(step, entry, key)?, self.meter)
            .map_err(|why| self.limit_denial(step, entry, "key", source, &why))?;
        Ok(Some(value))
    }

    /// Returns the one of a limit's counts in which the call counts, and the amount that it adds.
    ///
    /// # Errors
    /// The denial of a call for which they cannot be computed.
    pub fn instance_and_amount(
        &self,
        step: &Step,
        entry: &Arc<str>,
        limit: &CompiledLimit,
    ) -> Result<(Instance, Amount), Denial> {
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
                amount.map_err(|why| self.limit_denial(step, entry, "cost", source, &why))?
            }
        };
        Ok((instance(&which), amount))
    }
}
