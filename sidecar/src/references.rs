//! Decides whether messages may refer to what they name without using it.

use std::sync::Arc;

use toolweir_engine::{Call, Decision, Denial, Operation, ResultLimit};

use crate::{
    governor::{Decided, Governor},
    in_force::InForce,
    mcp::client_ask::{ClientAsk, Reference},
    outcome::Outcome,
    record::{Arrival, Record},
};

impl Governor {
    /// Decides whether a message may refer to what it does, and counts the decisions. Gives the bound on its result: that of the tool for a
    /// task.
    ///
    /// # Errors
    /// The denial of a message that refers to what may not be used at all.
    pub fn decide_references(
        self: &Arc<Self>,
        in_force: &InForce,
        at: (&str, &str),
        (ask, method): (&ClientAsk<'_>, &str),
        arrived: Arrival,
    ) -> Result<Option<Arc<ResultLimit>>, Denial> {
        let ClientAsk::References(references) = ask else { return Ok(None) };
        let mut of_task = None;
        for reference in references {
            let (decided, record) = self.decide_reference(in_force, at, (reference, method), arrived);
            match decided {
                Decided::Denied(denial) => {
                    record.finish(Outcome::Denied);
                    return Err(*denial);
                }
                Decided::Allowed(_, limit) => {
                    record.finish(Outcome::Ok);
                    of_task = limit.filter(|_| matches!(reference, Reference::Task(_)));
                }
            }
        }
        Ok(of_task)
    }

    /// Decides whether a message may refer to this, and counts the decision. Nothing is taken.
    fn decide_reference(
        self: &Arc<Self>,
        in_force: &InForce,
        (server, session): (&str, &str),
        (reference, method): (&Reference<'_>, &str),
        arrived: Arrival,
    ) -> (Decided, Record) {
        let witness;
        let operation = match reference {
            Reference::Prompt(name) => Operation::prompt(name),
            Reference::Resource(uri) => Operation::resource(uri),
            Reference::Task(id) => return self.decide_task(in_force, (server, session), (id, method), arrived),
            Reference::Template(template) => {
                witness = in_force.engine.template_witness(server, template);
                Operation::resource(witness.as_deref().unwrap_or(template))
            }
        };
        let call = Call { server, operation: operation.by(method), arguments: None, session, seen: None };
        let decision = in_force.engine.decide_use(&call);
        self.record(in_force, &call, decision, arrived)
    }

    /// Decides whether a message may refer to a task: to one of a call that was let through, whose tool may still be called, or to end it.
    fn decide_task(
        self: &Arc<Self>,
        in_force: &InForce,
        (server, session): (&str, &str),
        (id, method): (&str, &str),
        arrived: Arrival,
    ) -> (Decided, Record) {
        let tool = self.tasks.find(server, id);
        let seen = tool.as_deref().and_then(|tool| in_force.seen(server, tool));
        let of_tool = Operation::tool(tool.as_deref().unwrap_or_default());
        let call = Call { server, operation: of_tool, arguments: None, session, seen: seen.as_deref() };
        let decision = match tool {
            None => Decision::denied(Denial::unknown_task(server, id, method)),
            Some(_) if method == "tasks/cancel" => Decision::allowed_freely(),
            Some(_) => in_force.engine.decide_use(&call),
        };
        let named = Operation::other(method);
        self.record(in_force, &Call { operation: named, seen: None, ..call }, decision, arrived)
    }
}
