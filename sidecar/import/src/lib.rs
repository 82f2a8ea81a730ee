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
//! - The conditions of a rule that asks a person count if they hold in any reading, and so does a call to which they cannot be put.
//! - A limit of the original holds for an agent, in however many pods it runs. Only a shared store can say that; without
//!   one, each pod counts for itself, and the manifest and [`ImportedPolicy::counted_by_each_pod`] say so.
//! - The original's windows are fixed to the clock; ours slide, and so admit no more.
//!
//! ```text
//! read (JSON), yaml ─> convert (JSON), intercept (YAML) ─> entry (names, entries, places) ─> manifest (printed, read back, compiled)
//!                        └─> condition (as CEL)
//! ```
//!
//! The YAML is that of the open-source proxy, whose code says what the pages leave open.

mod approval;
mod condition;
mod convert;
mod entry;
mod errors;
mod intercept;
mod manifest;
mod read;
mod yaml;

use toolweir_crds::{Document, MCPPolicySpec, Metadata, read_documents};
use toolweir_engine::{CompileOptions, Engine, Memory, Severity};

use self::{entry::Assembled, errors::Errors, manifest::spec_of};
pub use self::{entry::ImportOptions, errors::ImportError, manifest::ImportedPolicy};

/// Turns a `PolicyLayer` policy into an `MCPPolicy`: one in JSON, or one of the open-source proxy in YAML.
///
/// # Errors
/// All that is wrong with the policy, or that our language cannot say; never empty.
pub fn import(text: &str, options: &ImportOptions) -> Result<ImportedPolicy, Vec<ImportError>> {
    let mut errors = Errors::default();
    let json = text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']);
    let read = if json { read::parse(text) } else { yaml::parse(text) };
    let root = read.map_err(|error| vec![error])?;
    root.repeated_keys(&mut errors);
    let (assembled, description) = if json {
        // Its fields keep their names, so there is nothing to note.
        (Assembled { notes: Vec::new(), ..convert::policy(&root, options, &mut errors) }, None)
    } else {
        intercept::policy(&root, options, &mut errors)
    };
    let metadata = Metadata {
        name: options.name.clone().unwrap_or_else(|| options.server.clone()),
        namespace: options.namespace.clone(),
        ..Metadata::default()
    };
    let spec = MCPPolicySpec { servers: vec![assembled.server], ..MCPPolicySpec::default() };
    let policy = ImportedPolicy { document: Document::MCPPolicy { metadata, spec }, description, notes: assembled.notes };
    for (path, message) in problems(&policy) {
        errors.also(assembled.sources.original(&path, options), message);
    }
    let errors = errors.into_distinct();
    if errors.is_empty() { Ok(policy) } else { Err(errors) }
}

/// Prints a policy, reads it back and compiles it. Returns the problems: paths of the document, with messages.
fn problems(policy: &ImportedPolicy) -> Vec<(String, String)> {
    let (document, yaml) = (&policy.document, policy.to_yaml());
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
