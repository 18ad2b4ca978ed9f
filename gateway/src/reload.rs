//! Edits of the configuration: noticed, read when the files have settled, compiled beside the running one, accepted or
//! rejected as a whole, and reported. A running request keeps the snapshot that it began with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use spillway_config::schema::{Admin, LogFormat, MetricsPage};
use spillway_config::values::Size;
use spillway_config::{Loaded, Report};
use tokio::sync::mpsc;

use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::gateway::Gateway;
use crate::listener::ListenerSet;
use crate::load::{FileStates, file_states, file_states_as_read, read};
use crate::snapshot::{Compiler, Snapshot};

/// A file is read when its state has not changed for this long: a half-written YAML is often valid.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// Longest wait for files to settle; files that change all the time are read all the same.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(10);
/// Time between two looks at the files, beside events of the system: some file systems lose events.
const POLL: Duration = Duration::from_secs(2);

/// Keys that an edit cannot change.
pub const FIXED_KEYS: [&str; 7] = [
    "admin",
    "telemetry.logs.format",
    "telemetry.metrics.address",
    "telemetry.metrics.maxConnections",
    "limits.bufferedAnswers",
    "limits.limitKeys",
    "limits.modelMemory",
];

/// Result of the last edit, for operators.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastEdit {
    /// `ok` or `failed`.
    pub result: &'static str,
    /// Time of the edit, in Unix seconds.
    pub at: f64,
    /// Configuration file.
    pub file: PathBuf,
    /// Errors and warnings of the file.
    pub diagnostics: Report,
    /// Reasons why a valid file could not be run.
    pub errors: Vec<String>,
}

impl LastEdit {
    /// Result for the configuration that the process began with.
    pub fn started(path: &Path) -> Self {
        Self {
            result: "ok",
            at: unix_seconds(),
            file: path.to_owned(),
            diagnostics: Report::default(),
            errors: Vec::new(),
        }
    }
}

/// Applies edits of the configuration.
pub struct Reloader {
    /// Configuration file.
    pub path: PathBuf,
    /// Admin address since start; cannot be changed.
    pub admin: Option<Admin>,
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
    /// Result of the last edit, for operators.
    pub last_edit: Arc<ArcSwap<LastEdit>>,
}

/// Outcome of an edit, with the files that it names.
enum EditOutcome {
    Accepted(Vec<PathBuf>),
    Rejected(Vec<PathBuf>),
}

impl Reloader {
    /// Watches files and applies edits until it is dropped. `states` are the states of the running configuration's files
    /// when they were read: an edit made during the start is applied too. `requests` brings requests for a reload.
    pub async fn run(self, mut states: FileStates, mut requests: mpsc::Receiver<()>) {
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
    async fn reload(&self) -> EditOutcome {
        let (path, registry) = (self.path.clone(), self.compiler.registry.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, &registry, false)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => Arc::new(loaded),
            Ok(Err(mut report)) => {
                let files = std::mem::take(&mut report.files);
                self.failed(report, Vec::new());
                return EditOutcome::Rejected(files);
            }
            Err(e) => {
                self.failed(Report::default(), vec![e.to_string()]);
                return EditOutcome::Rejected(Vec::new());
            }
        };
        match self.apply(&loaded).await {
            Ok(generation) => {
                for warning in &loaded.warnings.diagnostics {
                    tracing::warn!(event = "config_warning", message = %warning.message, at = %warning.path, line = warning.line);
                }
                tracing::info!(event = "config_reloaded", generation);
                self.gateway.metrics.reloads_ok.inc();
                self.gateway.metrics.process.reloaded_at.set(unix_seconds());
                let diagnostics = loaded.warnings.clone();
                self.last_edit.store(Arc::new(LastEdit { diagnostics, ..LastEdit::started(&self.path) }));
                let files = loaded.files.clone();
                self.clear(loaded).await;
                EditOutcome::Accepted(files)
            }
            Err(errors) => {
                let errors = errors.iter().map(|error| loaded.origins.redact(error)).collect();
                self.failed(loaded.warnings.clone(), errors);
                EditOutcome::Rejected(loaded.files.clone())
            }
        }
    }

    /// Gives back what a configuration took to be read, and what only the one before it had: with large ones, on a thread of
    /// its own.
    async fn clear(&self, loaded: Arc<Loaded>) {
        let compiler = self.compiler.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            drop(loaded);
            compiler.states.sweep();
            compiler.endpoints.sweep();
            crate::memory::give_back();
        });
        let _ = cleared.await;
    }

    async fn apply(&self, loaded: &Arc<Loaded>) -> Result<u64, Vec<String>> {
        let config = &loaded.config;
        let metrics = &config.telemetry.metrics;
        let is_other = [
            config.admin != self.admin,
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
            return Err(fixed);
        }
        let previous = self.gateway.snapshot.load_full();
        // Steps that can fail come first and change nothing.
        let (written, acme) = (loaded.clone(), self.gateway.acme.clone());
        let plans = tokio::task::spawn_blocking(move || crate::listener::plans(&written.config, &acme)).await;
        let plans = plans.map_err(|e| vec![e.to_string()])??;
        let addresses: Vec<SocketAddr> = plans.iter().map(|plan| plan.address).collect();
        let prepared = self.listeners.prepare(&plans).map_err(|e| vec![e.to_string()])?;
        let snapshot = self.compile(loaded.clone(), previous).await?;
        let generation = snapshot.generation;
        // No further step can fail.
        snapshot.commit_steps.run();
        crate::descriptors::adopt(config);
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
        self.last_edit.store(Arc::new(LastEdit {
            result: "failed",
            diagnostics,
            errors,
            ..LastEdit::started(&self.path)
        }));
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
