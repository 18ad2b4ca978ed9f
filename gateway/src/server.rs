//! Start and end of the process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use sha2::{Digest, Sha256};
use spillway_config::schema::{Admin, Config};
use spillway_config::{Further, Loaded};
use spillway_filter::Registry;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminView, History, Playground};
use crate::audit::Audit;
use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::connect::Connector;
#[cfg(feature = "kubernetes")]
use crate::discovery::Discovery;
use crate::discovery::Offer;
use crate::downstream::Downstream;
use crate::edits::Edits;
use crate::exchange::BodyBudget;
use crate::gateway::{Gateway, RunningCounts};
use crate::limits::Limits;
use crate::listener::{FIRST_HEAD, ListenError, ListenerSet};
use crate::load::FileStates;
use crate::off_loop::OffLoop;
use crate::pipeline::Prober;
use crate::reload::{Discovered, Reloader};
use crate::rollout;
use crate::signals::Signals;
use crate::snapshot::{Compiler, SnapshotError};
use crate::telemetry::{LogWriter, Metrics};
use crate::tls::Acme;
use crate::upstream::Via;
use crate::workers::Workers;

/// Time between two looks at the progress of a drain: no request waits for it.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Time for requests to end with an error after the drain timeout.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for idle connections to close in order.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Reason why the gateway cannot start or continue.
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
        /// Configured address.
        address: SocketAddr,
        /// Reason.
        source: std::io::Error,
    },
    /// The address of the metrics cannot be opened.
    #[error(
        "telemetry.metrics: cannot listen on {address}: {source} (another process may have the port; `ss -ltnp` shows which)"
    )]
    Metrics {
        /// Configured address.
        address: SocketAddr,
        /// Reason.
        source: std::io::Error,
    },
    /// The token of the admin address cannot be read.
    #[error("admin.token: {0}")]
    Token(String),
    /// The API server of Kubernetes cannot be used.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Discovery(#[from] crate::discovery::DiscoveryError),
    /// The system refused a resource.
    #[error("{0}")]
    System(String),
}

/// Discovery that runs; nothing without `discovery`, or in a build without a client for Kubernetes, whose check refuses it.
struct Discoverer {
    #[cfg(feature = "kubernetes")]
    running: Option<Discovery>,
}

impl Discoverer {
    async fn stop(self) {
        #[cfg(feature = "kubernetes")]
        if let Some(running) = self.running {
            running.stop().await;
        }
    }
}

#[cfg(feature = "kubernetes")]
async fn discover(
    config: &Config,
    offers: mpsc::Sender<Offer>,
    edited: watch::Receiver<u64>,
    synced: watch::Sender<bool>,
    metrics: &Arc<Metrics>,
) -> Result<Discoverer, ServeError> {
    let Some(settings) = config.discovery.kubernetes.clone() else { return Ok(Discoverer { running: None }) };
    let running = Discovery::start(settings, offers, edited, synced, metrics.clone()).await?;
    Ok(Discoverer { running: Some(running) })
}

#[cfg(not(feature = "kubernetes"))]
async fn discover(
    _: &Config,
    _: mpsc::Sender<Offer>,
    _: watch::Receiver<u64>,
    _: watch::Sender<bool>,
    _: &Arc<Metrics>,
) -> Result<Discoverer, ServeError> {
    Ok(Discoverer {})
}

/// Validates a configuration that [`crate::load::read`] accepts, with the code that compiles it to run; returns every reason
/// not to run it. Opens no socket and no device, resolves no name and writes nothing. With `models_in_full`, tokenizers and
/// templates of models are read too, and their memory is added up.
pub async fn judge(loaded: &Loaded, registry: &Arc<Registry>, models_in_full: bool) -> Result<(), Vec<String>> {
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
    let compiler = Compiler::for_judging(config, registry.clone(), models_in_full);
    errors.extend(compiler.compile(loaded, None).await.err().into_iter().flat_map(|e| e.0));
    if errors.is_empty() { Ok(()) } else { Err(errors.iter().map(|error| loaded.origins.redact(error)).collect()) }
}

/// Digest of the token of the admin address, if configured.
fn token_of(config: &Config) -> Result<Option<[u8; 32]>, ServeError> {
    let Some(token) = config.admin.as_ref().and_then(|admin| admin.token.as_ref()) else { return Ok(None) };
    let token = crate::credentials::secret(token).map_err(|e| ServeError::Token(e.to_string()))?;
    Ok(Some(Sha256::digest(token.as_bytes()).into()))
}

