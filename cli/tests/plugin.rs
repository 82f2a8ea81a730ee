//! The commands against an API server that is a function: what they ask it for, what they make of its answers, and what they
//! say when it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use common::{ApiServer, RunningSidecar, SharedBuffer, pod, sidecar};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use toolweir_cli::{
    CommandOutcome, OutputFormat,
    cluster::NamespaceScope,
    denials::{self, denials},
    explain::{self, explain},
    explain_url::{UrlQuery, explain_url},
    status,
};
use toolweir_crds::OperationKind;

const POLICY: &str = "
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: bank, namespace: agents}
spec:
  servers:
  - name: bank
    url: http://127.0.0.1:1/mcp
    tools:
    - {name: pay, limits: [{max: 1, window: hour}]}
";

fn agents() -> NamespaceScope {
    NamespaceScope::Namespace("agents".to_owned())
}

fn condition(name: &str, holds: bool, reason: &str, message: &str) -> Value {
    json!({"type": name, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
           "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn policy(namespace: Option<&str>, name: &str, spec: &Value, conditions: &[Value]) -> Value {
    let mut metadata = json!({"name": name, "generation": 1});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({"metadata": metadata, "spec": spec, "status": {"conditions": conditions, "selected": 3, "acknowledged": 2}})
}

/// A cluster with policies and pods; the sidecar of `social-1` is a real one.
async fn cluster() -> (ApiServer, RunningSidecar) {
    let api = ApiServer::default();
    let running = sidecar(POLICY).await;
    api.change(|world| {
        let accepted = condition("Accepted", true, "Accepted", "");
        let programmed = condition("Programmed", true, "Programmed", "");
        let missing = condition("Programmed", false, "NoSidecar", "1 of 3 pods have no sidecar.");
        let social = json!({"podSelector": {"matchLabels": {"app": "social"}}, "servers": []});
        world.policies = vec![
            policy(Some("agents"), "bank", &social, &[accepted.clone(), missing]),
            policy(
                Some("agents"),
                "other",
                &json!({"podSelector": {"matchLabels": {"app": "x"}}}),
                &[accepted.clone(), programmed.clone()],
            ),
            policy(Some("elsewhere"), "third", &json!({}), &[accepted.clone(), programmed.clone()]),
        ];
        let team = json!({"namespaceSelector": {"matchLabels": {"team": "x"}}, "mode": "Audit", "aNewerField": 1});
        world.cluster_policies = vec![policy(None, "guardrail", &team, &[accepted, programmed])];
        world.namespaces = vec![
            json!({"metadata": {"name": "agents", "labels": {"team": "x"}}}),
            json!({"metadata": {"name": "elsewhere"}}),
            json!({"metadata": {"name": "third"}}),
        ];
        let mut over = pod("agents", "job", false);
        over["status"]["phase"] = "Succeeded".into();
        world.pods = vec![
            pod("agents", "social-1", true),
            pod("agents", "social-2", true),
            pod("agents", "bare", false),
            pod("elsewhere", "bare", false),
            over,
        ];
        world.ports.insert(("social-1".to_owned(), 15020), running.sidecar.metrics);
        world.ports.insert(("social-1".to_owned(), 15000), running.sidecar.admin);
    });
    (api, running)
}

#[tokio::test]
async fn status_shows_policies_sidecars_and_pods_where_nothing_enforces_them() {
    let (api, running) = cluster().await;
    let found = status::gather(&api.client(), &NamespaceScope::All, Timestamp::now()).await.unwrap();
    let version = running.sidecar.governor.in_force().version.clone();
    let golden = format!(
        "\
KIND              POLICY           MODE     ACCEPTED  PROGRAMMED         SIDECARS
MCPPolicy         agents/bank      Enforce  True      False (NoSidecar)  2/3
MCPPolicy         agents/other     Enforce  True      True               2/3
MCPPolicy         elsewhere/third  Enforce  True      True               2/3
MCPClusterPolicy  guardrail        Audit    True      True               2/3
  agents/bank: Programmed is False: 1 of 3 pods have no sidecar.

POD              READY  CONNECTED  VERSION       POLICY AGE  POLICIES
agents/social-1  yes    yes        {version}  0s          1
agents/social-2  yes    ?          ?             ?           ?

These pods are selected by policies but have no sidecar, so nothing enforces the policies.
Label their namespaces toolweir.dev/inject=enabled and restart the pods:
  POD             SELECTED BY
  agents/bare     agents/bank, guardrail
  elsewhere/bare  elsewhere/third

note: pod agents/social-2, port 15020: connection refused; does its sidecar run?
"
    );
    assert_eq!(found.text(), golden);
    assert_eq!(found.outcome(), CommandOutcome::Negative);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!((&json["pods"][0]["version"], &json["pods"][0]["ageSeconds"]), (&version.into(), &0.0.into()));
    assert_eq!(
        (&json["policies"][0]["programmed"]["reason"], &json["policies"][0]["selected"]),
        (&"NoSidecar".into(), &3.into())
    );

    // Of one namespace, nothing is asked beyond it but the policies of the cluster.
    api.change(|world| world.seen.clear());
    let found = status::gather(&api.client(), &agents(), Timestamp::now()).await.unwrap();
    assert_eq!((found.policies.len(), found.without_sidecar.len()), (3, 1));
    let beyond: Vec<String> = api.seen("").into_iter().filter(|path| !path.contains("/namespaces/agents")).collect();
    assert!(beyond.iter().all(|path| path.contains("/mcpclusterpolicies?")), "{beyond:?}");
}

#[tokio::test]
async fn status_shows_which_servers_have_a_credential_and_whether_it_can_be_used() {
    let (api, _running) = cluster().await;
    api.change(|world| {
        let accepted = condition("Accepted", true, "Accepted", "");
        let programmed = condition("Programmed", true, "Programmed", "");
        let lacks = condition("CredentialsReady", false, "NotMounted", "1 of 3 sidecars lack the Secret with the keys.");
        let ready = condition("CredentialsReady", true, "Ready", "All 3 sidecars can use them.");
        let two = json!({"servers": [
            {"name": "bank", "url": "https://bank/mcp", "credential": {"bearer": {"secretKey": "bank-token"}}},
            {"name": "crm", "url": "https://crm/mcp", "credential": {"tokenExchange": {"tokenUrl": "https://sts", "subjectAudience": "sts"}}},
            {"name": "open", "url": "https://open/mcp"},
        ]});
        let one = json!({"servers": [{"name": "wiki", "url": "https://wiki/mcp", "credential": {"header": {"name": "X-Key", "secretKey": "k"}}}]});
        let plain = json!({"servers": [{"name": "open"}]});
        let conditions = |more: &[Value]| [&[accepted.clone(), programmed.clone()], more].concat();
        world.policies = vec![
            policy(Some("agents"), "bank", &two, &conditions(&[lacks])),
            policy(Some("agents"), "new", &one, &conditions(&[])),
            policy(Some("agents"), "plain", &plain, &conditions(&[])),
            policy(Some("agents"), "wiki", &one, &conditions(&[ready])),
        ];
        world.cluster_policies.clear();
        world.pods.clear();
    });
    let found = status::gather(&api.client(), &NamespaceScope::All, Timestamp::now()).await.unwrap();
    let golden = "\
KIND       POLICY        MODE     ACCEPTED  PROGRAMMED  SIDECARS
MCPPolicy  agents/bank   Enforce  True      True        2/3
MCPPolicy  agents/new    Enforce  True      True        2/3
MCPPolicy  agents/plain  Enforce  True      True        2/3
MCPPolicy  agents/wiki   Enforce  True      True        2/3

POLICY       SERVER  CREDENTIAL     READY
agents/bank  bank    bearer         False (NotMounted)
agents/bank  crm     tokenExchange  False (NotMounted)
agents/new   wiki    header         Unknown (NoStatus)
agents/wiki  wiki    header         True
  agents/bank: CredentialsReady is False: 1 of 3 sidecars lack the Secret with the keys.
  agents/new: CredentialsReady is Unknown: The operator has not written a status; check that it runs.

No pod has a sidecar.
";
    assert_eq!(found.text(), golden);
    assert_eq!(found.outcome(), CommandOutcome::Negative);
    let rows = &serde_json::to_value(&found).unwrap()["policies"];
    assert_eq!(rows[0]["credentials"], json!([{"server": "bank", "kind": "bearer"}, {"server": "crm", "kind": "tokenExchange"}]));
    assert_eq!(rows[0]["credentialsReady"]["reason"], "NotMounted");
    assert_eq!((rows[2].get("credentials"), rows[2].get("credentialsReady")), (None, None));
    // Keys are named in the policy, and not repeated here.
    assert!(!rows.to_string().contains("bank-token"), "{rows}");
}

#[tokio::test]
async fn status_shows_which_servers_are_intercepted_and_whether_their_pods_can_do_so() {
    let (api, _running) = cluster().await;
    api.change(|world| {
        let needed = "2 of 3 pods have no authority for bank.example; create them anew: agents/social-1, agents/social-2.";
        let needed = condition("InterceptionReady", false, "NewPodsNeeded", needed);
        let ready = condition("InterceptionReady", true, "Ready", "All 3 pods open it.");
        let well = [condition("Accepted", true, "Accepted", ""), condition("Programmed", true, "Programmed", "")];
        let spec = json!({"servers": [
            {"name": "bank", "url": "https://bank.example/mcp", "tls": "Intercept"},
            {"name": "shop", "url": "https://shop.example/mcp", "tls": "Intercept"},
            {"name": "wiki", "url": "https://wiki.example/mcp", "tls": "Refuse"},
            {"name": "open", "url": "https://open.example/mcp"},
        ]});
        let refused = json!({"servers": [{"name": "wiki", "url": "https://wiki.example/mcp", "tls": "Refuse"}]});
        let conditions = |more: &[Value]| [&well[..], more].concat();
        world.policies = vec![
            policy(Some("agents"), "old", &spec, &conditions(&[needed])),
            policy(Some("agents"), "refused", &refused, &conditions(&[])),
            policy(Some("agents"), "well", &spec, &conditions(&[ready])),
        ];
        world.cluster_policies.clear();
        world.pods.clear();
    });
    let found = status::gather(&api.client(), &NamespaceScope::All, Timestamp::now()).await.unwrap();
    let golden = "\
KIND       POLICY          MODE     ACCEPTED  PROGRAMMED  SIDECARS
MCPPolicy  agents/old      Enforce  True      True        2/3
MCPPolicy  agents/refused  Enforce  True      True        2/3
MCPPolicy  agents/well     Enforce  True      True        2/3

POLICY       SERVER  TLS        READY
agents/old   bank    Intercept  False (NewPodsNeeded)
agents/old   shop    Intercept  False (NewPodsNeeded)
agents/well  bank    Intercept  True
agents/well  shop    Intercept  True
  agents/old: InterceptionReady is False: 2 of 3 pods have no authority for bank.example; create them anew: agents/social-1, agents/social-2.

No pod has a sidecar.
";
    assert_eq!(found.text(), golden);
    assert_eq!(found.outcome(), CommandOutcome::Negative);
    let rows = &serde_json::to_value(&found).unwrap()["policies"];
    assert_eq!(
        (&rows[0]["intercepted"], &rows[0]["interceptionReady"]["reason"]),
        (&json!(["bank", "shop"]), &json!("NewPodsNeeded"))
    );
    assert_eq!((rows[1].get("intercepted"), rows[1].get("interceptionReady")), (None, None));
}

#[tokio::test]
async fn status_shows_which_servers_are_held_to_pins_and_whether_their_tools_are_as_pinned() {
    let (api, _running) = cluster().await;
    api.change(|world| {
        let drifted = condition("PinsMatched", false, "Drifted", "send of mail: description (agents/mail).");
        let well = [condition("Accepted", true, "Accepted", ""), condition("Programmed", true, "Programmed", "")];
        let spec =
            json!({"servers": [{"name": "mail", "url": "https://mail.example/mcp", "pins": {"name": "mail"}}, {"name": "open"}]});
        world.policies = vec![policy(Some("agents"), "mail", &spec, &[&well[..], &[drifted]].concat())];
        world.cluster_policies.clear();
        world.pods.clear();
    });
    let found = status::gather(&api.client(), &NamespaceScope::All, Timestamp::now()).await.unwrap();
    let golden = "
POLICY       SERVER  PINS  MATCHED
agents/mail  mail    mail  False (Drifted)
  agents/mail: PinsMatched is False: send of mail: description (agents/mail).
";
    assert!(found.text().contains(golden), "{}", found.text());
    assert_eq!(found.outcome(), CommandOutcome::Negative);
    let row = &serde_json::to_value(&found).unwrap()["policies"][0];
    assert_eq!(
        (&row["pinned"], &row["pinsMatched"]["reason"]),
        (&json!([{"server": "mail", "pins": "mail"}]), &json!("Drifted"))
    );
}

#[tokio::test]
async fn status_says_which_right_is_missing_and_shows_what_it_may() {
    let (api, _running) = cluster().await;
    api.change(|world| {
        world.forbidden.extend([("list", "mcpclusterpolicies"), ("get", "namespaces"), ("get", "pods/portforward")]);
    });
    let found = status::gather(&api.client(), &agents(), Timestamp::now()).await.unwrap();
    assert_eq!((found.policies.len(), found.pods.len(), found.outcome()), (2, 2, CommandOutcome::Negative));
    let rights = ["`list` on `mcpclusterpolicies.toolweir.dev`", "`get` on `namespaces`", "`get` on `pods/portforward`"];
    assert_eq!(found.notes.len(), rights.len(), "{:#?}", found.notes);
    for (note, right) in found.notes.iter().zip(rights) {
        assert!(note.contains(right) && note.contains("docs/kubectl-plugin.md"), "{note}");
    }
    for right in [("list", "mcppolicies"), ("list", "pods")] {
        api.change(|world| world.forbidden = [right].into());
        let error = status::gather(&api.client(), &agents(), Timestamp::now()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("the verb `{}` on `{}", right.0, right.1)), "{error}");
    }
}

fn question(tool: &str) -> explain::ExplainQuery {
    explain::ExplainQuery { pod: "social-1".to_owned(), name: tool.to_owned(), ..explain::ExplainQuery::default() }
}

#[tokio::test]
async fn explain_says_what_the_sidecar_would_decide_and_takes_nothing() {
    let (api, running) = cluster().await;
    let ask = async |options: explain::ExplainQuery| explain(&api.client(), "agents", &options).await;
    for _ in 0..3 {
        let (text, found) = ask(question("pay")).await.unwrap();
        let limit = "  agents/bank  pay    1/hour  all       0     1     1          yes\n";
        assert!(text.starts_with("pod agents/social-1, server bank, tool pay: allowed\n") && text.contains(limit), "{text}");
        assert_eq!(found, CommandOutcome::Positive);
    }
    let call = toolweir_engine::Call {
        server: "bank",
        operation: toolweir_engine::Operation::tool("pay"),
        arguments: None,
        session: "",
        seen: None,
    };
    let decision = running.sidecar.governor.in_force().engine.decide(&call, running.sidecar.governor.now());
    assert!(decision.denial().is_none());
    let (text, found) = ask(question("pay")).await.unwrap();
    assert!(text.contains("\n  Denied by policy agents/bank: pay is limited to 1 call an hour. Try again in 36"), "{text}");
    assert_eq!(found, CommandOutcome::Negative);
    let (text, _) = ask(explain::ExplainQuery { form: OutputFormat::Json, ..question("pay") }).await.unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["pod"], &json["decision"], &json["verdict"]["entry"]),
        (&"social-1".into(), &"denied".into(), &"pay".into())
    );

    // Of prompts, this policy says nothing.
    let kind = OperationKind::Prompt;
    let (text, found) = ask(explain::ExplainQuery { kind, ..question("review") }).await.unwrap();
    let start =
        "pod agents/social-1, server bank, prompt review: denied (no_policy)\n  Denied: no policy in force says which prompts";
    assert!(text.starts_with(start), "{text}");
    assert_eq!(found, CommandOutcome::Negative);
    let kind = OperationKind::Other;
    let error = ask(explain::ExplainQuery { kind, ..question("tools/list") }).await.unwrap_err().to_string();
    assert!(error.contains("responded 400 Bad Request: tools/list belongs to the base protocol: it passes"), "{error}");
    let arguments = Some("{}".to_owned());
    let error = ask(explain::ExplainQuery { kind, arguments, ..question("x/y") }).await.unwrap_err().to_string();
    assert_eq!(error, "no condition on a method reads arguments; leave them out");

    let (text, found) = ask(explain::ExplainQuery { server: Some("shop".to_owned()), ..question("pay") }).await.unwrap();
    assert!(text.contains("Denied: no policy in force names the server shop.") && text.contains("this pod: bank\n"), "{text}");
    assert_eq!(found, CommandOutcome::Negative);
    // What is in doubt about arguments is for the sidecar to say: they come to it as they are.
    let arguments = Some("{\"a\": 1, \"a\": 2}".to_owned());
    let (_, found) = ask(explain::ExplainQuery { arguments, pod: "pod/social-1".to_owned(), ..question("other") }).await.unwrap();
    assert_eq!(found, CommandOutcome::Negative);
}

