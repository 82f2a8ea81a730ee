//! Policies as they stand in files: checked one by one, and compiled together.

use std::sync::Arc;

use toolweir_crds::{
    FileError, document::Located, policy_files::PolicyText, read_documents, stream::PolicyProblem, text::one_line,
};

use crate::{CompileOptions, Engine, Memory, Policy, Severity};

/// The policies of files, compiled.
#[derive(Debug)]
pub struct CompiledFiles {
    /// The policies, compiled.
    pub engine: Engine,
    /// The policies as they are written.
    pub policies: Vec<Policy>,
    /// Faults that are no reason to refuse the files.
    pub warnings: Vec<FileError>,
    /// Policies that close a server, since they disagree with others on its credential.
    pub problems: Vec<PolicyProblem>,
}

/// The meaning of a server without a url.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urls {
    /// An error: the proxy needs the url to reach the server.
    Needed,
    /// A warning: other policies may give the url.
    MayFollow,
    /// In order: the server is a program.
    Unused,
}

/// Compiles the policies of files.
///
/// # Errors
/// All that is wrong with the first file that is wrong, or with the policies together.
pub fn compile_files(
    texts: &[PolicyText],
    counters: Arc<Memory>,
    options: &CompileOptions,
    urls: Urls,
) -> Result<CompiledFiles, Vec<FileError>> {
    let mut located: Vec<Located<'_>> = Vec::new();
    for PolicyText { file, text } in texts {
        located.extend(read_documents(file, text)?);
    }
    let policies: Vec<Policy> = located.iter().map(|located| located.document.clone().into()).collect();
    let (engine, found) = Engine::compile(&policies, counters, options);
    let (mut errors, mut warnings, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    warnings.extend(located.iter().flat_map(Located::unquoted));
    for problem in found {
        let Some(place) = located.get(problem.policy) else { continue };
        if let Some(policy) = policies.get(problem.policy).filter(|_| problem.severity == Severity::Closed) {
            let message = one_line(&problem.error.to_string(), usize::MAX);
            problems.push(PolicyProblem { policy: policy.id.to_string(), message });
        }
        match (problem.severity, urls) {
            // A server that is closed is an error of `check`; `run` closes it, and goes on with the others.
            (Severity::Invalid, _) | (Severity::NoUrl, Urls::Needed) | (Severity::Closed, Urls::MayFollow) => {
                errors.push(place.error(&problem.error));
            }
            (Severity::Conflict | Severity::Closed | Severity::Doubt, _) | (Severity::NoUrl, Urls::MayFollow) => {
                warnings.push(place.error(&problem.error));
            }
            (Severity::NoUrl, Urls::Unused) => {}
        }
    }
    if errors.is_empty() { Ok(CompiledFiles { engine, policies, warnings, problems }) } else { Err(errors) }
}
