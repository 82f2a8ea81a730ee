//! A request for people. Whatever agents, servers and policies wrote is shown so that it cannot deceive.

use std::{fmt::Write, time::Duration};

use k8s_openapi::jiff::Timestamp;
use toolweir_crds::{
    approval_request::{ApprovalPolicy, ShownValue},
    text::{one_line, one_word},
};

use super::request::ListedApproval;
use crate::table::{short, shown};

/// The characters that are shown of a text. None is longer.
const LONGEST: usize = 4096;

/// Makes one line of a text that others wrote.
pub fn safe_line(text: &str) -> String {
    shown(&one_line(text, LONGEST)).into_owned()
}

/// Formats a time of day, with its date if that is not today's.
pub fn clock(time: Timestamp, now: Timestamp) -> String {
    let (text, today) = (time.to_string(), now.to_string());
    let (date, of_day) = (text.get(..10).unwrap_or_default(), text.get(11..16).unwrap_or_default());
    if today.starts_with(date) { format!("{of_day} UTC") } else { format!("{date} {of_day} UTC") }
}

/// Returns the span from one time to a later one; 0 where it is none.
pub fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Returns the name of a policy as in the audit log.
pub fn policy_name(policy: &ApprovalPolicy) -> String {
    match policy.namespace.as_str() {
        "" => safe_line(&policy.name),
        namespace => safe_line(&format!("{namespace}/{}", policy.name)),
    }
}

/// Formats a value that a person is shown as one line that is safe on a terminal. Of blanks in a row, only the first is one: in a line that the terminal breaks, a
/// value with many could look like a line of its own.
pub fn value_line(ShownValue { expression, value, cut }: &ShownValue) -> String {
    let mut line = format!("{} = ", safe_line(expression));
    let mut after_blank = true;
    for c in shown(value).chars() {
        let is_blank = matches!(c, ' ' | '\u{3000}');
        match c {
            _ if is_blank && after_blank => line.push_str(if c == ' ' { "\\u{20}" } else { "\\u{3000}" }),
            c => line.push(c),
        }
        after_blank = is_blank;
    }
    line.push_str(if *cut { " ... (cut)" } else { "" });
    line
}

