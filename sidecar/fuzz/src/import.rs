//! A policy of `PolicyLayer`: what is imported compiles, and never lets through what the original turns away.

use serde_json::{Map, Value};
use toolweir_crds::read_documents;
use toolweir_engine::{Call, CompileOptions, Engine, Memory, Operation, Policy, Severity, Timestamp, json::Reader};
use toolweir_import::{ImportOptions, import};

use super::{assert_one_line, original::OriginalProxy};

/// Arguments of calls, beside those that are made of the values in the policy.
const ARGUMENTS: [&str; 6] = [
    "{}",
    r#"{"amount": 5, "currency": "EUR", "to": {"name": "ann"}, "tags": ["a", "b"], "dry_run": true}"#,
    r#"{"amount": -1.5, "currency": "", "to": null, "tags": []}"#,
    r#"{"amount": "5", "currency": ["EUR"], "to": "ann", "tags": "a"}"#,
    r#"{"amount": 1e15, "currency": "EUR\n", "to": {"name": {"first": "ann"}}, "tags": [5, null, {"a": 1}]}"#,
    r#"{"amount": null, "currency": true, "to": [{"name": "ann"}], "tags": {"a": 1}}"#,
];

/// The most calls that are made of one policy.
const CALLS: usize = 100;

/// The check.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let options = ImportOptions { server: "bank".to_owned(), url: "http://bank.svc/mcp".to_owned(), ..ImportOptions::default() };
    let imported = match import(text, &options) {
        Ok(imported) => imported,
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| assert_one_line(&error.to_string()));
            return;
        }
    };
    let yaml = imported.to_yaml();
    let read = read_documents("policy.yaml", &yaml).unwrap_or_else(|errors| panic!("{errors:?} in\n{yaml}"));
    assert_eq!(read.len(), 1);
    let policies: Vec<Policy> = read.into_iter().map(|located| located.document.into()).collect();
    let (engine, problems) = Engine::compile(&policies, Memory::new(64), &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{problems:?} in\n{yaml}");
    if text.trim_start().starts_with('{') {
        // Numbers past a double, which this reader does not take.
        let Ok(original) = serde_json::from_str::<Value>(text) else { return };
        never_looser(&original, &engine, &yaml);
    } else {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let original = serde_yaml::from_str::<Value>(text).expect("what is imported is YAML");
        never_turned_away(original, &engine, &yaml);
    }
}

/// Holds decisions against the open-source proxy, which sees the calls that pass.
fn never_turned_away(policy: Value, engine: &Engine, yaml: &str) {
    let none = Map::new();
    let tools = policy.get("tools").and_then(Value::as_object).unwrap_or(&none);
    let mut arguments: Vec<Value> =
        ARGUMENTS.iter().map(|text| serde_json::from_str(text).expect("arguments are JSON")).collect();
    for rule in tools.values().filter_map(|tool| tool["rules"].as_array()).flatten() {
        arguments.extend(made_of(&serde_json::json!({"require": rule["conditions"]})));
        if let Some(path) = rule["state"]["increment_from"].as_str() {
            arguments.extend(made_of(&serde_json::json!({"require": [{"path": path, "value": 1}]})));
        }
    }
    let names: Vec<String> = tools.keys().cloned().chain(["no_such_tool".to_owned()]).collect();
    let mut original = OriginalProxy::new(policy);
    let calls = arguments.iter().cycle().zip(names.iter().cycle()).take(CALLS);
    for (number, (arguments, tool)) in calls.enumerate() {
        let text = arguments.to_string();
        let raw = Reader::new(text.as_bytes()).and_then(|mut reader| reader.value()).expect("arguments are JSON");
        // Some in each minute, over more than one hour.
        let seconds = 50 + 37 * number as u64;
        let call = Call { server: "bank", operation: Operation::tool(tool), arguments: Some(raw), session: "", seen: None };
        if engine.decide(&call, Timestamp(seconds * 1_000_000_000)).denial().is_none() {
            assert!(
                original.passes(tool, arguments, seconds),
                "{tool} passes with {text}, and not in the original; imported as\n{yaml}"
            );
        }
    }
}

