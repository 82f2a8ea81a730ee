//! An `MCPApproval` as the API server has it.

use anyhow::anyhow;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    core::{ApiResource, Object},
};
use serde::Serialize;
use serde_json::Value;
use toolweir_crds::{
    approval_request::{ApprovalDecision, ApprovalState, ApprovalStatus, MCPApproval, MCPApprovalSpec},
    text::escaped,
};

use crate::cluster::{ApiAccess, NamespaceScope, is_missing};

/// The resource.
pub const RESOURCE: &str = "mcpapprovals.toolweir.dev";

/// An `MCPApproval` that is not read yet: what a later version of Toolweir wrote is to be told from what cannot be listed.
pub type AnyApproval = Object<Value, Value>;

/// Returns the API of the requests of a scope.
pub fn api(client: &Client, scope: &NamespaceScope) -> Api<AnyApproval> {
    let resource = ApiResource::erase::<MCPApproval>(&());
    match scope.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// A request for approval, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedApproval {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// What is asked.
    pub spec: MCPApprovalSpec,
    /// What became of it.
    pub status: ApprovalStatus,
    /// The version of the object that was read.
    #[serde(skip)]
    pub resource_version: Option<String>,
}

impl ListedApproval {
    /// Reads an object.
    ///
    /// # Errors
    /// It has what this version does not know. Whoever decides must see all of it.
    pub fn read(object: &AnyApproval) -> anyhow::Result<Self> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let newer = |why: String| {
            let why = escaped(&why, 200);
            anyhow!("request {namespace}/{name} has what this version does not know ({why}); update the plugin")
        };
        let unreadable = |error: serde_json::Error| newer(error.to_string());
        let status = object.status.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let spec: MCPApprovalSpec = serde_json::from_value(object.spec.clone()).map_err(unreadable)?;
        if let Some(field) = unknown_field(&object.spec, &serde_json::to_value(&spec).map_err(unreadable)?) {
            return Err(newer(format!("the field `{field}`")));
        }
        Ok(Self {
            status: serde_json::from_value(status).map_err(unreadable)?,
            spec,
            created_at: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
            resource_version: object.metadata.resource_version.clone(),
            namespace,
            name,
        })
    }

    /// Gets a request.
    ///
    /// # Errors
    /// There is none of this name, it cannot be read, or a right is missing.
    pub async fn get(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Self> {
        match api(client, &NamespaceScope::Namespace(namespace.to_owned())).get(name).await {
            Ok(object) => Self::read(&object),
            Err(error) if is_missing(&error) && !is_unknown_resource(&error) => Err(anyhow!(
                "there is no request {name} in namespace {namespace}; kubectl toolweir approvals -A shows those that wait"
            )),
            Err(error) => Err(ApiAccess { verb: "get", resource: RESOURCE, namespace: Some(namespace) }.failed(&error)),
        }
    }

    /// Returns its name with its namespace, as agents are told it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns its state. An object that the operator has just made has none.
    pub fn state(&self) -> ApprovalState {
        self.status.state.unwrap_or_default()
    }

    /// Returns when it ends, or an approval can no longer be used; nothing where neither can be read.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.status.expires_at.as_deref().unwrap_or(&self.spec.expires_at).parse().ok()
    }

    /// Returns true if its time is over, whether the operator has said so yet or not.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at().is_some_and(|end| end <= now)
    }

    /// Returns true if somebody can still decide.
    pub fn is_waiting(&self, now: Timestamp) -> bool {
        self.state() == ApprovalState::Pending && self.status.decision.is_none() && !self.is_over(now)
    }

    /// Returns its state for people. A decision of which the operator has not heard yet, and a time that is over, stand in parentheses.
    pub fn state_text(&self, now: Timestamp) -> String {
        let state = self.state();
        let more = match (state, self.status.decision) {
            (ApprovalState::Pending, Some(ApprovalDecision::Approve)) => " (approved)",
            (ApprovalState::Pending, Some(ApprovalDecision::Deny)) => " (denied)",
            (ApprovalState::Pending, None) if self.is_over(now) => " (expired)",
            _ => "",
        };
        format!("{}{more}", state.as_str())
    }
}

/// Returns a field that says something and of which nothing was read.
fn unknown_field(object: &Value, read: &Value) -> Option<String> {
    match (object, read) {
        (Value::Object(fields), Value::Object(read)) => fields.iter().find_map(|(name, value)| match read.get(name) {
            Some(read) => unknown_field(value, read),
            None => (!is_empty(value)).then(|| name.clone()),
        }),
        (Value::Array(items), Value::Array(read)) => items.iter().zip(read).find_map(|(item, read)| unknown_field(item, read)),
        _ => None,
    }
}

/// Returns true if a value says as little as a field that is left out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_set) => !is_set,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Returns true if the API server does not know the resource at all.
fn is_unknown_resource(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains("page not found"))
}
