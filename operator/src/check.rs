//! `toolweir-operator check`: checks that an operator answers. `helm test` runs it in a pod of its own.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// The time limit of each request.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a connection that fails is tried again, and the pause before. What enforces network policies refuses a pod that has just started
/// until it knows of it.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// The largest answer that is read, in bytes.
const LARGEST: usize = 1024 * 1024;

/// Checks that the operator behind a Service is ready, and that both of its TLS ports show a certificate for the
/// Service's name that its own authorities signed. Prints a line for each.
///
/// # Errors
/// A check fails.
pub async fn check(service: &str, namespace: &str) -> anyhow::Result<()> {
    let host = format!("{service}.{namespace}.svc");
    let address = resolve(&host).await.with_context(|| format!("{host} cannot be resolved"))?;
    let ready = get(address, &host, "/readyz").await.context("port 8080, /readyz")?;
    println!("ok: http://{host}:8080/readyz says {}", String::from_utf8_lossy(&ready).trim());
    let bundle = get(address, &host, "/ca.pem").await.context("port 8080, /ca.pem")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bundle) {
        roots.add(certificate.context("/ca.pem holds no PEM")?).context("/ca.pem holds no certificate of an authority")?;
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(toolweir_store::tls::client_config(roots)?));
    for (port, what) in [(443, "the webhooks"), (8444, "the policy stream")] {
        let connect = async {
            let stream = connect(address, port).await.context("it cannot be connected to")?;
            let name = ServerName::try_from(host.clone())?;
            connector.connect(name, stream).await.context("its certificate is not in order")
        };
        timeout(LIMIT, connect).await.context("no answer in time")?.with_context(|| format!("port {port}, {what}"))?;
        println!("ok: {host}:{port}, {what}, shows a certificate of the operator's authority");
    }
    Ok(())
}

/// Resolves the name of a Service without the C library, which a static program lacks.
async fn resolve(host: &str) -> anyhow::Result<IpAddr> {
    let resolver = toolweir_store::dns::resolver().map_err(anyhow::Error::msg)?;
    let found = timeout(LIMIT, toolweir_store::dns::addresses(&resolver, host)).await??;
    found.into_iter().next().context("it has no address")
}

async fn connect(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let mut left = TRIES;
    loop {
        match TcpStream::connect((address, port)).await {
            Err(_) if left > 0 => left -= 1,
            connected => return connected,
        }
        sleep(PAUSE).await;
    }
}

async fn get(address: IpAddr, host: &str, path: &str) -> anyhow::Result<Bytes> {
    let ask = async {
        let stream = connect(address, 8080).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!("the answer is {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    timeout(LIMIT, ask).await.context("no answer in time")?
}
