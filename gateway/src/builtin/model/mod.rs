//! Built-in model: its engine, which is loaded when a request needs it and dropped when it is idle, and its counters. The
//! model owns the engine; the pool owns the list of models.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;
use spillway_config::schema::{Model, UnknownFields};
use spillway_engine::{ArtifactInfo, Engine, LoadOptions, Task};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::files::Identities;
use super::loading::{FindRoom, ModelError, NoEngine, load_engine};
use super::memory::{LoadedEngine, MemoryShare, ModelMemory, NoRoom};
use crate::batch::{LineCount, Seat};
use crate::protocol::BuiltinCard;
use crate::telemetry::{EngineSample, LogThrottle, Metrics, ModelMetrics};

/// Time until a model that could not be loaded on demand is tried again: reading a large file in vain is expensive.
const RELOAD_AFTER: Duration = Duration::from_secs(10);

/// Long conversations of one model that are turned into tokens at a time: more threads would take time from the proxy.
const ENCODERS: usize = 2;

/// Texts of filters that one model reads at a time: what more come would be late.
const FILTER_TEXTS: usize = 4;

/// Number of the next model.
static VERSIONS: AtomicU64 = AtomicU64::new(0);

/// Built-in model. A model that is not kept warm has no engine until a request needs it.
pub struct LoadedModel {
    written: Model,
    task: Task,
    labels: Arc<[String]>,
    has_probabilities: bool,
    files: Option<Identities>,
    options: LoadOptions,
    /// Bytes that the engine needs: estimated from the file, measured after the first load.
    needs: AtomicU64,
    memory: Arc<ModelMemory>,
    /// Number of times that the model was unloaded for another.
    evictions: AtomicU64,
    /// Number of times that the model could not be loaded for want of memory.
    no_room: AtomicU64,
    no_room_log: LogThrottle,
    state: Mutex<ModelState>,
    /// Lock of the task that loads the engine.
    loading: Arc<tokio::sync::Mutex<()>>,
    created: u64,
    served_by: HeaderValue,
    served_by_text: Arc<str>,
    metrics: Arc<ModelMetrics>,
    encoders: Arc<Semaphore>,
    /// Texts of filters.
    filter_texts: Arc<Semaphore>,
    version: u64,
    /// Sequences for requests over a limit.
    over_limit: Arc<Semaphore>,
    /// Lines of batches.
    lines: LineCount,
}

/// Part of a model that changes.
struct ModelState {
    engine: Option<LoadedEngine>,
    /// Memory share of a model that is kept warm: no other model gets it after the engine has ended.
    share: Option<MemoryShare>,
    /// Time of the last use.
    used: Instant,
    /// Time and reason of the last failed load.
    failed: Option<(Instant, String)>,
    /// Task that unloads the engine after it was idle for long.
    unloader: Option<tokio::task::AbortHandle>,
}

/// Reason why a model that is loaded on demand has no engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotLoaded {
    /// Loading takes longer than the request may.
    Loading,
    /// Loading failed; the next attempt is after this time.
    Failed(Duration),
    /// Models in use hold the memory.
    NoRoom,
}

/// Purpose of a model.
pub(super) struct Purpose {
    task: Task,
    /// Labels of a classifier.
    labels: Arc<[String]>,
    /// True if its scores are probabilities.
    has_probabilities: bool,
}

impl From<ArtifactInfo> for Purpose {
    fn from(info: ArtifactInfo) -> Self {
        Self { task: info.task, labels: info.labels.into(), has_probabilities: info.scoring.is_some() }
    }
}

