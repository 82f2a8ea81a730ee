//! Every sample of a policy, read and compiled: a valid one without a problem, an invalid one refused in one of the two
//! steps with a text that says what to write instead, and the place of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{fs, path::Path};

use toolweir_crds::{FileError, RequestName, read_documents};
use toolweir_engine::{
    Call, CompileOptions, Effect, Engine, Memory, Operation, Policy, Problem, Reason, Severity, Timestamp, json::Reader,
};

/// The samples of a folder: file name and text.
fn samples(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/samples").join(folder);
    let mut samples: Vec<(String, String)> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    samples.sort();
    assert!(samples.len() > 10, "{} has only {} samples", folder.display(), samples.len());
    samples
}

fn policies(name: &str, text: &str) -> Vec<Policy> {
    let documents = read_documents(name, text).unwrap_or_else(|errors| panic!("{errors:#?}"));
    documents.into_iter().map(|located| located.document.into()).collect()
}

fn compile(policies: &[Policy], shared_store: bool) -> (Engine, Vec<Problem>) {
    Engine::compile(
        policies,
        Memory::new(Memory::COUNTERS),
        &CompileOptions { shared_store, of_any_pod: true, ..CompileOptions::default() },
    )
}

/// The errors of reading and, where that has none, of compiling.
fn errors(name: &str, text: &str) -> Vec<FileError> {
    let documents = match read_documents(name, text) {
        Ok(documents) => documents,
        Err(errors) => return errors,
    };
    let policies: Vec<Policy> = documents.iter().map(|located| located.document.clone().into()).collect();
    let (_, problems) = compile(&policies, false);
    assert!(problems.iter().all(|problem| problem.severity == Severity::Invalid), "{problems:#?}");
    problems.iter().map(|problem| documents[problem.policy].error(&problem.error)).collect()
}

#[test]
fn every_valid_sample_compiles_alone_but_for_a_url_that_another_policy_gives() {
    for (name, text) in samples("valid") {
        let problems = compile(&policies(&name, &text), true).1;
        let without_url: &[&str] = if name == "rules-only.yaml" { &["spec.servers[0].url"] } else { &[] };
        assert!(problems.iter().all(|problem| problem.severity == Severity::NoUrl), "{name}: {problems:#?}");
        assert_eq!(problems.iter().map(|problem| problem.error.path.as_str()).collect::<Vec<_>>(), without_url, "{name}");
    }
}

#[test]
fn all_valid_samples_compile_together_without_a_problem() {
    let all: Vec<Policy> = samples("valid").iter().flat_map(|(name, text)| policies(name, text)).collect();
    let (engine, problems) = compile(&all, true);
    assert_eq!(problems, []);
    let servers: Vec<(&str, bool)> = engine.servers().map(|server| (server.name, server.url.is_some())).collect();
    let names = [
        "archive",
        "browser",
        "calendar",
        "crm",
        "desk",
        "facebook",
        "files",
        "forms",
        "github",
        "hr",
        "ledger",
        "library",
        "mail",
        "maps",
        "office",
        "payments",
        "payroll",
        "planning",
        "reviews",
        "search",
        "tickets",
        "treasury",
        "warehouse",
        "weather",
        "wiki",
    ];
    assert_eq!(servers, names.map(|name| (name, true)));
}

