//! The lines of an operator: cut into lines, read, brought into force, and asked about a few calls.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;
use toolweir_approvals::Book;
use toolweir_crds::{
    Document,
    stream::{Ack, LONGEST_ACK, StreamMessage},
};
use toolweir_engine::{Call, CompileOptions, Memory, Operation, Timestamp};
use toolweir_sidecar::{
    control::{
        snapshot, trust,
        wire::{self, BadLine, LineSplitter, RawDocument, RawSnapshot, StreamLine},
    },
    metrics::SidecarMetrics,
};

use super::assert_one_line;

/// Shorter than most inputs of the fuzzer.
const LONGEST: usize = 4096;

/// The lines of what comes in pieces of a size, and whether one is too long.
fn lines(data: &[u8], size: usize) -> (Vec<Bytes>, bool) {
    let (mut lines, mut seen) = (LineSplitter::new(LONGEST), Vec::new());
    for piece in data.chunks(size) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match lines.take(&mut piece) {
                Ok(Some(line)) => seen.push(line),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error, BadLine::TooLong(LONGEST));
                    return (seen, true);
                }
            }
        }
        assert!(lines.held() <= LONGEST);
    }
    (seen, false)
}

/// The check.
pub fn check(data: &[u8]) {
    let whole = lines(data, data.len().max(1));
    for size in [1, 7, 1000] {
        assert_eq!(lines(data, size), whole, "pieces of {size}");
    }
    for line in whole.0 {
        match wire::read_line(&line) {
            Err(error) => assert_one_line(&error.to_string()),
            Ok(StreamLine::Unknown(kind)) => {
                assert!(serde_json::from_slice::<IgnoredAny>(&line).is_ok(), "no JSON is passed over");
                assert!(
                    !["snapshot", "trust", "keepAlive", "sharedStore", "approvals"].contains(&kind.as_str()),
                    "{kind} is known"
                );
            }
            Ok(StreamLine::Message(StreamMessage::KeepAlive | StreamMessage::SharedStore(_))) => {}
            Ok(StreamLine::Message(StreamMessage::Approvals(news))) => {
                let mut book = Book::default();
                book.learn(&news, UNIX_EPOCH);
                assert!(book.report().approvals.is_empty(), "no news make a request");
            }
            Ok(StreamLine::Message(StreamMessage::Trust(trust))) => {
                if let Err(error) = trust::authorities(&trust.certificates) {
                    assert_one_line(&error.to_string());
                }
            }
            Ok(StreamLine::Message(StreamMessage::Snapshot(snapshot))) => enforce(&snapshot),
        }
    }
}

fn enforce(snapshot: &RawSnapshot) {
    let metrics = SidecarMetrics::new().expect("metrics have names of their own");
    let in_force = snapshot::in_force(snapshot, &Memory::new(64), &CompileOptions::default(), &metrics.servers);
    for problem in &in_force.problems {
        assert_one_line(&problem.message);
    }
    let line = wire::ack_line(&wire::ack(&snapshot.version, &in_force.problems));
    assert!(line.len() <= LONGEST_ACK && line.ends_with(b"\n"));
    let ack: Ack = serde_json::from_slice(&line).expect("an acknowledgement is JSON");
    assert_eq!(ack.version, snapshot.version);
    // The simple way to read a policy: strict where this knows a field, and nothing beside the three.
    let readable = |raw: &RawDocument| {
        let fields = serde_json::from_str::<Value>(raw.get()).is_ok_and(|value| {
            value
                .as_object()
                .is_some_and(|object| object.keys().all(|key| ["apiVersion", "kind", "metadata", "spec"].contains(&key.as_str())))
        });
        fields && serde_json::from_str::<Document>(raw.get()).is_ok()
    };
    let closed = !snapshot.policies.iter().all(readable);
    assert!(!closed || !in_force.problems.is_empty(), "a policy that cannot be read is not told");
    let named: Vec<String> = in_force.servers().map(|server| server.name.clone()).collect();
    for server in named.iter().map(String::as_str).take(20).chain(["no such server"]) {
        for tool in ["pay_invoice", "a", ""] {
            let call = Call { server, operation: Operation::tool(tool), arguments: None, session: "", seen: None };
            let denied = in_force.engine.decide(&call, Timestamp::default()).denial().is_some();
            let known = named.iter().any(|name| name == server);
            assert!(denied || (known && !closed), "{tool} passes on {server}");
        }
    }
    // Whatever is shown of them is one text for one policy.
    assert_eq!(in_force.policies.len(), snapshot.policies.len());
}
