//! Decisions that depend on the definitions of tools: their classes, and pins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/calls.rs"]
mod calls;

use std::collections::BTreeSet;

use calls::{SECOND, allowed, cluster_policy, compile, engine, policy, reason, tools};
use proptest::{collection::vec, prelude::*, sample::select};
use toolweir_crds::{MCPToolPinsSpec, OperationKind, PartDigests, PinnedPart, PinnedTool, ToolClass, ToolPart, ToolPins};
use toolweir_engine::{Call, Decision, Engine, Operation, PinDrift, PinState, Policy, Reason, SeenTool, Timestamp};

fn decide(engine: &Engine, tool: &str, seen: Option<&SeenTool>, seconds: u64) -> Decision {
    engine.decide(
        &Call { server: "s", operation: Operation::tool(tool), arguments: None, session: "", seen },
        Timestamp(seconds * SECOND),
    )
}

fn of(class: ToolClass) -> SeenTool {
    SeenTool::new(class, PartDigests::default())
}

mod classes {
    use super::*;

    #[track_caller]
    fn check(entries: &str, tool: &str, expected: [(ToolClass, Reason); 6]) {
        let engine = engine(&[tools(entries)]);
        for (class, why) in expected {
            let seen = of(class);
            assert_eq!(reason(&decide(&engine, tool, Some(&seen), 0)), why, "{entries}: {tool}, {class:?}");
            assert_eq!(
                engine.may_use("s", Operation::tool(tool), Some(&seen)),
                why == Reason::None,
                "{entries}: {tool}, {class:?}"
            );
        }
        let unknown = reason(&decide(&engine, tool, Some(&of(ToolClass::Unknown)), 0));
        assert_eq!(reason(&decide(&engine, tool, None, 0)), unknown, "what was never listed is unknown");
    }

    fn each(why: [Reason; 6]) -> [(ToolClass, Reason); 6] {
        std::array::from_fn(|index| (ToolClass::ALL[index], why[index]))
    }

    #[test]
    fn an_entry_is_for_the_tools_of_its_class() {
        use Reason::{Denied, None, NotListed};
        for (entries, expected) in [
            // Read, Write, Execute, Destructive, Financial, Unknown
            ("{class: Read}", [None, NotListed, NotListed, NotListed, NotListed, NotListed]),
            ("{class: Read, action: Allow}, {class: Write}", [None, None, NotListed, NotListed, NotListed, NotListed]),
            ("{name: '*', action: Allow}, {class: Destructive, action: Deny}", [None, None, None, Denied, None, Denied]),
            ("{name: '*', action: Allow}, {class: Unknown, action: Deny}", [None, None, None, None, None, Denied]),
            ("{class: Read}, {class: Financial, action: Deny}", [None, NotListed, NotListed, NotListed, Denied, Denied]),
        ] {
            check(entries, "any", each(expected));
        }
    }

    #[test]
    fn an_allow_by_class_never_overrides_a_denial_by_name_or_glob_of_whatever_weight() {
        use Reason::Denied;
        for denies in ["pay", "PAY", "pa*", "*", "P*"] {
            let all = "{class: Read}, {class: Write}, {class: Execute}, {class: Destructive}, {class: Financial}";
            check(&format!("{all}, {{name: '{denies}', action: Deny}}"), "pay", each([Denied; 6]));
        }
    }

    #[test]
    fn a_denial_by_class_gives_way_to_an_exact_name_alone() {
        use Reason::{Denied, None};
        let denied_for_read = each([Denied, None, None, None, None, Denied]);
        for allows in ["*", "p*", "pa*y"] {
            let entries = format!("{{name: '{allows}', action: Allow}}, {{class: Read, action: Deny}}");
            check(&entries, "pay", denied_for_read);
        }
        check("{name: pay}, {class: Read, action: Deny}, {class: Unknown, action: Deny}", "pay", each([None; 6]));
        check("{name: pay}, {name: '*', action: Allow}, {class: Read, action: Deny}", "PAY", denied_for_read);
    }

    #[test]
    fn what_restricts_a_class_restricts_what_is_not_known_too() {
        let limited = "{name: '*', action: Allow}, {class: Read, limits: [{max: 1, window: minute}]}";
        for (class, expected) in
            [(ToolClass::Read, Reason::RateLimit), (ToolClass::Unknown, Reason::RateLimit), (ToolClass::Write, Reason::None)]
        {
            let engine = engine(&[tools(limited)]);
            allowed(decide(&engine, "a", Some(&of(class)), 0));
            assert_eq!(reason(&decide(&engine, "b", Some(&of(class)), 1)), expected, "{class:?}");
        }
    }

