//! The parts of a sidecar that are added to a pod, and the warnings where they do not fit.

use serde_json::{Map, Value, json};
use toolweir_crds::{
    SIDECAR_CONTAINER,
    sidecar::{ADMIN_PORT, AUDIENCE, METRICS_PORT, PROXY_PORT},
};

use super::{
    capture::{self, CapturedSidecar, SidecarIds},
    config_volume::{CONFIG_PATH, CONFIG_VOLUME, MCP_CONFIG},
    context::InjectionContext,
    credentials::{CredentialVolumes, has_token},
    fields::{annotation, annotations, entry_object, items, name, path, shown},
    interception,
    opt_in::{INJECT_LABEL, OptIn},
    workload::workload,
};
use crate::{
    config::{CaptureConfig, ResourceAmounts, SidecarLogLevel, SidecarPorts, SidecarResources},
    credentials::{AUDIENCE_TOKENS_VOLUME, CREDENTIALS_VOLUME},
};

/// The volume of the sidecar's token. The sidecar alone mounts it.
pub const TOKEN_VOLUME: &str = "toolweir-token";
/// The volume in which a sidecar keeps its policies across its restarts. The sidecar alone mounts it.
pub const STATE_VOLUME: &str = "toolweir-state";
/// The variable that holds the URL at which agents reach the sidecar.
pub const URL_ENV: &str = "TOOLWEIR_URL";
/// The variable that holds [`MCP_CONFIG`].
pub const MCP_CONFIG_ENV: &str = "TOOLWEIR_MCP_CONFIG";
/// The annotation by which a pod says whether a plain Prometheus scrapes it.
pub const SCRAPE: &str = "prometheus.io/scrape";
const TOKEN_PATH: &str = "/var/run/secrets/toolweir.dev";
const STATE_PATH: &str = "/var/lib/toolweir";
/// The user and group of a sidecar without capture.
const USER: SidecarIds = SidecarIds { uid: 65532, gid: 65532 };
/// The ports of Istio's proxy among the usual ones of a sidecar.
const ISTIO_PORTS: [u16; 3] = [15000, 15001, 15020];
/// An action of a restart rule, since Kubernetes 1.35 (`ContainerRestartRule.action`).
const RESTART_ALL: &str = "RestartAllContainers";
/// Annotations by which a pod says more of its sidecar begin with this.
const ANNOTATION: &str = "toolweir.dev/sidecar-";
const LOG_LEVEL: &str = "toolweir.dev/sidecar-log-level";
/// The least and the most that a sidecar may hold of bodies, in bytes: its largest body, and its own default.
const HELD: (u128, u128) = (4 * 1024 * 1024, 64 * 1024 * 1024);
const AMOUNTS: [(&str, &str); 4] = [("cpu", "request"), ("cpu", "limit"), ("memory", "request"), ("memory", "limit")];

pub(crate) fn is_injected_volume(name: &str) -> bool {
    [TOKEN_VOLUME, STATE_VOLUME, CONFIG_VOLUME, CREDENTIALS_VOLUME, AUDIENCE_TOKENS_VOLUME].contains(&name)
}

pub(super) fn is_injected_env(name: &str) -> bool {
    [URL_ENV, MCP_CONFIG_ENV].contains(&name)
}

/// Returns whether a mount is at [`CONFIG_PATH`] or below it, however its path is written.
fn is_at_injected_path(mount: &Value) -> bool {
    let Some(path) = mount.get("mountPath").and_then(Value::as_str) else { return false };
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let ours: Vec<&str> = CONFIG_PATH.split('/').skip(1).collect();
    parts.starts_with(&ours)
}

/// Returns whether a mount of another container is of an injected volume, or at [`CONFIG_PATH`] or below it. Nothing can be
/// mounted below it: a runtime cannot create the mount point in a read-only volume, and the container would not start.
pub(super) fn is_in_place_of_injected(mount: &Value) -> bool {
    name(mount).is_some_and(is_injected_volume) || is_at_injected_path(mount)
}

