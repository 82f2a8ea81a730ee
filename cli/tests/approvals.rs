//! `approvals`, `approve` and `deny` against an API server that is a function: what is shown, what is written, and what is said where that
//! cannot be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{
    ApiServer, SharedBuffer,
    approval_objects::{Interference, approval},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use toolweir_cli::{
    CommandOutcome, OutputFormat,
    approvals::{
        decide::{DecideQuery, decide},
        listing::{self, ApprovalsQuery},
        watch::watch,
    },
    cluster::NamespaceScope,
    status,
};
use toolweir_crds::approval_request::ApprovalDecision;

fn now() -> Timestamp {
    "2026-12-01T12:01:00Z".parse().unwrap()
}

/// Requests of two namespaces: one waits in each, and the others are decided, over, or decided just now.
fn cluster() -> ApiServer {
    let api = ApiServer::default();
    let of = |name: &str, status: Value| {
        let mut object = approval(name, &[("agents", "bank")]);
        object["status"] = status;
        object
    };
    let mut elsewhere = of("wipe-x", json!({}));
    elsewhere["metadata"]["namespace"] = "others".into();
    elsewhere["metadata"]["creationTimestamp"] = "2026-12-01T11:59:00Z".into();
    elsewhere["spec"]["message"] = "".into();
    elsewhere["spec"]["shown"] = json!([]);
    let over = of("over-1", json!({"state": "Pending", "expiresAt": "2026-12-01T12:00:30Z"}));
    api.change(|world| {
        "jane".clone_into(&mut world.approvals.user);
        world.approvals.operated = true;
        world.approvals.objects = vec![
            approval("pay-invoice-x", &[("agents", "bank"), ("", "guardrail")]),
            of(
                "pay-used",
                json!({"state": "Used", "decision": "Approve", "decidedBy": "bob", "expiresAt": "2026-12-01T12:11:00Z"}),
            ),
            of("pay-now", json!({"state": "Pending", "decision": "Deny", "decidedBy": "bob"})),
            over,
            elsewhere,
        ];
    });
    api
}

fn query(scope: &str, all: bool, form: OutputFormat) -> ApprovalsQuery {
    let scope = if scope.is_empty() { NamespaceScope::All } else { NamespaceScope::Namespace(scope.to_owned()) };
    ApprovalsQuery { scope, all, form }
}

async fn listed(api: &ApiServer, query: &ApprovalsQuery) -> (String, Vec<String>) {
    let (approvals, notes) = listing::gather(&api.client(), query, now()).await.unwrap();
    (listing::text(&approvals, &notes, query, now()).unwrap(), notes)
}

#[tokio::test]
async fn those_that_wait_are_shown_with_what_is_asked() {
    let api = cluster();
    let golden = "\
NAME           TOOL         SERVER  AGENT     STATE    AGE  EXPIRES
pay-invoice-x  pay_invoice  bank    social-1  Pending  60s  in 9m
  Invoices over 500 need a person.
  args.amount = 600
  args.payee = ACME GmbH
";
    assert_eq!(listed(&api, &query("agents", false, OutputFormat::Text)).await, (golden.to_owned(), vec![]));
    let golden = "\
NAMESPACE  NAME           TOOL         SERVER  AGENT     STATE              AGE  EXPIRES
others     wipe-x         pay_invoice  bank    social-1  Pending            2m   in 9m
agents     over-1         pay_invoice  bank    social-1  Pending (expired)  60s  -
  ...
agents     pay-invoice-x  pay_invoice  bank    social-1  Pending            60s  in 9m
  Invoices over 500 need a person.
  args.amount = 600
  args.payee = ACME GmbH
agents     pay-now        pay_invoice  bank    social-1  Pending (denied)   60s  in 9m
agents     pay-used       pay_invoice  bank    social-1  Used               60s  -
";
    assert_eq!(listed(&api, &query("", true, OutputFormat::Text)).await.0, golden.replace("  ...\n", ""));
    let (json, _) = listed(&api, &query("agents", false, OutputFormat::Json)).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    let first = &json["approvals"][0];
    assert_eq!(
        (json["approvals"].as_array().unwrap().len(), &first["waiting"], &first["name"]),
        (1, &true.into(), &"pay-invoice-x".into())
    );
    assert_eq!((&first["spec"]["shown"][0]["value"], &first["status"]["state"]), (&"600".into(), &"Pending".into()));
}

