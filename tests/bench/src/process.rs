//! A process and its descendants, as /proc shows them.

use anyhow::{Context, Result, bail};
use std::fs::read_to_string;
use std::time::Duration;

/// Ticks of utime and stime per second: `USER_HZ`, the same on every Linux that Rust runs on.
const TICKS: u64 = 100;

/// A process with its descendants, which for nginx do the work. Looked up once: reading /proc takes milliseconds, and
/// nothing should wait for that while latencies are measured.
pub struct Tree(Vec<u32>);

impl Tree {
    pub fn of(root: u32) -> Result<Self> {
        let mut parents = Vec::new();
        for entry in std::fs::read_dir("/proc").context("/proc")?.flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
                && let Ok(fields) = stat(pid)
            {
                parents.push((pid, fields[1].parse::<u32>()?));
            }
        }
        let mut tree = vec![root];
        let mut next = 0;
        while next < tree.len() {
            let parent = tree[next];
            tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        Ok(Self(tree))
    }

    /// Time on a CPU so far, in user and kernel mode.
    pub fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for &pid in &self.0 {
            let fields = stat(pid)?;
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
        Ok(Duration::from_millis(ticks * 1000 / TICKS))
    }

    /// `VmRSS` in KiB, added up; what processes share counts for each.
    pub fn resident(&self) -> Result<u64> {
        self.0.iter().map(|&pid| memory(pid, "VmRSS")).sum()
    }
}

/// Time on a CPU of all processes so far; interrupts and the machine's idle time are not in it.
pub fn machine_cpu() -> Result<Duration> {
    let stat = read_to_string("/proc/stat").context("/proc/stat")?;
    // "cpu", then user, nice, system
    let ticks: Result<u64, _> = stat.split_whitespace().skip(1).take(3).map(str::parse::<u64>).sum();
    Ok(Duration::from_millis(ticks? * 1000 / TICKS))
}

/// A field of /proc/PID/status in KiB, such as `VmRSS` (resident now) and `VmHWM` (the most that was resident).
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), field)
}

fn kib(path: &str, field: &str) -> Result<u64> {
    let text = read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("{path}: no {field}"))?;
    Ok(value.parse()?)
}

/// A field of `/proc/PID/smaps_rollup` in KiB, such as `Rss` and `Anonymous`: counted page by page, where what `/proc/PID/status` says
/// may be off by some dozens of pages.
pub fn smaps(pid: u32, field: &str) -> Result<u64> {
    kib(&format!("/proc/{pid}/smaps_rollup"), field)
}

/// The fields of /proc/PID/stat after the command's name, which may hold spaces: state is 0, ppid 1, utime 11.
fn stat(pid: u32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let stat = read_to_string(&path).with_context(|| path.clone())?;
    let Some((_, rest)) = stat.rsplit_once(')') else { bail!("{path}: unexpected content") };
    let fields: Vec<String> = rest.split_whitespace().map(String::from).collect();
    if fields.len() < 13 {
        bail!("{path}: unexpected content");
    }
    Ok(fields)
}
