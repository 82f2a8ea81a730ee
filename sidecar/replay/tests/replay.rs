//! What was decided, decided anew: the same by the same policies, and what a naive count gives by others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code, reason = "more of it is used by the tests of the engine")]
#[path = "../../engine/tests/model/generate.rs"]
mod generate;

use std::{
    slice,
    time::{Duration, UNIX_EPOCH},
};

use generate::{Step, Then, policies, steps};
use proptest::{collection::vec, prelude::*, sample::Index};
use toolweir_crds::{Scope, read_documents};
use toolweir_engine::{Call, CompileOptions, Decision, Effect, Engine, Memory, Policy, Timestamp, json::Reader};
use toolweir_replay::{Change, ChangeKind, Replay, ReplayReport};

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
}

impl Recorded<'_> {
    fn line(&self, with_arguments: bool) -> Line {
        let json = |text: Option<&str>| serde_json::to_string(&text).unwrap();
        let (effect, reason) = self.decision.labels();
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(self.time));
        let Self { server, tool, outcome, .. } = self;
        let (policy, entry) = (json(self.decision.policy.as_deref()), json(self.decision.entry.as_deref()));
        let latency = f64::from(u32::try_from((self.end - self.time) / 1000).unwrap()) / 1e3;
        let (session, sha256) = (json(self.session), json(self.arguments.map(|_| "52f7")));
        let arguments =
            self.arguments.filter(|_| with_arguments).map(|text| format!(",\"arguments\":{text}")).unwrap_or_default();
        let line = format!(
            r#"{{"time":"{time}","server":"{server}","tool":"{tool}","decision":"{effect}","reason":"{reason}","policy":{policy},"entry":{entry},"outcome":"{outcome}","latencyMs":{latency},"session":{session},"argumentsSha256":{sha256}{arguments}}}"#
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
    decision: Decision,
}

impl Recorder {
    fn new(policies: &[Policy], with_arguments: bool) -> Self {
        let engine = Engine::compile(policies, Memory::new(Memory::COUNTERS), &CompileOptions::default()).0;
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
            Step::Call { after, server, tool, session, arguments, then, .. } => {
                self.now += (after / MS).max(1) * MS;
                // A call without a session has the empty one.
                let session = if *session == "s1" { "00000000000000a1" } else { "" };
                let arguments = arguments.json();
                let raw = arguments.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                let decision = self.engine.decide(&Call { server, tool, arguments: raw, session }, Timestamp(self.now));
                let call = UnderWay { number, time: self.now, server, tool, session, arguments, decision };
                match then {
                    Then::Keep if call.decision.denial().is_none() => self.under_way.push(call),
                    then => self.end(call, 250_000, *then == Then::GiveBack),
                }
            }
        }
    }

    fn end(&mut self, call: UnderWay, after: u64, failed: bool) {
        let UnderWay { number, time, server, tool, session, arguments, decision } = call;
        let session = (!session.is_empty()).then_some(session);
        let is_denied = decision.denial().is_some();
        let outcome = if is_denied { "denied" } else { ["ok", "connect_failed"][usize::from(failed)] };
        let (end, arguments) = (self.now + after, arguments.as_deref());
        let recorded = Recorded { time, end, server, tool, session, decision: &decision, outcome, arguments };
        self.lines.push((number, recorded.line(self.with_arguments)));
        if let Effect::Allowed(permit) = decision.effect {
            if failed { permit.give_back() } else { drop(permit) }
        }
    }
}

fn is_unchanged(report: &ReplayReport, calls: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(report.unchanged, u64::try_from(calls).unwrap(), "{}", report.text());
    prop_assert_eq!(&report.changes, &vec![]);
    Ok(())
}

fn lines_of(recorded: Vec<(usize, Line)>) -> Vec<Line> {
    recorded.into_iter().map(|(_, line)| line).collect()
}

proptest! {
    #[test]
    fn the_same_policies_decide_the_same((policies, steps) in (policies(), steps())) {
        let lines = lines_of(Recorder::new(&policies, true).run(&steps));
        is_unchanged(&replay_logs(&policies, slice::from_ref(&lines)), lines.len())?;
    }

    /// Limits that pods share count over all logs: they decide as one pod that has all the calls.
    #[test]
    fn pods_that_share_their_counts_are_replayed_as_one(
        (policies, steps) in (policies(), steps()),
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
        for tool in policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).flat_map(|server| &mut server.tools) {
            tool.limits.clear();
            tool.max_concurrent = None;
        }
        let recorder = Recorder::new(&policies, false);
        let needs = |step: &&Step| match step {
            Step::Call { server, tool, arguments, .. } => {
                arguments.json().is_some() && recorder.engine.reads(server, tool).arguments
            }
            Step::End { .. } => false,
        };
        let reading = steps.iter().filter(needs).count();
        let lines = lines_of(recorder.run(&steps));
        let report = replay_logs(&policies, slice::from_ref(&lines));
        // Of those that something else denies, it is known.
        let unknown = report.count(ChangeKind::Unknown);
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
            let call = Call { server: "s", tool: "t", arguments: None, session: "" };
            line(time, &engine.decide(&call, Timestamp(time)), None, None)
        };
        let report = replay_logs(&[limited(new)], &[times.iter().map(recorded).collect()]);
        let count = |was: bool, is: bool| {
            u64::try_from(before.iter().zip(&after).filter(|pair| *pair == (&was, &is)).count()).unwrap()
        };
        prop_assert_eq!(
            (report.count(ChangeKind::NewlyDenied), report.count(ChangeKind::NewlyAllowed), report.unchanged),
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
    Recorded { time, end, server: "s", tool: "t", session, decision, outcome, arguments }.line(true)
}