#[tokio::test]
async fn explain_says_what_to_do_where_it_cannot() {
    let (api, _running) = cluster().await;
    let two = sidecar(&format!("{POLICY}---{}", POLICY.replace("bank", "shop"))).await;
    api.change(|world| {
        let mut waiting = pod("agents", "waiting", true);
        waiting["status"]["initContainerStatuses"][0]["state"] = json!({"waiting": {"reason": "ImagePullBackOff"}});
        world.pods.extend([waiting, pod("agents", "two", true), pod("agents", "old", true)]);
        world.ports.insert(("two".to_owned(), 15000), two.sidecar.admin);
        // A sidecar that does not know the question.
        world.ports.insert(("old".to_owned(), 15000), two.sidecar.metrics);
    });
    let ask = async |name: &str, arguments: Option<&str>| {
        let options = explain::ExplainQuery { pod: name.to_owned(), arguments: arguments.map(str::to_owned), ..question("pay") };
        explain(&api.client(), "agents", &options).await.unwrap_err().to_string()
    };
    for (name, arguments, error) in [
        (
            "nobody",
            None,
            "there is no pod nobody in namespace agents; pods with a sidecar in that namespace: social-1, social-2, waiting, two, old",
        ),
        ("bare", None, "pod agents/bare has no sidecar, so no policy restricts its calls; label the namespace"),
        (
            "waiting",
            None,
            "the sidecar of pod agents/waiting does not run (ImagePullBackOff); kubectl -n agents describe pod waiting says why",
        ),
        ("two", None, "which server? There are bank, shop; name one with --server"),
        (
            "old",
            None,
            "the sidecar of pod agents/old is too old for this plugin: it has no /explain. Restart the pod to get a new sidecar",
        ),
        ("social-2", None, "pod agents/social-2, port 15000: connection refused; does its sidecar run?"),
        ("social-1", Some("5"), "the arguments are not an object; write one in quotes"),
    ] {
        let said = ask(name, arguments).await;
        assert!(said.starts_with(error), "{name}: {said}");
    }
    api.change(|world| world.forbidden = [("get", "pods/portforward")].into());
    assert!(ask("social-1", None).await.contains("the verb `get` on `pods/portforward`"));
    api.change(|world| world.forbidden = [("get", "pods")].into());
    assert!(ask("social-1", None).await.contains("the verb `get` on `pods`"));
}

