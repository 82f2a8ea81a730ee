//! Policies of the open-source proxy through the import and the engine.
//!
//! The files under `yaml/` are policies with the manifest that each becomes; `UPDATE=1` writes those anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::options;
use proptest::{
    prelude::*,
    sample::{Index, select, subsequence},
};
use serde_json::{Value, json};
use toolweir_crds::{Document, read_documents};
use toolweir_engine::{Call, CompileOptions, Engine, Memory, Operation, Severity, Timestamp};
use toolweir_import::{ImportError, ImportedPolicy, import};

#[path = "../../fuzz/src/original.rs"]
#[allow(clippy::pedantic)]
mod original;

use original::OriginalProxy;

fn imported(yaml: &str) -> ImportedPolicy {
    import(yaml, &options()).unwrap_or_else(|errors| panic!("{yaml}: {errors:?}"))
}

/// The engine that a policy becomes, by way of the printed manifest.
fn engine_of(policy: &ImportedPolicy) -> Engine {
    let yaml = policy.to_yaml();
    let read = read_documents("imported.yaml", &yaml).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].document, policy.document, "{yaml}");
    assert!(read[0].unquoted().is_empty(), "{yaml}");
    let (engine, problems) = Engine::compile(&[policy.document.clone().into()], Memory::new(100), &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{problems:?}");
    engine
}

fn written(policy: &Value) -> String {
    serde_yaml::to_string(policy).unwrap()
}

fn allows(engine: &Engine, tool: &str, arguments: &Value, now: u64) -> bool {
    common::allows(engine, tool, arguments, Timestamp(now * 1_000_000_000))
}

fn errors(policy: &str) -> Vec<ImportError> {
    match import(policy, &options()) {
        Ok(policy) => panic!("{}", policy.to_yaml()),
        Err(errors) => errors,
    }
}

#[test]
fn policies_become_manifests() {
    common::policies_become_manifests("yaml", |path| !path.file_stem().unwrap().to_str().unwrap().contains('.'), "alone.yaml");
}

/// A counter is held once a call is added: `lte 5` lets five through, and `lt 5` four.
#[test]
fn counters_are_held_after_adding() {
    let rule = |op: &str, value: Value, more: &str| {
        format!(
            "version: \"1\"\ntools:\n  t:\n    rules:\n    - conditions: [{{path: state.t.c, op: {op}, value: {value}}}]\n      \
             state: {{counter: c, window: hour{more}}}\n"
        )
    };
    let passed = |yaml: &str, arguments: Value| {
        let engine = engine_of(&imported(yaml));
        (0..20).filter(|second| allows(&engine, "t", &arguments, *second)).count()
    };
    assert_eq!(passed(&rule("lte", json!(5), ""), json!({})), 5);
    assert_eq!(passed(&rule("lt", json!(5), ""), json!({})), 4);
    assert_eq!(passed(&rule("lt", json!(5.5), ""), json!({})), 4);
    assert_eq!(passed(&rule("lte", json!(5.5), ""), json!({})), 5);
    assert_eq!(passed(&rule("lte", json!(10), ", increment: 3"), json!({})), 3);
    let spend = rule("lte", json!(100), ", increment_from: args.amount");
    assert_eq!(passed(&spend, json!({"amount": 30})), 3);
    assert_eq!(passed(&spend, json!({"amount": 100.0})), 1);
    for amount in [json!(101), json!(-1), json!("1"), json!(null), json!(true), json!([1]), json!(1e300)] {
        assert_eq!(passed(&spend, json!({"amount": amount})), 0, "{amount}");
    }
    assert_eq!(passed(&spend, json!({})), 0);
    let limit = "version: \"1\"\ntools: {t: {rules: [{rate_limit: 7/minute}]}}\n";
    assert_eq!(passed(limit, json!({})), 7);
}

/// With `default: deny`, rules for every tool open none.
#[test]
fn what_holds_for_every_tool_opens_none() {
    let yaml = "version: \"1\"\ndefault: deny\ntools:\n  t: {rules: []}\n  \"*\": {rules: [{name: x, rate_limit: 2/hour}]}\n";
    let engine = engine_of(&imported(yaml));
    assert_eq!(["t", "u", "t", "t"].map(|tool| allows(&engine, tool, &json!({}), 0)), [true, false, true, false]);
    // One count for all tools.
    let engine = engine_of(&imported(&yaml.replace("deny", "allow")));
    assert_eq!(["t", "u", "v", "t"].map(|tool| allows(&engine, tool, &json!({}), 0)), [true, true, false, false]);
}

#[test]
fn yaml_is_told_by_its_content() {
    for yaml in [
        "version: \"1\"",
        "\u{feff}version: \"1\"\r\ntools:\r\n  t:\r\n    rules: []\r\n",
        "# {\nversion: '1'\n",
        "--- \nversion: 1\n...\n",
        "? version\n: \"1\"\n",
        "version: >-\n  1\n",
    ] {
        imported(yaml);
    }
    let json = r#" {"version": "1", "default": "deny", "tools": {"t": {"rules": []}}}"#;
    assert_eq!(errors(json)[0].path, "tools.t.rules");
}

