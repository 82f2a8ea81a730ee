//! A report for people and programs.

use std::fmt::Write;

use toolweir_crds::{
    OperationKind,
    text::{safe_json, shown},
};

use crate::report::{Change, Damage, DecisionChange, ReplayReport};

const HEADER: [&str; 5] = ["CHANGE", "SERVER", "TOOL", "REASON", "CALLS"];

impl DecisionChange {
    /// Every kind, in the order in which reports have them.
    const ALL: [Self; 7] = [
        Self::NewlyDenied,
        Self::NewlyAsks,
        Self::NewlyAllowed,
        Self::NewlyWouldDeny,
        Self::NoLongerWouldDeny,
        Self::OtherReason,
        Self::Unknown,
    ];

    fn phrase(self) -> &'static str {
        match self {
            Self::NewlyDenied => "newly denied",
            Self::NewlyAsks => "newly asks",
            Self::NewlyAllowed => "newly allowed",
            Self::NewlyWouldDeny => "newly would_deny",
            Self::NoLongerWouldDeny => "no longer would_deny",
            Self::OtherReason => "other reason",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: is a damaged audit line: {}", shown(&self.log), self.line, shown(&self.why))
    }
}

impl ReplayReport {
    /// Formats the report for programs: an object of JSON, indented.
    ///
    /// # Errors
    /// None that is known.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| safe_json(&text) + "\n")
    }

    /// Formats the report for people.
    pub fn text(&self) -> String {
        let mut text = format!("{} call{}", self.calls, if self.calls == 1 { "" } else { "s" });
        if let (Some(from), Some(to)) = (&self.from, &self.to) {
            let _ = write!(text, " from {from} to {to}: {} as before", self.unchanged);
        }
        for kind in DecisionChange::ALL.into_iter().filter(|kind| self.count(*kind) > 0) {
            let _ = write!(text, ", {} {}", self.count(kind), kind.phrase());
        }
        text.push('\n');
        if !self.operations.is_empty() {
            let others: Vec<String> =
                self.operations.iter().map(|(method, calls)| format!("{calls} {}", shown(method))).collect();
            let _ = writeln!(text, "Of these, no calls of tools: {}", others.join(", "));
        }
        let skipped = self.skipped_lines;
        let skipped = [
            (skipped.connections, "of connections"),
            (skipped.approvals, "of approvals"),
            (skipped.other, "other"),
            (skipped.damaged, "damaged"),
        ];
        let skipped: Vec<String> =
            skipped.iter().filter(|(lines, _)| *lines > 0).map(|(lines, what)| format!("{lines} {what}")).collect();
        if !skipped.is_empty() {
            let _ = writeln!(text, "Lines that are no calls: {}", skipped.join(", "));
        }
        if !self.changes.is_empty() {
            text.push('\n');
            self.add_table(&mut text);
        }
        for (number, note) in self.notes.iter().enumerate() {
            let _ = writeln!(text, "{}note: {}", if number == 0 { "\n" } else { "" }, shown(note));
        }
        text
    }

    fn add_table(&self, text: &mut String) {
        let rows: Vec<[String; 5]> = self.changes.iter().map(Change::cells).collect();
        let mut widths = HEADER.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: [&str; 5]| {
            let padded: String = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
            format!("{}\n", padded.trim_end())
        };
        text.push_str(&line(HEADER));
        for (row, change) in rows.iter().zip(&self.changes) {
            text.push_str(&line(row.each_ref().map(String::as_str)));
            for example in &change.examples {
                let by = example.policy.iter().map(|policy| format!("  {policy}"));
                let entry = example.entry.iter().map(|entry| format!(", entry {}", shown(entry)));
                let who: String = by.chain(entry).collect();
                let _ = writeln!(text, "  {}  {}:{}{who}", example.time, shown(&example.log), example.line);
            }
        }
    }
}

impl Change {
    fn cells(&self) -> [String; 5] {
        // What servers ask for has a method of its own, and another method is its own name.
        let what = match &self.operation {
            None => shown(&self.tool).into_owned(),
            Some(method) if *method == self.tool || OperationKind::of_method(method) == OperationKind::Request => {
                shown(method).into_owned()
            }
            Some(method) => format!("{} {}", shown(method), shown(&self.tool)),
        };
        [self.change.phrase().to_owned(), shown(&self.server).into_owned(), what, self.reason.to_owned(), self.calls.to_string()]
    }
}
