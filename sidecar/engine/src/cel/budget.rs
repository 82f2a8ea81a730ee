//! The budget for compiling the expressions of one policy.

use std::{collections::HashMap, sync::Arc, thread};

use super::pattern::{self, Pattern};

/// The stack of the parser's thread. It gives up at 96 levels, each of which takes up to 170 KB in a build without optimisation.
const PARSER_STACK: usize = 32 << 20;

/// The bytes of all expressions of a policy; each counts as [`SHORTEST`] at least. To parse as many takes about a second.
const EXPRESSIONS: usize = 256 << 10;
/// The bytes that the shortest expression counts as.
const SHORTEST: usize = 64;

/// The budget for compiling the expressions of one policy.
#[derive(Debug)]
pub struct CompileBudget {
    /// The bytes of expressions that are left.
    expressions: usize,
    /// The bytes of patterns that are left.
    patterns: usize,
    /// The patterns that are paid for.
    known: HashMap<String, Arc<Pattern>>,
}

impl Default for CompileBudget {
    fn default() -> Self {
        Self { expressions: EXPRESSIONS, patterns: pattern::POLICY, known: HashMap::new() }
    }
}

impl CompileBudget {
    /// Charges an expression.
    ///
    /// # Errors
    /// There is not enough left; the message says what to do instead, in one line.
    pub(super) fn charge(&mut self, source: &str) -> Result<(), String> {
        self.expressions = self.expressions.checked_sub(source.len().max(SHORTEST)).ok_or_else(|| {
            format!(
                "is too much: the expressions of a policy have at most {} KiB together, each counted as {SHORTEST} bytes at least; \
                 write fewer or shorter ones, or split the policy",
                EXPRESSIONS >> 10
            )
        })?;
        Ok(())
    }

    /// Compiles a pattern. One that the policy already has is free.
    ///
    /// # Errors
    /// The pattern is wrong or takes too much; the message is one line.
    pub(super) fn pattern(&mut self, text: &str) -> Result<Arc<Pattern>, String> {
        if let Some(pattern) = self.known.get(text) {
            return Ok(Arc::clone(pattern));
        }
        let pattern = Pattern::get_or_compile(text, &mut self.patterns)?;
        self.known.insert(text.to_owned(), Arc::clone(&pattern));
        Ok(pattern)
    }
}

/// Runs a closure that compiles expressions, on a thread of its own: the parser is generated code of another project and needs
/// a large stack.
///
/// # Errors
/// Those of the closure, or that there is no stack for it.
pub fn with_parser<T: Send>(compile: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let parser = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, compile);
        let parsed = parser.map_err(|error| format!("could not be compiled: {error}"))?.join();
        parsed.unwrap_or_else(|_| Err("could not be compiled".to_owned()))
    })
}