/// Returns the annotations by which a plain Prometheus finds the metrics of a sidecar at a port.
pub fn scrape_annotations(metrics_port: u16) -> [(&'static str, String); 3] {
    [(SCRAPE, "true".to_owned()), ("prometheus.io/port", metrics_port.to_string()), ("prometheus.io/path", "/metrics".to_owned())]
}

/// Returns whether annotations are [`scrape_annotations`].
pub(super) fn is_scraped(annotations: &Map<String, Value>, metrics_port: u16) -> bool {
    let is_ours = |(key, value): (&str, String)| annotations.get(key).and_then(Value::as_str) == Some(value.as_str());
    scrape_annotations(metrics_port).into_iter().all(is_ours)
}

/// The parts that are added to one pod.
pub(crate) struct InjectedParts {
    pub container: Value,
    /// The init container of capture, where traffic is captured.
    pub capture: Option<Value>,
    pub volumes: Vec<Value>,
    pub credentials: CredentialVolumes,
    /// For every other container.
    pub env: [Value; 2],
    /// True if every other container gets [`interception::CA_VARIABLES`] too.
    pub intercepts: bool,
    /// For every other container.
    pub mount: Value,
    /// For the annotation.
    pub version: String,
    /// True if the pod gets [`scrape_annotations`], unless [`SCRAPE`] is its own.
    pub scrape: bool,
    pub ports: SidecarPorts,
}

impl InjectedParts {
    /// Makes the parts for a pod.
    ///
    /// # Errors
    /// An annotation of the pod or its namespace is wrong, or it cannot be captured: why, and what to write instead.
    pub fn new(pod: &Value, context: &InjectionContext<'_>) -> Result<Self, String> {
        let range = context.config.capture.user_range;
        let captured = capture::is_captured(pod, context);
        let ids = captured.then(|| SidecarIds::choose(pod, range, context.seed)).transpose()?;
        let intercepts = context.intercepts || interception::is_added(pod);
        Self::with_capture(pod, context, ids.map(|ids| CapturedSidecar { ids, intercepts }))
    }

    /// Makes the parts for a pod that is captured if `captured` says how, whatever is known of labels and policies.
    ///
    /// # Errors
    /// An annotation of the pod or its namespace is wrong.
    pub fn with_capture(pod: &Value, context: &InjectionContext<'_>, captured: Option<CapturedSidecar>) -> Result<Self, String> {
        let ports = context.config.sidecar.ports;
        let credentials = CredentialVolumes::new(pod, context)?;
        let mut container = container(pod, context, &credentials, captured)?;
        let mut capture = captured.map(|captured| capture::capture_container(captured.ids, ports, &container));
        let before = pod.get("spec").map_or(&[][..], |spec| items(spec, "initContainers"));
        for ours in capture.iter_mut().chain([&mut container]) {
            if let Some(before) = before.iter().find(|before| is_genuine(before, ours)) {
                keep(ours, before);
            }
        }
        // The API server's defaults are written out, here and in the container: what comes back at a reinvocation is then
        // the same as what was sent.
        //
        // The token's file is 0644, and only the sidecar mounts it. With 0440 it would be root's, and user 65532 could
        // not read it. Where all containers run as one user, or the pod has an fsGroup, the kubelet narrows it to 0600 or
        // 0640 by itself and lets that user or group have it.
        let life = context.config.sidecar.token_expiration_seconds;
        let token = json!({"audience": AUDIENCE, "expirationSeconds": life, "path": "token"});
        let mut volumes = vec![
            json!({"name": TOKEN_VOLUME, "projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": token}]}}),
            json!({"name": STATE_VOLUME, "emptyDir": {}}),
            json!({"name": CONFIG_VOLUME, "emptyDir": {}}),
        ];
        volumes.extend(credentials.volumes());
        let url = format!("http://127.0.0.1:{}", ports.proxy);
        let env = [json!({"name": URL_ENV, "value": url}), json!({"name": MCP_CONFIG_ENV, "value": MCP_CONFIG})];
        let mount = json!({"name": CONFIG_VOLUME, "mountPath": CONFIG_PATH, "readOnly": true});
        // Who wrote them before cannot be told, so they stay where they are: they may be the pod's own.
        let scrape =
            context.config.sidecar.scrape_annotations || annotations(pod).is_some_and(|all| is_scraped(all, ports.metrics));
        let version = context.version.to_owned();
        let intercepts = captured.is_some_and(|captured| captured.intercepts);
        Ok(Self { container, capture, volumes, credentials, env, intercepts, mount, version, scrape, ports })
    }
}

