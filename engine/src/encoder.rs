//! Serving an encoder: texts of several callers go through it together, each caller's in turns. One thread owns the model;
//! callers reach it over a bounded channel and hear from it over a channel of their own. Dropping the answer's future ends
//! the work on it within one step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use crate::exec::{Batch, Executor, Row, Sizes};
use crate::model::{Bert, BertShape, LoadedEncoder};
use crate::text::Tokenizer;
use crate::{Busy, BusyReason, EngineError, EngineStats, LoadError, LoadOptions};

/// Most texts of one request.
pub(crate) const MAX_TEXTS: usize = 2048;
/// Bytes of a text that are read for each token of the context: beyond that it is cut before it is tokenised.
const BYTES_PER_TOKEN: usize = 64;
/// What a refused caller is told to wait at least.
const RETRY_AFTER: Duration = Duration::from_millis(100);

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

/// A text, or two that are read together.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) first: Arc<str>,
    pub(crate) second: Option<Arc<str>>,
}

/// A request on its way to the thread.
struct Job {
    inputs: Vec<Input>,
    answer: Sender<Result<Vec<Encoded>, EngineError>>,
}

/// The callers' side of the thread.
pub(crate) struct Handle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    outputs: usize,
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
            ..EngineStats::default()
        }
    }

    pub(crate) fn shutdown(&self) {
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
    loaded: LoadedEncoder,
    tokenizer: Arc<Tokenizer>,
    options: &LoadOptions,
) -> Result<Handle, LoadError> {
    let (jobs, received) = async_channel::bounded(usize::try_from(options.max_queue).unwrap_or(usize::MAX).max(1));
    let shared = Arc::new(Shared::default());
    let (ready, wait) = std::sync::mpsc::sync_channel(1);
    let device = loaded.device.name.clone();
    let outputs = loaded.shape.outputs();
    let mut worker = Worker {
        model: loaded.model,
        executor: loaded.executor,
        shape: loaded.shape,
        sizes: loaded.sizes,
        tokenizer,
        shared: shared.clone(),
        jobs: received,
        running: VecDeque::new(),
    };
    let refused = |reason: String| LoadError::Device { device: device.clone(), reason };
    std::thread::Builder::new()
        .name(format!("engine-{}", options.name))
        .spawn(move || {
            crate::scheduler::be_nice();
            let warm = worker.warm_up();
            let well = warm.is_ok();
            let _ = ready.send(warm);
            if well {
                worker.run();
            }
        })
        .map_err(|e| refused(format!("its thread cannot be started: {e}")))?;
    match wait.recv() {
        Ok(Ok(())) => Ok(Handle { jobs, shared, outputs, max_wait: options.max_queue_wait }),
        Ok(Err(e)) => Err(refused(e.to_string())),
        Err(_) => Err(refused("its thread ended while it started".into())),
    }
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
    model: Bert,
    executor: Box<dyn Executor>,
    shape: BertShape,
    sizes: Sizes,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    running: VecDeque<Work>,
}

impl Worker {
    /// Compiles what a step needs before the first request waits for it.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        let mut batch = Batch { pages: vec![0; self.sizes.slots * self.sizes.pages_per_slot()], ..Batch::default() };
        let ids: Vec<u32> = (0..8.min(narrow(self.shape.context))).map(|_| 0).collect();
        for ids in [ids.get(..1).unwrap_or_default(), &ids] {
            batch.rows.clear();
            batch.picks.clear();
            batch.types.clear();
            place(&mut batch, ids, ids.len());
            self.model.forward(self.executor.as_mut(), &batch)?;
        }
        Ok(())
    }

    fn run(&mut self) {
        while self.receive() {
            self.running.retain(|work| {
                let gone = work.job.answer.is_closed();
                if gone {
                    self.shared.texts.fetch_sub(work.job.inputs.len(), Ordering::Relaxed);
                }
                !gone
            });
            if !self.running.is_empty() {
                self.step();
            }
            self.shared.waiting.store(self.running.len(), Ordering::Relaxed);
        }
        for work in self.running.drain(..) {
            let _ = work.job.answer.try_send(Err(EngineError::Shutdown));
        }
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
    fn step(&mut self) {
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
        let values = match self.model.forward(self.executor.as_mut(), &batch) {
            Ok(values) => values,
            Err(fault) => {
                for work in self.running.drain(..) {
                    self.shared.texts.fetch_sub(work.job.inputs.len(), Ordering::Relaxed);
                    let _ = work.job.answer.try_send(Err(fault.clone()));
                }
                return;
            }
        };
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
        let mut left = VecDeque::with_capacity(self.running.len());
        for mut work in self.running.drain(..) {
            if work.done.iter().any(Option::is_none) {
                left.push_back(work);
                continue;
            }
            self.shared.texts.fetch_sub(work.job.inputs.len(), Ordering::Relaxed);
            let _ = work.job.answer.try_send(Ok(work.done.drain(..).flatten().collect()));
        }
        // Who came last in this step comes first in the next.
        left.rotate_right(usize::from(left.len() > 1));
        self.running = left;
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
    let (mut first, mut cut) = read(&input.first);
    let (mut second, cut_second) = input.second.as_deref().map(read).unwrap_or_default();
    cut |= cut_second;
    let marks = if input.second.is_some() { 3 } else { 2 };
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
    if input.second.is_some() {
        tokens.append(&mut second);
        tokens.extend(tokenizer.eos());
    }
    (tokens, border, cut)
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
