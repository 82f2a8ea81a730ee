//! The programs of the scripts in this folder: the MCP server behind the proxies, the plain proxy that the sidecar is held
//! against, the load generator, and the measuring. One binary, so that a script builds one thing.

// A wrong index ends the run with its place, which is what a benchmark should do; the figures fit into an f64 and more.
#![allow(clippy::indexing_slicing, clippy::cast_precision_loss)]

mod alternate;
mod asks;
mod calls;
mod compare;
mod drive;
mod hammer;
mod intercept;
mod load;
mod memory;
mod passthrough;
mod process;
mod raw;
mod serve;
mod start;
mod tls;
mod upstream;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::future::Future;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An MCP server that answers every tools/call with about 1 KiB
    Upstream(upstream::Args),
    /// A plain proxy without a policy: what a proxy of this shape costs at least
    PassThrough(passthrough::Args),
    /// Interleaved rounds against several targets: a table, and whether the sidecar meets its targets
    Compare(compare::Args),
    /// A fixed number of calls while a process's memory is watched
    Memory(memory::Args),
    /// So many requests of one kind, one after the other on one connection: for whoever counts what each costs
    Calls(calls::Args),
    /// Calls as fast as one limit answers them, then a check of the server's own log of arrivals
    Hammer(hammer::Args),
    /// Calls to several targets at once, each at its own rate: what became of them, as JSON
    Drive(drive::Args),
    /// Blocks of calls to two targets in turn: how much longer a call of the second takes, as JSON
    Alternate(alternate::Args),
    /// Calls of one server while another asks for very much, as JSON
    Asks(asks::Args),
    /// Calls and connections with TLS and without in turn: what TLS costs a process, as JSON
    Intercept(intercept::Args),
    /// What idle HTTP connections cost a process in memory, as JSON
    InterceptIdle(intercept::InterceptIdleArgs),
    /// Time from starting a command to a 200 of its /readyz
    Start(start::Args),
    /// A server of a protocol that is neither HTTP nor TLS
    RawServer(raw::ServerArgs),
    /// Throughput and connect time of that protocol through several proxies in turn, as JSON
    RawLoad(raw::LoadArgs),
    /// What idle connections of that protocol cost a proxy in memory, as JSON
    RawIdle(raw::IdleArgs),
}

fn main() -> Result<ExitCode> {
    let all_hold = match Cli::parse().command {
        // One thread each: with the proxy they share few cores, and threads that hand work to each other would cost
        // more than they bring.
        Command::Upstream(args) => single(upstream::run(args)).map(|()| true),
        Command::Compare(args) => single(compare::run(args)),
        Command::Memory(args) => single(memory::run(args)),
        Command::Calls(args) => single(calls::run(args)).map(|()| true),
        Command::Hammer(args) => single(hammer::run(args)),
        Command::Drive(args) => single(drive::run(args)).map(|()| true),
        Command::Alternate(args) => single(alternate::run(args)).map(|()| true),
        Command::Asks(args) => single(asks::run(args)).map(|()| true),
        Command::Intercept(args) => single(intercept::run(args)).map(|()| true),
        Command::InterceptIdle(args) => single(intercept::idle(args)).map(|()| true),
        // The shape of a real proxy: a worker thread for each core.
        Command::PassThrough(args) => tokio::runtime::Runtime::new()?.block_on(passthrough::run(args)).map(|()| true),
        Command::Start(args) => start::run(&args),
        Command::RawServer(args) => raw::serve(&args).map(|()| true),
        Command::RawLoad(args) => raw::load(&args).map(|()| true),
        Command::RawIdle(args) => raw::idle(&args).map(|()| true),
    }?;
    Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says whether a bar holds, and passes that on.
fn bar(holds: bool, what: &str) -> bool {
    println!("{}: {what}", if holds { "holds" } else { "does not hold" });
    holds
}

fn single<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
