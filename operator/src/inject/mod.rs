//! Injection: a pod in, the same pod with a sidecar out. A plain function. docs/injection.md says what it adds and why.
//!
//! Pods stay [`Value`]s. Types of one version of Kubernetes would drop what a newer one adds.
//!
//! First everything that belongs to the sidecar is removed ([`strip`]), then it is added. So a pod that was injected before and
//! changed since, by another webhook or by its owner, comes out as it should.
//!
//! `skip` says which pods are not injected, `sidecar` and `capture` make the parts that are added, `patch` the JSON Patch
//! between two pods.

pub(crate) mod capture;
mod config_volume;
mod context;
mod credentials;
pub(crate) mod fields;
pub(crate) mod interception;
mod namespace_info;
mod opt_in;
mod patch;
pub(crate) mod sidecar;
mod skip;
mod workload;

use serde_json::Value;
use toolweir_crds::select::Labels;

pub use self::{
    capture::{CAPTURE_LABEL, SidecarIds},
    config_volume::{CONFIG_PATH, CONFIG_VOLUME, MCP_CONFIG},
    context::InjectionContext,
    interception::{AGENT_CA_DIR, CA_VARIABLES},
    namespace_info::NamespaceInfo,
    opt_in::{INJECT_LABEL, OptIn, namespace_opted_in},
    patch::patch,
    sidecar::{MCP_CONFIG_ENV, SCRAPE, STATE_VOLUME, TOKEN_VOLUME, URL_ENV, scrape_annotations},
    skip::{MIRROR, PodKind, SkipReason},
};
use crate::config::{CaptureMethod, SidecarPorts};

use self::{
    fields::{entry_object, list, name, object, prepend, retain, tidy},
    sidecar::InjectedParts,
};

/// What is said of a pod that opts in to capture where there is none.
pub(crate) const NO_METHOD: &str = "traffic is not captured in this cluster: its administrator set capture.method to None; remove the \
                                    label, or have the method changed to Init";

/// The annotation of an injected pod: the version of the operator that did it.
pub const INJECTED: &str = "toolweir.dev/injected";

/// The outcome of an injection.
#[derive(Clone, Debug, PartialEq)]
pub enum InjectionOutcome {
    /// The pod gets a sidecar.
    Injected {
        /// The pod with a sidecar.
        pod: Value,
        /// Warnings for whoever creates the pod, a line each.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    Skipped(SkipReason),
    /// The pod must not be created: why, and what to write instead.
    Refused(String),
}

/// Adds a sidecar to a pod, or returns why not.
pub fn inject(pod: &Value, context: &InjectionContext<'_>) -> InjectionOutcome {
    if pod.pointer("/spec/containers").is_none_or(|containers| !containers.is_array()) {
        return InjectionOutcome::Refused("spec.containers: is not a list of containers".to_owned());
    }
    if let Some(skip) = skip::skip(pod, context) {
        return InjectionOutcome::Skipped(skip);
    }
    if capture::is_captured(pod, context) && context.config.capture.method == CaptureMethod::None {
        return InjectionOutcome::Refused(format!("{CAPTURE_LABEL}: {NO_METHOD}"));
    }
    let parts = match InjectedParts::new(pod, context) {
        Ok(parts) => parts,
        Err(why) => return InjectionOutcome::Refused(why),
    };
    // Variables that are none of an earlier round's are the pod's own, whatever they say.
    let has_variables = parts.intercepts || interception::is_added(pod);
    let mut injected = strip(pod, context.config.sidecar.ports, has_variables);
    if injected.pointer("/spec/containers").is_none() {
        let own = pod.pointer("/spec/containers/0").and_then(name).unwrap_or_default();
        return InjectionOutcome::Refused(format!(
            "spec.containers: there is none but {own}, and that name is the sidecar's; give the agent's container another"
        ));
    }
    if add(&mut injected, &parts).is_none() {
        return InjectionOutcome::Refused("this is no pod".to_owned());
    }
    if injected == *pod {
        return InjectionOutcome::Skipped(SkipReason::AlreadyInjected);
    }
    InjectionOutcome::Injected { warnings: sidecar::warnings(pod, &parts), pod: injected }
}

/// Returns the labels of a pod, without those that are no texts.
pub fn labels(pod: &Value) -> Labels {
    let labels = pod.get("metadata").and_then(|metadata| metadata.get("labels")?.as_object());
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Returns the pod without anything that belongs to the sidecar or stands in its place, with `has_variables` also without
/// [`CA_VARIABLES`] that have our value. Empty lists are removed too.
pub fn strip(pod: &Value, ports: SidecarPorts, has_variables: bool) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = object(&mut pod, "metadata") {
        if let Some(annotations) = object(metadata, "annotations") {
            annotations.remove(INJECTED);
            if sidecar::is_scraped(annotations, ports.metrics) {
                annotations.retain(|key, _| !scrape_annotations(ports.metrics).iter().any(|(own, _)| own == key));
            }
        }
        tidy(metadata, "annotations");
    }
    let Some(spec) = object(&mut pod, "spec") else { return pod };
    for kind in ["initContainers", "containers"] {
        retain(spec, kind, |container| !name(container).is_some_and(capture::is_injected_container));
        for container in list(spec, kind) {
            let Some(container) = container.as_object_mut() else { continue };
            let is_ours =
                |env: &Value| name(env).is_some_and(sidecar::is_injected_env) || has_variables && interception::is_ours(env);
            retain(container, "env", |env| !is_ours(env));
            retain(container, "volumeMounts", |mount| !sidecar::is_in_place_of_injected(mount));
        }
    }
    retain(spec, "volumes", |volume| !name(volume).is_some_and(sidecar::is_injected_volume));
    pod
}

/// Adds the parts that [`strip`] removes. Each comes first in its list, so that other variables can refer to it
/// (`$(TOOLWEIR_URL)`).
///
/// Returns none where the pod is no object.
fn add(pod: &mut Value, parts: &InjectedParts) -> Option<()> {
    let pod = pod.as_object_mut()?;
    let metadata = entry_object(pod, "metadata")?;
    let annotations = entry_object(metadata, "annotations")?;
    annotations.insert(INJECTED.to_owned(), parts.version.clone().into());
    if parts.scrape && !annotations.contains_key(SCRAPE) {
        annotations.extend(scrape_annotations(parts.ports.metrics).map(|(key, value)| (key.to_owned(), value.into())));
    }
    let spec = entry_object(pod, "spec")?;
    for kind in ["initContainers", "containers"] {
        for container in list(spec, kind) {
            let env = parts.env_of(container);
            let Some(container) = container.as_object_mut() else { continue };
            prepend(container, "env", &env);
            prepend(container, "volumeMounts", std::slice::from_ref(&parts.mount));
        }
    }
    let init: Vec<Value> = parts.init_containers().cloned().collect();
    prepend(spec, "initContainers", &init);
    prepend(spec, "volumes", &parts.volumes);
    Some(())
}
