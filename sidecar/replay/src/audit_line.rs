//! Reads a line of an audit log.

use std::{borrow::Cow, num::NonZeroU64, time::UNIX_EPOCH};

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use toolweir_crds::{
    OperationKind, ToolClass, ToolPart,
    bounds::{RESOURCE_URI, TOOL_NAME},
    text::escaped,
};
use toolweir_engine::{
    Operation, Reason,
    json::{JsonError, Raw, Reader},
};

/// A line of a log.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordedLine<'a> {
    /// The audit line of a call, or of another operation.
    Call(CallLine<'a>),
    /// The audit line of a captured connection.
    Connection,
    /// The audit line of a step of a request for approval. What became of the call itself, its own line says.
    Approval,
    /// No audit line: such as one of the sidecar's own log.
    Other,
    /// An audit line that cannot be read, and why.
    Damaged(String),
}

/// What was decided on a recorded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordedEffect {
    /// It was let through, and no policy objected.
    Allowed,
    /// It was let through, though a policy in audit mode objected: it would have denied it, or asked a person.
    WouldDeny,
    /// A person had to be asked, or was, and it was not let through.
    Asked,
    /// It was denied.
    Denied,
}

/// The audit line of a call, or of another operation.
#[derive(Clone, Debug, PartialEq)]
pub struct CallLine<'a> {
    /// When it came, in nanoseconds since 1970.
    pub time: u64,
    /// The server's name.
    pub server: Cow<'a, str>,
    /// The kind of what was asked for.
    pub kind: OperationKind,
    /// The method.
    pub method: Cow<'a, str>,
    /// The name of the tool, or of what else was asked for.
    pub name: Cow<'a, str>,
    /// What was decided.
    pub effect: RecordedEffect,
    /// Why.
    pub reason: Reason,
    /// Whether a person had approved it.
    pub approval: LineApproval,
    /// True if a policy decided; false where none governs the server, and where the call was turned away before.
    pub by_policy: bool,
    /// True if the shared store did not answer.
    pub store_silent: bool,
    /// True if nothing of the call was sent, so that what it had taken was given back.
    pub nothing_sent: bool,
    /// Nanoseconds from its arrival to its answer.
    pub latency: u64,
    /// The hash of its session, if it has one.
    pub session: Option<NonZeroU64>,
    /// Its arguments.
    pub arguments: LineArguments<'a>,
    /// The class of its tool, if the line says it.
    pub class: Option<ToolClass>,
    /// How its tool compared with pins.
    pub pins: LinePins,
}

/// What a line says of how the tool compared with the pins that were in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinePins {
    /// Nothing: it was as pinned, or no policy held it to pins.
    #[default]
    NotSaid,
    /// It was as pinned.
    Same,
    /// It was another.
    Changed,
    /// It was not pinned.
    New,
    /// It was not known.
    Unverified,
}

impl LinePins {
    /// Reads the parts that differed, where the line has them, and the reason of the decision.
    fn new(drift: Option<&[Cow<'_, str>]>, reason: Option<Reason>) -> Self {
        match (drift, reason) {
            (Some([_, ..]), _) | (None, Some(Reason::PinDrift)) => Self::Changed,
            (_, Some(Reason::NotPinned)) => Self::New,
            (_, Some(Reason::PinUnverified)) => Self::Unverified,
            (Some([]), _) => Self::Same,
            (None, _) => Self::NotSaid,
        }
    }
}

/// Whether a person had approved a call when it was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineApproval {
    /// Nobody had: nobody was asked, or it waited.
    #[default]
    None,
    /// Somebody had.
    Approved,
}

/// What a line has of the arguments of its call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LineArguments<'a> {
    /// The call has none.
    None,
    /// The line has only their hash.
    Hashed,
    /// The line has them.
    Known(Raw<'a>),
}

