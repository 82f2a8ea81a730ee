//! Drift for people: a table, and below each row what differs, so that a changed word is in view in a text of any length.

use std::ops::Range;

use toolweir_crds::{ToolPart, text::shown};

use super::{
    drift::{PartDrift, ToolDriftRow},
    exact_text::{beginning, exact, push, start_of},
    text_diff::{TextChange, differences},
};
use crate::table::Columns;

/// The most characters of a text that stands in the table.
const NARROW: usize = 40;
/// The most columns of a text that is shown whole below it, so that no line has more than 160 and wraps, which would part marks from words.
const WHOLE: usize = 150;
/// The columns that are shown on each side of a difference. Differences that are closer than that are shown together.
const AROUND: usize = 32;
/// The most columns of differences that are shown together. With what stands around them, two ellipses and a name, that is 160.
const TOGETHER: usize = 84;
/// The columns that are shown of a longer difference, which leaves room for how much longer it is.
const CUT: usize = 60;
/// The columns that are shown of the beginning of a text that has nothing to be compared with.
const BEGINNING: usize = 118;
/// The most differences of a text that are shown.
const DIFFERENCES: usize = 8;
/// The most characters of a name.
const LONGEST_NAME: usize = 64;

/// Formats drift as a table. Each line ends with a newline.
pub fn text(tools: &[ToolDriftRow]) -> String {
    let several = tools.iter().any(|tool| {
        (&tool.server, &tool.pins) != tools.first().map_or((&tool.server, &tool.pins), |first| (&first.server, &first.pins))
    });
    let rows: Vec<Row> = tools.iter().flat_map(|tool| rows(tool, several)).collect();
    let narrow = rows.iter().any(|row| row.cells.len() > usize::from(several) + 3);
    let header: Vec<&str> =
        [(several, "SERVER"), (true, "TOOL"), (true, "PART"), (true, "CHANGE"), (narrow, "PINNED"), (narrow, "NOW")]
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
            .collect();
    let mut columns = Columns::default();
    columns.fit(&header);
    for row in &rows {
        columns.fit(&row.cells);
    }
    let mut text = format!("{}\n", columns.line(&header));
    for row in rows {
        text.push_str(&format!("{}\n", columns.line(&row.cells)));
        for line in row.below {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

/// A row, and the lines below it.
struct Row {
    cells: Vec<String>,
    below: Vec<String>,
}

fn rows(tool: &ToolDriftRow, several: bool) -> Vec<Row> {
    let mut name: String = shown(&tool.tool).chars().take(LONGEST_NAME).collect();
    if tool.tool.chars().nth(LONGEST_NAME).is_some() {
        name.push('…');
    }
    let head = |part: &str, change: &str| {
        let server = several.then(|| format!("{} ({})", shown(&tool.server), shown(&tool.pins)));
        server.into_iter().chain([name.clone(), part.to_owned(), change.to_owned()]).collect::<Vec<String>>()
    };
    if tool.gone {
        return vec![Row { cells: head("-", "gone"), below: Vec::new() }];
    }
    if tool.new {
        // What the model would read first; a policy and `tools` say the rest.
        let said =
            tool.changes.iter().find(|change| change.part == ToolPart::Description).and_then(|change| change.after.as_deref());
        let below = said.map(|said| format!("now:    {}", beginning(said, BEGINNING)));
        return vec![Row { cells: head("-", "new"), below: below.into_iter().collect() }];
    }
    let row = |change: &PartDrift| {
        let mut cells = head(change.part.as_str(), change.change.as_str());
        match side_by_side(change) {
            Some(texts) => {
                cells.extend(texts);
                Row { cells, below: Vec::new() }
            }
            None => Row { cells, below: below(change) },
        }
    };
    tool.changes.iter().map(row).collect()
}

/// Returns both texts, where they are whole and fit beside each other.
fn side_by_side(change: &PartDrift) -> Option<[String; 2]> {
    let cell = |text: Option<&str>, cut: bool| {
        let shown = match text {
            None => "-".to_owned(),
            Some("") => "\"\"".to_owned(),
            Some(text) => exact(text),
        };
        (!cut && shown.chars().count() <= NARROW).then_some(shown)
    };
    Some([cell(change.before.as_deref(), change.before_cut)?, cell(change.after.as_deref(), change.after_cut)?])
}

fn below(change: &PartDrift) -> Vec<String> {
    let (before, after) = match (&change.before, &change.after) {
        (Some(before), Some(after)) => (before.as_str(), after.as_str()),
        (Some(before), None) => return vec![format!("pinned: {}", whole(before, change.before_cut))],
        (None, after) => return vec![format!("now:    {}", whole(after.as_deref().unwrap_or_default(), change.after_cut))],
    };
    let is_lost = |text: &str, cut: bool| cut && text.is_empty();
    if is_lost(before, change.before_cut) || is_lost(after, change.after_cut) {
        let line = |name: &str, text: &str, cut: bool| {
            let said = if is_lost(text, cut) { "(not kept, only its digest)".to_owned() } else { whole(text, cut) };
            format!("{name} {said}")
        };
        return vec![line("pinned:", before, change.before_cut), line("now:   ", after, change.after_cut)];
    }
    let (kept_before, kept_after) = comparable(change, before, after);
    let mut lines = compared(kept_before, kept_after);
    let cut = change.before_cut || change.after_cut;
    let kept = kept_before.len().min(kept_after.len());
    if lines.is_empty() {
        lines.push(format!("the first {kept} bytes are the same; what differs comes after them, where only the digests tell"));
    } else if cut {
        lines.push(format!("(compared up to byte {kept}, where a text is cut)"));
    }
    lines
}

fn whole(text: &str, cut: bool) -> String {
    let cut = if cut { " (cut there)" } else { "" };
    format!("{}{cut}", beginning(text, BEGINNING))
}

/// Returns the parts of both texts that can be compared where one of them is cut.
fn comparable<'a>(change: &PartDrift, before: &'a str, after: &'a str) -> (&'a str, &'a str) {
    let up_to = |text: &'a str, bytes: usize| text.get(..text.floor_char_boundary(bytes)).unwrap_or_default();
    let after_kept = if change.before_cut { up_to(after, before.len()) } else { after };
    let before_kept = if change.after_cut { up_to(before, after.len()) } else { before };
    (before_kept, after_kept)
}

/// Shows what differs, with what stands around it, or short texts whole; below each text, marks stand under what differs.
fn compared(before: &str, after: &str) -> Vec<String> {
    let changes = differences(before, after);
    let sides: [(&str, &str, SideOfChange); 2] =
        [("pinned:", before, |change| &change.before), ("now:   ", after, |change| &change.after)];
    let is_short = sides.iter().all(|(_, text, _)| columns(text) <= WHOLE);
    let fits = |group: &[TextChange], next: &TextChange| {
        let is_near = group.last().is_some_and(|last| next.before.start - last.before.end <= 2 * AROUND);
        let span = |of: SideOfChange| group.first().map_or(0, |first| of(first).start)..of(next).end;
        is_near && sides.iter().all(|(_, text, of)| columns(text.get(span(*of)).unwrap_or_default()) <= TOGETHER)
    };
    let mut groups: Vec<Vec<TextChange>> = Vec::new();
    for change in &changes {
        match groups.last_mut().filter(|group| is_short || fits(group, change)) {
            Some(group) => group.push(change.clone()),
            None => groups.push(vec![change.clone()]),
        }
    }
    let mut lines = Vec::new();
    for group in groups.iter().take(DIFFERENCES) {
        for (name, text, of) in sides {
            let shown = if is_short { 0..text.len() } else { window(text, group, of) };
            lines.extend(marked(name, text, changes.iter().map(of), shown));
        }
    }
    if let Some(more) = groups.len().checked_sub(DIFFERENCES).filter(|more| *more > 0) {
        lines.push(format!("({more} more places differ; -o json has the texts)"));
    }
    lines
}

/// Which of the two texts of a difference.
type SideOfChange = fn(&TextChange) -> &Range<usize>;

/// The columns that a text takes where it is shown.
fn columns(text: &str) -> usize {
    exact(text).chars().count()
}

/// The part of a text that is shown for differences: these, and what stands around them.
fn window(text: &str, group: &[TextChange], of: SideOfChange) -> Range<usize> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return 0..0 };
    let (start, end) = (of(first).start, of(last).end);
    let before = around(text.get(..start).unwrap_or_default().chars().rev());
    start - before..end + around(text.get(end..).unwrap_or_default().chars())
}

