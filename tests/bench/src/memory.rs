//! Checks that a proxy's memory is small, and stays so while calls go through.

use crate::bar;
use crate::load::{self, LoadEnd, LoadTarget, Run};
use crate::process::memory;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    url: String,
    /// The process to watch
    #[arg(long)]
    pid: u32,
    #[arg(long, default_value_t = 100_000)]
    calls: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Calls go through this many values of arguments.account
    #[arg(long, default_value_t = 1000)]
    accounts: u64,
    /// The most that is to be resident: the project's bar, which is told
    #[arg(long, default_value_t = 12 * 1024)]
    max_kib: u64,
    /// The most of its own memory that may be resident at the end: more fails the run. How much of the program's file is resident beside it,
    /// the kernel decides
    #[arg(long, default_value_t = 9 * 1024)]
    fail_own_kib: u64,
    /// How much more may be resident at the end than in the middle
    #[arg(long, default_value_t = 256)]
    max_growth_kib: u64,
}

pub async fn run(args: Args) -> Result<bool> {
    println!("before:  VmRSS {:>6} KiB", memory(args.pid, "VmRSS")?);
    let run = Arc::new(Run {
        endpoint: LoadTarget::open(&args.url).await?,
        connections: args.connections,
        accounts: args.accounts,
        until: LoadEnd::Calls(args.calls),
        denials: false,
        calls: AtomicU64::new(0),
    });
    let watch = async {
        let mut resident = Vec::new();
        for tenth in 1..=10 {
            while run.calls.load(Ordering::Relaxed) < args.calls * tenth / 10 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            resident.push(memory(args.pid, "VmRSS")?);
            println!("{:>6}%: VmRSS {:>6} KiB", tenth * 10, resident[resident.len() - 1]);
        }
        anyhow::Ok(resident)
    };
    let (resident, _) = tokio::try_join!(watch, load::run(run.clone(), None))?;
    let (middle, last) = (resident[4], memory(args.pid, "VmRSS")?);
    let most = memory(args.pid, "VmHWM")?;
    // Code that was read from the binary is resident too, and the kernel can drop it.
    let own = memory(args.pid, "RssAnon")?;
    println!("of it:   {own} KiB its own, {} KiB of files", memory(args.pid, "RssFile")?);

    bar(most <= args.max_kib, &format!("the most ever resident (VmHWM) is {most} KiB (<= {} KiB)", args.max_kib));
    let small = bar(
        own <= args.fail_own_kib,
        &format!("no more of its own than when last measured and written down ({own} KiB <= {} KiB)", args.fail_own_kib),
    );
    let flat = bar(
        last <= middle + args.max_growth_kib,
        &format!("resident after all calls {last} KiB, after half of them {middle} KiB (<= {} KiB more)", args.max_growth_kib),
    );
    Ok(small && flat)
}
