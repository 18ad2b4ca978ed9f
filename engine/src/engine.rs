//! Public handle of a loaded model. Accepts requests from any thread; each model runs on a thread of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::{self, CPU, HangSource};
use crate::runner::Rebuildable;
use crate::text::{Conversation, TextModel, Tokenizer, ToolStyle};
use crate::{
    Busy, BusyReason, ChatMessage, DeviceChoice, EmbedInput, Embedding, EngineError, EngineStats, Generate, Grammar,
    GrammarError, Hold, LoadError, LoadOptions, ModelInfo, Placement, Prompt, PromptError, Scores, Structure, Task,
    TokenStream, artifact, encoder, grammar, model, scheduler,
};

/// A loaded model; clones share it. The model is unloaded when the last clone is dropped.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<EngineShared>,
}

struct EngineShared {
    info: ModelInfo,
    max_sequences: u32,
    serving: Serving,
}

/// Checks, without a device, everything else that loading a model checks: its shape, its tokenizer, its template, and
/// the fit within [`LoadOptions::memory`].
///
/// # Errors
/// Errors of [`Engine::load`] that follow from the file or the options alone.
pub fn check(options: &LoadOptions) -> Result<(), LoadError> {
    let file = artifact::ModelFile::open(&options.source)?;
    model::check_fit(&file, options)?;
    match model::task(&file) {
        Task::Generate => TextModel::new(&file).map(|_| ()),
        Task::Embed | Task::Classify => {
            let tokenizer = TextModel::tokenizer_of(&file)?;
            check_tokens(&file, &tokenizer, model::encoder_vocabulary(&file)?)
        }
    }
}

/// Checks that every token of an encoder's tokenizer has a row in the embedding table.
fn check_tokens(file: &artifact::ModelFile, tokenizer: &Tokenizer, rows: usize) -> Result<(), LoadError> {
    let tokens = tokenizer.vocabulary();
    if tokens > rows {
        let why = format!("the tokenizer has {tokens} tokens; expected at most {rows}, the rows of the token table");
        return Err(file.corrupt(why));
    }
    Ok(())
}

/// Serving part of a loaded model.
enum Serving {
    Decoder { text: TextModel, grammars: grammar::Grammars, scheduler: scheduler::SchedulerHandle },
    Encoder(encoder::EncoderHandle),
}

