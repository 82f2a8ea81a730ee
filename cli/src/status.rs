//! `kubectl toolweir status`: shows policies, the sidecars that enforce them, and pods without a sidecar.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use futures_util::{StreamExt, stream};
use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, core::ApiResource};
use serde::Serialize;
use toolweir_crds::{
    resource::{MCPClusterPolicy, MCPPolicy},
    select::{Labels, selects},
};

use crate::{
    CommandOutcome, OutputFormat,
    approvals::{
        listing::{self, ApprovalsQuery},
        waiting::WaitingApprovals,
    },
    cluster::{ApiAccess, NamespaceScope, PodInfo, is_missing, list},
    condition::ConditionRow,
    forward,
    policy_rows::{AnyPolicy, PolicyRow, ServersOf, full_name},
    scrape::PolicyMetrics,
    table::{short, shown, table},
};

/// Number of sidecars that are asked at once.
const AT_ONCE: usize = 16;

/// Number of notes in the text output.
const NOTES: usize = 10;

/// The policies of a cluster, and the pods that they govern.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// The policies; those of namespaces come first.
    pub policies: Vec<PolicyRow>,
    /// Pods with a sidecar.
    pub pods: Vec<PodRow>,
    /// Pods that a policy selects but that have no sidecar.
    pub without_sidecar: Vec<UnprotectedPod>,
    /// What could not be read, and what to do.
    pub notes: Vec<String>,
}

/// A pod with a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// True if its sidecar is ready, that is, a policy is in force.
    pub ready: bool,
    /// True if its sidecar is connected to the operator and its policies are current; absent if unknown.
    pub connected: Option<bool>,
    /// The version of the policies in force; absent if there are none.
    pub version: Option<String>,
    /// For how long it has been unknown whether the policies are current, in seconds; 0 if they are.
    pub age_seconds: Option<f64>,
    /// The policies in force.
    pub policies: Vec<String>,
    /// The names of those that cannot be enforced as written, and deny.
    pub invalid: Vec<String>,
    /// The error if the sidecar could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A pod that policies select but that has no sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnprotectedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The policies that select it.
    pub policies: Vec<String>,
}

/// Collects the report.
///
/// # Errors
/// Policies or pods cannot be listed. Other failures become notes.
pub async fn gather(client: &Client, scope: &NamespaceScope, now: Timestamp) -> anyhow::Result<StatusReport> {
    let mut status = StatusReport::default();
    let namespace = scope.namespace();
    let resource = ApiResource::erase::<MCPPolicy>(&());
    let own: Api<AnyPolicy> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let cluster: Api<AnyPolicy> = Api::all_with(client.clone(), &ApiResource::erase::<MCPClusterPolicy>(&()));
    let access = |resource, namespace| ApiAccess { verb: "list", resource, namespace };
    let pods = scope.pods(client);
    let (own, cluster, pods, namespaces) = tokio::join!(
        list(&own, access("mcppolicies.toolweir.dev", namespace)),
        list(&cluster, access("mcpclusterpolicies.toolweir.dev", None)),
        list(&pods, access("pods", namespace)),
        labels(client, scope),
    );
    let own = own?;
    let cluster = cluster.unwrap_or_else(|error| {
        status.notes.push(format!("cluster policies are not shown: {error:#}"));
        Vec::new()
    });
    let namespaces = namespaces.unwrap_or_else(|error| {
        status.notes.push(format!("it is unknown which cluster policies select a pod: {error:#}"));
        BTreeMap::new()
    });
    let pods: Vec<PodInfo> = pods?.iter().map(PodInfo::from).filter(|pod| !pod.ended && !pod.terminating).collect();
    status.policies.extend(own.iter().map(|policy| PolicyRow::of("MCPPolicy", policy)));
    status.policies.extend(cluster.iter().map(|policy| PolicyRow::of("MCPClusterPolicy", policy)));
    status.add_approvals(client, scope, now).await;
    for pod in pods.iter().filter(|pod| pod.sidecar.is_none()) {
        let labels = namespaces.get(&pod.key.namespace);
        let policies: Vec<String> =
            own.iter().chain(&cluster).filter(|policy| governs(policy, pod, labels)).map(full_name).collect();
        if !policies.is_empty() {
            let key = pod.key.clone();
            status.without_sidecar.push(UnprotectedPod { namespace: key.namespace, name: key.name, policies });
        }
    }
    let rows = pods.into_iter().filter(|pod| pod.sidecar.is_some()).map(|pod| pod_row(client, pod));
    status.pods = stream::iter(rows).buffer_unordered(AT_ONCE).collect().await;
    status.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut unknown: Vec<String> = status.pods.iter().filter_map(|pod| pod.error.clone()).collect();
    unknown.sort();
    unknown.dedup();
    status.notes.extend(unknown);
    Ok(status)
}

