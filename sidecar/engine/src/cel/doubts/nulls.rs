//! Conditions that pass where an argument is left out, and not where it is null.
//!
//! `has` is true of a null, and some clients send a null for every optional argument that was left out. So an expression is
//! evaluated in the abstract in two scenarios: in one the argument is missing, in the other it is null. Nothing else is known in either.

use std::collections::BTreeSet;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators};

use super::{
    tree::{for_each_part, member, path},
    usage::ExpressionUse,
};
use crate::cel::check::TYPES;

/// The kinds of values that are possible, as a set.
type Kinds = u8;
const TRUE: Kinds = 1;
const FALSE: Kinds = 2;
const NULL: Kinds = 4;
const OTHER: Kinds = 8;
const FAILS: Kinds = 16;
const BOOL: Kinds = TRUE | FALSE;
const ANY: Kinds = BOOL | NULL | OTHER | FAILS;

/// Operators and functions that take no null and give a boolean.
const TO_BOOL: [&str; 9] = [
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "bool",
];
/// Operators and functions that take no null and give another value.
const TO_OTHER: [&str; 12] = [
    operators::ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
    "size",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
];

/// The number of arguments that are examined, so that this takes little time next to parsing.
const MOST: usize = 16;

/// An argument that an expression asks for with `has` and then reads.
#[derive(Debug)]
pub struct Trap {
    /// The argument.
    pub path: String,
    /// The text of the check for its presence.
    asked: String,
    /// True if its absence is one side of `||`.
    or_missing: bool,
    missing: Kinds,
    null: Kinds,
}

impl Trap {
    /// Returns the doubt, if a call passes without the argument and not with a null.
    pub fn doubt(&self, used: ExpressionUse) -> Option<String> {
        let good = match used {
            ExpressionUse::Condition => TRUE,
            ExpressionUse::Approval => FALSE,
            // It decides nothing.
            ExpressionUse::Shown => return None,
            ExpressionUse::Key => BOOL | NULL | OTHER,
            ExpressionUse::Cost => OTHER,
        };
        if self.missing & good == 0 || self.null & good != 0 {
            return None;
        }
        let Self { path, asked, .. } = self;
        let write = if self.or_missing {
            format!("`!{asked} || {path} == null || ...`")
        } else {
            format!("`({asked} && {path} != null)` for `{asked}`")
        };
        let then = if used == ExpressionUse::Approval { "asks a person about" } else { "denies" };
        Some(format!(
            "lets a call without `{path}` pass and {then} one with a null there, which some clients send for what is left out: \
             `{asked}` is true of it; write {write}"
        ))
    }
}

/// Finds the arguments that may be missing and must not be null.
pub fn traps(tree: &Expr) -> Vec<Trap> {
    let mut uses = ArgumentUses::default();
    uses.visit(tree);
    let read = |(path, text, or_missing): (String, String, bool)| {
        if !uses.read.contains(&path) || uses.compared.contains(&path) {
            return None;
        }
        let kinds = |missing| Scenario { path: &path, missing }.value(tree).kinds;
        let (missing, null) = (kinds(true), kinds(false));
        Some(Trap { path, asked: text, or_missing, missing, null })
    };
    uses.present.into_iter().take(MOST).filter_map(read).collect()
}

/// Returns the argument whose presence an expression checks, and the text of the check.
fn presence(at: &Expr) -> Option<(String, String)> {
    let is_argument = |path: &String| path.starts_with("args.") || path.starts_with("args[");
    match at {
        Expr::Select(select) if select.test => {
            let path = format!("{}.{}", path(&select.operand.expr)?, select.field);
            is_argument(&path).then(|| (path.clone(), format!("has({path})")))
        }
        Expr::Call(call) if call.func_name == operators::IN => {
            let [key, of] = &*call.args else { return None };
            let Expr::Literal(LiteralValue::String(key)) = &key.expr else { return None };
            let of = path(&of.expr)?;
            let path = member(&of, key.inner());
            is_argument(&path).then(|| (path, format!("('{}' in {of})", key.inner().escape_debug())))
        }
        _ => None,
    }
}