/// Each wrong place of a policy, and a word of what is said there.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_error_names_its_place() {
    let tools = |body: &str| format!("version: \"1\"\ntools: {body}\n");
    let rule = |body: &str| tools(&format!("{{t: {{rules: [{body}]}}}}"));
    let condition = |body: &str| rule(&format!("{{name: x, conditions: [{body}]}}"));
    let state = |body: &str| {
        rule(&format!("{{conditions: [{{path: state.t.c, op: lte, value: 5}}], state: {{counter: c, window: day, {body}}}}}"))
    };
    let bound = |body: &str| rule(&format!("{{conditions: [{{path: state.t.c, {body}}}], state: {{counter: c, window: day}}}}"));
    let approval = |body: &str| rule(&format!("{{action: require_approval, conditions: [{body}]}}"));
    let asking: Vec<String> = (0..5)
        .map(|n| format!("{{action: require_approval, conditions: [{{path: args.p, op: eq, value: {}{n}}}]}}", "x".repeat(400)))
        .collect();
    let value = |text: &str| condition(&format!("{{path: args.p, op: eq, value: {text}}}"));
    let long = "x".repeat(600);
    let at = "tools.t.rules[0]";
    let in_rule = |rest: &str| format!("{at}{rest}");
    let limits: Vec<String> = (0..17)
        .map(|n| format!("{{conditions: [{{path: state.t.c{n}, op: lte, value: 1}}], state: {{counter: c{n}, window: day}}}}"))
        .collect();
    let table: Vec<(String, String, &str)> = vec![
        (String::new(), "policy".into(), "holds no policy"),
        ("# nothing\n".into(), "policy".into(), "holds no policy"),
        ("---\n".into(), "policy".into(), "null"),
        ("version: \"1\n".into(), "line 1, column 10".into(), "not YAML"),
        ("version: \"1\"\ntools:\n\tt: {}\n".into(), "line 3, column 2".into(), "tabs"),
        ("version: \"1\"\n---\nversion: \"1\"\n".into(), "line 2, column 1".into(), "second document"),
        ("version: \"1\"\ntools: &a {}\n".into(), "line 2, column 11".into(), "anchor"),
        ("version: &a \"1\"\n".into(), "line 1, column 13".into(), "anchor"),
        ("version: \"1\"\nx: *a\n".into(), "line 2, column 4".into(), "unknown anchor"),
        ("version: !!str 1\n".into(), "line 1, column 16".into(), "tag"),
        ("tools: !x {}\n".into(), "line 1, column 11".into(), "tag"),
        ("version: \"1\"\n<<: {}\n".into(), "line 2, column 1".into(), "`<<`"),
        ("version: \"1\"\n? [a]\n: 1\n".into(), "line 2, column 3".into(), "as a key"),
        ("version: \"1\"\n1: 1\n".into(), "line 2, column 1".into(), "a number as a key"),
        ("version: \"1\"\non: 1\n".into(), "line 2, column 1".into(), "`on` is not the same"),
        ("version: \"1\"\nversion: \"1\"\n".into(), "version".into(), "twice"),
        ("version: \"1\"\n\"\\x76ersion\": \"1\"\n".into(), "version".into(), "twice"),
        (format!("x: {}1{}", "[".repeat(130), "]".repeat(130)), "line 1, column 131".into(), "128 levels"),
        ("- version\n".into(), "policy".into(), "a list; write an object"),
        ("policy\n".into(), "policy".into(), "a string; write an object"),
        ("default: deny\n".into(), "version".into(), "missing"),
        ("version: \"2\"\n".into(), "version".into(), "`2`"),
        ("version: 1.0\n".into(), "version".into(), "in quotes"),
        ("version: \"1\"\ndefault: ask\n".into(), "default".into(), "`ask`"),
        ("version: \"1\"\ndefault:\n".into(), "default".into(), "is null"),
        ("version: \"1\"\ndescription: 5\n".into(), "description".into(), "string"),
        ("version: \"1\"\nall_tools: {}\n".into(), "all_tools".into(), "not known"),
        ("version: \"1\"\nhide: t\n".into(), "hide".into(), "list of names"),
        ("version: \"1\"\nhide: [\"get_*\"]\n".into(), "hide[0]".into(), "has a `*`"),
        (tools("{\"get_*\": {rules: []}}"), "tools[\"get_*\"]".into(), "has a `*`"),
        (tools("{t: null}"), "tools.t".into(), "is null"),
        (tools("{t: {}, u: {limits: []}}"), "tools.u.limits".into(), "not known"),
        (tools("{t: {rules: {}}}"), "tools.t.rules".into(), "a list"),
        (tools("{t: {spend: {per_call: 5}}}"), "tools.t.spend".into(), "increment_from: args.amount"),
        (rule("{spend: {daily: 5}, rate_limit: 1/day}"), in_rule(".spend"), "which argument"),
        (rule("1"), at.into(), "an object"),
        (rule("{nme: x}"), in_rule(".nme"), "not known"),
        (rule("{name: 5, rate_limit: 1/day}"), in_rule(".name"), "string"),
        (rule("{name: x}"), in_rule(".conditions"), "missing or empty"),
        (rule("{name: x, conditions: []}"), in_rule(".conditions"), "missing or empty"),
        (rule("{name: x, conditions: {}}"), in_rule(".conditions"), "a list"),
        (rule("{action: allow}"), in_rule(".action"), "there is evaluate"),
        (
            "version: \"1\"\napprovals: {webhook: {url: https://example.com}}\n".into(),
            "approvals".into(),
            "whom the original tells",
        ),
        (rule("{action: require_approval, approval_timeout: 30m, rate_limit: 1/day}"), in_rule(".rate_limit"), "a rule for each"),
        (rule("{action: require_approval, state: {counter: c, window: day}}"), in_rule(".state"), "a rule for each"),
        (rule("{action: require_approval, approval_timeout: 30}"), in_rule(".approval_timeout"), "write a string"),
        (rule("{action: require_approval, approval_timeout: 1.5h}"), in_rule(".approval_timeout"), "`1.5h`; write 10s to 24h"),
        (rule("{action: require_approval, approval_timeout: 5s}"), in_rule(".approval_timeout"), "`5s`; write 10s to 24h"),
        (rule("{action: require_approval, approval_timeout: 48h}"), in_rule(".approval_timeout"), "`48h`; write 10s to 24h"),
        (rule("{action: require_approval, conditions: {}}"), in_rule(".conditions"), "a list"),
        (approval("{path: state.t.c, op: gt, value: 5}"), in_rule(".conditions[0].path"), "counters are read by `limits`"),
        (approval("{path: args.p, op: eq, value: [a]}"), in_rule(".conditions[0].value"), "compares as it prints"),
        (approval("{path: args.p, op: in, value: [a, 1.0]}"), in_rule(".conditions[0].value[1]"), "without a point"),
        (approval("{path: args.p, op: in, value: [\"1e+21\", 1]}"), in_rule(".conditions[0].value[0]"), "2^53"),
        (condition("{path: args.p, op: not_in, value: [\"1e+21\", 1]}"), in_rule(".conditions[0].value[0]"), "2^53"),
        (rule(&format!("{{action: require_approval, on_deny: {long}}}")), in_rule(".on_deny"), "600"),
        (
            rule(&format!(
                "{{action: require_approval, on_deny: {0}}}, {{action: require_approval, on_deny: {1}}}",
                "y".repeat(300),
                "z".repeat(300)
            )),
            "tools.t.rules[1].on_deny".into(),
            "601 bytes",
        ),
        (rule(&asking.join(", ")), "tools.t.rules[4]".into(), "split it"),
        (rule("{approval_timeout: 30m, rate_limit: 1/day}"), in_rule(".approval_timeout"), "belongs to"),
        (rule("{action: deny, conditions: [{path: args.p, op: eq, value: 1}]}"), in_rule(".conditions"), "stands beside"),
        (rule("{action: deny, state: {counter: c, window: day}}"), in_rule(".state"), "stands beside"),
        (rule("{action: deny, rate_limit: 1/day}"), in_rule(".rate_limit"), "stands beside"),
        (rule(&format!("{{action: deny, on_deny: {long}}}")), in_rule(".on_deny"), "600"),
        (rule("{rate_limit: 1/day, state: {counter: c, window: day}}"), in_rule(".state"), "a rule for each"),
        (rule("{rate_limit: 1/day, conditions: [{path: args.p, op: eq, value: 1}]}"), in_rule(".conditions"), "a rule for each"),
        (rule("{rate_limit: 1/week}"), in_rule(".rate_limit"), "`1/week`"),
        (rule("{rate_limit: 0/day}"), in_rule(".rate_limit"), "`0/day`"),
        (rule("{rate_limit: +1/day}"), in_rule(".rate_limit"), "from 1 on"),
        (rule("{rate_limit: 1/ day}"), in_rule(".rate_limit"), "from 1 on"),
        (rule("{rate_limit: /day}"), in_rule(".rate_limit"), "from 1 on"),
        (rule("{rate_limit: 5}"), in_rule(".rate_limit"), "string"),
        (rule("{rate_limit: 99999999999999/day}"), in_rule(".rate_limit"), "1000000000000"),
        (rule("{rate_limit: 99999999999999999999/day}"), in_rule(".rate_limit"), "from 1 on"),
        (rule("{rate_limit: 1/day}, {rate_limit: 2/day}"), "tools.t.rules[1].rate_limit".into(), "same count"),
        (condition("{path: args.p, op: exists}"), in_rule(".conditions[0].value"), "missing"),
        (condition("{path: args.p, op: eq, value: 1, case: 1}"), in_rule(".conditions[0].case"), "not known"),
        (condition("{path: state.t.c, op: lte, value: 5}"), in_rule(".conditions[0].path"), "does not count"),
        (condition("{path: tool.name, op: eq, value: 5}"), in_rule(".conditions[0].path"), "args.amount"),
        (value("[a]"), in_rule(".conditions[0].value"), "compares as it prints"),
        (value("{a: b}"), in_rule(".conditions[0].value"), "compares as it prints"),
        (condition("{path: args.p, op: not_in, value: [a, 1.0]}"), in_rule(".conditions[0].value[1]"), "without a point"),
        (bound("op: gt, value: 5"), in_rule(".conditions[0].op"), "lt or lte"),
        (bound("op: eq, value: 5"), in_rule(".conditions[0].op"), "lt or lte"),
        (bound("op: lt, value: 1"), in_rule(".conditions[0].value"), "no call"),
        (bound("op: lte, value: 0.9"), in_rule(".conditions[0].value"), "no call"),
        (bound("op: lte, value: -5"), in_rule(".conditions[0].value"), "no call"),
        (bound("op: lte, value: \"5\""), in_rule(".conditions[0].value"), "a number"),
        (bound("op: lte, value: 9999999999999"), in_rule(".conditions[0].value"), "1000000000000"),
        (bound("op: lte, value: 9999999999999999"), in_rule(".conditions[0].value"), "too large"),
        (bound("op: lte, value: 9999999999999999999"), "line 2, column 69".into(), "more digits"),
        (bound("op: lte, value: 5").replace("path: state.t.c", "path: state.u.c"), in_rule(".conditions[0].path"), "`state.t.c`"),
        (state("increment: 0"), in_rule(".state.increment"), "1 or more"),
        (state("increment: 1.5"), in_rule(".state.increment"), "whole"),
        (state("increment: 2, increment_from: args.n"), in_rule(".state.increment_from"), "stands beside"),
        (state("increment_from: amount"), in_rule(".state.increment_from"), "args.amount"),
        (state("increment_from: \"args.a[0]\""), in_rule(".state.increment_from"), "brackets"),
        (state("by: 2"), in_rule(".state.by"), "not known"),
        (
            rule("{conditions: [{path: args.p, op: eq, value: 1}], state: {counter: c, window: day}}"),
            in_rule(".state"),
            "limits nothing",
        ),
        (
            rule("{conditions: [{path: state.t.c, op: lte, value: 1}], state: {window: day}}"),
            in_rule(".state.counter"),
            "missing",
        ),
        (rule("{conditions: [{path: state.t.c, op: lte, value: 1}], state: {counter: c}}"), in_rule(".state.window"), "missing"),
        (
            rule("{conditions: [{path: state.t.c, op: lte, value: 1}], state: {counter: c, window: week}}"),
            in_rule(".state.window"),
            "`week`",
        ),
        (
            rule("{conditions: [{path: \"state.t.\", op: lte, value: 1}], state: {counter: \"\", window: day}}"),
            in_rule(".state.counter"),
            "empty",
        ),
        (
            rule("{conditions: [{path: \"state.t.\\a\", op: lte, value: 1}], state: {counter: \"\\a\", window: day}}"),
            in_rule(".state.counter"),
            "control",
        ),
        (rule(&limits.join(", ")), "tools.t.limits".into(), "17"),
        (rule(&format!("{0}, {0}", limits[0])), "tools.t.rules[1].state.counter".into(), "same count as tools.t.rules[0]"),
        (
            tools(
                "{a.b: {rules: [{conditions: [{path: state.a.b.c, op: lte, value: 1}], state: {counter: c, window: day}}]}, \
                   a: {rules: [{conditions: [{path: state.a.b.c, op: lte, value: 1}], state: {counter: b.c, window: day}}]}}",
            ),
            "tools.a.rules[0].state.counter".into(),
            "same count",
        ),
        (
            tools("{_global: {rules: [{rate_limit: 1/day}]}, \"*\": {rules: [{rate_limit: 2/day}]}}"),
            "tools[\"*\"].rules[0].rate_limit".into(),
            "same count",
        ),
    ];
    let mut untold = Vec::new();
    for (policy, path, what) in table {
        let found = errors(&policy);
        if !found.iter().any(|error| error.path == path && error.message.contains(what)) {
            untold.push(format!("{policy:?}: {path} with {what:?} is not in {found:?}"));
        }
        for error in found {
            assert!(!error.to_string().contains(char::is_control) && error.message.len() < 600, "{error}");
        }
    }
    assert!(untold.is_empty(), "{}", untold.join("\n"));
}

