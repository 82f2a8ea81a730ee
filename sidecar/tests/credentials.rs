//! Credentials that only the sidecar holds: shown to the server of their policy, kept from the agent, and missing visibly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    call,
    client::{Ask, Http, Wire},
    folder::Folder,
    logs, request, result,
    sidecar::{self, Sidecar},
    tls::Authority,
    until,
    upstream::{Reply, Seen, Upstream},
};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::oneshot;
use toolweir_sidecar::{credentials::keys::KeyFolders, run::RunConfig};

/// A policy that allows everything on the server `bank` at a url, with a credential in YAML.
fn policy(url: &str, credential: &str) -> String {
    format!(
        "apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: bank, namespace: agents}}\n\
         spec:\n  servers:\n  - name: bank\n    url: {url}\n    credential: {{{credential}}}\n    tools: [{{name: \"*\", action: Allow}}]\n"
    )
}

const BEARER: &str = "bearer: {secretKey: token}";

fn keys(folder: &Path) -> impl FnOnce(&mut RunConfig) {
    let folders = KeyFolders { keys: Some(folder.to_owned()), tokens: Some(folder.to_owned()), in_pod: false };
    move |config| config.credentials = folders
}

/// A sidecar whose keys are in `folder`, once it knows of its credential.
async fn start(folder: &Folder, url: &str, credential: &str) -> Sidecar {
    let sidecar = Sidecar::with(&policy(url, credential), keys(folder.path())).await;
    until("the state of the credential", async || !sidecar.governor.credential_report().credentials.is_empty()).await;
    sidecar
}

fn ask() -> Ask {
    Ask::post(call("7", "pay", "{}"))
}

