//! Compiled expressions, and their evaluation.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cel::{
    Context, Value,
    common::{
        ast::IdedExpr,
        types::{CelBool, CelDouble, CelInt, CelString, CelUInt},
        value::{CowVal, Val},
    },
    context::VariableResolver,
    parser::Parser,
};
use toolweir_crds::{OperationKind, bounds};

use super::{
    arguments::CelObject,
    budget::{CompileBudget, with_parser},
    check::{Checked, check, too_deep},
    doubts::{self, ExpressionUse},
    error::{EvalError, beginning, one_line},
    key::write_key,
    metered,
    operators::{self, ENV},
    pattern::Pattern,
    shown::write_shown,
    work::{self, Meter},
};
use crate::window::Amount;

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    tree: IdedExpr,
    /// The units of work for evaluating it, apart from those that are charged during the evaluation.
    cost: u64,
    /// Every name that it could read of the arguments.
    names: Vec<String>,
    reads_arguments: bool,
    reads_session: bool,
    reads_name: bool,
    /// Its patterns, to keep them.
    _patterns: Vec<Arc<Pattern>>,
    /// Parts that likely mean something else than intended.
    doubts: doubts::Findings,
}

/// The values of the variables of an expression.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The call's arguments; may be left out for an expression that does not read them.
    pub args: Option<&'a CelObject<'a>>,
    /// The name of what is asked for: the value of the variable that the kind has for it.
    pub name: &'a str,
    /// The server's name in the policy.
    pub server: &'a str,
    /// The MCP session, empty where there is none.
    pub session: &'a str,
    /// The pod that calls.
    pub pod: &'a CelObject<'a>,
}

