//! What an expression is likely not meant to say.
//!
//! A client chooses what type an argument has. `all` and the like, `in` and `size` take several: of a map they read the keys, of a
//! text `size` counts the characters. A condition that was meant for a list then holds for what no one looked at.

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators};

/// What an expression reads of arguments of any type, and of which it asks the type.
pub fn of(tree: &Expr) -> Found {
    let mut found = Found::default();
    found.look(tree);
    found
}

fn many(types: &[&str]) -> &'static str {
    if types.contains(&"string") {
        "a list's items, a map's keys or a text's characters"
    } else {
        "a list's items or a map's keys"
    }
}

/// What was found in an expression.
#[derive(Debug, Default)]
pub struct Found {
    /// Arguments whose type is compared with one.
    typed: Vec<String>,
    /// Arguments of which it hangs on their type what is read, how they are read, and what they can be.
    untyped: Vec<(String, &'static str, &'static [&'static str])>,
}

impl Found {
    /// The doubts, each in one line and once; `before` are expressions that hold where this one counts.
    pub fn doubts(&self, before: &[&Self]) -> Vec<String> {
        let asked = |path: &String| before.iter().chain([&self]).any(|found| found.typed.contains(path));
        let mut doubts: Vec<String> = Vec::new();
        for (path, how, types) in self.untyped.iter().filter(|(path, ..)| !asked(path)) {
            let first = types.first().copied().unwrap_or_default();
            let doubt = format!(
                "{how} `{path}`, which is whatever the call says: {}; write `type({path}) == {first} && ...` before it",
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

    fn look(&mut self, at: &Expr) {
        match at {
            Expr::Select(select) => self.look(&select.operand.expr),
            Expr::List(list) => list.elements.iter().for_each(|item| self.look(&item.expr)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.look(&entry.key.expr);
                        self.look(&entry.value.expr);
                    }
                }
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(of) => {
                self.reads(&of.iter_range.expr, "goes over", &["list", "map"]);
                for part in [&of.iter_range, &of.loop_cond, &of.loop_step, &of.result] {
                    self.look(&part.expr);
                }
            }
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) => {}
        }
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
        call.target.iter().for_each(|target| self.look(&target.expr));
        call.args.iter().for_each(|arg| self.look(&arg.expr));
    }
}

/// How a value of the arguments is named, if it is one.
fn path(at: &Expr) -> Option<String> {
    match at {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", path(&select.operand.expr)?, select.field)),
        Expr::Call(call) if call.func_name == operators::INDEX => {
            let [of, index] = &*call.args else { return None };
            let of = path(&of.expr)?;
            match &index.expr {
                Expr::Literal(LiteralValue::String(key)) if is_name(key.inner()) => Some(format!("{of}.{}", key.inner())),
                Expr::Literal(LiteralValue::String(key)) => Some(format!("{of}['{}']", key.inner().escape_debug())),
                Expr::Literal(LiteralValue::Int(index)) => Some(format!("{of}[{}]", index.inner())),
                _ => None,
            }
        }
        _ => None,
    }
}

fn is_name(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !key.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use crate::cel::Expression;

    #[test]
    fn what_hangs_on_an_arguments_type_is_doubted_until_the_type_is_asked_for() {
        let doubts = |source: &str| Expression::compile(source).unwrap().doubts(&[]);
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
