//! What was decided, decided anew: the same by the same policies, and what a naive count gives by others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code, reason = "more of it is used by the tests of the engine")]
#[path = "../../engine/tests/model/generate.rs"]
mod generate;

use std::{
    slice,
    time::{Duration, UNIX_EPOCH},
};

use generate::{Step, Then, pins, policies, steps};
use proptest::{collection::vec, prelude::*, sample::Index};
use toolweir_crds::{Scope, read_documents};
use toolweir_engine::{
    Call, CompileOptions, Decision, DecisionStart, Effect, Engine, Memory, Operation, Policy, Timestamp, json::Reader,
};
use toolweir_replay::{Change, DecisionChange, Replay, ReplayReport};

const MS: u64 = 1_000_000;
/// 2026-01-01T00:00:00Z
const START: u64 = 1_767_225_600_000 * MS;

/// When a line is written, and the line.
type Line = (u64, String);

/// A call as it is recorded.
struct Recorded<'a> {
    time: u64,
    end: u64,
    server: &'a str,
    tool: &'a str,
    session: Option<&'a str>,
    decision: &'a Decision,
    outcome: &'a str,
    arguments: Option<&'a str>,
    /// What it says of the tool's definition: fields of JSON.
    of_tool: &'a str,
}

impl Recorded<'_> {
    fn line(&self, with_arguments: bool) -> Line {
        let json = |text: Option<&str>| serde_json::to_string(&text).unwrap();
        let (effect, reason) = self.decision.labels();
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(self.time));
        let Self { server, tool, outcome, of_tool, .. } = self;
        let (policy, entry) = (json(self.decision.policy.as_deref()), json(self.decision.entry.as_deref()));
        let latency = f64::from(u32::try_from((self.end - self.time) / 1000).unwrap()) / 1e3;
        let (session, sha256) = (json(self.session), json(self.arguments.map(|_| "52f7")));
        let arguments =
            self.arguments.filter(|_| with_arguments).map(|text| format!(",\"arguments\":{text}")).unwrap_or_default();
        let line = format!(
            r#"{{"time":"{time}","server":"{server}","tool":"{tool}","decision":"{effect}","reason":"{reason}","policy":{policy},"entry":{entry},"outcome":"{outcome}","latencyMs":{latency},"session":{session},"argumentsSha256":{sha256}{of_tool}{arguments}}}"#
        );
        (self.end, line)
    }
}

fn replay_logs(policies: &[Policy], logs: &[Vec<Line>]) -> ReplayReport {
    let mut replay = Replay::new(2);
    for (number, lines) in logs.iter().enumerate() {
        let (log, _) = replay.add_log(&format!("{number}.log"), policies, &CompileOptions::default(), Memory::COUNTERS).unwrap();
        // Lines are written when calls end.
        let mut lines = lines.clone();
        lines.sort_by_key(|(end, _)| *end);
        let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
        replay.read(log, &mut text.as_bytes()).unwrap();
    }
    replay.finish().unwrap()
}

/// Has an engine decide on the steps, and records that. Every call comes in a millisecond of its own; what ends does so in between.
struct Recorder {
    engine: Engine,
    now: u64,
    under_way: Vec<UnderWay>,
    /// The lines, each with the number of its step.
    lines: Vec<(usize, Line)>,
    with_arguments: bool,
}

/// A call that is under way, with what is needed to record it.
struct UnderWay {
    number: usize,
    time: u64,
    server: &'static str,
    tool: &'static str,
    session: &'static str,
    arguments: Option<String>,
    of_tool: String,
    decision: Decision,
}

impl Recorder {
    fn new(policies: &[Policy], with_arguments: bool) -> Self {
        let engine = Engine::compile(policies, Memory::new(Memory::COUNTERS), &CompileOptions::default()).0.with_pins(&pins());
        Self { engine, now: START, under_way: Vec::new(), lines: Vec::new(), with_arguments }
    }

    fn run(mut self, steps: &[Step]) -> Vec<(usize, Line)> {
        for (number, step) in steps.iter().enumerate() {
            self.step(number, step);
        }
        while let Some(call) = self.under_way.pop() {
            self.end(call, 500_000, false);
        }
        self.lines
    }

    fn step(&mut self, number: usize, step: &Step) {
        match step {
            Step::End { which, failed } => {
                if !self.under_way.is_empty() {
                    let call = self.under_way.swap_remove(which.index(self.under_way.len()));
                    self.end(call, 500_000, *failed);
                }
            }
            Step::Call { after, server, tool, session, arguments, then, seen, approved, .. } => {
                self.now += (after / MS).max(1) * MS;
                // A call without a session has the empty one.
                let session = if *session == "s1" { "00000000000000a1" } else { "" };
                let arguments = arguments.json();
                let raw = arguments.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                let call = Call { server, operation: Operation::tool(tool), arguments: raw, session, seen: seen.as_ref() };
                let (decision, was_approved) = self.decide(&call, *approved);
                let name = if was_approved { ",\"approval\":\"agents/t-x7k2\"" } else { "" };
                let of_tool = self.of_tool(&call) + name;
                let call = UnderWay { number, time: self.now, server, tool, session, arguments, of_tool, decision };
                match then {
                    Then::Keep if call.decision.denial().is_none() => self.under_way.push(call),
                    then => self.end(call, 250_000, *then == Then::GiveBack),
                }
            }
        }
    }

    /// Decides, and has a person approve what is asked, or not. Also returns whether that was so.
    fn decide(&self, call: &Call<'_>, approved: bool) -> (Decision, bool) {
        let decision = self.engine.decide(call, Timestamp(self.now));
        let Some(ask) = decision.denial().and_then(|denial| denial.ask.clone()).filter(|_| approved) else {
            return (decision, false);
        };
        match self.engine.begin_approved(call, Some(&ask), Timestamp(self.now)) {
            DecisionStart::Decided(decision) => (decision, true),
            DecisionStart::Pending(pending) => (pending.finish([], Timestamp(self.now)), true),
        }
    }

