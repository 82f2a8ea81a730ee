//! The real program: what is wrong with a policy is told in one line that names the place, and nothing is started; what
//! runs, stops at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{process::Output, time::Duration};

use common::{
    allow_all, call,
    client::{Ask, Http, Wire},
    denial,
    folder::Folder,
    policy,
    program::{self, Running},
    request, speaking, until,
    upstream::Upstream,
    within,
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpListener};

const URL: &str = "http://127.0.0.1:1/mcp";

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Policies that are not in order: a name, the text, and what the error says after the file's name.
fn bad_policies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let bad = |name, tools: &str, error| (name, policy(URL, tools).into_bytes(), error);
    let twice = format!("{}  - name: bank\n", policy(URL, "[]"));
    vec![
        ("empty", Vec::new(), ": holds no policy; write one with"),
        ("not YAML", b"a: [\n".to_vec(), ":2:1: "),
        ("not UTF-8", b"\xff\xfea".to_vec(), ": is not UTF-8"),
        (
            "another manifest",
            b"apiVersion: v1\nkind: ConfigMap\n".to_vec(),
            ":1:13: apiVersion: `v1` is not known; write `toolweir.dev/v1alpha1`",
        ),
        bad(
            "an unknown field",
            "[{name: pay, limit: []}]",
            ":8:25: spec.servers[0].tools[0]: unknown field `limit`, expected one of",
        ),
        bad(
            "a negative max",
            "[{name: pay, limits: [{max: -1, window: day}]}]",
            ":8:40: spec.servers[0].tools[0].limits[0].max: is -1; write 1 to",
        ),
        bad(
            "an unknown window",
            "[{name: pay, limits: [{max: 1, window: fortnight}]}]",
            ":8:51: spec.servers[0].tools[0].limits[0].window: `fortnight` is not a window; write second, minute",
        ),
        bad(
            "an expression that does not compile",
            "[{name: pay, validations: [{expression: \"args.amount <\"}]}]",
            ":8:52: spec.servers[0].tools[0].validations[0].expression: is not a CEL expression",
        ),
        bad(
            "a name with a backslash that stands for nothing",
            "[{name: 'pay\\now'}]",
            r":8:20: spec.servers[0].tools[0].name: `pay\now` has a backslash that stands for nothing; write `\\` for a backslash",
        ),
        (
            "two servers of one name",
            twice.into_bytes(),
            ":9:11: spec.servers[1].name: `bank` is also the name of spec.servers[0]; merge the two",
        ),
        ("no url", allow_all(URL).replace(&format!("    url: {URL}\n"), "").into_bytes(), "spec.servers[0].url: is left out"),
        ("a url without a host", allow_all("http://:80/").into_bytes(), "spec.servers[0].url: `http://:80/` names no host"),
    ]
}

#[tokio::test]
async fn a_policy_that_is_not_in_order_is_told_in_a_line_and_nothing_is_started() {
    // The ports are taken: who binds one before the policy is read fails with another error.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = async |path: &str| {
        let ports = ["--listen", &address, "--metrics-listen", &address, "--admin-listen", &address];
        program::run(&[["run", "--policy", path].as_slice(), &ports].concat()).await
    };
    let folder = Folder::new();
    let missing = folder.path().join("missing.yaml");
    let missing = missing.to_str().unwrap();
    let (code, out, error) = said(&run(missing).await);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(error, format!("{missing}: cannot be read: No such file or directory (os error 2)\n"));
    for (name, text, why) in bad_policies() {
        let path = folder.write("policy.yaml", text);
        let path = path.to_str().unwrap();
        let (code, out, error) = said(&run(path).await);
        assert_eq!((code, out.as_str()), (1, ""), "{name}: {error}");
        assert!(error.starts_with(&format!("{path}:")) && error.contains(why), "{name}: {error}");
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
        // `stdio` says the same and starts no server.
        let witness = folder.path().join("started");
        let arguments = ["stdio", "--policy", path, "--server", "bank", "--", "touch", witness.to_str().unwrap()];
        if name != "no url" {
            let (code, out, told) = said(&program::run(&arguments).await);
            assert_eq!((code, out.as_str(), &told), (1, "", &error), "{name}");
            assert!(!witness.exists(), "{name}");
        }
    }
    drop(taken);
}

