//! What would be decided on a call, and why, without taking anything. The verdict is made of what decides; what is told beside
//! it is looked up with the same functions.

use std::iter;

use toolweir_crds::{
    Action, OnStoreFailure,
    explain::{Explanation, Places, Said, SaidOfEntry, SaidOfLimit, SaidOfServer, SaidOfValidation, Verdict},
};

use crate::{
    cel::work::{BUDGET, Meter},
    counters::{Counters, Instance, Permit},
    decide::{Asked, Call, Decision, Look, Outcome, Wants},
    denial::{Denial, Reason, whole_seconds},
    rules::{Engine, Entry, EntryHold, Group, Limit, Step, Validation},
    shared::{Peeked, Wanted},
    window::{Amount, Full, Timestamp},
};

impl Engine {
    /// What [`Engine::decide`] would answer now, and what each policy that has a say in it says. Nothing is taken: no place
    /// of a limit, and none among the calls under way. `peeked` is what was looked up of [`Engine::shared_of`].
    pub fn explain(&self, call: &Call<'_>, now: Timestamp, peeked: &Peeked) -> Explanation {
        let Some(rules) = self.servers.get(call.server) else {
            return explanation(call, &Decision::denied(Denial::no_policy(call.server, call.tool)), Vec::new());
        };
        let plan = rules.plan(call.tool);
        let mut new = 0;
        let asked = Asked::new(call);
        let decision = Decision::by(&plan, |group| {
            // Counts that the policies before it would have made by now are counts that are no longer to be had.
            self.look(group, &asked, now).check(&group.steps, &mut new, peeked)?;
            Ok(Permit::default())
        });
        let mut policies: Vec<Said> = Vec::new();
        // What is told beside it looks at everything up to four times, and has as much more for that.
        let asked = Asked::with(call, Meter::new(4 * BUDGET));
        for group in iter::once(&plan.enforced).chain(&plan.audited) {
            let look = self.look(group, &asked, now);
            policies.extend(group.steps.chunk_by(|a, b| a.part.policy == b.part.policy).map(|own| look.said(own, peeked)));
        }
        policies.sort_by_key(|said| rules.parts.iter().position(|part| *part.policy == *said.policy));
        explanation(call, &decision, policies)
    }

    /// What is to be looked up of counts that pods share before [`Engine::explain`]: all that the call would take of them, also
    /// where something else denies it; by the enforced policies, and by each in audit mode.
    pub fn shared_of(&self, call: &Call<'_>, now: Timestamp) -> Vec<Wanted> {
        let Some(rules) = self.servers.get(call.server) else { return Vec::new() };
        let plan = rules.plan(call.tool);
        if !plan.shares {
            return Vec::new();
        }
        let asked = Asked::new(call);
        iter::once(&plan.enforced)
            .chain(&plan.audited)
            .map(|group| self.look(group, &asked, now).shared_of(&group.steps))
            .collect()
    }
}

fn explanation(call: &Call<'_>, decision: &Decision, policies: Vec<Said>) -> Explanation {
    let (told, reason) = decision.told();
    let verdict = match &decision.outcome {
        Outcome::Denied(denial) => denied(denial),
        Outcome::Allowed(_) => Verdict {
            allowed: true,
            reason: reason.to_string(),
            policy: decision.policy.as_deref().map(str::to_owned),
            entry: decision.entry.as_deref().map(str::to_owned),
            ..Verdict::default()
        },
    };
    Explanation {
        server: call.server.to_owned(),
        tool: call.tool.to_owned(),
        decision: told.to_owned(),
        verdict,
        would_deny: decision.would_deny.iter().map(denied).collect(),
        policies,
    }
}

fn denied(denial: &Denial) -> Verdict {
    Verdict {
        allowed: false,
        reason: denial.reason.to_string(),
        policy: denial.policy.as_deref().map(str::to_owned),
        entry: denial.entry.as_deref().map(str::to_owned),
        message: Some(denial.message.clone()),
        retry_after_seconds: denial.retry_after.map(whole_seconds),
    }
}

/// What a denial says is wrong, without who denies.
fn what(denial: Denial) -> String {
    let who = denial.policy.map(|policy| format!("Denied by policy {policy}: ")).unwrap_or_default();
    denial.message.strip_prefix(&who).map(str::to_owned).unwrap_or(denial.message)
}

/// In which of a limit's counts a call counts, and what it adds; or why that cannot be told.
type Counted = Result<(Instance, Amount), Denial>;