    /// What the line says of the tool's definition.
    fn of_tool(&self, call: &Call<'_>) -> String {
        if !self.engine.server(call.server).is_some_and(|server| server.reads_definitions) {
            return String::new();
        }
        let drift = call.seen.map(|seen| self.engine.drift(call.server, call.operation.name, seen)).unwrap_or_default();
        let changed: Vec<_> =
            drift.iter().flat_map(|drift| drift.state.changed().iter()).map(|part| format!("\"{part}\"")).collect();
        let drift = if changed.is_empty() { String::new() } else { format!(",\"drift\":[{}]", changed.join(",")) };
        format!(",\"class\":\"{}\"{drift}", call.class().as_str())
    }

    fn end(&mut self, call: UnderWay, after: u64, failed: bool) {
        let UnderWay { number, time, server, tool, session, arguments, of_tool, decision } = call;
        let session = (!session.is_empty()).then_some(session);
        let is_denied = decision.denial().is_some();
        let outcome = if is_denied { "denied" } else { ["ok", "connect_failed"][usize::from(failed)] };
        let (end, arguments) = (self.now + after, arguments.as_deref());
        let recorded = Recorded { time, end, server, tool, session, decision: &decision, outcome, arguments, of_tool: &of_tool };
        self.lines.push((number, recorded.line(self.with_arguments)));
        if let Effect::Allowed(permit) = decision.effect {
            if failed { permit.give_back() } else { drop(permit) }
        }
    }
}

/// Of a tool of which the log does not say how it compared with pins, it is not known.
fn is_unchanged(report: &ReplayReport, calls: usize) -> Result<(), TestCaseError> {
    let unknown: u64 = report.changes.iter().filter(|change| change.reason == "pins").map(|change| change.calls).sum();
    prop_assert_eq!(report.unchanged + unknown, u64::try_from(calls).unwrap(), "{}", report.text());
    prop_assert_eq!(report.count(DecisionChange::Unknown), unknown);
    Ok(())
}

/// Policies whose pins are all the same, since a line speaks of all pins together.
fn pinned_alike() -> impl Strategy<Value = Vec<Policy>> {
    policies().prop_map(|mut policies| {
        for policy in &mut policies {
            policy
                .spec
                .servers
                .iter_mut()
                .filter_map(|server| server.pins.as_mut())
                .for_each(|pins| "p".clone_into(&mut pins.name));
        }
        policies
    })
}

fn lines_of(recorded: Vec<(usize, Line)>) -> Vec<Line> {
    recorded.into_iter().map(|(_, line)| line).collect()
}

proptest! {
    #[test]
    fn the_same_policies_decide_the_same((policies, steps) in (pinned_alike(), steps())) {
        let lines = lines_of(Recorder::new(&policies, true).run(&steps));
        is_unchanged(&replay_logs(&policies, slice::from_ref(&lines)), lines.len())?;
    }

    /// Limits that pods share count over all logs: they decide as one pod that has all the calls.
    #[test]
    fn pods_that_share_their_counts_are_replayed_as_one(
        (policies, steps) in (pinned_alike(), steps()),
        scope in prop_oneof![Just(Scope::Workload), Just(Scope::ServiceAccount), Just(Scope::Namespace), Just(Scope::Policy)],
        pods in vec(any::<Index>(), 60),
    ) {
        let set = |scope: Scope| {
            let mut policies = policies.clone();
            for tool in policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).flat_map(|server| &mut server.tools) {
                tool.limits.iter_mut().for_each(|limit| limit.scope = scope);
                if tool.max_concurrent.is_some() {
                    tool.max_concurrent_scope = scope;
                }
            }
            policies
        };
        let mut logs = vec![Vec::new(); 3];
        let recorded = Recorder::new(&set(Scope::Pod), true).run(&steps);
        let calls = recorded.len();
        for (number, line) in recorded {
            logs[pods[number].index(3)].push(line);
        }
        is_unchanged(&replay_logs(&set(scope), &logs), calls)?;
    }

    /// Without limits, what can be decided without arguments is decided as it was, and nothing else is.
    #[test]
    fn what_needs_arguments_is_unknown_without_them((policies, steps) in (policies(), steps())) {
        let mut policies = policies;
        policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).for_each(|server| server.pins = None);
        for tool in policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).flat_map(|server| &mut server.tools) {
            tool.limits.clear();
            tool.max_concurrent = None;
        }
        let recorder = Recorder::new(&policies, false);
        let needs = |step: &&Step| match step {
            Step::Call { server, tool, arguments, .. } => {
                arguments.json().is_some() && recorder.engine.reads(server, Operation::tool(tool)).arguments
            }
            Step::End { .. } => false,
        };
        let reading = steps.iter().filter(needs).count();
        let lines = lines_of(recorder.run(&steps));
        let report = replay_logs(&policies, slice::from_ref(&lines));
        // Of those that something else denies, it is known.
        let unknown = report.count(DecisionChange::Unknown);
        prop_assert!(unknown <= u64::try_from(reading).unwrap(), "{}", report.text());
        prop_assert_eq!(unknown + report.unchanged, u64::try_from(lines.len()).unwrap(), "{}", report.text());
    }

    /// Calls at whole seconds, so that a window of a minute is over or not, whatever its slices.
    #[test]
    fn with_other_limits_a_naive_count_gives_the_number(
        pauses in vec(prop_oneof![5 => 0_u64..4, 1 => 50_u64..70], 1..120),
        (max, new) in (1_i64..20, 1_i64..20),
    ) {
        let times: Vec<u64> = pauses.iter().scan(0, |now, pause| { *now += pause; Some(*now) }).collect();
        let naive = |max: i64| {
            let mut through: Vec<u64> = Vec::new();
            let mut fits = |now: u64| {
                let fits = through.iter().filter(|at| **at + 60 >= now).count() < usize::try_from(max).unwrap();
                through.extend(fits.then_some(now));
                fits
            };
            times.iter().map(|now| fits(*now)).collect::<Vec<bool>>()
        };
        let (before, after) = (naive(max), naive(new));
        let engine = Engine::compile(&[limited(max)], Memory::new(1), &CompileOptions::default()).0;
        let recorded = |now: &u64| {
            let time = START + now * 1000 * MS;
            let call = Call { server: "s", operation: Operation::tool("t"), arguments: None, session: "", seen: None };
            line(time, &engine.decide(&call, Timestamp(time)), None, None)
        };
        let report = replay_logs(&[limited(new)], &[times.iter().map(recorded).collect()]);
        let count = |was: bool, is: bool| {
            u64::try_from(before.iter().zip(&after).filter(|pair| *pair == (&was, &is)).count()).unwrap()
        };
        prop_assert_eq!(
            (report.count(DecisionChange::NewlyDenied), report.count(DecisionChange::NewlyAllowed), report.unchanged),
            (count(true, false), count(false, true), count(true, true) + count(false, false))
        );
    }
}

