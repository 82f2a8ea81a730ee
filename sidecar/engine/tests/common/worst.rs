//! Calls that cost as much as calls can, by what they make policies do.

use toolweir_crds::{Action, EntryApproval, Limit, MCPPolicySpec, Scope, Server, Tool, Validation};
use toolweir_engine::{Policy, PolicyId};

/// The largest message.
const MESSAGE: usize = 4 << 20;

/// The end of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The budget denies it.
    Spent,
    /// The call is within the budget and nearly spends it.
    Within,
}

/// A call that is dear, and the policy that makes it so.
pub struct Case {
    pub name: &'static str,
    pub policy: Policy,
    pub tool: String,
    pub arguments: String,
    pub ends: Ends,
}

pub fn policy(tools: Vec<Tool>) -> Policy {
    let server = Server { name: "server".to_owned(), url: Some("http://server/mcp".to_owned()), tools, ..Server::default() };
    Policy {
        id: PolicyId { cluster: false, namespace: "agents".to_owned(), name: "worst".to_owned() },
        created: None,
        spec: MCPPolicySpec { servers: vec![server], ..MCPPolicySpec::default() },
        version: None,
        unreadable: None,
    }
}

fn validation(expression: &str) -> Validation {
    Validation { expression: expression.to_owned(), message: None }
}

fn limit(max: i64) -> Limit {
    Limit { max, window: "day".parse().expect("a window"), scope: Scope::Pod, key: None, cost: None, counter: None }
}

fn tool(name: &str) -> Tool {
    Tool { name: name.to_owned(), action: Some(Action::Allow), ..Tool::default() }
}

fn case(name: &'static str, expressions: &[&str], arguments: String, ends: Ends) -> Case {
    let validations = expressions.iter().map(|expression| validation(expression)).collect();
    Case { name, policy: policy(vec![Tool { validations, ..tool("pay") }]), tool: "pay".to_owned(), arguments, ends }
}

/// A JSON list of texts.
fn texts(count: usize, text: impl Fn(usize) -> String) -> String {
    let texts: Vec<String> = (0..count).map(|at| format!("\"{}\"", text(at))).collect();
    format!("[{}]", texts.join(","))
}

fn list(count: usize, text: impl Fn(usize) -> String) -> String {
    format!("{{\"l\":{}}}", texts(count, text))
}

