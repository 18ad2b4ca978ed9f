//! Figures that callers read without asking the thread: running and waiting requests, cost of steps, and so the
//! estimated time to a first token. Written by the thread, read by everybody; figures may be a step old.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pace::{Pace, PendingPrompt, place, rows_until_read};
use super::prefixes::Prefixes;
use super::queue::TenantKey;
use crate::exec::{PAGE, Sizes};
use crate::runner::ThreadHealth;
use crate::{Busy, BusyReason, EngineStats, Generate};

/// Weight of the newest measurement in an average, as a power of two: an eighth.
const SMOOTHING: u32 = 3;
/// Tokens assumed for an answer before any was measured.
const FIRST_ANSWER: u64 = 64;
/// Age of the measured pace from which an idle engine that refuses a prompt measures it again. Otherwise one slow step
/// could keep it idle: only running corrects an estimate.
const PACE_AGE: Duration = Duration::from_secs(1);
/// Share of the queue that one tenant may fill, in quarters, so that others find room.
const TENANT_QUARTERS: usize = 3;

/// A refused request.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) busy: Busy,
    /// The engine is idle and refused by a pace that was measured a while ago.
    pub(super) wants_pace: bool,
}

/// A request that waits for slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    choices: usize,
    prompt: usize,
}

impl Waiting {
    fn of(request: &Generate) -> Self {
        Self { choices: usize::try_from(request.choices.get()).unwrap_or(usize::MAX), prompt: request.prompt.len() }
    }
}

/// Requests that are served before a new one.
#[derive(Default)]
struct WaitingLine {
    /// Waiting requests by tenant, in their order; only tenants with some.
    waiting: HashMap<TenantKey, VecDeque<Waiting>>,
    /// Prompts of the last step, as before it.
    reading: Vec<PendingPrompt>,
    /// Prompt rows before the last step.
    rows_read: u64,
    /// Cost of the last step.
    pace: Pace,
    /// Time of the last step, or of the last demand for one.
    paced: Option<Instant>,
    /// Tokens for which pages were available.
    room: usize,
}

impl WaitingLine {
    fn waiting(&self) -> usize {
        self.waiting.values().map(choices).sum()
    }

    /// Requests of `tenant`, and of each other tenant one more than these: tenants take turns.
    fn before<'a>(&'a self, tenant: &'a TenantKey) -> impl Iterator<Item = &'a Waiting> + Clone {
        let mine = self.waiting.get(tenant).map_or(0, VecDeque::len);
        self.waiting.iter().flat_map(move |(key, of_tenant)| {
            of_tenant.iter().take(if key == tenant { usize::MAX } else { mine.saturating_add(1) })
        })
    }
}

fn choices(waiting: &VecDeque<Waiting>) -> usize {
    waiting.iter().map(|request| request.choices).sum()
}

pub(super) struct SchedulerState {
    sizes: Sizes,
    queue: usize,
    max_wait: Duration,
    pub(super) health: Arc<ThreadHealth>,
    pub(super) prefixes: Arc<Prefixes>,
    /// A request was refused for lack of room since the scheduler last looked.
    refused: AtomicBool,
    running: AtomicUsize,
    line: Mutex<WaitingLine>,
    kv_used: AtomicUsize,
    kv_idle: AtomicUsize,
    /// Moving averages: duration of a decoding step, length of an answer.
    step_nanos: AtomicU64,
    answer_tokens: AtomicU64,
    generated: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    preemptions: AtomicU64,
}

