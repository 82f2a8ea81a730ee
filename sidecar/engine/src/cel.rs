//! CEL expressions: compiled once, bounded in cost, and never a reason to let a call through.
//!
//! What bounds the cost: an expression's length and depth, and the length of all of a policy; no comprehension inside a
//! comprehension; patterns of `matches` are literals that were compiled beforehand, in bounded room ([`pattern`]); arguments of at
//! most [`MAX_VALUES`] values; and a budget for each decision ([`work`]).

mod doubts;
mod metered;
mod operators;
mod pattern;
pub mod work;

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use cel::{
    Context, Program, Value,
    common::{
        ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators::ADD},
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use smallvec::SmallVec;
use toolweir_crds::bounds;

use self::{
    operators::ENV,
    pattern::Pattern,
    work::{Meter, Spent, units},
};
use crate::{
    case::folded,
    json::{JsonError, Kind, Raw, Reader},
    window::Amount,
};

/// How many values the arguments of a call may hold where a policy reads them.
pub const MAX_VALUES: usize = 4096;

/// How deep an expression's tree may be: to evaluate it recurses as deep.
const MAX_DEPTH: usize = 32;

/// The parser gives up at 96 levels, each of which takes up to 170 KB in a build without optimisation.
const PARSER_STACK: usize = 32 << 20;

/// The bytes of all expressions of a policy; each counts as [`LEAST`] at least. To parse as many takes about a second.
const EXPRESSIONS: usize = 256 << 10;
/// What the shortest expression counts as.
const LEAST: usize = 64;

/// The variables of an expression.
const VARIABLES: [&str; 5] = ["args", "tool", "server", "session", "pod"];
/// Names of types, for `type(x) == string`.
const TYPES: [&str; 10] = ["int", "uint", "double", "string", "bool", "bytes", "list", "map", "null_type", "type"];
const FUNCTIONS: [&str; 13] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "bool", "type", "dyn"];

/// What the expressions of one policy may still take to compile.
#[derive(Debug)]
pub struct Room {
    expressions: usize,
    patterns: usize,
    /// The patterns that are in it.
    known: HashMap<String, Arc<Pattern>>,
}

impl Default for Room {
    fn default() -> Self {
        Self { expressions: EXPRESSIONS, patterns: pattern::POLICY, known: HashMap::new() }
    }
}

/// Why an expression gives no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The decision's budget is spent.
    Spent,
    /// It failed, or its value is not what is wanted.
    Failed(String),
}

impl From<Spent> for Failure {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spent => f.write_str("takes more work than a call is given"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    tree: IdedExpr,
    /// What it costs to evaluate it, but for what is charged meanwhile.
    cost: u64,
    /// Every name that it could read of the arguments.
    names: Vec<String>,
    reads_arguments: bool,
    /// Its patterns, to keep them.
    _patterns: Vec<Arc<Pattern>>,
    /// What is likely meant otherwise.
    doubts: doubts::Found,
}

/// A value that expressions see. Texts are those of the request where they stand there as they are.
#[derive(Debug)]
pub struct Data<'a> {
    value: Box<dyn Val + 'a>,
    /// The keys of all objects in it, in their order.
    keys: Vec<Cow<'a, str>>,
}

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
            "args" => self.args.map(|args| CowVal::Borrowed(&*args.value)),
            "tool" => text(self.tool),
            "server" => text(self.server),
            "session" => text(self.session),
            "pod" => Some(CowVal::Borrowed(&*self.pod.value)),
            _ => {
                work::charge(metered::charge_of(name)?).ok()?;
                Some(operators::charged())
            }
        }
    }
}

impl Expression {
    /// Compiles an expression on its own.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, in one line.
    pub fn compile(source: &str) -> Result<Self, String> {
        with_parser(|| Self::compile_in(source, &mut Room::default()))
    }

    /// Compiles an expression of a policy, inside of [`with_parser`].
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, in one line.
    pub fn compile_in(source: &str, room: &mut Room) -> Result<Self, String> {
        if source.len() > bounds::EXPRESSION {
            return Err(format!("has {} bytes; at most {} are possible", source.len(), bounds::EXPRESSION));
        }
        room.expressions = room.expressions.checked_sub(source.len().max(LEAST)).ok_or_else(|| {
            format!(
                "is too much: the expressions of a policy have at most {} KiB together, each counted as {LEAST} bytes at least; \
                 write fewer or shorter ones, or split the policy",
                EXPRESSIONS >> 10
            )
        })?;
        // The parser is generated code of another project: a panic in it must not end the program.
        catch_unwind(AssertUnwindSafe(|| Self::parse(source, room))).unwrap_or_else(|_| Err("is no CEL expression".to_owned()))
    }

