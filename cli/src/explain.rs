//! `kubectl toolweir explain`: which entry of which policy decides a call, and how much of each limit is left.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{anyhow, bail};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{Api, Client};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use toolweir_crds::{
    Action, OperationKind, PartSet,
    explain::{
        ApprovalExplanation, AskExplanation, ConcurrencyExplanation, EntryExplanation, ExplainResponse, Explanation,
        LimitExplanation, PinsExplanation, PolicyExplanation, ServerExplanation, ValidationExplanation, VerdictExplanation,
    },
};

use crate::{
    CommandOutcome, OutputFormat,
    approvals::request_text::{safe_line, value_line},
    cluster::{ApiAccess, NamespaceScope, PodInfo, is_missing, list},
    forward::{self, PodResponse},
    table::{number, safe_json, short, shown, table},
};

/// The reason of a call that a person must approve.
const APPROVAL_PENDING: &str = "approval_pending";

/// Maximum number of pods that an error message lists.
const NAMED: usize = 10;

/// The call to explain.
#[derive(Clone, Debug, Default)]
pub struct ExplainQuery {
    /// The pod that would make the call.
    pub pod: String,
    /// The kind of what would be asked for.
    pub kind: OperationKind,
    /// The tool, or the name of what else would be asked for.
    pub name: String,
    /// The arguments, as JSON text.
    pub arguments: Option<String>,
    /// The server; optional if the pod's policies name only one.
    pub server: Option<String>,
    /// The MCP session.
    pub session: Option<String>,
    /// The output format.
    pub form: OutputFormat,
}

/// The body of `POST /explain`.
#[derive(Serialize)]
struct ExplainRequestBody<'a> {
    /// The name of what is asked for, at its kind.
    #[serde(flatten)]
    asked: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    /// The arguments exactly as written, so that the sidecar can judge ambiguous JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

/// Asks the pod's sidecar. Returns the output, and whether the call would be allowed.
///
/// # Errors
/// The pod or its sidecar does not exist, a right is missing, or the arguments are not a JSON object.
pub async fn explain(client: &Client, namespace: &str, options: &ExplainQuery) -> anyhow::Result<(String, CommandOutcome)> {
    let arguments = options.arguments.as_deref().map(arguments).transpose()?;
    let ExplainQuery { kind, name, server, session, .. } = options;
    if arguments.is_some() && matches!(kind, OperationKind::Resource | OperationKind::Other) {
        bail!("no condition on a {kind} reads arguments; leave them out");
    }
    let asked = BTreeMap::from([(kind.noun(), name.as_str())]);
    let request_body = ExplainRequestBody { asked, server: server.as_deref(), arguments, session: session.as_deref() };
    let (pod, answer) = ask(client, namespace, &options.pod, &request_body).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST if server.is_none() && answer.text().starts_with("which server?") => {
            bail!("{} with --server", shown(&answer.text()).replace(" as `server`", ""))
        }
        StatusCode::BAD_REQUEST if answer.text().starts_with(&format!("`{kind}` is not known")) => {
            bail!("the sidecar of pod {} is too old: it decides on tools alone. Restart the pod to get a new sidecar", pod.key)
        }
        status => bail!("the sidecar of pod {} responded {status}: {}", pod.key, shown(&answer.text())),
    }
    let read: ExplainResponse = parse(&pod, &answer)?;
    let found = if read.explanation.verdict.allowed { CommandOutcome::Positive } else { CommandOutcome::Negative };
    let written = match options.form {
        OutputFormat::Text => text(&pod.key.to_string(), &read),
        OutputFormat::Json => safe_json(&json(&pod, &answer)?),
    };
    Ok((written, found))
}

/// Asks the sidecar of a pod with `POST /explain`. Returns the pod and the response, whatever its status is.
pub(crate) async fn ask(
    client: &Client,
    namespace: &str,
    pod: &str,
    question: &impl Serialize,
) -> anyhow::Result<(PodInfo, PodResponse)> {
    let pod = find_running(client, namespace, pod).await?;
    let question = serde_json::to_string(question)?;
    let answer = forward::request(client, &pod.key, pod.admin_port, "/explain", Some(question)).await?;
    if answer.status == StatusCode::NOT_FOUND {
        bail!(
            "the sidecar of pod {} is too old for this plugin: it has no /explain. Restart the pod to get a new sidecar",
            pod.key
        );
    }
    Ok((pod, answer))
}

