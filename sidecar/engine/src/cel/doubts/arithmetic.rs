//! Calculations that depend on how a client writes a number.
//!
//! JSON has one kind of numbers, CEL has three and calculates with two of one kind alone; `%` takes no double at all. Some clients send
//! 5 as `5.0`.

use std::fmt;

use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};

use super::tree::{for_each_part, path};

/// A calculation with an argument.
#[derive(Debug)]
pub struct Calculation {
    /// The argument, or an item of it.
    pub path: String,
    /// True if the argument is on the left.
    left: bool,
    operator: &'static str,
    /// The other side: its kind decides which numbers fail.
    other: Operand,
}

/// The other operand of a calculation with an argument.
#[derive(Debug)]
enum Operand {
    /// A whole number, with its text where that is short.
    Whole(String),
    /// A number with a fraction.
    Double(f64),
    /// Anything, where the operator takes whole numbers only.
    Any,
}

impl fmt::Display for Calculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, left, operator, other } = self;
        let written = |convert: &str, other: &str| {
            let argument = format!("{convert}({path})");
            if *left { format!("`{argument} {operator} {other}`") } else { format!("`{other} {operator} {argument}`") }
        };
        let (fails, write) = match other {
            Operand::Whole(other) => {
                let whole = written("int", other);
                let fraction = match other.parse::<i64>() {
                    Ok(_) if *operator != "%" => format!(", or {} to keep a fraction", written("double", &format!("{other}.0"))),
                    _ => String::new(),
                };
                ("5.0, as some clients send 5", format!("{whole}{fraction}"))
            }
            Operand::Any => ("5.0, as some clients send 5", written("int", "int(...)")),
            Operand::Double(other) => ("5, as most clients send 5.0", written("double", &format!("{other:?}"))),
        };
        write!(f, "calculates with `{path}`, which fails where that is {fails}; write {write}")
    }
}

/// Finds the calculations of an expression that fail for one of the ways to write a number.
pub fn calculations(tree: &Expr) -> Vec<Calculation> {
    let mut finder = CalculationFinder::default();
    finder.visit(tree);
    finder.found
}

/// The walk that finds calculations.
#[derive(Default)]
struct CalculationFinder<'e> {
    found: Vec<Calculation>,
    /// The variables of comprehensions over arguments.
    items: Vec<&'e str>,
}

impl<'e> CalculationFinder<'e> {
    fn argument(&self, at: &Expr) -> Option<String> {
        let path = path(at)?;
        let variable = path.split(['.', '[']).next().unwrap_or_default();
        (variable == "args" && path != variable || self.items.contains(&variable)).then_some(path)
    }

    fn visit(&mut self, at: &'e Expr) {
        if let Expr::Call(call) = at {
            self.call(call);
        }
        match at {
            // Its variable is known inside alone.
            Expr::Comprehension(of) => {
                self.visit(&of.iter_range.expr);
                let outside = self.items.len();
                if self.argument(&of.iter_range.expr).is_some() {
                    self.items.push(&of.iter_var);
                }
                for part in [&of.loop_cond, &of.loop_step, &of.result] {
                    self.visit(&part.expr);
                }
                self.items.truncate(outside);
            }
            _ => for_each_part(at, |part| self.visit(part)),
        }
    }

    fn call(&mut self, call: &CallExpr) {
        let operator = match call.func_name.as_str() {
            operators::ADD => "+",
            operators::SUBSTRACT => "-",
            operators::MULTIPLY => "*",
            operators::DIVIDE => "/",
            operators::MODULO => "%",
            _ => return,
        };
        let [a, b] = &*call.args else { return };
        for (left, argument, with) in [(true, a, b), (false, b, a)] {
            let Some(path) = self.argument(&argument.expr) else { continue };
            let other = match other(&with.expr) {
                Some(other) => other,
                None if operator == "%" => Operand::Any,
                None => continue,
            };
            self.found.push(Calculation { path, left, operator, other });
        }
    }
}