fn numbers(count: usize) -> String {
    let numbers: Vec<String> = (0..count).map(|at| at.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// An object with so many members.
fn object(count: usize, key: impl Fn(usize) -> String) -> String {
    let members: Vec<String> = (0..count).map(|at| format!("\"{}\":{at}", key(at))).collect();
    format!("{{{}}}", members.join(","))
}

#[allow(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<Case> {
    use Ends::{Spent, Within};
    let long = |len: usize| "a".repeat(len);
    let many = || list(62, |_| long(65_000));
    let escaped = || list(62, |_| format!("\\n{}", long(65_000)));
    let needle = format!("{}b", long(500));
    let mut cases = vec![
        case(
            "a pattern on a large text",
            &["args.t.matches('^[a-z]*$')"],
            format!("{{\"t\":\"{}\"}}", long(MESSAGE - 100)),
            Within,
        ),
        case(
            "a pattern on many texts",
            &["args.l.all(x, x.matches('^[a-z]*$'))", "args.l.all(x, x.matches('^(a|b)*$'))"],
            many(),
            Spent,
        ),
        case("a large pattern", &["!args.t.matches('.{1,200}x.{1,200}')"], format!("{{\"t\":\"{}\"}}", long(1200)), Within),
        case(
            "a large pattern on a large text",
            &["!args.t.matches('.{1,200}x.{1,200}')"],
            format!("{{\"t\":\"{}\"}}", long(MESSAGE - 100)),
            Spent,
        ),
        case(
            "a pattern of words",
            &["!args.t.matches('x\\\\b.{0,40}y')"],
            format!("{{\"t\":\"{}\"}}", "x é".repeat(2000)),
            Within,
        ),
        case(
            "contains",
            &[&format!("args.l.all(x, !x.contains('{needle}'))"), &format!("args.l.all(x, !x.contains('{needle}c'))")],
            many(),
            Spent,
        ),
        case(
            "a large text for each item",
            &["args.l.all(x, !args.t.contains(x))"],
            format!("{{\"t\":\"{}\",\"l\":{}}}", long(4_100_000), texts(4000, |at| format!("b{at}"))),
            Spent,
        ),
        case(
            "a pattern on a large text for each item",
            &["args.l.all(x, args.t.matches('^[a-z]*$'))"],
            format!("{{\"t\":\"{}\",\"l\":{}}}", long(4_100_000), numbers(4000)),
            Spent,
        ),
        case(
            "a large text compared with a number for each item",
            &["args.l.exists(x, args.t < 5)"],
            format!("{{\"t\":\"{}\",\"l\":{}}}", long(4_100_000), numbers(4000)),
            Within,
        ),
        case(
            "equal texts",
            &[
                "args.l.all(x, x == args.l[0] && x == args.l[1] && x == args.l[2] && x == args.l[3] && x == args.l[4] && x == args.l[5] && x == args.l[6] && x == args.l[7] && x == args.l[8] && x == args.l[9])",
            ],
            many(),
            Within,
        ),
        case(
            "ordered texts",
            &[
                "args.l.all(x, x <= args.l[0] && x <= args.l[1] && x <= args.l[2] && x <= args.l[3] && x <= args.l[4] && x <= args.l[5] && x <= args.l[6] && x <= args.l[7] && x <= args.l[8] && x <= args.l[9])",
            ],
            many(),
            Within,
        ),
        case(
            "sizes",
            &[
                "args.l.all(x, size(x) > 0 && size(x) > 1 && size(x) > 2 && size(x) > 3 && size(x) > 4 && size(x) > 5 && size(x) > 6 && size(x) > 7 && size(x) > 8 && size(x) > 9)",
            ],
            many(),
            Within,
        ),
        case(
            "sums of texts",
            &["args.l.all(x, x + 'b' != 'c')", "args.l.all(x, x + 'b' != 'd')", "args.l.all(x, x + 'b' != 'e')"],
            many(),
            Spent,
        ),
        case("copies of texts with escapes", &["args.l.map(x, x).size() > 1"], escaped(), Spent),
        case(
            "a list of copies",
            &["[args.l, args.l, args.l].size() == 3", "[args.l, args.l, args.l].size() == 3"],
            escaped(),
            Spent,
        ),
        case("texts with escapes", &["args.t != ''"], format!("{{\"t\":\"{}\"}}", "\\u0061".repeat(300_000)), Within),
        case("nothing but escapes", &["args.t != ''"], format!("{{\"t\":\"{}\"}}", "\\n".repeat(MESSAGE / 2 - 100)), Spent),
        case("numbers as texts", &["args.l.all(x, double(x) > 0.0)"], list(62, |_| "1".repeat(65_000)), Spent),
        case(
            "texts that are no numbers",
            &["args.l.exists(x, int(x) == 5)", "args.l.exists(x, int(x) == 5)"],
            list(62, |_| format!("{}x", "1".repeat(65_000))),
            Spent,
        ),
        case("texts compared with numbers", &["args.l.all(x, x < 5)"], list(4000, |_| long(1000)), Within),
        case(
            "items of a list",
            &[
                "args.l.all(x, x + 1 > 0 && x + 2 > 0 && x + 3 > 0 && x * 2 >= 0 && x - 1 < x && (x > 5 ? true : x < 6) && !(x == -1))",
            ],
            format!("{{\"l\":{}}}", numbers(4000)),
            Spent,
        ),
        case(
            "short items of a list",
            &[
                "args.l.all(x, x >= 0)",
                "args.l.all(x, x >= 0)",
                "args.l.all(x, x >= 0)",
                "args.l.all(x, x >= 0)",
                "args.l.all(x, x >= 0)",
            ],
            format!("{{\"l\":{}}}", numbers(4000)),
            Spent,
        ),
        case(
            "members of items",
            &["args.l.all(x, has(x.a) && x.a.b.c == 1 && x.a.b.c != 2 && x['a']['b'].c == 1)"],
            format!("{{\"l\":[{}]}}", vec!["{\"a\":{\"b\":{\"c\":1}}}"; 1000].join(",")),
            Within,
        ),
        case(
            "names in a comprehension",
            &["args.l.all(x, args.m.a.b.c.d.e.f == 1 && args.m.a.b.c.d.e.f != 2 && tool == 'pay' && pod.name == '')"],
            format!("{{\"m\":{{\"a\":{{\"b\":{{\"c\":{{\"d\":{{\"e\":{{\"f\":1}}}}}}}}}}}},\"l\":{}}}", numbers(4000)),
            Spent,
        ),
        case(
            "items that are missing",
            &["args.l.exists(x, x.missing == 1)", "args.l.exists(x, x.missing == 2)"],
            format!("{{\"l\":[{}]}}", vec!["{}"; 4000].join(",")),
            Within,
        ),
        case(
            "types of items",
            &["args.l.all(x, type(x) == int && type(x) != string && type(x) != list && type(x) != map)"],
            format!("{{\"l\":{}}}", numbers(4000)),
            Within,
        ),
        case("numbers in a list", &["args.l.all(x, x in args.l)"], format!("{{\"l\":{}}}", numbers(4000)), Spent),
        case("texts in a list", &["args.l.all(x, x in args.l)"], list(1000, |at| format!("{}{at:04}", long(4000))), Spent),
        case(
            "texts in a map",
            &["args.l.all(x, !(x in args.m))"],
            format!("{{\"m\":{{\"x\":1}},\"l\":{}}}", texts(62, |_| long(65_000))),
            Within,
        ),
        case(
            "lists that are equal",
            &["args.k.all(x, args.l == args.m)"],
            format!("{{\"k\":{0},\"l\":{0},\"m\":{0}}}", numbers(1300)),
            Spent,
        ),
        case(
            "maps that are equal",
            &["args.k.all(x, args.l == args.m)"],
            format!("{{\"k\":{},\"l\":{1},\"m\":{1}}}", numbers(1300), object(1300, |at| format!("key-{at}"))),
            Spent,
        ),
        case(
            "indices",
            &["args.l.all(x, args.m[x] >= 0)"],
            format!("{{\"m\":{},\"l\":{}}}", object(2000, |at| format!("key-{at}")), texts(2000, |at| format!("key-{at}"))),
            Within,
        ),
        case(
            "what an index does not find",
            &["args.l.exists(x, args.m[x] == 1)"],
            format!("{{\"m\":{{}},\"l\":{}}}", texts(62, |_| long(65_000))),
            Spent,
        ),
        case(
            "an index into a list that is none",
            &["args.l.exists(x, args.l[0.5] == 1)"],
            format!("{{\"l\":{}}}", numbers(4000)),
            Within,
        ),
        case(
            "conditions on literals",
            &[&format!(
                "[{}].all(x, x >= 0 && x < 1000 && x + 1 > 0)",
                (0..400).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
            )],
            "{}".to_owned(),
            Within,
        ),
        case("many keys", &["args.amount != 5"], object(4000, |at| format!("{}{at}", long(900))), Spent),
        case("keys of other scripts", &["args['größe'] != 5"], object(4000, |at| format!("{}{at}", "Ö".repeat(100))), Spent),
    ];
    let validations: Vec<Validation> = (0..16).map(|_| validation("args.a != ''")).collect();
    let globs = (0..200).map(|at| Tool { validations: validations.clone(), ..tool(&format!("p*{}", "*".repeat(at))) }).collect();
    cases.push(Case {
        name: "conditions of many entries",
        policy: policy(globs),
        tool: "pay".to_owned(),
        arguments: "{\"a\":1}".to_owned(),
        ends: Within,
    });
    let limits: Vec<Limit> = (0..16).map(|at| limit(1_000_000 + at)).collect();
    let globs = (0..400).map(|at| Tool { limits: limits.clone(), ..tool(&format!("p*{}", "*".repeat(at))) }).collect();
    cases.push(Case {
        name: "limits of many entries",
        policy: policy(globs),
        tool: "pay".to_owned(),
        arguments: "{}".to_owned(),
        ends: Spent,
    });
    let keyed = Limit { key: Some("args.t".to_owned()), ..limit(5) };
    cases.push(Case {
        name: "a large key",
        policy: policy(vec![Tool { limits: vec![keyed], ..tool("pay") }]),
        tool: "pay".to_owned(),
        arguments: format!("{{\"t\":\"{}\"}}", "é".repeat(300_000)),
        ends: Within,
    });
    // What a person is shown: the keys of an object are sorted, and no more is written than there is room for.
    let shown = |name: &'static str, show: &[&str], arguments: String, ends: Ends| {
        let show = show.iter().map(|expression| (*expression).to_owned()).collect();
        let approval = Some(EntryApproval { show, ..EntryApproval::default() });
        Case { name, policy: policy(vec![Tool { approval, ..tool("pay") }]), tool: "pay".to_owned(), arguments, ends }
    };
    let all = ["args", "args ", " args", "(args)", "args.a", "args.a ", " args.a", "(args.a)"];
    let keys = |count: usize, len: usize| format!("{{\"a\":{}}}", object(count, |at| format!("{}{at:04}", long(len))));
    cases.push(shown("large texts that are shown", &all, format!("{{\"a\":\"{}\"}}", long(MESSAGE - 100)), Within));
    cases.push(shown("objects of many short keys that are shown", &all, keys(4000, 4), Within));
    cases.push(shown("objects of many long keys that are shown", &all, keys(4000, 900), Spent));
    cases.push(shown("lists that are shown", &all, format!("{{\"a\":[{}]}}", vec!["[]"; 4000].join(",")), Within));
    let name = |at: usize| format!("*{}*{at:04}x*", "ab*".repeat(160));
    cases.push(Case {
        name: "globs on a long name",
        policy: policy((0..1024).map(|at| tool(&name(at))).chain([tool("*")]).take(1024).collect()),
        tool: "AB".repeat(256),
        arguments: "{}".to_owned(),
        ends: Within,
    });
    cases
}
