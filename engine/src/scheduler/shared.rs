//! What callers may know without asking the thread: how many run and wait, what steps cost, hence how long a first
//! token would take. Written by the thread, read by everybody; figures may be a step old.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::queue::TenantKey;
use crate::exec::{PAGE, Sizes};
use crate::{Busy, BusyReason, EngineStats, Generate};

/// Weight of the newest measurement in an average, as a power of two: an eighth.
const SMOOTHING: u32 = 3;
/// Length of an answer before any was measured.
const FIRST_ANSWER: u64 = 64;
/// Part of the queue that one tenant may fill, in quarters: somebody else must find a place.
const TENANT_QUARTERS: usize = 3;

pub(super) struct Shared {
    sizes: Sizes,
    queue: usize,
    max_wait: Duration,
    stopped: AtomicBool,
    recovering: AtomicBool,
    /// A request was refused for want of room since this was last looked at.
    refused: AtomicBool,
    running: AtomicUsize,
    /// Sequences that wait, by tenant; only of tenants who wait.
    waiting: Mutex<HashMap<TenantKey, usize>>,
    /// Prompt tokens that are not read yet, of those who run and wait.
    prompt_pending: AtomicUsize,
    kv_used: AtomicUsize,
    kv_idle: AtomicUsize,
    /// Averages: a step that writes tokens, one prompt token, the length of an answer.
    step_nanos: AtomicU64,
    prompt_nanos: AtomicU64,
    answer_tokens: AtomicU64,
    generated: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    preemptions: AtomicU64,
    faults: AtomicU64,
}

fn average(cell: &AtomicU64, new: u64) {
    // One writer: the thread.
    let old = cell.load(Ordering::Relaxed);
    let next = if old == 0 { new } else { old - (old >> SMOOTHING) + (new >> SMOOTHING) };
    cell.store(next.max(1), Ordering::Relaxed);
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Takes off without going below nothing.
fn take_off(cell: &AtomicUsize, n: usize) {
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(old.saturating_sub(n)));
}