    fn parse(source: &str, room: &mut Room) -> Result<Self, String> {
        let program = Program::compile(source).map_err(|errors| {
            let why = errors.to_string();
            if why.contains("Recursion limit") { too_deep() } else { format!("is no CEL expression: {}", one_line(&why)) }
        })?;
        let mut tree = program.expression().clone();
        let mut walk = Walk::new(room);
        walk.expression(&tree.expr)?;
        let Walk { names, reads_arguments, patterns, .. } = walk;
        let doubts = doubts::of(&tree.expr);
        let cost = metered::metered(&mut tree)?;
        Ok(Self { tree, cost, names, reads_arguments, _patterns: patterns, doubts })
    }

    /// What is likely meant otherwise than it stands there, each in one line. `before` are conditions without which the value
    /// of this one does not count.
    pub fn doubts(&self, before: &[&Self]) -> Vec<String> {
        self.doubts.doubts(&before.iter().map(|expression| &expression.doubts).collect::<Vec<_>>())
    }

    /// The names that it could read of the arguments.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it reads the arguments at all.
    pub fn reads_arguments(&self) -> bool {
        self.reads_arguments
    }

    fn evaluate<T>(
        &self,
        inputs: &Inputs<'_>,
        meter: &Meter,
        read: impl FnOnce(&dyn Val) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        meter.charge(self.cost)?;
        let evaluate = || {
            let mut context = Context::with_env(Arc::clone(&ENV));
            context.set_variable_resolver(inputs);
            let value = Value::resolve_val(&self.tree, &context).map_err(|error| Failure::Failed(shown(&error)))?;
            read(value.as_ref())
        };
        let caught = || catch_unwind(AssertUnwindSafe(evaluate));
        let said = meter.during(caught).unwrap_or_else(|_| Err(Failure::Failed("could not be evaluated".to_owned())));
        // Operators can pass over an error of one side, and so over a charge that could not be paid.
        if meter.left() == 0 { Err(Failure::Spent) } else { said }
    }

    /// Whether a condition holds.
    ///
    /// # Errors
    /// It failed or is not a boolean; the caller denies.
    pub fn holds(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<bool, Failure> {
        self.evaluate(inputs, meter, |value| match value.downcast_ref::<CelBool>() {
            Some(holds) => Ok(*holds.inner()),
            None => Err(Failure::Failed(format!("is a {}, not true or false", value.get_type().name()))),
        })
    }

    /// What a call costs.
    ///
    /// # Errors
    /// It failed, is negative or not a number; the caller denies.
    pub fn cost(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<Amount, Failure> {
        #[expect(clippy::cast_precision_loss, reason = "integers this large are over any maximum")]
        let number = |value: &dyn Val| {
            if let Some(number) = value.downcast_ref::<CelInt>() {
                Ok(*number.inner() as f64)
            } else if let Some(number) = value.downcast_ref::<CelUInt>() {
                Ok(*number.inner() as f64)
            } else if let Some(number) = value.downcast_ref::<CelDouble>() {
                Ok(*number.inner())
            } else {
                Err(Failure::Failed(format!("is a {}, not a number", value.get_type().name())))
            }
        };
        let number = self.evaluate(inputs, meter, |value| Ok(number(value))).map_err(not_evaluated)??;
        Amount::cost(number).ok_or_else(|| Failure::Failed("is negative or not a number".to_owned()))
    }

    /// The value that gets a count of its own, as a text that no other value has.
    ///
    /// # Errors
    /// It failed or is a value that cannot be a key; the caller denies.
    pub fn key(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<String, Failure> {
        let mut text = String::new();
        self.evaluate(inputs, meter, |value| Ok(write_key(value, &mut text))).map_err(not_evaluated)??;
        Ok(text)
    }
}

fn write_key(value: &dyn Val, text: &mut String) -> Result<(), Failure> {
    work::charge(100)?;
    if let Some(inner) = value.downcast_ref::<CelString>() {
        work::charge(16 * units(inner.inner().len()))?;
        text.push_str(&format!("{:?}", inner.inner()));
    } else if let Some(inner) = value.downcast_ref::<CelInt>() {
        text.push_str(&inner.inner().to_string());
    } else if let Some(inner) = value.downcast_ref::<CelUInt>() {
        text.push_str(&inner.inner().to_string());
    } else if let Some(inner) = value.downcast_ref::<CelDouble>() {
        // 1.0 and 1 are one key, as they are equal in CEL; so are -0.0 and 0, whose sum is 0.
        text.push_str(&(inner.inner() + 0.0).to_string());
    } else if let Some(inner) = value.downcast_ref::<CelBool>() {
        text.push_str(&inner.inner().to_string());
    } else if value.downcast_ref::<CelNull>().is_some() {
        text.push_str("null");
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        text.push('[');
        for item in list.inner() {
            write_key(item.as_ref(), text)?;
            text.push(',');
        }
        text.push(']');
    } else {
        return Err(Failure::Failed(format!("is a {}, which cannot be a key", value.get_type().name())));
    }
    Ok(())
}

/// Runs something that compiles expressions: the parser is generated code of another project and wants much stack.
///
/// # Errors
/// There is no stack for it.
pub fn with_parser<T: Send>(compile: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let parser = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, compile);
        let parsed = parser.map_err(|error| format!("could not be compiled: {error}"))?.join();
        parsed.unwrap_or_else(|_| Err("could not be compiled".to_owned()))
    })
}