/// The words with which a call was answered that did not go through.
fn words(answer: &Value) -> String {
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

async fn goes_through(sidecar: &Sidecar) -> bool {
    sidecar.post(&call("7", "pay", "{}")).await["result"]["isError"] == false
}

/// Waits until a call is answered with these words.
async fn fails_with(sidecar: &Sidecar, said: &str) {
    until(said, async || {
        let answer = sidecar.post(&call("7", "pay", "{}")).await;
        answer["result"]["isError"] == true && words(&answer).contains(said)
    })
    .await;
}

#[tokio::test]
async fn what_the_agent_sends_in_its_place_never_reaches_the_server() {
    for (credential, key, name, shown) in [
        (BEARER, "token", "authorization", "Bearer right"),
        ("header: {name: X-Api-Key, secretKey: token}", "token", "x-api-key", "right"),
        ("serviceAccountToken: {audience: 'https://mcp.test'}", "https%3A%2F%2Fmcp.test", "authorization", "Bearer right"),
    ] {
        let (folder, upstream) = (Folder::new(), Upstream::bank().await);
        folder.write(key, "right\n");
        let sidecar = start(&folder, &upstream.url(), credential).await;
        let mut asked = 0;
        for http in Http::BOTH {
            for spelling in ["authorization", "x-api-key", "x_api_key", "x-api_key"] {
                let ask = ask().with(spelling, "Bearer own");
                let answer = ask.over(http, sidecar.address).await;
                assert_eq!(answer.json()["result"]["isError"], false, "{spelling}");
                // Repeated, it goes nowhere, or passes without it.
                let answer = ask.with(spelling, "own too").over(http, sidecar.address).await;
                asked += 1 + usize::from(answer.json()["result"]["isError"] == false);
            }
        }
        // In capitals, twice, named as a header of this hop, and as a trailer.
        let body = call("7", "pay", "{}");
        let head = "POST /bank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAUTHORIZATION: Bearer own\r\n\
             X-API-KEY: own\r\nConnection: x-api-key\r\nTrailer: Authorization, X-Api-Key\r\nTransfer-Encoding: chunked\r\n\r\n";
        let trailers = "0\r\nAuthorization: Bearer own\r\nX-Api-Key: own\r\n\r\n";
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(format!("{head}{:x}\r\n{body}\r\n{trailers}", body.len()).as_bytes()).await;
        let answer = wire.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = upstream.seen();
        assert_eq!(seen.len(), asked + 1);
        for seen in seen {
            assert_eq!(seen.headers.get_all(name).iter().collect::<Vec<_>>(), [shown], "{:?}", seen.headers);
            let own: Vec<_> =
                seen.headers.iter().filter(|(_, value)| value.as_bytes().windows(3).any(|part| part == b"own")).collect();
            // X-Api-Key is no credential where the policy names another header.
            assert!(own.iter().all(|(header, _)| name == "authorization" && *header != "authorization"), "{own:?}");
        }
    }
}

#[tokio::test]
async fn a_key_that_is_missing_or_wrong_is_named_and_one_that_comes_is_in_force() {
    let (folder, upstream) = (Folder::new(), Upstream::bank().await);
    let sidecar = start(&folder, &upstream.url(), BEARER).await;
    let text = words(&sidecar.post(&call("7", "pay", "{}")).await);
    assert!(text.contains("the key token is not there: there is no file token in the folder of --credentials-dir"), "{text}");
    assert_eq!(sidecar.ask(&Ask::get().plain()).await.status, 502);
    assert_eq!(sidecar.counted("credential_unavailable").await, 2.0);
    for (bytes, said) in [
        (b"".as_slice(), "the key token is empty"),
        (b"a\nb", "the key token has more than one line"),
        (b"\xff\xfe", "the key token is not UTF-8"),
    ] {
        folder.write("token", bytes);
        fails_with(&sidecar, said).await;
        let report = sidecar.governor.credential_report();
        assert!(report.credentials[0].problem.as_ref().unwrap().contains(said), "{report:?}");
    }
    assert!(upstream.seen().is_empty());
    let ready = async || sidecar.scrape().await.sum("toolweir_credential_ready", &[("server", "bank"), ("kind", "bearer")]);
    assert_eq!(ready().await, 0.0);
    for token in ["first", "second"] {
        folder.write("token", token);
        until(token, async || {
            goes_through(&sidecar).await && upstream.seen().last().unwrap().header("authorization") == format!("Bearer {token}")
        })
        .await;
    }
    until("the metric", async || ready().await == 1.0).await;
    assert_eq!(sidecar.governor.credential_report().credentials[0].problem, None);
    std::fs::remove_file(folder.path().join("token")).unwrap();
    fails_with(&sidecar, "the key token is not there").await;
}

#[tokio::test]
async fn a_server_that_refuses_once_gets_another_and_the_agent_is_never_asked() {
    let folder = Folder::new();
    folder.write("token", "old");
    let path = folder.path().to_owned();
    let upstream = Upstream::start(move |seen| {
        if seen.header("authorization") == "Bearer new" {
            return Reply::json(result("7")).with("www-authenticate", "Bearer error=\"x\"");
        }
        // Just now another one is valid.
        std::fs::write(path.join("token"), "new").unwrap();
        Reply::status(401).with("www-authenticate", "Bearer resource_metadata=\"http://idp/x\"")
    })
    .await;
    let sidecar = start(&folder, &upstream.url(), BEARER).await;
    let answer = sidecar.ask(&ask()).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (200, ""));
    assert_eq!(answer.json()["result"]["isError"], false);
    let shown: Vec<String> = upstream.seen().iter().map(|seen| seen.header("authorization").to_owned()).collect();
    assert_eq!(shown, ["Bearer old", "Bearer new"]);
    for path in ["/.well-known/oauth-protected-resource/bank", "/.well-known/oauth-protected-resource"] {
        assert_eq!(sidecar.ask(&Ask::get().to(path)).await.status, 404, "{path}");
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_second_401_is_a_denial_in_words_and_not_a_challenge() {
    let (folder, refuses) = (Folder::new(), Arc::new(AtomicUsize::new(401)));
    folder.write("token", "wrong");
    let status = Arc::clone(&refuses);
    let upstream = Upstream::start(move |_| match u16::try_from(status.load(Ordering::SeqCst)).unwrap() {
        200 => Reply::json(result("7")),
        status => Reply::status(status).with("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let sidecar = start(&folder, &upstream.url(), BEARER).await;
    let answer = sidecar.ask(&ask()).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (200, ""));
    let text = words(&answer.json());
    assert!(
        text.starts_with("The MCP server bank refuses the sidecar's credential (status 401), so nothing was carried out."),
        "{text}"
    );
    for ask in [Ask::get(), Ask::delete(), Ask::post(request("7", "tools/list", "{}"))] {
        let answer = sidecar.ask(&ask.plain()).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (502, ""), "{}", answer.text());
    }
    assert_eq!(sidecar.counted("credential_refused").await, 4.0);
    assert_eq!(sidecar.scrape().await.sum("toolweir_upstream_duration_seconds_count", &[]), 4.0, "there is no other to show");
    let problem = |sidecar: &Sidecar| sidecar.governor.credential_report().credentials[0].problem.clone();
    assert_eq!(problem(&sidecar).as_deref(), Some("the server refuses it, also after a renewal"));
    // A 403 is the server's word on what may be done.
    refuses.store(403, Ordering::SeqCst);
    let answer = sidecar.ask(&ask().plain()).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (403, ""));
    refuses.store(200, Ordering::SeqCst);
    assert!(goes_through(&sidecar).await);
    assert!(problem(&sidecar).is_some(), "one of several replicas may refuse it still");
    until("calm", async || goes_through(&sidecar).await && problem(&sidecar).is_none()).await;
    // One that was refused is forgotten when the key changes, though nobody calls.
    refuses.store(401, Ordering::SeqCst);
    assert!(!goes_through(&sidecar).await && problem(&sidecar).is_some());
    folder.write("token", "another");
    until("the other key", async || problem(&sidecar).is_none()).await;
}

/// A token endpoint that counts, and gives tokens `t0`, `t1`, ... of a life.
struct TokenEndpoint {
    upstream: Upstream,
    state: Arc<EndpointState>,
}

#[derive(Default)]
struct EndpointState {
    status: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    given: Mutex<Vec<Instant>>,
    hanging: Mutex<Vec<oneshot::Receiver<()>>>,
}

const HANGS: usize = 1;

impl TokenEndpoint {
    async fn start(life: u64) -> Self {
        let state = Arc::new(EndpointState { status: 200.into(), ..EndpointState::default() });
        let shared = Arc::clone(&state);
        let upstream = Upstream::start(move |_| {
            match shared.status.load(Ordering::SeqCst) {
                200 => {}
                HANGS => {
                    let (given_up, hanging) = oneshot::channel();
                    shared.hanging.lock().unwrap().push(hanging);
                    return Reply::hang(given_up);
                }
                status => return Reply::new(u16::try_from(status).unwrap(), "application/json", r#"{"error":"invalid_client"}"#),
            }
            let now = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            shared.most_at_once.fetch_max(now, Ordering::SeqCst);
            let shared = Arc::clone(&shared);
            Reply::Later(Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                shared.at_once.fetch_sub(1, Ordering::SeqCst);
                let number = {
                    let mut given = shared.given.lock().unwrap();
                    given.push(Instant::now());
                    given.len() - 1
                };
                let Reply::Now(token) =
                    Reply::json(format!(r#"{{"access_token":"t{number}","token_type":"Bearer","expires_in":{life}}}"#))
                else {
                    unreachable!()
                };
                token
            }))
        })
        .await;
        Self { upstream, state }
    }

    fn credential(&self) -> String {
        format!(
            "oauth2ClientCredentials: {{tokenUrl: 'http://{}/token', clientIdKey: id, clientSecretKey: secret, scopes: [a, b]}}",
            self.upstream.address
        )
    }

    fn answers(&self, status: usize) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.upstream.seen().len()
    }
}

fn client_keys() -> Folder {
    let folder = Folder::new();
    folder.write("id", "agent");
    folder.write("secret", "marker-of-the-client");
    folder
}

#[tokio::test]
async fn of_many_calls_one_asks_for_a_token_and_none_is_sent_with_one_that_expired() {
    const LIFE: u64 = 3;
    let (folder, endpoint) = (client_keys(), TokenEndpoint::start(LIFE).await);
    let state = Arc::clone(&endpoint.state);
    let late = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&late);
    let upstream = Upstream::start(move |seen| {
        let number: usize = seen.header("authorization").strip_prefix("Bearer t").unwrap().parse().unwrap();
        let given = state.given.lock().unwrap()[number];
        counted.fetch_add(usize::from(given.elapsed() >= Duration::from_secs(LIFE - 1)), Ordering::SeqCst);
        Reply::json(result(&seen.json()["id"].to_string()))
    })
    .await;
    let sidecar = start(&folder, &upstream.url(), &endpoint.credential()).await;
    let form = endpoint.upstream.seen()[0].clone();
    assert_eq!(form.text(), "grant_type=client_credentials&scope=a+b");
    assert_eq!(form.header("content-type"), "application/x-www-form-urlencoded");
    let began = Instant::now();
    let clients = (0..32).map(|_| async {
        let mut calls = 0;
        while began.elapsed() < Duration::from_secs(2 * LIFE) {
            assert!(goes_through(&sidecar).await);
            calls += 1;
        }
        calls
    });
    let calls: usize = join_all(clients).await.into_iter().sum();
    assert!(calls > 100 && late.load(Ordering::SeqCst) == 0, "{calls} calls, {late:?} late");
    assert_eq!(endpoint.state.most_at_once.load(Ordering::SeqCst), 1);
    // Renewed after three quarters of its life, which is a second less than was said.
    assert!((4..=6).contains(&endpoint.asked()), "{} tokens", endpoint.asked());
    let fetched = sidecar.scrape().await.sum("toolweir_credential_fetches_total", &[("server", "bank"), ("outcome", "ok")]);
    // One may be under way.
    let asked = f64::from(u32::try_from(endpoint.asked()).unwrap());
    assert!((asked - 1.0..=asked).contains(&fetched), "{fetched} of {asked}");
    // One that nobody uses is not renewed.
    let asked = endpoint.asked();
    tokio::time::sleep(Duration::from_secs(LIFE + 2)).await;
    assert!(endpoint.asked() <= asked + 1, "{} tokens", endpoint.asked());
    assert!(goes_through(&sidecar).await);
}

#[tokio::test]
async fn a_token_endpoint_that_fails_is_named_within_a_bounded_time_and_asked_again() {
    let (folder, endpoint, upstream) = (client_keys(), TokenEndpoint::start(60).await, Upstream::bank().await);
    for (status, said, outcome) in [
        (500, "the token endpoint answers with status 500 (invalid_client)", "failed"),
        (401, "the token endpoint answers with status 401 (invalid_client)", "refused"),
        (302, "write the URL of the endpoint itself", "failed"),
        (HANGS, "the token endpoint did not answer within 5 s", "timeout"),
    ] {
        endpoint.answers(status);
        let sidecar = Sidecar::with(&policy(&upstream.url(), &endpoint.credential()), keys(folder.path())).await;
        let began = Instant::now();
        let text = words(&sidecar.post(&call("7", "pay", "{}")).await);
        assert!(text.contains(said) && began.elapsed() < Duration::from_secs(8), "{text} after {:?}", began.elapsed());
        assert!(!text.contains("marker"), "{text}");
        let began = Instant::now();
        fails_with(&sidecar, said).await;
        assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for what has just failed: {:?}", began.elapsed());
        let fetches = sidecar.scrape().await.sum("toolweir_credential_fetches_total", &[("outcome", outcome)]);
        assert!(fetches >= 1.0, "{status}");
        endpoint.answers(200);
        until("a token", async || goes_through(&sidecar).await).await;
    }
    assert!(upstream.seen().iter().all(|seen| seen.header("authorization").starts_with("Bearer t")));
}

#[tokio::test]
async fn a_401_makes_one_renewal_for_all_and_a_server_that_always_refuses_does_not_make_many() {
    let (folder, endpoint) = (client_keys(), TokenEndpoint::start(600).await);
    let accepted = Arc::new(Mutex::new("Bearer t1".to_owned()));
    let taken = Arc::clone(&accepted);
    let upstream = Upstream::start(move |seen| {
        let taken = *taken.lock().unwrap() == seen.header("authorization");
        if taken { Reply::json(result(&seen.json()["id"].to_string())) } else { Reply::status(401) }
    })
    .await;
    let sidecar = start(&folder, &upstream.url(), &endpoint.credential()).await;
    assert_eq!(endpoint.asked(), 1);
    let answers = join_all((0..16).map(|_| goes_through(&sidecar))).await;
    assert!(answers.iter().all(|through| *through), "{answers:?}");
    assert_eq!(endpoint.asked(), 2);
    "nothing".clone_into(&mut accepted.lock().unwrap());
    let answers = join_all((0..16).map(|_| goes_through(&sidecar))).await;
    assert!(answers.iter().all(|through| !through), "{answers:?}");
    assert!(endpoint.asked() <= 3, "{}", endpoint.asked());
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_a_refusal_of_it_is_said_to_be_one() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    for protocols in [&["http/1.1"][..], &["h2"]] {
        let acceptor = servers.acceptor_of_clients("127.0.0.1", protocols, &clients);
        let upstream = Upstream::with_tls(acceptor, |_| Reply::json(result("7"))).await;
        let url = format!("https://{}/mcp", upstream.address);
        let folder = Folder::new();
        let ca = folder.write("ca.pem", servers.pem());
        let show = |authority: &Authority| {
            let (certificate, key) = authority.client("agent");
            folder.write("tls.key", key);
            folder.write("tls.crt", certificate);
        };
        show(&clients);
        let text = policy(&url, "clientCertificate: {certificateKey: tls.crt, privateKeyKey: tls.key}");
        let keys = keys(folder.path());
        let sidecar = Sidecar::with(&text, |config| {
            keys(config);
            config.upstream_ca = Some(ca);
        })
        .await;
        assert!(goes_through(&sidecar).await, "{protocols:?}");
        assert_eq!(upstream.only().header("authorization"), "");
        let expiry = sidecar.scrape().await.sum("toolweir_credential_expiry_seconds", &[("kind", "clientCertificate")]);
        assert!(expiry > 1e9, "{expiry}");
        show(&strangers);
        fails_with(&sidecar, "refuses the sidecar's credential (in the TLS handshake)").await;
        assert!(sidecar.counted("credential_refused").await >= 1.0);
        folder.write("tls.key", clients.client("other").1);
        fails_with(&sidecar, "the keys tls.crt and tls.key do not belong together").await;
        show(&clients);
        until("the right one", async || goes_through(&sidecar).await).await;
    }
}

#[tokio::test]
async fn policies_that_disagree_on_a_credential_close_the_server() {
    let (folder, upstream) = (Folder::new(), Upstream::bank().await);
    folder.write("token", "a");
    folder.write("other", "b");
    let named = |name: &str, credential: &str| {
        policy(&upstream.url(), credential).replace("name: bank, namespace", &format!("name: {name}, namespace"))
    };
    let text = format!("{}---\n{}", named("one", BEARER), named("two", "bearer: {secretKey: other}"));
    let sidecar = Sidecar::with(&text, keys(folder.path())).await;
    let answer = sidecar.post(&call("7", "pay", "{}")).await;
    let denial = common::denial(&answer);
    assert_eq!((&denial["reason"], &denial["policy"]), (&"invalid_policy".into(), &"agents/two".into()), "{answer}");
    assert!(words(&answer).contains("agents/one"), "{answer}");
    assert_eq!(sidecar.scrape().await.sum("toolweir_policy_invalid", &[("policy", "agents/two")]), 1.0);
    // So does one for a url that is not in force.
    let elsewhere = named("two", BEARER).replace("/mcp", "/elsewhere");
    let bare = named("one", BEARER).replace(&format!("    credential: {{{BEARER}}}\n"), "");
    sidecar.folder.write("policy.yaml", format!("{bare}---\n{elsewhere}"));
    until("the other policies", async || words(&sidecar.post(&call("7", "pay", "{}")).await).contains("the server is at")).await;
    for ask in [Ask::get(), Ask::delete(), Ask::get().to("/.well-known/oauth-protected-resource/bank")] {
        assert_eq!(sidecar.ask(&ask.plain().with("authorization", "Bearer own")).await.status, 403);
    }
    assert!(upstream.seen().is_empty());
    // Where the same is given twice, it holds; one policy may leave it out.
    sidecar.folder.write("policy.yaml", format!("{bare}---\n{}---\n{}", named("two", BEARER), named("three", BEARER)));
    until("agreement", async || goes_through(&sidecar).await).await;
    assert_eq!(upstream.only().header("authorization"), "Bearer a");
}

#[tokio::test]
async fn a_stream_that_was_opened_at_another_url_gets_no_credential() {
    let folder = Folder::new();
    folder.write("token", "right");
    let (first, mut opened) = Upstream::streaming("text/event-stream").await;
    let sidecar = start(&folder, &first.url(), BEARER).await;
    let (mut wire, status, _) = Wire::open(sidecar.address, &Ask::get()).await;
    assert_eq!(status, 200);
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /messages?s=1\n\n").await;
    let text = wire.text_up_to("\n\n").await;
    let path = text.split("data: ").nth(1).unwrap().trim().to_owned();
    assert_eq!(first.only().header("authorization"), "Bearer right");
    let second = Upstream::bank().await;
    sidecar.folder.write("policy.yaml", policy(&second.url(), BEARER));
    let moved = async || {
        let in_force = sidecar.governor.in_force();
        in_force.server("bank").unwrap().url.as_ref().unwrap().authority().unwrap().as_str() == second.address.to_string()
    };
    until("the other url", moved).await;
    let message = Ask::post(call("7", "pay", "{}")).to(&path).with("authorization", "Bearer own");
    assert_eq!(sidecar.ask(&message).await.status, 202);
    let text = wire.text_up_to("\n\n").await;
    assert!(text.contains("was opened at another URL than the policy's"), "{text}");
    assert_eq!((first.seen().len(), second.seen().len()), (1, 0));
}

#[tokio::test]
async fn a_stream_of_another_path_of_the_same_server_gets_no_credential() {
    let (folder, bare) = (Folder::new(), common::allow_all);
    folder.write("token", "right");
    let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
    let url = |path: &str| format!("http://{}/{path}", upstream.address);
    let sidecar = Sidecar::with(&bare(&url("a/sse")), keys(folder.path())).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /a/messages\n\n").await;
    let path = wire.text_up_to("\n\n").await.split("data: ").nth(1).unwrap().trim().to_owned();
    sidecar.folder.write("policy.yaml", policy(&url("b/mcp"), BEARER));
    until("the credential", async || !sidecar.governor.credential_report().credentials.is_empty()).await;
    assert_eq!(sidecar.ask(&ask().to(&path)).await.status, 202);
    let text = wire.text_up_to("\n\n").await;
    assert!(text.contains("the stream was opened at another URL than the policy's"), "{text}");
    assert_eq!(upstream.only().path, "/a/sse");
}

#[tokio::test]
async fn a_refused_call_of_a_stream_frees_its_id_and_its_place() {
    let folder = Folder::new();
    folder.write("token", "right");
    let refuses = Arc::new(AtomicUsize::new(1));
    let (feeds, mut opened) = tokio::sync::mpsc::unbounded_channel();
    let status = Arc::clone(&refuses);
    let upstream = Upstream::start(move |seen| {
        if seen.method == "GET" {
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            return reply;
        }
        Reply::status(if status.load(Ordering::SeqCst) == 1 { 401 } else { 202 })
    })
    .await;
    let text = policy(&upstream.url(), BEARER).replace("action: Allow}", "action: Allow, maxConcurrent: 1}");
    let sidecar = Sidecar::with(&text, keys(folder.path())).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /messages\n\n").await;
    let path = wire.text_up_to("\n\n").await.split("data: ").nth(1).unwrap().trim().to_owned();
    assert_eq!(sidecar.ask(&ask().to(&path)).await.status, 202);
    let text = wire.text_up_to("\n\n").await;
    assert!(text.contains("refuses the sidecar's credential"), "{text}");
    refuses.store(0, Ordering::SeqCst);
    assert_eq!(sidecar.ask(&ask().to(&path)).await.status, 202);
    feed.send(&format!("data: {}\n\n", result("7"))).await;
    let text = wire.text_up_to("\n\n").await;
    assert!(text.contains("done"), "{text}");
    let outcomes: Vec<Value> = sidecar.audit(2).await.iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["credential_refused", "ok"]);
}