impl Look<'_> {
    /// What one policy says.
    fn said(&self, steps: &[Step], peeked: &Peeked) -> Said {
        let own = Group::new(steps.into(), self.call.tool);
        let denial = own.denial.clone().or_else(|| self.check(steps, &mut 0, peeked).err());
        let first = steps.first();
        let policy = first.map(|step| step.part.policy.to_string()).unwrap_or_default();
        let verdict = match &denial {
            Some(denial) => denied(denial),
            None => Verdict {
                allowed: true,
                reason: Reason::None.to_string(),
                policy: Some(policy.clone()),
                entry: steps.iter().find_map(Step::deciding).map(|entry| entry.name.to_string()),
                ..Verdict::default()
            },
        };
        // What each limit wants, and what those that count together want.
        let (mut each, mut together): (Vec<Counted>, Wants<'_>) = Default::default();
        for step in steps {
            for entry in step.matching() {
                for limit in &entry.limits {
                    let counted = self.counted(step, &entry.name, limit);
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
            .map(|step| SaidOfServer {
                server: step.part.server.to_string(),
                default_action: step.part.default_action,
                action: if step.allows() { Action::Allow } else { Action::Deny },
                entry: step.deciding().map(|entry| entry.name.to_string()),
                entries: step
                    .said()
                    .map(|(entry, action)| SaidOfEntry {
                        action,
                        ..self.said_of_entry(step, entry, &mut each, &together, peeked)
                    })
                    .collect(),
            })
            .collect();
        Said {
            policy,
            mode: first.map(|step| step.part.mode).unwrap_or_default(),
            broken: steps.iter().find_map(|step| step.part.broken.clone()),
            verdict,
            servers,
        }
    }

    fn said_of_entry(
        &self,
        step: &Step,
        entry: &Entry,
        each: &mut impl Iterator<Item = Counted>,
        together: &Wants<'_>,
        peeked: &Peeked,
    ) -> SaidOfEntry {
        let limits = entry.limits.iter().zip(each);
        SaidOfEntry {
            name: entry.name.to_string(),
            action: None,
            validations: entry.validations.iter().map(|validation| self.said_of_validation(step, entry, validation)).collect(),
            limits: limits.map(|(limit, counted)| self.said_of_limit(step, entry, limit, counted, together, peeked)).collect(),
            max_concurrent: entry.hold.as_ref().map(|hold| self.said_of_hold(hold, peeked)),
        }
    }

    fn said_of_hold(&self, EntryHold { hold, scope, whose }: &EntryHold, peeked: &Peeked) -> Places {
        let under_way = match whose {
            None => Some(self.engine.counters.under_way(&hold.identity)),
            Some(_) => peeked.of_hold(&hold.identity),
        };
        Places { max: hold.max, under_way: under_way.unwrap_or_default(), scope: *scope, store_unavailable: under_way.is_none() }
    }

    fn said_of_validation(&self, step: &Step, entry: &Entry, validation: &Validation) -> SaidOfValidation {
        let (holds, error) = match self.holds(step, &entry.name, validation) {
            Ok(Ok(holds)) => (holds, None),
            Ok(Err(why)) => (false, Some(why)),
            Err(denial) => (false, Some(what(denial))),
        };
        SaidOfValidation { expression: validation.source.clone(), holds, error }
    }

    #[expect(clippy::cast_precision_loss, reason = "for display")]
    fn said_of_limit(
        &self,
        step: &Step,
        entry: &Entry,
        limit: &Limit,
        counted: Counted,
        together: &Wants<'_>,
        peeked: &Peeked,
    ) -> SaidOfLimit {
        let mut said = SaidOfLimit {
            limit: limit.label.clone(),
            max: limit.max,
            window: limit.window_text.to_string(),
            scope: limit.scope,
            key: limit.key.as_ref().map(|(_, source)| source.clone()),
            key_value: self.key(step, &entry.name, limit).ok().flatten(),
            cost: limit.cost.as_ref().map(|(_, source)| source.clone()),
            ..SaidOfLimit::default()
        };
        let counters = &self.engine.counters;
        let used = match counted {
            Err(denial) => {
                said.error = Some(what(denial));
                if limit.whose.is_some() {
                    // Which of its counts is meant is not known, and they are not here.
                    return said;
                }
                said.fullest = true;
                Some(counters.used(&limit.identity, limit.span, self.now))
            }
            Ok((instance, amount)) => {
                let (amount, max) =
                    together.of(limit, &instance).map_or((amount, limit.maximum()), |take| (take.amount, take.max));
                said.adds = Some(amount.as_f64());
                let found = if limit.whose.is_none() {
                    Some(counters.look(&limit.take(instance, amount), self.now))
                } else {
                    // Looked up was whether it fits the smallest maximum of the count.
                    let found = peeked.of_take(&limit.identity, &instance);
                    let more = |used: Amount| max < limit.maximum() && used.plus(amount) <= limit.maximum();
                    found.map(|(used, fits)| (used, if more(used) { Ok(()) } else { fits }))
                };
                said.fits = found.map_or(step.part.on_store_failure != OnStoreFailure::Deny, |(_, fits)| fits.is_ok());
                if let Some((_, Err(Full::Until(then)))) = found {
                    said.retry_after_seconds = Some(whole_seconds(then.since(self.now)));
                }
                found.map(|(used, _)| used)
            }
        };
        let Some(used) = used else {
            // Nobody knows what is used, and so what is left.
            said.store_unavailable = true;
            return said;
        };
        said.used = used.as_f64();
        said.left = (said.max as f64 - said.used).max(0.0);
        said
    }
}
