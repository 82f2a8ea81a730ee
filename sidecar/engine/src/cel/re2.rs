//! Patterns of `matches` mean what they mean in Kubernetes' engine, which has those of RE2: Go's `regexp/syntax` with Perl's flags.
//!
//! The library that searches has a syntax of its own. Some of RE2's is an error in it or something else, and some of its own is
//! unknown to RE2; its `\d`, `\w`, `\s` and `\b` know all of Unicode. So a pattern is read as RE2 reads it, and written anew with
//! what means the same in both.

use std::fmt::Write;

use regex_syntax::ast::{Ast, RepetitionKind, RepetitionRange};

/// The number of times that something may be repeated, also where one repetition is inside another.
pub const REPEATS: u32 = 1000;

/// The error where no property has the name that is written.
pub const NO_PROPERTY: &str =
    "`\\p` has no name of a general category or script; write it as in `\\pL`, `\\p{Lu}` or `\\p{Greek}`";

/// Names of classes between `[:` and `:]`.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit",
];

/// Long names of general categories, without case and what stands between words. The short ones have one or two letters.
const CATEGORIES: [&str; 42] = [
    "casedletter",
    "closepunctuation",
    "cntrl",
    "combiningmark",
    "connectorpunctuation",
    "control",
    "currencysymbol",
    "dashpunctuation",
    "decimalnumber",
    "digit",
    "enclosingmark",
    "finalpunctuation",
    "format",
    "initialpunctuation",
    "letter",
    "letternumber",
    "lineseparator",
    "lowercaseletter",
    "mark",
    "mathsymbol",
    "modifierletter",
    "modifiersymbol",
    "nonspacingmark",
    "number",
    "openpunctuation",
    "other",
    "otherletter",
    "othernumber",
    "otherpunctuation",
    "othersymbol",
    "paragraphseparator",
    "privateuse",
    "punct",
    "punctuation",
    "separator",
    "spaceseparator",
    "spacingmark",
    "symbol",
    "titlecaseletter",
    "unassigned",
    "uppercaseletter",
    "surrogate",
];

/// Scripts whose name has four letters. Their abbreviations, which RE2 does not know, all have four.
const SHORT_SCRIPTS: [&str; 8] = ["ahom", "cham", "kawi", "lisu", "modi", "newa", "thai", "toto"];

/// The kind of item before a place in a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that could be repeated.
    Nothing,
    /// Something that could be.
    Item,
    /// A repetition.
    Repetition,
    /// Flags for what follows: RE2 repeats what stands before them.
    Flags,
}

/// The translation of a pattern.
struct Translation<'p> {
    rest: &'p str,
    out: String,
    before: Before,
    /// The number of open groups.
    open: usize,
}

/// Writes a pattern of RE2 in the syntax of `regex_syntax`.
///
/// # Errors
/// A description of what RE2 does not know and of what to write instead, in one line.
pub fn translated(pattern: &str) -> Result<String, String> {
    let mut to = Translation { rest: pattern, out: String::new(), before: Before::Nothing, open: 0 };
    while let Some(c) = to.next() {
        to.item(c)?;
    }
    if to.open > 0 {
        return Err("a `(` has no `)`; write `\\(` for the character".to_owned());
    }
    Ok(to.out)
}

