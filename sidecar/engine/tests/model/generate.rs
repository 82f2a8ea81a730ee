//! Generated policies and calls.

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select, subsequence},
};
use toolweir_crds::{
    Action, EntryApproval, Limit, MCPPolicySpec, MCPToolPinsSpec, Mode, OnDrift, OnNew, PartDigests, PinnedPart, PinnedTool,
    Scope, Server, ServerPins, Tool, ToolClass, ToolPart, ToolPins, Validation,
};
use toolweir_engine::{Policy, PolicyId, SeenTool};

pub const SERVERS: [&str; 3] = ["a", "b", "c"];
pub const TOOLS: [&str; 7] = ["get_x", "get_y", "set_x", "pay", "ga", "GET_X", "paY"];
pub const ENTRIES: [&str; 14] =
    ["get_x", "get_y", "set_x", "pay", "PAY", "get_*", "ge*", "g*", "s*", "*a*", "*t_x", "*_x", "*_X", "*"];
pub const WINDOWS: [&str; 4] = ["second", "1500ms", "minute", "90s"];
pub const CONDITIONS: [&str; 4] = ["args.n < 3", "args.k == 'u'", "has(args.k)", "tool != 'get_x'"];
pub const SESSIONS: [&str; 2] = ["s1", "s2"];
/// Values of the argument `n`: as JSON, and as millionths; nothing for what is no cost.
pub const NUMBERS: [(&str, Option<u64>); 7] = [
    ("0", Some(0)),
    ("1", Some(1_000_000)),
    ("2", Some(2_000_000)),
    ("0.5", Some(500_000)),
    ("5", Some(5_000_000)),
    ("-1", None),
    ("\"1\"", None),
];
/// Values of the argument `k`: as JSON, and what tells them apart; nothing for what is no key.
pub const KEYS: [(&str, Option<&str>); 5] =
    [("\"u\"", Some("text u")), ("\"1\"", Some("text 1")), ("1", Some("number 1")), ("1.0", Some("number 1")), ("{}", None)];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Plain,
    /// A key stands twice.
    Repeated,
    /// Beside what else there is, a key `N`.
    OtherCase,
}

#[derive(Clone, Debug)]
pub struct Arguments {
    pub n: Option<usize>,
    pub k: Option<usize>,
    pub shape: Shape,
}

impl Arguments {
    pub fn json(&self) -> Option<String> {
        let mut members: Vec<String> = Vec::new();
        members.extend(self.n.map(|n| format!("\"n\": {}", NUMBERS[n].0)));
        members.extend(self.k.map(|k| format!("\"k\": {}", KEYS[k].0)));
        match self.shape {
            Shape::Plain => {}
            Shape::Repeated => members.push("\"z\": 1, \"z\": 2".to_owned()),
            Shape::OtherCase => members.push("\"N\": 1".to_owned()),
        }
        (!members.is_empty()).then(|| format!("{{{}}}", members.join(", ")))
    }
}

/// The tools that the pins `agents/p` pin, with the byte that fills the digests of their description and of their schema.
pub const PINNED: [(&str, u8); 2] = [("get_x", 1), ("pay", 2)];

/// The pins that policies can name. Those called `missing` are not there.
pub fn pins() -> Vec<ToolPins> {
    let part = |part, byte: u8| PinnedPart { part, sha256: format!("{byte:02x}").repeat(32), text: String::new(), cut: false };
    let tool = |(name, byte): (&str, u8)| PinnedTool {
        name: name.to_owned(),
        parts: vec![part(ToolPart::Description, byte), part(ToolPart::InputSchema, byte)],
    };
    let spec = MCPToolPinsSpec { server: "a".to_owned(), tools: PINNED.into_iter().map(tool).collect() };
    vec![ToolPins { namespace: "agents".to_owned(), name: "p".to_owned(), spec }]
}

