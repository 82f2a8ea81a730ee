//! Tool names with `*` in them.

/// A pattern in which `*` stands for any characters, none included. It matches without recursion in time linear in
/// pattern and name for patterns of one `*`, and at worst in their product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// The literal parts between the stars; the first and last are anchored.
    parts: Vec<Box<str>>,
    /// How many literal characters there are.
    weight: usize,
    /// The bytes that a name must begin and end with: they tell most names apart at once.
    ends: [Option<u8>; 2],
}

impl Glob {
    /// The glob of a name, or nothing when the name has no `*` and so is exact.
    pub fn parse(name: &str) -> Option<Self> {
        let literal = |byte: &&u8| **byte != b'*';
        let ends = [name.as_bytes().first(), name.as_bytes().last()].map(|byte| byte.filter(literal).copied());
        let parts: Vec<Box<str>> = name.split('*').map(Into::into).collect();
        let weight = parts.iter().map(|part| part.len()).sum();
        name.contains('*').then_some(Self { parts, weight, ends })
    }

    /// How many literal characters it has: the more, the more specific.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether it matches a name.
    pub fn matches(&self, name: &str) -> bool {
        let differs = |ours: Option<u8>, theirs: Option<&u8>| ours.is_some_and(|byte| theirs != Some(&byte));
        let ([first, last], bytes) = (self.ends, name.as_bytes());
        if bytes.len() < self.weight || differs(first, bytes.first()) || differs(last, bytes.last()) {
            return false;
        }
        let (Some((first, rest)), Some(last)) = (self.parts.split_first(), self.parts.last()) else { return false };
        let Some(name) = name.strip_prefix(&**first) else { return false };
        let Some(mut name) = name.strip_suffix(&**last) else { return false };
        // What lies between: each part at its first place leaves the most for those after it.
        for part in rest.iter().take(rest.len().saturating_sub(1)) {
            let Some(at) = name.find(&**part) else { return false };
            name = name.get(at + part.len()..).unwrap_or_default();
        }
        true
    }

    /// Whether some name matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.tokens(), other.tokens());
        // reach[j]: the tokens of `a` so far and the first j of `b` can spell the same text.
        let mut reach = vec![false; b.len() + 1];
        for i in 0..=a.len() {
            let mut next = vec![false; b.len() + 1];
            for j in 0..=b.len() {
                let left = i.checked_sub(1).and_then(|i| a.get(i));
                let up = j.checked_sub(1).and_then(|j| b.get(j));
                let before = |row: &[bool], j: Option<usize>| j.and_then(|j| row.get(j)).copied().unwrap_or(false);
                let fits = match (left, up) {
                    (None, None) => true,
                    (Some(None), None) => before(&reach, Some(j)),
                    (None, Some(None)) => before(&next, j.checked_sub(1)),
                    (Some(_), None) | (None, Some(_)) => false,
                    (Some(x), Some(y)) => {
                        let both = before(&reach, j.checked_sub(1));
                        match (x, y) {
                            (Some(x), Some(y)) => x == y && both,
                            _ => {
                                both || (x.is_none() && (before(&reach, Some(j)) || before(&next, j.checked_sub(1))))
                                    || (y.is_none() && (before(&next, j.checked_sub(1)) || before(&reach, Some(j))))
                            }
                        }
                    }
                };
                if let Some(cell) = next.get_mut(j) {
                    *cell = fits;
                }
            }
            reach = next;
        }
        reach.last().copied().unwrap_or(false)
    }

    /// The pattern as single characters, with nothing for a star.
    fn tokens(&self) -> Vec<Option<u8>> {
        let mut tokens = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                tokens.push(None);
            }
            tokens.extend(part.bytes().map(Some));
        }
        tokens
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

    proptest! {
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
