//! Language models inside the process: files, text, execution on a GPU or the processor, serving of several requests at once.
//! It knows tensors and tokens; no HTTP, no YAML, no async runtime. One thread for each loaded model owns its device.
//! Its inputs are a model file and requests as [`Generate`]; tokens come back as a [`TokenStream`].

pub mod artifact;
mod device;
mod encoder;
mod error;
pub mod exec;
mod grammar;
mod model;
mod sampling;
mod scheduler;
pub mod text;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use artifact::{ArtifactInfo, inspect};
pub use device::{DeviceChoice, DeviceInfo};
pub use error::{Busy, BusyReason, EngineError, GrammarError, LoadError, PromptError};
pub use exec::cpu::{Cores, CpuUnit};
pub use grammar::{Grammar, Structure};
pub use model::Needs;
pub use sampling::Sampling;
pub use text::ChatMessage;

use text::TextModel;

/// What is loaded, where, and how much of it at once. [`LoadOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Name in logs and errors.
    pub name: String,
    /// A GGUF file.
    pub source: PathBuf,
    /// Where it runs.
    pub device: DeviceChoice,
    /// How it runs on the processor.
    pub cpu: CpuOptions,
    /// Tokens of prompt and answer; the smaller of the file's and 2048 when left out.
    pub context_length: Option<u32>,
    /// Sequences decoded together.
    pub max_sequences: u32,
    /// Requests that wait for a place.
    pub max_queue: u32,
    /// Longest estimated wait for a first token at which a request is taken.
    pub max_queue_wait: Duration,
    /// How long a receiver may read nothing.
    pub stall_timeout: Duration,
    /// Device memory in bytes that it may take.
    pub memory: Option<u64>,
    /// Bytes of the KV cache, which all sequences share; half the file's size and one context at least when left out.
    pub kv_cache: Option<u64>,
    /// How long a step may take that writes tokens while prompts are read: the pause between two tokens of an answer
    /// that a long prompt of somebody else may cause. A step that only writes takes what it takes.
    pub token_pause: Duration,
    /// Where compiled pipelines are kept; nowhere when left out.
    pub cache_dir: Option<PathBuf>,
}

impl LoadOptions {
    /// A file under its defaults: the best device, what the gateway allows when its configuration says nothing.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            name: "model".into(),
            source: source.into(),
            device: DeviceChoice::Auto,
            cpu: CpuOptions::default(),
            context_length: None,
            max_sequences: 16,
            max_queue: 64,
            max_queue_wait: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(10),
            memory: None,
            kv_cache: None,
            token_pause: Duration::from_millis(50),
            cache_dir: None,
        }
    }
}

/// How a model runs on the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads of a step; where left out, one for each physical core that the process may use, less one, and one at least.
    pub cores: Option<NonZeroUsize>,
    /// The vector unit; the fastest that there is where left out.
    pub unit: Option<CpuUnit>,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Continuing conversations and texts: [`Engine::submit`].
    Generate,
    /// Texts as vectors: [`Engine::embed`].
    Embed,
    /// Texts, or pairs of them, as scores: [`Engine::classify`], [`Engine::rerank`].
    Classify,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generate => "generating text",
            Self::Embed => "embeddings",
            Self::Classify => "classification",
        })
    }
}

/// A text as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many values as the model is wide, of length 1: the cosine of two is their dot product.
    pub values: Vec<f32>,
    /// Tokens read, those around the text too.
    pub tokens: u32,
    /// Whether the text was longer than the model's context and only its beginning was read.
    pub truncated: bool,
}

/// What a classifier makes of a text or a pair of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// A logit for each label, in the order of [`ModelInfo::labels`]. Softmax over them, or the logistic function of a
    /// single one, gives probabilities.
    pub logits: Vec<f32>,
    /// Tokens read.
    pub tokens: u32,
    /// Whether something was cut off to fit the model's context.
    pub truncated: bool,
}