/// Returns the operand, if its kind is known.
fn other(at: &Expr) -> Option<Operand> {
    match at {
        Expr::Literal(LiteralValue::Int(number)) => Some(Operand::Whole(number.inner().to_string())),
        Expr::Literal(LiteralValue::Double(number)) => Some(Operand::Double(*number.inner())),
        Expr::Call(call) if ["int", "size"].contains(&call.func_name.as_str()) => {
            Some(Operand::Whole(format!("{}(...)", call.func_name)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::cel::{Expression, ExpressionUse, Inputs, arguments, pod, work::Meter};

    fn holds(source: &str, text: &str) -> bool {
        let raw = crate::json::Reader::new(text.as_bytes()).unwrap().value().unwrap();
        let (args, pod) = (arguments(Some(raw), &Meter::default()).unwrap(), pod("", "", ""));
        let inputs = Inputs { args: Some(&args), name: "", server: "", session: "", pod: &pod };
        Expression::compile(source).unwrap().holds(&inputs, &Meter::default()) == Ok(true)
    }

    #[test]
    fn a_calculation_that_fails_for_5_or_for_5_0_is_told_with_one_that_does_not() {
        for (source, fails, write, instead) in [
            ("args.n % 2 == 1", "5.0", "`int(args.n) % 2`", "int(args.n) % 2 == 1"),
            (
                "args.n - 1 == 4",
                "5.0",
                "`int(args.n) - 1`, or `double(args.n) - 1.0` to keep a fraction",
                "int(args.n) - 1 == 4 && double(args.n) - 1.0 == 4.0",
            ),
            (
                "args.n * 2 <= 10",
                "5.0",
                "`int(args.n) * 2`, or `double(args.n) * 2.0` to keep a fraction",
                "int(args.n) * 2 <= 10 && double(args.n) * 2.0 <= 10",
            ),
            (
                "10 - args.n == 5",
                "5.0",
                "`10 - int(args.n)`, or `10.0 - double(args.n)` to keep a fraction",
                "10 - int(args.n) == 5 && 10.0 - double(args.n) == 5.0",
            ),
            ("args.n - 1.0 == 4.0", "5", "`double(args.n) - 1.0`", "double(args.n) - 1.0 == 4.0"),
            ("args.n * 1.5 < 8.0", "5", "`double(args.n) * 1.5`", "double(args.n) * 1.5 < 8.0"),
            ("args.n + size('abc') == 8", "5.0", "`int(args.n) + size(...)`", "int(args.n) + size('abc') == 8"),
        ] {
            let told = Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]);
            assert!(told.len() == 1 && told[0].ends_with(&format!("; write {write}")), "{source}: {told:?}");
            for number in ["5", "5.0"] {
                let text = format!("{{\"n\": {number}}}");
                assert_eq!(holds(source, &text), number != fails, "{source} {number}");
                assert!(holds(instead, &text), "{instead} {number}");
            }
            assert_eq!(
                Expression::compile(instead).unwrap().doubts(ExpressionUse::Condition, &[]),
                Vec::<String>::new(),
                "{instead}"
            );
        }
        let told = Expression::compile("type(args.l) == list && args.l.all(x, x % 2 == 0)")
            .unwrap()
            .doubts(ExpressionUse::Condition, &[]);
        assert!(told.len() == 1 && told[0].ends_with("; write `int(x) % 2`"), "{told:?}");
        let told = Expression::compile("args.a % args.b == 0").unwrap().doubts(ExpressionUse::Condition, &[]);
        assert_eq!(told.len(), 2, "{told:?}");
    }

    #[test]
    fn comparisons_and_other_sums_are_not_told() {
        for source in [
            "args.n <= 500 && args.n == 5 && args.n >= 0.5",
            "int(args.n) % 2 == 0",
            "type(args.n) == int && args.n % 2 == 0",
            "args.text + '!' != ''",
            "args.a - args.b < 5",
            "size(tool) - 1 > 0",
            "args.l.map(x, x) == [1]",
        ] {
            let told = Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]);
            assert!(!told.iter().any(|doubt| doubt.starts_with("calculates")), "{source}: {told:?}");
        }
    }
}
