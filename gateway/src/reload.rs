//! An edit of the configuration: noticed, read when it has come to rest, compiled beside the running one, swapped in
//! whole or kept out whole, and reported. A request that runs keeps what it began with.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use spillway_config::schema::{Admin, LogFormat};
use spillway_config::values::Size;
use spillway_config::{Loaded, Report};
use tokio::sync::mpsc;

use crate::balancing::Supervisor;
use crate::clock::unix_seconds;
use crate::gateway::Gateway;
use crate::listener::ListenerSet;
use crate::load::{Seen, look, look_again, read};
use crate::snapshot::Compiler;

/// A file is read when its size and time have not changed for this long: a half-written YAML is often valid.
const REST: Duration = Duration::from_millis(200);
/// Longest wait for files to come to rest; what never rests is read all the same.
const RESTLESS: Duration = Duration::from_secs(10);
/// How often files are looked at where the system gives no events, and beside them: some file systems lose events.
const POLL: Duration = Duration::from_secs(2);

/// What became of the last edit, for operators.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastEdit {
    /// `ok` or `failed`.
    pub result: &'static str,
    /// Unix seconds.
    pub at: f64,
    /// The file.
    pub file: PathBuf,
    /// Mistakes and warnings of the file.
    pub diagnostics: Report,
    /// Why it could not be run, where the file itself is sound.
    pub errors: Vec<String>,
}

