//! From a policy's tree to a server of our language.

use std::collections::{BTreeMap, HashMap, HashSet};

use toolweir_crds::{Action, Limit, Scope, Server, Tool, Validation, bounds, tool_name};

use super::{
    condition::{self, Sense},
    errors::Errors,
    read::{Json, Object, member, shown},
};

/// The parts of an imported policy that the original does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The server's name, under which agents reach it.
    pub server: String,
    /// The server's url.
    pub url: String,
    /// The policy's name; that of the server where left out.
    pub name: Option<String>,
    /// The policy's namespace.
    pub namespace: Option<String>,
    /// True if there is a shared store, so that all pods of a workload count together.
    pub shared_store: bool,
}

/// The place of the original from which each place of the document comes.
#[derive(Debug, Default)]
pub(super) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// The place in the original, or the option, that a place of the document comes from.
    pub(super) fn original(&self, path: &str, options: &ImportOptions) -> String {
        match path {
            "spec.servers[0].name" => return "--server".to_owned(),
            "spec.servers[0].url" => return "--url".to_owned(),
            "metadata.name" if options.name.is_none() => return "--server".to_owned(),
            "metadata.name" => return "--name".to_owned(),
            "metadata.namespace" => return "--namespace".to_owned(),
            _ => {}
        }
        let mut end = path.len();
        loop {
            if let Some(source) = path.get(..end).and_then(|prefix| self.0.get(prefix)) {
                return format!("{source}{}", path.get(end..).unwrap_or_default());
            }
            match path.get(..end).and_then(|prefix| prefix.rfind(['.', '['])) {
                Some(at) => end = at,
                None => return "policy".to_owned(),
            }
        }
    }
}

/// An entry in the making.
struct ConvertedEntry {
    name: String,
    /// The place in the original.
    path: String,
    action: Option<Action>,
    reason: Option<String>,
    limits: Vec<(Limit, String)>,
    checks: Vec<Check>,
}

impl ConvertedEntry {
    fn new(name: &str, path: &str) -> Self {
        let (limits, checks) = (Vec::new(), Vec::new());
        Self { name: name.to_owned(), path: path.to_owned(), action: None, reason: None, limits, checks }
    }
}

/// A validation in the making.
#[derive(Clone, Debug)]
struct Check {
    expression: String,
    message: Option<String>,
    path: String,
}

/// Converts a policy. What is wrong goes to `errors`, and what it gives is then incomplete.
pub(super) fn policy(root: &Json<'_>, options: &ImportOptions, errors: &mut Errors) -> (Server, Sources) {
    let mut server = Server { name: options.server.clone(), url: Some(options.url.clone()), ..Server::default() };
    let mut sources = Sources::default();
    sources.0.insert("spec.servers[0].tools".to_owned(), "tools".to_owned());
    let Some(root) = root.object("", &["version", "default", "hide", "all_tools", "tools"], errors) else {
        return (server, sources);
    };
    version(&root, errors);
    let default = root.need("default", errors).and_then(|value| action(value, "default", errors));
    let hidden = Hidden::read(&root, errors);
    let mut every = ConvertedEntry::new("*", "all_tools");
    // A limit of the original is one count for an agent, in however many pods it runs.
    let scope = if options.shared_store { Scope::Workload } else { Scope::Pod };
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
    let hide = |entry: &mut ConvertedEntry| entry.action = Some(Action::Deny);
    let names: HashSet<&str> = hidden.names.iter().map(|(name, _)| name.as_str()).collect();
    entries.iter_mut().filter(|entry| hidden.all || names.contains(entry.name.as_str())).for_each(hide);
    let listed: HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    for (name, path) in hidden.names.iter().filter(|(name, _)| !listed.contains(name)) {
        let mut entry = ConvertedEntry::new(name, path);
        hide(&mut entry);
        entries.push(entry);
    }
    server.default_action = default.unwrap_or_default();
    if hidden.all {
        server.default_action = Action::Deny;
        hide(&mut every);
    }
    if hidden.all || !every.limits.is_empty() {
        entries.push(every);
    }
    for (index, entry) in entries.into_iter().enumerate() {
        let tool = finish(entry, &format!("spec.servers[0].tools[{index}]"), &mut sources, errors);
        server.tools.push(tool);
    }
    (server, sources)
}

fn version(root: &Object<'_, '_>, errors: &mut Errors) {
    match root.need("version", errors) {
        None => {}
        Some(Json::String(version)) if version == "1" => {}
        Some(Json::String(version)) => errors.at("version", format!("is `{}`; only \"1\" is known", shown(version))),
        Some(other) => errors.at("version", format!("is {}; write \"1\", in quotes", other.kind())),
    }
}

fn action(value: &Json<'_>, path: &str, errors: &mut Errors) -> Option<Action> {
    match value.string(path, errors)? {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        other => {
            errors.at(path, format!("is `{}`; there is allow and deny", shown(other)));
            None
        }
    }
}

/// The tools that are not to be seen.
#[derive(Default)]
struct Hidden {
    all: bool,
    /// The names, each once, and where they stand.
    names: Vec<(String, String)>,
}

