//! Aligned text.

use std::time::Duration;

use serde::Serialize;
pub use toolweir_crds::text::{safe_json, shown};

/// Columns as wide as their widest cell so far.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// Widens the columns for these cells.
    pub fn fit<T: AsRef<str>>(&mut self, cells: &[T]) {
        self.widths.resize(self.widths.len().max(cells.len()), 0);
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.as_ref().chars().count());
        }
    }

    /// Formats a line of cells, two spaces apart.
    pub fn line<T: AsRef<str>>(&mut self, cells: &[T]) -> String {
        self.fit(cells);
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            line.push_str(&format!("{:width$}  ", cell.as_ref()));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Formats a table with a header, indented by `indent` spaces. Each line ends with a newline.
pub fn table(indent: usize, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut columns = Columns::default();
    columns.fit(header);
    for row in rows {
        columns.fit(row);
    }
    let mut text = format!("{:indent$}{}\n", "", columns.line(header));
    for row in rows {
        text.push_str(&format!("{:indent$}{}\n", "", columns.line(row)));
    }
    text
}

/// Formats as JSON of several lines that is safe on a terminal.
///
/// # Errors
/// The value has no form in JSON.
pub fn json<T: Serialize>(value: &T) -> serde_json::Result<String> {
    Ok(safe_json(&serde_json::to_string_pretty(value)?))
}

/// Formats an error as one line that is safe on a terminal, whoever wrote its parts.
pub fn error_line(error: &anyhow::Error) -> String {
    let line = format!("{error:#}").replace(['\n', '\r', '\t'], " ");
    shown(&line).into_owned()
}

/// Formats a duration in one unit, as `kubectl` shows an age.
pub fn short(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Formats a number with at most six decimals, without trailing zeros.
pub fn number(number: f64) -> String {
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let rows = [
            vec!["a".to_owned(), "täglich".to_owned(), String::new()],
            vec!["long name".to_owned(), "b".to_owned(), "c".to_owned()],
        ];
        assert_eq!(
            table(2, &["NAME", "WINDOW", "X"], &rows),
            "  NAME       WINDOW   X\n  a          täglich\n  long name  b        c\n"
        );
    }

    #[test]
    fn columns_grow_with_what_comes() {
        let mut columns = Columns::default();
        assert_eq!(columns.line(&["a", "b"]), "a  b");
        assert_eq!(columns.line(&["abc", "b"]), "abc  b");
        assert_eq!(columns.line(&["a", "b"]), "a    b");
    }

    #[test]
    fn what_others_chose_does_not_move_the_cursor() {
        assert_eq!(shown("send_dm"), "send_dm");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
    }

    #[test]
    fn errors_and_json_do_not_move_the_cursor() {
        let error = anyhow::anyhow!("a\u{9b}2J").context("no\u{1b}[2J\nfile");
        assert_eq!(error_line(&error), "no\u{fffd}[2J file: a\u{fffd}2J");
        let name = "a\u{1b}\u{7f}\u{9b}\u{202e}\u{e0041}é\n";
        let text = json(&[name]).unwrap();
        assert_eq!(text, "[\n  \"a\\u001b\\u007f\\u009b\\u202e\\udb40\\udc41é\\n\"\n]");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [name]);
    }

    #[test]
    fn spans_and_numbers_are_short() {
        let spans = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|seconds| short(Duration::from_secs(seconds)));
        assert_eq!(spans, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!([0.0, 30.0, 0.5, 1e9, 0.000_001].map(number), ["0", "30", "0.5", "1000000000", "0.000001"]);
    }
}
