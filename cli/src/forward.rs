//! HTTP requests to the metrics and administration ports of a sidecar, through a port-forward of the API server. It reaches a pod's
//! loopback, and needs one right for both ports.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{Api, Client, api::Portforwarder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::cluster::{ApiAccess, NamespacedName};

/// Timeout of a request, including the port-forward.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum size of a response body, in bytes.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// The response of a pod.
#[derive(Clone, Debug)]
pub struct PodResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl PodResponse {
    /// Returns the body as trimmed text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// Sends a request to a port of a pod: a POST of JSON if there is a body, else a GET.
///
/// # Errors
/// The port cannot be reached, or there is no response in time.
pub async fn request(
    client: &Client,
    pod: &NamespacedName,
    port: u16,
    path: &str,
    body: Option<String>,
) -> anyhow::Result<PodResponse> {
    let send = send(client, pod, port, path, body);
    timeout(TIMEOUT, send).await.with_context(|| format!("pod {pod}, port {port}: no response within {} s", TIMEOUT.as_secs()))?
}

/// A connection to a port of a pod.
pub struct PortForward<S, E> {
    /// What is sent and received.
    pub stream: S,
    /// Resolves to what is wrong with it, if something is.
    pub broken: E,
    /// The port-forward, for its end.
    pub forwarder: Portforwarder,
}

/// Connects to a port of a pod.
///
/// # Errors
/// A right is missing, or the API server refuses.
pub async fn open(
    client: &Client,
    pod: &NamespacedName,
    port: u16,
) -> anyhow::Result<
    PortForward<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, impl Future<Output = Option<String>> + Send + use<>>,
> {
    let api: Api<KubePod> = Api::namespaced(client.clone(), &pod.namespace);
    // A port-forward over a WebSocket is a GET. API servers require the verb `get`, and newer ones also `create`.
    let access = ApiAccess { verb: "get", resource: "pods/portforward", namespace: Some(&pod.namespace) };
    let mut forwarder = api.portforward(&pod.name, &[port]).await.map_err(|error| access.failed(&error))?;
    let (stream, broken) =
        forwarder.take_stream(port).zip(forwarder.take_error(port)).context("the port-forward has no stream")?;
    Ok(PortForward { stream, broken, forwarder })
}

async fn send(client: &Client, pod: &NamespacedName, port: u16, path: &str, body: Option<String>) -> anyhow::Result<PodResponse> {
    let PortForward { stream, broken, forwarder } = open(client, pod, port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = match body {
        Some(body) => Request::post(path).header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body))),
        None => Request::get(path).body(Full::default()),
    };
    let mut request = request?;
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| anyhow!("{error}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|error| anyhow!("{error}"))?;
        Ok(PodResponse { status, body: body.to_bytes() })
    };
    let told = async { broken.await.filter(|why| !why.is_empty()) }.fuse();
    tokio::pin!(answered, told);
    let answer = tokio::select! {
        answer = &mut answered => match answer {
            Ok(answer) => Ok(answer),
            // The kubelet may report the cause on a separate channel, a little later.
            Err(error) => match timeout(Duration::from_millis(500), &mut told).await {
                Ok(Some(why)) => Err(anyhow!("{}", why.trim())),
                _ => Err(error),
            },
        },
        Some(why) = &mut told => Err(anyhow!("{}", why.trim())),
    };
    connection.abort();
    forwarder.abort();
    match answer {
        Ok(answer) => Ok(answer),
        Err(why) => bail!("pod {pod}, port {port}: {why:#}; does its sidecar run?"),
    }
}
