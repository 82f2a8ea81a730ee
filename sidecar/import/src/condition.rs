//! Conditions on arguments as CEL.

use std::collections::HashSet;

use toolweir_crds::bounds;
use toolweir_engine::cel::Expression;

use super::{
    errors::Errors,
    read::{EXACT, Json, Object, shown},
};

/// The fields of a condition.
pub(super) const FIELDS: [&str; 3] = ["path", "op", "value"];

/// A null as Go prints it.
const PRINTED_NULL: &str = "<nil>";

const OPERATORS: &str = "eq, neq, in, not_in, lt, lte, gt, gte, regex, contains, exists";

/// The readings in which a condition must hold to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    /// All of them: the conditions of `require`.
    Surely,
    /// Any of them: those of `deny_if`.
    Perhaps,
    /// All of them, and as the open-source proxy does it, whose code is known: what is null does not exist, and what is no number is
    /// compared as Go prints it.
    Printed,
    /// Any of them, of the conditions under which the open-source proxy asks a person; what cannot be compared is an error, which asks.
    Asks,
}

impl Sense {
    /// Returns true where the conditions are the open-source proxy's, to which a null does not exist.
    fn is_of_proxy(self) -> bool {
        matches!(self, Sense::Printed | Sense::Asks)
    }

    /// Returns true where a condition holds if it does in any reading.
    fn is_wide(self) -> bool {
        matches!(self, Sense::Perhaps | Sense::Asks)
    }
}

/// One of the parts of a condition, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConditionPart {
    /// A call or a term in parentheses, which `!` can stand before.
    Closed(String),
    /// Anything that `&&` can join.
    Open(String),
    /// The opposite of a closed part, or of an open one in parentheses.
    Not(Box<ConditionPart>),
}

impl ConditionPart {
    fn text(&self) -> String {
        match self {
            ConditionPart::Closed(text) | ConditionPart::Open(text) => text.clone(),
            ConditionPart::Not(inner) => match &**inner {
                ConditionPart::Closed(text) => format!("!{text}"),
                other => format!("!({})", other.text()),
            },
        }
    }
}

/// The expression that all parts hold.
pub(super) fn all(parts: &[ConditionPart]) -> String {
    let mut seen = HashSet::new();
    let texts: Vec<String> = parts.iter().map(ConditionPart::text).filter(|text| seen.insert(text.clone())).collect();
    texts.join(" && ")
}

/// The expression that not all parts hold.
pub(super) fn not_all(parts: &[ConditionPart]) -> String {
    match parts {
        [ConditionPart::Not(inner)] => inner.text(),
        [only] => ConditionPart::Not(Box::new(only.clone())).text(),
        _ => format!("!({})", all(parts)),
    }
}

/// Checks that a policy can hold an expression, and that it compiles.
pub(super) fn check(expression: &str, path: &str, errors: &mut Errors) -> bool {
    let fits = fits(expression, path, errors);
    match fits.then(|| Expression::compile(expression)) {
        Some(Ok(_)) => true,
        Some(Err(why)) => {
            errors.at(path, format!("becomes the CEL expression `{}`, which {why}", shown(expression)));
            false
        }
        None => false,
    }
}

/// Returns true if a policy can hold an expression.
pub(super) fn is_fit(expression: &str) -> bool {
    expression.len() <= bounds::EXPRESSION && Expression::compile(expression).is_ok()
}

/// Checks that an expression is short enough for a policy, and so for what compiles it.
fn fits(expression: &str, path: &str, errors: &mut Errors) -> bool {
    let (len, most) = (expression.len(), bounds::EXPRESSION);
    if len > most {
        errors.at(path, format!("becomes a CEL expression of {len} bytes, and {most} are possible; split it"));
    }
    len <= most
}

/// The place in the arguments that a condition is about.
struct Place {
    /// The parts that say that it is there.
    there: Vec<ConditionPart>,
    /// The value.
    value: String,
}