impl LastEdit {
    /// The configuration that the process began with.
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

/// Takes edits.
pub struct Reloader {
    /// The configuration file.
    pub path: PathBuf,
    /// The admin address as it was at start; it cannot be changed.
    pub admin: Option<Admin>,
    /// The log format, likewise.
    pub log_format: LogFormat,
    /// Memory for answers that wait for their clients, likewise.
    pub buffered_answers: Size,
    /// Memory for all models as the process started with it.
    pub model_memory: Option<Size>,
    /// The most levels of limits, likewise.
    pub limit_keys: u32,
    /// What runs.
    pub gateway: Arc<Gateway>,
    /// Makes snapshots.
    pub compiler: Arc<Compiler>,
    /// Open listeners.
    pub listeners: Arc<ListenerSet>,
    /// Health checks, readings of metrics, names.
    pub supervisor: Arc<Supervisor>,
    /// For operators.
    pub last_edit: Arc<ArcSwap<LastEdit>>,
}

/// What became of an edit, with the files that it names.
enum Attempt {
    Taken(Vec<PathBuf>),
    KeptOut(Vec<PathBuf>),
}

impl Reloader {
    /// Watches files and takes edits until it is dropped. `seen` is what the files of the running configuration were when
    /// they were read: starting takes time, and an edit made meanwhile is taken too. `asked` brings requests for a reload.
    pub async fn run(self, mut seen: Seen, mut asked: mpsc::Receiver<()>) {
        let mut running: Vec<PathBuf> = seen.keys().cloned().collect();
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
                Some(()) = asked.recv() => true,
            };
            if look(&files) == seen && !by_hand {
                continue;
            }
            seen = rest(&files).await;
            let began = SystemTime::now();
            let attempt = self.reload().await;
            let (Attempt::Taken(named) | Attempt::KeptOut(named)) = &attempt;
            for (file, state) in look_again(named, began) {
                seen.entry(file).or_insert(state);
            }
            match attempt {
                Attempt::Taken(named) => {
                    running.clone_from(&named);
                    files = named;
                }
                // Mending a file that only this edit names may mend the edit.
                Attempt::KeptOut(named) => {
                    files = running.iter().cloned().chain(named).collect::<BTreeSet<_>>().into_iter().collect();
                }
            }
            seen.retain(|file, _| files.contains(file));
        }
    }

    /// Takes one edit or keeps it out.
    async fn reload(&self) -> Attempt {
        let (path, registry) = (self.path.clone(), self.compiler.registry.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, &registry, false)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(mut report)) => {
                let files = std::mem::take(&mut report.files);
                self.failed(report, Vec::new());
                return Attempt::KeptOut(files);
            }
            Err(e) => {
                self.failed(Report::default(), vec![e.to_string()]);
                return Attempt::KeptOut(Vec::new());
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
                self.last_edit
                    .store(Arc::new(LastEdit { diagnostics: loaded.warnings, ..LastEdit::started(&self.path) }));
                Attempt::Taken(loaded.files)
            }
            Err(errors) => {
                let errors = errors.iter().map(|error| loaded.origins.redact(error)).collect();
                self.failed(loaded.warnings, errors);
                Attempt::KeptOut(loaded.files)
            }
        }
    }

    async fn apply(&self, loaded: &Loaded) -> Result<u64, Vec<String>> {
        let config = &loaded.config;
        let mut fixed = Vec::new();
        if config.admin != self.admin {
            fixed.push("`admin` cannot be changed while the gateway runs: restart it".to_owned());
        }
        if config.telemetry.logs.format != self.log_format {
            fixed.push("`telemetry.logs.format` cannot be changed while the gateway runs: restart it".to_owned());
        }
        if config.limits.buffered_answers != self.buffered_answers {
            fixed.push("`limits.bufferedAnswers` cannot be changed while the gateway runs: restart it".to_owned());
        }
        if config.limits.limit_keys != self.limit_keys {
            fixed.push("`limits.limitKeys` cannot be changed while the gateway runs: restart it".to_owned());
        }
        if config.limits.model_memory != self.model_memory {
            fixed.push("`limits.modelMemory` cannot be changed while the gateway runs: restart it".to_owned());
        }
        if !fixed.is_empty() {
            return Err(fixed);
        }
        let previous = self.gateway.snapshot.load_full();
        // Whatever can fail comes first; from here on nothing is changed until nothing can.
        let written = config.clone();
        let acme = self.gateway.acme.clone();
        let plans = tokio::task::spawn_blocking(move || crate::listener::plans(&written, &acme)).await;
        let plans = plans.map_err(|e| vec![e.to_string()])??;
        let prepared = self.listeners.prepare(&plans).map_err(|e| vec![e.to_string()])?;
        let snapshot = self.compiler.compile(loaded, Some(&previous)).await.map_err(|e| e.0)?;
        let generation = snapshot.generation;
        // Nothing can fail any more.
        snapshot.adoptions.run();
        crate::descriptors::reserve(config.limits.reserved_descriptors);
        self.gateway.audit.adopt(&config.telemetry.audit);
        let limits = &config.limits;
        self.gateway.bodies.adopt(limits.buffered_bodies.0, limits.buffered_bodies_per_caller.0);
        self.supervisor.apply(std::mem::take(&mut *snapshot.cares.lock()));
        self.gateway.snapshot.store(Arc::new(snapshot));
        self.listeners.commit(prepared, &self.gateway);
        Ok(generation)
    }

    fn failed(&self, diagnostics: Report, errors: Vec<String>) {
        self.gateway.metrics.reloads_failed.inc();
        let mut told = diagnostics.to_string();
        for error in &errors {
            told.push_str(error);
            told.push('\n');
        }
        tracing::error!(event = "config_rejected", file = %self.path.display(), reason = %told.trim_end(), "the running configuration is kept");
        self.last_edit.store(Arc::new(LastEdit {
            result: "failed",
            diagnostics,
            errors,
            ..LastEdit::started(&self.path)
        }));
    }
}

/// Watches the folders that files lie in: editors put a new file in place of the old one, and Kubernetes a new link.
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

/// Waits until files have come to rest.
async fn rest(files: &[PathBuf]) -> Seen {
    let started = tokio::time::Instant::now();
    let mut last = look(files);
    loop {
        tokio::time::sleep(REST).await;
        let now = look(files);
        if now == last || started.elapsed() > RESTLESS {
            return now;
        }
        last = now;
    }
}
