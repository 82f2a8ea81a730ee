//! From the tree of a policy of the open-source proxy to a server of our language.

use std::collections::HashMap;

use toolweir_crds::{Action, Limit, Scope, bounds, text::escaped};

use super::{
    approval::{AskingRule, ConvertedApproval},
    condition::{self, ConditionPart, Sense},
    convert::version,
    entry::{Assembled, Check, ConvertedEntry, ConvertedLimit, Hidden, ImportOptions, PolicyParts, is_tool_name, scope, text},
    errors::Errors,
    read::{EXACT, Json, Object, member, shown},
};

/// The name in paths of what counts for every tool.
const GLOBAL: &str = "_global";

/// The most characters of a text of the original in a comment.
const LINE: usize = 500;

const WINDOWS: [&str; 3] = ["minute", "hour", "day"];

/// Converts a policy; its description comes with it. What is wrong goes to `errors`, and what it gives is then incomplete.
pub(super) fn policy(root: &Json<'_>, options: &ImportOptions, errors: &mut Errors) -> (Assembled, Option<String>) {
    let mut out = Assembled::new(options);
    let Some(root) = root.object("", &["version", "description", "default", "hide", "tools", "approvals"], errors) else {
        return (out, None);
    };
    if !matches!(root.get("version"), Some(Json::Number(version)) if version == "1") {
        version(&root, errors);
    }
    if root.get("approvals").is_some() {
        errors.at("approvals", "says whom the original tells of calls that wait, which no policy says here; remove it");
    }
    let description = text(&root, "description", errors).map(|text| one_line(&text));
    let default = match root.get("default") {
        None => Action::Allow,
        Some(value) => super::convert::action(value, "default", errors).unwrap_or_default(),
    };
    let hidden = Hidden::read(&root, errors);
    let mut every = ConvertedEntry::new("*", "tools[\"*\"]");
    let mut entries = Vec::new();
    let mut rules = RuleReader { scope: scope(options), counts: HashMap::new() };
    if let Some(tools) = root.get("tools") {
        for (name, tool) in tools.members("tools", errors).unwrap_or_default() {
            let path = member("tools", name);
            if name == "*" {
                rules.tool(&mut every, GLOBAL, tool, &path, errors);
            } else if is_tool_name(name, &path, errors) {
                let mut entry = ConvertedEntry::new(name, &path);
                rules.tool(&mut entry, name, tool, &path, errors);
                entries.push(entry);
            }
        }
    }
    out.fill(PolicyParts { default, hidden, every, entries }, errors);
    (out, description)
}

/// Reads the rules of all tools.
struct RuleReader {
    scope: Scope,
    /// The counts of the original, by the names that it gives them, and where they stand.
    counts: HashMap<String, String>,
}

/// A rule in the making, and where it goes.
struct RuleInProgress<'r, 'v, 'a> {
    rule: &'r Object<'v, 'a>,
    path: &'r str,
    /// The name of its tool in paths of counters.
    counted_as: &'r str,
    message: Option<String>,
    /// The rule's name and place, for notes.
    title: String,
    entry: &'r mut ConvertedEntry,
}

