//! `PolicyLayer` policies through the import and the engine.
//!
//! The files under `json/` are policies with the manifest that each becomes; `UPDATE=1` writes those anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::options;
use proptest::{
    prelude::*,
    sample::{Index, select, subsequence},
};
use serde_json::{Value, json};
use toolweir_crds::{Document, read_documents};
use toolweir_engine::{CompileOptions, Engine, Memory, Operation, Severity, Timestamp};
use toolweir_import::{ImportError, ImportOptions, import};

/// The engine that a policy becomes, by way of the printed manifest.
fn engine(policy: &Value) -> Engine {
    let imported = import(&policy.to_string(), &options()).unwrap_or_else(|errors| panic!("{policy}: {errors:?}"));
    let (yaml, document) = (imported.to_yaml(), imported.document);
    let read = read_documents("imported.yaml", &yaml).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].document, document, "{yaml}");
    let (engine, problems) = Engine::compile(&[document.into()], Memory::new(100), &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{problems:?}");
    engine
}

fn allows(engine: &Engine, tool: &str, arguments: &Value, now: u64) -> bool {
    common::allows(engine, tool, arguments, Timestamp(now))
}

fn errors(policy: &str) -> Vec<ImportError> {
    import(policy, &options()).unwrap_err()
}

#[test]
fn policies_become_manifests() {
    common::policies_become_manifests("json", |path| path.extension().is_some_and(|kind| kind == "json"), "yaml");
}

#[test]
fn a_limit_of_an_agent_is_one_of_its_workload_where_there_is_a_shared_store() {
    let limits = json!([{"counter": "c", "window": "day", "max": 1, "scope": "grant"}]);
    let limited = json!({"version": "1", "default": "deny", "all_tools": {"limits": limits},
        "tools": {"t": {"limits": [{"counter": "d", "window": "day", "max": 1, "scope": "grant"}], "rate_limit": {"max": 1, "window": 5}}}});
    let unlimited = json!({"version": "1", "default": "deny", "tools": {"t": {}}});
    for (policy, shared_store, count) in
        [(&limited, false, 3), (&limited, true, 0), (&unlimited, false, 0), (&unlimited, true, 0)]
    {
        let imported = import(&policy.to_string(), &ImportOptions { shared_store, ..options() }).unwrap();
        assert_eq!(imported.counted_by_each_pod(), count);
        let yaml = imported.to_yaml();
        assert_eq!(yaml.matches("scope: Workload\n").count(), if shared_store && policy == &limited { 3 } else { 0 }, "{yaml}");
        assert_eq!(yaml.matches("scope: Pod\n").count(), count, "{yaml}");
        assert_eq!(yaml.starts_with("# Each pod counts for itself"), count > 0, "{yaml}");
        assert_eq!(read_documents("imported.yaml", &yaml).unwrap()[0].document, imported.document);
    }
}

#[test]
fn options_name_the_policy_and_its_place() {
    let text = r#"{"version": "1", "default": "deny"}"#;
    let name = |options: &ImportOptions| match import(text, options).unwrap().document {
        Document::MCPPolicy { metadata, .. } => (metadata.name, metadata.namespace),
        Document::MCPClusterPolicy { .. } => unreachable!(),
    };
    assert_eq!(name(&options()), ("bank".to_owned(), Some("agents".to_owned())));
    let named = ImportOptions { name: Some("guard".to_owned()), namespace: None, ..options() };
    assert_eq!(name(&named), ("guard".to_owned(), None));
    assert!(!import(text, &named).unwrap().to_yaml().contains("namespace"));
    for (options, path) in [
        (ImportOptions { server: "Bank".to_owned(), ..options() }, "--server"),
        (ImportOptions { server: "*".to_owned(), ..options() }, "--server"),
        (ImportOptions { url: "bank:8000".to_owned(), ..options() }, "--url"),
        (ImportOptions { name: Some("My Policy".to_owned()), ..options() }, "--name"),
        (ImportOptions { namespace: Some(String::new()), ..options() }, "--namespace"),
    ] {
        let errors = import(text, &options).unwrap_err();
        assert_eq!(errors[0].path, path, "{errors:?}");
    }
}

/// A value as the original takes it: numbers are all alike, and what is not of one type is compared as Go prints it.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => printed(a) == printed(b),
    }
}

fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.as_f64().unwrap().to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(members) => {
            let members: Vec<String> = members.iter().map(|(key, value)| format!("{key}:{}", printed(value))).collect();
            format!("map[{}]", members.join(" "))
        }
    }
}

fn lookup<'v>(arguments: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').skip(1).try_fold(arguments, |value, step| value.as_object()?.get(step))
}

