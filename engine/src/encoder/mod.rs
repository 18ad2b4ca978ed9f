//! Serving of an encoder: texts of several callers are batched, each caller in turn. One thread owns the model;
//! callers submit over a bounded channel and receive over a channel of their own. Dropping the answer's future ends
//! the work within one step.

mod input;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_channel::Sender;

use crate::model::BertShape;
use crate::runner::{self, ModelThread, Rebuildable, Recipient, ThreadHealth, Tuning};
use crate::text::Tokenizer;
use crate::{Busy, BusyReason, EmbedInput, EngineError, EngineStats, LoadError, LoadOptions};
use worker::EncoderWorker;

/// Most texts of one request: the limit of OpenAI's embeddings API.
pub(crate) const MAX_TEXTS: usize = 2048;
/// Least `retry_after` of a refused request.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// `retry_after` while a failed device is set up again.
const RETRY_AFTER_FAULT: Duration = Duration::from_secs(1);

/// Result for one input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Encoded {
    /// Raw embedding as the model computes it, or the scores.
    pub(crate) values: Vec<f32>,
    /// Tokens read by the model.
    pub(crate) tokens: u32,
    /// True if the input was longer than the context and was cut.
    pub(crate) truncated: bool,
}

/// Input of an encoder.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Text(Arc<str>),
    /// Two texts that are read together.
    Pair(Arc<str>, Arc<str>),
    /// Tokens, read unchanged.
    Tokens(Vec<u32>),
}

impl From<EmbedInput> for Input {
    fn from(input: EmbedInput) -> Self {
        match input {
            EmbedInput::Text(text) => Self::Text(text.into()),
            EmbedInput::Tokens(tokens) => Self::Tokens(tokens),
        }
    }
}

type EncodeResult = Result<Vec<Encoded>, EngineError>;

/// Request on its way to the encoder's thread.
pub(crate) struct EncodeJob {
    inputs: Vec<Input>,
    answer: Sender<EncodeResult>,
}

impl Recipient for Sender<EncodeResult> {
    fn fail(self, error: EngineError) {
        let _ = self.try_send(Err(error));
        self.close();
    }
}

/// Callers' side of the encoder's thread.
pub(crate) struct EncoderHandle {
    pub(crate) thread: ModelThread<EncodeJob>,
    shared: Arc<EncoderState>,
    outputs: usize,
    vocabulary: usize,
    context: usize,
    tokenizer: Arc<Tokenizer>,
    /// Longest estimated wait at which a request is accepted.
    max_wait: Duration,
}

#[derive(Default)]
struct EncoderState {
    waiting: AtomicUsize,
    tokens: AtomicU64,
    /// Recent cost of a token in nanoseconds.
    cost: AtomicU64,
    /// Texts accepted and not yet answered.
    texts: AtomicUsize,
    health: Arc<ThreadHealth>,
}

impl EncoderState {
    /// Uncounts the texts of a request that was answered or dropped.
    fn left(&self, job: &EncodeJob) {
        self.texts.fetch_sub(job.inputs.len(), Ordering::Relaxed);
    }
}

