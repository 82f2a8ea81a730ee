//! One limit under all the calls that fit, judged by the server's own log of what arrived.

use crate::bar;
use crate::load::{self, LoadEnd, LoadTarget, Run};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The limit: this many calls ...
    #[arg(long)]
    max: usize,
    /// ... in any span of so many milliseconds
    #[arg(long)]
    window_ms: u64,
    /// What `upstream --arrivals` writes
    #[arg(long)]
    arrivals: PathBuf,
    /// How much of what the limit allows has to arrive
    #[arg(long, default_value_t = 0.95)]
    min_utilisation: f64,
}

pub async fn run(args: Args) -> Result<bool> {
    let endpoint = LoadTarget::open(&args.url).await?;
    let start = Instant::now();
    let run = Arc::new(Run {
        endpoint,
        connections: args.connections,
        accounts: 1,
        until: LoadEnd::Time(start, start + Duration::from_secs_f64(args.seconds)),
        denials: true,
        calls: AtomicU64::new(0),
    });
    let tally = load::run(run, None).await?;

    let log = std::fs::read_to_string(&args.arrivals).with_context(|| args.arrivals.display().to_string())?;
    let arrivals = log.lines().map(|line| Ok(line.parse()?)).collect::<Result<Vec<u64>>>()?;
    let window = args.window_ms * 1_000_000;
    let answered = tally.latencies.len();
    println!(
        "{} calls in {} s on {} connections: {} let through, {} denied; {} arrived at the server",
        answered as u64 + tally.denied,
        args.seconds,
        args.connections,
        answered,
        tally.denied,
        arrivals.len()
    );
    // A call in flight at the end is not counted as answered.
    ensure!((answered..=answered + args.connections).contains(&arrivals.len()), "the server's log and the client's count differ");

    let found = check(arrivals, args.max, window);
    if let Some(shortest) = found.shortest {
        println!("the shortest span of {} arrivals is {:.3} ms", args.max + 1, shortest as f64 / 1e6);
    }
    let kept = bar(
        found.busiest <= args.max,
        &format!("the busiest {} ms have {} arrivals (<= {})", args.window_ms, found.busiest, args.max),
    );
    let utilisation = answered as f64 / (args.max as f64 * args.seconds * 1000.0 / args.window_ms as f64);
    let used = bar(
        utilisation >= args.min_utilisation,
        &format!("{utilisation:.3} of what the limit allows was used (>= {})", args.min_utilisation),
    );
    Ok(kept && used)
}

#[derive(Debug, PartialEq)]
struct Arrivals {
    /// The most arrivals in a span of `window`, both ends included
    busiest: usize,
    /// The shortest time from an arrival to the one `max` places later; over `window` where the limit was kept
    shortest: Option<u64>,
}

fn check(mut arrivals: Vec<u64>, max: usize, window: u64) -> Arrivals {
    // The log is in the order of writing, not always that of arriving.
    arrivals.sort_unstable();
    let mut busiest = 0;
    let mut first = 0;
    for (last, &time) in arrivals.iter().enumerate() {
        while time - arrivals[first] > window {
            first += 1;
        }
        busiest = busiest.max(last + 1 - first);
    }
    let shortest = arrivals.windows(max + 1).map(|span| span[max] - span[0]).min();
    Arrivals { busiest, shortest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_includes_both_ends() {
        assert_eq!(check(vec![0, 5, 10], 2, 10), Arrivals { busiest: 3, shortest: Some(10) });
        assert_eq!(check(vec![11, 0, 5], 2, 10), Arrivals { busiest: 2, shortest: Some(11) });
        assert_eq!(check(vec![3], 2, 10), Arrivals { busiest: 1, shortest: None });
        assert_eq!(check(vec![], 2, 10), Arrivals { busiest: 0, shortest: None });
    }
}