/// Parses the response of a pod's sidecar.
pub(crate) fn parse<T: DeserializeOwned>(pod: &PodInfo, answer: &PodResponse) -> anyhow::Result<T> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| anyhow!("the response of the sidecar of pod {} cannot be parsed: {error}", pod.key))
}

/// Formats the response of a pod's sidecar as JSON: with fields that this version does not know, and the pod.
pub(crate) fn json(pod: &PodInfo, answer: &PodResponse) -> anyhow::Result<String> {
    let mut value: Value = parse(pod, answer)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("namespace".to_owned(), pod.key.namespace.as_str().into());
        fields.insert("pod".to_owned(), pod.key.name.as_str().into());
    }
    Ok(format!("{value:#}\n"))
}

/// Parses the arguments of a call: a JSON object.
fn arguments(text: &str) -> anyhow::Result<&RawValue> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| {
        anyhow!("the arguments are not valid JSON ({error}); write an object in quotes, such as '{{\"amount\": 5}}'")
    })?;
    if !raw.get().starts_with('{') {
        bail!("the arguments are not an object; write one in quotes, such as '{{\"amount\": 5}}'");
    }
    Ok(raw)
}

/// Finds a pod that has a sidecar.
///
/// # Errors
/// The pod does not exist or has no sidecar; the error says what to do.
pub async fn find(client: &Client, namespace: &str, name: &str) -> anyhow::Result<PodInfo> {
    let api: Api<KubePod> = Api::namespaced(client.clone(), namespace);
    let pod = match api.get(name).await {
        Ok(pod) => PodInfo::from(&pod),
        Err(error) if is_missing(&error) => {
            bail!("there is no pod {name} in namespace {namespace}; {}", others(client, namespace).await)
        }
        Err(error) => return Err(ApiAccess { verb: "get", resource: "pods", namespace: Some(namespace) }.failed(&error)),
    };
    if pod.sidecar.is_none() {
        bail!(
            "pod {} has no sidecar, so no policy restricts its calls; label the namespace toolweir.dev/inject=enabled and restart \
             the pod (docs/injection.md lists the reasons why a pod is not injected)",
            pod.key
        );
    }
    Ok(pod)
}

/// Finds a pod whose sidecar runs. Its name may begin with `pod/`.
///
/// # Errors
/// As [`find`], or the sidecar does not run.
pub(crate) async fn find_running(client: &Client, namespace: &str, name: &str) -> anyhow::Result<PodInfo> {
    let pod = find(client, namespace, name.strip_prefix("pod/").unwrap_or(name)).await?;
    let sidecar = pod.sidecar.clone().unwrap_or_default();
    if !sidecar.running {
        let why = sidecar.waiting_reason.map(|why| format!(" ({why})")).unwrap_or_default();
        bail!("the sidecar of pod {} does not run{why}; kubectl -n {namespace} describe pod {} says why", pod.key, pod.key.name);
    }
    Ok(pod)
}

/// Suggests pods for an error message.
async fn others(client: &Client, namespace: &str) -> String {
    let api = NamespaceScope::Namespace(namespace.to_owned()).pods(client);
    let pods = list(&api, ApiAccess { verb: "list", resource: "pods", namespace: Some(namespace) }).await.unwrap_or_default();
    let names: Vec<String> =
        pods.iter().map(PodInfo::from).filter(|pod| pod.sidecar.is_some() && !pod.ended).map(|pod| pod.key.name).collect();
    match names.len() {
        0 => "choose another namespace with -n".to_owned(),
        many => {
            let more = if many > NAMED { ", ..." } else { "" };
            let some = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("pods with a sidecar in that namespace: {some}{more}")
        }
    }
}