/// The result of a condition in the original.
fn holds(condition: &Value, arguments: &Value) -> bool {
    let (operator, compared) = (condition["op"].as_str().unwrap(), &condition["value"]);
    let found = lookup(arguments, condition["path"].as_str().unwrap());
    let Some(value) = found else { return operator == "exists" && compared == &Value::Bool(false) };
    let among = || compared.as_array().unwrap().iter().any(|item| equal(value, item));
    let numbers = || Some((value.as_f64()?, compared.as_f64()?));
    match operator {
        "exists" => compared == &Value::Bool(true),
        "eq" => equal(value, compared),
        "neq" => !equal(value, compared),
        "in" => among(),
        "not_in" => !among(),
        "lt" => numbers().is_some_and(|(a, b)| a < b),
        "lte" => numbers().is_some_and(|(a, b)| a <= b),
        "gt" => numbers().is_some_and(|(a, b)| a > b),
        "gte" => numbers().is_some_and(|(a, b)| a >= b),
        "regex" => value.as_str().is_some_and(|text| match compared.as_str().unwrap() {
            "^a" => text.starts_with('a'),
            r"\d" => text.contains(|c: char| c.is_ascii_digit()),
            other => panic!("{other}"),
        }),
        "contains" => match value {
            Value::String(text) => compared.as_str().is_some_and(|part| text.contains(part)),
            Value::Array(items) => items.iter().any(|item| equal(item, compared)),
            _ => false,
        },
        other => panic!("{other}"),
    }
}

/// Returns true if the original lets a call through, limits aside.
fn original(policy: &Value, tool: &str, arguments: &Value) -> bool {
    let hidden = policy["hide"].as_array().is_some_and(|names| names.iter().any(|name| name == "*" || name == tool));
    let listed = policy["tools"].get(tool);
    let items = |key: &str| listed.and_then(|tool| tool[key].as_array()).into_iter().flatten();
    let all = |conditions: &Value| conditions.as_array().unwrap().iter().all(|condition| holds(condition, arguments));
    !hidden
        && listed.map_or(policy["default"] == "allow", |tool| tool["action"] != "deny")
        && items("require").all(|condition| holds(condition, arguments))
        && !items("deny_if").any(|item| all(&item["conditions"]))
}

/// Returns true if only one reading is possible: the value is missing, or of the type that the condition is about.
fn is_plain(condition: &Value, arguments: &Value) -> bool {
    fn kind(value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "map",
        }
    }
    let steps: Vec<&str> = condition["path"].as_str().unwrap().split('.').collect();
    let parents_fit = (1..steps.len()).all(|n| lookup(arguments, &steps[..n].join(".")).is_none_or(Value::is_object));
    let Some(value) = lookup(arguments, &steps.join(".")) else { return parents_fit };
    let (operator, compared) = (condition["op"].as_str().unwrap(), &condition["value"]);
    let like = |value: &Value, one: &Value| value.is_null() || one.is_null() || kind(value) == kind(one);
    match operator {
        "exists" => true,
        "eq" | "neq" => like(value, compared),
        "in" | "not_in" => compared.as_array().unwrap().iter().all(|one| like(value, one)),
        "lt" | "lte" | "gt" | "gte" => value.is_number(),
        "regex" => value.is_string(),
        "contains" => match value {
            Value::String(_) => compared.is_string(),
            Value::Array(items) => items.iter().all(|item| like(item, compared)),
            _ => false,
        },
        other => panic!("{other}"),
    }
}

/// Values of every type, with those that one reading or another takes for each other.
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
        json!(18_446_744_073_709_551_615_u64),
        json!("5"),
        json!("5.5"),
        json!("true"),
        json!("a"),
        json!("a 5"),
        json!(""),
        json!("[a]"),
        json!([]),
        json!(["a"]),
        json!([5, "a"]),
        json!(["5", null]),
        json!([[5.0]]),
        json!({}),
        json!({"b": 5}),
        json!({"b": {"x-y": "a"}, "x-y": "a"}),
        json!({"a": true}),
        json!(["x-y"]),
    ]
}

/// Values that conditions compare with. Not among them is what only a printer takes for something else: `<nil>`, and lists
/// beside texts in one list.
fn compared(operator: &str) -> Vec<Value> {
    let numbers = || vec![json!(5), json!(5.0), json!(5.5), json!(-3), json!(0)];
    match operator {
        "exists" => vec![json!(true), json!(false)],
        "lt" | "lte" | "gt" | "gte" => numbers(),
        "regex" => vec![json!("^a"), json!(r"\d")],
        "in" | "not_in" => vec![
            json!([]),
            json!([null]),
            json!(["a", "5"]),
            json!([5, 5.5]),
            json!([5, "a"]),
            json!(["5", -3]),
            json!([true, "a", 0]),
            json!(["true", false]),
            json!(["5.5", null, 5.0]),
            json!([["a"], {"b": 5}]),
        ],
        _ => values().into_iter().filter(|value| value.as_u64() != Some(u64::MAX)).collect(),
    }
}

const OPERATORS: [&str; 11] = ["eq", "neq", "in", "not_in", "lt", "lte", "gt", "gte", "regex", "contains", "exists"];

/// Every operator with every operand against every value, missing included, for both kinds of rule: 12 000 decisions.
#[test]
fn every_operator_admits_no_more_than_the_original_and_no_less_where_it_is_plain() {
    let mut arguments: Vec<Value> = values().into_iter().map(|value| json!({"p": value})).collect();
    arguments.push(json!({}));
    for operator in OPERATORS {
        for value in compared(operator) {
            let condition = json!({"path": "args.p", "op": operator, "value": value});
            let rules = json!({
                "require": {"require": [condition]},
                "deny_if": {"deny_if": [{"conditions": [condition]}]},
            });
            let policy = json!({"version": "1", "default": "deny", "tools": rules});
            let engine = engine(&policy);
            for arguments in &arguments {
                for tool in ["require", "deny_if"] {
                    let (ours, theirs) = (allows(&engine, tool, arguments, 0), original(&policy, tool, arguments));
                    assert!(!ours || theirs, "{tool} {condition} admits {arguments}");
                    assert!(ours || !theirs || !is_plain(&condition, arguments), "{tool} {condition} denies {arguments}");
                }
            }
        }
    }
}

