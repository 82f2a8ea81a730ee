//! The two small servers beside the proxy: metrics and health for the cluster, and administration for this machine.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use crate::{explain, governor::Governor};

/// Changes the log level and gives the one in force.
pub type LogLevel = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// What the servers answer from.
#[derive(Clone)]
pub struct State {
    /// The policies in force and their metrics.
    pub governor: Arc<Governor>,
    /// Turns true when the sidecar stops.
    pub stopping: watch::Receiver<bool>,
    /// The log level.
    pub log_level: LogLevel,
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// `/metrics`, `/healthz` and `/readyz`, for the cluster.
    Metrics,
    /// `/policy`, `/limits`, `/explain` and `/log-level`, for this machine.
    Admin,
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, face: Face, state: State) {
    let questions = Arc::new(Semaphore::new(explain::AT_ONCE));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, ?face, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (state, questions) = (state.clone(), Arc::clone(&questions));
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, face, state.clone(), Arc::clone(&questions)));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(10)).max_buf_size(16 * 1024);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, ?face, "connection");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    face: Face,
    state: State,
    questions: Arc<Semaphore>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let answer = match (face, &parts.method, parts.uri.path()) {
        (Face::Metrics, &Method::GET, "/metrics") => match state.governor.metrics.scrape(&state.governor).await {
            Ok(text) => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        (Face::Metrics, &Method::GET, "/healthz") => plain(StatusCode::OK, "ok"),
        // It is not ready before a policy is in force, nor once it drains.
        (Face::Metrics, &Method::GET, "/readyz") if *state.stopping.borrow() => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "stopping")
        }
        (Face::Metrics, &Method::GET, "/readyz") => match state.governor.serves() {
            Ok(()) => plain(StatusCode::OK, "ready"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        (Face::Admin, _, _) if !local(&parts) => plain(StatusCode::FORBIDDEN, "the Host header is not local"),
        (Face::Admin, &Method::GET, "/policy") => {
            let in_force = state.governor.in_force();
            let age = state.governor.policy_age().as_secs_f64();
            json(&json!({
                "version": in_force.version,
                "ageSeconds": age,
                "policies": in_force.policies,
                "problems": in_force.problems,
                "sharedStore": shared_store(&state.governor),
            }))
        }
        (Face::Admin, &Method::GET, "/limits") => {
            let in_force = arc_swap::Guard::into_inner(state.governor.in_force());
            let seen = state.governor.seen(&in_force).await;
            json(&json!({"limits": in_force.engine.limits(state.governor.now(), &seen)}))
        }
        (Face::Admin, &Method::POST, "/explain") => match explain::explain(&state.governor, &questions, body).await {
            Ok(answer) => match serde_json::to_value(&answer) {
                Ok(answer) => json(&answer),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            Err((status, why)) => plain(status, &why),
        },
        (Face::Admin, &Method::GET, "/log-level") => level(&state, None),
        (Face::Admin, &Method::PUT, "/log-level") => match Limited::new(body, 64).collect().await {
            Ok(body) => level(&state, Some(&String::from_utf8_lossy(&body.to_bytes()))),
            Err(_) => plain(StatusCode::PAYLOAD_TOO_LARGE, "write one word: off, error, warn, info, debug or trace"),
        },
        (Face::Metrics, ..) => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
        (Face::Admin, ..) => plain(StatusCode::NOT_FOUND, "there are /policy, /limits, /explain (POST) and /log-level"),
    };
    Ok(answer)
}

/// The state of the shared store; nothing where there is none.
fn shared_store(governor: &Governor) -> Option<serde_json::Value> {
    let store = governor.store().filter(|store| store.is_configured())?;
    let error = store.failure().map(|error| json!({"fault": error.fault.as_str(), "message": error.message}));
    Some(json!({"state": store.state(), "error": error}))
}

/// Whether the request names this machine, which a page of another origin cannot make it do.
fn local(parts: &http::request::Parts) -> bool {
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    (name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()) && !parts.headers.contains_key(header::ORIGIN)
}

fn level(state: &State, new: Option<&str>) -> Response<Full<Bytes>> {
    match (state.log_level)(new.map(str::trim)) {
        Ok(level) => plain(StatusCode::OK, &level),
        Err(error) => plain(StatusCode::BAD_REQUEST, &error),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n").into_bytes())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Binds an address, with an error that names the flag.
///
/// # Errors
/// The address cannot be bound.
pub async fn bind(address: &str, flag: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{flag} {address}: {error}; name another address with {flag}")))
}