impl RuleReader {
    fn tool(&mut self, entry: &mut ConvertedEntry, counted_as: &str, tool: &Json<'_>, path: &str, errors: &mut Errors) {
        let Some(tool) = tool.object(path, &["rules", "spend"], errors) else { return };
        spend(&tool, errors);
        let place = tool.path("rules");
        let rules = tool.get("rules").and_then(|value| value.list(&place, errors)).unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            let path = format!("{place}[{index}]");
            let known = ["name", "action", "rate_limit", "conditions", "state", "on_deny", "approval_timeout", "spend"];
            let Some(rule) = rule.object(&path, &known, errors) else { continue };
            let title = match text(&rule, "name", errors) {
                Some(name) => format!("rule \"{}\", {path}", one_line(&name)),
                None => path.clone(),
            };
            let message = text(&rule, "on_deny", errors);
            self.rule(RuleInProgress { rule: &rule, path: &path, counted_as, message, title, entry }, errors);
        }
    }

    fn rule(&mut self, made: RuleInProgress<'_, '_, '_>, errors: &mut Errors) {
        let rule = made.rule;
        spend(rule, errors);
        let action_at = rule.path("action");
        let action = match rule.get("action") {
            None => Some("evaluate"),
            Some(value) => value.string(&action_at, errors),
        };
        if action != Some("require_approval") && rule.get("approval_timeout").is_some() {
            errors.at(rule.path("approval_timeout"), "belongs to `action: require_approval`; remove it");
        }
        match action {
            Some("evaluate") if rule.get("rate_limit").is_some() => self.rate_limit(made, errors),
            Some("evaluate") => self.evaluate(made, errors),
            Some("deny") => deny(made, errors),
            Some("require_approval") => require_approval(made, errors),
            Some(other) => {
                errors.at(action_at, format!("is `{}`; there is evaluate, deny and require_approval", shown(other)));
            }
            None => {}
        }
    }

    /// `rate_limit: 5/hour`.
    fn rate_limit(&mut self, made: RuleInProgress<'_, '_, '_>, errors: &mut Errors) {
        alone(made.rule, &["conditions", "state"], "`rate_limit`; write a rule for each", errors);
        let at = made.rule.path("rate_limit");
        let Some(written) = made.rule.get("rate_limit").and_then(|value| value.string(&at, errors)) else { return };
        let parts = written.split_once('/').filter(|(count, window)| {
            WINDOWS.contains(window) && !count.starts_with('0') && count.bytes().all(|byte| byte.is_ascii_digit())
        });
        let Some((max, window)) = parts.and_then(|(count, window)| Some((count.parse().ok()?, window))) else {
            let message = "write a number from 1 on, and minute, hour or day, such as 30/minute; `action: deny` forbids the tool";
            errors.at(at, format!("is `{}`; {message}", shown(written)));
            return;
        };
        self.count(&format!("{}._rate_{window}", made.counted_as), &at, errors);
        limit(made, Limited { max, window, cost: None, counter: None, fields: vec![("max", at)] }, self.scope, "");
    }

    /// Conditions, of which those on a counter become a limit.
    fn evaluate(&mut self, made: RuleInProgress<'_, '_, '_>, errors: &mut Errors) {
        let place = made.rule.path("conditions");
        let Some(conditions) = made.rule.get("conditions").map_or(Some(Default::default()), |value| value.list(&place, errors))
        else {
            return;
        };
        if conditions.is_empty() {
            errors.at(place, "is missing or empty; write conditions, or a `rate_limit`, or `action: deny`");
            return;
        }
        let counter = self.counter(&made, errors);
        let (mut checks, mut most, mut limited) = (Vec::new(), None, false);
        for (index, value) in conditions.iter().enumerate() {
            let path = format!("{place}[{index}]");
            let Some(condition) = value.object(&path, &condition::FIELDS, errors) else { continue };
            match condition.get("path") {
                Some(Json::String(of)) if of.starts_with("state.") => {
                    limited = true;
                    let bound = Bound::read(&condition, of, counter.as_ref(), made.rule, errors);
                    most = most.into_iter().chain(bound).min_by_key(|bound| bound.max);
                }
                _ => checks.extend(condition::parts(&condition, Sense::Printed, errors).map(|parts| (parts, path))),
            }
        }
        let conditions = match checks.len() {
            0 => String::new(),
            1 => "a condition on the arguments".to_owned(),
            many => format!("{many} conditions on the arguments"),
        };
        made.entry.checks.extend(joined(checks, made.path, made.message.as_ref(), errors));
        match (counter, most) {
            (Some(counter), Some(bound)) => limit(made, counter.limited(bound), self.scope, &conditions),
            (Some(counter), None) if !limited => errors.at(
                made.rule.path("state"),
                format!(
                    "counts and limits nothing; write a condition with `path: state.{}` and `op: lte`, or remove it",
                    shown(&counter.key)
                ),
            ),
            _ => made.entry.notes.push(format!("{}: {conditions}", made.title)),
        }
    }

    /// The counter of a rule with `state`.
    fn counter(&mut self, made: &RuleInProgress<'_, '_, '_>, errors: &mut Errors) -> Option<Counter> {
        let at = made.rule.path("state");
        let state = made.rule.get("state")?.object(&at, &["counter", "window", "increment", "increment_from"], errors)?;
        let name = state.need("counter", errors).and_then(|value| value.string(&state.path("counter"), errors));
        let window = state.need("window", errors).and_then(|value| value.string(&state.path("window"), errors));
        let window = window.and_then(|name| {
            let known = WINDOWS.into_iter().find(|window| *window == name);
            if known.is_none() {
                errors.at(state.path("window"), format!("is `{}`; there is minute, hour and day", shown(name)));
            }
            known
        });
        let cost = cost(&state, errors);
        if name == Some("") {
            errors.at(state.path("counter"), "is empty; write a name");
            return None;
        }
        let key = format!("{}.{}", made.counted_as, name?);
        self.count(&key, &state.path("counter"), errors);
        Some(Counter { key, window: window?, cost: cost?, path: at })
    }

    /// Two rules on one count: the original refuses them on one tool, and adds for both where the names only meet by chance.
    fn count(&mut self, key: &str, at: &str, errors: &mut Errors) {
        if let Some(first) = self.counts.get(key) {
            errors.at(at, format!("has the same count as {first}; merge the rules, or give one another counter or window"));
        } else {
            self.counts.insert(key.to_owned(), at.to_owned());
        }
    }
}

