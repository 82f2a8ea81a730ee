//! Recorded calls, in few bytes, and in the order in which they are decided anew.

use std::num::NonZeroU64;

use toolweir_crds::ToolClass;
use toolweir_engine::Reason;

use crate::{
    argument_store::StoredArguments,
    audit_line::{LineApproval, LinePins, RecordedEffect},
};

/// A recorded call.
#[derive(Clone, Copy, Debug)]
pub struct RecordedCall {
    pub time: u64,
    /// The hash of its session.
    pub session: Option<NonZeroU64>,
    pub arguments: RecordedArguments,
    /// Microseconds from its arrival to its answer.
    pub latency: u32,
    /// Its number in the names.
    pub name: u32,
    pub line: u32,
    pub log: u16,
    pub effect: RecordedEffect,
    pub reason: Reason,
    pub approval: LineApproval,
    pub nothing_sent: bool,
    /// The class of its tool, if it was recorded.
    pub class: Option<ToolClass>,
    pub pins: LinePins,
}

/// What is known of the arguments of a recorded call.
#[derive(Clone, Copy, Debug)]
pub enum RecordedArguments {
    /// It has none, or no condition on it reads them.
    None,
    /// Only their hash.
    Hashed,
    /// They are in the store.
    Stored(StoredArguments),
}

impl RecordedCall {
    /// Returns when it ended.
    pub fn end(&self) -> u64 {
        self.time.saturating_add(u64::from(self.latency) * 1000)
    }
}

/// The calls of one allocation: a list that grows by doubling would hold three times what it needs.
const CHUNK: usize = 1 << 14;

/// Recorded calls, as they were read.
#[derive(Debug, Default)]
pub struct Recording {
    chunks: Vec<Vec<RecordedCall>>,
}

impl Recording {
    /// Adds a call.
    pub fn add(&mut self, call: RecordedCall) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(call),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(call);
                self.chunks.push(chunk);
            }
        }
    }

    /// Returns the number of calls.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    fn get(&self, index: u32) -> Option<&RecordedCall> {
        let index = index as usize;
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    /// Returns the calls by their times. Of calls in the same millisecond, those to which policies in audit mode objected come after
    /// the others, then those of which a person was asked, and those that were denied last: what they found used up was used by the others.
    /// Else the order of the lines is kept.
    pub fn in_order(&self) -> impl Iterator<Item = &RecordedCall> {
        let mut order: Vec<u32> = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).collect();
        order.sort_by_key(|index| self.get(*index).map(|call| (call.time, call.effect)));
        order.into_iter().filter_map(|index| self.get(index))
    }
}