/// Formats the response for people.
pub fn text(pod: &str, answer: &ExplainResponse) -> String {
    let ExplainResponse { version, servers, explanation } = answer;
    let Explanation { server, kind, tool, decision, verdict, would_deny, policies, class } = explanation;
    let mut text =
        format!("pod {pod}, server {}, {kind} {}: {}\n", shown(server), shown(tool), decision_text(decision, &verdict.reason));
    for line in verdict.message.iter().chain(would_deny.iter().filter_map(|verdict| verdict.message.as_ref())) {
        let _ = writeln!(text, "  {}", shown(line));
    }
    let asks = verdict.approval.iter().chain(would_deny.iter().filter_map(|verdict| verdict.approval.as_ref()));
    asks.for_each(|ask| ask_text(ask, &mut text));
    if policies.is_empty() {
        let known = if servers.is_empty() { "none".to_owned() } else { servers.join(", ") };
        let _ = writeln!(text, "\nServers in the policies of this pod: {}", shown(&known));
        return text;
    }
    if let Some(class) = class {
        let _ = writeln!(text, "\nClass of the tool, as its server listed it last: {}", class.as_str());
    }
    let _ = writeln!(text, "\nPolicies in force, version {}:", shown(version));
    let rows: Vec<Vec<String>> = policies.iter().flat_map(|policy| policy_rows(policy, *kind)).collect();
    text.push_str(&table(2, &["POLICY", "MODE", "ACTION", "GIVEN BY", "ENTRIES THAT MATCH", "VERDICT"], &rows));
    let DetailRows { pins, limits, places, conditions, approvals } = DetailRows::of(policies);
    for (title, header, rows) in [
        ("Pins", &["POLICY", "PINS", "TOOL", "CHANGED"][..], pins),
        ("Limits", &["POLICY", "ENTRY", "LIMIT", "COUNT OF", "USED", "LEFT", "THIS CALL", "FITS"][..], limits),
        ("Calls under way", &["POLICY", "ENTRY", "NOW", "AT MOST"][..], places),
        ("Conditions", &["POLICY", "ENTRY", "CONDITION", "HOLDS"][..], conditions),
        ("Approvals", &["POLICY", "ENTRY", "CONDITION", "ASKS", "HOLD", "EXPIRY", "PENDING"][..], approvals),
    ] {
        if !rows.is_empty() {
            let _ = writeln!(text, "\n{title}:");
            text.push_str(&table(2, header, &rows));
        }
    }
    text
}

/// Adds what a person would be asked. Whether one was asked already, a sidecar does not say here.
fn ask_text(ask: &AskExplanation, text: &mut String) {
    let AskExplanation { policies, message, shown: values, hold, expiry, pending } = ask;
    let policies: Vec<String> = policies.iter().map(|policy| safe_line(policy)).collect();
    let mut lines = vec![("by", policies.join(", "))];
    lines.extend(Some(("why", safe_line(message))).filter(|_| !message.is_empty()));
    lines.extend(values.iter().enumerate().map(|(number, value)| (if number == 0 { "shown" } else { "" }, value_line(value))));
    lines.push(("for", format!("{expiry}; the call waits {hold}, and at most {pending} requests of the pod wait at once")));
    text.push_str("\nA person would be asked:\n");
    for (name, value) in lines {
        let name = if name.is_empty() { String::new() } else { format!("{name}:") };
        let _ = writeln!(text, "  {name:<7}{value}");
    }
}

/// Rows of a table.
type TableRows = Vec<Vec<String>>;

/// What policies say of a call in detail: the rows of the tables that follow their verdicts.
#[derive(Default)]
struct DetailRows {
    pins: TableRows,
    limits: TableRows,
    places: TableRows,
    conditions: TableRows,
    approvals: TableRows,
}

impl DetailRows {
    fn of(policies: &[PolicyExplanation]) -> Self {
        let mut rows = Self::default();
        for (policy, server) in policies.iter().flat_map(|policy| policy.servers.iter().map(move |server| (policy, server))) {
            rows.pins.extend(server.pins.as_ref().map(|pins| pin_cells(policy, pins)));
            server.entries.iter().for_each(|entry| rows.add(policy, entry));
        }
        rows
    }

    fn add(&mut self, policy: &PolicyExplanation, entry: &EntryExplanation) {
        let row =
            |cells: Vec<String>| [vec![shown(&policy.policy).into_owned(), shown(&entry.name).into_owned()], cells].concat();
        self.limits.extend(entry.limits.iter().map(limit_cells).map(row));
        self.places.extend(entry.max_concurrent.as_ref().map(place_cells).map(row));
        self.conditions.extend(entry.validations.iter().map(condition_cells).map(row));
        self.approvals.extend(entry.approval.as_ref().map(approval_cells).map(row));
    }
}

