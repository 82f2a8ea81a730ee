//! Compiled entries: limits, validations and bounds on concurrency.

use std::sync::Arc;

use toolweir_crds::{Action, Scope, ToolClass, Window};

use crate::{
    ask::CompiledApproval,
    cel::Expression,
    counters::Memory,
    take::{Hold, Identity, Instance, Take, instance},
    window::{Amount, Span, Timestamp},
};

/// A compiled entry of a policy: a name, a glob or a class, with all that it says.
#[derive(Debug)]
pub(crate) struct CompiledEntry {
    /// The name or glob; for a class `class:` and the class.
    pub name: Arc<str>,
    pub class: Option<ToolClass>,
    pub action: Option<Action>,
    pub reason: Option<String>,
    pub limits: Vec<Arc<CompiledLimit>>,
    pub validations: Vec<CompiledValidation>,
    pub approval: Option<CompiledApproval>,
    pub hold: Option<EntryHold>,
    /// The largest result, in bytes.
    pub max_result_bytes: Option<u64>,
}

impl CompiledEntry {
    /// Returns the action for what it matches. An entry of stars alone has none unless it names one.
    pub(crate) fn effective_action(&self) -> Option<Action> {
        self.action.or_else(|| self.tells_names_apart().then_some(Action::Allow))
    }

    /// Returns true if it matches some names and not others.
    pub(crate) fn tells_names_apart(&self) -> bool {
        self.name.contains(|c| c != '*')
    }

    /// Returns true if it can deny a call of a tool that it matches, its action aside.
    pub(crate) fn restricts(&self) -> bool {
        !self.limits.is_empty() || !self.validations.is_empty() || self.approval.is_some() || self.hold.is_some()
    }

    /// Returns true if pods share one of its counts.
    pub(crate) fn shares(&self) -> bool {
        self.pod_groups().next().is_some()
    }

    /// Returns the group of pods of each count that pods share.
    pub(crate) fn pod_groups(&self) -> impl Iterator<Item = &Arc<str>> {
        let hold = self.hold.iter().filter_map(|hold| hold.pod_group.as_ref());
        self.limits.iter().filter_map(|limit| limit.pod_group.as_ref()).chain(hold)
    }

    /// Returns true if an expression of it can deny a call. A condition of an approval only asks.
    pub(crate) fn has_conditions(&self) -> bool {
        !self.validations.is_empty() || self.limits.iter().any(|limit| limit.key.is_some() || limit.cost.is_some())
    }

    /// Returns its expressions: validations, conditions of approvals and what these show, keys and costs.
    pub(crate) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let limits = self.limits.iter().flat_map(|limit| limit.key.iter().chain(&limit.cost));
        let approval = self.approval.iter().flat_map(CompiledApproval::expressions);
        self.validations
            .iter()
            .map(|validation| &validation.expression)
            .chain(approval)
            .chain(limits.map(|(expression, _)| expression))
    }
}

/// A compiled limit.
#[derive(Debug)]
pub(crate) struct CompiledLimit {
    pub identity: Identity,
    pub span: Span,
    pub max: i64,
    pub window: Window,
    pub window_text: Arc<str>,
    pub scope: Scope,
    /// The key, with its source.
    pub key: Option<(Expression, String)>,
    /// The cost, with its source.
    pub cost: Option<(Expression, String)>,
    /// The limit in short, such as `30/minute`.
    pub label: String,
    /// The pods that count together; `None` where this pod counts alone.
    pub pod_group: Option<Arc<str>>,
}

impl CompiledLimit {
    /// Returns the maximum as an amount.
    pub(crate) fn maximum(&self) -> Amount {
        Amount::whole(u64::try_from(self.max).unwrap_or(0))
    }

    /// Returns what a call takes of it.
    pub(crate) fn take(&self, instance: Instance, amount: Amount) -> Take {
        Take { identity: self.identity.clone(), instance, span: self.span, max: self.maximum(), amount }
    }

    /// Returns what counts against it now, of the fullest of its counts that this pod keeps itself. Limits of one counter have the same
    /// identity; one with a key has other counts than one without.
    pub(crate) fn used(&self, counters: &Memory, now: Timestamp) -> Amount {
        if self.key.is_none() && self.scope != Scope::Session {
            return counters.peek(&self.take(instance(""), Amount::ZERO), now).0;
        }
        counters.fullest(&self.identity, self.key.is_some(), self.span, now)
    }
}

/// The bound on the calls of an entry that are in flight at once.
#[derive(Debug)]
pub(crate) struct EntryHold {
    pub hold: Hold,
    pub scope: Scope,
    /// The pods that count together; `None` where this pod counts alone.
    pub pod_group: Option<Arc<str>>,
}

/// A compiled validation.
#[derive(Debug)]
pub(crate) struct CompiledValidation {
    pub expression: Expression,
    pub source: String,
    pub message: Option<String>,
}
