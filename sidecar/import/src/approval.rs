//! Rules of the open-source proxy that ask a person, as the `approval` of an entry.

use toolweir_crds::{EntryApproval, TimeSpan, bounds};

use super::{
    condition::{self, Sense},
    errors::Errors,
    read::{Object, shown},
};

/// What one rule asks.
#[derive(Debug)]
pub(super) struct AskingRule<'p> {
    /// The rule's place in the original.
    path: &'p str,
    /// The conditions under which it asks, all of which must hold; every call where there is none.
    when: Option<String>,
    conditions: usize,
    expiry: Option<TimeSpan>,
    message: Option<String>,
}

impl<'p> AskingRule<'p> {
    /// Reads a rule. What is wrong goes to `errors`.
    pub(super) fn read(rule: &Object<'_, '_>, path: &'p str, message: Option<String>, errors: &mut Errors) -> Option<Self> {
        let expiry = expiry(rule, errors);
        let place = rule.path("conditions");
        let conditions = rule.get("conditions").map_or(Some(Default::default()), |value| value.list(&place, errors))?;
        let (mut parts, mut complete) = (Vec::new(), true);
        for (index, condition) in conditions.iter().enumerate() {
            let condition = condition.object(&format!("{place}[{index}]"), &condition::FIELDS, errors);
            match condition.and_then(|condition| condition::parts(&condition, Sense::Asks, errors)) {
                Some(found) => parts.extend(found),
                None => complete = false,
            }
        }
        let when = (!conditions.is_empty()).then(|| condition::all(&parts));
        let fits = complete && when.as_ref().is_none_or(|when| condition::check(when, &place, errors));
        let expiry = expiry?;
        fits.then_some(Self { path, when, conditions: conditions.len(), expiry, message })
    }

    /// What became of the rule, for its note.
    pub(super) fn note(&self) -> String {
        let when = match self.conditions {
            0 => "about every call".to_owned(),
            1 => "where a condition on the arguments holds".to_owned(),
            many => format!("where {many} conditions on the arguments hold"),
        };
        match &self.expiry {
            Some(expiry) => format!("asks a person {when}, for {expiry}"),
            None => format!("asks a person {when}, for {} as it has no approval_timeout", EntryApproval::default().expiry),
        }
    }
}

/// `approval_timeout: 30m`.
#[expect(clippy::option_option, reason = "none where it is wrong, and none of it where the rule has none")]
fn expiry(rule: &Object<'_, '_>, errors: &mut Errors) -> Option<Option<TimeSpan>> {
    let at = rule.path("approval_timeout");
    let Some(value) = rule.get("approval_timeout") else { return Some(None) };
    let text = value.string(&at, errors)?;
    let span: Option<TimeSpan> = text.parse().ok();
    let possible = EntryApproval::SHORTEST_EXPIRY..=EntryApproval::LONGEST_EXPIRY;
    let known = span.filter(|expiry| possible.contains(&expiry.span()));
    if known.is_none() {
        errors.at(at, format!("is `{}`; write 10s to 24h, such as 30m or 1h30m", shown(text)));
    }
    known.map(Some)
}

/// The approval of an entry in the making: its rules that ask, together.
#[derive(Debug, Default)]
pub(super) struct ConvertedApproval {
    pub(super) approval: EntryApproval,
    /// The places of its fields in the original.
    pub(super) fields: Vec<(&'static str, String)>,
    /// The conditions of each rule.
    conditions: Vec<String>,
}

impl ConvertedApproval {
    /// The approval for which a first rule asks.
    pub(super) fn new(rule: AskingRule<'_>) -> Self {
        let AskingRule { path, when, expiry, message, .. } = rule;
        let fields = vec![
            ("when", format!("{path}.conditions")),
            ("message", format!("{path}.on_deny")),
            ("expiry", format!("{path}.approval_timeout")),
        ];
        let default = EntryApproval::default();
        let expiry = expiry.unwrap_or(default.expiry);
        let approval = EntryApproval { when: when.clone(), message, expiry, ..EntryApproval::default() };
        Self { approval, fields, conditions: when.into_iter().collect() }
    }

    /// Adds another rule of the same entry: one approval is for all of them.
    pub(super) fn add(&mut self, rule: AskingRule<'_>, errors: &mut Errors) {
        let AskingRule { path, when, expiry, message, .. } = rule;
        let expiry = expiry.unwrap_or(EntryApproval::default().expiry);
        if expiry.span() < self.approval.expiry.span() {
            self.approval.expiry = expiry;
        }
        self.approval.when = self.approval.when.take().zip(when).and_then(|(_, when)| {
            if !self.conditions.contains(&when) {
                self.conditions.push(when);
            }
            let any = match self.conditions.as_slice() {
                [only] => only.clone(),
                many => many.iter().map(|when| format!("({when})")).collect::<Vec<_>>().join(" || "),
            };
            condition::check(&any, path, errors).then_some(any)
        });
        let Some(message) = message else { return };
        let said = self.approval.message.get_or_insert_default();
        if said.contains(message.as_str()) {
            return;
        }
        if !said.is_empty() {
            said.push(' ');
        }
        said.push_str(&message);
        let (len, most) = (said.len(), bounds::TEXT);
        if len > most {
            errors.at(
                format!("{path}.on_deny"),
                format!("makes a text of {len} bytes with those of the rules before it; write {most} at most"),
            );
        }
    }
}