impl InjectedParts {
    /// Returns the variables for another container, in the order in which they come first there.
    pub fn env_of(&self, container: &Value) -> Vec<Value> {
        let of_interception = self.intercepts.then(|| interception::variables(container));
        self.env.iter().cloned().chain(of_interception.into_iter().flatten()).collect()
    }

    /// Returns the containers that come before the pod's own, in their order.
    pub fn init_containers(&self) -> impl Iterator<Item = &Value> {
        self.capture.iter().chain([&self.container])
    }

    /// Returns the ports at which the sidecar listens.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let captured = self.capture.is_some();
        self.ports.named().into_iter().filter(move |(name, _)| captured || *name != "capture").map(|(_, port)| port)
    }
}

/// Returns the arguments for ports that differ from the sidecar's own defaults.
fn port_args(ports: SidecarPorts) -> impl Iterator<Item = String> {
    let flags = [
        ("--listen", "127.0.0.1", ports.proxy, PROXY_PORT),
        ("--admin-listen", "127.0.0.1", ports.admin, ADMIN_PORT),
        ("--metrics-listen", "0.0.0.0", ports.metrics, METRICS_PORT),
    ];
    let differing = flags.into_iter().filter(|(_, _, port, default)| port != default);
    differing.flat_map(|(flag, address, port, _)| [flag.to_owned(), format!("{address}:{port}")])
}

/// Returns the arguments for a sidecar to which connections are redirected.
fn capture_args(capture: &CaptureConfig, ports: SidecarPorts) -> impl Iterator<Item = String> {
    let private = capture.private_cidrs.iter().flat_map(|cidr| ["--private-cidr".to_owned(), cidr.clone()]);
    ["--capture-port".to_owned(), ports.capture.to_string()].into_iter().chain(private)
}

/// Returns the variables of the sidecar. A kubelet replaces `$(NAME)` in them by a variable.
fn variables(context: &InjectionContext<'_>, captured: bool) -> Vec<Value> {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut variables = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("POD_UID", "metadata.uid"),
    ];
    if captured {
        variables.extend([field("POD_IPS", "status.podIPs"), field("NODE_IPS", "status.hostIPs")]);
    }
    variables.push(json!({"name": "TOOLWEIR_CA", "value": context.ca}));
    let extra_roots = &context.config.capture.extra_roots;
    if captured && !extra_roots.is_empty() {
        variables.push(json!({"name": "TOOLWEIR_EXTRA_ROOTS", "value": extra_roots.replace('$', "$$")}));
    }
    variables
}

fn container(
    pod: &Value,
    context: &InjectionContext<'_>,
    credentials: &CredentialVolumes,
    captured: Option<CapturedSidecar>,
) -> Result<Value, String> {
    let annotations = Annotations(pod);
    let sidecar = &context.config.sidecar;
    let level = annotations.log_level()?.unwrap_or(sidecar.log_level);
    let resources = annotations.resources(&sidecar.resources)?;
    let ports = sidecar.ports;
    let token = format!("{TOKEN_PATH}/token");
    // A kubelet replaces `$(NAME)` in arguments by a variable.
    let workload = format!("--pod-workload={}", workload(pod).replace('$', "$$"));
    let held = held(&resources).to_string();
    let mut args = vec!["run", "--control-plane", context.stream_url, "--token-file", &token, "--state-dir", STATE_PATH];
    args.extend(["--mcp-config", MCP_CONFIG, &workload, "--max-held", &held]);
    args.extend(credentials.args());
    let of_capture = captured.map(|_| capture_args(&context.config.capture, ports));
    let more: Vec<String> = port_args(ports).chain(of_capture.into_iter().flatten()).collect();
    args.extend(more.iter().map(String::as_str));
    if captured.is_some_and(|captured| captured.intercepts) {
        args.extend(interception::args());
    }
    let user = captured.map_or(USER, |captured| captured.ids);
    // The log level comes last: see `is_genuine`.
    args.extend(["--log-format", "json", "--log-level", level.as_str()]);
    let mut mounts = vec![
        json!({"name": TOKEN_VOLUME, "mountPath": TOKEN_PATH, "readOnly": true}),
        json!({"name": STATE_VOLUME, "mountPath": STATE_PATH}),
        json!({"name": CONFIG_VOLUME, "mountPath": CONFIG_PATH}),
    ];
    mounts.extend(credentials.mounts());
    Ok(json!({
        "name": SIDECAR_CONTAINER,
        "image": sidecar.image,
        "imagePullPolicy": sidecar.image_pull_policy.as_str(),
        "args": args,
        // A native sidecar: it starts before the others and is stopped after them, and a Job ends without it.
        "restartPolicy": "Always",
        "env": variables(context, captured.is_some()),
        "ports": [{"name": "tw-metrics", "containerPort": ports.metrics, "protocol": "TCP"}],
        // No other container starts before it holds a snapshot of its policies.
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": ports.metrics, "scheme": "HTTP"},
            "periodSeconds": 1,
            "timeoutSeconds": 1,
            "successThreshold": 1,
            "failureThreshold": 600,
        },
        "resources": resources_value(&resources),
        // What the Pod Security Standard `restricted` asks for, and that its files are read-only.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": user.gid,
            "runAsNonRoot": true,
            "runAsUser": user.uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }))
}

