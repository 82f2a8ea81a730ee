//! Calls of one server while another asks for very much: how long they take then, and before.

use crate::alternate::middle;
use crate::load::{ExpectedAnswer, LoadCall, LoadConnection, LoadOutcome, LoadTarget};
use anyhow::{Result, ensure};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub struct Args {
    /// The server whose calls are timed
    #[arg(long)]
    calm: String,
    /// The server that asks
    #[arg(long)]
    asking: String,
    /// How often it does
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Connections of the calls that are timed
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Milliseconds between an answer and the next call of its connection
    #[arg(long, default_value_t = 2)]
    pause: u64,
    /// Milliseconds in which the server asks for nothing, before each time
    #[arg(long, default_value_t = 2000)]
    calm_time: u64,
}

/// When a call began and ended.
type TimedSpan = (Instant, Instant);

pub async fn run(args: Args) -> Result<()> {
    let quiet = LoadTarget::open(&args.calm).await?;
    let asking = LoadTarget::open(&args.asking).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for number in 0..args.connections {
        let (quiet, is_over, pause) = (quiet.clone(), Arc::clone(&is_over), Duration::from_millis(args.pause));
        callers.spawn(async move { calls(&quiet, number as u64, pause, &is_over).await });
    }
    let mut connection = LoadConnection::to(&asking).await?;
    let (mut call, mut expected) = (LoadCall::new(&asking, "send_message")?, ExpectedAnswer::default());
    // Warm: connections, counts, code.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let mut floods: Vec<TimedSpan> = Vec::new();
    for round in 0..args.rounds {
        tokio::time::sleep(Duration::from_millis(args.calm_time)).await;
        call.set(round as u64, 0);
        let from = Instant::now();
        let answer = connection.exchange(&call.bytes).await?;
        floods.push((from, Instant::now()));
        let outcome = expected.check(answer, call.id())?;
        ensure!(outcome == LoadOutcome::Allowed, "a call of the asking server was denied: {outcome:?}");
    }
    is_over.store(true, Ordering::Relaxed);
    let (mut before, mut meanwhile) = (Vec::new(), Vec::new());
    while let Some(spans) = callers.join_next().await {
        for (from, to) in spans?? {
            if from < began {
                continue;
            }
            let overlaps = floods.iter().any(|flood| from < flood.1 && to > flood.0);
            let took = (to - from).as_nanos() as f64 / 1000.0;
            if overlaps { meanwhile.push(took) } else { before.push(took) }
        }
    }
    let mut took: Vec<f64> = floods.iter().map(|(from, to)| (*to - *from).as_nanos() as f64 / 1_000_000.0).collect();
    took.sort_by(f64::total_cmp);
    println!("{}", json!({"before": figures(before)?, "meanwhile": figures(meanwhile)?, "flood_ms": middle(&took)}));
    Ok(())
}

/// Calls on one connection until all is over.
async fn calls(endpoint: &LoadTarget, account: u64, pause: Duration, is_over: &AtomicBool) -> Result<Vec<TimedSpan>> {
    let mut connection = LoadConnection::to(endpoint).await?;
    let (mut call, mut expected) = (LoadCall::new(endpoint, "send_message")?, ExpectedAnswer::default());
    let mut spans = Vec::new();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        call.set(number, account);
        let from = Instant::now();
        let answer = connection.exchange(&call.bytes).await?;
        spans.push((from, Instant::now()));
        let outcome = expected.check(answer, call.id())?;
        ensure!(outcome == LoadOutcome::Allowed, "a call was denied: {outcome:?}");
        tokio::time::sleep(pause).await;
    }
    Ok(spans)
}

/// The number of calls, and their median and 99th percentile in microseconds.
fn figures(mut took: Vec<f64>) -> Result<serde_json::Value> {
    ensure!(took.len() >= 100, "only {} calls", took.len());
    took.sort_by(f64::total_cmp);
    Ok(json!({"calls": took.len(), "p50": middle(&took), "p99": took[took.len() * 99 / 100]}))
}