impl Translation<'_> {
    fn next(&mut self) -> Option<char> {
        let mut rest = self.rest.chars();
        let next = rest.next();
        self.rest = rest.as_str();
        next
    }

    /// Takes this text, if the rest begins with it. Returns true if so.
    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn item(&mut self, c: char) -> Result<(), String> {
        match c {
            '*' | '+' | '?' => return self.repetition(c.encode_utf8(&mut [0; 4])),
            '{' => match RepetitionBounds::read(self.rest) {
                Some((bounds, rest)) => {
                    self.rest = rest;
                    return self.repetition(&bounds.shown()?);
                }
                None => self.literal(c),
            },
            '(' => return self.group(),
            ')' => {
                self.open = self.open.checked_sub(1).ok_or("a `)` has no `(`; write `\\)` for the character")?;
                self.out.push(c);
                self.before = Before::Item;
            }
            '|' => {
                self.out.push(c);
                self.before = Before::Nothing;
            }
            '.' | '^' | '$' => self.written(c.encode_utf8(&mut [0; 4])),
            '[' => return self.class(),
            '\\' => return self.escape(),
            _ => self.literal(c),
        }
        Ok(())
    }

    /// An item in the library's syntax.
    fn written(&mut self, text: &str) {
        self.out.push_str(text);
        self.before = Before::Item;
    }

    fn literal(&mut self, c: char) {
        self.character(c);
        self.before = Before::Item;
    }

    fn character(&mut self, c: char) {
        if regex_syntax::is_meta_character(c) {
            self.out.push('\\');
        }
        self.out.push(c);
    }

    fn repetition(&mut self, operator: &str) -> Result<(), String> {
        match self.before {
            Before::Item => {}
            Before::Nothing => return Err(format!("`{operator}` has nothing to repeat; write `\\{operator}` for the character")),
            Before::Flags => return Err(format!("`{operator}` stands after flags; write it before them")),
            Before::Repetition => {
                return Err(format!(
                    "`{operator}` repeats a repetition, which RE2 does not allow; write `(?:...)` around the first"
                ));
            }
        }
        self.out.push_str(operator);
        if self.take("?") {
            self.out.push('?');
        }
        self.before = Before::Repetition;
        Ok(())
    }

    /// Translates what follows `(`.
    fn group(&mut self) -> Result<(), String> {
        if !self.take("?") {
            self.open += 1;
            self.before = Before::Nothing;
            self.out.push('(');
            return Ok(());
        }
        if let Some(named) = self.rest.strip_prefix("P<").or_else(|| self.rest.strip_prefix('<'))
            && !named.starts_with(['=', '!'])
        {
            let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let (_, rest) = named.split_once('>').filter(|(name, _)| is_name(name)).ok_or(
                "a group has no name of letters, digits and `_` between `<` and `>`; write `(...)`, since no name is used",
            )?;
            self.open += 1;
            self.before = Before::Nothing;
            self.rest = rest;
            // Nobody asks what a group caught.
            self.out.push('(');
            return Ok(());
        }
        self.flags()
    }

    /// Translates what follows `(?`, except a name.
    fn flags(&mut self) -> Result<(), String> {
        let wrong = wrong_group(self.rest);
        // The last word on each counts.
        let mut flags = [('i', None), ('m', None), ('s', None), ('U', None)];
        let (mut on, mut any) = (true, true);
        let end = loop {
            let c = self.next().ok_or_else(|| wrong.clone())?;
            if let Some((_, state)) = flags.iter_mut().find(|(flag, _)| *flag == c) {
                (*state, any) = (Some(on), true);
            } else if c == '-' && on {
                (on, any) = (false, false);
            } else if (c == ':' || c == ')') && any {
                break c;
            } else {
                return Err(wrong);
            }
        };
        let with = |state| flags.iter().filter(move |(_, is)| *is == Some(state)).map(|(flag, _)| *flag).collect::<String>();
        let (on, off) = (with(true), with(false));
        if end == ':' {
            self.open += 1;
            self.before = Before::Nothing;
        } else if self.before != Before::Nothing {
            self.before = Before::Flags;
        }
        if end == ':' || !on.is_empty() || !off.is_empty() {
            let minus = if off.is_empty() { "" } else { "-" };
            self.out.push_str(&format!("(?{on}{minus}{off}{end}"));
        }
        Ok(())
    }

    /// Translates what follows `[`.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.take("^") {
            self.out.push('^');
        }
        // A `]` that comes first is a character.
        let mut first = true;
        while first || !self.take("]") {
            first = false;
            let posix = self.rest.strip_prefix("[:").and_then(|named| named.split_once(":]"));
            if let Some((name, rest)) = posix {
                if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(format!("`[:{name}:]` is not a class of RE2; the classes are {}", POSIX.join(", ")));
                }
                let _ = write!(self.out, "[:{name}:]");
                self.rest = rest;
            } else if let Some(letter) =
                self.rest.strip_prefix('\\').and_then(|after| after.chars().next()).filter(|c| is_named(*c))
            {
                self.next();
                self.next();
                self.named_class(letter)?;
            } else {
                let low = self.class_character()?;
                self.character(low);
                if self.rest.strip_prefix('-').is_some_and(|after| !after.is_empty() && !after.starts_with(']')) {
                    self.next();
                    let high = self.class_character()?;
                    if high < low {
                        return Err(format!("the range `{low}-{high}` ends before it begins; write `\\-` for the character"));
                    }
                    self.out.push('-');
                    self.character(high);
                }
            }
        }
        self.written("]");
        Ok(())
    }

    fn class_character(&mut self) -> Result<char, String> {
        match self.next() {
            Some('\\') => self.escaped(),
            Some(c) => Ok(c),
            None => Err("a `[` has no `]`; write `\\[` for the character".to_owned()),
        }
    }

    /// `\d` and the like and `\p{...}`, inside of brackets and outside; the letter is taken.
    fn named_class(&mut self, letter: char) -> Result<(), String> {
        // RE2's are of ASCII alone, and \s has no \v.
        let of = match letter {
            'd' | 'D' => "0-9",
            's' | 'S' => "\\t\\n\\x0c\\r ",
            'w' | 'W' => "0-9A-Za-z_",
            _ => return self.property(letter == 'P'),
        };
        let not = if letter.is_ascii_uppercase() { "^" } else { "" };
        let _ = write!(self.out, "[{not}{of}]");
        Ok(())
    }

    /// Translates what follows `\p`.
    fn property(&mut self, mut negated: bool) -> Result<(), String> {
        let name = if let Some(named) = self.rest.strip_prefix('{') {
            let (name, rest) = named.split_once('}').ok_or(NO_PROPERTY)?;
            self.rest = rest;
            name
        } else {
            let before = self.rest;
            self.next();
            before.strip_suffix(self.rest).unwrap_or_default()
        };
        let name = if let Some(name) = name.strip_prefix('^') {
            negated = !negated;
            name
        } else {
            name
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || matches!(c, '_' | '-' | ' ')) {
            return Err(NO_PROPERTY.to_owned());
        }
        let plain: String = name.chars().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect();
        let kind = match &*plain {
            "any" | "ascii" | "assigned" => "",
            _ if plain.len() <= 2 && plain != "yi" || CATEGORIES.contains(&&*plain) => "gc=",
            // The library knows more names of scripts.
            _ if plain.starts_with("is") || plain.len() == 4 && !SHORT_SCRIPTS.contains(&&*plain) => {
                return Err(NO_PROPERTY.to_owned());
            }
            _ => "sc=",
        };
        let _ = write!(self.out, "\\{}{{{kind}{plain}}}", if negated { 'P' } else { 'p' });
        Ok(())
    }

    /// Translates what follows a backslash outside of brackets.
    fn escape(&mut self) -> Result<(), String> {
        let Some(c) = self.rest.chars().next() else {
            return Err("it ends with a backslash; write `\\\\` for the character".to_owned());
        };
        match c {
            'A' | 'z' | 'b' | 'B' => {
                self.next();
                self.written(match c {
                    'A' => "\\A",
                    'z' => "\\z",
                    'b' => "(?-u:\\b)",
                    _ => "(?-u:\\B)",
                });
            }
            'Q' => {
                self.next();
                let (text, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.rest = rest;
                text.chars().for_each(|c| self.literal(c));
            }
            _ if is_named(c) => {
                self.next();
                self.named_class(c)?;
                self.before = Before::Item;
            }
            _ => {
                let c = self.escaped()?;
                self.literal(c);
            }
        }
        Ok(())
    }

    /// A character that stands after a backslash.
    fn escaped(&mut self) -> Result<char, String> {
        let Some(c) = self.next() else { return Err("a `[` has no `]`; write `\\[` for the character".to_owned()) };
        Ok(match c {
            'a' => '\u{7}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '0' => self.octal(0),
            // One digit alone would be what a group caught.
            '1'..='7' if self.rest.starts_with(|next: char| next.is_digit(8)) => self.octal(c.to_digit(8).unwrap_or_default()),
            'x' => return self.hexadecimal(),
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
            _ => return Err(wrong_escape(c)),
        })
    }

    /// A character by its octal number, of which the first digit is taken; it has three at most.
    fn octal(&mut self, mut number: u32) -> char {
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|next| next.to_digit(8)) else { break };
            self.next();
            number = number * 8 + digit;
        }
        // At most 0o777, which is a character.
        char::from_u32(number).unwrap_or_default()
    }

    /// A character by what stands after `\x`.
    fn hexadecimal(&mut self) -> Result<char, String> {
        let wrong = "`\\x` has no number of a character; write it as in `\\x41` or `\\x{20ac}`";
        let digits = if let Some(number) = self.rest.strip_prefix('{') {
            let (digits, rest) = number.split_once('}').ok_or(wrong)?;
            self.rest = rest;
            digits
        } else {
            let (digits, rest) = self.rest.split_at_checked(2).ok_or(wrong)?;
            self.rest = rest;
            digits
        };
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong.to_owned());
        }
        u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).ok_or_else(|| wrong.to_owned())
    }
}

