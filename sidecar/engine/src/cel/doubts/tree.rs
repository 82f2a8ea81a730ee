//! Walks over expressions, and the paths of the values in them.

use cel::common::ast::{EntryExpr, Expr, LiteralValue, operators};

/// Calls `each` for the parts of an expression, one level deep and in the order of evaluation. Skips the initial value of a
/// comprehension's result, in which no argument stands.
pub fn for_each_part<'e>(of: &'e Expr, mut each: impl FnMut(&'e Expr)) {
    match of {
        Expr::Select(select) => each(&select.operand.expr),
        Expr::List(list) => list.elements.iter().for_each(|item| each(&item.expr)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    each(&entry.key.expr);
                    each(&entry.value.expr);
                }
            }
        }
        Expr::Call(call) => {
            call.target.iter().for_each(|target| each(&target.expr));
            call.args.iter().for_each(|arg| each(&arg.expr));
        }
        Expr::Comprehension(of) => {
            for part in [&of.iter_range, &of.loop_cond, &of.loop_step, &of.result] {
                each(&part.expr);
            }
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) => {}
    }
}

/// Returns the path of a value, such as `args.mail.to[0]`, if it is one that is read by a path.
pub fn path(at: &Expr) -> Option<String> {
    match at {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", path(&select.operand.expr)?, select.field)),
        Expr::Call(call) if call.func_name == operators::INDEX => {
            let [of, index] = &*call.args else { return None };
            let of = path(&of.expr)?;
            match &index.expr {
                Expr::Literal(LiteralValue::String(key)) => Some(member(&of, key.inner())),
                Expr::Literal(LiteralValue::Int(index)) => Some(format!("{of}[{}]", index.inner())),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns the path of a member of a value.
pub fn member(of: &str, key: &str) -> String {
    if is_name(key) { format!("{of}.{key}") } else { format!("{of}['{}']", key.escape_debug()) }
}

fn is_name(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !key.starts_with(|c: char| c.is_ascii_digit())
}
