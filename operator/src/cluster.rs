//! Watches the API server and turns what it sees into events of the index.

use std::{collections::BTreeMap, fmt::Debug, future::ready, pin::pin, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod as KubePod, PodSpec};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use toolweir_crds::{
    Document, SIDECAR_CONTAINER, ToolPins, bounds,
    resource::{MCPClusterPolicy, MCPPolicy, MCPToolPins},
    select::Labels,
    sidecar::CAPTURE_CONTAINER,
};
use toolweir_engine::PolicyId;

use crate::{
    cluster_state::ClusterState,
    credentials::{AUDIENCE_TOKENS_VOLUME, CREDENTIALS_VOLUME, MOST_AUDIENCES, MountedCredentials},
    index::{ClusterEvent, Pod, PodInterception, PodKey, PolicyEntry},
    inject::{AGENT_CA_DIR, MIRROR, NamespaceInfo, PodKind, SkipReason},
    pins::{PinsEntry, PinsKey},
    watch::WatchFailures,
};

/// The most objects of a page of a list.
const PAGE: u32 = 50;
/// The most pins of a page: most of them are large.
const PINS_PAGE: u32 = 8;

/// Watches namespaces, pods, policies and pins for ever. A watch that fails is begun anew, with a pause that grows.
pub async fn watch(client: Client, state: Arc<ClusterState>, failures: WatchFailures) {
    let watches = Watches { state: &state, failures };
    tokio::join!(
        watches.follow(
            Api::<Namespace>::all(client.clone()),
            ("namespaces", PAGE),
            |namespace| ready(Some((namespace.name_any(), NamespaceInfo::new(labels(&namespace), namespace.annotations())))),
            ClusterEvent::Namespace,
            ClusterEvent::NamespaceGone,
            ClusterEvent::Namespaces,
        ),
        watches.follow(
            Api::<KubePod>::all(client.clone()),
            ("pods", PAGE),
            |found| ready(pod(&found)),
            ClusterEvent::Pod,
            ClusterEvent::PodGone,
            ClusterEvent::Pods
        ),
        watches.follow(
            Api::<MCPPolicy>::all(client.clone()),
            ("mcppolicies", PAGE),
            |policy: MCPPolicy| {
                let options = state.options.clone();
                state.compile(move || {
                    let document = Document::from(&policy);
                    let status = policy.status.clone().unwrap_or_default();
                    Some(entry(PolicyEntry::new(uid(&policy), generation(&policy), document, status, &options)))
                })
            },
            |id, entry| ClusterEvent::Policy(id, Box::new(entry)),
            ClusterEvent::PolicyGone,
            |all| ClusterEvent::Policies { cluster: false, all },
        ),
        watches.follow(
            Api::<MCPClusterPolicy>::all(client.clone()),
            ("mcpclusterpolicies", PAGE),
            |policy: MCPClusterPolicy| {
                let options = state.options.clone();
                state.compile(move || {
                    let document = Document::from(&policy);
                    let status = policy.status.clone().unwrap_or_default();
                    Some(entry(PolicyEntry::new(uid(&policy), generation(&policy), document, status, &options)))
                })
            },
            |id, entry| ClusterEvent::Policy(id, Box::new(entry)),
            ClusterEvent::PolicyGone,
            |all| ClusterEvent::Policies { cluster: true, all },
        ),
        watches.follow(
            Api::<MCPToolPins>::all(client),
            ("mcptoolpins", PINS_PAGE),
            |pins: MCPToolPins| ready(Some(pins_entry(&pins))),
            ClusterEvent::Pins,
            ClusterEvent::PinsGone,
            ClusterEvent::AllPins,
        ),
    );
}

/// The watches, with what all of them need.
struct Watches<'a> {
    state: &'a ClusterState,
    failures: WatchFailures,
}

