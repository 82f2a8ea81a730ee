//! Two targets in turn, in short blocks on one connection each: what the second adds to a call, or to a list of tools, with
//! little of what the machine does meanwhile.

use crate::load::{ExpectedAnswer, LoadCall, LoadConnection, LoadOutcome, LoadTarget};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// What is compared with
    #[arg(long)]
    base: String,
    /// What is compared
    #[arg(long)]
    other: String,
    #[arg(long, default_value_t = 20)]
    blocks: usize,
    /// Calls of a block
    #[arg(long, default_value_t = 2000)]
    calls: u64,
    /// Lists of so many tools in place of calls
    #[arg(long, value_name = "TOOLS")]
    list: Option<usize>,
}

pub async fn run(args: Args) -> Result<()> {
    let mut base = side(&args.base, args.list).await?;
    let mut other = side(&args.other, args.list).await?;
    // Warm: connections, counts, code.
    base.block(args.calls / 4).await?;
    other.block(args.calls / 4).await?;
    let (mut of_base, mut of_other, mut added) = (Vec::new(), Vec::new(), Vec::new());
    let (mut late_base, mut late_other) = (Vec::new(), Vec::new());
    for block in 0..args.blocks {
        // Each is first in every second pair, so that a machine that slows down is no difference.
        let (a, b) = if block % 2 == 0 {
            let a = base.times(args.calls).await?;
            (a, other.times(args.calls).await?)
        } else {
            let b = other.times(args.calls).await?;
            (base.times(args.calls).await?, b)
        };
        of_base.push(middle(&a));
        of_other.push(middle(&b));
        added.push(middle(&b) - middle(&a));
        late_base.push(a[a.len() * 99 / 100]);
        late_other.push(b[b.len() * 99 / 100]);
    }
    for values in [&mut of_base, &mut of_other, &mut added, &mut late_base, &mut late_other] {
        values.sort_by(f64::total_cmp);
    }
    println!(
        "{}",
        json!({
            "base": middle(&of_base), "other": middle(&of_other), "added": middle(&added),
            "quarter": added[added.len() / 4], "three_quarters": added[added.len() * 3 / 4],
            "base_p99": middle(&late_base), "other_p99": middle(&late_other),
            "least": added[0], "most": added[added.len() - 1], "blocks": args.blocks, "calls": args.calls,
        })
    );
    Ok(())
}

/// The usual TCP segment outside of loopback.
const ETHERNET: u32 = 1448;

async fn side(url: &str, tools: Option<usize>) -> Result<Side> {
    let endpoint = LoadTarget::open(url).await?;
    match tools {
        Some(tools) => Side::listing(&endpoint.with_segments(ETHERNET), tools).await,
        None => Side::to(&endpoint).await,
    }
}

/// Calls or lists on one connection.
pub struct Side {
    connection: LoadConnection,
    requests: Requests,
}

enum Requests {
    Calls { call: LoadCall, expected: ExpectedAnswer, number: u64 },
    Lists { request: Vec<u8>, tools: usize },
}

impl Side {
    /// Calls that are let through.
    pub async fn to(endpoint: &LoadTarget) -> Result<Self> {
        let connection = LoadConnection::to(endpoint).await?;
        let call = LoadCall::new(endpoint, "send_message")?;
        Ok(Self { connection, requests: Requests::Calls { call, expected: ExpectedAnswer::default(), number: 0 } })
    }

    /// Lists that show so many tools.
    async fn listing(endpoint: &LoadTarget, tools: usize) -> Result<Self> {
        let connection = LoadConnection::to(endpoint).await?;
        let request = endpoint.post(br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
        Ok(Self { connection, requests: Requests::Lists { request, tools } })
    }

    /// The median of so many requests in microseconds.
    pub async fn block(&mut self, count: u64) -> Result<f64> {
        Ok(middle(&self.times(count).await?))
    }

    /// The microseconds of so many requests, sorted.
    async fn times(&mut self, count: u64) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..count.max(1) {
            took.push(self.exchange().await?);
        }
        took.sort_by(f64::total_cmp);
        Ok(took)
    }

    /// One request: the microseconds until its whole answer.
    async fn exchange(&mut self) -> Result<f64> {
        let request = match &mut self.requests {
            Requests::Calls { call, number, .. } => {
                *number += 1;
                call.set(*number, 0);
                &call.bytes
            }
            Requests::Lists { request, .. } => request,
        };
        let sent = Instant::now();
        let answer = self.connection.exchange(request).await?;
        let took = sent.elapsed().as_nanos() as f64 / 1000.0;
        match &mut self.requests {
            Requests::Calls { call, expected, .. } => {
                let outcome = expected.check(answer, call.id())?;
                ensure!(outcome == LoadOutcome::Allowed, "a call was denied: {outcome:?}");
            }
            Requests::Lists { tools, .. } => {
                let listed = answer.tools()?.len();
                ensure!(listed == *tools, "{listed} tools are listed, not {tools}");
            }
        }
        Ok(took)
    }
}

/// The median of what is sorted.
pub fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[half - 1], sorted[half]) } else { sorted[half] }
}
