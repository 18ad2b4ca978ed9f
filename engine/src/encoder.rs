//! Serving an encoder: texts of several callers go through it together, each caller's in turns. One thread owns the model;
//! callers reach it over a bounded channel and hear from it over a channel of their own. Dropping the answer's future ends
//! the work on it within one step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use crate::device;
use crate::exec::{Batch, Row, Sizes};
use crate::model::BertShape;
use crate::runner::{self, Measured, Reader, Ready, Rebuildable, Serves, Tuning, Watch};
use crate::text::Tokenizer;
use crate::{Busy, BusyReason, EngineError, EngineStats, LoadError, LoadOptions, Placement};

/// Most texts of one request.
pub(crate) const MAX_TEXTS: usize = 2048;
/// Bytes of a text that are read for each token of the context: beyond that it is cut before it is tokenised.
const BYTES_PER_TOKEN: usize = 64;
/// What a refused caller is told to wait at least.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// What it is told while a device is set up again.
const RETRY_AFTER_FAULT: Duration = Duration::from_secs(1);
/// Length of the texts that the full step is measured with at load.
const WARM_TOKENS: usize = 64;
/// A step is measured so often at load, or for so long.
const WARM_RUNS: u32 = 3;
const WARM_TIME: Duration = Duration::from_millis(200);

/// What became of a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Encoded {
    /// Its vector as the model gives it, or its scores.
    pub(crate) values: Vec<f32>,
    /// Tokens read.
    pub(crate) tokens: u32,
    /// Whether it was longer than the context.
    pub(crate) truncated: bool,
}

/// What is read.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Text(Arc<str>),
    /// Two texts that are read together.
    Pair(Arc<str>, Arc<str>),
    /// Tokens as they stand.
    Tokens(Vec<u32>),
}

type Answer = Result<Vec<Encoded>, EngineError>;

/// A request on its way to the thread.
struct Job {
    inputs: Vec<Input>,
    answer: Sender<Answer>,
}

impl Reader for Sender<Answer> {
    fn fail(self, error: EngineError) {
        let _ = self.try_send(Err(error));
        self.close();
    }
}

/// The callers' side of the thread.
pub(crate) struct Handle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    placement: Arc<Mutex<Placement>>,
    outputs: usize,
    vocabulary: usize,
    /// Longest estimated wait at which a request is taken.
    max_wait: Duration,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    tokens: AtomicU64,
    /// Nanoseconds that a token took of late.
    cost: AtomicU64,
    /// Texts that were taken and are not answered.
    texts: AtomicUsize,
    /// The device has failed and is set up again.
    recovering: AtomicBool,
    faults: AtomicU64,
    /// It has ended.
    stopped: AtomicBool,
}

