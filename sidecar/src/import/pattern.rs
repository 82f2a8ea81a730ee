//! Patterns of Go as patterns of Rust that match the same texts.
//!
//! The two differ in what `\d`, `\w`, `\s` and `\b` know (ASCII there, Unicode here), in `\<` and `\>` (the character
//! there, the edge of a word here), in `{` where no count follows (a character there), and inside brackets, where Rust
//! has nested sets and `&&`, `--` and `~~`. What both read alike is left as it is, and what Rust lacks is left to its
//! own error.

/// Translates a pattern.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let mut scan = Scan { rest: pattern, out: String::with_capacity(pattern.len() + 8) };
    while let Some(c) = scan.next() {
        match c {
            '\\' => scan.escape()?,
            '[' => scan.set()?,
            '(' => scan.group()?,
            '{' => scan.brace(),
            c => scan.out.push(c),
        }
    }
    Ok(scan.out)
}

struct Scan<'a> {
    rest: &'a str,
    out: String,
}

/// The inside of the set that a letter stands for, and whether the letter turns it around.
fn letter(c: char) -> Option<(&'static str, bool)> {
    let inside = match c.to_ascii_lowercase() {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => r"\t\n\f\r ",
        _ => return None,
    };
    Some((inside, c.is_ascii_uppercase()))
}