/// Without quotes, these are not the same to every reader of YAML.
#[test]
fn scalars_that_readers_take_differently_must_be_in_quotes() {
    for text in [
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "N",
        "True",
        "FALSE",
        "Null",
        "NULL",
        "010",
        "0o17",
        "0x1F",
        "0b1",
        "1_000",
        "+5",
        ".5",
        "5.",
        "1e3",
        "1E-3",
        ".inf",
        "-.INF",
        ".nan",
        "2026-07-28",
        "2026-7-8 10:00:00",
        "12:30",
        "1:2:3.5",
        "-00",
        "=",
        "<<",
        "0_1",
    ] {
        let policy = |text: &str| {
            format!("version: \"1\"\ntools:\n  t:\n    rules:\n    - conditions: [{{path: args.p, op: eq, value: {text}}}]\n")
        };
        let found = errors(&policy(text));
        assert!(
            found[0].path.starts_with("line 5, column ") && found[0].message.contains(&format!("`{text}`")),
            "{text}: {found:?}"
        );
        let quoted = engine_of(&imported(&policy(&format!("\"{text}\""))));
        assert!(allows(&quoted, "t", &json!({"p": text}), 0), "{text}");
        let key = format!("version: \"1\"\ntools:\n  {text}: {{rules: []}}\n");
        assert!(errors(&key)[0].path.starts_with("line 3, column "), "{text}");
    }
    for (text, value) in [
        ("5", json!(5)),
        ("-0.5", json!(-0.5)),
        ("0", json!(0)),
        ("true", json!(true)),
        ("~", json!(null)),
        ("a b", json!("a b")),
    ] {
        let yaml =
            format!("version: \"1\"\ntools: {{t: {{rules: [{{conditions: [{{path: args.p, op: eq, value: {text}}}]}}]}}}}\n");
        let engine = engine_of(&imported(&yaml));
        assert!(allows(&engine, "t", &json!({"p": value}), 0), "{text}");
        assert!(!allows(&engine, "t", &json!({"p": "other"}), 0), "{text}");
    }
}

