//! A suggested policy as a manifest with comments.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{anyhow, bail};
use toolweir_crds::{API_VERSION, Document, MCPToolPinsSpec, bounds, document::Located, quoting::scalar, read_documents};
use toolweir_engine::{CompileOptions, Engine, Memory, Severity};

use super::{
    observations::{Observations, WINDOWS},
    others,
    rules::{SuggestedEntry, SuggestedRule, ToolFacts, by_class, by_use},
};
use crate::{
    pins::manifest::{ManifestName, pins_manifest},
    table::shown,
    tools::other_lists::OtherLists,
    yaml_text::comment,
};

/// A server, as far as its policy depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its name in the policy.
    pub name: String,
    /// Its url, if it has one.
    pub url: Option<String>,
    /// Whether the url had a query, which is left out.
    pub query_left_out: bool,
    /// Where its tools were read, in words.
    pub origin: String,
    /// Its tools, in its order.
    pub tools: Vec<ToolFacts>,
    /// What it lists beside tools, where that was read.
    pub others: Option<OtherLists>,
    /// What its tools look like, where they are to be pinned.
    pub pins: Option<MCPToolPinsSpec>,
}

/// What the policy is called, and whom it governs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFacts {
    /// Its name.
    pub name: String,
    /// Its namespace, if it is known.
    pub namespace: Option<String>,
    /// The labels of the pods that it governs; none: all of the namespace.
    pub pod_labels: BTreeMap<String, String>,
}

/// Suggests a policy for the tools of servers: by their classes, or by what agents did. The manifest compiles, and is the same for the
/// same input.
///
/// # Errors
/// A policy has no room for all, no call was observed on a server, or a name or url does not fit into a policy.
pub fn suggest(policy: &PolicyFacts, servers: &[ServerFacts], observed: Option<&Observations>) -> anyhow::Result<String> {
    let mut text = header(servers, observed);
    let mut line = |text_of: std::fmt::Arguments<'_>| {
        // A write to a text does not fail.
        let _ = writeln!(text, "{text_of}");
    };
    line(format_args!("apiVersion: {API_VERSION}\nkind: MCPPolicy\nmetadata:\n  name: {}", scalar(&policy.name)));
    if let Some(namespace) = &policy.namespace {
        line(format_args!("  namespace: {}", scalar(namespace)));
    }
    line(format_args!("spec:"));
    if policy.pod_labels.is_empty() {
        line(format_args!("  # Without podSelector, it governs every pod of its namespace that has a sidecar."));
    } else {
        line(format_args!("  podSelector:\n    matchLabels:"));
        for (key, value) in &policy.pod_labels {
            line(format_args!("      {}: {}", scalar(key), scalar(value)));
        }
    }
    line(format_args!("  servers:"));
    for server in servers {
        text.push_str(&server_text(server, observed)?);
    }
    for server in servers {
        let Some(spec) = &server.pins else { continue };
        let name = ManifestName { name: &server.name, namespace: policy.namespace.as_deref() };
        text.push_str(&format!("---\n{}", pins_manifest(&name, spec, &server.origin)?));
    }
    compiled(&text)?;
    Ok(text)
}

