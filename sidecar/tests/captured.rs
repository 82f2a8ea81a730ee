//! Captured connections, as far as they need no kernel that redirects: `make test-capture` tests the rest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::{net::SocketAddr, sync::Arc};

use common::{
    client::{Ask, Http},
    sidecar::Sidecar,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use toolweir_engine::egress::AddressRanges;
use toolweir_sidecar::run::CaptureSettings;

const POLICY: &str = "
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: p, namespace: agents}
spec:
  servers:
  - {name: bank, url: 'http://192.0.2.7:8000/mcp', tools: [{name: '*'}]}
  - {name: secure, url: 'https://192.0.2.8/mcp', tools: [{name: '*'}]}
  egress:
    allow:
    - {cidrs: [192.0.2.0/24, 10.1.0.0/16], ports: [443, 5432, 8000]}
";

/// A sidecar that captures, and the port at which it does.
async fn capturing(policy: &str) -> (Sidecar, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pod = vec!["10.1.0.9".parse().unwrap()];
    let ranges = Arc::new(AddressRanges { pod, node: Vec::new(), private: Vec::new() });
    let sidecar =
        Sidecar::with(policy, |config| config.capture = Some(CaptureSettings { port, ranges, agent_ca_dir: None })).await;
    (sidecar, port)
}

async fn explained(sidecar: &Sidecar, url: &str) -> Value {
    let question = json!({"url": url}).to_string();
    let answer = Ask::post(question.as_str()).to("/explain").over(Http::One, sidecar.admin).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn who_calls_the_capture_port_itself_gets_nothing() {
    let (sidecar, port) = capturing(POLICY).await;
    for address in [SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port))] {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            assert!(address.is_ipv6(), "{address} is not listened on");
            continue;
        };
        let _ = stream.write_all(b"GET /bank HTTP/1.1\r\nHost: 192.0.2.7:8000\r\n\r\n").await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        assert!(read.is_err() && answer.is_empty(), "{address}: {read:?} {answer:?}");
    }
    let lines = sidecar.audit(2).await;
    for line in &lines {
        assert_eq!((&line["decision"], &line["reason"]), (&json!("denied"), &json!("direct")), "{line}");
    }
    let labels = [("decision", "denied"), ("reason", "direct"), ("name", "_address")];
    assert!((sidecar.scrape().await.sum("toolweir_egress_connections_total", &labels) - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn what_would_become_of_a_connection_is_explained() {
    let (sidecar, _) = capturing(POLICY).await;
    for (url, decision, reason) in [
        ("http://192.0.2.7:8000/mcp", "governed", "none"),
        ("http://[::ffff:192.0.2.7]:8000/mcp/", "governed", "none"),
        ("http://192.0.2.7:8000/admin", "denied", "other_path"),
        ("https://192.0.2.8/mcp", "denied", "server_tls"),
        // The address of a declared server, by another way.
        ("tcp://192.0.2.7:8000", "denied", "undeclared_server"),
        ("tcp://192.0.2.9:5432", "allowed", "none"),
        ("tcp://192.0.2.9:22", "denied", "not_allowed"),
        ("http://198.51.100.1/", "denied", "not_allowed"),
        ("tcp://10.1.0.8:5432", "allowed", "none"),
        ("tcp://10.1.0.9:5432", "denied", "address"),
        ("tcp://127.0.0.1:5432", "denied", "address"),
        ("http://169.254.169.254/", "denied", "address"),
    ] {
        let answer = explained(&sidecar, url).await;
        assert_eq!((&answer["decision"], &answer["reason"]), (&json!(decision), &json!(reason)), "{url}: {answer}");
    }
    let governed = explained(&sidecar, "http://192.0.2.7:8000/mcp").await;
    assert_eq!(governed["server"], "bank");
    let asked = sidecar.scrape().await.sum("toolweir_egress_connections_total", &[]);
    assert!(asked.abs() < f64::EPSILON, "a question counts as no connection");
}

#[tokio::test]
async fn without_a_policy_for_egress_nothing_leaves() {
    let (sidecar, _) = capturing(POLICY.split("  egress:").next().unwrap()).await;
    let answer = explained(&sidecar, "tcp://192.0.2.9:5432").await;
    assert_eq!((&answer["decision"], &answer["reason"]), (&json!("denied"), &json!("no_policy")), "{answer}");
    assert_eq!(explained(&sidecar, "http://192.0.2.7:8000/mcp").await["decision"], "governed");
}

#[tokio::test]
async fn a_pod_that_is_not_captured_says_so() {
    let sidecar = Sidecar::start(POLICY).await;
    let question = json!({"url": "http://192.0.2.7:8000/mcp"}).to_string();
    let answer = Ask::post(question.as_str()).to("/explain").over(Http::One, sidecar.admin).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("toolweir.dev/capture: enabled"), "{}", answer.text());
}
