//! Questions to the small servers of a sidecar, through the API server's port-forward: it reaches what listens on a pod's
//! loopback, and takes one right for both ports.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{Api, Client};
use tokio::time::timeout;

use crate::cluster::{Asked, PodKey};

/// Where a sidecar serves `/metrics`.
pub const METRICS: u16 = 15020;
/// Where a sidecar serves its administration, on loopback alone.
pub const ADMINISTRATION: u16 = 15000;

/// How long a question may take, with the way to the pod.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest answer that is read, in bytes.
const LARGEST: usize = 8 * 1024 * 1024;

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// Asks what listens on a port of a pod: a GET, or a POST of JSON.
///
/// # Errors
/// It cannot be reached, or does not answer.
pub async fn ask(client: &Client, pod: &PodKey, port: u16, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
    let question = question(client, pod, port, path, body);
    timeout(PATIENCE, question)
        .await
        .with_context(|| format!("pod {pod}, port {port}: no answer within {} s", PATIENCE.as_secs()))?
}

async fn question(client: &Client, pod: &PodKey, port: u16, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
    let api: Api<KubePod> = Api::namespaced(client.clone(), &pod.namespace);
    // Over a WebSocket it is a GET, for which API servers want the verb `get`, and newer ones `create` too.
    let asked = Asked { verb: "get", resource: "pods/portforward", namespace: Some(&pod.namespace) };
    let mut forward = api.portforward(&pod.name, &[port]).await.map_err(|error| asked.failed(&error))?;
    let (stream, broken) = forward.take_stream(port).zip(forward.take_error(port)).context("the port-forward has no stream")?;
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
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| anyhow!("{error}"))?;
        Ok(Answer { status, body: body.to_bytes() })
    };
    let told = async { broken.await.filter(|why| !why.is_empty()) }.fuse();
    tokio::pin!(answered, told);
    let answer = tokio::select! {
        answer = &mut answered => match answer {
            Ok(answer) => Ok(answer),
            // The kubelet says why, on a channel of its own, a little later or never.
            Err(error) => match timeout(Duration::from_millis(500), &mut told).await {
                Ok(Some(why)) => Err(anyhow!("{}", why.trim())),
                _ => Err(error),
            },
        },
        Some(why) = &mut told => Err(anyhow!("{}", why.trim())),
    };
    connection.abort();
    forward.abort();
    match answer {
        Ok(answer) => Ok(answer),
        Err(why) => bail!("pod {pod}, port {port}: {why:#}; does its sidecar run?"),
    }
}