/// Holds decisions against the original's own meaning. Patterns are left out: there a call may pass here.
fn never_looser(original: &Value, engine: &Engine, yaml: &str) {
    let none = Map::new();
    let tools = original.get("tools").and_then(Value::as_object).unwrap_or(&none);
    let hidden = |tool: &str| match original.get("hide") {
        Some(Value::Array(names)) => names.iter().any(|name| name == "*" || name == tool),
        hide => hide.is_some_and(|hide| hide == "*"),
    };
    let mut arguments: Vec<Value> =
        ARGUMENTS.iter().map(|text| serde_json::from_str(text).expect("arguments are JSON")).collect();
    arguments.extend(tools.values().flat_map(made_of));
    let mut calls = 0;
    for tool in tools.keys().map(String::as_str).chain(["no_such_tool"]) {
        let rules = tools.get(tool);
        let allowed =
            rules.map_or(original["default"] == "allow", |rules| rules.get("action").is_none_or(|action| action == "allow"));
        for arguments in &arguments {
            calls += 1;
            if calls > CALLS {
                return;
            }
            let passes = allowed && !hidden(tool) && rules.is_none_or(|rules| conditions_hold(rules, arguments));
            let text = arguments.to_string();
            let raw = Reader::new(text.as_bytes()).and_then(|mut reader| reader.value()).expect("arguments are JSON");
            // Long after the last call, so that no limit stands in the way.
            let now = Timestamp::default().after(std::time::Duration::from_secs(100_000_000 * calls as u64));
            let call = Call { server: "bank", operation: Operation::tool(tool), arguments: Some(raw), session: "", seen: None };
            let decision = engine.decide(&call, now);
            assert!(
                passes || decision.denial().is_some(),
                "{tool} passes with {text}, and not in the original; imported as\n{yaml}"
            );
        }
        let now = Timestamp::default().after(std::time::Duration::from_secs(100_000_000 * (calls as u64 + 1)));
        let limits = rules.into_iter().chain(original.get("all_tools")).flat_map(|rules| rules.get("limits"));
        let limits = limits.filter_map(Value::as_array).flatten().chain(rules.and_then(|rules| rules.get("rate_limit")));
        let least = limits.filter_map(|limit| limit.get("max")).filter_map(Value::as_f64).fold(f64::INFINITY, f64::min);
        if least <= 20.0 {
            let call = Call { server: "bank", operation: Operation::tool(tool), arguments: None, session: "", seen: None };
            let passed = (0..25).filter(|_| engine.decide(&call, now).denial().is_none()).count();
            assert!(passed as f64 <= least, "{passed} calls of {tool} pass at once; imported as\n{yaml}");
        }
    }
}

/// Returns true if the conditions of a tool hold, in the plain reading of the original's pages.
fn conditions_hold(rules: &Value, arguments: &Value) -> bool {
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let required = list(rules, "require").iter().all(|condition| holds(condition, arguments, true));
    let denied = list(rules, "deny_if").iter().any(|item| {
        let conditions = list(item, "conditions");
        conditions.iter().all(|condition| holds(condition, arguments, false))
    });
    required && !denied
}

/// Returns true if one condition holds; `unknown` where that is not for this reader to say.
fn holds(condition: &Value, arguments: &Value, unknown: bool) -> bool {
    let path = condition["path"].as_str().unwrap_or_default();
    let mut steps = path.strip_prefix("args.").unwrap_or_default().split('.');
    let found = steps.try_fold(arguments, |value, step| value.as_object().and_then(|object| object.get(step)));
    let compared = &condition["value"];
    let operator = condition["op"].as_str().unwrap_or_default();
    if operator == "exists" {
        return found.is_some() == compared.as_bool().unwrap_or(true);
    }
    let Some(found) = found else { return false };
    let is_in = |value: &Value| compared.as_array().is_some_and(|list| list.iter().any(|item| equal(item, value)));
    let numbers = found.as_f64().zip(compared.as_f64());
    match operator {
        "eq" => equal(found, compared),
        "neq" => !equal(found, compared),
        "in" => is_in(found),
        "not_in" => !is_in(found),
        "lt" => numbers.is_some_and(|(a, b)| a < b),
        "lte" => numbers.is_some_and(|(a, b)| a <= b),
        "gt" => numbers.is_some_and(|(a, b)| a > b),
        "gte" => numbers.is_some_and(|(a, b)| a >= b),
        "contains" => match (found, compared) {
            (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
            (Value::Array(list), item) => list.iter().any(|element| equal(element, item)),
            _ => false,
        },
        _ => unknown,
    }
}

/// Equality of JSON values, in which 1 and 1.0 are one number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}

/// For each condition of a tool, arguments that lead right to it: with its value, and with a near one.
fn made_of(rules: &Value) -> Vec<Value> {
    let lists = ["require", "deny_if"].into_iter().filter_map(|key| rules.get(key)).filter_map(Value::as_array).flatten();
    let conditions = lists.flat_map(|item| match item.get("conditions").and_then(Value::as_array) {
        Some(conditions) => conditions.clone(),
        None => vec![item.clone()],
    });
    let mut made = Vec::new();
    for condition in conditions {
        let Some(steps) = condition["path"].as_str().and_then(|path| path.strip_prefix("args.")) else { continue };
        let value = &condition["value"];
        let mut values = vec![value.clone(), Value::Null, Value::String(value.to_string())];
        values.extend(value.as_array().and_then(|list| list.first().cloned()));
        values.extend(value.as_f64().and_then(|number| serde_json::Number::from_f64(number + 1.0)).map(Value::Number));
        values.extend(value.as_str().map(|text| Value::Array(vec![Value::String(text.to_owned())])));
        for value in values {
            made.push(
                steps.rsplit('.').fold(value, |inner, step| Value::Object([(step.to_owned(), inner)].into_iter().collect())),
            );
        }
    }
    made.truncate(24);
    made
}