#[tokio::test]
async fn run_without_a_source_of_policies_names_both() {
    let (code, out, error) = said(&program::run(&["run"]).await);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("<--policy <FILE|DIR>|--control-plane <URL>>"), "{error}");
}

#[tokio::test]
async fn every_error_of_a_policy_has_a_line() {
    let folder = Folder::new();
    let path =
        folder.write("policy.yaml", policy(URL, r"[{name: a\b, limits: [{max: 0, window: day}]}, {name: c, maxConcurrent: 0}]"));
    let (code, _, error) = said(&program::run(&["run", "--policy", path.to_str().unwrap()]).await);
    let fields: Vec<&str> = error.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    let tools = "spec.servers[0].tools";
    assert_eq!(
        (code, fields),
        (
            1,
            vec![
                format!("{tools}[0].name").as_str(),
                format!("{tools}[0].limits[0].max").as_str(),
                format!("{tools}[1].maxConcurrent").as_str(),
            ]
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    let path = folder.write("policy.yaml", speaking(&allow_all(URL)));
    for flag in ["--listen", "--metrics-listen", "--admin-listen"] {
        let mut arguments = vec!["run", "--policy", path.to_str().unwrap()];
        for other in ["--listen", "--metrics-listen", "--admin-listen"] {
            arguments.extend([other, if other == flag { &address } else { "127.0.0.1:0" }]);
        }
        let (code, out, error) = said(&program::run(&arguments).await);
        assert_eq!((code, out.as_str()), (1, ""));
        let told = format!(
            "toolweir-sidecar: {flag} {address}: Address already in use (os error 98); name another address with {flag}\n"
        );
        assert_eq!(error, told);
    }
    let (code, _, error) =
        said(&program::run(&["run", "--policy", path.to_str().unwrap(), "--upstream-ca", "/nowhere.pem"]).await);
    assert_eq!(
        (code, error.as_str()),
        (1, "toolweir-sidecar: --upstream-ca /nowhere.pem: No such file or directory (os error 2)\n")
    );
}

#[tokio::test]
async fn check_says_what_is_in_order_and_what_is_not() {
    let folder = Folder::new();
    let path = folder.write("policy.yaml", speaking(&allow_all(URL)));
    let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "ok: 1 policy of 1 file and 1 server\n", ""));
    // Before policies spoke of prompts and resources, these passed.
    let path = folder.write("policy.yaml", allow_all(URL));
    let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
    assert_eq!((code, error.as_str()), (0, ""));
    let warning = format!("warning: {}:6:5: spec.servers[0]: no policy here says which prompts and resources", path.display());
    assert!(out.starts_with(&warning) && out.ends_with("\nok: 1 policy of 1 file and 1 server\n"), "{out}");
    for (name, text, why) in bad_policies() {
        let path = folder.write("policy.yaml", text);
        let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
        if name == "no url" {
            // Another policy of the pod may give it.
            assert_eq!((code, error.as_str()), (0, ""));
            assert!(out.starts_with("warning: ") && out.contains(why), "{out}");
        } else {
            assert_eq!((code, out.as_str()), (1, ""), "{name}");
            assert!(error.contains(why) && error.lines().count() == 1, "{name}: {error}");
        }
    }
    let missing = said(&program::run(&["check", "/nowhere.yaml"]).await);
    assert_eq!(missing, (1, String::new(), "/nowhere.yaml: cannot be read: No such file or directory (os error 2)\n".to_owned()));
}

#[tokio::test]
async fn check_warns_of_what_kubectl_and_calls_may_take_otherwise() {
    let folder = Folder::new();
    let path = folder.write("policy.yaml", allow_all(URL).replace("bank", "on"));
    let (code, out, _) = said(&program::run(&["check", path.to_str().unwrap()]).await);
    assert!(code == 0 && out.contains("`on` without quotes is a boolean to kubectl; write \"on\""), "{out}");
    // An argument that is taken for a list is whatever the call says.
    let entry = "[{name: a, validations: [{expression: 'args.to.all(t, size(t) < 9)'}]}]";
    let doubtful = allow_all(URL).replace("[{name: \"*\", action: Allow}]", entry);
    let path = folder.write("policy.yaml", speaking(&doubtful));
    let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
    assert_eq!((code, error.as_str()), (0, ""));
    let (warning, ok) = out.split_once('\n').unwrap();
    assert!(warning.starts_with("warning: ") && warning.contains("validations[0].expression: goes over `args.to`"), "{out}");
    assert!(warning.ends_with("write `type(args.to) == list && ...` before it"), "{out}");
    assert_eq!(ok, "ok: 1 policy of 1 file and 1 server\n");
}

