use std::{borrow::Cow, cell::Cell};

use toolweir_crds::ToolClass;

use super::*;
use crate::mcp::list_kind::ListKind;

struct ListingServer {
    book: ToolBook,
    now: Instant,
    room: Cell<usize>,
}

impl ListingServer {
    fn new() -> Self {
        Self { book: ToolBook::default(), now: Instant::now(), room: Cell::new(5000) }
    }

    /// Lists these definitions on one page.
    fn page(&mut self, more: bool, definitions: &[&str]) -> PageChanges {
        self.book.begin_page(self.now);
        for text in definitions {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            let names: Vec<Cow<'_, str>> =
                ["name", "Name"].iter().filter_map(|key| Some(value.get(*key)?.as_str()?.to_owned().into())).collect();
            let is_plain = names.len() == 1 && value.get("name").is_some();
            let entry = ListEntry { list: ListKind::Tools, text: text.as_bytes(), names: &names, is_plain };
            let room = &self.room;
            let take = |_| room.get().checked_sub(1).inspect(|left| room.set(*left)).is_some();
            self.book.learn(&entry, true, &take, self.now);
        }
        self.book.end_page(more, self.now)
    }

    fn list(&mut self, definitions: &[&str]) -> PageChanges {
        self.page(false, definitions)
    }

    fn class(&self, name: &str) -> Option<ToolClass> {
        self.book.seen(Knowledge::Listed).get(name).map(|seen| seen.class)
    }

    fn definitions(&self, name: &str) -> usize {
        self.book.known(name).map_or(0, |tool| tool.seen().definitions.len())
    }
}

const GETS: &str = r#"{"name":"repo","description":"Gets a repository."}"#;
const GETS_IN_OTHER_NOTATION: &str = r#"{"description" : "Gets a repositor\u0079.", "name":"repo"}"#;
const DELETES: &str = r#"{"name":"repo","description":"Deletes a repository for ever."}"#;
const OTHER: &str = r#"{"name":"other","description":"Gets another thing."}"#;

fn new(changes: &PageChanges) -> Vec<&str> {
    changes.new.iter().map(|name| &**name).collect()
}

#[test]
fn what_is_listed_again_changes_nothing() {
    let mut server = ListingServer::new();
    let first = server.list(&[GETS, OTHER]);
    assert_eq!((new(&first), first.seen, first.kept), (vec!["other", "repo"], true, true));
    assert_eq!(server.class("repo"), Some(ToolClass::Read));
    let again = server.list(&[OTHER, GETS]);
    assert!(again.new.is_empty() && !again.seen && !again.kept);
    let other_notation = server.list(&[GETS_IN_OTHER_NOTATION]);
    assert!(other_notation.new.is_empty() && !other_notation.seen && other_notation.kept);
    let changed = server.list(&[DELETES]);
    assert_eq!((new(&changed), changed.seen), (vec!["repo"], true));
    assert_eq!((server.class("repo"), server.definitions("repo")), (Some(ToolClass::Destructive), 1));
}