/// Returns true if a letter after a backslash stands for a class.
fn is_named(letter: char) -> bool {
    "dDsSwWpP".contains(letter)
}

fn wrong_escape(c: char) -> String {
    let instead = match c {
        'Z' => "write `\\z`, or `\\n?\\z`",
        'h' => "write `[ \\t]`",
        'R' => "write `\\r?\\n`",
        'N' => "write `.`",
        'b' | 'A' | 'z' | 'B' | 'Q' => "write it outside of the brackets",
        _ if is_named(c) => "no range begins or ends with a class; write `\\-` for the character",
        'E' => "there is no `\\Q` before it",
        'u' | 'U' => "write `\\x{...}`",
        'C' => "write `.`; no pattern sees single bytes",
        '1'..='9' => "there is no way to say what a group caught",
        _ if !c.is_ascii() => "write the character without a backslash",
        _ => "write the letter without a backslash, or the character as `\\x{...}`",
    };
    format!("`\\{c}` is not an escape of RE2 here; {instead}")
}

/// Returns the error for what follows `(?`.
fn wrong_group(rest: &str) -> String {
    let flags = rest.trim_start_matches(['i', 'm', 's', 'U', '-']);
    let instead = match flags.strip_prefix('<').unwrap_or(flags).chars().next() {
        Some('=' | '!') => "there is no look-around; write a second `matches` with `&&` or `!`",
        Some('#') => "write no comments in it",
        Some('>') => "write `(?:...)`",
        Some('x') => "write it without blanks and comments",
        Some('u') => "without it `\\d`, `\\w`, `\\s` and `\\b` know ASCII alone",
        _ => "there are `(?:...)`, `(?P<name>...)` and the flags i, m, s and U, as in `(?i)` and `(?i:...)`",
    };
    let shown: String = rest.chars().take(rest.len() - flags.len() + 1).collect();
    format!("`(?{shown}` does not begin a group of RE2; {instead}")
}

