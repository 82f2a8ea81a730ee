//! CEL expressions: compiled once, bounded in cost, and never a reason to let a call through.
//!
//! [`Expression::compile_in`] parses a source, checks its tree, and rewrites it so that work is charged before it is done;
//! `arguments` reads what a call brings; and an [`Expression`] is evaluated on [`Inputs`] with a [`work::Meter`].
//!
//! The bounds on the cost: an expression's length and depth, and the length of all of a policy; no comprehension inside a
//! comprehension; patterns of `matches` are literals that were compiled beforehand, within a [`CompileBudget`]; arguments of at
//! most [`MAX_VALUES`] values; and a budget for each decision ([`work`]).

mod arguments;
mod budget;
mod check;
mod conversions;
mod doubts;
mod error;
mod expression;
mod key;
mod metered;
mod names;
mod operators;
mod pattern;
mod re2;
mod shown;
pub mod work;

#[cfg(test)]
mod kubernetes_tests;
#[cfg(test)]
mod tests;

pub use self::{
    arguments::{ArgumentsError, CelObject, MAX_VALUES, arguments, pod},
    budget::{CompileBudget, with_parser},
    doubts::ExpressionUse,
    error::EvalError,
    expression::{Expression, Inputs},
    names::ArgumentNames,
    shown::shown_text,
};
