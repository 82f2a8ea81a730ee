//! Which credential goes to which URL, and what closes a server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use toolweir_crds::read_documents;
use toolweir_engine::{CompileOptions, Engine, Memory, Operation, Policy, PolicyId, Problem, Reason, Severity};

/// Compiles policies of these names; each of `servers` is a server in YAML.
fn compile(policies: &[(&str, &str)]) -> (Engine, Vec<Problem>) {
    let text = policies.iter().map(|(name, server)| {
        format!(
            "apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: {name}, namespace: n}}\nspec:\n  servers:\n  - {server}\n---\n"
        )
    });
    let text: String = text.collect();
    let documents = read_documents("policy.yaml", &text).unwrap();
    let policies: Vec<Policy> = documents.into_iter().map(|located| located.document.into()).collect();
    Engine::compile(&policies, Memory::new(0), &CompileOptions::default())
}

fn server(url: &str, credential: &str) -> String {
    let credential = if credential.is_empty() { String::new() } else { format!(", credential: {{{credential}}}") };
    format!("{{name: bank, url: '{url}'{credential}, defaultAction: Allow}}")
}

const HERE: &str = "https://here.test/mcp";
const THERE: &str = "https://there.test/mcp";
const A: &str = "bearer: {secretKey: a}";
const B: &str = "bearer: {secretKey: b}";

#[test]
fn a_credential_goes_only_to_the_url_that_the_same_policy_gives() {
    for (policies, url, key) in [
        (vec![(HERE, A)], HERE, Some("a")),
        (vec![(HERE, ""), (HERE, A)], HERE, Some("a")),
        (vec![(HERE, A), (HERE, "")], HERE, Some("a")),
        (vec![(HERE, A), (HERE, A)], HERE, Some("a")),
        // The newer one's url does not hold, and the same credential is given for the one that does.
        (vec![(HERE, A), (THERE, A)], HERE, Some("a")),
        (vec![(HERE, A), (THERE, "")], HERE, Some("a")),
        (vec![(HERE, "")], HERE, None),
    ] {
        let servers: Vec<String> = policies.iter().map(|(url, credential)| server(url, credential)).collect();
        let policies: Vec<(&str, &str)> = ["p0", "p1"].into_iter().zip(servers.iter().map(String::as_str)).collect();
        let (engine, _) = compile(&policies);
        let view = engine.server("bank").unwrap();
        let found = view.credential.and_then(|credential| credential.bearer.as_ref()).map(|bearer| bearer.secret_key.as_str());
        assert_eq!((view.url, found), (Some(url), key), "{policies:?}");
        assert!(engine.closed("bank").is_none());
    }
}

#[test]
fn policies_that_disagree_on_it_close_the_server_and_no_other() {
    for (first, second, path, said) in [
        ((HERE, A), (HERE, B), "spec.servers[0].credential", "differs from that of the older policy n/p0"),
        ((HERE, ""), (THERE, A), "spec.servers[0].credential", "says that the server is at https://here.test/mcp"),
    ] {
        let servers = [server(first.0, first.1), server(second.0, second.1)];
        let other = "{name: shop, url: https://shop.test, defaultAction: Allow}";
        let (engine, problems) = compile(&[("p0", &servers[0]), ("p1", &servers[1]), ("p2", other)]);
        let conflicts: Vec<&Problem> = problems.iter().filter(|problem| problem.error.path == path).collect();
        assert_eq!(conflicts.len(), 1, "{problems:?}");
        assert_eq!((conflicts[0].policy, conflicts[0].severity), (1, Severity::Closed));
        assert!(conflicts[0].error.message.contains(said), "{}", conflicts[0].error);
        let denial = engine.closed("bank").unwrap();
        assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::InvalidPolicy, Some("n/p1")));
        assert!(denial.message.contains("policies disagree on the server's credential") && denial.message.contains(said));
        assert!(engine.server("bank").unwrap().credential.is_none() && engine.closed("shop").is_none());
        assert!(!engine.may_use("bank", Operation::tool("any"), None) && engine.may_use("shop", Operation::tool("any"), None));
    }
}

#[test]
fn of_a_policy_that_does_not_compile_nothing_is_shown_to_anybody() {
    let broken = server(HERE, "bearer: {secretKey: '../token'}");
    let text =
        format!("apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: p}}\nspec: {{servers: [{broken}]}}\n");
    assert!(read_documents("policy.yaml", &text).is_err());
    let spec =
        serde_json::json!({"servers": [{"name": "bank", "url": HERE, "credential": {"bearer": {"secretKey": "../token"}}}]});
    let id = PolicyId { cluster: false, namespace: "n".to_owned(), name: "p".to_owned() };
    let policy = Policy { id, created: None, spec: serde_json::from_value(spec).unwrap(), version: None, unreadable: None };
    let (engine, _) = Engine::compile(&[policy], Memory::new(0), &CompileOptions::default());
    assert!(engine.server("bank").unwrap().credential.is_none() && engine.closed("bank").is_some());
}

#[test]
fn a_credential_that_goes_over_the_network_in_clear_text_is_doubted() {
    let grant = |url: &str| format!("oauth2ClientCredentials: {{tokenUrl: '{url}', clientIdKey: i, clientSecretKey: s}}");
    for (url, credential, paths) in [
        ("http://bank.test/mcp", A.to_owned(), vec!["spec.servers[0].credential"]),
        ("https://bank.test/mcp", A.to_owned(), vec![]),
        ("http://127.0.0.1:8000/mcp", A.to_owned(), vec![]),
        ("http://[::1]:8000/mcp", A.to_owned(), vec![]),
        ("http://localhost/mcp", A.to_owned(), vec![]),
        ("http://bank.test/mcp", String::new(), vec![]),
        (
            "https://bank.test/mcp",
            grant("http://idp.test/token"),
            vec!["spec.servers[0].credential.oauth2ClientCredentials.tokenUrl"],
        ),
    ] {
        let (_, problems) = compile(&[("p", &server(url, &credential))]);
        let found: Vec<&str> = problems.iter().map(|problem| problem.error.path.as_str()).collect();
        assert_eq!(found, paths, "{url} {credential}");
        assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt));
    }
}
