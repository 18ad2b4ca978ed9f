//! Every field of the Chat Completions API by name, and what the model inside makes of it. A field that it does not
//! implement is never ignored: with another value than the one that changes nothing, the request is refused by name
//! where it was addressed to the model, and does not spill where it was not.
//!
//! OpenAI refuses fields that it does not know; so do we, unless they are `null`. The extensions of other servers are
//! known here with the value that means "as if it were not there", because clients written for those servers send them.

use super::values::{Flat, Probe};

/// What a field is to the model inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field {
    /// It is implemented.
    Read(Read),
    /// It changes nothing about the answer, whatever it says.
    Inert,
    /// It is not implemented; this value asks for nothing. `null` always does.
    Only(Neutral),
}

/// The fields that are implemented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Model,
    Messages,
    Prompt,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    Temperature,
    TopP,
    TopK,
    Seed,
    Stop,
    N,
    MinP,
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    LogitBias,
    Logprobs,
    TopLogprobs,
    ResponseFormat,
    Tools,
    ToolChoice,
    ParallelToolCalls,
}

/// Which API a request is one of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Api {
    /// Chat completions.
    #[default]
    Chat,
    /// The older completions, which continue a text.
    Text,
}

/// A value that asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Neutral {
    /// None but `null`.
    Nothing,
    Bool(bool),
    Number(f64),
    /// A list or object without entries.
    Empty,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list with this word only.
    ListOf(&'static str),
}

impl Neutral {
    /// Whether a value asks for nothing.
    pub(super) fn is(self, value: &Probe<'_>) -> bool {
        match (self, value) {
            (_, Probe::Null) => true,
            (Self::Bool(neutral), Probe::Bool(value)) => neutral == *value,
            (Self::Empty, Probe::List(len, _) | Probe::Object(len, _)) => *len == 0,
            (Self::Word(words), Probe::Text(word)) => words.contains(&&**word),
            (Self::ListOf(word), Probe::List(len, entries)) => {
                *len == entries.len() && entries.iter().all(|entry| matches!(entry, Flat::Text(text) if text == word))
            }
            (Self::Number(neutral), value) => value.number() == Some(neutral),
            _ => false,
        }
    }
}

use Field::{Inert, Only};
use Neutral::{Bool, Empty, ListOf, Nothing, Number, Word};

/// The fields, in the order of their names within each group.
const FIELDS: &[(&str, Field)] = &[
    // Implemented.
    ("frequency_penalty", Field::Read(Read::FrequencyPenalty)),
    ("logit_bias", Field::Read(Read::LogitBias)),
    ("logprobs", Field::Read(Read::Logprobs)),
    ("max_completion_tokens", Field::Read(Read::MaxCompletionTokens)),
    ("max_tokens", Field::Read(Read::MaxTokens)),
    ("messages", Field::Read(Read::Messages)),
    ("min_p", Field::Read(Read::MinP)),
    ("model", Field::Read(Read::Model)),
    ("n", Field::Read(Read::N)),
    ("parallel_tool_calls", Field::Read(Read::ParallelToolCalls)),
    ("prompt", Field::Read(Read::Prompt)),
    ("presence_penalty", Field::Read(Read::PresencePenalty)),
    ("repetition_penalty", Field::Read(Read::RepetitionPenalty)),
    ("response_format", Field::Read(Read::ResponseFormat)),
    ("seed", Field::Read(Read::Seed)),
    ("stop", Field::Read(Read::Stop)),
    ("stream", Field::Read(Read::Stream)),
    ("stream_options", Field::Read(Read::StreamOptions)),
    ("temperature", Field::Read(Read::Temperature)),
    ("tool_choice", Field::Read(Read::ToolChoice)),
    ("tools", Field::Read(Read::Tools)),
    ("top_k", Field::Read(Read::TopK)),
    ("top_logprobs", Field::Read(Read::TopLogprobs)),
    ("top_p", Field::Read(Read::TopP)),
    // The rest of OpenAI's.
    ("audio", Only(Nothing)),
    ("function_call", Only(Word(&["none", "auto"]))),
    ("functions", Only(Empty)),
    ("metadata", Inert),
    ("modalities", Only(ListOf("text"))),
    ("prediction", Only(Nothing)),
    ("prompt_cache_key", Inert),
    ("prompt_cache_retention", Inert),
    ("reasoning_effort", Only(Word(&["none"]))),
    ("safety_identifier", Inert),
    ("service_tier", Only(Word(&["auto", "default"]))),
    ("store", Only(Bool(false))),
    ("suffix", Only(Word(&[""]))),
    ("user", Inert),
    ("verbosity", Only(Word(&["medium"]))),
    ("web_search_options", Only(Nothing)),
    // Extensions of vLLM, SGLang and llama.cpp.
    ("add_generation_prompt", Only(Bool(true))),
    ("best_of", Only(Number(1.0))),
    ("cache_prompt", Inert),
    ("chat_template_kwargs", Only(Empty)),
    ("continue_final_message", Only(Bool(false))),
    ("echo", Only(Bool(false))),
    ("ignore_eos", Only(Bool(false))),
    ("include_stop_str_in_output", Only(Bool(false))),
    ("length_penalty", Only(Number(1.0))),
    ("min_tokens", Only(Number(0.0))),
    ("mirostat", Only(Number(0.0))),
    ("priority", Inert),
    ("repeat_penalty", Only(Number(1.0))),
    ("skip_special_tokens", Only(Bool(true))),
    ("spaces_between_special_tokens", Only(Bool(true))),
    ("stop_token_ids", Only(Empty)),
    ("typical_p", Only(Number(1.0))),
    ("use_beam_search", Only(Bool(false))),
];

/// Fields that chat completions alone have.
const CHAT: &[&str] = &[
    "audio",
    "chat_template_kwargs",
    "function_call",
    "functions",
    "max_completion_tokens",
    "messages",
    "modalities",
    "parallel_tool_calls",
    "prediction",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
    "web_search_options",
];
/// Those that completions alone have.
const TEXT: &[&str] = &["prompt", "suffix"];

/// What a field is, and its place in the table; `None` for one that nobody knows.
pub(super) fn lookup(name: &str, api: Api) -> Option<(usize, Field)> {
    let others = match api {
        Api::Chat => TEXT,
        Api::Text => CHAT,
    };
    let (at, (_, field)) = FIELDS.iter().enumerate().find(|(_, (known, _))| *known == name)?;
    (!others.contains(&name)).then_some((at, *field))
}

/// A set of places in the table.
#[derive(Debug, Default)]
pub(super) struct Seen(u64);

/// A place is a bit.
const _: () = assert!(FIELDS.len() <= 64);

impl Seen {
    /// Enters a place; false when it was there.
    pub(super) fn enter(&mut self, at: usize) -> bool {
        let bit = 1u64 << (at & 63);
        let is_new = self.0 & bit == 0;
        self.0 |= bit;
        is_new
    }
}
