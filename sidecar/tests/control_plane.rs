//! Policies from an operator: in force as soon as they come and acknowledged then; kept when it is gone, also across a
//! restart; nothing passes before the first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use common::{
    allow_all, call,
    client::{Ask, Http},
    denial,
    folder::Folder,
    list, logs,
    operator::{Operator, Stream, documents},
    policy, program, request,
    sidecar::{self, Sidecar},
    tls::Authority,
    until,
    upstream::{Reply, Upstream},
    within,
};
use serde_json::{Value, json};
use toolweir_crds::stream::{Ack, LONGEST_LINE, StreamMessage};
use toolweir_sidecar::{
    control::{
        self,
        backoff::Backoff,
        client::{self, ConnectFault, ENDS, Lost, OperatorEndpoint, RESULTS, SILENCE},
        trust::Trust,
        wire::{self, KINDS, StreamLine},
    },
    run::{PolicySource, RunConfig},
};

const A_SECOND: Duration = Duration::from_secs(1);

/// The surroundings of a sidecar in a test.
struct Stage {
    /// Outlives the sidecar.
    folder: Folder,
    authority: Authority,
    operator: Operator,
    upstream: Upstream,
}

impl Stage {
    async fn new() -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        folder.write("token", "first\n");
        let operator = Operator::start(Some(authority.acceptor("127.0.0.1", &["h2"])), "first").await;
        Self { folder, authority, operator, upstream: Upstream::bank().await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn control(&self) -> control::ControlPlaneConfig {
        control::ControlPlaneConfig {
            endpoint: format!("https://{}", self.operator.address).parse().unwrap(),
            token_file: self.path("token"),
            authorities: self.authority.pem(),
            state: Some(self.path("state")),
            backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(100) },
            silence: SILENCE,
        }
    }

    fn config(&self, change: impl FnOnce(&mut control::ControlPlaneConfig)) -> RunConfig {
        let mut control = self.control();
        change(&mut control);
        let mut config = sidecar::from(PolicySource::ControlPlane(Box::new(control)));
        config.mcp_config = Some(self.path("mcp.json"));
        config
    }

    async fn sidecar(&self) -> Sidecar {
        self.sidecar_with(|_| {}).await
    }

    async fn sidecar_with(&self, change: impl FnOnce(&mut control::ControlPlaneConfig)) -> Sidecar {
        Sidecar::run(Folder::new(), &self.config(change)).await
    }

    /// The policy `agents/bank` with these entries.
    fn policies(&self, tools: &str) -> Vec<Value> {
        documents(&policy(&self.upstream.url(), tools))
    }

    fn open(&self) -> Vec<Value> {
        documents(&allow_all(&self.upstream.url()))
    }

    fn mcp_servers(&self) -> Value {
        let text = fs::read_to_string(self.path("mcp.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["mcpServers"].clone()
    }

    /// The operator goes away, and comes back at the same address later.
    async fn restart_operator(&mut self) {
        let acceptor = self.authority.acceptor("127.0.0.1", &["h2"]);
        let address = self.operator.address;
        let next = Operator::start(None, "").await;
        std::mem::replace(&mut self.operator, next).stop().await;
        self.operator = Operator::at(address, Some(acceptor), "first").await;
    }
}

async fn pays(sidecar: &Sidecar) -> String {
    sidecar.reason(&call("1", "pay", "{}")).await
}

async fn ready(sidecar: &Sidecar) -> (u16, String) {
    let answer = Ask::get().to("/readyz").over(Http::One, sidecar.metrics).await;
    (answer.status, answer.text())
}

async fn metric(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)]) -> f64 {
    sidecar.scrape().await.sum(&format!("toolweir_{name}"), labels)
}

async fn until_metric(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)], holds: impl Fn(f64) -> bool) -> Duration {
    until(name, async || holds(metric(sidecar, name, labels).await)).await
}

fn clean(version: &str) -> Ack {
    Ack { version: version.to_owned(), problems: Vec::new() }
}

#[tokio::test]
async fn nothing_passes_before_the_first_policy_and_an_empty_one_is_a_policy() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.line(&json!("keepAlive")).await;
    until_metric(&sidecar, "control_plane_messages_total", &[("kind", "keep_alive")], |count| count == 1.0).await;
    assert_eq!(ready(&sidecar).await, (503, "no policy yet\n".to_owned()));
    assert_eq!(Ask::get().to("/healthz").over(Http::One, sidecar.metrics).await.status, 200);
    assert_eq!(pays(&sidecar).await, "no_policy");
    assert_eq!(metric(&sidecar, "policy_connected", &[]).await, 0.0);
    assert!(metric(&sidecar, "policy_age_seconds", &[]).await > 0.0);
    assert_eq!(stage.mcp_servers(), json!({}));
    assert_eq!(stream.enforce("1", &[]).await, clean("1"));
    assert_eq!(ready(&sidecar).await, (200, "ready\n".to_owned()));
    assert_eq!(pays(&sidecar).await, "no_policy");
    assert_eq!((metric(&sidecar, "policy_connected", &[]).await, metric(&sidecar, "policy_age_seconds", &[]).await), (1.0, 0.0));
    assert!(stage.upstream.seen().is_empty());
    assert!(sidecar.stop(A_SECOND).await);
}

