//! The parts that the policies of both formats are put together from: names, entries, and the places that they come from.

use std::collections::{BTreeMap, HashMap, HashSet};

use toolweir_crds::{Action, DefaultActions, Limit, Scope, Server, Tool, Validation, bounds, tool_name};

use super::{
    approval::ConvertedApproval,
    condition,
    errors::Errors,
    read::{Json, Object},
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
#[derive(Debug)]
pub(super) struct ConvertedEntry {
    name: String,
    /// The place in the original.
    path: String,
    pub(super) action: Option<Action>,
    pub(super) reason: Option<String>,
    /// The place of the reason, where it is no field of the entry.
    pub(super) reason_path: Option<String>,
    pub(super) limits: Vec<ConvertedLimit>,
    pub(super) checks: Vec<Check>,
    pub(super) approval: Option<ConvertedApproval>,
    /// What became of which rule, each one line.
    pub(super) notes: Vec<String>,
}

impl ConvertedEntry {
    pub(super) fn new(name: &str, path: &str) -> Self {
        let (limits, checks, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            action: None,
            reason: None,
            reason_path: None,
            limits,
            checks,
            approval: None,
            notes,
        }
    }

    fn hide(&mut self, path: &str) {
        self.action = Some(Action::Deny);
        self.notes.push(format!("{path}: action: Deny"));
    }
}

/// A limit in the making.
#[derive(Debug)]
pub(super) struct ConvertedLimit {
    pub(super) limit: Limit,
    /// The place in the original.
    pub(super) path: String,
    /// The places of fields that are called otherwise there.
    pub(super) fields: Vec<(&'static str, String)>,
}

/// A validation in the making.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) expression: String,
    pub(super) message: Option<String>,
    /// The place in the original.
    pub(super) path: String,
}

/// A policy of either format, read but not yet put together.
#[derive(Debug)]
pub(super) struct PolicyParts {
    pub(super) default: Action,
    pub(super) hidden: Hidden,
    /// What holds for every tool.
    pub(super) every: ConvertedEntry,
    pub(super) entries: Vec<ConvertedEntry>,
}

/// A server of our language, with what became of the original.
#[derive(Debug, Default)]
pub(super) struct Assembled {
    pub(super) server: Server,
    pub(super) sources: Sources,
    /// The notes of each entry, in the order of the entries.
    pub(super) notes: Vec<Vec<String>>,
}

impl Assembled {
    /// A server without entries.
    pub(super) fn new(options: &ImportOptions) -> Self {
        // The original lets everything but calls of tools pass. What a server asks of an agent, and methods that nobody has thought of, are
        // not what its writer had in mind.
        let default_actions = DefaultActions {
            prompts: Some(Action::Allow),
            resources: Some(Action::Allow),
            requests: Some(Action::Deny),
            other: Some(Action::Deny),
        };
        let server =
            Server { name: options.server.clone(), url: Some(options.url.clone()), default_actions, ..Server::default() };
        let mut sources = Sources::default();
        sources.0.insert("spec.servers[0].tools".to_owned(), "tools".to_owned());
        Self { server, sources, notes: Vec::new() }
    }

    /// Puts the parts together: what is hidden is denied, and so is everything where the entry `*` denies.
    pub(super) fn fill(&mut self, parts: PolicyParts, errors: &mut Errors) {
        let PolicyParts { default, hidden, mut every, mut entries } = parts;
        let names: HashMap<&str, &str> = hidden.names.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
        for entry in &mut entries {
            if let Some(path) = names.get(entry.name.as_str()) {
                entry.hide(path);
            }
        }
        let listed: HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        for (name, path) in hidden.names.iter().filter(|(name, _)| !listed.contains(name)) {
            let mut entry = ConvertedEntry::new(name, path);
            entry.hide(path);
            entries.push(entry);
        }
        self.server.default_action = default;
        if hidden.all {
            every.hide("hide");
        }
        if every.action == Some(Action::Deny) {
            self.server.default_action = Action::Deny;
            // An exact name would open its tool again.
            for entry in entries.iter_mut().filter(|entry| entry.action.is_none()) {
                entry.action = Some(Action::Deny);
                entry.reason = entry.reason.take().or_else(|| every.reason.clone());
            }
        }
        if every.action.is_some() || !every.limits.is_empty() || !every.checks.is_empty() || every.approval.is_some() {
            entries.push(every);
        }
        for (index, entry) in entries.into_iter().enumerate() {
            self.push(entry, &format!("spec.servers[0].tools[{index}]"), errors);
        }
    }

    fn push(&mut self, mut entry: ConvertedEntry, target: &str, errors: &mut Errors) {
        if entry.action == Some(Action::Deny) && entry.approval.take().is_some() {
            entry.notes.push("nobody is asked about what is denied".to_owned());
        }
        self.notes.push(std::mem::take(&mut entry.notes));
        let tool = finish(entry, target, &mut self.sources, errors);
        self.server.tools.push(tool);
    }
}

/// What counts a limit of the original: it is one count for an agent, in however many pods it runs.
pub(super) fn scope(options: &ImportOptions) -> Scope {
    if options.shared_store { Scope::Workload } else { Scope::Pod }
}

/// The tools that are not to be seen.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    pub(super) all: bool,
    /// The names, each once, and where they stand.
    names: Vec<(String, String)>,
}

impl Hidden {
    pub(super) fn read(root: &Object<'_, '_>, errors: &mut Errors) -> Self {
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
pub(super) fn is_tool_name(name: &str, path: &str, errors: &mut Errors) -> bool {
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

/// A text for the caller; an empty one is none.
pub(super) fn text(object: &Object<'_, '_>, key: &str, errors: &mut Errors) -> Option<String> {
    let text = object.get(key)?.string(&object.path(key), errors)?;
    (!text.is_empty()).then(|| text.to_owned())
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
    if let Some(path) = entry.reason_path {
        sources.0.insert(format!("{target}.reason"), path);
    }
    for (index, ConvertedLimit { limit, path, fields }) in entry.limits.into_iter().enumerate() {
        let place = format!("{target}.limits[{index}]");
        for (field, path) in fields {
            sources.0.insert(format!("{place}.{field}"), path);
        }
        sources.0.insert(place, path);
        tool.limits.push(limit);
    }
    if let Some(ConvertedApproval { approval, fields, .. }) = entry.approval {
        let fields = fields.into_iter().map(|(field, path)| (format!("{target}.approval.{field}"), path));
        sources.0.extend(fields);
        tool.approval = Some(approval);
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
