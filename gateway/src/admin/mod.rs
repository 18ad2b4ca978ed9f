//! Admin address for operators: health, readiness, metrics, the running configuration. Owns that listener and its rules of
//! access; its contents come from [`AdminState`], which [`AdminView`] implements.
//! Serves no traffic of callers and shows no secret.

mod access;
mod backends;
mod body;
mod caches;
mod consumers;
mod costs;
mod dashboard;
mod history;
mod keys;
mod lasting;
mod login;
mod overview;
mod playground;
mod requests;
mod rollouts;
mod slots;
#[cfg(test)]
mod tests;
mod view;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use spillway_filter::KeptAnswers;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::access::problem;
use self::body::starting;
pub use self::caches::NoCache;
pub use self::costs::ShownCosts;
pub use self::history::{History, HistoryReport, NoHistory};
pub use self::keys::RunningKeys;
pub use self::lasting::LastingAnswer;
use self::lasting::LastingAnswers;
pub use self::login::{Login, LoginError};
pub use self::playground::{Chat, NoChat, Playground};
use self::slots::ConnectionSlots;
pub use self::view::AdminView;
use crate::descriptors::{Side, Spare, is_client_waiting, is_shortage};
use crate::handover::{HandOverReport, NoHandOver};
use crate::quality::{Example, NoExamples, NoReference, ReferenceFile};
use crate::rollout::Rollouts;
use crate::telemetry::{LogThrottle, Tail, TailFilter};

/// Time for a request header, and idle time of a connection until the next one: operators and scrapers are near.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection; scrapers open a new one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest life of a connection with an answer that lasts: longer than any such answer whose reader reads.
const LASTING_TIMEOUT: Duration = Duration::from_secs(900);
/// Time for the last answer on a connection that reached [`CONNECTION_TIMEOUT`].
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// Time for requests on connections that were open when the address closed: their clients could not know.
const LAST_REQUEST: Duration = Duration::from_millis(250);
/// Time for the answers that are being written when the process ends.
const END: Duration = Duration::from_millis(200);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest request header, in bytes.
const MAX_HEADER: usize = 16 << 10;
/// Most fields of a request header.
const MAX_FIELDS: usize = 64;

/// State that the admin address shows.
#[async_trait::async_trait]
pub trait AdminState: Send + Sync + 'static {
    /// Readiness of the gateway; the error is the reason in one word.
    fn readiness(&self) -> Result<(), &'static str>;
    /// Metrics as text, with its media type in front.
    fn metrics(&self) -> (&'static str, String);
    /// Running configuration and result of the last edit.
    fn config(&self) -> serde_json::Value;
    /// Figures of the process as a whole.
    fn overview(&self) -> serde_json::Value;
    /// Traffic of the last day.
    fn history(&self) -> &History;
    /// Built-in models and their memory.
    fn models(&self) -> serde_json::Value;
    /// The last edits of the configuration, with what each changed.
    fn edits(&self) -> serde_json::Value;
    /// Consumers, those of a tenant or all, whose names come behind `after`; `None` before the gateway is ready.
    fn consumers(&self, tenant: Option<&str>, after: Option<&str>) -> Option<serde_json::Value>;
    /// Live tail of requests; `None` before the gateway is ready.
    fn tail(&self) -> Option<Arc<Tail>>;
    /// Heads of requests that have ended lately; `None` before the gateway is ready.
    fn recent(&self) -> Option<serde_json::Value>;
    /// Sends a chat through the gateway, whose answer is passed on.
    async fn chat(&self, chat: Chat, lasting: LastingAnswer) -> Result<Response, NoChat>;
    /// Current state of all backends and their endpoints.
    fn backends(&self) -> serde_json::Value;
    /// Labels of answers by route and target.
    fn feedback(&self) -> serde_json::Value;
    /// Figures and distances of what callers ask and targets answer, for each route that is watched.
    fn quality(&self) -> serde_json::Value;
    /// Sketches of a route for a reference file.
    async fn reference(&self, route: &str) -> Result<ReferenceFile, NoReference>;
    /// Newest texts that were kept, of one route or of all.
    async fn examples(&self, route: Option<String>) -> Result<Vec<Example>, NoExamples>;
    /// Deletes the texts that were kept, of one route or of all. Returns their number.
    async fn delete_examples(&self, route: Option<String>) -> Result<usize, NoExamples>;
    /// Drains the named endpoints, or puts them back. Returns their names, each with true if its state changed; `None` if
    /// the backend does not exist.
    fn drain(&self, backend: &str, endpoint: &str, drained: bool) -> Option<Vec<(String, bool)>>;
    /// Forgets the answers that the caches of a route keep, or only counts them.
    async fn purge_cache(&self, route: &str, dry_run: bool) -> Result<KeptAnswers, NoCache>;
    /// Rollouts of the process; `None` before the gateway is ready.
    fn rollouts(&self) -> Option<Rollouts>;
    /// Keys that are made at run time; `None` before the gateway is ready.
    fn keys(&self) -> Option<RunningKeys>;
    /// Costs since the process began; `None` before the gateway is ready.
    fn costs(&self) -> Option<ShownCosts>;
    /// Begins a hand-over to a new process; returns its number.
    async fn begin_hand_over(&self) -> Result<u32, NoHandOver>;
    /// Hand-overs of this process.
    fn hand_overs(&self) -> HandOverReport;
    /// True if the bearer token is the configured one; `None` if no token is configured.
    fn token_matches(&self, token: Option<&[u8]>) -> Option<bool>;
    /// Login of persons, if configured.
    fn login(&self) -> Option<&Arc<Login>>;
    /// Records a requested change or a refused request in the audit log; `who` is `token`, `loopback`, `person NAME` or `unknown`.
    fn audit(&self, client: std::net::IpAddr, who: &str, method: &str, path: &str, status: u16);
    /// True if the address is on loopback.
    fn is_loopback(&self) -> bool;
    /// Accepted values of `Host` besides loopback names.
    fn hosts(&self) -> Vec<String>;
    /// Most open connections.
    fn max_connections(&self) -> usize;
    /// Counts connections that were closed for others.
    fn connections_dropped(&self, count: usize);
}