#[tokio::test]
async fn a_policy_is_in_force_when_it_is_acknowledged_and_its_counts_live_on() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.token, "first");
    let limited = |max: u32| stage.policies(&format!("[{{name: pay, limits: [{{max: {max}, window: hour}}]}}]"));
    assert_eq!(stream.enforce("1", &limited(1)).await, clean("1"));
    assert_eq!((pays(&sidecar).await.as_str(), pays(&sidecar).await.as_str()), ("none", "rate_limit"));
    let began = Instant::now();
    assert_eq!(stream.enforce("2", &limited(2)).await, clean("2"));
    assert!(began.elapsed() < A_SECOND, "{:?}", began.elapsed());
    assert_eq!((pays(&sidecar).await.as_str(), pays(&sidecar).await.as_str()), ("none", "rate_limit"));
    assert_eq!(sidecar.governor.in_force().version, "2");
    assert_eq!(metric(&sidecar, "policy_info", &[("version", "2"), ("policy", "agents/bank")]).await, 1.0);
    stream.enforce("3", &stage.policies("[{name: pay, action: Deny}]")).await;
    assert_eq!(pays(&sidecar).await, "denied");
    // Deleted: closed, not opened.
    stream.enforce("4", &[]).await;
    assert_eq!(pays(&sidecar).await, "no_policy");
    assert_eq!(stage.upstream.seen().len(), 2);
}

#[tokio::test]
async fn what_is_in_force_stays_so_while_the_operator_is_gone() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.policies("[{name: pay}]")).await;
    stage.restart_operator().await;
    until_metric(&sidecar, "policy_connected", &[], |value| value == 0.0).await;
    assert_eq!(metric(&sidecar, "control_plane_disconnects_total", &[]).await, 1.0);
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!(sidecar.reason(&call("1", "other", "{}")).await, "not_listed");
    assert_eq!(ready(&sidecar).await.0, 200);
    let age = metric(&sidecar, "policy_age_seconds", &[]).await;
    assert!(age > 0.0 && age < 10.0, "{age}");
    // It is not current before the operator says so.
    let mut stream = stage.operator.opened().await;
    stream.line(&json!("keepAlive")).await;
    until_metric(&sidecar, "control_plane_messages_total", &[("kind", "keep_alive")], |count| count == 1.0).await;
    assert_eq!(metric(&sidecar, "policy_connected", &[]).await, 0.0);
    // The version that is in force already is acknowledged and not compiled again.
    let before: *const _ = Arc::as_ptr(&arc_swap::Guard::into_inner(sidecar.governor.in_force()));
    assert_eq!(stream.enforce("1", &[]).await, clean("1"));
    assert_eq!(before, Arc::as_ptr(&arc_swap::Guard::into_inner(sidecar.governor.in_force())));
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!((metric(&sidecar, "policy_connected", &[]).await, metric(&sidecar, "policy_age_seconds", &[]).await), (1.0, 0.0));
    assert_eq!(metric(&sidecar, "control_plane_connects_total", &[("result", "ok")]).await, 2.0);
}

#[tokio::test]
async fn a_stream_that_the_operator_ends_is_opened_again_with_the_token_of_now() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    stage.operator.take("second");
    stage.folder.write("token", "second");
    drop(stream);
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.token, "second");
    stream.enforce("2", &[]).await;
    assert_eq!(pays(&sidecar).await, "no_policy");
    assert_eq!(metric(&sidecar, "control_plane_disconnects_total", &[("end", "ended")]).await, 1.0);
}

