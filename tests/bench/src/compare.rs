//! Rounds against each target in turn, so that what the machine does meanwhile meets all of them alike; medians over
//! the rounds; the targets for the sidecar.

use crate::bar;
use crate::load::{self, LoadEnd, LoadTarget, Run};
use crate::process::{Tree, machine_cpu};
use anyhow::{Context, Result, bail};
use std::os::unix::process::parent_id;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// NAME=URL or NAME=URL,PID; with the PID of the proxy, its CPU time and memory are measured too
    #[arg(long = "target", required = true)]
    targets: Vec<Target>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds before those measured
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    connections: Vec<usize>,
    /// Fail when a bar does not hold
    #[arg(long)]
    strict: bool,
}

#[derive(Clone)]
struct Target {
    name: String,
    url: String,
    pid: Option<u32>,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, url) = text.split_once('=').context("not NAME=URL[,PID]")?;
        let (url, pid) = match url.rsplit_once(',') {
            Some((url, pid)) => (url, Some(pid.parse()?)),
            None => (url, None),
        };
        Ok(Self { name: name.into(), url: url.into(), pid })
    }
}

/// One round; or the medians of several.
#[derive(Clone, Copy)]
struct Figures {
    calls_per_second: f64,
    p50: f64,
    p99: f64,
    /// CPU time for a call in µs, and resident memory in MiB
    process: Option<(f64, f64)>,
}

/// The rounds of each target on a number of connections.
type Rounds = Vec<Vec<Figures>>;

pub async fn run(args: Args) -> Result<bool> {
    let mut endpoints = Vec::new();
    for target in &args.targets {
        endpoints.push(LoadTarget::open(&target.url).await.with_context(|| target.name.clone())?);
    }
    // All that the script runs, to tell it from what else the machine does meanwhile
    let (own, started) = (Tree::of(parent_id())?, Instant::now());
    let (own_before, all_before) = (own.cpu()?, machine_cpu()?);
    let rounds = measure_all(&args, &endpoints).await?;
    let others = (machine_cpu()?.saturating_sub(all_before)).saturating_sub(own.cpu()?.saturating_sub(own_before));
    let cores = std::thread::available_parallelism()?.get() as f64;
    let share = others.as_secs_f64() / (started.elapsed().as_secs_f64() * cores);
    let note = if share > 0.1 { ": too much for the figures and bars below to prove anything" } else { "" };
    println!("Other processes took {:.0} % of the machine's CPU time meanwhile{note}.\n", share * 100.0);
    print_table(&args, &rounds);
    Ok(judge(&args, &rounds) || !args.strict)
}

/// Measures each target on each number of connections, round by round. The result has the order of `args.connections`, and
/// in each the order of `args.targets`.
async fn measure_all(args: &Args, endpoints: &[LoadTarget]) -> Result<Vec<Rounds>> {
    let mut rounds = vec![vec![Vec::new(); args.targets.len()]; args.connections.len()];
    for round in 0..args.rounds.max(1) {
        for (c, &connections) in args.connections.iter().enumerate() {
            for place in 0..args.targets.len() {
                // Each round begins with another target, so that none is always first after a pause.
                let t = (place + round) % args.targets.len();
                let target = &args.targets[t];
                let figures = measure(args, target, &endpoints[t], connections)
                    .await
                    .with_context(|| format!("{} on {connections} connections", target.name))?;
                eprintln!(
                    "round {}, {connections:>2} connections, {:<12} {:>7.0} calls/s, p50 {:>5.0} µs, p99 {:>6.0} µs",
                    round + 1,
                    target.name,
                    figures.calls_per_second,
                    figures.p50,
                    figures.p99
                );
                rounds[c][t].push(figures);
            }
        }
    }
    Ok(rounds)
}

