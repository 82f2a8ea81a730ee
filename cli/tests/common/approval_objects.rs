//! The requests for approval of the fake API server: one is decided once, by whom the server takes the caller to be.

use std::collections::{HashSet, VecDeque};

use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A change that somebody makes before a request of the caller comes.
pub type Interference = Box<dyn FnOnce(&mut Value) + Send>;

/// The requests, and who asks for them.
#[derive(Default)]
pub struct ApprovalObjects {
    pub objects: Vec<Value>,
    /// Who the caller is.
    pub user: String,
    /// The policies that the caller may not approve, as `resource/name`.
    pub lacking: HashSet<String>,
    /// The admission policy's refusal of every decision.
    pub refusal: Option<String>,
    /// Whether there is an operator that writes the state.
    pub operated: bool,
    /// Changes before the next patches.
    pub interference: VecDeque<Interference>,
    /// What comes of each watch.
    pub watched: VecDeque<mpsc::UnboundedReceiver<String>>,
    /// What callers wrote.
    pub patches: Vec<Value>,
}

/// A status and a message, in place of an object.
pub type Refusal = (u16, String);

impl ApprovalObjects {
    /// Answers a merge patch of the status.
    pub fn patch_status(&mut self, namespace: &str, name: &str, patch: &Value) -> Result<Value, Refusal> {
        let interference = self.interference.pop_front();
        let found = self
            .objects
            .iter_mut()
            .find(|object| object["metadata"]["name"] == name && object["metadata"]["namespace"] == namespace)
            .ok_or_else(|| (404, format!("mcpapprovals.toolweir.dev \"{name}\" not found")))?;
        if let Some(interfere) = interference {
            interfere(found);
            next_version(found);
        }
        self.patches.push(patch.clone());
        if patch["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"] {
            return Err((409, "the object has been modified".to_owned()));
        }
        if let Some(refusal) = &self.refusal {
            return Err((422, refusal.clone()));
        }
        assert_eq!(patch.as_object().unwrap().keys().collect::<Vec<_>>(), ["metadata", "status"]);
        let written = patch["status"].as_object().unwrap();
        assert_eq!(written["decidedBy"], self.user);
        for (field, value) in written {
            assert!(["decision", "decidedBy", "reason"].contains(&field.as_str()), "{field}");
            assert!(found["status"][field].is_null(), "{field} is written twice");
            found["status"][field] = value.clone();
        }
        next_version(found);
        let answer = found.clone();
        if self.operated {
            let state = if written["decision"] == "Approve" { "Approved" } else { "Denied" };
            found["status"]["state"] = state.into();
            found["status"]["expiresAt"] = "2026-12-01T12:11:00Z".into();
            next_version(found);
        }
        Ok(answer)
    }

    /// Answers a `SelfSubjectReview`.
    pub fn review(&self) -> Value {
        json!({"metadata": {}, "status": {"userInfo": {"username": self.user, "groups": ["system:authenticated"]}}})
    }

    /// Answers a `SelfSubjectAccessReview`.
    pub fn access(&self, review: &Value) -> Value {
        let asked = &review["spec"]["resourceAttributes"];
        assert_eq!((&asked["group"], &asked["verb"]), (&"toolweir.dev".into(), &"approve".into()));
        let policy = format!("{}/{}", asked["resource"].as_str().unwrap(), asked["name"].as_str().unwrap());
        json!({"metadata": {}, "spec": review["spec"], "status": {"allowed": !self.lacking.contains(&policy)}})
    }
}

fn next_version(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
}

/// A request of `agents/social-1` for a payment, made at 12:00 and open until 12:10.
pub fn approval(name: &str, policies: &[(&str, &str)]) -> Value {
    let policies: Vec<Value> = policies
        .iter()
        .map(|(namespace, name)| json!({"namespace": namespace, "name": name, "uid": "u", "generation": 1}))
        .collect();
    json!({
        "apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApproval",
        "metadata": {"name": name, "namespace": "agents", "resourceVersion": "7", "creationTimestamp": "2026-12-01T12:00:00Z"},
        "spec": {
            "server": "bank", "tool": "pay_invoice", "argumentsSha256": "9f2b", "policies": policies,
            "agent": {"pod": "social-1", "podUid": "uid-social-1", "serviceAccount": "social"},
            "message": "Invoices over 500 need a person.",
            "shown": [{"expression": "args.amount", "value": "600"}, {"expression": "args.payee", "value": "ACME GmbH"}],
            "requestedAt": "2026-12-01T12:00:00Z", "expiresAt": "2026-12-01T12:10:00Z", "usableSeconds": 600,
        },
        "status": {"state": "Pending", "expiresAt": "2026-12-01T12:10:00Z"},
    })
}
