//! What goes wrong when tools are read: it is told with what helps, without secrets, and nothing goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{
    mcp_server::{McpServer, Reply, Seen, json_reply, legacy, text_reply},
    tool_source::{LIMITS, Scratch, alive, at, found, of},
};
use serde_json::json;
use toolweir_cli::{
    OutputFormat,
    cluster::LazyClient,
    tools::{limits::ReadLimits, report::tools, source::ToolSource},
};

#[tokio::test]
async fn a_redirect_on_the_same_origin_says_the_whole_url_to_give() {
    let server = McpServer::start(|_: &Seen| {
        let Reply::Now(mut response) = text_reply(302, "text/plain", "") else { panic!() };
        response.headers_mut().insert("location", "/other?key=s3cret".parse().unwrap());
        Reply::Now(response)
    })
    .await;
    let error = of(&server).await.unwrap_err();
    let expected = format!("the server redirects to `http://{}/other`; give that URL", server.address);
    assert!(error.ends_with(&expected), "{error}");
}

#[tokio::test]
async fn a_compressed_answer_is_named() {
    let server = McpServer::start(|_: &Seen| {
        let Reply::Now(mut response) = text_reply(200, "application/json", "\u{1f}x") else { panic!() };
        response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        Reply::Now(response)
    })
    .await;
    let error = of(&server).await.unwrap_err();
    assert!(error.contains("the server compresses its answer (`gzip`)"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_slow_on_every_page_is_given_up() {
    let pages = Arc::new(AtomicUsize::new(0));
    let server = McpServer::start(legacy(move |seen| {
        std::thread::sleep(Duration::from_millis(20));
        let next = pages.fetch_add(1, Ordering::Relaxed).to_string();
        seen.result(&json!({"tools": [], "nextCursor": next}))
    }))
    .await;
    let error = found(&at(&[&server.url()]), ReadLimits { whole: Duration::from_millis(300), ..LIMITS }).await.unwrap_err();
    assert!(
        error.ends_with("the server does not give its whole list within 0.3 s; look at its log to see why it is so slow"),
        "{error}"
    );
}

#[tokio::test]
async fn headers_that_a_server_repeats_are_not_shown() {
    let secret = format!("s3cret-{}", "x".repeat(300));
    for status in [200, 500] {
        let repeated = secret.clone();
        let server =
            McpServer::start(move |_: &Seen| text_reply(status, "application/json", &format!("no {repeated} please"))).await;
        let source = ToolSource { headers: vec![format!("Authorization: Bearer {secret}")], ..at(&[&server.url()]) };
        let error = found(&source, LIMITS).await.unwrap_err();
        assert!(error.contains("`no [header] please`") && !error.contains("s3cret"), "{error}");
    }
    let repeated = secret.clone();
    let server = McpServer::start(legacy(move |seen| {
        let message = format!("{} {repeated}", "y".repeat(150));
        json_reply(200, &json!({"jsonrpc": "2.0", "id": seen.body["id"], "error": {"code": 1, "message": message}}))
    }))
    .await;
    let source = ToolSource { headers: vec![format!("X-Key: {secret}")], ..at(&[&server.url()]) };
    let error = found(&source, LIMITS).await.unwrap_err();
    assert!(error.contains("y [header] (1)") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn secrets_of_the_command_line_are_never_shown() {
    for (url, header, why) in [
        ("http://127.0.0.1:1/", "s3cret", "--header number 1 has no colon; write 'Name: value'"),
        ("http://127.0.0.1:1/", "s3 cret: x", "--header number 1 has no name of a header before the colon; write 'Name: value'"),
        ("http://127.0.0.1:1/", "X-Key: s3cret\n", "nothing listens there"),
        ("http://127.0.0.1:1/", "X-Key: s3\u{1}cret", "the value of --header x-key has a character that headers cannot hold"),
        ("http://127.0.0.1:1/", "Mcp-Session-Id: s3cret", "--header mcp-session-id is written by the protocol; leave it out"),
        ("ftp://u:s3cret@127.0.0.1:1/?key=s3cret", "X-Key: a", "ftp://127.0.0.1:1/ is no URL with http:// or https://"),
        ("http://u:s3cret@127.0.0.1:no/?key=s3cret", "X-Key: a", "http://127.0.0.1:no/ is not a URL: invalid port number"),
        ("http://u:s3cret@127.0.0.1:1/", "X-Key: a", "the URL holds a user or password; give it with --header"),
        ("http://127.0.0.1:1/?key=s3cret", "X-Key: s3cret", "http://127.0.0.1:1/: nothing listens there"),
    ] {
        let source = ToolSource { headers: vec![header.to_owned()], ..at(&[url]) };
        let error = found(&source, LIMITS).await.unwrap_err();
        assert!(error.contains(why) && !error.contains("cret"), "{error}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_read_are_told_with_what_to_give() {
    let ca = |url: &str| ToolSource { ca: Some(PathBuf::from("/nowhere.pem")), ..at(&[url]) };
    let error = found(&ca("https://127.0.0.1:1/"), LIMITS).await.unwrap_err();
    assert!(
        error.contains("--ca /nowhere.pem cannot be read: ") && error.ends_with("give the path of a file of certificates (PEM)"),
        "{error}"
    );
    let error = found(&ca("http://127.0.0.1:1/"), LIMITS).await.unwrap_err();
    assert_eq!(error, "--ca is for https; leave it out, or give a URL with https://");
    let list = Scratch::new("policies.json", r#"{"tools": [{"name": "a"}]}"#);
    let policy = [PathBuf::from("/nowhere.yaml")];
    let error = tools(&at(&[list.path()]), &policy, &LazyClient::default(), &LIMITS, OutputFormat::Text).await.unwrap_err();
    assert!(error.to_string().ends_with("; give the path of a file or folder of policies with --policy"), "{error}");
}

#[tokio::test]
async fn long_names_are_cut_in_tables_only() {
    let name = "n".repeat(65);
    let list = Scratch::new("long.json", &json!({"tools": [{"name": name}]}).to_string());
    let output = async |form| tools(&at(&[list.path()]), &[], &LazyClient::default(), &LIMITS, form).await.unwrap();
    let text = output(OutputFormat::Text).await;
    assert!(text.contains(&format!("{}…  ", "n".repeat(64))), "{text}");
    assert!(output(OutputFormat::Json).await.contains(&name));
}

#[test]
fn a_command_ends_with_toolweir_whatever_signal_ends_that() {
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let pid = Scratch::new(&format!("pid-{signal}"), "");
        let script = format!("trap '' TERM HUP INT; echo $$ > {}; sleep 1000", pid.path());
        let program = env!("CARGO_BIN_EXE_toolweir");
        let mut running = Command::new(program).args(["tools", "--", "sh", "-c", &script]).spawn().unwrap();
        let mut started = String::new();
        for _ in 0..200 {
            started = fs::read_to_string(pid.path()).unwrap();
            if started.ends_with('\n') {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(alive(started.trim()), "it did not start");
        Command::new("kill").args([&format!("-{signal}"), &running.id().to_string()]).status().unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(code), "{signal}");
        for _ in 0..100 {
            if !alive(started.trim()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!alive(started.trim()), "{signal}: the command goes on");
    }
}
