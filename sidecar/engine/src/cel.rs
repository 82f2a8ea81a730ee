//! CEL expressions: compiled once, bounded in cost, and never a reason to let a call through.
//!
//! What bounds the cost: an expression's length and depth, no comprehension inside a comprehension, patterns of `matches` are
//! literals that were compiled beforehand, and arguments of at most [`MAX_VALUES`] values.

use std::{
    borrow::Cow,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, PoisonError, RwLock, Weak},
    thread,
};

use cel::{
    Context, Env, ExecutionError, Program, Value,
    common::{
        ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators::ADD},
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use regex::Regex;
use toolweir_crds::bounds;

use crate::{
    json::{JsonError, Kind, Raw, Reader, same_but_for_case},
    window::Amount,
};

/// How many values the arguments of a call may hold where a policy reads them.
pub const MAX_VALUES: usize = 4096;

/// How deep an expression's tree may be: to evaluate it recurses as deep.
const MAX_DEPTH: usize = 32;

/// The parser gives up at 96 levels, each of which takes up to 170 KB in a build without optimisation.
const PARSER_STACK: usize = 32 << 20;

/// The variables of an expression.
const VARIABLES: [&str; 5] = ["args", "tool", "server", "session", "pod"];
/// Names of types, for `type(x) == string`.
const TYPES: [&str; 10] = ["int", "uint", "double", "string", "bool", "bytes", "list", "map", "null_type", "type"];
const FUNCTIONS: [&str; 13] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "bool", "type", "dyn"];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // Were `matches` there already, as the library has it with the feature `regex`, it would mean the same.
    let _ = cel::add_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>, id = "matches");
    let _ = cel::add_member_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>);
    Arc::new(env)
});

/// The patterns of all expressions that are kept, by their text: functions of the library are given that alone.
static PATTERNS: LazyLock<RwLock<HashMap<String, Weak<Regex>>>> = LazyLock::new(RwLock::default);

/// Compiles a pattern, or finds it among those of other expressions.
fn pattern(text: &str) -> Result<Arc<Regex>, regex::Error> {
    let known = |patterns: &HashMap<String, Weak<Regex>>| patterns.get(text).and_then(Weak::upgrade);
    if let Some(pattern) = known(&PATTERNS.read().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(pattern);
    }
    let pattern = Arc::new(Regex::new(text)?);
    let mut patterns = PATTERNS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(pattern) = known(&patterns) {
        return Ok(pattern);
    }
    patterns.retain(|_, pattern| pattern.strong_count() > 0);
    patterns.insert(text.to_owned(), Arc::downgrade(&pattern));
    Ok(pattern)
}

fn matches(text: &CelString<'_>, of: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let pattern = pattern(of.inner()).map_err(|error| ExecutionError::function_error("matches", error))?;
    Ok(CelBool::from(pattern.is_match(text.inner())))
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    program: Program,
    /// Every name that it could read of the arguments.
    names: Vec<String>,
    reads_arguments: bool,
    /// Its patterns, to keep them.
    _patterns: Vec<Arc<Regex>>,
}

/// A value that expressions see. Texts are those of the request where they stand there as they are.
#[derive(Debug)]
pub struct Data<'a>(Box<dyn Val + 'a>);

/// What an expression sees.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The call's arguments; may be left out for an expression that does not read them.
    pub args: Option<&'a Data<'a>>,
    /// The tool's name.
    pub tool: &'a str,
    /// The server's name in the policy.
    pub server: &'a str,
    /// The MCP session, empty where there is none.
    pub session: &'a str,
    /// The pod that calls.
    pub pod: &'a Data<'a>,
}