#[tokio::test]
async fn a_client_that_hangs_up_while_a_token_is_asked_for_has_used_up_nothing() {
    let (folder, endpoint, upstream) = (client_keys(), TokenEndpoint::start(600).await, Upstream::bank().await);
    endpoint.answers(HANGS);
    let text = policy(&upstream.url(), &endpoint.credential())
        .replace("action: Allow}", "action: Allow, limits: [{max: 1, window: hour}], maxConcurrent: 1}");
    let sidecar = Sidecar::with(&text, keys(folder.path())).await;
    for _ in 0..3 {
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&ask().bytes("localhost")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(wire);
        until("the end of the request", async || sidecar.scrape().await.sum("toolweir_connections", &[]) == 0.0).await;
    }
    endpoint.answers(200);
    until("a token", async || goes_through(&sidecar).await).await;
    assert_eq!(sidecar.reason(&call("7", "pay", "{}")).await, "rate_limit");
}

#[tokio::test]
async fn an_outage_that_outlives_the_token_is_told() {
    let (folder, endpoint, upstream) = (client_keys(), TokenEndpoint::start(3).await, Upstream::bank().await);
    let sidecar = start(&folder, &upstream.url(), &endpoint.credential()).await;
    let mut told = sidecar.governor.credential_changes().unwrap();
    assert!(goes_through(&sidecar).await);
    endpoint.answers(500);
    told.mark_unchanged();
    until("the end of the token", async || !goes_through(&sidecar).await).await;
    common::within("word of it", told.changed()).await.unwrap();
    let report = sidecar.governor.credential_report();
    assert!(report.credentials[0].problem.as_ref().unwrap().contains("status 500"), "{report:?}");
}

