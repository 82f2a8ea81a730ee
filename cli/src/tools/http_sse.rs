//! HTTP+SSE, the transport of 2024-11-05, which the SDK no longer has: a GET opens a stream of events, whose first names the URL for POSTs.

use futures_util::StreamExt;
use http::header;
use reqwest::Url;
use rmcp::model::ServerJsonRpcMessage;
use tokio::{sync::mpsc, time::timeout};

use super::{
    channel::{ChannelTransport, TaskEnd},
    fault::SourceFault,
    http::{EventStream, McpHttp, content_type, stream_fault},
    message,
};

/// Opens a stream. Returns `None` if there is none, so that the server does not speak this transport.
///
/// # Errors
/// The stream names an endpoint to which nothing may be sent.
pub async fn open(http: &McpHttp, url: &Url) -> Result<Option<ChannelTransport>, SourceFault> {
    let patience = http.state().limits.answer;
    let request = http.get(url.clone()).header(header::ACCEPT, "text/event-stream");
    let Ok(Ok(response)) = timeout(patience, http.send(request)).await else { return Ok(None) };
    if !response.status().is_success() || !content_type(&response).to_ascii_lowercase().starts_with("text/event-stream") {
        return Ok(None);
    }
    let mut events = http.events(response);
    let Ok(Some(Ok(first))) = timeout(patience, events.next()).await else { return Ok(None) };
    let (Some("endpoint"), Some(data)) = (first.event.as_deref(), first.data.as_deref()) else { return Ok(None) };
    let endpoint = url.join(data.trim()).map_err(|_| SourceFault::garbage(data.as_bytes(), &"no URL of an endpoint"))?;
    if endpoint.origin() != url.origin() {
        return Err(SourceFault::ForeignEndpoint(data.to_owned()));
    }
    let http = http.clone();
    Ok(Some(ChannelTransport::start(|end| async move { talk(&http, &endpoint, events, end).await })))
}

/// Passes messages in both directions until one side ends.
async fn talk(http: &McpHttp, endpoint: &Url, events: EventStream, end: TaskEnd) {
    let TaskEnd { mut outgoing, incoming } = end;
    let sent = async {
        while let Some(message) = outgoing.recv().await {
            let response = http.send(http.post(endpoint.clone(), &message)).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(SourceFault::status(status.as_u16(), ""));
            }
        }
        Ok(())
    };
    let done = tokio::select! {
        done = sent => done,
        done = receive(events, &incoming) => done,
    };
    if let Err(fault) = done {
        http.state().faults.note(fault);
    }
}

/// Reads events as messages.
async fn receive(mut events: EventStream, incoming: &mpsc::Sender<ServerJsonRpcMessage>) -> Result<(), SourceFault> {
    while let Some(event) = events.next().await {
        let event = event.map_err(stream_fault)?;
        let data = event.data.unwrap_or_default();
        if event.event.is_some_and(|kind| kind != "message") || data.trim().is_empty() {
            continue;
        }
        if incoming.send(message::read(data.as_bytes())?).await.is_err() {
            return Ok(());
        }
    }
    Err(SourceFault::Broken("the server ended the stream of events".to_owned()))
}
