//! What is asked of a model and what comes of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{EngineError, Grammar, Sampling};

/// A tokenised conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub(crate) tokens: Vec<u32>,
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

/// What is to become a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// A text.
    Text(String),
    /// Tokens of the model.
    Tokens(Vec<u32>),
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
    /// What the answer must be, from [`Engine::grammar`](crate::Engine::grammar).
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
    pub(crate) events: async_channel::Receiver<Event>,
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
