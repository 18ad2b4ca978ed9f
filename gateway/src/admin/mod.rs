//! The address for operators: health, readiness, metrics, the running configuration. It owns that listener and its
//! rules of access; what it shows comes from [`AdminState`], which the server implements.
//! It never serves traffic of callers and shows no secret.

mod access;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Open connections; operators and scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// Time for a request header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// What the admin address shows.
pub trait AdminState: Send + Sync + 'static {
    /// `ready`, or in one word why not.
    fn readiness(&self) -> Result<(), &'static str>;
    /// The metrics as OpenMetrics text.
    fn metrics(&self) -> String;
    /// The running configuration and the result of the last edit.
    fn config(&self) -> serde_json::Value;
    /// Whether a bearer token opens this address; `None` when none is configured.
    fn token_matches(&self, token: Option<&[u8]>) -> Option<bool>;
    /// Whether the address is on loopback.
    fn is_loopback(&self) -> bool;
    /// Values of `Host` that are accepted besides loopback names.
    fn hosts(&self) -> Vec<String>;
}

/// Serves until `stop` is true.
pub async fn serve(listener: TcpListener, state: Arc<dyn AdminState>, mut stop: watch::Receiver<bool>) {
    let app = router(state);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let _place = place;
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        });
    }
}

fn router(state: Arc<dyn AdminState>) -> Router {
    let guarded = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/api/config", get(config))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), access::check));
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(state)
}

async fn ready(State(state): State<Arc<dyn AdminState>>) -> Response {
    match state.readiness() {
        Ok(()) => "ready".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn metrics(State(state): State<Arc<dyn AdminState>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], state.metrics()).into_response()
}

async fn config(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.config()).into_response()
}

async fn index() -> &'static str {
    "spillway admin\n\n/healthz      the process lives\n/readyz       listeners and models are there\n\
     /metrics      OpenMetrics\n/api/config   the running configuration and the last edit\n"
}

async fn not_found() -> Response {
    access::problem(StatusCode::NOT_FOUND, "there is no such page here; / lists what there is")
}

async fn wrong_method() -> Response {
    access::problem(StatusCode::METHOD_NOT_ALLOWED, "this page is only read, with GET")
}
