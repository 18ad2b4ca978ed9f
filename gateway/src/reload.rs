//! Edits of the configuration: noticed, read when the files have settled, compiled beside the running one, accepted or
//! rejected as a whole, and reported. A running request keeps the snapshot that it began with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use spillway_config::schema::{Admin, Discovery, LogFormat, MetricsPage};
use spillway_config::values::Size;
use spillway_config::{Further, Loaded, PartKind, RefusedPart, Report};
use tokio::sync::{mpsc, watch};

use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::discovery::{Offer, Outcome};
use crate::edits::{Change, Edits, LastEdit};
use crate::gateway::Gateway;
use crate::listener::{ListenError, ListenerSet};
use crate::load::{FileStates, file_states, file_states_as_read, options, read};
use crate::snapshot::{Compiler, Snapshot};

/// A file is read when its state has not changed for this long: a half-written YAML is often valid.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// Longest wait for files to settle; files that change all the time are read all the same.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(10);
/// Time between two looks at the files, beside events of the system: some file systems lose events.
const POLL: Duration = Duration::from_secs(2);

/// Keys that an edit cannot change.
pub const FIXED_KEYS: [&str; 8] = [
    "admin",
    "discovery",
    "telemetry.logs.format",
    "telemetry.metrics.address",
    "telemetry.metrics.maxConnections",
    "limits.bufferedAnswers",
    "limits.limitKeys",
    "limits.modelMemory",
];

/// Applies edits of the configuration.
pub struct Reloader {
    /// Configuration file.
    pub path: PathBuf,
    /// Admin address since start; cannot be changed.
    pub admin: Option<Admin>,
    /// Sources beside the file since start; cannot be changed.
    pub discovery: Discovery,
    /// Log format since start; cannot be changed.
    pub log_format: LogFormat,
    /// Address of the metrics since start; cannot be changed.
    pub metrics: MetricsPage,
    /// Memory for answers that wait for their clients, since start; cannot be changed.
    pub buffered_answers: Size,
    /// Memory for all models since start; cannot be changed.
    pub model_memory: Option<Size>,
    /// Most levels of limits since start; cannot be changed.
    pub limit_keys: u32,
    /// Gateway that serves requests.
    pub gateway: Arc<Gateway>,
    /// Compiler of snapshots.
    pub compiler: Arc<Compiler>,
    /// Open listeners.
    pub listeners: Arc<ListenerSet>,
    /// Supervisor of health checks, scrapes and DNS.
    pub supervisor: Arc<Supervisor>,
    /// Edits, for operators.
    pub edits: Arc<Edits>,
    /// Parts from elsewhere than the file, with what they are joined to; `None` without `discovery`.
    pub discovered: Option<Discovered>,
}

/// Parts of the running configuration that come from elsewhere than the file.
pub struct Discovered {
    /// Configuration of the file, as the last accepted edit has it.
    pub file: Arc<Loaded>,
    /// Parts of the last accepted offer.
    pub further: Further,
    /// Number of the edits of the file, after which parts that were left out may hold.
    pub edited: watch::Sender<u64>,
}

/// Reason why a configuration was not applied.
enum ApplyError {
    /// A listener cannot be opened.
    Listen(ListenError),
    /// Other reasons.
    Other(Vec<String>),
}

impl ApplyError {
    fn messages(self) -> Vec<String> {
        match self {
            Self::Listen(e) => vec![e.to_string()],
            Self::Other(messages) => messages,
        }
    }
}

/// Outcome of an edit, with the files that it names.
enum EditOutcome {
    Accepted(Vec<PathBuf>),
    Rejected(Vec<PathBuf>),
}

