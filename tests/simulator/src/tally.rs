//! Tracks the version that each sidecar holds, and reports when all hold the same. Times are arguments.

use std::collections::BTreeMap;

/// An event of all sidecars together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetEvent {
    /// The last one has acknowledged its first snapshot.
    Connected {
        /// The version that all hold, if it is one.
        version: Option<String>,
    },
    /// The last one has acknowledged the version that the others hold. Times are in milliseconds since 1970.
    Acknowledged {
        /// The version.
        version: String,
        /// When the first one did.
        first: u64,
        /// By when half of them did.
        middle: u64,
        /// When the last one did.
        last: u64,
    },
}

/// The version that each sidecar acknowledged last.
#[derive(Debug)]
pub struct VersionTally {
    held: Vec<Option<HeldVersion>>,
    /// The number of sidecars that hold each version. A version that none holds is removed.
    versions: BTreeMap<String, usize>,
    connected: usize,
}

#[derive(Debug)]
struct HeldVersion {
    version: String,
    since: u64,
}

impl VersionTally {
    /// Creates a tally without acknowledgements.
    pub fn new(sidecars: usize) -> Self {
        Self { held: (0..sidecars).map(|_| None).collect(), versions: BTreeMap::new(), connected: 0 }
    }

    /// Returns the number of sidecars.
    pub fn sidecars(&self) -> usize {
        self.held.len()
    }

    /// Returns the number of sidecars that have acknowledged something.
    pub fn connected(&self) -> usize {
        self.connected
    }

    /// Returns the number of sidecars that hold each version.
    pub fn versions(&self) -> &BTreeMap<String, usize> {
        &self.versions
    }

    /// Takes an acknowledgement. Returns the event of all sidecars that it makes. The version that it holds already, which a
    /// stream that is opened again begins with, changes nothing.
    pub fn acknowledged(&mut self, sidecar: usize, version: &str, at: u64) -> Option<FleetEvent> {
        let held = self.held.get_mut(sidecar)?;
        if held.as_ref().is_some_and(|held| held.version == version) {
            return None;
        }
        let before = held.replace(HeldVersion { version: version.to_owned(), since: at });
        let first = before.is_none();
        match before {
            None => self.connected += 1,
            Some(before) => self.left(&before.version),
        }
        let holders = self.versions.entry(version.to_owned()).or_default();
        *holders += 1;
        let all = *holders == self.held.len();
        if first && self.connected == self.held.len() {
            return Some(FleetEvent::Connected { version: all.then(|| version.to_owned()) });
        }
        if all { self.times(version) } else { None }
    }

    fn left(&mut self, version: &str) {
        if let Some(holders) = self.versions.get_mut(version) {
            *holders -= 1;
            if *holders == 0 {
                self.versions.remove(version);
            }
        }
    }

    fn times(&self, version: &str) -> Option<FleetEvent> {
        let mut times: Vec<u64> = self.held.iter().flatten().map(|held| held.since).collect();
        times.sort_unstable();
        let (first, middle, last) = (*times.first()?, *times.get((times.len() - 1) / 2)?, *times.last()?);
        Some(FleetEvent::Acknowledged { version: version.to_owned(), first, middle, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(version: &str, first: u64, middle: u64, last: u64) -> FleetEvent {
        FleetEvent::Acknowledged { version: version.to_owned(), first, middle, last }
    }

    #[test]
    fn a_change_is_whole_when_the_last_one_has_it() {
        let mut tally = VersionTally::new(3);
        assert_eq!((tally.acknowledged(0, "1", 1), tally.acknowledged(1, "1", 2)), (None, None));
        assert_eq!(tally.acknowledged(2, "1", 3), Some(FleetEvent::Connected { version: Some("1".to_owned()) }));
        assert_eq!((tally.acknowledged(2, "2", 10), tally.acknowledged(0, "2", 15)), (None, None));
        assert_eq!(tally.versions(), &BTreeMap::from([("1".to_owned(), 1), ("2".to_owned(), 2)]));
        assert_eq!(tally.acknowledged(1, "2", 40), Some(whole("2", 10, 15, 40)));
        // Back to what was before: the same version, and a change all the same.
        assert_eq!((tally.acknowledged(0, "1", 50), tally.acknowledged(1, "1", 51)), (None, None));
        assert_eq!(tally.acknowledged(2, "1", 52), Some(whole("1", 50, 51, 52)));
        assert_eq!(tally.versions(), &BTreeMap::from([("1".to_owned(), 3)]));
    }

    #[test]
    fn a_stream_that_is_opened_again_changes_nothing() {
        let mut tally = VersionTally::new(1);
        assert!(tally.acknowledged(0, "1", 1).is_some());
        assert_eq!(tally.acknowledged(0, "1", 2), None);
        assert_eq!(tally.acknowledged(0, "2", 3), Some(whole("2", 3, 3, 3)));
        assert_eq!((tally.connected(), tally.sidecars()), (1, 1));
    }

    #[test]
    fn a_change_that_another_overtakes_never_is_whole() {
        let mut tally = VersionTally::new(2);
        tally.acknowledged(0, "1", 1);
        // Changed while the others connect.
        assert_eq!(tally.acknowledged(1, "2", 2), Some(FleetEvent::Connected { version: None }));
        assert_eq!(tally.acknowledged(1, "3", 3), None);
        assert_eq!(tally.acknowledged(0, "3", 4), Some(whole("3", 3, 3, 4)));
        assert_eq!(tally.acknowledged(7, "3", 5), None);
    }
}