/// Aliases that would stand for a billion values, and what is only long.
#[test]
fn size_is_no_danger() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let items = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs.push_str(&format!("a{n}: &a{n} [{items}]\n"));
    }
    assert!(errors(&laughs)[0].message.contains("anchor"));
    let many: String = (0..2000).map(|n| format!("  t{n}: {{rules: []}}\n")).collect();
    assert_eq!(errors(&format!("version: \"1\"\ntools:\n{many}"))[0].path, "tools");
    let deep: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(errors(&deep)[0].message.contains("128 levels"));
    let rule = format!(
        "version: \"1\"\ntools: {{t: {{rules: [{{conditions: [{{path: args.p, op: regex, value: \"{}\"}}]}}]}}}}",
        "a?".repeat(500_000)
    );
    assert_eq!(errors(&rule)[0].path, "tools.t.rules[0].conditions[0].value");
}

/// Values of every type, with those that Go prints alike.
fn values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(5),
        json!(5.0),
        json!(5.5),
        json!(-3),
        json!(0),
        json!(1_000_000),
        json!(18_446_744_073_709_551_615_u64),
        json!("5"),
        json!("5.5"),
        json!("1e+06"),
        json!("1000000"),
        json!("true"),
        json!("a"),
        json!("a 5"),
        json!(""),
        json!("<nil>"),
        json!("[a]"),
        json!("map[b:5]"),
        json!([]),
        json!(["a"]),
        json!([5, "a"]),
        json!(["5", null]),
        json!([true, "<nil>", "5.5"]),
        json!({}),
        json!({"b": 5}),
        json!({"b": {"x-y": "a"}, "x-y": "a"}),
        json!({"a": true, "n": 2}),
    ]
}