impl EncoderHandle {
    /// Encodes texts, in their order. Returns [`EngineError::Busy`] at once when too much is queued.
    pub(crate) async fn encode(&self, inputs: Vec<Input>) -> Result<Vec<Encoded>, EngineError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        if inputs.len() > MAX_TEXTS {
            let why = format!("{} texts in one request; expected at most {MAX_TEXTS}", inputs.len());
            return Err(EngineError::Input(why));
        }
        let busy = |reason| {
            let retry_after = self.estimated_wait().saturating_sub(self.max_wait).max(RETRY_AFTER);
            EngineError::Busy(Busy { reason, retry_after })
        };
        for input in &inputs {
            if let Input::Tokens(tokens) = input
                && tokens.is_empty()
            {
                return Err(EngineError::Input("an input has no tokens; expected at least one".into()));
            }
            if let Input::Tokens(tokens) = input
                && let Some(token) =
                    tokens.iter().find(|token| usize::try_from(**token).is_ok_and(|n| n >= self.vocabulary))
            {
                let most = self.vocabulary;
                let why = format!("token {token} is outside the vocabulary; expected less than {most}");
                return Err(EngineError::Input(why));
            }
        }
        if self.shared.health.is_recovering() {
            return Err(Busy { reason: BusyReason::Recovering, retry_after: RETRY_AFTER_FAULT }.into());
        }
        if self.estimated_wait() > self.max_wait {
            return Err(busy(BusyReason::WaitTooLong));
        }
        let (answer, receiver) = async_channel::bounded(1);
        let texts = inputs.len();
        // Counted before sending, because the thread may answer at once.
        self.shared.texts.fetch_add(texts, Ordering::Relaxed);
        if let Err(refused) = self.thread.send(EncodeJob { inputs, answer }) {
            self.shared.texts.fetch_sub(texts, Ordering::Relaxed);
            return Err(busy(if refused.is_closed() { BusyReason::Stopped } else { BusyReason::QueueFull }));
        }
        receiver.recv().await.unwrap_or(Err(EngineError::Shutdown))
    }

    /// Windows of a text, as [`Engine::windows`](crate::Engine::windows).
    pub(crate) fn windows(&self, text: &str, overlap: usize) -> Result<Vec<EmbedInput>, EngineError> {
        let tokens = input::windows(&self.tokenizer, self.context, text, overlap);
        let tokens = tokens.map_err(|error| EngineError::Input(error.to_string()))?;
        Ok(tokens.into_iter().map(EmbedInput::Tokens).collect())
    }

    /// Values of an embedding, or number of labels.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Estimated time to work off the queue, at 64 tokens a text.
    pub(crate) fn estimated_wait(&self) -> Duration {
        const TOKENS: u64 = 64;
        let texts = u64::try_from(self.shared.texts.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        Duration::from_nanos(texts.saturating_mul(TOKENS).saturating_mul(self.shared.cost.load(Ordering::Relaxed)))
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        EngineStats {
            active: waiting,
            waiting: self.thread.queued(),
            estimated_wait: self.estimated_wait(),
            prompt_tokens: self.shared.tokens.load(Ordering::Relaxed),
            is_ready: self.shared.health.is_ready(),
            faults: self.shared.health.faults(),
            ..EngineStats::default()
        }
    }
}

/// Starts the thread and waits until the model has run once.
pub(crate) fn start(
    model: Rebuildable,
    shape: BertShape,
    tokenizer: Arc<Tokenizer>,
    options: &LoadOptions,
) -> Result<EncoderHandle, LoadError> {
    begin(model, shape, tokenizer, options, Tuning::default())
}

fn begin(
    model: Rebuildable,
    shape: BertShape,
    tokenizer: Arc<Tokenizer>,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<EncoderHandle, LoadError> {
    let (jobs, received) = async_channel::bounded(usize::try_from(options.max_queue).unwrap_or(usize::MAX).max(1));
    let shared = Arc::new(EncoderState::default());
    let placement = model.placement();
    let (outputs, vocabulary, context) = (shape.outputs(), shape.vocabulary, shape.context);
    let shared_tokenizer = tokenizer.clone();
    let watched = shared.health.clone();
    let on_hang = move |at_first| watched.note_hang(at_first);
    let sizes = shape.sizes();
    let worker = |watch| EncoderWorker {
        name: options.name.clone(),
        model,
        shape,
        sizes,
        tokenizer,
        shared: shared.clone(),
        jobs: received,
        running: VecDeque::new(),
        tuning,
        watch,
    };
    runner::launch(options, placement.clone(), on_hang, worker, EncoderWorker::work)?;
    let thread = ModelThread::new(jobs, shared.health.clone(), placement);
    let max_wait = options.max_queue_wait;
    Ok(EncoderHandle { thread, shared, outputs, vocabulary, context, tokenizer: shared_tokenizer, max_wait })
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
