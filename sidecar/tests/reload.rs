//! A change of the policy is in force within a second; counts live on; a bad edit keeps the last good policy and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use common::{
    allow_all, call,
    client::{Ask, Wire},
    denial,
    folder::Folder,
    logs, policy, request,
    sidecar::Sidecar,
    until,
    upstream::Upstream,
};

const A_SECOND: Duration = Duration::from_secs(1);

/// Waits until a policy is in force that is not this one, and gives how long that took.
async fn in_force_after(sidecar: &Sidecar, version: &str) -> Duration {
    let changed = async || sidecar.governor.in_force().version != version;
    until("the new policy", changed).await
}

/// Writes a policy and waits until it is in force.
async fn edit(sidecar: &Sidecar, text: &str) {
    let version = sidecar.governor.in_force().version.clone();
    sidecar.folder.write("policy.yaml", text);
    let took = in_force_after(sidecar, &version).await;
    assert!(took < A_SECOND, "{took:?}");
}

#[tokio::test]
async fn an_edit_is_in_force_within_a_second() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let denying = policy(&upstream.url(), "[{name: pay, action: Deny}]");
    for (text, reason) in [(denying, "denied"), (allow_all(&upstream.url()), "none")] {
        sidecar.folder.write("policy.yaml", text);
        let denied = async || sidecar.reason(&call("1", "pay", "{}")).await == reason;
        let took = until("the edit to be in force", denied).await;
        assert!(took < A_SECOND, "{reason}: {took:?}");
    }
    let scrape = sidecar.scrape().await;
    assert_eq!((scrape.sum("toolweir_policy_connected", &[]), scrape.sum("toolweir_policy_age_seconds", &[])), (1.0, 0.0));
    let version = sidecar.governor.in_force().version.clone();
    assert_eq!(scrape.sum("toolweir_policy_info", &[("version", &version)]), 1.0);
    assert_eq!(scrape.sum("toolweir_policy_info", &[]), 1.0, "the series of the old policy stayed");
}

#[tokio::test]
async fn a_body_that_was_held_back_is_decided_on_by_the_policy_of_now() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let address = sidecar.address;
    let bytes = Ask::post(call("1", "pay", "{}")).bytes(&address.to_string());
    let (first, rest) = bytes.split_at(bytes.len() - 4);
    let mut wire = Wire::connect(address).await;
    wire.write(first).await;
    edit(&sidecar, &policy(&upstream.url(), "[{name: pay, action: Deny}]")).await;
    wire.write(rest).await;
    let answer = wire.answer().await;
    assert_eq!(denial(&answer.json())["reason"], "denied");
}

#[tokio::test]
async fn an_edit_in_place_is_noticed_too() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    // An editor that writes into the file, and leaves its size as it was.
    let path = sidecar.folder.path().join("policy.yaml");
    fs::write(path, policy(&upstream.url(), "[{name: buy}]")).unwrap();
    let denied = async || sidecar.reason(&call("1", "pay", "{}")).await == "not_listed";
    assert!(until("the edit to be in force", denied).await < A_SECOND);
}

#[tokio::test]
async fn counts_live_on_where_only_the_maximum_or_something_else_changes() {
    let upstream = Upstream::bank().await;
    let limited = |max: u32, window: &str, more: &str| {
        policy(&upstream.url(), &format!("[{{name: pay, limits: [{{max: {max}, window: {window}}}]}}{more}]"))
    };
    let sidecar = Sidecar::start(&limited(2, "hour", "")).await;
    let reasons = async |count: usize| {
        let mut reasons = Vec::new();
        for _ in 0..count {
            reasons.push(sidecar.reason(&call("1", "pay", "{}")).await);
        }
        reasons
    };
    assert_eq!(reasons(3).await, ["none", "none", "rate_limit"]);
    edit(&sidecar, &limited(3, "hour", "")).await;
    assert_eq!(reasons(2).await, ["none", "rate_limit"]);
    edit(&sidecar, &limited(1, "hour", ", {name: other}")).await;
    assert_eq!(reasons(1).await, ["rate_limit"]);
    let used = sidecar.scrape().await.sum("toolweir_limit_used_ratio", &[("limit", "1/hour")]);
    assert_eq!(used, 3.0);
    // Another window is another limit.
    edit(&sidecar, &limited(1, "day", "")).await;
    assert_eq!(reasons(2).await, ["none", "rate_limit"]);
    // And the count of the first is still there.
    edit(&sidecar, &limited(4, "hour", "")).await;
    assert_eq!(reasons(2).await, ["none", "rate_limit"]);
}

