//! Policies of files, compiled together: what they are warned of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use toolweir_crds::policy_files::PolicyText;
use toolweir_engine::{
    CompileOptions, Memory,
    policy_files::{Urls, compile_files},
};

/// The warnings of files `0.yaml`, `1.yaml` and so on, each with a policy of these servers. One of the server `*` is of the cluster.
fn warnings(servers: &[&str]) -> Vec<String> {
    let text = |(index, servers): (usize, &&str)| {
        let (kind, namespace) =
            if servers.starts_with("{name: '*'") { ("MCPClusterPolicy", "") } else { ("MCPPolicy", ", namespace: agents") };
        let text = format!(
            "apiVersion: toolweir.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{index}{namespace}}}\nspec:\n  servers:\n  - {}\n",
            servers.replace("; ", "\n  - ")
        );
        PolicyText { file: format!("{index}.yaml"), text }
    };
    let texts: Vec<PolicyText> = servers.iter().enumerate().map(text).collect();
    let compiled = compile_files(&texts, Memory::new(Memory::COUNTERS), &CompileOptions::default(), Urls::Unused, |_| Vec::new());
    compiled.unwrap_or_else(|errors| panic!("{errors:#?}")).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_from_before_prompts_and_resources_is_warned_of_what_it_now_denies() {
    assert_eq!(
        warnings(&[
            "{name: a, tools: [{name: t}]}; {name: b, defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}}"
        ]),
        [
            "0.yaml:6:5: spec.servers[0]: no policy here says which prompts and resources may be used, what the server may ask for, and which \
          other methods may be used, so that all of it is denied; write `defaultActions: {prompts: Allow, resources: Allow, requests: Allow, other: Allow}` \
          to let it pass, or the same with `Deny` to keep it closed (docs/operations.md#upgrading)"
        ]
    );
}

#[test]
fn a_warning_names_the_kinds_without_a_say_and_no_others() {
    for (server, expected) in [
        ("{name: a, prompts: [], defaultActions: {requests: Deny, other: Allow}}", "says which resources may be read, so"),
        ("{name: a, resources: [], requests: [], defaultActions: {other: Deny}}", "says which prompts may be used, so"),
        ("{name: a, prompts: [], resources: []}", "says what the server may ask for and which other methods may be used, so"),
        ("{name: a, requests: [], defaultActions: {other: Deny}}", "says which prompts and resources may be used, so"),
        (
            "{name: a, prompts: [], resources: [], requests: []}",
            "denied; write `defaultActions: {other: Allow}` to let it pass, or",
        ),
    ] {
        let found = warnings(&[server]);
        assert!(found.len() == 1 && found[0].contains(expected), "{server}: {found:?}");
    }
}

#[test]
fn a_server_that_several_policies_name_is_warned_of_once_and_a_say_of_any_is_enough() {
    let found = warnings(&["{name: a, prompts: []}", "{name: b, resources: []}; {name: a, resources: []}"]);
    let places: Vec<&str> = found.iter().map(|warning| warning.split(": no ").next().unwrap()).collect();
    assert_eq!(places, ["0.yaml:6:5: spec.servers[0]", "1.yaml:6:5: spec.servers[0]"]);
    assert!(found[0].contains("says what the server may ask for and which other methods"), "{found:?}");
    assert!(found[1].contains("says which prompts may be used, what"), "{found:?}");
    let guardrail =
        "{name: '*', defaultAction: Allow, defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}}";
    assert_eq!(warnings(&["{name: a}", guardrail]), Vec::<String>::new());
    assert_eq!(warnings(&["{name: '*', defaultAction: Allow}"]), Vec::<String>::new(), "no server is named");
}