fn too_deep() -> String {
    format!("nests deeper than {MAX_DEPTH} levels; write two validations")
}

fn not_evaluated(why: Failure) -> Failure {
    match why {
        Failure::Spent => Failure::Spent,
        Failure::Failed(why) => Failure::Failed(format!("could not be evaluated: {why}")),
    }
}

/// The beginning of an error: it may quote values, whatever they are.
fn shown(error: &dyn fmt::Display) -> String {
    struct Beginning(String);
    impl Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let left = 1200_usize.saturating_sub(self.0.len());
            self.0.push_str(text.get(..text.floor_char_boundary(left)).unwrap_or_default());
            if text.len() > left { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut beginning = Beginning(String::new());
    // An error is that the rest is left out.
    let _ = write!(beginning, "{error}");
    one_line(&beginning.0)
}

/// An error of another project's parser as one line of bounded length: it may quote what was parsed, whatever stood there.
pub fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect()
}

/// Checks an expression's tree and collects the names in it.
struct Walk<'a> {
    /// What patterns may still take.
    room: &'a mut Room,
    names: Vec<String>,
    scope: Vec<&'a str>,
    inside_comprehension: bool,
    depth: usize,
    reads_arguments: bool,
    patterns: Vec<Arc<Pattern>>,
}

impl<'a> Walk<'a> {
    fn new(room: &'a mut Room) -> Self {
        Self {
            room,
            names: Vec::new(),
            scope: Vec::new(),
            inside_comprehension: false,
            depth: 0,
            reads_arguments: false,
            patterns: Vec::new(),
        }
    }

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
        let text = text.inner();
        let pattern = if let Some(pattern) = self.room.known.get(text) {
            Arc::clone(pattern)
        } else {
            let compiled = Pattern::of(text, &mut self.room.patterns);
            let pattern = compiled.map_err(|why| format!("`matches` has a pattern that {why}"))?;
            self.room.known.insert(text.to_owned(), Arc::clone(&pattern));
            pattern
        };
        self.patterns.push(pattern);
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
    /// To read them takes more than the decision's budget.
    #[error("take more work to read than a call is given")]
    Spent,
}

