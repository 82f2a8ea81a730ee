//! Capture: which pods opt in, the ids of their sidecar, and the init container that writes the rules.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use toolweir_crds::{
    sidecar::{ADMIN_PORT, CAPTURE_PORT, METRICS_PORT, PROXY_PORT},
    sidecar::{CAPTURE_CONTAINER, SIDECAR_CONTAINER},
};

use super::{
    context::InjectionContext,
    fields::{items, name},
    opt_in::OptIn,
};
use crate::config::{IdRange, SidecarPorts};

/// The label of namespaces and pods.
pub const CAPTURE_LABEL: &str = "toolweir.dev/capture";
/// The fields of a pod whose items are containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Ids that images, meshes and runtimes often use. They are chosen for no sidecar.
const COMMON_IDS: [u32; 10] = [1024, 1337, 2000, 5000, 8080, 10001, 65532, 65533, 65534, 65535];

/// How the sidecar of a captured pod differs from that of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CapturedSidecar {
    /// Its user and group.
    pub ids: SidecarIds,
    /// Whether it opens the TLS of agents to some servers.
    pub intercepts: bool,
}

/// The user and group of a captured pod's sidecar. The rules know it by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidecarIds {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl SidecarIds {
    /// Returns the ids that the arguments of an init container name. Whether it is ours is not looked at.
    pub fn of_container(container: &Value) -> Option<Self> {
        let args: Vec<&str> = items(container, "args").iter().map(Value::as_str).collect::<Option<_>>()?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        match args.as_slice() {
            ["capture", "--uid", uid, "--gid", gid, ..] => Some(Self { uid: number(uid)?, gid: number(gid)? }),
            _ => None,
        }
    }

    /// Returns the ids that a pod's first init container of our name has.
    pub fn of_pod(pod: &Value) -> Option<Self> {
        let init = pod.get("spec").map_or(&[][..], |spec| items(spec, "initContainers"));
        init.iter().find(|container| name(container) == Some(CAPTURE_CONTAINER)).and_then(Self::of_container)
    }

    /// Keeps the ids that the pod has from an earlier round, where they are still possible; else chooses others.
    ///
    /// # Errors
    /// The pod names nearly all ids of the range.
    pub(super) fn choose(pod: &Value, range: IdRange, seed: u64) -> Result<Self, String> {
        let taken = ids_of_others(pod);
        let is_free = |id: u32| range.contains(id) && !taken.contains(&id);
        if let Some(kept) = Self::of_pod(pod).filter(|kept| is_free(kept.uid) && is_free(kept.gid)) {
            return Ok(kept);
        }
        let size = u64::from(range.last - range.first) + 1;
        let pick = |seed: u64| {
            let start = seed % size;
            let ids = (0..size).filter_map(|step| u32::try_from((start + step) % size + u64::from(range.first)).ok());
            ids.into_iter().find(|id| is_free(*id) && !COMMON_IDS.contains(id))
        };
        let (uid, gid) = (pick(mixed(seed)), pick(mixed(seed.wrapping_add(1))));
        uid.zip(gid).map(|(uid, gid)| Self { uid, gid }).ok_or_else(|| {
            format!(
                "the pod's runAsUser, runAsGroup, fsGroup and supplementalGroups leave the sidecar no id from {} to {}",
                range.first, range.last
            )
        })
    }
}

