//! Expressions from their source to their value.

use cel::{Context, Program, Value};

use super::{
    Expression, Inputs,
    arguments::{ArgumentsError, CelObject, arguments, pod},
    error::EvalError,
    work::{self, Meter},
};
use crate::{json::Reader, window::Amount};

fn args(text: &str) -> Result<CelObject<'_>, ArgumentsError> {
    let (raw, meter) = (Reader::new(text.as_bytes()).unwrap().value().unwrap(), Meter::default());
    let data = arguments(Some(raw), &meter)?;
    data.check(&["amount"].into_iter().collect(), &meter)?;
    Ok(data)
}

fn holds(source: &str, text: &str) -> Result<bool, String> {
    let (args, pod) = (args(text).unwrap(), pod("p", "agents", "default"));
    let inputs = Inputs { args: Some(&args), name: "pay", server: "bank", session: "s", pod: &pod };
    Expression::compile(source).unwrap().holds(&inputs, &Meter::default()).map_err(|why| why.to_string())
}

#[test]
fn conditions_hold_as_in_kubernetes() {
    let text = r#"{"amount": 500, "to": ["a@corp", "b@corp"], "note": "héllo", "x": {"y": null}, "rate": 0.5}"#;
    for source in [
        "args.amount <= 500",
        "args.amount <= 500.5",
        "args.rate < 1",
        "args.to.all(t, t.endsWith('@corp'))",
        "has(args.x.y) && args.x.y == null",
        "!has(args.missing)",
        "!has(args.missing) || args.missing == 1",
        "'amount' in args",
        "args['amount'] == 500",
        "args.note.matches('^h.llo$')",
        "pod.namespace == 'agents' && tool == 'pay' && server == 'bank' && session == 's'",
        "type(args.note) == string",
        "size(args.to) == 2",
        "args.to.filter(t, t.startsWith('a')).size() == 1",
        "args.to.map(t, t).size() == 2",
        "args.to.exists_one(t, t == 'a@corp')",
        "args.to.all(t, size(t) + 1 < 10)",
    ] {
        assert_eq!(holds(source, text), Ok(true), "{source}");
    }
    assert!(holds("args.missing == 1", text).is_err());
    assert!(holds("args.note <= 5", text).is_err());
    assert!(holds("args.amount", text).unwrap_err().contains("is of type int, not bool"));
    assert!(holds("args.amount / 0 == 1", text).is_err());
}

/// The same on every machine: a change of these numbers is a change of what policies may do.
#[test]
fn work_is_counted_in_units_that_hang_on_expression_and_arguments_alone() {
    let text = format!(
        r#"{{"t": "{}", "e": "\\n{}", "l": [1, 2, 3, 4], "m": {{"a": 1}}, "k": ["a", "b"]}}"#,
        "a".repeat(1000),
        "b".repeat(999)
    );
    let raw = Reader::new(text.as_bytes()).unwrap().value().unwrap();
    let (reading, pod) = (Meter::default(), pod("p", "agents", "default"));
    let args = arguments(Some(raw), &reading).unwrap();
    assert_eq!(work::BUDGET - reading.left(), 2733);
    let inputs = Inputs { args: Some(&args), name: "pay", server: "bank", session: "s", pod: &pod };
    for (source, units) in [
        ("true", 540),
        ("args.t == 'a'", 740),
        ("args.t == args.e", 892),
        ("args.t < args.e", 985),
        ("size(args.t) == 1000", 945),
        ("args.t.contains('b')", 2_742),
        ("args.t.matches('^a*$')", 2_790),
        (r"args.t.matches(r'\bz')", 2_790),
        ("args.t + args.e != ''", 2_981),
        ("[args.e, args.t].size() == 2", 3_302),
        ("args.l.all(x, x > 0)", 3_680),
        ("args.l.map(x, x).size() == 4", 3_560),
        ("3 in args.l", 908),
        ("args.k.all(x, x in args.m)", 2_444),
        ("args.l == args.l", 1_020),
    ] {
        let meter = Meter::default();
        let _ = Expression::compile(source).unwrap().holds(&inputs, &meter);
        assert_eq!(work::BUDGET - meter.left(), units, "{source}");
    }
    let key = Meter::default();
    Expression::compile("args.t").unwrap().key(&inputs, &key).unwrap();
    assert_eq!(work::BUDGET - key.left(), 16_720);
}

