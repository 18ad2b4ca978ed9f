//! Start and end of the process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use sha2::{Digest, Sha256};
use spillway_config::Loaded;
use spillway_config::schema::Config;
use spillway_filter::Registry;
use tokio::sync::watch;

use crate::admin::{self, Shown};
use crate::audit::Audit;
use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::connect::Connector;
use crate::downstream::Downstream;
use crate::exchange::BodyBudget;
use crate::gateway::{Counts, Gateway};
use crate::limits::Limits;
use crate::listener::{ListenError, ListenerSet};
use crate::load::Seen;
use crate::off_loop::OffLoop;
use crate::reload::{LastEdit, Reloader};
use crate::signals::Signals;
use crate::snapshot::{Compiler, SnapshotError};
use crate::telemetry::{LogWriter, Metrics};
use crate::tls::Acme;
use crate::upstream::Via;

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

/// Judges a configuration that [`crate::load::read`] accepts, by the code that compiles it to be run; gives every reason
/// not to run it. Opens no socket and no device, asks for no name and writes nothing. `models_in_full` reads the
/// tokenizers and templates of models too, and adds up their memory.
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

/// Digest of the token of the admin address, where it has one.
fn token_of(config: &Config) -> Result<Option<[u8; 32]>, ServeError> {
    let Some(token) = config.admin.as_ref().and_then(|admin| admin.token.as_ref()) else { return Ok(None) };
    let token = crate::credentials::secret(token).map_err(|e| ServeError::Token(e.to_string()))?;
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
    registry: Arc<Registry>,
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
    let downstream =
        Arc::new(Downstream::new(config.limits.buffered_answers.0, metrics.process.write_timeouts.clone()));
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
        counts: Counts::default(),
    });
    listeners.commit(prepared, &gateway);
    metrics.process.reloaded_at.set(unix_seconds());
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
    wait_while(GOODBYE, || gateway.connections() > 0).await;
}

async fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) {
    let started = Instant::now();
    while goes_on() && started.elapsed() < limit {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