/// An administration that gives one answer to every question. Returns its address, and the questions.
async fn answering(status: &'static str, body: String) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            while !request.ends_with('}') {
                let mut piece = [0; 1024];
                let read = stream.read(&mut piece).await.unwrap();
                assert_ne!(read, 0, "{request}");
                request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
            }
            let _ = asked.send(request);
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            // The client closes.
            let _ = stream.read(&mut [0]).await;
        }
    });
    (address, questions)
}

#[tokio::test]
async fn explain_says_what_becomes_of_a_connection() {
    let (api, _running) = cluster().await;
    let denied = json!({"url": "https://a.com", "name": "a.com", "port": 443, "decision": "denied", "reason": "not_allowed",
        "policy": "agents/out", "message": "Denied by policy agents/out: no rule allows a.com at port 443.", "newer": 1});
    let governed = json!({"url": "http://bank/mcp", "name": "bank", "port": 80, "server": "bank", "decision": "governed",
        "reason": "none"});
    let unknown = "`url` is not known; write {\"tool\": NAME}".to_owned();
    let (no, mut questions) = answering("200 OK", denied.to_string()).await;
    let (yes, _) = answering("200 OK", governed.to_string()).await;
    let (old, _) = answering("400 Bad Request", unknown).await;
    let (bad, _) = answering("400 Bad Request", "`url` is not a URL".to_owned()).await;
    api.change(|world| {
        for (name, address) in [("no", no), ("yes", yes), ("old", old), ("bad", bad)] {
            world.pods.push(pod("agents", name, true));
            world.ports.insert((name.to_owned(), 15000), address);
        }
    });
    let ask = async |pod: &str, form| {
        let query = UrlQuery { pod: pod.to_owned(), url: "https://a.com".to_owned(), form };
        explain_url(&api.client(), "agents", &query).await
    };
    let (text, found) = ask("pod/no", OutputFormat::Text).await.unwrap();
    assert!(text.starts_with("pod agents/no, https://a.com: denied (not_allowed)\n  Denied by policy agents/out: "), "{text}");
    assert_eq!(found, CommandOutcome::Negative);
    let question = questions.recv().await.unwrap();
    assert!(question.starts_with("POST /explain ") && question.ends_with("\r\n\r\n{\"url\":\"https://a.com\"}"), "{question}");
    let (text, _) = ask("no", OutputFormat::Json).await.unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["pod"], &json["newer"], &json["reason"]), (&"no".into(), &1.into(), &"not_allowed".into()));
    let (text, found) = ask("yes", OutputFormat::Text).await.unwrap();
    assert!(text.starts_with("pod agents/yes, http://bank/mcp: governed as server bank\n"), "{text}");
    assert_eq!(found, CommandOutcome::Positive);
    let error = ask("old", OutputFormat::Text).await.unwrap_err().to_string();
    assert_eq!(error, "the sidecar of pod agents/old is too old for --url. Restart the pod to get a new sidecar");
    let error = ask("bad", OutputFormat::Text).await.unwrap_err().to_string();
    assert_eq!(error, "the sidecar of pod agents/bad responded 400 Bad Request: `url` is not a URL");
}