/// A counter of the original.
struct Counter {
    /// Its name in paths, without `state.`.
    key: String,
    window: &'static str,
    /// How much a call adds, where that is not 1.
    cost: Option<Cost>,
    /// The place of its `state`.
    path: String,
}

impl Counter {
    fn limited(self, bound: Bound) -> Limited<'static> {
        let Counter { key, window, cost, path } = self;
        let fields =
            vec![("max", bound.path), ("counter", format!("{path}.counter")), ("cost", format!("{path}.increment_from"))];
        // A limit with a long name has none: it counts alone anyway.
        let counter = Some(key).filter(|key| key.len() <= bounds::COUNTER_NAME);
        Limited { max: bound.max, window, cost, counter, fields }
    }
}

/// How much a call adds to a counter.
struct Cost {
    expression: String,
    /// In the words of the original, on one line.
    said: String,
}

/// What a limit is made of.
struct Limited<'l> {
    max: i64,
    window: &'l str,
    cost: Option<Cost>,
    counter: Option<String>,
    /// The places of its fields in the original.
    fields: Vec<(&'static str, String)>,
}

fn limit(made: RuleInProgress<'_, '_, '_>, limited: Limited<'_>, scope: Scope, conditions: &str) {
    let Limited { max, window, cost, counter, fields } = limited;
    let window_said = if window == "hour" { "an hour" } else { &format!("a {window}") };
    let note = match &cost {
        None => format!("at most {max} {window_said}"),
        Some(cost) => format!("at most {max} {window_said}, of which a call takes {}", cost.said),
    };
    let lost = made.message.map(|message| format!("; callers are not told its on_deny: \"{}\"", one_line(&message)));
    let and = if conditions.is_empty() { "" } else { ", and " };
    made.entry.notes.push(format!("{}: {note}{and}{conditions}{}", made.title, lost.unwrap_or_default()));
    // It is one of the three known names.
    let Ok(window) = window.parse() else { return };
    let limit = Limit { max, window, scope, key: None, cost: cost.map(|cost| cost.expression), counter };
    made.entry.limits.push(ConvertedLimit { limit, path: made.path.to_owned(), fields });
}

fn require_approval(made: RuleInProgress<'_, '_, '_>, errors: &mut Errors) {
    alone(made.rule, &["state", "rate_limit"], "`action: require_approval`; write a rule for each", errors);
    let Some(asking) = AskingRule::read(made.rule, made.path, made.message, errors) else { return };
    made.entry.notes.push(format!("{}: {}", made.title, asking.note()));
    match &mut made.entry.approval {
        Some(approval) => approval.add(asking, errors),
        none => *none = Some(ConvertedApproval::new(asking)),
    }
}

fn deny(made: RuleInProgress<'_, '_, '_>, errors: &mut Errors) {
    alone(made.rule, &["conditions", "state", "rate_limit"], "`action: deny`, which denies every call; remove one", errors);
    made.entry.notes.push(format!("{}: action: Deny", made.title));
    // The first that denies is the one that callers are told of.
    if made.entry.action.replace(Action::Deny).is_none() {
        made.entry.reason_path = made.message.as_ref().map(|_| made.rule.path("on_deny"));
        made.entry.reason = made.message;
    }
}

/// A text of the original in a comment.
fn one_line(text: &str) -> String {
    escaped(text, LINE)
}

/// Reports fields that cannot stand beside another one.
fn alone(rule: &Object<'_, '_>, others: &[&str], beside: &str, errors: &mut Errors) {
    for other in others {
        if rule.get(other).is_some_and(|value| !matches!(value, Json::List(items) if items.is_empty())) {
            errors.at(rule.path(other), format!("stands beside {beside}"));
        }
    }
}

