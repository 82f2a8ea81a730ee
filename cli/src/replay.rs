//! `kubectl toolweir replay`: what policies in files would have decided on the calls in the sidecars' logs.

use std::{cell::RefCell, collections::BTreeSet, io::Write, pin::Pin, time::Duration};

use anyhow::bail;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod as KubePod};
use kube::{Api, Client, ResourceExt, api::LogParams};
use toolweir_crds::{SIDECAR_CONTAINER, select::Labels};
use toolweir_engine::{CompileOptions, Memory, Problem, Severity};
use toolweir_replay::{LogId, Replay, ReplayReport};

use crate::{
    OutputFormat,
    cluster::{ApiAccess, NamespaceScope, NamespacedName, PodInfo, chain, is_forbidden, is_missing, list},
    denials::{has_log, next_line, whole_seconds},
    replay_policies::{NewPolicies, PoliciesToBe},
};

/// Number of logs that are read at once.
const AT_ONCE: usize = 8;

/// What to replay, and how to show it.
#[derive(Clone, Debug)]
pub struct ReplayQuery {
    /// The namespace of the pods.
    pub namespace: String,
    /// Only this pod.
    pub pod: Option<String>,
    /// How far to look back.
    pub since: Duration,
    /// The number of examples of each change.
    pub examples: usize,
    /// The output format.
    pub form: OutputFormat,
}

/// A log of a pod's sidecar.
struct SidecarLog {
    pod: NamespacedName,
    id: LogId,
    /// True if it is that of the run before the last restart.
    previous: bool,
}

/// Writes what the policies of a namespace, with new ones in their place, would decide on the calls in the logs of their pods.
/// `notes` gets a note about everything that could not be read.
///
/// # Errors
/// Policies or pods cannot be listed, no pod has calls to replay, a right is missing, or the output cannot be written.
pub async fn replay(
    client: &Client,
    new: NewPolicies,
    query: &ReplayQuery,
    mut out: impl Write,
    mut notes: impl Write,
) -> anyhow::Result<()> {
    for warning in &new.warnings {
        writeln!(notes, "warning: {warning}")?;
    }
    let policies = PoliciesToBe::gather(client, new, &query.namespace).await?;
    let labels = namespace_labels(client, &query.namespace).await?;
    let pods = pods(client, query, &policies, &labels).await?;
    let (mut replay, mut logs, mut told) = (Replay::new(query.examples), Vec::new(), BTreeSet::new());
    for pod in &pods {
        let info = PodInfo::from(pod);
        let of_pod = policies.of(&info, &labels);
        let restarts = restarts(pod);
        // A restart begins with empty counts, as another pod does.
        for previous in [restarts > 0, false].into_iter().skip(usize::from(restarts == 0)) {
            let name = if previous { format!("{} (before its restart)", info.key) } else { info.key.to_string() };
            let (id, problems) = replay.add_log(&name, &of_pod, &options(pod), Memory::COUNTERS)?;
            logs.push(SidecarLog { pod: info.key.clone(), id, previous });
            told.extend(problems.iter().filter_map(|problem| problem_note(problem, &of_pod)));
        }
        if restarts > 1 {
            told.insert(format!(
                "pod {}: its sidecar was restarted {restarts} times; only the last two logs are there",
                info.key
            ));
        }
    }
    let replay = RefCell::new(replay);
    let read = logs.iter().map(|log| read(client, log, query.since, &replay));
    let read: Vec<anyhow::Result<Option<String>>> = stream::iter(read).buffer_unordered(AT_ONCE).collect().await;
    for result in read {
        told.extend(result?);
    }
    let mut report = replay.into_inner().finish()?;
    for note in told {
        report.note(note);
    }
    write(&report, query.form, &mut out, &mut notes)
}

fn write(report: &ReplayReport, form: OutputFormat, out: &mut impl Write, notes: &mut impl Write) -> anyhow::Result<()> {
    for damage in &report.damages {
        writeln!(notes, "warning: {damage}")?;
    }
    let text = match form {
        OutputFormat::Text => report.text(),
        OutputFormat::Json => report.json()?,
    };
    out.write_all(text.as_bytes())?;
    Ok(())
}

async fn namespace_labels(client: &Client, namespace: &str) -> anyhow::Result<Labels> {
    let api: Api<Namespace> = Api::all(client.clone());
    match api.get(namespace).await {
        Ok(found) => Ok(found.labels().clone()),
        Err(error) if is_missing(&error) => bail!("there is no namespace {namespace}"),
        Err(error) => Err(ApiAccess { verb: "get", resource: "namespaces", namespace: Some(namespace) }.failed(&error)),
    }
}

