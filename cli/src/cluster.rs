//! The cluster: connection flags, lists of objects, and errors of the API server.

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
use tokio::sync::OnceCell;
use toolweir_crds::{
    SIDECAR_CONTAINER,
    select::Labels,
    sidecar::{ADMIN_PORT, METRICS_PORT, PROXY_PORT},
};

/// Number of objects in one page of a list.
const PAGE: u32 = 500;

/// The connection flags of `kubectl`. `kubectl` does not pass flags before a plugin's name to the plugin, so it has its own.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster (only for what needs one, such as pods)")]
pub struct ClusterFlags {
    /// Path to the kubeconfig [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig [default: that of the context]
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig [default: that of the context]
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub act_as: Option<String>,
    /// Group to impersonate; can be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub act_as_group: Vec<String>,
}

impl ClusterFlags {
    /// Creates a client for the cluster.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or does not contain the context, cluster or user.
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

/// The cluster of the connection flags. It is connected to when it is first needed, so that commands that need none read no kubeconfig.
#[derive(Clone, Default)]
pub struct LazyClient {
    flags: ClusterFlags,
    connected: OnceCell<Client>,
}

impl LazyClient {
    /// Takes the connection flags.
    pub fn new(flags: ClusterFlags) -> Self {
        Self { flags, connected: OnceCell::new() }
    }

    /// Returns the client.
    ///
    /// # Errors
    /// As [`ClusterFlags::client`].
    pub async fn get(&self) -> anyhow::Result<&Client> {
        self.connected.get_or_try_init(|| self.flags.client()).await
    }
}

impl From<Client> for LazyClient {
    fn from(client: Client) -> Self {
        Self { flags: ClusterFlags::default(), connected: OnceCell::new_with(Some(client)) }
    }
}

/// The flags that choose one namespace, or all.
#[derive(Args, Clone, Debug, Default)]
pub struct NamespaceFlags {
    /// Namespace [default: that of the context]
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

impl NamespaceFlags {
    /// Returns what they choose.
    pub fn scope(self, client: &Client) -> NamespaceScope {
        if self.all_namespaces {
            return NamespaceScope::All;
        }
        NamespaceScope::Namespace(self.namespace.unwrap_or_else(|| client.default_namespace().to_owned()))
    }
}

/// One namespace, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceScope {
    /// All namespaces.
    All,
    /// One namespace.
    Namespace(String),
}

impl NamespaceScope {
    /// Returns the namespace, or `None` for all.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Namespace(name) => Some(name),
        }
    }

    /// Returns the API of the pods in it.
    pub fn pods(&self, client: &Client) -> Api<KubePod> {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(name) => Api::namespaced(client.clone(), name),
        }
    }
}

/// A request to the API server, as the right that it needs: a verb on a resource.
#[derive(Clone, Copy, Debug)]
pub struct ApiAccess<'a> {
    /// `get`, `list`, `watch`, `create` or `patch`.
    pub verb: &'a str,
    /// The resource, such as `pods/log`; outside the core group with its group, such as `mcppolicies.toolweir.dev`.
    pub resource: &'a str,
    /// The namespace; `None` for the whole cluster.
    pub namespace: Option<&'a str>,
}

