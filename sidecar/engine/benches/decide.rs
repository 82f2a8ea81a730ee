//! The time of a decision. The bounds: below 1 µs with one policy of ten tools and a limit, below 2 µs with ten policies of
//! a thousand entries.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../tests/common/worst.rs"]
mod worst;

use std::{cell::Cell, hint::black_box, sync::Arc, time::Instant};

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use toolweir_crds::{Action, Limit, MCPPolicySpec, Server, Tool, Validation};
use toolweir_engine::{
    Call, CompileOptions, Effect, Engine, Memory, Operation, Policy, PolicyId, Reason, Severity, Timestamp, json::Reader,
};

fn policy(name: &str, tools: Vec<Tool>) -> Policy {
    let url = Some("http://server/mcp".to_owned());
    let server = Server { name: "server".to_owned(), url, tools, ..Server::default() };
    Policy {
        id: PolicyId { cluster: false, namespace: "agents".to_owned(), name: name.to_owned() },
        created: None,
        spec: MCPPolicySpec { servers: vec![server], ..MCPPolicySpec::default() },
        version: None,
        unreadable: None,
    }
}

fn tool(name: impl Into<String>) -> Tool {
    Tool { name: name.into(), ..Tool::default() }
}

fn limit(max: i64) -> Limit {
    Limit { max, window: "minute".parse().unwrap(), scope: toolweir_crds::Scope::Pod, key: None, cost: None, counter: None }
}

/// Ten tools; the first has a limit.
fn ten_tools(max: i64) -> Policy {
    let mut tools: Vec<Tool> = (0..10).map(|index| tool(format!("tool_{index}"))).collect();
    tools[0].limits.push(limit(max));
    tools[9].action = Some(Action::Deny);
    policy("ten-tools", tools)
}

/// One tool with these conditions.
fn conditions(expressions: &[&str]) -> Policy {
    let validation = |expression: &&str| Validation { expression: (*expression).to_owned(), message: None };
    policy("conditions", vec![Tool { validations: expressions.iter().map(validation).collect(), ..tool("pay") }])
}

/// Ten policies of a hundred entries, one in ten a glob; the first has limits.
fn thousand_entries() -> Vec<Policy> {
    let entry = |policy: usize, index: usize| match index {
        0..90 => tool(format!("tool_{index}")),
        90..95 => tool(format!("group_{index}_*")),
        95..99 => tool(format!("*_suffix_{index}")),
        _ => Tool { limits: if policy == 0 { vec![limit(1_000_000_000)] } else { Vec::new() }, ..tool("*") },
    };
    let tools = |policy| (0..100).map(|index| entry(policy, index)).collect();
    (0..10).map(|index| policy(&format!("policy-{index}"), tools(index))).collect()
}

fn compile(policies: &[Policy], counters: Arc<Memory>) -> Engine {
    let (engine, problems) = Engine::compile(policies, counters, &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{problems:#?}");
    engine
}

/// Measures decisions on calls of a tool, one each millisecond; all have this outcome.
fn decide(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, policies: &[Policy], call: (&str, &str), expected: Reason) {
    let engine = compile(policies, Memory::new(Memory::COUNTERS));
    let (tool, arguments) = call;
    let arguments = Reader::new(arguments.as_bytes()).unwrap().value().unwrap();
    let call =
        Call { server: "server", operation: Operation::tool(tool), arguments: Some(arguments), session: "session", seen: None };
    let reason = || engine.decide(&call, Timestamp(0)).denial().map_or(Reason::None, |denial| denial.reason);
    for _ in 0..20 {
        reason();
    }
    assert_eq!(reason(), expected, "{name}");
    let now = Cell::new(0);
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            now.set(now.get() + 1_000_000);
            engine.decide(black_box(&call), Timestamp(now.get()))
        });
    });
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    let enough = 1_000_000_000;
    let one = [ten_tools(enough)];
    decide(&mut group, "allowed: 10 tools, 1 limit", &one, ("tool_0", "{}"), Reason::None);
    decide(&mut group, "allowed: 10 tools, no limit", &one, ("tool_1", "{}"), Reason::None);
    decide(&mut group, "denied by action", &one, ("tool_9", "{}"), Reason::Denied);
    decide(&mut group, "denied: not listed", &one, ("other", "{}"), Reason::NotListed);
    decide(&mut group, "denied by rate limit", &[ten_tools(10)], ("tool_0", "{}"), Reason::RateLimit);
    let glob = [policy("glob", vec![Tool { limits: vec![limit(enough)], ..tool("get_*") }, tool("set_x"), tool("*_y")])];
    decide(&mut group, "allowed: by a glob alone, 1 limit", &glob, ("get_x", "{}"), Reason::None);
    let many = thousand_entries();
    decide(&mut group, "allowed: 10 policies, 1000 entries, 1 limit", &many, ("tool_42", "{}"), Reason::None);
    decide(&mut group, "allowed: 10 policies, 1000 entries, by globs alone", &many, ("group_92_x", "{}"), Reason::None);
    decide(&mut group, "denied: 10 policies, 1000 entries, not listed", &many, ("other", "{}"), Reason::NotListed);

    let arguments = r#"{"amount": 250, "currency": "EUR", "to": ["a@example.com", "b@example.com"], "note": "October"}"#;
    for (name, expressions) in [
        ("a comparison", &["args.amount <= 500"][..]),
        (
            "four comparisons",
            &["args.amount <= 500", "args.amount > 0", "args.currency == 'EUR'", "type(args.to) == list && size(args.to) < 9"],
        ),
        ("all of two", &["type(args.to) == list && args.to.all(a, a.endsWith('@example.com'))"]),
        ("a pattern", &["args.note.matches('^[A-Z][a-z]+$')"]),
        ("no argument", &["tool == 'pay'"]),
    ] {
        decide(&mut group, &format!("allowed: condition, {name}"), &[conditions(expressions)], ("pay", arguments), Reason::None);
    }
    let keyed = Limit { key: Some("args.currency".to_owned()), cost: Some("args.amount".to_owned()), ..limit(1_000_000_000_000) };
    let keyed = [policy("keyed", vec![Tool { limits: vec![keyed], ..tool("pay") }])];
    decide(&mut group, "allowed: key and cost", &keyed, ("pay", arguments), Reason::None);
    group.finish();
}

