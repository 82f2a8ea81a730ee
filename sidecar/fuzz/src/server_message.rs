//! A message of a server before a client to which policies let nothing: whatever of it passes asks for nothing, to any reader.

use std::{
    io,
    pin::pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
};

use toolweir_engine::{CompileOptions, Engine, Memory};
use toolweir_sidecar::{
    audit::Audit,
    counts::Counts,
    freshness::Freshness,
    governor::Governor,
    in_force::InForce,
    mcp::{ask_finder::AskFinder, is_method, server_message::read, sse::spells_ask},
    metrics::SidecarMetrics,
    server_judge::{ServerMessageSource, ServerMessageVerdict},
};

use super::tree::{Reader, Tree};

/// A governor without a policy: it denies everything.
static GOVERNOR: LazyLock<Arc<Governor>> = LazyLock::new(|| {
    let metrics = Arc::new(SidecarMetrics::new().expect("metrics"));
    let (engine, _) = Engine::compile(&[], Memory::new(64), &CompileOptions::default());
    let (first, _) = InForce::new(engine, Vec::new(), Vec::new(), String::new(), &metrics.servers);
    let audit = Audit::new(io::sink(), &metrics.registry).expect("the audit log");
    Governor::new(first, Freshness::Current, metrics, audit, Counts::of_pod(64), CompileOptions::default())
});

/// The first thing that a reader is asked for in a message, or told though it may not be.
fn asked(reader: Reader, message: &Tree) -> Option<String> {
    if let Tree::List(batch) = message {
        return batch.iter().find_map(|message| asked(reader, message));
    }
    if let Some(method) = reader.get(message, "method").and_then(Tree::string) {
        let is_request = reader.get(message, "id").is_some_and(|id| *id != Tree::Null);
        let free = if is_request { method == "ping" } else { is_method(method) };
        if !free {
            return Some(method.to_owned());
        }
    }
    let mut holders = Vec::new();
    for key in ["result", "params"] {
        let holder = reader.get(message, key);
        holders.extend(holder);
        holders.extend(holder.and_then(|holder| reader.get(holder, "task")));
    }
    for holder in holders {
        if let Some(Tree::Object(requests)) = reader.get(holder, "inputRequests") {
            let method = |request| reader.get(request, "method").and_then(Tree::string);
            if let Some((name, _)) = requests.iter().find(|(_, request)| method(request) != Some("ping")) {
                return Some(format!("inputRequests.{name}"));
            }
        }
    }
    let data = reader.get(message, "error").and_then(|error| reader.get(error, "data"));
    match data.and_then(|data| reader.get(data, "elicitations")) {
        Some(Tree::List(asked)) if !asked.is_empty() => Some("elicitations".to_owned()),
        _ => None,
    }
}

/// Every reader of JSON that knows its keys by their whole names.
fn readers() -> impl Iterator<Item = Reader> {
    Reader::all().filter(|reader| !reader.cut)
}

/// The check.
pub fn check(message: &[u8]) {
    let judged = {
        let source = ServerMessageSource { server: "bank", session: "s", call: None };
        assert!(!read(message).is_ok_and(|messages| GOVERNOR.may_wait_for(source.server, &messages)));
        let mut judged = pin!(GOVERNOR.judge_message(source, message));
        match judged.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(judged) => judged,
            Poll::Pending => panic!("waits, though nobody is asked"),
        }
    };
    let left = match judged {
        Ok(ServerMessageVerdict::Pass) => Some(message.to_vec()),
        Ok(ServerMessageVerdict::Replace(new)) => {
            assert!(new != message, "replaced by itself");
            Some(new)
        }
        Ok(ServerMessageVerdict::Take(answers)) => {
            for answer in answers {
                let answer = Tree::read(&answer).expect("an answer is JSON");
                assert!(!matches!(answer, Some(tree) if readers().any(|reader| reader.get(&tree, "error").is_none())));
            }
            None
        }
        Err(_) => {
            assert!(spells_ask(message), "unclear, and asks for nothing");
            None
        }
    };
    if let Some(left) = left.as_deref()
        && let Ok(Some(tree)) = Tree::read(left)
    {
        for reader in readers() {
            assert_eq!(asked(reader, &tree), None, "passed to {reader:?}: {}", String::from_utf8_lossy(left));
        }
    }
    // What is too large to be held is only looked at.
    let found: Vec<bool> = [message.len().max(1), 1, 3, 7]
        .into_iter()
        .map(|size| {
            let mut finder = AskFinder::default();
            message.chunks(size).any(|piece| finder.push(piece))
        })
        .collect();
    assert!(found.iter().all(|one| *one == found[0]), "found in some pieces alone");
    if let Ok(Some(tree)) = Tree::read(message)
        && !found[0]
    {
        for reader in readers() {
            assert_eq!(asked(reader, &tree), None, "passes unread to {reader:?}");
        }
    }
}
