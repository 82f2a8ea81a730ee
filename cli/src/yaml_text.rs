//! Text of others in manifests: values and comments that say exactly this, whoever reads them.

use toolweir_crds::{quoting::scalar, text::is_unseen};

/// The most characters of a comment.
const LONGEST_COMMENT: usize = 200;

/// Adds a comment of one line, whatever others have written into it. What cannot be seen for what it is becomes U+FFFD.
pub fn comment(text: &mut String, indent: usize, of: &str) {
    let one = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        '"' | '\'' | '\\' => c,
        c if c.escape_debug().eq([c]) => c,
        _ => '\u{fffd}',
    };
    let shown: String = of.chars().map(one).take(LONGEST_COMMENT).collect();
    let more = if of.chars().nth(LONGEST_COMMENT).is_some() { "..." } else { "" };
    text.push_str(&format!("{:indent$}# {}{more}\n", "", shown.trim()));
}

/// Writes a text as the value of a key at `indent`. Where nothing in it has to be escaped but line breaks and quotes, it stands as a block
/// of lines below the key, which people can read and compare.
pub fn value(text: &str, indent: usize) -> String {
    let one_line = scalar(text);
    if !one_line.contains('\\') || !fits_block(text) {
        return one_line.into_owned();
    }
    let indent = indent + 2;
    let lines: String =
        text.split('\n').map(|line| if line.is_empty() { "\n".to_owned() } else { format!("\n{:indent$}{line}", "") }).collect();
    format!("|-{lines}")
}

/// Whether a block says the same: its indentation is that of its first line, and every character stands for itself.
fn fits_block(text: &str) -> bool {
    // YAML has no noncharacters but escaped ones.
    let is_noncharacter = |c: char| u32::from(c) & 0xfffe == 0xfffe;
    let plain = |c: char| c == '\n' || !c.is_control() && !is_unseen(c) && !is_noncharacter(c);
    text.chars().all(plain) && !text.starts_with([' ', '\n']) && !text.ends_with('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_were() {
        let texts = [
            "plain",
            "yes",
            "",
            "a: b",
            "two\nlines",
            "two\n\n  lines, \"quoted\"",
            " first\nis indented",
            "\nempty first",
            "ends\n",
            "ends \n x",
            "{\"type\":\"object\"}",
            "hidden\u{200b}\n",
            "none\u{fffe}\nof \u{ffff}",
            "tab\t\n",
            "--- \n---\n...",
            "# no\n# comment",
            "\u{2028}\n",
            "\r\n",
            "\u{feff}\nx",
            "- a\n- b",
            "x\n ",
        ];
        for text in texts {
            let yaml = format!("a:\n  b: {}\n  c: 1\n", value(text, 2));
            let read: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(read, serde_json::json!({"a": {"b": text, "c": 1}}), "{yaml}");
        }
        assert_eq!(value("a\n\n\"b\"", 2), "|-\n    a\n\n    \"b\"");
    }
}