/// Runs the gateway until a signal ends it.
///
/// The admin address opens first, so that a slow start can be watched. Then ports are bound, so that a port in use is
/// reported at once. Then the snapshot is compiled and models are loaded; requests are served last.
///
/// SIGTERM and SIGINT end the gateway at any time: at once during the start, after the drain once requests are served.
pub async fn serve(
    path: PathBuf,
    loaded: Loaded,
    states: FileStates,
    registry: Arc<Registry>,
    log: LogWriter,
    cache_dir: Option<PathBuf>,
    mut signals: Signals,
) -> Result<(), ServeError> {
    let config = &loaded.config;
    crate::descriptors::adopt(config);
    let metrics = Arc::new(Metrics::new());
    let edits = Arc::new(Edits::started(&path));
    let stop_admin = watch::Sender::new(false);
    let audit = Arc::new(Audit::new(&config.telemetry.audit, log.clone(), metrics.clone()));
    let has_discovery = config.has_discovery();
    let (synced, discovered) = watch::channel(!has_discovery);
    let view = open_admin(config, &metrics, audit, &edits, &stop_admin, discovered).await?;

    let (workers, _runtimes) = Workers::start(&Handle::current())
        .map_err(|e| ServeError::System(format!("the workers cannot be started: {e}")))?;
    let _watched = workers.watch(&metrics.process.workers_stalled);
    let listeners = Arc::new(ListenerSet::new(workers));
    let limits = Limits::new(config.limits.limit_keys, metrics.clone());
    let downstream =
        Arc::new(Downstream::new(config.limits.buffered_answers.0, metrics.process.write_timeouts.clone()));
    let compiler = Compiler::new(registry, metrics.clone(), limits.clone(), downstream.clone(), cache_dir);
    let contents = compiler.contents.clone();
    let (notifier, notices) = (compiler.notifier.clone(), compiler.rollouts.subscribe());
    let compiler = Arc::new(compiler);
    let acme = Arc::new(Acme::new(metrics.clone()));
    let plans = crate::listener::plans(config, &acme).map_err(SnapshotError)?;
    let prepared = listeners.prepare(&plans)?;
    let compiled = match signals.unless_ended(compiler.compile(&loaded, None)).await {
        Ok(compiled) => compiled,
        Err(signal) => {
            tracing::info!(event = "stopping", signal, "the gateway had not begun to serve");
            stop_admin.send_replace(true);
            tracing::info!(event = "stopped");
            log.flush();
            return Ok(());
        }
    };
    let snapshot = compiled?;

    snapshot.commit_steps.run();
    let supervisor = Arc::new(Supervisor::default());
    supervisor.apply(std::mem::take(&mut *snapshot.background_tasks.lock()));
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
        rollouts: compiler.rollouts.clone(),
        issued_keys: compiler.issued_keys.clone(),
        acme,
        quality: compiler.quality.clone(),
        audit: view.audit.clone(),
        tail: Arc::default(),
        log: log.clone(),
        log_format: config.telemetry.logs.format,
        draining: view.draining.clone(),
        counts: RunningCounts::default(),
    });
    let reporting = gateway.clone();
    tokio::spawn(rollout::report(
        notices,
        move || reporting.snapshot.load().tracer.clone(),
        metrics.clone(),
        notifier.clone(),
    ));
    let addresses: Vec<SocketAddr> = plans.iter().map(|plan| plan.address).collect();
    listeners.commit(prepared, &gateway);
    // The first judge, for keys that end before the first edit does.
    gateway.judge_sockets(&addresses);
    let judging = gateway.downstream.clone();
    gateway.issued_keys.on_change(move || judging.sockets.judge_again());
    gateway.quality.probe_by(Arc::new(Prober::new(&gateway)));
    metrics.process.reloaded_at.set(unix_seconds());
    view.listeners.store(Some(listeners.clone()));
    view.gateway.store(Arc::new(Some(gateway.clone())));
    tracing::info!(event = "ready", version = env!("CARGO_PKG_VERSION"), config = %path.display());

    let (edited, edits_of_file) = watch::channel(0);
    let (offers, offered) = tokio::sync::mpsc::channel(1);
    let discovery = discover(config, offers, edits_of_file, synced, &metrics).await?;
    let loaded = Arc::new(loaded);
    let config = &loaded.config;
    let reloader = Reloader {
        path,
        discovery: config.discovery.clone(),
        discovered: has_discovery.then(|| Discovered { file: loaded.clone(), further: Further::default(), edited }),
        admin: config.admin.clone(),
        log_format: config.telemetry.logs.format,
        metrics: config.telemetry.metrics.clone(),
        buffered_answers: config.limits.buffered_answers,
        limit_keys: config.limits.limit_keys,
        model_memory: config.limits.model_memory,
        gateway: gateway.clone(),
        compiler,
        listeners: listeners.clone(),
        supervisor: supervisor.clone(),
        edits,
    };
    // The snapshot has all that requests need of it.
    drop(loaded);
    crate::memory::give_back();
    let (reload, requests) = tokio::sync::mpsc::channel(1);
    let watching = tokio::spawn(reloader.run(states, requests, offered));
    wait_for_end(&reload, &mut signals).await;

    discovery.stop().await;
    watching.abort();
    gateway.acme.stop();
    gateway.quality.stop_probes().await;
    drain(&gateway, &listeners, &mut signals).await;
    supervisor.stop();
    gateway.rollouts.close().await;
    gateway.issued_keys.close().await;
    notifier.close().await;
    stop_admin.send_replace(true);
    let _ = tokio::task::spawn_blocking(move || limits.close()).await;
    gateway.quality.stop().await;
    contents.finish().await;
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
    edits: &Arc<Edits>,
    stop: &watch::Sender<bool>,
    discovered: watch::Receiver<bool>,
) -> Result<Arc<AdminView>, ServeError> {
    let written = config.admin.as_ref();
    let token = token_of(config)?;
    let address = written.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), |admin| admin.address.0);
    let view = Arc::new(AdminView {
        gateway: ArcSwap::from_pointee(None),
        listeners: ArcSwapOption::empty(),
        draining: Arc::new(AtomicBool::new(false)),
        metrics: metrics.clone(),
        audit,
        edits: edits.clone(),
        discovered,
        chats: Playground::default(),
        token,
        address,
        hosts: written.map(|admin| admin.hosts.clone()).unwrap_or_default(),
        history: Arc::default(),
        traces_url: written.and_then(|admin| admin.traces_url.clone()),
        playground: written.is_some_and(Admin::allows_playground),
        max_connections: written.map_or(1, |admin| usize::try_from(admin.max_connections.get()).unwrap_or(usize::MAX)),
        open_metrics: config.telemetry.metrics.open_metrics,
    });
    if written.is_some() {
        let failed = |source| ServeError::Admin { address, source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tracing::info!(event = "admin_listening", address = %local);
        tokio::spawn(admin::serve(listener, view.clone(), stop.subscribe()));
        let (history, sampled): (Arc<History>, _) = (view.history.clone(), view.clone());
        tokio::spawn(history.run(metrics.clone(), move || sampled.engines(), stop.subscribe()));
    }
    if let Some(address) = config.telemetry.metrics.address {
        let address = address.0;
        let failed = |source| ServeError::Metrics { address, source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tracing::info!(event = "metrics_listening", address = %local);
        let most = usize::try_from(config.telemetry.metrics.max_connections.get()).unwrap_or(usize::MAX);
        tokio::spawn(admin::serve_metrics(listener, most, view.clone(), stop.subscribe()));
    }
    Ok(view)
}

/// Waits for SIGTERM or SIGINT; SIGHUP reloads.
async fn wait_for_end(reload: &tokio::sync::mpsc::Sender<()>, signals: &mut Signals) {
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
                // One waiting reload covers all requests that come meanwhile.
                let _ = reload.try_send(());
            }
        }
    };
    tracing::info!(event = "stopping", signal = name);
}

