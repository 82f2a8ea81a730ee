//! Sends the messages of the webhook: signed, tried again, and bounded. The webhook decides nothing: whatever it answers is dropped.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

use super::{
    metrics::MCPApprovalMetrics,
    webhook_message::{SIGNATURE, WebhookMessage},
    webhook_url::WebhookUrl,
};

/// The most messages that wait.
pub const QUEUE: usize = 256;
/// The most messages that are being sent at once.
const AT_ONCE: usize = 4;
/// The pauses between the tries of a message: one fewer than there are tries.
const PAUSES: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(16), Duration::from_secs(60)];
/// The time limit of a try.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause that a receiver may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 16 * 1024;
/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 64 * 1024;

/// Where messages go, and how they are signed. Files of a Secret, read anew for each try.
#[derive(Clone, Debug)]
pub struct WebhookFiles {
    /// The file of the URL, which is secret itself.
    pub url: PathBuf,
    /// The file of the key of signatures. None, or no such file: messages are not signed.
    pub secret: Option<PathBuf>,
}

/// Why a message was not delivered. Nothing of the URL but the host is in it.
#[derive(Debug)]
struct DeliveryFault {
    why: String,
    /// True if another try may help.
    again: bool,
    /// The pause that the receiver asks for.
    pause: Option<Duration>,
}

impl DeliveryFault {
    fn again(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: true, pause: None }
    }
}

/// Sends what is in the queue, for ever.
pub async fn deliver(files: WebhookFiles, mut queue: mpsc::Receiver<WebhookMessage>, metrics: MCPApprovalMetrics) {
    let (files, places) = (Arc::new(files), Arc::new(Semaphore::new(AT_ONCE)));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return std::future::pending().await };
        // Nobody is left who could ask a person.
        let Some(message) = queue.recv().await else { return std::future::pending().await };
        let (files, metrics) = (Arc::clone(&files), metrics.clone());
        tokio::spawn(async move {
            let _place = place;
            let is_delivered = send(&files, &message, &PAUSES).await;
            metrics.count_delivery(if is_delivered { "ok" } else { "failed" });
        });
    }
}

/// Sends a message, with a try more than there are pauses. Returns whether it was taken.
async fn send(files: &WebhookFiles, message: &WebhookMessage, pauses: &[Duration]) -> bool {
    let mut pauses = pauses.iter().copied();
    loop {
        let tried = timeout(LIMIT, attempt(files, message)).await;
        let fault = match tried {
            Ok(Ok(())) => return true,
            Ok(Err(fault)) => fault,
            Err(_) => DeliveryFault::again(format!("no answer within {} s", LIMIT.as_secs())),
        };
        let (approval, error) = (&message.approval, &fault.why);
        let is_over = message.ends.is_some_and(|ends| ends < Timestamp::now());
        match pauses.next().filter(|_| fault.again && !is_over) {
            Some(pause) => {
                tracing::debug!(approval, error, "the webhook did not take a message; it is tried again");
                sleep(fault.pause.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            }
            None => {
                tracing::warn!(approval, error, "the webhook does not take a message; nobody is told by it of this request");
                return false;
            }
        }
    }
}

async fn attempt(files: &WebhookFiles, message: &WebhookMessage) -> Result<(), DeliveryFault> {
    let url: WebhookUrl = read(&files.url, "url")?.trim().parse().map_err(DeliveryFault::again)?;
    let mut request = Request::post(url.path.as_str())
        .header(header::HOST, url.authority.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("toolweir-operator/", env!("CARGO_PKG_VERSION")));
    if let Some(secret) = files.secret.as_ref().filter(|secret| !is_missing(secret)) {
        let secret = read(secret, "secret")?;
        request =
            request.header(SIGNATURE, message.signature(secret.trim_end_matches(['\r', '\n']).as_bytes(), Timestamp::now()));
    }
    let body = Full::new(Bytes::from(message.body.clone()));
    let request = request.body(body).map_err(|error| DeliveryFault::again(format!("the request cannot be written: {error}")))?;
    let stream = connect(&url).await.map_err(DeliveryFault::again)?;
    if !url.tls {
        return exchange(stream, request, &url.host).await;
    }
    let config = toolweir_store::tls::client_config(toolweir_store::tls::system_roots());
    let config = config.map_err(|error| DeliveryFault::again(format!("TLS cannot be set up: {error}")))?;
    let name = ServerName::try_from(url.host.clone()).map_err(|error| DeliveryFault::again(format!("{}: {error}", url.host)))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|error| DeliveryFault::again(format!("TLS to {} fails: {error}", url.host)))?;
    exchange(stream, request, &url.host).await
}