#[test]
fn the_samples_together_decide_as_they_are_meant() {
    let all: Vec<Policy> = samples("valid").iter().flat_map(|(name, text)| policies(name, text)).collect();
    let (engine, _) = compile(&all, true);
    let decide = |server, tool, seconds: u64| {
        let call = Call { server, operation: Operation::tool(tool), arguments: None, session: "s", seen: None };
        let decision = engine.decide(&call, Timestamp(seconds * 1_000_000_000));
        match decision.effect {
            Effect::Allowed(_) => (Reason::None, decision.policy.unwrap().to_string()),
            Effect::Denied(denial) => (denial.reason, denial.policy.map(|policy| policy.to_string()).unwrap_or_default()),
        }
    };
    let is = |reason, policy: &str| (reason, policy.to_owned());
    // The policy `facebook` lists it, `everything` allows `get_*`, `rules-only` and the guardrail everything.
    assert_eq!(decide("facebook", "get_page_posts", 0), is(Reason::None, "agents/everything"));
    assert_eq!(decide("facebook", "get_page_likes", 0), is(Reason::NotListed, "agents/facebook"));
    assert_eq!(decide("facebook", "delete_comment_from_post", 0), is(Reason::Denied, "agents/everything"));
    for second in 0..30 {
        assert_eq!(decide("facebook", "send_dm_to_user", second), is(Reason::None, "agents/everything"));
    }
    assert_eq!(decide("facebook", "send_dm_to_user", 31), is(Reason::RateLimit, "agents/everything"));
    // On every server, what deletes is denied by the guardrail alone.
    assert_eq!(decide("wiki", "delete_page", 0), is(Reason::Denied, "guardrail"));
    assert_eq!(decide("files", "write_file", 0), is(Reason::Denied, "no-file-writes"));
    assert_eq!(decide("files", "read_file", 0), is(Reason::None, "agents/files"));
    // An audit policy does not deny; a server that none names is not there.
    assert_eq!(decide("github", "create_issue", 0), is(Reason::None, "agents/audit"));
    assert_eq!(decide("slack", "post", 0), is(Reason::NoPolicy, ""));
}