/// `{least}`, `{least,}` or `{least,most}`.
struct RepetitionBounds {
    least: u32,
    most: Option<u32>,
    /// True if `most` is `least`, since nothing else was written.
    exact: bool,
}

impl RepetitionBounds {
    /// Reads what stands after `{`, and gives what comes after `}`. What is none is the character `{`.
    fn read(text: &str) -> Option<(Self, &str)> {
        let (least, rest) = number(text)?;
        let (most, rest, exact) = match rest.strip_prefix(',') {
            None => (Some(least), rest, true),
            Some(rest) if rest.starts_with('}') => (None, rest, false),
            Some(rest) => {
                let (most, rest) = number(rest)?;
                (Some(most), rest, false)
            }
        };
        Some((Self { least, most, exact }, rest.strip_prefix('}')?))
    }

    fn shown(&self) -> Result<String, String> {
        let (least, most) = (self.least, self.most.unwrap_or(self.least));
        if most > REPEATS || least > most {
            return Err(format!(
                "a repetition is over {REPEATS} times, or ends before it begins; write `{{1,{REPEATS}}}`, or `+` and ask for the length with `size`"
            ));
        }
        Ok(match self.most {
            _ if self.exact => format!("{{{least}}}"),
            None => format!("{{{least},}}"),
            Some(most) => format!("{{{least},{most}}}"),
        })
    }
}

