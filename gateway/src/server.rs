//! Start and end of the process, and what all parts share while it runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use sha2::{Digest, Sha256};
use spillway_config::Loaded;
use spillway_config::schema::{Config, LogFormat};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::admin::{self, AdminState};
use crate::balancing::Supervisor;
use crate::downstream::Downstream;
use crate::limits::Limits;
use crate::listener::{ListenError, ListenerSet};
use crate::off_loop::OffLoop;
use crate::reload::{LastEdit, Reloader, Seen};
use crate::signals::Signals;
use crate::snapshot::{Compiler, Snapshot, SnapshotError};
use crate::telemetry::{Audit, LogWriter, Metrics, Samples};
use crate::tls::Acme;
use crate::upstream::{BodyBudget, Connector, Via};

/// How often the end of a drain is looked for.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Time for requests to end with an error when the time of a drain is over.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Time for connections without requests to be closed in order.
const GOODBYE: Duration = Duration::from_millis(500);

/// The gateway cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be run.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin address cannot be opened.
    #[error("admin: cannot listen on {address}: {source} (another process may have the port; `ss -ltnp` shows which)")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A secret of the admin address is missing.
    #[error("admin.token: {0}")]
    Token(String),
    /// The system refused something.
    #[error("{0}")]
    System(String),
}

/// What all requests share.
pub struct Gateway {
    /// The running configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// Upstream connections.
    pub connector: Connector,
    /// How this process signs.
    pub via: Via,
    /// Memory for bodies.
    pub bodies: Arc<BodyBudget>,
    /// Where large bodies are read.
    pub off_loop: Arc<OffLoop>,
    /// State of all answers to clients.
    pub downstream: Arc<Downstream>,
    /// Series.
    pub metrics: Arc<Metrics>,
    /// Certificates that are obtained.
    pub acme: Arc<Acme>,
    /// Refused credentials and changes by operators.
    pub audit: Arc<Audit>,
    /// Where lines go.
    pub log: LogWriter,
    /// How they are written.
    pub log_format: LogFormat,
    running: AtomicUsize,
    connections: AtomicUsize,
}

impl Gateway {
    /// Counts a request until what is returned is dropped.
    pub fn enter(&self) -> impl Drop + use<'_> {
        Counted::new(&self.running)
    }

    /// Counts a client's connection until what is returned is dropped.
    pub fn connect(&self) -> impl Drop + use<'_> {
        Counted::new(&self.connections)
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }
}

struct Counted<'g>(&'g AtomicUsize);

