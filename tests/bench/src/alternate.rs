//! Two targets in turn, in short blocks on one connection each: what the second adds to a call, with little of what the
//! machine does meanwhile.

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
}

pub async fn run(args: Args) -> Result<()> {
    let mut base = Side::to(&LoadTarget::open(&args.base).await?).await?;
    let mut other = Side::to(&LoadTarget::open(&args.other).await?).await?;
    // Warm: connections, counts, code.
    base.block(args.calls / 4).await?;
    other.block(args.calls / 4).await?;
    let (mut of_base, mut of_other, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for block in 0..args.blocks {
        // Each is first in every second pair, so that a machine that slows down is no difference.
        let (a, b) = if block % 2 == 0 {
            let a = base.block(args.calls).await?;
            (a, other.block(args.calls).await?)
        } else {
            let b = other.block(args.calls).await?;
            (base.block(args.calls).await?, b)
        };
        of_base.push(a);
        of_other.push(b);
        added.push(b - a);
    }
    for values in [&mut of_base, &mut of_other, &mut added] {
        values.sort_by(f64::total_cmp);
    }
    println!(
        "{}",
        json!({
            "base": middle(&of_base), "other": middle(&of_other), "added": middle(&added),
            "quarter": added[added.len() / 4], "three_quarters": added[added.len() * 3 / 4],
            "least": added[0], "most": added[added.len() - 1], "blocks": args.blocks, "calls": args.calls,
        })
    );
    Ok(())
}

/// Calls on one connection.
pub struct Side {
    connection: LoadConnection,
    call: LoadCall,
    expected: ExpectedAnswer,
    number: u64,
}

impl Side {
    pub async fn to(endpoint: &LoadTarget) -> Result<Self> {
        let connection = LoadConnection::to(endpoint).await?;
        Ok(Self { connection, call: LoadCall::new(endpoint, "send_message")?, expected: ExpectedAnswer::default(), number: 0 })
    }

    /// The median of so many calls in microseconds.
    pub async fn block(&mut self, calls: u64) -> Result<f64> {
        let mut took = Vec::new();
        for _ in 0..calls.max(1) {
            self.number += 1;
            self.call.set(self.number, 0);
            let sent = Instant::now();
            let answer = self.connection.exchange(&self.call.bytes).await?;
            took.push(sent.elapsed().as_nanos() as f64 / 1000.0);
            let outcome = self.expected.check(answer, self.call.id())?;
            ensure!(outcome == LoadOutcome::Allowed, "a call was denied: {outcome:?}");
        }
        took.sort_by(f64::total_cmp);
        Ok(middle(&took))
    }
}

/// The median of what is sorted.
pub fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[half - 1], sorted[half]) } else { sorted[half] }
}
