//! A fixed number of requests of one kind on one connection, each answer checked.

use crate::load::{ExpectedAnswer, LoadCall, LoadConnection, LoadOutcome, LoadTarget};
use anyhow::{Result, ensure};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    url: String,
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    count: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// A tools/call that is let through
    Allowed,
    /// A tools/call of a tool that the policy does not list
    Denied,
    /// A tools/list
    List,
}

pub async fn run(args: Args) -> Result<()> {
    let endpoint = LoadTarget::open(&args.url).await?;
    let mut connection = LoadConnection::to(&endpoint).await?;
    match args.kind {
        Kind::Allowed => {
            calls(&mut connection, LoadCall::new(&endpoint, "send_message")?, args.count, &LoadOutcome::Allowed).await
        }
        Kind::Denied => {
            let denied = LoadOutcome::Denied("not_listed".to_owned());
            calls(&mut connection, LoadCall::new(&endpoint, "none_of_these")?, args.count, &denied).await
        }
        Kind::List => {
            let request = endpoint.post(br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
            let first = connection.exchange(&request).await?;
            let tools = first.tools()?;
            ensure!(tools.iter().any(|name| name == "send_message"), "send_message is not listed: {tools:?}");
            for _ in 1..args.count {
                ensure!(connection.exchange(&request).await? == first, "the list changes");
            }
            println!("{} tools are listed", tools.len());
            Ok(())
        }
    }
}

async fn calls(connection: &mut LoadConnection, mut call: LoadCall, count: u64, expected: &LoadOutcome) -> Result<()> {
    let mut answers = ExpectedAnswer::default();
    for number in 0..count {
        call.set(number, 0);
        let outcome = answers.check(connection.exchange(&call.bytes).await?, call.id())?;
        ensure!(outcome == *expected, "{outcome:?}");
    }
    Ok(())
}
