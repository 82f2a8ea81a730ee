//! Checks a pod whose traffic is to be captured, as it finally is: nothing in it may undo that. A plain function, which refuses and
//! never repairs. docs/injection.md lists what is refused.

mod containers;
mod refusal;
mod report;

use serde_json::Value;
use toolweir_crds::sidecar::{CAPTURE_CONTAINER, SIDECAR_CONTAINER};

use self::containers::{OtherContainer, check_user};
pub use self::{refusal::CaptureRefusal, report::CaptureReport};
use crate::{
    config::CaptureMethod,
    inject::{
        CAPTURE_LABEL, INJECT_LABEL, InjectionContext, NO_METHOD, OptIn, SidecarIds,
        capture::{CONTAINER_LISTS, CapturedSidecar, is_injected_container, own_capture},
        fields::{items, name, shown},
        interception,
        sidecar::InjectedParts,
    },
};

/// The path at which the API server mounts the token of a pod's account, in every container that mounts nothing there.
const ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Settings that a kubelet lets a pod change, since they hold for the pod alone and are safe
/// (Kubernetes, "Using sysctls in a Kubernetes Cluster").
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What is said of a field that somebody else changed.
const CHANGED: &str = "is not as the operator made it; have no webhook and no policy engine change it";

/// Returns whether a pod says itself that it is not captured.
pub fn is_opted_out(pod: &Value) -> bool {
    own_capture(pod) == Some(OptIn::Disabled)
}

/// Checks a pod that is created. The API server sent it, so it is to be captured.
pub fn check_new(pod: &Value, context: &InjectionContext<'_>) -> CaptureReport {
    let mut report = CaptureReport::default();
    if context.config.capture.method == CaptureMethod::None {
        report.add(CaptureRefusal::MethodNone, CAPTURE_LABEL, NO_METHOD);
        return report;
    }
    let nothing = Value::Null;
    let spec = pod.get("spec").unwrap_or(&nothing);
    check_kind(spec, &mut report);
    if report.reason().is_none() {
        check_ours(pod, context, &mut report);
    }
    check_spec(spec, &mut report);
    check_containers(pod, &CONTAINER_LISTS, &mut report);
    report
}

/// Checks the ephemeral containers of a pod that is captured. One without our init container is not.
pub fn check_ephemeral(pod: &Value) -> CaptureReport {
    let mut report = CaptureReport::default();
    if is_captured_already(pod) {
        check_containers(pod, &["ephemeralContainers"], &mut report);
    }
    report
}

/// Returns whether a pod has the init container of capture.
pub fn is_captured_already(pod: &Value) -> bool {
    let init = pod.get("spec").map_or(&[][..], |spec| items(spec, "initContainers"));
    init.iter().any(|container| name(container) == Some(CAPTURE_CONTAINER))
}

/// Reports a pod of a kind that can have no sidecar.
fn check_kind(spec: &Value, report: &mut CaptureReport) {
    for (path, field) in
        [("/os/name", "spec.os.name"), ("/nodeSelector/kubernetes.io~1os", "spec.nodeSelector[kubernetes.io/os]")]
    {
        if spec.pointer(path).and_then(Value::as_str) == Some("windows") {
            let advice = format!("is windows; label the pod {CAPTURE_LABEL}: disabled");
            report.add(CaptureRefusal::Windows, field, &advice);
        }
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        report.add(CaptureRefusal::HostNetwork, "spec.hostNetwork", "is true; leave it out");
    }
}