impl ApiAccess<'_> {
    fn place(&self) -> String {
        match self.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in the whole cluster".to_owned(),
        }
    }

    /// Converts an error of the request to one line that says what is wrong and what to do.
    pub fn failed(&self, error: &kube::Error) -> anyhow::Error {
        let Self { verb, resource, .. } = self;
        let place = self.place();
        match error {
            kube::Error::Api(status) => match status.code {
                401 => {
                    anyhow!("the API server does not accept your credentials; log in, or choose a user with --user or --context")
                }
                403 => {
                    let verb = refused_verb(&status.message).unwrap_or(verb);
                    let narrower =
                        if self.namespace.is_none() { "; with -n NAMESPACE you need it for that namespace only" } else { "" };
                    anyhow!(
                        "you may not {verb} {resource} {place}: the verb `{verb}` on `{resource}` is not granted to you \
                         (docs/kubectl-plugin.md has a role that grants it{narrower}). The API server says: {}",
                        status.message
                    )
                }
                404 if resource.ends_with(".toolweir.dev") => anyhow!(
                    "this cluster has no {resource}; install Toolweir there (docs/install.md), or choose another with --context"
                ),
                code => anyhow!("cannot {verb} {resource} {place}: {} ({code})", status.message),
            },
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => {
                anyhow!("cannot {verb} {resource} {place}: the API server responded {code} instead of opening a WebSocket")
            }
            kube::Error::SerdeError(why) => anyhow!("cannot {verb} {resource} {place}: the response cannot be parsed: {why}"),
            other => {
                anyhow!("cannot {verb} {resource} {place}: {}; check the cluster with --context and --kubeconfig", chain(other))
            }
        }
    }
}

/// Returns the verb that the API server refused. One request can need several verbs.
fn refused_verb(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once(" cannot ")?;
    rest.split_once(" resource ").map(|(verb, _)| verb).filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase()))
}

/// Returns true if a right is missing.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Returns true if the object does not exist.
pub fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Formats an error with its causes in one line. Causes that the error already contains are not repeated.
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
/// The API server's error, with what to do.
pub async fn list<K>(api: &Api<K>, access: ApiAccess<'_>) -> anyhow::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let page = api.list(&params).await.map_err(|error| access.failed(&error))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The relevant parts of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its namespace and name.
    pub key: NamespacedName,
    /// Its uid, which distinguishes it from a later pod with the same name.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Its sidecar, if it has one.
    pub sidecar: Option<SidecarState>,
    /// The port at which its sidecar takes the agent's calls.
    pub proxy_port: u16,
    /// The port of its sidecar's administration.
    pub admin_port: u16,
    /// The port of its sidecar's metrics.
    pub metrics_port: u16,
    /// True if all its containers have ended for good.
    pub ended: bool,
    /// True if it is being deleted.
    pub terminating: bool,
}

/// The state of a pod's sidecar container, as the kubelet reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarState {
    /// True if it runs.
    pub running: bool,
    /// True if it has run at some time, so that there is a log.
    pub started: bool,
    /// True if it is ready, that is, a policy is in force.
    pub ready: bool,
    /// The reason why it does not run, if the kubelet reports one.
    pub waiting_reason: Option<String>,
}

/// Returns the port of an address that arguments name, if they do.
fn listen_port(args: &[String], flag: &str) -> Option<u16> {
    let (_, port) = args.iter().skip_while(|arg| *arg != flag).nth(1)?.rsplit_once(':')?;
    port.parse().ok()
}