#[tokio::test]
async fn calls_and_streams_that_were_let_through_go_on() {
    let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}]")).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
    let feed = opened.recv().await.unwrap();
    edit(&sidecar, &policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}, {name: other}]")).await;
    // It is still under way for the new policy.
    assert_eq!(sidecar.reason(&call("2", "pay", "{}")).await, "concurrency");
    edit(&sidecar, &policy(&upstream.url(), "[]").replace("name: bank\n", "name: shop\n")).await;
    assert_eq!(sidecar.reason(&call("3", "pay", "{}")).await, "no_policy");
    feed.send("data: {}\n\n").await;
    assert_eq!(wire.text_up_to("\n\n").await, "data: {}\n\n");
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_policy_and_says_so() {
    let log = logs::log();
    let upstream = Upstream::bank().await;
    let good = policy(&upstream.url(), "[{name: pay}]");
    let sidecar = Sidecar::start(&good).await;
    let path = sidecar.folder.path().join("policy.yaml");
    let failures = async || sidecar.scrape().await.sum("toolweir_policy_reload_failures_total", &[]);
    for (number, (name, bad, why)) in [
        ("empty", String::new(), "holds no policy"),
        ("no YAML", "a: [".to_owned(), ": "),
        ("not UTF-8", "\u{fffd}".to_owned(), ": "),
        ("an unknown field", good.replace("tools:", "toolz:"), "unknown field `toolz`"),
        (
            "a bad expression",
            policy(&upstream.url(), "[{name: pay, validations: [{expression: \"args.\"}]}]"),
            "is not a CEL expression",
        ),
        (
            "no url",
            good.replace(&format!("url: {}", upstream.url()), "tools: []").replacen("    tools: [{name: pay}]\n", "", 1),
            "no other policy gives it",
        ),
        ("a url without a host", good.replace(&upstream.url(), "http://:1/"), "names no host"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = log.text().len();
        let bytes = if name == "not UTF-8" { b"\xff\xfe".to_vec() } else { bad.into_bytes() };
        sidecar.folder.write("policy.yaml", bytes);
        let refused = async || failures().await > f64::from(u32::try_from(number).unwrap());
        assert!(until(name, refused).await < A_SECOND, "{name}");
        assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none", "{name}");
        assert_eq!(sidecar.reason(&call("1", "other", "{}")).await, "not_listed", "{name}");
        let scrape = sidecar.scrape().await;
        assert_eq!(scrape.sum("toolweir_policy_connected", &[]), 0.0, "{name}");
        assert!(scrape.sum("toolweir_policy_age_seconds", &[]) > 0.0, "{name}");
        let text = log.text();
        let said = |line: &&str| {
            line.contains("policy refused; the last good one stays in force") && line.contains(path.to_str().unwrap())
        };
        let line = text[before..].lines().find(said).unwrap_or_else(|| panic!("{name}: {}", &text[before..]));
        assert!(line.contains(why), "{name}: {line}");
    }
    // What was in force before is in order again, though it is the same text.
    sidecar.folder.write("policy.yaml", &good);
    let connected = async || sidecar.scrape().await.sum("toolweir_policy_connected", &[]) == 1.0;
    assert!(until("the good policy", connected).await < A_SECOND);
    assert_eq!(sidecar.scrape().await.sum("toolweir_policy_age_seconds", &[]), 0.0);
    assert_eq!(sidecar.scrape().await.sum("toolweir_policy_reload_failures_total", &[]), 7.0);
}

#[tokio::test]
async fn a_policy_that_is_removed_stays_in_force_and_is_stale() {
    let upstream = Upstream::bank().await;
    let good = policy(&upstream.url(), "[{name: pay}]");
    let sidecar = Sidecar::start(&good).await;
    fs::remove_file(sidecar.folder.path().join("policy.yaml")).unwrap();
    let connected = async |wanted: f64| sidecar.scrape().await.sum("toolweir_policy_connected", &[]) == wanted;
    assert!(until("the loss to be noticed", async || connected(0.0).await).await < A_SECOND);
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    sidecar.folder.write("policy.yaml", &good);
    assert!(until("the policy to be back", async || connected(1.0).await).await < A_SECOND);
}

/// A policy of a name of its own, for a server of that name.
fn named(name: &str, upstream: &Upstream) -> String {
    allow_all(&upstream.url()).replace("bank", name)
}

#[tokio::test]
async fn the_files_of_a_folder_are_in_force_together_as_they_come_and_go() {
    let upstream = Upstream::bank().await;
    let folder = Folder::new();
    folder.write("a.yaml", named("bank", &upstream));
    folder.write("notes.txt", "no policy");
    folder.write(".hidden.yaml", "no: policy");
    fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    let path = folder.path().to_owned();
    let sidecar = Sidecar::at(folder, path.clone(), |_| {}).await;
    let reached = async |server: &str| {
        let answer = sidecar.ask(&Ask::post(request("1", "ping", "{}")).to(&format!("/{server}"))).await;
        answer.json().get("result").is_some()
    };
    assert!(reached("bank").await && !reached("shop").await);
    sidecar.folder.write("b.yml", named("shop", &upstream));
    assert!(until("the added file", async || reached("shop").await).await < A_SECOND);
    sidecar.folder.write("c.json", r#"{"apiVersion":"toolweir.dev/v1alpha1","kind":"MCPClusterPolicy","metadata":{"name":"guardrail"},"spec":{"servers":[{"name":"*"}]}}"#);
    let guarded = async || sidecar.post(&call("1", "pay", "{}")).await["result"]["isError"] == true;
    assert!(until("the guardrail", guarded).await < A_SECOND);
    assert_eq!(denial(&sidecar.post(&call("1", "pay", "{}")).await)["policy"], "guardrail");
    fs::remove_file(path.join("c.json")).unwrap();
    fs::remove_file(path.join("a.yaml")).unwrap();
    assert!(until("the removed file", async || !reached("bank").await && reached("shop").await).await < A_SECOND);
    // Two of one name: neither is taken, and what was in force stays.
    sidecar.folder.write("d.yaml", named("shop", &upstream));
    let stale = async || sidecar.scrape().await.sum("toolweir_policy_connected", &[]) == 0.0;
    assert!(until("the second of a name to be refused", stale).await < A_SECOND);
    assert!(reached("shop").await);
    // So does an empty folder.
    for file in ["b.yml", "d.yaml"] {
        fs::remove_file(path.join(file)).unwrap();
    }
    let failures = async || sidecar.scrape().await.sum("toolweir_policy_reload_failures_total", &[]) >= 2.0;
    until("the empty folder to be refused", failures).await;
    assert!(reached("shop").await);
}

/// Puts files where the kubelet puts those of a `ConfigMap`: in a folder of their own, to which one symbolic link is
/// exchanged.
fn mount(folder: &Path, version: &str, text: &str) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("policy.yaml"), text).unwrap();
    symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn a_config_map_that_changes_is_in_force_within_a_second() {
    let upstream = Upstream::bank().await;
    for as_file in [true, false] {
        let folder = Folder::new();
        mount(folder.path(), "2026_01", &policy(&upstream.url(), "[{name: pay}]"));
        symlink("..data/policy.yaml", folder.path().join("policy.yaml")).unwrap();
        let path = if as_file { folder.path().join("policy.yaml") } else { folder.path().to_owned() };
        let sidecar = Sidecar::at(folder, path, |_| {}).await;
        assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
        mount(sidecar.folder.path(), "2026_02", &policy(&upstream.url(), "[{name: buy}]"));
        fs::remove_dir_all(sidecar.folder.path().join("..2026_01")).unwrap();
        let denied = async || sidecar.reason(&call("1", "pay", "{}")).await == "not_listed";
        assert!(until("the new data", denied).await < A_SECOND, "as a file: {as_file}");
        assert_eq!(sidecar.scrape().await.sum("toolweir_policy_connected", &[]), 1.0);
    }
}