/// The parts of a condition.
pub(super) fn parts(condition: &Object<'_, '_>, sense: Sense, errors: &mut Errors) -> Option<Vec<ConditionPart>> {
    let place = condition.need("path", errors).and_then(|value| {
        let path = condition.path("path");
        place(value.string(&path, errors)?, &path, errors)
    });
    let operator = condition.need("op", errors).and_then(|value| value.string(&condition.path("op"), errors));
    let compared = match (operator?, condition.get("value")) {
        ("exists", None) if !sense.is_of_proxy() => &Json::Bool(true),
        _ => condition.need("value", errors)?,
    };
    let at = condition.path("value");
    let builder = Builder { sense, compared, at: &at, place: place.as_ref() };
    let built = builder.build(operator?, &condition.path("op"), errors);
    place.as_ref().and(built)
}

/// The value at a path such as `args.a.b`; an error where it is not there.
pub(super) fn value(path: &str, at: &str, errors: &mut Errors) -> Option<String> {
    place(path, at, errors).map(|place| place.value)
}

/// Reads a path such as `args.a.b`.
fn place(path: &str, at: &str, errors: &mut Errors) -> Option<Place> {
    let Some(steps) = path.strip_prefix("args.") else {
        let what = if path.starts_with("state.") { "counters are read by `limits` here; " } else { "" };
        errors.at(at, format!("is `{}`; {what}write a path into the arguments, such as args.amount", shown(path)));
        return None;
    };
    if path.len() > bounds::EXPRESSION {
        errors.at(at, format!("has {} bytes; a policy holds expressions of {} at most", path.len(), bounds::EXPRESSION));
        return None;
    }
    let (mut there, mut value) = (Vec::new(), "args".to_owned());
    for (depth, step) in steps.split('.').enumerate() {
        let problem = match step {
            "" => "has an empty step",
            "*" => "has the step `*`, which stands for many",
            step if step.contains(['[', ']']) => "has brackets; what stands in a list cannot be named",
            step if step.bytes().all(|b| b.is_ascii_digit()) => "has a number for a step; what stands in a list cannot be named",
            _ => {
                let name = step.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                    && !step.starts_with(|c: char| c.is_ascii_digit())
                    && !["in", "true", "false", "null"].contains(&step);
                if name {
                    value = format!("{value}.{step}");
                    there.push(ConditionPart::Closed(format!("has({value})")));
                } else {
                    // `in` also looks into lists, where the step does not lead anywhere.
                    if depth > 0 {
                        there.push(ConditionPart::Open(format!("type({value}) == map")));
                    }
                    there.push(ConditionPart::Open(format!("{} in {value}", string(step))));
                    value = format!("{value}[{}]", string(step));
                }
                continue;
            }
        };
        errors.at(at, format!("`{}` {problem}", shown(path)));
        return None;
    }
    Some(Place { there, value })
}

struct Builder<'c, 'a> {
    sense: Sense,
    compared: &'c Json<'a>,
    /// The place in the original of what is compared with.
    at: &'c str,
    place: Option<&'c Place>,
}

impl Builder<'_, '_> {
    fn value(&self) -> &str {
        self.place.map_or("args", |place| &place.value)
    }

    fn build(&self, operator: &str, operator_at: &str, errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let value = self.value();
        let holds = match operator {
            "exists" => return self.exists(errors),
            "eq" => self.equal(std::slice::from_ref(self.compared), errors)?,
            "neq" => self.unequal(std::slice::from_ref(self.compared), errors)?,
            "in" => self.equal(self.compared.list(self.at, errors)?, errors)?,
            "not_in" => self.unequal(self.compared.list(self.at, errors)?, errors)?,
            "lt" | "lte" | "gt" | "gte" => {
                if !matches!(self.compared, Json::Number(_)) {
                    errors.at(self.at, format!("is {}; `{operator}` takes a number", self.compared.kind()));
                    return None;
                }
                let sign = match operator {
                    "lt" => "<",
                    "lte" => "<=",
                    "gt" => ">",
                    _ => ">=",
                };
                let compared = ConditionPart::Open(format!("{value} {sign} {}", literal(self.compared, self.at, errors)?));
                self.not_null().into_iter().chain([compared]).collect()
            }
            "regex" => self.matches(errors)?,
            "contains" => self.contains(errors)?,
            other => {
                errors.at(operator_at, format!("is `{}`; there is {OPERATORS}", shown(other)));
                return None;
            }
        };
        Some(self.there().chain(holds).collect())
    }

