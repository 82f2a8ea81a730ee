//! The meaning of policies, one behaviour at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/calls.rs"]
mod calls;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use calls::*;
use serde_json::json;
use toolweir_crds::{FieldError, OperationKind, Validation};
use toolweir_engine::{
    Call, CompileOptions, Effect, Engine, Memory, Operation, Policy, PolicyId, Problem, Reason, Severity, Timestamp,
    shared::{NothingKnown, Peeked},
};

mod which_entry_gives_the_action {
    use super::*;

    #[test]
    fn the_exact_name_then_the_glob_with_the_most_literal_characters_then_the_star() {
        let engine = engine(&[tools(
            "{name: '*', action: Deny, reason: star}, {name: 'get_*'}, {name: 'get_user_*', action: Deny, reason: users}, \
             {name: get_user_name}, {name: '*_s', action: Allow}, {name: 'get_post', action: Deny, reason: exact}",
        )]);
        for (tool, message) in [
            ("get_user_name", None),
            ("get_user_mail", Some("users")),
            ("get_user_", Some("users")),
            ("get_page", None),
            ("get_post", Some("exact")),
            ("post_s", None),
            ("get_user_s", Some("users")),
            ("post", Some("star")),
        ] {
            let decision = call(&engine, tool, "", 0);
            let expected = message.map(|message| format!("Denied by policy agents/p: {message}"));
            assert_eq!(decision.denial().map(|denial| denial.message.clone()), expected, "{tool}");
            assert_eq!(engine.may_use("s", Operation::tool(tool), None), message.is_none(), "{tool}");
        }
    }

    #[test]
    fn the_order_of_the_entries_does_not_matter() {
        let entries = ["{name: 'a*', action: Deny}", "{name: 'ab*'}", "{name: abc, action: Deny}", "{name: '*', action: Allow}"];
        let mut reversed = entries;
        reversed.reverse();
        let engines = [entries, reversed].map(|entries| engine(&[tools(&entries.join(","))]));
        for (tool, reason_of_it) in [("a", Reason::Denied), ("ab", Reason::None), ("abc", Reason::Denied), ("b", Reason::None)] {
            for engine in &engines {
                assert_eq!(reason(&call(engine, tool, "", 0)), reason_of_it, "{tool}");
            }
        }
    }

    #[test]
    fn what_allows_tells_names_apart_by_case() {
        let engine = engine(&[tools("{name: get_post}, {name: 'Set_*'}")]);
        assert_eq!(reason(&call(&engine, "get_post", "", 0)), Reason::None);
        assert_eq!(reason(&call(&engine, "Get_post", "", 0)), Reason::NotListed);
        assert_eq!(reason(&call(&engine, "set_post", "", 0)), Reason::NotListed);
    }

    #[test]
    fn what_denies_matches_in_any_case_and_an_exact_name_beats_it() {
        let engine = engine(&[tools(
            "{name: '*', action: Allow}, {name: '*delete*', action: Deny}, {name: DROP_TABLE, action: Deny},
             {name: undelete_Page}, {name: Kick, action: Deny}, {name: kicK}",
        )]);
        for (tool, expected) in [
            ("create_page", Reason::None),
            ("delete_page", Reason::Denied),
            ("DELETE_page", Reason::Denied),
            ("pageDeLeTe", Reason::Denied),
            ("drop_table", Reason::Denied),
            ("Drop_Table", Reason::Denied),
            // A server that folds as Unicode does takes the Kelvin sign for a k.
            ("\u{212a}ick", Reason::Denied),
            ("undelete_Page", Reason::None),
            ("undelete_page", Reason::Denied),
            ("kicK", Reason::None),
            ("Kick", Reason::Denied),
            ("kick", Reason::Denied),
        ] {
            assert_eq!(reason(&call(&engine, tool, "", 0)), expected, "{tool}");
            assert_eq!(engine.may_use("s", Operation::tool(tool), None), expected == Reason::None, "{tool}");
        }
    }

    #[test]
    fn of_globs_the_more_specific_gives_the_action_in_whatever_case_it_denies() {
        let engine = engine(&[tools("{name: 'get_deleted_*'}, {name: '*DELETE*', action: Deny}, {name: 'get_*'}")]);
        assert_eq!(reason(&call(&engine, "get_deleted_posts", "", 0)), Reason::None);
        assert_eq!(reason(&call(&engine, "get_delete", "", 0)), Reason::Denied);
        assert_eq!(reason(&call(&engine, "get_posts", "", 0)), Reason::None);
        // Of equals what denies does.
        let engine = super::engine(&[tools("{name: 'drop*', action: Deny}, {name: 'DROP*'}")]);
        assert_eq!(reason(&call(&engine, "DROP_table", "", 0)), Reason::Denied);
    }

