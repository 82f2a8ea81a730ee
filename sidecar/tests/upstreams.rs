//! Whatever is wrong with a server, or with what the sidecar may hold, has a documented answer, a count and a line in the
//! log; and TLS to servers is always verified.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    allow_all, call,
    client::{Ask, Http, Http2, Wire},
    logs, request, result,
    sidecar::Sidecar,
    tls::Authority,
    until,
    upstream::{Deed, Raw, Reply, Upstream},
};
use http::Version;
use serde_json::json;
use tokio::net::TcpListener;
use toolweir_sidecar::run::RunConfig;

fn asks() -> [Ask; 5] {
    [
        Ask::post(call("7", "pay", "{}")),
        Ask::post(request("7", "initialize", "{}")),
        Ask::post(request("7", "tools/list", "{}")),
        Ask::get(),
        Ask::delete(),
    ]
}

fn short(config: &mut RunConfig) {
    config.limits.first_byte = Duration::from_millis(200);
    config.limits.connect = Duration::from_millis(100);
}

/// Asks in every way, and checks the answer, the count and the log.
async fn fails(name: &str, url: &str, status: u16, message: &str, outcome: &str) {
    let log = logs::log();
    let sidecar = Sidecar::with(&allow_all(url), short).await;
    let mut asked = 0;
    for http in Http::BOTH {
        for ask in asks() {
            asked += 1;
            let answer = ask.clone().plain().over(http, sidecar.address).await;
            assert_eq!(answer.status, status, "{name}, {http:?} {ask:?}: {}", answer.text());
            let body = answer.json();
            assert_eq!((&body["error"]["code"], &body["error"]["message"]), (&json!(-32603), &json!(message)), "{name}: {body}");
            let id = if ask.is_post() { json!(7) } else { json!(null) };
            assert_eq!(body["id"], id, "{name}, {ask:?}");
        }
    }
    let scrape = sidecar.scrape().await;
    assert_eq!(scrape.sum("toolweir_requests_total", &[("server", "bank"), ("outcome", outcome)]), f64::from(asked), "{name}");
    until("its connections to close", async || sidecar.scrape().await.sum("toolweir_connections", &[]) == 0.0).await;
    assert_eq!(sidecar.audit(2).await[0]["outcome"], outcome, "{name}");
    let line = format!("request failed server=\"bank\" method=\"tools/call\" outcome=\"{outcome}\"");
    assert!(log.text().contains(&line), "{name}: {line} not in {}", log.text());
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_a_bad_gateway() {
    // A port that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let message = |why: &str| format!("The MCP server bank cannot be connected to: {why}.");
    fails("nobody listens", &format!("http://{nobody}/mcp"), 502, &message("nobody listens at its address"), "connect_failed")
        .await;
    // Nobody answers the handshake.
    let silent = Raw::start(Deed::Keep(Vec::new())).await;
    let why = message("nobody answers at its address in time");
    fails("silence instead of TLS", &format!("https://{}/mcp", silent.address), 502, &why, "connect_failed").await;
    let plain = Upstream::bank().await;
    let why = message("it does not speak TLS at this port; if that is meant, write http:// in the policy's url");
    fails("no TLS", &format!("https://{}/mcp", plain.address), 502, &why, "connect_failed").await;
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_said_to_be_one() {
    let sidecar = Sidecar::start(&allow_all("http://no-such-host.invalid/mcp")).await;
    let answer = sidecar.ask(&asks()[0].clone().plain()).await;
    // Which reason it is depends on the network here.
    assert!(
        answer.status == 502 && answer.text().contains("the name no-such-host.invalid")
            || answer.text().contains("DNS knows no name"),
        "{}",
        answer.text()
    );
    assert_eq!((sidecar.counted("connect_failed").await, answer.header("retry-after")), (1.0, "1"));
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_worth_another_try() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sidecar = Sidecar::start(&allow_all(&format!("http://{nobody}/mcp"))).await;
    assert_eq!(sidecar.ask(&asks()[0].clone().plain()).await.header("retry-after"), "1");
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout() {
    let upstream = Raw::start(Deed::Keep(Vec::new())).await;
    let began = Instant::now();
    fails("silence", &upstream.url(), 504, "The MCP server bank did not begin to answer in time.", "upstream_timeout").await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    let upstream = Raw::start(Deed::Keep(b"HTTP/1.1 200 OK\r\nContent-".to_vec())).await;
    fails("half a head", &upstream.url(), 504, "The MCP server bank did not begin to answer in time.", "upstream_timeout").await;
}

#[tokio::test]
async fn a_server_that_hangs_up_or_speaks_no_http_is_a_bad_gateway() {
    for (name, bytes) in [
        ("hangs up", b"".as_slice()),
        ("hangs up in the head", b"HTTP/1.1 200 OK\r\nContent-"),
        ("garbage", b"\x00\xff garbage\r\n\r\n"),
        ("another protocol", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("HTTP/0.9", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}"),
        ("no status", b"HTTP/1.1 OK\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"),
        ("a folded header", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}"),
    ] {
        let upstream = Raw::start(Deed::Say(bytes.to_vec())).await;
        let message = "The MCP server bank hung up or sent what is no HTTP answer.";
        fails(name, &upstream.url(), 502, message, "upstream_failed").await;
    }
}

#[tokio::test]
async fn an_answer_that_a_server_breaks_off_never_looks_whole() {
    for (name, bytes) in [
        (
            "less than its length",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"result\":".as_slice(),
        ),
        (
            "in a chunk",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{\"result\":",
        ),
        (
            "no chunk",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{\"result\":{}}",
        ),
    ] {
        let upstream = Raw::start(Deed::Say(bytes.to_vec())).await;
        let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
        // It fails whole where it was still held, and else the connection is closed before its end.
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&asks()[0].clone().with("connection", "close").bytes("localhost")).await;
        let got = wire.closed().await;
        let is_cut = got.is_empty() || got.starts_with("HTTP/1.1 200 OK\r\n") && !got.ends_with("0\r\n\r\n");
        assert!(is_cut || got.starts_with("HTTP/1.1 502 "), "{name}: {got}");
        assert!(!got.contains(r#""result":{}"#), "{name}: {got}");
        let before = sidecar.counted("upstream_failed").await;
        // A list is read whole first.
        let answer = sidecar.ask(&asks()[2].clone().plain()).await;
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
        assert_eq!(sidecar.counted("upstream_failed").await, before + 1.0, "{name}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let body = result("7");
    let upstream = Raw::start(Deed::Say(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").into())).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        assert_eq!(asks()[0].over(http, sidecar.address).await.text(), body);
    }
}

#[tokio::test]
async fn an_answer_that_ends_no_request_is_none() {
    for head in ["101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket", "101 Switching Protocols"] {
        let upstream = Raw::start(Deed::Say(format!("HTTP/1.1 {head}\r\n\r\n").into_bytes())).await;
        let message = "The answer of the MCP server bank cannot be passed on: its status is 101, which ends no request.";
        fails("101", &upstream.url(), 502, message, "upstream_invalid").await;
    }
    // What only says that there will be an answer is passed over.
    let early =
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let upstream = Raw::start(Deed::Say(early.as_bytes().to_vec())).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    assert_eq!(sidecar.ask(&asks()[0]).await.status, 202);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_what_to_write() {
    for status in [301, 302, 303, 307, 308] {
        let upstream = Upstream::start(move |_| Reply::status(status).with("location", "https://bank.example/mcp/")).await;
        let message = "The answer of the MCP server bank cannot be passed on: it redirects to https://bank.example/mcp/; write that URL in the policy.";
        fails("a redirect", &upstream.url(), 502, message, "upstream_invalid").await;
        assert!(upstream.seen().iter().all(|seen| seen.path == "/mcp"));
    }
}

#[tokio::test]
async fn an_authorization_that_a_server_wants_is_that_of_the_sidecars_url() {
    let upstream = Upstream::start(|seen| {
        let origin = format!("http://{}", seen.header("host"));
        match seen.path.as_str() {
            "/mcp" => {
                let metadata = format!("{origin}/.well-known/oauth-protected-resource/mcp");
                Reply::status(401).with(
                    "www-authenticate",
                    &format!("Bearer error=\"invalid_token\", resource_metadata=\"{metadata}\", scope=\"a\""),
                )
            }
            "/.well-known/oauth-protected-resource/mcp" => {
                Reply::json(format!("{{ \"resource\":\"{origin}/mcp\", \"authorization_servers\":[\"https://login.example\"] }}"))
            }
            other => panic!("{other}"),
        }
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let own = format!("http://{}", sidecar.address);
    for http in Http::BOTH {
        let metadata = format!("{own}/.well-known/oauth-protected-resource/bank");
        for ask in asks() {
            let answer = ask.over(http, sidecar.address).await;
            let challenge = format!("Bearer error=\"invalid_token\", resource_metadata=\"{metadata}\", scope=\"a\"");
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, challenge.as_str()), "{http:?}");
        }
        let answer = Ask::get().to("/.well-known/oauth-protected-resource/bank").over(http, sidecar.address).await;
        let described = format!("{{ \"resource\":\"{own}/bank\", \"authorization_servers\":[\"https://login.example\"] }}");
        assert_eq!((answer.status, answer.text()), (200, described), "{http:?}");
    }
    let counted = &[("method", "_authorization"), ("outcome", "ok")];
    assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", counted), 2.0);
}

#[tokio::test]
async fn calls_share_connections() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.workers = 1).await;
    for http in Http::BOTH {
        for _ in 0..5 {
            assert_eq!(asks()[0].over(http, sidecar.address).await.status, 200);
        }
    }
    assert_eq!((upstream.seen().len(), upstream.connections()), (10, 1));
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_costs_no_call() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        result("7").len(),
        result("7")
    );
    // It says that it keeps the connection, and closes it.
    let upstream = Raw::start(Deed::Say(answer.into())).await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.workers = 1).await;
    for _ in 0..20 {
        let answer = sidecar.ask(&asks()[0]).await;
        assert_eq!((answer.status, answer.text()), (200, result("7")));
    }
}

#[tokio::test]
async fn beyond_the_bytes_that_may_be_held_a_call_waits_and_is_then_turned_away() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| {
        config.limits.held = 100_000;
        config.limits.held_wait = Duration::from_millis(100);
    })
    .await;
    let body = call("7", "pay", &format!("{{\"x\":\"{}\"}}", "x".repeat(60_000)));
    let bytes = Ask::post(body.as_str()).bytes("localhost");
    let mut first = Wire::connect(sidecar.address).await;
    first.write(&bytes[..bytes.len() - 1]).await;
    until("its room to be taken", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) >= 60_000.0).await;
    for http in Http::BOTH {
        let began = Instant::now();
        let answer = Ask::post(body.as_str()).plain().over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{http:?}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], -32603);
        assert!(http == Http::Two || began.elapsed() >= Duration::from_millis(100));
    }
    assert_eq!(sidecar.counted("overloaded").await, 2.0);
    // A small one still finds room, and the room of the first comes free with it.
    assert_eq!(sidecar.ask(&asks()[0]).await.status, 200);
    first.write(&bytes[bytes.len() - 1..]).await;
    assert_eq!(first.answer().await.status, 200);
    until("its room to come free", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) == 0.0).await;
    assert_eq!(sidecar.ask(&Ask::post(body.as_str())).await.status, 200);
}

#[tokio::test]
async fn a_call_that_waits_for_room_gets_it_when_it_comes_free() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| {
        config.limits.held = 100_000;
        config.limits.held_wait = Duration::from_secs(5);
    })
    .await;
    let body = call("7", "pay", &format!("{{\"x\":\"{}\"}}", "x".repeat(60_000)));
    let bytes = Ask::post(body.as_str()).bytes("localhost");
    let (mut first, mut second) = (Wire::connect(sidecar.address).await, Wire::connect(sidecar.address).await);
    first.write(&bytes[..bytes.len() - 1]).await;
    until("its room to be taken", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) >= 60_000.0).await;
    second.write(&bytes).await;
    first.write(&bytes[bytes.len() - 1..]).await;
    assert_eq!((first.answer().await.status, second.answer().await.status), (200, 200));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.body_time = Duration::from_millis(100)).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post("{").with("content-length", "100").bytes("localhost")).await;
    let answer = wire.answer().await;
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (408, &json!("The request's body did not arrive.")));
    assert_eq!(sidecar.counted("client_failed").await, 1.0);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn beyond_the_connections_that_may_be_open_one_is_closed_at_once() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.connections = 2).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&asks()[0].bytes("localhost")).await;
        assert_eq!(wire.answer().await.status, 200);
        open.push(wire);
    }
    assert_eq!(sidecar.scrape().await.sum("toolweir_connections", &[]), 2.0);
    Wire::connect(sidecar.address).await.closed().await;
    let counted = &[("server", "_unknown"), ("method", "_none"), ("outcome", "overloaded")];
    assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", counted), 1.0);
    open.pop();
    until("a place to come free", async || sidecar.scrape().await.sum("toolweir_connections", &[]) == 1.0).await;
    assert_eq!(sidecar.ask(&asks()[0]).await.status, 200);
}

