//! What TLS that a proxy opens costs it, against the same server without TLS between the client and the proxy.

use crate::alternate::{Side, middle};
use crate::load::{ExpectedAnswer, LoadCall, LoadConnection, LoadOutcome, LoadTarget};
use crate::process::{Tree, smaps};
use crate::tls::connector;
use anyhow::{Result, ensure};
use rustls::HandshakeKind;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

#[derive(clap::Args)]
pub struct Args {
    /// The URL without TLS
    #[arg(long)]
    plain: String,
    /// The URL with TLS
    #[arg(long)]
    tls: String,
    /// The certificates that the client trusts
    #[arg(long, value_name = "PEM")]
    trusted: PathBuf,
    /// The process whose CPU time is measured
    #[arg(long)]
    pid: u32,
    #[arg(long)]
    blocks: usize,
    /// Calls of a block on an open connection
    #[arg(long)]
    calls: u64,
    /// Connections of a block, one after the other
    #[arg(long)]
    connects: usize,
    /// Connections at once
    #[arg(long, default_value_t = 100)]
    at_once: usize,
}

/// What one way of calling took.
#[derive(Default)]
struct Way {
    cpu: Duration,
    count: u64,
    /// Microseconds
    took: Vec<f64>,
}

impl Way {
    /// CPU time in microseconds of each, and the median of what they took.
    fn told(&mut self) -> Value {
        self.took.sort_by(f64::total_cmp);
        let each = self.cpu.as_secs_f64() * 1e6 / self.count as f64;
        json!({"cpu": each, "p50": middle(&self.took), "most": self.took.last(), "count": self.count})
    }
}

pub async fn run(args: Args) -> Result<()> {
    let process = Tree::of(args.pid)?;
    let plain = LoadTarget::open(&args.plain).await?;
    let full = LoadTarget::open_with(&args.tls, Some(connector(&args.trusted, false)?)).await?;
    let resumed = LoadTarget::open_with(&args.tls, Some(connector(&args.trusted, true)?)).await?;
    let calls = calls(&args, &process, [&plain, &full]).await?;
    let ways = [(&plain, None), (&full, Some(HandshakeKind::Full)), (&resumed, Some(HandshakeKind::Resumed))];
    let connects = connects(&args, &process, ways).await?;
    let at_once = at_once(&args, &process, [&plain, &full]).await?;
    println!("{}", json!({"calls": calls, "connects": connects, "at_once": at_once}));
    Ok(())
}

/// Calls on one open connection each.
async fn calls(args: &Args, process: &Tree, ways: [&LoadTarget; 2]) -> Result<Vec<Value>> {
    let mut sides = [Side::to(ways[0]).await?, Side::to(ways[1]).await?];
    let mut told = [Way::default(), Way::default()];
    for side in &mut sides {
        side.block(args.calls / 4).await?;
    }
    for block in 0..args.blocks {
        for turn in 0..2 {
            // Each is first in every second block, so that a machine that slows down is no difference.
            let way = (block + turn) % 2;
            let before = process.cpu()?;
            let took = sides[way].block(args.calls).await?;
            told[way].cpu += process.cpu()?.saturating_sub(before);
            told[way].count += args.calls;
            told[way].took.push(took);
        }
    }
    Ok(told.iter_mut().map(Way::told).collect())
}

/// New connections, one after the other, with a call on each.
async fn connects(args: &Args, process: &Tree, ways: [(&LoadTarget, Option<HandshakeKind>); 3]) -> Result<Vec<Value>> {
    let mut told = [Way::default(), Way::default(), Way::default()];
    for block in 0..args.blocks {
        for turn in 0..ways.len() {
            let way = (block + turn) % ways.len();
            let (target, handshake) = ways[way];
            let before = process.cpu()?;
            for _ in 0..args.connects {
                told[way].took.push(connect(target, handshake).await?);
            }
            told[way].cpu += process.cpu()?.saturating_sub(before);
            told[way].count += args.connects as u64;
        }
    }
    Ok(told.iter_mut().map(Way::told).collect())
}

/// Microseconds from before the connection until the answer to its one call. Fails if the handshake is of another kind.
async fn connect(target: &LoadTarget, handshake: Option<HandshakeKind>) -> Result<f64> {
    let started = Instant::now();
    let connection = open(target).await?;
    let took = started.elapsed().as_nanos() as f64 / 1000.0;
    ensure!(connection.handshake == handshake, "a handshake of another kind: {:?}", connection.handshake);
    connection.close().await?;
    Ok(took)
}

/// A connection that has carried one call.
async fn open(target: &LoadTarget) -> Result<LoadConnection> {
    let mut connection = LoadConnection::to(target).await?;
    let call = LoadCall::new(target, "send_message")?;
    let outcome = ExpectedAnswer::default().check(connection.exchange(&call.bytes).await?, call.id())?;
    ensure!(outcome == LoadOutcome::Allowed, "a call was denied: {outcome:?}");
    Ok(connection)
}

/// New connections all at once, with a call on each: what the last of each block took.
async fn at_once(args: &Args, process: &Tree, ways: [&LoadTarget; 2]) -> Result<Vec<Value>> {
    let mut told = [Way::default(), Way::default()];
    for _ in 0..args.blocks.min(10) {
        for (way, target) in told.iter_mut().zip(ways) {
            let before = process.cpu()?;
            let started = Instant::now();
            let mut all = JoinSet::new();
            for _ in 0..args.at_once {
                let target = target.clone();
                all.spawn(async move { open(&target).await });
            }
            let mut opened = Vec::new();
            while let Some(connection) = all.join_next().await {
                opened.push(connection??);
            }
            way.took.push(started.elapsed().as_nanos() as f64 / 1000.0);
            for connection in opened {
                connection.close().await?;
            }
            sleep(Duration::from_millis(20)).await;
            way.cpu += process.cpu()?.saturating_sub(before);
            way.count += args.at_once as u64;
        }
    }
    Ok(told.iter_mut().map(Way::told).collect())
}

#[derive(clap::Args)]
pub struct InterceptIdleArgs {
    #[arg(long)]
    url: String,
    /// The certificates that the client trusts; without them there is no TLS
    #[arg(long, value_name = "PEM")]
    trusted: Option<PathBuf>,
    /// The process to watch
    #[arg(long)]
    pid: u32,
    #[arg(long)]
    connections: usize,
}

/// Prints how much a process's memory grows with connections that have carried one call each and carry nothing now.
pub async fn idle(args: InterceptIdleArgs) -> Result<()> {
    let tls = args.trusted.map(|trusted| connector(&trusted, false)).transpose()?;
    let target = LoadTarget::open_with(&args.url, tls).await?;
    // What only the first ones need, such as code, is there then.
    for _ in 0..100 {
        open(&target).await?.close().await?;
    }
    sleep(Duration::from_millis(300)).await;
    let before = (smaps(args.pid, "Rss")?, smaps(args.pid, "Anonymous")?);
    let mut opened = Vec::new();
    for _ in 0..args.connections {
        opened.push(open(&target).await?);
    }
    sleep(Duration::from_millis(700)).await;
    let after = (smaps(args.pid, "Rss")?, smaps(args.pid, "Anonymous")?);
    println!(
        "{}",
        json!({
            "connections": opened.len(), "rss_kib": before.0, "rss_kib_with": after.0,
            "anonymous_kib": before.1, "anonymous_kib_with": after.1,
        })
    );
    Ok(())
}