impl VariableResolver for Inputs<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let text = |text: &'b str| Some(CowVal::owned(CelString::from(text)));
        match name {
            "args" => self.args.map(|args| CowVal::Borrowed(&*args.value)),
            "tool" | "prompt" | "uri" | "request" => text(self.name),
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
    /// Compiles an expression on calls of tools on its own.
    ///
    /// # Errors
    /// A description of the fault and of what to write instead, in one line.
    pub fn compile(source: &str) -> Result<Self, String> {
        with_parser(|| Self::compile_in(source, OperationKind::Tool, &mut CompileBudget::default()))
    }

    /// Compiles an expression of a policy on operations of a kind, inside of [`with_parser`].
    ///
    /// # Errors
    /// A description of the fault and of what to write instead, in one line.
    pub fn compile_in(source: &str, kind: OperationKind, budget: &mut CompileBudget) -> Result<Self, String> {
        if source.len() > bounds::EXPRESSION {
            return Err(format!("has {} bytes; at most {} are possible", source.len(), bounds::EXPRESSION));
        }
        budget.charge(source)?;
        // The parser is generated code of another project: a panic in it must not end the program.
        catch_unwind(AssertUnwindSafe(|| Self::parse(source, kind, budget)))
            .unwrap_or_else(|_| Err("is not a CEL expression".to_owned()))
    }

    fn parse(source: &str, kind: OperationKind, budget: &mut CompileBudget) -> Result<Self, String> {
        let mut tree = Parser::new().enable_ident_escape_syntax(true).parse(source).map_err(|errors| {
            let why = errors.to_string();
            if why.contains("Recursion limit") { too_deep() } else { format!("is not a CEL expression: {}", one_line(&why)) }
        })?;
        let Checked { names, reads_arguments, reads_session, reads_name, patterns } = check(&tree.expr, kind, budget)?;
        let doubts = doubts::findings(&tree.expr);
        let cost = metered::metered(&mut tree)?;
        Ok(Self { tree, cost, names, reads_arguments, reads_session, reads_name, _patterns: patterns, doubts })
    }

    /// Returns the parts that likely mean something else than intended, each in one line. `before` are conditions that must hold
    /// before the value of this expression matters.
    pub fn doubts(&self, used: ExpressionUse, before: &[&Self]) -> Vec<String> {
        self.doubts.doubts(used, &before.iter().map(|expression| &expression.doubts).collect::<Vec<_>>())
    }

    /// Returns the names that it could read of the arguments.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns true if it reads the arguments at all.
    pub fn reads_arguments(&self) -> bool {
        self.reads_arguments
    }

    /// Returns true if it reads the session. A variable of its own by that name counts as well.
    pub fn reads_session(&self) -> bool {
        self.reads_session
    }

    /// Returns true if it reads the name of what is asked for. A variable of its own by that name counts as well.
    pub fn reads_name(&self) -> bool {
        self.reads_name
    }

    /// Evaluates the expression and reads its value with `read`.
    pub(super) fn evaluate<T>(
        &self,
        inputs: &Inputs<'_>,
        meter: &Meter,
        read: impl FnOnce(&dyn Val) -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        meter.charge(self.cost)?;
        let evaluate = || {
            let mut context = Context::with_env(Arc::clone(&ENV));
            context.set_variable_resolver(inputs);
            let value = Value::resolve_val(&self.tree, &context).map_err(|error| EvalError::Failed(beginning(&error)))?;
            read(value.as_ref())
        };
        let caught = || catch_unwind(AssertUnwindSafe(evaluate));
        let result = meter.during(caught).unwrap_or_else(|_| Err(EvalError::Failed("could not be evaluated".to_owned())));
        // Operators can pass over an error of one side, and so over a charge that could not be paid.
        if meter.left() == 0 { Err(EvalError::Spent) } else { result }
    }

    /// Evaluates a condition.
    ///
    /// # Errors
    /// The evaluation failed or the value is not a boolean; the caller denies.
    pub fn holds(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<bool, EvalError> {
        self.evaluate(inputs, meter, |value| match value.downcast_ref::<CelBool>() {
            Some(holds) => Ok(*holds.inner()),
            None => Err(EvalError::Failed(format!("is of type {}, not bool", value.get_type().name()))),
        })
    }

    /// Evaluates the cost of a call.
    ///
    /// # Errors
    /// The evaluation failed, or the value is negative or not a number; the caller denies.
    pub fn cost(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<Amount, EvalError> {
        #[expect(clippy::cast_precision_loss, reason = "integers this large are over any maximum")]
        let number = |value: &dyn Val| {
            if let Some(number) = value.downcast_ref::<CelInt>() {
                Ok(*number.inner() as f64)
            } else if let Some(number) = value.downcast_ref::<CelUInt>() {
                Ok(*number.inner() as f64)
            } else if let Some(number) = value.downcast_ref::<CelDouble>() {
                Ok(*number.inner())
            } else {
                Err(EvalError::Failed(format!("is a {}, not a number", value.get_type().name())))
            }
        };
        let number = self.evaluate(inputs, meter, |value| Ok(number(value))).map_err(EvalError::not_evaluated)??;
        Amount::cost(number).ok_or_else(|| EvalError::Failed("is negative or not a number".to_owned()))
    }

    /// Evaluates what a person who decides on a call is shown: a text as it is, any other value as JSON; of either, characters that cannot be
    /// seen or change the direction of text are escaped. At most [`bounds::SHOWN_VALUE`] bytes; returns true beside it where it goes on.
    ///
    /// # Errors
    /// The evaluation failed or the value has no such form, or the budget is spent.
    pub fn shown(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<(String, bool), EvalError> {
        self.evaluate(inputs, meter, |value| write_shown(value, bounds::SHOWN_VALUE))
    }

    /// Evaluates a key: a text that differs for each value that gets a count of its own.
    ///
    /// # Errors
    /// The evaluation failed or the value cannot be a key; the caller denies.
    pub fn key(&self, inputs: &Inputs<'_>, meter: &Meter) -> Result<String, EvalError> {
        let mut text = String::new();
        self.evaluate(inputs, meter, |value| Ok(write_key(value, &mut text))).map_err(EvalError::not_evaluated)??;
        Ok(text)
    }
}