/// How much is an amount is nowhere said.
fn spend(object: &Object<'_, '_>, errors: &mut Errors) {
    if object.get("spend").is_some() {
        errors.at(
            object.path("spend"),
            "does not say which argument is the amount; write rules instead: for per_call a condition such as `{path: args.amount, op: \
             lte, value: 50}`, for daily `state: {counter: spent, window: day, increment_from: args.amount}` with a condition on \
             `state.TOOL.spent`",
        );
    }
}

/// The most that a condition lets its rule's own counter have.
struct Bound {
    max: i64,
    /// The place of the number.
    path: String,
}

impl Bound {
    fn read(
        condition: &Object<'_, '_>,
        of: &str,
        counter: Option<&Counter>,
        rule: &Object<'_, '_>,
        errors: &mut Errors,
    ) -> Option<Self> {
        let own = counter.is_some_and(|counter| of.strip_prefix("state.") == Some(&counter.key));
        if !own && (counter.is_some() || rule.get("state").is_none()) {
            let mine = counter.map(|counter| format!("; this rule's is `state.{}`", shown(&counter.key))).unwrap_or_default();
            let message = "a counter that this rule does not count; write the condition into the rule with its `state`";
            errors.at(condition.path("path"), format!("is `{}`, {message}{mine}", shown(of)));
        }
        let op = condition.need("op", errors)?.string(&condition.path("op"), errors)?;
        if !["lt", "lte"].contains(&op) {
            errors.at(condition.path("op"), format!("is `{}`; a counter is held under a number, with lt or lte", shown(op)));
        }
        let path = condition.path("value");
        let number = match condition.need("value", errors)? {
            Json::Number(text) => text.parse::<f64>().ok().filter(|number| number.abs() < EXACT),
            other => {
                errors.at(path, format!("is {}; write a number", other.kind()));
                return None;
            }
        };
        // The original drops the fraction first, and then takes 1 away for `lt`.
        let whole = number.and_then(|number| format!("{:.0}", number.trunc()).parse::<i64>().ok());
        let max = whole.map(|whole| if op == "lt" { whole - 1 } else { whole });
        match max {
            Some(max) if max >= 1 => own.then_some(Self { max, path }),
            Some(_) => {
                errors.at(path, "lets no call through; write a larger number, or `action: deny`");
                None
            }
            None => {
                errors.at(path, "is too large");
                None
            }
        }
    }
}

/// How much a call adds to a counter.
#[expect(clippy::option_option, reason = "none where it is wrong, and none of it where it is 1")]
fn cost(state: &Object<'_, '_>, errors: &mut Errors) -> Option<Option<Cost>> {
    let at = state.path("increment");
    let increment = match state.get("increment") {
        None => None,
        Some(value) => {
            let increment = value.whole(&at, errors)?;
            if increment < 1 {
                errors.at(at, format!("is {increment}; write 1 or more"));
                return None;
            }
            Some(increment)
        }
    };
    let at = state.path("increment_from");
    let Some(from) = state.get("increment_from") else {
        let more = increment.filter(|increment| *increment > 1).map(|increment| increment.to_string());
        return Some(more.map(|number| Cost { said: number.clone(), expression: number }));
    };
    if increment.is_some() {
        errors.at(&at, "stands beside `increment`, which then means nothing; remove one");
    }
    let from = from.string(&at, errors)?;
    condition::value(from, &at, errors).map(|expression| Some(Cost { said: shown(from), expression }))
}

/// The conditions of a rule as one validation, or as one each where they are too long for one.
fn joined(checks: Vec<(Vec<ConditionPart>, String)>, path: &str, message: Option<&String>, errors: &mut Errors) -> Vec<Check> {
    let parts: Vec<ConditionPart> = checks.iter().flat_map(|(parts, _)| parts.iter().cloned()).collect();
    let expression = condition::all(&parts);
    if parts.is_empty() {
        return Vec::new();
    }
    let check = |expression: String, path: &str| Check { expression, message: message.cloned(), path: path.to_owned() };
    if condition::is_fit(&expression) {
        return vec![check(expression, path)];
    }
    let each = checks.into_iter().filter_map(|(parts, path)| {
        let expression = condition::all(&parts);
        condition::check(&expression, &path, errors).then(|| check(expression, &path))
    });
    each.collect()
}