#[tokio::test]
async fn the_last_policy_outlives_a_restart_without_an_operator() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("0", &[]).await;
    stream.enforce("1", &stage.policies("[{name: pay}]")).await;
    assert!(sidecar.stop(A_SECOND).await);
    stream.given_up().await;
    let kept = stage.path("state/policies.json");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    // As if it had been written an hour ago.
    let text = fs::read_to_string(&kept).unwrap();
    let mut head: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - head["written"].as_u64().unwrap() < 60);
    head["written"] = json!(now - 3600);
    fs::write(&kept, format!("{head}\n{}\n", text.lines().nth(1).unwrap())).unwrap();
    fs::remove_file(stage.path("mcp.json")).unwrap();
    let address = stage.operator.address;
    let gone = std::mem::replace(&mut stage.operator, Operator::start(None, "").await);
    gone.stop().await;
    let sidecar = stage.sidecar_with(|control| control.endpoint = format!("https://{address}").parse().unwrap()).await;
    // From its first moment.
    assert_eq!(ready(&sidecar).await.0, 200);
    assert_eq!((pays(&sidecar).await.as_str(), sidecar.reason(&call("1", "x", "{}")).await.as_str()), ("none", "not_listed"));
    assert_eq!(metric(&sidecar, "policy_connected", &[]).await, 0.0);
    let age = metric(&sidecar, "policy_age_seconds", &[]).await;
    assert!((3600.0..3700.0).contains(&age), "{age}");
    assert_eq!(metric(&sidecar, "policy_info", &[("version", "1")]).await, 1.0);
    assert_eq!(stage.mcp_servers()["bank"]["url"], format!("http://{}/bank", sidecar.address));
    until_metric(&sidecar, "control_plane_connects_total", &[("result", "unreachable")], |count| count >= 2.0).await;
    // Back again, with the same version, and with another.
    stage.operator = Operator::at(address, Some(stage.authority.acceptor("127.0.0.1", &["h2"])), "first").await;
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.enforce("1", &stage.policies("[{name: pay}]")).await, clean("1"));
    assert_eq!((metric(&sidecar, "policy_connected", &[]).await, metric(&sidecar, "policy_age_seconds", &[]).await), (1.0, 0.0));
    stream.enforce("2", &stage.policies("[]")).await;
    assert_eq!(pays(&sidecar).await, "not_listed");
}

#[tokio::test]
async fn a_state_file_that_is_damaged_is_told_and_not_used() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    sidecar.stop(A_SECOND).await;
    let (kept, good) = (stage.path("state/policies.json"), fs::read(stage.path("state/policies.json")).unwrap());
    let looser = String::from_utf8(good.clone()).unwrap().replace("Deny", "Allow");
    for (name, bytes, mode) in [
        ("half", &good[..good.len() / 2], 0o600),
        ("empty", b"", 0o600),
        ("altered", looser.as_bytes(), 0o600),
        ("writable by others", &good, 0o666),
    ] {
        fs::write(&kept, bytes).unwrap();
        fs::set_permissions(&kept, fs::Permissions::from_mode(mode)).unwrap();
        let before = logs::log().text().len();
        let sidecar = stage.sidecar().await;
        let mut stream = stage.operator.opened().await;
        assert_eq!(ready(&sidecar).await.0, 503, "{name}");
        assert_eq!(pays(&sidecar).await, "no_policy", "{name}");
        assert_eq!(metric(&sidecar, "file_failures_total", &[("file", "policies"), ("operation", "read")]).await, 1.0);
        assert!(logs::log().text()[before..].contains("policies.json"), "{name}");
        // It is replaced by the next one.
        stream.enforce("2", &stage.open()).await;
        assert_eq!(pays(&sidecar).await, "none", "{name}");
        sidecar.stop(A_SECOND).await;
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_kept_is_enforced_and_acknowledged() {
    let mut stage = Stage::new().await;
    let file = stage.folder.write("file", "");
    let sidecar = stage.sidecar_with(|control| control.state = Some(file)).await;
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.enforce("1", &stage.open()).await, clean("1"));
    assert_eq!(pays(&sidecar).await, "none");
    assert!(metric(&sidecar, "file_failures_total", &[("file", "policies"), ("operation", "write")]).await >= 1.0);
}

#[tokio::test]
async fn a_control_plane_of_another_authority_or_name_gets_no_token() {
    let mut stage = Stage::new().await;
    let (other, address) = (Authority::new(), stage.operator.address);
    let sidecar = stage.sidecar_with(|control| control.authorities = other.pem()).await;
    let tls = [("result", "tls")];
    until_metric(&sidecar, "control_plane_connects_total", &tls, |count| count >= 2.0).await;
    assert_eq!(metric(&sidecar, "control_plane_connects_total", &[("result", "ok")]).await, 0.0);
    assert!(!stage.operator.has_opened() && stage.operator.refused().is_empty());
    sidecar.stop(A_SECOND).await;
    // The certificate is for 127.0.0.1.
    let named = format!("https://localhost:{}", address.port());
    let sidecar = stage.sidecar_with(|control| control.endpoint = named.parse().unwrap()).await;
    until_metric(&sidecar, "control_plane_connects_total", &tls, |count| count >= 1.0).await;
    assert!(!stage.operator.has_opened());
    sidecar.stop(A_SECOND).await;
    // Unless that is the name that is asked for.
    let endpoint = named.parse::<OperatorEndpoint>().unwrap().with_server_name("127.0.0.1").unwrap();
    let sidecar = stage.sidecar_with(|control| control.endpoint = endpoint).await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    assert_eq!(pays(&sidecar).await, "none");
}