/// Returns how many bytes of bodies a sidecar may hold: a quarter of its memory. A sidecar that runs out of memory is restarted
/// and counts from zero: an agent must not be able to cause that.
fn held(resources: &SidecarResources) -> u128 {
    let (least, most) = HELD;
    resources.limits.memory.as_ref().map_or(most, |limit| (limit.nanos() / 1_000_000_000 / 4).clamp(least, most))
}

fn resources_value(resources: &SidecarResources) -> Value {
    let amounts = |amounts: &ResourceAmounts| {
        let named = [("cpu", &amounts.cpu), ("memory", &amounts.memory)].into_iter();
        named.filter_map(|(name, amount)| Some((name.to_owned(), amount.as_ref()?.as_str().into()))).collect::<Map<_, _>>()
    };
    let kinds = [("requests", amounts(&resources.requests)), ("limits", amounts(&resources.limits))];
    // What is empty is left out, as the API server does.
    kinds
        .into_iter()
        .filter(|(_, amounts)| !amounts.is_empty())
        .map(|(kind, amounts)| (kind.to_owned(), Value::Object(amounts)))
        .collect()
}

/// Returns whether a container that has the name of one of ours was injected before.
fn is_genuine(before: &Value, ours: &Value) -> bool {
    // The log level of the command line is left to the end: an annotation may have changed since. At the end of the other
    // container is an id or a port, which is no more telling. A policy that has TLS opened may have come since.
    let args = |container: &Value| {
        let args = items(container, "args").iter().rev().skip(1).filter(|arg| !interception::is_arg(arg));
        args.cloned().collect::<Vec<_>>()
    };
    name(before) == name(ours)
        && ["image", "command"].iter().all(|field| before.get(field) == ours.get(field))
        && args(before) == args(ours)
}

/// Keeps what the API server added to a sidecar for the administrators of the cluster or the namespace. A `LimitRange` gives
/// limits to containers that have none, and refuses those that have none in the end; `AlwaysPullImages` does the same with the
/// pull policy.
fn keep(ours: &mut Value, before: &Value) {
    let Some(ours) = ours.as_object_mut() else { return };
    for kind in ["requests", "limits"] {
        let Some(amounts) = before.pointer(&format!("/resources/{kind}")).and_then(Value::as_object) else { continue };
        if amounts.is_empty() {
            continue;
        }
        let resources = entry_object(ours, "resources").and_then(|resources| entry_object(resources, kind));
        let Some(resources) = resources else { continue };
        for (resource, amount) in amounts {
            resources.entry(resource.clone()).or_insert_with(|| amount.clone());
        }
    }
    if before.get("imagePullPolicy").and_then(Value::as_str) == Some("Always") {
        ours.insert("imagePullPolicy".to_owned(), "Always".into());
    }
    if let Some(policy) = before.get("resizePolicy") {
        ours.insert("resizePolicy".to_owned(), policy.clone());
    }
}

struct Annotations<'a>(&'a Value);

