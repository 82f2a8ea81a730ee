//! Tool names with `*` in them.

use crate::case::folded;

/// A pattern in which `*` stands for any characters, none included. It matches without recursion, in time linear in pattern and
/// name together: each part is looked for once, behind the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// How it matches names as they are.
    exact: Parts,
    /// How it matches names without regard to case; nothing where that is the same text.
    folded: Option<Parts>,
    /// How many literal characters there are.
    weight: usize,
}

/// How a glob matches a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// As it stands there.
    Exact,
    /// Only without regard to case.
    Folded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    /// The literal parts between the stars; the first and last are anchored.
    literals: Vec<Box<str>>,
    /// How many bytes a name has at least.
    least: usize,
    /// The bytes that a name must begin and end with: they tell most names apart at once.
    ends: [Option<u8>; 2],
}

impl Parts {
    fn new(text: &str) -> Self {
        let literal = |byte: &&u8| **byte != b'*';
        let ends = [text.as_bytes().first(), text.as_bytes().last()].map(|byte| byte.filter(literal).copied());
        let mut literals: Vec<Box<str>> = text.split('*').map(Into::into).collect();
        // Several stars are one.
        let end = literals.len() - 1;
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
    /// The glob of a name, or nothing when the name has no `*` and so is exact.
    pub fn parse(name: &str) -> Option<Self> {
        if !name.contains('*') {
            return None;
        }
        let exact = Parts::new(name);
        let lower = folded(name);
        let weight = exact.least;
        Some(Self { folded: (lower != name).then(|| Parts::new(&lower)), exact, weight })
    }

    /// How many literal characters it has: the more, the more specific.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether it matches a name as it stands there.
    pub fn matches(&self, name: &str) -> bool {
        self.exact.matches(name)
    }

    /// How it matches a name, given with its [`folded`] form.
    pub fn match_of(&self, name: &str, lower: &str) -> Option<Match> {
        // What matches as it stands matches folded too, so most globs are looked at once.
        if !self.folded.as_ref().unwrap_or(&self.exact).matches(lower) {
            return None;
        }
        let same = self.folded.is_none() && name == lower;
        Some(if same || self.exact.matches(name) { Match::Exact } else { Match::Folded })
    }

    /// Whether some name matches both: one that begins with the longer beginning, ends with the longer end, and has what lies
    /// between the stars of either in between.
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
        ] {
            for name in yes {
                assert!(glob(pattern).matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!glob(pattern).matches(name), "{pattern} {name}");
            }
        }
        assert_eq!(Glob::parse("exact"), None);
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
        let of = |pattern: &str, name: &str| glob(pattern).match_of(name, &folded(name));
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
            prop_assert_eq!(glob.match_of(&name, &lower), expected);
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