/// The ways in which an expression uses arguments.
#[derive(Default)]
struct ArgumentUses {
    present: Vec<(String, String, bool)>,
    read: BTreeSet<String>,
    /// The arguments that are compared with null.
    compared: BTreeSet<String>,
}

impl ArgumentUses {
    fn present(&mut self, at: &Expr, or_missing: bool) {
        let Some((path, text)) = presence(at) else { return };
        match self.present.iter_mut().find(|(known, ..)| *known == path) {
            Some((_, _, known)) => *known |= or_missing,
            None => self.present.push((path, text, or_missing)),
        }
    }

    fn call(&mut self, call: &CallExpr) {
        match (call.func_name.as_str(), &*call.args) {
            (operators::LOGICAL_OR, sides) => {
                for side in sides {
                    match &side.expr {
                        Expr::Call(not) if not.func_name == operators::LOGICAL_NOT => {
                            not.args.iter().for_each(|asked| self.present(&asked.expr, true));
                        }
                        _ => {}
                    }
                }
            }
            (operators::EQUALS | operators::NOT_EQUALS, [a, b]) => {
                for (one, other) in [(a, b), (b, a)] {
                    if matches!(other.expr, Expr::Literal(LiteralValue::Null)) {
                        self.compared.extend(path(&one.expr));
                    }
                }
            }
            _ => {}
        }
    }

    fn visit(&mut self, at: &Expr) {
        self.read.extend(path(at));
        match at {
            Expr::Select(_) => self.present(at, false),
            Expr::Call(call) => {
                self.present(at, false);
                self.call(call);
            }
            _ => {}
        }
        for_each_part(at, |part| self.visit(part));
    }
}

/// The kinds that a value can have; for a type, its name.
#[derive(Clone, Copy)]
struct Value {
    kinds: Kinds,
    names: Option<&'static str>,
}

impl From<Kinds> for Value {
    fn from(kinds: Kinds) -> Self {
        Self { kinds, names: None }
    }
}

/// One of the two scenarios.
struct Scenario<'a> {
    path: &'a str,
    missing: bool,
}

