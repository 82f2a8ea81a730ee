//! The YAML library's errors, in the words of who writes a policy.

/// Returns an error's message in plain words, with a remedy where the line tells what went wrong. The message is one line; `line` is the
/// text's line at which the error was found.
pub(crate) fn remedied(message: String, line: &str) -> String {
    let message = typed(&message).unwrap_or(message);
    match remedy(&message, line) {
        Some(remedy) => format!("{message}; {remedy}"),
        None => message,
    }
}

/// Says in YAML's words which type there is, and which is expected, in place of Rust's. The message may begin with a path.
fn typed(message: &str) -> Option<String> {
    let (before, rest) = message.split_once("invalid type: ")?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let found = match found {
        "unit value" => "null",
        "sequence" => "list",
        found => found,
    };
    let expected = match expected {
        "a YAML tag starting with '!'" => "a text",
        "a sequence" => "a list",
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" => "a whole number, without quotes and without a unit",
        expected => expected,
    };
    Some(format!("{before}invalid type: {found}, expected {expected}"))
}

/// Returns what to write where a character in a text, or at the beginning of a line, means something to YAML.
fn remedy(message: &str, line: &str) -> Option<String> {
    let says = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    if says(&["tab character"]) || says(&["cannot start any token"]) && line.trim_start_matches(' ').starts_with('\t') {
        return Some("indent with spaces; YAML takes no tabs there".to_owned());
    }
    if says(&["mapping values are not allowed"]) {
        return Some("a text that contains `: ` needs quotes".to_owned());
    }
    if says(&["while parsing a flow mapping", "while parsing a flow sequence"]) {
        return Some("close each `{` and `[`; within them, a text that contains one of `,[]{}` needs quotes".to_owned());
    }
    if !says(&[
        "scanning an alias",
        "scanning an anchor",
        "a tag",
        "a block scalar",
        "a directive",
        "cannot start any token",
        "unknown anchor",
    ]) {
        return None;
    }
    let begins = |text: &str| text.trim_start().chars().next().filter(|c| "*&!%@`|>".contains(*c));
    let mut values = line.match_indices(": ").chain(line.match_indices("- ")).map(|(at, _)| at + 2);
    let first = values.find_map(|at| line.get(at..).and_then(begins))?;
    Some(format!("a text that begins with `{first}` needs quotes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_yaml_names_them() {
        for (told, said) in [
            ("spec: invalid type: unit value, expected a sequence", "spec: invalid type: null, expected a list"),
            ("invalid type: sequence, expected a YAML tag starting with '!'", "invalid type: list, expected a text"),
            (
                "invalid type: string \"a, expected b\", expected i64",
                "invalid type: string \"a, expected b\", expected a whole number, without quotes and without a unit",
            ),
            ("unknown field `a`, expected `b`", "unknown field `a`, expected `b`"),
            ("invalid type: a", "invalid type: a"),
        ] {
            assert_eq!(remedied(told.to_owned(), ""), said);
        }
    }
}