impl Reloader {
    /// Watches files and applies edits until it is dropped. `states` are the states of the running configuration's files
    /// when they were read: an edit made during the start is applied too. `requests` brings requests for a reload, `offers` parts
    /// from elsewhere.
    pub async fn run(
        mut self,
        mut states: FileStates,
        mut requests: mpsc::Receiver<()>,
        mut offers: mpsc::Receiver<Offer>,
    ) {
        let mut running: Vec<PathBuf> = states.keys().cloned().collect();
        let mut files = running.clone();
        let (noticed, mut events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |_| {
            let _ = noticed.try_send(());
        })
        .inspect_err(|e| tracing::warn!(event = "files_polled", reason = %e))
        .ok();
        let mut watched = BTreeSet::new();
        loop {
            watch(watcher.as_mut(), &mut watched, &files);
            let by_hand = tokio::select! {
                () = tokio::time::sleep(POLL) => false,
                _ = events.recv() => false,
                Some(()) = requests.recv() => true,
                Some(offer) = offers.recv() => {
                    let outcome = self.take_offer(offer.further).await;
                    // Whoever made it may be gone.
                    let _ = offer.reply.send(outcome);
                    continue;
                }
            };
            if file_states(&files) == states && !by_hand {
                continue;
            }
            states = settled(&files).await;
            let began = SystemTime::now();
            let outcome = self.reload().await;
            let (EditOutcome::Accepted(named) | EditOutcome::Rejected(named)) = &outcome;
            for (file, state) in file_states_as_read(named, began) {
                states.entry(file).or_insert(state);
            }
            match outcome {
                EditOutcome::Accepted(named) => {
                    running.clone_from(&named);
                    files = named;
                }
                // A change of a file that only this edit names may make the edit valid.
                EditOutcome::Rejected(named) => {
                    files = running.iter().cloned().chain(named).collect::<BTreeSet<_>>().into_iter().collect();
                }
            }
            states.retain(|file, _| files.contains(file));
        }
    }

