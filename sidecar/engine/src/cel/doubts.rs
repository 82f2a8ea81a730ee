//! Doubts: parts of an expression that likely mean something else than intended.
//!
//! A client chooses what type an argument has. `all` and the like, `in` and `size` take several: of a map they read the keys, of a
//! text `size` counts the characters. A condition that was meant for a list then holds for what no one looked at.
//!
//! Some clients send values that are no mistake and make an expression fail all the same: a null for an argument that is left out
//! ([`nulls`]), and 5 as 5.0 ([`arithmetic`]).

mod arithmetic;
mod nulls;
mod tree;
mod usage;

use cel::common::ast::{CallExpr, Expr, operators};

use self::tree::{for_each_part, path};
pub use self::usage::ExpressionUse;

/// Finds what an expression reads of arguments of any type, and the arguments whose type it checks.
pub fn findings(tree: &Expr) -> Findings {
    let mut found = Findings { traps: nulls::traps(tree), calculations: arithmetic::calculations(tree), ..Findings::default() };
    found.visit(tree);
    found
}

fn many(types: &[&str]) -> &'static str {
    if types.contains(&"string") {
        "a list's items, a map's keys or a text's characters"
    } else {
        "a list's items or a map's keys"
    }
}

/// The facts about an expression that doubts depend on.
#[derive(Debug, Default)]
pub struct Findings {
    /// Arguments whose type is compared with one.
    typed: Vec<String>,
    /// Arguments that are read differently by their type: the path, the way in which it is read, and the types that it can have.
    untyped: Vec<(String, &'static str, &'static [&'static str])>,
    /// Arguments that may be missing and must not be null.
    traps: Vec<nulls::Trap>,
    /// Calculations that depend on how a client writes a number.
    calculations: Vec<arithmetic::Calculation>,
}

impl Findings {
    /// Returns the doubts, each in one line and once. `before` are the findings of conditions that hold where this expression
    /// matters.
    pub fn doubts(&self, used: ExpressionUse, before: &[&Self]) -> Vec<String> {
        let asked = |path: &String| before.iter().chain([&self]).any(|found| found.typed.contains(path));
        let mut doubts: Vec<String> = Vec::new();
        let nulls = self.traps.iter().filter(|trap| !before.iter().any(|found| found.typed.contains(&trap.path)));
        doubts.extend(nulls.filter_map(|trap| trap.doubt(used)));
        for doubt in self.calculations.iter().filter(|of| !asked(&of.path)).map(ToString::to_string) {
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
        for (path, how, types) in self.untyped.iter().filter(|(path, ..)| !asked(path)) {
            let first = types.first().copied().unwrap_or_default();
            let text = if types.contains(&"string") { ", or `== string` where a text is meant," } else { "" };
            let doubt = format!(
                "{how} `{path}`, which is whatever the call says: {}; write `type({path}) == {first} && ...`{text} before it",
                many(types)
            );
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
        doubts
    }

    fn reads(&mut self, what: &Expr, how: &'static str, types: &'static [&'static str]) {
        // The arguments themselves are always a map.
        if let Some(path) = path(what).filter(|path| path.starts_with("args.") || path.starts_with("args[")) {
            self.untyped.push((path, how, types));
        }
    }

    fn visit(&mut self, at: &Expr) {
        match at {
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(of) => self.reads(&of.iter_range.expr, "goes over", &["list", "map"]),
            _ => {}
        }
        for_each_part(at, |part| self.visit(part));
    }

    fn call(&mut self, call: &CallExpr) {
        match (call.func_name.as_str(), &*call.args, &call.target) {
            (operators::EQUALS, [a, b], _) => {
                let of = |side: &Expr, other: &Expr| match (side, other) {
                    (Expr::Call(call), Expr::Ident(name)) if call.func_name == "type" && name != "type" => {
                        call.args.first().and_then(|arg| path(&arg.expr))
                    }
                    _ => None,
                };
                self.typed.extend(of(&a.expr, &b.expr).or_else(|| of(&b.expr, &a.expr)));
            }
            (operators::IN, [_, list], _) => self.reads(&list.expr, "looks for a value in", &["list", "map"]),
            ("size", [of], None) => self.reads(&of.expr, "takes the size of", &["list", "string", "map"]),
            ("size", [], Some(of)) => self.reads(&of.expr, "takes the size of", &["list", "string", "map"]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cel::{Expression, ExpressionUse};

    #[test]
    fn what_hangs_on_an_arguments_type_is_doubted_until_the_type_is_asked_for() {
        let doubts = |source: &str| Expression::compile(source).unwrap().doubts(ExpressionUse::Condition, &[]);
        for (source, what) in [
            ("args.to.all(t, t.endsWith('@corp'))", "goes over `args.to`"),
            ("args['to'].exists(t, t == 'a')", "goes over `args.to`"),
            ("args.mail.to[0].map(t, t).size() == 1", "goes over `args.mail.to[0]`"),
            ("type(args.cc) == list && args.to.all(t, t != '')", "goes over `args.to`"),
            ("!('admin' in args.roles)", "looks for a value in `args.roles`"),
            ("size(args.to) <= 3", "takes the size of `args.to`"),
            ("args.to.size() <= 3", "takes the size of `args.to`"),
            ("type(args.to) == type && args.to.all(t, t != '')", "goes over `args.to`"),
        ] {
            let doubts = doubts(source);
            assert!(doubts.len() == 1 && doubts[0].starts_with(what), "{source}: {doubts:?}");
            assert_eq!(doubts[0].contains("`== string` where a text is meant"), what.starts_with("takes the size"), "{doubts:?}");
        }
        for source in [
            "type(args.to) == list && args.to.all(t, t.endsWith('@corp'))",
            "list == type(args['to']) && args.to.all(t, t.endsWith('@corp')) && size(args.to) < 4",
            "'to' in args && size(args) < 3 && args.all(name, name in ['to', 'text'])",
            "['a', 'b'].all(t, t != args.a)",
            "args.amount <= 500 && args.text.contains('x')",
        ] {
            assert_eq!(doubts(source), Vec::<String>::new(), "{source}");
        }
    }
}
