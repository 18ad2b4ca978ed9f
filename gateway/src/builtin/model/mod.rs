//! A model inside the gateway: its engine, which is loaded when it is needed and let go when nobody needs it, and what is
//! counted of it. It owns the engine; which models there are says the pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;
use spillway_config::schema::Model;
use spillway_engine::{Engine, LoadOptions, Task};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::files::Identities;
use super::loading::{FindRoom, ModelError, NoEngine, load_engine};
use super::memory::{Held, ModelMemory, NoRoom, Place};
use crate::telemetry::{EngineSample, Metrics, ModelMetrics, Seldom};

/// How long a model that could not be loaded on demand is not tried again.
const RELOAD_AFTER: Duration = Duration::from_secs(10);

/// Long conversations of one model that are turned into tokens at the same time.
const ENCODERS: usize = 2;

/// A model inside the gateway. One that is not kept warm has no engine until somebody needs it.
pub struct LoadedModel {
    written: Model,
    task: Task,
    files: Option<Identities>,
    options: LoadOptions,
    /// Bytes that it will take: as its file says, and once it was loaded as it took.
    needs: AtomicU64,
    memory: Arc<ModelMemory>,
    /// How often it was unloaded for another, and could not be loaded for want of memory.
    evictions: AtomicU64,
    no_room: AtomicU64,
    no_room_told: Seldom,
    state: Mutex<State>,
    /// Held by whoever loads it.
    loading: Arc<tokio::sync::Mutex<()>>,
    created: u64,
    served_by: HeaderValue,
    served_by_text: Arc<str>,
    metrics: Arc<ModelMetrics>,
    encoders: Arc<Semaphore>,
    /// Sequences for requests over a limit.
    over_limit: Arc<Semaphore>,
}

struct State {
    engine: Option<Held>,
    /// The place in the budget of one that is kept warm: no other model gets it when its engine has ended.
    place: Option<Place>,
    /// When it was needed last.
    used: Instant,
    /// When it could not be loaded, and why.
    failed: Option<(Instant, String)>,
    /// What unloads it when it is idle for long.
    unloader: Option<tokio::task::AbortHandle>,
}

/// Why a model that is loaded on demand is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotLoaded {
    /// It is being loaded and that takes longer than the request may.
    Loading,
    /// It could not be loaded; it is tried again after this time.
    Failed(Duration),
    /// Others that are in use hold the memory.
    NoRoom,
}

