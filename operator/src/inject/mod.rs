//! Injection: a pod in, the same pod with a sidecar out. A plain function. docs/injection.md says what it adds and why.
//!
//! Pods stay [`Value`]s. Types of one version of Kubernetes would drop what a newer one adds.
//!
//! First everything that belongs to the sidecar is removed ([`strip`]), then it is added. So a pod that was injected before and
//! changed since, by another webhook or by its owner, comes out as it should.
//!
//! `skip` says which pods are not injected, `sidecar` makes the parts that are added, `patch` the JSON Patch
//! between two pods.

mod context;
mod credentials;
mod fields;
mod namespace_info;
mod opt_in;
mod patch;
mod sidecar;
mod skip;
mod workload;

use serde_json::Value;
use toolweir_crds::SIDECAR_CONTAINER;

pub use self::{
    context::InjectionContext,
    namespace_info::NamespaceInfo,
    opt_in::{INJECT_LABEL, OptIn, namespace_opted_in},
    patch::patch,
    sidecar::{
        CONFIG_PATH, CONFIG_VOLUME, MCP_CONFIG, MCP_CONFIG_ENV, SCRAPE, SCRAPE_ANNOTATIONS, STATE_VOLUME, TOKEN_VOLUME, URL,
        URL_ENV,
    },
    skip::{MIRROR, PodKind, SkipReason},
};
use self::{
    fields::{entry_object, list, name, object, prepend, retain, tidy},
    sidecar::InjectedParts,
};

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
    let parts = match InjectedParts::new(pod, context) {
        Ok(parts) => parts,
        Err(why) => return InjectionOutcome::Refused(why),
    };
    let mut injected = strip(pod);
    if injected.pointer("/spec/containers").is_none() {
        return InjectionOutcome::Refused(format!(
            "spec.containers: there is none but {SIDECAR_CONTAINER}, and that name is the sidecar's; give the agent's container another"
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

/// Returns the pod without anything that belongs to the sidecar or stands in its place. Empty lists are removed too.
pub fn strip(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = object(&mut pod, "metadata") {
        if let Some(annotations) = object(metadata, "annotations") {
            annotations.remove(INJECTED);
            if sidecar::is_scraped(annotations) {
                annotations.retain(|key, _| !SCRAPE_ANNOTATIONS.iter().any(|(own, _)| own == key));
            }
        }
        tidy(metadata, "annotations");
    }
    let Some(spec) = object(&mut pod, "spec") else { return pod };
    for kind in ["initContainers", "containers"] {
        retain(spec, kind, |container| name(container) != Some(SIDECAR_CONTAINER));
        for container in list(spec, kind) {
            let Some(container) = container.as_object_mut() else { continue };
            retain(container, "env", |env| !name(env).is_some_and(sidecar::is_injected_env));
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
        annotations.extend(SCRAPE_ANNOTATIONS.map(|(key, value)| (key.to_owned(), value.into())));
    }
    let spec = entry_object(pod, "spec")?;
    for kind in ["initContainers", "containers"] {
        for container in list(spec, kind) {
            let Some(container) = container.as_object_mut() else { continue };
            prepend(container, "env", &parts.env);
            prepend(container, "volumeMounts", std::slice::from_ref(&parts.mount));
        }
    }
    prepend(spec, "initContainers", std::slice::from_ref(&parts.container));
    prepend(spec, "volumes", &parts.volumes);
    Some(())
}
