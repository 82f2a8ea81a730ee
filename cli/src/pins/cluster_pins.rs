//! The `MCPToolPins` of a cluster.

use anyhow::anyhow;
use kube::{
    Api, Client,
    core::{ApiResource, Object},
};
use serde_json::Value;
use toolweir_crds::{MCPToolPinsSpec, resource::MCPToolPins};

use crate::cluster::{ApiAccess, is_missing};

/// Reads the pins `namespace/name`. Nothing where there are none of this name.
///
/// # Errors
/// A right is missing, or they have what this version does not know.
pub async fn get(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Option<MCPToolPinsSpec>> {
    // As plain values: what a later version of Toolweir wrote is to be told from what cannot be read.
    let api: Api<Object<Value, Value>> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<MCPToolPins>(&()));
    let access = ApiAccess { verb: "get", resource: "mcptoolpins.toolweir.dev", namespace: Some(namespace) };
    match api.get(name).await {
        Ok(found) => serde_json::from_value(found.spec).map(Some).map_err(|error| {
            anyhow!(
                "the pins {namespace}/{name} in the cluster have what this version does not know ({error}); update the plugin"
            )
        }),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(access.failed(&error)),
    }
}
