//! The cluster: which one and as whom, what is listed of it, and what is said when it refuses.

use std::{fmt::Debug, path::PathBuf};

use anyhow::anyhow;
use clap::Args;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod as KubePod};
use kube::{
    Api, Client, Config, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use toolweir_crds::{SIDECAR_CONTAINER, select::Labels};

/// How many objects are listed at once.
const PAGE: u32 = 500;

/// Which cluster, and as whom: the flags of `kubectl` that go before a plugin's name are not passed to it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// The kubeconfig, else that of `KUBECONFIG` or `~/.kube/config`.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, else its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The cluster of the kubeconfig, else that of the context.
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The user of the kubeconfig, else that of the context.
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// The user to act as.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub act_as: Option<String>,
    /// A group to act as; may be given several times.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub act_as_group: Vec<String>,
}

impl Connection {
    /// A client of that cluster.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or does not say what is asked for.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let Self { kubeconfig, context, cluster, user, act_as, act_as_group } = self;
        let options = KubeConfigOptions { context: context.clone(), cluster: cluster.clone(), user: user.clone() };
        let named = context.is_some() || cluster.is_some() || user.is_some();
        let found = match kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await.map_err(|error| chain(&error)),
                Err(error) => Err(chain(&error)),
            },
            None if named => Config::from_kubeconfig(&options).await.map_err(|error| chain(&error)),
            None => Config::infer().await.map_err(|error| chain(&error)),
        };
        let mut config =
            found.map_err(|why| anyhow!("{why}; choose a cluster with --kubeconfig FILE, --context NAME or KUBECONFIG"))?;
        if let Some(name) = act_as {
            config.auth_info.impersonate = Some(name.clone());
        }
        if !act_as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(act_as_group.clone());
        }
        Client::try_from(config).map_err(|error| anyhow!("{}", chain(&error)))
    }
}

/// The pods of one namespace, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of all namespaces.
    All,
    /// Of one.
    Namespace(String),
}

impl Scope {
    /// Its namespace, if it is one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Namespace(name) => Some(name),
        }
    }

    /// The pods in it.
    pub fn pods(&self, client: &Client) -> Api<KubePod> {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(name) => Api::namespaced(client.clone(), name),
        }
    }
}

/// What was asked of the API server: a verb on a resource, which is also the right that it takes.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `get`, `list`, `watch` or `create`.
    pub verb: &'a str,
    /// The resource, such as `pods/log`; of another group than the core's with its group: `mcppolicies.toolweir.dev`.
    pub resource: &'a str,
    /// The namespace; nothing for the whole cluster.
    pub namespace: Option<&'a str>,
}

impl Asked<'_> {
    fn place(&self) -> String {
        match self.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in the whole cluster".to_owned(),
        }
    }

    /// What went wrong and what helps, in one line.
    pub fn failed(&self, error: &kube::Error) -> anyhow::Error {
        let Self { verb, resource, .. } = self;
        let place = self.place();
        match error {
            kube::Error::Api(status) => match status.code {
                401 => anyhow!("the API server does not know who you are; log in, or choose a user with --user or --context"),
                403 => {
                    let verb = refused_verb(&status.message).unwrap_or(verb);
                    let narrower = if self.namespace.is_none() { ", and -n NAMESPACE asks for one namespace only" } else { "" };
                    anyhow!(
                        "you may not {verb} {resource} {place}; the right that is missing is the verb `{verb}` on `{resource}` \
                         (docs/kubectl-plugin.md has a role to apply{narrower}). The API server says: {}",
                        status.message
                    )
                }
                404 if resource.ends_with(".toolweir.dev") => anyhow!(
                    "this cluster has no {resource}; install Toolweir there (docs/install.md), or choose another with --context"
                ),
                code => anyhow!("cannot {verb} {resource} {place}: {} ({code})", status.message),
            },
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => {
                anyhow!("cannot {verb} {resource} {place}: the API server answers {code} and opens no WebSocket")
            }
            kube::Error::SerdeError(why) => anyhow!("cannot {verb} {resource} {place}: the answer cannot be read: {why}"),
            other => anyhow!(
                "cannot {verb} {resource} {place}: {}; is the cluster that --context and --kubeconfig name the right one?",
                chain(other)
            ),
        }
    }
}

/// The verb that the API server names: one request may take more than one.
fn refused_verb(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once(" cannot ")?;
    rest.split_once(" resource ").map(|(verb, _)| verb).filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase()))
}

/// Whether an error says that a right is missing.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Whether an error says that there is no such object.
pub fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An error with its causes, in one line; what an error repeats of its cause is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text.replace('\n', " ")
}