/// A policy `agents/p`.
fn policy(spec: &str) -> Policy {
    let head = "apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: p, namespace: agents}";
    read_documents("test", &format!("{{{head}, spec: {{{spec}}}}}")).unwrap().remove(0).document.into()
}

fn tools(tools: &str) -> Policy {
    policy(&format!("servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
}

fn limited(max: i64) -> Policy {
    tools(&format!("{{name: t, limits: [{{max: {max}, window: minute}}]}}"))
}

/// A line of a call of the tool `t` that took half a millisecond.
fn line(time: u64, decision: &Decision, session: Option<&str>, arguments: Option<&str>) -> Line {
    let outcome = if decision.denial().is_some() { "denied" } else { "ok" };
    let end = time + MS / 2;
    Recorded { time, end, server: "s", tool: "t", session, decision, outcome, arguments, of_tool: "" }.line(true)
}

/// A line of a call that was let through.
fn passed(milliseconds: u64, session: Option<&str>, arguments: Option<&str>) -> Line {
    let engine = Engine::compile(&[tools("{name: t}")], Memory::new(1), &CompileOptions::default()).0;
    let call = Call { server: "s", operation: Operation::tool("t"), arguments: None, session: "", seen: None };
    line(START + milliseconds * MS, &engine.decide(&call, Timestamp(0)), session, arguments)
}

fn all_passed(milliseconds: &[u64]) -> Vec<Line> {
    milliseconds.iter().map(|at| passed(*at, None, None)).collect()
}

/// The line of a call that took so many milliseconds.
fn taking((end, line): &Line, milliseconds: &str) -> Line {
    (*end, line.replace("\"latencyMs\":0.5", &format!("\"latencyMs\":{milliseconds}")))
}

/// The calls of each kind of change, with the reason.
fn told(report: &ReplayReport) -> Vec<(DecisionChange, &'static str, u64)> {
    report.changes.iter().map(|change: &Change| (change.change, change.reason, change.calls)).collect()
}

fn told_of(policy: &Policy, lines: Vec<Line>) -> Vec<(DecisionChange, &'static str, u64)> {
    told(&replay_logs(slice::from_ref(policy), &[lines]))
}

#[test]
fn each_log_is_a_pod() {
    let log = || all_passed(&[0, 1, 2]);
    let newly = |new: &Policy, logs: &[Vec<Line>]| replay_logs(slice::from_ref(new), logs).count(DecisionChange::NewlyDenied);
    assert_eq!(newly(&limited(3), &[log(), log()]), 0);
    assert_eq!(newly(&limited(2), &[log(), log()]), 2);
    let shared = tools("{name: t, limits: [{max: 4, window: minute, scope: Workload}]}");
    assert_eq!(newly(&shared, &[log(), log()]), 2);
    let sessions = tools("{name: t, limits: [{max: 1, window: minute, scope: Session}]}");
    let of = |session| passed(0, Some(session), None);
    assert_eq!(newly(&sessions, &[vec![of("00000000000000a1"), of("00000000000000a2"), of("00000000000000a1")]]), 1);
}

#[test]
fn a_condition_needs_what_it_reads() {
    let condition = tools("{name: t, validations: [{expression: 'args.n < 3'}]}");
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("{\"n\":2}"))]), []);
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("{\"n\":3}"))]), [(DecisionChange::NewlyDenied, "validation", 1)]);
    assert_eq!(told_of(&condition, vec![passed(0, None, None)]), [(DecisionChange::NewlyDenied, "validation", 1)]);
    let hashed = |at: u64| {
        let (end, line) = passed(at, None, Some("{\"n\":2}"));
        (end, line.split(",\"arguments\":").next().unwrap().to_owned() + "}")
    };
    assert_eq!(told_of(&condition, vec![hashed(0)]), [(DecisionChange::Unknown, "arguments", 1)]);
    // What denies without them is certain.
    let full = tools("{name: t, validations: [{expression: 'args.n < 3'}], limits: [{max: 1, window: minute}]}");
    let expected = [(DecisionChange::NewlyDenied, "rate_limit", 1), (DecisionChange::Unknown, "arguments", 1)];
    assert_eq!(told_of(&full, vec![hashed(0), hashed(1)]), expected);
    let denied = tools("{name: t, action: Deny}, {name: '*', validations: [{expression: 'args.n < 3'}]}");
    assert_eq!(told_of(&denied, vec![hashed(0)]), [(DecisionChange::NewlyDenied, "denied", 1)]);
    let session = tools("{name: t, validations: [{expression: \"session == ''\"}]}");
    assert_eq!(told_of(&session, vec![passed(0, None, None)]), []);
    let of_session = passed(0, Some("00000000000000a1"), None);
    assert_eq!(told_of(&session, vec![of_session]), [(DecisionChange::Unknown, "session", 1)]);
    let both = tools("{name: t, validations: [{expression: \"session == '' && args.n < 3\"}]}");
    let (end, line) = hashed(0);
    let of_session = (end, line.replace("\"session\":null", "\"session\":\"00000000000000a1\""));
    assert_eq!(told_of(&both, vec![of_session]), [(DecisionChange::Unknown, "arguments and session", 1)]);
}

#[test]
fn policies_in_audit_mode_only_object() {
    let limits = "tools: [{name: t, limits: [{max: 1, window: minute}]}]";
    let audit = policy(&format!("mode: Audit, servers: [{{name: s, url: 'http://s/mcp', {limits}}}]"));
    let lines = all_passed(&[0, 1, 2]);
    assert_eq!(told_of(&audit, lines.clone()), [(DecisionChange::NewlyWouldDeny, "rate_limit", 2)]);
    let objected = |line: &Line| (line.0, line.1.replace("\"allowed\"", "\"would_deny\"").replace("\"none\"", "\"rate_limit\""));
    let before: Vec<Line> = lines.iter().map(objected).collect();
    assert_eq!(told_of(&limited(9), before.clone()), [(DecisionChange::NoLongerWouldDeny, "rate_limit", 3)]);
    let expected = [(DecisionChange::NewlyDenied, "rate_limit", 2), (DecisionChange::NoLongerWouldDeny, "rate_limit", 1)];
    assert_eq!(told_of(&limited(1), before), expected);
    let nowhere = policy("servers: [{name: other, url: 'http://s/mcp'}]");
    assert_eq!(told_of(&nowhere, lines), [(DecisionChange::NewlyDenied, "no_policy", 3)]);
}