impl From<Spent> for ArgumentsError {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

/// The names that expressions read of the arguments, without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(HashMap<Box<str>, SmallVec<[Box<str>; 1]>>);

impl<N: AsRef<str>> FromIterator<N> for Names {
    fn from_iter<I: IntoIterator<Item = N>>(names: I) -> Self {
        let mut all = Self::default();
        for name in names {
            let known = all.0.entry(folded(name.as_ref()).into()).or_default();
            if !known.iter().any(|known| **known == *name.as_ref()) {
                known.push(name.as_ref().into());
            }
        }
        all
    }
}

impl Names {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Data<'_> {
    /// Whether no key differs from one of these names in case alone, so that no server takes it for that.
    ///
    /// # Errors
    /// The first key that does.
    pub fn check(&self, names: &Names, meter: &Meter) -> Result<(), ArgumentsError> {
        for key in &self.keys {
            meter.charge(40 + units(key.len()) * if key.is_ascii() { 2 } else { 32 })?;
            let same = names.0.get(&*folded(key));
            if let Some(known) = same.into_iter().flatten().find(|known| ***known != **key) {
                return Err(ArgumentsError::Case(shorten(key), known.clone().into_string()));
            }
        }
        Ok(())
    }
}

/// Reads a call's arguments; absent ones are an empty object.
///
/// # Errors
/// Two readers could read them differently, or they hold too much.
pub fn arguments<'a>(raw: Option<Raw<'a>>, meter: &Meter) -> Result<Data<'a>, ArgumentsError> {
    let mut keys = Vec::new();
    let value = match raw.map(|raw| (raw, raw.kind())) {
        Some((raw, Kind::Object)) => {
            let bytes = raw.as_str().as_bytes();
            let escapes = memchr::memchr_iter(b'\\', bytes).count();
            meter.charge(units(bytes.len()) / 4 + 20 * units(escapes))?;
            Reading { meter, keys: &mut keys, left: MAX_VALUES }.value(&mut raw.reader())?
        }
        // Left out and null are the same to every server.
        None | Some((_, Kind::Null)) => Box::new(CelMap::default()),
        Some(_) => return Err(ArgumentsError::NotAnObject),
    };
    Ok(Data { value, keys })
}

struct Reading<'a, 'm> {
    meter: &'m Meter,
    keys: &'m mut Vec<Cow<'a, str>>,
    left: usize,
}