/// The comments at the top.
fn header(servers: &[ServerFacts], observed: Option<&Observations>) -> String {
    let mut text = String::new();
    let basis = if observed.is_some() { "what agents did" } else { "the classes of the tools" };
    comment(&mut text, 0, &format!("Suggested by toolweir from {basis}. Look at it before you apply it."));
    for server in servers {
        let (count, origin) = (server.tools.len(), &server.origin);
        let tools = if count == 1 { "tool" } else { "tools" };
        comment(&mut text, 0, &format!("{}: {count} {tools}, read from {origin}", server.name));
    }
    let Some(Observations { pods, seconds, least_seconds, dropped, .. }) = observed else { return text };
    let pods = if *pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") };
    let span = |seconds: u64| humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
    let spent = if least_seconds == seconds { span(*seconds) } else { format!("{} to {}", span(*least_seconds), span(*seconds)) };
    comment(
        &mut text,
        0,
        &format!("Observed: {pods}, for {spent}. Each limit is the largest number that is less than twice the peak."),
    );
    let unknown: Vec<&str> = WINDOWS.iter().filter(|(_, length)| length > seconds).map(|(window, _)| *window).collect();
    match unknown.as_slice() {
        [] => {}
        ["minute", ..] => comment(&mut text, 0, "That is less than a minute, so the limits are guesses: observe for longer."),
        windows => comment(
            &mut text,
            0,
            &format!("That is too short for limits of: {}. Observe for longer to get them.", windows.join(", ")),
        ),
    }
    if least_seconds != seconds {
        let said = "A tool has no limit for a window that is longer than one of the pods that called it was observed.";
        comment(&mut text, 0, said);
    }
    if *dropped > 0 {
        let calls = if *dropped == 1 { "1 call was".to_owned() } else { format!("{dropped} calls were") };
        comment(
            &mut text,
            0,
            &format!("{calls} not kept by tool (droppedCalls in docs/sidecar.md): their tools may be missing here."),
        );
    }
    text
}

/// A server, with its entries.
fn server_text(server: &ServerFacts, observed: Option<&Observations>) -> anyhow::Result<String> {
    let (entries, uncalled) = match observed {
        None => (by_class(&server.tools), 0),
        Some(observed) => by_use(&server.tools, &server.name, observed),
    };
    if observed.is_some() && entries.is_empty() {
        let seen: Vec<_> = observed.into_iter().flat_map(Observations::servers).map(shown).collect();
        if seen.is_empty() {
            bail!(
                "no call was let through while it was observed; let the agent work first, under a policy in mode Audit for example"
            );
        }
        bail!(
            "no call was observed on the server {}, but on {}; name one of these with --server",
            shown(&server.name),
            seen.join(", ")
        );
    }
    let many = entries.iter().filter(|entry| entry.rule.is_some()).count();
    if many > bounds::TOOLS {
        let used = if observed.is_some() { "" } else { "allow those that are used, with --from or --observed, or " };
        bail!(
            "a policy has room for {} entries of a server, and {many} tools need one; {used}write globs by hand",
            bounds::TOOLS
        );
    }
    let mut text = format!("  - name: {}\n", scalar(&server.name));
    match &server.url {
        Some(url) => {
            if server.query_left_out {
                let said = "The query of the URL is left out: it may hold a secret. Add it if the server needs it.";
                comment(&mut text, 4, said);
            }
            text.push_str(&format!("    url: {}\n", scalar(url)));
        }
        None => comment(&mut text, 4, "url: where the server is. Only toolweir-sidecar stdio needs none."),
    }
    if server.pins.is_some() {
        text.push_str(&format!("    pins: {{name: {}}}\n", scalar(&server.name)));
    }
    if uncalled > 0 {
        let tools = if uncalled == 1 { "1 other tool was" } else { &format!("{uncalled} other tools were") };
        comment(&mut text, 4, &format!("{tools} not called, and so denied."));
    }
    // What has no entry is denied; comments alone are no list.
    text.push_str(if many == 0 { "    tools: []\n" } else { "    tools:\n" });
    for entry in &entries {
        entry_text(&mut text, entry);
    }
    others::add_text(&mut text, server.others.as_ref());
    Ok(text)
}

fn entry_text(text: &mut String, entry: &SuggestedEntry) {
    for line in &entry.comments {
        comment(text, 4, line);
    }
    let Some((name, rule)) = &entry.rule else { return };
    text.push_str(&format!("    - name: {}\n", scalar(name)));
    match rule {
        SuggestedRule::Allow(limits) => {
            let limits: Vec<String> =
                limits.iter().map(|limit| format!("{{max: {}, window: {}}}", limit.max, limit.window)).collect();
            text.push_str(&format!("      limits: [{}]\n", limits.join(", ")));
        }
        SuggestedRule::Deny(reason) => text.push_str(&format!("      action: Deny\n      reason: {}\n", scalar(reason))),
    }
}

