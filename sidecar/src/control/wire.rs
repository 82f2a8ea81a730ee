//! Lines of the policy stream: bytes in, messages out. No sockets.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use serde::{Serialize, de::IgnoredAny};
use serde_json::value::RawValue;
use toolweir_crds::{
    approval_request::{ApprovalReport, ApprovalState, ReportedApproval},
    stream::{Ack, CredentialReport, DriftReport, InterceptionReport, LONGEST_ACK, PolicyProblem, Snapshot, StreamMessage},
    text::one_line,
};

/// A policy or pins as they came, not looked at yet.
pub type RawDocument = Box<RawValue>;

/// A snapshot of such.
pub type RawSnapshot = Snapshot<RawDocument, RawDocument>;

/// The kinds of lines: the label `kind`.
pub const KINDS: [&str; 6] = ["snapshot", "trust", "keep_alive", "shared_store", "approvals", "unknown"];
/// The kinds as they stand in a line.
const KNOWN: [&str; 5] = ["snapshot", "trust", "keepAlive", "sharedStore", "approvals"];
/// The longest version, in bytes; it is a label of a metric.
const LONGEST_VERSION: usize = 128;
/// The longest message about a policy, in characters; it is shown in the policy's status.
const LONGEST_PROBLEM: usize = 512;
/// More than what stands around the states of a report in its line.
const AROUND: usize = 64;

/// A line of the operator.
#[derive(Debug)]
pub enum StreamLine {
    /// A message.
    Message(StreamMessage<RawDocument, RawDocument>),
    /// One of a kind that a newer operator knows.
    Unknown(String),
}

impl StreamLine {
    /// The label `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Message(StreamMessage::Snapshot(_)) => "snapshot",
            Self::Message(StreamMessage::Trust(_)) => "trust",
            Self::Message(StreamMessage::Approvals(_)) => "approvals",
            Self::Message(StreamMessage::KeepAlive) => "keep_alive",
            Self::Message(StreamMessage::SharedStore(_)) => "shared_store",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// A line that is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// The line is longer than may be.
    #[error("a line has more than {0} bytes")]
    TooLong(usize),
    /// The line cannot be read.
    #[error("a line is not a message: {0}")]
    Unreadable(String),
    /// The version of a snapshot is empty, too long or not printable.
    #[error("the version of a snapshot is not 1 to {LONGEST_VERSION} printable characters")]
    Version,
}

/// Reads a line, without its end.
///
/// # Errors
/// The line is neither a message nor JSON of a kind that is not known.
pub fn read_line(line: &[u8]) -> Result<StreamLine, BadLine> {
    match serde_json::from_slice(line) {
        Ok(StreamMessage::Snapshot(snapshot)) if !is_version(&snapshot.version) => Err(BadLine::Version),
        Ok(message) => Ok(StreamLine::Message(message)),
        Err(error) => match kind(line).filter(|kind| !KNOWN.contains(&kind.as_str())) {
            Some(kind) => Ok(StreamLine::Unknown(kind.chars().take(64).collect())),
            None => Err(BadLine::Unreadable(one_line(&error.to_string(), LONGEST_PROBLEM))),
        },
    }
}

