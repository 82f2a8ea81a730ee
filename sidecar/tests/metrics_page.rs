//! docs/metrics.md lists every metric with its type and labels, and the closed sets of values: held against a scrape, in
//! both directions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use common::{
    call,
    client::{Ask, Http, Wire},
    folder::Folder,
    list,
    metrics::Scrape,
    operator::Operator,
    policy, request, result,
    sidecar::{self, Sidecar},
    until,
    upstream::{Reply, Upstream},
};
use tokio::{net::TcpListener, sync::mpsc};
use toolweir_crds::{CredentialKind, OnStoreFailure, ToolPart};
use toolweir_engine::{
    Reason,
    egress::{AddressRanges, EgressEffect, EgressReason},
};
use toolweir_sidecar::{
    approvals::metrics::OUTCOMES,
    connections::CLOSED,
    control::{self, backoff::Backoff, client, wire},
    counts::STORE_OUTCOMES,
    credentials::grant::FetchOutcome,
    files::{FILES, OPERATIONS},
    mcp::list_kind::ListKind,
    outcome::{ListingEnd, Outcome, ServerAnswerEnd},
    run::{CaptureSettings, PolicySource},
    server_metrics::TOOL_PART,
};
use toolweir_store::StoreFault;

/// Name, type and labels of every metric.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The sidecar's part of the page; the operator's is held by a test of its own.
fn page() -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    page.split("\n# The operator\n").next().unwrap().to_owned()
}

/// The texts between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

fn documented(page: &str) -> Metrics {
    let ours = |line: &&str| line.starts_with("| `toolweir_") || line.starts_with("| `process_");
    let rows = page.lines().filter(ours);
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = quoted(cells[3]).into_iter().collect();
        (quoted(cells[1])[0].clone(), (cells[2].to_owned(), labels))
    })
    .collect()
}

/// The values that the section of a label lists.
fn values(page: &str, label: &str) -> BTreeSet<String> {
    listed(page, &format!("`{label}`"))
}

/// The values that a section lists.
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with("- `")).map(|line| quoted(line)[0].clone()).collect()
}

/// The metrics of a scrape, the series of a histogram as one.
fn scraped(scrape: &Scrape) -> Metrics {
    let mut metrics = Metrics::new();
    for series in &scrape.series {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let base = series.name.strip_suffix(end)?;
            (scrape.types.get(base).map(String::as_str) == Some("histogram")).then_some(base)
        });
        let name = base.unwrap_or(&series.name);
        let labels: BTreeSet<String> = series.labels.keys().filter(|label| base.is_none() || *label != "le").cloned().collect();
        let found = metrics.entry(name.to_owned()).or_insert_with(|| (scrape.types[name].clone(), labels.clone()));
        assert_eq!(found.1, labels, "{name} has series with other labels");
    }
    metrics
}

/// Policies for servers with credentials, at an address where nobody listens.
fn servers_with_credentials(nobody: &str) -> String {
    let credential = |name: &str, credential: &str| {
        let url = format!("url: http://{nobody}/mcp\n    credential: {{{credential}}}");
        policy("URL", "[{name: \"*\", action: Allow}]").replace("url: URL", &url).replace("bank", name)
    };
    let vault = credential("vault", "bearer: {secretKey: token}");
    let login = credential(
        "login",
        &format!("oauth2ClientCredentials: {{tokenUrl: 'http://{nobody}/token', clientIdKey: token, clientSecretKey: token}}"),
    );
    format!("{vault}---\n{login}")
}

/// A policy that only watches a server, by the definitions of its tools.
fn watched(url: &str) -> String {
    let by_class = policy(url, "[{class: Read}, {name: pay, approval: {}}]")
        .replace("bank", "watched")
        .replace("spec:\n", "spec:\n  mode: Audit\n");
    by_class.replace("    tools:", "    pins: {name: none}\n    tools:")
}