#[tokio::test]
async fn check_warns_of_names_likely_meant_otherwise_and_expressions_that_deny_what_some_clients_send() {
    let folder = Folder::new();
    let mut told = Vec::new();
    for (name, entry, why) in [
        ("a blank", "{name: 'pay '}", "tools[0].name: `pay ` begins or ends with a blank"),
        ("a pattern", "{name: 'get_?'}", "tools[0].name: `get_?` has `?`, which stands for itself"),
        (
            "a null",
            "{name: a, validations: [{expression: '!has(args.n) || args.n < 9'}]}",
            "validations[0].expression: lets a call without `args.n` pass and denies one with a null there",
        ),
        (
            "a null for a cost",
            "{name: a, limits: [{max: 9, window: day, cost: 'has(args.n) ? args.n : 1'}]}",
            "limits[0].cost: lets a call without `args.n` pass and denies one with a null there",
        ),
        (
            "a double",
            "{name: a, validations: [{expression: 'args.n % 2 == 0'}]}",
            "validations[0].expression: calculates with `args.n`, which fails where that is 5.0",
        ),
    ] {
        let doubtful = allow_all(URL).replace("[{name: \"*\", action: Allow}]", &format!("[{entry}]"));
        let path = folder.write("policy.yaml", speaking(&doubtful));
        let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
        assert_eq!((code, error.as_str()), (0, ""), "{name}");
        assert!(out.starts_with(&format!("warning: {}:8:", path.display())) && out.contains(why), "{name}: {out}");
        assert_eq!(out.lines().count(), 2, "{name}: {out}");
        told.push(out);
    }
    assert!(told[2].contains("; write `!has(args.n) || args.n == null || ...`\n"), "{}", told[2]);
    assert!(told[4].contains("; write `int(args.n) % 2`\n"), "{}", told[4]);
}

#[tokio::test]
async fn check_warns_of_a_list_that_closes_its_kind_and_does_not_say_so() {
    let folder = Folder::new();
    for (lists, warned) in [
        ("resources: [{uri: '*', maxResultBytes: 1000}]", Some("resources: allows nothing, so that all resources are denied")),
        (
            "prompts: [{name: '*secret*', action: Deny}]",
            Some("`defaultActions: {prompts: Allow}` (or `Deny`, to keep them closed)"),
        ),
        ("requests: [{name: sampling, action: Deny}]", Some("requests: allows nothing")),
        ("resources: []", None),
        ("resources: [{uri: '*', action: Deny}]", None),
        ("resources: [{uri: 'file:///a/*'}]", None),
        ("prompts: [{name: '*secret*', action: Deny}]\n    defaultActions: {prompts: Allow}", None),
    ] {
        let path = folder.write("policy.yaml", format!("{}    {lists}\n", allow_all(URL)));
        let (code, out, error) = said(&program::run(&["check", path.to_str().unwrap()]).await);
        assert_eq!((code, error.as_str()), (0, ""), "{lists}");
        match warned {
            Some(words) => assert!(out.contains(words), "{lists}: {out}"),
            None => assert!(!out.contains("allows nothing"), "{lists}: {out}"),
        }
    }
}

#[tokio::test]
async fn check_takes_the_valid_samples_as_their_page_says() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/samples/valid");
    let (code, out, error) = said(&program::run(&["check", "--shared-store", samples]).await);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.lines().last().unwrap().starts_with("ok: "), "{out}");
}