fn print_table(args: &Args, rounds: &[Rounds]) {
    println!("| connections | target | calls/s | (range) | p50 µs | p99 µs | CPU µs/call | memory MiB |");
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (c, connections) in args.connections.iter().enumerate() {
        for (target, rounds) in args.targets.iter().zip(&rounds[c]) {
            let all = medians(rounds);
            let (cpu, memory) = match all.process {
                Some((cpu, memory)) => (format!("{cpu:.1}"), format!("{memory:.1}")),
                None => ("–".into(), "–".into()),
            };
            let range = || rounds.iter().map(|round| round.calls_per_second);
            println!(
                "| {connections} | {} | {:.0} | {:.0}–{:.0} | {:.0} | {:.0} | {cpu} | {memory} |",
                target.name,
                all.calls_per_second,
                range().fold(f64::INFINITY, f64::min),
                range().fold(0.0, f64::max),
                all.p50,
                all.p99
            );
        }
    }
    println!();
}

/// Prints the targets for the sidecar, and returns true if it meets all of them.
fn judge(args: &Args, rounds: &[Rounds]) -> bool {
    let place = |name: &str| args.targets.iter().position(|target| target.name == name);
    let (Some(direct), Some(plain), Some(sidecar)) = (place("direct"), place("pass-through"), place("sidecar")) else {
        println!("No verdict: it takes the targets direct, pass-through and sidecar.");
        return true;
    };
    let mut all_hold = true;
    let mut say = |holds: bool, text: String| {
        all_hold &= bar(holds, &text);
    };
    for (rounds, connections) in rounds.iter().zip(&args.connections) {
        // Targets are compared within a round, where they met the same machine, and only then over the rounds.
        let ratio = |of: &dyn Fn(Figures, Figures, Figures) -> f64| {
            median((0..rounds[direct].len()).map(|round| of(rounds[direct][round], rounds[plain][round], rounds[sidecar][round])))
        };
        let throughput = ratio(&|_, plain, sidecar| sidecar.calls_per_second / plain.calls_per_second);
        say(
            throughput >= 0.85,
            format!("{connections} connections, throughput: {throughput:.3} of the pass-through's (>= 0.85)"),
        );
        for (name, of) in [("p50", (|f| f.p50) as fn(Figures) -> f64), ("p99", |f| f.p99)] {
            let added = ratio(&|direct, plain, sidecar| (of(sidecar) - of(direct)) / (of(plain) - of(direct)).max(0.0));
            let by = |proxy: usize| of(medians(&rounds[proxy])) - of(medians(&rounds[direct]));
            say(
                added <= 1.3,
                format!(
                    "{connections} connections, {name}: adds {added:.2} times what the pass-through adds (<= 1.3; {:.0} and {:.0} µs)",
                    by(sidecar),
                    by(plain)
                ),
            );
        }
    }
    all_hold
}

async fn measure(args: &Args, target: &Target, endpoint: &LoadTarget, connections: usize) -> Result<Figures> {
    let tree = target.pid.map(Tree::of).transpose()?;
    let from = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let run = Run {
        endpoint: endpoint.clone(),
        connections,
        accounts: 1,
        until: LoadEnd::Time(from, from + Duration::from_secs_f64(args.seconds)),
        denials: false,
        calls: AtomicU64::new(0),
    };
    let mut tally = load::run(Arc::new(run), tree.as_ref()).await?;
    let calls = tally.latencies.len();
    if calls == 0 {
        bail!("no call was answered");
    }
    tally.latencies.sort_unstable();
    let percentile = |p: usize| f64::from(tally.latencies[(calls - 1) * p / 100]) / 1000.0;
    let process = match (&tree, tally.cpu) {
        (Some(tree), Some(cpu)) => Some((cpu.as_secs_f64() * 1e6 / calls as f64, tree.resident()? as f64 / 1024.0)),
        _ => None,
    };
    Ok(Figures { calls_per_second: calls as f64 / args.seconds, p50: percentile(50), p99: percentile(99), process })
}

fn medians(rounds: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure));
    Figures {
        calls_per_second: of(|f| f.calls_per_second),
        p50: of(|f| f.p50),
        p99: of(|f| f.p99),
        process: rounds
            .first()
            .and_then(|round| round.process)
            .map(|_| (of(|f| f.process.map_or(0.0, |(cpu, _)| cpu)), of(|f| f.process.map_or(0.0, |(_, memory)| memory)))),
    }
}

/// With an even number of values, the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}