/// An error of one side of an operator is passed over where the other side decides, but not a charge that cannot be paid.
#[test]
fn a_budget_that_is_spent_is_told_whatever_the_operators_make_of_it() {
    let (args, pod) = (args(r#"{"l": [1, 2, 3, 4, 5, 6, 7, 8]}"#).unwrap(), pod("", "", ""));
    let inputs = Inputs { args: Some(&args), name: "", server: "", session: "", pod: &pod };
    for source in
        ["args.l.all(x, x > 0) || true", "!(args.l.exists(x, x < 0) && false)", "args.l.filter(x, x > 0).size() > 0 || true"]
    {
        let expression = Expression::compile(source).unwrap();
        assert_eq!(expression.holds(&inputs, &Meter::default()), Ok(true), "{source}");
        assert_eq!(expression.holds(&inputs, &Meter::new(2000)), Err(EvalError::Spent), "{source}");
    }
}

/// The values that operators are tried on.
const VALUES: [&str; 12] =
    ["1", "2.5", "-3", "18446744073709551615", "'a'", "'b'", "true", "null", "[1]", "[1.0]", "{'a': 1}", "[]"];

/// Arguments with each of [`VALUES`], named by its place.
fn operands() -> String {
    let member = |(at, value): (usize, &&str)| format!("\"v{at}\": {}", value.replace('\'', "\""));
    format!("{{{}}}", VALUES.iter().enumerate().map(member).collect::<Vec<_>>().join(", "))
}

/// Evaluates a condition as the library does.
fn library(source: &str, names: &CelObject<'_>) -> Option<bool> {
    let program = Program::compile(source).unwrap();
    let pod = pod("", "", "");
    let inputs = Inputs { args: Some(names), name: "", server: "", session: "", pod: &pod };
    let mut context = Context::default();
    context.set_variable_resolver(&inputs);
    match program.execute(&context) {
        Ok(Value::Bool(holds)) => Some(holds),
        _ => None,
    }
}

/// Conditions with two of the values, by their places.
fn binary(a: usize, b: usize) -> Vec<String> {
    let (is_list, is_map) = (|at: usize| VALUES[at].starts_with('['), |at: usize| VALUES[at].starts_with('{'));
    let mut sources = Vec::new();
    // The library adds a map's keys to a list.
    let operators = if is_list(a) && is_map(b) { &["-", "*", "/", "%"][..] } else { &["+", "-", "*", "/", "%"] };
    for operator in operators {
        sources.extend([
            format!("args.v{a} {operator} args.v{b} == args.v0 {operator} args.v0"),
            format!("args.v{a} {operator} args.v{b} == args.v{a} {operator} args.v{b}"),
            format!("args.v{a} {operator} args.v{b} > 0"),
        ]);
    }
    sources.push(format!("args.v{a}[args.v{b}] == 1"));
    sources.extend(["contains", "startsWith", "endsWith"].map(|function| format!("args.v{a}.{function}(args.v{b})")));
    sources
}

/// Conditions with one of the values, by its place.
fn unary(a: usize) -> Vec<String> {
    let functions = ["size", "int", "uint", "double", "string", "bytes", "bool", "type", "dyn"];
    let calls = functions.iter().flat_map(|function| {
        [format!("{function}(args.v{a}) == {function}(args.v{a})"), format!("{function}(args.v{a}) != args.v{a}")]
    });
    let others = [
        format!("args.v{a}.size() == 1"),
        format!("args.v{a}.all(x, x == 1)"),
        format!("args.v{a}.exists(x, x == 1)"),
        format!("args.v{a}.exists_one(x, x == 1)"),
        format!("args.v{a}.map(x, x) == [1]"),
        format!("args.v{a}.map(x, x == 1, x) == [1]"),
        format!("args.v{a}.filter(x, x == 1).size() == 1"),
        format!("-args.v{a} < 0"),
        format!("args.v{a} ? true : false"),
        format!("[args.v{a}, 1][0] == args.v{a}"),
        format!("{{'k': args.v{a}}}.k == args.v{a}"),
        format!("has(args.v{a}.a)"),
        format!("args.v{a}.a == 1"),
        format!("type(args.v{a}) == list || type(args.v{a}) == null_type || type(args.v{a}) == double"),
    ];
    calls.chain(others).collect()
}

/// Operators that charge say what the library's do, but for what the library does otherwise than Kubernetes.
#[test]
fn operators_on_what_a_call_brings_mean_what_they_mean_on_literals() {
    let text = operands();
    let data = args(&text).unwrap();
    let is_same = |source: &str, operands: &[&str]| {
        assert_eq!(holds(source, &text).ok(), library(source, &data), "{source}, {operands:?}");
    };
    for (a, left) in VALUES.into_iter().enumerate() {
        for (b, right) in VALUES.into_iter().enumerate() {
            for operator in ["==", "!=", "<", "<=", ">", ">=", "in"] {
                let source = format!("args.v{a} {operator} args.v{b}");
                let is_container = left.starts_with(['[', '{']);
                let is_no_key = operator == "in" && right.starts_with('{') && (is_container || left == "null");
                let library = if is_no_key { Some(false) } else { library(&source, &data) };
                assert_eq!(holds(&source, &text).ok(), library, "{source}, {left} and {right}");
            }
            for source in binary(a, b) {
                is_same(&source, &[left, right]);
            }
        }
        for source in unary(a) {
            is_same(&source, &[left]);
        }
    }
}

#[test]
fn what_does_not_compile_says_why() {
    for (source, why) in [
        ("args.amount <=", "not a CEL expression"),
        ("arg.amount == 1", "`arg` is not a variable"),
        ("args.a.all(x, args.b.all(y, x == y))", "inside another"),
        ("args.a.matches(args.b)", "pattern in quotes"),
        ("args.a.matches('(')", "does not compile"),
        ("frobnicate(args.a)", "not a function"),
        ("args.a.map(x, args.s + x)", "adds up"),
        ("args.a.all(x, size(args.s + args.s) > 0)", "adds up"),
        ("args.a.map(x, args.s).size() > 0", "adds up"),
        ("max(args.a, 1) == 1", "not a function"),
        ("'\u{1}\t' #\u{8}", "not a CEL expression"),
        ("args.a.matches('\u{8}(')", "does not compile"),
        ("", "not a CEL expression"),
        ("Foo{a: 1}", "not a type"),
    ] {
        let error = Expression::compile(source).unwrap_err();
        assert!(error.contains(why), "{source}: {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn keys_are_told_apart_and_costs_counted() {
    let (args, pod) = (args(r#"{"a": "1", "b": 1, "c": 1.0, "n": -2, "f": 2.5, "m": {}}"#).unwrap(), pod("", "", ""));
    let inputs = Inputs { args: Some(&args), name: "", server: "", session: "", pod: &pod };
    let key = |source: &str| Expression::compile(source).unwrap().key(&inputs, &Meter::default());
    assert_ne!(key("args.a"), key("args.b"));
    assert_eq!(key("args.b"), key("args.c"));
    assert_ne!(key("[args.a, args.b]"), key("[args.b, args.a]"));
    assert!(key("args.m").is_err());
    let cost = |source: &str| Expression::compile(source).unwrap().cost(&inputs, &Meter::default());
    assert_eq!(cost("args.f"), Ok(Amount::cost(2.5).unwrap()));
    assert!(cost("args.n").is_err() && cost("args.a").is_err() && cost("args.zzz").is_err());
}