    fn there(&self) -> impl Iterator<Item = ConditionPart> {
        self.place.into_iter().flat_map(|place| place.there.iter().cloned())
    }

    fn exists(&self, errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let mut there: Vec<ConditionPart> = self.there().collect();
        if self.sense.is_of_proxy() {
            there.push(ConditionPart::Open(format!("{} != null", self.value())));
        }
        match self.compared {
            Json::Bool(true) => Some(there),
            Json::Bool(false) => match there.as_slice() {
                [only] => Some(vec![ConditionPart::Not(Box::new(only.clone()))]),
                _ => Some(vec![ConditionPart::Not(Box::new(ConditionPart::Open(all(&there))))]),
            },
            other => {
                errors.at(self.at, format!("is {}; `exists` takes true or false", other.kind()));
                None
            }
        }
    }

    /// The values to compare with. Go prints some values of other types alike.
    fn alike(&self, these: &[Json<'_>], opposite: bool, errors: &mut Errors) -> Option<Alike> {
        if !self.sense.is_of_proxy() {
            return Alike::new(these, self.at, errors);
        }
        let strings = these.iter().any(|value| matches!(value, Json::String(_)));
        let numbers = these.iter().any(|value| matches!(value, Json::Number(_)));
        // Where all that is alike must be found.
        let twins_count = opposite != self.sense.is_wide();
        let mut twins = Vec::new();
        for (index, value) in these.iter().enumerate() {
            let problem = match value {
                Json::List(_) | Json::Object(_) => "write conditions on texts, numbers and booleans",
                Json::Number(text) if twins_count && strings && text.contains('.') => {
                    "beside texts write a whole number without a point"
                }
                Json::String(text) if twins_count && numbers && is_large_number(text) => {
                    "beside numbers write no text that is a number of 2^53 or more"
                }
                Json::Null => {
                    twins.push(string(PRINTED_NULL));
                    continue;
                }
                Json::String(text) if text == PRINTED_NULL => {
                    twins.push("null".to_owned());
                    continue;
                }
                _ => continue,
            };
            let place = if these.len() == 1 { self.at.to_owned() } else { format!("{}[{index}]", self.at) };
            errors.at(place, format!("is {}, which the original compares as it prints it; {problem}", value.kind()));
            return None;
        }
        let mut alike = Alike::new(these, self.at, errors)?;
        alike.twins.extend(twins);
        Some(alike)
    }

    /// That the value equals one of these.
    fn equal(&self, these: &[Json<'_>], errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let alike = self.alike(these, false, errors)?;
        Some(match self.sense {
            Sense::Surely | Sense::Printed => vec![ConditionPart::Open(alike.surely(self.value()))],
            Sense::Perhaps | Sense::Asks if alike.types.is_empty() => vec![ConditionPart::Open(alike.perhaps(self.value()))],
            Sense::Perhaps | Sense::Asks => vec![ConditionPart::Closed(format!("({})", alike.perhaps(self.value())))],
        })
    }

    /// That the value equals none of these.
    fn unequal(&self, these: &[Json<'_>], errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let alike = self.alike(these, true, errors)?;
        Some(match self.sense {
            Sense::Surely | Sense::Printed => alike.surely_not(self.value()),
            Sense::Perhaps | Sense::Asks => vec![alike.perhaps_not(self.value())],
        })
    }

    fn matches(&self, errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let Json::String(pattern) = self.compared else {
            errors.at(self.at, format!("is {}; `regex` takes a pattern in quotes", self.compared.kind()));
            return None;
        };
        // Both are Go's.
        let matches = format!("{}.matches({})", self.value(), raw_string(pattern));
        if !fits(&matches, self.at, errors) {
            return None;
        }
        if let Err(why) = Expression::compile(&matches) {
            let why = why.trim_start_matches("`matches` has a pattern that ");
            errors.at(self.at, format!("is a pattern that {why}"));
            return None;
        }
        Some(self.not_null().into_iter().chain([ConditionPart::Closed(matches)]).collect())
    }

    /// The part that keeps a null from being an error, which denies or asks: it is no number, text or list in any reading, so it never sets off a
    /// condition on these. Some clients send it for what was left out.
    fn not_null(&self) -> Option<ConditionPart> {
        self.sense.is_wide().then(|| ConditionPart::Open(format!("{} != null", self.value())))
    }

    /// That a string holds the text, or a list the element.
    fn contains(&self, errors: &mut Errors) -> Option<Vec<ConditionPart>> {
        let (value, one) = (self.value(), std::slice::from_ref(self.compared));
        let alike = self.alike(one, false, errors)?;
        let element = literal(self.compared, self.at, errors)?;
        let in_list = match self.sense {
            Sense::Surely | Sense::Printed => format!("type({value}) == list && {element} in {value}"),
            // Anything but a list is an error here, which denies, or asks.
            Sense::Perhaps | Sense::Asks => format!("{value}.exists(x, {})", alike.perhaps("x")),
        };
        let contains = match (self.compared, self.sense) {
            (Json::String(_), _) => {
                ConditionPart::Closed(format!("(type({value}) == string ? {value}.contains({element}) : {in_list})"))
            }
            (_, Sense::Surely | Sense::Printed) => ConditionPart::Open(in_list),
            (_, Sense::Perhaps | Sense::Asks) => ConditionPart::Closed(in_list),
        };
        Some(self.not_null().into_iter().chain([contains]).collect())
    }
}

/// Equality with one of some values.
struct Alike {
    /// The values in CEL.
    exact: Vec<String>,
    /// The values that another reading takes for one of them, where values of several types stand side by side.
    twins: Vec<String>,
    /// The types of values whose equality is beyond doubt.
    types: Vec<&'static str>,
}

impl Alike {
    fn new(these: &[Json<'_>], at: &str, errors: &mut Errors) -> Option<Self> {
        let one = these.len() == 1;
        let mut exact = Vec::new();
        for (index, value) in these.iter().enumerate() {
            let place = if one { at.to_owned() } else { format!("{at}[{index}]") };
            if let Some(text) = literal(value, &place, errors) {
                exact.push(text);
            }
        }
        if exact.len() < these.len() {
            return None;
        }
        let holds = |kind: fn(&Json<'_>) -> bool| these.iter().any(kind);
        let strings = holds(|value| matches!(value, Json::String(_)));
        let numbers = holds(|value| matches!(value, Json::Number(_)));
        let booleans = holds(|value| matches!(value, Json::Bool(_)));
        let mut types: Vec<&'static str> = Vec::new();
        types.extend(numbers.then_some(["int", "uint", "double"]).into_iter().flatten());
        types.extend(strings.then_some("string"));
        types.extend(booleans.then_some("bool"));
        types.extend(holds(|value| matches!(value, Json::List(_))).then_some("list"));
        types.extend(holds(|value| matches!(value, Json::Object(_))).then_some("map"));
        // Where only null is meant, no other value is like it. Otherwise null is surely none of the others.
        if !types.is_empty() {
            types.push("null_type");
        }
        let (mut twins, mut known) = (Vec::new(), exact.iter().cloned().collect::<HashSet<String>>());
        for (value, text) in these.iter().zip(&exact) {
            let twin = match value {
                Json::Number(_) | Json::Bool(_) if strings => string(text),
                Json::String(text) if booleans && (text == "true" || text == "false") => text.clone(),
                Json::String(text) if numbers => match number(text.trim()) {
                    Ok(number) => number,
                    Err(_) => continue,
                },
                _ => continue,
            };
            if known.insert(twin.clone()) {
                twins.push(twin);
            }
        }
        Some(Self { exact, twins, types })
    }

    fn surely(&self, value: &str) -> String {
        one_of(value, self.exact.iter())
    }

    fn perhaps(&self, value: &str) -> String {
        let equal = one_of(value, self.exact.iter().chain(&self.twins));
        if self.types.is_empty() {
            return equal;
        }
        format!("{equal} || !(type({value}) in [{}])", self.types.join(", "))
    }

    fn surely_not(&self, value: &str) -> Vec<ConditionPart> {
        let mut parts = vec![none_of(value, self.exact.iter().chain(&self.twins))];
        if !self.types.is_empty() {
            parts.push(ConditionPart::Open(format!("type({value}) in [{}]", self.types.join(", "))));
        }
        parts
    }

    fn perhaps_not(&self, value: &str) -> ConditionPart {
        none_of(value, self.exact.iter())
    }
}

fn one_of<'a>(value: &str, these: impl Iterator<Item = &'a String>) -> String {
    match these.map(String::as_str).collect::<Vec<_>>().as_slice() {
        [only] => format!("{value} == {only}"),
        many => format!("{value} in [{}]", many.join(", ")),
    }
}

fn none_of<'a>(value: &str, these: impl Iterator<Item = &'a String>) -> ConditionPart {
    match these.map(String::as_str).collect::<Vec<_>>().as_slice() {
        [only] => ConditionPart::Open(format!("{value} != {only}")),
        many => ConditionPart::Not(Box::new(ConditionPart::Open(format!("{value} in [{}]", many.join(", "))))),
    }
}

/// A JSON value in CEL. The reader of the policy bounds how deep this goes.
fn literal(value: &Json<'_>, at: &str, errors: &mut Errors) -> Option<String> {
    match value {
        Json::Null => Some("null".to_owned()),
        Json::Bool(value) => Some(value.to_string()),
        Json::String(text) => Some(string(text)),
        Json::Number(text) => number(text).map_err(|why| errors.at(at, format!("is {}, {why}", shown(text)))).ok(),
        Json::List(items) => {
            let items = items.iter().enumerate().map(|(index, item)| literal(item, &format!("{at}[{index}]"), errors));
            // Collected twice, so that every wrong item is told of.
            let items: Vec<_> = items.collect();
            Some(format!("[{}]", items.into_iter().collect::<Option<Vec<_>>>()?.join(", ")))
        }
        Json::Object(members) => {
            let members = members.iter().map(|(key, value)| {
                literal(value, &super::read::member(at, key), errors).map(|value| format!("{}: {value}", string(key)))
            });
            let members: Vec<_> = members.collect();
            Some(format!("{{{}}}", members.into_iter().collect::<Option<Vec<_>>>()?.join(", ")))
        }
    }
}

fn number(text: &str) -> Result<String, &'static str> {
    let number: f64 = text.parse().map_err(|_| "which is no number")?;
    if number.is_nan() || number.abs() >= EXACT {
        return Err("which is too large to be exact in JSON (2^53 and more); write it as a string");
    }
    if number == 0.0 {
        return Ok("0".to_owned());
    }
    Ok(if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:?}") })
}

/// Returns true if a text is a number that a double does not tell from its neighbours.
fn is_large_number(text: &str) -> bool {
    text.trim().parse::<f64>().is_ok_and(|number| number.abs() >= EXACT)
}

/// A text in CEL.
fn string(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                literal.push('\\');
                literal.push(c);
            }
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            c if is_plain(c) => literal.push(c),
            c => literal.extend(["\\U", &format!("{:08X}", u32::from(c))]),
        }
    }
    literal.push('"');
    literal
}

/// Returns true if a character can be seen, and is what it seems.
fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !turns
}

/// A pattern in CEL, without backslashes before its backslashes where that can be.
fn raw_string(pattern: &str) -> String {
    if pattern.contains('\\') && !pattern.contains('"') && pattern.chars().all(is_plain) {
        format!("r\"{pattern}\"")
    } else {
        string(pattern)
    }
}