#[test]
fn places_and_what_was_not_sent_come_free() {
    let one = tools("{name: t, maxConcurrent: 1}");
    assert_eq!(told_of(&one, all_passed(&[0, 1, 2])), []);
    let long: Vec<Line> = all_passed(&[0, 0, 2]).iter().map(|line| taking(line, "1.5")).collect();
    assert_eq!(told_of(&one, long), [(DecisionChange::NewlyDenied, "concurrency", 1)]);
    let failed = |line: &Line| (line.0, line.1.replace("\"ok\"", "\"connect_failed\""));
    assert_eq!(told_of(&limited(1), all_passed(&[0, 1, 2]).iter().map(failed).collect()), []);
}

#[test]
fn of_calls_in_one_millisecond_those_that_were_denied_come_last() {
    let (end, line) = passed(0, None, None);
    let denied = line.replace("\"allowed\"", "\"denied\"").replace("\"none\"", "\"rate_limit\"").replace("\"ok\"", "\"denied\"");
    // It ended first, so its line stands first.
    assert_eq!(told_of(&limited(1), vec![(0, denied), (end, line)]), []);
}

#[test]
fn calls_that_ended_in_the_millisecond_of_the_next_did_not_overlap_it() {
    let one = tools("{name: t, maxConcurrent: 1}");
    assert_eq!(told_of(&one, all_passed(&[0, 0, 0, 1])), []);
    let failed = |line: &Line| (line.0, line.1.replace("\"ok\"", "\"connect_failed\""));
    assert_eq!(told_of(&limited(1), all_passed(&[0, 0, 0]).iter().map(failed).collect()), []);
    // One that found no place came before them.
    let full = |line: &Line| {
        let denied = line.1.replace("\"allowed\"", "\"denied\"").replace("\"none\"", "\"concurrency\"");
        (line.0, denied.replace("\"ok\"", "\"denied\""))
    };
    let lines = vec![taking(&passed(0, None, None), "1.5"), full(&passed(1, None, None))];
    assert_eq!(told_of(&one, lines), []);
}

#[test]
fn of_calls_in_one_millisecond_those_with_an_objection_come_after_the_others_and_before_the_denied() {
    let audit =
        policy("mode: Audit, servers: [{name: s, url: 'http://s/mcp', tools: [{name: t, limits: [{max: 1, window: minute}]}]}]");
    let mut twice = limited(2);
    twice.id.name = "twice".to_owned();
    let (end, line) = passed(0, None, None);
    let objected = line.replace("\"allowed\"", "\"would_deny\"").replace("\"none\"", "\"rate_limit\"");
    let denied = line.replace("\"allowed\"", "\"denied\"").replace("\"none\"", "\"rate_limit\"").replace("\"ok\"", "\"denied\"");
    let report = replay_logs(&[audit, twice], &[vec![(0, denied), (1, objected), (end, line)]]);
    assert_eq!(told(&report), []);
}

#[test]
fn places_depend_on_ends_that_the_log_does_not_have() {
    let note = "maxConcurrent is approximate: the log has the time to the head of each response, not to its end";
    let notes = |policy: Policy| replay_logs(&[policy], &[all_passed(&[0, 1])]).notes;
    assert!(notes(tools("{name: t, maxConcurrent: 9}")).contains(&note.to_owned()));
    assert!(notes(tools("{name: t, maxConcurrent: 9, maxConcurrentScope: Namespace}")).contains(&note.to_owned()));
    assert_eq!(notes(tools("{name: t}, {name: u, maxConcurrent: 9}")), Vec::<String>::new());
}

#[test]
fn arguments_that_are_null_are_known() {
    let condition = tools("{name: t, validations: [{expression: '!has(args.n)'}]}");
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("null"))]), []);
    let condition = tools("{name: t, validations: [{expression: 'has(args.n)'}]}");
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("null"))]), [(DecisionChange::NewlyDenied, "validation", 1)]);
}

#[test]
fn logs_that_are_all_damaged_are_not_said_to_be_no_audit_logs() {
    let damaged = |lines: usize| {
        let (end, line) = passed(0, None, None);
        replay_logs(&[limited(1)], &[vec![(end, line[..80].to_owned()); lines]]).notes
    };
    assert_eq!(damaged(1), ["1 audit line could not be read and is left out"]);
    assert_eq!(damaged(3), ["3 audit lines could not be read and are left out"]);
}

#[test]
fn servers_that_no_policy_names_are_named_safely() {
    let on = |server: &str| (0, passed(0, None, None).1.replace("\"server\":\"s\"", &format!("\"server\":\"{server}\"")));
    let noted = |servers: &[&str]| {
        let mut report = replay_logs(&[limited(9)], &[servers.iter().map(|server| on(server)).collect()]);
        let before = report.notes.len();
        report.note_ungoverned("do this");
        report.notes.split_off(before)
    };
    assert_eq!(noted(&["s"]), Vec::<String>::new());
    assert_eq!(noted(&["s", "a\\u001bb", "a\\u001bb"]), ["no policy names server a\\u{1b}b: do this"]);
    let many = ["a", "b", "c", "d", "e", "f", "g"];
    assert_eq!(noted(&many), ["no policy names servers a, b, c, d, e and 2 more: do this"]);
    let long = "x".repeat(200);
    assert_eq!(noted(&[&long]), [format!("no policy names server {}: do this", &long[..63])]);
}