/// Returns the labels of the namespaces, by name.
async fn labels(client: &Client, scope: &NamespaceScope) -> anyhow::Result<BTreeMap<String, Labels>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = match scope {
        NamespaceScope::All => list(&api, ApiAccess { verb: "list", resource: "namespaces", namespace: None }).await?,
        NamespaceScope::Namespace(name) => match api.get(name).await {
            Ok(namespace) => vec![namespace],
            Err(error) if is_missing(&error) => anyhow::bail!("there is no namespace {name}"),
            Err(error) => return Err(ApiAccess { verb: "get", resource: "namespaces", namespace: Some(name) }.failed(&error)),
        },
    };
    Ok(all.into_iter().map(|namespace| (namespace.name_any(), namespace.labels().clone())).collect())
}

/// Returns true if a policy governs a pod. If the labels of the pod's namespace are unknown, only an empty selector selects it.
fn governs(policy: &AnyPolicy, pod: &PodInfo, namespace: Option<&Labels>) -> bool {
    let of_namespace = match policy.namespace() {
        Some(namespace) => namespace == pod.key.namespace,
        None => {
            let selector = &policy.spec.namespace_selector;
            selector.is_empty() || namespace.is_some_and(|labels| selects(selector, labels))
        }
    };
    of_namespace && selects(&policy.spec.pod_selector, &pod.labels)
}

/// Reads the metrics of a pod's sidecar.
async fn pod_row(client: &Client, pod: PodInfo) -> PodRow {
    let sidecar = pod.sidecar.unwrap_or_default();
    let mut row =
        PodRow { namespace: pod.key.namespace.clone(), name: pod.key.name.clone(), ready: sidecar.ready, ..PodRow::default() };
    if !sidecar.running {
        let why = sidecar.waiting_reason.map(|why| format!(" ({why})")).unwrap_or_default();
        row.error = Some(format!("pod {}: its sidecar does not run{why}; kubectl describe pod says why", pod.key));
        return row;
    }
    match forward::request(client, &pod.key, pod.metrics_port, "/metrics", None).await {
        Ok(answer) if answer.status.is_success() => {
            let PolicyMetrics { version, names, invalid, connected, age_seconds } = PolicyMetrics::read(&answer.text());
            row = PodRow { version, policies: names, invalid, connected, age_seconds, ..row };
        }
        Ok(answer) => row.error = Some(format!("pod {}: /metrics responded {}", pod.key, answer.status)),
        Err(error) => row.error = Some(format!("{error:#}")),
    }
    row
}

impl StatusReport {
    /// Counts the calls that wait for a person, if a policy has such calls at all.
    async fn add_approvals(&mut self, client: &Client, scope: &NamespaceScope, now: Timestamp) {
        if !self.policies.iter().any(|row| row.asks) {
            return;
        }
        let query = ApprovalsQuery { scope: scope.clone(), all: false, form: OutputFormat::Text };
        match listing::gather(client, &query, now).await {
            Ok((approvals, notes)) => {
                self.notes.extend(notes);
                for row in self.policies.iter_mut().filter(|row| row.asks) {
                    row.approvals = Some(WaitingApprovals::of(&row.full_name(), &approvals, now));
                }
            }
            Err(error) => self.notes.push(format!("it is unknown which calls wait for a person: {error:#}")),
        }
    }

