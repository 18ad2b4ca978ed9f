//! What callers may know without asking the thread: how many run and wait, what steps cost, hence how long a first
//! token would take. Written by the thread, read by everybody; figures may be a step old.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::sequence::Sequence;
use crate::exec::{PAGE, Sizes};
use crate::{Busy, BusyReason, EngineStats, Generate};

/// Weight of the newest measurement in an average, as a power of two: an eighth.
const SMOOTHING: u32 = 3;
/// Length of an answer before any was measured.
const FIRST_ANSWER: u64 = 64;

pub(super) struct Shared {
    sizes: Sizes,
    queue: usize,
    max_wait: Duration,
    stopped: AtomicBool,
    running: AtomicUsize,
    waiting: AtomicUsize,
    /// Prompt tokens that are not read yet, of those who run and wait.
    prompt_pending: AtomicUsize,
    kv_used: AtomicUsize,
    /// Averages: a step that writes tokens, one prompt token, the length of an answer.
    step_nanos: AtomicU64,
    prompt_nanos: AtomicU64,
    answer_tokens: AtomicU64,
    generated: AtomicU64,
    prompt: AtomicU64,
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

impl Shared {
    pub(super) fn new(sizes: Sizes, queue: usize, max_wait: Duration) -> Self {
        Self {
            sizes,
            queue,
            max_wait,
            stopped: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            prompt_pending: AtomicUsize::new(0),
            kv_used: AtomicUsize::new(0),
            step_nanos: AtomicU64::new(0),
            prompt_nanos: AtomicU64::new(0),
            answer_tokens: AtomicU64::new(FIRST_ANSWER),
            generated: AtomicU64::new(0),
            prompt: AtomicU64::new(0),
        }
    }

    /// Puts a request into the queue, or says why not.
    pub(super) fn enter(&self, request: &Generate) -> Result<(), Busy> {
        if self.is_stopped() {
            return Err(self.stopped());
        }
        let wait = self.estimated_wait(request.prompt.len());
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if wait > self.max_wait || left.is_some_and(|left| wait > left) {
            return Err(Busy {
                reason: BusyReason::WaitTooLong,
                retry_after: wait.saturating_sub(self.max_wait).max(self.step()),
            });
        }
        let places = self.sizes.slots.saturating_add(self.queue);
        let taken = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting + self.running.load(Ordering::Relaxed) < places).then_some(waiting + 1)
        });
        if taken.is_err() {
            return Err(Busy { reason: BusyReason::QueueFull, retry_after: wait.max(self.step()) });
        }
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

    /// A request left the queue without a place.
    pub(super) fn leave_queue(&self, prompt: usize) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.prompt_pending.fetch_sub(prompt, Ordering::Relaxed);
    }

    /// A request got a place.
    pub(super) fn admitted(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// A request gave its place back.
    pub(super) fn left(&self, sequence: &Sequence) {
        self.prompt_pending.fetch_sub(sequence.prompt_left(), Ordering::Relaxed);
        if sequence.is_over() {
            average(&self.answer_tokens, u64::from(sequence.written()).max(1));
        }
    }

    pub(super) fn set_running(&self, running: usize, kv_used: usize) {
        self.running.store(running, Ordering::Release);
        self.kv_used.store(kv_used, Ordering::Relaxed);
    }

    /// Prompt tokens were read.
    pub(super) fn read(&self, tokens: usize) {
        self.prompt_pending.fetch_sub(tokens, Ordering::Relaxed);
        self.prompt.fetch_add(wide(tokens), Ordering::Relaxed);
    }

    /// A token was written.
    pub(super) fn wrote(&self) {
        self.generated.fetch_add(1, Ordering::Relaxed);
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

    /// Prompts before this one, this one itself, and, where no place is free, the rest of the answers before it.
    pub(super) fn estimated_wait(&self, prompt_tokens: usize) -> Duration {
        let pending = self.prompt_pending.load(Ordering::Relaxed).saturating_add(prompt_tokens);
        let reading = self.prompt_nanos.load(Ordering::Relaxed).saturating_mul(wide(pending));
        let ahead = self.waiting.load(Ordering::Relaxed) + self.running.load(Ordering::Relaxed);
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
        EngineStats {
            active: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            estimated_wait: self.estimated_wait(32),
            generated_tokens: self.generated.load(Ordering::Relaxed),
            prompt_tokens: self.prompt.load(Ordering::Relaxed),
            kv_used: self.kv_used.load(Ordering::Relaxed),
            kv_capacity: (self.sizes.pages - 1) * PAGE,
            decode_rate: if step == 0 { 0.0 } else { 1e9 / step as f64 },
        }
    }
}
