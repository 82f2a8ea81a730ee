//! Compiled entries: limits, validations and bounds on concurrency.

use std::sync::Arc;

use toolweir_crds::{Action, Scope, Window};

use crate::{
    cel::Expression,
    take::{Hold, Identity, Instance, Take},
    window::{Amount, Span},
};

/// A compiled entry of a policy: a tool's name or glob, with all that it says.
#[derive(Debug)]
pub(crate) struct CompiledEntry {
    pub name: Arc<str>,
    pub action: Option<Action>,
    pub reason: Option<String>,
    pub limits: Vec<Arc<CompiledLimit>>,
    pub validations: Vec<CompiledValidation>,
    pub hold: Option<EntryHold>,
}

impl CompiledEntry {
    /// Returns the action for the tools that it matches. An entry of stars alone has none unless it names one.
    pub(crate) fn effective_action(&self) -> Option<Action> {
        self.action.or_else(|| self.name.contains(|c| c != '*').then_some(Action::Allow))
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

    /// Returns true if it can deny a call for its arguments.
    pub(crate) fn has_expressions(&self) -> bool {
        self.expressions().next().is_some()
    }

    /// Returns its expressions: validations, keys and costs.
    pub(crate) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let limits = self.limits.iter().flat_map(|limit| limit.key.iter().chain(&limit.cost));
        self.validations.iter().map(|validation| &validation.expression).chain(limits.map(|(expression, _)| expression))
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