/// Serves until `stop` is true; then open connections have [`LAST_REQUEST`] for a request, and answers that are being written
/// [`END`] to finish.
pub async fn serve(listener: TcpListener, state: Arc<dyn AdminState>, stop: watch::Receiver<bool>) {
    let (app, most) = (router(state.clone()), state.max_connections());
    accept(listener, app, most, state, stop).await;
}

/// As [`serve`], for `/metrics` alone, without a token, on at most `most` connections.
pub async fn serve_metrics(
    listener: TcpListener,
    most: usize,
    state: Arc<dyn AdminState>,
    stop: watch::Receiver<bool>,
) {
    let app = metrics_router(state.clone());
    accept(listener, app, most, state, stop).await;
}

async fn accept(
    listener: TcpListener,
    app: Router,
    most: usize,
    state: Arc<dyn AdminState>,
    mut stop: watch::Receiver<bool>,
) {
    let slots = ConnectionSlots::new(most);
    let mut connections = JoinSet::new();
    let mut spare = Spare::new();
    let (failures, shortages) = (LogThrottle::default(), LogThrottle::default());
    let closing = watch::Sender::new(false);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => {
                spare.refill();
                continue;
            }
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(e) if is_shortage(&e) && !is_client_waiting(&listener) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            Err(e) if is_shortage(&e) => {
                Side::Admin.count_shortage();
                shortages.add(1, |times| tracing::warn!(event = "admin_descriptors_spent", error = %e, times));
                // The spare descriptor accepts the waiting connection; without it, the least used connection is closed.
                if !spare.release() {
                    state.connections_dropped(usize::from(slots.close_least_used()));
                    if let Ok(None) = tokio::time::timeout(ACCEPT_PAUSE, connections.join_next()).await {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
                continue;
            }
            Err(e) => {
                failures.add(1, |times| tracing::warn!(event = "admin_accept_failed", error = %e, times));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        spare.refill();
        let (slot, dropped) = slots.acquire(client.ip().to_canonical());
        state.connections_dropped(dropped);
        let (app, stopping) = (app.clone(), closing.subscribe());
        connections.spawn(async move {
            let slot = Arc::new(slot);
            // All connections share the router; extensions of the request carry what is of its connection.
            let asking = slot.clone();
            let lasting = LastingAnswers::default();
            let app = app.layer(axum::Extension(access::Client(client.ip())));
            let app =
                app.layer(axum::Extension(lasting.clone())).layer(middleware::map_request(move |request: Request| {
                    asking.record_request();
                    std::future::ready(request)
                }));
            tokio::select! {
                () = connection(stream, app, lasting, stopping) => {}
                () = slot.must_close() => {}
            }
        });
    }
    drop(listener);
    let mut ended = pin!(async { while connections.join_next().await.is_some() {} });
    if tokio::time::timeout(LAST_REQUEST, ended.as_mut()).await.is_err() {
        closing.send_replace(true);
        let _ = tokio::time::timeout(END, ended).await;
    }
}

async fn connection(stream: TcpStream, app: Router, lasting: LastingAnswers, mut stopping: watch::Receiver<bool>) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = pin!(connection);
    tokio::select! {
        // The connection has ended, by an error or not.
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lasting.end() => {}
        () = tokio::time::sleep(LASTING_TIMEOUT) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
}

fn router(state: Arc<dyn AdminState>) -> Router {
    let guarded = Router::new()
        .route("/", get(index))
        .route("/assets/{name}", get(asset))
        .route("/metrics", get(metrics))
        .route("/api/config", get(config))
        .route("/api/overview", get(overview))
        .route("/api/history", get(history_of))
        .route("/api/models", get(models))
        .route("/api/config/history", get(edits))
        .route("/api/consumers", get(consumers_of))
        .route("/api/requests", get(live))
        .route("/api/requests/recent", get(recent))
        .route("/api/playground/{route}", post(chat))
        .route("/api/backends", get(backends))
        .route("/api/feedback", get(feedback))
        .route("/api/quality", get(quality))
        .route("/api/quality/examples", get(examples))
        .route("/api/quality/examples", delete(delete_examples))
        .route("/api/quality/{route}/reference", get(reference))
        .route("/api/backends/{backend}/endpoints/{endpoint}/drain", post(drain))
        .route("/api/backends/{backend}/endpoints/{endpoint}/undrain", post(undrain))
        .route("/api/caches/{route}/purge", post(caches::purge))
        .route("/api/costs", get(costs::show))
        .route("/api/keys", get(keys::list))
        .route("/api/keys", post(keys::create))
        .route("/api/keys/{id}", get(keys::one))
        .route("/api/keys/{id}", delete(keys::revoke))
        .route("/api/keys/{id}/{command}", post(keys::change))
        .route("/api/upgrade", get(hand_overs))
        .route("/api/upgrade", post(hand_over))
        .route("/api/rollouts", get(rollouts::list))
        .route("/api/rollouts/{name}", get(rollouts::one))
        .route("/api/rollouts/{name}/{command}", post(rollouts::command))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), access::check))
        .layer(middleware::from_fn_with_state(state.clone(), access::audit));
    let open = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/auth/login", get(login::begin))
        .route("/auth/callback", get(login::conclude))
        .route("/auth/logout", post(login::end))
        .route("/auth/session", get(login::show))
        .method_not_allowed_fallback(wrong_method);
    open.merge(guarded).layer(middleware::map_response(add_headers)).with_state(state)
}

