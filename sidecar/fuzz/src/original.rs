//! The open-source proxy of `PolicyLayer`, as simple as can be: what it decides, and what it counts. Its windows begin with the minute, the
//! hour and the day of UTC; a counter is read before a call is added, and held under the first `lt` or `lte` of its rule after.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// A policy with its counts.
pub struct OriginalProxy {
    policy: Value,
    /// Of each counter the window and the sum.
    counts: HashMap<String, (u64, i64)>,
}

/// A rule with what its shorthand stands for.
struct OriginalRule<'p> {
    rule: &'p Value,
    /// The tool's name in paths of counters.
    scope: &'p str,
    conditions: Vec<Value>,
    state: Option<Value>,
}

impl OriginalProxy {
    /// A proxy with a policy that it would start with.
    pub fn new(policy: Value) -> Self {
        Self { policy, counts: HashMap::new() }
    }

    /// Decides a call at a second since 1970, and counts it where it passes. Nobody approves any.
    pub fn passes(&mut self, tool: &str, arguments: &Value, now: u64) -> bool {
        let hidden = self.policy["hide"].as_array().is_some_and(|names| names.iter().any(|name| name == "*" || name == tool));
        let listed = self.policy["tools"].get(tool).is_some();
        if hidden || (self.policy["default"] == "deny" && !listed) {
            return false;
        }
        let rules = self.rules(tool);
        let holds = |condition: &Value| self.holds(condition, arguments, now);
        let stops = |rule: &OriginalRule<'_>| match rule.rule["action"].as_str() {
            Some("deny") => true,
            Some("require_approval") => rule.conditions.iter().all(holds),
            _ => !rule.conditions.iter().all(holds),
        };
        if rules.iter().any(stops) {
            return false;
        }
        let mut reserved = Vec::new();
        for rule in &rules {
            let Some(state) = &rule.state else { continue };
            let key = format!("{}.{}", rule.scope, state["counter"].as_str().unwrap_or_default());
            let Some(amount) = amount(state, arguments) else { return false };
            let Some(limit) = limit(&rule.conditions, &key) else { continue };
            let window = now / seconds(state);
            let sum = self.counts.get(&key).filter(|(of, _)| *of == window).map_or(0, |(_, sum)| *sum);
            if sum.saturating_add(amount) > limit {
                return false;
            }
            reserved.push((key, window, sum.saturating_add(amount)));
        }
        self.counts.extend(reserved.into_iter().map(|(key, window, sum)| (key, (window, sum))));
        true
    }

    fn rules<'p>(&'p self, tool: &'p str) -> Vec<OriginalRule<'p>> {
        let tools = &self.policy["tools"];
        let named = [(tool, tool), ("*", "_global")].into_iter().filter(|(key, _)| *key == "*" || tool != "*");
        let of = |(key, scope): (&str, &'p str)| {
            let rules = tools.get(key).and_then(|tool| tool["rules"].as_array()).into_iter().flatten();
            rules.map(move |rule| spelled_out(rule, scope)).collect::<Vec<_>>()
        };
        named.flat_map(of).collect()
    }

    fn holds(&self, condition: &Value, arguments: &Value, now: u64) -> bool {
        let path = condition["path"].as_str().unwrap_or_default();
        let found = match path.strip_prefix("state.") {
            // The window is that in which the counter was last added to.
            Some(key) => Some(Value::from(self.read(key, now))),
            None => lookup(arguments, path).cloned(),
        };
        let (operator, compared) = (condition["op"].as_str().unwrap_or_default(), &condition["value"]);
        if operator == "exists" {
            return Some(found.is_some_and(|value| !value.is_null())) == compared.as_bool();
        }
        found.is_some_and(|value| compare(operator, &value, compared))
    }

    fn read(&self, key: &str, now: u64) -> i64 {
        let tools = self.policy["tools"].as_object();
        let mut states = tools.into_iter().flatten().flat_map(|(tool, _)| self.rules(tool)).filter_map(|rule| {
            let state = rule.state?;
            (format!("{}.{}", rule.scope, state["counter"].as_str()?) == key).then_some(state)
        });
        let window = states.next().map(|state| now / seconds(&state));
        self.counts.get(key).filter(|(of, _)| Some(*of) == window).map_or(0, |(_, sum)| *sum)
    }
}