/// Reports what the operator adds and is not there, or not as it adds it.
fn check_ours(pod: &Value, context: &InjectionContext<'_>, report: &mut CaptureReport) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let init = items(spec, "initContainers");
    let place = |wanted: &str| init.iter().position(|container| name(container) == Some(wanted));
    let Some((capture, sidecar)) = place(CAPTURE_CONTAINER).zip(place(SIDECAR_CONTAINER)) else {
        if place(SIDECAR_CONTAINER).is_some() {
            let advice = format!("has no {CAPTURE_CONTAINER}; the operator may not know of the label yet: create the pod again");
            report.add(CaptureRefusal::CaptureMissing, "spec.initContainers", &advice);
        } else {
            let advice = format!(
                "there is no sidecar; label the namespace or the pod {INJECT_LABEL}: enabled, or the pod {CAPTURE_LABEL}: disabled"
            );
            report.add(CaptureRefusal::NotInjected, INJECT_LABEL, &advice);
        }
        return;
    };
    for (n, container) in init.iter().enumerate().take(capture.max(sidecar)) {
        if n != capture && n != sidecar || n == sidecar && sidecar < capture {
            let who = shown(name(container).unwrap_or_default());
            let advice =
                format!("{who} comes before {CAPTURE_CONTAINER} or {SIDECAR_CONTAINER}; these two come first, in this order");
            report.add(CaptureRefusal::InitContainerBefore, &format!("spec.initContainers[{n}]"), &advice);
        }
    }
    let range = context.config.capture.user_range;
    let Some(ids) = SidecarIds::of_pod(pod).filter(|ids| range.contains(ids.uid) && range.contains(ids.gid)) else {
        return report.add(CaptureRefusal::CaptureMissing, &format!("spec.initContainers[{capture}].args"), CHANGED);
    };
    // As the pod says: policies may have changed since it was injected.
    let captured = CapturedSidecar { ids, intercepts: interception::is_added(pod) };
    let parts = match InjectedParts::with_capture(pod, context, Some(captured)) {
        Ok(parts) => parts,
        Err(why) => return report.add(CaptureRefusal::CaptureMissing, "spec", &why),
    };
    for (n, ours) in [capture, sidecar].into_iter().zip(parts.init_containers()) {
        let is = init.get(n).unwrap_or(&Value::Null);
        for field in differences(&without_account_token(is), ours) {
            let path = format!("spec.initContainers[{n}].{field}");
            report.add(CaptureRefusal::CaptureMissing, &path, CHANGED);
        }
    }
    for ours in &parts.volumes {
        let there = items(spec, "volumes").iter().position(|volume| name(volume) == name(ours));
        if there.is_none_or(|n| items(spec, "volumes").get(n) != Some(ours)) {
            let path = there.map_or_else(|| "spec.volumes".to_owned(), |n| format!("spec.volumes[{n}]"));
            let advice = format!("the volume {} is not as the operator made it", name(ours).unwrap_or_default());
            report.add(CaptureRefusal::CaptureMissing, &path, &advice);
        }
    }
}

/// Returns a container without the mount that the API server adds to any.
fn without_account_token(container: &Value) -> Value {
    let mut container = container.clone();
    let Some(fields) = container.as_object_mut() else { return container };
    let Some(mounts) = fields.get_mut("volumeMounts").and_then(Value::as_array_mut) else { return container };
    mounts.retain(|mount| mount.get("mountPath").and_then(Value::as_str) != Some(ACCOUNT_TOKEN));
    if mounts.is_empty() {
        fields.remove("volumeMounts");
    }
    container
}

/// Returns the fields in which two objects differ.
fn differences<'a>(is: &'a Value, ours: &'a Value) -> Vec<&'a str> {
    let keys = |object: &'a Value| object.as_object().into_iter().flat_map(serde_json::Map::keys);
    let mut fields: Vec<&str> = keys(is).chain(keys(ours)).map(String::as_str).collect();
    fields.sort_unstable();
    fields.dedup();
    fields.retain(|field| is.get(field) != ours.get(field));
    fields
}

/// Reports what the pod as a whole has.
fn check_spec(spec: &Value, report: &mut CaptureReport) {
    let switches = [
        ("hostPID", CaptureRefusal::HostPid),
        ("hostIPC", CaptureRefusal::HostIpc),
        ("shareProcessNamespace", CaptureRefusal::ShareProcessNamespace),
    ];
    for (field, reason) in switches {
        if spec.get(field) == Some(&Value::Bool(true)) {
            report.add(reason, &format!("spec.{field}"), "is true; leave it out");
        }
    }
    for (n, volume) in items(spec, "volumes").iter().enumerate() {
        if volume.get("hostPath").is_some_and(|path| !path.is_null()) {
            report.add(CaptureRefusal::HostPath, &format!("spec.volumes[{n}].hostPath"), "is there; use another kind of volume");
        }
    }
    let sysctls = spec.get("securityContext").map_or(&[][..], |context| items(context, "sysctls"));
    for (n, sysctl) in sysctls.iter().enumerate() {
        let setting = name(sysctl).unwrap_or_default();
        if !SAFE_SYSCTLS.contains(&setting) {
            let advice = format!("{} is not one of the safe ones; leave it out", shown(setting));
            report.add(CaptureRefusal::Sysctls, &format!("spec.securityContext.sysctls[{n}]"), &advice);
        }
    }
}

/// Reports what the containers of some lists have, apart from the operator's own two.
fn check_containers(pod: &Value, lists: &[&str], report: &mut CaptureReport) {
    let nothing = Value::Null;
    let spec = pod.get("spec").unwrap_or(&nothing);
    let of_pod = spec.get("securityContext").unwrap_or(&nothing);
    let ids = SidecarIds::of_pod(pod);
    if let Some(ids) = ids {
        check_user(of_pod, ids, "spec.securityContext", report);
    }
    for list in lists {
        for (n, container) in items(spec, list).iter().enumerate() {
            if *list == "initContainers" && name(container).is_some_and(is_injected_container) {
                continue;
            }
            let path = format!("spec.{list}[{n}]");
            OtherContainer { path: &path, container, of_pod, ids }.check(report);
        }
    }
}
