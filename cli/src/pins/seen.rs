//! What the sidecar of a pod saw of the tools of its servers.

use anyhow::bail;
use http::StatusCode;
use kube::Client;
use toolweir_crds::seen::SeenResponse;

use crate::{
    cluster::PodInfo,
    explain::{self, parse},
    forward,
    table::shown,
};

/// The path at the sidecar's administration.
const PATH: &str = "/seen";

/// Asks the sidecar of a pod. Nothing where it is too old to know.
///
/// # Errors
/// The pod or its sidecar does not exist or run, or a right is missing.
pub async fn ask(client: &Client, namespace: &str, pod: &str) -> anyhow::Result<(PodInfo, Option<SeenResponse>)> {
    let pod = explain::find_running(client, namespace, pod).await?;
    let answer = forward::request(client, &pod.key, pod.admin_port, PATH, None).await?;
    match answer.status {
        StatusCode::OK => {
            let seen = parse(&pod, &answer)?;
            Ok((pod, Some(seen)))
        }
        StatusCode::NOT_FOUND => Ok((pod, None)),
        status => bail!("the sidecar of pod {} responded {status}: {}", pod.key, shown(&answer.text())),
    }
}

/// Returns the error of a sidecar that is too old.
pub fn too_old(pod: &PodInfo) -> anyhow::Error {
    anyhow::anyhow!("the sidecar of pod {} is too old for this: it has no {PATH}. Restart the pod to get a new sidecar", pod.key)
}