/// What a list said of a tool: nothing, or one or two definitions.
pub fn seen() -> impl Strategy<Value = Option<SeenTool>> {
    let digests = (0_u8..3, 1_u8..3).prop_map(|(description, schema)| {
        let mut digests = PartDigests::default();
        if description > 0 {
            digests.set(ToolPart::Description, [description; 32]);
        }
        digests.set(ToolPart::InputSchema, [schema; 32]);
        digests
    });
    let definition = (select(ToolClass::ALL.to_vec()), digests);
    let more = option::weighted(0.2, definition.clone());
    let seen = (definition, more).prop_map(|((class, digests), more)| {
        let mut seen = SeenTool::new(class, digests);
        if let Some((class, digests)) = more {
            seen.add(class, digests);
        }
        seen
    });
    option::weighted(0.8, seen)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    Keep,
    Drop,
    GiveBack,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a test has few of them")]
pub enum Step {
    Call {
        after: u64,
        server: &'static str,
        tool: &'static str,
        session: &'static str,
        arguments: Arguments,
        then: Then,
        seen: Option<SeenTool>,
        /// True if a person approves whatever is asked about the call.
        approved: bool,
        /// True if a call that gets a time to try again does so, and nothing comes in between.
        obedient: bool,
    },
    /// A call that is under way ends, or fails.
    End { which: Index, failed: bool },
}

pub fn limit() -> impl Strategy<Value = Limit> {
    let scope = prop_oneof![3 => Just(Scope::Pod), 1 => Just(Scope::Session)];
    let key = option::weighted(0.2, Just("args.k".to_owned()));
    let cost = option::weighted(0.25, Just("args.n".to_owned()));
    let free =
        (1_i64..5, select(WINDOWS.to_vec()), scope, key, cost.clone(), option::weighted(0.2, Just("d".to_owned()))).prop_map(
            |(max, window, scope, key, cost, counter)| Limit { max, window: window.parse().unwrap(), scope, key, cost, counter },
        );
    // Limits that always count together.
    let counter = Some("c".to_owned());
    let shared = (1_i64..5, cost).prop_map(move |(max, cost)| Limit {
        max,
        window: "minute".parse().unwrap(),
        scope: Scope::Pod,
        key: None,
        cost,
        counter: counter.clone(),
    });
    prop_oneof![3 => free, 1 => shared]
}

pub fn approval() -> impl Strategy<Value = EntryApproval> {
    let when = option::weighted(0.7, select(CONDITIONS.to_vec()));
    let message = option::of(select(vec!["Ask.", "Ask Jane."]));
    let show = subsequence(vec!["args.n", "args.k", "tool"], 0..=3);
    let hold = select(vec!["0s", "30s"]);
    (when, message, show, hold, select(vec!["10s", "10m", "24h"]), 1_u32..4).prop_map(
        |(when, message, show, hold, expiry, pending)| EntryApproval {
            when: when.map(str::to_owned),
            message: message.map(str::to_owned),
            show: show.into_iter().map(str::to_owned).collect(),
            hold: hold.parse().unwrap(),
            expiry: expiry.parse().unwrap(),
            pending,
        },
    )
}

pub fn tools() -> impl Strategy<Value = Vec<Tool>> {
    let action = prop_oneof![4 => Just(None), 1 => Just(Some(Action::Allow)), 1 => Just(Some(Action::Deny))];
    let validation =
        select(CONDITIONS.to_vec()).prop_map(|expression| Validation { expression: expression.to_owned(), message: None });
    // Most entries have none: else no call would get as far as the limits.
    let validations = option::weighted(0.25, validation).prop_map(Vec::from_iter);
    let approval = option::weighted(0.15, approval());
    let body = (action, vec(limit(), 0..4), validations, approval, option::weighted(0.25, 1_i64..3)).prop_map(
        |(action, limits, validations, approval, max_concurrent)| {
            // Nobody is asked about what an entry denies.
            let approval = approval.filter(|_| action != Some(Action::Deny));
            Tool { action, limits, validations, approval, max_concurrent, ..Tool::default() }
        },
    );
    let classes = prop_oneof![1 => Just(Vec::new()), 1 => subsequence(ToolClass::ALL.to_vec(), 1..4)];
    (subsequence(ENTRIES.to_vec(), 0..5), classes, vec(body, 8)).prop_map(|(names, classes, bodies)| {
        let names = names.into_iter().map(|name| (name, None));
        let entries = names.chain(classes.into_iter().map(|class| ("", Some(class))));
        let entry = |((name, class), body): ((&str, _), Tool)| {
            // Nothing else can be said of what is not known.
            let (action, approval) = match class {
                Some(ToolClass::Unknown) => (Some(Action::Deny), None),
                _ => (body.action, body.approval),
            };
            Tool { name: name.to_owned(), class, action, approval, ..body }
        };
        entries.zip(bodies).map(entry).collect()
    })
}

fn server_pins(cluster: bool) -> impl Strategy<Value = Option<ServerPins>> {
    let on_drift = select(vec![OnDrift::Deny, OnDrift::Hide, OnDrift::Audit]);
    let on_new = select(vec![OnNew::Deny, OnNew::Audit, OnNew::Allow, OnNew::Allow]);
    let name = prop_oneof![6 => Just("p"), 1 => Just("missing")];
    let pins = (name, on_drift, on_new).prop_map(move |(name, on_drift, on_new)| ServerPins {
        name: name.to_owned(),
        namespace: cluster.then(|| "agents".to_owned()),
        on_drift,
        on_new,
    });
    option::weighted(0.2, pins)
}

/// A policy; its name makes it one of its own, and is not in the order in which policies are made.
pub fn policy(name: &'static str) -> impl Strategy<Value = Policy> {
    let servers = |cluster: bool| {
        let names = if cluster { vec!["*", "a", "b"] } else { vec!["a", "b"] };
        let most = names.len();
        let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
        (subsequence(names, 1..=most), vec((action, tools(), server_pins(cluster)), most)).prop_map(|(names, bodies)| {
            let server = |(name, (default_action, tools, pins)): (&str, (_, _, Option<ServerPins>))| {
                let url = (name != "*").then(|| "http://server/mcp".to_owned());
                let pins = pins.filter(|_| name != "*");
                Server { name: name.to_owned(), url, default_action, tools, pins, ..Server::default() }
            };
            names.into_iter().zip(bodies).map(server).collect::<Vec<_>>()
        })
    };
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    any::<bool>().prop_flat_map(move |cluster| (Just(cluster), servers(cluster))).prop_flat_map(move |(cluster, servers)| {
        mode.clone().prop_map(move |mode| Policy {
            id: PolicyId { cluster, namespace: if cluster { "" } else { "agents" }.to_owned(), name: name.to_owned() },
            created: None,
            spec: MCPPolicySpec { mode, servers: servers.clone(), ..MCPPolicySpec::default() },
            version: None,
            unreadable: None,
        })
    })
}

pub fn policies() -> impl Strategy<Value = Vec<Policy>> {
    (policy("m"), policy("c"), policy("x"), policy("a"), 1_usize..5).prop_map(|(m, c, x, a, number)| {
        let mut policies = vec![m, c, x, a];
        policies.truncate(number);
        policies
    })
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    const MS: u64 = 1_000_000;
    // Nothing, about as long as a window, as much longer as its places may come free late, and anything.
    let after = prop_oneof![
        4 => Just(0),
        2 => select(vec![1, 300 * MS, 1000 * MS, 1500 * MS, 60_000 * MS, 90_000 * MS]),
        1 => select(vec![1000, 1500, 60_000, 90_000]).prop_map(|window| window * MS + window * MS / 64),
        1 => select(vec![1000, 1500, 60_000, 90_000]).prop_map(|window| window * MS + window * MS / 64 - 1),
        2 => 0..2500 * MS,
        1 => 0..100_000 * MS,
    ];
    let arguments = (
        option::weighted(0.8, 0..NUMBERS.len()),
        option::weighted(0.8, 0..KEYS.len()),
        prop_oneof![10 => Just(Shape::Plain), 1 => Just(Shape::Repeated), 1 => Just(Shape::OtherCase)],
    )
        .prop_map(|(n, k, shape)| Arguments { n, k, shape });
    let then = prop_oneof![1 => Just(Then::Keep), 3 => Just(Then::Drop), 1 => Just(Then::GiveBack)];
    let server = prop_oneof![6 => Just(SERVERS[0]), 3 => Just(SERVERS[1]), 1 => Just(SERVERS[2])];
    // The first is the one that most entries match.
    let tool = prop_oneof![1 => Just(TOOLS[0]), 1 => select(TOOLS.to_vec())];
    let call = (after, server, tool, select(SESSIONS.to_vec()), arguments, then, any::<[bool; 2]>(), seen());
    let call = call.prop_map(|(after, server, tool, session, arguments, then, [obedient, approved], seen)| Step::Call {
        after,
        server,
        tool,
        session,
        arguments,
        then,
        approved,
        obedient,
        seen,
    });
    let end = (any::<Index>(), any::<bool>()).prop_map(|(which, failed)| Step::End { which, failed });
    vec(prop_oneof![6 => call, 1 => end], 1..60)
}
