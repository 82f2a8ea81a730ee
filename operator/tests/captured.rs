//! Which captured pods are refused, with which reason and at which field: a pod that is in order, and one change to it at a time.
//! Then the table of docs/injection.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use toolweir_crds::sidecar::{CAPTURE_CONTAINER, SIDECAR_CONTAINER};
use toolweir_operator::{
    captured::{CaptureRefusal, CaptureReport, check_ephemeral, check_new, is_opted_out},
    config::OperatorConfig,
    inject::{InjectionContext, InjectionOutcome, NamespaceInfo, SidecarIds, inject},
};

const CONFIG: &str = "capture: {method: Init}";

fn with_context<T>(config: &str, then: impl FnOnce(&InjectionContext<'_>) -> T) -> T {
    let config = OperatorConfig::read(config).unwrap();
    let labels = ["inject", "capture"].map(|label| (format!("toolweir.dev/{label}"), "enabled".to_owned()));
    let info = NamespaceInfo::from(toolweir_crds::select::Labels::from(labels));
    then(&InjectionContext {
        config: &config,
        namespace: "agents",
        namespace_info: Some(&info),
        operator_namespace: "toolweir-system",
        stream_url: "https://toolweir-operator.toolweir-system.svc:8444",
        intercepts: false,
        seed: 42,
        ca: "PEM",
        version: "0.1.0",
    })
}

/// A pod with all that is asked for, after its injection.
fn good() -> Value {
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent"},
        "spec": {
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1000, "fsGroup": 2000},
            "initContainers": [{"name": "migrate", "image": "i", "securityContext": restricted}],
            "containers": [{"name": "agent", "image": "i", "securityContext": restricted}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    match with_context(CONFIG, |context| inject(&pod, context)) {
        InjectionOutcome::Injected { pod, .. } => pod,
        other => panic!("{other:?}"),
    }
}

fn check(pod: &Value) -> CaptureReport {
    with_context(CONFIG, |context| check_new(pod, context))
}

/// A change: what is done to the good pod (an operation of JSON Patch, a path and a value), and the reason and the path to be named.
type Change = (&'static str, &'static str, Value, CaptureRefusal, &'static str);

fn changed(mut pod: Value, op: &str, path: &str, value: &Value) -> Value {
    // A parent that is not there is made.
    let step = json!([{"op": op, "path": path, "value": value}]);
    let steps: json_patch::Patch = serde_json::from_value(step).unwrap();
    json_patch::patch(&mut pod, &steps).unwrap_or_else(|error| panic!("{path}: {error}"));
    pod
}

fn ids() -> SidecarIds {
    SidecarIds::of_pod(&good()).unwrap()
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn changes() -> Vec<Change> {
    use CaptureRefusal as Why;
    let SidecarIds { uid, gid } = ids();
    let init = json!({"name": "x", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
    vec![
        ("add", "/spec/os", json!({"name": "windows"}), Why::Windows, "spec.os.name"),
        (
            "add",
            "/spec/nodeSelector",
            json!({"kubernetes.io/os": "windows"}),
            Why::Windows,
            "spec.nodeSelector[kubernetes.io/os]",
        ),
        ("add", "/spec/hostNetwork", json!(true), Why::HostNetwork, "spec.hostNetwork"),
        // What the operator made.
        ("remove", "/spec/initContainers/0", json!(null), Why::CaptureMissing, "spec.initContainers"),
        ("remove", "/spec/initContainers/1", json!(null), Why::NotInjected, "toolweir.dev/inject"),
        ("replace", "/spec/initContainers/0/image", json!("other"), Why::CaptureMissing, "spec.initContainers[0].image"),
        ("add", "/spec/initContainers/0/command", json!(["true"]), Why::CaptureMissing, "spec.initContainers[0].command"),
        ("replace", "/spec/initContainers/0/args/0", json!("run"), Why::CaptureMissing, "spec.initContainers[0].args"),
        ("replace", "/spec/initContainers/0/args/2", json!("0"), Why::CaptureMissing, "spec.initContainers[0].args"),
        ("add", "/spec/initContainers/0/args/-", json!("--capture-port"), Why::CaptureMissing, "spec.initContainers[0].args"),
        (
            "add",
            "/spec/initContainers/0/restartPolicy",
            json!("Always"),
            Why::CaptureMissing,
            "spec.initContainers[0].restartPolicy",
        ),
        (
            "add",
            "/spec/initContainers/0/env",
            json!([{"name": "A", "value": "b"}]),
            Why::CaptureMissing,
            "spec.initContainers[0].env",
        ),
        (
            "add",
            "/spec/initContainers/0/volumeMounts",
            json!([{"name": "data", "mountPath": "/etc"}]),
            Why::CaptureMissing,
            "spec.initContainers[0].volumeMounts",
        ),
        (
            "add",
            "/spec/initContainers/0/securityContext/capabilities/add/-",
            json!("SYS_ADMIN"),
            Why::CaptureMissing,
            "spec.initContainers[0].securityContext",
        ),
        (
            "replace",
            "/spec/initContainers/1/securityContext/runAsUser",
            json!(1000),
            Why::CaptureMissing,
            "spec.initContainers[1].securityContext",
        ),
        ("replace", "/spec/initContainers/1/image", json!("other"), Why::CaptureMissing, "spec.initContainers[1].image"),
        (
            "add",
            "/spec/initContainers/1/lifecycle",
            json!({"postStart": {"exec": {"command": ["/x"]}}}),
            Why::CaptureMissing,
            "spec.initContainers[1].lifecycle",
        ),
        (
            "add",
            "/spec/initContainers/1/env/-",
            json!({"name": "A", "value": "b"}),
            Why::CaptureMissing,
            "spec.initContainers[1].env",
        ),
        (
            "add",
            "/spec/initContainers/1/volumeMounts/-",
            json!({"name": "data", "mountPath": "/bin"}),
            Why::CaptureMissing,
            "spec.initContainers[1].volumeMounts",
        ),
        ("add", "/spec/volumes/1/emptyDir/medium", json!("Memory"), Why::CaptureMissing, "spec.volumes[1]"),
        (
            "replace",
            "/spec/volumes/1",
            json!({"name": "toolweir-state", "configMap": {}}),
            Why::CaptureMissing,
            "spec.volumes[1]",
        ),
        ("remove", "/spec/volumes/1", json!(null), Why::CaptureMissing, "spec.volumes"),
        ("add", "/spec/initContainers/0", init.clone(), Why::InitContainerBefore, "spec.initContainers[0]"),
        ("add", "/spec/initContainers/1", init, Why::InitContainerBefore, "spec.initContainers[1]"),
        // The pod.
        ("add", "/spec/hostPID", json!(true), Why::HostPid, "spec.hostPID"),
        ("add", "/spec/hostIPC", json!(true), Why::HostIpc, "spec.hostIPC"),
        ("add", "/spec/shareProcessNamespace", json!(true), Why::ShareProcessNamespace, "spec.shareProcessNamespace"),
        (
            "add",
            "/spec/volumes/-",
            json!({"name": "run", "hostPath": {"path": "/run"}}),
            Why::HostPath,
            "spec.volumes[4].hostPath",
        ),
        (
            "add",
            "/spec/securityContext/sysctls",
            json!([{"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": "net.ipv4.conf.all.route_localnet", "value": "1"}]),
            Why::Sysctls,
            "spec.securityContext.sysctls[1]",
        ),
        ("add", "/spec/securityContext/runAsUser", json!(uid), Why::SidecarUser, "spec.securityContext.runAsUser"),
        ("add", "/spec/securityContext/runAsGroup", json!(gid), Why::SidecarUser, "spec.securityContext.runAsGroup"),
        ("add", "/spec/securityContext/fsGroup", json!(gid), Why::SidecarUser, "spec.securityContext.fsGroup"),
        (
            "add",
            "/spec/securityContext/supplementalGroups",
            json!([1, gid]),
            Why::SidecarUser,
            "spec.securityContext.supplementalGroups[1]",
        ),
        (
            "remove",
            "/spec/securityContext/seccompProfile",
            json!(null),
            Why::Seccomp,
            "spec.initContainers[2].securityContext.seccompProfile.type",
        ),
    ]
}

/// Changes to any container, below its path.
fn changes_of_containers() -> Vec<Change> {
    use CaptureRefusal as Why;
    let SidecarIds { uid, gid } = ids();
    vec![
        ("add", "/securityContext/privileged", json!(true), Why::Privileged, "securityContext.privileged"),
        (
            "replace",
            "/securityContext/allowPrivilegeEscalation",
            json!(true),
            Why::PrivilegeEscalation,
            "securityContext.allowPrivilegeEscalation",
        ),
        (
            "remove",
            "/securityContext/allowPrivilegeEscalation",
            json!(null),
            Why::PrivilegeEscalation,
            "securityContext.allowPrivilegeEscalation",
        ),
        ("remove", "/securityContext", json!(null), Why::PrivilegeEscalation, "securityContext.allowPrivilegeEscalation"),
        (
            "remove",
            "/securityContext/capabilities",
            json!(null),
            Why::CapabilitiesNotDropped,
            "securityContext.capabilities.drop",
        ),
        (
            "replace",
            "/securityContext/capabilities/drop",
            json!(["NET_RAW"]),
            Why::CapabilitiesNotDropped,
            "securityContext.capabilities.drop",
        ),
        (
            "add",
            "/securityContext/capabilities/add",
            json!(["NET_BIND_SERVICE", "NET_RAW"]),
            Why::CapabilitiesNotDropped,
            "securityContext.capabilities.add",
        ),
        (
            "add",
            "/securityContext/seccompProfile",
            json!({"type": "Unconfined"}),
            Why::Seccomp,
            "securityContext.seccompProfile.type",
        ),
        ("add", "/securityContext/procMount", json!("Unmasked"), Why::ProcMount, "securityContext.procMount"),
        ("add", "/securityContext/runAsUser", json!(uid), Why::SidecarUser, "securityContext.runAsUser"),
        ("add", "/securityContext/runAsGroup", json!(gid), Why::SidecarUser, "securityContext.runAsGroup"),
        (
            "add",
            "/volumeMounts",
            json!([{"name": "toolweir-state", "mountPath": "/x", "readOnly": true}]),
            Why::SidecarVolume,
            "volumeMounts[0]",
        ),
        ("add", "/volumeMounts", json!([{"name": "toolweir-config", "mountPath": "/x"}]), Why::SidecarVolume, "volumeMounts[0]"),
    ]
}

fn assert_refused(report: &CaptureReport, reason: CaptureRefusal, path: &str, what: &str) {
    let message = report.message();
    assert_eq!(report.reason(), Some(reason), "{what}: {message}");
    assert!(message.starts_with(&format!("{path}: ")), "{what}: {message}");
    assert!(message.contains(&format!("({})", reason.as_str())), "{what}: {message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

#[test]
fn a_pod_that_is_in_order_is_let_in() {
    assert_eq!(check(&good()), CaptureReport::default());
}

#[test]
fn a_pod_whose_tls_is_opened_is_held_against_itself_and_not_against_policies() {
    let mut opened = good();
    let args = opened["spec"]["initContainers"][1]["args"].as_array_mut().unwrap();
    let end = args.len() - 4;
    args.splice(end..end, [json!("--agent-ca-dir"), json!("/etc/toolweir")]);
    // As the operator makes it; `good` is without.
    let remade = with_context(CONFIG, |context| inject(&opened, &InjectionContext { intercepts: true, ..*context }));
    let InjectionOutcome::Injected { pod: remade, .. } = remade else { panic!("{remade:?}") };
    assert_eq!(remade["spec"]["initContainers"][1], opened["spec"]["initContainers"][1]);
    for intercepts in [true, false] {
        let check = |pod: &Value| with_context(CONFIG, |context| check_new(pod, &InjectionContext { intercepts, ..*context }));
        for pod in [&remade, &good()] {
            assert_eq!(check(pod), CaptureReport::default(), "{intercepts}");
        }
        for (op, path, value) in [
            ("replace", format!("/spec/initContainers/1/args/{}", end + 1), json!("/var/lib/toolweir")),
            ("remove", format!("/spec/initContainers/1/args/{end}"), json!(null)),
            ("add", "/spec/initContainers/1/args/-".to_owned(), json!("--agent-ca-dir")),
        ] {
            let report = check(&changed(remade.clone(), op, &path, &value));
            assert_refused(&report, CaptureRefusal::CaptureMissing, "spec.initContainers[1].args", &path);
        }
    }
    // Variables are the pod's own matter: without them, connections fail.
    let pod = changed(remade, "remove", "/spec/containers/0/env/2", &json!(null));
    assert_eq!(check(&pod), CaptureReport::default());
}

#[test]
fn what_is_harmless_is_let_in() {
    for (path, value) in [
        // What the API server adds to each container.
        (
            "/spec/initContainers/0/volumeMounts",
            json!([{"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]),
        ),
        (
            "/spec/initContainers/1/volumeMounts/-",
            json!({"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}),
        ),
        ("/spec/initContainers/0/imagePullPolicy", json!("Always")),
        ("/spec/initContainers/1/resources/limits/cpu", json!("1")),
        ("/spec/initContainers/0/resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}])),
        ("/spec/containers/0/securityContext/capabilities/add", json!(["NET_BIND_SERVICE"])),
        ("/spec/containers/0/securityContext/seccompProfile", json!({"type": "Localhost", "localhostProfile": "p"})),
        ("/spec/containers/0/securityContext/runAsUser", json!(0)),
        ("/spec/containers/0/securityContext/procMount", json!("Default")),
        ("/spec/containers/0/securityContext/privileged", json!(false)),
        ("/spec/containers/0/env", json!([])),
        ("/spec/hostUsers", json!(false)),
        ("/spec/hostNetwork", json!(false)),
        ("/spec/os", json!({"name": "linux"})),
        ("/spec/securityContext/sysctls", json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}])),
        ("/spec/volumes/-", json!({"name": "shared", "persistentVolumeClaim": {"claimName": "c"}})),
    ] {
        let report = check(&changed(good(), "add", path, &value));
        assert_eq!(report, CaptureReport::default(), "{path}");
    }
}

#[test]
fn every_way_to_undo_capture_is_refused_and_named() {
    for (op, path, value, reason, promised) in changes() {
        let report = check(&changed(good(), op, path, &value));
        assert_refused(&report, reason, promised, &format!("{op} {path}"));
    }
}

#[test]
fn containers_of_every_kind_are_held_to_the_same() {
    for (op, path, value, reason, promised) in changes_of_containers() {
        for (there, shown) in [("/spec/containers/0", "spec.containers[0]"), ("/spec/initContainers/2", "spec.initContainers[2]")]
        {
            let pod = changed(good(), op, &format!("{there}{path}"), &value);
            assert_refused(&check(&pod), reason, &format!("{shown}.{promised}"), path);
        }
        let mut debugged = good();
        let mut ephemeral = debugged["spec"]["containers"][0].clone();
        ephemeral["name"] = "debug".into();
        ephemeral.as_object_mut().unwrap().remove("volumeMounts");
        debugged["spec"]["ephemeralContainers"] = json!([ephemeral]);
        assert_eq!(check_ephemeral(&debugged), CaptureReport::default());
        let pod = changed(debugged, op, &format!("/spec/ephemeralContainers/0{path}"), &value);
        assert_refused(&check_ephemeral(&pod), reason, &format!("spec.ephemeralContainers[0].{promised}"), path);
    }
}

#[test]
fn an_ephemeral_container_sees_no_processes_of_the_sidecar() {
    let mut pod = good();
    let mut ephemeral = pod["spec"]["containers"][0].clone();
    ephemeral["volumeMounts"] = json!([]);
    for (target, is_ours) in [(SIDECAR_CONTAINER, true), (CAPTURE_CONTAINER, true), ("agent", false)] {
        ephemeral["targetContainerName"] = target.into();
        pod["spec"]["ephemeralContainers"] = json!([ephemeral]);
        let report = check_ephemeral(&pod);
        assert_eq!(report.reason(), is_ours.then_some(CaptureRefusal::ShareProcessNamespace), "{target}");
    }
    // A pod that is not captured is not looked at.
    pod["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
    pod["spec"]["ephemeralContainers"][0]["securityContext"] = json!({"privileged": true});
    assert_eq!(check_ephemeral(&pod), CaptureReport::default());
}

#[test]
fn a_container_with_the_name_of_ours_elsewhere_is_none_of_ours() {
    let mut pod = good();
    for name in [CAPTURE_CONTAINER, SIDECAR_CONTAINER] {
        pod["spec"]["containers"][0]["name"] = name.into();
        pod["spec"]["containers"][0]["securityContext"] = json!({});
        assert_eq!(check(&pod).reason(), Some(CaptureRefusal::PrivilegeEscalation));
    }
}

#[test]
fn all_faults_are_told_at_once_and_their_number_is_bounded() {
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    let said = check(&pod).message();
    assert_eq!(
        said,
        "toolweir.dev/inject: there is no sidecar; label the namespace or the pod toolweir.dev/inject: enabled, or the pod \
         toolweir.dev/capture: disabled (NotInjected); spec.containers[0].securityContext.allowPrivilegeEscalation: is not false; \
         write false (PrivilegeEscalation); spec.containers[0].securityContext.capabilities.drop: does not have ALL; write \
         drop: [ALL] (CapabilitiesNotDropped); spec.containers[0].securityContext.seccompProfile.type: is neither RuntimeDefault \
         nor Localhost, here or in the pod's; write RuntimeDefault (Seccomp)"
    );
    let pod = json!({"spec": {"containers": vec![json!({"name": "a"}); 50]}});
    assert!(check(&pod).message().ends_with("; and 141 more"), "{}", check(&pod).message());
    for nonsense in [json!({}), json!([]), json!({"spec": []}), json!({"spec": {"containers": {}, "initContainers": 1}})] {
        assert_eq!(check(&nonsense).reason(), Some(CaptureRefusal::NotInjected), "{nonsense}");
    }
}

#[test]
fn without_a_method_every_pod_is_refused() {
    let report = with_context("", |context| check_new(&good(), context));
    assert_refused(&report, CaptureRefusal::MethodNone, "toolweir.dev/capture", "no method");
}

#[test]
fn a_pod_opts_out_with_its_own_label_alone() {
    for (value, is_out) in [("disabled", true), ("enabled", false), ("Disabled", false), ("", false)] {
        assert_eq!(is_opted_out(&json!({"metadata": {"labels": {"toolweir.dev/capture": value}}})), is_out, "{value}");
    }
    assert!(!is_opted_out(&json!({})));
}

#[test]
fn every_reason_is_reached() {
    let mut seen: BTreeSet<CaptureRefusal> = [CaptureRefusal::MethodNone].into();
    seen.extend(changes().into_iter().chain(changes_of_containers()).map(|(_, _, _, reason, _)| reason));
    assert_eq!(seen, CaptureRefusal::ALL.into());
}

#[test]
fn the_page_lists_every_reason_to_refuse_and_no_other() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/injection.md")).unwrap();
    let section = page.split("\n### What is refused\n").nth(1).expect("the section").split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: Vec<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[3].replace('`', ""))
        })
        .collect();
    let known: Vec<(String, String)> =
        CaptureRefusal::ALL.iter().map(|reason| (reason.as_str().to_owned(), reason.explain().to_owned())).collect();
    assert_eq!(documented, known, "reason, explanation; in the order in which they are looked for");
}
