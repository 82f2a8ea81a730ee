//! Prompts, resources, requests of servers and other methods: who has a say in them, and what that says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/calls.rs"]
mod calls;

use toolweir_crds::{OperationKind, RequestName};
use toolweir_engine::{
    Call, Denial, Engine, Operation, Policy, Problem, Reason, Timestamp,
    json::{Raw, Reader},
};

use calls::{cluster_policy, policy};

/// Compiles policies of these names; one that begins with `*` is of the cluster. Each has one server, in YAML.
fn compile_with_problems(policies: &[(&str, &str)]) -> (Engine, Vec<Problem>) {
    let policies: Vec<Policy> = policies
        .iter()
        .map(|(name, server)| match name.strip_prefix('*') {
            Some(name) => cluster_policy(name, &format!("servers: [{server}]")),
            None => policy(name, &format!("servers: [{server}]")),
        })
        .collect();
    calls::compile(&policies)
}

fn compile(policies: &[(&str, &str)]) -> Engine {
    let (engine, problems) = compile_with_problems(policies);
    assert_eq!(problems, []);
    engine
}

fn call<'a>(operation: Operation<'a>, arguments: Option<&'a str>) -> Call<'a> {
    let arguments: Option<Raw<'a>> = arguments.map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
    Call { server: "docs", operation, arguments, session: "", seen: None }
}

fn reason(engine: &Engine, operation: Operation<'_>) -> Reason {
    engine.decide(&call(operation, None), Timestamp(0)).labels().1
}

fn denial(engine: &Engine, operation: Operation<'_>) -> Denial {
    engine.decide(&call(operation, None), Timestamp(0)).denial().unwrap().clone()
}

const SAMPLING: Operation<'static> = Operation::request(RequestName::Sampling);

#[test]
fn a_kind_in_which_no_policy_has_a_say_is_denied() {
    let engine = compile(&[("a", "{name: docs, url: 'http://h/mcp', defaultAction: Allow}")]);
    assert_eq!(reason(&engine, Operation::tool("x")), Reason::None);
    for (operation, message) in [
        (
            Operation::prompt("x"),
            "Denied: no policy in force says which prompts of the server docs may be used; `prompts` or `defaultActions.prompts` would.",
        ),
        (
            Operation::resource("file:///x"),
            "Denied: no policy in force says which resources of the server docs may be used; `resources` or `defaultActions.resources` would.",
        ),
        (
            SAMPLING,
            "Denied: no policy in force says what the server docs may ask for; `requests` or `defaultActions.requests` would.",
        ),
        (
            Operation::other("logging/setLevel"),
            "Denied: no policy in force says which other methods of the server docs may be used; `defaultActions.other` would.",
        ),
    ] {
        let denial = denial(&engine, operation);
        assert_eq!((denial.reason, denial.message.as_str(), denial.policy), (Reason::NoPolicy, message, None));
        assert!(!engine.may_use("docs", operation, None) && !engine.has_say("docs", operation.kind));
        assert!(engine.verdicts("docs", operation.kind).is_empty());
    }
}

#[test]
fn a_policy_that_is_silent_on_a_kind_has_no_say_in_it() {
    // Yesterday's guardrail of `*`, which knew tools alone.
    let guardrail = "{name: '*', tools: [{name: 'delete_*', action: Deny}], defaultAction: Allow}";
    let own =
        "{name: docs, url: 'http://h/mcp', defaultAction: Allow, prompts: [{name: 'review_*'}], defaultActions: {other: Allow}}";
    let engine = compile(&[("own", own), ("*guardrail", guardrail)]);
    assert_eq!(reason(&engine, Operation::prompt("review_code")), Reason::None);
    assert_eq!(reason(&engine, Operation::prompt("other")), Reason::NotListed);
    assert_eq!(reason(&engine, Operation::other("x/y")), Reason::None);
    assert_eq!(reason(&engine, SAMPLING), Reason::NoPolicy);
}