fn metrics_router(state: Arc<dyn AdminState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "unknown page; this address has /metrics alone") })
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::map_response(add_headers))
        .with_state(state)
}

/// Forbids browsers to store an answer that does not say how, or to guess its type.
async fn add_headers(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // What is no page of the dashboard's is none to be opened.
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

async fn ready(State(state): State<Arc<dyn AdminState>>) -> Response {
    match state.readiness() {
        Ok(()) => "ready".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn metrics(State(state): State<Arc<dyn AdminState>>) -> Response {
    let (content_type, text) = state.metrics();
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn config(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.config()).into_response()
}

async fn overview(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.overview()).into_response()
}

async fn models(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.models()).into_response()
}

/// Part of the history that is asked for.
#[derive(Deserialize)]
struct HistoryQuery {
    window: Option<String>,
    route: Option<String>,
}

async fn history_of(State(state): State<Arc<dyn AdminState>>, Query(query): Query<HistoryQuery>) -> Response {
    let window = query.window.as_deref().unwrap_or("10m");
    match state.history().read(window, query.route.as_deref()) {
        Ok(report) => axum::Json(report).into_response(),
        Err(error @ NoHistory::Window) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error) => problem(StatusCode::NOT_FOUND, &error.to_string()),
    }
}

async fn edits(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.edits()).into_response()
}

/// Consumers that are asked for.
#[derive(Deserialize)]
struct ConsumersQuery {
    tenant: Option<String>,
    after: Option<String>,
}