impl<'g> Counted<'g> {
    fn new(count: &'g AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the admin address shows, also before the gateway is ready.
struct Shown {
    gateway: ArcSwap<Option<Arc<Gateway>>>,
    listeners: ArcSwapOption<ListenerSet>,
    draining: AtomicBool,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    last_edit: Arc<ArcSwap<LastEdit>>,
    token: Option<[u8; 32]>,
    address: SocketAddr,
    hosts: Vec<String>,
    max_connections: usize,
}

impl AdminState for Shown {
    fn readiness(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Acquire) {
            Err("draining")
        } else if self.gateway.load().is_none() {
            Err("starting")
        } else {
            Ok(())
        }
    }
    fn metrics(&self) -> String {
        match self.gateway.load().as_ref() {
            None => self.metrics.encode(&Samples::default()),
            Some(gateway) => {
                let snapshot = gateway.snapshot.load();
                let engines: Vec<_> = snapshot.models.iter().map(|model| model.sample()).collect();
                let (store_up, gateways) = snapshot.limits.store_seen();
                self.metrics.limit_store_up.set(store_up.into());
                self.metrics.limit_store_gateways.set(gateways.into());
                self.metrics.buffered_bytes.set(i64::try_from(gateway.bodies.used()).unwrap_or(i64::MAX));
                let unread = gateway.downstream.answers.used();
                self.metrics.buffered_answer_bytes.set(i64::try_from(unread).unwrap_or(i64::MAX));
                let endpoints = crate::balancing::samples(&snapshot.backends);
                let backends = crate::balancing::backend_samples(&snapshot.backends);
                let shown = self.listeners.load().as_ref().map(|listeners| listeners.certificates());
                let certificates: Vec<_> =
                    shown.into_iter().flatten().chain(snapshot.certificates.iter().cloned()).collect();
                let budgets = snapshot.identity.budgets();
                let log_dropped = gateway.log.dropped();
                self.metrics.encode(&Samples {
                    engines: &engines,
                    model_memory: (snapshot.models.memory().taken(), snapshot.models.memory().limit()),
                    backends: &backends,
                    endpoints: &endpoints,
                    certificates: &certificates,
                    budgets: &budgets,
                    log_dropped,
                })
            }
        }
    }
    fn config(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let running = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        serde_json::json!({
            "generation": running.as_ref().map(|snapshot| snapshot.generation),
            "running": running.as_ref().map(|snapshot| &snapshot.shown),
            "lastEdit": *self.last_edit.load_full(),
        })
    }
    fn backends(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let running = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        let reports = running.map(|snapshot| crate::balancing::reports(&snapshot.backends)).unwrap_or_default();
        serde_json::json!({ "backends": reports })
    }
    fn drain(&self, backend: &str, endpoint: &str, drained: bool) -> Option<Vec<(String, bool)>> {
        let gateway = self.gateway.load();
        let snapshot = gateway.as_ref().as_ref()?.snapshot.load_full();
        let backend = snapshot.backends.iter().find(|known| *known.name == *backend)?;
        Some(crate::balancing::drain(backend, endpoint, drained))
    }
    fn token_matches(&self, token: Option<&[u8]>) -> Option<bool> {
        let expected = self.token.as_ref()?;
        let shown: [u8; 32] = Sha256::digest(token.unwrap_or_default()).into();
        Some(token.is_some() && bool::from(shown.ct_eq(expected)))
    }
    fn audit(&self, client: std::net::IpAddr, who: &str, method: &str, path: &str, status: u16) {
        self.audit.admin(client, who, method, path, status);
    }
    fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }
    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }
    fn max_connections(&self) -> usize {
        self.max_connections
    }
    fn connections_dropped(&self, count: usize) {
        if count > 0 {
            self.metrics.admin_connections_dropped.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Judges a configuration that [`crate::reload::read`] accepts, by the code that compiles it to be run; gives every reason
/// not to run it. Opens no socket and no device, asks for no name and writes nothing. `models_in_full` reads the
/// tokenizers and templates of models too, and adds up their memory.
pub async fn judge(loaded: &Loaded, models_in_full: bool) -> Result<(), Vec<String>> {
    let config = &loaded.config;
    let mut errors = Vec::new();
    errors.extend(token_of(config).err().map(|e| e.to_string()));
    let written = config.clone();
    let plans = tokio::task::spawn_blocking(move || {
        crate::listener::plans(&written, &Acme::new(Arc::new(Metrics::new()))).map(|_| ())
    });
    match plans.await {
        Ok(plans) => errors.extend(plans.err().into_iter().flatten()),
        Err(e) => errors.push(e.to_string()),
    }
    let compiler = Compiler::for_judging(config, models_in_full);
    errors.extend(compiler.compile(loaded, None).await.err().into_iter().flat_map(|e| e.0));
    if errors.is_empty() { Ok(()) } else { Err(errors.iter().map(|error| loaded.origins.redact(error)).collect()) }
}

/// Digest of the token of the admin address, where it has one.
fn token_of(config: &Config) -> Result<Option<[u8; 32]>, ServeError> {
    let Some(token) = config.admin.as_ref().and_then(|admin| admin.token.as_ref()) else { return Ok(None) };
    let token = token.resolve(&|name| std::env::var(name).ok()).map_err(|e| ServeError::Token(e.to_string()))?;
    Ok(Some(Sha256::digest(token.as_bytes()).into()))
}

/// Runs the gateway until it is told to end.
///
/// The order: the admin address answers first, so that a slow start can be watched; then everything is compiled and
/// models are loaded; ports are bound before that, so that a port in use is told at once; requests are served last.
///
/// SIGTERM and SIGINT end it at any time: at once while it starts, after the drain once requests are served.
pub async fn serve(
    path: PathBuf,
    loaded: Loaded,
    seen: Seen,
    log: LogWriter,
    cache_dir: Option<PathBuf>,
    mut signals: Signals,
) -> Result<(), ServeError> {
    let config = &loaded.config;
    crate::descriptors::reserve(config.limits.reserved_descriptors);
    let metrics = Arc::new(Metrics::new());
    let last_edit = Arc::new(ArcSwap::from_pointee(LastEdit::started(&path)));
    let stop_admin = watch::Sender::new(false);
    let audit = Arc::new(Audit::new(&config.telemetry.audit, log.clone(), metrics.clone()));
    let shown = open_admin(config, &metrics, audit, &last_edit, &stop_admin).await?;

    let listeners = Arc::new(ListenerSet::default());
    let limits = Limits::new(config.limits.limit_keys, metrics.clone());
    let registry = spillway_filters::registry();
    let downstream = Arc::new(Downstream::new(config.limits.buffered_answers.0, metrics.write_timeouts.clone()));
    let compiler = Compiler::new(registry, metrics.clone(), limits.clone(), downstream.clone(), cache_dir);
    let compiler = Arc::new(compiler);
    let acme = Arc::new(Acme::new(metrics.clone()));
    let plans = crate::listener::plans(config, &acme).map_err(SnapshotError)?;
    let prepared = listeners.prepare(&plans)?;
    let compiled = match signals.unless_ended(compiler.compile(&loaded, None)).await {
        Ok(compiled) => compiled,
        Err(signal) => {
            tracing::info!(event = "stopping", signal, "it had not begun to serve");
            stop_admin.send_replace(true);
            tracing::info!(event = "stopped");
            log.flush();
            return Ok(());
        }
    };
    let snapshot = compiled?;

    snapshot.adoptions.run();
    let supervisor = Arc::new(Supervisor::default());
    supervisor.apply(std::mem::take(&mut *snapshot.cares.lock()));
    let gateway = Arc::new(Gateway {
        bodies: Arc::new(BodyBudget::new(
            config.limits.buffered_bodies.0,
            config.limits.buffered_bodies_per_caller.0,
            &metrics,
        )),
        off_loop: Arc::new(OffLoop::new(&metrics)),
        downstream,
        snapshot: ArcSwap::from_pointee(snapshot),
        connector: Connector::default(),
        via: Via::new(),
        metrics: metrics.clone(),
        acme,
        audit: shown.audit.clone(),
        log: log.clone(),
        log_format: config.telemetry.logs.format,
        running: AtomicUsize::new(0),
        connections: AtomicUsize::new(0),
    });
    listeners.commit(prepared, &gateway);
    metrics.reloaded_at.set(unix_seconds());
    shown.listeners.store(Some(listeners.clone()));
    shown.gateway.store(Arc::new(Some(gateway.clone())));
    tracing::info!(event = "ready", version = env!("CARGO_PKG_VERSION"), config = %path.display());

    let reloader = Reloader {
        path,
        admin: config.admin.clone(),
        log_format: config.telemetry.logs.format,
        buffered_answers: config.limits.buffered_answers,
        limit_keys: config.limits.limit_keys,
        model_memory: config.limits.model_memory,
        gateway: gateway.clone(),
        compiler,
        listeners: listeners.clone(),
        supervisor: supervisor.clone(),
        last_edit,
    };
    let (reload, edits) = tokio::sync::mpsc::channel(1);
    let watching = tokio::spawn(reloader.run(seen, edits));
    wait_for_the_end(&reload, &mut signals).await;

    shown.draining.store(true, Ordering::Release);
    watching.abort();
    gateway.acme.stop();
    drain(&gateway, &listeners, &mut signals).await;
    supervisor.stop();
    stop_admin.send_replace(true);
    let _ = tokio::task::spawn_blocking(move || limits.close()).await;
    let tracer = gateway.snapshot.load().tracer.clone();
    let _ = tokio::task::spawn_blocking(move || tracer.flush()).await;
    tracing::info!(event = "stopped");
    log.flush();
    Ok(())
}

async fn open_admin(
    config: &Config,
    metrics: &Arc<Metrics>,
    audit: Arc<Audit>,
    last_edit: &Arc<ArcSwap<LastEdit>>,
    stop: &watch::Sender<bool>,
) -> Result<Arc<Shown>, ServeError> {
    let written = config.admin.as_ref();
    let token = token_of(config)?;
    let address = written.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), |admin| admin.address.0);
    let shown = Arc::new(Shown {
        gateway: ArcSwap::from_pointee(None),
        listeners: ArcSwapOption::empty(),
        draining: AtomicBool::new(false),
        metrics: metrics.clone(),
        audit,
        last_edit: last_edit.clone(),
        token,
        address,
        hosts: written.map(|admin| admin.hosts.clone()).unwrap_or_default(),
        max_connections: written.map_or(1, |admin| usize::try_from(admin.max_connections.get()).unwrap_or(usize::MAX)),
    });
    if written.is_some() {
        let failed = |source| ServeError::Admin { address, source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tracing::info!(event = "admin_listening", address = %local);
        tokio::spawn(admin::serve(listener, shown.clone(), stop.subscribe()));
    }
    Ok(shown)
}

/// Waits for SIGTERM or SIGINT; SIGHUP reloads.
async fn wait_for_the_end(reload: &tokio::sync::mpsc::Sender<()>, signals: &mut Signals) {
    let mut hang_up = signals.take_hang_up();
    let name = loop {
        let asked = async {
            match &mut hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            name = signals.end() => break name,
            _ = asked => {
                // One reload that waits stands for all that were asked for meanwhile.
                let _ = reload.try_send(());
            }
        }
    };
    tracing::info!(event = "stopping", signal = name);
}

/// Lets running requests finish, up to the limit; then those that still run are ended, event streams with an error event,
/// requests without an answer with 503. A further SIGINT, as a person at a terminal sends it, ends the wait; a further
/// SIGTERM does not, because supervisors repeat and forward it.
async fn drain(gateway: &Gateway, listeners: &ListenerSet, signals: &mut Signals) {
    listeners.stop();
    let limit = gateway.snapshot.load().drain_timeout;
    let started = Instant::now();
    let again = signals.end_at_once();
    tokio::pin!(again);
    while gateway.running() > 0 {
        if started.elapsed() >= limit {
            tracing::warn!(event = "drain_timeout", requests = gateway.running(), seconds = limit.as_secs_f64());
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(DRAIN_POLL) => {}
            () = &mut again => break,
        }
    }
    if gateway.running() > 0 {
        gateway.downstream.ending.begin();
        wait_while(LAST_WORDS, || gateway.running() > 0).await;
    }
    // The last answer is written; its connection needs a moment to be closed in order.
    tokio::time::sleep(DRAIN_POLL).await;
    wait_while(GOODBYE, || gateway.connections.load(Ordering::Acquire) > 0).await;
}

async fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) {
    let started = Instant::now();
    while goes_on() && started.elapsed() < limit {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

pub(crate) fn unix_seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Checks of files that a configuration names.
pub struct ModelFiles;

impl spillway_config::FileChecks for ModelFiles {
    fn model(&self, path: &Path) -> Result<(), String> {
        spillway_engine::inspect(path).map(|_| ()).map_err(|e| e.to_string())
    }
    fn certificate(&self, cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, String> {
        crate::tls::check_pair(cert, key, server).map_err(|e| e.to_string())
    }
    fn authorities(&self, path: &Path) -> Result<(), String> {
        crate::tls::check_authorities(path).map_err(|e| e.to_string())
    }
}
