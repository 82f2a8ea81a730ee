//! Every input that the fuzzer starts from is checked in the way that the fuzzer checks it (sidecar/fuzz).
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, clippy::pedantic, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod fuzz;

/// Checks every file of these folders.
fn replay(folders: &[&str], check: fn(&[u8])) {
    for folder in folders {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
        let mut seeds = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            check(&fs::read(&path).unwrap());
            seeds += 1;
        }
        assert!(seeds > 0, "{} is empty", folder.display());
    }
}

#[test]
fn requests() {
    replay(&["sidecar/fuzz/corpus/request"], fuzz::request::check);
}

#[test]
fn streams() {
    replay(&["sidecar/fuzz/corpus/sse"], fuzz::sse::check);
}

#[test]
fn answers() {
    replay(&["sidecar/fuzz/corpus/answers", "sidecar/fuzz/corpus/sse", "sidecar/fuzz/corpus/list"], fuzz::answers::check);
}

#[test]
fn approvals() {
    replay(&["sidecar/fuzz/corpus/approvals"], fuzz::approvals::check);
}

#[test]
fn classes() {
    replay(&["sidecar/fuzz/corpus/classes"], fuzz::classes::check);
}

#[test]
fn pins() {
    replay(&["sidecar/fuzz/corpus/pins", "sidecar/fuzz/corpus/classes"], fuzz::pins::check);
}

#[test]
fn lists() {
    replay(&["sidecar/fuzz/corpus/list"], fuzz::list::check);
}

#[test]
fn messages_of_servers() {
    replay(&["sidecar/fuzz/corpus/server_message", "sidecar/fuzz/corpus/list"], fuzz::server_message::check);
}

#[test]
fn policies() {
    replay(&["sidecar/fuzz/corpus/policy", "crds/samples/valid", "crds/samples/invalid"], fuzz::policy::check);
}

#[test]
fn policy_streams() {
    replay(&["sidecar/fuzz/corpus/stream"], fuzz::stream::check);
}

#[test]
fn stores() {
    replay(&["sidecar/fuzz/corpus/store"], fuzz::store::check);
}

#[test]
fn imports() {
    replay(&["sidecar/fuzz/corpus/import", "sidecar/import/tests/json", "sidecar/import/tests/yaml"], fuzz::import::check);
}

#[test]
fn audit_logs() {
    replay(&["sidecar/fuzz/corpus/audit"], fuzz::audit::check);
}

#[test]
fn challenges() {
    replay(&["sidecar/fuzz/corpus/challenge"], fuzz::challenge::check);
}

#[test]
fn captured_connections() {
    replay(&["sidecar/fuzz/corpus/capture"], fuzz::capture::check);
}

#[test]
fn credentials() {
    replay(&["sidecar/fuzz/corpus/credential"], fuzz::credential::check);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 4000, ..Default::default() })]

    #[test]
    fn challenges_of_any_pieces(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..14)) {
        fuzz::challenge::check(pieces.concat().as_bytes());
    }
}

/// The parts of challenges.
const PIECES: &[&str] = &[
    "Bearer",
    "Basic",
    " ",
    "  ",
    "\t",
    ",",
    ", ",
    "=",
    " = ",
    "==",
    "\"",
    "\\",
    "\\\"",
    "abc",
    "a=b",
    "realm=\"x, y\"",
    "resource_metadata",
    "Resource_Metadata=",
    "resource_metadata=\"",
    "http://h/x",
    "http://h:80",
    "HTTP://H/",
    "http://other/x",
    "//h/x",
    "/x",
    "@",
    "é",
    ";",
];