fn scalars() -> Vec<Value> {
    values().into_iter().filter(|value| !value.is_array() && !value.is_object() && value.as_u64() != Some(u64::MAX)).collect()
}

fn compared(operator: &str) -> Vec<Value> {
    match operator {
        "exists" => vec![json!(true), json!(false)],
        "lt" | "lte" | "gt" | "gte" => vec![json!(5), json!(5.0), json!(5.5), json!(-3), json!(0)],
        "regex" => vec![json!("^a"), json!(r"\d")],
        "in" | "not_in" => vec![
            json!([]),
            json!([null]),
            json!(["a", "5"]),
            json!([5, 5.5]),
            json!([5, "a"]),
            json!([1_000_000, "a"]),
            json!(["1e+06", 3]),
            json!(["5", -3]),
            json!([true, "a", 0]),
            json!(["true", false]),
            json!(["5.5", null, 5]),
            json!(["<nil>", "x"]),
        ],
        _ => scalars(),
    }
}

const OPERATORS: [&str; 11] = ["eq", "neq", "in", "not_in", "lt", "lte", "gt", "gte", "regex", "contains", "exists"];

/// Returns true if a value is of the type that the condition is about.
fn is_plain(operator: &str, compared: &Value, value: Option<&Value>) -> bool {
    let like = |value: &Value, one: &Value| {
        value.is_null() || one.is_null() || std::mem::discriminant(value) == std::mem::discriminant(one)
    };
    let Some(value) = value else { return true };
    // Go prints a null so.
    if value.to_string().contains("<nil>") || compared.to_string().contains("<nil>") {
        return false;
    }
    match operator {
        "exists" => true,
        "eq" | "neq" => like(value, compared),
        "in" | "not_in" => compared.as_array().unwrap().iter().all(|one| like(value, one)),
        "contains" => match value {
            Value::String(_) => compared.is_string(),
            Value::Array(items) => items.iter().all(|item| like(item, compared)),
            _ => false,
        },
        "regex" => value.is_string(),
        _ => value.is_number(),
    }
}