#[tokio::test]
async fn many_calls_share_one_connection_over_http_2() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let mut client = Http2::connect(sidecar.address).await;
    for id in 0..50 {
        let id = id.to_string();
        assert_eq!(client.ask(&Ask::post(call(&id, "pay", "{}"))).await.text(), result(&id));
    }
    assert_eq!(sidecar.scrape().await.sum("toolweir_connections", &[]), 1.0);
}

/// A sidecar that trusts an authority, before a server that has a certificate.
async fn with_tls(trusted: &Authority, server: &Authority, name: &str, host: &str, protocols: &[&str]) -> (Upstream, Sidecar) {
    let upstream = Upstream::with_tls(server.acceptor(name, protocols), |_| Reply::json(result("7"))).await;
    let folder = common::folder::Folder::new();
    let ca = folder.write("ca.pem", trusted.pem());
    let url = format!("https://{host}:{}/mcp", upstream.address.port());
    let policy = folder.write("policy.yaml", allow_all(&url));
    let sidecar = Sidecar::at(folder, policy, |config| config.upstream_ca = Some(ca)).await;
    (upstream, sidecar)
}

#[tokio::test]
async fn a_server_with_a_certificate_of_the_given_authority_is_reached_in_the_version_that_it_chooses() {
    let authority = Authority::new();
    for (protocols, version) in [
        (["h2", "http/1.1"].as_slice(), Version::HTTP_2),
        (["h2"].as_slice(), Version::HTTP_2),
        (["http/1.1"].as_slice(), Version::HTTP_11),
        ([].as_slice(), Version::HTTP_11),
    ] {
        for (name, host) in [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")] {
            let (upstream, sidecar) = with_tls(&authority, &authority, name, host, protocols).await;
            for http in Http::BOTH {
                let answer = asks()[0].over(http, sidecar.address).await;
                assert_eq!((answer.status, answer.text()), (200, result("7")), "{protocols:?} {name}");
            }
            assert!(upstream.seen().iter().all(|seen| seen.version == version), "{protocols:?}: {:?}", upstream.seen());
            assert_eq!(upstream.seen()[0].text(), call("7", "pay", "{}"));
        }
    }
}

