//! Calls to several targets at once, each at its own rate or as fast as it answers. Denials are counted by their reason;
//! an answer that is neither a success nor a denial ends the run.

use crate::load::{ExpectedAnswer, LoadCall, LoadConnection, LoadOutcome, LoadTarget};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

/// An answer that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Args {
    /// `{"seconds": N, "targets": [{"url", "tool", "account", "connections", "rate"}]}`: `rate` is in calls a second, and
    /// 0 is as fast as they are answered; `account` is a number that stands in the calls
    #[arg(long)]
    plan: PathBuf,
    /// Write each call to this file, a line each: when it was sent in nanoseconds since 1970, how many nanoseconds it
    /// took, the target's number, and `allowed` or why not
    #[arg(long)]
    log: Option<PathBuf>,
}

struct Target {
    endpoint: LoadTarget,
    tool: String,
    account: u64,
    connections: u64,
    rate: f64,
    /// Where in the first interval its calls begin, so that targets of one rate do not call at the same instants
    phase: f64,
    begun: AtomicU64,
}

/// A call: when it was sent after the start, what it took, why it was denied.
type Made = (Duration, Duration, Option<String>);

pub async fn run(args: Args) -> Result<()> {
    let plan: Value = serde_json::from_str(&std::fs::read_to_string(&args.plan).context("--plan")?).context("--plan")?;
    let seconds = plan["seconds"].as_f64().context("plan: no seconds")?;
    let wanted = plan["targets"].as_array().context("plan: no targets")?;
    let mut targets = Vec::new();
    for (index, target) in wanted.iter().enumerate() {
        targets.push(Arc::new(Target {
            endpoint: LoadTarget::open(target["url"].as_str().context("target: no url")?).await?,
            tool: target["tool"].as_str().context("target: no tool")?.to_owned(),
            account: target["account"].as_u64().context("target: no account")?,
            connections: target["connections"].as_u64().context("target: no connections")?,
            rate: target["rate"].as_f64().context("target: no rate")?,
            phase: index as f64 / wanted.len() as f64,
            begun: AtomicU64::new(0),
        }));
    }

    let start = Instant::now();
    let start_unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let end = start + Duration::from_secs_f64(seconds);
    let mut connections = JoinSet::new();
    for (index, target) in targets.iter().enumerate() {
        for _ in 0..target.connections {
            let target = target.clone();
            connections.spawn(async move { Ok::<_, anyhow::Error>((index, drive(&target, start, end).await?)) });
        }
    }
    let mut made: Vec<Vec<Made>> = vec![Vec::new(); targets.len()];
    while let Some(result) = connections.join_next().await {
        let (index, calls) = result??;
        made[index].extend(calls);
    }

    if let Some(path) = args.log {
        let mut log = BufWriter::new(std::fs::File::create(&path).with_context(|| path.display().to_string())?);
        for (index, calls) in made.iter().enumerate() {
            for (sent, took, denied) in calls {
                let outcome = denied.as_deref().unwrap_or("allowed");
                writeln!(log, "{} {} {index} {outcome}", (start_unix + *sent).as_nanos(), took.as_nanos())?;
            }
        }
        log.flush()?;
    }
    let told: Vec<Value> = made.iter().map(|calls| summary(calls)).collect();
    println!("{}", json!({"seconds": start.elapsed().as_secs_f64(), "targets": told}));
    Ok(())
}

async fn drive(target: &Target, start: Instant, end: Instant) -> Result<Vec<Made>> {
    let mut connection = LoadConnection::to(&target.endpoint).await?;
    let mut call = LoadCall::new(&target.endpoint, &target.tool)?;
    let mut expected = ExpectedAnswer::default();
    let mut made = Vec::new();
    loop {
        let number = target.begun.fetch_add(1, Ordering::Relaxed);
        if target.rate > 0.0 {
            let due = start + Duration::from_secs_f64((number as f64 + target.phase) / target.rate);
            if due >= end {
                return Ok(made);
            }
            tokio::time::sleep_until(due.into()).await;
        }
        call.set(number, target.account);
        let sent = Instant::now();
        if sent >= end {
            return Ok(made);
        }
        let answer = tokio::time::timeout(PATIENCE, connection.exchange(&call.bytes)).await.context("no answer in time")??;
        let took = sent.elapsed();
        let denied = match expected.check(answer, call.id())? {
            LoadOutcome::Allowed => None,
            LoadOutcome::Denied(reason) => Some(reason),
        };
        made.push((sent - start, took, denied));
    }
}

fn summary(calls: &[Made]) -> Value {
    let mut denied: BTreeMap<&str, u64> = BTreeMap::new();
    for reason in calls.iter().filter_map(|(_, _, denied)| denied.as_deref()) {
        *denied.entry(reason).or_default() += 1;
    }
    let mut took: Vec<u128> = calls.iter().map(|(_, took, _)| took.as_nanos()).collect();
    took.sort_unstable();
    let at = |quantile: usize| took.get((took.len() * quantile / 1000).min(took.len().saturating_sub(1))).copied();
    json!({
        "calls": calls.len(),
        "allowed": calls.iter().filter(|(_, _, denied)| denied.is_none()).count(),
        "denied": denied,
        "p50": at(500).map(u64::try_from).transpose().ok().flatten(),
        "p99": at(990).map(u64::try_from).transpose().ok().flatten(),
        "max": at(1000).map(u64::try_from).transpose().ok().flatten(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_what_became_of_them() {
        let micros = Duration::from_micros;
        let why = |reason: &str| Some(reason.to_owned());
        let calls =
            [(micros(0), micros(1), None), (micros(1), micros(9), why("rate_limit")), (micros(2), micros(5), why("rate_limit"))];
        let expected = json!({"calls": 3, "allowed": 1, "denied": {"rate_limit": 2}, "p50": 5000, "p99": 9000, "max": 9000});
        assert_eq!(summary(&calls), expected);
        assert_eq!(summary(&[])["max"], Value::Null);
    }
}