/// The fields of the audit line of a call.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallFields<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    server: Cow<'a, str>,
    #[serde(borrow)]
    tool: Option<Cow<'a, str>>,
    #[serde(borrow)]
    operation: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    decision: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    policy: Option<IgnoredAny>,
    shared_store: Option<IgnoredAny>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    latency_ms: f64,
    session: Option<&'a str>,
    arguments_sha256: Option<IgnoredAny>,
    #[serde(borrow, default, deserialize_with = "present")]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    class: Option<Cow<'a, str>>,
    #[serde(borrow)]
    drift: Option<Vec<Cow<'a, str>>>,
    approval: Option<IgnoredAny>,
}

/// Reads a field that is there, even where it is `null`.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The fields that tell lines apart.
#[derive(Deserialize)]
struct LineKind<'a> {
    decision: Option<IgnoredAny>,
    destination: Option<IgnoredAny>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
}

/// How every audit line begins.
const BEGINNING: &str = "{\"time\":";
/// What only audit lines have.
const DECISION: &str = "\"decision\":";
/// The `event` of the audit line of a step of a request for approval.
const APPROVAL: &str = "approval";
/// The outcomes of calls of which nothing was sent (`RequestFailure::nothing_sent` of the sidecar).
const NOTHING_SENT: [&str; 2] = ["connect_failed", "credential_unavailable"];

impl<'a> RecordedLine<'a> {
    /// Reads a line. What a log collector or `kubectl logs --timestamps` wrote before an audit line is skipped.
    pub fn read(line: &'a [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(line) else {
            let lossy = String::from_utf8_lossy(line);
            let is_audit = lossy.contains(BEGINNING) || lossy.contains(DECISION);
            return if is_audit { Self::Damaged("it is not UTF-8".to_owned()) } else { Self::Other };
        };
        let text = text.trim();
        let start = if text.starts_with('{') { 0 } else { text.find(BEGINNING).unwrap_or(0) };
        let text = text.get(start..).unwrap_or_default();
        match serde_json::from_str::<CallFields<'_>>(text) {
            Ok(fields) => match CallLine::new(fields) {
                Ok(call) => Self::Call(call),
                Err(why) => Self::Damaged(why),
            },
            Err(error) => match serde_json::from_str::<LineKind<'_>>(text) {
                Ok(LineKind { decision: Some(_), destination: Some(_), .. }) => Self::Connection,
                Ok(LineKind { decision: None, event: Some(event), .. }) if event == APPROVAL => Self::Approval,
                Ok(LineKind { decision: None, .. }) => Self::Other,
                Err(_) if !text.starts_with(BEGINNING) && !text.contains(DECISION) => Self::Other,
                _ => Self::Damaged(error.to_string()),
            },
        }
    }
}

/// The kind, method and name of what was asked for.
type Asked<'a> = (OperationKind, Cow<'a, str>, Cow<'a, str>);

/// Returns why a field cannot be read.
fn unknown(field: &str, text: &str) -> String {
    format!("its `{field}` is `{}`, which is not known here", escaped(text, 80))
}

/// Reads the hash of a session.
fn session_number(hash: &str) -> Result<NonZeroU64, String> {
    let number = u64::from_str_radix(hash, 16).ok().filter(|_| hash.len() == 16).ok_or_else(|| unknown("session", hash))?;
    // None stands for no session, and no session hashes to zero in our lifetime.
    Ok(NonZeroU64::new(number).unwrap_or(NonZeroU64::MAX))
}

impl<'a> CallFields<'a> {
    /// Takes what was asked for. Lines of tool calls have `tool`, and no method.
    fn take_asked(&mut self) -> Result<Asked<'a>, String> {
        match (self.tool.take(), self.operation.take(), self.name.take()) {
            (Some(tool), None, _) => Ok((OperationKind::Tool, Cow::Borrowed("tools/call"), tool)),
            (None, Some(method), Some(name)) => {
                let kind = match self.kind.as_deref() {
                    Some(noun) => OperationKind::of_noun(noun).ok_or_else(|| unknown("kind", noun))?,
                    None => OperationKind::of_method(&method),
                };
                Ok((kind, method, name))
            }
            (Some(_), Some(_), _) => Err("it has a `tool` and an `operation`".to_owned()),
            (None, Some(_), None) => Err("its `operation` has no `name`".to_owned()),
            (None, None, _) => Err("it has no `tool` and no `operation`".to_owned()),
        }
    }
}

