//! HTTP on a connection of a client.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::Either;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{
    budget::PIECE,
    captured_http::CapturedHttp,
    client_stream::ClientStream,
    peeked::{PREFACE, PeekedConnection},
    state::{Proxy, ProxyState},
};
use crate::outcome::Outcome;

/// The time that a client has for sending the head of a request.
pub(super) const HEAD: Duration = Duration::from_secs(30);

/// The bytes that the kernel may keep for a connection of a client, sent and received: of answers that it does not read, and of
/// what it sends and is not read yet. The kernel doubles both; they count as the pod's memory. Less than two of the largest packets of the loopback device make each side wait for the other's timer.
pub const KERNEL: (u32, u32) = (16 * 1024, 64 * 1024);

/// The bytes of one connection of a client that may wait to be read, and of the largest head of a request.
const UNREAD: u32 = 64 * 1024;
const LARGEST_HEAD: usize = 16 * 1024;

/// Waits for the first bytes of a request: until they tell the protocol, no other timeout runs.
async fn begins<S: AsyncRead + Unpin>(mut stream: S) -> Option<PeekedConnection<S>> {
    let begun = async {
        let mut begun = [0; PREFACE.len()];
        let mut come = 0;
        loop {
            match stream.read(begun.get_mut(come..)?).await {
                Ok(0) | Err(_) => return None,
                Ok(more) => come += more,
            }
            if come == PREFACE.len() || begun.get(..come) != PREFACE.get(..come) {
                return begun.get(..come).map(Bytes::copy_from_slice);
            }
        }
    };
    let begun = timeout(HEAD, begun).await.ok()??;
    Some(PeekedConnection::new(begun, stream))
}

/// Serves a connection of a client that calls the sidecar.
pub(super) async fn connection(stream: TcpStream, proxy: Arc<Proxy>) {
    let Some(stream) = begun(stream, &proxy.state).await else { return };
    serve(stream, proxy, None).await;
}

/// Serves HTTP on a connection: requests to the sidecar's URL, or those of a captured connection.
pub(super) async fn serve(stream: PeekedConnection, proxy: Arc<Proxy>, captured: Option<Arc<CapturedHttp>>) {
    let state = Arc::clone(&proxy.state);
    let place = if stream.is_http2() {
        let Some(place) = state.clients.http2_place() else { return too_many(&state) };
        Some(place)
    } else {
        None
    };
    serve_one(ClientStream::Plain(stream), place, proxy, captured).await;
}

/// Records that there was no place for a connection over HTTP/2.
fn too_many(state: &ProxyState) {
    let metrics = &state.governor.metrics;
    state.governor.count(None, "_none", Outcome::Overloaded);
    metrics.connections.closed.with_label_values(&["proxy", "too_many"]).inc();
    tracing::warn!("too many connections over HTTP/2; one was closed");
}

/// Serves requests on TLS that was opened. `place` is its place among the connections over HTTP/2, if it agreed on that.
pub(super) async fn serve_opened(
    stream: TlsStream<PeekedConnection>,
    place: Option<OwnedSemaphorePermit>,
    proxy: Arc<Proxy>,
    captured: Arc<CapturedHttp>,
) {
    let Some(stream) = begun(stream, &proxy.state).await else { return };
    serve_one(ClientStream::Opened(Box::new(stream)), place, proxy, Some(captured)).await;
}

/// Waits for the first bytes of a request, until the sidecar stops.
async fn begun<S: AsyncRead + Unpin>(stream: S, state: &ProxyState) -> Option<PeekedConnection<S>> {
    let mut stopping = state.stopping.clone();
    tokio::select! {
        begun = begins(stream) => begun,
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => None,
    }
}

/// One function for all: hyper's code for a connection is large, and there would be one for each. With a place it is HTTP/2, without
/// HTTP/1.
async fn serve_one(
    stream: ClientStream,
    place: Option<OwnedSemaphorePermit>,
    proxy: Arc<Proxy>,
    captured: Option<Arc<CapturedHttp>>,
) {
    let state = Arc::clone(&proxy.state);
    let opened = state.clients.open();
    let mut stopping: watch::Receiver<bool> = state.stopping.clone();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(LARGEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(64)
        .max_header_list_size(16 * 1024)
        .initial_stream_window_size(UNREAD)
        .initial_connection_window_size(UNREAD)
        .max_send_buf_size(PIECE);
    // What was agreed on in a handshake, or seen in the first bytes, is what is spoken.
    let builder = if place.is_some() { builder.http2_only() } else { builder.http1_only() };
    let of = Arc::clone(&opened.connection);
    let service = service_fn(move |request| {
        let (proxy, of) = (Arc::clone(&proxy), Arc::clone(&of));
        match &captured {
            None => Either::Left(proxy.serve(of, request)),
            Some(http) => Either::Right(Box::pin(proxy.serve_captured(Arc::clone(http), of, request))),
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stopped = async move { stopping.wait_for(|stopping| *stopping).await.is_ok() };
    let serving = async move {
        let early = tokio::select! {
            result = connection.as_mut() => Some(result),
            _ = stopped => None,
        };
        match early {
            Some(result) => result,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let result = tokio::select! {
        result = serving => result,
        () = opened.connection.cut() => Ok(()),
    };
    drop(place);
    if let Err(error) = result {
        tracing::debug!(%error, "connection");
    }
}