/// A sidecar after traffic of every kind.
async fn after_traffic() -> Scrape {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| match seen.json()["id"].as_u64() {
        Some(1) => Reply::json(list("1", &["pay", "wipe"])),
        Some(400) => Reply::status(400),
        Some(500) => Reply::status(500),
        Some(301) => Reply::status(301),
        Some(9) => {
            let (guard, given_up) = tokio::sync::oneshot::channel();
            feeds.send(given_up).unwrap();
            Reply::hang(guard)
        }
        _ => Reply::json(result("2")),
    })
    .await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tools = r#"[{name: pay, limits: [{max: 3, window: hour}], validations: [{expression: "args.x == 1"}]}, {name: wipe, action: Deny}, {name: ask, approval: {}}]"#;
    let shop = policy(&format!("http://{nobody}/mcp"), "[{name: \"*\", action: Allow}]").replace("bank", "shop");
    let watched = watched(&upstream.url());
    let with_credentials = servers_with_credentials(&nobody.to_string());
    let folder = Folder::new();
    // A JSON Web Token that expires in 2100.
    folder.write("token", "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln");
    let text = format!("{}---\n{shop}---\n{watched}---\n{with_credentials}", policy(&upstream.url(), tools));
    let sidecar = Sidecar::with(&text, |config| config.credentials.keys = Some(folder.path().to_owned())).await;
    until("the states of credentials", async || sidecar.governor.credential_report().credentials.len() == 2).await;
    let pay = |id: &str| call(id, "pay", r#"{"x":1}"#);
    for (path, body) in [
        ("/bank", request("1", "tools/list", "{}")),
        ("/bank", pay("2")),
        ("/bank", pay("400")),
        ("/bank", pay("500")),
        ("/bank", pay("301")),
        ("/bank", pay("3")),
        ("/bank", call("4", "pay", "{}")),
        ("/bank", call("4", "wipe", "{}")),
        ("/bank", call("4", "ask", "{}")),
        ("/bank", call("4", "made-up", "{}")),
        ("/bank", call("4", "pay", r#"{"x":1,"x":1}"#)),
        ("/bank", r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"pay"}}"#.to_owned()),
        ("/bank", "{".to_owned()),
        ("/bank", request("5", "made/up", "{}")),
        ("/bank", request("5", "prompts/get", r#"{"name":"made-up"}"#)),
        ("/watched", pay("2")),
        ("/shop", pay("2")),
        ("/login", pay("2")),
        ("/nowhere", pay("2")),
        ("/no/where", pay("2")),
    ] {
        sidecar.ask(&Ask::post(body).to(path)).await;
    }
    sidecar.ask(&Ask::delete().to("/nowhere")).await;
    sidecar.ask(&Ask::post(pay("2")).with("origin", "http://evil.example")).await;
    // One that its client gives up.
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post(request("9", "ping", "{}")).bytes("localhost")).await;
    let _given_up = opened.recv().await.unwrap();
    drop(wire);
    until("the count", async || sidecar.counted("client_gone").await == 1.0).await;
    assert_eq!(Ask::get().to("/healthz").over(Http::One, sidecar.metrics).await.status, 200);
    sidecar.scrape().await
}

/// A sidecar with a policy of an operator that cannot be read, and a shared store where nobody listens.
async fn after_a_stream() -> Scrape {
    let mut operator = Operator::start(None, "token").await;
    let folder = Folder::new();
    let control = control::ControlPlaneConfig {
        endpoint: format!("http://{}", operator.address).parse().unwrap(),
        token_file: folder.write("token", "token"),
        authorities: String::new(),
        state: None,
        backoff: Backoff::default(),
        silence: client::SILENCE,
    };
    let sidecar = Sidecar::run(folder, &sidecar::from(PolicySource::ControlPlane(Box::new(control)))).await;
    let mut stream = operator.opened().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let store =
        serde_json::json!({"url": format!("redis://{nobody}"), "prefix": "toolweir", "leases": true, "budgetMilliseconds": 50});
    stream.line(&serde_json::json!({"sharedStore": store})).await;
    stream.enforce("1", &[serde_json::json!({})]).await;
    sidecar.scrape().await
}

/// A sidecar that captures, with a server whose TLS it opens.
async fn while_capturing() -> Scrape {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let agents = Folder::new();
    let opened = policy("https://bank.example/mcp", "[]").replace("tools:", "tls: Intercept\n    tools:");
    let ranges = Arc::new(AddressRanges::default());
    let agent_ca_dir = Some(agents.path().to_owned());
    Sidecar::with(&opened, |config| config.capture = Some(CaptureSettings { port, ranges, agent_ca_dir })).await.scrape().await
}

#[tokio::test]
async fn the_page_lists_every_metric_with_its_type_and_labels_and_no_other() {
    let mut seen = scraped(&after_traffic().await);
    seen.extend(scraped(&after_a_stream().await));
    seen.extend(scraped(&while_capturing().await));
    assert_eq!(documented(&page()), seen);
}

#[tokio::test]
async fn the_page_lists_every_value_of_the_closed_sets_and_no_other() {
    let page = page();
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(values(&page, "reason"), reasons);
    let outcomes: BTreeSet<String> = Outcome::ALL.iter().map(|outcome| outcome.as_str().to_owned()).collect();
    assert_eq!(values(&page, "outcome"), outcomes);
    for (label, known) in [
        ("result", client::RESULTS.as_slice()),
        ("end", client::ENDS.as_slice()),
        ("kind", wire::KINDS.as_slice()),
        ("file", FILES.as_slice()),
        ("operation", OPERATIONS.as_slice()),
    ] {
        let known: BTreeSet<String> = known.iter().map(|value| (*value).to_owned()).collect();
        assert_eq!(values(&page, label), known, "{label}");
    }
    let parts = ToolPart::ALL.iter().map(ToString::to_string).chain([TOOL_PART.to_owned()]).collect();
    assert_eq!(values(&page, "part"), parts);
    let causes: BTreeSet<String> = CLOSED.iter().map(|(_, cause)| (*cause).to_owned()).collect();
    assert_eq!(values(&page, "cause"), causes);
    // What is told of the shared store begins at 0, all of it.
    let stream = after_a_stream().await;
    for (name, label, heading, known) in [
        (
            "toolweir_shared_store_calls_total",
            "outcome",
            "`outcome` of `toolweir_shared_store_calls_total`",
            STORE_OUTCOMES.to_vec(),
        ),
        ("toolweir_shared_store_failures_total", "fault", "`fault`", StoreFault::ALL.map(StoreFault::as_str).to_vec()),
        (
            "toolweir_shared_store_fallbacks_total",
            "action",
            "`action`",
            [OnStoreFailure::Deny, OnStoreFailure::PerPod, OnStoreFailure::Allow].map(OnStoreFailure::as_str).to_vec(),
        ),
    ] {
        let known: BTreeSet<String> = known.into_iter().map(ToOwned::to_owned).collect();
        assert_eq!(listed(&page, heading), known, "{heading}");
        let series = stream.series.iter().filter(|series| series.name == name);
        let seen: BTreeSet<String> = series.map(|series| series.labels[label].clone()).collect();
        assert_eq!(seen, known, "{name}");
    }
    let scrape = after_traffic().await;
    let seen = |name: &str, label: &str| -> BTreeSet<String> {
        let series = scrape.series.iter().filter(|series| series.name == name);
        series.map(|series| series.labels[label].clone()).collect()
    };
    assert_eq!(seen("toolweir_tool_calls_total", "decision"), values(&page, "decision"));
    let kinds: BTreeSet<String> = CredentialKind::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(listed(&page, "`kind` of `toolweir_credential_ready`"), kinds);
    assert!(seen("toolweir_credential_ready", "kind").is_subset(&kinds));
    // Files begin at 0, also where there is no operator.
    for label in ["file", "operation"] {
        assert_eq!(seen("toolweir_file_failures_total", label), values(&page, label), "{label}");
    }
    for (name, label, most) in
        [("toolweir_tool_calls_total", "reason", reasons), ("toolweir_requests_total", "outcome", outcomes)]
    {
        let seen = seen(name, label);
        assert!(seen.is_subset(&most) && seen.len() >= 7, "{label}: {seen:?}");
    }
}

#[tokio::test]
async fn what_the_sidecar_asks_for_by_itself_begins_at_0_for_each_outcome() {
    let (page, scrape) = (page(), after_traffic().await);
    let seen = |name: &str| -> BTreeSet<String> {
        scrape.series.iter().filter(|series| series.name == name).map(|series| series.labels["outcome"].clone()).collect()
    };
    for (name, all) in [
        ("toolweir_credential_fetches_total", FetchOutcome::ALL.map(FetchOutcome::as_str).to_vec()),
        ("toolweir_own_lists_total", ListingEnd::ALL.map(ListingEnd::as_str).to_vec()),
        ("toolweir_server_answers_total", ServerAnswerEnd::ALL.map(ServerAnswerEnd::as_str).to_vec()),
        ("toolweir_approvals_total", OUTCOMES.to_vec()),
    ] {
        let all: BTreeSet<String> = all.into_iter().map(ToOwned::to_owned).collect();
        assert_eq!((listed(&page, &format!("`outcome` of `{name}`")), seen(name)), (all.clone(), all), "{name}");
    }
}

#[tokio::test]
async fn handshakes_begin_at_0_for_each_result_where_something_is_captured() {
    let page = page();
    let handshakes = "toolweir_interception_handshakes_total";
    let series = while_capturing().await.series;
    let results: BTreeSet<String> =
        series.iter().filter(|series| series.name == handshakes).map(|series| series.labels["result"].clone()).collect();
    assert_eq!(listed(&page, &format!("`result` of `{handshakes}`")), results);
}

#[tokio::test]
async fn denied_connections_begin_at_0_for_each_reason_also_where_nothing_is_captured() {
    let page = page();
    let known: BTreeSet<String> = EgressReason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(listed(&page, "`reason` of `toolweir_egress_connections_total`"), known);
    let scrape = after_traffic().await;
    let series = scrape.series.iter().filter(|series| series.name == "toolweir_egress_connections_total");
    let mut seen: BTreeSet<String> = series.map(|series| series.labels["reason"].clone()).collect();
    assert!(seen.insert(EgressReason::None.to_string()));
    assert_eq!(seen, known);
    let effects = [EgressEffect::Allowed, EgressEffect::Denied, EgressEffect::WouldDeny].map(|effect| effect.as_str().to_owned());
    // Nobody is asked about connections.
    let mut decisions = values(&page, "decision");
    assert!(decisions.remove("would_ask"));
    assert_eq!(decisions, BTreeSet::from(effects));
}

#[tokio::test]
async fn no_label_comes_from_a_client() {
    for series in after_traffic().await.series {
        for (label, value) in &series.labels {
            assert!(
                !value.contains("where") && !value.contains("made") && !value.contains("evil"),
                "{label}={value} of {}",
                series.name
            );
        }
    }
}

#[tokio::test]
async fn what_a_policy_can_say_begins_at_0_with_it() {
    let upstream = Upstream::start(|_| Reply::json(result("2"))).await;
    let tools = r#"[{name: pay, limits: [{max: 1, window: hour}], validations: [{expression: "args.x == 1"}], maxConcurrent: 1}, {name: wipe, action: Deny, limits: [{max: 1, window: hour}]}]"#;
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    let counts = || async {
        let scrape = sidecar.scrape().await;
        let calls = scrape.series.into_iter().filter(|series| series.name == "toolweir_tool_calls_total");
        calls
            .map(|series| (["tool", "decision", "reason"].map(|label| series.labels[label].clone()).join(" "), series.value))
            .collect()
    };
    let at_first: BTreeMap<String, f64> = counts().await;
    for series in [
        "pay denied rate_limit",
        "pay denied validation",
        "pay denied concurrency",
        "wipe denied denied",
        "_other denied not_listed",
    ] {
        assert_eq!(at_first.get(series), Some(&0.0), "{series} in {at_first:?}");
    }
    assert!(!at_first.contains_key("wipe denied rate_limit"), "{at_first:?}");
    for (tool, arguments) in [("pay", "{}"), ("pay", r#"{"x":1}"#), ("pay", r#"{"x":1}"#), ("wipe", "{}"), ("made-up", "{}")] {
        sidecar.ask(&Ask::post(call("1", tool, arguments)).to("/bank")).await;
    }
    let at_last: BTreeMap<String, f64> = counts().await;
    assert!(at_first.keys().eq(at_last.keys()), "{at_last:?}");
    let scrape = sidecar.scrape().await;
    let hidden = scrape.series.iter().find(|series| series.name == "toolweir_tools_hidden_total").unwrap();
    assert_eq!((hidden.labels["server"].as_str(), hidden.value), ("bank", 0.0));
    let others = scrape.series.iter().filter(|series| series.name == "toolweir_entries_hidden_total");
    let others: BTreeMap<&str, f64> = others.map(|series| (series.labels["list"].as_str(), series.value)).collect();
    let lists = ListKind::ALL.into_iter().filter(|list| *list != ListKind::Tools).map(ListKind::key);
    assert_eq!(others, lists.clone().map(|list| (list, 0.0)).collect());
    assert_eq!(values(&page(), "list"), lists.map(ToOwned::to_owned).collect());
    assert_eq!(at_last.values().sum::<f64>(), 5.0);
}

/// The cost of a scrape stays within the bounds of docs/performance.md.
#[tokio::test]
async fn ten_thousand_invented_names_make_no_series() {
    let upstream = Upstream::start(|_| Reply::json(result("2"))).await;
    let tools =
        "[{name: pay, limits: [{max: 3, window: hour}]}, {name: \"*\", action: Allow, limits: [{max: 5000, window: hour}]}]";
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    for name in 0..10_000 {
        let invented = format!("invented_{name}");
        sidecar.ask(&Ask::post(call("1", &invented, "{}")).to("/bank")).await;
    }
    let scrape = sidecar.scrape().await;
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("tool", "_other")]), 10_000.0);
    assert!(scrape.series.len() < 200, "{} series", scrape.series.len());
}

