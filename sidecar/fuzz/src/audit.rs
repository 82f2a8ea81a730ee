//! An audit log: a line is read as a reader without types reads it, and calls that are decided anew are counted, each once.

use serde_json::Value;
use toolweir_crds::OperationKind;
use toolweir_engine::{CompileOptions, Memory, Policy, PolicyId};
use toolweir_replay::{RecordedLine, Replay};

use super::assert_one_line;

/// The policy by which the calls are decided anew.
const SPEC: &str = r#"{"servers": [{"name": "facebook", "url": "http://facebook/mcp", "tools": [
    {"name": "send_*", "validations": [{"expression": "args.amount < 5 || session == ''"}], "maxConcurrent": 2},
    {"name": "get_*", "limits": [{"max": 2, "window": "minute", "key": "args.user", "scope": "Workload"}]},
    {"name": "*", "action": "Allow", "limits": [{"max": 3, "window": "second", "scope": "Session"}]}
]}]}"#;

/// The check.
pub fn check(data: &[u8]) {
    let mut calls = 0;
    for line in data.split(|byte| *byte == b'\n') {
        match RecordedLine::read(line) {
            RecordedLine::Call(call) => {
                calls += 1;
                // What is read as a call is one to others too.
                let text = std::str::from_utf8(line).expect("a call is UTF-8").trim();
                let text =
                    text.get(text.find("{\"time\":").filter(|_| !text.starts_with('{')).unwrap_or(0)..).unwrap_or_default();
                let value: Value = serde_json::from_str(text).expect("a call is JSON");
                let (name, method) = match call.kind {
                    OperationKind::Tool => (value["tool"].as_str(), Some("tools/call")),
                    _ => (value["name"].as_str(), value["operation"].as_str()),
                };
                assert_eq!((value["server"].as_str(), name), (Some(&*call.server), Some(&*call.name)));
                assert_eq!(method, Some(&*call.method));
                assert_eq!(value["reason"], call.reason.as_str());
            }
            RecordedLine::Damaged(why) => assert_one_line(&why),
            RecordedLine::Connection | RecordedLine::Approval | RecordedLine::Other => {}
        }
    }
    let id = PolicyId { cluster: false, namespace: "default".to_owned(), name: "facebook".to_owned() };
    let policy =
        Policy { id, created: None, spec: serde_json::from_str(SPEC).expect("a policy"), version: None, unreadable: None };
    let mut replay = Replay::new(1);
    let (log, problems) = replay.add_log("a.log", &[policy], &CompileOptions::default(), Memory::COUNTERS).expect("a parser");
    assert!(problems.is_empty(), "{problems:?}");
    replay.read(log, &mut &*data).expect("bytes in memory");
    let report = replay.finish().expect("arguments in memory");
    let counted: u64 = report.changes.iter().map(|change| change.calls).sum();
    assert_eq!(report.unchanged + counted, report.calls);
    let left_out: u64 = report.not_decided.values().sum();
    assert_eq!(report.calls + left_out, calls);
    assert!(!report.text().contains(|c: char| c.is_control() && c != '\n'));
}