#[tokio::test]
async fn tokens_that_do_not_live_are_not_asked_for_without_end() {
    let (folder, upstream) = (client_keys(), Upstream::bank().await);
    // A life begins when its token is asked for. The answer always comes after its end.
    let endpoint = Upstream::start(|_| {
        std::thread::sleep(Duration::from_millis(3));
        Reply::json(r#"{"access_token":"t","expires_in":0.002}"#)
    })
    .await;
    let credential = format!(
        "oauth2ClientCredentials: {{tokenUrl: 'http://{}/t', clientIdKey: id, clientSecretKey: secret}}",
        endpoint.address
    );
    let sidecar = start(&folder, &upstream.url(), &credential).await;
    let text = words(&sidecar.post(&call("7", "pay", "{}")).await);
    assert!(text.contains("do not live long enough"), "{text}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!((1..=4).contains(&endpoint.seen().len()), "{}", endpoint.seen().len());
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_credential_that_no_policy_gives_any_more_is_asked_for_no_more() {
    let (folder, endpoint) = (client_keys(), TokenEndpoint::start(2).await);
    folder.write("token", "right");
    let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
    let sidecar = start(&folder, &upstream.url(), &endpoint.credential()).await;
    // A stream keeps the policies of its beginning.
    let (_wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let _feed = opened.recv().await.unwrap();
    sidecar.folder.write("policy.yaml", policy(&upstream.url(), BEARER));
    let works = async || sidecar.scrape().await.sum("toolweir_credential_ready", &[("kind", "bearer")]) == 1.0;
    until("the other credential", works).await;
    let asked = endpoint.asked();
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(works().await);
    }
    assert_eq!(endpoint.asked(), asked);
    let scrape = sidecar.scrape().await;
    let of_the_old =
        scrape.series.iter().filter(|series| series.labels.get("kind").is_some_and(|kind| kind.starts_with("oauth2")));
    assert_eq!(of_the_old.count(), 0);
    assert!(scrape.series.iter().all(|series| series.name != "toolweir_credential_fetches_total"));
}

#[tokio::test]
async fn a_secret_is_in_no_log_metric_or_answer_of_the_sidecar() {
    let log = logs::log();
    let (folder, endpoint) = (client_keys(), TokenEndpoint::start(600).await);
    folder.write("token", "marker-of-the-token");
    for credential in [BEARER.to_owned(), endpoint.credential()] {
        let upstream = Upstream::start(|_: &Seen| Reply::status(401)).await;
        let sidecar = start(&folder, &upstream.url(), &credential).await;
        let mut said = sidecar.ask(&ask()).await.text();
        let metrics = Ask::get().to("/metrics").over(Http::One, sidecar.metrics).await.text();
        assert!(metrics.contains("toolweir_credential_ready{"), "{metrics}");
        for path in ["/policy", "/limits", "/log-level"] {
            said.push_str(&Ask::get().to(path).over(Http::One, sidecar.admin).await.text());
        }
        said.push_str(&metrics);
        said.push_str(&format!("{:?}", sidecar.governor));
        for secret in ["marker", "Bearer t0"] {
            assert!(!said.contains(secret), "{said}");
        }
        assert!(said.contains("secretKey") || said.contains("clientSecretKey"));
    }
    assert!(!log.text().contains("marker"));
}

#[tokio::test]
async fn without_a_folder_a_server_with_a_credential_is_not_reached() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&policy(&upstream.url(), BEARER), |_| {}).await;
    fails_with(&sidecar, "there is no folder of keys; give --credentials-dir").await;
    let of_audience = policy(&upstream.url(), "serviceAccountToken: {audience: mcp}");
    sidecar.folder.write("policy.yaml", of_audience);
    fails_with(&sidecar, "the service account token of the audience mcp is not there").await;
    assert!(upstream.seen().is_empty());
    let _ = sidecar::config;
}