/// Every operator with every operand against every value, missing included.
#[test]
fn every_operator_admits_no_more_than_the_original_and_no_less_where_it_is_plain() {
    let mut arguments: Vec<Option<Value>> = values().into_iter().map(Some).collect();
    arguments.push(None);
    let mut denied_there = 0;
    for operator in OPERATORS {
        for value in compared(operator) {
            let condition = json!({"path": "args.p", "op": operator, "value": value});
            let policy = json!({"version": "1", "tools": {"t": {"rules": [{"conditions": [condition]}]}}});
            let engine = engine_of(&imported(&written(&policy)));
            for argument in &arguments {
                let given = argument.as_ref().map_or(json!({}), |value| json!({"p": value}));
                let ours = allows(&engine, "t", &given, 0);
                let theirs = OriginalProxy::new(policy.clone()).passes("t", &given, 0);
                denied_there += usize::from(!theirs);
                assert!(!ours || theirs, "{condition} admits {given}");
                assert!(ours || !theirs || !is_plain(operator, &value, argument.as_ref()), "{condition} denies {given}");
            }
        }
    }
    assert!(denied_there > 1000, "{denied_there}");
}

/// The same, of a rule that asks a person: it asks wherever the original does, and where it is plain about nothing else.
#[test]
fn every_operator_asks_about_no_less_than_the_original_and_no_more_where_it_is_plain() {
    let mut arguments: Vec<Option<Value>> = values().into_iter().map(Some).collect();
    arguments.push(None);
    let mut asked_there = 0;
    for operator in OPERATORS {
        for value in compared(operator) {
            let condition = json!({"path": "args.p", "op": operator, "value": value});
            let rules = json!([{"action": "require_approval", "conditions": [condition]}]);
            let policy = json!({"version": "1", "tools": {"t": {"rules": rules}}});
            let engine = engine_of(&imported(&written(&policy)));
            for argument in &arguments {
                let given = argument.as_ref().map_or(json!({}), |value| json!({"p": value}));
                let ours = !allows(&engine, "t", &given, 0);
                let theirs = !OriginalProxy::new(policy.clone()).passes("t", &given, 0);
                asked_there += usize::from(theirs);
                assert!(ours || !theirs, "{condition} lets {given} pass");
                assert!(!ours || theirs || !is_plain(operator, &value, argument.as_ref()), "{condition} asks about {given}");
            }
        }
    }
    assert!(asked_there > 1000, "{asked_there}");
}

/// One approval is for all rules of a tool; those of `*` ask for every tool, and a person is not asked about what is denied.
#[test]
fn rules_that_ask_become_one_approval() {
    let rules = |rules: &str| {
        format!("version: \"1\"\nhide: [h]\ntools:\n  t: {{rules: [{rules}]}}\n  h: {{rules: [{{action: require_approval}}]}}\n")
    };
    let over = |most: i32, more: &str| {
        format!("{{action: require_approval, conditions: [{{path: args.amount, op: gt, value: {most}}}]{more}}}")
    };
    let approval = |yaml: &str| {
        let Document::MCPPolicy { spec, .. } = imported(yaml).document else { panic!("{yaml}") };
        let tools = spec.servers.into_iter().next().unwrap().tools;
        assert!(tools.iter().all(|tool| tool.approval.is_none() || tool.action.is_none()), "{yaml}");
        tools.into_iter().find(|tool| tool.name == "t").unwrap().approval.unwrap()
    };
    let two = format!(
        "{}, {}",
        over(500, ", on_deny: Over 500., approval_timeout: 2h"),
        over(100, ", on_deny: Over 100., approval_timeout: 1h")
    );
    let both = approval(&rules(&two));
    assert_eq!(both.message.as_deref(), Some("Over 500. Over 100."));
    assert_eq!((both.expiry.as_str(), both.hold.as_str(), both.pending), ("1h", "30s", 5));
    let engine = engine_of(&imported(&rules(&two)));
    let passes = |amount: Value| allows(&engine, "t", &json!({"amount": amount}), 0);
    assert_eq!([json!(100), json!(101), json!(501), json!("501"), json!(null)].map(passes), [true, false, false, false, true]);
    // A rule that always asks leaves the other no condition; one without a timeout has that of our language.
    let always = approval(&rules(&format!("{}, {{action: require_approval}}", over(1, ", approval_timeout: 11m"))));
    assert_eq!((always.when, always.message, always.expiry.as_str()), (None, None, "10m"));
    let every = engine_of(&imported("version: \"1\"\ntools: {\"*\": {rules: [{action: require_approval}]}}\n"));
    let denial = |call: &Call<'_>| every.decide(call, Timestamp(0)).denial().and_then(|denial| denial.ask.clone());
    let ask =
        denial(&Call { server: "bank", operation: Operation::tool("any"), arguments: None, session: "", seen: None }).unwrap();
    assert_eq!((ask.expiry, ask.shown.len()), (Duration::from_secs(600), 0));
}