/// A line of a sidecar's log, as the kubelet gives it.
fn line(second: u8, tool: &str, decision: &str) -> String {
    let time = format!("2026-11-24T17:08:{second:02}");
    format!(
        r#"{time}.500000001Z {{"time":"{time}.414Z","server":"bank","tool":"{tool}","decision":"{decision}","reason":"denied","policy":"agents/bank","entry":"{tool}","outcome":"denied"}}"#
    )
}

fn options(follow: bool, form: OutputFormat) -> denials::DenialsQuery {
    denials::DenialsQuery { scope: NamespaceScope::All, pod: None, since: Duration::from_secs(600), follow, form }
}

#[tokio::test]
async fn denials_of_all_pods_stand_in_the_order_of_their_times() {
    let (api, _running) = cluster().await;
    api.change(|world| {
        let log = "2026-11-24T17:08:01Z {\"timestamp\":\"2026-11-24T17:08:01Z\",\"level\":\"INFO\",\"message\":\"ready\"}";
        let cut = line(4, "pay", "denied").chars().take(90).collect();
        let first = vec![log.to_owned(), line(5, "pay", "denied"), cut, line(2, "pay", "would_deny"), line(3, "pay", "allowed")];
        world.logs.insert("social-1".to_owned(), first);
        let connection = r#"2026-11-24T17:08:06Z {"time":"2026-11-24T17:08:06.414Z","destination":"a.com:443","decision":"denied","reason":"not_allowed","policy":"agents/out","protocol":"tls"}"#;
        world.logs.insert("social-2".to_owned(), vec![line(3, "wipe_all", "denied"), connection.to_owned()]);
    });
    let (out, notes) = (SharedBuffer::default(), SharedBuffer::default());
    denials(&api.client(), &options(false, OutputFormat::Text), out.clone(), notes.clone()).await.unwrap();
    let golden = "\
TIME                      POD              SERVER     TOOL      DECISION    REASON       POLICY       ENTRY
2026-11-24T17:08:02.414Z  agents/social-1  bank       pay       would_deny  denied       agents/bank  pay
2026-11-24T17:08:03.414Z  agents/social-2  bank       wipe_all  denied      denied       agents/bank  wipe_all
2026-11-24T17:08:05.414Z  agents/social-1  bank       pay       denied      denied       agents/bank  pay
2026-11-24T17:08:06.414Z  agents/social-2  a.com:443  -         denied      not_allowed  agents/out   -
";
    assert_eq!(out.text(), golden);
    assert_eq!(notes.text(), "note: 1 line of the audit log could not be read\n");
    for path in api.seen("/log?") {
        assert!(path.contains("container=toolweir-sidecar") && path.contains("sinceSeconds=600"), "{path}");
    }
    let one = denials::DenialsQuery { pod: Some("social-2".to_owned()), scope: agents(), ..options(false, OutputFormat::Json) };
    let out = SharedBuffer::default();
    denials(&api.client(), &one, out.clone(), SharedBuffer::default()).await.unwrap();
    let json: Value = serde_json::from_str(out.text().lines().next().unwrap()).unwrap();
    assert_eq!((&json["tool"], &json["pod"], &json["outcome"]), (&"wipe_all".into(), &"social-2".into(), &"denied".into()));
}

