//! The engines by which the calls of one log are decided.

use std::{sync::Arc, time::Duration};

use toolweir_engine::{
    Call, CompileOptions, Decision, Engine, Memory, Policy, Problem, ReadsOfCall, Severity, Timestamp,
    cel::{CompileBudget, Expression, with_parser},
};

use crate::shared_counts::SharedCounts;

/// The engines of a log. All count in the same counts.
#[derive(Debug)]
pub struct LogEngine {
    full: Engine,
    /// Engines without the conditions and limits that read what a log may lack, each with what that is.
    partial: Vec<(ReadsOfCall, Engine)>,
    /// The longest window of a limit.
    pub longest_window: Duration,
}

impl LogEngine {
    /// Compiles policies for the pod of the log. Also returns what is wrong with them.
    ///
    /// # Errors
    /// The system has no thread for the parser.
    pub fn compile(
        policies: &[Policy],
        options: &CompileOptions,
        counters: usize,
    ) -> Result<(Self, Vec<Problem>), String> {
        let memory = Memory::new(counters);
        // Counts that pods share are kept here, whatever is known of the pod.
        let options = CompileOptions { shared_store: true, of_any_pod: true, ..options.clone() };
        let (full, problems) = Engine::compile(policies, Arc::clone(&memory), &options);
        let mut partial = Vec::new();
        let (arguments, session) = (true, true);
        for lacking in [
            ReadsOfCall { arguments, session: false },
            ReadsOfCall { arguments: false, session },
            ReadsOfCall { arguments, session },
        ] {
            if let Some(policies) = without(policies, &problems, lacking)? {
                partial.push((lacking, Engine::compile(&policies, Arc::clone(&memory), &options).0));
            }
        }
        let tools = policies.iter().flat_map(|policy| &policy.spec.servers).flat_map(|server| &server.tools);
        let longest_window = tools.flat_map(|tool| &tool.limits).map(|limit| limit.window.span()).max().unwrap_or_default();
        Ok((Self { full, partial, longest_window }, problems))
    }

    /// Returns true if a condition for the tool, or a key or cost, reads the arguments.
    pub fn reads_arguments(&self, server: &str, tool: &str) -> bool {
        self.full.reads(server, tool).arguments
    }

    /// Decides on a call of which this is not known. Also returns what of that the decision would need: it is certain where that is
    /// nothing, and where the call is denied.
    pub fn decide(
        &self,
        call: &Call<'_>,
        lacking: ReadsOfCall,
        shared: &SharedCounts,
        now: Timestamp,
    ) -> (Decision, ReadsOfCall) {
        let reads = match lacking {
            ReadsOfCall { arguments: false, session: false } => lacking,
            _ => self.full.reads(call.server, call.tool),
        };
        let needs = ReadsOfCall {
            arguments: reads.arguments && lacking.arguments,
            session: reads.session && lacking.session,
        };
        // Where nothing is needed, none of the engines differs from the full one in this tool.
        let engine = self.partial.iter().find(|(without, _)| *without == needs).map_or(&self.full, |(_, engine)| engine);
        (shared.decide(engine, call, now), needs)
    }
}

/// Returns the policies without validations and limits that read what is lacking; nothing where none reads it. The limits that
/// remain keep their identities, and so their counts: a limit that differs from another in `max` alone goes or stays with it.
fn without(policies: &[Policy], problems: &[Problem], lacking: ReadsOfCall) -> Result<Option<Vec<Policy>>, String> {
    let has_expressions = policies.iter().flat_map(|policy| &policy.spec.servers).flat_map(|server| &server.tools).any(|tool| {
        !tool.validations.is_empty() || tool.limits.iter().any(|limit| limit.key.is_some() || limit.cost.is_some())
    });
    if !has_expressions {
        return Ok(None);
    }
    with_parser(|| {
        let mut any = false;
        let remaining = policies.iter().enumerate().map(|(index, policy)| {
            let mut policy = policy.clone();
            let mut budget = CompileBudget::default();
            let mut reads = |source: &str| {
                // One that does not compile stays, and so does its error.
                let reads = Expression::compile_in(source, &mut budget).is_ok_and(|expression| {
                    lacking.arguments && expression.reads_arguments() || lacking.session && expression.reads_session()
                });
                any |= reads;
                reads
            };
            for tool in policy.spec.servers.iter_mut().flat_map(|server| &mut server.tools) {
                tool.validations.retain(|validation| !reads(&validation.expression));
                tool.limits.retain(|limit| ![&limit.key, &limit.cost].into_iter().flatten().any(|source| reads(source)));
            }
            // What remains of a policy that does not compile might.
            let is_invalid = |problem: &&Problem| problem.policy == index && problem.severity == Severity::Invalid;
            policy.unreadable = policy.unreadable.or(problems.iter().find(is_invalid).map(|problem| problem.error.clone()));
            policy
        });
        let remaining: Vec<Policy> = remaining.collect();
        Ok(any.then_some(remaining))
    })
}