impl LoadedModel {
    /// Creates a model without an engine. `needs` is the estimated size in bytes, `memory` the budget that pays for it.
    pub(super) fn new(
        written: &Model,
        purpose: Purpose,
        files: Option<Identities>,
        options: LoadOptions,
        (needs, memory): (u64, &Arc<ModelMemory>),
        metrics: &Metrics,
    ) -> Result<Self, ModelError> {
        let name = &written.name;
        let text = format!("builtin/{name}");
        let served_by = HeaderValue::from_bytes(text.as_bytes());
        Ok(Self {
            options,
            needs: AtomicU64::new(needs),
            memory: Arc::clone(memory),
            evictions: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            no_room_log: LogThrottle::default(),
            state: Mutex::new(ModelState {
                engine: None,
                share: None,
                used: Instant::now(),
                failed: None,
                unloader: None,
            }),
            loading: Arc::default(),
            written: written.clone(),
            task: purpose.task,
            labels: purpose.labels,
            has_probabilities: purpose.has_probabilities,
            files,
            created: crate::clock::unix_now(),
            served_by: served_by.map_err(|_| ModelError::Name { model: name.clone() })?,
            served_by_text: text.into(),
            metrics: metrics.model("spillway", name),
            lines: LineCount::default(),
            encoders: Arc::new(Semaphore::new(ENCODERS)),
            filter_texts: Arc::new(Semaphore::new(FILTER_TEXTS)),
            version: VERSIONS.fetch_add(1, Ordering::Relaxed),
            over_limit: Arc::new(Semaphore::new(share_of(written.max_sequences().get(), written.over_limit_share()))),
        })
    }

    /// True if built from the same configuration and files.
    pub(super) fn is(&self, written: &Model, files: Option<&Identities>) -> bool {
        files.is_some() && self.files.as_ref() == files && self.written == *written
    }

