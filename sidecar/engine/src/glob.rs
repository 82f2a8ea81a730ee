//! Tool names with `*` in them.

use std::borrow::Cow;

use toolweir_crds::tool_name;

use crate::case::folded;

/// A pattern in which `*` stands for any characters, none included. It matches without recursion, in time linear in pattern and
/// name together: each part is looked for once, behind the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// Matches the exact spelling.
    exact: Parts,
    /// Matches without regard to case; `None` where that is the same text.
    folded: Option<Parts>,
    /// The number of literal characters.
    weight: usize,
}

/// The way in which a glob matches a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// In its exact spelling.
    Exact,
    /// Only without regard to case.
    Folded,
}

/// The parts of a glob.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    /// The literal parts between the stars; the first and last are anchored.
    literals: Vec<Box<str>>,
    /// The least number of bytes of a name.
    least: usize,
    /// The bytes that a name must begin and end with: they tell most names apart at once.
    ends: [Option<u8>; 2],
}

impl Parts {
    fn new(mut literals: Vec<Box<str>>) -> Self {
        let ends = [
            literals.first().and_then(|part| part.as_bytes().first()).copied(),
            literals.last().and_then(|part| part.as_bytes().last()).copied(),
        ];
        // Several stars are one.
        let end = literals.len().saturating_sub(1);
        let mut at = 0..;
        literals.retain(|part| at.next().is_some_and(|at| at == 0 || at == end) || !part.is_empty());
        let least = literals.iter().map(|part| part.len()).sum();
        Self { literals, least, ends }
    }

    fn matches(&self, name: &str) -> bool {
        let differs = |ours: Option<u8>, theirs: Option<&u8>| ours.is_some_and(|byte| theirs != Some(&byte));
        let ([first, last], bytes) = (self.ends, name.as_bytes());
        if bytes.len() < self.least || differs(first, bytes.first()) || differs(last, bytes.last()) {
            return false;
        }
        let (Some((first, rest)), Some(last)) = (self.literals.split_first(), self.literals.last()) else { return false };
        let Some(name) = name.strip_prefix(&**first) else { return false };
        let Some(mut name) = name.strip_suffix(&**last) else { return false };
        // What lies between: each part at its first place leaves the most for those after it.
        for part in rest.iter().take(rest.len().saturating_sub(1)) {
            let Some(at) = name.find(&**part) else { return false };
            name = name.get(at + part.len()..).unwrap_or_default();
        }
        true
    }
}

impl Glob {
    /// Parses the name of an entry. `None` for a name without `*`, which is exact.
    pub fn parse(entry: &str) -> Option<Self> {
        Self::new(&tool_name::literals(entry)?)
    }