fn place_cells(places: &ConcurrencyExplanation) -> Vec<String> {
    let now = if places.store_unavailable { "?".to_owned() } else { places.under_way.to_string() };
    let scope = if places.scope.is_default() { String::new() } else { format!("/{:?}", places.scope) };
    vec![now, format!("{}{scope}", places.max)]
}

fn condition_cells(validation: &ValidationExplanation) -> Vec<String> {
    let holds = match (&validation.error, validation.holds) {
        (Some(error), _) => format!("no: {}", shown(error)),
        (None, true) => "yes".to_owned(),
        (None, false) => "no".to_owned(),
    };
    vec![shown(&validation.expression).into_owned(), holds]
}

fn approval_cells(approval: &ApprovalExplanation) -> Vec<String> {
    let ApprovalExplanation { when, asks, error, hold, expiry, pending } = approval;
    let when = when.as_ref().map_or_else(|| "every call".to_owned(), |when| safe_line(when));
    let asks = match (error, asks) {
        (Some(error), _) => format!("yes, since it fails: {}", safe_line(error)),
        (None, true) => "yes".to_owned(),
        (None, false) => "no".to_owned(),
    };
    vec![when, asks, hold.to_string(), expiry.to_string(), pending.to_string()]
}

/// Returns a decision in words, with its reason.
pub(crate) fn decision_text(decision: &str, reason: &str) -> String {
    let decision = match decision {
        "would_deny" => "allowed, though a policy in audit mode would deny it",
        "would_ask" => "allowed, though a policy in audit mode would ask a person",
        "denied" if reason == APPROVAL_PENDING => "needs a person's approval",
        other => other,
    };
    if reason == "none" { shown(decision).into_owned() } else { format!("{} ({})", shown(decision), shown(reason)) }
}

/// Returns the rows of one policy: one for its own name of the server, and one for `*`.
fn policy_rows(policy: &PolicyExplanation, kind: OperationKind) -> Vec<Vec<String>> {
    let mode = policy.mode.as_str();
    let VerdictExplanation { allowed, reason, retry_after_seconds, .. } = &policy.verdict;
    let mut verdict = match (allowed, reason.as_str()) {
        (true, _) => "allows".to_owned(),
        (false, APPROVAL_PENDING) => format!("asks ({APPROVAL_PENDING})"),
        (false, reason) => format!("denies ({})", shown(reason)),
    };
    if let Some(seconds) = retry_after_seconds {
        verdict.push_str(&format!(", again in {seconds} s"));
    }
    if let Some(why) = &policy.broken {
        verdict.push_str(&format!(", since it does not compile: {}", shown(why)));
    }
    let row = |server: &ServerExplanation| {
        let action = match server.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        };
        let every = if server.server == "*" { " of server *" } else { "" };
        let by = match &server.entry {
            Some(entry) => format!("{}{every}", shown(entry)),
            None if policy.broken.is_some() => "-".to_owned(),
            None if kind == OperationKind::Tool => format!("defaultAction{every}"),
            None => format!("defaultActions.{}{every}", kind.field()),
        };
        let entries: Vec<String> = server.entries.iter().map(|entry| shown(&entry.name).into_owned()).collect();
        let entries = if entries.is_empty() { "none".to_owned() } else { entries.join(", ") };
        vec![shown(&policy.policy).into_owned(), mode.to_owned(), action.to_owned(), by, entries, verdict.clone()]
    };
    policy.servers.iter().map(row).collect()
}

fn pin_cells(policy: &PolicyExplanation, pins: &PinsExplanation) -> Vec<String> {
    let PinsExplanation { pins, state, changed } = pins;
    let state = match state.as_str() {
        "same" => "as pinned",
        "new" => "not pinned",
        "unverified" => "not listed yet",
        "missing" => "no such pins",
        other => other,
    };
    let changed = if changed.is_empty() { "-".to_owned() } else { changed.iter().copied().collect::<PartSet>().to_string() };
    vec![shown(&policy.policy).into_owned(), shown(pins).into_owned(), shown(state).into_owned(), changed]
}