/// Reports that the gateway drains, and goes on taking requests for `shutdown.delay`: load balancers need some time until
/// they send no more. A further SIGINT ends the wait.
async fn announce_drain(gateway: &Gateway, signals: &mut Signals) {
    gateway.draining.store(true, Ordering::Release);
    let delay = gateway.snapshot.load().shutdown_delay;
    if delay.is_zero() {
        return;
    }
    tracing::info!(event = "drain_delayed", seconds = delay.as_secs_f64(), "requests are still taken");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = signals.end_at_once() => {}
    }
}

/// Waits for running requests, up to the drain timeout. Then it ends the rest: event streams with an error event, requests
/// without an answer with 503. A further SIGINT, as a person at a terminal sends it, ends the wait; a further SIGTERM does
/// not, because supervisors repeat and forward it.
async fn drain(gateway: &Gateway, listeners: &ListenerSet, signals: &mut Signals) {
    announce_drain(gateway, signals).await;
    listeners.stop();
    let limit = gateway.snapshot.load().drain_timeout;
    let started = Instant::now();
    let again = signals.end_at_once();
    tokio::pin!(again);
    let begins = |since: Instant| gateway.connections() > 0 && since.elapsed() < FIRST_HEAD + DRAIN_POLL;
    while gateway.running() > 0 || begins(started) {
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
        wait_while(END_TIMEOUT, || gateway.running() > 0).await;
    }
    // The last answer is written; its connection needs a moment to close in order.
    tokio::time::sleep(DRAIN_POLL).await;
    wait_while(CLOSE_TIMEOUT, || gateway.connections() > 0).await;
}

async fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) {
    let started = Instant::now();
    while goes_on() && started.elapsed() < limit {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
