//! What a pod becomes: a pod in, the same pod with a sidecar out. A plain function; docs/injection.md says what it adds
//! and why.
//!
//! Pods stay [`Value`]s. Types of one version of Kubernetes would drop what a newer one adds.
//!
//! Everything that is the sidecar's is taken off first ([`strip`]) and put on anew, so that a pod that was injected before
//! and changed since, by another webhook or by whoever made it, ends as it should.

mod patch;
mod quantity;
mod sidecar;
mod skip;
mod workload;

use serde_json::{Map, Value};

use self::sidecar::Ours;
pub use self::{
    patch::patch,
    quantity::{Quantity, QuantityError},
    sidecar::{
        CONFIG_PATH, CONFIG_VOLUME, MCP_CONFIG, MCP_CONFIG_ENV, METRICS_PORT, SCRAPE, SCRAPE_ANNOTATIONS, STATE_VOLUME,
        TOKEN_AUDIENCE, TOKEN_VOLUME, URL, URL_ENV,
    },
    skip::Skip,
};
use crate::{SIDECAR_CONTAINER, config::Config, select::Labels};

/// The label of namespaces and pods that says whether to inject: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "toolweir.dev/inject";
/// The annotation of a pod that a kubelet runs from a file.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotation of an injected pod: the version of the operator that did it.
pub const INJECTED: &str = "toolweir.dev/injected";

/// What the injection depends on besides the pod.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The labels of that namespace. None where they are not known: then the API server, which chose to ask, is believed.
    pub namespace_labels: Option<&'a Labels>,
    /// The operator's own namespace.
    pub operator_namespace: &'a str,
    /// Where sidecars reach the operator, such as `https://toolweir-operator.toolweir-system.svc:8444`.
    pub stream_url: &'a str,
    /// The certificates of the operator's CAs, in PEM.
    pub ca: &'a str,
    /// The operator's version.
    pub version: &'a str,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is changed.
    Injected {
        /// The pod with a sidecar.
        pod: Value,
        /// What whoever makes the pod should know, a line each.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Skipped(Skip),
    /// It must not be created as it is: why, and what to write instead.
    Refused(String),
}

/// Gives a pod a sidecar, or says why not.
pub fn inject(pod: &Value, context: &Context<'_>) -> Outcome {
    if pod.pointer("/spec/containers").is_none_or(|containers| !containers.is_array()) {
        return Outcome::Refused("spec.containers: is no list of containers; nothing that runs can be governed".to_owned());
    }
    if let Some(skip) = skip::skip(pod, context) {
        return Outcome::Skipped(skip);
    }
    let ours = match Ours::new(pod, context) {
        Ok(ours) => ours,
        Err(why) => return Outcome::Refused(why),
    };
    let mut injected = strip(pod);
    if injected.pointer("/spec/containers").is_none() {
        return Outcome::Refused(format!(
            "spec.containers: there is none but {SIDECAR_CONTAINER}, and that name is the sidecar's; give the agent's container another"
        ));
    }
    if add(&mut injected, &ours).is_none() {
        return Outcome::Refused("this is no pod".to_owned());
    }
    if injected == *pod {
        return Outcome::Skipped(Skip::AlreadyInjected);
    }
    Outcome::Injected { warnings: sidecar::warnings(pod, &ours), pod: injected }
}

/// The pod without anything that is the sidecar's, or is in its place. Empty lists go too, since they say nothing.
pub fn strip(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = object(&mut pod, "metadata") {
        if let Some(annotations) = object(metadata, "annotations") {
            annotations.remove(INJECTED);
            if sidecar::is_scraped(annotations) {
                annotations.retain(|key, _| !SCRAPE_ANNOTATIONS.iter().any(|(ours, _)| ours == key));
            }
        }
        tidy(metadata, "annotations");
    }
    let Some(spec) = object(&mut pod, "spec") else { return pod };
    for kind in ["initContainers", "containers"] {
        retain(spec, kind, |container| name(container) != Some(SIDECAR_CONTAINER));
        for container in list(spec, kind) {
            let Some(container) = container.as_object_mut() else { continue };
            retain(container, "env", |env| !name(env).is_some_and(sidecar::is_our_env));
            retain(container, "volumeMounts", |mount| !sidecar::is_in_place_of_ours(mount));
        }
    }
    retain(spec, "volumes", |volume| !name(volume).is_some_and(sidecar::is_our_volume));
    pod
}

/// Puts on what [`strip`] took off. Everything comes first in its list: what others append to it later stays behind, and
/// their environment can refer to ours (`$(TOOLWEIR_URL)`).
///
/// Nothing where the pod is no object.
fn add(pod: &mut Value, ours: &Ours) -> Option<()> {
    let pod = pod.as_object_mut()?;
    let metadata = entry_object(pod, "metadata")?;
    let annotations = entry_object(metadata, "annotations")?;
    annotations.insert(INJECTED.to_owned(), ours.version.clone().into());
    if ours.scrape && !annotations.contains_key(SCRAPE) {
        annotations.extend(SCRAPE_ANNOTATIONS.map(|(key, value)| (key.to_owned(), value.into())));
    }
    let spec = entry_object(pod, "spec")?;
    for kind in ["initContainers", "containers"] {
        for container in list(spec, kind) {
            let Some(container) = container.as_object_mut() else { continue };
            prepend(container, "env", &ours.env);
            prepend(container, "volumeMounts", std::slice::from_ref(&ours.mount));
        }
    }
    prepend(spec, "initContainers", std::slice::from_ref(&ours.container));
    prepend(spec, "volumes", &ours.volumes);
    Some(())
}

fn string(value: &Value) -> Option<&str> {
    value.as_str()
}

/// The name of a container, volume, mount or variable.
fn name(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}

/// The items of a list that may not be there.
fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn list<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut [Value] {
    object.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

trait Fields {
    fn field(&mut self, name: &str) -> Option<&mut Value>;
}

impl Fields for Value {
    fn field(&mut self, name: &str) -> Option<&mut Value> {
        self.get_mut(name)
    }
}

impl Fields for Map<String, Value> {
    fn field(&mut self, name: &str) -> Option<&mut Value> {
        self.get_mut(name)
    }
}

fn object<'a>(of: &'a mut impl Fields, field: &str) -> Option<&'a mut Map<String, Value>> {
    of.field(field)?.as_object_mut()
}

/// The object at a field, made where there is none: always one.
fn entry_object<'a>(of: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    if !of.get(field).is_some_and(Value::is_object) {
        of.insert(field.to_owned(), Value::Object(Map::new()));
    }
    of.get_mut(field)?.as_object_mut()
}

fn retain(object: &mut Map<String, Value>, field: &str, keep: impl Fn(&Value) -> bool) {
    if let Some(list) = object.get_mut(field).and_then(Value::as_array_mut) {
        list.retain(keep);
    }
    tidy(object, field);
}

/// Removes a field that says nothing.
fn tidy(object: &mut Map<String, Value>, field: &str) {
    let empty = object.get(field).is_some_and(|value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    });
    if empty {
        object.remove(field);
    }
}

fn prepend(object: &mut Map<String, Value>, field: &str, items: &[Value]) {
    let mut all = items.to_vec();
    if let Some(Value::Array(list)) = object.remove(field) {
        all.extend(list);
    }
    object.insert(field.to_owned(), Value::Array(all));
}