impl Annotations<'_> {
    fn log_level(&self) -> Result<Option<SidecarLogLevel>, String> {
        let Some(text) = annotation(self.0, LOG_LEVEL) else { return Ok(None) };
        let level = SidecarLogLevel::ALL.into_iter().find(|level| level.as_str() == text);
        let known = SidecarLogLevel::ALL.map(SidecarLogLevel::as_str).join(", ");
        level.map(Some).ok_or_else(|| format!("{}: `{}` is not a log level; write one of {known}", path(LOG_LEVEL), shown(text)))
    }

    fn resources(&self, defaults: &SidecarResources) -> Result<SidecarResources, String> {
        let mut resources = defaults.clone();
        for (resource, kind) in AMOUNTS {
            let key = format!("{ANNOTATION}{resource}-{kind}");
            let Some(text) = annotation(self.0, &key) else { continue };
            let quantity = text.parse().map_err(|error| format!("{}: {error}", path(&key)))?;
            let amounts = if kind == "limit" { &mut resources.limits } else { &mut resources.requests };
            *(if resource == "cpu" { &mut amounts.cpu } else { &mut amounts.memory }) = Some(quantity);
        }
        resources.check(|resource, kind| path(&format!("{ANNOTATION}{resource}-{kind}")))?;
        Ok(resources)
    }
}

/// Returns the warnings for whoever creates the pod.
pub(super) fn warnings(pod: &Value, ours: &InjectedParts) -> Vec<String> {
    let mut warnings = Vec::new();
    let metadata = pod.get("metadata");
    if let Some(value) = metadata.and_then(|metadata| metadata.get("labels")?.get(INJECT_LABEL)?.as_str())
        && OptIn::from_value(value).is_none()
    {
        let value = shown(value);
        warnings.push(format!("label {INJECT_LABEL}: `{value}` is not known; write enabled or disabled. The pod is injected"));
    }
    for (key, _) in annotations(pod).into_iter().flatten().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        let is_amount = AMOUNTS.iter().any(|(resource, kind)| *key == format!("{ANNOTATION}{resource}-{kind}"));
        if key != LOG_LEVEL && !is_amount {
            warnings.push(format!("annotation {}: is not known and has no effect", shown(key)));
        }
    }
    if let Some(annotations) = annotations(pod)
        && ours.scrape
    {
        warn_of_scraping(annotations, ours.ports.metrics, &mut warnings);
    }
    if let Some(spec) = pod.get("spec") {
        warn_of_volumes(spec, ours, &mut warnings);
        warn_of_spec(spec, ours, &mut warnings);
    }
    warnings
}

/// Warns of volumes with an injected volume's name or with the sidecar's token.
fn warn_of_volumes(spec: &Value, ours: &InjectedParts, warnings: &mut Vec<String>) {
    for volume in items(spec, "volumes").iter().filter(|volume| name(volume).is_some_and(is_injected_volume)) {
        if !ours.volumes.contains(volume) {
            let own = name(volume).unwrap_or_default();
            let is_replaced = ours.volumes.iter().any(|ours| name(ours) == Some(own));
            let became = if is_replaced { "replaced" } else { "removed" };
            warnings.push(format!("volume {own}: the name is Toolweir's; the pod's own volume was {became}"));
        }
    }
    for volume in items(spec, "volumes").iter().filter(|volume| !name(volume).is_some_and(is_injected_volume)) {
        let who = format!("volume {}", shown(name(volume).unwrap_or_default()));
        if has_token(volume, AUDIENCE) {
            warnings.push(format!("{who}: its token is the sidecar's; who reads it can answer the operator in its place"));
        }
        ours.credentials.warn_of_volume(volume, &who, warnings);
    }
}

/// Warns of settings of the pod and of its containers.
fn warn_of_spec(spec: &Value, ours: &InjectedParts, warnings: &mut Vec<String>) {
    if let Some(policy @ ("Default" | "None")) = spec.get("dnsPolicy").and_then(Value::as_str) {
        warnings.push(format!(
            "spec.dnsPolicy: {policy}: where it does not find names of Services, the sidecar does not find the operator, and the \
             pod does not start"
        ));
    }
    let containers =
        ["initContainers", "containers"].into_iter().flat_map(|kind| items(spec, kind).iter().map(move |c| (kind, c)));
    for (kind, container) in containers {
        if let Some(own) = name(container).filter(|name| capture::is_injected_container(name)) {
            let injected = ours.init_containers().find(|injected| name(injected) == Some(own));
            if kind == "containers" || injected.is_none_or(|injected| !is_genuine(container, injected)) {
                let became = if injected.is_some() { "replaced" } else { "removed" };
                warnings.push(format!("container {own}: the name is Toolweir's; the pod's own container was {became}"));
            }
            continue;
        }
        warn_of_container(container, ours, warnings);
    }
    let credentials = if ours.credentials.is_empty() { "" } else { " and the credentials of servers" };
    for field in ["shareProcessNamespace", "hostPID"] {
        if spec.get(field) == Some(&Value::Bool(true)) {
            warnings.push(format!(
                "spec.{field}: a container that runs as root or as user {} can reach into the sidecar and read its token{credentials}",
                USER.uid
            ));
        }
    }
}

