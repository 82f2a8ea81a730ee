//! The audit log: one JSON line for each tool call, for each step of a request for approval, and for each captured connection to another
//! destination than a declared server.
//!
//! Lines are gathered in memory and written by a thread of their own, so that no call waits for who reads them. When
//! nobody reads, lines are lost once `MOST` bytes wait, and a metric says so.

use std::{
    io::Write,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use prometheus::IntCounter;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::value::RawValue;
use toolweir_crds::{PartSet, ToolPart};

use crate::registry::MetricsRegistry;

/// The most bytes that may wait to be written.
const MOST: usize = 1024 * 1024;

/// The time in which lines gather before they are written together: one wake-up for many calls.
const GATHER: Duration = Duration::from_millis(20);

/// The most bytes that a line holds of the arguments of a call.
pub const MOST_ARGUMENTS: usize = 16 * 1024;

/// A line on a tool call. The session stands in it as a hash only, and so do the arguments unless a policy says otherwise.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLine<'a> {
    /// When the call came, in RFC 3339.
    pub time: String,
    /// The server's name in the policy.
    pub server: &'a str,
    /// The tool; absent in the line of another operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<&'a str>,
    /// The method of another operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<&'a str>,
    /// What it names: a prompt, a URI as the client wrote it, what the server asks for, or the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// What a completion/complete refers to: a `prompt` or a `resource`; `method` where an operation that usually names something is
    /// decided as `other`. Absent where the operation says what it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'a str>,
    /// `allowed`, `denied`, `would_deny` or `would_ask`.
    pub decision: &'a str,
    /// Why, as in the metrics.
    pub reason: &'a str,
    /// The policy that decided.
    pub policy: Option<&'a str>,
    /// The entry of that policy.
    pub entry: Option<&'a str>,
    /// The fallback where the shared store did not answer: `Deny`, `PerPod` or `Allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_store: Option<&'a str>,
    /// The class of the tool, where policies of the server read definitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<&'a str>,
    /// The parts of the tool's definition that are not as pins of a policy have them; none of them where it is as pinned. Absent where no
    /// pins of policies have the tool, or nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "part_names")]
    pub drift: Option<PartSet>,
    /// The name of the request for approval, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<&'a str>,
    /// The request's outcome, as in the metrics.
    pub outcome: &'a str,
    /// Milliseconds from the request's arrival to the head of its answer.
    pub latency_ms: f64,
    /// The first 16 hex digits of the SHA-256 of the MCP session's id.
    pub session: Option<String>,
    /// The SHA-256 of the arguments as they stand in the request.
    pub arguments_sha256: Option<String>,
    /// The arguments, where policies ask for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a RawValue>,
    /// True if policies ask for the arguments, and they have more than [`MOST_ARGUMENTS`] bytes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub arguments_too_large: bool,
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn part_names<S: serde::Serializer>(parts: &Option<PartSet>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(parts.iter().flat_map(|parts| parts.iter()).map(ToolPart::as_str))
}

/// What a line holds of the arguments of a call.
#[derive(Debug)]
pub struct AuditedArguments(Option<Box<RawValue>>);

impl AuditedArguments {
    /// Of arguments as they stand in the request: a JSON value. Numbers, strings and the order of members stay as they are.
    pub fn of(json: &str) -> Self {
        Self(without_space(json).and_then(|text| RawValue::from_string(text).ok()))
    }

    /// The text, if it is not too large.
    pub fn text(&self) -> Option<&RawValue> {
        self.0.as_deref()
    }

    /// True if they have more than [`MOST_ARGUMENTS`] bytes.
    pub fn is_too_large(&self) -> bool {
        self.0.is_none()
    }
}

/// A JSON text without the space between its tokens, if it has no more than [`MOST_ARGUMENTS`] bytes then.
fn without_space(json: &str) -> Option<String> {
    let mut compact = String::with_capacity(json.len().min(MOST_ARGUMENTS));
    let (mut in_string, mut escaped) = (false, false);
    for char in json.chars() {
        match char {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            _ => {}
        }
        if compact.len() + char.len_utf8() > MOST_ARGUMENTS {
            return None;
        }
        compact.push(char);
    }
    Some(compact)
}

/// A line of the audit log on a connection that leads to no declared server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressLine<'a> {
    /// When it came, in RFC 3339.
    pub time: String,
    /// The host that it names, else the address, and the port.
    pub destination: &'a str,
    /// `http`, `tls`, or `other`.
    pub protocol: &'a str,
    /// `allowed`, `denied` or `would_deny`.
    pub decision: &'a str,
    /// Why, as in the metrics.
    pub reason: &'a str,
    /// The policy that decided.
    pub policy: Option<&'a str>,
}

/// A line of the audit log on a step of a request for approval.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalLine<'a> {
    /// When it happened, in RFC 3339.
    pub time: String,
    /// `approval`: what tells it from a line on a call.
    pub event: &'a str,
    /// `requested`, `approved`, `denied`, `expired`, `voided`, `used` or `returned`.
    pub step: &'a str,
    /// The name of the request.
    pub approval: &'a str,
    /// The server that is called.
    pub server: &'a str,
    /// The tool that is called.
    pub tool: &'a str,
    /// The policies that ask.
    pub policies: &'a [String],
    /// Who decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'a str>,
    /// The person's reason, or why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The SHA-256 of the arguments in their canonical form.
    pub arguments_sha256: &'a str,
}

/// A SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

/// A session's id as the log shows it.
pub fn session_hash(session: &str) -> Option<String> {
    (!session.is_empty()).then(|| sha256(session.as_bytes()).chars().take(16).collect())
}

