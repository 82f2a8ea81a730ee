//! The plain proxy: hyper on both sides, a pool of connections, bodies streamed both ways, and nothing else. The
//! sidecar has the same shape, so the difference between the two is what deciding costs.

use crate::serve::serve;
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// HOST:PORT of the server; the path is the request's own
    #[arg(long)]
    upstream: Authority,
}

#[derive(Clone)]
struct Passthrough {
    client: Client<HttpConnector, Incoming>,
    upstream: Authority,
    host: HeaderValue,
}

type PassedAnswer = Response<Either<Incoming, Empty<Bytes>>>;

pub async fn run(args: Args) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    let host = HeaderValue::from_str(args.upstream.as_str()).context("--upstream")?;
    let proxy = Passthrough { client, upstream: args.upstream, host };
    serve(args.listen, None, move |request| {
        let proxy = proxy.clone();
        async move {
            Ok::<_, Infallible>(proxy.forward(request).await.unwrap_or_else(|error| {
                eprintln!("{error:#}");
                bad_gateway()
            }))
        }
    })
    .await
}

impl Passthrough {
    async fn forward(&self, mut request: Request<Incoming>) -> Result<PassedAnswer> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.upstream.clone());
        *request.uri_mut() = Uri::from_parts(uri)?;
        *request.version_mut() = Version::HTTP_11;
        remove_hop_by_hop(request.headers_mut());
        request.headers_mut().insert(header::HOST, self.host.clone());

        let mut response = self.client.request(request).await?;
        remove_hop_by_hop(response.headers_mut());
        Ok(response.map(Either::Left))
    }
}

/// RFC 9110, 7.6.1: what is between two neighbours only, and what `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

fn bad_gateway() -> PassedAnswer {
    let mut response = Response::new(Either::Right(Empty::new()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
