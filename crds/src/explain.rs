//! What a sidecar says to the question what it would decide on a call: `POST /explain` of its administration. The sidecar writes
//! it, `kubectl toolweir explain` reads it; what is left out has its default, so that the two need not be of one version.

use serde::{Deserialize, Serialize};

use crate::{Action, Mode, Scope};

/// The answer of `POST /explain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// The version of the policies in force.
    pub version: String,
    /// The servers that they name, by name.
    pub servers: Vec<String>,
    /// What would be decided, and why.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// What would be decided on a call, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// The server's name in the policies.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// `allowed`, `denied` or `would_deny`, as the audit log would say it.
    pub decision: String,
    /// Why, and by which entry of which policy.
    pub verdict: Verdict,
    /// What policies in audit mode would have denied the call for, the most severe first. Empty for a denied call.
    pub would_deny: Vec<Verdict>,
    /// Every policy that has a say, by name.
    pub policies: Vec<Said>,
}

/// What is decided, by one policy or by all of them together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Verdict {
    /// Whether the call goes through.
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
}

/// What one policy says about the call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Said {
    /// The policy: `namespace/name`, or `name` of an `MCPClusterPolicy`.
    pub policy: String,
    /// Whether its denials turn calls away.
    pub mode: Mode,
    /// Why it does not compile. It denies everything on its servers then, in whatever mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// What it decides on its own.
    pub verdict: Verdict,
    /// What it says about the server: under its name, and under `*`.
    pub servers: Vec<SaidOfServer>,
}

/// What a policy says about a server under one name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SaidOfServer {
    /// The name that the policy gives it; `*` for every server.
    pub server: String,
    /// The answer for tools that no entry has a say in.
    pub default_action: Action,
    /// What it says of the tool.
    pub action: Action,
    /// The entry that gives the action; absent where `defaultAction` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The entries that match the tool, the most specific first.
    pub entries: Vec<SaidOfEntry>,
}

/// What one entry says about the call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SaidOfEntry {
    /// The entry's name.
    pub name: String,
    /// Its action; absent where it has no say in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Its conditions.
    pub validations: Vec<SaidOfValidation>,
    /// Its limits.
    pub limits: Vec<SaidOfLimit>,
    /// Its `maxConcurrent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<Places>,
}

/// Whether a condition holds for the call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SaidOfValidation {
    /// The expression.
    pub expression: String,
    /// Whether it holds. One that fails to be evaluated does not.
    pub holds: bool,
    /// Why it could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How full a limit is, and whether the call fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SaidOfLimit {
    /// The limit in short, such as `30/minute`.
    pub limit: String,
    /// Its maximum.
    pub max: i64,
    /// Its window, as the policy writes it.
    pub window: String,
    /// What it counts together.
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
    /// What counts now, in the count that the call belongs to.
    pub used: f64,
    /// How much is left of it.
    pub left: f64,
    /// Whether `used` is that of the fullest count, since the call's own is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fullest: bool,
    /// What the call would add, together with limits of the same counter; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adds: Option<f64>,
    /// Whether the call fits.
    pub fits: bool,
    /// Whole seconds after which it fits, if nothing else is let through before; absent where it fits or never will.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// Whether the count is one that pods share and that the store could not be asked for: what is used is not known then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub store_unavailable: bool,
    /// Why its key or cost could not be computed, which denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Places among the calls that are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Places {
    /// How many there are.
    pub max: u64,
    /// How many are taken.
    pub under_way: u64,
    /// What is counted together.
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
    /// Whether pods share the places and the store could not be asked how many are taken.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub store_unavailable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_read_as_far_as_it_is_known() {
        let text = r#"{"version":"v1","servers":["s"],"new":1,"server":"s","tool":"t","decision":"denied",
            "verdict":{"allowed":false,"reason":"newer"},"policies":[{"policy":"p","newer":[]}]}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!((answer.version.as_str(), answer.explanation.server.as_str()), ("v1", "s"));
        assert_eq!(answer.explanation.verdict.reason, "newer");
        assert_eq!(answer.explanation.policies[0].mode, Mode::Enforce);
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let limit = SaidOfLimit { limit: "1/minute".to_owned(), max: 1, used: 0.5, fits: true, ..SaidOfLimit::default() };
        let entry = SaidOfEntry { limits: vec![limit], max_concurrent: Some(Places::default()), ..SaidOfEntry::default() };
        let server = SaidOfServer { entries: vec![entry], action: Action::Allow, ..SaidOfServer::default() };
        let said = Said { servers: vec![server], mode: Mode::Audit, ..Said::default() };
        let answer = Answer { explanation: Explanation { policies: vec![said], ..Explanation::default() }, ..Answer::default() };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer, "{text}");
    }
}
