//! Rewrites an expression's tree so that work is charged before it is done.
//!
//! Operators on values that a call brings become calls of functions that charge; a comprehension asks for its charge before each
//! element. What is left of the library's operators is bounded by the expression itself, whose nodes are counted.

use ::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as cel};

use super::operators::{INDEX, OPERATORS, OWNED, RANGE};

/// The units of work for a node, in addition to what it does.
const NODE: u64 = 40;
/// The units of work for an element of a comprehension, in addition to its nodes.
const ELEMENT: u64 = 160;
/// The units of work for an evaluation, in addition to its nodes.
const EVALUATION: u64 = 500;

/// The name of a comprehension's result, which no source can write.
const RESULT: &str = "@result";

/// Rewrites a tree. Returns the units of work for evaluating it, apart from those that are charged during the evaluation.
///
/// # Errors
/// Some part has no known cost.
pub fn metered(tree: &mut IdedExpr) -> Result<u64, String> {
    Ok(EVALUATION + NODE * nodes(tree)?)
}

/// Returns the charge that an identifier stands for.
pub fn charge_of(name: &str) -> Option<u64> {
    name.strip_prefix('@')?.parse().ok()
}

fn nodes(at: &mut IdedExpr) -> Result<u64, String> {
    Ok(match &mut at.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => 1,
        // Each name before a dot is looked up on its own.
        Expr::Select(select) => 2 + nodes(&mut select.operand)?,
        Expr::List(list) => {
            let mut sum = 1;
            for element in &mut list.elements {
                sum += kept(element)?;
            }
            sum
        }
        Expr::Map(map) => {
            let mut sum = 1;
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    sum += kept(&mut entry.key)? + kept(&mut entry.value)?;
                }
            }
            sum
        }
        Expr::Call(call) => self::call(call)?,
        Expr::Comprehension(comprehension) => self::comprehension(comprehension)?,
    })
}

/// A node whose value becomes part of another.
fn kept(at: &mut IdedExpr) -> Result<u64, String> {
    let small = is_small(&at.expr);
    let sum = nodes(at)?;
    if !small {
        wrap(OWNED, at);
    }
    Ok(sum + 1)
}

fn call(call: &mut CallExpr) -> Result<u64, String> {
    let keeps = keeps_operator(call);
    let mut sum = 2;
    if let Some(target) = &mut call.target {
        sum += nodes(target)?;
    }
    for arg in &mut call.args {
        sum += nodes(arg)?;
    }
    if keeps {
        return Ok(sum);
    }
    if let Some((_, charged)) = OPERATORS.iter().find(|(name, _)| *name == call.func_name) {
        (*charged).clone_into(&mut call.func_name);
    } else if call.func_name == cel::INDEX
        && let Some(index) = call.args.last_mut()
    {
        wrap(INDEX, index);
    }
    Ok(sum + 1)
}

/// Returns true if the library's own operator is bounded by the expression alone: equality with something small, a place in a
/// list of small things, a name of the arguments, and the step by which a comprehension builds its result up.
fn keeps_operator(call: &CallExpr) -> bool {
    let [a, b] = &*call.args else { return true };
    match call.func_name.as_str() {
        cel::EQUALS | cel::NOT_EQUALS => is_small(&a.expr) || is_small(&b.expr),
        cel::IN => match &b.expr {
            Expr::List(list) => list.elements.iter().all(|item| is_small(&item.expr)),
            Expr::Ident(name) => matches!(name.as_str(), "args" | "pod") && is_small(&a.expr),
            _ => false,
        },
        cel::ADD => matches!(&a.expr, Expr::Ident(name) if name == RESULT),
        cel::INDEX => matches!(
            b.expr,
            Expr::Literal(LiteralValue::Int(_) | LiteralValue::UInt(_) | LiteralValue::String(_) | LiteralValue::Boolean(_))
        ),
        _ => false,
    }
}

/// Returns true if a value is as small as the expression that gives it.
fn is_small(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(_) => true,
        Expr::Call(call) => {
            let numbers = ["size", "type", "int", "uint", "double", "bool", "contains", "startsWith", "endsWith", "matches"];
            numbers.contains(&call.func_name.as_str())
                || matches!(
                    call.func_name.as_str(),
                    cel::LOGICAL_NOT
                        | cel::EQUALS
                        | cel::NOT_EQUALS
                        | cel::LESS
                        | cel::LESS_EQUALS
                        | cel::GREATER
                        | cel::GREATER_EQUALS
                        | cel::IN
                )
        }
        Expr::Select(select) => select.test,
        _ => false,
    }
}

fn wrap(function: &str, at: &mut IdedExpr) {
    let id = at.id;
    let inner = std::mem::take(at);
    *at = called(id, function, vec![inner]);
}

fn called(id: u64, function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }) }
}

fn comprehension(of: &mut ComprehensionExpr) -> Result<u64, String> {
    let small = matches!(&of.iter_range.expr, Expr::List(list) if list.elements.iter().all(|item| is_small(&item.expr)));
    let appends = matches!(of.accu_init.expr, Expr::List(_));
    let sum = 3 + nodes(&mut of.iter_range)? + nodes(&mut of.accu_init)? + nodes(&mut of.result)?;
    if !small {
        wrap(RANGE, &mut of.iter_range);
    }
    let each = ELEMENT + NODE * (nodes(&mut of.loop_cond)? + nodes(&mut of.loop_step)?);
    // The library builds a list up in place only where it finds the step in this form.
    let place = if appends { first_of_step(&mut of.loop_step) } else { Some(&mut of.loop_cond) };
    let Some(place) = place else { return Err("has a comprehension whose cost has no bound; write two validations".to_owned()) };
    let id = place.id;
    let inner = std::mem::take(place);
    let charge = IdedExpr { id, expr: Expr::Ident(format!("@{each}")) };
    // Without its charge it is not evaluated, and fails.
    *place = called(id, cel::CONDITIONAL, vec![charge, inner, IdedExpr { id, expr: Expr::Literal(LiteralValue::Null) }]);
    Ok(sum)
}

/// Returns the part that is evaluated first in a step that appends to a list: the condition of the item, else the item.
fn first_of_step(step: &mut IdedExpr) -> Option<&mut IdedExpr> {
    let Expr::Call(call) = &mut step.expr else { return None };
    match call.func_name.as_str() {
        cel::CONDITIONAL => call.args.first_mut(),
        cel::ADD => match &mut call.args.last_mut()?.expr {
            Expr::List(list) => list.elements.first_mut(),
            _ => None,
        },
        _ => None,
    }
}