    /// Makes the glob of these texts with any characters between them. `None` for a single text.
    pub(crate) fn new(literals: &[Cow<'_, str>]) -> Option<Self> {
        if literals.len() < 2 {
            return None;
        }
        let boxed = |text: &str| Box::<str>::from(text);
        let weight = literals.iter().map(|literal| literal.chars().count()).sum();
        let exact = Parts::new(literals.iter().map(|literal| boxed(literal)).collect());
        let lower = literals.iter().any(|literal| folded(literal) != *literal);
        let folded = lower.then(|| Parts::new(literals.iter().map(|literal| boxed(&folded(literal))).collect()));
        Some(Self { exact, folded, weight })
    }

    /// Returns the number of literal characters: the more, the more specific.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Returns true if it matches the exact spelling of a name.
    pub fn matches(&self, name: &str) -> bool {
        self.exact.matches(name)
    }

    /// Matches a name, given with its [`folded`] form.
    pub fn match_name(&self, name: &str, lower: &str) -> Option<Match> {
        // What matches as it stands matches folded too, so most globs are looked at once.
        if !self.folded.as_ref().unwrap_or(&self.exact).matches(lower) {
            return None;
        }
        let same = self.folded.is_none() && name == lower;
        Some(if same || self.exact.matches(name) { Match::Exact } else { Match::Folded })
    }

    /// Returns true if some name matches both: one that begins with the longer beginning, ends with the longer end, and has the
    /// parts between the stars of either in between.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (Some(begin), Some(others_begin)) = (self.exact.literals.first(), other.exact.literals.first()) else { return false };
        let (Some(end), Some(others_end)) = (self.exact.literals.last(), other.exact.literals.last()) else { return false };
        (begin.starts_with(&**others_begin) || others_begin.starts_with(&**begin))
            && (end.ends_with(&**others_end) || others_end.ends_with(&**end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        Glob::parse(text).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, yes, no) in [
            ("*", vec!["", "a", "get_x"], vec![]),
            ("get_*", vec!["get_", "get_a"], vec!["get", "xget_a"]),
            ("*_get", vec!["_get", "a_get"], vec!["a_get_"]),
            ("a*a", vec!["aa", "aba"], vec!["a", "ab"]),
            ("a*b*c", vec!["abc", "axbxc", "abbc"], vec!["acb", "ac", "abcd"]),
            ("*ab*ab*", vec!["abab", "xabyabz"], vec!["ab", "aab"]),
            ("検索 *", vec!["検索 ", "検索 é"], vec!["検索", "検"]),
            (r"2\**", vec!["2*", "2*3"], vec!["2", "23", r"2\*"]),
            (r"*\\", vec![r"\", r"C:\"], vec!["*", r"C:\*"]),
        ] {
            for name in yes {
                assert!(glob(pattern).matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!glob(pattern).matches(name), "{pattern} {name}");
            }
        }
        assert_eq!(Glob::parse("exact"), None);
        assert_eq!(Glob::parse(r"2\*3"), None);
        assert_eq!(glob("日本*").weight(), 2);
        assert_eq!(glob("a*bc*").weight(), 3);
    }

    #[test]
    fn overlap_is_a_common_name() {
        assert!(glob("get_*").overlaps(&glob("*_post")));
        assert!(!glob("get_*").overlaps(&glob("set_*")));
        assert!(glob("*").overlaps(&glob("*")));
        assert!(glob("a*c").overlaps(&glob("ab*")));
        assert!(!glob("*a").overlaps(&glob("*b")));
    }

    /// The obvious matcher, by recursion.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            Some((byte, rest)) => name.first() == Some(byte) && naive(rest, &name[1..]),
        }
    }

    #[test]
    fn a_match_without_case_is_told_from_one_as_it_stands() {
        let of = |pattern: &str, name: &str| glob(pattern).match_name(name, &folded(name));
        assert_eq!(of("*delete*", "delete_page"), Some(Match::Exact));
        assert_eq!(of("*delete*", "DELETE_page"), Some(Match::Folded));
        assert_eq!(of("*Delete*", "delete_page"), Some(Match::Folded));
        assert_eq!(of("*Delete*", "Delete_page"), Some(Match::Exact));
        assert_eq!(of("*task*", "get_taſ\u{212a}s"), Some(Match::Folded));
        assert_eq!(of("*delete*", "create_page"), None);
    }

    proptest! {
        #[test]
        fn what_matches_as_it_stands_matches_without_case(pattern in "[aB*]{0,6}\\*[Ab*]{0,4}", name in "[aAbBſ]{0,8}") {
            let (glob, lower) = (glob(&pattern), folded(&name));
            let naively = |pattern: &str, name: &str| naive(pattern.as_bytes(), name.as_bytes());
            let expected = match (naively(&pattern, &name), naively(&folded(&pattern), &lower)) {
                (true, _) => Some(Match::Exact),
                (false, true) => Some(Match::Folded),
                (false, false) => None,
            };
            prop_assert_eq!(glob.match_name(&name, &lower), expected);
        }

        #[test]
        fn matches_as_the_obvious_matcher(pattern in "[ab*]{0,6}\\*[ab*]{0,4}", name in "[ab]{0,8}") {
            prop_assert_eq!(glob(&pattern).matches(&name), naive(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn what_matches_both_overlaps(a in "[ab*]{0,4}\\*[ab*]{0,3}", b in "[ab*]{0,4}\\*[ab*]{0,3}", name in "[ab]{0,6}") {
            if glob(&a).matches(&name) && glob(&b).matches(&name) {
                prop_assert!(glob(&a).overlaps(&glob(&b)));
            }
        }

        #[test]
        fn what_overlaps_has_a_common_name(a in "[ab*]{0,3}\\*[ab]{0,2}", b in "[ab*]{0,3}\\*[ab]{0,2}") {
            // Two letters and a length of the literals together are enough for a witness.
            let mut names = vec![String::new()];
            let mut all = names.clone();
            for _ in 0..8 {
                names = names.iter().flat_map(|n| [format!("{n}a"), format!("{n}b")]).collect();
                all.extend(names.iter().cloned());
            }
            let witness = all.iter().any(|n| glob(&a).matches(n) && glob(&b).matches(n));
            prop_assert_eq!(glob(&a).overlaps(&glob(&b)), witness);
        }
    }
}