#[tokio::test]
async fn denials_say_what_is_missing() {
    let (api, _running) = cluster().await;
    let ask = async |options: denials::DenialsQuery| {
        let notes = SharedBuffer::default();
        denials(&api.client(), &options, SharedBuffer::default(), notes.clone()).await.map(|()| notes.text())
    };
    // The logs are gone with their pods.
    assert_eq!(ask(options(false, OutputFormat::Text)).await.unwrap(), "No denials in the last 10m.\n");
    let of =
        |name: &str| denials::DenialsQuery { pod: Some(name.to_owned()), scope: agents(), ..options(false, OutputFormat::Text) };
    assert!(ask(of("nobody")).await.unwrap_err().to_string().starts_with("there is no pod nobody"));
    assert!(ask(of("bare")).await.unwrap_err().to_string().contains("has no sidecar"));
    let error = ask(denials::DenialsQuery { scope: NamespaceScope::All, ..of("social-1") }).await.unwrap_err().to_string();
    assert!(error.contains("write -n NAMESPACE"), "{error}");
    api.change(|world| world.forbidden = [("get", "pods/log")].into());
    let error = ask(options(false, OutputFormat::Text)).await.unwrap_err().to_string();
    assert!(error.contains("the verb `get` on `pods/log`"), "{error}");
    api.change(|world| world.forbidden = [("watch", "pods")].into());
    let error = ask(options(true, OutputFormat::Text)).await.unwrap_err().to_string();
    assert!(error.contains("the verb `watch` on `pods`"), "{error}");
}

