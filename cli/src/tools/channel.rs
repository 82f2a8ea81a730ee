//! A transport of the SDK that ends in a task of ours: what the SDK sends comes out of one channel, and what the task reads goes into another.

use std::time::Duration;

use rmcp::{
    RoleClient,
    model::{ClientJsonRpcMessage, JsonRpcMessage, RequestId, ServerJsonRpcMessage},
    transport::Transport,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// The messages that wait in each direction.
const WAITING: usize = 16;
/// The time in which the task ends.
const GOODBYE: Duration = Duration::from_secs(10);

/// The end of the task.
#[derive(Debug)]
pub struct TaskEnd {
    /// What the SDK sends. When it ends, the session is over.
    pub outgoing: mpsc::Receiver<ClientJsonRpcMessage>,
    /// What the server sends. When it is dropped, there is nothing more.
    pub incoming: mpsc::Sender<ServerJsonRpcMessage>,
}

/// The end of the SDK.
#[derive(Debug)]
pub struct ChannelTransport {
    outgoing: Option<mpsc::Sender<ClientJsonRpcMessage>>,
    incoming: mpsc::Receiver<ServerJsonRpcMessage>,
    task: JoinHandle<()>,
    /// The request whose answer is awaited, and those that were given up. The SDK takes a late answer to its first question, of whether the
    /// server speaks the newest version, for a wrong answer to its second.
    awaited: Option<RequestId>,
    given_up: Vec<RequestId>,
}

impl ChannelTransport {
    /// Starts a task at the other end.
    pub fn start<F>(task: impl FnOnce(TaskEnd) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (outgoing, sent) = mpsc::channel(WAITING);
        let (received, incoming) = mpsc::channel(WAITING);
        let task = tokio::spawn(task(TaskEnd { outgoing: sent, incoming: received }));
        Self { outgoing: Some(outgoing), incoming, task, awaited: None, given_up: Vec::new() }
    }

    /// Returns true if a message answers a request that was given up.
    fn is_late(&mut self, message: &ServerJsonRpcMessage) -> bool {
        let id = match message {
            JsonRpcMessage::Response(response) => &response.id,
            JsonRpcMessage::Error(error) => match &error.id {
                Some(id) => id,
                None => return false,
            },
            _ => return false,
        };
        if self.awaited.as_ref() == Some(id) {
            self.awaited = None;
        }
        self.given_up.contains(id)
    }
}

impl Transport<RoleClient> for ChannelTransport {
    type Error = mpsc::error::SendError<()>;

    fn send(&mut self, item: ClientJsonRpcMessage) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        if let JsonRpcMessage::Request(request) = &item {
            self.given_up.extend(self.awaited.replace(request.id.clone()));
        }
        let outgoing = self.outgoing.clone();
        async move {
            let sent = match outgoing {
                Some(outgoing) => outgoing.send(item).await.is_ok(),
                None => false,
            };
            if sent { Ok(()) } else { Err(mpsc::error::SendError(())) }
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let message = self.incoming.recv().await?;
            if !self.is_late(&message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.outgoing = None;
        self.incoming.close();
        if timeout(GOODBYE, &mut self.task).await.is_err() {
            self.task.abort();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{ClientRequest, PingRequest};

    use super::*;

    #[tokio::test]
    async fn late_answers_are_left_out() {
        let mut transport = ChannelTransport::start(|end| async move {
            let TaskEnd { mut outgoing, incoming } = end;
            // The first request is answered only when the second was sent.
            outgoing.recv().await;
            outgoing.recv().await;
            for id in [0, 1] {
                let answer = serde_json::json!({"jsonrpc": "2.0", "id": id, "error": {"code": id, "message": ""}});
                incoming.send(serde_json::from_value(answer).unwrap()).await.unwrap();
            }
            assert!(outgoing.recv().await.is_none());
        });
        for id in [0, 1] {
            let request = ClientRequest::PingRequest(PingRequest::default());
            transport.send(ClientJsonRpcMessage::request(request, RequestId::Number(id))).await.unwrap();
        }
        let Some(JsonRpcMessage::Error(first)) = transport.receive().await else { panic!("no answer") };
        assert_eq!(first.id, Some(RequestId::Number(1)));
        transport.close().await.unwrap();
        assert!(transport.task.is_finished() && transport.receive().await.is_none());
    }
}
