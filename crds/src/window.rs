//! The span of time of a limit.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time: `second`, `minute`, `hour`, `day`, or a duration such as `90s`, `1h30m` or `500ms`.
/// Keeps the text as it was written, for denials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    text: String,
    span: Duration,
}

impl Window {
    /// The shortest window, 100 ms: below it, the way to the server takes longer than the window's precision.
    pub const SHORTEST: Duration = Duration::from_millis(100);
    /// The longest window, 31 days.
    pub const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);

    /// Returns the span of time.
    pub fn span(&self) -> Duration {
        self.span
    }

    /// Returns the text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns "per window" for an English sentence: `a minute`, or `in 90s`.
    pub fn per(&self) -> String {
        match self.text.as_str() {
            "hour" => "an hour".to_owned(),
            "second" | "minute" | "day" => format!("a {}", self.text),
            other => format!("in {other}"),
        }
    }
}

/// The error of a text that is no [`Window`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a window; write second, minute, hour, day, or a duration from 100ms to 744h such as 90s or 1h30m")]
pub struct WindowError(String);

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let span = match text {
            "second" => Some(Duration::from_secs(1)),
            "minute" => Some(Duration::from_secs(60)),
            "hour" => Some(Duration::from_secs(3600)),
            "day" => Some(Duration::from_secs(24 * 3600)),
            other => duration(other),
        };
        span.filter(|span| (Self::SHORTEST..=Self::LONGEST).contains(span))
            .map(|span| Self { text: text.to_owned(), span })
            .ok_or_else(|| WindowError(text.chars().take(40).collect()))
    }
}

/// Reads numbers with units, largest unit first: `1h30m`, `90s`, `1500ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let (mut rest, mut total, mut smallest) = (text, 0_u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let factor = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        if factor >= smallest {
            return None;
        }
        smallest = factor;
        total = number.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(total)?;
        rest = tail;
    }
    Some(Duration::from_millis(total))
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Parsed inside the visitor, so that an error of a file has the place of the text.
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Window;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a window such as minute or 90s")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Window, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for Window {
    fn schema_name() -> Cow<'static, str> {
        "Window".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": "^(second|minute|hour|day|([0-9]+(d|h|m|s|ms))+)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_durations() {
        for (text, millis) in [
            ("second", 1000),
            ("minute", 60_000),
            ("hour", 3_600_000),
            ("day", 86_400_000),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("100ms", 100),
            ("1s500ms", 1500),
            ("31d", 31 * 86_400_000),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.span(), Duration::from_millis(millis), "{text}");
            assert_eq!(window.as_str(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_window() {
        for text in [
            "",
            "s",
            "90",
            "-1s",
            "1.5h",
            "fortnight",
            "Minute",
            "99ms",
            "0s",
            "32d",
            "1m1h",
            "1s1s",
            "1 s",
            "9999999999999999999999s",
            "1ss",
            "60S",
            "٣s",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