impl Hidden {
    fn read(root: &Object<'_, '_>, errors: &mut Errors) -> Self {
        let mut hidden = Self::default();
        let items = match root.get("hide") {
            None => return hidden,
            Some(Json::String(star)) if star == "*" => return Self { all: true, ..hidden },
            Some(Json::List(items)) => items,
            Some(other) => {
                errors.at("hide", format!("is {}; write a list of names, or \"*\" for every tool", other.kind()));
                return hidden;
            }
        };
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("hide[{index}]");
            match item.string(&path, errors) {
                Some("*") => hidden.all = true,
                Some(name) if is_tool_name(name, &path, errors) && seen.insert(name) => {
                    hidden.names.push((name.to_owned(), path));
                }
                None | Some(_) => {}
            }
        }
        hidden
    }
}

/// Returns true if our language takes a name for that of one tool.
fn is_tool_name(name: &str, path: &str, errors: &mut Errors) -> bool {
    let problem = if name == "*" {
        "stands for every tool; write `all_tools`".to_owned()
    } else if name.contains('*') {
        "has a `*`, and whether that stands for any characters is not known of the original; leave it out here, and add an entry \
         to the imported policy, with `*` for any characters or `\\*` for a `*` of the name"
            .to_owned()
    } else if name.is_empty() || tool_name::exactly(name).len() > bounds::TOOL_NAME {
        format!("is no name of a tool: it has {} bytes; from 1 to {} are possible", name.len(), bounds::TOOL_NAME)
    } else if name.contains(char::is_control) {
        "is no name of a tool: it contains a control character; remove it".to_owned()
    } else {
        return true;
    };
    errors.at(path, problem);
    false
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

/// A text for the caller; an empty one is none.
fn text(object: &Object<'_, '_>, key: &str, errors: &mut Errors) -> Option<String> {
    let text = object.get(key)?.string(&object.path(key), errors)?;
    (!text.is_empty()).then(|| text.to_owned())
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

fn limits(object: &Object<'_, '_>, scope: Scope, errors: &mut Errors) -> Vec<(Limit, String)> {
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
        Some((Limit { max: max?, window: window?, scope, key: None, cost: None, counter }, path))
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

fn rate_limit(tool: &Object<'_, '_>, scope: Scope, errors: &mut Errors) -> Option<(Limit, String)> {
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
    Some((Limit { max: max?, window, scope, key: None, cost: None, counter: None }, path))
}

/// Two limits of one call on one counter: whether it then counts once or twice is not said anywhere.
fn shared_counters(every: &ConvertedEntry, entry: &ConvertedEntry, errors: &mut Errors) {
    let mut seen: HashMap<(&str, &str), &str> = HashMap::new();
    for (limit, path) in every.limits.iter().chain(&entry.limits) {
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

/// Joins conditions that say the same to the caller, where an entry has more than it can hold: as few at a time as it
/// takes.
fn join(checks: Vec<Check>) -> Vec<Check> {
    if checks.len() <= bounds::VALIDATIONS || checks.len() > bounds::VALIDATIONS * bounds::VALIDATIONS {
        return checks;
    }
    (2..=bounds::VALIDATIONS)
        .map(|size| join_by(&checks, size))
        .find(|joined| joined.len() <= bounds::VALIDATIONS)
        .unwrap_or(checks)
}

/// Joins up to `size` conditions of one message at a time.
fn join_by(checks: &[Check], size: usize) -> Vec<Check> {
    let mut joined: Vec<Check> = Vec::new();
    let mut open: HashMap<Option<&str>, (usize, usize)> = HashMap::new();
    for check in checks {
        let (index, count) = open.entry(check.message.as_deref()).or_insert((0, size));
        let both = joined.get(*index).map(|last| format!("{} && {}", last.expression, check.expression));
        let fits = both.filter(|both| *count < size && condition::is_fit(both));
        if let Some((both, last)) = fits.zip(joined.get_mut(*index)) {
            last.expression = both;
            *count += 1;
        } else {
            (*index, *count) = (joined.len(), 1);
            joined.push(check.clone());
        }
    }
    joined
}

fn finish(entry: ConvertedEntry, target: &str, sources: &mut Sources, errors: &mut Errors) -> Tool {
    let every = entry.name == "*";
    let name = if every { entry.name } else { tool_name::exactly(&entry.name) };
    let mut tool = Tool { name, action: entry.action, reason: entry.reason, ..Tool::default() };
    sources.0.insert(target.to_owned(), entry.path.clone());
    for (index, (limit, path)) in entry.limits.into_iter().enumerate() {
        sources.0.insert(format!("{target}.limits[{index}]"), path);
        tool.limits.push(limit);
    }
    let many = entry.checks.len();
    let checks = join(entry.checks);
    if checks.len() > bounds::VALIDATIONS {
        let most = bounds::VALIDATIONS;
        errors.at(&entry.path, format!("has {many} conditions, which do not fit into the {most} validations of an entry"));
        return tool;
    }
    for (index, check) in checks.into_iter().enumerate() {
        let place = format!("{target}.validations[{index}]");
        sources.0.insert(format!("{place}.message"), format!("{}.on_deny", check.path));
        sources.0.insert(format!("{place}.expression"), check.path);
        tool.validations.push(Validation { expression: check.expression, message: check.message });
    }
    tool
}
