//! Policies as they stand in files: checked one by one, and compiled together.

use std::{collections::BTreeSet, sync::Arc};

use toolweir_crds::{
    FieldError, FileError, OperationKind, Server, ToolPins,
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
    for (index, doubt) in unsaid(&policies, &engine) {
        warnings.extend(located.get(index).map(|place| place.error(&doubt)));
    }
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

/// Returns a warning for each server in a kind of which no policy has a say, with the policy that names the server first. Before there were
/// such kinds, policies were silent on them, and what they name passed.
fn unsaid(policies: &[Policy], engine: &Engine) -> Vec<(usize, FieldError)> {
    let (mut named, mut found) = (BTreeSet::new(), Vec::new());
    for (index, policy) in policies.iter().enumerate() {
        for (at, server) in policy.spec.servers.iter().enumerate().filter(|(_, server)| server.name != "*") {
            let without_say = |kind: &OperationKind| !engine.has_say(&server.name, *kind);
            let missing: Vec<OperationKind> = OperationKind::ALL.into_iter().filter(without_say).collect();
            if !missing.is_empty() && named.insert(server.name.as_str()) {
                found.push((index, FieldError { path: format!("spec.servers[{at}]"), message: unsaid_words(&missing) }));
            }
        }
    }
    found
}

/// Says in which kinds no policy has a say.
fn unsaid_words(missing: &[OperationKind]) -> String {
    let lacks = |kind| missing.contains(&kind);
    let used = match (lacks(OperationKind::Prompt), lacks(OperationKind::Resource)) {
        (true, true) => Some("which prompts and resources may be used"),
        (true, false) => Some("which prompts may be used"),
        (false, true) => Some("which resources may be read"),
        (false, false) => None,
    };
    let asked = lacks(OperationKind::Request).then_some("what the server may ask for");
    let other = lacks(OperationKind::Other).then_some("which other methods may be used");
    let mut what: Vec<&str> = used.into_iter().chain(asked).chain(other).collect();
    let last = what.pop().unwrap_or_default();
    let what = match what.as_slice() {
        [] => last.to_owned(),
        [one] => format!("{one} and {last}"),
        more => format!("{}, and {last}", more.join(", ")),
    };
    let opened: Vec<String> = missing.iter().map(|kind| format!("{}: Allow", kind.field())).collect();
    let opened = opened.join(", ");
    format!(
        "no policy here says {what}, so that all of it is denied; write `defaultActions: {{{opened}}}` to let it pass, or the same with `Deny` to \
         keep it closed (docs/operations.md#upgrading)"
    )
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