/// Reads a manifest back and compiles it, for kubectl and for the sidecar.
fn compiled(text: &str) -> anyhow::Result<()> {
    let fault = |why: &str| anyhow!("the suggested policy is not in order, which is a fault of this program: {why}");
    let read =
        read_documents("policy", text).map_err(|errors| fault(&errors.first().map(ToString::to_string).unwrap_or_default()))?;
    if let Some(error) = read.iter().flat_map(Located::unquoted).next() {
        return Err(fault(&error.to_string()));
    }
    let policies: Vec<_> = read.into_iter().map(|located| located.document).map(Document::into).collect();
    let options = CompileOptions { of_any_pod: true, ..CompileOptions::default() };
    let (_, problems) = Engine::compile(&policies, Memory::new(0), &options);
    match problems.into_iter().find(|problem| problem.severity == Severity::Invalid) {
        Some(problem) => Err(fault(&problem.error.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toolweir_crds::{
        Action, MCPPolicySpec, ToolClass,
        observed::{ObservedResponse, ObservedTool},
        tool_name,
    };

    use super::*;

    fn tool(name: &str, class: ToolClass, why: &str) -> ToolFacts {
        ToolFacts { name: name.to_owned(), class, why: why.to_owned() }
    }

    fn policy(name: &str) -> PolicyFacts {
        PolicyFacts { name: name.to_owned(), ..PolicyFacts::default() }
    }

    fn facebook() -> ServerFacts {
        ServerFacts {
            name: "facebook".to_owned(),
            url: Some("http://127.0.0.1:8000/mcp".to_owned()),
            query_left_out: false,
            origin: "http://127.0.0.1:8000/mcp".to_owned(),
            pins: None,
            others: None,
            tools: vec![
                tool("get_page_posts", ToolClass::Read, "\"get\" in the name"),
                tool("send_dm_to_user", ToolClass::Write, "\"send\" in the name"),
                tool("run", ToolClass::Execute, "\"run\" in the name"),
                tool("delete_post", ToolClass::Destructive, "\"delete\" in the name"),
                tool("pay", ToolClass::Financial, "\"pay\" in the name"),
                tool("yes", ToolClass::Unknown, ""),
            ],
        }
    }

    fn seen(server: &str, tool: &str, calls: u64, [peak_minute, peak_hour, peak_day]: [u64; 3]) -> ObservedTool {
        ObservedTool { server: server.to_owned(), tool: tool.to_owned(), calls, denied: 0, peak_minute, peak_hour, peak_day }
    }

    fn spec(text: &str) -> MCPPolicySpec {
        let mut read = read_documents("policy", text).unwrap();
        match read.remove(0).document {
            Document::MCPPolicy { spec, .. } => spec,
            Document::MCPClusterPolicy { .. } => panic!("{text}"),
        }
    }

    #[test]
    fn each_class_has_its_rule_and_its_reason_above_it() {
        let golden = r#"# Suggested by toolweir from the classes of the tools. Look at it before you apply it.
# facebook: 6 tools, read from http://127.0.0.1:8000/mcp
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata:
  name: facebook
spec:
  # Without podSelector, it governs every pod of its namespace that has a sidecar.
  servers:
  - name: facebook
    url: http://127.0.0.1:8000/mcp
    tools:
    # Read (Low): "get" in the name
    - name: get_page_posts
      limits: [{max: 60, window: minute}]
    # Write (Medium): "send" in the name
    - name: send_dm_to_user
      limits: [{max: 30, window: minute}]
    # Execute (High): "run" in the name
    - name: run
      limits: [{max: 10, window: minute}]
    # Destructive (Critical): "delete" in the name
    - name: delete_post
      action: Deny
      reason: "delete_post is classed as Destructive. Ask the platform team to allow it."
    # Financial (Critical): "pay" in the name
    - name: pay
      action: Deny
      reason: "pay is classed as Financial. Ask the platform team to allow it."
    # Unknown (Critical)
    - name: "yes"
      action: Deny
      reason: "What yes does is not known. Ask the platform team to allow it."
    # Prompts and resources were not read: they are denied.
    # What the server asks of the agent, and methods without a list, are denied. Allow what the agent needs (docs/operations.md).
    defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}
"#;
        assert_eq!(suggest(&policy("facebook"), &[facebook()], None).unwrap(), golden);
    }

    #[test]
    fn limits_are_fitted_to_what_was_seen() {
        let mut observed = Observations::default();
        let calls = vec![seen("facebook", "send_dm_to_user", 412, [9, 61, 398]), seen("facebook", "delete_post", 1, [1, 1, 1])];
        observed.add(&ObservedResponse { seconds: 7200, tools: calls, dropped_calls: 3, ..ObservedResponse::default() });
        let labels = [("app", "social"), ("app.kubernetes.io/name", "no")];
        let facts = PolicyFacts {
            name: "social".to_owned(),
            namespace: Some("agents".to_owned()),
            pod_labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        };
        let golden = r#"# Suggested by toolweir from what agents did. Look at it before you apply it.
# facebook: 6 tools, read from http://127.0.0.1:8000/mcp
# Observed: 1 pod, for 2h. Each limit is the largest number that is less than twice the peak.
# That is too short for limits of: day. Observe for longer to get them.
# 3 calls were not kept by tool (droppedCalls in docs/sidecar.md): their tools may be missing here.
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata:
  name: social
  namespace: agents
spec:
  podSelector:
    matchLabels:
      app: social
      app.kubernetes.io/name: "no"
  servers:
  - name: facebook
    url: http://127.0.0.1:8000/mcp
    # 4 other tools were not called, and so denied.
    tools:
    # Write (Medium): "send" in the name
    # 412 calls; at most 9 in a minute, 61 in an hour
    - name: send_dm_to_user
      limits: [{max: 17, window: minute}, {max: 121, window: hour}]
    # Destructive (Critical): "delete" in the name. It was called, so it is allowed: look at it
    # 1 call; at most 1 in a minute, 1 in an hour
    - name: delete_post
      limits: [{max: 1, window: minute}, {max: 1, window: hour}]
    # Prompts and resources were not read: they are denied.
    # What the server asks of the agent, and methods without a list, are denied. Allow what the agent needs (docs/operations.md).
    defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}
"#;
        assert_eq!(suggest(&facts, &[facebook()], Some(&observed)).unwrap(), golden);
        let other = ServerFacts { name: "bank".to_owned(), ..facebook() };
        let error = suggest(&facts, &[other], Some(&observed)).unwrap_err().to_string();
        assert_eq!(error, "no call was observed on the server bank, but on facebook; name one of these with --server");
        let error = suggest(&facts, &[facebook()], Some(&Observations::default())).unwrap_err().to_string();
        assert!(error.starts_with("no call was let through while it was observed; let the agent work first"), "{error}");
    }

    #[test]
    fn names_of_servers_in_errors_do_not_move_the_cursor() {
        let mut observed = Observations::default();
        let calls = vec![seen("e\u{1b}[2Jv", "t", 1, [1; 3])];
        observed.add(&ObservedResponse { seconds: 90, tools: calls, ..ObservedResponse::default() });
        let error = suggest(&policy("a"), &[facebook()], Some(&observed)).unwrap_err().to_string();
        assert!(error.contains("but on e\u{fffd}[2Jv; name one"), "{error}");
    }

    #[test]
    fn a_query_is_left_out_and_a_comment_says_so() {
        let server = ServerFacts { query_left_out: true, ..facebook() };
        let text = suggest(&policy("a"), &[server], None).unwrap();
        assert!(text.contains("    # The query of the URL is left out: it may hold a secret."), "{text}");
    }

    #[test]
    fn less_than_a_minute_is_a_guess() {
        let mut observed = Observations::default();
        let calls = vec![seen("facebook", "pay", 2, [2, 2, 2])];
        observed.add(&ObservedResponse { seconds: 40, tools: calls, ..ObservedResponse::default() });
        let text = suggest(&policy("a"), &[facebook()], Some(&observed)).unwrap();
        assert!(text.contains("# That is less than a minute, so the limits are guesses: observe for longer.\n"), "{text}");
        assert!(text.contains("      limits: [{max: 3, window: minute}]\n"), "{text}");
    }

    #[test]
    fn a_server_without_a_url_or_without_tools_is_a_policy_too() {
        let bare = ServerFacts { name: "s".to_owned(), origin: "tools.json".to_owned(), ..ServerFacts::default() };
        let text = suggest(&policy("p"), &[bare], None).unwrap();
        let end = "  - name: s\n    # url: where the server is. Only toolweir-sidecar stdio needs none.\n    tools: []\n    # Prompts and";
        assert!(text.contains(end), "{text}");
    }

    #[test]
    fn more_tools_than_entries_are_told_with_what_helps() {
        let tools = (0..1025).map(|n| tool(&format!("t{n}"), ToolClass::Read, "")).collect();
        let error = suggest(&policy("p"), &[ServerFacts { tools, ..facebook() }], None).unwrap_err().to_string();
        assert_eq!(
            error,
            "a policy has room for 1024 entries of a server, and 1025 tools need one; allow those that are used, with --from or \
             --observed, or write globs by hand"
        );
    }

    #[test]
    fn texts_of_others_stay_in_their_comment() {
        let why = "a\n- name: evil\r\u{2028}\u{85}\u{202e}\u{0}\u{feff}é\"# b";
        let tools = vec![tool("x\u{2028}- name: y", ToolClass::Read, why), tool("z\nname: q", ToolClass::Read, why)];
        let text = suggest(&policy("p"), &[ServerFacts { tools, ..facebook() }], None).unwrap();
        assert!(text.contains("    # Read (Low): a - name: evil \u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}é\"# b\n"), "{text}");
        let names: Vec<String> = spec(&text).servers[0].tools.iter().map(|tool| tool.name.clone()).collect();
        assert_eq!(names, ["x\u{2028}- name: y"]);
        assert!(text.contains(r"# `z\nname: q` is denied: the name has a control character"), "{text}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever tools are called, the policy has exactly their entries, compiles, and is the same for the same input.
        #[test]
        fn any_names_give_the_entries_that_are_meant(
            tools in proptest::collection::btree_map(
                prop_oneof![
                    any::<String>(),
                    "[-a-zA-Z0-9_.~:#'\"\\\\ !&*?|>{}\\[\\]%@`,é\u{202e}\u{2028}\u{85}\u{a0}]{1,8}",
                    prop::sample::select(vec!["yes", "1e3", "0x10", "null", "~", "on", "a: b", "- a", "# a", "..", "---", "=", "<<", "A", "a"])
                        .prop_map(str::to_owned),
                ],
                (0..6_usize, any::<String>()),
                0..20,
            ),
        ) {
            let tools: Vec<ToolFacts> = tools.iter().map(|(name, (class, why))| tool(name, ToolClass::ALL[*class], why)).collect();
            let tools: Vec<ToolFacts> = tools.into_iter().filter(|tool| !tool.name.is_empty()).collect();
            let server = ServerFacts { tools: tools.clone(), ..facebook() };
            let text = suggest(&policy("p"), std::slice::from_ref(&server), None).unwrap();
            prop_assert_eq!(&suggest(&policy("p"), &[server], None).unwrap(), &text);
            let fits = |tool: &&ToolFacts| !tool.name.contains(char::is_control) && tool_name::exactly(&tool.name).len() <= 512;
            let meant = tools.iter().filter(fits).map(|tool| {
                let max = match tool.class {
                    ToolClass::Read => Some(60),
                    ToolClass::Write => Some(30),
                    ToolClass::Execute => Some(10),
                    _ => None,
                };
                (tool_name::exactly(&tool.name), max)
            });
            let read = spec(&text);
            let found = read.servers[0].tools.iter().map(|tool| {
                assert_eq!(tool.action == Some(Action::Deny), tool.limits.is_empty());
                (tool.name.clone(), tool.limits.first().map(|limit| limit.max))
            });
            prop_assert_eq!(found.collect::<Vec<_>>(), meant.collect::<Vec<_>>());
        }
    }
}
