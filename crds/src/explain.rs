//! The answer of `POST /explain` at the sidecar's administration: what it would decide on a call. The sidecar writes it and
//! `kubectl toolweir explain` reads it. Fields that are left out have their defaults, so the two can have different versions.

use serde::{Deserialize, Serialize};

use crate::{Action, Mode, OperationKind, Scope, TimeSpan, ToolClass, ToolPart, approval_request::ShownValue};

/// The answer of `POST /explain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExplainResponse {
    /// The version of the policies in force.
    pub version: String,
    /// The servers that they name, by name.
    pub servers: Vec<String>,
    /// The decision, and why.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// The decision on a call, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// The server's name in the policies.
    pub server: String,
    /// The kind of what is asked for.
    #[serde(skip_serializing_if = "OperationKind::is_tool")]
    pub kind: OperationKind,
    /// The tool, or the name of what else is asked for.
    pub tool: String,
    /// `allowed`, `denied`, `would_deny` or `would_ask`, as the audit log would say it.
    pub decision: String,
    /// The class of the tool, by the definitions that its server listed last; absent where no policy of the server reads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<ToolClass>,
    /// Why, and by which entry of which policy.
    pub verdict: VerdictExplanation,
    /// The denials by policies in audit mode, the most severe first. Empty for a denied call.
    pub would_deny: Vec<VerdictExplanation>,
    /// Every policy that has a say, by name.
    pub policies: Vec<PolicyExplanation>,
}

/// A decision, by one policy or by all of them together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VerdictExplanation {
    /// True if the call is allowed.
    pub allowed: bool,
    /// Why, as in the metrics' label `reason`.
    pub reason: String,
    /// The policy that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The entry of that policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The text that the model would get; absent where it would get none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whole seconds after which it is worth trying again; absent where waiting does not help or how long is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// What a person would be asked, for `approval_pending`. Whether one was asked already, and what was decided, it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<AskExplanation>,
}

/// What a person would be asked about a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AskExplanation {
    /// The policies that ask, as `namespace/name`, or `name` of an `MCPClusterPolicy`. One approval satisfies them all.
    pub policies: Vec<String>,
    /// Why, in their words; empty where none says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the person would be shown of the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shown: Vec<ShownValue>,
    /// How long the call would wait for the decision.
    pub hold: TimeSpan,
    /// How long the request would wait, and how long an approval could be used.
    pub expiry: TimeSpan,
    /// The requests that may wait at once.
    pub pending: u32,
}

/// The explanation of one policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyExplanation {
    /// The policy: `namespace/name`, or `name` of an `MCPClusterPolicy`.
    pub policy: String,
    /// Its mode.
    pub mode: Mode,
    /// Why it does not compile. It denies everything on its servers then, in whatever mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// Its decision on its own.
    pub verdict: VerdictExplanation,
    /// Its entries on the server: under its name, and under `*`.
    pub servers: Vec<ServerExplanation>,
}

/// The entry of a policy on a server, under one name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerExplanation {
    /// The name that the policy gives it; `*` for every server.
    pub server: String,
    /// The answer for tools that no entry has a say in.
    pub default_action: Action,
    /// Its action for the tool.
    pub action: Action,
    /// How the tool compares with the pins of the policy; absent where it names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pins: Option<PinsExplanation>,
    /// The entry that gives the action; absent where `defaultAction` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The entries that match the tool, the most specific first.
    pub entries: Vec<EntryExplanation>,
}

/// The explanation of one entry for tools.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryExplanation {
    /// The entry's name.
    pub name: String,
    /// Its action; absent where it has no say in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Its conditions.
    pub validations: Vec<ValidationExplanation>,
    /// Its approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalExplanation>,
    /// Its limits.
    pub limits: Vec<LimitExplanation>,
    /// Its `maxConcurrent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<ConcurrencyExplanation>,
}

/// How a tool compares with the pins of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PinsExplanation {
    /// The pins, as `namespace/name`.
    pub pins: String,
    /// `same`, `changed`, `new` (it is not pinned), `unverified` (no list had it yet) or `missing` (there are no such pins).
    pub state: String,
    /// The parts that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<ToolPart>,
}