#[tokio::test]
async fn a_name_is_resolved_and_its_certificate_verified() {
    let mut stage = Stage::new().await;
    stage.operator.show(stage.authority.acceptor("localhost", &["h2"]));
    let named = format!("https://localhost:{}", stage.operator.address.port());
    let _sidecar = stage.sidecar_with(|control| control.endpoint = named.parse().unwrap()).await;
    stage.operator.opened().await.enforce("1", &[]).await;
}

#[tokio::test]
async fn trust_moves_to_another_authority_for_the_next_connection_and_the_next_start() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    let (old, new) = (stage.authority.pem(), Authority::new());
    stream.trust(&old).await;
    stream.enforce("1", &stage.open()).await;
    assert_eq!(fs::read_to_string(stage.path("state/trust.pem")).unwrap(), old);
    // Both for a while.
    let both = format!("{old}{}", new.pem());
    stream.trust(&both).await;
    // What is no bundle changes nothing.
    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &"x".repeat(2 * 1024 * 1024)] {
        stream.trust(bad).await;
    }
    stream.enforce("2", &stage.open()).await;
    assert_eq!(fs::read_to_string(stage.path("state/trust.pem")).unwrap(), both);
    assert_eq!(fs::metadata(stage.path("state/trust.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    // The new one alone is shown.
    stage.operator.show(new.acceptor("127.0.0.1", &["h2"]));
    drop(stream);
    let mut stream = stage.operator.opened().await;
    stream.enforce("3", &stage.open()).await;
    stream.trust(&new.pem()).await;
    stream.enforce("4", &stage.open()).await;
    // Who shows the old one is nobody now.
    stage.operator.show(stage.authority.acceptor("127.0.0.1", &["h2"]));
    drop(stream);
    until_metric(&sidecar, "control_plane_connects_total", &[("result", "tls")], |count| count >= 2.0).await;
    assert!(!stage.operator.has_opened());
    stage.operator.show(new.acceptor("127.0.0.1", &["h2"]));
    stage.operator.opened().await.enforce("5", &stage.open()).await;
    sidecar.stop(A_SECOND).await;
    // A sidecar that starts again was injected with the old one.
    let sidecar = stage.sidecar().await;
    stage.operator.opened().await.enforce("6", &stage.open()).await;
    sidecar.stop(A_SECOND).await;
    // A file that is damaged is told, and what was injected is trusted.
    fs::write(stage.path("state/trust.pem"), "nonsense").unwrap();
    let sidecar = stage.sidecar_with(|control| control.authorities = new.pem()).await;
    stage.operator.opened().await.enforce("7", &stage.open()).await;
    assert_eq!(metric(&sidecar, "file_failures_total", &[("file", "trust"), ("operation", "read")]).await, 1.0);
    sidecar.stop(A_SECOND).await;
    // What was injected is newer than the file.
    fs::write(stage.path("state/trust.pem"), old).unwrap();
    let _sidecar = stage.sidecar_with(|control| control.authorities = new.pem()).await;
    stage.operator.opened().await.enforce("8", &stage.open()).await;
}

#[tokio::test]
async fn who_is_turned_away_comes_back_and_gets_in_once_the_token_is_right() {
    let mut stage = Stage::new().await;
    stage.folder.write("token", "old");
    let sidecar = stage.sidecar().await;
    let connects = async |result: &str| metric(&sidecar, "control_plane_connects_total", &[("result", result)]).await;
    until("401", async || connects("unauthorized").await >= 2.0).await;
    assert!(stage.operator.refused().iter().all(|token| token == "old"));
    // No token at all.
    let sent = stage.operator.refused().len();
    fs::remove_file(stage.path("token")).unwrap();
    let before = connects("unauthorized").await;
    until("no token", async || connects("unauthorized").await >= before + 2.0).await;
    assert!(stage.operator.refused().len() <= sent + 1);
    stage.folder.write("token", "line\nbreak");
    stage.operator.answer(403);
    stage.folder.write("token", "first");
    until("403", async || connects("forbidden").await >= 2.0).await;
    stage.operator.answer(500);
    until("500", async || connects("protocol").await >= 1.0).await;
    stage.operator.answer(503);
    until("503", async || connects("not_ready").await >= 1.0).await;
    let log = logs::log().text();
    assert!(log.contains("it answers 403: no entry") && log.contains("it answers 401: no entry"));
    // It waits for as long as Retry-After says.
    let began = Instant::now();
    stage.operator.answer(200);
    let mut stream = stage.operator.opened().await;
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(ready(&sidecar).await.0, 503);
    stream.enforce("1", &stage.open()).await;
    assert_eq!(pays(&sidecar).await, "none");
}

#[tokio::test]
async fn a_message_of_an_unknown_kind_is_passed_over() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.line(&json!({"later": {"snapshot": [1, 2, 3]}})).await;
    stream.line(&json!("latest")).await;
    stream.enforce("1", &stage.open()).await;
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!(metric(&sidecar, "control_plane_messages_total", &[("kind", "unknown")]).await, 2.0);
    assert!(logs::log().text().contains("kind=\"latest\""));
}

#[tokio::test]
async fn what_is_no_message_ends_the_stream_and_changes_nothing() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    let good = json!({"snapshot": {"version": "2", "policies": []}}).to_string();
    for bad in ["{", "", "nonsense", "{\"snapshot\":{}}", "\u{0}", &good.replace("\"2\"", "\"\""), &good.replace("[]", "0")] {
        // What follows it is not read.
        stream.raw(format!("{bad}\n{good}\n")).await;
        stream.given_up().await;
        stream = stage.operator.opened().await;
        assert_eq!(sidecar.governor.in_force().version, "1", "{bad:?}");
        assert_eq!(pays(&sidecar).await, "none", "{bad:?}");
        stream.enforce("1", &[]).await;
    }
    assert_eq!(metric(&sidecar, "control_plane_disconnects_total", &[("end", "protocol")]).await, 7.0);
    // Half a line at the end of a stream is nothing.
    stream.raw(good).await;
    drop(stream);
    stage.operator.opened().await;
    assert_eq!(sidecar.governor.in_force().version, "1");
}

