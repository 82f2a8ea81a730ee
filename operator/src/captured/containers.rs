//! What a container of a captured pod may not have.

use serde_json::Value;

use super::{refusal::CaptureRefusal, report::CaptureReport};
use crate::inject::{
    CONFIG_VOLUME, SidecarIds,
    fields::{items, name, shown},
    sidecar::is_injected_volume,
};

/// The one capability that a container may have: to listen on ports below 1024.
const HARMLESS: &str = "NET_BIND_SERVICE";

/// A container of a captured pod, other than the operator's two.
#[derive(Clone, Copy)]
pub(super) struct OtherContainer<'a> {
    /// Where it stands, such as `spec.containers[0]`.
    pub path: &'a str,
    pub container: &'a Value,
    /// The `securityContext` of the pod.
    pub of_pod: &'a Value,
    /// The ids of the sidecar, if they are known.
    pub ids: Option<SidecarIds>,
}

impl OtherContainer<'_> {
    /// Reports all with which it could undo capture.
    pub fn check(self, report: &mut CaptureReport) {
        let nothing = Value::Null;
        let own = self.container.get("securityContext").unwrap_or(&nothing);
        self.check_privileges(own, report);
        self.check_capabilities(own, report);
        self.check_seccomp(own, report);
        let at = |field: &str| format!("{}.{field}", self.path);
        if own.get("procMount").and_then(Value::as_str).is_some_and(|mount| mount != "Default") {
            report.add(CaptureRefusal::ProcMount, &at("securityContext.procMount"), "is not Default; leave it out");
        }
        if let Some(ids) = self.ids {
            check_user(own, ids, &at("securityContext"), report);
            let names_user = [own, self.of_pod].iter().any(|context| context.get("runAsUser").is_some_and(Value::is_number));
            if self.is_ephemeral() && !names_user {
                let advice =
                    "is not there, and the image's own user may be the sidecar's, which can be read by now; write a number";
                report.add(CaptureRefusal::SidecarUser, &at("securityContext.runAsUser"), advice);
            }
        }
        for (n, mount) in items(self.container, "volumeMounts").iter().enumerate() {
            let Some(volume) = name(mount).filter(|volume| is_injected_volume(volume)) else { continue };
            // A container reads there which servers there are.
            if volume != CONFIG_VOLUME || mount.get("readOnly") != Some(&Value::Bool(true)) {
                let advice = format!("mounts {volume}, which is the sidecar's; leave it out");
                report.add(CaptureRefusal::SidecarVolume, &at(&format!("volumeMounts[{n}]")), &advice);
            }
        }
        if let Some(target) = self.container.get("targetContainerName").and_then(Value::as_str).filter(|name| is_ours(name)) {
            let advice = format!("is {target}, so it sees the sidecar's processes; name another container");
            report.add(CaptureRefusal::ShareProcessNamespace, &at("targetContainerName"), &advice);
        }
    }

    fn is_ephemeral(self) -> bool {
        self.path.starts_with("spec.ephemeralContainers")
    }

    fn check_privileges(self, own: &Value, report: &mut CaptureReport) {
        let at = |field: &str| format!("{}.securityContext.{field}", self.path);
        if own.get("privileged") == Some(&Value::Bool(true)) {
            report.add(CaptureRefusal::Privileged, &at("privileged"), "is true; leave it out");
        }
        if own.get("allowPrivilegeEscalation") != Some(&Value::Bool(false)) {
            report.add(CaptureRefusal::PrivilegeEscalation, &at("allowPrivilegeEscalation"), "is not false; write false");
        }
    }

    fn check_capabilities(self, own: &Value, report: &mut CaptureReport) {
        let of = |list: &str| own.get("capabilities").map_or(&[][..], |capabilities| items(capabilities, list));
        let at = |list: &str| format!("{}.securityContext.capabilities.{list}", self.path);
        if !of("drop").iter().any(|capability| capability == "ALL") {
            report.add(CaptureRefusal::CapabilitiesNotDropped, &at("drop"), "does not have ALL; write drop: [ALL]");
        }
        if let Some(added) = of("add").iter().find(|capability| *capability != HARMLESS) {
            let added = shown(added.as_str().unwrap_or_default());
            let advice = format!("has {added}; write nothing, or {HARMLESS} alone");
            report.add(CaptureRefusal::CapabilitiesNotDropped, &at("add"), &advice);
        }
    }

    fn check_seccomp(self, own: &Value, report: &mut CaptureReport) {
        let profile = own.get("seccompProfile").filter(|profile| !profile.is_null());
        let profile = profile.or_else(|| self.of_pod.get("seccompProfile"));
        let kind = profile.and_then(|profile| profile.get("type")).and_then(Value::as_str);
        if !matches!(kind, Some("RuntimeDefault" | "Localhost")) {
            let path = format!("{}.securityContext.seccompProfile.type", self.path);
            report.add(
                CaptureRefusal::Seccomp,
                &path,
                "is neither RuntimeDefault nor Localhost, here or in the pod's; write RuntimeDefault",
            );
        }
    }
}

/// Returns whether a container has the name of one of the operator's.
fn is_ours(name: &str) -> bool {
    crate::inject::capture::is_injected_container(name)
}

/// Reports the fields of a `securityContext`, of a pod or a container, that name the sidecar's user or group.
pub(super) fn check_user(context: &Value, ids: SidecarIds, path: &str, report: &mut CaptureReport) {
    let is = |value: Option<&Value>, id: u32| value.and_then(Value::as_u64) == Some(u64::from(id));
    for (field, id) in [("runAsUser", ids.uid), ("runAsGroup", ids.gid), ("fsGroup", ids.gid)] {
        if is(context.get(field), id) {
            report.add(
                CaptureRefusal::SidecarUser,
                &format!("{path}.{field}"),
                &format!("is {id}, as the sidecar's; write another"),
            );
        }
    }
    if let Some(n) = items(context, "supplementalGroups").iter().position(|group| is(Some(group), ids.gid)) {
        let path = format!("{path}.supplementalGroups[{n}]");
        report.add(CaptureRefusal::SidecarUser, &path, &format!("is {}, as the sidecar's group; write another", ids.gid));
    }
}