impl ListedApproval {
    /// The column headers for [`ListedApproval::cells`].
    pub const HEADER: [&'static str; 7] = ["NAME", "TOOL", "SERVER", "AGENT", "STATE", "AGE", "EXPIRES"];

    /// Returns the cells of a row.
    pub fn cells(&self, now: Timestamp) -> [String; 7] {
        let since = |from: Timestamp| short(span(from, now));
        let left = |to: Timestamp| format!("in {}", short(span(now, to)));
        let ends = self.expires_at().filter(|end| *end > now && !self.state().is_final());
        [
            self.name.clone(),
            one_word(&self.spec.tool).into_owned(),
            one_word(&self.spec.server).into_owned(),
            safe_line(&self.spec.agent.pod),
            self.state_text(now),
            self.created_at.map_or_else(|| "?".to_owned(), since),
            ends.map_or_else(|| "-".to_owned(), left),
        ]
    }

    /// Returns what an approver reads besides the row: why they are asked, and what is shown of the arguments. Lines that are indented.
    pub fn asked(&self) -> String {
        let message = Some(safe_line(&self.spec.message)).filter(|message| !message.is_empty());
        message.into_iter().chain(self.spec.shown.iter().map(value_line)).map(|line| format!("  {line}\n")).collect()
    }

    /// Describes all of it.
    pub fn described(&self, now: Timestamp) -> String {
        let Self { spec, status, .. } = self;
        let mut text = format!("{}: {}", self.full_name(), self.state_text(now));
        match self.expires_at() {
            Some(end) if end > now && !self.state().is_final() => {
                let _ = writeln!(text, ", until {}", clock(end, now));
            }
            _ => text.push('\n'),
        }
        let policies: Vec<String> = spec.policies.iter().map(policy_name).collect();
        let mut fields = vec![
            ("tool", format!("{} of server {}", one_word(&spec.tool), one_word(&spec.server))),
            ("agent", format!("pod {}, service account {}", safe_line(&spec.agent.pod), safe_line(&spec.agent.service_account))),
            ("asked by", policies.join(", ")),
        ];
        if !spec.message.is_empty() {
            fields.push(("why", safe_line(&spec.message)));
        }
        for (number, value) in spec.shown.iter().enumerate() {
            fields.push((if number == 0 { "shown" } else { "" }, value_line(value)));
        }
        fields.push(("arguments", format!("SHA-256 {}", safe_line(&spec.arguments_sha256))));
        if let Some(decision) = status.decision {
            fields.push(("decided", format!("{} by {}", decision.as_str(), self.decided_by())));
        }
        for (name, value) in [("reason", &status.reason), ("message", &status.message)] {
            fields.extend(value.as_ref().map(|value| (name, safe_line(value))));
        }
        for (name, value) in fields {
            let name = if name.is_empty() { String::new() } else { format!("{name}:") };
            let _ = writeln!(text, "  {name:<11}{value}");
        }
        text
    }

    /// Returns who decided, for people.
    pub fn decided_by(&self) -> String {
        self.status.decided_by.as_deref().map_or_else(|| "nobody that is named".to_owned(), safe_line)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_has_its_date_if_that_is_not_today() {
        let now = time("2026-12-01T23:50:10Z");
        assert_eq!(clock(time("2026-12-01T23:59:59.5Z"), now), "23:59 UTC");
        assert_eq!(clock(time("2026-12-02T00:05:00Z"), now), "2026-12-02 00:05 UTC");
        assert_eq!(span(now, time("2026-12-01T23:50:00Z")), Duration::ZERO);
    }

    #[test]
    fn what_others_wrote_stays_in_its_line() {
        let object = json!({
            "metadata": {"name": "pay-x", "namespace": "agents", "creationTimestamp": "2026-12-01T12:00:00Z"},
            "spec": {
                "server": "bank\u{1b}[2J", "tool": "pay of server test\nNAME", "argumentsSha256": "ab", "usableSeconds": 600,
                "agent": {"pod": "p\u{202e}", "podUid": "u", "serviceAccount": "s\u{9b}"},
                "policies": [{"namespace": "agents", "name": "b\u{7f}"}, {"name": "guard"}],
                "message": "one\ntwo\u{200b}", "requestedAt": "", "expiresAt": "2026-12-01T12:10:00Z",
                "shown": [{"expression": "args.a", "value": "5\n  args.b = 1\u{3000}\u{3000}"}, {"expression": "args.c\u{1b}", "value": "x", "cut": true}],
            },
            "status": {"decision": "Deny", "decidedBy": "eve\u{1b}", "reason": "no\u{202e}\nnever", "message": "m\u{85}"},
        });
        let read = ListedApproval::read(&serde_json::from_value(object).unwrap()).unwrap();
        let now = time("2026-12-01T12:01:00Z");
        let golden = "\
agents/pay-x: Pending (denied), until 12:10 UTC
  tool:      \"pay of server test\\nNAME\" of server \"bank\\u{1b}[2J\"
  agent:     pod p\u{fffd}, service account s\u{fffd}
  asked by:  agents/b\u{fffd}, guard
  why:       one two\u{fffd}
  shown:     args.a = 5\u{fffd} \\u{20}args.b = 1\u{3000}\\u{3000}
             args.c\u{fffd} = x ... (cut)
  arguments: SHA-256 ab
  decided:   Deny by eve\u{fffd}
  reason:    no\u{fffd} never
  message:   m\u{fffd}
";
        assert_eq!(read.described(now), golden);
        assert_eq!(read.cells(now)[..4], ["pay-x", r#""pay of server test\nNAME""#, r#""bank\u{1b}[2J""#, "p\u{fffd}"]);
        assert_eq!(
            read.asked(),
            "  one two\u{fffd}\n  args.a = 5\u{fffd} \\u{20}args.b = 1\u{3000}\\u{3000}\n  args.c\u{fffd} = x ... (cut)\n"
        );
    }
}