#[test]
fn a_missing_path_fails_every_operator_but_exists() {
    for operator in OPERATORS.into_iter().filter(|operator| *operator != "exists") {
        for path in ["args.p", "args.p.q", "args.p-q", "args.p.q-r.s", "args.in.null"] {
            let condition = json!({"path": path, "op": operator, "value": compared(operator)[0]});
            let rules = json!({"r": {"require": [condition]}, "d": {"deny_if": [{"conditions": [condition]}]}});
            let engine = engine(&json!({"version": "1", "default": "deny", "tools": rules}));
            for arguments in [json!({}), json!({"q": 1, "other": {"p": 2}})] {
                assert!(!allows(&engine, "r", &arguments, 0), "{condition}");
                assert!(allows(&engine, "d", &arguments, 0), "{condition}");
            }
        }
    }
}

#[test]
fn values_of_another_type_count_against_the_call() {
    let rules = json!({
        "is": {"require": [{"path": "args.p", "op": "eq", "value": 5}]},
        "is_not": {"require": [{"path": "args.p", "op": "neq", "value": 5}]},
        "not_if": {"deny_if": [{"conditions": [{"path": "args.p", "op": "eq", "value": 5}]}]},
        "not_if_not": {"deny_if": [{"conditions": [{"path": "args.p", "op": "neq", "value": 5}]}]},
    });
    let engine = engine(&json!({"version": "1", "default": "deny", "tools": rules}));
    let who = |value: Value| {
        let tools = ["is", "is_not", "not_if", "not_if_not"];
        tools.into_iter().filter(|tool| allows(&engine, tool, &json!({"p": value}), 0)).collect::<Vec<_>>()
    };
    assert_eq!(who(json!(5)), ["is", "not_if_not"]);
    assert_eq!(who(json!(5.0)), ["is", "not_if_not"]);
    assert_eq!(who(json!(6)), ["is_not", "not_if"]);
    assert_eq!(who(json!("5")), [""; 0]);
    assert_eq!(who(json!([5])), [""; 0]);
    assert_eq!(who(json!(null)), ["is_not", "not_if"]);
}

#[test]
fn any_name_that_a_tool_can_have_is_imported_as_it_is() {
    let names = [
        "send invoice",
        " pay ",
        "Rückfrage",
        "予定を検索",
        "a/b:c (d)",
        r"C:\dir",
        "what?",
        "on",
        "1_000",
        "y",
        "\"'#{}[]&!%@`",
        "🙂",
    ];
    for name in names {
        for (policy, allowed) in [
            (json!({"version": "1", "default": "deny", "tools": {name: {}}}), true),
            (json!({"version": "1", "default": "allow", "hide": [name]}), false),
        ] {
            let engine = engine(&policy);
            assert_eq!(allows(&engine, name, &json!({}), 0), allowed, "{name}");
            assert_eq!(allows(&engine, &format!("{name}x"), &json!({}), 0), !allowed, "{name}");
            let yaml = import(&policy.to_string(), &options()).unwrap().to_yaml();
            let quoted = read_documents("imported.yaml", &yaml).unwrap()[0].unquoted().is_empty();
            assert!(quoted, "{yaml}");
        }
    }
}

/// A null is no number, text or list in any reading.
#[test]
fn a_null_for_what_was_left_out_does_not_set_off_a_condition_on_numbers_texts_or_lists() {
    for (operator, value) in [
        ("lt", json!(5)),
        ("gte", json!(-5)),
        ("regex", json!("a*")),
        ("contains", json!("x")),
        ("contains", json!(5)),
        ("eq", json!("x")),
        ("in", json!([1, "x"])),
    ] {
        let condition = json!({"path": "args.p", "op": operator, "value": value});
        let rules = json!({"forbidden": {"deny_if": [{"conditions": [condition]}]}, "required": {"require": [condition]}});
        let engine = engine(&json!({"version": "1", "default": "deny", "tools": rules}));
        for arguments in [json!({}), json!({"p": null})] {
            assert!(allows(&engine, "forbidden", &arguments, 0), "{condition} {arguments}");
            assert!(!allows(&engine, "required", &arguments, 0), "{condition} {arguments}");
        }
    }
}

