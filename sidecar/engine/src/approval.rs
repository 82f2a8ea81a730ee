//! What policies that want a person's approval ask for a call. The engine asks nobody: without an approval the call is denied, and
//! the denial says what to ask.

use std::sync::Arc;

use smallvec::SmallVec;
use toolweir_crds::{
    approval_request::ShownValue,
    bounds::{APPROVAL_MESSAGE, APPROVAL_SHOWN, SHOWN_VALUE},
    text::one_line,
};

use crate::{
    ask::{ApprovalAsk, AskingPolicy, CompiledApproval},
    cel::{EvalError, shown_text},
    denial::{Denial, Reason},
    entry::CompiledEntry,
    evaluate::Evaluator,
    rules::Step,
    take::{Take, TakeError},
    wants::{SharedWants, Wants},
    window::Full,
    words::display_name,
};

/// An entry that asks for a call.
type AskingEntry<'s> = (&'s Step, &'s CompiledEntry, &'s CompiledApproval, &'s Arc<AskingPolicy>);

impl Evaluator<'_> {
    /// Checks that the call needs no approval, or has one that names every policy that asks. `wants` are all limits of the steps.
    ///
    /// # Errors
    /// The denial, with what to ask; more policies can ask than one approval can name. Nobody is asked about a call that a limit can never
    /// let through, or whose conditions take too much work: that is the denial then.
    pub fn check_approval<'s>(&self, steps: &'s [Step], wants: &Wants<'s>) -> Result<(), Denial> {
        let asking = self.asking(steps)?;
        let approved = |policy| self.approved.is_some_and(|approved| approved.names(policy));
        let unsatisfied = asking.iter().find(|(.., policy)| !approved(policy));
        let (Some((step, entry, ..)), Some((.., first, _))) = (unsatisfied, asking.first()) else { return Ok(()) };
        if let Some(denial) = self.never_fits(wants) {
            return Err(denial);
        }
        let mut ask = ApprovalAsk::new(first);
        asking.iter().for_each(|(_, _, approval, policy)| ask.add(policy, approval));
        let left_out = self.show(&asking, &mut ask.shown)?;
        ask.message = message(&asking, left_out);
        let what = format!("{} needs the approval of a person.", display_name(self.call.operation.name));
        let denial = self.denial(&step.rules.policy, &entry.name, Reason::ApprovalPending, &what);
        Err(Denial { ask: Some(Box::new(ask)), ..denial })
    }

    /// Returns the entries that ask for this call.
    fn asking<'s>(&self, steps: &'s [Step]) -> Result<SmallVec<[AskingEntry<'s>; 2]>, Denial> {
        let mut asking = SmallVec::new();
        for step in steps {
            let Some(policy) = &step.rules.asking else { continue };
            for entry in step.matching() {
                if let Some(approval) = &entry.approval
                    && self.asks(step, entry, approval)?.unwrap_or(true)
                {
                    asking.push((step, entry, approval, policy));
                }
            }
        }
        Ok(asking)
    }

    /// Whether an entry asks for this call, or the reason why its condition could not be evaluated. Then it asks.
    ///
    /// # Errors
    /// The denial of a call whose arguments cannot be read, or that takes too much work.
    pub fn asks(&self, step: &Step, entry: &CompiledEntry, approval: &CompiledApproval) -> Result<Result<bool, String>, Denial> {
        let Some((when, _)) = &approval.when else { return Ok(Ok(true)) };
        match when.holds(&self.inputs(step, &entry.name, when)?, self.meter) {
            Ok(asks) => Ok(Ok(asks)),
            Err(EvalError::Failed(why)) => Ok(Err(why)),
            Err(EvalError::Spent) => Err(self.budget_denial(step, &entry.name)),
        }
    }

    /// Returns the denial of a call that costs more than a limit ever lets through.
    fn never_fits(&self, wants: &Wants<'_>) -> Option<Denial> {
        let never = |(index, take): (usize, &Take)| (take.amount > take.max).then_some((index, Full::Never));
        let own: SmallVec<[_; 2]> = wants.takes.iter().enumerate().filter_map(never).collect();
        if !own.is_empty() {
            return Some(self.take_denial(&TakeError::Full(own), wants));
        }
        let SharedWants { demand, origins } = &wants.shared;
        let shared: SmallVec<[_; 2]> = demand.takes.iter().map(|shared| &shared.take).enumerate().filter_map(never).collect();
        (!shared.is_empty()).then(|| self.take_denial(&TakeError::Full(shared), &(demand, origins)))
    }

    /// Adds what entries show of the call, each expression once. Returns how many there was no room for.
    fn show(&self, asking: &[AskingEntry<'_>], shown: &mut Vec<ShownValue>) -> Result<usize, Denial> {
        let mut left_out: Vec<&str> = Vec::new();
        for (step, entry, approval, _) in asking {
            for (expression, source) in &approval.show {
                if shown.iter().any(|shown| shown.expression == *source) || left_out.contains(&source.as_str()) {
                    continue;
                }
                if shown.len() == APPROVAL_SHOWN {
                    left_out.push(source);
                    continue;
                }
                let (value, cut) = match expression.shown(&self.inputs(step, &entry.name, expression)?, self.meter) {
                    Ok(shown) => shown,
                    // The reason can quote a value.
                    Err(EvalError::Failed(why)) => shown_text(&format!("({why})"), SHOWN_VALUE),
                    Err(EvalError::Spent) => return Err(self.budget_denial(step, &entry.name)),
                };
                shown.push(ShownValue { expression: source.clone(), value, cut });
            }
        }
        Ok(left_out.len())
    }
}

/// Joins the messages of entries as one line, each once, and says how many values are not shown. At most [`APPROVAL_MESSAGE`] bytes.
fn message(asking: &[AskingEntry<'_>], left_out: usize) -> String {
    let mut messages: Vec<String> = Vec::new();
    for message in asking.iter().filter_map(|(_, _, approval, _)| approval.message.as_ref()) {
        let message = one_line(message.trim(), usize::MAX);
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    let values = if left_out == 1 { "value is" } else { "values are" };
    let note = if left_out == 0 { String::new() } else { format!("({left_out} more {values} not shown.)") };
    let room = APPROVAL_MESSAGE - " ".len() - note.len();
    let mut text = messages.join(" ");
    if text.len() > room {
        text.truncate(text.floor_char_boundary(room - '…'.len_utf8()));
        text.push('…');
    }
    if !(text.is_empty() || note.is_empty()) {
        text.push(' ');
    }
    text + &note
}
