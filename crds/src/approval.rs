//! What an entry says of calls that a person must approve.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{bounds, window::duration};

/// Calls that go through only once a person has approved them. Where several entries or policies ask for one call, one approval that
/// names them all satisfies them; the shortest `hold` and `expiry` and the smallest `pending` hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "an approval, such as {when: args.amount > 500}, or {} for every call"
)]
pub struct EntryApproval {
    /// A CEL condition over `args`, `tool`, `server`, `session` and `pod`: calls for which it is true need approval, and so do those for
    /// which it fails. Left out, every call does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub when: Option<String>,
    /// What the approver is told of the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::TEXT))]
    pub message: Option<String>,
    /// CEL values that the approver is shown. Nothing else of the arguments is ever written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::SHOWN_VALUES), inner(length(min = 1, max = bounds::SHOWN_EXPRESSION)))]
    pub show: Vec<String>,
    /// How long the call itself waits for the answer: `0s` to `50s`. Clients of MCP give up after 60 s.
    #[serde(default = "EntryApproval::default_hold")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) <= duration('50s')",
        "message": "is longer than 50s; clients give up on a call after 60 s",
    }]))]
    pub hold: TimeSpan,
    /// How long a request waits for a decision, and how long an approval can be used: `10s` to `24h`. A denial holds as long.
    #[serde(default = "EntryApproval::default_expiry")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('10s') && duration(self) <= duration('24h')",
        "message": "is not from 10s to 24h",
    }]))]
    pub expiry: TimeSpan,
    /// Requests of one pod that may wait at once; calls that would be one more are denied.
    #[serde(default = "EntryApproval::default_pending")]
    #[schemars(range(min = 1, max = bounds::PENDING_APPROVALS), extend("format" = "int32"))]
    pub pending: u32,
}

impl EntryApproval {
    /// The longest `hold`.
    pub const LONGEST_HOLD: Duration = Duration::from_secs(50);
    /// The shortest `expiry`.
    pub const SHORTEST_EXPIRY: Duration = Duration::from_secs(10);
    /// The longest `expiry`.
    pub const LONGEST_EXPIRY: Duration = Duration::from_secs(24 * 3600);

    fn default_hold() -> TimeSpan {
        TimeSpan::of(Duration::from_secs(30))
    }

    fn default_expiry() -> TimeSpan {
        TimeSpan::of(Duration::from_secs(600))
    }

    fn default_pending() -> u32 {
        5
    }
}

impl Default for EntryApproval {
    fn default() -> Self {
        Self {
            when: None,
            message: None,
            show: Vec::new(),
            hold: Self::default_hold(),
            expiry: Self::default_expiry(),
            pending: Self::default_pending(),
        }
    }
}

/// A span of time such as `30s`, `1h30m` or `500ms`; also `0s`. Keeps the text as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TimeSpan {
    text: String,
    span: Duration,
}

impl TimeSpan {
    /// Makes it of a duration, down to milliseconds, with the largest units: `1h30m`, `10m`, `0s`.
    pub fn of(span: Duration) -> Self {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let parts = [(millis / 3_600_000, "h"), (millis / 60_000 % 60, "m"), (millis / 1000 % 60, "s"), (millis % 1000, "ms")];
        let text: String =
            parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
        Self { text: if text.is_empty() { "0s".to_owned() } else { text }, span: Duration::from_millis(millis) }
    }

    /// Returns the span of time.
    pub fn span(&self) -> Duration {
        self.span
    }

    /// Returns the text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for TimeSpan {
    fn default() -> Self {
        Self::of(Duration::ZERO)
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The error of a text that is no [`TimeSpan`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a span of time; write one such as 30s, 10m or 1h30m")]
pub struct TimeSpanError(String);

impl FromStr for TimeSpan {
    type Err = TimeSpanError;

    fn from_str(text: &str) -> Result<Self, TimeSpanError> {
        // Kubernetes' own durations have no days.
        let span = duration(text).filter(|_| !text.is_empty() && text.len() <= 32 && !text.contains('d'));
        span.map(|span| Self { text: text.to_owned(), span }).ok_or_else(|| TimeSpanError(text.chars().take(40).collect()))
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Parsed inside the visitor, so that an error of a file has the place of the text.
        struct SpanText;
        impl de::Visitor<'_> for SpanText {
            type Value = TimeSpan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span of time such as 30s or 10m")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeSpan, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(SpanText)
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 32, "pattern": "^([0-9]+(h|m|s|ms))+$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spans_of_time_and_refuses_what_is_none() {
        for (text, millis) in [("0s", 0), ("30s", 30_000), ("1h30m", 5_400_000), ("500ms", 500), ("24h", 86_400_000)] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!((span.span(), span.as_str()), (Duration::from_millis(millis), text));
            assert_eq!(TimeSpan::of(span.span()), span, "{text}");
        }
        assert_eq!(TimeSpan::of(Duration::new(3601, 1_999_999)).as_str(), "1h1s1ms");
        for text in ["", "0", "30", "1d", "-1s", "1.5h", "minute", "1s1m", "99999999999999999999s"] {
            assert_eq!(text.parse::<TimeSpan>(), Err(TimeSpanError(text.to_owned())), "{text}");
        }
    }
}