/// Spreads the bits of a seed (the finalizer of `SplitMix64`).
fn mixed(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Returns every user and group that a pod names, apart from those of the sidecar's containers.
fn ids_of_others(pod: &Value) -> BTreeSet<u32> {
    let Some(spec) = pod.get("spec") else { return BTreeSet::new() };
    let containers = CONTAINER_LISTS.into_iter().flat_map(|list| items(spec, list));
    let others = containers.filter(|container| !name(container).is_some_and(is_injected_container));
    let contexts = std::iter::once(spec).chain(others).filter_map(|owner| owner.get("securityContext"));
    let mut ids = BTreeSet::new();
    for context in contexts {
        let single = ["runAsUser", "runAsGroup", "fsGroup"].into_iter().filter_map(|field| context.get(field));
        ids.extend(single.chain(items(context, "supplementalGroups")).filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    ids
}

/// Returns whether a container has the name of one that is injected.
pub(crate) fn is_injected_container(name: &str) -> bool {
    [SIDECAR_CONTAINER, CAPTURE_CONTAINER].contains(&name)
}

/// Returns what a pod's own label says of capture.
pub(crate) fn own_capture(pod: &Value) -> Option<OptIn> {
    pod.get("metadata")?.get("labels")?.get(CAPTURE_LABEL)?.as_str().and_then(OptIn::from_value)
}

/// Returns whether the traffic of an injected pod is to be captured: its own label says so, else that of its namespace.
///
/// Where the index is behind, the pod comes out without capture; then `/check` refuses it, since the API server knows better.
pub(super) fn is_captured(pod: &Value, context: &InjectionContext<'_>) -> bool {
    let of_namespace = || context.namespace_info?.labels.get(CAPTURE_LABEL).and_then(|value| OptIn::from_value(value));
    own_capture(pod).or_else(of_namespace) == Some(OptIn::Enabled)
}

/// Returns the flags of ports that differ from the sidecar's own defaults.
pub(super) fn capture_port_args(ports: SidecarPorts) -> impl Iterator<Item = String> {
    let flags = [
        ("--capture-port", ports.capture, CAPTURE_PORT),
        ("--proxy-port", ports.proxy, PROXY_PORT),
        ("--admin-port", ports.admin, ADMIN_PORT),
        ("--metrics-port", ports.metrics, METRICS_PORT),
    ];
    flags.into_iter().filter(|(_, port, default)| port != default).flat_map(|(flag, port, _)| [flag.to_owned(), port.to_string()])
}

/// Returns the init container that writes the rules of capture. It has the image and the resources of the sidecar.
pub(super) fn capture_container(ids: SidecarIds, ports: SidecarPorts, sidecar: &Value) -> Value {
    let mut args = vec!["capture".to_owned(), "--uid".to_owned(), ids.uid.to_string(), "--gid".to_owned(), ids.gid.to_string()];
    args.extend(capture_port_args(ports));
    let same = |field: &str| sidecar.get(field).cloned().unwrap_or_default();
    json!({
        "name": CAPTURE_CONTAINER,
        "image": same("image"),
        "imagePullPolicy": same("imagePullPolicy"),
        "args": args,
        "resources": same("resources"),
        // The kernel asks for NET_ADMIN to write the rules, and a user other than root would not get it. The container ends
        // before any other starts.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: IdRange = IdRange { first: 1024, last: 65535 };

    fn pod(context: &Value) -> Value {
        json!({"spec": {"securityContext": context, "containers": [{"name": "agent"}]}})
    }

    #[test]
    fn ids_are_spread_over_the_range_and_differ_from_common_ones() {
        let nothing = pod(&json!({}));
        let all: Vec<SidecarIds> = (0..4096).map(|seed| SidecarIds::choose(&nothing, RANGE, seed).unwrap()).collect();
        let distinct: BTreeSet<u32> = all.iter().map(|ids| ids.uid).collect();
        assert!(distinct.len() > 3800, "{}", distinct.len());
        assert!(distinct.iter().any(|uid| *uid < 9000) && distinct.iter().any(|uid| *uid > 60_000));
        assert!(
            all.iter().all(|ids| RANGE.contains(ids.uid) && !COMMON_IDS.contains(&ids.uid) && !COMMON_IDS.contains(&ids.gid))
        );
        assert_ne!(all[0], all[1]);
        assert_eq!(SidecarIds::choose(&nothing, RANGE, 7), SidecarIds::choose(&nothing, RANGE, 7));
    }

    #[test]
    fn what_the_pod_names_is_not_chosen() {
        let small = IdRange { first: 3000, last: 3255 };
        let groups: Vec<u32> = (3000..3253).collect();
        let mut pod = pod(&json!({"supplementalGroups": groups, "runAsUser": 3253}));
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsGroup": 3254});
        for seed in 0..64 {
            assert_eq!(SidecarIds::choose(&pod, small, seed), Ok(SidecarIds { uid: 3255, gid: 3255 }));
        }
        pod["spec"]["securityContext"]["fsGroup"] = 3255.into();
        assert!(SidecarIds::choose(&pod, small, 0).unwrap_err().ends_with("leave the sidecar no id from 3000 to 3255"));
    }

    #[test]
    fn ids_of_an_earlier_round_stay_unless_somebody_else_has_them_now() {
        let mut pod = pod(&json!({}));
        pod["spec"]["initContainers"] =
            json!([{"name": CAPTURE_CONTAINER, "args": ["capture", "--uid", "4242", "--gid", "4343", "--capture-port", "1"]}]);
        let kept = SidecarIds { uid: 4242, gid: 4343 };
        assert_eq!(SidecarIds::choose(&pod, RANGE, 1), Ok(kept));
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 4242});
        assert_ne!(SidecarIds::choose(&pod, RANGE, 1).unwrap().uid, 4242);
        pod["spec"]["containers"][0]["securityContext"] = json!({});
        for args in [
            json!(["capture", "--uid", "0", "--gid", "4343"]),
            json!(["run"]),
            json!(["capture", "--uid", "+5000", "--gid", "4343"]),
        ] {
            pod["spec"]["initContainers"][0]["args"] = args;
            assert_ne!(SidecarIds::choose(&pod, RANGE, 1).unwrap().gid, 4343);
        }
    }
}