    /// Applies or rejects one edit.
    async fn reload(&mut self) -> EditOutcome {
        let (path, registry) = (self.path.clone(), self.compiler.registry.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, &registry, false)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => Arc::new(loaded),
            Ok(Err(mut report)) => {
                let files = std::mem::take(&mut report.files);
                self.failed(report, Vec::new());
                self.edits.keep(None, None);
                return EditOutcome::Rejected(files);
            }
            Err(e) => {
                self.failed(Report::default(), vec![e.to_string()]);
                self.edits.keep(None, None);
                return EditOutcome::Rejected(Vec::new());
            }
        };
        let before = self.gateway.snapshot.load_full();
        let file = loaded.clone();
        let loaded = match &self.discovered {
            None => loaded,
            Some(discovered) => match self.joined(&loaded, discovered.further.clone()).await {
                Ok((joined, _)) => joined,
                Err(errors) => {
                    self.failed(loaded.warnings.clone(), errors);
                    let files = loaded.files.clone();
                    self.clear(loaded, before, None).await;
                    return EditOutcome::Rejected(files);
                }
            },
        };
        match self.apply(&loaded).await.map_err(ApplyError::messages) {
            Ok(generation) => {
                if let Some(discovered) = &mut self.discovered {
                    discovered.file = file;
                    // What was left out may hold beside the new file.
                    discovered.edited.send_modify(|edits| *edits = edits.wrapping_add(1));
                }
                for warning in &loaded.warnings.diagnostics {
                    tracing::warn!(event = "config_warning", message = %warning.message, at = %warning.path, line = warning.line);
                }
                tracing::info!(event = "config_reloaded", generation);
                self.gateway.metrics.reloads_ok.inc();
                self.gateway.metrics.process.reloaded_at.set(unix_seconds());
                let diagnostics = loaded.warnings.clone();
                self.edits.report(LastEdit { diagnostics, ..LastEdit::started(&self.path) });
                let files = loaded.files.clone();
                self.clear(loaded, before, Some(generation)).await;
                EditOutcome::Accepted(files)
            }
            Err(errors) => {
                let errors = errors.iter().map(|error| loaded.origins.redact(error)).collect();
                self.failed(loaded.warnings.clone(), errors);
                let files = loaded.files.clone();
                self.clear(loaded, before, None).await;
                EditOutcome::Rejected(files)
            }
        }
    }

    /// Keeps what an edit has changed, then gives back what its configuration took to be read, and what only the one before it
    /// had: with large ones, on a thread of its own.
    async fn clear(&self, loaded: Arc<Loaded>, before: Arc<Snapshot>, generation: Option<u64>) {
        let (compiler, edits) = (self.compiler.clone(), self.edits.clone());
        let cleared = tokio::task::spawn_blocking(move || {
            edits.keep(generation, Some(Change { before: &before.shown.read(), after: &loaded.shown() }));
            drop((loaded, before));
            compiler.states.sweep();
            compiler.endpoints.sweep();
            crate::memory::give_back();
        });
        let _ = cleared.await;
    }

    /// Joins further parts to a configuration of the file, on a thread of its own.
    async fn joined(
        &self,
        file: &Arc<Loaded>,
        further: Further,
    ) -> Result<(Arc<Loaded>, Vec<RefusedPart>), Vec<String>> {
        let (file, registry) = (file.clone(), self.compiler.registry.clone());
        let joined = tokio::task::spawn_blocking(move || file.join(further, &options(&registry, false))).await;
        let (loaded, refused) = joined.map_err(|e| vec![e.to_string()])?.map_err(|e| e.0)?;
        Ok((Arc::new(loaded), refused))
    }

    /// Applies an offer, without the parts that do not hold. Where the rest cannot be applied, the parts of the offer before are
    /// kept.
    async fn take_offer(&mut self, mut further: Further) -> Outcome {
        let Some(discovered) = &self.discovered else { return Outcome::default() };
        let (file, mut refused) = (discovered.file.clone(), Vec::new());
        let applied = loop {
            let joined = match self.joined(&file, further.clone()).await {
                Ok((joined, others)) => {
                    for part in &others {
                        further.remove(part.kind, &part.name);
                    }
                    refused.extend(others);
                    joined
                }
                Err(errors) => break Err(errors),
            };
            match self.apply(&joined).await {
                Ok(generation) => break Ok((generation, joined)),
                // One port that is taken costs its own listener only; each round has one listener less.
                Err(ApplyError::Listen(e)) if further.has_listener(e.listener()) => {
                    let name = e.listener().to_owned();
                    further.remove(PartKind::Listener, &name);
                    further.remove_routes_of(&name);
                    refused.push(RefusedPart { kind: PartKind::Listener, name, message: e.to_string() });
                }
                Err(e) => break Err(e.messages()),
            }
        };
        match applied {
            Ok((generation, joined)) => {
                let (listeners, routes) = (further.listeners.len(), further.routes.len());
                tracing::info!(event = "discovery_applied", generation, listeners, routes, refused = refused.len());
                if let Some(discovered) = &mut self.discovered {
                    discovered.further = further;
                }
                let compiler = self.compiler.clone();
                let swept = tokio::task::spawn_blocking(move || {
                    drop(joined);
                    compiler.states.sweep();
                    compiler.endpoints.sweep();
                });
                let _ = swept.await;
                Outcome { refused, errors: Vec::new() }
            }
            Err(errors) => {
                self.gateway.metrics.process.kubernetes_rejected.inc();
                let reason = errors.join("\n");
                tracing::error!(event = "discovery_rejected", %reason, "the running configuration is kept");
                Outcome { refused, errors }
            }
        }
    }

    async fn apply(&self, loaded: &Arc<Loaded>) -> Result<u64, ApplyError> {
        let config = &loaded.config;
        let metrics = &config.telemetry.metrics;
        let is_other = [
            config.admin != self.admin,
            config.discovery != self.discovery,
            config.telemetry.logs.format != self.log_format,
            metrics.address != self.metrics.address,
            metrics.max_connections != self.metrics.max_connections,
            config.limits.buffered_answers != self.buffered_answers,
            config.limits.limit_keys != self.limit_keys,
            config.limits.model_memory != self.model_memory,
        ];
        let fixed: Vec<String> = FIXED_KEYS
            .into_iter()
            .zip(is_other)
            .filter(|(_, is_other)| *is_other)
            .map(|(key, _)| format!("`{key}` cannot be changed while the gateway runs: restart it"))
            .collect();
        if !fixed.is_empty() {
            return Err(ApplyError::Other(fixed));
        }
        let previous = self.gateway.snapshot.load_full();
        // Steps that can fail come first and change nothing.
        let (written, acme) = (loaded.clone(), self.gateway.acme.clone());
        let plans = tokio::task::spawn_blocking(move || crate::listener::plans(&written.config, &acme)).await;
        let plans = plans.map_err(|e| ApplyError::Other(vec![e.to_string()]))?.map_err(ApplyError::Other)?;
        let addresses: Vec<SocketAddr> = plans.iter().map(|plan| plan.address).collect();
        let prepared = self.listeners.prepare(&plans).map_err(ApplyError::Listen)?;
        let snapshot = self.compile(loaded.clone(), previous).await.map_err(ApplyError::Other)?;
        let generation = snapshot.generation;
        // No further step can fail.
        snapshot.commit_steps.run();
        crate::descriptors::adopt(config);
        self.gateway.log.export_by(&snapshot.log_export);
        self.gateway.audit.adopt(&config.telemetry.audit);
        let limits = &config.limits;
        self.gateway.bodies.adopt(limits.buffered_bodies.0, limits.buffered_bodies_per_caller.0);
        self.supervisor.apply(std::mem::take(&mut *snapshot.background_tasks.lock()));
        self.gateway.snapshot.store(Arc::new(snapshot));
        self.listeners.commit(prepared, &self.gateway);
        self.gateway.judge_sockets(&addresses);
        Ok(generation)
    }

    /// Compiles a snapshot on a thread of its own: thousands of routes take tens of milliseconds, and no request waits for
    /// them.
    async fn compile(&self, loaded: Arc<Loaded>, previous: Arc<Snapshot>) -> Result<Snapshot, Vec<String>> {
        let (compiler, runtime) = (self.compiler.clone(), tokio::runtime::Handle::current());
        let compiling = tokio::task::spawn_blocking(move || {
            let compiled = runtime.block_on(compiler.compile(&loaded, Some(&previous)));
            drop((loaded, previous));
            crate::memory::give_back();
            compiled
        });
        compiling.await.map_err(|e| vec![e.to_string()])?.map_err(|e| e.0)
    }

    fn failed(&self, diagnostics: Report, errors: Vec<String>) {
        self.gateway.metrics.reloads_failed.inc();
        let mut reason = diagnostics.to_string();
        for error in &errors {
            reason.push_str(error);
            reason.push('\n');
        }
        tracing::error!(event = "config_rejected", file = %self.path.display(), reason = %reason.trim_end(), "the running configuration is kept");
        self.edits.report(LastEdit { result: "failed", diagnostics, errors, ..LastEdit::started(&self.path) });
    }
}

/// Watches the folders of files: editors replace a file by a new one, and Kubernetes replaces a link.
fn watch(watcher: Option<&mut RecommendedWatcher>, watched: &mut BTreeSet<PathBuf>, files: &[PathBuf]) {
    let Some(watcher) = watcher else { return };
    let folders = files.iter().filter_map(|file| file.parent()).map(Path::to_owned);
    for folder in folders {
        if watched.contains(&folder) {
            continue;
        }
        match watcher.watch(&folder, RecursiveMode::NonRecursive) {
            Ok(()) => {
                watched.insert(folder);
            }
            Err(e) => tracing::debug!(event = "folder_not_watched", folder = %folder.display(), reason = %e),
        }
    }
}

/// Waits until files have settled.
async fn settled(files: &[PathBuf]) -> FileStates {
    let started = tokio::time::Instant::now();
    let mut last = file_states(files);
    loop {
        tokio::time::sleep(SETTLE_TIME).await;
        let now = file_states(files);
        if now == last || started.elapsed() > MAX_SETTLE_TIME {
            return now;
        }
        last = now;
    }
}
