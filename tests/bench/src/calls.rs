//! A fixed number of requests of one kind on one connection, each answer checked.

use crate::load::{Call, Connection, Endpoint, Expected, Outcome};
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
    let endpoint = Endpoint::open(&args.url).await?;
    let mut connection = Connection::to(&endpoint).await?;
    match args.kind {
        Kind::Allowed => calls(&mut connection, Call::new(&endpoint, "send_message")?, args.count, &Outcome::Allowed).await,
        Kind::Denied => {
            let denied = Outcome::Denied("not_listed".to_owned());
            calls(&mut connection, Call::new(&endpoint, "none_of_these")?, args.count, &denied).await
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

async fn calls(connection: &mut Connection, mut call: Call, count: u64, expected: &Outcome) -> Result<()> {
    let mut answers = Expected::default();
    for number in 0..count {
        call.set(number, 0);
        let outcome = answers.check(connection.exchange(&call.bytes).await?, call.id())?;
        ensure!(outcome == *expected, "{outcome:?}");
    }
    Ok(())
}