/// The result of a condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ValidationExplanation {
    /// The expression.
    pub expression: String,
    /// True if it holds. A condition that cannot be evaluated does not hold.
    pub holds: bool,
    /// Why it could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether an entry wants the approval of a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApprovalExplanation {
    /// The condition; absent where every call needs approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// True if the call needs approval. It does where the condition cannot be evaluated.
    pub asks: bool,
    /// Why the condition could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How long a call waits for the decision.
    pub hold: TimeSpan,
    /// How long a request waits, and how long an approval can be used.
    pub expiry: TimeSpan,
    /// The requests that may wait at once.
    pub pending: u32,
}

/// The state of a limit, and whether the call fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitExplanation {
    /// The limit in short, such as `30/minute`.
    pub limit: String,
    /// Its maximum.
    pub max: i64,
    /// Its window, as the policy writes it.
    pub window: String,
    /// The scope of its counts.
    pub scope: Scope,
    /// The expression of which each value has a count of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The value that it has for the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_value: Option<String>,
    /// The expression of what a call adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// The part of `max` that is used, in the count that the call belongs to.
    pub used: f64,
    /// The part of `max` that is left.
    pub left: f64,
    /// True if `used` is that of the fullest count, since the call's own is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fullest: bool,
    /// The amount that the call would add, together with limits of the same counter; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adds: Option<f64>,
    /// True if the call fits.
    pub fits: bool,
    /// Whole seconds after which it fits, if nothing else is let through before; absent where it fits or never will.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// True if pods share the count and the store does not answer: then `used` is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub store_unavailable: bool,
    /// Why its key or cost could not be computed, which denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Places among the calls that are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConcurrencyExplanation {
    /// The maximum.
    pub max: u64,
    /// The calls that are under way.
    pub under_way: u64,
    /// The scope of the count.
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
    /// True if pods share the count and the store does not answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub store_unavailable: bool,
}

/// The answer of `POST /explain` for a URL: what would become of a connection that a captured container of the pod opens for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionExplanation {
    /// The URL as it was asked for.
    pub url: String,
    /// The name of its host, in lower case and without a final dot; an address as it is written.
    pub name: String,
    /// The port.
    pub port: u16,
    /// The declared server that it leads to, which governs the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// `governed`, `allowed`, `denied` or `would_deny`.
    pub decision: String,
    /// Why, as in the label `reason` of `toolweir_egress_connections_total`.
    pub reason: String,
    /// The policy that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The authority that signs the certificate that the agent sees, where its TLS is opened: its subject, fingerprint and expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_by: Option<String>,
    /// The decision in words, with what to write where it is a denial.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_read_as_far_as_it_is_known() {
        let text = r#"{"version":"v1","servers":["s"],"new":1,"server":"s","tool":"t","decision":"denied",
            "verdict":{"allowed":false,"reason":"newer"},"policies":[{"policy":"p","newer":[]}]}"#;
        let answer: ExplainResponse = serde_json::from_str(text).unwrap();
        assert_eq!((answer.version.as_str(), answer.explanation.server.as_str()), ("v1", "s"));
        assert_eq!(answer.explanation.verdict.reason, "newer");
        assert_eq!(answer.explanation.policies[0].mode, Mode::Enforce);
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let limit =
            LimitExplanation { limit: "1/minute".to_owned(), max: 1, used: 0.5, fits: true, ..LimitExplanation::default() };
        let approval = ApprovalExplanation {
            when: Some("args.n > 5".to_owned()),
            asks: true,
            hold: "30s".parse().unwrap(),
            expiry: "1h30m".parse().unwrap(),
            ..ApprovalExplanation::default()
        };
        let ask = AskExplanation {
            policies: vec!["agents/p".to_owned()],
            shown: vec![ShownValue { expression: "args.n".to_owned(), value: "7".to_owned(), cut: true }],
            pending: 5,
            ..AskExplanation::default()
        };
        let entry = EntryExplanation {
            approval: Some(approval),
            limits: vec![limit],
            max_concurrent: Some(ConcurrencyExplanation::default()),
            ..EntryExplanation::default()
        };
        let server = ServerExplanation { entries: vec![entry], action: Action::Allow, ..ServerExplanation::default() };
        let verdict = VerdictExplanation { approval: Some(ask), ..VerdictExplanation::default() };
        let said = PolicyExplanation { servers: vec![server], mode: Mode::Audit, verdict, ..PolicyExplanation::default() };
        let answer = ExplainResponse {
            explanation: Explanation { policies: vec![said], ..Explanation::default() },
            ..ExplainResponse::default()
        };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<ExplainResponse>(&text).unwrap(), answer, "{text}");
    }
}