impl Engine {
    /// Loads a model and waits until it is ready. Blocks throughout, so call it from a thread that may block, never
    /// from a runtime's own.
    ///
    /// # Errors
    /// [`LoadError::Hangs`] when the device does not return from the first step. With [`DeviceChoice::Auto`] a
    /// hanging GPU is replaced by the CPU.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        Self::load_holding(options, || Ok(Box::new(())))
    }

    /// As [`Self::load`], holding the value of `hold` for as long as the model's memory is taken. The model's thread
    /// drops it after the memory is released: shortly after the last engine is dropped, or, on a hanging device, once
    /// the device returns. `hold` is called a second time when the CPU replaces a hanging GPU, whose memory stays
    /// taken.
    ///
    /// # Errors
    /// Errors of [`Self::load`], and of `hold`.
    pub fn load_holding<E: From<LoadError>>(
        options: LoadOptions,
        mut hold: impl FnMut() -> Result<Hold, E>,
    ) -> Result<Self, E> {
        refuse_hanging(&options)?;
        let hung = match Self::load_once(&options, hold()?) {
            Err(hung @ LoadError::Hangs { kind, .. }) if options.device == DeviceChoice::Auto && kind != CPU => hung,
            loaded => return Ok(loaded?),
        };
        tracing::warn!(event = "gpu_given_up", model = %options.name, reason = %hung, instead = "CPU");
        let options = LoadOptions { device: DeviceChoice::Cpu, ..options };
        refuse_hanging(&options)?;
        Ok(Self::load_once(&options, hold()?)?)
    }

    fn load_once(options: &LoadOptions, hold: Hold) -> Result<Self, LoadError> {
        let started = Instant::now();
        let file = artifact::ModelFile::open(&options.source)?;
        let task = model::task(&file);
        if task != Task::Generate {
            return Self::load_encoder(&file, task, options, hold, started);
        }
        // The vocabulary takes about as long as the weights of a small model.
        let (text, loaded) = std::thread::scope(|scope| {
            let text = scope.spawn(|| TextModel::new(&file));
            let loaded = model::load(&file, options);
            (text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        let text = text?;
        if !text.has_template() {
            tracing::warn!(event = "no_chat_template", model = %options.name, "texts are continued, conversations refused");
        }
        let loaded = loaded?;
        let info = ModelInfo {
            task,
            labels: Vec::new(),
            scoring: None,
            outputs: 0,
            name: options.name.clone(),
            architecture: file.architecture().to_owned(),
            parameters: file.parameters(),
            quantization: model::quantization(&file, options.weights),
            context_length: loaded.context_length,
            vocabulary: loaded.vocabulary,
            file_bytes: file.bytes(),
            load_time: started.elapsed(),
        };
        drop(file);
        let sizes = loaded.sizes;
        let made = Rebuildable::decoder(loaded, info.file_bytes, options).holding(hold);
        let scheduler = scheduler::start(made, sizes, text.tokenizer(), options)?;
        let info = ModelInfo { load_time: started.elapsed(), ..info };
        let grammars = grammar::Grammars::new(text.tokenizer().clone());
        let max_sequences = u32::try_from(sizes.slots).unwrap_or(u32::MAX);
        let serving = Serving::Decoder { text, grammars, scheduler };
        Ok(Self { shared: Arc::new(EngineShared { info, max_sequences, serving }) })
    }

    fn load_encoder(
        file: &artifact::ModelFile,
        task: Task,
        options: &LoadOptions,
        hold: Hold,
        started: Instant,
    ) -> Result<Self, LoadError> {
        let tokenizer = TextModel::tokenizer_of(file)?;
        let loaded = model::load_encoder(file, options)?;
        check_tokens(file, &tokenizer, loaded.shape.vocabulary)?;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let head = model::head(file)?;
        let info = ModelInfo {
            task,
            labels: head.labels,
            scoring: head.scoring,
            outputs: narrow(loaded.shape.outputs()),
            name: options.name.clone(),
            architecture: file.architecture().to_owned(),
            parameters: file.parameters(),
            quantization: model::quantization(file, options.weights),
            context_length: narrow(loaded.shape.context),
            vocabulary: narrow(loaded.shape.vocabulary),
            file_bytes: file.bytes(),
            load_time: started.elapsed(),
        };
        let shape = loaded.shape.clone();
        let made = Rebuildable::encoder(loaded, info.file_bytes, options).holding(hold);
        let encoder = encoder::start(made, shape, tokenizer, options)?;
        let info = ModelInfo { load_time: started.elapsed(), ..info };
        Ok(Self {
            shared: Arc::new(EngineShared {
                info,
                max_sequences: options.max_sequences,
                serving: Serving::Encoder(encoder),
            }),
        })
    }

    /// Text side and scheduler of a model that generates.
    fn decoder(&self) -> Option<(&TextModel, &scheduler::SchedulerHandle)> {
        match &self.shared.serving {
            Serving::Decoder { text, scheduler, .. } => Some((text, scheduler)),
            Serving::Encoder(_) => None,
        }
    }

    /// Encoder of a model whose task is `wanted`.
    fn encoder(&self, wanted: Task) -> Result<&encoder::EncoderHandle, EngineError> {
        match &self.shared.serving {
            Serving::Encoder(encoder) if self.shared.info.task == wanted => Ok(encoder),
            _ => Err(EngineError::Task { is: self.shared.info.task, wanted }),
        }
    }

    /// Embeds texts, in their order; a text longer than the context is cut and marked. Texts of several calls are
    /// batched. At most 2048 texts in one call. Dropping the future ends the work within one step.
    ///
    /// # Errors
    /// [`EngineError::Task`] for a model that gives no embeddings, [`EngineError::Busy`] when `max_queue` calls wait,
    /// [`EngineError::Input`] for too many texts, [`EngineError::Device`] and [`EngineError::Shutdown`].
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Embedding>, EngineError> {
        self.embed_inputs(texts.into_iter().map(EmbedInput::Text).collect()).await
    }

    /// As [`Self::embed`], for texts or for tokens made elsewhere. Tokens are read unchanged, without the special
    /// tokens that the tokenizer puts around a text. A number outside the vocabulary is [`EngineError::Input`].
    pub async fn embed_inputs(&self, inputs: Vec<EmbedInput>) -> Result<Vec<Embedding>, EngineError> {
        let inputs = inputs.into_iter().map(encoder::Input::from).collect();
        let encoded = self.encoder(Task::Embed)?.encode(inputs).await?;
        let normalised = encoded.into_iter().map(|text| {
            let length = text.values.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            let values = text.values.into_iter().map(|v| v / length).collect();
            Embedding { values, tokens: text.tokens, truncated: text.truncated }
        });
        Ok(normalised.collect())
    }

    /// Classifies texts, in their order. A text longer than the context is cut and marked: [`Self::windows`] makes
    /// inputs of a whole one. Errors as [`Self::embed`].
    pub async fn classify(&self, texts: Vec<String>) -> Result<Vec<Scores>, EngineError> {
        self.classify_inputs(texts.into_iter().map(EmbedInput::Text).collect()).await
    }

    /// As [`Self::classify`], for texts or for tokens, such as those of [`Self::windows`].
    pub async fn classify_inputs(&self, inputs: Vec<EmbedInput>) -> Result<Vec<Scores>, EngineError> {
        let inputs = inputs.into_iter().map(encoder::Input::from).collect();
        Ok(scores(self.encoder(Task::Classify)?.encode(inputs).await?))
    }

    /// Cuts a text into inputs of at most the context of an encoder, each with the special tokens around it. Two that
    /// follow each other have `overlap` tokens in common, at most half of a window. The whole text is tokenised, which
    /// takes some microseconds for each hundred bytes.
    ///
    /// # Errors
    /// [`EngineError::Task`] for a model that generates, [`EngineError::Input`] for a text without tokens.
    pub fn windows(&self, text: &str, overlap: usize) -> Result<Vec<EmbedInput>, EngineError> {
        match &self.shared.serving {
            Serving::Encoder(encoder) => encoder.windows(text, overlap),
            Serving::Decoder { .. } => Err(EngineError::Task { is: Task::Generate, wanted: Task::Classify }),
        }
    }

    /// Scores documents against a query, in the order of the documents: the first logit of a cross-encoder, higher is
    /// better. Errors as [`Self::embed`], and [`EngineError::Input`] for a classifier with more than one label.
    pub async fn rerank(&self, query: &str, documents: Vec<String>) -> Result<Vec<Scores>, EngineError> {
        let encoder = self.encoder(Task::Classify)?;
        if encoder.outputs() != 1 {
            let labels = encoder.outputs();
            return Err(EngineError::Input(format!("the model has {labels} labels; expected a reranker with one")));
        }
        let query: Arc<str> = query.into();
        let pair = |document: String| encoder::Input::Pair(query.clone(), document.into());
        Ok(scores(encoder.encode(documents.into_iter().map(pair).collect()).await?))
    }

    /// Facts of the loaded model.
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Device that the model runs on now, and its measured speed.
    pub fn placement(&self) -> Placement {
        match &self.shared.serving {
            Serving::Decoder { scheduler, .. } => scheduler.thread.placement(),
            Serving::Encoder(encoder) => encoder.thread.placement(),
        }
    }

    /// True once the engine has ended, by [`Self::shutdown`] or by a defect: it accepts no request and must be loaded
    /// again.
    pub fn has_ended(&self) -> bool {
        match &self.shared.serving {
            Serving::Decoder { scheduler, .. } => scheduler.thread.has_ended(),
            Serving::Encoder(encoder) => encoder.thread.has_ended(),
        }
    }

    /// Tool-call syntax of the model, as [`text::ToolReader`](crate::text::ToolReader) reads it; `None` for a model
    /// that was not trained to call tools.
    pub fn tools(&self) -> Option<ToolStyle> {
        self.decoder().and_then(|(text, _)| text.tools())
    }

    /// True if the model has a chat template; without one it continues texts only.
    pub fn has_template(&self) -> bool {
        self.decoder().is_some_and(|(text, _)| text.has_template())
    }

    /// Renders a conversation as tokens, ready to be answered. Takes some microseconds for each hundred bytes.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Prompt, PromptError> {
        self.encode(&Conversation { messages, ..Conversation::default() })
    }

    /// As [`Self::encode_chat`], with tools or with an answer that has begun.
    pub fn encode(&self, conversation: &Conversation<'_>) -> Result<Prompt, PromptError> {
        let (text, _) = self.decoder().ok_or(PromptError::NotGenerating)?;
        self.prompt(text.encode(conversation)?)
    }

    /// Makes a prompt of tokens, to be continued unchanged.
    pub fn prompt(&self, tokens: Vec<u32>) -> Result<Prompt, PromptError> {
        if self.decoder().is_none() {
            return Err(PromptError::NotGenerating);
        }
        let context = usize::try_from(self.shared.info.context_length).unwrap_or(usize::MAX);
        if let Some(token) = tokens.iter().find(|token| **token >= self.shared.info.vocabulary) {
            return Err(PromptError::Token { token: *token, vocabulary: self.shared.info.vocabulary });
        }
        match tokens.len() {
            0 => Err(PromptError::Empty),
            // At least one token of the context must be left for the answer.
            n if n >= context => Err(PromptError::TooLong { tokens: n, context }),
            _ => Ok(Prompt { tokens }),
        }
    }

    /// Tokenises a text to be continued. Text that looks like a control token is read as text.
    pub fn encode_text(&self, text: &str) -> Result<Prompt, PromptError> {
        let (model, _) = self.decoder().ok_or(PromptError::NotGenerating)?;
        self.prompt(model.tokenizer().encode_text(text)?)
    }

    /// Compiles the grammar of an answer. Takes milliseconds, the first time some hundred, so call it from a thread
    /// that may block.
    pub fn grammar(&self, structure: Structure<'_>) -> Result<Grammar, GrammarError> {
        match &self.shared.serving {
            Serving::Decoder { grammars, .. } => grammars.compile(structure),
            Serving::Encoder(_) => Err(GrammarError::Tokens("the model does not generate text".into())),
        }
    }

    /// Most sequences decoded together: a request cannot have more choices.
    pub fn max_sequences(&self) -> u32 {
        self.shared.max_sequences
    }

    /// Submits a request if its first token can be produced in time. Never blocks.
    pub fn submit(&self, request: Generate) -> Result<TokenStream, Busy> {
        // Unreachable: only a generating model hands out a prompt.
        let never = Busy { reason: BusyReason::Stopped, retry_after: Duration::MAX };
        let (_, scheduler) = self.decoder().ok_or(never)?;
        scheduler.submit(request).map(|events| TokenStream { events })
    }

    /// Current load and totals since load.
    pub fn stats(&self) -> EngineStats {
        match &self.shared.serving {
            Serving::Decoder { scheduler, .. } => scheduler.stats(),
            Serving::Encoder(encoder) => encoder.stats(),
        }
    }

    /// Estimated time to the first token of a prompt of this length, if `tenant` submitted it now.
    pub fn estimated_wait(&self, prompt_tokens: usize, tenant: Option<&str>) -> Duration {
        match &self.shared.serving {
            Serving::Decoder { scheduler, .. } => scheduler.estimated_wait(prompt_tokens, tenant),
            Serving::Encoder(encoder) => encoder.estimated_wait(),
        }
    }

    /// Stops the engine: running requests fail with [`EngineError::Shutdown`].
    pub fn shutdown(&self) {
        match &self.shared.serving {
            Serving::Decoder { scheduler, .. } => scheduler.thread.shutdown(),
            Serving::Encoder(encoder) => encoder.thread.shutdown(),
        }
    }
}

/// Refuses a hanging device or file before memory is reserved for it. With [`DeviceChoice::Auto`] the CPU replaces a
/// hanging GPU.
fn refuse_hanging(options: &LoadOptions) -> Result<(), LoadError> {
    if !device::anything_hangs() {
        return Ok(());
    }
    let found = model::device_for(&options.device)?;
    if options.device == DeviceChoice::Auto && found.kind != CPU {
        return Ok(());
    }
    device::refuse(&HangSource::on(&found, &options.source), &found.name, found.kind)
}

fn scores(encoded: Vec<encoder::Encoded>) -> Vec<Scores> {
    encoded
        .into_iter()
        .map(|text| Scores { logits: text.values, tokens: text.tokens, truncated: text.truncated })
        .collect()
}