#[tokio::test]
async fn check_takes_files_and_folders_together_as_the_policies_of_one_pod() {
    let folder = Folder::new();
    folder.write("policy.yaml", speaking(&allow_all(URL)));
    folder.write("shop.yaml", speaking(&allow_all(URL)).replace("bank", "shop"));
    let (code, out, _) = said(&program::run(&["check", folder.path().to_str().unwrap()]).await);
    assert_eq!((code, out.as_str()), (0, "ok: 2 policies of 2 files and 2 servers\n"));
    let path = folder.path().join("policy.yaml");
    let (code, _, error) = said(&program::run(&["check", folder.path().to_str().unwrap(), path.to_str().unwrap()]).await);
    assert!(code == 1 && error.contains("metadata.name: there is another policy `agents/bank`; rename one"), "{error}");
}

#[tokio::test]
async fn an_imported_policy_is_in_order() {
    let folder = Folder::new();
    let original = json!({"version": "1", "default": "deny", "tools": {"send_dm_to_user": {"limits": [
        {"counter": "send_dm_to_user_rate", "window": "minute", "max": 30, "scope": "grant"}]}}});
    let path = folder.write("policy.json", original.to_string());
    let arguments = ["import", path.to_str().unwrap(), "--server", "facebook", "--url", URL];
    let (code, out, error) = said(&program::run(&arguments).await);
    assert_eq!((code, error.lines().count()), (0, 1), "{error}");
    assert!(
        error.contains("warning: 1 limit is counted by each pod for itself") && error.contains("with --shared-store"),
        "{error}"
    );
    assert!(out.starts_with("# Each pod counts for itself here (scope: Pod)") && out.contains("scope: Pod\n"), "{out}");
    let imported = folder.write("imported.yaml", &out);
    let (code, checked, _) = said(&program::run(&["check", imported.to_str().unwrap()]).await);
    assert_eq!((code, checked.as_str()), (0, "ok: 1 policy of 1 file and 1 server\n"), "{out}");
    let (code, out, error) = said(&program::run(&[&arguments[..], &["--shared-store"]].concat()).await);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.starts_with("apiVersion") && out.contains("scope: Workload\n"), "{out}");
    let imported = folder.write("imported.yaml", &out);
    let (code, checked, _) = said(&program::run(&["check", "--shared-store", imported.to_str().unwrap()]).await);
    assert_eq!((code, checked.as_str()), (0, "ok: 1 policy of 1 file and 1 server\n"), "{out}");
    // What cannot be expressed is an error that names the path.
    let path = folder.write("policy.json", original.to_string().replace("grant", "galaxy"));
    let arguments = ["import", path.to_str().unwrap(), "--server", "facebook", "--url", URL];
    let (code, out, error) = said(&program::run(&arguments).await);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("tools.send_dm_to_user.limits[0].scope") && error.lines().count() == 1, "{error}");
}

#[tokio::test]
async fn it_runs_until_it_is_told_to_stop() {
    let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
    let folder = Folder::new();
    let path = folder.write("policy.yaml", policy(&upstream.url(), "[{name: pay, action: Deny}]"));
    for signal in ["-TERM", "-INT"] {
        let mut running = Running::start(&path, &[]).await;
        let asked = async |path: &str, address| Ask::get().to(path).over(Http::One, address).await;
        let ready = asked("/readyz", running.metrics).await;
        assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
        assert_eq!(asked("/healthz", running.metrics).await.text(), "ok\n");
        assert!(asked("/metrics", running.metrics).await.text().contains("toolweir_policy_connected 1\n"));
        assert_eq!(asked("/policy", running.metrics).await.status, 404);
        // A client that stays, with a connection that idles and a stream that is open.
        let mut idle = Wire::connect(running.proxy).await;
        idle.write(&Ask::post(call("1", "pay", "{}")).bytes("localhost")).await;
        assert_eq!(denial(&idle.answer().await.json())["reason"], "denied");
        let (mut stream, _, _) = Wire::open(running.proxy, &Ask::get()).await;
        let _feed = opened.recv().await.unwrap();
        let (status, took) = running.stop(signal).await;
        assert!(status.code() == Some(0) && took < Duration::from_secs(1), "{signal}: {status} {took:?}");
        assert_eq!(stream.rest().await, Ok("".into()));
        // The audit log is on stdout, whole.
        let mut out = String::new();
        within("the audit log", running.child.stdout.take().unwrap().read_to_string(&mut out)).await.unwrap();
        let line: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"));
        assert_eq!((&line["tool"], &line["decision"]), (&json!("pay"), &json!("denied")));
    }
}