#[tokio::test]
async fn what_a_later_version_wrote_is_named_and_cannot_be_decided() {
    let api = cluster();
    api.change(|world| {
        world.approvals.objects[0]["spec"]["shown"][1]["emptyHere"] = false.into();
        world.approvals.objects[0]["spec"]["shown"][1]["aNewer\u{1b}Field"] = 1.into();
    });
    let (text, notes) = listed(&api, &query("agents", false, OutputFormat::Text)).await;
    assert_eq!(text, "");
    assert!(
        notes[0].starts_with("request agents/pay-invoice-x has what this version does not know (the field `aNewer\\u{1b}Field`)"),
        "{notes:?}"
    );
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    assert!(error.ends_with("update the plugin"), "{error}");
    assert!(api.0.lock().unwrap().approvals.patches.is_empty());
}

async fn decided(
    api: &ApiServer,
    name: &str,
    decision: ApprovalDecision,
    reason: Option<&str>,
) -> anyhow::Result<(String, CommandOutcome)> {
    let (namespace, name, reason) = ("agents".to_owned(), name.to_owned(), reason.map(str::to_owned));
    let patience = Duration::from_millis(20);
    let query = DecideQuery { namespace, name, decision, reason, patience, form: OutputFormat::Text };
    let out = SharedBuffer::default();
    let outcome = decide(&api.client(), &query, out.clone(), now).await?;
    Ok((out.text(), outcome))
}

#[tokio::test]
async fn a_decision_is_written_once_after_it_was_shown() {
    let api = cluster();
    let (text, outcome) = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, Some("as agreed")).await.unwrap();
    let golden = "\
agents/pay-invoice-x: Pending, until 12:10 UTC
  tool:      pay_invoice of server bank
  agent:     pod social-1, service account social
  asked by:  agents/bank, guardrail
  why:       Invoices over 500 need a person.
  shown:     args.amount = 600
             args.payee = ACME GmbH
  arguments: SHA-256 9f2b
agents/pay-invoice-x is approved: the call goes through once, until 12:11 UTC.
";
    assert_eq!((text.as_str(), outcome), (golden, CommandOutcome::Positive));
    let patch = json!({"metadata": {"resourceVersion": "7"}, "status": {"decision": "Approve", "decidedBy": "jane", "reason": "as agreed"}});
    assert_eq!(api.0.lock().unwrap().approvals.patches, [patch]);
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Deny, None).await.unwrap_err().to_string();
    assert!(error.starts_with("agents/pay-invoice-x was approved by jane, and a decision is not changed"), "{error}");

    let api = cluster();
    let (text, _) = decided(&api, "pay-invoice-x", ApprovalDecision::Deny, None).await.unwrap();
    let last =
        "agents/pay-invoice-x is denied: the agent is told so, and the same call is denied without asking until 12:11 UTC.\n";
    assert!(text.ends_with(last), "{text}");
    let written = api.0.lock().unwrap().approvals.patches[0]["status"].clone();
    assert_eq!(written, json!({"decision": "Deny", "decidedBy": "jane"}));
}

#[tokio::test]
async fn a_decision_that_nobody_passes_on_is_no_success() {
    let api = cluster();
    api.change(|world| world.approvals.operated = false);
    let (text, outcome) = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap();
    assert!(
        text.contains("is written, but the operator has not passed it on after 0 s, and it only counts until 12:10 UTC."),
        "{text}"
    );
    assert_eq!(outcome, CommandOutcome::Negative);
    // It was over before it came.
    let api = cluster();
    let end = |state: &'static str| {
        move |object: &mut Value| {
            object["status"]["state"] = state.into();
            object["status"]["message"] = "policy agents/bank changed".into();
        }
    };
    api.change(|world| world.approvals.interference.push_back(Box::new(end("Voided"))));
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    assert_eq!(error, "agents/pay-invoice-x can no longer be decided, it is Voided: policy agents/bank changed");
}

