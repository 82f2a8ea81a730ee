//! The workload of a pod, as limits with the scope `Workload` count it.

use serde_json::Value;

use super::fields::items;

/// Controllers that own a `ReplicaSet` whose name ends with a hash, each with the label of a pod that has that hash.
const HASHES: [(&str, &str); 2] = [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];
/// The least digits with which a `CronJob` ends the names of its jobs: minutes since 1970.
const MINUTES: usize = 8;

/// Returns `Kind/name` of the workload: the controller of the pod or, of a `ReplicaSet` and a `Job`, the owner of that.
///
/// Owners of owners are derived from the names that Kubernetes makes, so that the API server need not be asked. A pod without a
/// controller is its own workload; those of one `generateName` are one, since they have no name yet.
pub(super) fn workload(pod: &Value) -> String {
    let text = |object: &Value, field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let nothing = Value::Null;
    let metadata = pod.get("metadata").unwrap_or(&nothing);
    let controls = |owner: &&Value| owner.get("controller") == Some(&Value::Bool(true));
    let Some(owner) = items(metadata, "ownerReferences").iter().find(controls) else {
        let name = text(metadata, "name");
        return format!("Pod/{}", if name.is_empty() { text(metadata, "generateName") } else { name });
    };
    let (kind, name) = (text(owner, "kind"), text(owner, "name"));
    let above = match kind.as_str() {
        "ReplicaSet" => HASHES.iter().find_map(|(label, above)| {
            let hash = metadata.get("labels")?.get(*label)?.as_str()?;
            let stem = name.strip_suffix(hash)?.strip_suffix('-')?;
            Some((*above, stem))
        }),
        "Job" => name.rsplit_once('-').and_then(|(stem, minutes)| {
            let is_time = minutes.len() >= MINUTES && minutes.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then_some(("CronJob", stem))
        }),
        _ => None,
    };
    match above.filter(|(_, stem)| !stem.is_empty()) {
        Some((above, stem)) => format!("{above}/{stem}"),
        None => format!("{kind}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_workload_is_what_controls_the_pod_or_made_its_controller() {
        let of = |kind: &str, name: &str, labels: Value| {
            let owners = json!([
                {"kind": "Other", "name": "first"},
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true},
            ]);
            workload(&json!({"metadata": {"generateName": format!("{name}-"), "labels": labels, "ownerReferences": owners}}))
        };
        let hash = |hash: &str| json!({"app": "social", "pod-template-hash": hash});
        for (kind, name, labels, promised) in [
            ("ReplicaSet", "social-agent-7d9c5b8f6d", hash("7d9c5b8f6d"), "Deployment/social-agent"),
            ("ReplicaSet", "by-hand-1", json!({"app": "a"}), "ReplicaSet/by-hand-1"),
            ("ReplicaSet", "by-hand-1", json!(null), "ReplicaSet/by-hand-1"),
            ("ReplicaSet", "social-7d9c5b8f6d", hash("6fbcf5d9bb"), "ReplicaSet/social-7d9c5b8f6d"),
            ("ReplicaSet", "social7d9c5b8f6d", hash("7d9c5b8f6d"), "ReplicaSet/social7d9c5b8f6d"),
            ("ReplicaSet", "-7d9c5b8f6d", hash("7d9c5b8f6d"), "ReplicaSet/-7d9c5b8f6d"),
            ("ReplicaSet", "canary-66b8", json!({"rollouts-pod-template-hash": "66b8"}), "Rollout/canary"),
            ("Job", "nightly-29383920", json!({}), "CronJob/nightly"),
            ("Job", "once", json!({}), "Job/once"),
            ("Job", "of-2025", json!({}), "Job/of-2025"),
            ("Job", "run-2938392a", json!({}), "Job/run-2938392a"),
            ("StatefulSet", "agents", json!({}), "StatefulSet/agents"),
            ("DaemonSet", "watch-29383920", json!({}), "DaemonSet/watch-29383920"),
            ("RayCluster", "ray", json!({}), "RayCluster/ray"),
        ] {
            assert_eq!(of(kind, name, labels.clone()), promised, "{kind} {name} {labels}");
        }
    }

    #[test]
    fn a_pod_without_a_controller_is_its_own_workload() {
        for (metadata, promised) in [
            (json!({"name": "agent"}), "Pod/agent"),
            (json!({"generateName": "agent-"}), "Pod/agent-"),
            (json!({"name": "agent", "ownerReferences": [{"kind": "Node", "name": "n"}]}), "Pod/agent"),
            (json!({"name": "agent", "ownerReferences": "none"}), "Pod/agent"),
            (json!({}), "Pod/"),
        ] {
            assert_eq!(workload(&json!({"metadata": metadata})), promised);
        }
        assert_eq!(workload(&json!({})), "Pod/");
    }
}
