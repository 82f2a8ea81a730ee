//! `kubectl toolweir status`: which policies hold, where, and since when.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use futures_util::{StreamExt, stream};
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{ApiResource, Object},
};
use serde::{Deserialize, Serialize};
use toolweir_crds::{
    LabelSelector,
    resource::{MCPClusterPolicy, MCPPolicy, PolicyStatus},
    select::{Labels, selects},
};

use crate::{
    Found,
    cluster::{Asked, Pod, Scope, is_missing, list},
    forward,
    scrape::Policies,
    table::{short, shown, table},
};

/// How many sidecars are asked at once.
const AT_ONCE: usize = 16;

/// How many notes people are shown.
const NOTES: usize = 10;

/// What is known of the policies and of those that enforce them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The policies, those of namespaces first.
    pub policies: Vec<PolicyRow>,
    /// Pods with a sidecar.
    pub pods: Vec<PodRow>,
    /// Pods that a policy selects and that have no sidecar.
    pub without_sidecar: Vec<Bare>,
    /// What could not be found out, and what helps.
    pub notes: Vec<String>,
}

/// A policy and what the operator says of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// `MCPPolicy` or `MCPClusterPolicy`.
    pub kind: &'static str,
    /// Its namespace; absent for an `MCPClusterPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// `Enforce` or `Audit`.
    pub mode: String,
    /// Whether it means something.
    pub accepted: Said,
    /// Whether every pod that it governs enforces it.
    pub programmed: Said,
    /// Pods that it governs.
    pub selected: i32,
    /// Of these, pods that enforce it.
    pub acknowledged: i32,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why.
    pub reason: String,
    /// The same in words.
    pub message: String,
}

/// A pod with a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether its sidecar is ready: a policy is in force.
    pub ready: bool,
    /// Whether its sidecar has the operator, and what that says is in force.
    pub connected: Option<bool>,
    /// The version of the policies in force; absent where there is none.
    pub version: Option<String>,
    /// For how long what is in force has not been known to be current; 0 while it is.
    pub age_seconds: Option<f64>,
    /// The policies in force.
    pub policies: Vec<String>,
    /// Those of them that cannot be enforced as they are written, and deny.
    pub invalid: Vec<String>,
    /// Why the sidecar could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A pod without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bare {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The policies that select it, and that nothing enforces there.
    pub policies: Vec<String>,
}

/// What is needed of a policy: what a newer version knows besides is no reason to show none.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
    mode: String,
}

type Policy = Object<Spec, PolicyStatus>;

/// Gathers it.
///
/// # Errors
/// Policies or pods cannot be listed. What else cannot be found out is a note.
pub async fn gather(client: &Client, scope: &Scope) -> anyhow::Result<Status> {
    let mut status = Status::default();
    let namespace = scope.namespace();
    let resource = ApiResource::erase::<MCPPolicy>(&());
    let own: Api<Policy> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let cluster: Api<Policy> = Api::all_with(client.clone(), &ApiResource::erase::<MCPClusterPolicy>(&()));
    let asked = |resource, namespace| Asked { verb: "list", resource, namespace };
    let pods = scope.pods(client);
    let (own, cluster, pods, namespaces) = tokio::join!(
        list(&own, asked("mcppolicies.toolweir.dev", namespace)),
        list(&cluster, asked("mcpclusterpolicies.toolweir.dev", None)),
        list(&pods, asked("pods", namespace)),
        labels(client, scope),
    );
    let own = own?;
    let cluster = cluster.unwrap_or_else(|error| {
        status.notes.push(format!("policies of the cluster are not shown: {error:#}"));
        Vec::new()
    });
    let namespaces = namespaces.unwrap_or_else(|error| {
        status.notes.push(format!("which policies of the cluster select a pod is not known: {error:#}"));
        BTreeMap::new()
    });
    let pods: Vec<Pod> = pods?.iter().map(Pod::from).filter(|pod| !pod.over && !pod.ends).collect();
    status.policies.extend(own.iter().map(|policy| row("MCPPolicy", policy)));
    status.policies.extend(cluster.iter().map(|policy| row("MCPClusterPolicy", policy)));
    for pod in pods.iter().filter(|pod| pod.sidecar.is_none()) {
        let labels = namespaces.get(&pod.key.namespace);
        let policies: Vec<String> = own.iter().chain(&cluster).filter(|policy| governs(policy, pod, labels)).map(name).collect();
        if !policies.is_empty() {
            let key = pod.key.clone();
            status.without_sidecar.push(Bare { namespace: key.namespace, name: key.name, policies });
        }
    }
    let asked = pods.into_iter().filter(|pod| pod.sidecar.is_some()).map(|pod| asked_for(client, pod));
    status.pods = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    status.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut unknown: Vec<String> = status.pods.iter().filter_map(|pod| pod.error.clone()).collect();
    unknown.sort();
    unknown.dedup();
    status.notes.extend(unknown);
    Ok(status)
}