/// What was loaded and where it runs.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// What it is for.
    pub task: Task,
    /// Names of a classifier's labels, where the file has them.
    pub labels: Vec<String>,
    /// Values of an embedding, or labels; 0 for a model that generates.
    pub outputs: u32,
    /// Name it was loaded under.
    pub name: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Weights.
    pub parameters: u64,
    /// Most frequent type of its matrices, such as `Q4_1`.
    pub quantization: String,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens that it knows.
    pub vocabulary: u32,
    /// Size of the file.
    pub file_bytes: u64,
    /// Where it runs.
    pub device: DeviceInfo,
    /// From the call of [`Engine::load`] to ready.
    pub load_time: Duration,
    /// Device memory taken: weights, KV cache, activations.
    pub device_memory_bytes: u64,
    /// Tokens per second of one sequence, as measured at load.
    pub decode_rate: f64,
    /// Bytes of weights per second that this reads.
    pub bandwidth: f64,
}

/// What a file will take under these options. Opens no device.
pub fn needs(options: &LoadOptions) -> Result<Needs, LoadError> {
    model::needs(&artifact::ModelFile::open(&options.source)?, options)
}

/// The device that would be taken, and why. Opens none.
pub fn device_for(choice: &DeviceChoice) -> Result<DeviceInfo, LoadError> {
    model::device_for(choice)
}

/// A tokenised conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    tokens: Vec<u32>,
}

impl Prompt {
    /// Tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A request. [`Generate::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Generate {
    /// What is continued.
    pub prompt: Prompt,
    /// Most tokens of the answer; cut to what is left of the context.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// When nobody wants the answer any more.
    pub deadline: Option<Instant>,
    /// Answers to the same prompt, which is read once; at most as many as sequences run together.
    pub choices: NonZeroU32,
    /// Log probabilities of the tokens written, and of so many of the likeliest at each place.
    pub log_probabilities: Option<u32>,
    /// What the answer must be, from [`Engine::grammar`].
    pub grammar: Option<Grammar>,
    /// For whom it is: places are given to tenants in turn, whoever asks more.
    pub tenant: Option<Arc<str>>,
    /// Share of its tenant beside the others'.
    pub weight: NonZeroU32,
}

impl Generate {
    /// One answer as long as the context allows, chosen by the model's own probabilities, for nobody in particular.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            deadline: None,
            choices: NonZeroU32::MIN,
            log_probabilities: None,
            grammar: None,
            tenant: None,
            weight: NonZeroU32::MIN,
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached its length.
    Length,
}

/// A token and how likely the model thought it at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenProbability {
    /// Its number.
    pub token: u32,
    /// The bytes that it stands for; not always whole characters.
    pub bytes: Box<[u8]>,
    /// Natural logarithm of its probability.
    pub log_probability: f32,
}

/// A token that was written, and what else was likely at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenToken {
    /// The token.
    pub chosen: TokenProbability,
    /// The likeliest, likeliest first; the chosen one is not always among them.
    pub likeliest: Vec<TokenProbability>,
}

/// The end of all answers of a request.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them that were in the KV cache already.
    pub cached_tokens: u32,
    /// Tokens written, of all choices.
    pub completion_tokens: u32,
    /// Wait for a place.
    pub queued: Duration,
    /// Reading the prompt, to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What comes of a request, in this order: `Started`, `Prefilled`, then for each choice `Text`* and `Ended`, mixed among
/// the choices, then `Finished`. `Failed` may end it anywhere.
#[derive(Debug, Clone)]
pub enum Event {
    /// It has a place.
    Started {
        /// Wait for it.
        queued: Duration,
    },
    /// Its prompt was read.
    Prefilled {
        /// How long that took.
        prefill: Duration,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Those of them that were in the KV cache already.
        cached_tokens: u32,
    },
    /// A piece of an answer: whole characters.
    Text {
        /// Which answer, from 0.
        choice: u32,
        /// The text.
        text: String,
        /// Tokens it stands for.
        tokens: u32,
        /// The same tokens with their probabilities, where those were asked for.
        written: Vec<WrittenToken>,
    },
    /// The end of one answer.
    Ended {
        /// Which answer, from 0.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// The end.
    Finished(Finished),
    /// The end before its time.
    Failed(EngineError),
}

/// The answer to one request; dropping it ends the work within one step.
#[derive(Debug)]
pub struct TokenStream {
    events: async_channel::Receiver<Event>,
}

impl TokenStream {
    /// The next event; `None` after the last. Can be dropped and asked again.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await.ok()
    }
    /// The same for a thread that may wait.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.recv_blocking().ok()
    }
}

