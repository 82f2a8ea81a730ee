//! What a suggested policy says of prompts, resources, requests of the server and other methods.

use std::{borrow::Cow, collections::HashSet, fmt::Write};

use toolweir_crds::{
    bounds::{PROMPTS, RESOURCE_URI, RESOURCES, TOOL_NAME},
    quoting::scalar,
    resource_uri::{ResourceUri, pattern_problem},
    text::escaped,
    tool_name,
};

use crate::{
    tools::other_lists::{OtherList, OtherLists},
    yaml_text::comment,
};

/// The most templates that are named.
const TEMPLATES: usize = 5;
/// The longest name that a comment repeats.
const LONGEST: usize = 120;
const HINT: &str = "Allow what the agent needs (docs/operations.md).";

/// Adds what a server's part of the policy says beside tools. What the server lists is allowed, since nobody has seen what agents use of it.
pub fn add_text(text: &mut String, lists: Option<&OtherLists>) {
    let Some(OtherLists { prompts, resources, templates }) = lists else {
        comment(text, 4, "Prompts and resources were not read: they are denied.");
        comment(text, 4, &format!("What the server asks of the agent, and methods without a list, are denied. {HINT}"));
        text.push_str("    defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}\n");
        return;
    };
    comment(text, 4, &format!("What the server asks of the agent, and methods without a list, are denied. {HINT}"));
    text.push_str("    defaultActions: {requests: Deny, other: Deny}\n");
    add_list(text, &ListedKind { field: "prompts", key: "name", most: PROMPTS, entry: prompt_entry }, prompts);
    add_templates(text, templates);
    add_list(text, &ListedKind { field: "resources", key: "uri", most: RESOURCES, entry: resource_entry }, resources);
}

/// How a kind is written.
struct ListedKind {
    field: &'static str,
    key: &'static str,
    most: usize,
    /// Makes the name of the entry, or says why none can have it.
    entry: fn(&str) -> Result<String, String>,
}