impl Shared {
    pub(super) fn new(sizes: Sizes, queue: usize, max_wait: Duration) -> Self {
        Self {
            sizes,
            queue,
            max_wait,
            stopped: AtomicBool::new(false),
            recovering: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            waiting: Mutex::default(),
            prompt_pending: AtomicUsize::new(0),
            kv_used: AtomicUsize::new(0),
            kv_idle: AtomicUsize::new(0),
            step_nanos: AtomicU64::new(0),
            prompt_nanos: AtomicU64::new(0),
            answer_tokens: AtomicU64::new(FIRST_ANSWER),
            generated: AtomicU64::new(0),
            prompt: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<TenantKey, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request into the queue, or says why not.
    pub(super) fn enter(&self, request: &Generate) -> Result<(), Busy> {
        let refused = |reason, retry_after: Duration| Err(Busy { reason, retry_after: retry_after.max(self.step()) });
        if self.is_stopped() {
            return Err(self.stopped());
        }
        if self.is_recovering() {
            return refused(BusyReason::Recovering, Duration::from_secs(1));
        }
        let choices = usize::try_from(request.choices.get()).unwrap_or(usize::MAX);
        if choices > self.sizes.slots {
            return refused(BusyReason::TooManyChoices, Duration::ZERO);
        }
        let mut waiting = self.waiting();
        let wait = self.wait_among(&waiting, request.prompt.len(), &request.tenant);
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // An idle engine begins at once: then the estimate is its own speed, which only running corrects.
        let idle = waiting.is_empty() && self.running.load(Ordering::Acquire) == 0;
        let too_late = left.is_some_and(|left| if idle { left.is_zero() } else { wait > left });
        if too_late || (!idle && wait > self.max_wait) {
            self.refused.store(true, Ordering::Relaxed);
            return refused(BusyReason::WaitTooLong, wait.saturating_sub(self.max_wait));
        }
        let all: usize = waiting.values().sum();
        let places = self.sizes.slots.saturating_add(self.queue);
        if all + self.running.load(Ordering::Relaxed) + choices > places {
            self.refused.store(true, Ordering::Relaxed);
            return refused(BusyReason::QueueFull, wait);
        }
        let mine = waiting.get(&request.tenant).copied().unwrap_or(0);
        // Who is nobody in particular is everybody.
        if request.tenant.is_some() && mine > 0 && mine + choices > (self.queue * TENANT_QUARTERS).div_ceil(4) {
            return refused(BusyReason::TenantQueueFull, wait);
        }
        *waiting.entry(request.tenant.clone()).or_insert(0) += choices;
        self.prompt_pending.fetch_add(request.prompt.len(), Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn stopped(&self) -> Busy {
        Busy { reason: BusyReason::Stopped, retry_after: Duration::from_secs(1) }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The device has failed and is set up again, or works again.
    pub(super) fn set_recovering(&self, recovering: bool) {
        if !self.recovering.swap(recovering, Ordering::AcqRel) && recovering {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    /// True once after a request was refused for want of room.
    pub(super) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    fn off_queue(&self, request: &Generate) {
        let choices = usize::try_from(request.choices.get()).unwrap_or(usize::MAX);
        let mut waiting = self.waiting();
        if let Some(count) = waiting.get_mut(&request.tenant) {
            *count = count.saturating_sub(choices);
            if *count == 0 {
                waiting.remove(&request.tenant);
            }
        }
    }

    /// A request left the queue without a place.
    pub(super) fn leave_queue(&self, request: &Generate) {
        self.off_queue(request);
        take_off(&self.prompt_pending, request.prompt.len());
    }

    /// A request got its places.
    pub(super) fn admitted(&self, request: &Generate) {
        self.running.fetch_add(usize::try_from(request.choices.get()).unwrap_or(0), Ordering::AcqRel);
        self.off_queue(request);
    }

    /// A request gave its places back with so many tokens of its prompt unread; its answers were so long on average,
    /// where they came to their end.
    pub(super) fn left(&self, prompt_left: usize, answer: Option<usize>) {
        take_off(&self.prompt_pending, prompt_left);
        if let Some(answer) = answer {
            average(&self.answer_tokens, wide(answer).max(1));
        }
    }

    pub(super) fn set_running(&self, running: usize, kv_used: usize, kv_idle: usize) {
        self.running.store(running, Ordering::Release);
        self.kv_used.store(kv_used, Ordering::Relaxed);
        self.kv_idle.store(kv_idle, Ordering::Relaxed);
    }

    /// Prompt tokens were read, or found in the cache.
    pub(super) fn read(&self, tokens: usize, cached: bool) {
        take_off(&self.prompt_pending, tokens);
        self.prompt.fetch_add(wide(tokens), Ordering::Relaxed);
        if cached {
            self.cached.fetch_add(wide(tokens), Ordering::Relaxed);
        }
    }

    /// Prompt tokens that were read must be read again.
    pub(super) fn unread(&self, tokens: usize) {
        self.prompt_pending.fetch_add(tokens, Ordering::Relaxed);
    }

    /// A token was written.
    pub(super) fn wrote(&self) {
        self.generated.fetch_add(1, Ordering::Relaxed);
    }

    /// A sequence gave up its pages.
    pub(super) fn preempted(&self) {
        self.preemptions.fetch_add(1, Ordering::Relaxed);
    }

    /// A step of `rows`, of which `picks` gave logits, took so long.
    pub(super) fn measured(&self, rows: usize, picks: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if rows <= picks {
            average(&self.step_nanos, nanos);
        } else {
            average(&self.prompt_nanos, nanos / wide(rows).max(1));
        }
    }

    fn step(&self) -> Duration {
        Duration::from_nanos(self.step_nanos.load(Ordering::Relaxed))
    }

    /// Time to the first token of such a prompt, if `tenant` submitted it now.
    pub(super) fn estimated_wait(&self, prompt_tokens: usize, tenant: &TenantKey) -> Duration {
        self.wait_among(&self.waiting(), prompt_tokens, tenant)
    }

    /// Prompts before this one, this one itself, and, where no place is free, the rest of the answers before it. Those
    /// of other tenants are before it only as far as these wait no more than its own does: they take turns.
    fn wait_among(&self, waiting: &HashMap<TenantKey, usize>, prompt_tokens: usize, tenant: &TenantKey) -> Duration {
        let mine = waiting.get(tenant).copied().unwrap_or(0);
        let all: usize = waiting.values().sum();
        let others = waiting.iter().filter(|(key, _)| *key != tenant).map(|(_, count)| (*count).min(mine + 1));
        let before = mine + others.sum::<usize>();
        // Of the prompts that wait, the part that is read before this one.
        let pending = self.prompt_pending.load(Ordering::Relaxed);
        let pending = if all > before { pending * (before + 1) / (all + 1) } else { pending };
        let reading =
            self.prompt_nanos.load(Ordering::Relaxed).saturating_mul(wide(pending.saturating_add(prompt_tokens)));
        let ahead = before + self.running.load(Ordering::Relaxed);
        let places = self.sizes.slots.max(1);
        let writing = if ahead < places {
            0
        } else {
            // Answers end evenly over their length: the n-th place is free after n / places of one.
            let answer =
                self.step_nanos.load(Ordering::Relaxed).saturating_mul(self.answer_tokens.load(Ordering::Relaxed));
            answer.saturating_mul(wide(ahead - places + 1)) / wide(places)
        };
        Duration::from_nanos(reading.saturating_add(writing))
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(super) fn stats(&self) -> EngineStats {
        let step = self.step_nanos.load(Ordering::Relaxed);
        let waiting = self.waiting().values().sum();
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
            is_ready: !self.is_stopped() && !self.is_recovering(),
            faults: self.faults.load(Ordering::Relaxed),
            decode_rate: if step == 0 { 0.0 } else { 1e9 / step as f64 },
        }
    }
}