impl<'a> Reading<'a, '_> {
    fn value(&mut self, reader: &mut Reader<'a>) -> Result<Box<dyn Val + 'a>, ArgumentsError> {
        self.left = self.left.checked_sub(1).ok_or(ArgumentsError::TooMany)?;
        self.meter.charge(60)?;
        Ok(match reader.peek()? {
            Kind::Object => {
                let mut map: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = HashMap::new();
                reader.object::<ArgumentsError>(|reader, raw_key| {
                    let key = self.text(raw_key)?;
                    self.meter.charge(60 + 2 * units(key.len()))?;
                    if key.contains('\0') {
                        return Err(ArgumentsError::Nul);
                    }
                    self.keys.push(key.clone());
                    let inner = self.value(reader)?;
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
                    items.push(self.value(reader)?);
                    Ok(())
                })?;
                Box::new(CelList::from(items))
            }
            Kind::String => Box::new(CelString::from(self.text(reader.value()?)?)),
            Kind::Number => {
                let text = reader.value()?.as_str();
                self.meter.charge(4 * units(text.len()))?;
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

    /// A text; one with escapes is copied.
    fn text(&self, raw: Raw<'a>) -> Result<Cow<'a, str>, ArgumentsError> {
        let text = raw.as_str();
        if memchr::memchr(b'\\', text.as_bytes()).is_some() {
            self.meter.charge(units(text.len()))?;
        }
        Ok(raw.string()?.unwrap_or_default())
    }
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
    Data { value: Box::new(CelMap::from(HashMap::from(fields))), keys: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Data<'_>, ArgumentsError> {
        let (raw, meter) = (Reader::new(text.as_bytes()).unwrap().value().unwrap(), Meter::default());
        let data = arguments(Some(raw), &meter)?;
        data.check(&["amount"].into_iter().collect(), &meter)?;
        Ok(data)
    }

    fn holds(source: &str, text: &str) -> Result<bool, String> {
        let (args, pod) = (args(text).unwrap(), pod("p", "agents", "default"));
        let inputs = Inputs { args: Some(&args), tool: "pay", server: "bank", session: "s", pod: &pod };
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
        assert!(holds("args.amount", text).unwrap_err().contains("not true or false"));
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
        let inputs = Inputs { args: Some(&args), tool: "pay", server: "bank", session: "s", pod: &pod };
        for (source, units) in [
            ("true", 540),
            ("args.t == 'a'", 740),
            ("args.t == args.e", 892),
            ("args.t < args.e", 985),
            ("size(args.t) == 1000", 945),
            ("args.t.contains('b')", 2_742),
            ("args.t.matches('^a*$')", 2_790),
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

    /// Where one side of an operator decides, an error of the other does not count: a charge that cannot be paid does.
    #[test]
    fn a_budget_that_is_spent_is_told_whatever_the_operators_make_of_it() {
        let (args, pod) = (args(r#"{"l": [1, 2, 3, 4, 5, 6, 7, 8]}"#).unwrap(), pod("", "", ""));
        let inputs = Inputs { args: Some(&args), tool: "", server: "", session: "", pod: &pod };
        for source in
            ["args.l.all(x, x > 0) || true", "!(args.l.exists(x, x < 0) && false)", "args.l.filter(x, x > 0).size() > 0 || true"]
        {
            let expression = Expression::compile(source).unwrap();
            assert_eq!(expression.holds(&inputs, &Meter::default()), Ok(true), "{source}");
            assert_eq!(expression.holds(&inputs, &Meter::new(2000)), Err(Failure::Spent), "{source}");
        }
    }

    /// Operators that charge say what the library's do.
    #[test]
    fn operators_on_what_a_call_brings_mean_what_they_mean_on_literals() {
        let values = ["1", "2.5", "-3", "18446744073709551615", "'a'", "'b'", "true", "null", "[1]", "[1.0]", "{'a': 1}", "[]"];
        let member = |(at, value): (usize, &&str)| format!("\"v{at}\": {}", value.replace('\'', "\""));
        let text = format!("{{{}}}", values.iter().enumerate().map(member).collect::<Vec<_>>().join(", "));
        let library = |source: &str, names: &Data<'_>| {
            let program = Program::compile(source).unwrap();
            let pod = pod("", "", "");
            let inputs = Inputs { args: Some(names), tool: "", server: "", session: "", pod: &pod };
            let mut context = Context::default();
            context.set_variable_resolver(&inputs);
            match program.execute(&context) {
                Ok(Value::Bool(holds)) => Some(holds),
                _ => None,
            }
        };
        let data = args(&text).unwrap();
        for a in 0..values.len() {
            for b in 0..values.len() {
                for operator in ["==", "!=", "<", "<=", ">", ">=", "in"] {
                    let source = format!("args.v{a} {operator} args.v{b}");
                    assert_eq!(holds(&source, &text).ok(), library(&source, &data), "{source}, {} and {}", values[a], values[b]);
                }
                for operator in ["+", "-", "*", "/", "%"] {
                    for source in [
                        format!("args.v{a} {operator} args.v{b} == args.v0 {operator} args.v0"),
                        format!("args.v{a} {operator} args.v{b} == args.v{a} {operator} args.v{b}"),
                        format!("args.v{a} {operator} args.v{b} > 0"),
                    ] {
                        assert_eq!(
                            holds(&source, &text).ok(),
                            library(&source, &data),
                            "{source}, {} and {}",
                            values[a],
                            values[b]
                        );
                    }
                }
                let source = format!("args.v{a}[args.v{b}] == 1");
                assert_eq!(holds(&source, &text).ok(), library(&source, &data), "{source}");
                for function in ["contains", "startsWith", "endsWith"] {
                    let source = format!("args.v{a}.{function}(args.v{b})");
                    assert_eq!(holds(&source, &text).ok(), library(&source, &data), "{source}");
                }
            }
            for function in ["size", "int", "uint", "double", "string", "bytes", "bool", "type", "dyn"] {
                for source in
                    [format!("{function}(args.v{a}) == {function}(args.v{a})"), format!("{function}(args.v{a}) != args.v{a}")]
                {
                    assert_eq!(holds(&source, &text).ok(), library(&source, &data), "{source}");
                }
            }
            for source in [
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
            ] {
                assert_eq!(holds(&source, &text).ok(), library(&source, &data), "{source}, {}", values[a]);
            }
        }
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
        let key = |source: &str| Expression::compile(source).unwrap().key(&inputs, &Meter::default());
        assert_ne!(key("args.a"), key("args.b"));
        assert_eq!(key("args.b"), key("args.c"));
        assert_ne!(key("[args.a, args.b]"), key("[args.b, args.a]"));
        assert!(key("args.m").is_err());
        let cost = |source: &str| Expression::compile(source).unwrap().cost(&inputs, &Meter::default());
        assert_eq!(cost("args.f"), Ok(Amount::cost(2.5).unwrap()));
        assert!(cost("args.n").is_err() && cost("args.a").is_err() && cost("args.zzz").is_err());
    }
}