#[test]
fn lines_that_are_no_calls_are_counted_and_damaged_ones_named() {
    let call = passed(0, None, None).1;
    let text = [
        "2026-01-01T00:00:00.1Z  INFO toolweir_sidecar: ready",
        "",
        r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"ready"}"#,
        r#"{"time":"2026-01-01T00:00:00.000Z","destination":"a:443","protocol":"tls","decision":"denied","reason":"not_allowed","policy":null}"#,
        call.as_str(),
        &format!("2026-01-01T00:00:00.000000001Z stdout F {call}"),
        &call[..80],
        &call[40..],
        &call.replace("\"allowed\"", "\"perhaps\""),
        &call.replace("\"none\"", "\"whim\""),
        &call.replace("2026-01-01T00", "2026-01-01 at 00"),
        &call.replace("\"session\":null", "\"session\":\"xyz\""),
        &call.replace("\"latencyMs\":0.5", "\"latencyMs\":-1"),
        &call.replace("\"latencyMs\":0.5", "\"latencyMs\":0.5,\"latencyMs\":0.5"),
        &call.replace("\"tool\":\"t\"", "\"tool\":1"),
        &call.replace("\"tool\":\"t\"", "\"operation\":\"prompts/get\""),
        &call.replace("\"tool\":\"t\"", "\"operation\":\"x/y\",\"name\":\"t\",\"kind\":\"whim\""),
        &call.replace("\"tool\":\"t\"", "\"tool\":\"t\",\"operation\":\"x/y\",\"name\":\"t\""),
        &call.replace("\"tool\":\"t\",", ""),
        &call.replace("\"none\"", "\"malformed\"").replace("\"agents/p\"", "null"),
    ]
    .join("\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(b"\n{\"time\":\"\xff\"}\n\xff\xfe\n");
    let mut replay = Replay::new(1);
    let (log, _) = replay.add_log("a.log", &[limited(9)], &CompileOptions::default(), 1).unwrap();
    replay.read(log, &mut bytes.as_slice()).unwrap();
    let report = replay.finish().unwrap();
    assert_eq!((report.calls, report.unchanged, &report.changes), (2, 2, &vec![]), "{}", report.text());
    assert_eq!(report.not_decided.get("malformed"), Some(&1));
    let skipped = report.skipped_lines;
    assert_eq!((skipped.connections, skipped.other, skipped.damaged), (1, 3, 14));
    let lines: Vec<u32> = report.damages.iter().map(|damage| damage.line).collect();
    assert_eq!(lines, [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21]);
    assert_eq!(report.damages[2].why, "its `decision` is `perhaps`, which is not known here");
}

#[test]
fn a_line_that_is_longer_than_audit_lines_are_is_damaged() {
    let mut replay = Replay::new(1);
    let (log, _) = replay.add_log("a.log", &[limited(9)], &CompileOptions::default(), 1).unwrap();
    let call = passed(0, None, None).1;
    let too_long = call.replace("\"tool\":\"t\"", &format!("\"tool\":\"{}\"", "x".repeat(toolweir_replay::MOST_BYTES)));
    replay.read(log, &mut format!("{too_long}\n{call}").as_bytes()).unwrap();
    let report = replay.finish().unwrap();
    assert_eq!((report.calls, report.damages.len(), report.damages[0].line), (1, 1, 1));
}

#[test]
fn the_report_says_what_changes() {
    let report = replay_logs(&[limited(2)], &[all_passed(&[0, 1000, 2000, 3000])]);
    assert_eq!(
        report.text(),
        "\
4 calls from 2026-01-01T00:00:00.000Z to 2026-01-01T00:00:03.000Z: 2 as before, 2 newly denied

CHANGE        SERVER  TOOL  REASON      CALLS
newly denied  s       t     rate_limit  2
  2026-01-01T00:00:02.000Z  0.log:3  agents/p, entry t
  2026-01-01T00:00:03.000Z  0.log:4  agents/p, entry t

note: limits begin empty at 2026-01-01T00:00:00.000Z: what was called before does not count, which matters for up to 1m
"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["changed"], serde_json::json!({"newly_denied": 2}));
    assert_eq!(
        json["changes"][0],
        serde_json::json!({
            "change": "newly_denied", "server": "s", "tool": "t", "reason": "rate_limit", "calls": 2, "examples": [
                {"time": "2026-01-01T00:00:02.000Z", "log": "0.log", "line": 3, "policy": "agents/p", "entry": "t"},
                {"time": "2026-01-01T00:00:03.000Z", "log": "0.log", "line": 4, "policy": "agents/p", "entry": "t"},
            ],
        })
    );
}

/// Lines of operations, a second apart, each with method, name, and perhaps arguments and more fields. All were let through.
fn operations(asked: &[(&str, &str, &str)]) -> Vec<Line> {
    let line = |(number, (method, name, more)): (usize, &(&str, &str, &str))| {
        let (end, line) = passed(number as u64 * 1000, None, None);
        (end, line.replace("\"tool\":\"t\"", &format!("\"operation\":\"{method}\",\"name\":\"{name}\"{more}")))
    };
    asked.iter().enumerate().map(line).collect()
}

/// A policy that has a say in everything of a server.
fn of_all_kinds(lists: &str) -> Policy {
    policy(&format!(
        "servers: [{{name: s, url: 'http://s/mcp', tools: [{{name: t}}], defaultActions: {{prompts: Deny, resources: Deny, \
         requests: Deny, other: Deny}}, {lists}}}]"
    ))
}

#[test]
fn other_operations_are_decided_as_their_kind_and_not_as_tools_of_their_names() {
    let lines = operations(&[
        ("prompts/get", "t", ""),
        ("prompts/get", "review", ""),
        ("resources/read", "file:///plans/a", ""),
        ("resources/subscribe", "file:///a", ""),
        ("sampling/createMessage", "sampling", ""),
        ("roots/list", "roots", ""),
        ("logging/setLevel", "logging/setLevel", ""),
        ("completion/complete", "review", ",\"kind\":\"prompt\""),
        ("completion/complete", "file:///a", ",\"kind\":\"resource\""),
    ]);
    let lists = "prompts: [{name: review}], resources: [{uri: 'file:///plans/*'}], requests: [{name: sampling}]";
    let report = replay_logs(&[of_all_kinds(lists)], &[[lines.clone(), all_passed(&[9000])].concat()]);
    let text = "\
10 calls from 2026-01-01T00:00:00.000Z to 2026-01-01T00:00:09.000Z: 5 as before, 5 newly denied
Of these, no calls of tools: 2 completion/complete, 1 logging/setLevel, 2 prompts/get, 1 resources/read, 1 resources/subscribe, 1 roots/list, 1 sampling/createMessage

CHANGE        SERVER  TOOL                           REASON      CALLS
newly denied  s       completion/complete file:///a  not_listed  1
  2026-01-01T00:00:08.000Z  0.log:9  agents/p
newly denied  s       logging/setLevel               not_listed  1
  2026-01-01T00:00:06.000Z  0.log:7  agents/p
newly denied  s       prompts/get t                  not_listed  1
  2026-01-01T00:00:00.000Z  0.log:1  agents/p
newly denied  s       resources/subscribe file:///a  not_listed  1
  2026-01-01T00:00:03.000Z  0.log:4  agents/p
newly denied  s       roots/list                     not_listed  1
  2026-01-01T00:00:05.000Z  0.log:6  agents/p
";
    assert_eq!(report.text(), text);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["changes"][2]["operation"], &json["changes"][2]["tool"]), (&"prompts/get".into(), &"t".into()));
    assert_eq!(json["operations"]["prompts/get"], 2);
    // A policy from before has no say in them.
    let report = replay_logs(&[limited(9)], &[lines]);
    assert_eq!((report.count(DecisionChange::NewlyDenied), report.unchanged), (9, 0));
    assert!(report.changes.iter().all(|change| change.reason == "no_policy"), "{}", report.text());
    let note = "no policy says what becomes of prompts, resources, requests or other methods of server s, so that these are denied: \
                write defaultActions, or lists of them (docs/operations.md)";
    assert!(report.notes.iter().any(|found| found == note), "{:?}", report.notes);
}