async fn consumers_of(State(state): State<Arc<dyn AdminState>>, Query(query): Query<ConsumersQuery>) -> Response {
    match state.consumers(query.tenant.as_deref(), query.after.as_deref()) {
        Some(report) => axum::Json(report).into_response(),
        None => starting(),
    }
}

/// Requests that are watched.
#[derive(Deserialize)]
struct LiveQuery {
    route: Option<String>,
    consumer: Option<String>,
    status: Option<String>,
}

async fn live(
    State(state): State<Arc<dyn AdminState>>,
    Extension(lasting): Extension<LastingAnswers>,
    Query(query): Query<LiveQuery>,
) -> Response {
    let LiveQuery { route, consumer, status } = query;
    let filter = TailFilter { route, consumer, status: None };
    let filter = match status.as_deref().filter(|status| !status.is_empty()) {
        None => filter,
        Some(status) => match filter.with_status(status) {
            Ok(filter) => filter,
            Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
        },
    };
    let Some(tail) = state.tail() else { return starting() };
    let busy = "as many watch requests as may: eight; close another page or stream";
    requests::stream(&tail, filter, lasting.begin()).unwrap_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, busy))
}

async fn recent(State(state): State<Arc<dyn AdminState>>) -> Response {
    state.recent().map_or_else(starting, |heads| axum::Json(heads).into_response())
}

/// Place at which a route is asked, where its own is another.
#[derive(Deserialize)]
struct ChatQuery {
    host: Option<String>,
    path: Option<String>,
}

async fn chat(
    State(state): State<Arc<dyn AdminState>>,
    Extension(lasting): Extension<LastingAnswers>,
    Path(route): Path<String>,
    Query(query): Query<ChatQuery>,
    request: Request,
) -> Response {
    if let Some(refused) = access::refuse_change(request.headers()) {
        return refused;
    }
    let (client, key) = (access::Client::of(&request), playground::key(request.headers()));
    let body = match body::bytes(request, playground::MAX_BODY).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let ChatQuery { host, path } = query;
    match state.chat(Chat { route, host, path, client, key, body }, lasting.begin()).await {
        Ok(answer) => answer,
        Err(error) => problem(error.status(), &error.to_string()),
    }
}

async fn backends(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.backends()).into_response()
}

async fn feedback(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.feedback()).into_response()
}

async fn quality(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.quality()).into_response()
}

