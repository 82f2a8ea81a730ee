//! `toolweir-sidecar import` as a command.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;

use toolweir_crds::read_documents;
use toolweir_engine::{Call, CompileOptions, Engine, Memory, Operation, Timestamp};

fn command(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_toolweir-sidecar")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn several_files_are_one_stream_or_nothing() {
    let folder = std::env::temp_dir().join(format!("toolweir-import-{}", std::process::id()));
    fs::create_dir_all(folder.join("more")).unwrap();
    let file = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    let social = file("Social Agent_v2.yaml", "version: \"1\"\ntools: {post: {rules: [{name: few, rate_limit: 2/day}]}}\n");
    let bank = file("bank.json", r#"{"version": "1", "default": "deny", "tools": {"pay": {}, "post": {}}}"#);
    let more = file("more/bank.yml", "version: \"1\"\ndefault: deny\ntools: {post: {rules: []}, read: {rules: []}}\n");
    let wrong = file("wrong.yaml", "version: \"2\"\ndefault: perhaps\n");
    let nameless = file("\u{4e88}.yaml", "version: \"1\"\n");
    let run = |files: &[&String], more: &[&str]| {
        let files: Vec<&str> = files.iter().map(|file| file.as_str()).collect();
        command(&[&["import", "--server", "s", "--url", "http://s.svc/mcp"], &files[..], more].concat())
    };
    let (code, out, err) = run(&[&social, &bank], &["--namespace", "agents"]);
    assert_eq!((code, err.lines().count()), (Some(0), 1), "{err}");
    assert!(err.starts_with(&format!("{social}: warning: 1 limit is counted by each pod")), "{err}");
    let read = read_documents("imported.yaml", &out).unwrap();
    let names: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    assert_eq!((read.len(), names), (2, vec!["social-agent-v2", "bank"]), "{out}");
    // All policies must allow a call.
    let policies: Vec<_> = read.into_iter().map(|located| located.document.into()).collect();
    let (engine, _) = Engine::compile(&policies, Memory::new(100), &CompileOptions::default());
    let call = |tool| Call { server: "s", operation: Operation::tool(tool), arguments: None, session: "", seen: None };
    let passes = ["post", "pay", "read", "post", "post"].map(|tool| engine.decide(&call(tool), Timestamp(0)).denial().is_none());
    assert_eq!(passes, [true, true, false, true, false]);
    let imported = file("imported.yaml", &out);
    assert_eq!(command(&["check", &imported]).1, "ok: 2 policies of 1 file and 1 server\n");

    let (code, out, _) = run(&[&social, &bank, &more], &["--name", "guard", "--shared-store"]);
    let names: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    assert_eq!((code, names), (Some(0), vec!["guard-1", "guard-2", "guard-3"]));
    let (_, out, _) = run(&[&nameless], &[]);
    assert!(out.contains("metadata:\n  name: s\n"), "{out}");

    for (files, what) in [
        (
            vec![&bank, &more],
            format!("{more}: policy: would be called `bank` like that of {bank}; rename a file, or give --name"),
        ),
        (vec![&bank, &nameless], format!("{nameless}: policy: has no letter or digit in its file's name")),
        (vec![&bank, &wrong], format!("{wrong}: version: is `2`")),
        (vec![&wrong, &bank], format!("{wrong}: default: is `perhaps`")),
    ] {
        let (code, out, err) = run(&files, &[]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(&what), "{err}");
    }
    let (code, out, err) = run(&[&bank, &"/no/such/file".to_owned()], &[]);
    assert!(code == Some(1) && out.is_empty() && err.contains("/no/such/file"), "{err}");
    fs::remove_dir_all(&folder).unwrap();
}