/// The labels of the namespaces.
async fn labels(client: &Client, scope: &Scope) -> anyhow::Result<BTreeMap<String, Labels>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = match scope {
        Scope::All => list(&api, Asked { verb: "list", resource: "namespaces", namespace: None }).await?,
        Scope::Namespace(name) => match api.get(name).await {
            Ok(namespace) => vec![namespace],
            Err(error) if is_missing(&error) => anyhow::bail!("there is no namespace {name}"),
            Err(error) => return Err(Asked { verb: "get", resource: "namespaces", namespace: Some(name) }.failed(&error)),
        },
    };
    Ok(all.into_iter().map(|namespace| (namespace.name_any(), namespace.labels().clone())).collect())
}

/// The policy as the audit log names it.
fn name(policy: &Policy) -> String {
    match policy.namespace() {
        Some(namespace) => format!("{namespace}/{}", policy.name_any()),
        None => policy.name_any(),
    }
}

/// Whether a policy governs a pod. A namespace whose labels are not known is selected by what selects all.
fn governs(policy: &Policy, pod: &Pod, namespace: Option<&Labels>) -> bool {
    let of_namespace = match policy.namespace() {
        Some(namespace) => namespace == pod.key.namespace,
        None => {
            let selector = &policy.spec.namespace_selector;
            selector.is_empty() || namespace.is_some_and(|labels| selects(selector, labels))
        }
    };
    of_namespace && selects(&policy.spec.pod_selector, &pod.labels)
}

fn row(kind: &'static str, policy: &Policy) -> PolicyRow {
    let status = policy.status.clone().unwrap_or_default();
    let generation = policy.meta().generation;
    let condition = |name: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == name);
        let nothing = || Said {
            status: "Unknown".to_owned(),
            reason: "NoStatus".to_owned(),
            message: "The operator has said nothing about it; does it run?".to_owned(),
        };
        found.map_or_else(nothing, |condition| said(condition, generation))
    };
    PolicyRow {
        kind,
        namespace: policy.namespace(),
        name: policy.name_any(),
        mode: if policy.spec.mode.is_empty() { "Enforce".to_owned() } else { policy.spec.mode.clone() },
        accepted: condition("Accepted"),
        programmed: condition("Programmed"),
        selected: status.selected,
        acknowledged: status.acknowledged,
    }
}

fn said(condition: &Condition, generation: Option<i64>) -> Said {
    if condition.observed_generation.is_some() && condition.observed_generation != generation {
        return Said {
            status: "Unknown".to_owned(),
            reason: "OldStatus".to_owned(),
            message: "The status is that of an earlier state of the policy; the operator has not looked at this one.".to_owned(),
        };
    }
    Said { status: condition.status.clone(), reason: condition.reason.clone(), message: condition.message.clone() }
}