/// A line of a call that was let through.
fn passed(milliseconds: u64, session: Option<&str>, arguments: Option<&str>) -> Line {
    let engine = Engine::compile(&[tools("{name: t}")], Memory::new(1), &CompileOptions::default()).0;
    let call = Call { server: "s", tool: "t", arguments: None, session: "" };
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
fn told(report: &ReplayReport) -> Vec<(ChangeKind, &'static str, u64)> {
    report.changes.iter().map(|change: &Change| (change.change, change.reason, change.calls)).collect()
}

fn told_of(policy: &Policy, lines: Vec<Line>) -> Vec<(ChangeKind, &'static str, u64)> {
    told(&replay_logs(slice::from_ref(policy), &[lines]))
}

#[test]
fn each_log_is_a_pod() {
    let log = || all_passed(&[0, 1, 2]);
    let newly = |new: &Policy, logs: &[Vec<Line>]| replay_logs(slice::from_ref(new), logs).count(ChangeKind::NewlyDenied);
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
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("{\"n\":3}"))]), [(ChangeKind::NewlyDenied, "validation", 1)]);
    assert_eq!(told_of(&condition, vec![passed(0, None, None)]), [(ChangeKind::NewlyDenied, "validation", 1)]);
    let hashed = |at: u64| {
        let (end, line) = passed(at, None, Some("{\"n\":2}"));
        (end, line.split(",\"arguments\":").next().unwrap().to_owned() + "}")
    };
    assert_eq!(told_of(&condition, vec![hashed(0)]), [(ChangeKind::Unknown, "arguments", 1)]);
    // What denies without them is certain.
    let full = tools("{name: t, validations: [{expression: 'args.n < 3'}], limits: [{max: 1, window: minute}]}");
    let expected = [(ChangeKind::NewlyDenied, "rate_limit", 1), (ChangeKind::Unknown, "arguments", 1)];
    assert_eq!(told_of(&full, vec![hashed(0), hashed(1)]), expected);
    let denied = tools("{name: t, action: Deny}, {name: '*', validations: [{expression: 'args.n < 3'}]}");
    assert_eq!(told_of(&denied, vec![hashed(0)]), [(ChangeKind::NewlyDenied, "denied", 1)]);
    let session = tools("{name: t, validations: [{expression: \"session == ''\"}]}");
    assert_eq!(told_of(&session, vec![passed(0, None, None)]), []);
    let of_session = passed(0, Some("00000000000000a1"), None);
    assert_eq!(told_of(&session, vec![of_session]), [(ChangeKind::Unknown, "session", 1)]);
    let both = tools("{name: t, validations: [{expression: \"session == '' && args.n < 3\"}]}");
    let (end, line) = hashed(0);
    let of_session = (end, line.replace("\"session\":null", "\"session\":\"00000000000000a1\""));
    assert_eq!(told_of(&both, vec![of_session]), [(ChangeKind::Unknown, "arguments and session", 1)]);
}

#[test]
fn policies_in_audit_mode_only_object() {
    let limits = "tools: [{name: t, limits: [{max: 1, window: minute}]}]";
    let audit = policy(&format!("mode: Audit, servers: [{{name: s, url: 'http://s/mcp', {limits}}}]"));
    let lines = all_passed(&[0, 1, 2]);
    assert_eq!(told_of(&audit, lines.clone()), [(ChangeKind::NewlyWouldDeny, "rate_limit", 2)]);
    let objected = |line: &Line| (line.0, line.1.replace("\"allowed\"", "\"would_deny\"").replace("\"none\"", "\"rate_limit\""));
    let before: Vec<Line> = lines.iter().map(objected).collect();
    assert_eq!(told_of(&limited(9), before.clone()), [(ChangeKind::NoLongerWouldDeny, "rate_limit", 3)]);
    let expected = [(ChangeKind::NewlyDenied, "rate_limit", 2), (ChangeKind::NoLongerWouldDeny, "rate_limit", 1)];
    assert_eq!(told_of(&limited(1), before), expected);
    let nowhere = policy("servers: [{name: other, url: 'http://s/mcp'}]");
    assert_eq!(told_of(&nowhere, lines), [(ChangeKind::NewlyDenied, "no_policy", 3)]);
}

#[test]
fn places_and_what_was_not_sent_come_free() {
    let one = tools("{name: t, maxConcurrent: 1}");
    assert_eq!(told_of(&one, all_passed(&[0, 1, 2])), []);
    let long: Vec<Line> = all_passed(&[0, 0, 2]).iter().map(|line| taking(line, "1.5")).collect();
    assert_eq!(told_of(&one, long), [(ChangeKind::NewlyDenied, "concurrency", 1)]);
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
    assert_eq!(told_of(&condition, vec![passed(0, None, Some("null"))]), [(ChangeKind::NewlyDenied, "validation", 1)]);
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
    assert_eq!((skipped.connections, skipped.other, skipped.damaged), (1, 3, 10));
    let lines: Vec<u32> = report.damages.iter().map(|damage| damage.line).collect();
    assert_eq!(lines, [7, 8, 9, 10, 11, 12, 13, 14, 15, 17]);
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

#[test]
fn nothing_in_is_nothing_found() {
    let report = replay_logs(&[limited(2)], &[Vec::new()]);
    assert_eq!(report.text(), "0 calls\n\nnote: the logs have no call; give audit logs of sidecars (docs/replay.md)\n");
}

#[test]
fn policies_that_do_not_compile_deny_with_and_without_arguments() {
    let broken = tools("{name: t, validations: [{expression: 'args.n <'}, {expression: 'args.n < 3'}]}");
    let lines = vec![passed(0, None, Some("{}")), passed(1, None, None)];
    assert_eq!(told_of(&broken, lines), [(ChangeKind::NewlyDenied, "invalid_policy", 2)]);
}