impl VariableResolver for Inputs<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let text = |text: &'b str| Some(CowVal::owned(CelString::from(text)));
        match name {
            "args" => self.args.map(|args| CowVal::Borrowed(&*args.0)),
            "tool" => text(self.tool),
            "server" => text(self.server),
            "session" => text(self.session),
            "pod" => Some(CowVal::Borrowed(&*self.pod.0)),
            _ => None,
        }
    }
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, in one line.
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > bounds::EXPRESSION {
            return Err(format!("has {} bytes; at most {} are possible", source.len(), bounds::EXPRESSION));
        }
        // The parser is generated code of another project: neither its need of stack nor a panic must end the program.
        thread::scope(|scope| {
            let parser = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, || Self::parse(source));
            let parsed = parser.map_err(|error| format!("could not be compiled: {error}"))?.join();
            parsed.unwrap_or_else(|_| Err("is no CEL expression".to_owned()))
        })
    }

    fn parse(source: &str) -> Result<Self, String> {
        let program = Program::compile(source).map_err(|errors| {
            let why = errors.to_string();
            if why.contains("Recursion limit") { too_deep() } else { format!("is no CEL expression: {}", one_line(&why)) }
        })?;
        let mut walk = Walk::default();
        walk.expression(&program.expression().expr)?;
        let Walk { names, reads_arguments, patterns, .. } = walk;
        Ok(Self { program, names, reads_arguments, _patterns: patterns })
    }

    /// The names that it could read of the arguments.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it reads the arguments at all.
    pub fn reads_arguments(&self) -> bool {
        self.reads_arguments
    }

    fn evaluate(&self, inputs: &Inputs<'_>) -> Result<Value, String> {
        catch_unwind(AssertUnwindSafe(|| {
            let mut context = Context::with_env(Arc::clone(&ENV));
            context.set_variable_resolver(inputs);
            self.program.execute(&context).map_err(|error| one_line(&error.to_string()))
        }))
        .unwrap_or_else(|_| Err("could not be evaluated".to_owned()))
    }

    /// Whether a condition holds.
    ///
    /// # Errors
    /// It failed or is not a boolean; the caller denies.
    pub fn holds(&self, inputs: &Inputs<'_>) -> Result<bool, String> {
        match self.evaluate(inputs)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(format!("is a {:?}, not true or false", other.type_of())),
        }
    }

    /// What a call costs.
    ///
    /// # Errors
    /// It failed, is negative or not a number; the caller denies.
    pub fn cost(&self, inputs: &Inputs<'_>) -> Result<Amount, String> {
        #[expect(clippy::cast_precision_loss, reason = "integers this large are over any maximum")]
        let number = match self.evaluate(inputs).map_err(not_evaluated)? {
            Value::Int(number) => number as f64,
            Value::UInt(number) => number as f64,
            Value::Float(number) => number,
            other => return Err(format!("is a {:?}, not a number", other.type_of())),
        };
        Amount::cost(number).ok_or_else(|| "is negative or not a number".to_owned())
    }

    /// The value that gets a count of its own, as a text that no other value has.
    ///
    /// # Errors
    /// It failed or is a value that cannot be a key; the caller denies.
    pub fn key(&self, inputs: &Inputs<'_>) -> Result<String, String> {
        fn write(value: &Value, text: &mut String) -> Result<(), String> {
            match value {
                Value::String(inner) => text.push_str(&format!("{inner:?}")),
                Value::Int(inner) => text.push_str(&inner.to_string()),
                Value::UInt(inner) => text.push_str(&inner.to_string()),
                // 1.0 and 1 are one key, as they are equal in CEL; so are -0.0 and 0, whose sum is 0.
                Value::Float(inner) => text.push_str(&(inner + 0.0).to_string()),
                Value::Bool(inner) => text.push_str(&inner.to_string()),
                Value::Null => text.push_str("null"),
                Value::List(items) => {
                    text.push('[');
                    for item in items.iter() {
                        write(item, text)?;
                        text.push(',');
                    }
                    text.push(']');
                }
                other => return Err(format!("is a {:?}, which cannot be a key", other.type_of())),
            }
            Ok(())
        }
        let mut text = String::new();
        write(&self.evaluate(inputs).map_err(not_evaluated)?, &mut text)?;
        Ok(text)
    }
}

fn too_deep() -> String {
    format!("nests deeper than {MAX_DEPTH} levels; write two validations")
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn not_evaluated(why: String) -> String {
    format!("could not be evaluated: {why}")
}

/// An error of another project's parser as one line of bounded length: it may quote what was parsed, whatever stood there.
pub fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect()
}

