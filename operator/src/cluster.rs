//! The watches on the API server, turned into events of the index.

use std::{collections::BTreeMap, fmt::Debug, future::ready, pin::pin, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod as KubePod, PodSpec};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use toolweir_crds::{
    Document,
    resource::{MCPClusterPolicy, MCPPolicy},
};
use toolweir_engine::PolicyId;

use crate::{
    SIDECAR_CONTAINER,
    index::{Entry, Event, Pod, PodKey},
    inject::{MIRROR, Skip},
    select::Labels,
    world::World,
};

/// How many objects are asked for at once.
const PAGE: u32 = 50;

/// Watches namespaces, pods and policies for ever. A watch that fails is begun anew, with a pause that grows.
pub async fn watch(client: Client, world: Arc<World>) {
    tokio::join!(
        follow(
            Api::<Namespace>::all(client.clone()),
            "namespaces",
            &world,
            |namespace| ready(Some((namespace.name_any(), labels(&namespace)))),
            Event::Namespace,
            Event::NamespaceGone,
            Event::Namespaces,
        ),
        follow(
            Api::<KubePod>::all(client.clone()),
            "pods",
            &world,
            |found| ready(pod(&found)),
            Event::Pod,
            Event::PodGone,
            Event::Pods
        ),
        follow(
            Api::<MCPPolicy>::all(client.clone()),
            "mcppolicies",
            &world,
            |policy: MCPPolicy| {
                let options = world.options.clone();
                world.compile(move || {
                    let document = Document::from(&policy);
                    let status = policy.status.clone().unwrap_or_default();
                    Some(entry(Entry::new(uid(&policy), generation(&policy), document, status, &options)))
                })
            },
            |id, entry| Event::Policy(id, Box::new(entry)),
            Event::PolicyGone,
            |all| Event::Policies { cluster: false, all },
        ),
        follow(
            Api::<MCPClusterPolicy>::all(client),
            "mcpclusterpolicies",
            &world,
            |policy: MCPClusterPolicy| {
                let options = world.options.clone();
                world.compile(move || {
                    let document = Document::from(&policy);
                    let status = policy.status.clone().unwrap_or_default();
                    Some(entry(Entry::new(uid(&policy), generation(&policy), document, status, &options)))
                })
            },
            |id, entry| Event::Policy(id, Box::new(entry)),
            Event::PolicyGone,
            |all| Event::Policies { cluster: true, all },
        ),
    );
}

/// Follows one kind of object. `read` gives what matters of one, or nothing for one that counts as gone.
async fn follow<K, I, V, R>(
    api: Api<K>,
    resource: &str,
    world: &World,
    read: impl Fn(K) -> R,
    there: impl Fn(I, V) -> Event,
    gone: impl Fn(I) -> Event,
    all: impl Fn(BTreeMap<I, V>) -> Event,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    I: Ord + Named,
    R: Future<Output = Option<(I, V)>>,
{
    let mut listed = BTreeMap::new();
    // A page is held whole, and each object of it may be as large as etcd takes it.
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.extend(read(object).await),
            Ok(watcher::Event::InitDone) => world.apply(all(std::mem::take(&mut listed))),
            Ok(watcher::Event::Apply(object)) => {
                let id = I::of(object.meta());
                match read(object).await {
                    Some((id, value)) => world.apply(there(id, value)),
                    None => world.apply(gone(id)),
                }
            }
            Ok(watcher::Event::Delete(object)) => world.apply(gone(I::of(object.meta()))),
            Err(error) => {
                world.metrics.watch_failures.with_label_values(&[resource]).inc();
                tracing::warn!(%error, resource, "watch failed; it is begun anew");
            }
        }
    }
}

/// A key of the index that the metadata of an object gives.
trait Named {
    fn of(meta: &kube::core::ObjectMeta) -> Self;
}

impl Named for String {
    fn of(meta: &kube::core::ObjectMeta) -> Self {
        meta.name.clone().unwrap_or_default()
    }
}

impl Named for PodKey {
    fn of(meta: &kube::core::ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl Named for PolicyId {
    fn of(meta: &kube::core::ObjectMeta) -> Self {
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

fn entry(entry: Entry) -> (PolicyId, Entry) {
    (entry.policy.id.clone(), entry)
}

/// What matters of a pod; nothing of one that will never run again.
fn pod(pod: &KubePod) -> Option<(PodKey, Pod)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if phase == "Succeeded" || phase == "Failed" {
        return None;
    }
    let init = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let injected = init.is_some_and(|containers| containers.iter().any(|container| container.name == SIDECAR_CONTAINER));
    let ends = pod.metadata.deletion_timestamp.is_some();
    let unfit = pod.spec.as_ref().and_then(|spec| unfit(pod, spec));
    Some((PodKey::of(&pod.metadata), Pod { uid: uid(pod), labels: labels(pod), injected, unfit, ends }))
}

/// Why a pod can have no sidecar, as the webhook says it too.
fn unfit(pod: &KubePod, spec: &PodSpec) -> Option<Skip> {
    let windows = |name: Option<&String>| name.is_some_and(|name| name == "windows");
    if pod.annotations().contains_key(MIRROR) {
        Some(Skip::MirrorPod)
    } else if windows(spec.os.as_ref().map(|os| &os.name))
        || windows(spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/os")))
    {
        Some(Skip::Windows)
    } else {
        (spec.host_network == Some(true)).then_some(Skip::HostNetwork)
    }
}