#[test]
fn patterns_are_those_of_go() {
    for (pattern, yes, no) in [
        (r"^\d+$", "12", "١٢"),
        (r"^\w+$", "a_1", "é"),
        (r"^\S$", "\u{a0}", " "),
        (r"\Bcd\b", "abcd", "cd"),
        ("b.d", "abcde", "b\nd"),
        ("^[[a]b]$", "[b]", "a"),
        ("^[a&&b]$", "&", "ab"),
        (r"^[\w-.]+$", "a-b.c", "a`b"),
        ("a{,2}", "a{,2}", "aa"),
        (r"\<b\>", "<b>", "b"),
        ("(?i)^SELECT", "select 1", "x select"),
        (r#"""#, r#"a"b"#, "ab"),
        (r"\\", r"a\b", "ab"),
    ] {
        let rules = json!({"t": {"require": [{"path": "args.p", "op": "regex", "value": pattern}]}});
        let engine = engine(&json!({"version": "1", "default": "deny", "tools": rules}));
        assert!(allows(&engine, "t", &json!({"p": yes}), 0), "{pattern} {yes}");
        assert!(!allows(&engine, "t", &json!({"p": no}), 0), "{pattern} {no}");
    }
}

#[test]
fn what_is_hidden_can_neither_be_seen_nor_called() {
    let policy =
        |hide: Value| json!({"version": "1", "default": "allow", "hide": hide, "tools": {"a": {}, "b": {"action": "allow"}}});
    let seen = |hide: Value| {
        let engine = engine(&policy(hide));
        let tools = ["a", "b", "c"].into_iter().filter(|tool| {
            assert_eq!(engine.may_use("bank", Operation::tool(tool), None), allows(&engine, tool, &json!({}), 0));
            engine.may_use("bank", Operation::tool(tool), None)
        });
        tools.collect::<Vec<_>>()
    };
    assert_eq!(seen(json!([])), ["a", "b", "c"]);
    assert_eq!(seen(json!(["b", "c"])), ["a"]);
    assert_eq!(seen(json!(["*"])), [""; 0]);
    assert_eq!(seen(json!("*")), [""; 0]);
}

#[test]
fn a_counter_is_shared_by_its_name_and_window() {
    let limit = |max: u32, window: &str| json!([{"counter": "money", "window": window, "max": max, "scope": "grant"}]);
    let rules =
        json!({"a": {"limits": limit(3, "minute")}, "b": {"limits": limit(2, "minute")}, "c": {"limits": limit(1, "hour")}});
    let engine = engine(&json!({"version": "1", "default": "deny", "tools": rules}));
    let calls = ["a", "b", "b", "a", "a", "c", "c"].map(|tool| allows(&engine, tool, &json!({}), 0));
    assert_eq!(calls, [true, true, false, true, false, true, false]);
}

/// Each wrong place of a policy, and a word of what is said there.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_error_names_its_place() {
    let tool = |body: &str| format!(r#"{{"version": "1", "default": "deny", "tools": {{"t": {body}}}}}"#);
    let require = |body: &str| tool(&format!(r#"{{"require": [{body}]}}"#));
    let when =
        |body: &str| tool(&format!(r#"{{"deny_if": [{{"conditions": [{{"path": "args.ok", "op": "exists"}}, {body}]}}]}}"#));
    let limit = |body: &str| tool(&format!(r#"{{"limits": [{body}]}}"#));
    let long = "x".repeat(600);
    let rule = |number: usize| format!(r#"{{"path": "args.p", "op": "neq", "value": {number}, "on_deny": "{number}"}}"#);
    let rules: Vec<String> = (0..17).map(rule).collect();
    let counted = |number: usize| format!(r#"{{"counter": "c{number}", "window": "day", "max": 1, "scope": "grant"}}"#);
    let limits: Vec<String> = (0..17).map(counted).collect();
    let names: Vec<String> = (0..1025).map(|number| format!(r#""t{number}""#)).collect();
    let texts: Vec<String> = (0..300).map(|number| format!(r#""text{number}""#)).collect();
    let table: Vec<(String, &str, &str)> = vec![
        (String::new(), "policy", "holds no policy"),
        ("{".into(), "line 1, column 2", "not JSON"),
        ("{\n  \"version\": \"1\",\n  oops}".into(), "line 3, column 3", "not JSON"),
        (r#"{"version": "1", "default": "deny"} x"#.into(), "line 1, column 37", "goes on"),
        (r#"{"version": "\ud800"}"#.into(), "line 1, column 13", "surrogate"),
        ("\u{feff}{}".into(), "policy", "byte-order mark"),
        (format!("{}1{}", "[".repeat(200), "]".repeat(200)), "policy", "128"),
        ("[]".into(), "policy", "a list; write an object"),
        (r#"{"default": "deny"}"#.into(), "version", "missing"),
        (r#"{"version": 1, "default": "deny"}"#.into(), "version", "in quotes"),
        (r#"{"version": "2", "default": "deny"}"#.into(), "version", "`2`"),
        (r#"{"version": "1"}"#.into(), "default", "missing"),
        (r#"{"version": "1", "default": "audit"}"#.into(), "default", "`audit`"),
        (r#"{"version": "1", "default": null}"#.into(), "default", "is null"),
        (r#"{"version": "1", "default": "deny", "default": "allow"}"#.into(), "default", "twice"),
        (r#"{"version": "1", "default": "deny", "\u0064efault": "allow"}"#.into(), "default", "twice"),
        (r#"{"version": "1", "default": "deny", "rules": []}"#.into(), "rules", "not known"),
        (r#"{"version": "1", "default": "deny", "a b": []}"#.into(), "[\"a b\"]", "not known"),
        (r#"{"version": "1", "default": "deny", "hide": "t"}"#.into(), "hide", "list of names"),
        (r#"{"version": "1", "default": "deny", "hide": [1]}"#.into(), "hide[0]", "string"),
        (r#"{"version": "1", "default": "deny", "hide": ["a", "get_*"]}"#.into(), "hide[1]", "has a `*`"),
        (r#"{"version": "1", "default": "deny", "hide": [""]}"#.into(), "hide[0]", "no name"),
        (format!(r#"{{"version": "1", "default": "deny", "hide": [{}]}}"#, names.join(",")), "tools", "1025"),
        (r#"{"version": "1", "default": "deny", "all_tools": {"require": []}}"#.into(), "all_tools.require", "not known"),
        (r#"{"version": "1", "default": "deny", "all_tools": {"limits": {}}}"#.into(), "all_tools.limits", "a list"),
        (
            r#"{"version": "1", "default": "deny", "all_tools": {"limits": [{"counter": "c", "window": "day", "max": 0, "scope": "grant"}]}}"#.into(),
            "all_tools.limits[0].max",
            "1 or more",
        ),
        (r#"{"version": "1", "default": "deny", "tools": []}"#.into(), "tools", "an object"),
        (r#"{"version": "1", "default": "deny", "tools": {"a b*": {}}}"#.into(), "tools[\"a b*\"]", "`\\*` for a `*` of the name"),
        (r#"{"version": "1", "default": "deny", "hide": ["a\tb"]}"#.into(), "hide[0]", "control character"),
        (format!(r#"{{"version": "1", "default": "deny", "hide": ["{long}"]}}"#), "hide[0]", "600 bytes; from 1 to 512"),
        (r#"{"version": "1", "default": "deny", "tools": {"*": {}}}"#.into(), "tools[\"*\"]", "all_tools"),
        (r#"{"version": "1", "default": "deny", "tools": {"a.b": {"x": 1}}}"#.into(), "tools[\"a.b\"].x", "not known"),
        (tool("null"), "tools.t", "is null"),
        (tool(r#"{"action": "require_approval"}"#), "tools.t.action", "allow and deny"),
        (tool(r#"{"reason": 1}"#), "tools.t.reason", "string"),
        (tool(&format!(r#"{{"reason": "{long}"}}"#)), "tools.t.reason", "600"),
        (tool(r#"{"reason": "\u0007"}"#), "tools.t.reason", "control"),
        (tool(r#"{"rules": []}"#), "tools.t.rules", "not known"),
        (tool(r#"{"require": {}}"#), "tools.t.require", "a list"),
        (tool(&format!(r#"{{"require": [{}]}}"#, rules.join(","))), "tools.t", "17 conditions"),
        (require("1"), "tools.t.require[0]", "an object"),
        (require("{}"), "tools.t.require[0].path", "missing"),
        (require("{}"), "tools.t.require[0].op", "missing"),
        (require(r#"{"path": "args.p", "op": "eq"}"#), "tools.t.require[0].value", "missing"),
        (require(r#"{"path": "args.p", "op": "eq", "value": 1, "case": 1}"#), "tools.t.require[0].case", "not known"),
        (require(r#"{"conditions": []}"#), "tools.t.require[0].conditions", "not known"),
        (require(r#"{"path": "args.p", "op": "eq", "value": 1, "on_deny": 1}"#), "tools.t.require[0].on_deny", "string"),
        (
            require(&format!(r#"{{"path": "args.p", "op": "exists", "on_deny": "{long}"}}"#)),
            "tools.t.require[0].on_deny",
            "600",
        ),
        (require(r#"{"path": 1, "op": "exists"}"#), "tools.t.require[0].path", "string"),
        (require(r#"{"path": "args", "op": "exists"}"#), "tools.t.require[0].path", "args.amount"),
        (require(r#"{"path": "state.t.count", "op": "lte", "value": 5}"#), "tools.t.require[0].path", "limits"),
        (require(r#"{"path": "args.", "op": "exists"}"#), "tools.t.require[0].path", "empty step"),
        (require(r#"{"path": "args.a..b", "op": "exists"}"#), "tools.t.require[0].path", "empty step"),
        (require(r#"{"path": "args.a[0]", "op": "exists"}"#), "tools.t.require[0].path", "brackets"),
        (require(r#"{"path": "args.a.0", "op": "exists"}"#), "tools.t.require[0].path", "list"),
        (require(r#"{"path": "args.*", "op": "exists"}"#), "tools.t.require[0].path", "`*`"),
        (require(r#"{"path": "args.p", "op": "startsWith", "value": ""}"#), "tools.t.require[0].op", "`startsWith`"),
        (require(r#"{"path": "args.p", "op": 1, "value": ""}"#), "tools.t.require[0].op", "string"),
        (require(r#"{"path": "args.p", "op": "in", "value": "a"}"#), "tools.t.require[0].value", "a list"),
        (require(r#"{"path": "args.p", "op": "in", "value": [1, 1e17]}"#), "tools.t.require[0].value[1]", "2^53"),
        (require(r#"{"path": "args.p", "op": "eq", "value": 1e999}"#), "tools.t.require[0].value", "2^53"),
        (require(r#"{"path": "args.p", "op": "eq", "value": {"a": [9007199254740993]}}"#), "tools.t.require[0].value.a[0]", "2^53"),
        (require(r#"{"path": "args.p", "op": "eq", "value": {"a": 1, "a": 2}}"#), "tools.t.require[0].value.a", "twice"),
        (require(r#"{"path": "args.p", "op": "lt", "value": "5"}"#), "tools.t.require[0].value", "a number"),
        (require(r#"{"path": "args.p", "op": "exists", "value": "yes"}"#), "tools.t.require[0].value", "true or false"),
        (require(r#"{"path": "args.p", "op": "regex", "value": 5}"#), "tools.t.require[0].value", "pattern"),
        (require(r#"{"path": "args.p", "op": "regex", "value": "("}"#), "tools.t.require[0].value", "does not compile"),
        (require(r#"{"path": "args.p", "op": "regex", "value": "(?=a)"}"#), "tools.t.require[0].value", "(?="),
        (require(r#"{"path": "args.p", "op": "regex", "value": "\\pL{1000}"}"#), "tools.t.require[0].value", "is too large"),
        (
            require(&format!(r#"{{"path": "args.p", "op": "in", "value": [{}]}}"#, texts.join(","))),
            "tools.t.require[0]",
            "split it",
        ),
        (tool(r#"{"deny_if": [{"path": "args.p", "op": "exists"}]}"#), "tools.t.deny_if[0].conditions", "missing"),
        (tool(r#"{"deny_if": [{"path": "args.p", "op": "exists"}]}"#), "tools.t.deny_if[0].path", "not known"),
        (tool(r#"{"deny_if": [{"conditions": []}]}"#), "tools.t.deny_if[0].conditions", "is empty"),
        (tool(r#"{"deny_if": [{"conditions": {}}]}"#), "tools.t.deny_if[0].conditions", "a list"),
        (tool(r#"{"deny_if": [{"conditions": [{"path": "args.p", "op": "exists"}], "on_deny": "\u0000"}]}"#), "tools.t.deny_if[0].on_deny", "control"),
        (when(r#"{"path": "args.p", "op": "like", "value": 1}"#), "tools.t.deny_if[0].conditions[1].op", "`like`"),
        (when(r#"{"path": "args.p", "op": "exists", "on_deny": ""}"#), "tools.t.deny_if[0].conditions[1].on_deny", "not known"),
        (tool(&format!(r#"{{"limits": [{}]}}"#, limits.join(","))), "tools.t.limits", "17"),
        (limit("{}"), "tools.t.limits[0].counter", "missing"),
        (limit("{}"), "tools.t.limits[0].window", "missing"),
        (limit("{}"), "tools.t.limits[0].max", "missing"),
        (limit("{}"), "tools.t.limits[0].scope", "missing"),
        (limit(r#"{"counter": "c", "window": "week", "max": 1, "scope": "grant"}"#), "tools.t.limits[0].window", "`week`"),
        (limit(r#"{"counter": "c", "window": 60, "max": 1, "scope": "grant"}"#), "tools.t.limits[0].window", "string"),
        (limit(r#"{"counter": "c", "window": "day", "max": 1, "scope": "user"}"#), "tools.t.limits[0].scope", "`user`"),
        (limit(r#"{"counter": "c", "window": "day", "max": -1, "scope": "grant"}"#), "tools.t.limits[0].max", "\"deny\""),
        (limit(r#"{"counter": "c", "window": "day", "max": 1.5, "scope": "grant"}"#), "tools.t.limits[0].max", "whole"),
        (limit(r#"{"counter": "c", "window": "day", "max": "1", "scope": "grant"}"#), "tools.t.limits[0].max", "whole"),
        (limit(r#"{"counter": "c", "window": "day", "max": 9e15, "scope": "grant"}"#), "tools.t.limits[0].max", "1000000000000"),
        (limit(r#"{"counter": "", "window": "day", "max": 1, "scope": "grant"}"#), "tools.t.limits[0].counter", "0 bytes"),
        (limit(r#"{"counter": "c", "window": "day", "max": 1, "scope": "grant", "increment": 2}"#), "tools.t.limits[0].increment", "not known"),
        (tool(&format!(r#"{{"limits": [{0}, {0}]}}"#, counted(1))), "tools.t.limits[1].counter", "tools.t.limits[0]"),
        (
            format!(
                r#"{{"version": "1", "default": "deny", "all_tools": {{"limits": [{0}]}}, "tools": {{"t": {{"limits": [{0}]}}}}}}"#,
                counted(1)
            ),
            "tools.t.limits[0].counter",
            "all_tools.limits[0]",
        ),
        (tool(r#"{"rate_limit": "10/hour"}"#), "tools.t.rate_limit", "an object"),
        (tool(r#"{"rate_limit": {"max": 1}}"#), "tools.t.rate_limit.window", "missing"),
        (tool(r#"{"rate_limit": {"window": 60}}"#), "tools.t.rate_limit.max", "missing"),
        (tool(r#"{"rate_limit": {"max": 0, "window": 60}}"#), "tools.t.rate_limit.max", "1 or more"),
        (tool(r#"{"rate_limit": {"max": 1, "window": 0}}"#), "tools.t.rate_limit.window", "31 days"),
        (tool(r#"{"rate_limit": {"max": 1, "window": -60}}"#), "tools.t.rate_limit.window", "31 days"),
        (tool(r#"{"rate_limit": {"max": 1, "window": 9999999}}"#), "tools.t.rate_limit.window", "31 days"),
        (tool(r#"{"rate_limit": {"max": 1, "window": 0.5}}"#), "tools.t.rate_limit.window", "whole"),
        (tool(r#"{"rate_limit": {"max": 1, "window": "minute"}}"#), "tools.t.rate_limit.window", "whole"),
    ];
    for (policy, path, what) in table {
        let found = errors(&policy);
        let told = found.iter().any(|error| error.path == path && error.message.contains(what));
        assert!(told, "{path} with {what:?} is not in {found:?}");
        for error in found {
            assert_eq!(error.to_string(), format!("{}: {}", error.path, error.message));
            assert!(!error.to_string().contains('\n') && error.message.len() < 600, "{error}");
        }
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let text = r#"{"version": "2", "default": "x", "hide": ["a*b"], "extra": 1, "tools": {
        "t": {"require": [{"path": "a", "op": "b", "value": 1}], "limits": [{"counter": "c", "window": "week", "max": 0, "scope": "all"}]}}}"#;
    let found: BTreeSet<String> = errors(text).into_iter().map(|error| error.path).collect();
    let expected = [
        "default",
        "extra",
        "hide[0]",
        "tools.t.limits[0].max",
        "tools.t.limits[0].scope",
        "tools.t.limits[0].window",
        "tools.t.require[0].op",
        "tools.t.require[0].path",
        "version",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

fn condition() -> impl Strategy<Value = Value> {
    let paths = vec!["args.a", "args.b", "args.a.b", "args.x-y", "args.a.x-y", "args.a.b.x-y", "args.b.a"];
    (select(paths), select(&OPERATORS[..]), any::<Index>()).prop_map(|(path, operator, which)| {
        let compared = compared(operator);
        json!({"path": path, "op": operator, "value": which.get(&compared)})
    })
}

fn rules() -> impl Strategy<Value = Value> {
    let deny_if = prop::collection::vec(condition(), 1..4).prop_map(|conditions| json!({"conditions": conditions}));
    let parts = (prop::collection::vec(condition(), 0..3), prop::collection::vec(deny_if, 0..3), 0..6);
    parts.prop_map(|(require, deny_if, action)| {
        let mut rules = json!({"require": require, "deny_if": deny_if});
        match action {
            0 => rules["action"] = "deny".into(),
            1 => rules["action"] = "allow".into(),
            _ => {}
        }
        rules
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let hide = prop_oneof![8 => subsequence(vec!["t", "u", "v"], 0..2), 1 => Just(vec!["*"])];
    (select(vec!["allow", "deny"]), hide, rules(), prop::option::of(rules())).prop_map(|(default, hide, t, u)| {
        let mut tools = json!({"t": t});
        if let Some(u) = u {
            tools["u"] = u;
        }
        json!({"version": "1", "default": default, "hide": hide, "tools": tools})
    })
}

fn arguments() -> impl Strategy<Value = Value> {
    let member = (select(vec!["a", "b", "x-y"]), select(values()));
    prop::collection::vec(member, 0..3).prop_map(|members| {
        members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
    })
}

fn limits() -> impl Strategy<Value = Value> {
    let limit = (select(vec!["c", "d", "e"]), select(vec!["minute", "hour"]), 1..6_u32);
    prop::collection::vec(limit, 0..3).prop_map(|limits| {
        let mut seen = BTreeSet::new();
        let unlike = limits.into_iter().filter(|(counter, window, _)| seen.insert((*counter, *window)));
        unlike.map(|(counter, window, max)| json!({"counter": counter, "window": window, "max": max, "scope": "grant"})).collect()
    })
}

proptest! {
    /// The import never admits a call that the original denies, and denies no other where each condition is plain.
    #[test]
    fn the_import_never_admits_more(policy in policy(), calls in prop::collection::vec(arguments(), 1..8)) {
        let engine = engine(&policy);
        for arguments in calls {
            for tool in ["t", "u", "v"] {
                let (ours, theirs) = (allows(&engine, tool, &arguments, 0), original(&policy, tool, &arguments));
                prop_assert!(!ours || theirs, "{tool} {arguments} is denied by {policy}");
                let rules = &policy["tools"][tool];
                let require = rules["require"].as_array().into_iter().flatten();
                let deny_if = rules["deny_if"].as_array().into_iter().flatten();
                let mut conditions = require.chain(deny_if.flat_map(|item| item["conditions"].as_array().unwrap()));
                if conditions.all(|condition| is_plain(condition, &arguments)) {
                    prop_assert_eq!(ours, theirs, "{} {} by {}", tool, arguments, policy);
                }
            }
        }
    }

    /// In no window of the clock does the import let through more than the original.
    #[test]
    fn the_import_never_counts_less(
        all in limits(),
        t in limits(),
        u in limits(),
        calls in prop::collection::vec((0..2_usize, 0..40_u64), 1..200),
    ) {
        let apply: Vec<Vec<&Value>> =
            [&t, &u].iter().map(|own| all.as_array().unwrap().iter().chain(own.as_array().unwrap()).collect()).collect();
        let keys = |limits: &[&Value]| limits.iter().map(|limit| (limit["counter"].clone(), limit["window"].clone())).map(|key| format!("{key:?}")).collect::<BTreeSet<_>>().len();
        prop_assume!(apply.iter().all(|limits| keys(limits) == limits.len()));
        let engine = engine(&json!({
            "version": "1", "default": "deny", "all_tools": {"limits": all}, "tools": {"t": {"limits": t}, "u": {"limits": u}},
        }));
        let mut counts = std::collections::HashMap::new();
        let mut now = 0;
        for (tool, pause) in calls {
            now += pause * 1_000_000_000;
            if !allows(&engine, ["t", "u"][tool], &json!({}), now) {
                continue;
            }
            for limit in &apply[tool] {
                let seconds = if limit["window"] == "minute" { 60 } else { 3600 };
                let window = now / 1_000_000_000 / seconds;
                let count = counts.entry((limit["counter"].to_string(), seconds, window)).or_insert(0_u64);
                *count += 1;
                prop_assert!(*count <= limit["max"].as_u64().unwrap(), "{limit} at {now}");
            }
        }
    }

    /// Any text is itself after JSON, CEL and YAML.
    #[test]
    fn texts_stay_what_they_are(text in any::<String>(), key in "[^.\\[\\]*\\x00]{1,12}") {
        prop_assume!(text.len() < 200 && !key.bytes().all(|b| b.is_ascii_digit()));
        let condition = json!({"path": format!("args.{key}"), "op": "eq", "value": text});
        let engine = engine(&json!({"version": "1", "default": "deny", "tools": {"t": {"require": [condition]}}}));
        let [same, other] = [text.clone(), format!("{text}.")].map(|text| allows(&engine, "t", &json!({key.clone(): text}), 0));
        prop_assert!(same && !other);
    }

    /// Whatever is thrown at it: an answer, and one that holds together.
    #[test]
    fn no_text_is_too_strange(
        text in prop_oneof![
            any::<String>(),
            "[\\[\\]{}:,\"\\\\a-z0-9 .*-]{0,80}",
            (policy(), any::<Index>(), any::<Index>(), ".{0,4}").prop_map(|(policy, from, to, new)| {
                let text: Vec<char> = policy.to_string().chars().collect();
                let (from, to) = (from.index(text.len()), to.index(text.len()).min(text.len()));
                let (from, to) = (from.min(to), from.max(to).min(from + 20));
                text[..from].iter().copied().chain(new.chars()).chain(text[to.max(from)..].iter().copied()).collect()
            }),
        ],
    ) {
        match import(&text, &options()) {
            Ok(imported) => {
                let (_, problems) = Engine::compile(&[imported.document.into()], Memory::new(1), &CompileOptions::default());
                prop_assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{:?}", problems);
            }
            Err(errors) => prop_assert!(!errors.is_empty() && errors.iter().all(|error| !error.path.is_empty())),
        }
    }

    /// Patterns are translated into what the engine compiles, or refused.
    #[test]
    fn no_pattern_is_too_strange(pattern in "[\\[\\]\\\\^$(){}?*+|.:,<>&~P=!imsU a-e0-9wdsWDSbBpx-]{0,24}") {
        let rules = json!({"t": {"require": [{"path": "args.p", "op": "regex", "value": pattern}]}});
        let text = json!({"version": "1", "default": "deny", "tools": rules}).to_string();
        if let Err(errors) = import(&text, &options()) {
            prop_assert!(errors.iter().all(|error| error.path == "tools.t.require[0].value"), "{errors:?}");
        }
    }
}

/// Deep and wide policies end in an answer too.
#[test]
fn size_is_no_danger() {
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let text = |value: &str| {
        format!(
            r#"{{"version": "1", "default": "deny", "tools": {{"t": {{"require": [{{"path": "args.p", "op": "eq", "value": {value}}}]}}}}}}"#
        )
    };
    import(&text(&nested(20)), &options()).unwrap();
    assert_eq!(errors(&text(&nested(110)))[0].path, "tools.t.require[0]");
    let pattern = text(&format!("\"{}\"", "a?".repeat(1_000_000))).replace("\"eq\"", "\"regex\"");
    assert_eq!(errors(&pattern)[0].path, "tools.t.require[0].value");
    let wide = format!("[{}1]", "\"a\",1,".repeat(200_000));
    assert_eq!(errors(&text(&wide))[0].path, "tools.t.require[0]");
    for (steps, place) in [(1000, "tools.t.require[0]"), (100_000, "tools.t.require[0].path")] {
        let deep = text("1").replace(".p", &".a".repeat(steps));
        assert_eq!(errors(&deep)[0].path, place);
    }
    let many: Vec<String> = (0..50_000).map(|number| format!("\"t{number}\": {{}}")).collect();
    let names: Vec<String> = (0..50_000).map(|number| format!("\"t{number}\"")).collect();
    let tools =
        format!(r#"{{"version": "1", "default": "deny", "hide": [{}], "tools": {{{}}}}}"#, names.join(","), many.join(","));
    assert_eq!(errors(&tools)[0].path, "tools");
}