impl From<&KubePod> for PodInfo {
    fn from(pod: &KubePod) -> Self {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        let sidecar = containers.into_iter().find(|container| container.name == SIDECAR_CONTAINER);
        let args = sidecar.and_then(|sidecar| sidecar.args.as_deref()).unwrap_or_default();
        let status = pod.status.as_ref();
        let statuses = status
            .into_iter()
            .flat_map(|status| status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten()));
        let seen = statuses.into_iter().find(|status| status.name == SIDECAR_CONTAINER);
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            key: NamespacedName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() },
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().clone(),
            sidecar: sidecar.map(|_| seen.map(SidecarState::from).unwrap_or_default()),
            proxy_port: listen_port(args, "--listen").unwrap_or(PROXY_PORT),
            admin_port: listen_port(args, "--admin-listen").unwrap_or(ADMIN_PORT),
            metrics_port: listen_port(args, "--metrics-listen").unwrap_or(METRICS_PORT),
            ended: phase == "Succeeded" || phase == "Failed",
            terminating: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl From<&ContainerStatus> for SidecarState {
    fn from(status: &ContainerStatus) -> Self {
        let state = status.state.as_ref();
        let running = state.is_some_and(|state| state.running.is_some());
        let waiting_reason = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.clone());
        let ended = state.is_some_and(|state| state.terminated.is_some());
        Self { running, started: running || ended || status.restart_count > 0, ready: status.ready, waiting_reason }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    const LIST: ApiAccess<'_> = ApiAccess { verb: "list", resource: "mcppolicies.toolweir.dev", namespace: Some("agents") };

    fn refused(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status { code, message: message.to_owned(), ..Status::default() }.boxed())
    }

    #[test]
    fn ports_are_those_of_the_arguments_of_the_sidecar() {
        let of = |args: serde_json::Value| {
            let containers = json!([{"name": SIDECAR_CONTAINER, "args": args}]);
            let pod = json!({"metadata": {"name": "p"}, "spec": {"initContainers": containers, "containers": []}});
            let pod = PodInfo::from(&serde_json::from_value::<KubePod>(pod).unwrap());
            (pod.proxy_port, pod.admin_port, pod.metrics_port)
        };
        assert_eq!(of(json!(["run", "--log-level", "info"])), (15001, 15000, 15020));
        let args =
            ["run", "--admin-listen", "127.0.0.1:16000", "--metrics-listen", "0.0.0.0:16020", "--listen", "127.0.0.1:16001"];
        assert_eq!(of(json!(args)), (16001, 16000, 16020));
        assert_eq!(of(json!(["run", "--admin-listen"])), (15001, 15000, 15020));
    }

    #[test]
    fn a_refusal_says_which_right_is_missing() {
        let said = LIST.failed(&refused(403, "no")).to_string();
        assert_eq!(
            said,
            "you may not list mcppolicies.toolweir.dev in namespace agents: the verb `list` on \
             `mcppolicies.toolweir.dev` is not granted to you (docs/kubectl-plugin.md has a role that grants it). The API server says: no"
        );
        let said = ApiAccess { namespace: None, ..LIST }.failed(&refused(403, "no")).to_string();
        assert!(said.contains("in the whole cluster") && said.contains("-n NAMESPACE"), "{said}");
        let message = "pods \"p\" is forbidden: User \"u\" cannot create resource \"pods/portforward\" in API group \"\"";
        let forward = ApiAccess { verb: "get", resource: "pods/portforward", namespace: Some("agents") };
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
            PodInfo::from(
                &serde_json::from_value::<KubePod>(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap(),
            )
        };
        let without = pod(json!({"containers": [{"name": "agent"}]}), json!({"phase": "Running"}));
        assert_eq!((without.key.to_string().as_str(), &without.sidecar, without.ended), ("n/p", &None, false));
        let spec = json!({"containers": [{"name": "agent"}], "initContainers": [{"name": "toolweir-sidecar"}]});
        let image = |state: serde_json::Value, ready: bool, restarts: i32| {
            json!({"initContainerStatuses": [
                {"name": "toolweir-sidecar", "image": "", "imageID": "", "ready": ready, "restartCount": restarts, "state": state},
            ]})
        };
        let sidecar = |status| pod(spec.clone(), status).sidecar.unwrap();
        assert_eq!(sidecar(json!({})), SidecarState::default());
        let running = SidecarState { running: true, started: true, ready: true, waiting_reason: None };
        assert_eq!(sidecar(image(json!({"running": {}}), true, 0)), running);
        let waits = Some("ImagePullBackOff".to_owned());
        assert_eq!(
            sidecar(image(json!({"waiting": {"reason": "ImagePullBackOff"}}), false, 0)),
            SidecarState { waiting_reason: waits.clone(), ..SidecarState::default() }
        );
        assert!(sidecar(image(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false, 3)).started);
        assert!(pod(spec.clone(), json!({"phase": "Succeeded"})).ended);
    }
}
