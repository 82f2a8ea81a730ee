//! `PolicyLayer` policies (version "1") as [`MCPPolicy`](Document::MCPPolicy).
//!
//! An imported policy never lets a call through that the original turns away. What cannot be said in our language is
//! an error that names its place; nothing is dropped. Where the original's pages leave a meaning open, the stricter
//! one is taken:
//!
//! - A condition of `require` must hold whatever the reading, a condition of `deny_if` counts if it holds in any. So
//!   a value of another type than the one that the condition names fails a `require` and sets off a `deny_if`: `"5"`
//!   is not surely 5, nor surely another number. `null` is equal to `null` alone, and is no number, text or list.
//! - A path with a missing step is missing, and fails every operator but `exists`.
//! - Patterns are those of Go, as in our conditions.
//! - A limit of the original holds for an agent, in however many pods it runs. Only a shared store can say that; without
//!   one, each pod counts for itself, and the manifest and [`counted_by_each_pod`] say so.
//! - The original's windows are fixed to the clock; ours slide, and so admit no more.

mod condition;
mod convert;
mod errors;
mod read;

use serde_yaml::{Mapping, Value};
use toolweir_crds::{API_VERSION, Document, MCPPolicySpec, Metadata, Scope, document::Located, read_documents};
use toolweir_engine::{CompileOptions, Engine, Memory, Severity};

use self::errors::Errors;
pub use self::{convert::ImportOptions, errors::ImportError};

/// Turns a `PolicyLayer` policy into an `MCPPolicy`. What it returns, printed by [`to_yaml`], is a policy file that
/// compiles.
///
/// # Errors
/// All that is wrong with the policy, or that our language cannot say; never empty.
pub fn import(text: &str, options: &ImportOptions) -> Result<Document, Vec<ImportError>> {
    let mut errors = Errors::default();
    let root = read::parse(text).map_err(|error| vec![error])?;
    root.repeated_keys(&mut errors);
    let (server, sources) = convert::policy(&root, options, &mut errors);
    let metadata = Metadata {
        name: options.name.clone().unwrap_or_else(|| options.server.clone()),
        namespace: options.namespace.clone(),
        creation_timestamp: None,
    };
    let spec = MCPPolicySpec { servers: vec![server], ..MCPPolicySpec::default() };
    let document = Document::MCPPolicy { metadata, spec };
    for (path, message) in problems(&document) {
        errors.also(sources.original(&path, options), message);
    }
    let errors = errors.into_distinct();
    if errors.is_empty() { Ok(document) } else { Err(errors) }
}

/// Prints a document, reads it back and compiles it. Returns the problems: paths of the document, with messages.
fn problems(document: &Document) -> Vec<(String, String)> {
    let yaml = to_yaml(document);
    let read = match read_documents("policy", &yaml) {
        Ok(read) => read,
        Err(errors) => {
            let split = |message: &str| {
                let known = message.split_once(": ").filter(|(path, _)| path.starts_with("spec") || path.starts_with("metadata"));
                known.map_or_else(|| (String::new(), message.to_owned()), |(path, rest)| (path.to_owned(), rest.to_owned()))
            };
            return errors.iter().map(|error| split(&error.message)).collect();
        }
    };
    let read: Vec<Document> = read.into_iter().map(|located| located.document).collect();
    if !matches!(read.as_slice(), [only] if spec_of(only) == spec_of(document)) {
        return vec![(String::new(), "does not survive being written as YAML".to_owned())];
    }
    let policies: Vec<_> = read.into_iter().map(Into::into).collect();
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let (_, problems) = Engine::compile(&policies, Memory::new(0), &options);
    // What is imported asks for types where the original does.
    let problems = problems.into_iter().filter(|problem| problem.severity != Severity::Doubt);
    problems.map(|problem| (problem.error.path, problem.error.message)).collect()
}

fn spec_of(document: &Document) -> Option<&MCPPolicySpec> {
    match document {
        Document::MCPPolicy { spec, .. } => Some(spec),
        Document::MCPClusterPolicy { .. } => None,
    }
}

/// Returns how many limits of an imported policy each pod counts for itself, where the original has one count for the agent.
pub fn counted_by_each_pod(document: &Document) -> usize {
    let limits = spec_of(document).into_iter().flat_map(|spec| &spec.servers).flat_map(|server| &server.tools);
    limits.flat_map(|tool| &tool.limits).filter(|limit| limit.scope == Scope::Pod).count()
}

/// The comment with which a manifest with such limits begins.
const COUNTED_BY_EACH_POD: &str = "\
# Each pod counts for itself here (scope: Pod), where the original has one count for an agent: N replicas have N times each
# limit. With a shared store, import with --shared-store, or write scope: Workload.
";

/// Prints an imported policy as a Kubernetes manifest, without what holds anyway.
pub fn to_yaml(document: &Document) -> String {
    let kind = match document {
        Document::MCPPolicy { .. } => "MCPPolicy",
        Document::MCPClusterPolicy { .. } => "MCPClusterPolicy",
    };
    let mut manifest = Mapping::new();
    manifest.insert("apiVersion".into(), API_VERSION.into());
    manifest.insert("kind".into(), kind.into());
    if let Ok(Value::Mapping(mut body)) = serde_yaml::to_value(document) {
        for part in ["metadata", "spec"] {
            let mut value = body.remove(part).unwrap_or_default();
            if let Value::Mapping(spec) = &mut value
                && spec.get("mode").and_then(Value::as_str) == Some("Enforce")
            {
                spec.remove("mode");
            }
            manifest.insert(part.into(), value);
        }
    }
    let comment = if counted_by_each_pod(document) > 0 { COUNTED_BY_EACH_POD } else { "" };
    quoted(format!("{comment}{}", serde_yaml::to_string(&manifest).unwrap_or_default()))
}

/// The manifest with quotes around what kubectl would read as something else than a text: its YAML is an older one than ours.
fn quoted(yaml: String) -> String {
    let Ok(documents) = read_documents("policy", &yaml) else { return yaml };
    let places: Vec<(usize, usize)> = documents.iter().flat_map(Located::unquoted).filter_map(|place| place.position).collect();
    if places.is_empty() {
        return yaml;
    }
    let mut lines: Vec<String> = yaml.lines().map(str::to_owned).collect();
    for (line, column) in places {
        let Some(line) = line.checked_sub(1).and_then(|line| lines.get_mut(line)) else { continue };
        let at = column.saturating_sub(1);
        let (before, text) = (line.chars().take(at).collect::<String>(), line.chars().skip(at).collect::<String>());
        *line = format!("{before}\"{text}\"");
    }
    lines.join("\n") + "\n"
}