impl Scenario<'_> {
    fn value(&self, at: &Expr) -> Value {
        if let Some((path, _)) = presence(at)
            && (path == self.path || self.is_above(&path))
        {
            // What should hold the argument is there in both scenarios.
            return if self.missing && path == self.path { FALSE } else { TRUE }.into();
        }
        if let Some(path) = path(at) {
            if path == self.path {
                return if self.missing { FAILS } else { NULL }.into();
            }
            if self.is_above(&path) {
                return OTHER.into();
            }
        }
        match at {
            Expr::Literal(LiteralValue::Boolean(value)) => if *value.inner() { TRUE } else { FALSE }.into(),
            Expr::Literal(LiteralValue::Null) => NULL.into(),
            Expr::Literal(_) => OTHER.into(),
            Expr::Ident(name) => match TYPES.iter().find(|known| *known == name) {
                Some(name) => Value { kinds: OTHER, names: Some(name) },
                None if name == "args" => OTHER.into(),
                None => (ANY & !FAILS).into(),
            },
            Expr::Select(select) => {
                let found = if select.test { BOOL } else { ANY };
                inside(self.value(&select.operand.expr).kinds, found).into()
            }
            Expr::List(list) => self.made(list.elements.iter().map(|item| &item.expr)).into(),
            Expr::Map(map) => {
                let parts = map.entries.iter().filter_map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => Some([&entry.key.expr, &entry.value.expr]),
                    EntryExpr::StructField(_) => None,
                });
                self.made(parts.flatten()).into()
            }
            Expr::Comprehension(of) => inside(self.value(&of.iter_range.expr).kinds, ANY).into(),
            Expr::Call(call) => self.call(call),
            Expr::Unspecified | Expr::Struct(_) => ANY.into(),
        }
    }

    /// Returns true if the argument is a part of the value with this path.
    fn is_above(&self, path: &str) -> bool {
        self.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']))
    }

    /// Returns the kinds of a list or map of these parts.
    fn made<'e>(&self, parts: impl Iterator<Item = &'e Expr>) -> Kinds {
        strictly(parts.map(|part| self.value(part).kinds), ANY, OTHER)
    }

    fn call(&self, call: &CallExpr) -> Value {
        let kinds = |at: usize| call.args.get(at).map_or(ANY, |arg| self.value(&arg.expr).kinds);
        let all = || call.target.iter().map(|target| &target.expr).chain(call.args.iter().map(|arg| &arg.expr));
        let each = || all().map(|part| self.value(part).kinds);
        // A null is no operand of these.
        let of = |found: Kinds| strictly(each(), BOOL | OTHER, found | FAILS).into();
        match call.func_name.as_str() {
            operators::LOGICAL_NOT => not(kinds(0)).into(),
            operators::LOGICAL_AND => decided(kinds(0), kinds(1), false).into(),
            operators::LOGICAL_OR => decided(kinds(0), kinds(1), true).into(),
            operators::CONDITIONAL => {
                let (asked, mut found) = (kinds(0), 0);
                for (answer, at) in [(TRUE, 1), (FALSE, 2)] {
                    found |= if asked & answer == 0 { 0 } else { kinds(at) };
                }
                (found | if asked & !BOOL == 0 { 0 } else { FAILS }).into()
            }
            operators::EQUALS | operators::NOT_EQUALS => match &*call.args {
                [a, b] => {
                    let same = equal(self.value(&a.expr), self.value(&b.expr));
                    if call.func_name == operators::EQUALS { same } else { not(same) }.into()
                }
                _ => ANY.into(),
            },
            operators::IN => self.contained(call).into(),
            operators::INDEX => strictly(each(), OTHER, ANY).into(),
            name if TO_BOOL.contains(&name) => of(BOOL),
            name if TO_OTHER.contains(&name) => of(OTHER),
            "type" => {
                let asked = kinds(0);
                let names = match asked & !FAILS {
                    NULL => Some("null_type"),
                    TRUE | FALSE | BOOL => Some("bool"),
                    _ => None,
                };
                let kinds = asked & FAILS | if asked & !FAILS == 0 { 0 } else { OTHER };
                Value { kinds, names }
            }
            "dyn" => kinds(0).into(),
            _ => ANY.into(),
        }
    }

    fn contained(&self, call: &CallExpr) -> Kinds {
        let [item, of] = &*call.args else { return ANY };
        let item = self.value(&item.expr);
        let Expr::List(list) = &of.expr else {
            return strictly([item.kinds, self.value(&of.expr).kinds & !NULL].into_iter(), ANY, BOOL | FAILS);
        };
        let each: Vec<Kinds> = list.elements.iter().map(|one| equal(item, self.value(&one.expr))).collect();
        let some = |kind: Kinds| each.iter().any(|same| same & kind != 0);
        let surely = each.contains(&TRUE);
        let not = if surely || each.iter().any(|same| same & FALSE == 0) { 0 } else { FALSE };
        let fails = item.kinds & FAILS | if some(FAILS) { FAILS } else { 0 };
        if item.kinds == FAILS { FAILS } else { fails | not | if some(TRUE) { TRUE } else { 0 } }
    }
}

/// Returns the kinds of a member of a value. Only a value that is neither null nor a boolean has members.
fn inside(holder: Kinds, found: Kinds) -> Kinds {
    (if holder & OTHER == 0 { 0 } else { found }) | if holder & !OTHER == 0 { 0 } else { FAILS }
}