    #[test]
    fn the_limits_of_a_class_and_of_a_tool_with_its_name_count_apart() {
        let entries =
            "{class: Read, limits: [{max: 1, window: minute}]}, {name: 'class:Read', limits: [{max: 1, window: minute}]}";
        let (engine, doubts) = compile(&[tools(entries)]);
        assert!(doubts[0].error.message.contains("for a class, write `class: Read`"), "{doubts:?}");
        allowed(decide(&engine, "any", Some(&of(ToolClass::Read)), 0));
        allowed(decide(&engine, "class:Read", Some(&of(ToolClass::Write)), 1));
        assert_eq!(reason(&decide(&engine, "class:Read", Some(&of(ToolClass::Write)), 2)), Reason::RateLimit);
    }

    #[test]
    fn of_several_definitions_the_worst_class_counts() {
        let mut seen = of(ToolClass::Read);
        seen.add(ToolClass::Destructive, PartDigests::default());
        seen.add(ToolClass::Write, PartDigests::default());
        assert_eq!((seen.class, seen.definitions.len()), (ToolClass::Destructive, 1));
    }

    #[test]
    fn one_guardrail_is_for_all_servers() {
        let guardrail = cluster_policy(
            "guard",
            "servers: [{name: '*', defaultAction: Allow, tools: [{class: Destructive, action: Deny, reason: Ask first.}]}]",
        );
        let team = policy("p", "servers: [{name: s, url: 'http://s/mcp', tools: [{name: drop_all}, {name: get}]}]");
        let engine = engine(&[guardrail, team]);
        let decision = decide(&engine, "drop_all", Some(&of(ToolClass::Destructive)), 0);
        let denial = decision.denial().unwrap();
        assert_eq!(denial.message, "Denied by policy guard: Ask first.");
        assert_eq!(denial.entry.as_deref(), Some("class:Destructive"));
        allowed(decide(&engine, "get", Some(&of(ToolClass::Read)), 0));
        // Nobody listed it: it may be anything.
        assert_eq!(reason(&decide(&engine, "get", None, 0)), Reason::Denied);
        assert!(engine.depends_on_definition("s", "get") && !engine.depends_on_definition("s", "other"));
        assert!(engine.server("s").unwrap().reads_definitions);
    }

    #[test]
    fn a_call_depends_on_the_definition_only_where_its_class_makes_a_difference() {
        for (entries, tool, depends) in [
            ("{name: pay}, {class: Read}", "pay", false),
            ("{name: pay}, {class: Read}", "any", true),
            ("{name: pay}, {class: Read, limits: [{max: 1, window: minute}]}", "pay", true),
            ("{name: pay, action: Deny}, {class: Read}", "pay", false),
            ("{name: '*', action: Allow}, {class: Read, action: Deny}", "any", true),
            ("{name: '*', action: Deny}, {class: Read}", "any", false),
        ] {
            assert_eq!(engine(&[tools(entries)]).depends_on_definition("s", tool), depends, "{entries}: {tool}");
        }
    }

    #[test]
    fn policies_without_classes_and_pins_read_no_definition() {
        let engine = engine(&[tools("{name: '*', action: Allow}")]);
        assert!(!engine.server("s").unwrap().reads_definitions && !engine.depends_on_definition("s", "any"));
    }
}

mod pins {
    use super::*;

    fn digests(description: u8) -> PartDigests {
        let mut digests = PartDigests::default();
        digests.set(ToolPart::Description, [description; 32]);
        digests
    }

    fn pins(namespace: &str, name: &str) -> ToolPins {
        let part = PinnedPart { part: ToolPart::Description, sha256: "01".repeat(32), text: String::new(), cut: false };
        let tool = |name: &str, parts| PinnedTool { name: name.to_owned(), parts };
        let broken = PinnedPart { sha256: "no digest".to_owned(), ..part.clone() };
        let spec = MCPToolPinsSpec { server: "s".to_owned(), tools: vec![tool("pay", vec![part]), tool("broken", vec![broken])] };
        ToolPins { namespace: namespace.to_owned(), name: name.to_owned(), spec }
    }

    fn pinned(pins: &str) -> Policy {
        policy("p", &format!("servers: [{{name: s, url: 'http://s/mcp', defaultAction: Allow, pins: {{{pins}}}}}]"))
    }

    fn with(policies: &[Policy]) -> Engine {
        engine(policies).with_pins(&[pins("agents", "mine"), pins("platform", "mine")])
    }