#[test]
fn an_empty_list_is_a_say_and_lets_nothing_through() {
    for field in ["prompts: []", "defaultActions: {prompts: Deny}"] {
        let closing = format!("{{name: docs, defaultAction: Allow, {field}}}");
        let open = "{name: docs, url: 'http://h/mcp', defaultAction: Allow, defaultActions: {prompts: Allow}}";
        let engine = compile(&[("a", open), ("b", &closing)]);
        assert_eq!(reason(&engine, Operation::prompt("x")), Reason::NotListed, "{field}");
    }
}

#[test]
fn a_policy_that_does_not_compile_closes_every_kind() {
    let broken = "{name: docs, tools: [{name: x, validations: [{expression: 'nothing'}]}]}";
    let open =
        "{name: docs, url: 'http://h/mcp', defaultActions: {prompts: Allow, resources: Allow, requests: Allow, other: Allow}}";
    let (engine, problems) = compile_with_problems(&[("a", open), ("b", broken)]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    for operation in [Operation::prompt("x"), Operation::resource("file:///x"), SAMPLING, Operation::other("x/y")] {
        assert_eq!(reason(&engine, operation), Reason::InvalidPolicy, "{operation:?}");
    }
}

#[test]
fn the_same_name_of_two_kinds_has_counts_of_its_own() {
    let entry = "[{name: x, limits: [{max: 1, window: minute}]}]";
    let engine = compile(&[("a", &format!("{{name: docs, url: 'http://h/mcp', tools: {entry}, prompts: {entry}}}"))]);
    assert_eq!(reason(&engine, Operation::tool("x")), Reason::None);
    assert_eq!(reason(&engine, Operation::prompt("x")), Reason::None);
    assert_eq!(reason(&engine, Operation::tool("x")), Reason::RateLimit);
    let denial = denial(&engine, Operation::prompt("x"));
    assert_eq!(denial.message, "Denied by policy agents/a: x is limited to 1 use a minute. Try again in 61 s.");
    assert_eq!(
        serde_json::to_value(&denial).unwrap(),
        serde_json::json!({"reason": "rate_limit", "policy": "agents/a", "prompt": "x", "retryAfterSeconds": 61,
            "limit": {"max": 1, "window": "minute", "scope": "Pod"}})
    );
}

#[test]
fn conditions_read_what_their_kind_has() {
    let server = r#"{name: docs, url: 'http://h/mcp',
        prompts: [{name: '*', action: Allow, validations: [{expression: "prompt != 'x' || args.topic == 'a'"}]}],
        resources: [{uri: '*', action: Allow, validations: [{expression: "uri.startsWith('file:///data/')"}]}],
        requests: [{name: sampling, validations: [{expression: "args.maxTokens <= 1000 && request == 'sampling'"}]}]}"#;
    let engine = compile(&[("a", server)]);
    let decide = |operation, arguments| engine.decide(&call(operation, Some(arguments)), Timestamp(0)).labels().1;
    assert_eq!(decide(Operation::prompt("x"), r#"{"topic":"a"}"#), Reason::None);
    assert_eq!(decide(Operation::prompt("x"), r#"{"topic":"b"}"#), Reason::Validation);
    assert_eq!(decide(Operation::prompt("y"), r#"{"topic":"b"}"#), Reason::None);
    assert_eq!(reason(&engine, Operation::resource("file:///data/a")), Reason::None);
    // The expression sees the canonical form; what has none is not let through by an expression on it.
    assert_eq!(reason(&engine, Operation::resource("FILE:/data/b/../%61")), Reason::None);
    assert_eq!(reason(&engine, Operation::resource("file:///data/../secret")), Reason::Validation);
    assert_eq!(reason(&engine, Operation::resource("file:///data/%2e%2e/secret")), Reason::Malformed);
    assert_eq!(decide(SAMPLING, r#"{"maxTokens":1000}"#), Reason::None);
    assert_eq!(decide(SAMPLING, r#"{"maxTokens":1001}"#), Reason::Validation);
    for (entry, variable) in [
        ("prompts: [{name: x, validations: [{expression: 'tool == prompt'}]}]", "`tool`"),
        ("resources: [{uri: 'db:b', validations: [{expression: 'args.x == 1'}]}]", "`args`"),
        ("requests: [{name: roots, validations: [{expression: 'uri == request'}]}]", "`uri`"),
        ("tools: [{name: x, validations: [{expression: 'prompt == tool'}]}]", "`prompt`"),
    ] {
        let (_, problems) = compile_with_problems(&[("a", &format!("{{name: docs, url: 'http://h/mcp', {entry}}}"))]);
        assert!(problems[0].error.message.starts_with(&format!("{variable} is not a variable")), "{entry}: {problems:?}");
    }
}

#[test]
fn a_denied_resource_is_denied_in_every_spelling() {
    let server = "{name: docs, url: 'http://h/mcp', defaultActions: {resources: Allow}, resources: [\
        {uri: 'file:///secret/*', action: Deny}, {uri: 'http://h/admin', action: Deny}, {uri: 'db://t/', action: Deny}]}";
    let engine = compile(&[("a", server)]);
    for uri in [
        "file:///secret/x",
        "FILE:///secret/x",
        "file:/secret/x",
        "file://localhost/secret/x",
        "file:///SECRET/x",
        "file:///a/../secret/x",
        "file:///a/%2e%2e/secret/x",
        "file:///secret%2fx",
        "file:///s%65cret/x",
        "file:///%73%65cret/%78",
        "file:///s%2565cret/x",
        "file:///secret//x",
        "file:////secret/x",
        "file:///secret/x?y",
        "file:///secret/x#y",
        "file:///secret/",
        "file:///secret",
        "file:///SECRET",
        "file:///./secret/x",
        "file:///secret/./x",
        "file:///secret\\\\x",
        "file://other/secret/x",
        " file:///secret/x",
        "file:///secret/x\n",
        "file:secret/x",
        "http://h/admin",
        "HTTP://H/admin",
        "http://h:80/admin",
        "http://h./admin",
        "http://u@h/admin",
        "http://h/admin?x=1",
        "http://h/admin#x",
        "http://h/admin/",
        "http://h/ADMIN",
        "http://h/x/../admin",
        "http:/h/admin",
        "db://t",
        "db://t/",
    ] {
        assert!(matches!(reason(&engine, Operation::resource(uri)), Reason::Denied | Reason::Malformed), "{uri}");
    }
    for uri in ["file:///public/x", "http://h/user", "db://other/x"] {
        assert_eq!(reason(&engine, Operation::resource(uri)), Reason::None, "{uri}");
    }
}

#[test]
fn what_allows_a_resource_means_no_other() {
    let server = "{name: docs, url: 'http://h/mcp', resources: [{uri: 'file:///data/*'}, {uri: 'db://t/*.txt'}]}";
    let engine = compile(&[("a", server)]);
    for (uri, allowed) in [
        ("file:///data/a", true),
        ("FILE:/data/x/../a", true),
        ("file:///DATA/a", false),
        ("file:///data/../etc/passwd", false),
        ("file:///data/%2e%2e/etc/passwd", false),
        ("file:///data", false),
        ("db://t/a.txt", true),
        ("db://t/secret.key?.txt", false),
        ("not a uri", false),
    ] {
        assert_eq!(reason(&engine, Operation::resource(uri)) == Reason::None, allowed, "{uri}");
    }
}

#[test]
fn a_policy_that_tells_no_resources_apart_lets_any_uri_through() {
    for server in
        ["defaultActions: {resources: Allow}", "resources: [{uri: '*', action: Allow, limits: [{max: 9, window: day}]}]"]
    {
        let engine = compile(&[("a", &format!("{{name: docs, url: 'http://h/mcp', {server}}}"))]);
        assert_eq!(reason(&engine, Operation::resource("greeting")), Reason::None, "{server}");
        assert_eq!(reason(&engine, Operation::resource("file:///a/%2e%2e/b")), Reason::None, "{server}");
    }
}

#[test]
fn a_template_is_of_use_where_some_uri_of_it_may_be_read() {
    let engine = compile(&[(
        "a",
        "{name: docs, url: 'http://h/mcp', defaultActions: {resources: Deny}, resources: [{uri: 'file:///data/*'}, {uri: 'db://t/1'}]}",
    )]);
    for (template, usable) in [
        ("file:///data/{name}", true),
        ("file:///{+path}", true),
        ("db://t/{id}", true),
        ("file:///etc/{name}", false),
        ("db://other/{id}", false),
    ] {
        let witness = engine.template_witness("docs", template);
        let may = witness.is_some_and(|uri| engine.may_use("docs", Operation::resource(&uri), None));
        assert_eq!(may, usable, "{template}");
    }
}

#[test]
fn the_smallest_bound_on_results_holds_of_all_that_are_enforced() {
    let first = "{name: docs, url: 'http://h/mcp', tools: [{name: x, maxResultBytes: 500}, {name: '*', maxResultBytes: 300}]}";
    let second = "{name: docs, tools: [{name: x, maxResultBytes: 400}]}";
    let engine = compile(&[("a", first), ("b", second)]);
    let limit = engine.decide(&call(Operation::tool("x"), None), Timestamp(0)).result_limit.unwrap();
    assert_eq!((limit.max, &*limit.policy, &*limit.entry), (300, "agents/a", "*"));
    let denial = Denial::result_too_large(&limit, Operation::tool("x"), 301, true);
    let message = "Denied by policy agents/a: the result of x has 301 bytes, and at most 300 may pass. Ask for less at once.";
    assert_eq!((denial.reason, denial.message.as_str()), (Reason::ResultTooLarge, message));
}

#[test]
fn metrics_know_what_can_be_decided_of_each_kind() {
    let server = "{name: docs, url: 'http://h/mcp', prompts: [{name: x, limits: [{max: 1, window: day}]}], \
        requests: [{name: sampling}], defaultActions: {resources: Allow}}";
    let engine = compile(&[("a", server)]);
    let verdicts = |kind| {
        let found = engine.verdicts("docs", kind);
        found.iter().map(|verdict| (verdict.name.map(str::to_owned), verdict.decision, verdict.reason)).collect::<Vec<_>>()
    };
    assert_eq!(
        verdicts(OperationKind::Prompt),
        [
            (Some("x".to_owned()), "denied", Reason::RateLimit),
            (Some("x".to_owned()), "allowed", Reason::None),
            (None, "denied", Reason::NotListed)
        ]
    );
    assert_eq!(verdicts(OperationKind::Resource), [(None, "allowed", Reason::None)]);
    assert_eq!(
        verdicts(OperationKind::Request),
        [(Some("sampling".to_owned()), "allowed", Reason::None), (None, "denied", Reason::NotListed)]
    );
}

#[test]
fn a_star_in_a_host_is_warned_of_since_it_stands_for_other_hosts() {
    let doubts = |uri: &str| {
        let (_, problems) =
            compile_with_problems(&[("a", &format!("{{name: docs, url: 'http://h/mcp', resources: [{{uri: '{uri}'}}]}}"))]);
        problems.iter().filter(|problem| problem.error.path.ends_with("].uri")).count()
    };
    assert_eq!(["http://*.example.com/*", "db://x*/y"].map(doubts), [1, 1]);
    assert_eq!(["http://example.com/*", "db://*", "*", "file:///a/*/b"].map(doubts), [0, 0, 0, 0]);
    // Brackets are of a host; elsewhere, and braces anywhere, they are taken for a pattern.
    assert_eq!(["http://[::1]/*", "file:///a/[bc]", "docs://{id}/x"].map(doubts), [0, 1, 1]);
}