/// Whether a Secret that is there has no such key.
fn is_missing(path: &Path) -> bool {
    path.parent().is_some_and(Path::is_dir) && matches!(path.try_exists(), Ok(false))
}

/// Reads a file of the Secret.
fn read(path: &Path, key: &str) -> Result<String, DeliveryFault> {
    let wrong = |why: String| {
        DeliveryFault::again(format!(
            "{} {why}; see that the Secret of the webhook is there and has the key {key}",
            path.display()
        ))
    };
    let size = std::fs::metadata(path).map_err(|error| wrong(format!("cannot be read ({error})")))?.len();
    if size > LARGEST_FILE {
        return Err(wrong(format!("is larger than {LARGEST_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    if text.trim().is_empty() { Err(wrong("is empty".to_owned())) } else { Ok(text) }
}

async fn connect(url: &WebhookUrl) -> Result<TcpStream, String> {
    let addresses = match url.address {
        Some(address) => vec![address],
        None => {
            let resolver = toolweir_store::dns::resolver()?;
            toolweir_store::dns::addresses(&resolver, &url.host).await.map_err(|error| format!("{}: {error}", url.host))?
        }
    };
    let mut last = format!("{} has no address", url.host);
    for address in addresses {
        match TcpStream::connect((address, url.port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("{} cannot be connected to: {error}", url.host),
        }
    }
    Err(last)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, host: &str) -> Result<(), DeliveryFault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| DeliveryFault::again(format!("{host} hangs up: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection);
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        // Some receivers count a message as taken only once its answer was read.
        let _ = Limited::new(body, LARGEST_ANSWER).collect().await;
        judge(head.status, &head.headers, host)
    };
    let answered = answered.await;
    connection.abort();
    answered
}

/// Whether an answer means that the message was taken.
fn judge(status: StatusCode, headers: &HeaderMap, host: &str) -> Result<(), DeliveryFault> {
    if status.is_success() {
        return Ok(());
    }
    if status.is_redirection() {
        let why =
            format!("{host} answers {status}, and redirects are not followed; write the URL to which it leads into the Secret");
        return Err(DeliveryFault { why, again: false, pause: None });
    }
    let again = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    let seconds = headers.get(header::RETRY_AFTER).map(HeaderValue::to_str).and_then(|text| text.ok()?.trim().parse().ok());
    Err(DeliveryFault { why: format!("{host} answers {status}"), again, pause: seconds.map(Duration::from_secs) })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Response;
    use hyper::{body::Incoming, service::service_fn};
    use tokio::net::TcpListener;

    use super::*;
    use crate::metrics::OperatorRegistry;

    type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

    /// A receiver that gives these answers, and the last one from then on.
    async fn receiver(answers: &'static [(u16, &'static str)]) -> (String, Seen) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?key=TOKEN", listener.local_addr().unwrap());
        let seen = Seen::default();
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |request: Request<Incoming>| {
                        let kept = Arc::clone(&kept);
                        async move {
                            assert_eq!(
                                (request.method().as_str(), request.uri().to_string().as_str()),
                                ("POST", "/hook?key=TOKEN")
                            );
                            let headers = request.headers().clone();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let number = {
                                let mut kept = kept.lock().unwrap();
                                kept.push((headers, body));
                                kept.len() - 1
                            };
                            let (status, header) = answers[number.min(answers.len() - 1)];
                            let mut response = Response::builder().status(status);
                            if let Some((name, value)) = header.split_once(": ") {
                                response = response.header(name, value);
                            }
                            Ok::<_, std::convert::Infallible>(response.body(Full::new(Bytes::from(vec![b'x'; 100_000]))).unwrap())
                        }
                    }),
                ));
            }
        });
        (url, seen)
    }

    /// Files of one test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, url: &str) -> (Self, WebhookFiles) {
            let path = std::env::temp_dir().join(format!("toolweir-webhook-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("url"), format!("{url}\n")).unwrap();
            std::fs::write(path.join("secret"), "hidden\n").unwrap();
            let files = WebhookFiles { url: path.join("url"), secret: Some(path.join("secret")) };
            (Self(path), files)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn message() -> WebhookMessage {
        WebhookMessage { approval: "agents/pay-x".to_owned(), ends: None, body: b"{\"text\":\"hi\"}".to_vec() }
    }

    const SHORT: [Duration; 4] = [Duration::from_millis(20); 4];

    #[tokio::test]
    async fn a_message_is_signed_and_sent_once_where_it_is_taken() {
        let (url, seen) = receiver(&[(204, "")]).await;
        let (_folder, files) = Folder::new("ok", &url);
        assert!(send(&files, &message(), &SHORT).await);
        let seen = seen.lock().unwrap();
        let [(headers, body)] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((headers["content-type"].to_str().unwrap(), body.as_ref()), ("application/json", message().body.as_slice()));
        let signature = headers[SIGNATURE].to_str().unwrap();
        let time: i64 = signature.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
        assert_eq!(signature, message().signature(b"hidden", Timestamp::from_second(time).unwrap()));
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_five_times_and_what_may_not_once() {
        for (answers, sent, tries) in [
            ([(500, ""), (429, "retry-after: 0"), (200, "")].as_slice(), true, 3),
            (&[(503, "")], false, 5),
            (&[(404, "")], false, 1),
            (&[(302, "location: http://127.0.0.1:1/")], false, 1),
        ] {
            let (url, seen) = receiver(answers).await;
            let (_folder, files) = Folder::new("tries", &url);
            let taken = send(&files, &message(), &SHORT).await;
            assert_eq!((taken, seen.lock().unwrap().len()), (sent, tries), "{answers:?}");
        }
    }

    #[tokio::test]
    async fn without_a_key_of_signatures_messages_are_sent_unsigned_and_with_an_empty_one_not_at_all() {
        let (url, seen) = receiver(&[(200, "")]).await;
        let (_folder, files) = Folder::new("unsigned", &url);
        let secret = files.secret.clone().unwrap();
        std::fs::write(&secret, "\n").unwrap();
        assert!(attempt(&files, &message()).await.unwrap_err().why.contains("is empty"));
        std::fs::remove_file(&secret).unwrap();
        assert!(attempt(&files, &message()).await.is_ok());
        let seen = seen.lock().unwrap();
        assert!(matches!(seen.as_slice(), [(headers, _)] if !headers.contains_key(SIGNATURE)), "{seen:?}");
    }

    #[tokio::test]
    async fn a_secret_that_comes_late_is_read_and_no_fault_says_the_url() {
        let (url, seen) = receiver(&[(200, "")]).await;
        let (folder, files) = Folder::new("late", "");
        let sending = tokio::spawn({
            let files = files.clone();
            async move { send(&files, &message(), &[Duration::from_millis(200); 20]).await }
        });
        sleep(Duration::from_millis(100)).await;
        std::fs::write(folder.0.join("url"), &url).unwrap();
        assert!(sending.await.unwrap());
        assert_eq!(seen.lock().unwrap().len(), 1);
        for bad in ["http://example.com/TOKEN", "https://user:TOKEN@example.com/", "ftp://x/TOKEN", "TOKEN"] {
            std::fs::write(&files.url, bad).unwrap();
            let fault = attempt(&files, &message()).await.unwrap_err();
            assert!(!fault.why.contains("TOKEN"), "{}", fault.why);
        }
        // Nothing listens on port 1.
        std::fs::write(&files.url, "http://127.0.0.1:1/TOKEN").unwrap();
        let fault = attempt(&files, &message()).await.unwrap_err();
        assert!(fault.again && !fault.why.contains("TOKEN"), "{}", fault.why);
    }

    #[tokio::test]
    async fn what_nobody_can_decide_any_more_is_not_sent_again() {
        let (url, seen) = receiver(&[(500, "")]).await;
        let (_folder, files) = Folder::new("over", &url);
        let over = WebhookMessage { ends: Some(Timestamp::UNIX_EPOCH), ..message() };
        assert!(!send(&files, &over, &SHORT).await);
        assert_eq!(seen.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_queue_is_sent_and_counted() {
        let (url, seen) = receiver(&[(200, ""), (410, "")]).await;
        let (_folder, files) = Folder::new("queue", &url);
        let registry = OperatorRegistry::new().unwrap();
        let metrics = MCPApprovalMetrics::new(&registry).unwrap();
        let (sender, queue) = mpsc::channel(QUEUE);
        let delivering = tokio::spawn(deliver(files, queue, metrics));
        for _ in 0..3 {
            sender.send(message()).await.unwrap();
        }
        let counted = || {
            let page = String::from_utf8(registry.scrape().unwrap()).unwrap();
            let of = |result: &str| {
                page.contains(&format!("webhook_deliveries_total{{result=\"{result}\"}} {}", if result == "ok" { 1 } else { 2 }))
            };
            of("ok") && of("failed")
        };
        for _ in 0..500 {
            if counted() {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert!(counted() && seen.lock().unwrap().len() == 3);
        delivering.abort();
    }
}
