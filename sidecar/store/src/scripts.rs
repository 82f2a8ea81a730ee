//! What is carried out in the store, and the questions as its commands.

use std::fmt::Write;

use redis::{Cmd, Value};

use crate::local::{Add, AskedCount, AskedGroup, Question};

const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// The scripts, by their SHA1, as the store that they were loaded into names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scripts {
    /// Takes what a call wants.
    pub take: String,
    /// Counts what was taken without the store, or gives it back.
    pub add: String,
    /// Says that a pod lives.
    pub beat: String,
    /// Looks without taking.
    pub look: String,
    /// The epoch.
    pub epoch: String,
}

impl Scripts {
    /// Their texts, in the order of the fields.
    pub fn texts() -> [String; 5] {
        [
            include_str!("scripts/take.lua"),
            include_str!("scripts/add.lua"),
            include_str!("scripts/beat.lua"),
            include_str!("scripts/look.lua"),
            include_str!("scripts/epoch.lua"),
        ]
        .map(|text| format!("{PRELUDE}{text}"))
    }

    /// From the SHA1s, in the same order.
    pub fn of([take, add, beat, look, epoch]: [String; 5]) -> Self {
        Self { take, add, beat, look, epoch }
    }
}

/// The names of keys. All have one hash tag, so that in a cluster all are in one slot: a call's limits can be of any scopes, and are
/// taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    tag: String,
    epoch: String,
    id: String,
}

impl Keys {
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
    pub fn within(&self, epoch: &str) -> Self {
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

    /// What is to be brought to this epoch by a pod that was in that one: what it took since this moment of the store's clock, since
    /// the store has lost no more. Everything, where it was in none, or has missed one between.
    pub fn since(&self, before: Option<&str>) -> u64 {
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

    /// A call's question.
    pub fn take(&self, scripts: &Scripts, pod: &str, question: &Question) -> Cmd {
        let keys = question.groups.iter().map(|group| group.counts.len() + group.places.len()).sum();
        let mut cmd = self.evalsha(&scripts.take, keys);
        for AskedGroup { counts, places } in &question.groups {
            for count in counts {
                cmd.arg(self.key('c', &count.digest));
            }
            for place in places {
                cmd.arg(self.key('h', &place.digest));
            }
        }
        cmd.arg(&self.epoch).arg(pod).arg(question.groups.len());
        for AskedGroup { counts, places } in &question.groups {
            cmd.arg(counts.len()).arg(places.len());
            for count in counts {
                asked(&mut cmd, count);
            }
            for place in places {
                for number in place.numbers {
                    cmd.arg(number);
                }
            }
        }
        cmd
    }

    /// Closes a lease.
    pub fn close(&self, scripts: &Scripts, pod: &str, count: &AskedCount) -> Cmd {
        let mut cmd = self.evalsha(&scripts.take, 1);
        cmd.arg(self.key('c', &count.digest)).arg(&self.epoch).arg(pod).arg(1).arg(1).arg(0);
        asked(&mut cmd, count);
        cmd
    }

    /// Tells of what was taken without the store, or given back.
    pub fn add(&self, scripts: &Scripts, add: &Add) -> Cmd {
        let mut cmd = self.evalsha(&scripts.add, 1);
        cmd.arg(self.key('c', &add.digest)).arg(&self.epoch).arg(add.window);
        for (slice, amount) in &add.slices {
            cmd.arg(*slice).arg(*amount);
        }
        cmd
    }

    /// A sign of life, with the groups that the pod counts with and the places that it holds (key, number, how many).
    pub fn beat(
        &self,
        scripts: &Scripts,
        pod: &str,
        groups: &[&str],
        pod_life: u64,
        places: &[(std::sync::Arc<str>, u64, u64)],
        life: u64,
    ) -> Cmd {
        let mut cmd = self.evalsha(&scripts.beat, 1 + groups.len() + places.len());
        cmd.arg(self.stamp_key());
        for group in groups {
            cmd.arg(self.key('p', group));
        }
        for (digest, ..) in places {
            cmd.arg(self.key('h', digest));
        }
        cmd.arg(&self.epoch).arg(pod).arg(groups.len()).arg(pod_life);
        for (_, number, held) in places {
            cmd.arg(*number).arg(*held).arg(life);
        }
        cmd
    }

    /// A look at counts (key, window, max, amount) and places.
    pub fn look(&self, scripts: &Scripts, counts: &[(std::sync::Arc<str>, [u64; 3])], places: &[std::sync::Arc<str>]) -> Cmd {
        let mut cmd = self.evalsha(&scripts.look, counts.len() + places.len());
        for (digest, _) in counts {
            cmd.arg(self.key('c', digest));
        }
        for digest in places {
            cmd.arg(self.key('h', digest));
        }
        cmd.arg(&self.epoch).arg(counts.len());
        for (_, numbers) in counts {
            for number in numbers {
                cmd.arg(*number);
            }
        }
        cmd
    }

    /// Asks for the epoch, or begins one. `before` is the one that the pod was in.
    pub fn begin(&self, scripts: &Scripts, run: &str, new: &str, closed: u64, before: Option<&str>) -> Cmd {
        let mut cmd = self.evalsha(&scripts.epoch, 1);
        let (name, number) = before.and_then(Epoch::read).map_or(("-", 0), |before| (before.name, before.number));
        cmd.arg(self.stamp_key()).arg(run).arg(new).arg(closed).arg(name).arg(number);
        cmd
    }
}

/// What the text of an epoch says.
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

    /// Whether it is the next one after another.
    fn follows(&self, before: &Self) -> bool {
        self.name == before.name && self.parent == before.run && before.number.checked_add(1) == Some(self.number)
    }
}

fn asked(cmd: &mut Cmd, count: &AskedCount) {
    for number in count.numbers {
        cmd.arg(number);
    }
    cmd.arg(count.uses.len());
    for (slice, amount) in &count.uses {
        cmd.arg(*slice).arg(*amount);
    }
}

/// The integers of an answer.
pub fn integers(value: &Value) -> Option<Vec<i64>> {
    let Value::Array(values) = value else { return None };
    values.iter().map(|value| if let Value::Int(number) = value { Some(*number) } else { None }).collect()
}

/// The answer of the script `epoch`: the time, the epoch and when it opens.
pub fn epoch(value: &Value) -> Option<(u64, String, u64)> {
    let Value::Array(values) = value else { return None };
    let [Value::Int(now), Value::BulkString(text), Value::Int(opens)] = values.as_slice() else { return None };
    Some((u64::try_from(*now).ok()?, String::from_utf8(text.clone()).ok()?, u64::try_from(*opens).ok()?))
}