/// As many sessions as are counted, and one that is too many.
fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sessions");
    let per_session = Limit { scope: toolweir_crds::Scope::Session, ..limit(1_000_000) };
    let policies = [policy("sessions", vec![Tool { limits: vec![per_session], ..tool("get") }])];
    let engine = compile(&policies, Memory::new(Memory::COUNTERS));
    let decide = |session: usize| {
        let session = format!("session-{session:08}");
        engine.decide(
            &Call { server: "server", operation: Operation::tool("get"), arguments: None, session: &session, seen: None },
            Timestamp(1_000_000_000),
        )
    };
    for session in 0..Memory::COUNTERS {
        assert!(matches!(decide(session).effect, Effect::Allowed(_)));
    }
    let next = Cell::new(0);
    group.bench_function("allowed: one of 10000", |bencher| {
        bencher.iter(|| {
            next.set((next.get() + 7919) % Memory::COUNTERS);
            decide(next.get())
        });
    });
    group.bench_function("denied: more than 10000", |bencher| {
        bencher.iter(|| {
            next.set(next.get() + 1);
            decide(Memory::COUNTERS + next.get())
        });
    });
    group.finish();
}

/// Policies into an engine: what a reload costs.
fn compilation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(20);
    let many = thousand_entries();
    group.bench_function("10 policies, 1000 entries", |bencher| {
        bencher.iter(|| compile(black_box(&many), Memory::new(Memory::COUNTERS)));
    });
    let condition = [conditions(&["args.amount <= 500 && type(args.to) == list && args.to.all(a, a.endsWith('@example.com'))"])];
    // As much as one policy's expressions and patterns may take, and names that all entries match.
    let pattern = |at: usize| format!("args.a.matches('(a|b)*a(a|b){{12}}{at}')");
    let folded = |at: usize| format!("args.a.matches('(?i)[^a]{at}')");
    let classes = |at: usize| format!("args.a.matches('^(\\\\p{{L}}{{3}}){{1,4}}{at}$')");
    let long = |at: usize| format!("args.a{at} == 1 {}", "&& 1 == 1 ".repeat(9));
    let of = |count: usize, one: &dyn Fn(usize) -> String| {
        let entry = |at: usize| Tool {
            validations: (0..16).map(|of| Validation { expression: one(16 * at + of), message: None }).collect(),
            ..tool(format!("tool_{at}"))
        };
        [policy("dear", (0..count / 16).map(entry).collect())]
    };
    let globs: Vec<Tool> = (0..500).flat_map(|at| [tool(format!("tool_{at}")), tool(format!("t{}*", "*".repeat(at)))]).collect();
    let globs = [policy("globs", globs)];
    for (name, policies) in [
        ("dearest: 16 patterns without an automaton", &of(16, &pattern)),
        ("dearest: 16 classes without case", &of(16, &folded)),
        ("dearest: patterns of Unicode classes", &of(16, &classes)),
        ("dearest: 2400 conditions of 100 bytes", &of(2400, &long)),
        ("dearest: 500 globs that match 500 names", &globs),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Engine::compile(black_box(policies), Memory::new(Memory::COUNTERS), &CompileOptions::default()));
        });
    }
    group.bench_function("1 condition", |bencher| {
        bencher.iter(|| compile(black_box(&condition), Memory::new(Memory::COUNTERS)));
    });
    group.finish();
}

/// The most expensive calls. The budget of a decision stands for about 10 ms.
fn dearest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dearest");
    group.sample_size(10);
    for worst::Case { name, policy, tool, arguments, ends } in worst::cases() {
        let engine = compile(&[policy], Memory::new(Memory::COUNTERS));
        let arguments = Reader::new(arguments.as_bytes()).unwrap().value().unwrap();
        let call =
            Call { server: "server", operation: Operation::tool(&tool), arguments: Some(arguments), session: "", seen: None };
        let spent = engine.decide(&call, Timestamp(0)).denial().is_some_and(|denial| denial.reason == Reason::ExpressionBudget);
        assert_eq!(spent, ends == worst::Ends::Spent, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let start = Instant::now();
                for _ in 0..times {
                    black_box(engine.decide(black_box(&call), Timestamp(0)));
                }
                start.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decisions, sessions, compilation, dearest);
criterion_main!(benches);