/// Asks the sidecar of a pod for its metrics.
async fn asked_for(client: &Client, pod: Pod) -> PodRow {
    let sidecar = pod.sidecar.unwrap_or_default();
    let mut row =
        PodRow { namespace: pod.key.namespace.clone(), name: pod.key.name.clone(), ready: sidecar.ready, ..PodRow::default() };
    if !sidecar.running {
        let why = sidecar.waits.map(|why| format!(" ({why})")).unwrap_or_default();
        row.error = Some(format!("pod {}: its sidecar does not run{why}; kubectl describe pod says why", pod.key));
        return row;
    }
    match forward::ask(client, &pod.key, forward::METRICS, "/metrics", None).await {
        Ok(answer) if answer.status.is_success() => {
            let Policies { version, names, invalid, connected, age_seconds } = Policies::read(&answer.text());
            row = PodRow { version, policies: names, invalid, connected, age_seconds, ..row };
        }
        Ok(answer) => row.error = Some(format!("pod {}: /metrics answers {}", pod.key, answer.status)),
        Err(error) => row.error = Some(format!("{error:#}")),
    }
    row
}

impl Status {
    /// Whether everything is in order.
    pub fn found(&self) -> Found {
        let policy = |row: &PolicyRow| {
            // A policy for pods that are still to come is in order.
            row.accepted.status == "True" && (row.programmed.status == "True" || row.programmed.reason == "NoPods")
        };
        let pod = |row: &PodRow| row.ready && row.connected == Some(true) && row.invalid.is_empty();
        let good = self.policies.iter().all(policy)
            && self.pods.iter().all(pod)
            && self.without_sidecar.is_empty()
            && self.notes.is_empty();
        if good { Found::Good } else { Found::Bad }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.policies.is_empty() {
            text.push_str("There is no policy.\n");
        } else {
            let rows: Vec<Vec<String>> = self.policies.iter().map(PolicyRow::cells).collect();
            text.push_str(&table(0, &["KIND", "POLICY", "MODE", "ACCEPTED", "PROGRAMMED", "SIDECARS"], &rows));
            for row in &self.policies {
                for (what, said) in [("Accepted", &row.accepted), ("Programmed", &row.programmed)] {
                    if said.status != "True" {
                        let _ = writeln!(text, "  {}: {what} is {}: {}", row.full_name(), said.status, shown(&said.message));
                    }
                }
            }
        }
        text.push('\n');
        if self.pods.is_empty() {
            text.push_str("No pod has a sidecar.\n");
        } else {
            let rows: Vec<Vec<String>> = self.pods.iter().map(PodRow::cells).collect();
            text.push_str(&table(0, &["POD", "READY", "CONNECTED", "VERSION", "POLICY AGE", "POLICIES"], &rows));
            for row in self.pods.iter().filter(|row| !row.invalid.is_empty()) {
                let invalid = row.invalid.join(", ");
                let _ = writeln!(text, "  {}/{}: cannot enforce {invalid}, and denies instead", row.namespace, row.name);
            }
        }
        if !self.without_sidecar.is_empty() {
            text.push_str("\nNothing enforces a policy on these pods, which have no sidecar. Label their namespaces\n");
            text.push_str("toolweir.dev/inject=enabled and restart them:\n");
            let rows: Vec<Vec<String>> = self.without_sidecar.iter().map(Bare::cells).collect();
            text.push_str(&table(2, &["POD", "SELECTED BY"], &rows));
        }
        if !self.notes.is_empty() {
            text.push('\n');
            for note in self.notes.iter().take(NOTES) {
                let _ = writeln!(text, "note: {}", shown(note));
            }
            if let Some(more) = self.notes.len().checked_sub(NOTES).filter(|more| *more > 0) {
                let _ = writeln!(text, "note: {more} more, which -o json shows");
            }
        }
        text
    }
}

impl PolicyRow {
    fn full_name(&self) -> String {
        self.namespace.as_ref().map_or_else(|| self.name.clone(), |namespace| format!("{namespace}/{}", self.name))
    }