fn spelled_out<'p>(rule: &'p Value, scope: &'p str) -> OriginalRule<'p> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let Some((count, window)) = rule["rate_limit"].as_str().and_then(|text| text.split_once('/')) else {
        return OriginalRule { rule, scope, conditions: list(&rule["conditions"]), state: rule.get("state").cloned() };
    };
    let count: i64 = count.parse().expect("a number of calls");
    let condition = serde_json::json!({"path": format!("state.{scope}._rate_{window}"), "op": "lte", "value": count});
    let state = serde_json::json!({"counter": format!("_rate_{window}"), "window": window});
    OriginalRule { rule, scope, conditions: vec![condition], state: Some(state) }
}

fn seconds(state: &Value) -> u64 {
    match state["window"].as_str() {
        Some("minute") => 60,
        Some("hour") => 3600,
        _ => 86400,
    }
}

/// How much a call adds; nothing where that cannot be known, which is an error.
fn amount(state: &Value, arguments: &Value) -> Option<i64> {
    match state.get("increment_from").and_then(Value::as_str) {
        // A fraction is dropped.
        Some(path) => Some(lookup(arguments, path)?.as_f64()? as i64),
        None => Some(state.get("increment").and_then(Value::as_i64).filter(|by| *by != 0).unwrap_or(1)),
    }
}

/// The most that a counter may have once a call is added.
fn limit(conditions: &[Value], key: &str) -> Option<i64> {
    let own = conditions.iter().filter(|condition| condition["path"].as_str() == Some(&format!("state.{key}")));
    own.filter_map(|condition| {
        let value = condition["value"].as_f64()? as i64;
        match condition["op"].as_str() {
            Some("lt") => Some(value - 1),
            Some("lte") => Some(value),
            _ => None,
        }
    })
    .next()
}

/// The value at a path such as `args.a.b`.
fn lookup<'v>(arguments: &'v Value, path: &str) -> Option<&'v Value> {
    path.strip_prefix("args.")?.split('.').try_fold(arguments, |value, step| value.as_object()?.get(step))
}

fn compare(operator: &str, value: &Value, compared: &Value) -> bool {
    let among = || compared.as_array().is_some_and(|list| list.iter().any(|item| equal(value, item)));
    let numbers = value.as_f64().zip(compared.as_f64());
    match operator {
        "eq" => equal(value, compared),
        "neq" => !equal(value, compared),
        "in" => among(),
        "not_in" => !among(),
        "lt" => numbers.is_some_and(|(a, b)| a < b),
        "lte" => numbers.is_some_and(|(a, b)| a <= b),
        "gt" => numbers.is_some_and(|(a, b)| a > b),
        "gte" => numbers.is_some_and(|(a, b)| a >= b),
        "regex" => value.as_str().is_some_and(|text| match compared.as_str() {
            Some("^a") => text.starts_with('a'),
            Some(r"\d") => text.contains(|c: char| c.is_ascii_digit()),
            // Others are for the tests of patterns.
            _ => true,
        }),
        "contains" => match (value, compared) {
            (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
            (Value::Array(items), item) => items.iter().any(|element| equal(element, item)),
            _ => false,
        },
        other => panic!("{other}"),
    }
}

/// Equality as it is there: of numbers as such, of all else as Go prints it.
fn equal(value: &Value, compared: &Value) -> bool {
    match (value, compared) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        // Numbers of arguments are floating, those of a policy what they are written as.
        _ => printed(value, true) == printed(compared, false),
    }
}

/// A value as Go prints it (`%v`).
fn printed(value: &Value, floating: bool) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) if number.is_f64() || floating => printed_float(number.as_f64().unwrap_or_default()),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| printed(item, floating)).collect::<Vec<_>>().join(" "))
        }
        Value::Object(members) => {
            let sorted: Map<String, Value> = members.clone();
            let mut members: Vec<String> =
                sorted.iter().map(|(key, value)| format!("{key}:{}", printed(value, floating))).collect();
            members.sort();
            format!("map[{}]", members.join(" "))
        }
    }
}

/// The fewest digits that are the number, with an exponent from a million on and below a ten thousandth.
fn printed_float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    number.to_string()
}