#[tokio::test]
async fn calls_share_a_connection_over_http_2_to_the_server() {
    let authority = Authority::new();
    let (upstream, sidecar) = with_tls(&authority, &authority, "127.0.0.1", "127.0.0.1", &["h2"]).await;
    let mut client = Http2::connect(sidecar.address).await;
    for _ in 0..5 {
        assert_eq!(client.ask(&asks()[0]).await.status, 200);
    }
    assert_eq!((upstream.seen().len(), upstream.connections()), (5, 1));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_verified_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (name, trusted, certified, host) in [
        ("an unknown authority", &other, "127.0.0.1", "127.0.0.1"),
        ("another name", &authority, "bank.example", "127.0.0.1"),
        ("another name for a name", &authority, "127.0.0.1", "localhost"),
    ] {
        let (upstream, sidecar) = with_tls(trusted, &authority, certified, host, &["h2", "http/1.1"]).await;
        let answer = sidecar.ask(&asks()[0].clone().plain()).await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        let said = "The MCP server bank cannot be connected to: ";
        assert!(answer.status == 502 && message.starts_with(said) && message.contains("certificate"), "{name}: {message}");
        assert_eq!(sidecar.counted("connect_failed").await, 1.0, "{name}");
        assert!(upstream.seen().is_empty(), "{name}");
    }
}