/// A point in time as the log shows it.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[derive(Debug, Default)]
struct AuditQueue {
    waiting: Vec<u8>,
    writing: bool,
    closed: bool,
}

#[derive(Debug)]
struct AuditBuffer {
    state: Mutex<AuditQueue>,
    changed: Condvar,
    /// `toolweir_audit_lost_total`
    lost: IntCounter,
}

/// A handle of the log.
#[derive(Clone, Debug)]
pub struct Audit(Arc<AuditBuffer>);

impl Audit {
    /// Starts a log that is written to `out`, and registers its metric.
    ///
    /// # Errors
    /// The thread cannot be started, or the metric is registered already.
    pub fn new(mut out: impl Write + Send + 'static, registry: &MetricsRegistry) -> std::io::Result<Self> {
        let lost = registry.counter("toolweir_audit_lost_total", "Audit lines that were lost since stdout was not read.");
        let lost = lost.map_err(std::io::Error::other)?;
        let audit = Self(Arc::new(AuditBuffer { state: Mutex::default(), changed: Condvar::new(), lost }));
        let shared = Arc::clone(&audit.0);
        thread::Builder::new().name("audit".into()).stack_size(64 * 1024).spawn(move || {
            let mut lines = Vec::new();
            loop {
                {
                    let state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut state = shared
                        .changed
                        .wait_while(state, |state| state.waiting.is_empty() && !state.closed)
                        .unwrap_or_else(PoisonError::into_inner);
                    if state.waiting.is_empty() {
                        return;
                    }
                    if !state.closed {
                        drop(state);
                        thread::sleep(GATHER);
                        state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                    }
                    std::mem::swap(&mut state.waiting, &mut lines);
                    state.writing = true;
                }
                // Who reads may be gone (a closed pipe, a full disk): calls go on, and the loss shows.
                if let Err(error) = out.write_all(&lines).and_then(|()| out.flush()) {
                    let count = memchr::memchr_iter(b'\n', &lines).count();
                    shared.lost.inc_by(count as u64);
                    tracing::error!(%error, count, "audit lines were lost");
                }
                lines.clear();
                lines.shrink_to(64 * 1024);
                shared.state.lock().unwrap_or_else(PoisonError::into_inner).writing = false;
                shared.changed.notify_all();
            }
        })?;
        Ok(audit)
    }

    /// Adds a line.
    pub fn write(&self, line: &impl Serialize) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = state.waiting.is_empty();
        let before = state.waiting.len();
        if before > MOST || serde_json::to_writer(&mut state.waiting, line).is_err() {
            state.waiting.truncate(before);
            self.0.lost.inc();
            return;
        }
        state.waiting.push(b'\n');
        drop(state);
        if first {
            self.0.changed.notify_all();
        }
    }

    /// Waits until every line is written, but not longer than a second.
    pub fn close(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        self.0.changed.notify_all();
        let wait = |state: &mut AuditQueue| state.writing || !state.waiting.is_empty();
        let _ = self.0.changed.wait_timeout_while(state, Duration::from_secs(1), wait);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Sender(mpsc::Sender<Vec<u8>>);

    impl Write for Sender {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_whole_and_in_order() {
        let (sender, receiver) = mpsc::channel();
        let audit = Audit::new(Sender(sender), &MetricsRegistry::default()).unwrap();
        for number in 0..100 {
            audit.write(&AuditLine {
                time: timestamp(SystemTime::UNIX_EPOCH),
                server: "s",
                tool: Some(&format!("t\n{number}")),
                operation: None,
                name: None,
                kind: None,
                decision: "allowed",
                reason: "none",
                policy: None,
                entry: None,
                shared_store: None,
                class: None,
                drift: None,
                approval: None,
                outcome: "ok",
                latency_ms: 0.5,
                session: session_hash("abc"),
                arguments_sha256: Some(sha256(b"{}")),
                arguments: None,
                arguments_too_large: false,
            });
        }
        audit.close();
        let written: Vec<u8> = receiver.try_iter().flatten().collect();
        let lines: Vec<serde_json::Value> =
            String::from_utf8(written).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 100);
        assert_eq!(lines[7]["tool"], "t\n7");
        assert_eq!(lines[7]["session"], "ba7816bf8f01cfea");
        assert_eq!(lines[7]["time"], "1970-01-01T00:00:00.000Z");
        assert!(lines[7].get("arguments").is_none() && lines[7].get("argumentsTooLarge").is_none());
    }

    #[test]
    fn arguments_are_written_as_they_were_sent_without_space() {
        let text = |json: &str| AuditedArguments::of(json).text().map(|raw| raw.get().to_owned());
        for (json, expected) in [
            ("{}", "{}"),
            (" { \"b\" : 1.50e+0 ,\n\t\"a\":[ 1 , -0, 9007199254740993 ] } ", r#"{"b":1.50e+0,"a":[1,-0,9007199254740993]}"#),
            (r#"{"k": " a \" b \\", "k":  "\\\" "}"#, r#"{"k":" a \" b \\","k":"\\\" "}"#),
            (r#"{"half": "\ud800", "é": "\u0020 "}"#, r#"{"half":"\ud800","é":"\u0020 "}"#),
        ] {
            assert_eq!(text(json).as_deref(), Some(expected));
        }
        let long = |bytes: usize| format!("[\"{}\" ]", "x".repeat(bytes - 4));
        assert_eq!(text(&long(MOST_ARGUMENTS)).map(|text| text.len()), Some(MOST_ARGUMENTS));
        assert!(AuditedArguments::of(&long(MOST_ARGUMENTS + 1)).is_too_large());
        assert!(AuditedArguments::of(&format!("[{}]", "é".repeat(MOST_ARGUMENTS / 2))).is_too_large());
    }
}