impl Watches<'_> {
    /// Follows one kind of object. `read` returns what is kept of an object, or none for one that counts as gone. `there`, `gone`
    /// and `all` make the events. `page` is the most objects of a page.
    async fn follow<K, I, V, R>(
        &self,
        api: Api<K>,
        (resource, page): (&str, u32),
        read: impl Fn(K) -> R,
        there: impl Fn(I, V) -> ClusterEvent,
        gone: impl Fn(I) -> ClusterEvent,
        all: impl Fn(BTreeMap<I, V>) -> ClusterEvent,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        K::DynamicType: Default,
        I: Ord + FromMetadata,
        R: Future<Output = Option<(I, V)>>,
    {
        let mut listed = BTreeMap::new();
        // A page is held whole, and each object of it may be as large as etcd takes it.
        let config = watcher::Config::default().page_size(page);
        let mut events = pin!(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.extend(read(object).await),
                Ok(watcher::Event::InitDone) => self.state.apply(all(std::mem::take(&mut listed))),
                Ok(watcher::Event::Apply(object)) => {
                    let id = I::from_metadata(object.meta());
                    match read(object).await {
                        Some((id, value)) => self.state.apply(there(id, value)),
                        None => self.state.apply(gone(id)),
                    }
                }
                Ok(watcher::Event::Delete(object)) => self.state.apply(gone(I::from_metadata(object.meta()))),
                Err(error) => self.failures.report(resource, &error),
            }
        }
    }
}

/// A key of the index, read from the metadata of an object.
trait FromMetadata {
    fn from_metadata(meta: &kube::core::ObjectMeta) -> Self;
}

impl FromMetadata for String {
    fn from_metadata(meta: &kube::core::ObjectMeta) -> Self {
        meta.name.clone().unwrap_or_default()
    }
}

