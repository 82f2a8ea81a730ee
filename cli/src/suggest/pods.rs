//! What the sidecars of pods say: what their agents did, where servers are, and which labels the pods share.

use std::collections::BTreeMap;

use anyhow::bail;
use http::StatusCode;
use kube::Client;
use serde::Deserialize;
use toolweir_crds::observed::ObservedResponse;

use super::observations;
use crate::{
    cluster::PodInfo,
    explain::{self, parse},
    forward::{self, PodResponse},
    table::shown,
};

/// The labels of a pod that say which agent it is, as far as it has them.
const LABELS: [&str; 3] = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app"];

/// A part of the answer of `GET /policy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyResponse {
    policies: Vec<PolicyInForce>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyInForce {
    spec: PolicySpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicySpec {
    servers: Vec<UrlOfServer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UrlOfServer {
    name: String,
    url: Option<String>,
}

/// A pod, and what its sidecar says.
#[derive(Clone, Debug)]
pub struct AskedPod {
    /// The pod.
    pub pod: PodInfo,
    /// The urls of servers in its policies, by their names.
    pub urls: BTreeMap<String, String>,
}

impl AskedPod {
    /// Finds a pod, and asks its sidecar for its policies.
    ///
    /// # Errors
    /// The pod or its sidecar does not exist or run, or a right is missing.
    pub async fn find(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Self> {
        let pod = explain::find_running(client, namespace, name).await?;
        let answer = ask(client, &pod, "/policy").await?;
        let response: PolicyResponse = parse(&pod, &answer)?;
        let mut urls = BTreeMap::new();
        for server in response.policies.into_iter().flat_map(|policy| policy.spec.servers) {
            if let Some(url) = server.url {
                urls.entry(server.name).or_insert(url);
            }
        }
        Ok(Self { pod, urls })
    }

    /// Asks the sidecar what its agent did.
    ///
    /// # Errors
    /// It is too old to know, or cannot be reached.
    pub async fn observed(&self, client: &Client) -> anyhow::Result<ObservedResponse> {
        let answer = ask(client, &self.pod, "/observed").await?;
        observations::read(&answer.body)
            .map_err(|why| anyhow::anyhow!("the response of the sidecar of pod {} cannot be parsed: {why}", self.pod.key))
    }
}

async fn ask(client: &Client, pod: &PodInfo, path: &str) -> anyhow::Result<PodResponse> {
    let answer = forward::request(client, &pod.key, pod.admin_port, path, None).await?;
    match answer.status {
        StatusCode::OK => Ok(answer),
        StatusCode::NOT_FOUND => bail!(
            "the sidecar of pod {} is too old for this: it has no {path}. Restart the pod to get a new sidecar, and let the agent work",
            pod.key
        ),
        status => bail!("the sidecar of pod {} responded {status}: {}", pod.key, shown(&answer.text())),
    }
}

/// The labels that say which agent it is and that all these pods share.
pub fn shared_labels(pods: &[AskedPod]) -> BTreeMap<String, String> {
    let Some((first, others)) = pods.split_first() else { return BTreeMap::new() };
    let shared = |label: &str| {
        let value = first.pod.labels.get(label)?;
        others.iter().all(|other| other.pod.labels.get(label) == Some(value)).then(|| (label.to_owned(), value.clone()))
    };
    LABELS.iter().filter_map(|label| shared(label)).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod as KubePod;
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_of_one_agent_have_its_labels() {
        let pod = |labels: serde_json::Value| {
            let pod: KubePod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": labels}})).unwrap();
            AskedPod { pod: PodInfo::from(&pod), urls: BTreeMap::new() }
        };
        let a = pod(json!({"app": "a", "app.kubernetes.io/name": "agent", "pod-template-hash": "x"}));
        let b = pod(json!({"app": "b", "app.kubernetes.io/name": "agent"}));
        let labels =
            |pods: &[AskedPod]| shared_labels(pods).into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        assert_eq!(labels(&[]), Vec::<String>::new());
        assert_eq!(labels(std::slice::from_ref(&a)), ["app=a", "app.kubernetes.io/name=agent"]);
        assert_eq!(labels(&[a, b]), ["app.kubernetes.io/name=agent"]);
    }
}