fn prompt_entry(name: &str) -> Result<String, String> {
    let entry = tool_name::exactly(name);
    if name.contains(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    if entry.len() > TOOL_NAME { Err(format!("it has more than {TOOL_NAME} bytes")) } else { Ok(entry) }
}

fn resource_entry(uri: &str) -> Result<String, String> {
    let canonical = ResourceUri::read(uri).map_err(|why| format!("it {why}"))?.into_canonical();
    let entry = tool_name::exactly(&canonical);
    if entry.len() > RESOURCE_URI {
        return Err(format!("it has more than {RESOURCE_URI} bytes"));
    }
    pattern_problem(&entry).map_or(Ok(entry), |why| Err(format!("it {why}")))
}

fn add_list(text: &mut String, kind: &ListedKind, list: &OtherList) {
    let ListedKind { field, key, most, entry } = kind;
    let names: &[String] = match list {
        OtherList::None => {
            comment(text, 4, &format!("The server has no {field}."));
            &[]
        }
        OtherList::Unread(why) => {
            comment(text, 4, &format!("The {field} could not be listed, and are denied: {why}"));
            &[]
        }
        OtherList::Names(names) if names.is_empty() => {
            comment(text, 4, &format!("The server lists no {field}."));
            &[]
        }
        OtherList::Names(names) => {
            comment(
                text,
                4,
                &format!("All {field} that the server lists are allowed. Remove those that the agent does not need."),
            );
            names
        }
    };
    let (mut entries, mut seen) = (Vec::new(), HashSet::new());
    for name in names {
        match entry(name) {
            Ok(entry) if seen.insert(entry.clone()) => entries.push(entry),
            Ok(_) => {}
            Err(why) => {
                comment(text, 4, &format!("`{}` is denied, since no entry can name it: {why}", escaped(name, LONGEST)));
            }
        }
    }
    let more = entries.len().saturating_sub(*most);
    if more > 0 {
        let said = format!(
            "{more} more have no room here, and are denied. No glob is guessed from what they have in common: write one."
        );
        comment(text, 4, &said);
    }
    if entries.is_empty() {
        text.push_str(&format!("    {field}: []\n"));
        return;
    }
    text.push_str(&format!("    {field}:\n"));
    for entry in entries.iter().take(*most) {
        // A write to a text does not fail.
        let _ = writeln!(text, "    - {key}: {}", scalar(entry));
    }
}

fn add_templates(text: &mut String, templates: &OtherList) {
    let OtherList::Names(templates) = templates else { return };
    let named: Vec<Cow<'_, str>> = templates.iter().take(TEMPLATES).map(|template| escaped(template, LONGEST).into()).collect();
    if templates.is_empty() {
        return;
    }
    comment(
        text,
        4,
        "Of these resource templates, only what is listed is allowed. Write globs for what else the agent may read:",
    );
    for template in named {
        comment(text, 4, &format!("  {template}"));
    }
    if templates.len() > TEMPLATES {
        comment(text, 4, &format!("  and {} more", templates.len() - TEMPLATES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lists: Option<&OtherLists>) -> String {
        let mut text = String::new();
        add_text(&mut text, lists);
        text
    }

    fn names(names: &[&str]) -> OtherList {
        OtherList::Names(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn what_is_listed_is_allowed_by_its_exact_name() {
        let lists = OtherLists {
            prompts: names(&["review", "yes", "rate *", "bad\u{7}"]),
            resources: names(&["file:///plans.txt", "db://a", "file:///plans.txt"]),
            templates: names(&["file:///plans/{name}", "b:{c}", "d:{e}", "f:{g}", "h:{i}", "j:{k}"]),
        };
        let golden = r#"    # What the server asks of the agent, and methods without a list, are denied. Allow what the agent needs (docs/operations.md).
    defaultActions: {requests: Deny, other: Deny}
    # All prompts that the server lists are allowed. Remove those that the agent does not need.
    # `bad\u{7}` is denied, since no entry can name it: it has a control character
    prompts:
    - name: review
    - name: "yes"
    - name: "rate \\*"
    # Of these resource templates, only what is listed is allowed. Write globs for what else the agent may read:
    # file:///plans/{name}
    # b:{c}
    # d:{e}
    # f:{g}
    # h:{i}
    # and 1 more
    # All resources that the server lists are allowed. Remove those that the agent does not need.
    resources:
    - uri: file:///plans.txt
    - uri: db://a
"#;
        assert_eq!(written(Some(&lists)), golden);
    }

    #[test]
    fn what_is_not_known_is_denied_and_says_why() {
        let lists = OtherLists { prompts: OtherList::Unread("no\ndatabase".to_owned()), ..OtherLists::default() };
        let text = written(Some(&lists));
        assert!(text.contains("    # The prompts could not be listed, and are denied: no database\n    prompts: []\n"), "{text}");
        assert!(text.ends_with("    # The server has no resources.\n    resources: []\n"), "{text}");
        let lists = OtherLists { prompts: names(&[]), ..lists };
        assert!(written(Some(&lists)).contains("    # The server lists no prompts.\n    prompts: []\n"));
        let unread = written(None);
        assert!(
            unread.ends_with("    defaultActions: {prompts: Deny, resources: Deny, requests: Deny, other: Deny}\n"),
            "{unread}"
        );
    }

    #[test]
    fn what_has_no_room_is_counted_and_no_glob_is_made_of_it() {
        let many: Vec<String> = (0..RESOURCES + 3).map(|number| format!("db://rows/{number}")).collect();
        let text = written(Some(&OtherLists { resources: OtherList::Names(many), ..OtherLists::default() }));
        assert_eq!(text.matches("    - uri: db://rows/").count(), RESOURCES);
        assert!(text.contains("    # 3 more have no room here, and are denied. No glob is guessed"), "{text}");
    }
}
