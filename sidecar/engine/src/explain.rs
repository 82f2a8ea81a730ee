//! Explanations: what would be decided on a call, and why, without taking anything. The verdict comes from the functions that
//! decide, and so do the details beside it.

use std::{cell::Cell, iter};

use toolweir_crds::{
    Action, OnStoreFailure, TimeSpan,
    explain::{
        ApprovalExplanation, AskExplanation, ConcurrencyExplanation, EntryExplanation, Explanation, LimitExplanation,
        PinsExplanation, PolicyExplanation, ServerExplanation, ValidationExplanation, VerdictExplanation,
    },
};

use crate::{
    ask::{ApprovalAsk, CompiledApproval},
    call::{Call, CallContext},
    cel::work::{BUDGET, Meter},
    counters::Permit,
    decide::{Decision, Effect},
    denial::{Denial, Reason, whole_seconds},
    engine::Engine,
    entry::{CompiledEntry, CompiledLimit, CompiledValidation, EntryHold},
    evaluate::Evaluator,
    rules::{Group, Step},
    shared::{Peeked, SharedDemand},
    take::Instance,
    wants::Wants,
    window::{Amount, Full, Timestamp},
};

impl Engine {
    /// Returns what [`Engine::decide`] would answer now, with the part of each policy that governs the call. Takes nothing: no
    /// place of a limit, and none among the calls in flight. `peeked` holds what was looked up of [`Engine::shared_demands`].
    pub fn explain(&self, call: &Call<'_>, now: Timestamp, peeked: &Peeked) -> Explanation {
        let plan = match self.plan(call) {
            Ok(plan) => plan,
            Err(denial) => return explanation(call, &Decision::denied(*denial), Vec::new()),
        };
        let mut new = 0;
        let context = CallContext::new(call, None);
        let decide = |group: &Group| {
            // Counts that the policies before it would have made by now are counts that are no longer to be had.
            self.evaluator(group, &context, now).check(&group.steps, &mut new, peeked)?;
            Ok(Permit::default())
        };
        let decision = Decision::of_plan(&plan, |group| self.check_group(&plan, group, call, &Cell::new(None)), decide);
        let mut policies: Vec<PolicyExplanation> = Vec::new();
        // The details beside it evaluate everything up to four times, with as large a budget.
        let context = CallContext::with_meter(call, Meter::new(4 * BUDGET));
        for group in iter::once(&plan.enforced).chain(&plan.audited) {
            let evaluator = self.evaluator(group, &context, now);
            policies.extend(
                group.steps.chunk_by(|a, b| a.rules.policy == b.rules.policy).map(|own| evaluator.explain_policy(own, peeked)),
            );
        }
        let rules = self.servers.get(call.server).map(|rules| rules.of(call.operation.kind));
        let order = |name: &str| rules.and_then(|rules| rules.policies.iter().position(|own| *own.policy == *name));
        policies.sort_by_key(|explained| order(&explained.policy));
        let mut explained = explanation(call, &decision, policies);
        explained.class = rules.filter(|rules| rules.reads_definitions()).map(|_| call.class());
        explained
    }

    /// Returns what to look up of counts that pods share before [`Engine::explain`]: all that the call would take of them, also
    /// where something else denies it; first for the enforced policies, then for each in audit mode.
    pub fn shared_demands(&self, call: &Call<'_>, now: Timestamp) -> Vec<SharedDemand> {
        let Ok(plan) = self.plan(call) else { return Vec::new() };
        if !plan.shares {
            return Vec::new();
        }
        let context = CallContext::new(call, None);
        iter::once(&plan.enforced)
            .chain(&plan.audited)
            .map(|group| self.evaluator(group, &context, now).shared_demand(&group.steps))
            .collect()
    }
}

fn explanation(call: &Call<'_>, decision: &Decision, policies: Vec<PolicyExplanation>) -> Explanation {
    let (label, reason) = decision.labels();
    let verdict = match &decision.effect {
        Effect::Denied(denial) => denied(denial),
        Effect::Allowed(_) => VerdictExplanation {
            allowed: true,
            reason: reason.to_string(),
            policy: decision.policy.as_deref().map(str::to_owned),
            entry: decision.entry.as_deref().map(str::to_owned),
            ..VerdictExplanation::default()
        },
    };
    Explanation {
        server: call.server.to_owned(),
        kind: call.operation.kind,
        tool: call.operation.name.to_owned(),
        decision: label.to_owned(),
        verdict,
        would_deny: decision.would_deny.iter().map(denied).collect(),
        policies,
        class: None,
    }
}