#[tokio::test]
async fn denials_are_followed_over_breaks_and_in_pods_that_come() {
    let (api, _running) = cluster().await;
    let (first, first_lines) = mpsc::unbounded_channel();
    let (second, second_lines) = mpsc::unbounded_channel();
    let (new, new_lines) = mpsc::unbounded_channel();
    let (watch, watched) = mpsc::unbounded_channel();
    api.change(|world| {
        world.logs.insert("social-1".to_owned(), vec![line(1, "before", "denied")]);
        world.followed.insert("social-1".to_owned(), VecDeque::from([first_lines, second_lines]));
        world.followed.insert("new".to_owned(), VecDeque::from([new_lines]));
        world.watched = Some(watched);
    });
    let (out, notes) = (SharedBuffer::default(), SharedBuffer::default());
    let running = {
        let (client, out, notes) = (api.client(), out.clone(), notes.clone());
        tokio::spawn(async move { denials(&client, &options(true, OutputFormat::Text), out, notes).await })
    };
    let tools = async |many: usize| -> Vec<String> {
        let lines = out.lines(many + 1).await;
        lines.iter().skip(1).map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect()
    };
    // What was read already comes again, as the time is told in seconds.
    first.send(line(1, "before", "denied")).unwrap();
    first.send(line(2, "next", "denied")).unwrap();
    first.send(line(2, "fine", "allowed")).unwrap();
    assert_eq!(tools(2).await, ["before", "next"]);
    drop(first);
    second.send(line(2, "next", "denied")).unwrap();
    second.send(line(2, "fine", "allowed")).unwrap();
    second.send(line(3, "after", "would_deny")).unwrap();
    assert_eq!(tools(3).await, ["before", "next", "after"]);
    let mut starting = pod("agents", "new", true);
    starting["status"]["initContainerStatuses"][0]["state"] = json!({"waiting": {"reason": "PodInitializing"}});
    watch.send(json!({"type": "ADDED", "object": starting}).to_string()).unwrap();
    watch.send(json!({"type": "MODIFIED", "object": pod("agents", "new", true)}).to_string()).unwrap();
    new.send(line(4, "newcomer", "denied")).unwrap();
    assert_eq!(tools(4).await, ["before", "next", "after", "newcomer"]);
    assert!(out.text().contains("agents/new "), "{}", out.text());
    let follows: Vec<String> = api.seen("/social-1/log?").into_iter().filter(|path| path.contains("follow=true")).collect();
    assert!(follows[0].contains("sinceTime=2026-11-24T17%3A08%3A01Z"), "{follows:?}");
    assert!(follows[1].contains("sinceTime=2026-11-24T17%3A08%3A02Z"), "{follows:?}");
    assert_eq!(api.seen("/new/log?").len(), 1);
    assert!(!running.is_finished());
    running.abort();
    assert_eq!(notes.text(), "");
}