/// The bytes of the first characters that fit beside a difference.
fn around(chars: impl Iterator<Item = char>) -> usize {
    let (mut shown, mut columns) = (String::new(), 0);
    let fits = |c: &char| {
        columns += push(&mut shown, *c);
        columns <= AROUND
    };
    chars.take_while(fits).map(char::len_utf8).sum()
}

/// Shows a part of a text, and a line of marks under the ranges of it that differ. Ranges that are empty have no marks.
fn marked<'a>(name: &str, text: &str, ranges: impl Iterator<Item = &'a Range<usize>>, part: Range<usize>) -> Vec<String> {
    let mut line = MarkedLine::default();
    if part.start > 0 {
        line.push("…", ' ');
    }
    let mut at = part.start;
    for range in ranges.filter(|range| range.start < part.end && range.end > part.start) {
        let (start, end) = (range.start.max(part.start), range.end.min(part.end));
        line.push(text.get(at..start).unwrap_or_default(), ' ');
        line.push_cut(text.get(start..end).unwrap_or_default(), '^');
        at = end;
    }
    line.push(text.get(at..part.end).unwrap_or_default(), ' ');
    if part.end < text.len() {
        line.push("…", ' ');
    }
    let marks = line.marks.trim_end();
    let mut lines = vec![format!("{name} {}", line.shown)];
    if !marks.is_empty() {
        lines.push(format!("{:width$} {marks}", "", width = name.len()));
    }
    lines
}