#[test]
fn limits_and_conditions_of_other_kinds_count_and_references_take_nothing() {
    let limit = "prompts: [{name: '*', action: Allow, limits: [{max: 2, window: minute}]}]";
    let get = ("prompts/get", "p", "");
    let complete = ("completion/complete", "p", ",\"kind\":\"prompt\"");
    let lines = operations(&[complete, complete, complete, get, get, get]);
    assert_eq!(told_of(&of_all_kinds(limit), lines), [(DecisionChange::NewlyDenied, "rate_limit", 1)]);
    // Of a resource, all that conditions can read is known; of a prompt, the arguments are not.
    let condition = "resources: [{uri: '*', action: Allow, validations: [{expression: \"uri.endsWith('.txt')\"}]}]";
    let lines = operations(&[("resources/read", "file:///a.txt", ""), ("resources/read", "file:///a.md", "")]);
    assert_eq!(told_of(&of_all_kinds(condition), lines), [(DecisionChange::NewlyDenied, "validation", 1)]);
    let condition =
        "prompts: [{name: '*', action: Allow, validations: [{expression: 'has(args.n)'}], approval: {when: 'size(args) > 9'}}]";
    let hashed = |(end, line): Line| (end, line.replace("\"argumentsSha256\":null", "\"argumentsSha256\":\"52f7\""));
    let lines: Vec<Line> = operations(&[get]).into_iter().map(hashed).collect();
    assert_eq!(told_of(&of_all_kinds(condition), lines), [(DecisionChange::Unknown, "arguments", 1)]);
}

#[test]
fn a_result_that_was_too_large_belongs_to_a_call_that_was_let_through() {
    let (end, line) = passed(0, None, None);
    let line = line.replace("\"allowed\"", "\"denied\"").replace("\"none\"", "\"result_too_large\"");
    assert_eq!(told_of(&tools("{name: t, maxResultBytes: 7}"), vec![(end, line.clone())]), []);
    let newly = [(DecisionChange::NewlyDenied, "denied", 1)];
    assert_eq!(told_of(&tools("{name: t, action: Deny}"), vec![(end, line)]), newly);
}

#[test]
fn nothing_in_is_nothing_found() {
    let report = replay_logs(&[limited(2)], &[Vec::new()]);
    assert_eq!(report.text(), "0 calls\n\nnote: the logs have no call; give audit logs of sidecars (docs/replay.md)\n");
}

#[test]
fn policies_that_do_not_compile_deny_with_and_without_arguments() {
    let broken = tools("{name: t, validations: [{expression: 'args.n <'}, {expression: 'args.n < 3'}]}");
    let lines = vec![passed(0, None, Some("{}")), passed(1, None, None)];
    assert_eq!(told_of(&broken, lines), [(DecisionChange::NewlyDenied, "invalid_policy", 2)]);
}

/// The line of a call that was let through, with these fields more.
fn with_fields(line: &Line, fields: &str) -> Line {
    (line.0, format!("{},{fields}}}", line.1.strip_suffix('}').unwrap()))
}

/// The line of a call to which pins objected.
fn objected(decision: &str, reason: &str, fields: &str) -> Line {
    let (end, line) = with_fields(&passed(0, None, None), fields);
    (end, line.replace("\"allowed\"", &format!("\"{decision}\"")).replace("\"none\"", &format!("\"{reason}\"")))
}

#[test]
fn the_class_of_the_line_decides() {
    let guard = tools("{class: Destructive, action: Deny}, {class: Read}, {name: named}");
    let of = |class: &str| told_of(&guard, vec![with_fields(&passed(0, None, None), &format!("\"class\":\"{class}\""))]);
    assert_eq!(of("Read"), []);
    assert_eq!(of("Write"), [(DecisionChange::NewlyDenied, "not_listed", 1)]);
    assert_eq!(of("Destructive"), [(DecisionChange::NewlyDenied, "denied", 1)]);
    // What every entry for a class denies, and none allows.
    assert_eq!(of("Unknown"), [(DecisionChange::NewlyDenied, "denied", 1)]);
    let unknown = [(DecisionChange::Unknown, "class", 1)];
    assert_eq!(told_of(&guard, vec![passed(0, None, None)]), unknown);
    // Where the class makes no difference, it is not needed.
    let by_name = tools("{class: Destructive, action: Deny}, {name: t}");
    assert_eq!(told_of(&by_name, vec![passed(0, None, None)]), []);
    let by_glob = tools("{class: Read}, {name: 't*', action: Deny}");
    assert_eq!(told_of(&by_glob, vec![passed(0, None, None)]), [(DecisionChange::NewlyDenied, "denied", 1)]);
    let limited = tools("{class: Write, limits: [{max: 9, window: minute}]}, {name: t}");
    assert_eq!(told_of(&limited, vec![passed(0, None, None)]), unknown);
    let asking = tools("{class: Write, approval: {}}, {name: t}");
    assert_eq!(told_of(&asking, vec![passed(0, None, None)]), unknown);
    assert_eq!(told_of(&asking, vec![with_fields(&passed(0, None, None), "\"class\":\"Read\"")]), []);
    let elsewhere = policy("servers: [{name: s, url: 'http://s/mcp', tools: [{name: t}]}, {name: o, tools: [{class: Read}]}]");
    assert_eq!(told_of(&elsewhere, vec![passed(0, None, None)]), []);
}