/// Names are what servers choose: the label has them as they are, and so has the audit log.
#[tokio::test]
async fn a_tool_of_any_name_is_called_and_counted_under_it() {
    let upstream = Upstream::start(|_| Reply::json(result("7"))).await;
    let names = ["send invoice", "予定を検索", "say \"hi\" {a=b}", r"C:\dir", "2*3", "# TYPE"];
    let entries = names.map(|name| serde_json::json!({"name": toolweir_crds::tool_name::exactly(name)}).to_string());
    let sidecar = Sidecar::start(&policy(&upstream.url(), &format!("[{}]", entries.join(",")))).await;
    for name in names {
        let params = serde_json::json!({"name": name, "arguments": {}}).to_string();
        assert_eq!(sidecar.reason(&request("7", "tools/call", &params)).await, "none", "{name}");
    }
    assert_eq!(sidecar.reason(&call("7", "2x3", "{}")).await, "not_listed");
    let scrape = sidecar.scrape().await;
    for name in names {
        assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("tool", name), ("decision", "allowed")]), 1.0, "{name}");
    }
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("tool", "_other")]), 1.0);
    let audited = sidecar.audit(7).await;
    assert!(names.iter().zip(&audited).all(|(name, line)| line["tool"] == *name), "{audited:?}");
    assert_eq!(audited[4]["entry"], r"2\*3");
}
