//! Start and end of the process.

mod ending;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use sha2::{Digest, Sha256};
use spillway_config::schema::{Admin, Config};
use spillway_config::{Further, Loaded};
use spillway_filter::Registry;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminView, History, Login, LoginError, Playground};
use crate::audit::Audit;
use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::connect::Connector;
use crate::discovery::Offer;
#[cfg(feature = "kubernetes")]
use crate::discovery::{ApiServer, Discovery};
use crate::downstream::Downstream;
use crate::edits::Edits;
use crate::exchange::BodyBudget;
use crate::gateway::{Gateway, Phase, RunningCounts};
use crate::handover::{Gone, HandOvers, Inherited, Launch, Place, systemd};
use crate::limits::Limits;
use crate::listener::{ListenError, ListenerSet};
use crate::load::FileStates;
use crate::off_loop::OffLoop;
use crate::pipeline::{BatchLines, Prober};
use crate::reload::{Discovered, Reloader};
use crate::rollout;
use crate::signals::Signals;
use crate::snapshot::{Compiler, Snapshot, SnapshotError};
use crate::telemetry::{LogWriter, Metrics, RecentHeads};
use crate::tls::Acme;
use crate::upstream::Via;
use crate::workers::Workers;

use ending::{Ending, HandOverRequests, HandingOver};

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
    /// The process that was to hand over is gone.
    #[error("hand-over: {0}")]
    Predecessor(#[from] Gone),
    /// The login of the admin address cannot be offered.
    #[error("admin.oidc.{0}")]
    Login(#[from] LoginError),
    /// The API server of Kubernetes cannot be used.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Discovery(#[from] crate::discovery::DiscoveryError),
    /// The system refused a resource.
    #[error("{0}")]
    System(String),
}

/// API server that discovery will watch; nothing without `discovery`, or in a build without a client for Kubernetes, whose check
/// refuses it.
struct Discoverable {
    #[cfg(feature = "kubernetes")]
    server: Option<ApiServer>,
}

/// Discovery that runs, of a [`Discoverable`].
struct Discoverer {
    #[cfg(feature = "kubernetes")]
    running: Option<Discovery>,
}

#[cfg(feature = "kubernetes")]
impl Discoverable {
    async fn find(config: &Config) -> Result<Self, ServeError> {
        let Some(settings) = config.discovery.kubernetes.clone() else { return Ok(Self { server: None }) };
        Ok(Self { server: Some(ApiServer::find(settings).await?) })
    }

    fn start(
        self,
        offers: mpsc::Sender<Offer>,
        edited: watch::Receiver<u64>,
        synced: watch::Sender<bool>,
        metrics: &Arc<Metrics>,
    ) -> Discoverer {
        let start = |server| Discovery::start(server, offers, edited, synced, metrics.clone());
        Discoverer { running: self.server.map(start) }
    }
}

#[cfg(not(feature = "kubernetes"))]
impl Discoverable {
    async fn find(_: &Config) -> Result<Self, ServeError> {
        Ok(Self {})
    }

    fn start(
        self,
        _: mpsc::Sender<Offer>,
        _: watch::Receiver<u64>,
        _: watch::Sender<bool>,
        _: &Arc<Metrics>,
    ) -> Discoverer {
        Discoverer {}
    }
}

impl Discoverer {
    async fn stop(self) {
        #[cfg(feature = "kubernetes")]
        if let Some(running) = self.running {
            running.stop().await;
        }
    }
}

/// Validates a configuration that [`crate::load::read`] accepts, with the code that compiles it to run; returns the snapshot,
/// which takes no requests, or every reason not to run it. Opens no socket and no device, resolves no name and writes
/// nothing. With `models_in_full`, tokenizers and templates of models are read too, and their memory is added up.
pub async fn judge(
    loaded: &Loaded,
    registry: &Arc<Registry>,
    models_in_full: bool,
) -> Result<Box<Snapshot>, Vec<String>> {
    let config = &loaded.config;
    let mut errors = Vec::new();
    errors.extend(token_of(config).err().map(|e| e.to_string()));
    let login = config.admin.as_ref().and_then(|admin| admin.oidc.as_ref());
    errors.extend(login.and_then(|login| Login::judge(login).err()).map(|e| ServeError::from(e).to_string()));
    let written = config.clone();
    let plans = tokio::task::spawn_blocking(move || {
        crate::listener::plans(&written, &Acme::new(Arc::new(Metrics::new()))).map(|_| ())
    });
    match plans.await {
        Ok(plans) => errors.extend(plans.err().into_iter().flatten()),
        Err(e) => errors.push(e.to_string()),
    }
    let compiler = Compiler::for_judging(config, registry.clone(), models_in_full);
    match compiler.compile(loaded, None).await {
        Ok(snapshot) if errors.is_empty() => return Ok(Box::new(snapshot)),
        Ok(_) => {}
        Err(e) => errors.extend(e.0),
    }
    Err(errors.iter().map(|error| loaded.origins.redact(error)).collect())
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
///
/// A process with a predecessor uses its sockets, and stays in the background until that process hands over: the admin address
/// answers only then. It ends where that process does before.
pub async fn serve(
    path: PathBuf,
    loaded: Loaded,
    states: FileStates,
    registry: Arc<Registry>,
    log: LogWriter,
    cache_dir: Option<PathBuf>,
    Process { mut signals, launch }: Process<'_>,
) -> Result<(), ServeError> {
    let config = &loaded.config;
    let predecessor = launch.predecessor.as_ref();
    crate::descriptors::adopt(config);
    let metrics = Arc::new(Metrics::new());
    let edits = Arc::new(Edits::started(&path));
    let stop_admin = watch::Sender::new(false);
    let audit = Arc::new(Audit::new(&config.telemetry.audit, log.clone(), metrics.clone()));
    // One that cannot be known is said before anything listens.
    let discoverable = Discoverable::find(config).await?;
    let has_discovery = config.has_discovery();
    let (synced, discovered) = watch::channel(!has_discovery);
    let (hand_overs, orders) = HandOvers::new();
    let view = view_of(config, &metrics, audit, &edits, hand_overs, discovered)?;
    let mut admin = AdminSockets::open(config, &launch.inherited)?;
    if predecessor.is_none() {
        admin.serve(config, &view, &stop_admin)?;
    }

    let (workers, _runtimes) = Workers::start(&Handle::current())
        .map_err(|e| ServeError::System(format!("the workers cannot be started: {e}")))?;
    let _watched = workers.watch(&metrics.process.workers_stalled);
    let listeners = Arc::new(ListenerSet::new(workers, launch.inherited.clone()));
    let limits = Limits::new(config.limits.limit_keys, metrics.clone());
    let downstream =
        Arc::new(Downstream::new(config.limits.buffered_answers.0, metrics.process.write_timeouts.clone()));
    let compiler = Compiler::new(registry, metrics.clone(), limits.clone(), downstream.clone(), cache_dir);
    let contents = compiler.contents.clone();
    let (notifier, notices) = (compiler.notifier.clone(), compiler.rollouts.subscribe());
    if predecessor.is_some() {
        compiler.rollouts.begin_as_successor();
    }
    let compiler = Arc::new(compiler);
    let acme = Arc::new(Acme::new(metrics.clone()));
    let plans = crate::listener::plans(config, &acme).map_err(SnapshotError)?;
    let prepared = listeners.prepare(&plans)?;
    let compiling = async {
        let Some(predecessor) = predecessor else { return Ok(compiler.compile(&loaded, None).await?) };
        let snapshot = tokio::select! {
            compiled = compiler.compile(&loaded, None) => compiled?,
            gone = predecessor.gone() => return Err(gone.into()),
        };
        predecessor.ready().await?;
        Ok(snapshot)
    };
    let compiled: Result<Snapshot, ServeError> = match signals.unless_ended(compiling).await {
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

    log.export_by(&snapshot.log_export);
    snapshot.commit_steps.run();
    if predecessor.is_some() {
        let known = limits.clone();
        // What the predecessor has written until now.
        if !tokio::task::spawn_blocking(move || known.exchange()).await.unwrap_or(false) {
            tracing::warn!(event = "hand_over_behind", budgets = false);
        }
    }
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
        batches: compiler.batches.clone(),
        #[cfg(feature = "gpu")]
        gpus: crate::gpus::Gpus::watch(),
        audit: view.audit.clone(),
        tail: Arc::default(),
        recent: config.admin.as_ref().map(|_| RecentHeads::default()),
        log: log.clone(),
        log_format: config.telemetry.logs.format,
        phase: view.phase.clone(),
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
    gateway.batches.run_by(Arc::new(BatchLines::new(&gateway)));
    metrics.process.reloaded_at.set(unix_seconds());
    view.listeners.store(Some(listeners.clone()));
    view.gateway.store(Arc::new(Some(gateway.clone())));
    match predecessor {
        Some(predecessor) => {
            // What a person asks next is answered by this process.
            gateway.rollouts.known().await;
            admin.serve(config, &view, &stop_admin)?;
            predecessor.serving();
        }
        None => systemd::ready(),
    }
    launch.inherited.close_rest();
    tracing::info!(event = "ready", version = env!("CARGO_PKG_VERSION"), config = %path.display());

    let (edited, edits_of_file) = watch::channel(0);
    let (offers, offered) = tokio::sync::mpsc::channel(1);
    let discovery = discoverable.start(offers, edits_of_file, synced, &metrics);
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
    let mut requests = HandOverRequests::new(&mut signals, orders);
    let handing_over = HandingOver {
        gateway: gateway.clone(),
        listeners: listeners.clone(),
        limits: limits.clone(),
        program: launch.program.clone(),
        admin_sockets: admin.kept,
        hand_overs: view.hand_overs.clone(),
        has_discovery,
    };
    let ending = handing_over.wait_for_end(&reload, &mut signals, &mut requests).await;

    discovery.stop().await;
    let refusing = tokio::spawn(requests.refuse());
    watching.abort();
    gateway.acme.stop();
    drop(handing_over);
    gateway.batches.leave();
    match ending {
        Ending::Signal(_) => {
            systemd::stopping();
            gateway.quality.stop_probes().await;
            ending::drain(&gateway, &listeners, &mut signals).await;
        }
        Ending::HandedOver(pid) => {
            systemd::main_process(pid);
            stop_admin.send_replace(true);
            ending::leave(&gateway, &listeners, &mut signals).await;
        }
    }
    refusing.abort();
    supervisor.stop();
    gateway.rollouts.close().await;
    gateway.issued_keys.close().await;
    gateway.batches.close().await;
    notifier.close().await;
    stop_admin.send_replace(true);
    let _ = tokio::task::spawn_blocking(move || limits.close()).await;
    gateway.quality.stop().await;
    contents.finish().await;
    let tracer = gateway.snapshot.load().tracer.clone();
    let _ = tokio::task::spawn_blocking(move || tracer.flush()).await;
    tracing::info!(event = "stopped");
    let _ = tokio::task::spawn_blocking(move || log.flush()).await;
    Ok(())
}

/// Signals and origin of the process.
pub struct Process<'l> {
    /// Signals.
    pub signals: Signals,
    /// Program and what was passed to it.
    pub launch: &'l Launch,
}

/// Sockets of the admin address and of the metrics: open from the start on, served once the process may.
#[derive(Default)]
struct AdminSockets {
    admin: Option<TcpListener>,
    metrics: Option<TcpListener>,
    /// Copies, to be passed to a new process.
    kept: Vec<(Place, TcpListener)>,
}

impl AdminSockets {
    fn open(config: &Config, inherited: &Inherited) -> Result<Self, ServeError> {
        let mut sockets = Self::default();
        if let Some(admin) = &config.admin {
            let address = admin.address.0;
            let socket = sockets.open_one(Place::Admin(address), address, inherited);
            sockets.admin = Some(socket.map_err(|source| ServeError::Admin { address, source })?);
        }
        if let Some(address) = config.telemetry.metrics.address {
            let address = address.0;
            let socket = sockets.open_one(Place::Metrics(address), address, inherited);
            sockets.metrics = Some(socket.map_err(|source| ServeError::Metrics { address, source })?);
        }
        Ok(sockets)
    }

    fn open_one(&mut self, place: Place, address: SocketAddr, inherited: &Inherited) -> std::io::Result<TcpListener> {
        let socket = inherited.take(place).map_or_else(|| TcpListener::bind(address), Ok)?;
        socket.set_nonblocking(true)?;
        self.kept.push((place, socket.try_clone()?));
        Ok(socket)
    }

    /// Begins to serve. Further calls do nothing.
    fn serve(&mut self, config: &Config, view: &Arc<AdminView>, stop: &watch::Sender<bool>) -> Result<(), ServeError> {
        if let Some(socket) = self.admin.take() {
            let failed = |source| ServeError::Admin { address: view.address, source };
            let listener = tokio::net::TcpListener::from_std(socket).map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            tracing::info!(event = "admin_listening", address = %local);
            tokio::spawn(admin::serve(listener, view.clone(), stop.subscribe()));
            let (history, sampled): (Arc<History>, _) = (view.history.clone(), view.clone());
            tokio::spawn(history.run(view.metrics.clone(), move || sampled.engines(), stop.subscribe()));
        }
        if let Some(socket) = self.metrics.take() {
            let configured = config.telemetry.metrics.address.map_or(view.address, |address| address.0);
            let failed = |source| ServeError::Metrics { address: configured, source };
            let listener = tokio::net::TcpListener::from_std(socket).map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            tracing::info!(event = "metrics_listening", address = %local);
            let most = usize::try_from(config.telemetry.metrics.max_connections.get()).unwrap_or(usize::MAX);
            tokio::spawn(admin::serve_metrics(listener, most, view.clone(), stop.subscribe()));
        }
        Ok(())
    }
}

/// View of the gateway for the admin address.
fn view_of(
    config: &Config,
    metrics: &Arc<Metrics>,
    audit: Arc<Audit>,
    edits: &Arc<Edits>,
    hand_overs: HandOvers,
    discovered: watch::Receiver<bool>,
) -> Result<Arc<AdminView>, ServeError> {
    let written = config.admin.as_ref();
    let token = token_of(config)?;
    let login = written.and_then(|admin| admin.oidc.as_ref());
    let login = login.map(|login| Login::new(login, metrics.clone())).transpose()?.map(Arc::new);
    let address = written.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), |admin| admin.address.0);
    Ok(Arc::new(AdminView {
        gateway: ArcSwap::from_pointee(None),
        listeners: ArcSwapOption::empty(),
        phase: Arc::new(Phase::default()),
        hand_overs: Arc::new(hand_overs),
        metrics: metrics.clone(),
        audit,
        edits: edits.clone(),
        discovered,
        chats: Playground::default(),
        token,
        login,
        address,
        hosts: written.map(|admin| admin.hosts.clone()).unwrap_or_default(),
        history: Arc::default(),
        traces_url: written.and_then(|admin| admin.traces_url.clone()),
        playground: written.is_some_and(Admin::allows_playground),
        max_connections: written.map_or(1, |admin| usize::try_from(admin.max_connections.get()).unwrap_or(usize::MAX)),
        open_metrics: config.telemetry.metrics.open_metrics,
    }))
}
