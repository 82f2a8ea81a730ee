//! The status of a policy in a cluster, as the operator writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a policy. Conditions follow GEP-713.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation of the policy that this says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that it governs.
    #[serde(default)]
    pub selected: i32,
    /// Of these, pods that have a sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Of these, pods whose sidecar says that it enforces this generation.
    #[serde(default)]
    pub acknowledged: i32,
    /// `acknowledged/selected`, for display.
    #[serde(default)]
    pub sidecars: String,
    /// `Accepted`: it means something. `Programmed`: every pod that it governs enforces it. `SharedStoreReady`, only where it
    /// counts across pods: the shared store answers.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}