impl FromMetadata for PodKey {
    fn from_metadata(meta: &kube::core::ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl FromMetadata for PinsKey {
    fn from_metadata(meta: &kube::core::ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl FromMetadata for PolicyId {
    fn from_metadata(meta: &kube::core::ObjectMeta) -> Self {
        let namespace = meta.namespace.clone().unwrap_or_default();
        Self { cluster: namespace.is_empty(), namespace, name: meta.name.clone().unwrap_or_default() }
    }
}

fn labels(object: &impl ResourceExt) -> Labels {
    object.labels().clone()
}

fn uid(object: &impl ResourceExt) -> String {
    object.uid().unwrap_or_default()
}

fn generation(object: &impl ResourceExt) -> i64 {
    object.meta().generation.unwrap_or_default()
}

fn entry(entry: PolicyEntry) -> (PolicyId, PolicyEntry) {
    (entry.policy.id.clone(), entry)
}

fn pins_entry(pins: &MCPToolPins) -> (PinsKey, PinsEntry) {
    (PinsKey::from_metadata(&pins.metadata), PinsEntry::new(uid(pins), generation(pins), &ToolPins::from(pins)))
}

/// Returns what the index keeps of a pod; none for one that will never run again.
fn pod(pod: &KubePod) -> Option<(PodKey, Pod)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if phase == "Succeeded" || phase == "Failed" {
        return None;
    }
    let init = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let injected = init.is_some_and(|containers| containers.iter().any(|container| container.name == SIDECAR_CONTAINER));
    let ends = pod.metadata.deletion_timestamp.is_some();
    let unfit = pod.spec.as_ref().and_then(|spec| unfit(pod, spec));
    let credentials = pod.spec.as_ref().map(credentials).unwrap_or_default();
    let interception = pod.spec.as_ref().map(interception).unwrap_or_default();
    let kept = Pod { uid: uid(pod), labels: labels(pod), injected, unfit, ends, credentials, interception };
    Some((PodKey::from_metadata(&pod.metadata), kept))
}

/// Returns whether the sidecar of a pod sees the TLS of its agents, and can open it.
fn interception(spec: &PodSpec) -> PodInterception {
    let init = |name: &str| spec.init_containers.iter().flatten().find(|container| container.name == name);
    let Some((_, sidecar)) = init(CAPTURE_CONTAINER).zip(init(SIDECAR_CONTAINER)) else { return PodInterception::NotCaptured };
    let is_prepared = sidecar.args.iter().flatten().any(|arg| arg == AGENT_CA_DIR);
    if is_prepared { PodInterception::Prepared } else { PodInterception::Unprepared }
}

/// Returns what the sidecar of a pod has mounted for credentials of servers.
fn credentials(spec: &PodSpec) -> MountedCredentials {
    let sidecar = spec.init_containers.iter().flatten().find(|container| container.name == SIDECAR_CONTAINER);
    let mounts = sidecar.and_then(|container| container.volume_mounts.as_deref()).unwrap_or_default();
    let volume = |name: &str| {
        let is_mounted = mounts.iter().any(|mount| mount.name == name);
        spec.volumes.iter().flatten().find(|volume| is_mounted && volume.name == name)
    };
    let tokens = volume(AUDIENCE_TOKENS_VOLUME).and_then(|volume| volume.projected.as_ref()?.sources.as_deref());
    let audiences = tokens.into_iter().flatten().filter_map(|source| source.service_account_token.as_ref()?.audience.clone());
    // Whoever bypasses the webhook may write more than it does.
    let audiences = audiences.filter(|audience| audience.len() <= bounds::AUDIENCE).take(MOST_AUDIENCES).collect();
    MountedCredentials { secret: volume(CREDENTIALS_VOLUME).is_some_and(|volume| volume.secret.is_some()), audiences }
}

/// Returns why a pod can have no sidecar, if so.
fn unfit(pod: &KubePod, spec: &PodSpec) -> Option<SkipReason> {
    let is_windows = |name: Option<&String>| name.is_some_and(|name| name == "windows");
    let kind = PodKind {
        mirror: pod.annotations().contains_key(MIRROR),
        windows: is_windows(spec.os.as_ref().map(|os| &os.name))
            || is_windows(spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/os"))),
        host_network: spec.host_network == Some(true),
    };
    kind.skip_reason()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::OperatorConfig,
        credentials::{CREDENTIALS, TOKEN_AUDIENCES},
        inject::{InjectionContext, InjectionOutcome, inject},
    };

    fn read(object: Value) -> Pod {
        pod(&serde_json::from_value(object).unwrap()).unwrap().1
    }

    fn context(config: &OperatorConfig, intercepts: bool) -> InjectionContext<'_> {
        InjectionContext {
            config,
            namespace: "agents",
            namespace_info: None,
            operator_namespace: "toolweir-system",
            stream_url: "https://operator",
            intercepts,
            seed: 0,
            ca: "ca",
            version: "0",
        }
    }

    #[test]
    fn what_an_injected_pod_has_mounted_is_read_as_it_was_injected() {
        let config = OperatorConfig::default();
        let context = context(&config, false);
        for (annotations, secret, audiences) in [
            (json!({}), false, &[][..]),
            (json!({CREDENTIALS: "tokens"}), true, &[]),
            (json!({TOKEN_AUDIENCES: "mcp,https://a.example/"}), false, &["mcp", "https://a.example/"]),
            (json!({CREDENTIALS: "tokens", TOKEN_AUDIENCES: "mcp"}), true, &["mcp"]),
        ] {
            let plain =
                json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": [{"name": "agent"}]}});
            assert_eq!(read(plain.clone()).credentials, MountedCredentials::default());
            let InjectionOutcome::Injected { pod, .. } = inject(&plain, &context) else { panic!("not injected") };
            let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
            assert_eq!(read(pod).credentials, MountedCredentials { secret, audiences });
        }
    }

    #[test]
    fn whether_tls_can_be_opened_is_read_as_it_was_injected() {
        let config = OperatorConfig::read("capture: {method: Init}").unwrap();
        for (captured, intercepts, promised) in [
            ("disabled", true, PodInterception::NotCaptured),
            ("enabled", false, PodInterception::Unprepared),
            ("enabled", true, PodInterception::Prepared),
        ] {
            let context = context(&config, intercepts);
            let labels = json!({"toolweir.dev/capture": captured});
            let plain = json!({"metadata": {"name": "p", "labels": labels}, "spec": {"containers": [{"name": "agent"}]}});
            assert_eq!(read(plain.clone()).interception, PodInterception::NotCaptured);
            let InjectionOutcome::Injected { pod, .. } = inject(&plain, &context) else { panic!("not injected") };
            assert_eq!(read(pod).interception, promised, "{captured} {intercepts}");
        }
    }

    #[test]
    fn what_only_another_container_mounts_is_not_the_sidecars() {
        let volumes = json!([{"name": CREDENTIALS_VOLUME, "secret": {"secretName": "tokens"}}]);
        let mounts = json!([{"name": CREDENTIALS_VOLUME, "mountPath": "/x"}]);
        let spec = json!({
            "initContainers": [{"name": SIDECAR_CONTAINER}],
            "containers": [{"name": "agent", "volumeMounts": mounts}],
            "volumes": volumes,
        });
        assert_eq!(read(json!({"metadata": {"name": "p"}, "spec": spec})).credentials, MountedCredentials::default());
    }
}