#[test]
fn a_call_of_an_unknown_class_counts_in_the_limits_of_names() {
    let both = tools("{class: Read}, {name: 't*', limits: [{max: 1, window: minute}]}, {class: Write, action: Deny}");
    let lines = all_passed(&[0, 1, 2]);
    assert_eq!(
        told_of(&both, lines.clone()),
        [(DecisionChange::NewlyDenied, "rate_limit", 2), (DecisionChange::Unknown, "class", 1)]
    );
    let report = replay_logs(&[both], &[lines]);
    let note = "1 call is unknown: entries decide by a class that the logs lack. In limits, these calls count as let through. Logs have \
                classes where policies had entries for classes, or pins, when the calls came";
    assert!(report.notes.contains(&note.to_owned()), "{:?}", report.notes);
    assert!(!report.notes.iter().any(|note| note.contains("auditArguments")), "{:?}", report.notes);
}

#[test]
fn pins_are_judged_by_what_the_log_says_of_them() {
    let pinned = |rest: &str| {
        let spec = format!("servers: [{{name: s, url: 'http://s/mcp', pins: {{name: pins{rest}}}, tools: [{{name: t}}]}}]");
        policy(&spec)
    };
    let read = "\"class\":\"Read\"";
    let changed = |decision: &str| objected(decision, "pin_drift", &format!("{read},\"drift\":[\"description\"]"));
    let (new, unverified) = (objected("denied", "not_pinned", read), objected("denied", "pin_unverified", read));
    let strict = pinned("");
    for line in [changed("denied"), new.clone(), unverified.clone()] {
        assert_eq!(told_of(&strict, vec![line.clone()]), [], "{}", line.1);
    }
    // What a policy in audit mode, or one of other reasons, saw to be another.
    assert_eq!(told_of(&strict, vec![changed("would_deny")]), [(DecisionChange::NewlyDenied, "pin_drift", 1)]);
    let limited = objected("denied", "rate_limit", &format!("{read},\"drift\":[\"inputSchema\",\"_meta\"]"));
    assert_eq!(told_of(&strict, vec![limited]), [(DecisionChange::OtherReason, "pin_drift", 1)]);
    let lenient = pinned(", onDrift: Audit, onNew: Allow");
    let newly = |reason| [(DecisionChange::NewlyAllowed, reason, 1)];
    assert_eq!(told_of(&lenient, vec![changed("denied")]), newly("pin_drift"));
    assert_eq!(told_of(&lenient, vec![changed("would_deny")]), []);
    assert_eq!(told_of(&lenient, vec![unverified]), newly("pin_unverified"));
    assert_eq!(told_of(&lenient, vec![new.clone()]), newly("not_pinned"));
    assert_eq!(
        told_of(&tools("{name: t}"), vec![changed("denied"), new]),
        [(DecisionChange::NewlyAllowed, "not_pinned", 1), (DecisionChange::NewlyAllowed, "pin_drift", 1)]
    );
    // A line that says nothing of pins: they may not have been in force.
    let silent = with_fields(&passed(0, None, None), read);
    assert_eq!(told_of(&strict, vec![silent.clone()]), [(DecisionChange::Unknown, "pins", 1)]);
    assert_eq!(told_of(&strict, vec![with_fields(&silent, "\"drift\":[]")]), []);
    let denied = policy("servers: [{name: s, url: 'http://s/mcp', pins: {name: pins}, tools: [{name: t, action: Deny}]}]");
    assert_eq!(told_of(&denied, vec![silent.clone()]), [(DecisionChange::NewlyDenied, "denied", 1)]);
    let note = "the logs do not say whether their tools were as pinned";
    assert!(replay_logs(&[strict], &[vec![silent]]).notes.iter().any(|told| told.contains(note)));
}

/// The line of a call that was not let through, for this reason and with these fields more.
fn denied(reason: &str, fields: &str) -> Line {
    let (end, line) = objected("denied", reason, fields);
    (end, line.replace("\"ok\"", "\"denied\""))
}

#[test]
fn what_a_person_approved_passes_policies_that_ask_and_what_waited_asks() {
    let asks = tools("{name: t, approval: {}}");
    let name = "\"approval\":\"agents/t-x7k2\"";
    let approved = with_fields(&passed(0, None, None), name);
    let waited = denied("approval_pending", name);
    // It was let through once a person had approved it, and nobody was asked about another call.
    let newly = |change, reason| [(change, reason, 1)];
    assert_eq!(told_of(&asks, vec![waited.clone(), approved.clone()]), []);
    assert_eq!(told_of(&asks, vec![passed(0, None, None)]), newly(DecisionChange::NewlyAsks, "approval_pending"));
    for reason in ["approval_denied", "approval_expired", "approval_full", "approval_unavailable"] {
        assert_eq!(told_of(&asks, vec![denied(reason, name)]), [], "{reason}");
        assert_eq!(told_of(&tools("{name: t}"), vec![denied(reason, name)]), newly(DecisionChange::NewlyAllowed, reason));
    }
    // An approval is not all that a call needs.
    let no = tools("{name: t, action: Deny}");
    assert_eq!(told_of(&no, vec![approved.clone()]), newly(DecisionChange::NewlyDenied, "denied"));
    assert_eq!(told_of(&no, vec![waited]), newly(DecisionChange::NewlyDenied, "denied"));
    assert_eq!(told_of(&asks, vec![denied("denied", "\"x\":1")]), newly(DecisionChange::NewlyAsks, "approval_pending"));
    assert_eq!(told_of(&asks, vec![denied("malformed", "\"x\":1")]), []);
    // What it takes of limits is taken; one that had been approved and found no room may find it now.
    let limited = tools("{name: t, approval: {}, limits: [{max: 1, window: minute}]}");
    assert_eq!(told_of(&limited, vec![approved.clone(), approved.clone()]), newly(DecisionChange::NewlyDenied, "rate_limit"));
    let full = denied("rate_limit", name);
    assert_eq!(told_of(&limited, vec![approved.clone(), full.clone()]), []);
    assert_eq!(told_of(&asks, vec![full]), newly(DecisionChange::NewlyAllowed, "rate_limit"));
    assert_eq!(
        replay_logs(&[asks], &[vec![passed(0, None, None)]]).text().lines().next(),
        Some("1 call from 2026-01-01T00:00:00.000Z to 2026-01-01T00:00:00.000Z: 0 as before, 1 newly asks")
    );
}