#[tokio::test]
async fn its_administration_shows_what_is_in_force_and_changes_the_level_of_the_log() {
    let upstream = Upstream::bank().await;
    let folder = Folder::new();
    let path = folder.write("policy.yaml", policy(&upstream.url(), "[{name: pay, limits: [{max: 4, window: hour}]}]"));
    let mut running = Running::start(&path, &[]).await;
    let admin = running.admin;
    Ask::post(call("1", "pay", "{}")).over(Http::One, running.proxy).await;
    let get = async |path: &str| Ask::get().to(path).over(Http::One, admin).await;
    let policies = get("/policy").await.json();
    assert_eq!((&policies["policies"][0]["name"], &policies["policies"][0]["mode"]), (&json!("agents/bank"), &json!("Enforce")));
    assert_eq!(policies["policies"][0]["spec"]["servers"][0]["tools"][0]["limits"][0]["max"], 4);
    let limits = get("/limits").await.json();
    let limit = json!({"server": "bank", "tool": "pay", "policy": "agents/bank", "limit": "4/hour", "keyed": false, "used": 1.0, "max": 4});
    assert_eq!(limits["limits"], json!([limit]));
    assert_eq!(get("/nowhere").await.status, 404);
    for ask in
        [Ask::get().to("/policy").with("host", "evil.example"), Ask::get().to("/policy").with("origin", "http://localhost")]
    {
        assert_eq!(ask.over(Http::One, admin).await.status, 403, "{ask:?}");
    }
    let set = async |level: &str| Ask::post(level).method("PUT").to("/log-level").over(Http::One, admin).await;
    assert_eq!(get("/log-level").await.text(), "info\n");
    assert_eq!(set("loud").await.status, 400);
    // At this level a refused request is not logged, and at the first it is.
    let refuse = async |outcome: &str| {
        let ask = if outcome == "refused" { Ask::post("{") } else { Ask::post("{}").to("/a/b") };
        assert!(ask.over(Http::One, running.proxy).await.status >= 400);
    };
    assert_eq!(set("warn").await.text(), "warn\n");
    refuse("refused").await;
    assert_eq!(set("info").await.text(), "info\n");
    refuse("not_found").await;
    let line: Value = serde_json::from_str(&within("the log", running.log.next_line()).await.unwrap().unwrap()).unwrap();
    assert_eq!((&line["message"], &line["outcome"]), (&json!("request refused"), &json!("not_found")));
}

#[tokio::test]
async fn no_level_of_the_log_shows_content() {
    let upstream = Upstream::bank().await;
    let folder = Folder::new();
    let path = folder.write("policy.yaml", allow_all(&upstream.url()));
    let Running { mut child, proxy, mut log, .. } = Running::start(&path, &["--log-level", "trace"]).await;
    // A log that nobody reads stops who writes it.
    let lines = tokio::spawn(async move {
        let mut lines = Vec::new();
        while let Some(line) = log.next_line().await.unwrap() {
            lines.push(line);
        }
        lines
    });
    for http in Http::BOTH {
        for body in [call("1", "pay", r#"{"to":"CANARY"}"#), request("1", "x", r#"{"CANARY":1,"CANARY":2}"#)] {
            let ask = Ask::post(body)
                .with("authorization", "Bearer CANARY")
                .with("mcp-session-id", "CANARY")
                .with("x-canary", "CANARY");
            ask.over(http, proxy).await;
        }
    }
    program::signal(&child, "-TERM").await;
    assert!(within("the end", child.wait()).await.unwrap().success());
    let lines = within("the log", lines).await.unwrap();
    assert!(lines.len() > 2, "{lines:#?}");
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("CANARY")).collect();
    assert!(told.is_empty(), "{} of {}: {:#?}", told.len(), lines.len(), &told[..3]);
}

#[tokio::test]
async fn it_starts_in_a_moment_and_is_ready_as_soon_as_it_listens() {
    let folder = Folder::new();
    let path = folder.write("policy.yaml", allow_all(URL));
    let began = std::time::Instant::now();
    let running = Running::start(&path, &["--log-level", "info"]).await;
    // tests/bench/start.sh measures the time on the release build.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    until("it to be ready", async || Ask::get().to("/readyz").over(Http::One, running.metrics).await.status == 200).await;
}
