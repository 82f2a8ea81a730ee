//! What is wrong with a captured pod.

use super::refusal::CaptureRefusal;

/// The most faults of one pod that a message has, besides the number of the others.
const MOST_FAULTS: usize = 10;

/// What is wrong with a captured pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureReport {
    faults: Vec<(CaptureRefusal, String)>,
    /// Those that are not kept.
    more: usize,
}

impl CaptureReport {
    /// Adds a fault: the path of a field, and what is wrong with it and what to write.
    pub(super) fn add(&mut self, reason: CaptureRefusal, path: &str, advice: &str) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push((reason, format!("{path}: {advice} ({})", reason.as_str())));
        } else {
            self.more += 1;
        }
    }

    /// Returns the reason to refuse the pod, if there is one: the first that was found.
    pub fn reason(&self) -> Option<CaptureRefusal> {
        self.faults.first().map(|(reason, _)| *reason)
    }

    /// Returns every reason that was kept.
    pub fn reasons(&self) -> impl Iterator<Item = CaptureRefusal> {
        self.faults.iter().map(|(reason, _)| *reason)
    }

    /// Returns all faults in words, each with its reason, separated by `; `.
    pub fn message(&self) -> String {
        let mut lines: Vec<&str> = self.faults.iter().map(|(_, line)| line.as_str()).collect();
        let more = format!("and {} more", self.more);
        if self.more > 0 {
            lines.push(&more);
        }
        lines.join("; ")
    }
}