/// What a loaded model does now.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    /// Sequences with a place.
    pub active: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Estimated wait of a short prompt for its first token.
    pub estimated_wait: Duration,
    /// Tokens written since load.
    pub generated_tokens: u64,
    /// Tokens read since load.
    pub prompt_tokens: u64,
    /// Tokens in the KV cache.
    pub kv_used: usize,
    /// Tokens that fit.
    pub kv_capacity: usize,
    /// Tokens that nobody uses now and that a prompt may begin with.
    pub kv_idle: usize,
    /// Prompt tokens since load that were in the cache already.
    pub cached_tokens: u64,
    /// Sequences since load that gave up their part of the cache to an older one and were read again.
    pub preemptions: u64,
    /// Whether it can run: false while a device that failed is set up again.
    pub is_ready: bool,
    /// Faults of the device since load.
    pub faults: u64,
    /// Tokens per second of one sequence, as measured of late.
    pub decode_rate: f64,
}

/// A loaded model; clones share it. It ends when the last one is dropped.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    info: ModelInfo,
    max_sequences: u32,
    work: Work,
}

/// Who does it.
enum Work {
    Decoder { text: TextModel, grammars: grammar::Grammars, scheduler: scheduler::Handle },
    Encoder(encoder::Handle),
}

impl Engine {
    /// Loads a model and waits until it is ready. Blocks for as long as that takes: not for a runtime's own threads.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        let started = Instant::now();
        let file = artifact::ModelFile::open(&options.source)?;
        let task = model::task(&file);
        if task != Task::Generate {
            return Self::load_encoder(&file, task, &options, started);
        }
        // The vocabulary takes about as long as the weights of a small model.
        let (text, loaded) = std::thread::scope(|scope| {
            let text = scope.spawn(|| TextModel::new(&file));
            let loaded = model::load(&file, &options);
            (text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        let text = text?;
        if !text.has_template() {
            tracing::warn!(event = "no_chat_template", model = %options.name, "it can continue texts, not conversations");
        }
        let loaded = loaded?;
        let info = ModelInfo {
            task,
            labels: Vec::new(),
            outputs: 0,
            name: options.name.clone(),
            architecture: file.architecture().to_owned(),
            parameters: file.parameters(),
            quantization: file.quantization(),
            context_length: loaded.context_length,
            vocabulary: loaded.vocabulary,
            file_bytes: file.bytes(),
            device: loaded.device.clone(),
            load_time: started.elapsed(),
            device_memory_bytes: loaded.memory,
            decode_rate: 0.0,
            bandwidth: 0.0,
        };
        drop(file);
        let sizes = loaded.sizes;
        let made = scheduler::rebuildable(loaded, &options);
        let scheduler = scheduler::start(made, sizes, text.tokenizer(), &options, &info.device.name)?;
        let decode_rate = scheduler.stats().decode_rate;
        let bandwidth = decode_rate * info.file_bytes as f64;
        let info = ModelInfo { load_time: started.elapsed(), decode_rate, bandwidth, ..info };
        let grammars = grammar::Grammars::new(text.tokenizer().clone());
        let max_sequences = u32::try_from(sizes.slots).unwrap_or(u32::MAX);
        let work = Work::Decoder { text, grammars, scheduler };
        Ok(Self { shared: Arc::new(Shared { info, max_sequences, work }) })
    }

    fn load_encoder(
        file: &artifact::ModelFile,
        task: Task,
        options: &LoadOptions,
        started: Instant,
    ) -> Result<Self, LoadError> {
        let tokenizer = TextModel::tokenizer_of(file)?;
        let loaded = model::load_encoder(file, options)?;
        if tokenizer.vocabulary() > loaded.shape.vocabulary {
            let (tokens, rows) = (tokenizer.vocabulary(), loaded.shape.vocabulary);
            return Err(file.corrupt(format!("its tokenizer has {tokens} tokens and its table {rows} rows")));
        }
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let labels = match file.meta("bert.classifier.output_labels") {
            Some(artifact::MetaValue::Strings(labels)) if task == Task::Classify => labels.clone(),
            _ => Vec::new(),
        };
        let info = ModelInfo {
            task,
            labels,
            outputs: narrow(loaded.shape.outputs()),
            name: options.name.clone(),
            architecture: file.architecture().to_owned(),
            parameters: file.parameters(),
            quantization: file.quantization(),
            context_length: narrow(loaded.shape.context),
            vocabulary: narrow(loaded.shape.vocabulary),
            file_bytes: file.bytes(),
            device: loaded.device.clone(),
            load_time: started.elapsed(),
            device_memory_bytes: loaded.memory,
            decode_rate: 0.0,
            bandwidth: 0.0,
        };
        let encoder = encoder::start(loaded, tokenizer, options)?;
        let info = ModelInfo { load_time: started.elapsed(), ..info };
        Ok(Self {
            shared: Arc::new(Shared { info, max_sequences: options.max_sequences, work: Work::Encoder(encoder) }),
        })
    }

    /// The parts of a model that generates.
    fn decoder(&self) -> Option<(&TextModel, &scheduler::Handle)> {
        match &self.shared.work {
            Work::Decoder { text, scheduler, .. } => Some((text, scheduler)),
            Work::Encoder(_) => None,
        }
    }

    /// The encoder, if the model is for this.
    fn encoder(&self, wanted: Task) -> Result<&encoder::Handle, EngineError> {
        match &self.shared.work {
            Work::Encoder(encoder) if self.shared.info.task == wanted => Ok(encoder),
            _ => Err(EngineError::Task { is: self.shared.info.task, wanted }),
        }
    }

    /// Texts as vectors, in their order; a text that is longer than the context is cut and marked. Texts of several calls
    /// go through the model together. At most 2048 in one call. Dropping the future ends the work within one step.
    ///
    /// # Errors
    /// [`EngineError::Task`] for a model that gives no embeddings, [`EngineError::Busy`] when `max_queue` calls wait,
    /// [`EngineError::Input`] for too many texts, [`EngineError::Device`] and [`EngineError::Shutdown`].
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Embedding>, EngineError> {
        let inputs = texts.into_iter().map(|text| encoder::Input { first: text.into(), second: None }).collect();
        let encoded = self.encoder(Task::Embed)?.encode(inputs).await?;
        let normalised = encoded.into_iter().map(|text| {
            let length = text.values.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            let values = text.values.into_iter().map(|v| v / length).collect();
            Embedding { values, tokens: text.tokens, truncated: text.truncated }
        });
        Ok(normalised.collect())
    }

    /// What a classifier makes of texts, in their order. Errors as [`Self::embed`].
    pub async fn classify(&self, texts: Vec<String>) -> Result<Vec<Scores>, EngineError> {
        let inputs = texts.into_iter().map(|text| encoder::Input { first: text.into(), second: None }).collect();
        Ok(scores(self.encoder(Task::Classify)?.encode(inputs).await?))
    }

    /// How well documents answer a query, in the order of the documents: the first logit of a cross-encoder, higher is
    /// better. Errors as [`Self::embed`], and [`EngineError::Input`] for a classifier of more than one label.
    pub async fn rerank(&self, query: &str, documents: Vec<String>) -> Result<Vec<Scores>, EngineError> {
        let encoder = self.encoder(Task::Classify)?;
        if encoder.outputs() != 1 {
            let labels = encoder.outputs();
            return Err(EngineError::Input(format!("the model tells {labels} labels apart; a reranker has one score")));
        }
        let query: Arc<str> = query.into();
        let pair = |document: String| encoder::Input { first: query.clone(), second: Some(document.into()) };
        Ok(scores(encoder.encode(documents.into_iter().map(pair).collect()).await?))
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// A conversation as tokens, ready to be answered. Takes some microseconds for each hundred bytes.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Prompt, PromptError> {
        self.encode_answer(messages, "")
    }

    /// The same with an answer that has begun with `begun`, ready to be continued.
    pub fn encode_answer(&self, messages: &[ChatMessage], begun: &str) -> Result<Prompt, PromptError> {
        let (text, _) = self.decoder().ok_or(PromptError::NotGenerating)?;
        let tokens = text.encode_answer(messages, begun)?;
        let context = usize::try_from(self.shared.info.context_length).unwrap_or(usize::MAX);
        // One token at least must be left for the answer.
        if tokens.len() >= context {
            return Err(PromptError::TooLong { tokens: tokens.len(), context });
        }
        Ok(Prompt { tokens })
    }

    /// A text as tokens, to be continued as it stands. What looks like a control token in it is text.
    pub fn encode_text(&self, text: &str) -> Result<Prompt, PromptError> {
        let (model, _) = self.decoder().ok_or(PromptError::NotGenerating)?;
        let tokens = model.tokenizer().encode_text(text);
        let context = usize::try_from(self.shared.info.context_length).unwrap_or(usize::MAX);
        match tokens.len() {
            0 => Err(PromptError::Empty),
            n if n >= context => Err(PromptError::TooLong { tokens: n, context }),
            _ => Ok(Prompt { tokens }),
        }
    }

    /// Compiles what an answer must be. Takes milliseconds, the first time some hundred: not for a runtime's own threads.
    pub fn grammar(&self, structure: Structure<'_>) -> Result<Grammar, GrammarError> {
        match &self.shared.work {
            Work::Decoder { grammars, .. } => grammars.compile(structure),
            Work::Encoder(_) => Err(GrammarError::Tokens("it does not generate text".into())),
        }
    }

    /// Sequences that run together: a request cannot have more choices.
    pub fn max_sequences(&self) -> u32 {
        self.shared.max_sequences
    }

    /// Takes a request if it can be begun in time. Never waits.
    pub fn submit(&self, request: Generate) -> Result<TokenStream, Busy> {
        // A prompt cannot be had of a model that does not generate.
        let never = Busy { reason: BusyReason::Stopped, retry_after: Duration::MAX };
        let (_, scheduler) = self.decoder().ok_or(never)?;
        scheduler.submit(request).map(|events| TokenStream { events })
    }

    /// What it does now.
    pub fn stats(&self) -> EngineStats {
        match &self.shared.work {
            Work::Decoder { scheduler, .. } => scheduler.stats(),
            Work::Encoder(encoder) => EngineStats { is_ready: true, ..encoder.stats() },
        }
    }

    /// Estimated time to the first token of a prompt of this length, if `tenant` submitted it now.
    pub fn estimated_wait(&self, prompt_tokens: usize, tenant: Option<&str>) -> Duration {
        match &self.shared.work {
            Work::Decoder { scheduler, .. } => scheduler.estimated_wait(prompt_tokens, tenant),
            Work::Encoder(encoder) => encoder.estimated_wait(),
        }
    }

    /// Ends it: running requests fail with [`EngineError::Shutdown`].
    pub fn shutdown(&self) {
        match &self.shared.work {
            Work::Decoder { scheduler, .. } => scheduler.shutdown(),
            Work::Encoder(encoder) => encoder.shutdown(),
        }
    }
}

fn scores(encoded: Vec<encoder::Encoded>) -> Vec<Scores> {
    encoded
        .into_iter()
        .map(|text| Scores { logits: text.values, tokens: text.tokens, truncated: text.truncated })
        .collect()
}

#[cfg(test)]
mod testing;
