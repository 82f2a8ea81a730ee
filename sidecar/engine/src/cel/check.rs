//! The check of a parsed expression: known names only, and bounded cost.

use std::sync::Arc;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators::ADD};

use toolweir_crds::OperationKind;

use super::{budget::CompileBudget, pattern::Pattern};

/// The depth of an expression's tree: its evaluation recurses as deep.
const MAX_DEPTH: usize = 32;

/// Returns the variables of an expression on operations of a kind. A resource has no arguments.
fn variables(kind: OperationKind) -> &'static [&'static str] {
    match kind {
        OperationKind::Tool => &["args", "tool", "server", "session", "pod"],
        OperationKind::Prompt => &["args", "prompt", "server", "session", "pod"],
        OperationKind::Resource => &["uri", "server", "session", "pod"],
        OperationKind::Request => &["args", "request", "server", "session", "pod"],
        OperationKind::Other => &["server", "session", "pod"],
    }
}

/// Names of types, for `type(x) == string`.
pub const TYPES: [&str; 10] = ["int", "uint", "double", "string", "bool", "bytes", "list", "map", "null_type", "type"];
const FUNCTIONS: [&str; 13] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "bool", "type", "dyn"];

/// The result of the check.
pub struct Checked {
    /// Every name that it could read of the arguments.
    pub names: Vec<String>,
    /// True if it reads the arguments at all.
    pub reads_arguments: bool,
    /// True if it reads the session.
    pub reads_session: bool,
    /// True if it reads the name of what is asked for.
    pub reads_name: bool,
    /// Its patterns.
    pub patterns: Vec<Arc<Pattern>>,
}

/// Checks an expression's tree.
///
/// # Errors
/// A description of the fault and of what to write instead, in one line.
pub fn check(tree: &Expr, kind: OperationKind, budget: &mut CompileBudget) -> Result<Checked, String> {
    let found =
        Checked { names: Vec::new(), reads_arguments: false, reads_session: false, reads_name: false, patterns: Vec::new() };
    let mut check =
        TreeCheck { budget, variables: variables(kind), found, scope: Vec::new(), inside_comprehension: false, depth: 0 };
    check.expression(tree)?;
    Ok(check.found)
}

/// Returns the error for an expression that nests too deep.
pub fn too_deep() -> String {
    format!("nests deeper than {MAX_DEPTH} levels; write two validations")
}

/// The walk over an expression's tree.
struct TreeCheck<'a, 'b> {
    budget: &'b mut CompileBudget,
    variables: &'static [&'static str],
    found: Checked,
    /// The variables of comprehensions that can be read here.
    scope: Vec<&'a str>,
    inside_comprehension: bool,
    depth: usize,
}

impl<'a> TreeCheck<'a, '_> {
    fn expression(&mut self, expr: &'a Expr) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(too_deep());
        }
        self.depth += 1;
        self.node(expr)?;
        self.depth -= 1;
        Ok(())
    }

    fn node(&mut self, expr: &'a Expr) -> Result<(), String> {
        match expr {
            Expr::Unspecified => return Err("is empty".to_owned()),
            Expr::Ident(name) => {
                let name = name.as_str();
                self.found.reads_arguments |= name == "args";
                self.found.reads_session |= name == "session";
                self.found.reads_name |= matches!(name, "tool" | "prompt" | "uri" | "request");
                if !self.variables.contains(&name) && !TYPES.contains(&name) && !self.scope.contains(&name) {
                    return Err(format!("`{name}` is not a variable; the variables are {}", self.variables.join(", ")));
                }
            }
            Expr::Literal(LiteralValue::String(text)) => self.found.names.push(text.inner().to_owned()),
            Expr::Literal(_) => {}
            Expr::Select(select) => {
                self.found.names.push(select.field.clone());
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
            Expr::Struct(value) => return Err(format!("`{}` is not a type that can be created; use a map", value.type_name)),
            Expr::Call(call) => self.call(call)?,
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        }
        Ok(())
    }

    fn call(&mut self, call: &'a CallExpr) -> Result<(), String> {
        let name = call.func_name.as_str();
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) && !FUNCTIONS.contains(&name) {
            return Err(format!(
                "`{name}` is not a function; there are the functions {} and the macros has, all, exists, exists_one, map, filter",
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
        call.args.iter().try_for_each(|arg| self.expression(&arg.expr))
    }

    fn comprehension(&mut self, inner: &'a ComprehensionExpr) -> Result<(), String> {
        if self.inside_comprehension {
            return Err("has a comprehension (all, exists, exists_one, map, filter) inside another, whose cost has no bound; write two validations".to_owned());
        }
        if inner.iter_var == "__result__" {
            return Err("goes over items by the name `__result__`, which is kept for the result; write another name".to_owned());
        }
        self.expression(&inner.iter_range.expr)?;
        self.expression(&inner.accu_init.expr)?;
        let outside = self.scope.len();
        self.scope.extend([inner.iter_var.as_str(), inner.accu_var.as_str()]);
        self.scope.extend(inner.iter_var2.as_deref());
        self.inside_comprehension = true;
        let body =
            [&inner.loop_cond, &inner.loop_step, &inner.result].into_iter().try_for_each(|part| self.expression(&part.expr));
        self.inside_comprehension = false;
        self.scope.truncate(outside);
        body
    }

    /// Returns true if a sum inside a comprehension is no larger than its operands and the expression together: one with a
    /// literal, or the step of `filter` and `map` that keeps a part of the list.
    fn is_bounded_sum(&self, operands: &[IdedExpr]) -> bool {
        let part = |expr: &Expr| {
            let mut at = expr;
            while let Expr::Select(select) = at {
                at = &select.operand.expr;
            }
            // The element alone: another variable would be kept once for each.
            matches!(at, Expr::Ident(name) if self.scope.contains(&name.as_str()) && !self.variables.contains(&name.as_str()))
        };
        let step = |expr: &Expr| matches!(expr, Expr::List(list) if list.elements.iter().all(|item| part(&item.expr)) && list.elements.len() == 1);
        operands.iter().any(|operand| matches!(operand.expr, Expr::Literal(_)))
            || matches!(operands, [sum, item] if part(&sum.expr) && step(&item.expr))
    }

    fn pattern(&mut self, text: Option<&Expr>) -> Result<(), String> {
        let Some(Expr::Literal(LiteralValue::String(text))) = text else {
            return Err("`matches` takes a pattern in quotes; a pattern that a call brings has no bound on its cost".to_owned());
        };
        let pattern = self.budget.pattern(text.inner()).map_err(|why| format!("`matches` has a pattern that {why}"))?;
        self.found.patterns.push(pattern);
        Ok(())
    }
}
