//! Unquoted texts that kubectl reads as another type: it reads YAML 1.1, where a plain `on` is a boolean. And texts as they are written so
//! that nobody reads anything else.

use std::{borrow::Cow, fmt::Write};

use serde_yaml::Value;

use crate::error::FieldError;

/// Returns the type that kubectl reads an unquoted text as (YAML 1.1, as `sigs.k8s.io/yaml` resolves it); none where it stays a
/// text.
pub fn kubectl_reads(text: &str) -> Option<&'static str> {
    const BOOLEANS: [&str; 22] = [
        "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON", "n", "N", "no", "No", "NO", "false", "False",
        "FALSE", "off", "Off", "OFF",
    ];
    if BOOLEANS.contains(&text) {
        return Some("boolean");
    }
    if ["", "~", "null", "Null", "NULL"].contains(&text) {
        return Some("null");
    }
    is_number(text).then_some("number")
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if [".inf", ".Inf", ".INF"].contains(&digits) || [".nan", ".NaN", ".NAN"].contains(&text) {
        return true;
    }
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return false;
    }
    // Underscores may part the digits of an integer.
    let plain = digits.replace('_', "");
    let of_base = |base: &str, radix: u32| {
        plain.strip_prefix(base).is_some_and(|rest| !rest.is_empty() && rest.chars().all(|digit| digit.is_digit(radix)))
    };
    if of_base("0x", 16) || of_base("0X", 16) || of_base("0b", 2) || of_base("0B", 2) || of_base("0o", 8) || of_base("0O", 8) {
        return true;
    }
    let (mantissa, exponent) = plain.split_once(['e', 'E']).map_or((plain.as_str(), None), |(head, tail)| (head, Some(tail)));
    let whole = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    whole(before)
        && whole(after)
        && !(before.is_empty() && after.is_empty())
        && exponent.is_none_or(|digits| !digits.is_empty() && whole(digits))
}

/// Writes a text as a value or key of YAML on one line. kubectl and the sidecar read exactly this text of it, whatever it contains; of what
/// cannot be seen for what it is, the code is written.
///
/// ```
/// use toolweir_crds::quoting::scalar;
///
/// assert_eq!(scalar("send_dm"), "send_dm");
/// assert_eq!(scalar("yes"), "\"yes\"");
/// assert_eq!(scalar("a: b\n"), r#""a: b\x0a""#);
/// ```
pub fn scalar(text: &str) -> Cow<'_, str> {
    let stands_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:?=&%+~@".contains(c);
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(stands_plain)
        && !text.ends_with(':')
        && kubectl_reads(text).is_none();
    if is_plain {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        let code = u32::from(c);
        // A write to a text does not fail.
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            ' '..='~' => write!(quoted, "{c}"),
            c if c.is_alphanumeric() => write!(quoted, "{c}"),
            _ if code <= 0xff => write!(quoted, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(quoted, "\\u{code:04x}"),
            _ => write!(quoted, "\\U{code:08x}"),
        };
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

/// Returns the texts of a document that kubectl would read as another type if they are not quoted, and true for a key of a map.
/// The path of a key is that of its value.
pub(crate) fn doubtful(document: &Value) -> Vec<(FieldError, bool)> {
    let mut found = Vec::new();
    walk(document, "", &mut found);
    found
}

fn walk(value: &Value, path: &str, found: &mut Vec<(FieldError, bool)>) {
    let doubt = |text: &str, path: &str, key: bool| {
        let kind = kubectl_reads(text)?;
        let what = if key { "the key " } else { "" };
        let message = format!("{what}`{text}` without quotes is a {kind} to kubectl; write \"{text}\"");
        Some((FieldError { path: path.to_owned(), message }, key))
    };
    match value {
        Value::String(text) => found.extend(doubt(text, path, false)),
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Mapping(members) => {
            for (key, value) in members {
                let Value::String(key) = key else { continue };
                let path = match path {
                    _ if key.contains(['.', '[', ']']) => format!("{path}[\"{key}\"]"),
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                found.extend(doubt(key, &path, true));
                walk(value, &path, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_be_read_otherwise_stands_in_quotes() {
        for (text, written) in [
            ("send_dm_to_user", "send_dm_to_user"),
            ("files.read/v2-x", "files.read/v2-x"),
            ("http://127.0.0.1:8000/mcp?a=b&c=%20", "http://127.0.0.1:8000/mcp?a=b&c=%20"),
            ("no", "\"no\""),
            ("null", "\"null\""),
            ("1e3", "\"1e3\""),
            ("0x10", "\"0x10\""),
            ("2026-07-28", "\"2026-07-28\""),
            ("12:30:45", "\"12:30:45\""),
            ("-a", "\"-a\""),
            ("a:", "\"a:\""),
            ("<<", "\"<<\""),
            (" a", "\" a\""),
            ("a #b", "\"a #b\""),
            ("a: b", "\"a: b\""),
            (r#"\"'"#, r#""\\\"'""#),
            ("grüße 検索", "\"grüße 検索\""),
            ("a\nb\0", r#""a\x0ab\x00""#),
            ("\u{85}\u{a0}\u{202e}\u{2028}\u{feff}\u{1f642}", r#""\x85\xa0\u202e\u2028\ufeff\U0001f642""#),
            ("", "\"\""),
        ] {
            assert_eq!(scalar(text), written, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_text_is_one_line_and_read_as_itself(text in any::<String>(), short in "[-a-zA-Z0-9_.~:#'\"\\\\ !&*?|>{}\\[\\]%@`,\n\u{85}\u{2028}]{0,6}") {
            for text in [text, short] {
                let written = scalar(&text).into_owned();
                let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
                prop_assert!(!written.contains(breaks), "{written}");
                let read: Value = serde_yaml::from_str(&format!("- k: {written}\n- {written}: 1\n")).unwrap();
                prop_assert_eq!(read[0]["k"].as_str(), Some(text.as_str()));
                prop_assert_eq!(read[1][text.as_str()].as_i64(), Some(1));
            }
        }
    }

    #[test]
    fn kubectl_reads_these_as_something_else_and_no_other_text() {
        for (text, kind) in [
            ("on", Some("boolean")),
            ("y", Some("boolean")),
            ("No", Some("boolean")),
            ("~", Some("null")),
            ("1.10", Some("number")),
            ("007", Some("number")),
            ("1_000", Some("number")),
            ("1e3", Some("number")),
            ("-.5", Some("number")),
            ("0x1F", Some("number")),
            (".inf", Some("number")),
            ("yEs", None),
            ("ON!", None),
            ("1.2.3", None),
            ("e3", None),
            (".", None),
            ("1e", None),
            ("0x", None),
            ("get_me", None),
            ("12:30:45", None),
            ("2026-07-28", None),
        ] {
            assert_eq!(kubectl_reads(text), kind, "{text}");
        }
    }
}
