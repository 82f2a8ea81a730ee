//! From the tree of a policy in JSON to a server of our language.

use std::collections::HashMap;

use toolweir_crds::{Action, Limit, Scope};

use super::{
    condition::{self, Sense},
    entry::{Assembled, Check, ConvertedEntry, ConvertedLimit, Hidden, ImportOptions, PolicyParts, is_tool_name, scope, text},
    errors::Errors,
    read::{Json, Object, member, shown},
};

/// Converts a policy. What is wrong goes to `errors`, and what it gives is then incomplete.
pub(super) fn policy(root: &Json<'_>, options: &ImportOptions, errors: &mut Errors) -> Assembled {
    let mut out = Assembled::new(options);
    let Some(root) = root.object("", &["version", "default", "hide", "all_tools", "tools"], errors) else {
        return out;
    };
    version(&root, errors);
    let default = root.need("default", errors).and_then(|value| action(value, "default", errors));
    let hidden = Hidden::read(&root, errors);
    let mut every = ConvertedEntry::new("*", "all_tools");
    let scope = scope(options);
    if let Some(all_tools) = root.get("all_tools").and_then(|value| value.object("all_tools", &["limits"], errors)) {
        every.limits = limits(&all_tools, scope, errors);
    }
    let mut entries = Vec::new();
    if let Some(tools) = root.get("tools") {
        for (name, tool) in tools.members("tools", errors).unwrap_or_default() {
            let path = member("tools", name);
            if is_tool_name(name, &path, errors) {
                entries.extend(entry(name, tool, &path, scope, errors));
            }
        }
    }
    for entry in &entries {
        shared_counters(&every, entry, errors);
    }
    if entries.is_empty() {
        shared_counters(&every, &ConvertedEntry::new("", ""), errors);
    }
    out.fill(PolicyParts { default: default.unwrap_or_default(), hidden, every, entries }, errors);
    out
}

pub(super) fn version(root: &Object<'_, '_>, errors: &mut Errors) {
    match root.need("version", errors) {
        None => {}
        Some(Json::String(version)) if version == "1" => {}
        Some(Json::String(version)) => errors.at("version", format!("is `{}`; only \"1\" is known", shown(version))),
        Some(other) => errors.at("version", format!("is {}; write \"1\", in quotes", other.kind())),
    }
}

pub(super) fn action(value: &Json<'_>, path: &str, errors: &mut Errors) -> Option<Action> {
    match value.string(path, errors)? {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        other => {
            errors.at(path, format!("is `{}`; there is allow and deny", shown(other)));
            None
        }
    }
}

fn entry(name: &str, tool: &Json<'_>, path: &str, scope: Scope, errors: &mut Errors) -> Option<ConvertedEntry> {
    let tool = tool.object(path, &["action", "reason", "require", "deny_if", "limits", "rate_limit"], errors)?;
    let mut entry = ConvertedEntry::new(name, path);
    // An entry that names its tool allows it.
    let said = tool.get("action").and_then(|value| action(value, &tool.path("action"), errors));
    entry.action = said.filter(|action| *action == Action::Deny);
    entry.reason = text(&tool, "reason", errors);
    entry.checks = require(&tool, errors);
    entry.checks.extend(deny_if(&tool, errors));
    entry.limits = limits(&tool, scope, errors);
    entry.limits.extend(rate_limit(&tool, scope, errors));
    Some(entry)
}

fn require(tool: &Object<'_, '_>, errors: &mut Errors) -> Vec<Check> {
    let path = tool.path("require");
    let items = tool.get("require").and_then(|value| value.list(&path, errors)).unwrap_or_default();
    let check = |(index, item): (usize, &Json<'_>)| {
        let path = format!("{path}[{index}]");
        let [first, second, third] = condition::FIELDS;
        let item = item.object(&path, &[first, second, third, "on_deny"], errors)?;
        let message = text(&item, "on_deny", errors);
        let expression = condition::all(&condition::parts(&item, Sense::Surely, errors)?);
        condition::check(&expression, &path, errors).then_some(Check { expression, message, path })
    };
    items.iter().enumerate().filter_map(check).collect()
}

