//! The MCP server behind every proxy: as little work as it can do, so that the proxies are what is measured.

use crate::serve::serve;
use crate::tls;
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Write when each tools/call arrived to this file, a line each: monotonic nanoseconds
    #[arg(long)]
    arrivals: Option<PathBuf>,
    /// How many tools it lists: `send_message`, and `get_` and `delete_` something in turn
    #[arg(long, default_value_t = 1)]
    tools: usize,
    /// The length of each of their definitions but the first; 0 for short ones
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    tool_bytes: usize,
    /// Before it answers a tools/call, ask for so many samplings, on a stream of events
    #[arg(long, default_value_t = 0)]
    asks: usize,
    /// Serve with TLS under this name
    #[arg(long, value_name = "NAME", requires = "certificate")]
    tls: Option<String>,
    /// Write the certificate, which clients are to trust, to this file
    #[arg(long, value_name = "PEM", requires = "tls")]
    certificate: Option<PathBuf>,
}

struct BenchServer {
    started: Instant,
    arrivals: Option<File>,
    call_result: String,
    /// What comes before it, as events
    asks: String,
    list: String,
}

const INITIALIZED: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}"#;

pub async fn run(args: Args) -> Result<()> {
    let arrivals = args.arrivals.map(|path| File::create(&path).with_context(|| path.display().to_string()));
    let tls = args.tls.zip(args.certificate).map(|(name, path)| tls::acceptor(name, &path)).transpose()?;
    let text = "All is well. ".repeat(70);
    let server = Arc::new(BenchServer {
        started: Instant::now(),
        arrivals: arrivals.transpose()?,
        call_result: format!(r#"{{"content":[{{"type":"text","text":"{text}"}}],"isError":false}}"#),
        asks: (1..=args.asks).map(ask).collect(),
        list: list(args.tools, args.tool_bytes),
    });
    serve(args.listen, tls, move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    })
    .await
}

impl BenchServer {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let arrived = self.started.elapsed();
        if request.method() != Method::POST {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        let Ok(body) = request.into_body().collect().await else {
            return status(StatusCode::BAD_REQUEST);
        };
        let body = body.to_bytes();
        let Ok(message) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(&body) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let (Some(id), Some(method)) = (message.get("id"), message.get("method")) else {
            return status(StatusCode::ACCEPTED);
        };
        let is_call = method.get() == r#""tools/call""#;
        let result = match method.get() {
            r#""tools/call""# => {
                if let Some(mut file) = self.arrivals.as_ref()
                    && let Err(error) = file.write_all(format!("{}\n", arrived.as_nanos()).as_bytes())
                {
                    // A log with holes would let a broken limit pass.
                    eprintln!("arrivals: {error}");
                    std::process::exit(1);
                }
                &self.call_result
            }
            r#""initialize""# => INITIALIZED,
            r#""tools/list""# => &self.list,
            _ => return status(StatusCode::BAD_REQUEST),
        };
        let body = [r#"{"jsonrpc":"2.0","id":"#, id.get(), r#","result":"#, result, "}"].concat();
        let (body, kind) = if is_call && !self.asks.is_empty() {
            ([&self.asks, "data: ", &body, "\n\n"].concat(), "text/event-stream")
        } else {
            (body, "application/json")
        };
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// The event in which the server asks for its sampling of this number.
fn ask(number: usize) -> String {
    let params = r#"{"messages":[{"role":"user","content":{"type":"text","text":"Say it in one word."}}],"maxTokens":100}"#;
    format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":\"sampling/createMessage\",\"params\":{params}}}\n\n")
}

/// The result of tools/list. One tool is bare; of more, each has what a real one has, and arguments until it has so many bytes.
fn list(count: usize, bytes: usize) -> String {
    let mut tools = vec![r#"{"name":"send_message","inputSchema":{"type":"object"}}"#.to_owned()];
    tools.extend((1..count).map(|number| {
        let verb = if number % 2 == 0 { "delete" } else { "get" };
        let head = format!(
            r#"{{"name":"{verb}_item_{number}","description":"What it does, in a sentence or two that a model reads before it calls.","inputSchema":{{"type":"object","properties":{{"id":{{"type":"string"}}"#
        );
        let tail = r#"},"required":["id"]}}"#;
        let mut tool = head;
        for argument in 1.. {
            let more = format!(
                r#","argument_{argument}":{{"type":"string","maxLength":{argument}00,"description":"What this argument is for, and which values it takes."}}"#
            );
            if tool.len() + more.len() + tail.len() > bytes {
                break;
            }
            tool.push_str(&more);
        }
        tool + tail
    }));
    format!(r#"{{"tools":[{}]}}"#, tools.join(","))
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