    /// Name in the configuration.
    pub fn name(&self) -> &str {
        &self.written.name
    }
    /// Number of the model as made from its configuration and files; no other one of the process has it.
    pub(super) fn version(&self) -> u64 {
        self.version
    }
    /// Permit for a text of a filter; `None` where as many are read as may.
    pub(super) fn filter_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.filter_texts.clone().try_acquire_owned().ok()
    }
    /// Permits for texts of filters.
    pub(super) fn filter_permits(&self) -> &Arc<Semaphore> {
        &self.filter_texts
    }
    /// Labels of a classifier, in the order of its scores.
    pub(super) fn labels(&self) -> &Arc<[String]> {
        &self.labels
    }
    /// True if the scores of a classifier can be turned into probabilities.
    pub(super) fn has_probabilities(&self) -> bool {
        self.has_probabilities
    }
    /// Task of the model.
    pub fn task(&self) -> Task {
        self.task
    }
    /// True if the engine is loaded.
    pub(super) fn is_loaded(&self) -> bool {
        self.state.lock().engine.is_some()
    }
    /// True if the engine is loaded, or may be loaded by the next request: its last load has not failed just now.
    pub fn can_answer(&self) -> bool {
        let state = self.state.lock();
        let has_failed = |(when, _): &(Instant, String)| when.elapsed() < RELOAD_AFTER;
        state.engine.is_some() || !state.failed.as_ref().is_some_and(has_failed)
    }
    /// Time at which the model was configured, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }
    /// Description for callers.
    pub fn card(&self) -> BuiltinCard<'_> {
        let engine = self.state.lock().engine.clone();
        BuiltinCard {
            id: self.name(),
            created: self.created,
            task: self.task,
            calls_tools: engine.as_ref().is_some_and(|engine| engine.tools().is_some()),
            info: engine.map(|engine| engine.info().clone()),
        }
    }
    /// Value of `x-spillway-served-by`.
    pub fn served_by(&self) -> &HeaderValue {
        &self.served_by
    }
    /// Value of `x-spillway-served-by` as text.
    pub fn served_by_text(&self) -> &Arc<str> {
        &self.served_by_text
    }
    /// Longest estimated wait for a first token at which a request is accepted.
    pub(super) fn max_queue_wait(&self) -> Duration {
        self.written.max_queue_wait.0
    }
    /// True if fields that the model does not know are refused.
    pub(super) fn refuses_unknown_fields(&self) -> bool {
        self.written.unknown_fields == UnknownFields::Refuse
    }
    /// Permits to encode a long conversation.
    pub(super) fn encoders(&self) -> &Arc<Semaphore> {
        &self.encoders
    }
    /// Acquires a slot for a request over a limit: within its share of the sequences, and only if a slot is free and no
    /// request waits, so that requests within their limits lose nothing.
    pub fn slot_over_limit(&self) -> Option<OwnedSemaphorePermit> {
        // A model that is not loaded has all slots free.
        let stats = self.state.lock().engine.as_ref().map(|engine| engine.stats()).unwrap_or_default();
        let all = usize::try_from(self.written.max_sequences().get()).unwrap_or(usize::MAX);
        if stats.waiting > 0 || stats.active >= all {
            return None;
        }
        self.over_limit.clone().try_acquire_owned().ok()
    }
    /// Takes a place for a line of a batch: where no request waits, and lines have not their `share` of the free slots yet.
    pub fn seat(&self, share: f64) -> Option<Seat> {
        let stats = self.state.lock().engine.as_ref().map(|engine| engine.stats()).unwrap_or_default();
        if stats.waiting > 0 {
            return None;
        }
        // The line itself runs soon.
        let in_flight = u32::try_from(stats.active).unwrap_or(u32::MAX).saturating_add(1);
        self.lines.take(self.written.max_sequences().get(), in_flight, share)
    }

    /// True if a request waits for a slot.
    pub fn is_crowded(&self) -> bool {
        self.state.lock().engine.as_ref().is_some_and(|engine| engine.stats().waiting > 0)
    }

    /// Handles on the series of its calls.
    pub fn metrics(&self) -> &Arc<ModelMetrics> {
        &self.metrics
    }
    /// Current state for metrics; mostly zero while the model is not loaded.
    pub fn sample(&self) -> EngineSample {
        // A clone of the engine alone does not keep the model from being unloaded.
        let engine = self.state.lock().engine.as_deref().cloned();
        let stats = engine.as_ref().map(Engine::stats).unwrap_or_default();
        let placement = engine.as_ref().map(Engine::placement);
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        EngineSample {
            model: self.written.name.clone(),
            active: wide(stats.active),
            waiting: wide(stats.waiting),
            kv_used: wide(stats.kv_used),
            kv_capacity: wide(stats.kv_capacity),
            kv_idle: wide(stats.kv_idle),
            cached: stats.cached_tokens,
            preemptions: stats.preemptions,
            faults: stats.faults,
            evictions: self.evictions.load(Ordering::Relaxed),
            no_room: self.no_room.load(Ordering::Relaxed),
            is_loaded: engine.is_some(),
            is_ready: stats.is_ready,
            estimated_wait: stats.estimated_wait,
            generated: stats.generated_tokens,
            prompt: stats.prompt_tokens,
            rate: placement.as_ref().map_or(0.0, |placement| placement.rate),
            bandwidth: placement.as_ref().map_or(0.0, |placement| placement.bandwidth),
            memory: placement.as_ref().map_or(0, |placement| placement.memory_bytes),
            device: placement.map(|placement| placement.device),
        }
    }

    /// Returns the engine if it is loaded. An engine that ended by a defect is dropped and loaded again after
    /// [`RELOAD_AFTER`], because the cause may recur.
    pub(super) fn engine_now(&self) -> Option<LoadedEngine> {
        let mut state = self.state.lock();
        state.used = Instant::now();
        if state.engine.as_ref().is_some_and(|engine| engine.has_ended()) {
            state.engine = None;
            state.failed = Some((Instant::now(), "the engine has ended".into()));
            tracing::error!(event = "model_ended", model = %self.written.name, retry_after = RELOAD_AFTER.as_secs_f64());
        }
        state.engine.clone()
    }

    /// Returns the engine, and loads it if needed. Loading continues for later requests if this one does not wait for its
    /// end.
    pub(super) async fn engine(self: &Arc<Self>, deadline: Instant) -> Result<LoadedEngine, NotLoaded> {
        if let Some(engine) = self.engine_now() {
            return Ok(engine);
        }
        let turn = tokio::time::timeout_at(deadline.into(), Arc::clone(&self.loading).lock_owned()).await;
        let Ok(turn) = turn else { return Err(NotLoaded::Loading) };
        if let Some(engine) = self.engine_now() {
            return Ok(engine);
        }
        if let Some((when, _)) = &self.state.lock().failed
            && let Some(left) = RELOAD_AFTER.checked_sub(when.elapsed())
        {
            return Err(NotLoaded::Failed(left));
        }
        let model = Arc::clone(self);
        let work = tokio::spawn(async move {
            let loaded = model.load().await;
            drop(turn);
            loaded
        });
        match tokio::time::timeout_at(deadline.into(), work).await {
            Err(_) => Err(NotLoaded::Loading),
            Ok(Ok(Ok(engine))) => Ok(engine),
            Ok(Ok(Err(ModelError::Room { source, .. }))) if source.needed <= source.limit => Err(NotLoaded::NoRoom),
            Ok(Ok(Err(_)) | Err(_)) => Err(NotLoaded::Failed(RELOAD_AFTER)),
        }
    }

    /// Loads the engine and keeps it.
    pub(super) async fn load(self: &Arc<Self>) -> Result<LoadedEngine, ModelError> {
        let loaded = self.load_into_room().await;
        let mut state = self.state.lock();
        state.used = Instant::now();
        match loaded {
            Ok(engine) => {
                state.engine = Some(engine.clone());
                state.failed = None;
                if !self.written.keep_warm {
                    let unload = tokio::spawn(unload_when_idle(Arc::downgrade(self), self.written.idle_unload()));
                    if let Some(before) = state.unloader.replace(unload.abort_handle()) {
                        before.abort();
                    }
                }
                Ok(engine)
            }
            Err(error) => {
                let log = |times: u64| {
                    tracing::error!(event = "model_not_loaded", model = %self.written.name, reason = %error, times);
                };
                match error {
                    // Memory that other models release may fit this one at any time; a need above the limit never fits.
                    // Every request tries again, so the log is throttled.
                    ModelError::Room { source: NoRoom { needed, limit, .. }, .. } if needed <= limit => {
                        self.no_room.fetch_add(1, Ordering::Relaxed);
                        self.no_room_log.add(1, log);
                    }
                    _ => {
                        log(1);
                        state.failed = Some((Instant::now(), error.to_string()));
                    }
                }
                Err(error)
            }
        }
    }

    async fn load_into_room(self: &Arc<Self>) -> Result<LoadedEngine, ModelError> {
        let model = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || model.load_by(load_engine)).await;
        let lost = |reason| ModelError::Lost { model: self.written.name.clone(), reason };
        loaded.map_err(|e| lost(e.to_string()))?.map_err(|e| e.of(&self.written.name))
    }

    fn load_by(
        &self,
        load: impl FnOnce(LoadOptions, FindRoom<'_>) -> Result<Engine, NoEngine>,
    ) -> Result<LoadedEngine, NoEngine> {
        let mut share = None;
        let loaded = load(self.options.clone(), &mut || {
            let taken = self.take_share()?;
            let hold = taken.hold();
            share = Some(taken);
            Ok(hold)
        });
        let engine = match loaded {
            // The engine asked for memory a second time.
            Err(NoEngine::Room(source)) if share.is_some() => return Err(NoEngine::Hangs(source)),
            loaded => loaded?,
        };
        let taken = engine.placement().memory_bytes;
        // If the size is too much, later requests know it without loading.
        self.needs.store(taken, Ordering::Relaxed);
        let share = share.map_or_else(|| self.take_share(), Ok)?;
        share.settle(taken).map_err(NoEngine::Room)?;
        Ok(LoadedEngine::new(engine, share))
    }

    /// Takes a memory share of the needed size: its own share if kept warm, unless a thread that hangs has memory there.
    fn take_share(&self) -> Result<MemoryShare, NoEngine> {
        let needs = self.needs.load(Ordering::Relaxed);
        let own = self.state.lock().share.clone().filter(MemoryShare::is_free);
        let share = match own {
            Some(own) => own.settle(needs).map(|()| own),
            None => self.memory.take(needs),
        };
        let share = share.map_err(NoEngine::Room)?;
        if self.written.keep_warm {
            self.state.lock().share = Some(share.clone());
        }
        Ok(share)
    }

    /// Takes the memory share of a model that is kept warm.
    pub(super) fn reserve(&self) -> Result<(), ModelError> {
        if self.written.keep_warm {
            self.take_share().map_err(|e| e.of(&self.written.name))?;
        }
        Ok(())
    }

    /// Releases the memory share of a model that is kept warm, for the model that replaces it.
    pub(super) fn release_share(&self) {
        drop(self.state.lock().share.take());
    }

    /// Time of the last use and the bytes of the engine, if it may be unloaded.
    pub(super) fn idle(&self) -> Option<(Instant, u64)> {
        let state = self.state.lock();
        let engine = state.engine.as_ref().filter(|engine| !self.written.keep_warm && engine.is_idle())?;
        Some((state.used, engine.bytes()))
    }

    /// Drops the engine for another model; false if it is in use again.
    pub(super) fn make_room(&self) -> bool {
        let mut state = self.state.lock();
        if !state.engine.as_ref().is_some_and(LoadedEngine::is_idle) {
            return false;
        }
        let engine = state.engine.take();
        drop(state);
        self.evictions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(event = "model_unloaded", model = %self.written.name, reason = "another model needs its memory");
        drop(engine);
        true
    }

    /// Drops the engine if it was idle for `idle`; else returns the time until then.
    fn unload_if_idle(&self, idle: Duration) -> Option<Duration> {
        let mut state = self.state.lock();
        if !state.engine.as_ref()?.is_idle() {
            state.used = Instant::now();
        }
        let left = idle.checked_sub(state.used.elapsed()).filter(|left| !left.is_zero());
        if left.is_none() {
            state.engine = None;
            tracing::info!(event = "model_unloaded", model = %self.written.name, idle_seconds = idle.as_secs_f64());
        }
        left
    }
}