#[tokio::test]
async fn a_line_that_is_too_long_ends_the_stream() {
    let mut stage = Stage::new().await;
    stage.operator = Operator::start(None, "first").await;
    let sidecar =
        stage.sidecar_with(|control| control.endpoint = format!("http://{}", stage.operator.address).parse().unwrap()).await;
    let stream = stage.operator.opened().await;
    let piece = Bytes::from(vec![b' '; 1024 * 1024]);
    let mut sent = 0;
    while stream.raw(piece.clone()).await {
        sent += piece.len();
        assert!(sent < LONGEST_LINE + 16 * piece.len());
    }
    assert!(sent >= LONGEST_LINE);
    stage.operator.opened().await.enforce("1", &stage.open()).await;
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!(metric(&sidecar, "control_plane_disconnects_total", &[("end", "protocol")]).await, 1.0);
}

#[tokio::test]
async fn one_policy_that_cannot_be_read_denies_everything_and_is_told() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    let mut newer = documents(&allow_all("http://shop/mcp").replace("bank", "shop"));
    newer[0]["spec"]["servers"][0]["quota"] = json!(5);
    let policies = [stage.open(), newer].concat();
    let ack = stream.enforce("1", &policies).await;
    assert_eq!(ack.problems.len(), 1);
    assert_eq!(ack.problems[0].policy, "agents/shop");
    assert!(ack.problems[0].message.contains("unknown field `quota`"), "{ack:?}");
    let answer = sidecar.post(&call("1", "pay", "{}")).await;
    assert_eq!((&denial(&answer)["reason"], &denial(&answer)["policy"]), (&json!("invalid_policy"), &json!("agents/shop")));
    assert_eq!(sidecar.ask(&Ask::post(call("1", "pay", "{}")).to("/shop")).await.json()["result"]["isError"], true);
    assert_eq!(ready(&sidecar).await.0, 200);
    assert_eq!(metric(&sidecar, "policy_invalid", &[("policy", "agents/shop")]).await, 1.0);
    assert!(logs::log().text().contains("policy cannot be enforced and denies policy=\"agents/shop\""));
    let shown = Ask::get().to("/policy").over(Http::One, sidecar.admin).await.json();
    assert_eq!(shown["problems"][0]["policy"], "agents/shop");
    // The same when it is said again, and when it comes from the disk.
    drop(stream);
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.enforce("1", &policies).await, ack);
    sidecar.stop(A_SECOND).await;
    let sidecar = stage.sidecar().await;
    assert_eq!(pays(&sidecar).await, "invalid_policy");
    let mut stream = stage.operator.opened().await;
    assert_eq!(stream.enforce("1", &policies).await, ack);
    assert_eq!(stream.enforce("2", &stage.open()).await, clean("2"));
    assert_eq!((pays(&sidecar).await.as_str(), metric(&sidecar, "policy_invalid", &[]).await), ("none", 0.0));
}

#[tokio::test]
async fn a_policy_that_does_not_compile_and_a_url_that_is_none_close_their_servers_alone() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    let mut shop = documents(&allow_all("http://shop/mcp").replace("bank", "shop"));
    shop[0]["spec"]["servers"][0]["url"] = json!("http://shop:port/mcp");
    let mut till = documents(&allow_all("http://till/mcp").replace("bank", "till"));
    till[0]["spec"]["servers"][0]["tools"][0]["validations"] = json!([{"expression": "args."}]);
    let ack = stream.enforce("1", &[stage.open(), shop, till].concat()).await;
    let told: Vec<&str> = ack.problems.iter().map(|problem| problem.policy.as_str()).collect();
    assert_eq!(told, ["agents/shop", "agents/till"]);
    assert_eq!(pays(&sidecar).await, "none");
    let asked = async |server: &str| sidecar.ask(&Ask::post(call("1", "pay", "{}")).to(server)).await;
    assert_eq!(denial(&asked("/till").await.json())["reason"], "invalid_policy");
    assert_eq!(denial(&asked("/shop").await.json())["reason"], "invalid_policy");
    let servers: Vec<String> = stage.mcp_servers().as_object().unwrap().keys().cloned().collect();
    assert_eq!(servers, ["bank", "till"]);
}