impl<'a> CallLine<'a> {
    fn new(mut fields: CallFields<'a>) -> Result<Self, String> {
        let (kind, method, name) = fields.take_asked()?;
        let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == fields.reason);
        let effect = match &*fields.decision {
            "allowed" => RecordedEffect::Allowed,
            "would_deny" | "would_ask" => RecordedEffect::WouldDeny,
            "denied" if reason.is_some_and(is_of_approval) => RecordedEffect::Asked,
            // It was let through, and its result was not. How large results are, no decision knows.
            "denied" if reason == Some(Reason::ResultTooLarge) => RecordedEffect::Allowed,
            "denied" => RecordedEffect::Denied,
            other => return Err(unknown("decision", other)),
        };
        let time = humantime::parse_rfc3339(&fields.time).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let session = fields.session.map(session_number).transpose()?;
        if !fields.latency_ms.is_finite() || fields.latency_ms < 0.0 {
            return Err(unknown("latencyMs", &fields.latency_ms.to_string()));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; `as` saturates")]
        let latency = (fields.latency_ms * 1e6) as u64;
        let class = match fields.class.as_deref() {
            None => None,
            Some(name) => {
                let known = ToolClass::ALL.into_iter().find(|class| class.as_str() == name);
                Some(known.ok_or_else(|| unknown("class", name))?)
            }
        };
        let is_part = |name: &str| ToolPart::ALL.into_iter().any(|part| part.as_str() == name);
        if let Some(name) = fields.drift.iter().flatten().find(|name| !is_part(name)) {
            return Err(unknown("drift", name));
        }
        let arguments = match (fields.arguments, fields.arguments_sha256) {
            (Some(raw), _) => LineArguments::Known(value(raw.get()).map_err(|why| format!("its `arguments` {why}"))?),
            (None, Some(_)) => LineArguments::Hashed,
            (None, None) => LineArguments::None,
        };
        Ok(Self {
            time: time.and_then(|time| u64::try_from(time.as_nanos()).ok()).ok_or_else(|| unknown("time", &fields.time))?,
            effect,
            reason: reason.ok_or_else(|| unknown("reason", &fields.reason))?,
            // A call that waits names its request, too. One that a limit denied had been approved.
            approval: match fields.approval {
                Some(_) if effect != RecordedEffect::Asked => LineApproval::Approved,
                _ => LineApproval::None,
            },
            by_policy: fields.policy.is_some(),
            store_silent: fields.shared_store.is_some() || reason == Some(Reason::StoreUnavailable),
            nothing_sent: NOTHING_SENT.contains(&&*fields.outcome),
            latency,
            session,
            arguments,
            class,
            pins: LinePins::new(fields.drift.as_deref(), reason),
            server: fields.server,
            kind,
            method,
            name,
        })
    }

    /// Returns what was asked for.
    pub fn operation(&self) -> Operation<'_> {
        Operation { kind: self.kind, name: &self.name, method: &self.method }
    }

    /// Returns true if it was turned away before policies were asked, or for a name that the line has only in part. No policy can
    /// change that.
    pub fn is_beyond_policies(&self) -> bool {
        let longest = if self.kind == OperationKind::Resource { RESOURCE_URI } else { TOOL_NAME };
        self.reason == Reason::Malformed && (!self.by_policy || self.name.chars().count() >= longest)
    }
}

/// Returns true if a call was denied since a person had to approve it.
fn is_of_approval(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ApprovalPending
            | Reason::ApprovalDenied
            | Reason::ApprovalExpired
            | Reason::ApprovalFull
            | Reason::ApprovalUnavailable
    )
}

/// Reads a JSON value as the engine does.
pub fn value(json: &str) -> Result<Raw<'_>, JsonError> {
    Reader::new(json.as_bytes())?.value()
}