/// Unloads a model that was idle for long; ends with the model or its engine.
async fn unload_when_idle(model: Weak<LoadedModel>, idle: Duration) {
    let mut wait = idle;
    loop {
        tokio::time::sleep(wait).await;
        let Some(model) = model.upgrade() else { return };
        match model.unload_if_idle(idle) {
            Some(left) => wait = left,
            None => return,
        }
    }
}

/// Share of a number of sequences: at least one, unless the share is zero.
fn share_of(sequences: u32, share: f64) -> usize {
    if share <= 0.0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the number of sequences")]
    let slots = (f64::from(sequences) * share.min(1.0)).floor().max(1.0) as usize;
    slots
}

#[cfg(test)]
impl LoadedModel {
    /// Creates a model without an engine.
    pub(super) fn for_tests(written: &Model) -> Arc<Self> {
        Self::within(written, 0, &ModelMemory::new(None))
    }

    /// Creates a model that needs `needs` bytes of a budget.
    fn within(written: &Model, needs: u64, memory: &Arc<ModelMemory>) -> Arc<Self> {
        let options = super::options(written, None).unwrap();
        let purpose = Purpose { task: Task::Generate, labels: Arc::default(), has_probabilities: false };
        Arc::new(Self::new(written, purpose, None, options, (needs, memory), &Metrics::new()).unwrap())
    }
}

#[cfg(test)]
mod tests;