#[tokio::test]
async fn a_snapshot_may_come_in_small_pieces_but_not_drip() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar_with(|control| control.silence = Duration::from_millis(600)).await;
    let mut stream = stage.operator.opened().await;
    let line = json!({"snapshot": {"version": "1", "policies": stage.open()}}).to_string() + "\n";
    for piece in line.as_bytes().chunks(3) {
        assert!(stream.raw(Bytes::copy_from_slice(piece)).await);
    }
    assert_eq!(stream.ack().await, clean("1"));
    // Several in one piece.
    let lines = ["2", "3"].map(|version| json!({"snapshot": {"version": version, "policies": stage.open()}}).to_string() + "\n");
    stream.raw(lines.concat()).await;
    assert_eq!((stream.ack().await, stream.ack().await), (clean("2"), clean("3")));
    // A byte now and then is no life.
    let began = Instant::now();
    for byte in line.bytes().cycle() {
        if !stream.raw(vec![byte]).await {
            break;
        }
        assert!(began.elapsed() < common::DEADLINE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until_metric(&sidecar, "control_plane_disconnects_total", &[("end", "silent")], |count| count == 1.0).await;
    assert_eq!(pays(&sidecar).await, "none");
    stage.operator.opened().await.enforce("4", &[]).await;
}

#[tokio::test]
async fn silence_ends_the_stream_and_keep_alives_hold_it() {
    let mut stage = Stage::new().await;
    let silence = Duration::from_secs(1);
    let sidecar = stage.sidecar_with(|control| control.silence = silence).await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    let began = Instant::now();
    while began.elapsed() < 3 * silence {
        stream.line(&json!("keepAlive")).await;
        tokio::time::sleep(silence / 6).await;
    }
    assert_eq!(metric(&sidecar, "policy_connected", &[]).await, 1.0);
    stream.given_up().await;
    until_metric(&sidecar, "control_plane_disconnects_total", &[("end", "silent")], |count| count == 1.0).await;
    // Kept open: a stream that is dropped ends, and the policies are no longer current.
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    assert_eq!(metric(&sidecar, "policy_connected", &[]).await, 1.0);
}

#[tokio::test]
async fn the_file_for_agents_lists_the_servers_in_force() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    let url = |name: &str| json!({"type": "http", "url": format!("http://{}/{name}", sidecar.address)});
    let shop = documents(&allow_all("http://shop/mcp").replace("bank", "shop"));
    let nowhere = documents(&allow_all("http://x/mcp").replace("bank", "nowhere").replace("    url: http://x/mcp\n", ""));
    for (version, policies, servers) in [
        ("1", stage.open(), json!({"bank": url("bank")})),
        ("2", [stage.open(), shop, nowhere].concat(), json!({"bank": url("bank"), "shop": url("shop")})),
        ("3", Vec::new(), json!({})),
    ] {
        stream.enforce(version, &policies).await;
        assert_eq!(stage.mcp_servers(), servers);
    }
    let meta = fs::metadata(stage.path("mcp.json")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o644);
    assert!(!stage.path(".mcp.json.new").exists());
    // A failure is told, and the policy is in force.
    fs::remove_file(stage.path("mcp.json")).unwrap();
    fs::create_dir(stage.path("mcp.json")).unwrap();
    stream.enforce("4", &stage.open()).await;
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!(metric(&sidecar, "file_failures_total", &[("file", "mcp_config"), ("operation", "write")]).await, 1.0);
}

#[tokio::test]
async fn the_file_for_agents_follows_local_policies_too() {
    let upstream = Upstream::bank().await;
    let folder = Folder::new();
    let file = folder.path().join("mcp.json");
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.mcp_config = Some(file.clone())).await;
    let servers = || serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap()["mcpServers"].clone();
    assert_eq!(servers(), json!({"bank": {"type": "http", "url": format!("http://{}/bank", sidecar.address)}}));
    sidecar.folder.write("policy.yaml", allow_all(&upstream.url()).replace("bank", "shop"));
    until("the change", async || servers().get("shop").is_some()).await;
    assert_eq!(servers().get("bank"), None);
}