#[test]
fn definitions_of_one_listing_add_up_and_those_of_the_next_take_their_place() {
    let mut server = ListingServer::new();
    for pages in [vec![vec![GETS, DELETES]], vec![vec![GETS], vec![OTHER], vec![DELETES]]] {
        let last = pages.len() - 1;
        for (at, page) in pages.iter().enumerate() {
            server.page(at < last, page);
        }
        assert_eq!((server.class("repo"), server.definitions("repo")), (Some(ToolClass::Destructive), 2));
        // The first of the two, met again, does not hide the second for the time until that comes.
        server.page(true, &[GETS]);
        assert_eq!(server.definitions("repo"), 2);
        server.page(false, &[OTHER]);
        assert_eq!((server.class("repo"), server.definitions("repo")), (Some(ToolClass::Read), 1));
    }
    // A listing that nobody ends is over after a minute.
    server.page(true, &[DELETES]);
    server.now += LISTING + Duration::from_secs(1);
    server.page(true, &[GETS]);
    assert_eq!(server.definitions("repo"), 1);
    let many: Vec<String> = (0..9).map(|at| format!(r#"{{"name":"repo","description":"Gets the repository {at}."}}"#)).collect();
    server.list(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((server.class("repo"), server.definitions("repo")), (Some(ToolClass::Unknown), MOST_DEFINITIONS));
}

#[test]
fn after_a_change_of_the_list_nothing_is_known_until_it_is_listed_again() {
    let mut server = ListingServer::new();
    server.list(&[GETS, OTHER]);
    assert!(server.book.list_changed() && !server.book.list_changed());
    assert!(server.book.seen(Knowledge::Listed).is_empty() && server.book.known("repo").is_none());
    let again = server.list(&[GETS]);
    assert!(again.new.is_empty() && again.seen && again.kept, "it is no new definition");
    assert_eq!((server.class("repo"), server.class("other")), (Some(ToolClass::Read), None));
    // What it was before the change does not count any more.
    server.list(&[GETS, DELETES]);
    server.book.list_changed();
    server.list(&[GETS]);
    assert_eq!(server.definitions("repo"), 1);
}

#[test]
fn an_entry_with_two_names_can_be_anything_under_both() {
    let mut server = ListingServer::new();
    server.list(&[GETS, OTHER, r#"{"name":"repo","Name":"other"}"#, r#"{"Name":"third"}"#]);
    for name in ["repo", "other", "third"] {
        assert_eq!(server.class(name), Some(ToolClass::Unknown), "{name}");
    }
}

#[test]
fn what_there_is_no_room_for_is_not_learned_and_that_is_told_once() {
    let mut server = ListingServer::new();
    let tools: Vec<String> = (0..MOST_TOOLS + 2).map(|at| format!(r#"{{"name":"get_{at}"}}"#)).collect();
    let all: Vec<&str> = tools.iter().map(String::as_str).collect();
    assert!(server.list(&all).is_full);
    assert!(!server.list(&all).is_full);
    assert_eq!((server.book.tools().len(), server.class(&format!("get_{MOST_TOOLS}"))), (MOST_TOOLS, None));
    server.list(&all[..2]);
    assert!(server.list(&all).is_full, "it fitted in between");
    let mut server = ListingServer { room: Cell::new(1), ..ListingServer::new() };
    assert!(server.list(&[GETS, OTHER]).is_full);
    assert_eq!((server.class("repo"), server.class("other")), (Some(ToolClass::Read), None));
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(bounds::TOOL_NAME + 1));
    server.list(&[&long]);
    assert_eq!(server.book.tools().len(), 1);
}

#[test]
fn texts_are_bounded_and_come_free_again() {
    let mut server = ListingServer::new();
    let definition = |name: usize, letter: char| {
        format!(r#"{{"name":"get_{name}","description":"{}"}}"#, letter.to_string().repeat(bounds::PINNED_TEXT))
    };
    for letter in ['a', 'b', 'c'] {
        let texts: Vec<String> = (0..200).map(|name| definition(name, letter)).collect();
        server.list(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let held: usize =
            server.book.tools().iter().flat_map(|(_, tool)| tool.definitions()).map(KeptDefinition::text_bytes).sum();
        assert_eq!(held, server.book.texts);
        assert!(held <= MOST_TEXTS && held > MOST_TEXTS - bounds::PINNED_TEXT, "{held}");
    }
}

#[test]
fn a_tool_that_listings_leave_out_is_forgotten_after_some_time() {
    let mut server = ListingServer::new();
    server.list(&[GETS, OTHER]);
    server.now += REMEMBERED;
    let before = server.book.count();
    server.list(&[GETS]);
    assert_eq!(before - server.book.count(), 0);
    server.now += Duration::from_secs(1);
    let before = server.book.count();
    let changes = server.page(false, &[GETS]);
    let forgotten = before - server.book.count();
    assert_eq!((changes.seen, forgotten, server.class("other"), server.class("repo")), (true, 1, None, Some(ToolClass::Read)));
}