fn is_version(text: &str) -> bool {
    (1..=LONGEST_VERSION).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The kind of a message that says one: a string, or an object with one key.
#[expect(clippy::zero_sized_map_values, reason = "an object is read as a map")]
fn kind(line: &[u8]) -> Option<String> {
    if let Ok(kind) = serde_json::from_slice(line) {
        return Some(kind);
    }
    let mut keys = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(line).ok()?.into_keys();
    keys.next().filter(|_| keys.next().is_none())
}

/// The acknowledgement of a version, with what is wrong there.
pub fn ack(version: &str, problems: &[PolicyProblem]) -> Ack {
    let short = |problem: &PolicyProblem| PolicyProblem {
        policy: problem.policy.clone(),
        message: one_line(&problem.message, LONGEST_PROBLEM),
    };
    Ack { version: version.to_owned(), problems: problems.iter().map(short).collect() }
}

/// A report of credentials as it is sent.
pub fn short_report(report: CredentialReport) -> CredentialReport {
    CredentialReport { credentials: short_states(report.credentials, |state| &mut state.problem) }
}

/// A report of interception as it is sent.
pub fn short_interception(report: InterceptionReport) -> InterceptionReport {
    InterceptionReport { interception: short_states(report.interception, |state| &mut state.problem) }
}

/// A report of drift as it is sent: no more tools than fit into a line.
pub fn short_drift(report: DriftReport) -> DriftReport {
    DriftReport { drift: first_in_line(report.drift) }
}

/// A report of requests for approval as it is sent. Where they do not fit into a line, what is asked is left out of some: of those that are
/// approved first, which the operator knows, then of the newest. They are told once older ones have ended.
pub fn short_approvals(mut report: ApprovalReport) -> ApprovalReport {
    let length = |report: &ApprovalReport| serde_json::to_vec(report).map_or(0, |line| line.len());
    let is_approved = |approval: &ReportedApproval| approval.state == ApprovalState::Approved;
    while length(&report) + AROUND >= LONGEST_ACK {
        let asked = || report.approvals.iter().enumerate().rev().filter(|(_, approval)| approval.request.is_some());
        let longest = asked().find(|(_, approval)| is_approved(approval)).or_else(|| asked().next());
        match longest.map(|(at, _)| at).and_then(|at| report.approvals.get_mut(at)) {
            Some(approval) => approval.request = None,
            None => return ApprovalReport { approvals: first_in_line(report.approvals) },
        }
    }
    report
}

/// States with short texts, and no more than fit into a line. Those with a problem come first.
fn short_states<T: Serialize>(states: Vec<T>, problem: impl Fn(&mut T) -> &mut Option<String>) -> Vec<T> {
    let (mut wrong, mut right) = (Vec::new(), Vec::new());
    for mut state in states {
        let problem = problem(&mut state);
        *problem = problem.as_deref().map(|problem| one_line(problem, LONGEST_PROBLEM));
        if problem.is_some() { wrong.push(state) } else { right.push(state) }
    }
    wrong.append(&mut right);
    first_in_line(wrong)
}

/// As many of the first items as fit into a line.
fn first_in_line<T: Serialize>(mut items: Vec<T>) -> Vec<T> {
    while serde_json::to_vec(&items).is_ok_and(|line| line.len() + AROUND >= LONGEST_ACK) {
        items.truncate(items.len() / 2);
    }
    items
}

/// An acknowledgement as a line. Where there are more problems than a line may hold, it names the first.
pub fn ack_line(ack: &Ack) -> Bytes {
    let mut ack = std::borrow::Cow::Borrowed(ack);
    loop {
        let mut line = serde_json::to_vec(&*ack).unwrap_or_default();
        if line.len() < LONGEST_ACK || ack.problems.is_empty() {
            line.push(b'\n');
            return line.into();
        }
        let half = ack.problems.len() / 2;
        ack.to_mut().problems.truncate(half);
    }
}

/// Cuts pieces of bytes into lines. It holds at most one line, and that up to a bound.
#[derive(Debug)]
pub struct LineSplitter {
    held: Vec<u8>,
    longest: usize,
}

impl LineSplitter {
    /// Lines of at most this many bytes.
    pub fn new(longest: usize) -> Self {
        Self { held: Vec::new(), longest }
    }

    /// Returns how many bytes of a line that has not ended are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the next line out of a piece; nothing when all of the piece is taken and the line goes on.
    ///
    /// # Errors
    /// The line is too long.
    pub fn take(&mut self, piece: &mut Bytes) -> Result<Option<Bytes>, BadLine> {
        let end = memchr::memchr(b'\n', piece);
        let part = piece.split_to(end.unwrap_or(piece.len()));
        if self.held.len() + part.len() > self.longest {
            return Err(BadLine::TooLong(self.longest));
        }
        if end.is_none() {
            self.held.extend_from_slice(&part);
            return Ok(None);
        }
        piece.advance(1);
        if self.held.is_empty() {
            return Ok(Some(part));
        }
        self.held.extend_from_slice(&part);
        Ok(Some(std::mem::take(&mut self.held).into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn known_messages_are_read_unknown_kinds_told_and_the_rest_refused() {
        for (text, kind) in [
            (r#"{"snapshot":{"version":"1","policies":[{"kind":"x"},5]}}"#, "snapshot"),
            (r#"{"snapshot":{"version":"1","policies":[],"later":1}}"#, "snapshot"),
            (r#"{"trust":{"certificates":"x"}}"#, "trust"),
            ("\"keepAlive\"", "keep_alive"),
            (" \"keepAlive\" \r", "keep_alive"),
            (r#"{"later":{"snapshot":[]}}"#, "unknown"),
            ("\"later\"", "unknown"),
        ] {
            assert_eq!(read_line(text.as_bytes()).unwrap().kind(), kind, "{text}");
        }
        for text in [
            "",
            "{",
            "{}",
            "5",
            "null",
            "[\"keepAlive\"]",
            "\"snapshot\"",
            r#"{"snapshot":{"policies":[]}}"#,
            r#"{"snapshot":{"version":1,"policies":[]}}"#,
            r#"{"snapshot":{"version":"1","policies":{}}}"#,
            r#"{"snapshot":{"version":"1","policies":[]},"trust":{"certificates":""}}"#,
            r#"{"snapshot":{"version":"1","version":"2","policies":[]}}"#,
            r#"{"snapshot":{"version":"1","policies":[]}}{}"#,
            r#"{"later":1,"latest":2}"#,
            r#"{"later":1"#,
            r#"{"later":1} x"#,
            r#"{"trust":{}}"#,
            r#"{"Snapshot":{"version":"1","policies":[]}"#,
        ] {
            assert!(matches!(read_line(text.as_bytes()), Err(BadLine::Unreadable(_))), "{text}");
        }
        for version in ["", "a b", "\u{e9}", &"v".repeat(129)] {
            let text = format!(r#"{{"snapshot":{{"version":"{version}","policies":[]}}}}"#);
            assert_eq!(read_line(text.as_bytes()).unwrap_err(), BadLine::Version);
        }
        assert!(matches!(read_line(b"\"\xff\""), Err(BadLine::Unreadable(_))));
    }

    #[test]
    fn an_acknowledgement_fits_into_its_line() {
        let problem = |number: usize| PolicyProblem { policy: format!("agents/{number}"), message: "\"x\n".repeat(400) };
        let many: Vec<PolicyProblem> = (0..1000).map(problem).collect();
        let line = ack_line(&ack("v", &many));
        assert!(line.len() <= LONGEST_ACK && line.ends_with(b"}\n"));
        let read: Ack = serde_json::from_slice(&line).unwrap();
        assert!(read.version == "v" && read.problems.len() > 100, "{}", read.problems.len());
        assert_eq!(read.problems[0].message.chars().count(), 512);
        assert!(!read.problems[0].message.contains('\n'));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_pieces_in_which_they_come(
            text in vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..200),
            sizes in vec(1_usize..20, 1..20),
        ) {
            const LONGEST: usize = 12;
            let mut expected: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
            let rest = expected.pop().unwrap();
            let bad = expected.iter().position(|line| line.len() > LONGEST);
            let fits = bad.is_none() && rest.len() <= LONGEST;
            expected.truncate(bad.unwrap_or(expected.len()));
            let (mut lines, mut seen, mut failed) = (LineSplitter::new(LONGEST), Vec::new(), false);
            let (mut left, mut sizes) = (&*text, sizes.iter().cycle());
            while !left.is_empty() && !failed {
                let (piece, later) = left.split_at((*sizes.next().unwrap()).min(left.len()));
                left = later;
                let mut piece = Bytes::copy_from_slice(piece);
                loop {
                    match lines.take(&mut piece) {
                        Ok(Some(line)) => seen.push(line.to_vec()),
                        Ok(None) => break,
                        Err(error) => {
                            prop_assert_eq!(error, BadLine::TooLong(LONGEST));
                            failed = true;
                            break;
                        }
                    }
                }
                prop_assert!(lines.held() <= LONGEST);
            }
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(failed, !fits);
        }
    }
}