/// Checks an expression's tree and collects the names in it.
#[derive(Default)]
struct Walk<'a> {
    names: Vec<String>,
    scope: Vec<&'a str>,
    inside_comprehension: bool,
    depth: usize,
    reads_arguments: bool,
    patterns: Vec<Arc<Regex>>,
}

impl<'a> Walk<'a> {
    fn expression(&mut self, expr: &'a Expr) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(too_deep());
        }
        self.depth += 1;
        self.inner(expr)?;
        self.depth -= 1;
        Ok(())
    }

    fn inner(&mut self, expr: &'a Expr) -> Result<(), String> {
        match expr {
            Expr::Unspecified => return Err("is empty".to_owned()),
            Expr::Ident(name) => {
                let name = name.as_str();
                self.reads_arguments |= name == "args";
                if !VARIABLES.contains(&name) && !TYPES.contains(&name) && !self.scope.contains(&name) {
                    return Err(format!("`{name}` is no variable; there are {}", VARIABLES.join(", ")));
                }
            }
            Expr::Literal(LiteralValue::String(text)) => self.names.push(text.inner().to_owned()),
            Expr::Literal(_) => {}
            Expr::Select(select) => {
                self.names.push(select.field.clone());
                self.expression(&select.operand.expr)?;
            }
            Expr::List(list) => {
                for item in &list.elements {
                    self.expression(&item.expr)?;
                }
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.expression(&entry.key.expr)?;
                        self.expression(&entry.value.expr)?;
                    }
                }
            }
            Expr::Struct(value) => return Err(format!("`{}` is no type that can be made; use a map", value.type_name)),
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if name.starts_with(|c: char| c.is_ascii_alphabetic()) && !FUNCTIONS.contains(&name) {
                    return Err(format!(
                        "`{name}` is no function; there are {} and the macros has, all, exists, exists_one, map, filter",
                        FUNCTIONS.join(", ")
                    ));
                }
                if name == "matches" {
                    self.pattern(call.args.last().map(|arg| &arg.expr))?;
                }
                if name == ADD && self.inside_comprehension && !self.is_bounded_sum(&call.args) {
                    return Err("adds up inside a comprehension, which can make values without a bound; compare with a subtraction, or write two validations".to_owned());
                }
                if let Some(target) = &call.target {
                    self.expression(&target.expr)?;
                }
                for arg in &call.args {
                    self.expression(&arg.expr)?;
                }
            }
            Expr::Comprehension(inner) => {
                if self.inside_comprehension {
                    return Err("has a comprehension (all, exists, exists_one, map, filter) inside another, whose cost has no bound; write two validations".to_owned());
                }
                self.expression(&inner.iter_range.expr)?;
                self.expression(&inner.accu_init.expr)?;
                let outside = self.scope.len();
                self.scope.extend([inner.iter_var.as_str(), inner.accu_var.as_str()]);
                self.scope.extend(inner.iter_var2.as_deref());
                self.inside_comprehension = true;
                let body = [&inner.loop_cond, &inner.loop_step, &inner.result]
                    .into_iter()
                    .try_for_each(|part| self.expression(&part.expr));
                self.inside_comprehension = false;
                self.scope.truncate(outside);
                body?;
            }
        }
        Ok(())
    }

    /// Whether a sum inside a comprehension is no larger than what goes into it and the expression together: one with a
    /// literal, or the step of `filter` and `map` that keeps a part of the list.
    fn is_bounded_sum(&self, operands: &[IdedExpr]) -> bool {
        let part = |expr: &Expr| {
            let mut at = expr;
            while let Expr::Select(select) = at {
                at = &select.operand.expr;
            }
            // The element alone: another variable would be kept once for each.
            matches!(at, Expr::Ident(name) if self.scope.contains(&name.as_str()) && !VARIABLES.contains(&name.as_str()))
        };
        let step = |expr: &Expr| matches!(expr, Expr::List(list) if list.elements.iter().all(|item| part(&item.expr)) && list.elements.len() == 1);
        operands.iter().any(|operand| matches!(operand.expr, Expr::Literal(_)))
            || matches!(operands, [sum, item] if part(&sum.expr) && step(&item.expr))
    }

    fn pattern(&mut self, text: Option<&Expr>) -> Result<(), String> {
        let Some(Expr::Literal(LiteralValue::String(text))) = text else {
            return Err("`matches` takes a pattern in quotes; a pattern that a call brings has no bound on its cost".to_owned());
        };
        let compiled = pattern(text.inner())
            .map_err(|error| format!("`matches` has a pattern that does not compile: {}", one_line(&error.to_string())))?;
        self.patterns.push(compiled);
        Ok(())
    }
}

