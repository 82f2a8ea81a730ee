//! The policies by which `kubectl toolweir replay` decides: those of the cluster, with those of files in their place.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    core::{ApiResource, Object},
};
use serde_json::Value;
use toolweir_crds::{
    Document, FileError, LabelSelector, MCPClusterPolicySpec, MCPPolicySpec, read_manifests,
    resource::{MCPClusterPolicy, MCPPolicy},
    select::{Labels, selects},
};
use toolweir_engine::{Policy, PolicyId};

use crate::{
    cluster::{ApiAccess, PodInfo, list},
    policy_files::{self, faults},
};

/// A policy, and the namespaces whose pods it governs.
#[derive(Clone, Debug)]
pub struct GoverningPolicy {
    /// The policy.
    pub policy: Policy,
    namespaces: LabelSelector,
}

impl GoverningPolicy {
    /// Returns true if it governs a pod of a namespace with these labels.
    pub fn governs(&self, pod: &PodInfo, namespace: &Labels) -> bool {
        let id = &self.policy.id;
        let of_namespace = if id.cluster { selects(&self.namespaces, namespace) } else { id.namespace == pod.key.namespace };
        of_namespace && selects(&self.policy.spec.pod_selector, &pod.labels)
    }
}

impl From<Document> for GoverningPolicy {
    fn from(document: Document) -> Self {
        let namespaces = match &document {
            Document::MCPPolicy { .. } => LabelSelector::default(),
            Document::MCPClusterPolicy { spec, .. } => spec.namespace_selector.clone(),
        };
        Self { policy: document.into(), namespaces }
    }
}

/// Policies of files.
#[derive(Clone, Debug)]
pub struct NewPolicies {
    policies: Vec<GoverningPolicy>,
    /// What is doubtful about them.
    pub warnings: Vec<FileError>,
}

impl NewPolicies {
    /// Reads and checks the policies of files and folders, as `toolweir-sidecar check` does. Of pins, nothing is doubtful: a replay goes by what
    /// the logs say of them.
    ///
    /// # Errors
    /// They are not in order.
    pub fn load(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let (texts, checked) = policy_files::load(paths)?;
        let mut policies = Vec::new();
        for text in &texts {
            let read = read_manifests(&text.file, &text.text).map_err(|errors| faults(&errors))?;
            policies.extend(read.policies.into_iter().map(|located| {
                let mut policy = GoverningPolicy::from(located.document);
                if !located.has_namespace {
                    policy.policy.id.namespace.clear();
                }
                policy
            }));
        }
        // A replay reads no pins: what is doubtful of them does not matter.
        Ok(Self { policies, warnings: checked.warnings })
    }
}

/// The policies that would be in force.
#[derive(Clone, Debug)]
pub struct PoliciesToBe {
    /// All of them.
    policies: Vec<GoverningPolicy>,
    /// Those of files, and those in whose place they are.
    changed: Vec<GoverningPolicy>,
}

impl PoliciesToBe {
    /// Puts policies of files in the place of those of the cluster that have the same name. Those without a namespace get this one.
    ///
    /// # Errors
    /// Policies cannot be listed or read, or a file has a policy of another namespace.
    pub async fn gather(client: &Client, new: NewPolicies, namespace: &str) -> anyhow::Result<Self> {
        let (mut policies, mut changed) = (in_cluster(client, namespace).await?, Vec::new());
        for mut new in new.policies {
            let id = &mut new.policy.id;
            if !id.cluster && id.namespace.is_empty() {
                namespace.clone_into(&mut id.namespace);
            }
            if !id.cluster && id.namespace != namespace {
                bail!(
                    "policy {id} governs no pod of namespace {namespace}; write -n {}, or leave it out of the files",
                    id.namespace
                );
            }
            let before = policies.iter().position(|policy| policy.policy.id == new.policy.id).map(|at| policies.remove(at));
            // What is replaced keeps its age.
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
            new.policy.created = Some(before.as_ref().and_then(|before| before.policy.created.clone()).unwrap_or(now));
            changed.extend(before);
            changed.push(new.clone());
            policies.push(new);
        }
        Ok(Self { policies, changed })
    }

    /// Returns true if files change something for a pod.
    pub fn change(&self, pod: &PodInfo, namespace: &Labels) -> bool {
        self.changed.iter().any(|policy| policy.governs(pod, namespace))
    }

    /// Returns the policies that would govern a pod.
    pub fn of(&self, pod: &PodInfo, namespace: &Labels) -> Vec<Policy> {
        self.policies.iter().filter(|policy| policy.governs(pod, namespace)).map(|policy| policy.policy.clone()).collect()
    }
}

/// Returns the policies of a namespace and those of the cluster.
async fn in_cluster(client: &Client, namespace: &str) -> anyhow::Result<Vec<GoverningPolicy>> {
    // As plain values: what a later version of Toolweir wrote is to be told from what cannot be listed.
    let own: Api<AnySpec> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<MCPPolicy>(&()));
    let cluster: Api<AnySpec> = Api::all_with(client.clone(), &ApiResource::erase::<MCPClusterPolicy>(&()));
    let access = |resource, namespace| ApiAccess { verb: "list", resource, namespace };
    let (own, cluster) = tokio::try_join!(
        list(&own, access("mcppolicies.toolweir.dev", Some(namespace))),
        list(&cluster, access("mcpclusterpolicies.toolweir.dev", None)),
    )?;
    let own = own.iter().map(|object| {
        let spec: MCPPolicySpec = spec_of(object, Some(namespace))?;
        Ok(GoverningPolicy { policy: policy(object, Some(namespace), spec), namespaces: LabelSelector::default() })
    });
    let cluster = cluster.iter().map(|object| {
        let spec: MCPClusterPolicySpec = spec_of(object, None)?;
        let namespaces = spec.namespace_selector.clone();
        Ok(GoverningPolicy { policy: policy(object, None, spec.into()), namespaces })
    });
    own.chain(cluster).collect()
}

type AnySpec = Object<Value, Value>;

fn spec_of<S: serde::de::DeserializeOwned>(object: &AnySpec, namespace: Option<&str>) -> anyhow::Result<S> {
    serde_json::from_value(object.spec.clone()).map_err(|error| {
        let name = policy_id(object, namespace);
        anyhow!("policy {name} in the cluster has what this version does not know ({error}); update the plugin")
    })
}

fn policy_id(object: &AnySpec, namespace: Option<&str>) -> PolicyId {
    PolicyId { cluster: namespace.is_none(), namespace: namespace.unwrap_or_default().to_owned(), name: object.name_any() }
}

fn policy(object: &AnySpec, namespace: Option<&str>, spec: MCPPolicySpec) -> Policy {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
    Policy {
        id: policy_id(object, namespace),
        created,
        spec,
        version: object.metadata.uid.clone().zip(object.metadata.generation),
        unreadable: None,
    }
}
