//! The accept loop of both servers.

use anyhow::{Context, Result};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Serves HTTP/1.1 and HTTP/2 until the process ends, with TLS if there is an acceptor.
pub async fn serve<H, F, B>(listen: SocketAddr, tls: Option<TlsAcceptor>, handle: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of files, mostly: others may close some.
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        stream.set_nodelay(true).ok();
        let service = service_fn(handle.clone());
        let tls = tls.clone();
        tokio::spawn(async move {
            // A client that goes away is no event for a benchmark; a call lost by it is counted by the client.
            let builder = auto::Builder::new(TokioExecutor::new());
            if let Some(tls) = tls {
                if let Ok(stream) = tls.accept(stream).await {
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                }
            } else {
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        });
    }
}
