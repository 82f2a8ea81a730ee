//! Looks up a namespace at the API server, where the watch may be behind it.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::{sync::Semaphore, time::timeout};

use crate::inject::NamespaceInfo;

/// The time limit of a lookup, with the wait for its turn. Shorter than the API server waits for the webhook.
const LIMIT: Duration = Duration::from_secs(2);
/// The most lookups at once: anybody who can reach the webhook can cause some.
const PLACES: usize = 8;

/// What there is to know of a namespace, none where there is no such namespace; or why the API server did not say.
pub type NamespaceResult = Result<Option<NamespaceInfo>, String>;
type NamespaceFuture = Pin<Box<dyn Future<Output = NamespaceResult> + Send>>;

/// Asks the API server for namespaces. Cheap to clone.
#[derive(Clone)]
pub struct NamespaceLookup {
    ask: Arc<dyn Fn(&str) -> NamespaceFuture + Send + Sync>,
    places: Arc<Semaphore>,
}

impl NamespaceLookup {
    /// Creates a lookup with a client.
    pub fn new(client: &Client) -> Self {
        let api: Api<Namespace> = Api::all(client.clone());
        Self::with(move |name| {
            let (api, name) = (api.clone(), name.to_owned());
            async move {
                let found = api.get_metadata_opt(&name).await.map_err(|error| failure(&error))?;
                Ok(found.map(|found| {
                    let annotations = found.metadata.annotations.unwrap_or_default();
                    NamespaceInfo::new(found.metadata.labels.unwrap_or_default(), &annotations)
                }))
            }
        })
    }

    /// Creates a lookup with a function.
    pub fn with<F>(ask: impl Fn(&str) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = NamespaceResult> + Send + 'static,
    {
        Self { ask: Arc::new(move |name| Box::pin(ask(name))), places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// Returns what holds of a namespace now.
    ///
    /// # Errors
    /// The API server does not say, or not in time.
    pub async fn get(&self, name: &str) -> NamespaceResult {
        let asked = async {
            let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
            (self.ask)(name).await
        };
        let late = |_| Err(format!("it did not answer within {} s", LIMIT.as_secs()));
        timeout(LIMIT, asked).await.unwrap_or_else(late)
    }
}

impl fmt::Debug for NamespaceLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamespaceLookup").finish_non_exhaustive()
    }
}

/// Returns an error in words, with what to do about it.
fn failure(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; the operator's ClusterRole needs get on namespaces", status.message)
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::sync::watch;
    use toolweir_crds::select::Labels;
    use tower_service::Service;

    use super::*;

    /// An API server that answers everything so, and says what it was asked last.
    #[derive(Clone)]
    struct FixedServer {
        status: u16,
        answer: Value,
        last: watch::Sender<String>,
    }

    impl Service<Request<Body>> for FixedServer {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.last.send_replace(format!("{} {}", request.method(), request.uri()));
            let body = Full::new(Bytes::from(self.answer.to_string()));
            std::future::ready(Ok(Response::builder().status(self.status).body(body).unwrap()))
        }
    }

    fn server(status: u16, answer: Value) -> (Client, watch::Receiver<String>) {
        let (last, asked) = watch::channel(String::new());
        (Client::new(FixedServer { status, answer, last }, "default"), asked)
    }

    fn status(code: u16, message: &str) -> Value {
        let reason = if code == 404 { "NotFound" } else { "Other" };
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
    }

    #[tokio::test]
    async fn the_api_server_is_asked_for_the_one_namespace_and_not_for_what_a_cache_has() {
        let found = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {
                "name": "agents", "labels": {"toolweir.dev/inject": "enabled"},
                "annotations": {"toolweir.dev/credentials": "tokens", "other": "x"},
            },
        });
        let (client, last) = server(200, found);
        let info = NamespaceLookup::new(&client).get("agents").await.unwrap().unwrap();
        assert_eq!(info.labels, Labels::from([("toolweir.dev/inject".to_owned(), "enabled".to_owned())]));
        assert_eq!((info.credentials.as_deref(), info.token_audiences), (Some("tokens"), None));
        let asked = last.borrow().clone();
        assert!(asked.starts_with("GET ") && asked.contains("/api/v1/namespaces/agents"), "{asked}");
        // Without it the answer is the newest that there is.
        assert!(!asked.contains("resourceVersion"), "{asked}");
    }

    #[tokio::test]
    async fn what_it_does_not_say_is_no_answer() {
        let (client, _last) = server(404, status(404, "namespaces \"x\" not found"));
        assert_eq!(NamespaceLookup::new(&client).get("x").await, Ok(None));
        let (client, _last) = server(403, status(403, "namespaces \"x\" is forbidden"));
        let said = NamespaceLookup::new(&client).get("x").await.unwrap_err();
        assert_eq!(said, "namespaces \"x\" is forbidden; the operator's ClusterRole needs get on namespaces");
        let (client, _last) = server(500, status(500, "etcdserver: no leader"));
        assert!(NamespaceLookup::new(&client).get("x").await.unwrap_err().contains("no leader"));
    }

    /// One less is under way once it is dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_in_number_and_time() {
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let namespaces = NamespaceLookup::with({
            let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
            move |_| {
                let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
                async move {
                    most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _counted = Counted(under_way);
                    std::future::pending::<NamespaceResult>().await
                }
            }
        });
        let began = tokio::time::Instant::now();
        let all = futures_util::future::join_all((0..100).map(|_| namespaces.get("slow"))).await;
        assert!(all.iter().all(|answer| answer.as_ref().is_err_and(|why| why == "it did not answer within 2 s")), "{all:?}");
        assert_eq!(began.elapsed(), LIMIT);
        assert_eq!((most.load(Ordering::SeqCst), under_way.load(Ordering::SeqCst)), (PLACES, 0));
        // Their places are free again.
        assert_eq!(namespaces.places.available_permits(), PLACES);
    }
}
