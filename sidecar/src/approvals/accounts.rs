//! Users and groups of this machine, as `/etc/passwd` and `/etc/group` name them.

use std::fs;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// A group was named that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{GROUPS} has no group `{0}`; write another name, or the number of the group")]
pub struct UnknownGroup(String);

/// Returns the number of a group, which may be named by it.
///
/// # Errors
/// There is no such group.
pub fn group_id(name: &str) -> Result<u32, UnknownGroup> {
    let known = id_of(&fs::read_to_string(GROUPS).unwrap_or_default(), name);
    known.or_else(|| name.parse().ok()).ok_or_else(|| UnknownGroup(name.escape_debug().collect()))
}

/// A group, for people: its number, and its name where it has one.
pub fn group(id: u32) -> String {
    described("gid", id, GROUPS)
}

/// A user, for people and records: its number, and its name where it has one.
pub fn user(id: u32) -> String {
    described("uid", id, USERS)
}

fn described(kind: &str, id: u32, file: &str) -> String {
    match name_of(&fs::read_to_string(file).unwrap_or_default(), id) {
        Some(name) => format!("{kind} {id} ({name})"),
        None => format!("{kind} {id}"),
    }
}

/// Both files have name, password and number first, parted by colons.
fn entries(file: &str) -> impl Iterator<Item = (&str, u32)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

fn id_of(file: &str, name: &str) -> Option<u32> {
    entries(file).find(|(known, _)| *known == name).map(|(_, id)| id)
}

fn name_of(file: &str, id: u32) -> Option<&str> {
    entries(file).find(|(_, known)| *known == id).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let file = "root:x:0:0:root:/root:/bin/bash\n# a comment\n\nbroken\n+::::::\nops:x:120:ann,bob\n7:x:9:\n";
        assert_eq!(
            [id_of(file, "root"), id_of(file, "ops"), id_of(file, "7"), id_of(file, "broken")],
            [Some(0), Some(120), Some(9), None]
        );
        assert_eq!([name_of(file, 0), name_of(file, 120), name_of(file, 121)], [Some("root"), Some("ops"), None]);
        assert_eq!(id_of(file, ""), None);
    }

    #[test]
    fn a_group_may_be_a_number() {
        assert_eq!(group_id("4294967294"), Ok(4_294_967_294));
        let error = group_id("no such\ngroup").unwrap_err().to_string();
        assert_eq!(error, "/etc/group has no group `no such\\ngroup`; write another name, or the number of the group");
    }
}