#[test]
fn policies_in_audit_mode_would_ask_whatever_was_approved() {
    let audit = policy("mode: Audit, servers: [{name: s, url: 'http://s/mcp', tools: [{name: t, approval: {}}]}]");
    let of_other = "\"approval\":\"t-x7k2\"";
    let would_ask = [(DecisionChange::NewlyWouldDeny, "approval_pending", 1)];
    assert_eq!(told_of(&audit, vec![passed(0, None, None)]), would_ask);
    assert_eq!(told_of(&audit, vec![with_fields(&passed(0, None, None), of_other)]), would_ask);
    let asked = objected("would_ask", "approval_pending", "\"x\":1");
    assert_eq!(told_of(&audit, vec![asked.clone()]), []);
    assert_eq!(told_of(&tools("{name: t}"), vec![asked.clone()]), [(DecisionChange::NoLongerWouldDeny, "approval_pending", 1)]);
    let mut enforced = tools("{name: t, approval: {}}");
    enforced.id.name = "enforced".to_owned();
    assert_eq!(told_of(&enforced, vec![asked]), [(DecisionChange::NewlyAsks, "approval_pending", 1)]);
    // A policy in audit mode asks besides the one whose asking a person has answered.
    let both = objected("would_ask", "approval_pending", of_other);
    assert_eq!(told(&replay_logs(&[audit, enforced], &[vec![both]])), []);
}

#[test]
fn an_approval_needs_the_arguments_that_its_condition_reads_and_not_those_that_it_shows() {
    let hashed = |(end, line): Line| {
        let argued = line.replace("\"argumentsSha256\":null", "\"argumentsSha256\":\"52f7\"");
        (end, argued)
    };
    let name = "\"approval\":\"t-x7k2\"";
    let (call, approved) = (hashed(passed(0, None, None)), hashed(with_fields(&passed(0, None, None), name)));
    let shows = tools("{name: t, approval: {show: [args.n]}}");
    assert_eq!(told_of(&shows, vec![call.clone()]), [(DecisionChange::NewlyAsks, "approval_pending", 1)]);
    assert_eq!(told_of(&shows, vec![approved.clone()]), []);
    let reads = tools("{name: t, approval: {when: args.n > 3}}");
    let unknown = [(DecisionChange::Unknown, "arguments", 1)];
    assert_eq!(told_of(&reads, vec![call.clone()]), unknown);
    // Whether it asks does not matter to a call that was approved.
    assert_eq!(told_of(&reads, vec![approved.clone()]), []);
    assert_eq!(told_of(&reads, vec![hashed(denied("approval_pending", name))]), unknown);
    assert_eq!(told_of(&reads, vec![passed(0, None, Some("{\"n\":3}"))]), []);
    assert_eq!(told_of(&reads, vec![passed(0, None, Some("{\"n\":4}"))]), [(DecisionChange::NewlyAsks, "approval_pending", 1)]);
    // What a validation would say comes first, and is not known: it is asked about at most, or denied as before.
    let validated = tools("{name: t, approval: {}, validations: [{expression: 'args.n < 9'}]}");
    assert_eq!(told_of(&validated, vec![call]), [(DecisionChange::NewlyAsks, "approval_pending", 1)]);
    assert_eq!(told_of(&validated, vec![approved]), unknown);
    assert_eq!(told_of(&validated, vec![hashed(denied("validation", "\"x\":1"))]), unknown);
    let full = tools("{name: t, approval: {when: args.n > 3}, limits: [{max: 1, window: minute}]}");
    let waited = hashed(denied("approval_pending", name));
    assert_eq!(told_of(&full, vec![passed(0, None, Some("{\"n\":1}")), waited]), []);
}

#[test]
fn steps_of_requests_are_counted_and_no_calls() {
    let step = r#"{"time":"2026-01-01T00:00:00.000Z","event":"approval","step":"approved","approval":"t-x7k2","server":"s","tool":"t","policies":["agents/p"],"by":"jane","argumentsSha256":"52f7"}"#;
    let other = step.replace("\"event\":\"approval\"", "\"event\":\"newer\"");
    let lines =
        vec![(0, step.to_owned()), (1, format!("2026-01-01T00:00:00.1Z stdout F {step}")), (2, other), passed(0, None, None)];
    let report = replay_logs(&[tools("{name: t}")], &[lines]);
    let skipped = report.skipped_lines;
    assert_eq!((report.calls, skipped.approvals, skipped.other, skipped.damaged), (1, 2, 1, 0));
    assert!(report.text().contains("Lines that are no calls: 2 of approvals, 1 other\n"), "{}", report.text());
}

#[test]
fn all_that_is_missing_is_told() {
    let spec = "servers: [{name: s, url: 'http://s/mcp', pins: {name: pins}, \
                tools: [{class: Read}, {name: t, validations: [{expression: 'args.n < 3'}]}, {class: Write, limits: [{max: 1, window: minute}]}]}]";
    let (end, line) = passed(0, None, Some("{\"n\":2}"));
    let hashed = (end, line.split(",\"arguments\":").next().unwrap().to_owned() + "}");
    assert_eq!(told_of(&policy(spec), vec![hashed]), [(DecisionChange::Unknown, "arguments, class and pins", 1)]);
}

#[test]
fn classes_and_parts_that_are_not_known_are_damage() {
    for (fields, why) in [
        ("\"class\":\"Harmless\"", "its `class` is `Harmless`, which is not known here"),
        ("\"drift\":[\"title\",\"colour\"]", "its `drift` is `colour`, which is not known here"),
    ] {
        let report = replay_logs(&[limited(9)], &[vec![with_fields(&passed(0, None, None), fields)]]);
        assert_eq!(report.damages.iter().map(|damage| damage.why.as_str()).collect::<Vec<_>>(), [why]);
    }
}