    #[test]
    fn limits_conditions_and_places_of_an_entry_hold_for_its_tools_in_any_case() {
        let all = "defaultAction: Allow, name: s, url: 'http://s/mcp'";
        let one = |entry: &str| engine(&[policy("p", &format!("servers: [{{{all}, tools: [{entry}]}}]"))]);
        let limited = one("{name: pay, limits: [{max: 1, window: day}]}");
        assert_eq!(reason(&call(&limited, "PAY", "", 0)), Reason::None);
        assert_eq!(reason(&call(&limited, "pay", "", 0)), Reason::RateLimit);
        let limited = one("{name: 'pay_*', limits: [{max: 1, window: day}]}");
        assert_eq!(reason(&call(&limited, "Pay_now", "", 0)), Reason::None);
        assert_eq!(reason(&call(&limited, "pay_later", "", 0)), Reason::RateLimit);
        let conditions = one("{name: pay, validations: [{expression: 'args.n < 5'}]}");
        assert_eq!(reason(&call(&conditions, "Pay", r#"{"n": 6}"#, 0)), Reason::Validation);
        let places = one("{name: pay, maxConcurrent: 1}");
        let _under_way = allowed(call(&places, "pay", "", 0));
        assert_eq!(reason(&call(&places, "PAY", "", 0)), Reason::Concurrency);
    }

    #[test]
    fn an_explanation_shows_that_an_entry_in_another_case_allows_nothing() {
        let engine = engine(&[tools("{name: pay, limits: [{max: 1, window: day}]}")]);
        let call = Call { server: "s", operation: Operation::tool("PAY"), arguments: None, session: "", seen: None };
        let explained = engine.explain(&call, Timestamp(0), &Peeked::default());
        assert_eq!(explained.verdict.reason, "not_listed");
        let entry = &explained.policies[0].servers[0].entries[0];
        assert_eq!((entry.name.as_str(), entry.action, entry.limits.len()), ("pay", None, 1));
    }

    #[test]
    fn a_name_over_512_bytes_is_denied_before_any_entry_is_looked_at() {
        let engine = engine(&[tools(&format!("{{name: '*', action: Allow}}, {{name: '{}'}}", "a".repeat(512)))]);
        for tool in ["a".repeat(512), "b".repeat(512)] {
            assert_eq!(reason(&call(&engine, &tool, "", 0)), Reason::None);
        }
        let denial = denied(call(&engine, &"a".repeat(513), "", 0));
        assert_eq!(denial.reason, Reason::Malformed);
        assert!(denial.message.contains("the tool's name has 513 bytes; at most 512 are possible"), "{}", denial.message);
        assert!(!engine.may_use("s", Operation::tool(&"a".repeat(513)), None));
        // Also one that only exact names could have stood for.
        let names = super::engine(&[tools("{name: b}")]);
        assert_eq!(reason(&call(&names, &"é".repeat(4 << 20), "", 0)), Reason::Malformed);
    }

    #[test]
    fn a_star_without_action_carries_limits_and_opens_no_tool() {
        let engine = engine(&[tools("{name: '*', limits: [{max: 1, window: minute}]}, {name: get_post}")]);
        assert_eq!(reason(&call(&engine, "delete_post", "", 0)), Reason::NotListed);
        assert!(!engine.may_use("s", Operation::tool("delete_post"), None));
        assert_eq!(reason(&call(&engine, "get_post", "", 0)), Reason::None);
        assert_eq!(reason(&call(&engine, "get_post", "", 0)), Reason::RateLimit);
    }

    #[test]
    fn several_stars_are_one_star() {
        for star in ["*", "**", "***"] {
            let engine = engine(&[tools(&format!("{{name: '{star}', limits: [{{max: 1, window: minute}}]}}"))]);
            assert_eq!(reason(&call(&engine, "delete_post", "", 0)), Reason::NotListed, "{star}");
        }
    }

    #[test]
    fn a_star_with_an_action_and_the_default_action_are_for_what_no_other_entry_matches() {
        for (server, others) in [
            ("defaultAction: Allow", Reason::None),
            ("defaultAction: Deny", Reason::NotListed),
            ("", Reason::NotListed),
            ("defaultAction: Deny, tools: [{name: '*', action: Allow}]", Reason::None),
            ("defaultAction: Allow, tools: [{name: '*', action: Deny}]", Reason::Denied),
            ("defaultAction: Allow, tools: [{name: '*', maxConcurrent: 1}]", Reason::None),
        ] {
            let engine = engine(&[policy("p", &format!("servers: [{{name: s, url: 'http://s/', {server}}}]"))]);
            assert_eq!(reason(&call(&engine, "any", "", 0)), others, "{server}");
        }
    }
}

mod what_a_denied_caller_is_told {
    use super::*;

    #[track_caller]
    fn text(engine: &Engine, tool: &str, arguments: &str, seconds: u64) -> String {
        denied(call(engine, tool, arguments, seconds)).message
    }

    #[test]
    fn of_a_tool_that_is_denied_or_not_listed() {
        let engine = engine(&[tools("{name: a, action: Deny}, {name: b, action: Deny, reason: Ask first.}")]);
        assert_eq!(text(&engine, "a", "", 0), "Denied by policy agents/p: a may not be called.");
        assert_eq!(text(&engine, "b", "", 0), "Denied by policy agents/p: Ask first.");
        assert_eq!(
            text(&engine, "c", "", 0),
            "Denied by policy agents/p: c is not among the tools that may be called. Use one that tools/list shows."
        );
    }

    #[test]
    fn of_a_server_that_no_policy_names() {
        let engine = engine(&[tools("{name: a}")]);
        let denial = denied(call_in(&engine, "other", "a", "", "", 0));
        assert_eq!((denial.reason, denial.policy), (Reason::NoPolicy, None));
        assert_eq!(denial.message, "Denied: no policy in force names the server other.");
        assert!(!engine.may_use("other", Operation::tool("a"), None));
    }

    #[test]
    fn of_a_limit() {
        let send = |limit: &str| engine(&[tools(&format!("{{name: send, limits: [{{{limit}}}]}}"))]);
        for (limit, told) in [
            ("max: 30, window: minute", "send is limited to 30 calls a minute. Try again in 17 s."),
            ("max: 1, window: hour", "send is limited to 1 call an hour. Try again in 3613 s."),
            ("max: 2, window: 90s", "send is limited to 2 calls in 90s. Try again in 48 s."),
            (
                "max: 2, window: 1h30m, scope: Session",
                "send is limited to 2 calls in 1h30m in each session. Try again in 5441 s.",
            ),
            ("max: 2, window: day, key: args.k", "send is limited to 2 calls a day for each `args.k`. Try again in 87706 s."),
            ("max: 5, window: day, cost: args.n", "send is limited to a total cost of 5 a day. Try again in 87706 s."),
        ] {
            let engine = send(limit);
            let mut last = Ok(());
            // One call a second; then 44 s after the first.
            for second in (0..30).chain([44]) {
                last = match call(&engine, "send", r#"{"n": 1, "k": "x"}"#, second).effect {
                    Effect::Allowed(_) => Ok(()),
                    Effect::Denied(denial) => Err(denial.message),
                };
            }
            assert_eq!(last, Err(format!("Denied by policy agents/p: {told}")));
        }
    }

    #[test]
    fn of_a_limit_that_stands_under_a_glob() {
        let engine = engine(&[tools("{name: 'send_*', limits: [{max: 1, window: second}]}")]);
        allowed(call(&engine, "send_dm", "", 0));
        assert_eq!(
            text(&engine, "send_mail", "", 0),
            "Denied by policy agents/p: send_mail is limited to 1 call a second (counted together with every tool that \
             `send_*` matches). Try again in 2 s."
        );
    }

    #[test]
    fn of_a_cost_that_can_never_pass() {
        let engine = engine(&[tools("{name: pay, limits: [{max: 100, window: day, cost: args.amount}]}")]);
        let denial = denied(call(&engine, "pay", r#"{"amount": 100.5}"#, 0));
        assert_eq!(
            denial.message,
            "Denied by policy agents/p: pay is limited to a total cost of 100 a day. This call costs 100.5 and can never pass."
        );
        assert_eq!((denial.reason, denial.retry_after), (Reason::RateLimit, None));
    }

    #[test]
    fn of_a_condition() {
        let with = |validation: &str| engine(&[tools(&format!("{{name: pay, validations: [{{{validation}}}]}}"))]);
        let args = r#"{"amount": 501}"#;
        assert_eq!(
            text(&with("expression: args.amount <= 500, message: Over 500 it takes a person."), "pay", args, 0),
            "Denied by policy agents/p: Over 500 it takes a person."
        );
        assert_eq!(
            text(&with("expression: args.amount <= 500"), "pay", args, 0),
            "Denied by policy agents/p: the call does not meet the condition `args.amount <= 500`."
        );
        assert_eq!(
            text(&with("expression: args.total <= 500, message: Over 500 it takes a person."), "pay", args, 0),
            "Denied by policy agents/p: Over 500 it takes a person. (`args.total <= 500` could not be evaluated: No such key: \
             total.)"
        );
        assert_eq!(
            text(&with("expression: args.total <= 500"), "pay", args, 0),
            "Denied by policy agents/p: the call does not meet a condition. (`args.total <= 500` could not be evaluated: No \
             such key: total.)"
        );
        assert_eq!(reason(&call(&with("expression: args.amount"), "pay", args, 0)), Reason::Validation);
    }

    #[test]
    fn is_one_line_of_a_message_that_the_policy_writes_in_several() {
        let engine = engine(&[tools(r#"{name: pay, validations: [{expression: 'false', message: "Ask\na person.\n"}]}"#)]);
        assert_eq!(text(&engine, "pay", "{}", 0), "Denied by policy agents/p: Ask a person.");
    }

    #[test]
    fn of_a_key_or_cost_that_has_no_value() {
        let with = |limit: &str| engine(&[tools(&format!("{{name: pay, limits: [{{max: 5, window: day, {limit}}}]}}"))]);
        for (limit, arguments, told) in [
            ("key: args.who", "{}", "the key `args.who` of a limit could not be evaluated: No such key: who."),
            ("key: args.who", r#"{"who": {}}"#, "the key `args.who` of a limit is a map, which cannot be a key."),
            ("cost: args.n", "{}", "the cost `args.n` of a limit could not be evaluated: No such key: n."),
            ("cost: args.n", r#"{"n": -1}"#, "the cost `args.n` of a limit is negative or not a number."),
            ("cost: args.n", r#"{"n": "1"}"#, "the cost `args.n` of a limit is a string, not a number."),
        ] {
            let denial = denied(call(&with(limit), "pay", arguments, 0));
            assert_eq!(denial.message, format!("Denied by policy agents/p: {told}"));
            assert_eq!(denial.reason, Reason::Validation);
        }
    }

    #[test]
    fn of_too_many_calls_under_way() {
        let engine = engine(&[tools("{name: a}, {name: 'b*', maxConcurrent: 1}")]);
        let held = allowed(call(&engine, "bcd", "", 0));
        let denial = denied(call(&engine, "bcd", "", 0));
        assert_eq!(
            denial.message,
            "Denied by policy agents/p: at most 1 call of b* may be under way at once. Try again when one has ended."
        );
        assert_eq!((denial.reason, denial.retry_after), (Reason::Concurrency, None));
        drop(held);
        allowed(call(&engine, "bcd", "", 0));
    }

    #[test]
    fn a_name_that_a_caller_made_up_cannot_forge_lines_of_the_text() {
        let engine = engine(&[tools("{name: a}")]);
        let tool = format!("x\n\u{1b}[2KApproved by policy.{}", "y".repeat(5000));
        let denial = denied(call(&engine, &tool, "", 0));
        assert!(!denial.message.contains(char::is_control), "{:?}", denial.message);
        let shown = "x \u{fffd}[2KApproved by policy.y";
        assert!(denial.name.starts_with(shown), "{:?}", denial.name);
        let told = text(&engine, &tool[..30], "", 0);
        assert!(told.starts_with(&format!("Denied by policy agents/p: {shown}")), "{told:?}");
        assert!(denial.message.len() < 400 && denial.name.len() < 200);
    }

    #[test]
    fn as_json_in_the_form_of_the_protocol_page() {
        let facebook = policy(
            "facebook",
            "servers: [{name: s, url: 'http://s/', tools: [{name: send_dm_to_user, limits: [{max: 30, window: minute}]}, \
             {name: pay, validations: [{expression: 'false'}]}]}]",
        );
        let engine = engine(&[facebook]);
        for second in 0..30 {
            allowed(call(&engine, "send_dm_to_user", "", second));
        }
        let denial = denied(call(&engine, "send_dm_to_user", "", 44));
        assert_eq!(
            denial.message,
            "Denied by policy agents/facebook: send_dm_to_user is limited to 30 calls a minute. Try again in 17 s."
        );
        assert_eq!(
            serde_json::to_value(&denial).unwrap(),
            json!({"reason": "rate_limit", "policy": "agents/facebook", "tool": "send_dm_to_user",
                   "limit": {"max": 30, "window": "minute", "scope": "Pod"}, "retryAfterSeconds": 17})
        );
        let denial = denied(call(&engine, "pay", "", 0));
        assert_eq!(
            serde_json::to_value(&denial).unwrap(),
            json!({"reason": "validation", "policy": "agents/facebook", "tool": "pay"})
        );
        let denial = denied(call_in(&engine, "other", "pay", "", "", 0));
        assert_eq!(serde_json::to_value(&denial).unwrap(), json!({"reason": "no_policy", "tool": "pay"}));
    }

    #[test]
    fn the_wait_is_long_enough_and_not_longer_than_needed() {
        let engine = engine(&[tools("{name: a, limits: [{max: 1, window: minute}, {max: 1, window: hour}]}")]);
        allowed(call(&engine, "a", "", 10));
        // The longer of the two waits.
        let wait = denied(call(&engine, "a", "", 20)).retry_after.unwrap();
        let at =
            |time: Timestamp| {
                reason(&engine.decide(
                    &Call { server: "s", operation: Operation::tool("a"), arguments: None, session: "", seen: None },
                    time,
                ))
            };
        let then = Timestamp(20 * SECOND).after(wait);
        assert_eq!(at(Timestamp(then.0 - 1)), Reason::RateLimit);
        assert_eq!(at(then), Reason::None);
    }
}

mod several_policies {
    use super::*;

    fn p(name: &str, tools: &str) -> Policy {
        policy(name, &format!("servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
    }

    #[test]
    fn all_must_allow_a_call() {
        let engine = engine(&[p("one", "{name: a}, {name: b}"), p("two", "{name: b}, {name: c}")]);
        for (tool, denial) in [("a", Some("agents/two")), ("b", None), ("c", Some("agents/one"))] {
            let decision = call(&engine, tool, "", 0);
            assert_eq!(decision.denial().map(|denial| denial.policy.as_deref().unwrap()), denial, "{tool}");
            assert_eq!(engine.may_use("s", Operation::tool(tool), None), denial.is_none());
        }
    }

    #[test]
    fn the_most_severe_denial_is_told_in_whatever_order_the_policies_come() {
        let by_severity = [
            p("e-denies", "{name: a, action: Deny}"),
            p("d-does-not-list", "{name: b}"),
            p("c-reads", "{name: a, validations: [{expression: 'args.n == 1'}]}"),
            p("b-condition", "{name: a, validations: [{expression: 'false'}]}"),
            p("a-limits", "{name: a, limits: [{max: 1, window: day}]}"),
        ];
        let reasons = [Reason::Denied, Reason::NotListed, Reason::Malformed, Reason::Validation, Reason::RateLimit];
        for (index, reason) in reasons.into_iter().enumerate() {
            let mut policies = by_severity[index..].to_vec();
            for _ in 0..policies.len() {
                policies.rotate_left(1);
                let engine = engine(&policies);
                let first = call(&engine, "a", r#"{"n": 1, "n": 1}"#, 0);
                let second = call(&engine, "a", r#"{"n": 1, "n": 1}"#, 0);
                let decision = if reason == Reason::RateLimit { second } else { first };
                let denial = denied(decision);
                assert_eq!(denial.reason, reason);
                assert_eq!(denial.policy.as_deref(), Some(by_severity[index].id.to_string().as_str()));
            }
        }
    }

    #[test]
    fn a_call_that_is_over_a_limit_and_too_many_is_told_of_the_limit_which_comes_first() {
        let engine = engine(&[p("a", "{name: t, maxConcurrent: 1}"), p("b", "{name: t, limits: [{max: 1, window: minute}]}")]);
        let held = allowed(call(&engine, "t", "", 0));
        let denial = denied(call(&engine, "t", "", 1));
        assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::RateLimit, Some("agents/b")));
        drop(held);
    }

    #[test]
    fn none_takes_a_place_for_a_call_that_another_denies() {
        let engine = engine(&[
            p("a", "{name: t, limits: [{max: 2, window: day}], maxConcurrent: 1}"),
            p("b", "{name: t, limits: [{max: 1, window: minute}]}"),
        ]);
        allowed(call(&engine, "t", "", 0));
        assert_eq!(reason(&call(&engine, "t", "", 1)), Reason::RateLimit);
        assert_eq!(reason(&call(&engine, "t", "", 70)), Reason::None);
        assert_eq!(reason(&call(&engine, "t", "", 140)), Reason::RateLimit);
    }

    #[test]
    fn a_guardrail_of_every_server_holds_on_each_that_another_policy_names() {
        let guardrail = cluster_policy(
            "guardrail",
            "servers: [{name: '*', defaultAction: Allow, tools: [{name: 'delete_*', action: Deny}, \
             {name: '*', limits: [{max: 2, window: hour}]}]}]",
        );
        let own = policy(
            "own",
            "servers: [{name: s, url: 'http://s/', defaultAction: Allow}, {name: t, url: 'http://t/', defaultAction: Allow}]",
        );
        let engine = engine(&[guardrail, own]);
        let denial = denied(call_in(&engine, "t", "delete_all", "", "", 0));
        assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::Denied, Some("guardrail")));
        // Its limit is one for all servers.
        allowed(call_in(&engine, "s", "get", "", "", 0));
        allowed(call_in(&engine, "t", "get", "", "", 0));
        assert_eq!(reason(&call_in(&engine, "s", "get", "", "", 0)), Reason::RateLimit);
        // And it opens no server.
        assert_eq!(reason(&call_in(&engine, "u", "get", "", "", 0)), Reason::NoPolicy);
        assert!(engine.server("u").is_none() && engine.server("*").is_none());
    }

    #[test]
    fn the_url_of_the_oldest_holds_and_the_rules_of_the_newer_apply_all_the_same() {
        let made = |name: &str, created: &str, url: &str, tools: &str| {
            let mut policy = policy(name, &format!("servers: [{{name: s, url: '{url}', tools: [{tools}]}}]"));
            policy.created = (!created.is_empty()).then(|| created.to_owned());
            policy
        };
        let new = made("a-new", "2026-02-01T00:00:00Z", "http://new/", "{name: a}");
        let old = made("b-old", "2026-01-01T00:00:00Z", "http://old/", "{name: a}, {name: b}");
        let undated = made("c-undated", "", "http://undated/", "{name: a}, {name: b}");
        for policies in [[new.clone(), old.clone(), undated.clone()], [undated, old, new]] {
            let (engine, problems) = compile(&policies);
            assert_eq!(engine.server("s").unwrap().url, Some("http://old/"));
            let mut told: Vec<(String, Severity, String)> = problems
                .iter()
                .map(|problem| (policies[problem.policy].id.name.clone(), problem.severity, problem.error.to_string()))
                .collect();
            told.sort_by(|a, b| a.0.cmp(&b.0));
            let text = |url: &str| {
                format!(
                    "spec.servers[0].url: is {url}, but the older policy agents/b-old says http://old/, which holds; write the \
                     same or leave it out"
                )
            };
            assert_eq!(
                told,
                [
                    ("a-new".to_owned(), Severity::Conflict, text("http://new/")),
                    ("c-undated".to_owned(), Severity::Conflict, text("http://undated/")),
                ]
            );
            assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::None);
            assert_eq!(denied(call(&engine, "b", "", 0)).policy.as_deref(), Some("agents/a-new"));
        }
    }

    #[test]
    fn a_server_without_a_url_is_told_of_and_governed_all_the_same() {
        let (engine, problems) = compile(&[policy("p", "servers: [{name: t}, {name: s, tools: [{name: a}]}]")]);
        assert_eq!(engine.server("s").unwrap().url, None);
        assert_eq!(
            problems.iter().map(|problem| (problem.severity, problem.error.path.as_str())).collect::<Vec<_>>(),
            [(Severity::NoUrl, "spec.servers[0].url"), (Severity::NoUrl, "spec.servers[1].url")]
        );
        assert_eq!(reason(&call(&engine, "b", "", 0)), Reason::NotListed);
    }

    /// Entries that all match one another's tools: what is prepared for them has a bound, and what is decided stays the same.
    #[test]
    fn with_thousands_of_entries_that_match_the_same_tools_decide_alike() {
        let entries = (0..500).map(|at| format!("{{name: 'tool_{at}'}}, {{name: 't{}*', action: Deny}}", "*".repeat(at)));
        let entries = entries.collect::<Vec<_>>().join(",");
        let server = |at: usize| format!("{{name: s{at}, url: 'http://s/mcp', tools: [{entries}]}}");
        let servers = (0..8).map(server).collect::<Vec<_>>().join(",");
        let engine = engine(&[policy("p", &format!("servers: [{servers}]"))]);
        for server in ["s0", "s7"] {
            assert_eq!(reason(&call_in(&engine, server, "tool_0", "", "", 0)), Reason::None);
            assert_eq!(reason(&call_in(&engine, server, "tool_499", "", "", 0)), Reason::None);
            assert_eq!(reason(&call_in(&engine, server, "tool_500", "", "", 0)), Reason::Denied);
            assert_eq!(engine.names(server, OperationKind::Tool).count(), 500);
        }
    }

    #[test]
    fn no_policy_at_all_lets_nothing_through() {
        let engine = engine(&[]);
        assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::NoPolicy);
        assert_eq!(engine.servers().count(), 0);
    }
}

mod a_policy_that_does_not_compile {
    use super::*;

    const BROKEN: &str = "{name: a, validations: [{expression: 'args.n <'}]}, {name: b}";

    #[test]
    fn denies_everything_on_its_servers_and_nothing_on_others() {
        for mode in ["Enforce", "Audit"] {
            let broken = policy("broken", &format!("mode: {mode}, servers: [{{name: s, url: 'http://s/', tools: [{BROKEN}]}}]"));
            let good =
                policy("good", "servers: [{name: s, defaultAction: Allow}, {name: t, url: 'http://t/', defaultAction: Allow}]");
            let (engine, problems) = compile(&[good, broken]);
            assert_eq!(problems.len(), 1);
            assert_eq!((problems[0].policy, problems[0].severity), (1, Severity::Invalid));
            for tool in ["a", "b", "c"] {
                let denial = denied(call(&engine, tool, r#"{"n": 1}"#, 0));
                assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::InvalidPolicy, Some("agents/broken")));
                assert!(
                    denial.message.contains("does not compile (spec.servers[0].tools[0].validations[0].expression: is not a CEL")
                );
                assert!(!engine.may_use("s", Operation::tool(tool), None));
            }
            assert_eq!(engine.closed("s").unwrap().reason, Reason::InvalidPolicy);
            assert_eq!(engine.closed("t"), None);
            allowed(call_in(&engine, "t", "a", "", "", 0));
        }
    }

    #[test]
    fn denies_every_server_where_it_names_every_server() {
        let broken = cluster_policy("broken", "servers: [{name: '*', tools: [{name: a, validations: [{expression: oops}]}]}]");
        let (engine, _) = compile(&[broken, policy("p", "servers: [{name: s, url: 'http://s/', defaultAction: Allow}]")]);
        assert_eq!(denied(call(&engine, "b", "", 0)).policy.as_deref(), Some("broken"));
    }

    #[test]
    fn denies_every_server_where_it_cannot_be_read() {
        for cluster in [false, true] {
            let id = PolicyId { cluster, namespace: "agents".to_owned(), name: "newer".to_owned() };
            let error = FieldError { path: "spec".to_owned(), message: "unknown field `x`".to_owned() };
            let unreadable = Policy::unreadable(id.clone(), error.clone());
            let open = policy("p", "servers: [{name: s, url: 'http://s/', defaultAction: Allow}]");
            let (engine, problems) = compile(&[open, unreadable]);
            assert_eq!(problems, [Problem { policy: 1, severity: Severity::Invalid, error }]);
            let denial = denied(call(&engine, "b", "", 0));
            assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::InvalidPolicy, Some(id.to_string().as_str())));
            assert!(denial.message.contains("does not compile (spec: unknown field `x`)"), "{}", denial.message);
        }
    }

    #[test]
    fn is_also_one_that_breaks_a_bound_and_did_not_come_from_a_file() {
        let mut broken = tools("{name: a}");
        broken.spec.servers[0].tools[0].name = r"a\b".to_owned();
        let (engine, problems) = compile(&[broken]);
        assert_eq!(problems[0].error.path, "spec.servers[0].tools[0].name");
        assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::InvalidPolicy);
    }

    /// A policy whose entries have these conditions.
    fn conditions(conditions: &[String]) -> Policy {
        let mut policy = tools("{name: a, validations: [{expression: 'true'}]}");
        let entry = policy.spec.servers[0].tools[0].clone();
        policy.spec.servers[0].tools = (conditions.chunks(16).enumerate())
            .map(|(at, conditions)| {
                let mut entry = entry.clone();
                entry.name = format!("a{at}");
                let validation = |condition: &String| Validation { expression: condition.clone(), message: None };
                entry.validations = conditions.iter().map(validation).collect();
                entry
            })
            .collect();
        policy
    }

    fn first_problem(of: impl IntoIterator<Item = String>) -> String {
        let (_, problems) = compile(&[conditions(&of.into_iter().collect::<Vec<_>>())]);
        problems.first().map(|problem| problem.error.to_string()).unwrap_or_default()
    }

    #[test]
    fn has_patterns_that_are_dear_to_compile() {
        for (pattern, why) in [
            (r"(\pL{30}){30}", "is too large: compiled it has more than 256 KiB"),
            (r"[\pL.-]{1,64}@", "is too large"),
            (r"(?i)[^a](?i)[^b](?i)[^c](?i)[^d](?i)[^e](?i)[^f](?i)[^g](?i)[^h](?i)[^i]", "is too large"),
            (&"(".repeat(1000), "does not compile"),
            (r"(((a{100}){100}){100}){100}", "repeats something over 1000 times"),
        ] {
            let problem = first_problem(vec![format!("args.a.matches(r'{pattern}')")]);
            assert!(
                problem.starts_with("spec.servers[0].tools[0].validations[0].expression: `matches` has a pattern that "),
                "{problem}"
            );
            assert!(problem.contains(why), "{pattern}: {problem}");
        }
        // Each is possible, and all together are too much.
        let many = (0..100).map(|at| format!("args.a.matches(r'x\\pL{{1,10}}{at}')"));
        let problem = first_problem(many);
        assert!(problem.contains("at most 8 MiB together; write fewer or smaller ones, or split the policy"), "{problem}");
        // What is refused counts too, or a policy of nothing else would never end.
        let refused = (0..1000).map(|at| format!("args.a.matches(r'{at}\\pL{{500}}')")).collect::<Vec<_>>();
        let (_, problems) = compile(&[conditions(&refused)]);
        let tried = problems.iter().filter(|problem| problem.error.message.contains("is too large")).count();
        assert!(tried <= 32, "{tried} of {} were tried", problems.len());
        // The same one again takes nothing.
        let same = (0..100).map(|_| "args.a.matches(r'^[\\w .-]+$')".to_owned());
        assert_eq!(first_problem(same), "");
    }

    #[test]
    fn has_more_expressions_than_one_policy_may() {
        let problem = first_problem((0..4097).map(|at| format!("args.a{at} < 5")));
        assert!(problem.contains("at most 256 KiB together, each counted as 64 bytes at least"), "{problem}");
        assert_eq!(first_problem((0..500).map(|at| format!("args.a{at} < 5"))), "");
    }

    #[test]
    fn is_the_second_of_one_name() {
        let (engine, problems) = compile(&[tools("{name: a}"), tools("{name: a}")]);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].error.path, "metadata.name");
        assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::InvalidPolicy);
    }

    #[test]
    fn ends_no_program_however_it_is_written() {
        let longest = |unit: &str| unit.repeat(toolweir_crds::bounds::EXPRESSION / unit.len());
        for expression in [
            "(".repeat(1_000_000),
            longest("("),
            longest("["),
            longest("{1:"),
            longest("!("),
            longest("int("),
            longest("-("),
            longest("a?"),
            longest("args.a.all(a,"),
            format!("1{}", longest("+1").trim_end_matches("+1")),
            format!("{}true{}", "(".repeat(90), ")".repeat(90)),
            format!("args{}", ".a".repeat(1000)),
            format!("args{}", "[0]".repeat(600)),
            format!("args{}", ".size()".repeat(280)),
            "\u{0}".repeat(50),
            "\"\\u{".repeat(50),
        ] {
            let mut policy = tools("{name: a, validations: [{expression: 'true'}], limits: [{max: 1, window: day}]}");
            let tool = &mut policy.spec.servers[0].tools[0];
            tool.validations[0].expression.clone_from(&expression);
            tool.limits[0].cost = Some(expression.clone());
            tool.limits[0].key = Some(expression);
            let (engine, problems) = compile(&[policy]);
            let denial = denied(call(&engine, "a", r#"{"a": {"a": []}}"#, 0));
            assert_eq!(denial.reason == Reason::InvalidPolicy, !problems.is_empty());
            for problem in problems {
                assert!(!problem.error.to_string().contains('\n'), "{}", problem.error);
                assert!(problem.error.to_string().chars().count() < 500, "{}", problem.error);
            }
        }
    }
}

#[test]
fn any_name_that_a_server_gives_a_tool_can_be_an_exact_entry() {
    let names =
        ["send invoice", " pay", "Rückfrage", "予定を検索", "a/b:c (d)", "2*3", r"C:\dir", r"\*", "what?", "\"'#{}[]&!%@`", "🙂"];
    for name in names {
        let entry = serde_json::json!({"name": toolweir_crds::tool_name::exactly(name), "limits": [{"max": 1, "window": "day"}]});
        let (engine, problems) = compile(&[tools(&entry.to_string())]);
        assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{name}: {problems:?}");
        let asked = |tool: &str| reason(&call(&engine, tool, "{}", 0));
        assert_eq!(asked(name), Reason::None, "{name}");
        assert_eq!(asked(name), Reason::RateLimit, "{name}");
        for other in [format!("{name} "), format!("x{name}"), name.replace('*', "x") + "y", name.trim().to_owned() + "\\"] {
            assert_eq!(asked(&other), Reason::NotListed, "{name} {other}");
        }
        assert_eq!(engine.names("s", OperationKind::Tool).collect::<Vec<_>>(), [name]);
    }
}

#[test]
fn a_glob_takes_stars_and_backslashes_of_the_name_where_they_are_escaped() {
    let engine =
        engine(&[tools(r"{name: '2\**'}, {name: 'C:\\*', action: Deny}, {name: '*:*'}, {name: 'GRÖSSE *', action: Deny}")]);
    let asked = |tool: &str| reason(&call(&engine, tool, "{}", 0));
    assert_eq!(asked("2*3"), Reason::None);
    assert_eq!(asked("213"), Reason::NotListed);
    assert_eq!(asked(r"c:\dir"), Reason::Denied);
    assert_eq!(asked("c:dir"), Reason::None);
    assert_eq!(asked("größe 1"), Reason::NotListed);
    assert_eq!(asked("grösse 1"), Reason::Denied);
}

#[test]
fn a_comprehension_over_an_argument_of_any_type_is_doubted_and_holds_all_the_same() {
    let problems = |entry: &str| {
        let (engine, problems) = compile(&[tools(entry)]);
        assert_eq!(reason(&call(&engine, "a", r#"{"to": ["x"]}"#, 0)), Reason::None);
        problems
    };
    let found = problems("{name: a, validations: [{expression: 'args.to.all(t, size(t) < 9)'}]}");
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].severity, found[0].error.path.as_str()),
        (Severity::Doubt, "spec.servers[0].tools[0].validations[0].expression")
    );
    assert_eq!(
        found[0].error.message,
        "goes over `args.to`, which is whatever the call says: a list's items or a map's keys; \
         write `type(args.to) == list && ...` before it"
    );
    assert_eq!(problems("{name: a, validations: [{expression: 'type(args.to) == list && args.to.all(t, size(t) < 9)'}]}"), []);
    // A condition that asks for the type holds before a limit counts.
    let limit = "limits: [{max: 9, window: day, cost: size(args.to)}]";
    assert_eq!(problems(&format!("{{name: a, validations: [{{expression: type(args.to) == list}}], {limit}}}")), []);
    assert_eq!(problems(&format!("{{name: a, {limit}}}"))[0].error.path, "spec.servers[0].tools[0].limits[0].cost");
}

mod audit {
    use super::*;

    fn auditing(tools: &str) -> Policy {
        policy("audit", &format!("mode: Audit, servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
    }

    #[test]
    fn lets_through_what_it_would_deny_and_says_so() {
        let engine = engine(&[auditing("{name: a, limits: [{max: 1, window: minute}]}")]);
        assert!(engine.may_use("s", Operation::tool("b"), None));
        let decision = call(&engine, "b", "", 0);
        assert_eq!(reason(&decision), Reason::None);
        assert_eq!(decision.would_deny.iter().map(|denial| denial.reason).collect::<Vec<_>>(), [Reason::NotListed]);
        let first = call(&engine, "a", "", 0);
        assert_eq!((reason(&first), first.would_deny.len()), (Reason::None, 0));
        let second = call(&engine, "a", "", 1);
        assert_eq!(reason(&second), Reason::None);
        assert_eq!(
            second.would_deny[0].message,
            "Denied by policy agents/audit: a is limited to 1 call a minute. Try again in 60 s."
        );
        assert_eq!((second.policy.as_deref(), second.entry.as_deref()), (Some("agents/audit"), Some("a")));
    }

    #[test]
    fn is_not_asked_about_a_call_that_another_policy_denies() {
        let enforced = policy(
            "enforced",
            "servers: [{name: s, url: 'http://s/mcp', tools: [{name: a, validations: [{expression: 'args.n == 1'}]}]}]",
        );
        let engine = engine(&[auditing("{name: a, limits: [{max: 1, window: minute}]}"), enforced]);
        let decision = call(&engine, "a", r#"{"n": 2}"#, 0);
        assert_eq!((reason(&decision), decision.would_deny.len()), (Reason::Validation, 0));
        assert_eq!(call(&engine, "a", r#"{"n": 1}"#, 0).would_deny.len(), 0);
        assert_eq!(call(&engine, "a", r#"{"n": 1}"#, 0).would_deny.len(), 1);
    }

    #[test]
    fn the_names_that_it_reads_do_not_make_another_policy_deny() {
        let enforced = policy(
            "enforced",
            "servers: [{name: s, url: 'http://s/mcp', tools: [{name: a, validations: [{expression: 'args.n == 1'}]}]}]",
        );
        let audit = auditing("{name: a, validations: [{expression: \"has(args.to)\"}]}");
        let arguments = r#"{"n": 1, "To": "me"}"#;
        let alone = engine(std::slice::from_ref(&enforced));
        assert_eq!(reason(&call(&alone, "a", arguments, 0)), Reason::None);
        let engine = engine(&[enforced, audit]);
        let decision = call(&engine, "a", arguments, 0);
        assert_eq!(reason(&decision), Reason::None);
        assert_eq!(decision.would_deny.iter().map(|denial| denial.reason).collect::<Vec<_>>(), [Reason::Malformed]);
    }

    #[test]
    fn of_several_the_most_severe_is_the_first_told() {
        let other = policy("b", "mode: Audit, servers: [{name: s, url: 'http://s/mcp', tools: [{name: a, action: Deny}]}]");
        let engine = engine(&[auditing("{name: a, validations: [{expression: 'false'}]}"), other]);
        let decision = call(&engine, "a", "", 0);
        let told: Vec<(Reason, &str)> =
            decision.would_deny.iter().map(|denial| (denial.reason, denial.policy.as_deref().unwrap())).collect();
        assert_eq!(told, [(Reason::Denied, "agents/b"), (Reason::Validation, "agents/audit")]);
        assert_eq!(decision.policy.as_deref(), Some("agents/b"));
    }
}

mod limits {
    use super::*;

    #[test]
    fn of_every_entry_that_matches_apply_together() {
        let engine = engine(&[tools(
            "{name: '*', limits: [{max: 3, window: minute}]}, {name: 'a*', limits: [{max: 2, window: minute}]}, {name: ab}, {name: c}",
        )]);
        allowed(call(&engine, "ab", "", 0));
        allowed(call(&engine, "ax", "", 0));
        assert_eq!(reason(&call(&engine, "ab", "", 0)), Reason::RateLimit);
        allowed(call(&engine, "c", "", 0));
        assert_eq!(reason(&call(&engine, "c", "", 0)), Reason::RateLimit);
    }

    #[test]
    fn of_a_session_and_of_a_key_are_counted_apart() {
        let engine = engine(&[tools(
            "{name: a, limits: [{max: 1, window: minute, scope: Session}]}, {name: b, limits: [{max: 1, window: minute, key: args.k}]}, \
             {name: c, limits: [{max: 1, window: minute, scope: Session, key: args.k}]}",
        )]);
        let a = |session: &str, tool: &str, arguments: &str| reason(&call_in(&engine, "s", tool, session, arguments, 0));
        assert_eq!(a("1", "a", ""), Reason::None);
        assert_eq!(a("2", "a", ""), Reason::None);
        assert_eq!(a("1", "a", ""), Reason::RateLimit);
        for (arguments, expected) in [
            (r#"{"k": 1}"#, Reason::None),
            (r#"{"k": "1"}"#, Reason::None),
            (r#"{"k": true}"#, Reason::None),
            (r#"{"k": null}"#, Reason::None),
            (r#"{"k": [1, "1"]}"#, Reason::None),
            (r#"{"k": ["1", 1]}"#, Reason::None),
            // The same values, written in another way.
            (r#"{"k": 1.0}"#, Reason::RateLimit),
            (r#"{"k": 10e-1}"#, Reason::RateLimit),
            (r#"{"k": "\u0031"}"#, Reason::RateLimit),
            (r#"{"k": 0}"#, Reason::None),
            (r#"{"k": -0}"#, Reason::RateLimit),
            (r#"{"k": -0.0}"#, Reason::RateLimit),
            (r#"{"k": 18446744073709551615}"#, Reason::None),
            (r#"{"k": 18446744073709551615}"#, Reason::RateLimit),
        ] {
            assert_eq!(a("1", "b", arguments), expected, "{arguments}");
        }
        assert_eq!(a("1", "c", r#"{"k": 1}"#), Reason::None);
        assert_eq!(a("2", "c", r#"{"k": 1}"#), Reason::None);
        assert_eq!(a("1", "c", r#"{"k": 2}"#), Reason::None);
        assert_eq!(a("1", "c", r#"{"k": 1}"#), Reason::RateLimit);
    }

    #[test]
    fn that_name_one_counter_count_together_and_a_call_once() {
        let engine = engine(&[tools(
            "{name: a, limits: [{max: 3, window: minute, counter: out}]}, {name: b, limits: [{max: 3, window: minute, counter: out}]}, \
             {name: 'a*', limits: [{max: 3, window: minute, counter: out}]}, {name: c, limits: [{max: 3, window: hour, counter: out}]}",
        )]);
        allowed(call(&engine, "a", "", 0));
        allowed(call(&engine, "b", "", 0));
        allowed(call(&engine, "ab", "", 0));
        for tool in ["a", "b", "ab"] {
            assert_eq!(reason(&call(&engine, tool, "", 0)), Reason::RateLimit, "{tool}");
        }
        // Another window is another count.
        allowed(call(&engine, "c", "", 0));
    }

    #[test]
    fn of_two_policies_never_count_together() {
        let p = |name| {
            policy(
                name,
                "servers: [{name: s, url: 'http://s/', tools: [{name: a, limits: [{max: 2, window: day, counter: x}]}]}]",
            )
        };
        let engine = engine(&[p("one"), p("two")]);
        allowed(call(&engine, "a", "", 0));
        allowed(call(&engine, "a", "", 0));
        assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::RateLimit);
    }

    #[test]
    fn with_a_cost_hold_the_sum_of_the_costs() {
        let engine = engine(&[tools("{name: pay, limits: [{max: 10, window: minute, cost: args.n}]}")]);
        let pay = |n: &str| reason(&call(&engine, "pay", &format!("{{\"n\": {n}}}"), 0));
        assert_eq!(pay("9.5"), Reason::None);
        assert_eq!(pay("0.75"), Reason::RateLimit);
        assert_eq!(pay("0"), Reason::None);
        assert_eq!(pay("0.5"), Reason::None);
        assert_eq!(pay("0.000001"), Reason::RateLimit);
        assert_eq!(pay("1e-300"), Reason::RateLimit);
        assert_eq!(pay("1e308"), Reason::RateLimit);
    }

    #[test]
    fn give_a_place_back_for_a_call_that_failed_and_not_for_one_that_ended() {
        let engine = engine(&[tools(
            "{name: '*', limits: [{max: 5, window: hour}]}, {name: a, limits: [{max: 1, window: minute}], maxConcurrent: 1}",
        )]);
        let used =
            |engine: &Engine| engine.limits(Timestamp(0), &NothingKnown).iter().map(|limit| limit.used).collect::<Vec<_>>();
        allowed(call(&engine, "a", "", 0)).give_back();
        assert_eq!(used(&engine), [0.0, 0.0]);
        drop(allowed(call(&engine, "a", "", 0)));
        assert_eq!(used(&engine), [1.0, 1.0]);
        assert_eq!(reason(&call(&engine, "a", "", 1)), Reason::RateLimit);
    }

    #[test]
    fn give_back_what_no_longer_counts_without_harm() {
        let engine = engine(&[tools("{name: a, limits: [{max: 2, window: minute}]}")]);
        let old = allowed(call(&engine, "a", "", 0));
        allowed(call(&engine, "a", "", 100));
        old.give_back();
        let used: Vec<f64> = engine.limits(Timestamp(100 * SECOND), &NothingKnown).iter().map(|limit| limit.used).collect();
        assert_eq!(used, [1.0]);
    }

    #[test]
    fn hold_when_threads_decide_at_once() {
        let engine = engine(&[tools("{name: a, limits: [{max: 500, window: day}], maxConcurrent: 3}")]);
        let (under_way, passed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if let Effect::Allowed(permit) = call(&engine, "a", "", 0).effect {
                            assert!(under_way.fetch_add(1, Relaxed) < 3);
                            passed.fetch_add(1, Relaxed);
                            std::thread::yield_now();
                            under_way.fetch_sub(1, Relaxed);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 500);
        assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::RateLimit);
    }

    #[test]
    fn are_shown_with_what_they_have_used() {
        let guardrail = cluster_policy(
            "g",
            "servers: [{name: '*', defaultAction: Allow, tools: [{name: '*', limits: [{max: 9, window: day}]}]}]",
        );
        let own = tools(
            "{name: a, limits: [{max: 2, window: minute}, {max: 5, window: 90s, scope: Session, counter: out}, {max: 7, window: hour, key: args.k}]}",
        );
        let other = policy("q", "servers: [{name: t, url: 'http://t/', defaultAction: Allow}]");
        let engine = engine(&[guardrail, own, other]);
        for (session, key) in [("1", 1), ("2", 1)] {
            allowed(call_in(&engine, "s", "a", session, &format!("{{\"k\": {key}}}"), 0));
        }
        let views: Vec<_> =
            engine.limits(Timestamp(0), &NothingKnown).into_iter().map(|view| serde_json::to_value(view).unwrap()).collect();
        assert_eq!(
            json!(views),
            json!([
                {"server": "s", "tool": "a", "policy": "agents/p", "limit": "2/minute", "keyed": false, "used": 2.0, "max": 2},
                {"server": "s", "tool": "a", "policy": "agents/p", "limit": "5/90s/Session/out", "keyed": false, "used": 1.0, "max": 5,
                 "scope": "Session"},
                {"server": "s", "tool": "a", "policy": "agents/p", "limit": "7/hour", "keyed": true, "used": 2.0, "max": 7},
                {"server": "*", "tool": "*", "policy": "g", "limit": "9/day", "keyed": false, "used": 2.0, "max": 9},
            ])
        );
    }
}

mod counts_across_recompilation {
    use super::*;

    fn recompile(counters: &Arc<Memory>, policies: &[Policy]) -> Engine {
        let (engine, problems) = Engine::compile(policies, Arc::clone(counters), &CompileOptions::default());
        assert_eq!(problems, []);
        engine
    }

    #[test]
    fn live_on_where_only_max_or_other_things_change() {
        let counters = Memory::new(100);
        let engine = recompile(&counters, &[tools("{name: a, limits: [{max: 2, window: minute}]}")]);
        allowed(call(&engine, "a", "", 0));
        allowed(call(&engine, "a", "", 0));
        let raised = recompile(
            &counters,
            &[tools("{name: b}, {name: a, reason: r, limits: [{max: 1, window: hour}, {max: 3, window: minute}]}")],
        );
        allowed(call(&raised, "a", "", 1));
        let lowered = recompile(&counters, &[tools("{name: a, limits: [{max: 1, window: minute}]}")]);
        let denial = denied(call(&lowered, "a", "", 2));
        // All but none of the three must come free, the last of them is a second younger.
        assert_eq!(denial.retry_after.map(|wait| wait.as_secs()), Some(59));
    }

    #[test]
    fn begin_anew_where_what_is_counted_changes() {
        let limit = |limit: &str| tools(&format!("{{name: a, limits: [{{max: 1, {limit}}}]}}"));
        for changed in
            ["window: hour", "window: minute, scope: Session", "window: minute, key: tool", "window: minute, cost: '1'"]
        {
            let counters = Memory::new(100);
            allowed(call(&recompile(&counters, &[limit("window: minute")]), "a", "", 0));
            let engine = recompile(&counters, &[limit(changed)]);
            allowed(call(&engine, "a", "", 1));
            assert_eq!(reason(&call(&engine, "a", "", 1)), Reason::RateLimit, "{changed}");
        }
    }

    #[test]
    fn keep_places_of_calls_that_are_under_way() {
        let counters = Memory::new(100);
        let policies = [tools("{name: a, maxConcurrent: 1}")];
        let held = allowed(call(&recompile(&counters, &policies), "a", "", 0));
        let engine = recompile(&counters, &policies);
        assert_eq!(reason(&call(&engine, "a", "", 1)), Reason::Concurrency);
        drop(held);
        allowed(call(&engine, "a", "", 2));
    }

    #[test]
    fn are_not_those_of_a_policy_of_another_name() {
        let counters = Memory::new(100);
        let named =
            |name| policy(name, "servers: [{name: s, url: 'http://s/', tools: [{name: a, limits: [{max: 1, window: minute}]}]}]");
        allowed(call(&recompile(&counters, &[named("one")]), "a", "", 0));
        allowed(call(&recompile(&counters, &[named("two")]), "a", "", 0));
        assert_eq!(reason(&call(&recompile(&counters, &[named("one")]), "a", "", 0)), Reason::RateLimit);
    }
}

mod memory {
    use super::*;

    fn keyed(most: usize) -> (Engine, Arc<Memory>) {
        let counters = Memory::new(most);
        let policies = [tools("{name: a, limits: [{max: 2, window: minute, key: args.k}, {max: 100, window: hour}]}, {name: b}")];
        (Engine::compile(&policies, Arc::clone(&counters), &CompileOptions::default()).0, counters)
    }

    fn key(engine: &Engine, key: u64, seconds: u64) -> Reason {
        reason(&call(engine, "a", &format!("{{\"k\": {key}}}"), seconds))
    }

    #[test]
    fn of_keys_is_bounded_and_comes_free_when_windows_pass() {
        let (engine, counters) = keyed(4);
        for k in 0..3 {
            assert_eq!(key(&engine, k, 0), Reason::None);
        }
        let denial = denied(call(&engine, "a", r#"{"k": 3}"#, 1));
        assert_eq!(denial.reason, Reason::CountersExhausted);
        assert_eq!(
            denial.message,
            "Denied by policy agents/p: a is counted for each session or key, and there are more of those than are kept. Try \
             again later."
        );
        assert_eq!(counters.len(), 4);
        // Those that are kept go on, and so does what needs no count.
        assert_eq!(key(&engine, 0, 2), Reason::None);
        assert_eq!(reason(&call(&engine, "b", "", 2)), Reason::None);
        // The minute of the keys 1 and 2 is over, that of the key 0 and the hour are not.
        assert_eq!(key(&engine, 3, 61), Reason::None);
        assert_eq!(key(&engine, 4, 61), Reason::None);
        assert_eq!(key(&engine, 5, 61), Reason::CountersExhausted);
        assert!(counters.len() <= 4);
    }

    #[test]
    fn of_a_denied_call_is_none() {
        let (engine, counters) = keyed(1);
        assert_eq!(key(&engine, 0, 0), Reason::CountersExhausted);
        assert!(counters.is_empty());
        let usage: Vec<f64> = engine.limits(Timestamp(0), &NothingKnown).iter().map(|limit| limit.used).collect();
        assert_eq!(usage, [0.0, 0.0]);
    }

    #[test]
    fn never_holds_more_counts_than_are_allowed() {
        let (engine, counters) = keyed(5);
        for step in 0..2000_u64 {
            // Keys that come again after their windows have passed, and new ones.
            let _ = key(&engine, step * step % 11, step * 7);
            assert!(counters.len() <= 5, "{} at step {step}", counters.len());
        }
    }

    #[test]
    fn never_holds_more_when_a_count_that_is_over_is_needed_again() {
        let counters = Memory::new(3);
        let policies = [tools("{name: a, limits: [{max: 2, window: day, key: args.k}, {max: 100, window: minute}]}")];
        let engine = Engine::compile(&policies, Arc::clone(&counters), &CompileOptions::default()).0;
        assert_eq!(key(&engine, 1, 0), Reason::None);
        assert_eq!(key(&engine, 2, 0), Reason::None);
        // The minute is over and the days of the keys 1 and 2 are not: there is one place, and the call needs two.
        assert_eq!(key(&engine, 3, 100), Reason::CountersExhausted);
        assert_eq!(key(&engine, 1, 100), Reason::None);
        assert_eq!(counters.len(), 3);
    }

    #[test]
    fn that_is_exhausted_is_told_by_the_policy_whose_limit_has_no_place() {
        let keyed = policy(
            "a",
            "servers: [{name: s, url: 'http://s/', tools: [{name: a, limits: [{max: 9, window: day, key: args.k}]}]}]",
        );
        let other = policy("b", "servers: [{name: s, url: 'http://s/', tools: [{name: a, limits: [{max: 9, window: day}]}]}]");
        let engine = Engine::compile(&[other, keyed], Memory::new(2), &CompileOptions::default()).0;
        assert_eq!(key(&engine, 1, 0), Reason::None);
        let denial = denied(call(&engine, "a", r#"{"k": 2}"#, 0));
        assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::CountersExhausted, Some("agents/a")));
    }

    #[test]
    fn comes_free_at_once_when_a_call_gives_its_place_back() {
        let (engine, _) = keyed(2);
        let failed = allowed(call(&engine, "a", r#"{"k": 1}"#, 0));
        assert_eq!(key(&engine, 2, 1), Reason::CountersExhausted);
        failed.give_back();
        assert_eq!(key(&engine, 2, 1), Reason::None);
    }

    #[test]
    fn of_a_key_does_not_grow_with_its_length() {
        let (engine, counters) = keyed(100);
        let long = |end: &str| reason(&call(&engine, "a", &format!("{{\"k\": \"{}{end}\"}}", "x".repeat(100_000)), 0));
        assert_eq!(long("1"), Reason::None);
        assert_eq!(long("1"), Reason::None);
        assert_eq!(long("1"), Reason::RateLimit);
        assert_eq!(long("2"), Reason::None);
        assert_eq!(counters.len(), 3);
    }
}

mod arguments {
    use super::*;

    fn reads() -> Engine {
        engine(&[tools(
            "{name: reads, validations: [{expression: '!has(args.amount) || args.amount == null || args.amount < 5'}]}, \
             {name: counts, limits: [{max: 9, window: day, key: args.user}]}, {name: weighs, limits: [{max: 9, window: day, cost: args.n}]}, \
             {name: blind, limits: [{max: 99, window: day}]}, {name: pod_only, validations: [{expression: \"pod.name == 'pod-1'\"}]}",
        )])
    }

    const AMBIGUOUS: [(&str, &str); 8] = [
        (r#"{"amount": 1, "amount": 9}"#, "repeats the key `amount` in an object"),
        (r#"{"amount": 1, "\u0061mount": 9}"#, "repeats the key `amount` in an object"),
        (r#"{"x": [{"y": 1, "y": 2}]}"#, "repeats the key `y` in an object"),
        (r#"{"Amount": 9}"#, "has the key `Amount`, which differs from `amount` in case alone"),
        (r#"{"x": {"AMOUNT": 9}}"#, "has the key `AMOUNT`, which differs from `amount` in case alone"),
        (r#"{"amount\u0000": 9}"#, "has a key with a NUL character"),
        (r#"{"x": "\ud800"}"#, "has a string with half of a surrogate pair (byte 6)"),
        (r"[1]", "is not an object"),
    ];

    #[test]
    fn that_two_readers_could_read_differently_are_refused_where_a_policy_reads_them() {
        let engine = reads();
        for (arguments, why) in AMBIGUOUS {
            let denial = denied(call(&engine, "reads", arguments, 0));
            assert_eq!(denial.reason, Reason::Malformed, "{arguments}");
            assert_eq!(
                denial.message,
                format!("Denied by policy agents/p: the call's `arguments` {why}. Correct that and try again.")
            );
        }
        for (tool, arguments) in
            [("counts", r#"{"User": 1, "user": 1}"#), ("counts", r#"{"user": 1, "user": 1}"#), ("weighs", r#"{"n": 1, "N": 1}"#)]
        {
            assert_eq!(reason(&call(&engine, tool, arguments, 0)), Reason::Malformed, "{arguments}");
        }
    }

    #[test]
    fn that_no_policy_reads_are_the_servers_business() {
        let engine = reads();
        for (arguments, _) in AMBIGUOUS {
            for tool in ["blind", "pod_only"] {
                assert_eq!(reason(&call(&engine, tool, arguments, 0)), Reason::None, "{tool} {arguments}");
            }
        }
        // A key that only differs in case from one that no policy reads, or that only another tool's entry reads.
        assert_eq!(reason(&call(&engine, "reads", r#"{"user": 1, "User": 2, "N": 1}"#, 0)), Reason::None);
    }

    #[test]
    fn that_are_absent_or_null_are_an_empty_object() {
        let engine = reads();
        for arguments in ["", "null", "{}", " { } "] {
            assert_eq!(reason(&call(&engine, "reads", arguments.trim(), 0)), Reason::None, "{arguments}");
            assert_eq!(reason(&call(&engine, "counts", arguments.trim(), 0)), Reason::Validation, "{arguments}");
        }
    }

    #[test]
    fn of_more_values_than_a_policy_reads_are_refused() {
        let engine = reads();
        let many = format!("{{\"x\": [{}0]}}", "0,".repeat(5000));
        assert_eq!(reason(&call(&engine, "reads", &many, 0)), Reason::Malformed);
        assert_eq!(reason(&call(&engine, "blind", &many, 0)), Reason::None);
    }

    #[test]
    fn are_seen_with_tool_server_session_and_pod() {
        let engine = engine(&[tools(
            "{name: a, validations: [{expression: \"tool == 'a' && server == 's' && session == 'session-1' && pod.name == 'pod-1' && \
             pod.namespace == 'agents' && pod.serviceAccount == 'default' && args.n == 1\"}]}",
        )]);
        assert_eq!(reason(&call(&engine, "a", r#"{"n": 1}"#, 0)), Reason::None);
        assert_eq!(reason(&call_in(&engine, "s", "a", "session-2", r#"{"n": 1}"#, 0)), Reason::Validation);
    }
}

mod what_a_call_is_counted_under {
    use super::*;

    #[test]
    fn is_the_first_policy_that_governs_the_server_and_its_entry_where_all_allow() {
        let guardrail = cluster_policy("a-guardrail", "servers: [{name: '*', defaultAction: Allow}]");
        let p = |name: &str, tools: &str| policy(name, &format!("servers: [{{name: s, url: 'http://s/', tools: [{tools}]}}]"));
        let engine = engine(&[guardrail, p("z", "{name: a}"), p("b", "{name: 'a*'}, {name: '*', action: Deny}")]);
        let decision = call(&engine, "a", "", 0);
        assert_eq!((decision.policy.as_deref(), decision.entry.as_deref()), (Some("agents/b"), Some("a*")));
        assert_eq!(engine.first_policy("s").map(|name| &**name), Some("agents/b"));
        let decision = call(&engine, "b", "", 0);
        assert_eq!((decision.policy.as_deref(), decision.entry.as_deref()), (Some("agents/b"), Some("*")));
        let mut known: Vec<&str> = engine.names("s", OperationKind::Tool).collect();
        known.sort_unstable();
        assert_eq!(known, ["a"]);
    }

    #[test]
    fn usage_is_that_of_the_fullest_count_of_a_limit() {
        let engine = engine(&[tools("{name: a, limits: [{max: 9, window: hour, key: args.k}]}")]);
        for key in [1, 2, 2, 3] {
            allowed(call(&engine, "a", &format!("{{\"k\": {key}}}"), 0));
        }
        assert_eq!(engine.limits(Timestamp(0), &NothingKnown)[0].used.to_bits(), 2.0_f64.to_bits());
        assert_eq!(engine.counters().len(), 3);
        assert!(engine.counters().take(&[], &[], Timestamp(0)).is_ok());
    }

    #[test]
    fn usage_is_not_that_of_calls_without_a_session_or_a_key() {
        let used =
            |engine: &Engine| -> Vec<f64> { engine.limits(Timestamp(0), &NothingKnown).iter().map(|limit| limit.used).collect() };
        let sessions = engine(&[tools("{name: a, limits: [{max: 9, window: hour, scope: Session}]}")]);
        for session in ["one", "one", ""] {
            allowed(call_in(&sessions, "s", "a", session, "", 0));
        }
        assert_eq!(used(&sessions), [2.0], "of the fullest session");
        let counter = engine(&[tools(
            "{name: a, limits: [{max: 9, window: hour, key: args.k, counter: c}]}, {name: b, limits: [{max: 9, window: hour, counter: c}]}",
        )]);
        let keyed = || allowed(call(&counter, "a", r#"{"k": 1}"#, 0));
        drop([keyed(), keyed()]);
        allowed(call(&counter, "b", "", 0)).give_back();
        assert_eq!(used(&counter), [2.0, 0.0], "each limit has counts of its own");
        (0..3).for_each(|_| drop(allowed(call(&counter, "b", "", 0))));
        assert_eq!(used(&counter), [2.0, 3.0], "each limit has counts of its own");
    }
}
