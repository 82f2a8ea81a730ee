//! The way to a server through the sidecar of a pod: a local port of which each connection is forwarded to the port at which the pod's
//! agent reaches its servers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use kube::Client;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{fault::SourceFault, message::ReadState};
use crate::{
    cluster::{NamespacedName, PodInfo},
    explain, forward,
};

/// The time in which the cause of a broken port-forward comes.
const LATER: Duration = Duration::from_millis(500);

/// A local port that leads to the sidecar of a pod, for as long as this lives.
#[derive(Debug)]
pub struct PodPort {
    /// The local address.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for PodPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PodPort {
    /// Opens a port to the sidecar of a pod.
    ///
    /// # Errors
    /// The pod or its sidecar does not exist or run, or a right is missing.
    pub async fn open(client: &Client, namespace: &str, pod: &str, state: &ReadState) -> anyhow::Result<Self> {
        let PodInfo { key, sidecar, proxy_port, .. } = explain::find(client, namespace, pod).await?;
        if !sidecar.unwrap_or_default().running {
            bail!("the sidecar of pod {key} does not run; kubectl -n {namespace} describe pod {} says why", key.name);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot open a local port")?;
        let address = listener.local_addr().context("cannot open a local port")?;
        let task = tokio::spawn(serve(listener, client.clone(), key, proxy_port, state.clone()));
        Ok(Self { address, task })
    }
}

async fn serve(listener: TcpListener, client: Client, pod: NamespacedName, port: u16, state: ReadState) {
    // They end with the task.
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let (client, pod, state) = (client.clone(), pod.clone(), state.clone());
        connections.spawn(async move {
            if let Err(error) = join(&mut stream, &client, &pod, port).await {
                state.faults.note(SourceFault::Forward(format!("{error:#}")));
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Joins a connection with a port of a pod.
async fn join(near: &mut TcpStream, client: &Client, pod: &NamespacedName, port: u16) -> anyhow::Result<()> {
    let forward::PortForward { mut stream, broken, forwarder } = forward::open(client, pod, port).await?;
    let told = async {
        match broken.await.filter(|why| !why.trim().is_empty()) {
            Some(why) => why,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(told);
    let why = tokio::select! {
        copied = copy_bidirectional(near, &mut stream) => match copied {
            // Whoever ended the connection, HTTP says it.
            Ok((_, 1..)) => None,
            // The kubelet may report the cause on a separate channel, a little later.
            _ => timeout(LATER, &mut told).await.ok(),
        },
        why = &mut told => Some(why),
    };
    forwarder.abort();
    match why {
        Some(why) => bail!("pod {pod}, port {port}: {}; does its sidecar run?", why.trim()),
        None => Ok(()),
    }
}