    const AS_PINNED: u8 = 1;
    const OTHER: u8 = 2;

    #[test]
    fn a_tool_that_changed_is_denied_in_words_that_name_the_part() {
        let engine = with(&[pinned("name: mine")]);
        let (same, other) = (SeenTool::new(ToolClass::Read, digests(AS_PINNED)), SeenTool::new(ToolClass::Read, digests(OTHER)));
        allowed(decide(&engine, "pay", Some(&same), 0));
        for (tool, seen, why, words) in [
            (
                "pay",
                Some(&other),
                Reason::PinDrift,
                "Denied by policy agents/p: pay is not as it was when it was pinned: description changed. It may not be called until a person has looked at it and pinned it again.",
            ),
            (
                "pay",
                None,
                Reason::PinUnverified,
                "Denied by policy agents/p: pay is pinned, and its server's list could not be read to see whether it is as it was. List the tools, then try again.",
            ),
            (
                "new",
                Some(&same),
                Reason::NotPinned,
                "Denied by policy agents/p: new is not pinned. It may not be called until a person has looked at it and pinned it.",
            ),
            (
                "broken",
                Some(&same),
                Reason::PinUnverified,
                "Denied by policy agents/p: broken is pinned, and its server's list could not be read to see whether it is as it was. List the tools, then try again.",
            ),
        ] {
            let decision = decide(&engine, tool, seen, 0);
            let denial = decision.denial().unwrap();
            assert_eq!((denial.reason, denial.message.as_str()), (why, words));
            assert_eq!(denial.changed.contains(ToolPart::Description), why == Reason::PinDrift);
            assert!(!engine.may_use("s", Operation::tool(tool), seen), "{tool}");
        }
        assert!(engine.may_use("s", Operation::tool("pay"), Some(&same)));
        assert_eq!(engine.drift("s", "pay", &same), []);
        let [PinDrift { pins, state: PinState::Changed(parts), denies: true }] = &engine.drift("s", "pay", &other)[..] else {
            panic!("no drift")
        };
        assert_eq!((&**pins, parts.to_string()), ("agents/mine", "description".to_owned()));
    }

    #[test]
    fn pins_that_are_not_there_verify_nothing() {
        let engine = engine(&[pinned("name: gone")]).with_pins(&[]);
        let decision = decide(&engine, "pay", Some(&SeenTool::new(ToolClass::Read, digests(AS_PINNED))), 0);
        let denial = decision.denial().unwrap();
        let words = "Denied by policy agents/p: its pins agents/gone are not there, so that nobody knows whether pay is as it was. Ask whoever keeps the policy.";
        assert_eq!((denial.reason, denial.message.as_str()), (Reason::PinUnverified, words));
    }

    #[test]
    fn all_definitions_of_a_tool_must_be_as_pinned() {
        let engine = with(&[pinned("name: mine")]);
        for both in [[AS_PINNED, OTHER], [OTHER, AS_PINNED]] {
            let mut seen = SeenTool::new(ToolClass::Read, digests(both[0]));
            seen.add(ToolClass::Read, digests(both[1]));
            assert_eq!(reason(&decide(&engine, "pay", Some(&seen), 0)), Reason::PinDrift);
        }
    }

    #[test]
    fn the_policy_says_what_becomes_of_drift_and_of_new_tools() {
        let other = SeenTool::new(ToolClass::Read, digests(OTHER));
        for (pins, tool, labels, shown) in [
            ("name: mine", "pay", ("denied", Reason::PinDrift), false),
            ("name: mine, onDrift: Deny", "pay", ("denied", Reason::PinDrift), false),
            ("name: mine, onDrift: Hide", "pay", ("denied", Reason::PinDrift), false),
            ("name: mine, onDrift: Audit", "pay", ("would_deny", Reason::PinDrift), true),
            ("name: mine, onDrift: Audit", "new", ("denied", Reason::NotPinned), false),
            ("name: mine, onNew: Audit", "new", ("would_deny", Reason::NotPinned), true),
            ("name: mine, onNew: Allow", "new", ("allowed", Reason::None), true),
            ("name: mine, onNew: Allow", "pay", ("denied", Reason::PinDrift), false),
            ("name: gone, onDrift: Audit", "pay", ("would_deny", Reason::PinUnverified), true),
        ] {
            let engine = with(&[pinned(pins)]);
            assert_eq!(decide(&engine, tool, Some(&other), 0).labels(), labels, "{pins}: {tool}");
            assert_eq!(engine.may_use("s", Operation::tool(tool), Some(&other)), shown, "{pins}: {tool}");
            let verdicts = engine.verdicts("s", OperationKind::Tool);
            assert!(verdicts.iter().any(|verdict| (verdict.decision, verdict.reason) == labels), "{pins}: {verdicts:?}");
        }
        let hidden = with(&[pinned("name: mine, onDrift: Hide")]);
        let decision = decide(&hidden, "pay", Some(&other), 0);
        let words = "Denied by policy agents/p: pay is not among the tools that may be called. Use one that tools/list shows.";
        assert_eq!(decision.denial().unwrap().message, words);
        let told = serde_json::to_value(decision.denial().unwrap()).unwrap();
        assert_eq!(told["reason"], "not_listed", "the agent learns nothing of pins");
    }