fn denied(denial: &Denial) -> VerdictExplanation {
    VerdictExplanation {
        allowed: false,
        reason: denial.reason.to_string(),
        policy: denial.policy.as_deref().map(str::to_owned),
        entry: denial.entry.as_deref().map(str::to_owned),
        message: Some(denial.message.clone()),
        retry_after_seconds: denial.retry_after.map(whole_seconds),
        approval: denial.ask.as_deref().map(asked),
    }
}

fn asked(ask: &ApprovalAsk) -> AskExplanation {
    AskExplanation {
        policies: ask.policies.iter().map(|asking| asking.policy.to_string()).collect(),
        message: ask.message.clone(),
        shown: ask.shown.clone(),
        hold: TimeSpan::of(ask.hold),
        expiry: TimeSpan::of(ask.expiry),
        pending: ask.pending,
    }
}

/// Returns the text of a denial without the policy that denies.
fn reason_text(denial: Denial) -> String {
    let who = denial.policy.map(|policy| format!("Denied by policy {policy}: ")).unwrap_or_default();
    denial.message.strip_prefix(&who).map(str::to_owned).unwrap_or(denial.message)
}

/// The one of a limit's counts in which a call counts, and the amount that it adds; or the denial where they cannot be computed.
type Counted = Result<(Instance, Amount), Denial>;