fn deny_if(tool: &Object<'_, '_>, errors: &mut Errors) -> Vec<Check> {
    let path = tool.path("deny_if");
    let items = tool.get("deny_if").and_then(|value| value.list(&path, errors)).unwrap_or_default();
    let check = |(index, item): (usize, &Json<'_>)| {
        let path = format!("{path}[{index}]");
        let item = item.object(&path, &["conditions", "on_deny"], errors)?;
        let message = text(&item, "on_deny", errors);
        let place = item.path("conditions");
        let conditions = item.need("conditions", errors)?.list(&place, errors)?;
        if conditions.is_empty() {
            errors.at(place, "is empty; write conditions, or `\"action\": \"deny\"` to forbid the tool");
            return None;
        }
        let (mut parts, mut complete) = (Vec::new(), true);
        for (index, condition) in conditions.iter().enumerate() {
            let condition = condition.object(&format!("{place}[{index}]"), &condition::FIELDS, errors);
            match condition.and_then(|condition| condition::parts(&condition, Sense::Perhaps, errors)) {
                Some(found) => parts.extend(found),
                None => complete = false,
            }
        }
        let expression = complete.then(|| condition::not_all(&parts))?;
        condition::check(&expression, &path, errors).then_some(Check { expression, message, path })
    };
    items.iter().enumerate().filter_map(check).collect()
}

fn limits(object: &Object<'_, '_>, scope: Scope, errors: &mut Errors) -> Vec<ConvertedLimit> {
    let path = object.path("limits");
    let items = object.get("limits").and_then(|value| value.list(&path, errors)).unwrap_or_default();
    let limit = |(index, item): (usize, &Json<'_>)| {
        let path = format!("{path}[{index}]");
        let item = item.object(&path, &["counter", "window", "max", "scope"], errors)?;
        let counter = item.need("counter", errors).and_then(|value| value.string(&item.path("counter"), errors));
        let window = item.need("window", errors).and_then(|value| value.string(&item.path("window"), errors));
        let window = window.and_then(|name| {
            let known = ["minute", "hour", "day"].contains(&name);
            if !known {
                errors.at(item.path("window"), format!("is `{}`; there is minute, hour and day", shown(name)));
            }
            name.parse().ok().filter(|_| known)
        });
        let max = maximum(&item, errors);
        match item.need("scope", errors).and_then(|value| value.string(&item.path("scope"), errors)) {
            None | Some("grant") => {}
            Some(other) => {
                let message = format!("is `{}`; only `grant` can be said here: one count for each agent", shown(other));
                errors.at(item.path("scope"), message);
            }
        }
        let counter = Some(counter?.to_owned());
        let limit = Limit { max: max?, window: window?, scope, key: None, cost: None, counter };
        Some(ConvertedLimit { limit, path, fields: Vec::new() })
    };
    items.iter().enumerate().filter_map(limit).collect()
}

fn maximum(object: &Object<'_, '_>, errors: &mut Errors) -> Option<i64> {
    let path = object.path("max");
    let max = object.need("max", errors)?.whole(&path, errors)?;
    if max < 1 {
        errors.at(path, format!("is {max}; write 1 or more, or `\"action\": \"deny\"` on the tool to forbid it"));
        return None;
    }
    Some(max)
}

fn rate_limit(tool: &Object<'_, '_>, scope: Scope, errors: &mut Errors) -> Option<ConvertedLimit> {
    let path = tool.path("rate_limit");
    let object = tool.get("rate_limit")?.object(&path, &["max", "window"], errors)?;
    let max = maximum(&object, errors);
    let at = object.path("window");
    let seconds = object.need("window", errors)?.whole(&at, errors)?;
    let name = match seconds {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        3600 => "hour".to_owned(),
        86400 => "day".to_owned(),
        other => format!("{other}s"),
    };
    let Ok(window) = name.parse() else {
        errors.at(at, format!("is {seconds} seconds; from 1 to 2678400 (31 days) are possible"));
        return None;
    };
    let limit = Limit { max: max?, window, scope, key: None, cost: None, counter: None };
    Some(ConvertedLimit { limit, path, fields: Vec::new() })
}

/// Two limits of one call on one counter: whether it then counts once or twice is not said anywhere.
fn shared_counters(every: &ConvertedEntry, entry: &ConvertedEntry, errors: &mut Errors) {
    let mut seen: HashMap<(&str, &str), &str> = HashMap::new();
    for ConvertedLimit { limit, path, .. } in every.limits.iter().chain(&entry.limits) {
        let Some(counter) = limit.counter.as_deref() else { continue };
        if let Some(first) = seen.insert((counter, limit.window.as_str()), path) {
            let message = format!(
                "is also the counter of {first}, and whether a call then counts once or twice is not known; \
                 give one another name"
            );
            errors.also(format!("{path}.counter"), message);
        }
    }
}