async fn reference(State(state): State<Arc<dyn AdminState>>, Path(route): Path<String>) -> Response {
    match state.reference(&route).await {
        Ok(file) => axum::Json(file).into_response(),
        Err(error @ NoReference::Unknown) => problem(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error @ NoReference::Busy) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// Route whose examples are asked for.
#[derive(Deserialize)]
struct OfRoute {
    route: Option<String>,
}

/// Refuses to show texts of callers where everybody on the machine may ask.
fn refuse_texts(state: &dyn AdminState) -> Option<Response> {
    let has_proof = state.token_matches(None).is_some() || state.login().is_some();
    let why =
        "texts of callers are shown and deleted only with a token or a login: configure admin.token or admin.oidc";
    (!has_proof).then(|| problem(StatusCode::FORBIDDEN, why))
}

async fn examples(State(state): State<Arc<dyn AdminState>>, Query(of): Query<OfRoute>) -> Response {
    if let Some(refused) = refuse_texts(&*state) {
        return refused;
    }
    match state.examples(of.route).await {
        Ok(examples) => axum::Json(serde_json::json!({"examples": examples})).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

async fn delete_examples(
    State(state): State<Arc<dyn AdminState>>,
    headers: HeaderMap,
    Query(of): Query<OfRoute>,
) -> Response {
    if let Some(refused) = refuse_texts(&*state).or_else(|| access::refuse_change(&headers)) {
        return refused;
    }
    match state.delete_examples(of.route).await {
        Ok(deleted) => axum::Json(serde_json::json!({"deleted": deleted})).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

type Named = Path<(String, String)>;

async fn drain(State(state): State<Arc<dyn AdminState>>, headers: HeaderMap, Path(named): Named) -> Response {
    change_drain(&*state, &headers, &named, true)
}

async fn undrain(State(state): State<Arc<dyn AdminState>>, headers: HeaderMap, Path(named): Named) -> Response {
    change_drain(&*state, &headers, &named, false)
}

fn change_drain(state: &dyn AdminState, headers: &HeaderMap, named: &(String, String), drained: bool) -> Response {
    if let Some(refused) = access::refuse_change(headers) {
        return refused;
    }
    let (backend, endpoint) = named;
    let Some(found) = state.drain(backend, endpoint, drained) else {
        return problem(StatusCode::NOT_FOUND, "there is no such backend; /api/backends lists them");
    };
    if found.is_empty() {
        return problem(StatusCode::NOT_FOUND, "the backend has no such endpoint; name it as IP:PORT or by its URL");
    }
    let action = if drained { "drain" } else { "undrain" };
    for (endpoint, changed) in &found {
        tracing::info!(event = "admin_change", action, %backend, %endpoint, changed);
    }
    let endpoints: Vec<_> = found
        .into_iter()
        .map(|(endpoint, changed)| serde_json::json!({"endpoint": endpoint, "drained": drained, "changed": changed}))
        .collect();
    axum::Json(serde_json::json!({"endpoints": endpoints})).into_response()
}

async fn hand_overs(State(state): State<Arc<dyn AdminState>>) -> Response {
    axum::Json(state.hand_overs()).into_response()
}

async fn hand_over(State(state): State<Arc<dyn AdminState>>, headers: HeaderMap) -> Response {
    if let Some(refused) = access::refuse_change(&headers) {
        return refused;
    }
    match state.begin_hand_over().await {
        Ok(pid) => {
            tracing::info!(event = "admin_change", action = "upgrade", pid);
            (StatusCode::ACCEPTED, axum::Json(state.hand_overs())).into_response()
        }
        Err(error @ (NoHandOver::Starting | NoHandOver::Leaving)) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
        }
        Err(error @ (NoHandOver::UnderWay(_) | NoHandOver::FirstProcess | NoHandOver::Discovers)) => {
            problem(StatusCode::CONFLICT, &error.to_string())
        }
        Err(error @ NoHandOver::NotStarted(_)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Paths of the admin address, for a terminal.
const PATHS: &str = "spillway admin\n\n/healthz      the process lives\n/readyz       listeners and models are there\n\
    /metrics      OpenMetrics\n/api/config   the running configuration and the last edit\n\
    /api/overview the process as a whole: traffic, listeners, routes\n\
    /api/history  traffic of the last ten minutes, three hours or day: ?window=10m, 3h or 24h, &route=NAME\n\
    /api/models   built-in models: tokens a second, queue, memory\n\
    /api/config/history the last edits, with what each changed\n\
    /api/consumers consumers and tenants with what they have used: ?tenant=NAME, &after=NAME for the next\n\
    /api/keys     keys of consumers that were made at run time; POST makes one; DELETE .../{id}; POST .../{id}/rotate, /expire\n\
    /api/caches/{route}/purge POST forgets the answers that a cache keeps; ?dryRun=true counts them\n\
    /api/costs    what consumers have used and what that costs; ?format=csv for a spreadsheet\n\
    /api/requests the requests as they end, an event stream: ?route=NAME, &consumer=NAME, &status=5xx\n\
    /api/requests/recent heads of the last requests, by which `spillway diff` tries an edit\n\
    /api/playground/{route} POST of a chat, with x-spillway-playground-key for the caller's key\n\
    /api/backends the endpoints as they are now; POST .../{backend}/endpoints/{endpoint}/drain and /undrain\n\
    /api/rollouts the rollouts; /{name} with its evidence; POST .../{name}/start, /pause, /resume, /promote, /abort\n\
    /api/upgrade  hand-overs to a new process; POST begins one\n\
    /api/feedback labels of answers by route and target\n\
    /api/quality  what callers ask and targets answer, and how far it has moved; .../{route}/reference for a file;\n\
                 .../examples the texts that were kept, with a token; DELETE deletes them\n";

async fn index(headers: HeaderMap) -> Response {
    dashboard::root(&headers, PATHS)
}

async fn asset(headers: HeaderMap, Path(name): Path<String>) -> Response {
    let unknown = || problem(StatusCode::NOT_FOUND, "the dashboard has no such file; / is its page");
    dashboard::asset(&headers, &name).unwrap_or_else(unknown)
}

async fn not_found() -> Response {
    access::problem(StatusCode::NOT_FOUND, "unknown page; / lists all pages")
}

async fn wrong_method() -> Response {
    access::problem(StatusCode::METHOD_NOT_ALLOWED, "this page does not allow this method; `Allow` lists those it does")
}