fn limit_cells(limit: &LimitExplanation) -> Vec<String> {
    let count = match (&limit.key, &limit.key_value) {
        (Some(key), Some(value)) => format!("{} = {}", shown(key), shown(value)),
        (Some(key), None) => format!("the fullest of {}", shown(key)),
        (None, _) if limit.scope == toolweir_crds::Scope::Session => "the session".to_owned(),
        (None, _) => "all".to_owned(),
    };
    let why = limit.error.as_deref().or(limit.store_unavailable.then_some("the shared store does not answer"));
    let fits = match (limit.fits, why, limit.retry_after_seconds) {
        (true, ..) => "yes".to_owned(),
        (false, Some(why), _) => format!("no: {}", shown(why)),
        (false, None, Some(seconds)) => format!("no, in {}", short(std::time::Duration::from_secs(seconds))),
        (false, None, None) => "never".to_owned(),
    };
    // The counts of a store that does not answer are unknown.
    let known = |amount: f64| if limit.store_unavailable { "?".to_owned() } else { number(amount) };
    let adds = limit.adds.map_or_else(|| "?".to_owned(), number);
    vec![shown(&limit.limit).into_owned(), count, known(limit.used), known(limit.left), adds, fits]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> ExplainResponse {
        serde_json::from_value(json!({
            "version": "3f2a9c", "servers": ["bank"], "server": "bank", "tool": "pay_invoice", "decision": "denied",
            "verdict": {"allowed": false, "reason": "rate_limit", "policy": "agents/bank", "entry": "pay_invoice",
                "message": "Denied by policy agents/bank: pay_invoice is limited.", "retryAfterSeconds": 12},
            "policies": [
                {"policy": "agents/bank", "mode": "Enforce", "verdict": {"allowed": false, "reason": "rate_limit", "retryAfterSeconds": 12},
                 "servers": [{"server": "bank", "action": "Allow", "entry": "pay_invoice", "entries": [
                    {"name": "pay_invoice", "action": "Allow",
                     "validations": [{"expression": "args.amount <= 500", "holds": true}, {"expression": "args.x", "error": "no such key"}],
                     "limits": [{"limit": "2000/day", "max": 2000, "key": "args.currency", "keyValue": "\"EUR\"", "used": 1900.5,
                                 "left": 99.5, "adds": 100.0, "fits": false, "retryAfterSeconds": 12}]},
                    {"name": "*", "limits": [{"limit": "300/hour", "used": 41.0, "left": 259.0, "adds": 1.0, "fits": true}],
                     "maxConcurrent": {"max": 4, "underWay": 1}},
                 ]}]},
                {"policy": "guardrail", "mode": "Audit", "verdict": {"allowed": false, "reason": "not_listed"},
                 "servers": [{"server": "*", "action": "Deny"}]},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_no_tool_is_called_what_it_is() {
        let answer: ExplainResponse = serde_json::from_value(json!({
            "version": "3f2a9c", "servers": ["bank"], "server": "bank", "kind": "prompt", "tool": "review", "decision": "denied",
            "verdict": {"allowed": false, "reason": "not_listed"},
            "policies": [{"policy": "agents/bank", "mode": "Enforce", "verdict": {"allowed": false, "reason": "not_listed"},
                "servers": [{"server": "bank", "action": "Deny"}]}],
        }))
        .unwrap();
        let text = text("agents/social-1", &answer);
        assert!(text.starts_with("pod agents/social-1, server bank, prompt review: denied (not_listed)\n"), "{text}");
        assert!(text.contains("  agents/bank  Enforce  Deny    defaultActions.prompts  none"), "{text}");
    }

    #[test]
    fn people_get_the_verdict_and_what_it_is_made_of() {
        let golden = "\
pod agents/social-1, server bank, tool pay_invoice: denied (rate_limit)
  Denied by policy agents/bank: pay_invoice is limited.

Policies in force, version 3f2a9c:
  POLICY       MODE     ACTION  GIVEN BY                   ENTRIES THAT MATCH  VERDICT
  agents/bank  Enforce  Allow   pay_invoice                pay_invoice, *      denies (rate_limit), again in 12 s
  guardrail    Audit    Deny    defaultAction of server *  none                denies (not_listed)

Limits:
  POLICY       ENTRY        LIMIT     COUNT OF               USED    LEFT  THIS CALL  FITS
  agents/bank  pay_invoice  2000/day  args.currency = \"EUR\"  1900.5  99.5  100        no, in 12s
  agents/bank  *            300/hour  all                    41      259   1          yes

Calls under way:
  POLICY       ENTRY  NOW  AT MOST
  agents/bank  *      1    4

Conditions:
  POLICY       ENTRY        CONDITION           HOLDS
  agents/bank  pay_invoice  args.amount <= 500  yes
  agents/bank  pay_invoice  args.x              no: no such key
";
        assert_eq!(text("agents/social-1", &answer()), golden);
    }

    #[test]
    fn counts_of_a_store_that_does_not_answer_are_not_known() {
        let mut answer = answer();
        answer.explanation.policies[0].servers[0].entries = serde_json::from_value(json!([{
            "name": "pay_invoice",
            "limits": [
                {"limit": "30/minute/Workload", "max": 30, "scope": "Workload", "used": 30.0, "adds": 1.0, "retryAfterSeconds": 12},
                {"limit": "7/day/Namespace", "max": 7, "scope": "Namespace", "adds": 1.0, "storeUnavailable": true},
                {"limit": "8/day/Policy", "max": 8, "scope": "Policy", "adds": 1.0, "fits": true, "storeUnavailable": true},
            ],
            "maxConcurrent": {"max": 4, "scope": "Workload", "storeUnavailable": true},
        }]))
        .unwrap();
        let golden = "
Limits:
  POLICY       ENTRY        LIMIT               COUNT OF  USED  LEFT  THIS CALL  FITS
  agents/bank  pay_invoice  30/minute/Workload  all       30    0     1          no, in 12s
  agents/bank  pay_invoice  7/day/Namespace     all       ?     ?     1          no: the shared store does not answer
  agents/bank  pay_invoice  8/day/Policy        all       ?     ?     1          yes

Calls under way:
  POLICY       ENTRY        NOW  AT MOST
  agents/bank  pay_invoice  ?    4/Workload
";
        let text = text("agents/social-1", &answer);
        assert!(text.ends_with(golden), "{text}");
    }

    #[test]
    fn the_class_and_the_pins_of_the_tool_are_told() {
        let mut answer = answer();
        answer.explanation.class = Some(toolweir_crds::ToolClass::Financial);
        answer.explanation.verdict.reason = "pin_drift".to_owned();
        let policies = json!([
            {"policy": "agents/bank", "mode": "Enforce", "verdict": {"allowed": false, "reason": "pin_drift"},
             "servers": [{"server": "bank", "action": "Allow", "entry": "class:Financial", "entries": [{"name": "class:Financial"}],
                          "pins": {"pins": "agents/bank", "state": "changed", "changed": ["description", "_meta"]}}]},
            {"policy": "agents/other", "mode": "Enforce", "verdict": {"allowed": true, "reason": "none"},
             "servers": [{"server": "bank", "action": "Allow", "pins": {"pins": "agents/other", "state": "missing"}}]},
        ]);
        answer.explanation.policies = serde_json::from_value(policies).unwrap();
        let golden = "\
pod agents/social-1, server bank, tool pay_invoice: denied (pin_drift)
  Denied by policy agents/bank: pay_invoice is limited.

Class of the tool, as its server listed it last: Financial

Policies in force, version 3f2a9c:
  POLICY        MODE     ACTION  GIVEN BY         ENTRIES THAT MATCH  VERDICT
  agents/bank   Enforce  Allow   class:Financial  class:Financial     denies (pin_drift)
  agents/other  Enforce  Allow   defaultAction    none                allows

Pins:
  POLICY        PINS          TOOL          CHANGED
  agents/bank   agents/bank   changed       description, _meta
  agents/other  agents/other  no such pins  -
";
        assert_eq!(text("agents/social-1", &answer), golden);
    }

    #[test]
    fn what_a_person_would_be_asked_is_told() {
        let mut answer = answer();
        let ask = json!({"policies": ["agents/bank", "guardrail"], "message": "Invoices over 500 need a\u{1b} person.", "hold": "30s",
            "expiry": "10m", "pending": 5, "shown": [{"expression": "args.amount", "value": "600"}, {"expression": "args.payee", "value": "A", "cut": true}]});
        let verdict = json!({"allowed": false, "reason": "approval_pending", "policy": "agents/bank", "entry": "pay_invoice",
            "message": "Denied by policy agents/bank: pay_invoice needs the approval of a person.", "approval": ask});
        answer.explanation.verdict = serde_json::from_value(verdict).unwrap();
        let approval = |when: Option<&str>, asks: bool, error: Option<&str>| json!({"when": when, "asks": asks, "error": error, "hold": "30s", "expiry": "10m", "pending": 5});
        let entry = |name: &str, approval: Value| json!({"name": name, "approval": approval});
        let entries = [
            entry("pay_invoice", approval(Some("args.amount > 500"), true, None)),
            entry("pay_*", approval(Some("args.x > 1"), true, Some("no such key\u{1b}"))),
            entry("*", approval(Some("args.amount > 900"), false, None)),
            entry("class:Financial", approval(None, true, None)),
        ];
        let policies = json!([{"policy": "agents/bank", "verdict": {"allowed": false, "reason": "approval_pending"},
            "servers": [{"server": "bank", "action": "Allow", "entry": "pay_invoice", "entries": entries}]}]);
        answer.explanation.policies = serde_json::from_value(policies).unwrap();
        let golden = "\
pod agents/social-1, server bank, tool pay_invoice: needs a person's approval (approval_pending)
  Denied by policy agents/bank: pay_invoice needs the approval of a person.

A person would be asked:
  by:    agents/bank, guardrail
  why:   Invoices over 500 need a\u{fffd} person.
  shown: args.amount = 600
         args.payee = A ... (cut)
  for:   10m; the call waits 30s, and at most 5 requests of the pod wait at once

Policies in force, version 3f2a9c:
  POLICY       MODE     ACTION  GIVEN BY     ENTRIES THAT MATCH                      VERDICT
  agents/bank  Enforce  Allow   pay_invoice  pay_invoice, pay_*, *, class:Financial  asks (approval_pending)

Approvals:
  POLICY       ENTRY            CONDITION          ASKS                               HOLD  EXPIRY  PENDING
  agents/bank  pay_invoice      args.amount > 500  yes                                30s   10m     5
  agents/bank  pay_*            args.x > 1         yes, since it fails: no such key\u{fffd}  30s   10m     5
  agents/bank  *                args.amount > 900  no                                 30s   10m     5
  agents/bank  class:Financial  every call         yes                                30s   10m     5
";
        assert_eq!(text("agents/social-1", &answer), golden);
        answer.explanation.decision = "would_ask".to_owned();
        answer.explanation.verdict.allowed = true;
        let first = "pod agents/social-1, server bank, tool pay_invoice: allowed, though a policy in audit mode would ask a person (approval_pending)\n";
        assert!(text("agents/social-1", &answer).starts_with(first));
    }

    #[test]
    fn a_server_that_no_policy_names_is_told_with_those_that_are() {
        let explanation = Explanation {
            server: "x".to_owned(),
            tool: "t".to_owned(),
            decision: "denied".to_owned(),
            verdict: VerdictExplanation {
                reason: "no_policy".to_owned(),
                message: Some("Denied: no.".to_owned()),
                ..VerdictExplanation::default()
            },
            ..Explanation::default()
        };
        let answer =
            ExplainResponse { servers: vec!["bank".to_owned(), "shop".to_owned()], explanation, ..ExplainResponse::default() };
        let golden = "\
pod n/p, server x, tool t: denied (no_policy)
  Denied: no.

Servers in the policies of this pod: bank, shop
";
        assert_eq!(text("n/p", &answer), golden);
    }

    #[test]
    fn arguments_are_an_object_and_stay_as_they_are() {
        assert_eq!(arguments(r#" {"a":1, "a":2} "#).unwrap().get(), r#"{"a":1, "a":2}"#);
        for bad in ["", "{", "[]", "5", "{} {}"] {
            assert!(arguments(bad).unwrap_err().to_string().contains("write"), "{bad}");
        }
    }
}
