//! Unquoted texts that kubectl reads as another type: it reads YAML 1.1, where a plain `on` is a boolean.

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
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                found.extend(doubt(key, &path, true));
                walk(value, &path, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