fn condition() -> impl Strategy<Value = Value> {
    let paths = vec!["args.a", "args.n", "args.a.b", "args.x-y", "args.a.x-y", "args.b.a"];
    (select(paths), select(&OPERATORS[..]), any::<Index>()).prop_map(|(path, operator, which)| {
        let compared = compared(operator);
        json!({"path": path, "op": operator, "value": which.get(&compared)})
    })
}

/// A rule of the tool that `scope` stands for; `number` tells its counter from those of others.
fn rule(scope: &'static str) -> impl Strategy<Value = Value> {
    let conditions = prop::collection::vec(condition(), 1..3);
    let window = || select(vec!["minute", "hour", "day"]);
    let of_state = (
        window(),
        prop_oneof![3 => Just(json!({})), 1 => (1..4).prop_map(|by| json!({"increment": by})),
            2 => select(vec!["args.n", "args.a.b"]).prop_map(|from| json!({"increment_from": from}))],
        select(vec!["lt", "lte"]),
        prop_oneof![(2..9).prop_map(|most| json!(most)), (2..9).prop_map(|most| json!(f64::from(most) + 0.5))],
        prop::option::weighted(0.2, 2..6),
        prop::option::weighted(0.2, condition()),
        0..1000_u32,
    );
    let of_state = of_state.prop_map(move |(window, increment, op, most, second, more, number)| {
        let path = format!("state.{scope}.c{number}");
        let mut conditions = vec![json!({"path": path, "op": op, "value": most})];
        conditions.extend(second.map(|most| json!({"path": path, "op": "lte", "value": most})));
        conditions.extend(more);
        let mut state = json!({"counter": format!("c{number}"), "window": window});
        state.as_object_mut().unwrap().extend(increment.as_object().unwrap().clone());
        json!({"name": "counted", "conditions": conditions, "state": state})
    });
    prop_oneof![
        3 => (1..6, window()).prop_map(|(most, window)| json!({"name": "rate", "rate_limit": format!("{most}/{window}")})),
        5 => of_state,
        2 => conditions.prop_map(|conditions| json!({"conditions": conditions, "on_deny": "Not so."})),
        1 => Just(json!({"name": "never", "action": "deny"})),
        2 => (prop::collection::vec(condition(), 0..3), prop::option::of(select(vec!["10s", "30m", "24h"]))).prop_map(|(conditions, timeout)| {
            let mut rule = json!({"name": "asked", "action": "require_approval", "conditions": conditions});
            if let Some(timeout) = timeout {
                rule["approval_timeout"] = timeout.into();
            }
            rule
        }),
    ]
}

fn policy() -> impl Strategy<Value = Value> {
    let rules = |scope| prop::option::weighted(0.8, prop::collection::vec(rule(scope), 0..3));
    let hide = prop_oneof![9 => subsequence(vec!["t", "u", "v"], 0..2), 1 => Just(vec!["*"])];
    let parts = (select(vec!["allow", "deny", ""]), prop::option::weighted(0.2, hide), rules("t"), rules("u"), rules("_global"));
    parts.prop_map(|(default, hide, t, u, all)| {
        let mut tools = json!({});
        for (name, rules) in [("t", t), ("u", u), ("*", all)] {
            if let Some(rules) = rules {
                tools[name] = json!({"rules": rules});
            }
        }
        let mut policy = json!({"version": "1", "tools": tools});
        if !default.is_empty() {
            policy["default"] = default.into();
        }
        if let Some(hide) = hide {
            policy["hide"] = hide.into();
        }
        policy
    })
}

