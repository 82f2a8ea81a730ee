//! Policies as they stand in files: checked one by one, and compiled together.

use std::sync::Arc;

use toolweir_crds::{
    FieldError, FileError, Server, ToolPins,
    document::{Located, LocatedPins, no_policy},
    policy_files::PolicyText,
    read_manifests,
    stream::PolicyProblem,
    text::{escaped, one_line},
};

use crate::{CompileOptions, Engine, Memory, Policy, Severity};

/// The policies of files, compiled.
#[derive(Debug)]
pub struct CompiledFiles {
    /// The policies, compiled.
    pub engine: Engine,
    /// The policies as they are written.
    pub policies: Vec<Policy>,
    /// The pins among them.
    pub pins: Vec<ToolPins>,
    /// Faults that are no reason to refuse the files.
    pub warnings: Vec<FileError>,
    /// The same, of the pins that policies name.
    pub pin_warnings: Vec<FileError>,
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

/// Finds what is wrong with pins beyond what their bounds say: paths start at the document.
pub type PinsCheck = fn(&ToolPins) -> Vec<FieldError>;

/// Compiles the policies of files. `check_pins` has a say in the pins among them.
///
/// # Errors
/// All that is wrong with the first file that is wrong, or with the policies together.
pub fn compile_files(
    texts: &[PolicyText],
    counters: Arc<Memory>,
    options: &CompileOptions,
    urls: Urls,
    check_pins: PinsCheck,
) -> Result<CompiledFiles, Vec<FileError>> {
    let (mut located, mut pins): (Vec<Located<'_>>, Vec<LocatedPins<'_>>) = Default::default();
    for PolicyText { file, text } in texts {
        let read = read_manifests(file, text)?;
        located.extend(read.policies);
        pins.extend(read.pins);
    }
    // Pins alone can be checked.
    if located.is_empty() && (pins.is_empty() || urls != Urls::MayFollow) {
        let files: Vec<&str> = texts.iter().map(|text| text.file.as_str()).collect();
        return Err(vec![no_policy(&files.join(", "))]);
    }
    let wrong = wrong_pins(&pins, check_pins);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let pins: Vec<ToolPins> = pins.into_iter().map(|located| located.pins).collect();
    let policies: Vec<Policy> = located.iter().map(|located| located.document.clone().into()).collect();
    let (engine, found) = Engine::compile(&policies, counters, options);
    let (mut errors, mut warnings, mut pin_warnings, mut problems) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let engine = engine.with_pins(&pins);
    warnings.extend(located.iter().flat_map(Located::unquoted));
    for (place, policy) in located.iter().zip(&policies) {
        pin_warnings.extend(doubtful_pins(policy, &pins).iter().map(|error| place.error(error)));
    }
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
    if errors.is_empty() { Ok(CompiledFiles { engine, policies, pins, warnings, pin_warnings, problems }) } else { Err(errors) }
}

/// Returns what is wrong with pins, each on its own and beside the others.
fn wrong_pins(pins: &[LocatedPins<'_>], check: PinsCheck) -> Vec<FileError> {
    let of_one = |(index, located): (usize, &LocatedPins<'_>)| {
        let mut errors = check(&located.pins);
        let name = located.pins.to_string();
        if pins.iter().take(index).any(|other| other.pins.to_string() == name) {
            let message = format!("there are other pins `{name}`; rename one");
            errors.push(FieldError { path: "metadata.name".to_owned(), message });
        }
        errors.iter().map(|error| located.error(error)).collect::<Vec<_>>()
    };
    pins.iter().enumerate().flat_map(of_one).collect()
}

/// Returns a warning for each server of a policy whose pins are not there, or are those of another server.
fn doubtful_pins(policy: &Policy, pins: &[ToolPins]) -> Vec<FieldError> {
    let doubt = |(at, server): (usize, &Server)| {
        let name = server.pins.as_ref()?.full_name(&policy.id.namespace);
        let message = match pins.iter().find(|pins| pins.to_string() == name) {
            None => format!(
                "the pins {name} are not among these files, so that no tool of the server is known to be as it was; write them with `toolweir pin`"
            ),
            Some(pins) if pins.spec.server != server.name => format!(
                "the pins {name} are those of the server `{}`, and this is `{}`; name its own, unless the two are the same",
                escaped(&pins.spec.server, 63),
                server.name
            ),
            Some(_) => return None,
        };
        Some(FieldError { path: format!("spec.servers[{at}].pins.name"), message })
    };
    policy.spec.servers.iter().enumerate().filter_map(doubt).collect()
}
