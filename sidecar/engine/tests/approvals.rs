//! Calls that a person must approve: which policies ask for which calls, and what they ask.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::{slice, sync::Arc};

use calls::*;
use serde_json::{Value, json};
use toolweir_crds::{
    MCPToolPinsSpec, OperationKind, PartDigests, TimeSpan, ToolClass, ToolPins,
    approval_request::ShownValue,
    bounds,
    explain::{ApprovalExplanation, AskExplanation},
};
use toolweir_engine::{
    ApprovalAsk, Call, CompileOptions, Decision, DecisionStart, Engine, Memory, Operation, Policy, Reason, SeenTool, Timestamp,
    json::Reader,
    shared::{NothingKnown, Peeked},
};

/// A policy of this name with these entries for the server `s`.
fn named(name: &str, tools: &str) -> Policy {
    policy(name, &format!("servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
}

fn with_args<T>(arguments: &str, then: impl FnOnce(Call<'_>) -> T) -> T {
    let arguments = (!arguments.is_empty()).then(|| Reader::new(arguments.as_bytes()).unwrap().value().unwrap());
    then(Call { server: "s", operation: Operation::tool("pay"), arguments, session: "", seen: None })
}

/// Decides on a call of `pay` of which a person has approved this.
fn approved(engine: &Engine, arguments: &str, ask: &ApprovalAsk, seconds: u64) -> Decision {
    with_args(arguments, |call| match engine.begin_approved(&call, Some(ask), Timestamp(seconds * SECOND)) {
        DecisionStart::Decided(decision) => decision,
        DecisionStart::Pending(_) => panic!("no count is shared"),
    })
}

/// What must be asked for a call of `pay`.
#[track_caller]
fn ask(engine: &Engine, arguments: &str) -> ApprovalAsk {
    let denial = denied(call(engine, "pay", arguments, 0));
    assert_eq!(denial.reason, Reason::ApprovalPending, "{denial:?}");
    *denial.ask.expect("what to ask")
}

fn who(ask: &ApprovalAsk) -> Vec<String> {
    ask.policies.iter().map(|asking| asking.policy.to_string()).collect()
}

fn shown(ask: &ApprovalAsk) -> Vec<(&str, &str, bool)> {
    ask.shown.iter().map(|ShownValue { expression, value, cut }| (expression.as_str(), value.as_str(), *cut)).collect()
}

mod whether_a_call_is_asked_for {
    use super::*;

    #[test]
    fn where_the_condition_is_true_or_fails_and_not_where_it_is_false() {
        let engine = engine(&[tools("{name: pay, approval: {when: 'args.amount > 500'}}, {name: get}")]);
        for (arguments, expected) in [
            (r#"{"amount": 501}"#, Reason::ApprovalPending),
            (r#"{"amount": 500.5}"#, Reason::ApprovalPending),
            (r#"{"amount": 500}"#, Reason::None),
            // Left out, of another type, null: it fails.
            ("", Reason::ApprovalPending),
            (r#"{"amount": "1"}"#, Reason::ApprovalPending),
            (r#"{"amount": null}"#, Reason::ApprovalPending),
            // A server could take it for the amount.
            (r#"{"Amount": 501, "amount": 1}"#, Reason::Malformed),
            (r#"{"amount": 1, "amount": 501}"#, Reason::Malformed),
        ] {
            assert_eq!(reason(&call(&engine, "pay", arguments, 0)), expected, "{arguments}");
        }
        assert_eq!(reason(&call(&engine, "get", "", 0)), Reason::None);
        // Not a boolean: it asks.
        let engine = super::engine(&[tools("{name: pay, approval: {when: args.amount}}")]);
        assert_eq!(reason(&call(&engine, "pay", r#"{"amount": 0}"#, 0)), Reason::ApprovalPending);
    }

    #[test]
    fn where_there_is_no_condition_every_call_of_the_tools_in_any_case_or_of_a_class_that_is_not_known() {
        let all = |tools: &str| {
            policy("p", &format!("servers: [{{name: s, url: 'http://s/mcp', defaultAction: Allow, tools: [{tools}]}}]"))
        };
        let engine = engine(&[all(
            "{name: pay, approval: {}}, {name: 'close_*', approval: {}}, {class: Financial, action: Allow, approval: {}}",
        )]);
        let digests = PartDigests::default();
        let decide = |tool: &str, class: Option<ToolClass>| {
            let seen = class.map(|class| SeenTool::new(class, digests));
            let call = Call { server: "s", operation: Operation::tool(tool), arguments: None, session: "", seen: seen.as_ref() };
            reason(&engine.decide(&call, Timestamp(0)))
        };
        for (tool, class, expected) in [
            ("pay", Some(ToolClass::Read), Reason::ApprovalPending),
            ("PAY", Some(ToolClass::Read), Reason::ApprovalPending),
            ("close_account", Some(ToolClass::Read), Reason::ApprovalPending),
            ("Close_account", Some(ToolClass::Read), Reason::ApprovalPending),
            ("refund", Some(ToolClass::Financial), Reason::ApprovalPending),
            ("refund", Some(ToolClass::Unknown), Reason::ApprovalPending),
            ("refund", None, Reason::ApprovalPending),
            ("refund", Some(ToolClass::Write), Reason::None),
        ] {
            assert_eq!(decide(tool, class), expected, "{tool} {class:?}");
        }
        assert!(engine.depends_on_definition("s", "refund"), "by its class it asks");
        assert!(engine.may_use("s", Operation::tool("pay"), None), "it can be called");
    }

    #[test]
    fn nobody_is_asked_about_a_call_that_is_denied_anyway() {
        let approval = "approval: {when: 'args.n > 1'}";
        for (entries, expected) in [
            (format!("{{name: pay, {approval}, validations: [{{expression: 'args.n < 5'}}]}}"), Reason::Validation),
            // Its key or cost cannot be computed.
            (format!("{{name: pay, {approval}, limits: [{{max: 5, window: day, key: args.k}}]}}"), Reason::Validation),
            (format!("{{name: pay, {approval}, limits: [{{max: 5, window: day, cost: args.k}}]}}"), Reason::Validation),
            // It costs more than there ever is.
            (format!("{{name: pay, {approval}, limits: [{{max: 5, window: day, cost: args.n}}]}}"), Reason::RateLimit),
            (format!("{{name: pay, {approval}, limits: [{{max: 6, window: day, cost: args.n}}]}}"), Reason::ApprovalPending),
            (format!("{{name: '*', {approval}}}, {{name: pay, action: Deny}}"), Reason::Denied),
            (format!("{{name: '*', {approval}}}"), Reason::NotListed),
        ] {
            let engine = engine(&[tools(&entries)]);
            let denial = denied(call(&engine, "pay", r#"{"n": 6}"#, 0));
            assert_eq!((denial.reason, denial.ask.is_some()), (expected, expected == Reason::ApprovalPending), "{entries}");
        }
        // Nor where another policy denies it.
        let asks = named("a", "{name: pay, approval: {}}");
        for other in ["{name: get}", "{name: pay, action: Deny}", "{name: pay, validations: [{expression: 'false'}]}"] {
            let denial = denied(call(&engine(&[asks.clone(), named("b", other)]), "pay", "", 0));
            assert_eq!((denial.policy.as_deref(), denial.ask), (Some("agents/b"), None), "{other}");
        }
        // Nor about a tool that is not as it was pinned.
        let pinned = "servers: [{name: s, url: 'http://s/mcp', pins: {name: pinned}, tools: [{name: pay, approval: {}}]}]";
        let (engine, _) = compile(&[policy("p", pinned)]);
        let pins = ToolPins {
            namespace: "agents".to_owned(),
            name: "pinned".to_owned(),
            spec: MCPToolPinsSpec { server: "s".to_owned(), tools: Vec::new() },
        };
        assert_eq!(denied(call(&engine.with_pins(&[pins]), "pay", "", 0)).reason, Reason::NotPinned);
    }

    #[test]
    fn a_condition_that_takes_too_much_work_denies() {
        let text = format!("{{\"l\":[{}\"\"]}}", format!("\"{}\",", "a".repeat(60_000)).repeat(60));
        let goes_over = |pattern: &str| format!("args.l.all(x, x.matches('{pattern}'))");
        let [first, second] = ["^[a-z]*$", "^(a|b)*$"].map(goes_over);
        for (approval, expected) in [
            (format!("{{when: \"{first}\"}}"), Reason::ApprovalPending),
            (format!("{{when: \"{first} && {second}\"}}"), Reason::ExpressionBudget),
            // What is shown counts as well.
            (format!("{{show: [\"{first}\", \"{second}\"]}}"), Reason::ExpressionBudget),
        ] {
            let (engine, _) = compile(&[tools(&format!("{{name: pay, approval: {approval}}}"))]);
            assert_eq!(reason(&call(&engine, "pay", &text, 0)), expected, "{approval}");
        }
    }

    #[test]
    fn the_verdicts_of_a_tool_have_what_can_become_of_an_approval() {
        let asks = "{name: pay, approval: {when: 'args.n > 1'}}, {name: get}";
        let audit = policy("z", &format!("mode: Audit, servers: [{{name: s, tools: [{asks}]}}]"));
        let engine = engine(&[tools(asks), audit]);
        let verdicts = |tool: &str| {
            let verdicts = engine.verdicts("s", OperationKind::Tool).into_iter().filter(|verdict| verdict.name == Some(tool));
            verdicts.map(|verdict| format!("{} {} {}", verdict.decision, verdict.reason, verdict.policy)).collect::<Vec<_>>()
        };
        assert_eq!(
            verdicts("pay"),
            [
                "denied approval_pending agents/p",
                "denied approval_denied agents/p",
                "denied approval_expired agents/p",
                "denied approval_full agents/p",
                "denied approval_unavailable agents/p",
                "would_ask approval_pending agents/z",
                "allowed none agents/p",
            ]
        );
        assert_eq!(verdicts("get"), ["allowed none agents/p"]);
        let reads = engine.reads("s", Operation::tool("pay"));
        assert!(reads.arguments && !reads.session);
    }
}

mod what_is_asked {
    use super::*;

    #[test]
    fn one_request_names_all_policies_with_the_shortest_times_and_the_fewest_requests() {
        let engine = engine(&[
            named(
                "b",
                "{name: pay, approval: {message: 'Ask\n Jane.', show: [args.n, tool], hold: 20s, expiry: 1h, pending: 9}}",
            ),
            named(
                "a",
                "{name: pay, approval: {message: Ask., show: [args.k], hold: 50s, expiry: 10s, pending: 8}},
                 {name: 'p*', approval: {message: Ask., when: 'args.n == 1', hold: 0s}},
                 {name: '*', approval: {message: Jane., show: [args.n, 'args.k '], pending: 7}}",
            ),
            cluster_policy("c", "servers: [{name: '*', defaultAction: Allow, tools: [{name: pay, approval: {message: Ask.}}]}]"),
            // Asks for another.
            named("d", "{name: pay}, {name: get, approval: {hold: 0s}}"),
        ]);
        let ask = ask(&engine, r#"{"n": 2, "k": "x"}"#);
        assert_eq!(who(&ask), ["agents/a", "agents/b", "c"]);
        assert_eq!((ask.hold.as_secs(), ask.expiry.as_secs(), ask.pending), (20, 10, 5));
        assert_eq!(ask.message, "Ask. Jane. Ask Jane.");
        let values = [("args.k", "x", false), ("args.n", "2", false), ("args.k ", "x", false), ("tool", "pay", false)];
        assert_eq!(shown(&ask), values);
        let denial = denied(call(&engine, "pay", r#"{"n": 2}"#, 0));
        assert_eq!((denial.policy.as_deref(), denial.entry.as_deref()), (Some("agents/a"), Some("pay")));
        assert_eq!(denial.message, "Denied by policy agents/a: pay needs the approval of a person.");
        // What is asked is not for the caller.
        let told = json!({"reason": "approval_pending", "policy": "agents/a", "tool": "pay"});
        assert_eq!(serde_json::to_value(&denial).unwrap(), told);
    }

    #[test]
    fn the_texts_and_values_of_a_request_are_bounded_and_what_is_left_out_is_said() {
        let long = |at: usize| format!("{at}{}", "é".repeat(255));
        let entries = (0..5).map(|at| {
            let show: Vec<String> = (0..8).map(|of| format!("args.a{at}_{of}")).collect();
            format!("{{name: 'p{}', approval: {{message: '{}', show: [{}]}}}}", "*".repeat(at + 1), long(at), show.join(","))
        });
        let engine = compile(&[tools(&format!("{{name: pay}}, {}", entries.collect::<Vec<_>>().join(",")))]).0;
        let ask = ask(&engine, "");
        assert_eq!(ask.shown.len(), bounds::APPROVAL_SHOWN);
        assert!(ask.message.len() <= bounds::APPROVAL_MESSAGE, "{}", ask.message.len());
        assert!(ask.message.ends_with("é… (8 more values are not shown.)"), "{}", ask.message);
    }

    #[test]
    fn a_value_is_shown_as_it_is_and_nothing_of_it_can_be_hidden() {
        let show = |expression: &str, arguments: &str| {
            let engine = engine(&[tools(&format!("{{name: pay, approval: {{show: [\"{expression}\"]}}}}"))]);
            let ask = ask(&engine, arguments);
            (ask.shown[0].value.clone(), ask.shown[0].cut)
        };
        for (arguments, value) in [
            (r#"{"a": "five ☂️ 🎉 é 予定 \" \\"}"#, "five ☂️ 🎉 é 予定 \" \\"),
            (r#"{"a": ""}"#, ""),
            (r#"{"a": 5}"#, "5"),
            (r#"{"a": -5.0}"#, "-5.0"),
            (r#"{"a": 18446744073709551615}"#, "18446744073709551615"),
            (r#"{"a": 1e21}"#, "1e21"),
            (r#"{"a": true}"#, "true"),
            (r#"{"a": null}"#, "null"),
            (r#"{"a": [1, "x\"\\", [], {}, null]}"#, r#"[1,"x\"\\",[],{},null]"#),
            (r#"{"a": {"b": {"y": 1.5, "x": [true]}, "a": "é"}}"#, r#"{"a":"é","b":{"x":[true],"y":1.5}}"#),
            // Lines, marks of direction, what is not seen, and forms of letters.
            (
                r#"{"a": "pay\n100 \u202e001\u200b\u00a0\u0007\t \ufe0f \ud83d\udc69\u200d\ud83d\udcbb"}"#,
                "pay\\n100 \\u{202e}001\\u{200b}\\u{a0}\\u{7}\\t \\u{fe0f} 👩\\u{200d}💻",
            ),
            (r#"{"a": ["\u202e\n", {"\u2066": 1}]}"#, r#"["\u{202e}\n",{"\u{2066}":1}]"#),
            ("", "(No such key: a)"),
        ] {
            assert_eq!(show("args.a", arguments), (value.to_owned(), false), "{arguments}");
        }
        assert_eq!(show("[args.a, {1: 'x', true: 2u}]", r#"{"a": 0}"#).0, r#"[0,{"1":"x","true":2}]"#);
        assert_eq!(show("type(args.a)", r#"{"a": 0}"#).0, "(is of type type, which cannot be shown)");
        // The reason of a failure quotes what it likes.
        let (value, cut) = show("int(args.a)", r#"{"a": "\u202e"}"#);
        assert!(!value.contains('\u{202e}') && value.starts_with('(') && !cut, "{value}");
    }

    #[test]
    fn a_value_that_goes_on_is_cut_between_characters_and_says_so() {
        let engine = engine(&[tools("{name: pay, approval: {show: [args.a]}}")]);
        let show = |value: &Value| {
            let ask = ask(&engine, &json!({"a": value}).to_string());
            (ask.shown[0].value.clone(), ask.shown[0].cut)
        };
        let most = bounds::SHOWN_VALUE;
        for (value, shown, cut) in [
            (json!("a".repeat(most)), "a".repeat(most), false),
            (json!("a".repeat(most + 1)), "a".repeat(most), true),
            (json!("é".repeat(most)), "é".repeat(most / 2), true),
            (json!(format!("a{}", "é".repeat(most))), format!("a{}", "é".repeat(most / 2 - 1)), true),
            // An escape is whole or not there, and nothing comes after it.
            (json!(format!("{}\u{202e}a", "a".repeat(most - 8))), format!("{}\\u{{202e}}", "a".repeat(most - 8)), true),
            (json!(format!("{}\u{202e}a", "a".repeat(most - 7))), "a".repeat(most - 7), true),
            (json!(["\"".repeat(most)]), format!("[\"{}", "\\\"".repeat(most / 2 - 1)), true),
            (json!(vec![7; most]), format!("[{}7", "7,".repeat(most / 2 - 1)), true),
            (json!(vec![7; most / 2 - 1]), format!("[{}7]", "7,".repeat(most / 2 - 2)), false),
        ] {
            let expected = (shown, cut);
            assert_eq!(show(&value), expected, "{value}");
        }
    }
}

mod what_an_approval_lets_through {
    use super::*;

    #[test]
    fn limits_are_taken_when_the_call_goes_and_not_when_it_asks() {
        let entry = "{name: pay, approval: {}, limits: [{max: 1, window: day}], maxConcurrent: 1}";
        let engine = engine(&[tools(entry)]);
        let first = ask(&engine, "");
        for _ in 0..3 {
            assert_eq!(ask(&engine, ""), first);
        }
        assert!(engine.limits(Timestamp(0), &NothingKnown).iter().all(|limit| limit.used == 0.0));
        let permit = allowed(approved(&engine, "", &first, 1));
        assert!(engine.limits(Timestamp(0), &NothingKnown).iter().all(|limit| (limit.used - 1.0).abs() < 1e-9));
        assert_eq!(denied(approved(&engine, "", &first, 2)).reason, Reason::RateLimit);
        permit.give_back();
        let _under_way = allowed(approved(&engine, "", &first, 3));
        // It asks all the same while it would not fit: a person takes longer than that.
        assert_eq!(reason(&call(&engine, "pay", "", 4)), Reason::ApprovalPending);
    }

    #[test]
    fn shared_counts_are_wanted_when_the_call_goes() {
        let entry = "{name: pay, approval: {when: 'args.n > 1'}, limits: [{max: 1, window: day, scope: Policy}]}";
        let options = CompileOptions { shared_store: true, namespace: "agents".to_owned(), ..CompileOptions::default() };
        let (engine, problems) = Engine::compile(&[tools(entry)], Memory::new(Memory::COUNTERS), &options);
        assert_eq!(problems, []);
        let store: Arc<Memory> = Memory::new(Memory::COUNTERS);
        with_args(r#"{"n": 2}"#, |call| {
            let at = |seconds: u64| Timestamp(seconds * SECOND);
            assert!(matches!(engine.begin(&call, at(0)), DecisionStart::Decided(_)), "the store need not be asked");
            let asked = *denied(common::decide(&engine, &store, &call, at(0))).ask.unwrap();
            let explained = engine.explain(&call, at(0), &common::peek(&engine, &store, &call, at(0)));
            assert_eq!(explained.verdict.reason, "approval_pending");
            let DecisionStart::Pending(pending) = engine.begin_approved(&call, Some(&asked), at(0)) else { panic!("decided") };
            assert_eq!(pending.demands().iter().map(|demand| demand.takes.len()).collect::<Vec<_>>(), [1]);
            drop(pending);
            drop(allowed(common::decide_approved(&engine, &store, &call, Some(&asked), at(1))));
            let again = denied(common::decide_approved(&engine, &store, &call, Some(&asked), at(2)));
            assert_eq!(again.reason, Reason::RateLimit);
            // What never fits there is not asked for, either.
            let dear = tools("{name: pay, approval: {}, limits: [{max: 1, window: day, scope: Policy, cost: args.n}]}");
            let (engine, _) = Engine::compile(&[dear], Memory::new(Memory::COUNTERS), &options);
            let denial = denied(engine.decide(&call, at(0)));
            assert_eq!((denial.reason, denial.retry_after), (Reason::RateLimit, None));
        });
    }

    #[test]
    fn nothing_but_what_asked_and_only_in_the_state_in_which_it_asked() {
        let local = |spec: &str| named("p", &format!("{{name: pay, approval: {spec}}}"));
        let in_cluster = |generation: i64, uid: &str| {
            manifest(
                "MCPPolicy",
                &format!("name: p, namespace: agents, uid: {uid}, generation: {generation}"),
                "servers: [{name: s, url: 'http://s/mcp', tools: [{name: pay, approval: {}}]}]",
            )
        };
        let before = engine(&[local("{}")]);
        let given = ask(&before, "");
        assert_eq!(reason(&approved(&before, "", &given, 0)), Reason::None);
        // Defaults that are written out are no change; any other word is.
        let same = local("{hold: 30s, expiry: 10m, pending: 5}");
        assert_eq!(reason(&approved(&engine(&[same]), "", &given, 0)), Reason::None);
        for changed in [
            local("{message: Ask.}"),
            local("{hold: 31s}"),
            local("{show: [tool]}"),
            named("p", "{name: pay, approval: {}}, {name: get}"),
            policy(
                "p",
                "mode: Enforce, podSelector: {matchLabels: {a: b}}, servers: [{name: s, url: 'http://s/mcp', tools: [{name: pay, approval: {}}]}]",
            ),
            in_cluster(1, "u"),
        ] {
            let denial = denied(approved(&engine(&[changed]), "", &given, 0));
            assert_eq!(denial.reason, Reason::ApprovalPending);
            assert_ne!(denial.ask.unwrap().policies[0].revision, given.policies[0].revision);
        }
        // In a cluster, its uid and generation count too.
        let before = engine(&[in_cluster(3, "u")]);
        let given = ask(&before, "");
        let asking = &given.policies[0].policy;
        assert_eq!((asking.uid.as_str(), asking.generation), ("u", 3));
        assert_eq!(reason(&approved(&before, "", &given, 0)), Reason::None);
        for changed in [in_cluster(4, "u"), in_cluster(3, "v"), local("{}")] {
            assert_eq!(reason(&approved(&engine(&[changed]), "", &given, 0)), Reason::ApprovalPending);
        }
        // Who edits a file that has a generation need not edit that.
        let edited = manifest(
            "MCPPolicy",
            "name: p, namespace: agents, uid: u, generation: 3",
            "servers: [{name: s, url: 'http://s/mcp', tools: [{name: pay, approval: {pending: 6}}]}]",
        );
        assert_eq!(reason(&approved(&engine(&[edited]), "", &given, 0)), Reason::ApprovalPending);
    }

    #[test]
    fn a_policy_that_was_not_named_asks_again_and_then_for_all() {
        let first = named("a", "{name: pay, approval: {message: A.}}");
        let second = named("b", "{name: pay, approval: {message: B., when: 'args.n > 1'}}");
        let arguments = r#"{"n": 2}"#;
        let of_first = ask(&engine(slice::from_ref(&first)), arguments);
        let both = engine(&[first, second]);
        let denial = denied(approved(&both, arguments, &of_first, 0));
        assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::ApprovalPending, Some("agents/b")));
        let of_both = *denial.ask.unwrap();
        assert_eq!((who(&of_both), of_both.message.as_str()), (vec!["agents/a".to_owned(), "agents/b".to_owned()], "A. B."));
        assert_eq!(reason(&approved(&both, arguments, &of_both, 0)), Reason::None);
        // One that no longer asks changes nothing.
        assert_eq!(reason(&approved(&both, r#"{"n": 1}"#, &of_both, 0)), Reason::None);
    }

    #[test]
    fn no_approval_opens_what_something_else_denies() {
        let asks = named("a", "{name: pay, approval: {}}");
        let given = ask(&engine(slice::from_ref(&asks)), "");
        for (other, expected) in [
            ("{name: get}", Reason::NotListed),
            ("{name: pay, action: Deny}", Reason::Denied),
            ("{name: pay, validations: [{expression: 'false'}]}", Reason::Validation),
            ("{name: pay, limits: [{max: 1, window: day, cost: '2'}]}", Reason::RateLimit),
        ] {
            let engine = engine(&[asks.clone(), named("b", other)]);
            assert_eq!(denied(approved(&engine, "", &given, 0)).reason, expected, "{other}");
        }
    }
}

mod a_policy_in_audit_mode {
    use super::*;

    fn audit(name: &str, tools: &str) -> Policy {
        policy(name, &format!("mode: Audit, servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
    }

    #[test]
    fn would_ask_and_lets_the_call_pass() {
        let engine = engine(&[audit("p", "{name: pay, approval: {when: 'args.n > 1'}}")]);
        let decision = call(&engine, "pay", r#"{"n": 2}"#, 0);
        assert_eq!(decision.labels(), ("would_ask", Reason::ApprovalPending));
        assert_eq!((decision.policy.as_deref(), decision.entry.as_deref()), (Some("agents/p"), Some("pay")));
        assert!(decision.denial().is_none() && decision.would_deny.len() == 1);
        assert_eq!(call(&engine, "pay", r#"{"n": 1}"#, 0).labels(), ("allowed", Reason::None));
    }

    #[test]
    fn has_no_say_in_what_an_enforced_one_decides() {
        let audited = audit("p", "{name: pay, approval: {}, limits: [{max: 1, window: day}]}");
        let labels = |enforced: &str| call(&engine(&[audited.clone(), named("z", enforced)]), "pay", "", 0).labels();
        assert_eq!(labels("{name: pay}"), ("would_ask", Reason::ApprovalPending));
        assert_eq!(labels("{name: pay, action: Deny}"), ("denied", Reason::Denied));
        assert_eq!(labels("{name: pay, approval: {}}"), ("denied", Reason::ApprovalPending));
        // What would be denied counts more than what would be asked.
        let engine = engine(&[audited, audit("q", "{name: pay, action: Deny}"), named("z", "{name: pay, approval: {}}")]);
        let given = ask(&engine, "");
        assert_eq!(who(&given), ["agents/z"]);
        // A person was asked for the enforced policy alone.
        let decision = approved(&engine, "", &given, 0);
        assert_eq!(decision.labels(), ("would_deny", Reason::Denied));
        let reasons: Vec<Reason> = decision.would_deny.iter().map(|denial| denial.reason).collect();
        assert_eq!(reasons, [Reason::Denied, Reason::ApprovalPending]);
        assert!(engine.limits(Timestamp(0), &NothingKnown).iter().all(|limit| limit.used == 0.0), "it did not let it through");
    }
}

#[test]
fn an_explanation_says_who_would_be_asked_what_and_for_how_long() {
    let engine = engine(&[
        named("a", "{name: pay, approval: {when: args.n > 1, message: Ask., show: [args.n], expiry: 90m}}"),
        named("b", "{name: '*', approval: {hold: 0s, pending: 2}}, {name: pay, approval: {when: 'args.k == 1'}}"),
    ]);
    let explain = |arguments: &str| with_args(arguments, |call| engine.explain(&call, Timestamp(0), &Peeked::default()));
    let explained = explain(r#"{"n": 2}"#);
    let ask = AskExplanation {
        policies: vec!["agents/a".to_owned(), "agents/b".to_owned()],
        message: "Ask.".to_owned(),
        shown: vec![ShownValue { expression: "args.n".to_owned(), value: "2".to_owned(), cut: false }],
        hold: TimeSpan::default(),
        expiry: "10m".parse().unwrap(),
        pending: 2,
    };
    assert_eq!((explained.decision.as_str(), explained.verdict.reason.as_str()), ("denied", "approval_pending"));
    assert_eq!(explained.verdict.approval, Some(ask));
    let entries: Vec<_> = explained.policies.iter().flat_map(|said| &said.servers[0].entries).collect();
    let of = |entry: usize| entries[entry].approval.clone().expect("an approval");
    let first = ApprovalExplanation {
        when: Some("args.n > 1".to_owned()),
        asks: true,
        error: None,
        hold: "30s".parse().unwrap(),
        expiry: "1h30m".parse().unwrap(),
        pending: 5,
    };
    assert_eq!(of(0), first);
    assert_eq!((of(1).asks, of(1).error.as_deref()), (true, Some("No such key: k")));
    assert_eq!((of(2).asks, of(2).when), (true, None));
    // Each policy alone: its own request.
    let own = explained.policies[0].verdict.approval.as_ref().unwrap();
    assert_eq!((own.policies.as_slice(), own.hold.as_str(), own.expiry.as_str()), (&["agents/a".to_owned()][..], "30s", "1h30m"));
    let explained = explain(r#"{"n": 1, "k": 2}"#);
    assert_eq!(explained.verdict.approval.unwrap().policies, ["agents/b"]);
    assert!(explained.policies[0].verdict.allowed);
}

#[test]
fn what_a_condition_of_an_approval_likely_does_not_mean_is_doubted() {
    let doubts = |approval: &str, validations: &str| {
        let (_, problems) = compile(&[tools(&format!("{{name: pay, approval: {{{approval}}}, validations: [{validations}]}}"))]);
        problems.into_iter().map(|problem| format!("{}: {}", problem.error.path, problem.error.message)).collect::<Vec<_>>()
    };
    let found = doubts("when: 'has(args.n) && args.n > 5', show: ['size(args.to)', 'has(args.n) ? args.n : 0']", "");
    assert_eq!(
        found,
        [
            "spec.servers[0].tools[0].approval.when: lets a call without `args.n` pass and asks a person about one with a null there, which some \
             clients send for what is left out: `has(args.n)` is true of it; write `(has(args.n) && args.n != null)` for `has(args.n)`",
            "spec.servers[0].tools[0].approval.show[0]: takes the size of `args.to`, which is whatever the call says: a list's items, a map's \
             keys or a text's characters; write `type(args.to) == list && ...`, or `== string` where a text is meant, before it",
        ]
    );
    // What must hold before is known to hold.
    assert_eq!(doubts("show: ['size(args.to)'], when: 'size(args.to) > 3'", "{expression: 'type(args.to) == list'}"), [""; 0]);
    assert_eq!(doubts("when: 'args.n > 5', show: [args.n]", ""), [""; 0]);
    assert_eq!(doubts("when: '!has(args.n) || args.n > 5'", ""), [""; 0]);
}