/// Returns the kinds of the result of an operation each of whose parts must be one of `taken`.
fn strictly(parts: impl Iterator<Item = Kinds>, taken: Kinds, found: Kinds) -> Kinds {
    let (mut fits, mut fails) = (true, false);
    for part in parts {
        fits &= part & taken & !FAILS != 0;
        fails |= part & (FAILS | !taken) != 0;
    }
    (if fits { found } else { 0 }) | if fails { FAILS } else { 0 }
}

fn equal(a: Value, b: Value) -> Kinds {
    let mut same = (a.kinds | b.kinds) & FAILS;
    for one in [TRUE, FALSE, NULL, OTHER].into_iter().filter(|one| a.kinds & one != 0) {
        for other in [TRUE, FALSE, NULL, OTHER].into_iter().filter(|other| b.kinds & other != 0) {
            same |= match (one == other, a.names, b.names) {
                (false, ..) => FALSE,
                (true, Some(a), Some(b)) if a != b => FALSE,
                (true, Some(_), Some(_)) => TRUE,
                (true, ..) if one == OTHER => BOOL,
                (true, ..) => TRUE,
            };
        }
    }
    same
}

/// Returns the booleans among these kinds; `None` stands for all others, which fail.
fn truths(kinds: Kinds) -> impl Iterator<Item = Option<bool>> {
    let each = [(TRUE, Some(true)), (FALSE, Some(false)), (!BOOL, None)];
    each.into_iter().filter(move |(kind, _)| kinds & kind != 0).map(|(_, truth)| truth)
}

fn kind_of(truth: Option<bool>) -> Kinds {
    match truth {
        Some(true) => TRUE,
        Some(false) => FALSE,
        None => FAILS,
    }
}

fn not(kinds: Kinds) -> Kinds {
    truths(kinds).fold(0, |found, truth| found | kind_of(truth.map(|holds| !holds)))
}