impl Scan<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.skip(c.len_utf8());
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    /// Takes over what stands up to and with `end`.
    fn copy_through(&mut self, end: &str) -> Result<(), String> {
        let at = self.rest.find(end).ok_or_else(|| format!("has no `{end}` where one must follow"))?;
        let len = at + end.len();
        self.out.push_str(self.rest.get(..len).unwrap_or_default());
        self.skip(len);
        Ok(())
    }

    /// What follows a backslash outside of brackets.
    fn escape(&mut self) -> Result<(), String> {
        let c = self.next().ok_or("ends in a backslash")?;
        match (c, letter(c)) {
            (_, Some((inside, negated))) => self.out.extend([if negated { "[^" } else { "[" }, inside, "]"]),
            ('b', _) => self.out.push_str(r"(?-u:\b)"),
            ('B', _) => self.out.push_str(r"(?-u:\B)"),
            ('<' | '>', _) => self.out.push(c),
            ('p' | 'P', _) => self.property(c)?,
            ('x', _) => self.hex()?,
            _ => {
                self.out.push('\\');
                self.out.push(c);
            }
        }
        Ok(())
    }

    /// What follows `\p`.
    fn property(&mut self, p: char) -> Result<(), String> {
        self.out.push('\\');
        self.out.push(p);
        if self.rest.starts_with('{') {
            return self.copy_through("}");
        }
        let name = self.next().ok_or("ends in `\\p`")?;
        self.out.push(name);
        Ok(())
    }

    /// What follows `\x`.
    fn hex(&mut self) -> Result<(), String> {
        self.out.push_str("\\x");
        if self.rest.starts_with('{') {
            return self.copy_through("}");
        }
        for _ in 0..2 {
            let digit = self.next().filter(char::is_ascii_hexdigit).ok_or("has a `\\x` without its two digits")?;
            self.out.push(digit);
        }
        Ok(())
    }

    /// What follows a parenthesis: flags that Go does not have would change how the rest is to be read.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        let Some(rest) = self.rest.strip_prefix('?') else { return Ok(()) };
        let name = rest.strip_prefix("P<").or_else(|| rest.strip_prefix('<'));
        if name.is_some_and(|name| !name.starts_with(['=', '!'])) {
            return self.copy_through("<");
        }
        let flags = rest.len() - rest.trim_start_matches(['i', 'm', 's', 'U', '-']).len();
        if rest.get(flags..).is_some_and(|rest| rest.starts_with([':', ')'])) {
            self.out.push('?');
            self.out.push_str(rest.get(..flags).unwrap_or_default());
            self.skip(1 + flags);
            return Ok(());
        }
        let shown: String = rest.chars().take(2).collect();
        Err(format!("has the group `(?{}`, for which there is nothing here", shown.escape_debug()))
    }

    /// What follows a brace: a count, or anything, before which the brace is a character.
    fn brace(&mut self) {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let is_count = self.rest.split_once('}').is_some_and(|(inside, _)| {
            let (least, most) = inside.split_once(',').unwrap_or((inside, ""));
            !least.is_empty() && digits(least) && digits(most)
        });
        self.out.push_str(if is_count { "{" } else { r"\{" });
    }

    /// What follows an opening bracket, read as Go reads it.
    fn set(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.peek() == Some('^') {
            self.skip(1);
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if self.rest.is_empty() {
                return Err("has a `[` without its `]`".to_owned());
            }
            if self.peek() == Some(']') && !first {
                self.skip(1);
                self.out.push(']');
                return Ok(());
            }
            first = false;
            if self.rest.starts_with("[:") && self.rest.contains(":]") {
                self.copy_through(":]")?;
                continue;
            }
            let mut escaped = self.rest.strip_prefix('\\').unwrap_or_default().chars();
            if let Some(c) = escaped.next() {
                if let Some((inside, negated)) = letter(c) {
                    self.skip(2);
                    let inside = if negated { format!("[^{inside}]") } else { inside.to_owned() };
                    self.out.push_str(&inside);
                    continue;
                }
                if matches!(c, 'p' | 'P') {
                    self.skip(2);
                    self.property(c)?;
                    continue;
                }
            }
            self.set_char()?;
            if self.rest.starts_with('-') && self.rest.len() > 1 && !self.rest.starts_with("-]") {
                self.skip(1);
                self.out.push('-');
                self.set_char()?;
            }
        }
    }

    /// One character inside brackets.
    fn set_char(&mut self) -> Result<(), String> {
        let unfinished = "has a `[` without its `]`";
        match self.next().ok_or(unfinished)? {
            '\\' => match self.next().ok_or(unfinished)? {
                c if letter(c).is_some() || "pPbB".contains(c) => {
                    return Err(format!("has `\\{c}` where a character must stand"));
                }
                'x' => self.hex()?,
                c @ ('<' | '>') => self.out.push(c),
                c => {
                    self.out.push('\\');
                    self.out.push(c);
                }
            },
            c => {
                if "[]^-&~".contains(c) {
                    self.out.push('\\');
                }
                self.out.push(c);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (go, rust) in [
            (r"^SELECT\b", r"^SELECT(?-u:\b)"),
            (r"^\d{3,5}$", "^[0-9]{3,5}$"),
            (r"[\w.-]+@\S+", r"[0-9A-Za-z_.\-]+@[^\t\n\f\r ]+"),
            (r"[\w-.]", r"[0-9A-Za-z_\-.]"),
            (r"[^\W]", "[^[^0-9A-Za-z_]]"),
            ("[[a]b]", r"[\[a]b]"),
            ("[]a]", r"[\]a]"),
            ("[a&&b~~c]", r"[a\&\&b\~\~c]"),
            ("[[:alpha:]_]", "[[:alpha:]_]"),
            (r"[a-z\x41\x{42}\pL\p{Greek}]", r"[a-z\x41\x{42}\pL\p{Greek}]"),
            ("[--/]", r"[\--/]"),
            ("{x} a{,5} b{2} c{2,} {", r"\{x} a\{,5} b{2} c{2,} \{"),
            (r"\<a\>", "<a>"),
            (r"(?i)a(?:b)(?P<n>c)(?<m>d)(?s-i:e)", r"(?i)a(?:b)(?P<n>c)(?<m>d)(?s-i:e)"),
            (r"\.\/\-é", r"\.\/\-é"),
        ] {
            assert_eq!(translate(go).as_deref(), Ok(rust), "{go}");
        }
        for bad in [r"\", "[a", r"[a-\d]", "[a-", "(?=a)", "(?<!a)", "(?x)a", r"\x4", r"\p", r"\p{", r"[\", "(?"] {
            assert!(translate(bad).is_err(), "{bad}");
        }
    }
}