impl Shared {
    fn set_recovering(&self, recovering: bool) {
        if !self.recovering.swap(recovering, Ordering::AcqRel) && recovering {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is answered, or nobody waits for it.
    fn left(&self, job: &Job) {
        self.texts.fetch_sub(job.inputs.len(), Ordering::Relaxed);
    }
}

impl Handle {
    /// Encodes texts, in their order. Refuses at once when too much waits.
    pub(crate) async fn encode(&self, inputs: Vec<Input>) -> Result<Vec<Encoded>, EngineError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        if inputs.len() > MAX_TEXTS {
            return Err(EngineError::Input(format!("{} texts in one request, {MAX_TEXTS} are the most", inputs.len())));
        }
        let busy = |reason| {
            let retry_after = self.estimated_wait().saturating_sub(self.max_wait).max(RETRY_AFTER);
            EngineError::Busy(Busy { reason, retry_after })
        };
        for input in &inputs {
            if let Input::Tokens(tokens) = input
                && tokens.is_empty()
            {
                return Err(EngineError::Input("an input has no tokens".into()));
            }
            if let Input::Tokens(tokens) = input
                && let Some(token) =
                    tokens.iter().find(|token| usize::try_from(**token).is_ok_and(|n| n >= self.vocabulary))
            {
                let most = self.vocabulary;
                return Err(EngineError::Input(format!("{token} is no token of the model: it has {most}")));
            }
        }
        if self.shared.recovering.load(Ordering::Acquire) {
            return Err(Busy { reason: BusyReason::Recovering, retry_after: RETRY_AFTER_FAULT }.into());
        }
        if self.estimated_wait() > self.max_wait {
            return Err(busy(BusyReason::WaitTooLong));
        }
        let (answer, receiver) = async_channel::bounded(1);
        let texts = inputs.len();
        // Counted before the thread can answer them.
        self.shared.texts.fetch_add(texts, Ordering::Relaxed);
        if let Err(refused) = self.jobs.try_send(Job { inputs, answer }) {
            self.shared.texts.fetch_sub(texts, Ordering::Relaxed);
            return Err(busy(if refused.is_closed() { BusyReason::Stopped } else { BusyReason::QueueFull }));
        }
        receiver.recv().await.unwrap_or(Err(EngineError::Shutdown))
    }

    /// Values of a vector, or labels.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// How long what waits will take, if each text is of middling length.
    pub(crate) fn estimated_wait(&self) -> Duration {
        const TOKENS: u64 = 64;
        let texts = u64::try_from(self.shared.texts.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        Duration::from_nanos(texts.saturating_mul(TOKENS).saturating_mul(self.shared.cost.load(Ordering::Relaxed)))
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        EngineStats {
            active: waiting,
            waiting: self.jobs.len(),
            estimated_wait: self.estimated_wait(),
            prompt_tokens: self.shared.tokens.load(Ordering::Relaxed),
            is_ready: !self.has_ended() && !self.shared.recovering.load(Ordering::Acquire),
            faults: self.shared.faults.load(Ordering::Relaxed),
            ..EngineStats::default()
        }
    }

    /// Where it runs.
    pub(crate) fn placement(&self) -> Placement {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it has ended and takes nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn shutdown(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.jobs.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Starts the thread and waits until the model has run once.
pub(crate) fn start(
    made: Rebuildable,
    shape: BertShape,
    tokenizer: Arc<Tokenizer>,
    options: &LoadOptions,
) -> Result<Handle, LoadError> {
    begin(made, shape, tokenizer, options, Tuning::default())
}

fn begin(
    made: Rebuildable,
    shape: BertShape,
    tokenizer: Arc<Tokenizer>,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<Handle, LoadError> {
    let (jobs, received) = async_channel::bounded(usize::try_from(options.max_queue).unwrap_or(usize::MAX).max(1));
    let shared = Arc::new(Shared::default());
    let placement = made.placement();
    let device = placement.lock().unwrap_or_else(PoisonError::into_inner).device.clone();
    let (outputs, vocabulary) = (shape.outputs(), shape.vocabulary);
    let failed = |e: std::io::Error| LoadError::Device {
        device: device.name.clone(),
        reason: format!("its thread cannot be started: {e}"),
    };
    let (ready, wait) = Ready::new(device.clone());
    let (watched, name, first) = (shared.clone(), options.name.clone(), ready.clone());
    let hung = device.name.clone();
    let watch = Watch::start(&format!("watch-{}", options.name), move || {
        tracing::error!(event = "device_hangs", model = %name, "a step has not ended in time; its requests have failed");
        if first.give_up() {
            device::hangs(&hung, true);
            watched.stopped.store(true, Ordering::Release);
        }
        watched.set_recovering(true);
    })
    .map_err(failed)?;
    let sizes = shape.sizes();
    let mut worker = Worker {
        name: options.name.clone(),
        made,
        shape,
        sizes,
        tokenizer,
        shared: shared.clone(),
        jobs: received,
        running: VecDeque::new(),
        tuning,
        watch,
    };
    let told = ready.clone();
    std::thread::Builder::new()
        .name(format!("engine-{}", options.name))
        .spawn(move || {
            crate::scheduler::be_nice();
            runner::serve(&mut worker, &told, Worker::work);
        })
        .map_err(failed)?;
    ready.wait(&wait)?;
    Ok(Handle { jobs, shared, placement, outputs, vocabulary, max_wait: options.max_queue_wait })
}

/// A request that is being worked on.
struct Work {
    job: Job,
    /// The first input that is not in a step yet.
    next: usize,
    done: Vec<Option<Encoded>>,
}

/// A text of a step.
struct Placed {
    /// Which of the running requests, and which of its inputs.
    work: usize,
    input: usize,
    tokens: usize,
    truncated: bool,
}

struct Worker {
    name: String,
    made: Rebuildable,
    shape: BertShape,
    sizes: Sizes,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    running: VecDeque<Work>,
    tuning: Tuning,
    watch: Watch<Sender<Answer>>,
}

impl Serves for Worker {
    fn name(&self) -> &str {
        &self.name
    }

    fn requests(&self) -> usize {
        self.running.len()
    }

    fn made(&mut self) -> &mut Rebuildable {
        &mut self.made
    }

    /// A short text, which reads all weights for one row, then as many as a step holds.
    fn warm_up(&mut self) -> Result<Measured, EngineError> {
        let step = self.measure(1, 1)?;
        let length = WARM_TOKENS.min(self.shape.context).max(1);
        let texts = (self.sizes.max_rows / length).clamp(1, self.sizes.max_picks);
        let full = self.measure(texts, length)?;
        let rows = u32::try_from(texts * length).unwrap_or(u32::MAX);
        let cost = full / rows.max(1);
        self.shared.cost.store(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(Measured { rate: f64::from(rows) / full.as_secs_f64().max(f64::MIN_POSITIVE), step })
    }

    fn refuse(&mut self, fault: &EngineError) {
        while let Ok(job) = self.jobs.try_recv() {
            self.shared.left(&job);
            job.answer.fail(fault.clone());
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire) || self.jobs.is_closed()
    }
}

impl Worker {
    /// How long a step of such texts takes. The first run pays for what is compiled.
    fn measure(&mut self, texts: usize, length: usize) -> Result<Duration, EngineError> {
        let mut batch = Batch { pages: vec![0; self.sizes.slots * self.sizes.pages_per_slot()], ..Batch::default() };
        for _ in 0..texts {
            place(&mut batch, &vec![0; length], length);
        }
        self.made.forward_within(self.tuning.first_step, &self.watch, &batch)?;
        let (began, mut took) = (Instant::now(), Duration::MAX);
        for _ in 0..WARM_RUNS {
            let started = Instant::now();
            self.made.forward_within(self.tuning.first_step, &self.watch, &batch)?;
            took = took.min(started.elapsed());
            if began.elapsed() > WARM_TIME {
                break;
            }
        }
        Ok(took)
    }

    /// Works until the engine ends, and ends it.
    fn work(&mut self) {
        let end = runner::until_the_end(self, Self::run);
        // First, so that whoever is told below and asks at once is refused.
        self.shared.stopped.store(true, Ordering::Release);
        self.jobs.close();
        self.fail_all(&end);
        self.refuse(&end);
    }

    fn run(&mut self) {
        while self.receive() {
            let shared = &self.shared;
            self.running.retain(|work| {
                let gone = work.job.answer.is_closed();
                if gone {
                    shared.left(&work.job);
                }
                !gone
            });
            if !self.running.is_empty()
                && let Err(fault) = self.step()
                && !self.recover(&fault)
            {
                break;
            }
            self.shared.waiting.store(self.running.len(), Ordering::Relaxed);
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        self.shared.waiting.store(0, Ordering::Relaxed);
        for work in self.running.drain(..) {
            self.shared.left(&work.job);
            work.job.answer.fail(error.clone());
        }
    }

    /// After a fault of the device: ends what ran and sets the device up again. False when the engine ends meanwhile.
    fn recover(&mut self, fault: &EngineError) -> bool {
        self.shared.set_recovering(true);
        tracing::error!(event = "device_failed", model = %self.name, reason = %fault, requests = self.running.len());
        self.fail_all(fault);
        let pause = self.tuning.retry_first;
        let recovered = runner::recover(self, fault, pause);
        if recovered {
            self.shared.set_recovering(false);
        }
        recovered
    }

    /// Takes new requests; waits for one when there is nothing else to do. False when the engine ends.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() {
            match self.jobs.recv_blocking() {
                Ok(job) => self.begin(job),
                Err(_) => return false,
            }
        }
        // Requests that are worked on are bounded like those that wait.
        while self.running.len() < self.jobs.capacity().unwrap_or(1) {
            match self.jobs.try_recv() {
                Ok(job) => self.begin(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Closed) => return false,
            }
        }
        !self.jobs.is_closed()
    }

    fn begin(&mut self, job: Job) {
        self.shared.waiting.store(self.running.len() + 1, Ordering::Relaxed);
        let done = vec![None; job.inputs.len()];
        self.running.push_back(Work { job, next: 0, done });
    }

    /// Fills a step with one text of each request in turn, runs it and answers what is complete.
    fn step(&mut self) -> Result<(), EngineError> {
        let mut batch = Batch { pages: vec![0; self.sizes.slots * self.sizes.pages_per_slot()], ..Batch::default() };
        let mut placed: Vec<Placed> = Vec::new();
        'full: loop {
            let before = placed.len();
            for (n, work) in self.running.iter_mut().enumerate() {
                let Some(input) = work.job.inputs.get(work.next) else { continue };
                let (tokens, first, truncated) = tokens_of(&self.tokenizer, &self.shape, input);
                if placed.len() == self.sizes.max_picks || batch.rows.len() + tokens.len() > self.sizes.max_rows {
                    break 'full;
                }
                place(&mut batch, &tokens, if self.shape.has_second_type() { first } else { tokens.len() });
                placed.push(Placed { work: n, input: work.next, tokens: tokens.len(), truncated });
                work.next += 1;
            }
            if placed.len() == before {
                break;
            }
        }
        let started = Instant::now();
        let usual = Duration::from_nanos(self.shared.cost.load(Ordering::Relaxed));
        self.watch.readers(self.running.iter().map(|work| work.job.answer.clone()).collect());
        let within = self.tuning.hang(usual.saturating_mul(narrow(batch.rows.len())));
        let values = self.made.forward_within(within, &self.watch, &batch)?;
        let rows = u64::try_from(batch.rows.len()).unwrap_or(1).max(1);
        let cost = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX) / rows;
        self.shared.cost.store(cost, Ordering::Relaxed);
        self.shared.tokens.fetch_add(rows, Ordering::Relaxed);
        for (text, values) in placed.iter().zip(values.chunks_exact(self.shape.outputs())) {
            let slot = self.running.get_mut(text.work).and_then(|work| work.done.get_mut(text.input));
            if let Some(slot) = slot {
                let (values, tokens) = (values.to_vec(), narrow(text.tokens));
                *slot = Some(Encoded { values, tokens, truncated: text.truncated });
            }
        }
        // Before the answers go out: who has one finds nothing counted that is done.
        let open = self.running.iter().filter(|work| work.done.iter().any(Option::is_none)).count();
        self.shared.waiting.store(open, Ordering::Relaxed);
        let mut left = VecDeque::with_capacity(self.running.len());
        for mut work in self.running.drain(..) {
            if work.done.iter().any(Option::is_none) {
                left.push_back(work);
                continue;
            }
            self.shared.left(&work.job);
            let _ = work.job.answer.try_send(Ok(work.done.drain(..).flatten().collect()));
        }
        // Who came last in this step comes first in the next.
        left.rotate_right(usize::from(left.len() > 1));
        self.running = left;
        Ok(())
    }
}

/// Appends a whole sequence: rows of type 0 up to `second`, of type 1 from there on.
fn place(batch: &mut Batch, tokens: &[u32], second: usize) {
    let slot = narrow(batch.picks.len());
    batch.picks.push(narrow(batch.rows.len()));
    for (position, token) in tokens.iter().enumerate() {
        batch.rows.push(Row { token: *token, position: narrow(position), slot });
        batch.types.push(u32::from(position >= second));
    }
}

/// The tokens of an input within the context, how many belong to its first text, and whether it was cut.
fn tokens_of(tokenizer: &Tokenizer, shape: &BertShape, input: &Input) -> (Vec<u32>, usize, bool) {
    let read = |text: &str| {
        let most = shape.context.saturating_mul(BYTES_PER_TOKEN);
        let cut = text.floor_char_boundary(most.min(text.len()));
        let mut tokens = Vec::new();
        tokenizer.encode(text.get(..cut).unwrap_or_default(), &mut tokens);
        (tokens, cut < text.len())
    };
    let ((mut first, mut cut), second) = match input {
        Input::Text(text) => (read(text), None),
        Input::Pair(first, second) => (read(first), Some(read(second))),
        Input::Tokens(tokens) => {
            let read = tokens.len().min(shape.context);
            return (tokens.iter().take(read).copied().collect(), read, read < tokens.len());
        }
    };
    let is_pair = second.is_some();
    let (mut second, cut_second) = second.unwrap_or_default();
    cut |= cut_second;
    let marks = if is_pair { 3 } else { 2 };
    let room = shape.context.saturating_sub(marks);
    // As Hugging Face's `longest_first`: the longer one gives way.
    if first.len() + second.len() > room {
        cut = true;
        let half = room / 2;
        if first.len() > half && second.len() > half {
            second.truncate(half);
            first.truncate(room - second.len());
        } else if first.len() > second.len() {
            first.truncate(room - second.len());
        } else {
            second.truncate(room - first.len());
        }
    }
    let mut tokens = Vec::with_capacity(first.len() + second.len() + marks);
    tokens.extend(tokenizer.bos());
    tokens.append(&mut first);
    tokens.extend(tokenizer.eos());
    let border = tokens.len();
    if is_pair {
        tokens.append(&mut second);
        tokens.extend(tokenizer.eos());
    }
    (tokens, border, cut)
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
