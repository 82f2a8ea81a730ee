//! `PolicyLayer` policies (version "1") as [`MCPPolicy`](Document::MCPPolicy).
//!
//! An imported policy never lets a call through that the original turns away. What cannot be said in our language is
//! an error that names its place; nothing is dropped. Where the original's pages leave a meaning open, the stricter
//! one is taken:
//!
//! - A condition of `require` must hold whatever the reading, a condition of `deny_if` counts if it holds in any. So
//!   a value of another type than the one that the condition names fails a `require` and sets off a `deny_if`: `"5"`
//!   is not surely 5, nor surely another number. `null` is equal to `null` alone.
//! - A path with a missing step is missing, and fails every operator but `exists`.
//! - Patterns are those of Go, where `\d`, `\w`, `\s` and `\b` know ASCII alone.
//! - A limit of the original holds for an agent, in however many pods it runs. Only a shared store can say that; without
//!   one, each pod counts for itself, and the manifest and [`counted_by_each_pod`] say so.
//! - The original's windows are fixed to the clock; ours slide, and so admit no more.

mod condition;
mod convert;
mod pattern;
mod read;

use serde_yaml::{Mapping, Value};
use toolweir_crds::{API_VERSION, Document, MCPPolicySpec, Metadata, Scope, read_documents};
use toolweir_engine::{Engine, Memory, Options, Severity};

use self::read::Errors;

/// What an import needs to know beside the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The server's name, under which agents reach it.
    pub server: String,
    /// Where the server is.
    pub url: String,
    /// The policy's name; that of the server where left out.
    pub name: Option<String>,
    /// The policy's namespace.
    pub namespace: Option<String>,
    /// Whether there is a shared store, so that all pods of a workload count together.
    pub shared_store: bool,
}

/// What stands in the way of an import.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ImportError {
    /// The place in the original, such as `tools.send_dm_to_user.limits[0].window`; an option such as `--server`; a
    /// line and column where the text is not JSON; or `policy` for the whole of it.
    pub path: String,
    /// What is wrong, and what to write instead where that is possible.
    pub message: String,
}

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

/// What is wrong with a document once it is printed, read back and compiled: paths of the document, with messages.
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
    let options = Options { shared_store: true, of_any_pod: true, ..Options::default() };
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

/// How many limits of an imported policy each pod counts for itself, where the original has one count for the agent.
pub fn counted_by_each_pod(document: &Document) -> usize {
    let limits = spec_of(document).into_iter().flat_map(|spec| &spec.servers).flat_map(|server| &server.tools);
    limits.flat_map(|tool| &tool.limits).filter(|limit| limit.scope == Scope::Pod).count()
}

/// What a manifest with such limits begins with.
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
    format!("{comment}{}", serde_yaml::to_string(&manifest).unwrap_or_default())
}