/// Why arguments cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Not what two parsers read alike.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A key stands twice in one object.
    #[error("repeats the key `{0}` in an object")]
    Repeated(String),
    /// A key differs from one that the policy reads in case alone.
    #[error("has the key `{0}`, which differs from `{1}` in case alone")]
    Case(String, String),
    /// A key holds a NUL.
    #[error("has a key with a NUL character")]
    Nul,
    /// More than [`MAX_VALUES`] values.
    #[error("holds more than {MAX_VALUES} values, which is more than a policy reads")]
    TooMany,
    /// Not an object.
    #[error("is not an object")]
    NotAnObject,
}

/// Reads a call's arguments for expressions that read `names` of them; absent ones are an empty object.
pub fn arguments<'a, N: AsRef<str>>(raw: Option<Raw<'a>>, names: &[N]) -> Result<Data<'a>, ArgumentsError> {
    match raw.map(|raw| (raw, raw.kind())) {
        Some((raw, Kind::Object)) => value(&mut raw.reader(), names, &mut MAX_VALUES.clone()).map(Data),
        // Left out and null are the same to every server.
        None | Some((_, Kind::Null)) => Ok(Data(Box::new(CelMap::default()))),
        Some(_) => Err(ArgumentsError::NotAnObject),
    }
}

fn value<'a, N: AsRef<str>>(reader: &mut Reader<'a>, names: &[N], left: &mut usize) -> Result<Box<dyn Val + 'a>, ArgumentsError> {
    *left = left.checked_sub(1).ok_or(ArgumentsError::TooMany)?;
    Ok(match reader.peek()? {
        Kind::Object => {
            let mut map: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = HashMap::new();
            reader.object::<ArgumentsError>(|reader, raw_key| {
                let key: Cow<'a, str> = raw_key.string()?.unwrap_or_default();
                if key.contains('\0') {
                    return Err(ArgumentsError::Nul);
                }
                if let Some(known) = names.iter().map(AsRef::as_ref).find(|known| *known != key && same_but_for_case(known, &key))
                {
                    return Err(ArgumentsError::Case(shorten(&key), known.to_owned()));
                }
                let inner = value(reader, names, left)?;
                if map.insert(CelMapKey::String(key.into()), inner).is_some() {
                    return Err(ArgumentsError::Repeated(shorten(&raw_key.string()?.unwrap_or_default())));
                }
                Ok(())
            })?;
            Box::new(CelMap::from(map))
        }
        Kind::Array => {
            let mut items: Vec<Box<dyn Val + 'a>> = Vec::new();
            reader.array::<ArgumentsError>(|reader| {
                items.push(value(reader, names, left)?);
                Ok(())
            })?;
            Box::new(CelList::from(items))
        }
        Kind::String => Box::new(CelString::from(reader.value()?.string()?.unwrap_or_default())),
        Kind::Number => {
            let text = reader.value()?.as_str();
            if let Ok(number) = text.parse::<i64>() {
                Box::new(CelInt::from(number))
            } else if let Ok(number) = text.parse::<u64>() {
                Box::new(CelUInt::from(number))
            } else {
                Box::new(CelDouble::from(text.parse().unwrap_or(f64::NAN)))
            }
        }
        Kind::Bool => Box::new(CelBool::from(reader.value()?.as_str() == "true")),
        Kind::Null => {
            reader.value()?;
            Box::new(CelNull)
        }
    })
}

fn shorten(key: &str) -> String {
    key.chars().take(40).collect()
}

