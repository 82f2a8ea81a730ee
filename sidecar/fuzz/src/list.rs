//! An answer with a list: hidden entries are cut out, and nothing else changes.

use toolweir_engine::json::{JsonError, same_but_for_case};
use toolweir_sidecar::mcp::{
    edits::Filtered,
    list::{ListEntry, MOST_NAMES, Rules, filter},
    list_kind::ListKind,
};

use super::tree::Tree;

/// Which entries are shown.
pub fn shows(name: &str) -> bool {
    !name.starts_with('d')
}

/// The rules by which lists are shown.
pub const RULES: Rules<'_> = Rules { ttl: 5000, own: None };

/// Returns true where an entry is shown.
pub fn shows_entry(entry: &ListEntry<'_>) -> bool {
    entry.names.iter().all(|name| shows(name))
}

/// The same on a tree.
fn hide(answer: &mut Tree) {
    let Tree::Object(members) = answer else { return };
    for (_, result) in members.iter_mut().filter(|(key, _)| same_but_for_case(key, "result")) {
        let Tree::Object(members) = result else { continue };
        let (mut hidden, mut list) = (false, false);
        for (key, entries) in members.iter_mut() {
            let Some(kind) = ListKind::ALL.into_iter().find(|kind| same_but_for_case(key, kind.key())) else { continue };
            let Tree::List(entries) = entries else { continue };
            list = true;
            let before = entries.len();
            entries.retain(|entry| match entry {
                Tree::Object(members) => {
                    let mut names =
                        members.iter().filter(|(key, _)| same_but_for_case(key, kind.member())).map(|(_, name)| name).peekable();
                    names.peek().is_some()
                        && names.clone().count() <= MOST_NAMES
                        && names.all(|name| name.string().is_some_and(shows))
                }
                _ => true,
            });
            hidden |= entries.len() < before;
        }
        for (_, scope) in members.iter_mut().filter(|(key, _)| hidden && same_but_for_case(key, "cacheScope")) {
            *scope = Tree::String("private".to_owned());
        }
        for (_, ttl) in members.iter_mut().filter(|(key, _)| list && same_but_for_case(key, "ttlMs")) {
            match ttl {
                // Minus zero is none that all clients take.
                Tree::Number(number) if number.as_f64().is_some_and(|ttl| ttl.is_sign_positive() && ttl <= 5000.0) => {}
                _ => *ttl = Tree::Number(5000.into()),
            }
        }
    }
}

/// The check.
pub fn check(body: &[u8]) {
    let mut told = 0;
    let filtered = filter(body, &RULES, &mut |entry| {
        assert!((1..=MOST_NAMES).contains(&entry.names.len()), "an entry without a name is not told");
        told += 1;
        shows_entry(entry)
    })
    .map(|read| read.filtered);
    assert!(told <= body.len(), "each entry is told once");
    let tree = Tree::read(body);
    let after = match filtered {
        Ok(Filtered::Same) => body.to_vec(),
        Ok(Filtered::Edited(edited)) => {
            assert!(edited != body, "edited, and nothing changed");
            edited
        }
        Err(why) => {
            let another = matches!(why, JsonError::TooDeep | JsonError::LoneSurrogate(_));
            assert!(another || !matches!(tree, Ok(Some(_))), "cannot be read as JSON, which it is: {why}");
            return;
        }
    };
    // What it does is done once.
    assert_eq!(filter(&after, &RULES, &mut shows_entry).map(|read| read.filtered), Ok(Filtered::Same));
    let Some(mut expected) = tree.expect("what is accepted is JSON") else { return };
    match &mut expected {
        Tree::List(answers) => answers.iter_mut().for_each(hide),
        answer => hide(answer),
    }
    let found = Tree::read(&after).expect("what comes out is JSON").expect("it could be read before");
    assert_eq!(found, expected);
}