impl LoadedModel {
    /// A model that nothing was loaded of yet; the bytes that its file says it will take, and the budget they come from.
    pub(super) fn new(
        written: &Model,
        task: Task,
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
            no_room_told: Seldom::default(),
            state: Mutex::new(State { engine: None, place: None, used: Instant::now(), failed: None, unloader: None }),
            loading: Arc::default(),
            written: written.clone(),
            task,
            files,
            created: crate::clock::unix_now(),
            served_by: served_by.map_err(|_| ModelError::Name { model: name.clone() })?,
            served_by_text: text.into(),
            metrics: metrics.model("spillway", name),
            encoders: Arc::new(Semaphore::new(ENCODERS)),
            over_limit: Arc::new(Semaphore::new(share_of(written.max_sequences().get(), written.over_limit_share()))),
        })
    }

    /// Whether it is what would be made of this writing and these files.
    pub(super) fn is(&self, written: &Model, files: Option<&Identities>) -> bool {
        files.is_some() && self.files.as_ref() == files && self.written == *written
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.written.name
    }
    /// What it is for.
    pub fn task(&self) -> Task {
        self.task
    }
    /// Whether it has an engine.
    pub(super) fn is_loaded(&self) -> bool {
        self.state.lock().engine.is_some()
    }
    /// When it was configured, Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }
    /// What `x-spillway-served-by` says.
    pub fn served_by(&self) -> &HeaderValue {
        &self.served_by
    }
    /// The same as text.
    pub fn served_by_text(&self) -> &Arc<str> {
        &self.served_by_text
    }
    /// Longest estimated wait for a first token at which a request is taken.
    pub(super) fn max_queue_wait(&self) -> Duration {
        self.written.max_queue_wait.0
    }
    /// Turns to encode a long conversation.
    pub(super) fn encoders(&self) -> &Arc<Semaphore> {
        &self.encoders
    }
    /// A place for a request that is over a limit: within its share of the sequences, and only where one is free and
    /// nobody waits, so that it takes nothing from requests within their limits.
    pub fn place_over_limit(&self) -> Option<OwnedSemaphorePermit> {
        // One that is not loaded has all places.
        let stats = self.state.lock().engine.as_ref().map(|engine| engine.stats()).unwrap_or_default();
        let all = usize::try_from(self.written.max_sequences().get()).unwrap_or(usize::MAX);
        if stats.waiting > 0 || stats.active >= all {
            return None;
        }
        self.over_limit.clone().try_acquire_owned().ok()
    }
    /// Series of its calls.
    pub fn metrics(&self) -> &Arc<ModelMetrics> {
        &self.metrics
    }
    /// What it says of itself now; little while it is not loaded.
    pub fn sample(&self) -> EngineSample {
        // Not a holder: what is only looked at may still be unloaded.
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

    /// The engine, where it is loaded. One that has ended by a defect is let go, and loaded again after a while: what
    /// ended it may come again.
    pub(super) fn engine_now(&self) -> Option<Held> {
        let mut state = self.state.lock();
        state.used = Instant::now();
        if state.engine.as_ref().is_some_and(|engine| engine.has_ended()) {
            state.engine = None;
            state.failed = Some((Instant::now(), "it has ended".into()));
            tracing::error!(event = "model_ended", model = %self.written.name, retry_after = RELOAD_AFTER.as_secs_f64());
        }
        state.engine.clone()
    }

    /// The engine; it is loaded where it is not. Loading goes on for the next when this one does not wait for its end.
    pub(super) async fn engine(self: &Arc<Self>, deadline: Instant) -> Result<Held, NotLoaded> {
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

    /// Loads it and keeps it.
    pub(super) async fn load(self: &Arc<Self>) -> Result<Held, ModelError> {
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
                let tell = |times: u64| {
                    tracing::error!(event = "model_not_loaded", model = %self.written.name, reason = %error, times);
                };
                match error {
                    // Others that are done with their memory make room at any time; what is more than there is never fits.
                    // Every request asks, so that not each of them is a line.
                    ModelError::Room { source: NoRoom { needed, limit, .. }, .. } if needed <= limit => {
                        self.no_room.fetch_add(1, Ordering::Relaxed);
                        self.no_room_told.add(1, tell);
                    }
                    _ => {
                        tell(1);
                        state.failed = Some((Instant::now(), error.to_string()));
                    }
                }
                Err(error)
            }
        }
    }

    async fn load_into_room(self: &Arc<Self>) -> Result<Held, ModelError> {
        let model = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || model.load_by(load_engine)).await;
        let lost = |reason| ModelError::Lost { model: self.written.name.clone(), reason };
        loaded.map_err(|e| lost(e.to_string()))?.map_err(|e| e.of(&self.written.name))
    }

    fn load_by(
        &self,
        load: impl FnOnce(LoadOptions, FindRoom<'_>) -> Result<Engine, NoEngine>,
    ) -> Result<Held, NoEngine> {
        let mut place = None;
        let loaded = load(self.options.clone(), &mut || {
            let taken = self.take_place()?;
            let hold = taken.hold();
            place = Some(taken);
            Ok(hold)
        });
        let engine = match loaded {
            // It was asked for a second time.
            Err(NoEngine::Room(source)) if place.is_some() => return Err(NoEngine::Hangs(source)),
            loaded => loaded?,
        };
        let taken = engine.placement().memory_bytes;
        // Where that is too much, it is not loaded again to find out.
        self.needs.store(taken, Ordering::Relaxed);
        let place = place.map_or_else(|| self.take_place(), Ok)?;
        place.settle(taken).map_err(NoEngine::Room)?;
        Ok(Held::new(engine, place))
    }

    /// A place for what it needs: its own where it is kept warm, unless a thread that hangs has memory there.
    fn take_place(&self) -> Result<Place, NoEngine> {
        let needs = self.needs.load(Ordering::Relaxed);
        let own = self.state.lock().place.clone().filter(Place::is_free);
        let place = match own {
            Some(own) => own.settle(needs).map(|()| own),
            None => self.memory.take(needs),
        };
        let place = place.map_err(NoEngine::Room)?;
        if self.written.keep_warm {
            self.state.lock().place = Some(place.clone());
        }
        Ok(place)
    }

    /// Takes the share of the memory that it has while it is loaded, where it is kept warm.
    pub(super) fn reserve(&self) -> Result<(), ModelError> {
        if self.written.keep_warm {
            self.take_place().map_err(|e| e.of(&self.written.name))?;
        }
        Ok(())
    }

    /// Gives back the place of one that is kept warm, for the one that is to replace it. It finds another if it is needed.
    pub(super) fn give_place_back(&self) {
        drop(self.state.lock().place.take());
    }

    /// Since when nobody has needed it, and the bytes that it holds, where it may be unloaded.
    pub(super) fn idle(&self) -> Option<(Instant, u64)> {
        let state = self.state.lock();
        let engine = state.engine.as_ref().filter(|engine| !self.written.keep_warm && engine.is_idle())?;
        Some((state.used, engine.bytes()))
    }

    /// Lets its engine go for another model; false where somebody has it again.
    pub(super) fn make_room(&self) -> bool {
        let mut state = self.state.lock();
        if !state.engine.as_ref().is_some_and(Held::is_idle) {
            return false;
        }
        let engine = state.engine.take();
        drop(state);
        self.evictions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(event = "model_unloaded", model = %self.written.name, reason = "another needs its memory");
        drop(engine);
        true
    }

    /// Lets its engine go if nobody has needed it for so long; else says how long it may yet be needed.
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

/// Ends with the model, or when it was let go.
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

/// A share of some sequences: one at least, unless the share is nothing.
fn share_of(sequences: u32, share: f64) -> usize {
    if share <= 0.0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the number of sequences")]
    let places = (f64::from(sequences) * share.min(1.0)).floor().max(1.0) as usize;
    places
}

#[cfg(test)]
impl LoadedModel {
    /// A model that nothing was loaded of.
    pub(super) fn for_tests(written: &Model) -> Arc<Self> {
        Self::within(written, 0, &ModelMemory::new(None))
    }

    /// One that needs so much of a budget.
    fn within(written: &Model, needs: u64, memory: &Arc<ModelMemory>) -> Arc<Self> {
        let options = super::options(written, None).unwrap();
        Arc::new(Self::new(written, Task::Generate, None, options, (needs, memory), &Metrics::new()).unwrap())
    }
}

#[cfg(test)]
mod tests;