/// Warns of the pod's own annotations in place of [`scrape_annotations`].
fn warn_of_scraping(annotations: &Map<String, Value>, metrics_port: u16, warnings: &mut Vec<String>) {
    if annotations.contains_key(SCRAPE) {
        if !is_scraped(annotations, metrics_port) {
            warnings.push(format!(
                "annotation {SCRAPE}: is the pod's own and stays, so Prometheus does not find the sidecar's metrics by \
                 annotations; remove it, or have port {metrics_port} scraped as docs/monitoring.md says"
            ));
        }
        return;
    }
    for (key, value) in scrape_annotations(metrics_port) {
        if annotations.get(key).is_some_and(|own| own.as_str() != Some(value.as_str())) {
            warnings.push(format!(
                "annotation {key}: its own value was replaced by the sidecar's, {value}; to keep it, write {SCRAPE} too"
            ));
        }
    }
}

/// Warns of a container that conflicts with the sidecar.
fn warn_of_container(container: &Value, ours: &InjectedParts, warnings: &mut Vec<String>) {
    let who = format!("container {}", shown(name(container).unwrap_or_default()));
    for env in items(container, "env").iter().filter(|env| name(env).is_some_and(is_injected_env)) {
        if !ours.env.contains(env) {
            warnings.push(format!("{who}: its own {} was replaced by Toolweir's", name(env).unwrap_or_default()));
        }
    }
    for mount in items(container, "volumeMounts").iter().filter(|mount| is_in_place_of_injected(mount) && **mount != ours.mount) {
        match name(mount) {
            Some(volume @ (TOKEN_VOLUME | STATE_VOLUME | CREDENTIALS_VOLUME | AUDIENCE_TOKENS_VOLUME)) => {
                warnings.push(format!("{who}: its mount of {volume} was removed; that volume is the sidecar's alone"));
            }
            Some(CONFIG_VOLUME) => {
                warnings.push(format!("{who}: its mount of {CONFIG_VOLUME} was replaced by one at {CONFIG_PATH}, read-only"));
            }
            _ => {
                let path = mount.get("mountPath").and_then(Value::as_str).map(shown).unwrap_or_default();
                warnings.push(format!("{who}: its own mount at {path} was removed; {CONFIG_PATH} is Toolweir's"));
            }
        }
    }
    ours.credentials.warn_of_container(container, &who, warnings);
    if ours.intercepts {
        interception::warn_of_container(container, &who, warnings);
    }
    let ports = items(container, "ports").iter().filter_map(|port| port.get("containerPort")?.as_u64());
    for port in ports.filter(|port| ours.ports().any(|own| u64::from(own) == *port)) {
        warnings.push(format!("{who}: port {port} is the sidecar's; one of the two cannot listen there"));
    }
    if items(container, "restartPolicyRules").iter().any(|rule| rule.get("action").and_then(Value::as_str) == Some(RESTART_ALL)) {
        warnings.push(format!("{who}: {RESTART_ALL} starts the sidecar anew too, and its limits count from nothing then"));
    }
    if name(container) == Some("istio-proxy") {
        let shared: Vec<String> = ours.ports().filter(|port| ISTIO_PORTS.contains(port)).map(|port| port.to_string()).collect();
        if let Some((last, others)) = shared.split_last() {
            let ports =
                if others.is_empty() { format!("port {last}") } else { format!("ports {} and {last}", others.join(", ")) };
            warnings.push(format!("{who}: Istio's proxy and the sidecar both listen on {ports}"));
        }
    }
}