    /// Whether everything is in order.
    pub fn outcome(&self) -> CommandOutcome {
        let policy = |row: &PolicyRow| {
            // A policy for pods that are still to come is in order.
            let in_order = |condition: &ConditionRow| condition.status == "True" || condition.reason == "NoPods";
            let ready = [&row.credentials_ready, &row.interception_ready, &row.pins_matched].into_iter().flatten();
            row.accepted.status == "True" && in_order(&row.programmed) && ready.into_iter().all(in_order)
        };
        let pod = |row: &PodRow| row.ready && row.connected == Some(true) && row.invalid.is_empty();
        let good = self.policies.iter().all(policy)
            && self.pods.iter().all(pod)
            && self.without_sidecar.is_empty()
            && self.notes.is_empty();
        if good { CommandOutcome::Positive } else { CommandOutcome::Negative }
    }

    /// Formats the report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.policies.is_empty() {
            text.push_str("There are no policies.\n");
        } else {
            let rows: Vec<Vec<String>> = self.policies.iter().map(PolicyRow::cells).collect();
            text.push_str(&table(0, &["KIND", "POLICY", "MODE", "ACCEPTED", "PROGRAMMED", "SIDECARS"], &rows));
            for row in &self.policies {
                row.explain("Accepted", &row.accepted, &mut text);
                row.explain("Programmed", &row.programmed, &mut text);
            }
            self.servers_text("CredentialsReady", ["CREDENTIAL", "READY"], PolicyRow::with_credential, &mut text);
            self.servers_text("InterceptionReady", ["TLS", "READY"], PolicyRow::with_interception, &mut text);
            self.servers_text("PinsMatched", ["PINS", "MATCHED"], PolicyRow::with_pins, &mut text);
            let rows: Vec<Vec<String>> = self.policies.iter().filter_map(PolicyRow::approval_cells).collect();
            if !rows.is_empty() {
                text.push('\n');
                text.push_str(&table(0, &["POLICY", "APPROVALS WAITING", "OLDEST"], &rows));
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
            text.push_str("\nThese pods are selected by policies but have no sidecar, so nothing enforces the policies.\n");
            text.push_str("Label their namespaces toolweir.dev/inject=enabled and restart the pods:\n");
            let rows: Vec<Vec<String>> = self.without_sidecar.iter().map(UnprotectedPod::cells).collect();
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

    /// Adds a table of the servers that a condition of their policies speaks of, and a line for each condition that does not hold.
    fn servers_text(&self, condition: &str, [value, holds]: [&str; 2], of: ServersOf, text: &mut String) {
        let found: Vec<_> = self.policies.iter().filter_map(|row| Some((row, of(row)?))).collect();
        if found.is_empty() {
            return;
        }
        let cells = |row: &PolicyRow, (server, value): &(&str, &str), ready: &ConditionRow| {
            vec![row.full_name(), shown(server).into_owned(), shown(value).into_owned(), ready.cell()]
        };
        let rows = found.iter().flat_map(|(row, (servers, ready))| servers.iter().map(|server| cells(row, server, ready)));
        text.push('\n');
        text.push_str(&table(0, &["POLICY", "SERVER", value, holds], &rows.collect::<Vec<_>>()));
        for (row, (_, ready)) in found {
            row.explain(condition, ready, text);
        }
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

impl UnprotectedPod {
    fn cells(&self) -> Vec<String> {
        vec![format!("{}/{}", self.namespace, self.name), self.policies.join(", ")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition_row(status: &str, reason: &str, message: &str) -> ConditionRow {
        ConditionRow { status: status.to_owned(), reason: reason.to_owned(), message: message.to_owned() }
    }

    fn full() -> StatusReport {
        let policy = PolicyRow {
            kind: "MCPPolicy",
            namespace: Some("agents".to_owned()),
            name: "facebook".to_owned(),
            mode: "Enforce".to_owned(),
            accepted: condition_row("True", "Accepted", "It is in order."),
            programmed: condition_row("False", "NoSidecar", "1 of 3 pods have no sidecar."),
            selected: 3,
            acknowledged: 2,
            credentials: Vec::new(),
            credentials_ready: None,
            intercepted: Vec::new(),
            interception_ready: None,
            pinned: Vec::new(),
            pins_matched: None,
            asks: false,
            approvals: None,
        };
        let cluster = PolicyRow {
            kind: "MCPClusterPolicy",
            namespace: None,
            name: "guardrail".to_owned(),
            mode: "Audit".to_owned(),
            programmed: condition_row("True", "Programmed", "All 3 sidecars enforce it."),
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
        let bare = UnprotectedPod {
            namespace: "agents".to_owned(),
            name: "old".to_owned(),
            policies: vec!["agents/facebook".to_owned()],
        };
        StatusReport { policies: vec![policy, cluster], pods: vec![pod, stale, silent], without_sidecar: vec![bare], notes }
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

These pods are selected by policies but have no sidecar, so nothing enforces the policies.
Label their namespaces toolweir.dev/inject=enabled and restart the pods:
  POD         SELECTED BY
  agents/old  agents/facebook

note: pod agents/social-3: its sidecar does not run (ImagePullBackOff)
";
        assert_eq!(full().text(), golden);
        assert_eq!(StatusReport::default().text(), "There are no policies.\n\nNo pod has a sidecar.\n");
    }

    #[test]
    fn what_is_not_in_order_is_found() {
        assert_eq!((StatusReport::default().outcome(), full().outcome()), (CommandOutcome::Positive, CommandOutcome::Negative));
        let good = |change: fn(&mut StatusReport)| {
            let mut status = full();
            status.policies[0].programmed = condition_row("True", "Programmed", "");
            status.pods.truncate(1);
            status.without_sidecar.clear();
            status.notes.clear();
            change(&mut status);
            status.outcome() == CommandOutcome::Positive
        };
        assert!(good(|_| {}));
        assert!(good(|status| status.policies[0].programmed = condition_row("False", "NoPods", "")));
        assert!(!good(|status| status.policies[0].accepted = condition_row("False", "Conflicted", "")));
        assert!(good(|status| status.policies[0].credentials_ready = Some(condition_row("Unknown", "NoPods", ""))));
        assert!(!good(|status| status.policies[0].credentials_ready = Some(condition_row("False", "NotMounted", ""))));
        assert!(!good(|status| status.policies[0].credentials_ready = Some(condition_row("Unknown", "Pending", ""))));
        assert!(good(|status| status.policies[0].pins_matched = Some(condition_row("True", "Matched", ""))));
        assert!(!good(|status| status.policies[0].pins_matched = Some(condition_row("False", "Drifted", ""))));
        assert!(good(|status| status.policies[0].interception_ready = Some(condition_row("True", "Ready", ""))));
        assert!(!good(|status| status.policies[0].interception_ready = Some(condition_row("False", "NewPodsNeeded", ""))));
        assert!(!good(|status| status.pods[0].ready = false));
        assert!(!good(|status| status.pods[0].connected = Some(false)));
        assert!(!good(|status| status.pods[0].invalid.push("agents/facebook".to_owned())));
        assert!(!good(|status| status.notes.push("unknown".to_owned())));
    }

    fn policy(metadata: &serde_json::Value, spec: &serde_json::Value) -> AnyPolicy {
        serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_policy_governs_pods_of_its_namespace_or_of_those_that_it_selects() {
        use serde_json::json;
        let labels = |text: &[(&str, &str)]| text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>();
        let key = crate::cluster::NamespacedName { namespace: "agents".to_owned(), name: "p".to_owned() };
        let pod = PodInfo {
            key,
            uid: String::new(),
            labels: labels(&[("app", "a")]),
            sidecar: None,
            proxy_port: 3,
            admin_port: 1,
            metrics_port: 2,
            ended: false,
            terminating: false,
        };
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
        assert_eq!(PolicyRow::of("MCPPolicy", &policy).accepted.reason, "NoStatus");
        let status = json!({"conditions": [condition("Accepted"), condition("Programmed")], "selected": 2, "acknowledged": 1});
        policy.status = Some(serde_json::from_value(status).unwrap());
        let told = PolicyRow::of("MCPPolicy", &policy);
        assert_eq!((told.mode.as_str(), told.accepted.status.as_str(), told.acknowledged), ("Audit", "True", 1));
        policy.metadata.generation = Some(2);
        assert_eq!(PolicyRow::of("MCPPolicy", &policy).programmed.reason, "OldStatus");
    }
}