#[derive(Default)]
struct MarkedLine {
    shown: String,
    marks: String,
}

impl MarkedLine {
    fn push(&mut self, text: &str, mark: char) {
        for c in text.chars() {
            let width = push(&mut self.shown, c);
            self.marks.extend(std::iter::repeat_n(mark, width));
        }
    }

    /// Adds what differs: of a long text the beginning, and how much there is beyond it.
    fn push_cut(&mut self, text: &str, mark: char) {
        let start = if columns(text) <= TOGETHER { text } else { start_of(text, CUT) };
        self.push(start, mark);
        if start.len() < text.len() {
            self.push(&format!("… ({} more bytes) …", text.len() - start.len()), ' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use toolweir_crds::{MCPToolPinsSpec, PinnedTool};

    use super::*;
    use crate::{
        pins::{
            drift::{Compared, drifted},
            pinned::{definition_of, pinned_tool},
        },
        tools::definition::ListedTool,
    };

    const OF: Compared<'_> = Compared { server: "mail", pins: "agents/mail" };

    fn listed(tools: &[Value]) -> Vec<ListedTool> {
        tools.iter().map(|tool| ListedTool::new(tool.clone()).unwrap()).collect()
    }

    fn pins(tools: &[Value]) -> MCPToolPinsSpec {
        // Pins that somebody wrote by hand may have names that `pin` refuses.
        let definitions: Vec<_> = listed(tools).iter().map(|tool| definition_of(tool).unwrap()).collect();
        toolweir_pins::document("mail", &definitions)
    }

    fn now(tools: &[Value]) -> Vec<PinnedTool> {
        listed(tools).iter().map(|tool| pinned_tool(tool).unwrap()).collect()
    }

    fn told(before: &[Value], after: &[Value]) -> String {
        text(&drifted(OF, &pins(before), &now(after)))
    }

    #[test]
    fn short_texts_stand_side_by_side_and_long_ones_below() {
        let before = [
            json!({"name": "old"}),
            json!({"name": "send", "title": "Send", "description": "Sends a mail to one recipient. Waits until the server has taken it."}),
        ];
        let after = [
            json!({"name": "send", "title": "Send it", "description": "Sends a mail to many recipients. Waits until the server has taken it.",
                "annotations": {"readOnlyHint": true}}),
            json!({"name": "purge", "description": "Deletes all mail."}),
        ];
        let golden = "\
TOOL   PART         CHANGE  PINNED  NOW
old    -            gone
send   title        text    Send    Send it
send   description  text
  pinned: Sends a mail to one recipient. Waits until the server has taken it.
                          ^^^^^^^^^^^^^
  now:    Sends a mail to many recipients. Waits until the server has taken it.
                          ^^^^^^^^^^^^^^^
send   annotations  added   -       {\"readOnlyHint\":true}
purge  -            new
  now:    Deletes all mail.
";
        assert_eq!(told(&before, &after), golden);
    }

    #[test]
    fn a_word_in_a_long_text_is_in_view() {
        let filler = "A sentence that says nothing. ".repeat(250);
        let tool = |word: &str| [json!({"name": "t", "description": format!("{filler}Reads the {word} file. {filler}")})];
        let text = told(&tool("given"), &tool("whole"));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "t     description  text",
                "  pinned: …ce that says nothing. Reads the given file. A sentence that says noth…",
                "                                           ^^^^^",
                "  now:    …ce that says nothing. Reads the whole file. A sentence that says noth…",
                "                                           ^^^^^",
                "  (compared up to byte 8192, where a text is cut)",
            ]
        );
        // Beyond what pins keep.
        let tool = |word: &str| [json!({"name": "t", "description": format!("{filler}{filler}{word}")})];
        let text = told(&tool("a"), &tool("b"));
        assert!(
            text.ends_with("  the first 8192 bytes are the same; what differs comes after them, where only the digests tell\n"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_seen_is_shown_and_marked() {
        let tool = |text: &str| [json!({"name": "t\u{1b}[2J", "description": text})];
        let text = told(&tool("pay\u{200b}"), &tool("pay\u{200c}\u{1b}[1A"));
        assert_eq!(text.lines().nth(1), Some("t\u{fffd}[2J  description  text    pay\\u{200b}  pay\\u{200c}\\u{1b}[1A"));
    }

    #[test]
    fn there_is_an_end_to_what_is_shown() {
        let words = |word: &str| (0..400).map(|number| format!("{number} {word} {} ", "x".repeat(80))).collect::<String>();
        let tool = |word: &str| [json!({"name": "t", "description": &words(word)[..8000]})];
        let text = told(&tool("a"), &tool("b"));
        assert!(text.len() < 4000 && text.contains("more places differ; -o json has the texts"), "{text}");
        let one = [json!({"name": "t", "description": "short"})];
        let long = [json!({"name": "t", "description": "y".repeat(9000)})];
        let text = told(&one, &long);
        assert!(text.contains("yyy… (8132 more bytes) …") && text.contains("(compared up to byte"), "{text}");
    }

    #[test]
    fn no_line_of_a_text_is_wide() {
        let filler = |count: usize| "says nothing \u{200b} ".repeat(count);
        let text = |word: &str, count: usize| format!("{}{word} {}", filler(count), filler(count));
        let (long, unseen) = ("y".repeat(500), "\u{1b}".repeat(90));
        for (before, after) in [
            (text("a", 9), text("b", 9)),
            (text("a b c d e", 3), text("b f g h i", 9)),
            (text(&long, 9), text("b", 9)),
            (text(&unseen, 9), text("b", 2)),
            (filler(1), format!("{unseen}{long}")),
            ("x ".repeat(74), "x y ".repeat(90)),
            ("a b c d ".repeat(900), format!("{}{long}", "e b f d ".repeat(900))),
        ] {
            let tool = |text: &str| [json!({"name": "t", "description": text, "title": text})];
            for told in
                [told(&tool(&before), &tool(&after)), told(&[], &tool(&after)), told(&tool(&before), &[json!({"name": "t"})])]
            {
                let widest = told.lines().map(|line| line.chars().count()).max();
                assert!(widest <= Some(160), "{widest:?} {told}");
            }
        }
    }

    #[test]
    fn what_differs_is_marked_wherever_it_is_shown() {
        let words = |word: &str| (0..30).map(|number| format!("{word}{number} same ")).collect::<String>();
        let tool = |word: &str| [json!({"name": "t", "description": words(word)})];
        let told = told(&tool("a"), &tool("b"));
        let lines: Vec<&str> = told.lines().collect();
        let within: Vec<&[&str]> = lines.windows(2).filter(|pair| pair[0].starts_with("  pinned: …")).collect();
        assert!(within.len() > 1, "{told}");
        for pair in within {
            let numbers = pair[0].chars().zip(pair[1].chars().chain(std::iter::repeat(' '))).filter(|(c, _)| c.is_ascii_digit());
            assert!(numbers.clone().count() > 3 && numbers.clone().all(|(_, mark)| mark == '^'), "{pair:?}");
        }
    }

    #[test]
    fn several_servers_are_told_apart() {
        let one = drifted(OF, &pins(&[]), &now(&[json!({"name": "a"})]));
        let other = drifted(Compared { server: "bank", pins: "agents/bank" }, &pins(&[json!({"name": "b"})]), &[]);
        let golden = "\
SERVER              TOOL  PART  CHANGE
mail (agents/mail)  a     -     new
bank (agents/bank)  b     -     gone
";
        assert_eq!(text(&[one, other].concat()), golden);
    }
}