#[tokio::test]
async fn stopping_ends_the_stream_and_no_other_is_opened() {
    let mut stage = Stage::new().await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    let began = Instant::now();
    assert!(sidecar.stop(A_SECOND).await);
    stream.given_up().await;
    assert!(began.elapsed() < A_SECOND, "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!stage.operator.has_opened());
}

#[tokio::test]
async fn an_operator_that_takes_no_acknowledgement_or_does_not_answer_is_given_up() {
    let stage = Stage::new().await;
    // Takes connections and says nothing, with and without TLS.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(mute.accept().await.unwrap());
        }
    });
    let sidecar = stage.sidecar_with(|control| control.endpoint = format!("https://{address}").parse().unwrap()).await;
    let unreachable = [("result", "unreachable")];
    let took = until_metric(&sidecar, "control_plane_connects_total", &unreachable, |count| count >= 1.0).await;
    assert!(took > Duration::from_secs(4), "{took:?}");
    held.abort();
}

#[tokio::test]
async fn another_server_at_the_address_is_told_apart() {
    let stage = Stage::new().await;
    // It speaks HTTP/1.1 alone.
    let raw = common::upstream::Raw::start(common::upstream::Deed::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
    let endpoint: OperatorEndpoint = format!("http://{}", raw.address).parse().unwrap();
    let error = client::connect(&endpoint, Trust::new(Vec::new()).unwrap().tls(), "t").await.unwrap_err();
    assert_eq!(error.fault, ConnectFault::Protocol, "{error}");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint: OperatorEndpoint = format!("http://{nobody}").parse().unwrap();
    let error = client::connect(&endpoint, Trust::new(Vec::new()).unwrap().tls(), "t").await.unwrap_err();
    assert_eq!(error.fault, ConnectFault::Unreachable, "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    drop(stage);
}

/// Plays a sidecar with the client alone, as the simulator does.
async fn simulated(endpoint: OperatorEndpoint, trust: Trust) -> Result<String, Lost> {
    let (acks, mut messages) = client::connect(&endpoint, trust.tls(), "first").await.unwrap();
    loop {
        if let StreamLine::Message(StreamMessage::Snapshot(snapshot)) = messages.next(SILENCE).await? {
            acks.send_ack(&wire::ack(&snapshot.version, &[])).await?;
            return messages.next(SILENCE).await.map(|_| snapshot.version);
        }
    }
}

#[tokio::test]
async fn many_streams_of_one_process_are_served() {
    let mut stage = Stage::new().await;
    let trust = Trust::from_pem(&stage.authority.pem()).unwrap();
    let endpoint = stage.control().endpoint;
    let sidecars: Vec<_> = (0..50).map(|_| tokio::spawn(simulated(endpoint.clone(), trust.clone()))).collect();
    let mut streams: Vec<Stream> = Vec::new();
    while streams.len() < sidecars.len() {
        streams.push(stage.operator.opened().await);
    }
    for stream in &mut streams {
        assert_eq!(stream.enforce("1", &stage.open()).await, clean("1"));
        stream.line(&json!("keepAlive")).await;
    }
    for sidecar in sidecars {
        assert_eq!(within("a sidecar", sidecar).await.unwrap(), Ok("1".to_owned()));
    }
    // What is dropped is closed.
    for stream in &streams {
        stream.given_up().await;
    }
}

#[tokio::test]
async fn the_counts_of_the_control_plane_begin_at_zero_and_have_no_other_values() {
    let stage = Stage::new().await;
    let sidecar = stage.sidecar_with(|control| control.token_file = PathBuf::from("/nowhere")).await;
    let scrape = sidecar.scrape().await;
    for (name, label, values) in [
        ("toolweir_control_plane_connects_total", "result", RESULTS.as_slice()),
        ("toolweir_control_plane_disconnects_total", "end", ENDS.as_slice()),
        ("toolweir_control_plane_messages_total", "kind", KINDS.as_slice()),
    ] {
        let mut seen: Vec<&str> =
            scrape.series.iter().filter(|series| series.name == name).map(|series| series.labels[label].as_str()).collect();
        let mut values = values.to_vec();
        seen.sort_unstable();
        values.sort_unstable();
        assert_eq!(seen, values, "{name}");
    }
}

/// The real program with a control plane.
#[tokio::test]
async fn the_program_takes_policies_from_a_control_plane() {
    let mut stage = Stage::new().await;
    let url = format!("https://{}", stage.operator.address);
    let (token, kept, mcp) = (stage.path("token"), stage.path("state"), stage.path("mcp.json"));
    let (token, kept, mcp) = (token.to_str().unwrap(), kept.to_str().unwrap(), mcp.to_str().unwrap());
    let own = ["run", "--control-plane", &url, "--token-file", token, "--state-dir", kept, "--mcp-config", mcp];
    let free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let arguments = [own.as_slice(), &free].concat();
    // Nobody to trust.
    let output = program::run(&arguments).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("--control-plane-ca or TOOLWEIR_CA"), "{error}");
    let ca = stage.folder.write("ca.pem", "nonsense");
    let output = program::run(&[arguments.as_slice(), &["--control-plane-ca", ca.to_str().unwrap()]].concat()).await;
    assert!(String::from_utf8(output.stderr).unwrap().contains("holds no valid PEM certificate"));
    let mut child = program::command(&arguments).env("TOOLWEIR_CA", stage.authority.pem()).spawn().unwrap();
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    let servers = stage.mcp_servers();
    let proxy = servers["bank"]["url"].as_str().unwrap().parse::<http::Uri>().unwrap();
    let proxy = proxy.authority().unwrap().as_str().parse().unwrap();
    let answer = Ask::post(call("1", "pay", "{}")).over(Http::One, proxy).await;
    assert_eq!(answer.json()["result"]["isError"], false);
    program::signal(&child, "-TERM").await;
    assert!(within("the end", child.wait()).await.unwrap().success());
    stream.given_up().await;
}

#[tokio::test]
async fn flags_that_do_not_go_together_are_told() {
    let policy = ["--policy", "policy.yaml"];
    let url = ["--control-plane", "https://operator:8444"];
    let token = ["--token-file", "token"];
    for (arguments, told) in [
        (Vec::new(), "--policy <FILE|DIR>"),
        ([policy, url].concat(), "cannot be used with"),
        (url.to_vec(), "--token-file <FILE>"),
        ([policy, token].concat(), "cannot be used with"),
        (token.to_vec(), "--control-plane <URL>"),
        ([["--control-plane", "http://operator:8444"], token].concat(), "plain http is allowed on loopback only"),
        ([["--control-plane", "operator:8444"], token].concat(), "write https://HOST[:PORT]"),
    ] {
        let output = program::run(&[&["run"], arguments.as_slice()].concat()).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(told), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn the_operator_is_told_whether_credentials_work_and_nothing_of_what_they_are() {
    let mut stage = Stage::new().await;
    let keys = Folder::new();
    let mut config = stage.config(|_| {});
    config.credentials.keys = Some(keys.path().to_owned());
    let folder = Folder::new();
    let sidecar = Sidecar::run(folder, &config).await;
    let mut stream = stage.operator.opened().await;
    let text = policy("URL", "[{name: \"*\", action: Allow}]");
    let url = format!("url: {}\n    credential: {{bearer: {{secretKey: token}}}}", stage.upstream.url());
    stream.enforce("1", &documents(&text.replace("url: URL", &url))).await;
    let report = stream.report().await;
    let [reported] = report.credentials.as_slice() else { panic!("{report:?}") };
    assert_eq!((reported.server.as_str(), reported.kind.as_str()), ("bank", "bearer"));
    assert!(reported.problem.as_ref().unwrap().contains("the key token is not there"), "{reported:?}");
    keys.write("token", "marker");
    let report = stream.report().await;
    assert_eq!(report.credentials[0].problem, None);
    assert!(!format!("{report:?}").contains("marker"));
    let answer = sidecar.post(&call("7", "pay", "{}")).await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    assert_eq!(stage.upstream.only().header("authorization"), "Bearer marker");
    // The folder in which policies are kept holds no secret.
    for entry in fs::read_dir(stage.path("state")).unwrap() {
        let kept = fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&kept).contains("marker"));
    }
    stream.enforce("2", &documents(&allow_all(&stage.upstream.url()))).await;
    assert_eq!(stream.report().await.credentials, []);
}

#[tokio::test]
async fn the_operator_is_told_which_tools_are_not_as_pinned_and_that_none_is_known() {
    let mut stage = Stage::new().await;
    stage.upstream = Upstream::start(|_| Reply::json(list("1", &["pay", "get_balance"]))).await;
    let sidecar = stage.sidecar().await;
    let mut stream = stage.operator.opened().await;
    stream.enforce("1", &stage.open()).await;
    // It may be an operator that knows no pins.
    assert!(tokio::time::timeout(A_SECOND / 2, stream.drift()).await.is_err(), "no policy asks for it");
    let pinned = allow_all(&format!("{}\n    pins: {{name: bank}}", stage.upstream.url()));
    let pins = json!({"namespace": "agents", "name": "bank",
        "spec": {"server": "bank", "tools": []}});
    stream.line(&json!({"snapshot": {"version": "2", "policies": documents(&pinned), "pins": [pins]}})).await;
    assert_eq!(stream.ack().await, Ack { version: "2".into(), problems: Vec::new() });
    assert_eq!(stream.drift().await.drift, []);
    let listed = sidecar.post(&request("1", "tools/list", "{}")).await;
    assert_eq!(listed["result"]["tools"], json!([]), "{listed}");
    let told = stream.drift().await.drift;
    let tools: Vec<_> = told.iter().map(|drift| (drift.pins.as_str(), drift.tool.as_str())).collect();
    assert_eq!(tools, [("agents/bank", "get_balance"), ("agents/bank", "pay")]);
    stream.enforce("3", &stage.open()).await;
    assert_eq!(stream.drift().await.drift, []);
}