impl Evaluator<'_> {
    /// Explains the part of one policy.
    fn explain_policy(&self, steps: &[Step], peeked: &Peeked) -> PolicyExplanation {
        let own = Group::new(steps.into(), self.call.operation.name);
        let by_pins = || self.engine.pin_findings(&own, self.call).denied;
        let denial = own.denial.clone().or_else(by_pins).or_else(|| self.check(steps, &mut 0, peeked).err());
        let first = steps.first();
        let policy = first.map(|step| step.rules.policy.to_string()).unwrap_or_default();
        let verdict = match &denial {
            Some(denial) => denied(denial),
            None => VerdictExplanation {
                allowed: true,
                reason: Reason::None.to_string(),
                policy: Some(policy.clone()),
                entry: steps.iter().find_map(Step::deciding).map(|entry| entry.name.to_string()),
                ..VerdictExplanation::default()
            },
        };
        // What each limit wants, and what limits with the same count want together.
        let (mut each, mut together): (Vec<Counted>, Wants<'_>) = Default::default();
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    let counted = self.instance_and_amount(step, &entry.name, limit);
                    if let Ok((instance, amount)) = &counted {
                        together.add(step, &entry.name, limit, instance.clone(), *amount);
                    }
                    each.push(counted);
                }
            }
        }
        let mut each = each.into_iter();
        let servers = steps
            .iter()
            .map(|step| ServerExplanation {
                server: step.rules.server.to_string(),
                default_action: step.rules.default_action,
                action: if step.allows() { Action::Allow } else { Action::Deny },
                entry: step.deciding().map(|entry| entry.name.to_string()),
                pins: step.rules.pins.as_ref().zip(self.engine.pin_state(step, self.call)).map(|(rule, state)| PinsExplanation {
                    pins: rule.id.to_string(),
                    state: state.as_str().to_owned(),
                    changed: state.changed().iter().collect(),
                }),
                entries: step
                    .entries_with_actions()
                    .map(|(entry, action)| EntryExplanation {
                        action,
                        ..self.explain_entry(step, entry, &mut each, &together, peeked)
                    })
                    .collect(),
            })
            .collect();
        PolicyExplanation {
            policy,
            mode: first.map(|step| step.rules.mode).unwrap_or_default(),
            broken: steps.iter().find_map(|step| step.rules.broken.as_ref().map(|broken| broken.why().to_owned())),
            verdict,
            servers,
        }
    }

    fn explain_entry(
        &self,
        step: &Step,
        entry: &CompiledEntry,
        each: &mut impl Iterator<Item = Counted>,
        together: &Wants<'_>,
        peeked: &Peeked,
    ) -> EntryExplanation {
        let limits = entry.limits.iter().zip(each);
        EntryExplanation {
            name: entry.name.to_string(),
            action: None,
            validations: entry.validations.iter().map(|validation| self.explain_validation(step, entry, validation)).collect(),
            approval: entry.approval.as_ref().map(|approval| self.explain_approval(step, entry, approval)),
            limits: limits.map(|(limit, counted)| self.explain_limit(step, entry, limit, counted, together, peeked)).collect(),
            max_concurrent: entry.hold.as_ref().map(|hold| self.explain_hold(hold, peeked)),
        }
    }

    fn explain_hold(&self, EntryHold { hold, scope, pod_group }: &EntryHold, peeked: &Peeked) -> ConcurrencyExplanation {
        let under_way = match pod_group {
            None => Some(self.engine.counters.in_flight(&hold.identity)),
            Some(_) => peeked.hold(&hold.identity),
        };
        ConcurrencyExplanation {
            max: hold.max,
            under_way: under_way.unwrap_or_default(),
            scope: *scope,
            store_unavailable: under_way.is_none(),
        }
    }

    fn explain_validation(&self, step: &Step, entry: &CompiledEntry, validation: &CompiledValidation) -> ValidationExplanation {
        let (holds, error) = match self.holds(step, &entry.name, validation) {
            Ok(Ok(holds)) => (holds, None),
            Ok(Err(why)) => (false, Some(why)),
            Err(denial) => (false, Some(reason_text(denial))),
        };
        ValidationExplanation { expression: validation.source.clone(), holds, error }
    }

    fn explain_approval(&self, step: &Step, entry: &CompiledEntry, approval: &CompiledApproval) -> ApprovalExplanation {
        let (asks, error) = match self.asks(step, entry, approval) {
            Ok(Ok(asks)) => (asks, None),
            Ok(Err(why)) => (true, Some(why)),
            Err(denial) => (true, Some(reason_text(denial))),
        };
        let CompiledApproval { when, hold, expiry, pending, .. } = approval;
        ApprovalExplanation {
            when: when.as_ref().map(|(_, source)| source.clone()),
            asks,
            error,
            hold: TimeSpan::of(*hold),
            expiry: TimeSpan::of(*expiry),
            pending: *pending,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for display")]
    fn explain_limit(
        &self,
        step: &Step,
        entry: &CompiledEntry,
        limit: &CompiledLimit,
        counted: Counted,
        together: &Wants<'_>,
        peeked: &Peeked,
    ) -> LimitExplanation {
        let mut explained = LimitExplanation {
            limit: limit.label.clone(),
            max: limit.max,
            window: limit.window_text.to_string(),
            scope: limit.scope,
            key: limit.key.as_ref().map(|(_, source)| source.clone()),
            key_value: self.key(step, &entry.name, limit).ok().flatten(),
            cost: limit.cost.as_ref().map(|(_, source)| source.clone()),
            ..LimitExplanation::default()
        };
        let counters = &self.engine.counters;
        let used = match counted {
            Err(denial) => {
                explained.error = Some(reason_text(denial));
                if limit.pod_group.is_some() {
                    // Which of its counts is meant is not known, and they are not here.
                    return explained;
                }
                explained.fullest = true;
                Some(limit.used(counters, self.now))
            }
            Ok((instance, amount)) => {
                let (amount, max) =
                    together.find(limit, &instance).map_or((amount, limit.maximum()), |take| (take.amount, take.max));
                explained.adds = Some(amount.as_f64());
                let found = if limit.pod_group.is_none() {
                    Some(counters.peek(&limit.take(instance, amount), self.now))
                } else {
                    // Looked up was whether it fits the smallest maximum of the count.
                    let found = peeked.take(&limit.identity, &instance);
                    let more = |used: Amount| max < limit.maximum() && used.plus(amount) <= limit.maximum();
                    found.map(|(used, fits)| (used, if more(used) { Ok(()) } else { fits }))
                };
                explained.fits = found.map_or(step.rules.on_store_failure != OnStoreFailure::Deny, |(_, fits)| fits.is_ok());
                if let Some((_, Err(Full::Until(then)))) = found {
                    explained.retry_after_seconds = Some(whole_seconds(then.since(self.now)));
                }
                found.map(|(used, _)| used)
            }
        };
        let Some(used) = used else {
            // Nobody knows what is used, and so what is left.
            explained.store_unavailable = true;
            return explained;
        };
        explained.used = used.as_f64();
        explained.left = (explained.max as f64 - explained.used).max(0.0);
        explained
    }
}