#[test]
fn the_samples_of_operations_decide_as_their_comments_say() {
    let all: Vec<Policy> = samples("valid").iter().flat_map(|(name, text)| policies(name, text)).collect();
    let (engine, _) = compile(&all, true);
    let decide = |server, operation, arguments: &str| {
        let arguments = Some(Reader::new(arguments.as_bytes()).unwrap().value().unwrap());
        let call = Call { server, operation, arguments, session: "s", seen: None };
        engine.decide(&call, Timestamp(0)).denial().map_or(Reason::None, |denial| denial.reason)
    };
    for (server, operation, arguments, expected) in [
        ("reviews", Operation::prompt("review_code"), r#"{"language": "en"}"#, Reason::None),
        ("reviews", Operation::prompt("review_code"), r#"{"language": "fr"}"#, Reason::Validation),
        ("reviews", Operation::prompt("review_salary"), "{}", Reason::Denied),
        ("reviews", Operation::prompt("rate ***"), "{}", Reason::None),
        ("reviews", Operation::prompt("rate it"), "{}", Reason::NotListed),
        ("reviews", Operation::resource("file:///reviews/a/b.txt"), "{}", Reason::None),
        ("reviews", Operation::resource("file:///reviews/private/b.txt"), "{}", Reason::Denied),
        ("reviews", Operation::resource("file:///reviews/secret.txt"), "{}", Reason::Denied),
        ("reviews", Operation::resource("db://reviews/2026"), "{}", Reason::ApprovalPending),
        ("reviews", Operation::resource("db://reviews/2025"), "{}", Reason::NotListed),
        ("reviews", Operation::request(RequestName::Sampling), r#"{"maxTokens": 1000}"#, Reason::None),
        ("reviews", Operation::request(RequestName::Elicitation), r#"{"mode": "url"}"#, Reason::Validation),
        ("reviews", Operation::request(RequestName::Roots), "{}", Reason::Denied),
        ("reviews", Operation::other("logging/setLevel"), "{}", Reason::None),
        ("desk", Operation::prompt("p"), "{}", Reason::NotListed),
        ("desk", Operation::resource("file:///a"), "{}", Reason::NotListed),
        ("desk", Operation::request(RequestName::Sampling), "{}", Reason::NotListed),
        ("desk", Operation::other("logging/setLevel"), "{}", Reason::NotListed),
        ("forms", Operation::prompt("p"), "{}", Reason::NotListed),
        // Of other methods, only the guardrail could have said something on this server.
        ("wiki", Operation::other("logging/setLevel"), "{}", Reason::NoPolicy),
        ("wiki", Operation::prompt("p"), "{}", Reason::None),
    ] {
        assert_eq!(decide(server, operation, arguments), expected, "{server} {operation:?} {arguments}");
    }
}

#[test]
fn every_invalid_sample_is_refused_as_its_first_line_promises() {
    for (name, text) in samples("invalid") {
        let promised = text.lines().next().and_then(|line| line.strip_prefix("# error: ")).expect(&name);
        let errors = errors(&name, &text);
        let first = errors.first().unwrap_or_else(|| panic!("{name} is accepted"));
        assert!(first.message.contains(promised), "{name} promises {promised:?} and says {errors:#?}");
        for error in &errors {
            assert!(!error.to_string().contains(char::is_control), "{:?} is more than a line of text", error.to_string());
            let field = ["spec", "metadata", "apiVersion", "kind"].iter().any(|path| error.message.starts_with(path));
            assert!(!field || error.position.is_some(), "{error:?} says no place");
        }
        if let Some(line) = text.lines().position(|line| line.ends_with("# <- here")) {
            assert_eq!(first.position.map(|(line, _)| line), Some(line + 1), "{errors:#?}");
        }
    }
}

#[test]
fn what_only_the_compiler_finds_has_its_place_too() {
    let samples = samples("invalid");
    for (name, written) in [
        (
            "cel-unknown-variable.yaml",
            "cel-unknown-variable.yaml:12:21: spec.servers[0].tools[0].validations[0].expression: `request` is not a variable; \
             the variables are args, tool, server, session, pod",
        ),
        (
            "contradictory-globs.yaml",
            "contradictory-globs.yaml:11:13: spec.servers[0].tools[1].name: `*page` and `get_*` (tools[0]) are equally \
             specific, match the same tools and have different actions; give both the same action or make one longer",
        ),
        (
            "shared-scope-without-store.yaml",
            "shared-scope-without-store.yaml:14:16: spec.servers[0].tools[0].limits[0].scope: Workload counts across pods, \
             which needs a shared store, and none is configured; write Pod or Session",
        ),
        (
            "cel-too-deep.yaml",
            "cel-too-deep.yaml:12:21: spec.servers[0].tools[0].validations[0].expression: nests deeper than 32 levels; \
             write two validations",
        ),
    ] {
        let text = &samples.iter().find(|(sample, _)| sample == name).expect(name).1;
        assert_eq!(errors(name, text).iter().map(ToString::to_string).collect::<Vec<_>>(), [written]);
    }
}

#[test]
fn an_invalid_policy_denies_everything_on_its_servers() {
    let mut compiled = 0;
    for (name, text) in samples("invalid") {
        let Ok(documents) = read_documents(&name, &text) else { continue };
        let policies: Vec<Policy> = documents.into_iter().map(|located| located.document.into()).collect();
        let (engine, _) = compile(&policies, false);
        for tool in ["send_dm_to_user", "pay_invoice", "get_page", ""] {
            let call = Call { server: "facebook", operation: Operation::tool(tool), arguments: None, session: "", seen: None };
            let decision = engine.decide(&call, Timestamp(0));
            assert_eq!(decision.denial().map(|denial| denial.reason), Some(Reason::InvalidPolicy), "{name} {tool}");
            assert!(!engine.may_use("facebook", Operation::tool(tool), None));
        }
        let requests = RequestName::ALL.map(Operation::request);
        let others =
            [Operation::prompt("review"), Operation::resource("file:///plans.txt"), Operation::other("logging/setLevel")];
        for operation in requests.into_iter().chain(others) {
            let call = Call { server: "facebook", operation, arguments: None, session: "", seen: None };
            let reason = engine.decide(&call, Timestamp(0)).denial().map(|denial| denial.reason);
            assert_eq!(reason, Some(Reason::InvalidPolicy), "{name} {operation:?}");
        }
        compiled += 1;
    }
    assert!(compiled >= 10, "only {compiled} samples get as far as the compiler");
}
