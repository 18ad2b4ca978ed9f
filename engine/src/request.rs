//! Request to a model, and the events of its answer.

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
    /// Tokens of the prompt.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// True if there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Input of an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// A text.
    Text(String),
    /// Tokens of the model's vocabulary.
    Tokens(Vec<u32>),
}

/// A request. [`Generate::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Prompt to continue.
    pub prompt: Prompt,
    /// Most tokens of the answer; cut to the remaining context.
    pub max_tokens: Option<u32>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Stop strings: they end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Time after which the answer is useless.
    pub deadline: Option<Instant>,
    /// Answers to the same prompt, which is prefilled once; at most as many as sequences run together.
    pub choices: NonZeroU32,
    /// Reports log probabilities of the tokens written, and of this many of the likeliest at each position.
    pub log_probabilities: Option<u32>,
    /// Grammar of the answer, from [`Engine::grammar`](crate::Engine::grammar).
    pub grammar: Option<Grammar>,
    /// Tenant of the request: slots are shared among tenants in turn, however much one of them asks.
    pub tenant: Option<Arc<str>>,
    /// Share of the tenant relative to the others.
    pub weight: NonZeroU32,
}

impl Generate {
    /// One answer, as long as the context allows, sampled by the model's own probabilities, without a tenant.
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

/// Reason for the end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the answer, or a stop string did.
    Stop,
    /// The answer reached its maximum length.
    Length,
}

/// A token and its probability in the model's view.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenProbability {
    /// Index in the vocabulary.
    pub token: u32,
    /// Bytes of the token; not always whole characters.
    pub bytes: Box<[u8]>,
    /// Natural logarithm of the probability.
    pub log_probability: f32,
}

/// A generated token, and the likeliest alternatives at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenToken {
    /// The token.
    pub chosen: TokenProbability,
    /// Likeliest tokens in descending order; the chosen one is not always among them.
    pub likeliest: Vec<TokenProbability>,
}

/// End of all answers of a request.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: u32,
    /// Tokens generated, of all choices.
    pub completion_tokens: u32,
    /// Wait for a slot.
    pub queued: Duration,
    /// Time of the prefill, to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
}

/// Events of a request, in this order: `Started`, `Prefilled`, then for each choice `Text`*, perhaps `StopString`, and `Ended`,
/// interleaved, then `Finished`. `Failed` may end the stream at any point.
#[derive(Debug, Clone)]
pub enum Event {
    /// The request has a slot.
    Started {
        /// Wait for the slot.
        queued: Duration,
    },
    /// The prompt was prefilled.
    Prefilled {
        /// Time of the prefill.
        prefill: Duration,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Prompt tokens that were in the KV cache already.
        cached_tokens: u32,
    },
    /// A piece of an answer: whole characters.
    Text {
        /// Index of the answer, from 0.
        choice: u32,
        /// The text.
        text: String,
        /// Tokens of this text.
        tokens: u32,
        /// The tokens of this text with their probabilities, if requested.
        written: Vec<WrittenToken>,
    },
    /// A stop string has ended an answer, whose `Ended` follows.
    StopString {
        /// Index of the answer, from 0.
        choice: u32,
        /// Index of the string in [`Generate::stop`].
        stop: usize,
    },
    /// The end of one answer.
    Ended {
        /// Index of the answer, from 0.
        choice: u32,
        /// Reason.
        reason: FinishReason,
    },
    /// End of all answers.
    Finished(Finished),
    /// End by an error.
    Failed(EngineError),
}

/// Stream of the answers to one request; dropping it ends the work within one step.
#[derive(Debug)]
pub struct TokenStream {
    pub(crate) events: async_channel::Receiver<Event>,
}

impl TokenStream {
    /// Receives the next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await.ok()
    }
    /// As [`Self::next`], for a thread that may block.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.recv_blocking().ok()
    }
}