/// Lists all objects, page by page.
///
/// # Errors
/// The API server's, with what helps.
pub async fn list<K>(api: &Api<K>, asked: Asked<'_>) -> anyhow::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let page = api.list(&params).await.map_err(|error| asked.failed(&error))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub key: PodKey,
    /// Its uid: a pod of the same name that comes later is another one.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Its sidecar, if it has one.
    pub sidecar: Option<Sidecar>,
    /// Whether it will never run again.
    pub over: bool,
    /// Whether it is being deleted.
    pub ends: bool,
}

/// A pod's sidecar, as the kubelet sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sidecar {
    /// Whether it runs.
    pub running: bool,
    /// Whether it ran at some time, so that there is a log.
    pub started: bool,
    /// Whether it is ready: a policy is in force.
    pub ready: bool,
    /// Why it does not run, if the kubelet says so.
    pub waits: Option<String>,
}

impl From<&KubePod> for Pod {
    fn from(pod: &KubePod) -> Self {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        let has = containers.into_iter().any(|container| container.name == SIDECAR_CONTAINER);
        let status = pod.status.as_ref();
        let statuses = status
            .into_iter()
            .flat_map(|status| status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten()));
        let seen = statuses.into_iter().find(|status| status.name == SIDECAR_CONTAINER);
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            key: PodKey { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() },
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().clone(),
            sidecar: has.then(|| seen.map(Sidecar::from).unwrap_or_default()),
            over: phase == "Succeeded" || phase == "Failed",
            ends: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl From<&ContainerStatus> for Sidecar {
    fn from(status: &ContainerStatus) -> Self {
        let state = status.state.as_ref();
        let running = state.is_some_and(|state| state.running.is_some());
        let waits = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.clone());
        let ended = state.is_some_and(|state| state.terminated.is_some());
        Self { running, started: running || ended || status.restart_count > 0, ready: status.ready, waits }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    const LIST: Asked<'_> = Asked { verb: "list", resource: "mcppolicies.toolweir.dev", namespace: Some("agents") };

    fn refused(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status { code, message: message.to_owned(), ..Status::default() }.boxed())
    }

    #[test]
    fn a_refusal_says_which_right_is_missing() {
        let said = LIST.failed(&refused(403, "no")).to_string();
        assert_eq!(
            said,
            "you may not list mcppolicies.toolweir.dev in namespace agents; the right that is missing is the verb `list` on \
             `mcppolicies.toolweir.dev` (docs/kubectl-plugin.md has a role to apply). The API server says: no"
        );
        let said = Asked { namespace: None, ..LIST }.failed(&refused(403, "no")).to_string();
        assert!(said.contains("in the whole cluster") && said.contains("-n NAMESPACE"), "{said}");
        let message = "pods \"p\" is forbidden: User \"u\" cannot create resource \"pods/portforward\" in API group \"\"";
        let forward = Asked { verb: "get", resource: "pods/portforward", namespace: Some("agents") };
        assert!(forward.failed(&refused(403, message)).to_string().contains("the verb `create` on `pods/portforward`"));
        assert!(LIST.failed(&refused(404, "404 page not found")).to_string().contains("install Toolweir"));
        assert!(LIST.failed(&refused(401, "Unauthorized")).to_string().contains("log in"));
        assert_eq!(
            LIST.failed(&refused(500, "no")).to_string(),
            "cannot list mcppolicies.toolweir.dev in namespace agents: no (500)"
        );
    }

    #[test]
    fn what_matters_of_a_pod_is_read() {
        let pod = |spec: serde_json::Value, status: serde_json::Value| {
            let metadata = json!({"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "a"}});
            Pod::from(&serde_json::from_value::<KubePod>(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
        };
        let without = pod(json!({"containers": [{"name": "agent"}]}), json!({"phase": "Running"}));
        assert_eq!((without.key.to_string().as_str(), &without.sidecar, without.over), ("n/p", &None, false));
        let spec = json!({"containers": [{"name": "agent"}], "initContainers": [{"name": "toolweir-sidecar"}]});
        let image = |state: serde_json::Value, ready: bool, restarts: i32| {
            json!({"initContainerStatuses": [
                {"name": "toolweir-sidecar", "image": "", "imageID": "", "ready": ready, "restartCount": restarts, "state": state},
            ]})
        };
        let sidecar = |status| pod(spec.clone(), status).sidecar.unwrap();
        assert_eq!(sidecar(json!({})), Sidecar::default());
        let running = Sidecar { running: true, started: true, ready: true, waits: None };
        assert_eq!(sidecar(image(json!({"running": {}}), true, 0)), running);
        let waits = Some("ImagePullBackOff".to_owned());
        assert_eq!(
            sidecar(image(json!({"waiting": {"reason": "ImagePullBackOff"}}), false, 0)),
            Sidecar { waits: waits.clone(), ..Sidecar::default() }
        );
        assert!(sidecar(image(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false, 3)).started);
        assert!(pod(spec.clone(), json!({"phase": "Succeeded"})).over);
    }
}
