//! What policies want a person to approve: which policies, in which state, and how they ask.

use std::{sync::Arc, time::Duration};

use ring::digest::{SHA256, digest};
use toolweir_crds::{
    EntryApproval,
    approval_request::{ApprovalPolicy, ShownValue},
};

use crate::{
    cel::Expression,
    policy::{Policy, PolicyId},
};

/// A policy that can ask, in the state in which it was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskingPolicy {
    /// The policy, for an `MCPApproval`.
    pub policy: ApprovalPolicy,
    /// What tells this state of the policy from every other: a hash of all that it says, with its uid and generation.
    pub revision: Arc<str>,
}

impl AskingPolicy {
    /// The state of a policy.
    pub(crate) fn of(policy: &Policy) -> Self {
        let PolicyId { cluster, namespace, name } = &policy.id;
        // All that it says, also where it has a generation: a file can keep that of the cluster that it comes from. A spec that could be
        // read can be written.
        let says = serde_json::to_vec(&(cluster, namespace, name, &policy.version, &policy.spec)).unwrap_or_default();
        let digest = digest(&SHA256, &says);
        let revision: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let (uid, generation) = policy.version.clone().unwrap_or_default();
        let policy = ApprovalPolicy { namespace: namespace.clone(), name: name.clone(), uid, generation };
        Self { policy, revision: revision.into() }
    }
}

/// What must be asked of a person before a call goes through: of all policies of a group together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalAsk {
    /// The policies that ask, in the order of their names; each once.
    pub policies: Vec<Arc<AskingPolicy>>,
    /// Why, in their words; empty where none says.
    pub message: String,
    /// What they show of the arguments, each expression once.
    pub shown: Vec<ShownValue>,
    /// How long the call waits: the shortest that one of them says.
    pub hold: Duration,
    /// How long a request waits, and an approval can be used: the shortest that one of them says.
    pub expiry: Duration,
    /// The requests that may wait at once: the fewest that one of them says.
    pub pending: u32,
}

impl ApprovalAsk {
    /// Returns true if an approval of this satisfies a policy in this state.
    pub(crate) fn names(&self, policy: &AskingPolicy) -> bool {
        self.policies.iter().any(|named| **named == *policy)
    }

    /// What a first approval wants, yet of no policy.
    pub(crate) fn new(first: &CompiledApproval) -> Self {
        let CompiledApproval { hold, expiry, pending, .. } = first;
        let (policies, message, shown) = (Vec::new(), String::new(), Vec::new());
        Self { policies, message, shown, hold: *hold, expiry: *expiry, pending: *pending }
    }

    /// Adds what an approval of a policy wants.
    pub(crate) fn add(&mut self, policy: &Arc<AskingPolicy>, approval: &CompiledApproval) {
        // One policy asks by several entries, and by those for every server.
        if !self.names(policy) {
            self.policies.push(Arc::clone(policy));
        }
        self.hold = self.hold.min(approval.hold);
        self.expiry = self.expiry.min(approval.expiry);
        self.pending = self.pending.min(approval.pending);
    }
}

/// The compiled `approval` of an entry.
#[derive(Debug)]
pub(crate) struct CompiledApproval {
    /// The condition, with its source; every call where there is none.
    pub when: Option<(Expression, String)>,
    pub message: Option<String>,
    /// What is shown, with its source.
    pub show: Vec<(Expression, String)>,
    pub hold: Duration,
    pub expiry: Duration,
    pub pending: u32,
}

impl CompiledApproval {
    /// The approval of an entry whose expressions were compiled.
    pub(crate) fn new(approval: &EntryApproval, when: Option<(Expression, String)>, show: Vec<(Expression, String)>) -> Self {
        let EntryApproval { message, hold, expiry, pending, .. } = approval;
        Self { when, message: message.clone(), show, hold: hold.span(), expiry: expiry.span(), pending: *pending }
    }

    /// Returns its expressions.
    pub(crate) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.when.iter().chain(&self.show).map(|(expression, _)| expression)
    }
}