fn arguments() -> impl Strategy<Value = Value> {
    let amount =
        prop_oneof![4 => (0..4).prop_map(Value::from), 1 => Just(json!(1.5)), 1 => Just(json!(0.5)), 1 => select(values())];
    let member = prop_oneof![(Just("n"), amount), (select(vec!["a", "b", "x-y"]), select(values()))];
    prop::collection::vec(member, 0..4).prop_map(|members| {
        members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), ..ProptestConfig::default() })]

    /// With the same calls before it, no call passes that the original turns away; at whatever point of its windows the first comes.
    #[test]
    fn the_import_never_admits_more(
        policy in policy(),
        start in prop_oneof![Just(0_u64), 0..200_000_u64],
        calls in prop::collection::vec((0..3_usize, arguments(), prop_oneof![4 => 0..30_u64, 1 => 0..4000_u64]), 1..60),
    ) {
        let imported = match import(&written(&policy), &options()) {
            Ok(imported) => imported,
            // Two rules on one count.
            Err(errors) => {
                prop_assert!(errors.iter().all(|error| error.message.contains("same count")), "{:?} of {}", errors, policy);
                return Ok(());
            }
        };
        let engine = engine_of(&imported);
        let mut original = OriginalProxy::new(policy.clone());
        let mut now = 1_700_000_000 + start;
        for (tool, arguments, pause) in calls {
            now += pause;
            let tool = ["t", "u", "v"][tool];
            if allows(&engine, tool, &arguments, now) {
                prop_assert!(original.passes(tool, &arguments, now), "{} {} at {} is turned away by {}", tool, arguments, now, policy);
            }
        }
    }

    /// Calls without arguments, of which the policy counts nothing but how often: many more of them.
    #[test]
    fn the_import_never_counts_less(
        most in prop::collection::vec((1..6, select(vec!["minute", "hour", "day"])), 1..4),
        all in prop::option::of(2..8),
        start in 0..90_000_u64,
        pauses in prop::collection::vec((any::<bool>(), prop_oneof![0..20_u64, 0..2000_u64]), 1..300),
    ) {
        let mut seen = BTreeSet::new();
        let rules: Vec<Value> = most.iter().filter(|(_, window)| seen.insert(*window))
            .map(|(most, window)| json!({"rate_limit": format!("{most}/{window}")})).collect();
        let mut tools = json!({"t": {"rules": rules}});
        if let Some(all) = all {
            tools["*"] = json!({"rules": [{"rate_limit": format!("{all}/minute")}]});
        }
        let policy = json!({"version": "1", "tools": tools});
        let engine = engine_of(&imported(&written(&policy)));
        let mut original = OriginalProxy::new(policy.clone());
        let (mut now, mut passed) = (start, 0);
        for (first, pause) in pauses {
            now += pause;
            let tool = if first { "t" } else { "u" };
            if allows(&engine, tool, &json!({}), now) {
                passed += 1;
                prop_assert!(original.passes(tool, &json!({}), now), "{} at {} is turned away by {}", tool, now, policy);
            }
        }
        prop_assert!(passed > 0);
    }

    /// Any text is itself after YAML, CEL and YAML.
    #[test]
    fn texts_stay_what_they_are(text in any::<String>(), name in any::<String>()) {
        // Texts of conditions may be names of arguments, and none is to differ from one in case alone.
        prop_assume!(text.len() < 200 && !text.eq_ignore_ascii_case("p"));
        let policy = json!({"version": "1", "description": name, "tools": {"t": {"rules": [
            {"name": name, "conditions": [{"path": "args.p", "op": "eq", "value": text}]}, {"name": text, "rate_limit": "9/hour", "on_deny": name}]}}});
        // What a reader of YAML cannot take, or not like another, is an error.
        if let Ok(imported) = import(&written(&policy), &options()) {
            let engine = engine_of(&imported);
            let [same, other] = [text.clone(), format!("{text}.")].map(|text| allows(&engine, "t", &json!({"p": text}), 0));
            prop_assert!(same && !other);
        }
    }

    /// Whatever is thrown at it: a policy that compiles, or errors of one line each.
    #[test]
    fn no_text_is_too_strange(
        text in prop_oneof![
            any::<String>(),
            "(version|tools|rules|[\\[\\]{}:,\"'&*!|>#%@`?\n\t ~<=a-z0-9._-]){0,60}",
            (policy(), any::<Index>(), any::<Index>(), ".{0,4}|\n|\r\n|\u{85}|\u{2028}|\t|: |- |#").prop_map(|(policy, from, to, new)| {
                let text: Vec<char> = written(&policy).chars().collect();
                let (from, to) = (from.index(text.len()), to.index(text.len()));
                let (from, to) = (from.min(to), from.max(to).min(from + 20));
                text[..from].iter().copied().chain(new.chars()).chain(text[to.max(from)..].iter().copied()).collect()
            }),
        ],
    ) {
        match import(&text, &options()) {
            Ok(imported) => drop(engine_of(&imported)),
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    let line = error.to_string();
                    prop_assert!(!error.path.is_empty() && !line.contains(char::is_control) && !line.contains("kind: MCPPolicy"), "{}", line);
                }
            }
        }
    }
}