/// Returns the pods to replay: the one that was asked for, or those for which the new policies change something.
async fn pods(client: &Client, query: &ReplayQuery, policies: &PoliciesToBe, labels: &Labels) -> anyhow::Result<Vec<KubePod>> {
    let namespace = query.namespace.as_str();
    let api = NamespaceScope::Namespace(namespace.to_owned()).pods(client);
    if let Some(name) = &query.pod {
        let info = crate::explain::find(client, namespace, name).await?;
        if !has_log(&info) {
            bail!("the sidecar of pod {} has not run yet; kubectl -n {namespace} describe pod {name} says why", info.key);
        }
        let access = ApiAccess { verb: "get", resource: "pods", namespace: Some(namespace) };
        return Ok(vec![api.get(name).await.map_err(|error| access.failed(&error))?]);
    }
    let all: Vec<KubePod> = list(&api, ApiAccess { verb: "list", resource: "pods", namespace: Some(namespace) }).await?;
    let is_concerned = |pod: &KubePod| {
        let info = PodInfo::from(pod);
        has_log(&info) && policies.change(&info, labels)
    };
    let mut pods: Vec<KubePod> = all.into_iter().filter(is_concerned).collect();
    pods.sort_by_key(ResourceExt::name_any);
    if pods.is_empty() {
        bail!(
            "the policies select no pod of namespace {namespace} that has a sidecar; correct podSelector, or name a pod with --pod"
        );
    }
    Ok(pods)
}

/// Returns how often the sidecar of a pod was restarted.
fn restarts(pod: &KubePod) -> i32 {
    let status = pod.status.iter();
    let mut statuses = status
        .flat_map(|status| status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten()));
    statuses.find(|status| status.name == SIDECAR_CONTAINER).map_or(0, |status| status.restart_count)
}

/// Returns the options with which the sidecar of a pod compiles policies.
fn options(pod: &KubePod) -> CompileOptions {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let args =
        containers.filter(|container| container.name == SIDECAR_CONTAINER).flat_map(|container| container.args.iter().flatten());
    // Kubernetes writes a dollar twice.
    let workload = args.filter_map(|arg| arg.strip_prefix("--pod-workload=")).map(|name| name.replace("$$", "$")).next();
    CompileOptions {
        shared_store: true,
        pod: pod.name_any(),
        namespace: pod.namespace().unwrap_or_default(),
        service_account: spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        workload: workload.unwrap_or_default(),
        of_any_pod: true,
    }
}

/// Returns a note about a policy that would deny everything on a server.
fn problem_note(problem: &Problem, policies: &[toolweir_engine::Policy]) -> Option<String> {
    let id = &policies.get(problem.policy)?.id;
    matches!(problem.severity, Severity::Invalid | Severity::Closed)
        .then(|| format!("policy {id} cannot be enforced, and denies: {}", problem.error))
}

/// Reads a log. Returns a note where it cannot be read to its end.
async fn read(client: &Client, log: &SidecarLog, since: Duration, replay: &RefCell<Replay>) -> anyhow::Result<Option<String>> {
    let SidecarLog { pod, id, previous } = log;
    let api: Api<KubePod> = Api::namespaced(client.clone(), &pod.namespace);
    let parameters = LogParams {
        container: Some(SIDECAR_CONTAINER.to_owned()),
        since_seconds: Some(whole_seconds(since)),
        previous: *previous,
        ..LogParams::default()
    };
    let access = ApiAccess { verb: "get", resource: "pods/log", namespace: Some(&pod.namespace) };
    let mut reader = match api.log_stream(&pod.name, &parameters).await {
        Ok(log) => Pin::from(Box::new(log)),
        Err(error) if is_forbidden(&error) => return Err(access.failed(&error)),
        Err(_) if *previous => return Ok(Some(format!("pod {pod}: the log before its restart is gone"))),
        Err(error) if is_missing(&error) => return Ok(Some(format!("pod {pod}: has ended, and its log is gone"))),
        Err(error) => return Ok(Some(format!("pod {pod}: {:#}", access.failed(&error)))),
    };
    let mut line = Vec::new();
    loop {
        match next_line(&mut reader, &mut line).await {
            Ok(true) => replay.borrow_mut().add_line(*id, &line)?,
            Ok(false) => return Ok(None),
            Err(error) => return Ok(Some(format!("pod {pod}: its log was read in part: {}", chain(&error)))),
        }
    }
}