#[tokio::test]
async fn of_two_who_decide_the_second_is_told_of_the_first() {
    let api = cluster();
    let other: Interference = Box::new(|object| {
        object["status"]["decision"] = "Deny".into();
        object["status"]["decidedBy"] = "bob\u{1b}".into();
    });
    api.change(|world| world.approvals.interference.push_back(other));
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    assert!(error.starts_with("agents/pay-invoice-x was denied by bob\u{fffd}, and a decision is not changed"), "{error}");
    // A change of something else does not matter.
    let api = cluster();
    let operator: Interference = Box::new(|object| object["status"]["updatedAt"] = "2026-12-01T12:00:59Z".into());
    api.change(|world| world.approvals.interference.push_back(operator));
    let (text, _) = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap();
    assert!(text.ends_with("is approved: the call goes through once, until 12:11 UTC.\n"), "{text}");
    assert_eq!(text.matches("asked by").count(), 1);
    // One that never rests is given up.
    let api = cluster();
    api.change(|world| {
        for _ in 0..9 {
            let change: Interference = Box::new(|object| object["metadata"]["labels"] = json!({}));
            world.approvals.interference.push_back(change);
        }
    });
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    assert!(error.contains("changes all the time"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_decided_is_told_in_one_line_with_what_helps() {
    let api = cluster();
    let error = async |name: &str, reason: Option<&str>| {
        decided(&api, name, ApprovalDecision::Approve, reason).await.unwrap_err().to_string()
    };
    for (name, reason, said) in [
        (
            "pay-used",
            None,
            "agents/pay-used was approved by bob, and a decision is not changed; the agent's next call of this kind may ask again",
        ),
        (
            "pay-now",
            None,
            "agents/pay-now was denied by bob, and a decision is not changed; the agent's next call of this kind may ask again",
        ),
        ("over-1", None, "agents/over-1 expired at 12:00 UTC, undecided; the agent asks again when it makes the call again"),
        ("nothing", None, "there is no request nothing in namespace agents; kubectl toolweir approvals -A shows those that wait"),
        ("pay-invoice-x", Some(" "), "--reason is empty; leave it out, or write why"),
        ("pay-invoice-x", Some("a\nb"), "--reason has a control character; write one line of text"),
        ("pay-invoice-x", Some(&"x".repeat(513)), "--reason has 513 bytes; it may have 512"),
    ] {
        assert_eq!(error(name, reason).await, said);
    }
    assert!(api.0.lock().unwrap().approvals.patches.is_empty());
    for (verb, resource) in [("get", "mcpapprovals"), ("patch", "mcpapprovals/status"), ("create", "selfsubjectreviews")] {
        api.change(|world| world.forbidden = [(verb, resource)].into());
        let said = error("pay-invoice-x", None).await;
        assert!(said.contains(&format!("the verb `{verb}` on `{}", resource.split('/').next().unwrap())), "{said}");
    }
    api.change(|world| world.forbidden = [("list", "mcpapprovals")].into());
    let said = listing::gather(&api.client(), &query("", true, OutputFormat::Text), now()).await.unwrap_err().to_string();
    assert!(said.contains("the verb `list` on `mcpapprovals.toolweir.dev`"), "{said}");
}

#[tokio::test]
async fn the_refusal_of_the_admission_policy_names_the_rule_that_is_missing() {
    let api = cluster();
    let refusal = "mcpapprovals.toolweir.dev \"pay-invoice-x\" is forbidden: ValidatingAdmissionPolicy 'toolweir-approvals' with binding \
                   'toolweir-approvals' denied request: no\u{1b}";
    api.change(|world| {
        world.approvals.refusal = Some(refusal.to_owned());
        world.approvals.lacking = ["mcppolicies/bank".to_owned(), "mcpclusterpolicies/guardrail".to_owned()].into();
    });
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    for said in [
        "jane lacks the verb `approve` on agents/bank, guardrail.",
        "{apiGroups: [toolweir.dev], resources: [mcppolicies], resourceNames: [bank], verbs: [approve]} of a Role in namespace agents and \
         {apiGroups: [toolweir.dev], resources: [mcpclusterpolicies], resourceNames: [guardrail], verbs: [approve]} of a ClusterRole",
    ] {
        assert!(error.contains(said), "{error}");
    }
    // It refuses for another reason, such as the agent's own account.
    api.change(|world| world.approvals.lacking.clear());
    let error = decided(&api, "pay-invoice-x", ApprovalDecision::Approve, None).await.unwrap_err().to_string();
    assert!(
        error.starts_with("agents/pay-invoice-x is not decided, since the API server refuses it: mcpapprovals.toolweir.dev"),
        "{error}"
    );
    assert!(error.ends_with("denied request: no\u{fffd}"), "{error}");
}

/// What a watch that runs has written.
struct Watching {
    out: SharedBuffer,
    notes: SharedBuffer,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn watching(api: &ApiServer, query: ApprovalsQuery) -> Watching {
    let (client, out, notes) = (api.client(), SharedBuffer::default(), SharedBuffer::default());
    let task = {
        let (out, notes) = (out.clone(), notes.clone());
        tokio::spawn(async move { watch(&client, &query, out, notes, now).await })
    };
    Watching { out, notes, task }
}

#[tokio::test]
async fn a_watch_shows_each_change_once_and_outlives_its_streams() {
    let api = cluster();
    let (first, first_events) = mpsc::unbounded_channel();
    let (second, second_events) = mpsc::unbounded_channel();
    api.change(|world| world.approvals.watched = [first_events, second_events].into());
    let watching = watching(&api, query("agents", false, OutputFormat::Text));
    let lines = watching.out.lines(5).await;
    assert_eq!(lines[1], "pay-invoice-x  pay_invoice  bank    social-1  Pending  60s  in 9m");
    let mut new = approval("pay-new", &[("agents", "bank")]);
    let event = |kind: &str, object: &Value| json!({"type": kind, "object": object}).to_string();
    first.send(event("ADDED", &new)).unwrap();
    assert_eq!(watching.out.lines(9).await[5], "pay-new        pay_invoice  bank    social-1  Pending  60s  in 9m");
    // A change that is none for people, then one that is.
    new["metadata"]["labels"] = json!({"a": "b"});
    first.send(event("MODIFIED", &new)).unwrap();
    new["status"]["decision"] = "Approve".into();
    new["status"]["state"] = "Approved".into();
    first.send(event("MODIFIED", &new)).unwrap();
    assert_eq!(watching.out.lines(10).await[9], "pay-new        pay_invoice  bank    social-1  Approved  60s  in 9m");
    // The watch is too old. Meanwhile the call went through, and another request was deleted and a third one made.
    new["status"]["state"] = "Used".into();
    api.change(|world| {
        world.approvals.objects[0] = new.clone();
        world.approvals.objects.push(approval("pay-third", &[("agents", "bank")]));
    });
    first
        .send(event("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})))
        .unwrap();
    drop(first);
    let lines = watching.out.lines(16).await;
    assert_eq!(
        lines[10..13],
        [
            "pay-invoice-x  pay_invoice  bank    social-1  Deleted   60s  in 9m",
            "pay-new        pay_invoice  bank    social-1  Used      60s  -",
            "pay-third      pay_invoice  bank    social-1  Pending   60s  in 9m",
        ]
    );
    second.send(event("DELETED", &approval("pay-third", &[("agents", "bank")]))).unwrap();
    assert_eq!(watching.out.lines(17).await[16], "pay-third      pay_invoice  bank    social-1  Deleted   60s  in 9m");
    assert!(!watching.task.is_finished());
    watching.task.abort();
    assert_eq!((watching.notes.text().as_str(), watching.out.lines(17).await.len()), ("", 17));
}

#[tokio::test]
async fn a_watch_without_the_right_ends() {
    for (verb, said) in [("list", "the verb `list` on"), ("watch", "the verb `watch` on")] {
        let api = cluster();
        api.change(|world| world.forbidden = [(verb, "mcpapprovals")].into());
        let watching = watching(&api, query("", true, OutputFormat::Json));
        let error = watching.task.await.unwrap().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        if verb == "watch" {
            let lines = watching.out.lines(5).await;
            let row: Value = serde_json::from_str(&lines[0]).unwrap();
            assert_eq!((&row["name"], &row["waiting"]), (&"wipe-x".into(), &true.into()));
        }
    }
}

#[tokio::test]
async fn the_status_counts_what_waits_for_policies_that_ask() {
    let api = cluster();
    let asking = json!({"servers": [{"name": "bank", "tools": [{"name": "pay_invoice", "approval": {"aNewerField": 1}}]}]});
    let policy = |namespace: Option<&str>, name: &str, spec: &Value| json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    api.change(|world| {
        world.policies = vec![policy(Some("agents"), "bank", &asking), policy(Some("agents"), "mail", &json!({"servers": []}))];
        world.cluster_policies = vec![policy(None, "guardrail", &asking), policy(None, "other", &asking)];
    });
    let gathered = async |scope: &NamespaceScope| status::gather(&api.client(), scope, now()).await.unwrap();
    let golden = "
POLICY       APPROVALS WAITING  OLDEST
agents/bank  2                  2m
guardrail    1                  60s
other        0                  -

No pod has a sidecar.
";
    let found = gathered(&NamespaceScope::All).await;
    assert!(found.text().ends_with(golden), "{}", found.text());
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        (&json["policies"][0]["approvals"], &json["policies"][1]["approvals"]),
        (&json!({"waiting": 2, "oldestSeconds": 120}), &Value::Null)
    );
    let agents = NamespaceScope::Namespace("agents".to_owned());
    assert_eq!(gathered(&agents).await.policies[0].approvals.unwrap().waiting, 1);
    // It is asked only where a policy asks, and then what is not known is told.
    api.change(|world| world.forbidden = [("list", "mcpapprovals")].into());
    let notes = gathered(&agents).await.notes;
    assert!(
        notes.iter().any(|note| note.starts_with("it is unknown which calls wait for a person: you may not list")),
        "{notes:?}"
    );
    api.change(|world| {
        world.policies.remove(0);
        world.cluster_policies.clear();
        world.seen.clear();
    });
    gathered(&agents).await;
    assert_eq!(api.seen("mcpapprovals"), Vec::<String>::new());
}