    #[test]
    fn a_guardrail_has_pins_of_another_namespace() {
        let entry = "{name: s, url: 'http://s/mcp', defaultAction: Allow, pins: {name: mine, namespace: platform}}";
        let engine = engine(&[cluster_policy("guard", &format!("servers: [{entry}]"))]).with_pins(&[pins("platform", "mine")]);
        allowed(decide(&engine, "pay", Some(&SeenTool::new(ToolClass::Read, digests(AS_PINNED))), 0));
        assert_eq!(engine.named_pins("s").iter().map(|pins| &***pins).collect::<Vec<_>>(), ["platform/mine"]);
    }

    #[test]
    fn the_policy_names_its_own_pins_alone() {
        for (spec, message) in [
            ("servers: [{name: s, pins: {name: a, namespace: b}}]", "remove it"),
            ("servers: [{name: s, pins: {name: A}}]", "is not a Kubernetes name"),
            ("servers: [{name: s, tools: [{name: a, class: Read}]}]", "has a name and a class"),
            ("servers: [{name: s, tools: [{action: Deny}]}]", "is left out or empty"),
            ("servers: [{name: s, tools: [{class: Unknown}]}]", "allows nothing"),
            ("servers: [{name: s, tools: [{class: Read}, {class: Read}]}]", "`Read` is also the class of tools[0]"),
        ] {
            let text = format!("{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}");
            let errors = toolweir_crds::read_documents("p", &text).unwrap_err();
            assert!(errors.iter().any(|error| error.to_string().contains(message)), "{spec}: {errors:?}");
        }
    }
}

const NAMES: [&str; 6] = ["get_x", "drop_x", "GET_X", "g*", "*_x", "*"];

fn entries(actions: &'static [&'static str]) -> impl Strategy<Value = String> {
    let entry = |name: &str, action: &str| format!("{{name: '{name}', action: {action}}}");
    vec((select(NAMES.to_vec()), select(actions.to_vec())), 0..4).prop_map(move |entries| {
        let mut seen = BTreeSet::new();
        let entries = entries.into_iter().filter(|(name, _)| seen.insert(*name));
        entries.map(|(name, action)| entry(name, action)).collect::<Vec<_>>().join(", ")
    })
}

proptest! {
    /// Whatever a server says of its tools: what names and globs deny stays denied, with entries that allow every class beside them.
    #[test]
    fn a_lying_definition_never_opens_what_a_name_or_glob_closes(
        named in entries(&["Allow", "Deny"]),
        default in select(vec!["Allow", "Deny"]),
        classes in proptest::sample::subsequence(vec!["Read", "Write", "Execute", "Destructive", "Financial"], 0..=5),
        tool in select(vec!["get_x", "drop_x", "Get_X", "other"]),
    ) {
        let policy = |tools: &str| {
            policy("p", &format!("servers: [{{name: s, url: 'http://s/mcp', defaultAction: {default}, tools: [{tools}]}}]"))
        };
        let by_class: Vec<String> = classes.iter().map(|class| format!("{{class: {class}, action: Allow}}")).collect();
        let both = [named.as_str(), &by_class.join(", ")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
        let (with_classes, problems) = compile(&[policy(&both)]);
        let (without, same) = compile(&[policy(&named)]);
        prop_assert_eq!(problems.len(), same.len());
        for class in ToolClass::ALL {
            let seen = of(class);
            let before = decide(&without, tool, Some(&seen), 0);
            let after = decide(&with_classes, tool, Some(&seen), 0);
            if matches!(reason(&before), Reason::Denied | Reason::InvalidPolicy) {
                prop_assert_eq!(reason(&after), reason(&before), "{} {:?}", both, class);
            }
            if class == ToolClass::Unknown {
                prop_assert_eq!(reason(&after), reason(&before), "what is not known is not opened");
            }
        }
    }
}