fn average(cell: &AtomicU64, new: u64) {
    // Single writer: the scheduler's thread.
    let old = cell.load(Ordering::Relaxed);
    let next = if old == 0 { new } else { old - (old >> SMOOTHING) + (new >> SMOOTHING) };
    cell.store(next.max(1), Ordering::Relaxed);
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl SchedulerState {
    pub(super) fn new(sizes: Sizes, queue: usize, max_wait: Duration) -> Self {
        Self {
            sizes,
            queue,
            max_wait,
            health: Arc::default(),
            prefixes: Arc::default(),
            refused: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            line: Mutex::default(),
            kv_used: AtomicUsize::new(0),
            kv_idle: AtomicUsize::new(0),
            step_nanos: AtomicU64::new(0),
            answer_tokens: AtomicU64::new(FIRST_ANSWER),
            generated: AtomicU64::new(0),
            prompt: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
        }
    }

    fn line(&self) -> MutexGuard<'_, WaitingLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request into the queue, or returns the reason for refusing it.
    pub(super) fn enter(&self, request: &Generate) -> Result<(), Refused> {
        let refused = |reason, retry_after: Duration| {
            Err(Refused { busy: Busy { reason, retry_after: retry_after.max(self.step()) }, wants_pace: false })
        };
        if self.health.is_stopped() {
            return Err(Refused { busy: self.stopped(), wants_pace: false });
        }
        if self.health.is_recovering() {
            return refused(BusyReason::Recovering, Duration::from_secs(1));
        }
        let new = Waiting::of(request);
        if new.choices > self.sizes.slots {
            return refused(BusyReason::TooManyChoices, Duration::ZERO);
        }
        let unread = new.prompt.saturating_sub(self.prefixes.cached(request.prompt.tokens()));
        let mut line = self.line();
        let wait = self.wait_in(&line, new.prompt, unread, &request.tenant);
        let now = Instant::now();
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(now));
        let is_late = left.is_some_and(|left| left.is_zero());
        if is_late || wait > left.map_or(self.max_wait, |left| left.min(self.max_wait)) {
            let idle = line.waiting.is_empty() && self.running.load(Ordering::Acquire) == 0;
            if !idle {
                self.refused.store(true, Ordering::Relaxed);
            }
            let wants_pace = idle && line.paced.is_none_or(|paced| now.saturating_duration_since(paced) >= PACE_AGE);
            if wants_pace {
                line.paced = Some(now);
            }
            let reason = if idle && !is_late { BusyReason::PromptTooLong } else { BusyReason::WaitTooLong };
            let retry_after = wait.saturating_sub(self.max_wait).max(self.step());
            return Err(Refused { busy: Busy { reason, retry_after }, wants_pace });
        }
        let places = self.sizes.slots.saturating_add(self.queue);
        if line.waiting() + self.running.load(Ordering::Relaxed) + new.choices > places {
            self.refused.store(true, Ordering::Relaxed);
            return refused(BusyReason::QueueFull, wait);
        }
        let mine = line.waiting.get(&request.tenant).map_or(0, choices);
        // Requests without a tenant have no share of the queue.
        if request.tenant.is_some() && mine > 0 && mine + new.choices > (self.queue * TENANT_QUARTERS).div_ceil(4) {
            return refused(BusyReason::TenantQueueFull, wait);
        }
        line.waiting.entry(request.tenant.clone()).or_default().push_back(new);
        Ok(())
    }

    pub(super) fn stopped(&self) -> Busy {
        Busy { reason: BusyReason::Stopped, retry_after: Duration::from_secs(1) }
    }

    /// True once after a request was refused for lack of room.
    pub(super) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// Records that a request left the queue without a slot.
    pub(super) fn leave_queue(&self, request: &Generate) {
        let left = Waiting::of(request);
        let mut line = self.line();
        if let Some(of_tenant) = line.waiting.get_mut(&request.tenant) {
            if let Some(at) = of_tenant.iter().position(|waiting| *waiting == left) {
                of_tenant.remove(at);
            }
            if of_tenant.is_empty() {
                line.waiting.remove(&request.tenant);
            }
        }
    }

    /// Records that a request got its slots.
    pub(super) fn admitted(&self, request: &Generate) {
        self.running.fetch_add(usize::try_from(request.choices.get()).unwrap_or(0), Ordering::AcqRel);
        self.leave_queue(request);
    }

    /// Records the release of slots, with the average length of answers that came to their end.
    pub(super) fn left(&self, answer: Option<usize>) {
        if let Some(answer) = answer {
            average(&self.answer_tokens, wide(answer).max(1));
        }
    }

    /// Records the plan of a step: its cost, the prompts and rows before it, and the tokens for which pages remain.
    pub(super) fn planned(&self, pace: Pace, reading: &[PendingPrompt], rows_read: u64, room: usize) {
        let mut line = self.line();
        line.pace = pace;
        line.paced = Some(Instant::now());
        line.rows_read = rows_read;
        line.room = room;
        line.reading.clear();
        line.reading.extend_from_slice(reading);
    }

    pub(super) fn set_running(&self, running: usize, kv_used: usize, kv_idle: usize) {
        self.running.store(running, Ordering::Release);
        self.kv_used.store(kv_used, Ordering::Relaxed);
        self.kv_idle.store(kv_idle, Ordering::Relaxed);
    }

    /// Counts prompt tokens that were prefilled or found in the cache.
    pub(super) fn read(&self, tokens: usize, cached: bool) {
        self.prompt.fetch_add(wide(tokens), Ordering::Relaxed);
        if cached {
            self.cached.fetch_add(wide(tokens), Ordering::Relaxed);
        }
    }

    /// Counts a decoded token.
    pub(super) fn wrote(&self) {
        self.generated.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a preemption.
    pub(super) fn preempted(&self) {
        self.preemptions.fetch_add(1, Ordering::Relaxed);
    }

    /// Records the duration of a step.
    pub(super) fn measured(&self, has_prompts: bool, took: Duration) {
        if !has_prompts {
            average(&self.step_nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn step(&self) -> Duration {
        Duration::from_nanos(self.step_nanos.load(Ordering::Relaxed))
    }

    /// Estimated time to the first token of a prompt of this length, none of it cached, if `tenant` submitted it now.
    pub(super) fn estimated_wait(&self, prompt_tokens: usize, tenant: &TenantKey) -> Duration {
        self.wait_in(&self.line(), prompt_tokens, prompt_tokens, tenant)
    }

    /// Time to prefill the `unread` tokens of a prompt beside the current ones, by the sharing of steps. If no slot or
    /// no pages are free, time for all prompts before it and for the rest of the answers before it.
    fn wait_in(&self, line: &WaitingLine, prompt: usize, unread: usize, tenant: &TenantKey) -> Duration {
        let before = line.before(tenant);
        let ahead = before.clone().map(|waiting| waiting.choices).sum::<usize>() + self.running.load(Ordering::Relaxed);
        let places = self.sizes.slots.max(1);
        let prompts = before.map(|waiting| waiting.prompt);
        let pages = prompts.clone().fold(prompt, usize::saturating_add);
        // A request that waits for an end is overtaken by none and overtakes none.
        let short_of = if ahead >= places { ahead - places + 1 } else { usize::from(pages > line.room) };
        if short_of == 0 {
            let comes = |unread| PendingPrompt { unread, place: place(line.rows_read, unread) };
            let readers = line.reading.iter().copied().chain(prompts.map(comes));
            return line.pace.time_of(rows_until_read(unread, readers, line.rows_read, line.pace.rows));
        }
        let before = line.reading.iter().map(|reader| reader.unread).chain(prompts);
        let reading = line.pace.time_of(before.fold(unread, usize::saturating_add));
        // Answers end evenly over their length: the n-th slot is free after n / slots of one.
        let answer = self.step_nanos.load(Ordering::Relaxed).saturating_mul(self.answer_tokens.load(Ordering::Relaxed));
        let writing = answer.saturating_mul(wide(short_of)) / wide(places.min(ahead.max(1)));
        reading.saturating_add(Duration::from_nanos(writing))
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(super) fn stats(&self) -> EngineStats {
        let step = self.step_nanos.load(Ordering::Relaxed);
        let waiting = self.line().waiting();
        EngineStats {
            active: self.running.load(Ordering::Relaxed),
            waiting,
            estimated_wait: self.estimated_wait(32, &None),
            generated_tokens: self.generated.load(Ordering::Relaxed),
            prompt_tokens: self.prompt.load(Ordering::Relaxed),
            kv_used: self.kv_used.load(Ordering::Relaxed),
            kv_capacity: (self.sizes.pages - 1) * PAGE,
            kv_idle: self.kv_idle.load(Ordering::Relaxed),
            cached_tokens: self.cached.load(Ordering::Relaxed),
            preemptions: self.preemptions.load(Ordering::Relaxed),
            is_ready: self.health.is_ready(),
            faults: self.health.faults(),
            decode_rate: if step == 0 { 0.0 } else { 1e9 / step as f64 },
        }
    }
}