/// The `pod` variable.
pub fn pod(name: &str, namespace: &str, service_account: &str) -> Data<'static> {
    let field = |key: &'static str, text: &str| {
        let text: Box<dyn Val> = Box::new(CelString::from(text.to_owned()));
        (CelMapKey::from(key), text)
    };
    let fields = [field("name", name), field("namespace", namespace), field("serviceAccount", service_account)];
    Data(Box::new(CelMap::from(HashMap::from(fields))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Data<'_>, ArgumentsError> {
        let raw = Reader::new(text.as_bytes()).unwrap().value().unwrap();
        arguments(Some(raw), &["amount"])
    }

    fn holds(source: &str, text: &str) -> Result<bool, String> {
        let (args, pod) = (args(text).unwrap(), pod("p", "agents", "default"));
        let inputs = Inputs { args: Some(&args), tool: "pay", server: "bank", session: "s", pod: &pod };
        Expression::compile(source).unwrap().holds(&inputs)
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
        assert!(holds("args.amount", text).unwrap_err().contains("not true or false"));
        assert!(holds("args.amount / 0 == 1", text).is_err());
    }

    #[test]
    fn what_does_not_compile_says_why() {
        for (source, why) in [
            ("args.amount <=", "no CEL"),
            ("arg.amount == 1", "`arg` is no variable"),
            ("args.a.all(x, args.b.all(y, x == y))", "inside another"),
            ("args.a.matches(args.b)", "pattern in quotes"),
            ("args.a.matches('(')", "does not compile"),
            ("frobnicate(args.a)", "no function"),
            ("args.a.map(x, args.s + x)", "adds up"),
            ("args.a.all(x, size(args.s + args.s) > 0)", "adds up"),
            ("args.a.map(x, args.s).size() > 0", "adds up"),
            ("max(args.a, 1) == 1", "no function"),
            ("'\u{1}\t' #\u{8}", "no CEL"),
            ("args.a.matches('\u{8}(')", "does not compile"),
            ("", "no CEL"),
            ("Foo{a: 1}", "no type"),
        ] {
            let error = Expression::compile(source).unwrap_err();
            assert!(error.contains(why), "{source}: {error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn arguments_mean_one_thing_or_are_refused() {
        let args = |text: &str| args(text).map(|_| ());
        assert_eq!(args(r#"{"a":1,"a":2}"#), Err(ArgumentsError::Repeated("a".into())));
        assert_eq!(args(r#"{"a":1,"\u0061":2}"#), Err(ArgumentsError::Repeated("a".into())));
        assert!(matches!(args(r#"{"Amount":1}"#), Err(ArgumentsError::Case(..))));
        assert_eq!(args(r#"{"a\u0000b":1}"#), Err(ArgumentsError::Nul));
        assert!(matches!(args(r#"{"a":"\ud800"}"#), Err(ArgumentsError::Json(_))));
        assert_eq!(args("[1]"), Err(ArgumentsError::NotAnObject));
        assert_eq!(args(&format!("{{\"a\":[{}1]}}", "1,".repeat(5000))), Err(ArgumentsError::TooMany));
        assert!(args("null").is_ok());
    }

    #[test]
    fn keys_are_told_apart_and_costs_counted() {
        let (args, pod) = (args(r#"{"a": "1", "b": 1, "c": 1.0, "n": -2, "f": 2.5, "m": {}}"#).unwrap(), pod("", "", ""));
        let inputs = Inputs { args: Some(&args), tool: "", server: "", session: "", pod: &pod };
        let key = |source: &str| Expression::compile(source).unwrap().key(&inputs);
        assert_ne!(key("args.a"), key("args.b"));
        assert_eq!(key("args.b"), key("args.c"));
        assert_ne!(key("[args.a, args.b]"), key("[args.b, args.a]"));
        assert!(key("args.m").is_err());
        let cost = |source: &str| Expression::compile(source).unwrap().cost(&inputs);
        assert_eq!(cost("args.f"), Ok(Amount::cost(2.5).unwrap()));
        assert!(cost("args.n").is_err() && cost("args.a").is_err() && cost("args.zzz").is_err());
    }
}
