//! The scripts that the store carries out, the names of their keys, and the commands that call them.

pub mod take;

use std::{fmt::Write, sync::Arc};

use redis::{Cmd, Value};
use toolweir_engine::{Amount, window::Slice};

use crate::slices::Micros;
use take::{CountRequest, DemandRequest, TakeRequest, write_lease};

const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// The SHA1 of each script, by which the store that they were loaded into knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scripts {
    /// Takes what a call wants.
    pub take: String,
    /// Adds amounts to a count, or takes them back.
    pub add: String,
    /// A pod's sign of life.
    pub beat: String,
    /// Reads counts and places without taking.
    pub look: String,
    /// Reads or begins the epoch.
    pub epoch: String,
}

impl Scripts {
    /// The sources, in the order of the fields.
    pub fn sources() -> [String; 5] {
        [
            include_str!("scripts/take.lua"),
            include_str!("scripts/add.lua"),
            include_str!("scripts/beat.lua"),
            include_str!("scripts/look.lua"),
            include_str!("scripts/epoch.lua"),
        ]
        .map(|text| format!("{PRELUDE}{text}"))
    }

    /// The scripts of these SHA1s, in the same order.
    pub fn from_shas([take, add, beat, look, epoch]: [String; 5]) -> Self {
        Self { take, add, beat, look, epoch }
    }
}

/// An update of a count; negative amounts are taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountUpdate {
    /// The digest in the count's key.
    pub digest: Arc<str>,
    /// The length of its window.
    pub window: Micros,
    /// Slices and millionths.
    pub slices: Vec<(Slice, i64)>,
}

/// The places of one kind that a pod holds, for a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceReport {
    /// The digest in the key of the places.
    pub digest: Arc<str>,
    /// The number of the message: the greatest number is the newest.
    pub number: u64,
    /// The number of places that the pod holds.
    pub held: u64,
}

/// A count that is read without taking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountPeek {
    /// The digest in the count's key.
    pub digest: Arc<str>,
    /// The length of its window.
    pub window: Micros,
    /// The most that may count in the window.
    pub max: Amount,
    /// The amount of which it is asked when it fits.
    pub amount: Amount,
}

/// The names of keys. All have one hash tag, so that in a cluster all are in one slot: a call's limits can be of any scopes, and are
/// taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpace {
    tag: String,
    epoch: String,
    id: String,
}

impl KeySpace {
    /// Keys that begin with `{prefix}`, in no epoch yet.
    pub fn new(prefix: &str) -> Self {
        Self { tag: prefix.to_owned(), epoch: String::new(), id: String::new() }
    }

    /// The key of the epoch.
    pub fn epoch_key(&self) -> String {
        format!("{{{}}}:epoch", self.tag)
    }

    /// The keys in an epoch, as the store tells it.
    #[must_use]
    pub fn in_epoch(&self, epoch: &str) -> Self {
        let id = epoch.split(' ').next().unwrap_or_default().to_owned();
        Self { tag: self.tag.clone(), epoch: epoch.to_owned(), id }
    }

    /// The epoch.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The key of the stamp of the last sign of life.
    fn stamp_key(&self) -> String {
        format!("{{{}}}:stamp", self.tag)
    }

    /// Returns the moment of the store's clock since which a pod that was in the epoch `before` has to bring what it took: the store
    /// has lost nothing older. 0, and so everything, where the pod was in none, or has missed one between.
    pub fn lost_since(&self, before: Option<&str>) -> u64 {
        match (before.and_then(Epoch::read), Epoch::read(&self.epoch)) {
            (Some(before), Some(now)) if now.follows(&before) => now.since,
            _ => 0,
        }
    }

    fn key(&self, kind: char, name: &str) -> String {
        let mut key = String::with_capacity(self.tag.len() + self.id.len() + name.len() + 6);
        let _ = write!(key, "{{{}}}:{}:{kind}:{name}", self.tag, self.id);
        key
    }

    fn evalsha(&self, script: &str, keys: usize) -> Cmd {
        let mut cmd = Cmd::with_capacity(24 + keys * 2, 256 + keys * 96);
        cmd.arg("EVALSHA").arg(script).arg(keys + 1).arg(self.epoch_key());
        cmd
    }

    /// The command that takes what a call wants.
    pub fn take(&self, scripts: &Scripts, pod: &str, request: &TakeRequest) -> Cmd {
        let keys = request.demands.iter().map(|demand| demand.counts.len() + demand.places.len()).sum();
        let mut cmd = self.evalsha(&scripts.take, keys);
        for DemandRequest { counts, places } in &request.demands {
            for count in counts {
                cmd.arg(self.key('c', &count.digest));
            }
            for place in places {
                cmd.arg(self.key('h', &place.digest));
            }
        }
        cmd.arg(&self.epoch).arg(pod);
        request.write(&mut cmd);
        cmd
    }