/// A number without leading zeros, and the rest; one that is too large is the largest.
fn number(text: &str) -> Option<(u32, &str)> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = text.strip_suffix(rest)?;
    let leading = digits.len() > 1 && digits.starts_with('0');
    (!digits.is_empty() && !leading).then(|| (digits.parse().unwrap_or(u32::MAX), rest))
}

/// Returns true if nothing inside of bounded repetitions is repeated more than `left` times.
pub fn repeats_at_most(tree: &Ast, left: u32) -> bool {
    match tree {
        Ast::Repetition(repetition) => {
            let times = match &repetition.op.kind {
                RepetitionKind::Range(RepetitionRange::Exactly(0) | RepetitionRange::Bounded(_, 0)) => return true,
                RepetitionKind::Range(
                    RepetitionRange::Exactly(times) | RepetitionRange::AtLeast(times) | RepetitionRange::Bounded(_, times),
                ) => *times,
                _ => 1,
            };
            times <= left && repeats_at_most(&repetition.ast, left / times.max(1))
        }
        Ast::Group(group) => repeats_at_most(&group.ast, left),
        Ast::Alternation(of) => of.asts.iter().all(|one| repeats_at_most(one, left)),
        Ast::Concat(of) => of.asts.iter().all(|one| repeats_at_most(one, left)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::translated;

    /// Over four hundred patterns with the answers of RE2 are in `tests/cel`.
    #[test]
    fn what_is_no_pattern_of_re2_says_what_to_write_instead() {
        for (pattern, remedy) in [
            ("(?=a)", "write a second `matches`"),
            ("(?<!a)", "write a second `matches`"),
            ("(?x)a b", "without blanks"),
            (r"(?-u:\b)", "know ASCII alone"),
            ("(?#a)", "no comments"),
            ("(?z)", "the flags i, m, s and U"),
            (r"a\Z", r"write `\z`"),
            (r"\u00e9", r"write `\x{...}`"),
            (r"\h", r"write `[ \t]`"),
            (r"(a)\1", "what a group caught"),
            (r"\é", "without a backslash"),
            (r"a\", r"write `\\`"),
            (r"[a-\d]", r"write `\-`"),
            (r"[\b]", "outside of the brackets"),
            ("[z-a]", r"write `\-`"),
            ("[a", r"write `\[`"),
            ("[[:foo:]]", "the classes are alnum,"),
            ("a**", "write `(?:...)` around the first"),
            ("*a", r"write `\*`"),
            ("a(?i)*", "write it before them"),
            ("(a", r"write `\(`"),
            ("a)", r"write `\)`"),
            ("a{0,1001}", "write `{1,1000}`"),
            (r"\p{Alphabetic}|\p{sc=Latin}", r"`\p{Lu}` or `\p{Greek}`"),
            (r"\p{Latn}", r"`\p{Lu}` or `\p{Greek}`"),
            (r"\x4", r"write it as in `\x41`"),
        ] {
            let why = translated(pattern).expect_err(pattern);
            assert!(why.contains(remedy), "{pattern}: {why}");
        }
    }
}
