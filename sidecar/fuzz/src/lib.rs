//! The fuzz targets as plain functions of their input, so that `sidecar/tests/corpus.rs` can replay the corpora.
//!
//! Every target holds what the sidecar does against a second, simpler way to do the same: never a crash alone.

use std::{
    backtrace::Backtrace,
    panic::{AssertUnwindSafe, catch_unwind},
    process::abort,
    sync::{Mutex, Once, PoisonError},
};

pub mod answers;
pub mod approvals;
pub mod audit;
pub mod capture;
pub mod challenge;
pub mod classes;
pub mod credential;
pub mod events;
pub mod import;
pub mod list;
pub mod original;
pub mod pins;
pub mod policy;
pub mod request;
pub mod server_message;
pub mod sse;
pub mod store;
pub mod stream;
pub mod tree;

/// Runs a check for the fuzzer. A panic in it is a finding; one that the sidecar catches itself is not, so the hook of
/// libfuzzer-sys, which ends the program at any, is replaced.
pub fn run(check: fn(&[u8]), data: &[u8]) {
    static ONCE: Once = Once::new();
    static LAST: Mutex<Option<(String, Backtrace)>> = Mutex::new(None);
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let last = (info.to_string(), Backtrace::capture());
            *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        }));
    });
    if catch_unwind(AssertUnwindSafe(|| check(data))).is_err() {
        if let Some((panic, backtrace)) = &*LAST.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("{panic}\n{backtrace}");
        }
        abort();
    }
}

/// A text for people to read must be one line, whatever stood in the input.
pub fn assert_one_line(text: &str) {
    assert!(!text.is_empty() && !text.contains(char::is_control), "not one line: {text:?}");
}