    /// The command that closes a lease.
    pub fn close(&self, scripts: &Scripts, pod: &str, count: &CountRequest) -> Cmd {
        let mut cmd = self.evalsha(&scripts.take, 1);
        cmd.arg(self.key('c', &count.digest)).arg(&self.epoch).arg(pod);
        write_lease(&mut cmd, count);
        cmd
    }

    /// The command that updates a count.
    pub fn add(&self, scripts: &Scripts, update: &CountUpdate) -> Cmd {
        let mut cmd = self.evalsha(&scripts.add, 1);
        cmd.arg(self.key('c', &update.digest)).arg(&self.epoch).arg(update.window.0);
        for (slice, amount) in &update.slices {
            cmd.arg(slice.0).arg(*amount);
        }
        cmd
    }

    /// The command of a sign of life, with the groups that the pod counts with and the places that it holds. The reply has the number of
    /// pods of each group.
    pub fn heartbeat(
        &self,
        scripts: &Scripts,
        pod: &str,
        groups: &[&str],
        pod_life: u64,
        places: &[PlaceReport],
        places_life: u64,
    ) -> Cmd {
        let mut cmd = self.evalsha(&scripts.beat, 1 + groups.len() + places.len());
        cmd.arg(self.stamp_key());
        for group in groups {
            cmd.arg(self.key('p', group));
        }
        for place in places {
            cmd.arg(self.key('h', &place.digest));
        }
        cmd.arg(&self.epoch).arg(pod).arg(groups.len()).arg(pod_life);
        for place in places {
            cmd.arg(place.number).arg(place.held).arg(places_life);
        }
        cmd
    }

    /// The command that reads counts, and the places with these digests.
    pub fn peek(&self, scripts: &Scripts, counts: &[CountPeek], places: &[Arc<str>]) -> Cmd {
        let mut cmd = self.evalsha(&scripts.look, counts.len() + places.len());
        for count in counts {
            cmd.arg(self.key('c', &count.digest));
        }
        for digest in places {
            cmd.arg(self.key('h', digest));
        }
        cmd.arg(&self.epoch).arg(counts.len());
        for CountPeek { window, max, amount, .. } in counts {
            cmd.arg(window.0).arg(max.millionths()).arg(amount.millionths());
        }
        cmd
    }

    /// The command that reads the epoch, or begins one that is closed for `closed` microseconds. `before` is the one that the pod was in.
    pub fn begin_epoch(&self, scripts: &Scripts, run: &str, new: &str, closed: u64, before: Option<&str>) -> Cmd {
        let mut cmd = self.evalsha(&scripts.epoch, 1);
        let (name, number) = before.and_then(Epoch::read).map_or(("-", 0), |before| (before.name, before.number));
        cmd.arg(self.stamp_key()).arg(run).arg(new).arg(closed).arg(name).arg(number);
        cmd
    }
}

/// The text of an epoch, read.
struct Epoch<'a> {
    name: &'a str,
    run: &'a str,
    since: u64,
    number: u64,
    /// The run of the one before.
    parent: &'a str,
}

impl<'a> Epoch<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (name, run, _opens) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { name, run, since: parts.next()?.parse().ok()?, number: parts.next()?.parse().ok()?, parent: parts.next()? })
    }

    /// Returns whether it is the next one after another.
    fn follows(&self, before: &Self) -> bool {
        self.name == before.name && self.parent == before.run && before.number.checked_add(1) == Some(self.number)
    }
}

/// Returns the numbers of a reply; nothing where it has something else.
pub fn read_integers(value: &Value) -> Option<Vec<i64>> {
    let Value::Array(values) = value else { return None };
    values.iter().map(|value| if let Value::Int(number) = value { Some(*number) } else { None }).collect()
}

/// The reply of the script `epoch`. Times are microseconds of the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochReply {
    /// The time.
    pub now: u64,
    /// The epoch.
    pub text: String,
    /// When it opens.
    pub opens: u64,
}

impl EpochReply {
    /// Reads the reply; nothing where it is of another form.
    pub fn read(value: &Value) -> Option<Self> {
        let Value::Array(values) = value else { return None };
        let [Value::Int(now), Value::BulkString(text), Value::Int(opens)] = values.as_slice() else { return None };
        let (now, opens) = (u64::try_from(*now).ok()?, u64::try_from(*opens).ok()?);
        Some(Self { now, text: String::from_utf8(text.clone()).ok()?, opens })
    }
}