/// Returns the kinds of `&&` or `||`: a side that is `by` decides, regardless of the other.
fn decided(a: Kinds, b: Kinds, by: bool) -> Kinds {
    let mut found = 0;
    for one in truths(a) {
        for other in truths(b) {
            let decides = one == Some(by) || other == Some(by);
            found |= kind_of(if decides { Some(by) } else { one.and(other) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::cel::{Expression, ExpressionUse, Inputs, arguments, pod, work::Meter};

    #[test]
    fn what_passes_without_an_argument_and_not_with_a_null_is_told() {
        for (source, write) in [
            ("!has(args.x) || args.x <= 5", "`!has(args.x) || args.x == null || ...`"),
            ("args.x <= 5 || !has(args.x)", "`!has(args.x) || args.x == null || ...`"),
            ("!has(args.x) || args.x in ['a', 'b']", "`!has(args.x) || args.x == null || ...`"),
            ("!has(args.x) || args.x == 'a' || args.x.startsWith('b')", "`!has(args.x) || args.x == null || ...`"),
            ("!has(args.x) || (type(args.x) == list && size(args.x) <= 3)", "`!has(args.x) || args.x == null || ...`"),
            ("!('x-y' in args) || args['x-y'].matches('^a')", "`!('x-y' in args) || args['x-y'] == null || ...`"),
            ("has(args.x) ? args.x <= 5 : true", "`(has(args.x) && args.x != null)` for `has(args.x)`"),
            ("!(has(args.x) && args.x > 5)", "`(has(args.x) && args.x != null)` for `has(args.x)`"),
            ("(!has(args.x) || args.x <= 5) && args.y > 3", "`!has(args.x) || args.x == null || ...`"),
            ("!has(args.a.b) || args.a.b + 1.5 < 9.0", "`!has(args.a.b) || args.a.b == null || ...`"),
            ("!has(args.x) || args.x.all(i, i < 5)", "`!has(args.x) || args.x == null || ...`"),
            ("!has(args.x) || args.x.y == 5", "`!has(args.x) || args.x == null || ...`"),
        ] {
            let told = Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]);
            let told = told.iter().filter(|doubt| doubt.ends_with(&format!("; write {write}"))).count();
            assert_eq!(told, 1, "{source}: {:?}", Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]));
        }
    }

    #[test]
    fn what_is_meant_so_or_passes_with_a_null_is_not() {
        for source in [
            "!has(args.x) || args.x == null || args.x <= 5",
            "!has(args.x) || (args.x != null && args.x <= 5)",
            "!(has(args.x) && args.x != null && args.x > 5)",
            "has(args.x) && args.x <= 5",
            "args.x <= 5",
            "!has(args.x)",
            "has(args.x) && has(args.x.y)",
            "!has(args.x) || args.x != 'forbidden'",
            "!has(args.x) || type(args.x) in [null_type, int]",
            "!has(args.x) || args.y <= 5",
            "has(args.x) || args.y == 1",
            "(has(args.x) ? args.x : 5) == 5 && has(args.x)",
            "'x' in args",
        ] {
            assert_eq!(
                Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]),
                Vec::<String>::new(),
                "{source}"
            );
        }
        let told = |source: &str, used| Expression::compile(source).unwrap().doubts(used, &[]).len();
        assert_eq!(told("has(args.n) ? args.n : 1", ExpressionUse::Cost), 1);
        assert_eq!(told("has(args.n) && args.n != null ? args.n : 1", ExpressionUse::Cost), 0);
        assert_eq!(told("has(args.n) ? args.n : ''", ExpressionUse::Key), 0);
        assert_eq!(told("has(args.n) ? args.n + '!' : ''", ExpressionUse::Key), 1);
    }

    /// The kinds found for a scenario agree with the evaluation in it.
    #[test]
    fn a_null_fails_where_it_is_said_to_fail() {
        let holds = |source: &str, text: &str| {
            let raw = crate::json::Reader::new(text.as_bytes()).unwrap().value().unwrap();
            let (args, pod) = (arguments(Some(raw), &Meter::default()).unwrap(), pod("", "", ""));
            let inputs = Inputs { args: Some(&args), name: "", server: "", session: "", pod: &pod };
            Expression::compile(source).unwrap().holds(&inputs, &Meter::default()) == Ok(true)
        };
        for part in [
            "args.x < 5",
            "args.x >= 'a'",
            "size(args.x) == 0",
            "args.x.contains('a')",
            "args.x.matches('a')",
            "args.x + 1 == 1",
            "args.x % 2 == 0",
            "-args.x == 0",
            "int(args.x) == 0",
            "double(args.x) == 0.0",
            "string(args.x) == ''",
            "args.x in ['a']",
            "'a' in args.x",
            "args.x == 'a'",
            "args.x != 'a'",
            "args.x.y == 1",
            "has(args.x.y)",
            "args.x[0] == 1",
            "args.x.all(i, true)",
            "args.x.exists(i, false) || true",
            "type(args.x) == list",
            "type(args.x) == null_type",
            "args.x ? true : false",
            "!args.x",
            "args.x == null",
            "dyn(args.x) == 1",
            "[args.x] == [null]",
            "{'a': args.x}.a != null",
        ] {
            let source = format!("!has(args.x) || {part}");
            assert!(holds(&source, "{}"), "{source}");
            let told = Expression::compile(&source).unwrap().doubts(ExpressionUse::Condition, &[]);
            let trap = told.iter().any(|doubt| doubt.starts_with("lets a call without `args.x` pass"));
            // What may pass for all that is known is not told.
            let passes = holds(&source, r#"{"x": null}"#);
            assert!(!trap || !passes, "{source}");
            let clear = !part.starts_with('[') && !part.starts_with('{') && !part.contains("== null");
            assert!(trap != passes || !clear, "{source}");
        }
    }
}
