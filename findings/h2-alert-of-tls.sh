#!/usr/bin/env bash
# h2 0.4.20 below hyper 1.12.0, against HTTP/1.1 of the same hyper: the error of a connection that TLS ended with an alert.
#
# With TLS 1.3 a server refuses a client without a certificate after the handshake, so the alert arrives as an error of the first read.
# Over HTTP/1.1 hyper hands that error on: its source is the io::Error of the stream, and in that is the rustls::Error with the alert. A
# program can tell "it wants a certificate" from "it hung up" by type. Over HTTP/2 it cannot: h2 keeps the kind and the text of an
# io::Error and drops the error in it, so what hyper hands on is an io::Error of the same kind that holds a text. The same client, server
# and alert; which of the two happens is decided by ALPN.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cat >"$work/Cargo.toml" <<'END'
[package]
name = "alert"
version = "0.0.0"
edition = "2024"

[dependencies]
h2 = "=0.4.20" # as hyper's dependency
http-body-util = "=0.1.5"
hyper = { version = "=1.12.0", features = ["client", "http1", "http2"] }
hyper-util = { version = "=0.1.21", features = ["tokio"] }
rcgen = { version = "=0.14.10", default-features = false, features = ["ring"] }
rustls = { version = "=0.23.46", default-features = false, features = ["ring", "std"] }
tokio = { version = "=1.54.1", features = ["macros", "net", "rt", "time"] }
tokio-rustls = { version = "=0.26.6", default-features = false, features = ["ring"] }

[profile.dev]
debug = false
END
cat >"$work/src/main.rs" <<'END'
use std::{error::Error, io, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Failure = Box<dyn Error + Send + Sync>;

/// The alert in an error, by type, and the text of its last source.
fn look<'a>(mut error: &'a (dyn Error + 'static)) -> (Option<&'a rustls::Error>, String) {
    loop {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return (Some(found), found.to_string());
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
        match inner.or_else(|| error.source()) {
            Some(next) => error = next,
            None => return (None, error.to_string()),
        }
    }
}

async fn ask(protocol: &'static str) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let roots = Arc::new(roots);
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut server = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.clone()).build()?)
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    server.alpn_protocols = vec![protocol.into()];
    let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![protocol.into()];

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // The client has no certificate, so this fails, with an alert.
        let refused = TlsAcceptor::from(Arc::new(server)).accept(stream).await.map(drop);
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(refused);
    });
    let stream = TlsConnector::from(Arc::new(client)).connect("localhost".try_into()?, TcpStream::connect(address).await?).await?;
    let request = Request::get("https://localhost/").header("host", "localhost").body(Empty::<Bytes>::new())?;
    let failed = if protocol == "h2" {
        let (mut sender, driver) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driver = tokio::spawn(driver);
        let _ = sender.send_request(request).await;
        driver.await?.unwrap_err()
    } else {
        let (mut sender, driver) = conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(driver);
        let sent = sender.send_request(request).await;
        match driver.await? {
            Err(failed) => failed,
            Ok(()) => sent.unwrap_err(),
        }
    };
    let (alert, text) = look(&failed);
    println!("{protocol}: as a type: {alert:?}; as a text: {text}");
    let error = failed.source().and_then(|source| source.downcast_ref::<io::Error>());
    println!("{protocol}: hyper's source is an io::Error of kind {:?}", error.map(io::Error::kind));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    ask("http/1.1").await?;
    ask("h2").await
}
END
cd "$work"
cargo run --quiet | tee said
grep -qx 'http/1.1: as a type: Some(AlertReceived(CertificateRequired)); as a text: received fatal alert: .*' said
grep -qx 'h2: as a type: None; as a text: .*received fatal alert: .*' said
[ "$(grep -cE "^(http/1.1|h2): hyper's source is an io::Error of kind Some\(InvalidData\)$" said)" = 2 ]
echo "as described"

# http/1.1: as a type: Some(AlertReceived(CertificateRequired)); as a text: received fatal alert: CertificateRequired
# http/1.1: hyper's source is an io::Error of kind Some(InvalidData)
# h2: as a type: None; as a text: received fatal alert: CertificateRequired
# h2: hyper's source is an io::Error of kind Some(InvalidData)