    fn cells(&self) -> Vec<String> {
        let said = |said: &Said| {
            if said.status == "True" { said.status.clone() } else { format!("{} ({})", said.status, said.reason) }
        };
        let sidecars = format!("{}/{}", self.acknowledged, self.selected);
        vec![
            self.kind.to_owned(),
            self.full_name(),
            shown(&self.mode).into_owned(),
            said(&self.accepted),
            said(&self.programmed),
            sidecars,
        ]
    }
}

impl PodRow {
    fn cells(&self) -> Vec<String> {
        let yes = |holds: bool| if holds { "yes" } else { "no" }.to_owned();
        let age = |seconds: f64| short(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let known = self.connected.is_some();
        vec![
            format!("{}/{}", self.namespace, self.name),
            yes(self.ready),
            self.connected.map_or_else(|| "?".to_owned(), yes),
            self.version
                .as_deref()
                .map_or_else(|| if known { "none" } else { "?" }.to_owned(), |version| shown(version).into_owned()),
            self.age_seconds.map_or_else(|| "?".to_owned(), age),
            if known { self.policies.len().to_string() } else { "?".to_owned() },
        ]
    }
}

impl Bare {
    fn cells(&self) -> Vec<String> {
        vec![format!("{}/{}", self.namespace, self.name), self.policies.join(", ")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: &str, reason: &str, message: &str) -> Said {
        Said { status: status.to_owned(), reason: reason.to_owned(), message: message.to_owned() }
    }

    fn full() -> Status {
        let policy = PolicyRow {
            kind: "MCPPolicy",
            namespace: Some("agents".to_owned()),
            name: "facebook".to_owned(),
            mode: "Enforce".to_owned(),
            accepted: said("True", "Accepted", "It is in order."),
            programmed: said("False", "NoSidecar", "1 of 3 pods have no sidecar."),
            selected: 3,
            acknowledged: 2,
        };
        let cluster = PolicyRow {
            kind: "MCPClusterPolicy",
            namespace: None,
            name: "guardrail".to_owned(),
            mode: "Audit".to_owned(),
            programmed: said("True", "Programmed", "All 3 sidecars enforce it."),
            acknowledged: 3,
            ..policy.clone()
        };
        let pod = PodRow {
            namespace: "agents".to_owned(),
            name: "social-1".to_owned(),
            ready: true,
            connected: Some(true),
            version: Some("3f2a9c".to_owned()),
            age_seconds: Some(0.0),
            policies: vec!["agents/facebook".to_owned(), "guardrail".to_owned()],
            ..PodRow::default()
        };
        let stale = PodRow {
            name: "social-2".to_owned(),
            connected: Some(false),
            age_seconds: Some(300.5),
            invalid: vec!["guardrail".to_owned()],
            ..pod.clone()
        };
        let silent = PodRow {
            namespace: "agents".to_owned(),
            name: "social-3".to_owned(),
            error: Some("pod agents/social-3: its sidecar does not run (ImagePullBackOff)".to_owned()),
            ..PodRow::default()
        };
        let notes = vec![silent.error.clone().unwrap()];
        let bare = Bare { namespace: "agents".to_owned(), name: "old".to_owned(), policies: vec!["agents/facebook".to_owned()] };
        Status { policies: vec![policy, cluster], pods: vec![pod, stale, silent], without_sidecar: vec![bare], notes }
    }

    #[test]
    fn people_get_aligned_tables() {
        let golden = "\
KIND              POLICY           MODE     ACCEPTED  PROGRAMMED         SIDECARS
MCPPolicy         agents/facebook  Enforce  True      False (NoSidecar)  2/3
MCPClusterPolicy  guardrail        Audit    True      True               3/3
  agents/facebook: Programmed is False: 1 of 3 pods have no sidecar.

POD              READY  CONNECTED  VERSION  POLICY AGE  POLICIES
agents/social-1  yes    yes        3f2a9c   0s          2
agents/social-2  yes    no         3f2a9c   5m          2
agents/social-3  no     ?          ?        ?           ?
  agents/social-2: cannot enforce guardrail, and denies instead

Nothing enforces a policy on these pods, which have no sidecar. Label their namespaces
toolweir.dev/inject=enabled and restart them:
  POD         SELECTED BY
  agents/old  agents/facebook

note: pod agents/social-3: its sidecar does not run (ImagePullBackOff)
";
        assert_eq!(full().text(), golden);
        assert_eq!(Status::default().text(), "There is no policy.\n\nNo pod has a sidecar.\n");
    }

    #[test]
    fn what_is_not_in_order_is_found() {
        assert_eq!((Status::default().found(), full().found()), (Found::Good, Found::Bad));
        let good = |change: fn(&mut Status)| {
            let mut status = full();
            status.policies[0].programmed = said("True", "Programmed", "");
            status.pods.truncate(1);
            status.without_sidecar.clear();
            status.notes.clear();
            change(&mut status);
            status.found() == Found::Good
        };
        assert!(good(|_| {}));
        assert!(good(|status| status.policies[0].programmed = said("False", "NoPods", "")));
        assert!(!good(|status| status.policies[0].accepted = said("False", "Conflicted", "")));
        assert!(!good(|status| status.pods[0].ready = false));
        assert!(!good(|status| status.pods[0].connected = Some(false)));
        assert!(!good(|status| status.pods[0].invalid.push("agents/facebook".to_owned())));
        assert!(!good(|status| status.notes.push("unknown".to_owned())));
    }

    fn policy(metadata: &serde_json::Value, spec: &serde_json::Value) -> Policy {
        serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_policy_governs_pods_of_its_namespace_or_of_those_that_it_selects() {
        use serde_json::json;
        let labels = |text: &[(&str, &str)]| text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>();
        let key = crate::cluster::PodKey { namespace: "agents".to_owned(), name: "p".to_owned() };
        let pod = Pod { key, uid: String::new(), labels: labels(&[("app", "a")]), sidecar: None, over: false, ends: false };
        let team = labels(&[("team", "x")]);
        let own = |namespace: &str, spec| policy(&json!({"name": "p", "namespace": namespace}), &spec);
        let cluster = |spec| policy(&json!({"name": "p"}), &spec);
        for (policy, known, unknown) in [
            (own("agents", json!({"servers": [], "aNewerField": 1})), true, true),
            (own("agents", json!({"podSelector": {"matchLabels": {"app": "b"}}})), false, false),
            (own("others", json!({})), false, false),
            (cluster(json!({})), true, true),
            (cluster(json!({"namespaceSelector": {"matchLabels": {"team": "x"}}})), true, false),
            (cluster(json!({"namespaceSelector": {"matchLabels": {"team": "y"}}})), false, false),
        ] {
            assert_eq!((governs(&policy, &pod, Some(&team)), governs(&policy, &pod, None)), (known, unknown), "{policy:?}");
        }
    }

    #[test]
    fn a_status_of_an_earlier_generation_says_nothing() {
        use serde_json::json;
        let condition = |name: &str| {
            json!({"type": name, "status": "True", "reason": name, "message": "", "observedGeneration": 1,
                   "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let mut policy = policy(&json!({"name": "p", "namespace": "n", "generation": 1}), &json!({"mode": "Audit"}));
        assert_eq!(row("MCPPolicy", &policy).accepted.reason, "NoStatus");
        let status = json!({"conditions": [condition("Accepted"), condition("Programmed")], "selected": 2, "acknowledged": 1});
        policy.status = Some(serde_json::from_value(status).unwrap());
        let told = row("MCPPolicy", &policy);
        assert_eq!((told.mode.as_str(), told.accepted.status.as_str(), told.acknowledged), ("Audit", "True", 1));
        policy.metadata.generation = Some(2);
        assert_eq!(row("MCPPolicy", &policy).programmed.reason, "OldStatus");
    }
}
