//! Table of the fields of the Chat Completions API, with the support of the built-in model for each. A field that changes the
//! form of the answer and is not implemented is never ignored: unless its value is neutral, a request addressed to the
//! model is refused with the name of the field, and any other request does not spill.
//!
//! Hints change no form: how long to think, which template variables to set, how to sample. They are recorded as ignored
//! unless their value is neutral, and so are unknown fields. Fields by which other servers ask for a form (a grammar, a set
//! of tokens) are in the table because they must not pass for unknown ones. Other names of implemented fields are read as
//! those.

use super::values::{Flat, Probe};

/// Support of the built-in model for a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum FieldSupport {
    /// Implemented.
    Read(Read),
    /// Ignored: no value of the field changes the answer.
    Inert,
    /// Not implemented, and changes the form of the answer: accepted with this neutral value and with `null`.
    Only(Neutral),
    /// Not implemented, and changes no form: ignored, and recorded unless the value is neutral.
    Hint(Neutral),
    /// Number that is not implemented and changes no form: ignored, and recorded unless the value is neutral.
    Number(HintNumber),
    /// Another server's name of an implemented field, which wins where both are given.
    Synonym(&'static str, Read),
}

/// Fields that are implemented.
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
    GuidedJson,
    StructuredOutputs,
}

/// API of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Api {
    /// Chat completions.
    #[default]
    Chat,
    /// The older completions, which continue a text.
    Text,
}

/// Value of a field that leaves the answer as if the field were absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Neutral {
    /// No value but `null`.
    Nothing,
    Bool(bool),
    Number(f64),
    /// List or object without entries.
    Empty,
    /// Any of these words.
    Word(&'static [&'static str]),
    /// List with this word only.
    ListOf(&'static str),
}

impl Neutral {
    /// True if `value` is this neutral one.
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

/// Values that a number may have although it is ignored: others are mistakes for any server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HintNumber {
    pub(super) neutral: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// True if the number must be a whole one.
    pub(super) is_whole: bool,
}

/// Support for a whole number of this range that is ignored.
const fn whole(neutral: f64, min: f64, max: f64) -> FieldSupport {
    FieldSupport::Number(HintNumber { neutral, min, max, is_whole: true })
}

/// Support for a number of this range that is ignored.
const fn number(neutral: f64, min: f64, max: f64) -> FieldSupport {
    FieldSupport::Number(HintNumber { neutral, min, max, is_whole: false })
}

use FieldSupport::{Hint, Inert, Only, Synonym};
use Neutral::{Bool, Empty, ListOf, Nothing, Number, Word};

/// All fields, in the order of their names within each group.
const FIELDS: &[(&str, FieldSupport)] = &[
    // Implemented.
    ("frequency_penalty", FieldSupport::Read(Read::FrequencyPenalty)),
    ("logit_bias", FieldSupport::Read(Read::LogitBias)),
    ("logprobs", FieldSupport::Read(Read::Logprobs)),
    ("max_completion_tokens", FieldSupport::Read(Read::MaxCompletionTokens)),
    ("max_tokens", FieldSupport::Read(Read::MaxTokens)),
    ("messages", FieldSupport::Read(Read::Messages)),
    ("min_p", FieldSupport::Read(Read::MinP)),
    ("model", FieldSupport::Read(Read::Model)),
    ("n", FieldSupport::Read(Read::N)),
    ("parallel_tool_calls", FieldSupport::Read(Read::ParallelToolCalls)),
    ("prompt", FieldSupport::Read(Read::Prompt)),
    ("presence_penalty", FieldSupport::Read(Read::PresencePenalty)),
    ("repetition_penalty", FieldSupport::Read(Read::RepetitionPenalty)),
    ("response_format", FieldSupport::Read(Read::ResponseFormat)),
    ("seed", FieldSupport::Read(Read::Seed)),
    ("stop", FieldSupport::Read(Read::Stop)),
    ("stream", FieldSupport::Read(Read::Stream)),
    ("stream_options", FieldSupport::Read(Read::StreamOptions)),
    ("temperature", FieldSupport::Read(Read::Temperature)),
    ("tool_choice", FieldSupport::Read(Read::ToolChoice)),
    ("tools", FieldSupport::Read(Read::Tools)),
    ("top_k", FieldSupport::Read(Read::TopK)),
    ("top_logprobs", FieldSupport::Read(Read::TopLogprobs)),
    ("top_p", FieldSupport::Read(Read::TopP)),
    // The rest of OpenAI's.
    ("audio", Only(Nothing)),
    ("function_call", Only(Word(&["none", "auto"]))),
    ("functions", Only(Empty)),
    ("metadata", Inert),
    ("modalities", Only(ListOf("text"))),
    ("prediction", Hint(Nothing)),
    ("prompt_cache_key", Inert),
    ("prompt_cache_retention", Inert),
    ("reasoning_effort", Hint(Word(&["none"]))),
    ("safety_identifier", Inert),
    ("service_tier", Hint(Word(&["auto", "default"]))),
    ("store", Hint(Bool(false))),
    ("suffix", Only(Word(&[""]))),
    ("user", Inert),
    ("verbosity", Hint(Word(&["medium"]))),
    ("web_search_options", Only(Nothing)),
    // Extensions of vLLM, SGLang, llama.cpp and others: other names.
    ("guided_json", FieldSupport::Read(Read::GuidedJson)),
    ("json_schema", FieldSupport::Read(Read::GuidedJson)),
    ("max_new_tokens", Synonym("max_tokens", Read::MaxTokens)),
    ("n_predict", Synonym("max_tokens", Read::MaxTokens)),
    ("random_seed", Synonym("seed", Read::Seed)),
    ("repeat_penalty", Synonym("repetition_penalty", Read::RepetitionPenalty)),
    ("structured_outputs", FieldSupport::Read(Read::StructuredOutputs)),
    // Forms of the answer.
    ("add_generation_prompt", Only(Bool(true))),
    ("allowed_token_ids", Only(Empty)),
    ("bad_words", Only(Empty)),
    ("continue_final_message", Only(Bool(false))),
    ("documents", Only(Empty)),
    ("ebnf", Only(Nothing)),
    ("echo", Only(Bool(false))),
    ("grammar", Only(Word(&[""]))),
    ("guided_choice", Only(Empty)),
    ("guided_grammar", Only(Nothing)),
    ("guided_regex", Only(Nothing)),
    ("include_stop_str_in_output", Only(Bool(false))),
    ("logits_processors", Only(Empty)),
    ("n_probs", Only(Number(0.0))),
    ("prompt_logprobs", Only(Number(0.0))),
    ("regex", Only(Nothing)),
    ("return_hidden_states", Only(Bool(false))),
    ("return_token_ids", Only(Bool(false))),
    ("return_tokens_as_token_ids", Only(Bool(false))),
    ("skip_special_tokens", Only(Bool(true))),
    ("stop_token_ids", Only(Empty)),
    ("structural_tag", Only(Nothing)),
    // Hints.
    ("best_of", whole(1.0, 1.0, 20.0)),
    ("cache_prompt", Inert),
    ("chat_template_kwargs", Hint(Empty)),
    ("ignore_eos", Hint(Bool(false))),
    ("length_penalty", number(1.0, -100.0, 100.0)),
    ("min_tokens", whole(0.0, 0.0, 1e9)),
    ("mirostat", whole(0.0, 0.0, 2.0)),
    ("priority", Inert),
    ("spaces_between_special_tokens", Hint(Bool(true))),
    ("typical_p", number(1.0, 0.0, 1.0)),
    ("use_beam_search", Hint(Bool(false))),
];

/// Fields of chat completions alone.
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
/// Fields of the older completions alone.
const TEXT: &[&str] = &["prompt", "suffix"];

/// Index of a field in the table, and its support; `None` for an unknown field. A field that only the other API has asks for
/// an answer that this one does not give.
pub(super) fn lookup(name: &str, api: Api) -> Option<(usize, FieldSupport)> {
    let others = match api {
        Api::Chat => TEXT,
        Api::Text => CHAT,
    };
    let (at, (_, field)) = FIELDS.iter().enumerate().find(|(_, (known, _))| *known == name)?;
    let is_others = others.contains(&name);
    Some((at, if is_others && matches!(field, FieldSupport::Read(_)) { Only(Nothing) } else { *field }))
}

/// Set of fields that a request has, as a bit for each index of the table.
#[derive(Debug, Default)]
pub(super) struct SeenFields(u128);

// One bit for each field.
const _: () = assert!(FIELDS.len() <= 128);

impl SeenFields {
    /// Inserts an index; returns false if the set had it.
    pub(super) fn insert(&mut self, at: usize) -> bool {
        let bit = 1u128 << (at & 127);
        let is_new = self.0 & bit == 0;
        self.0 |= bit;
        is_new
    }

    /// True if the set has an index.
    pub(super) fn has(&self, at: usize) -> bool {
        self.0 & (1u128 << (at & 127)) != 0
    }
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = (&'static str, FieldSupport)> {
    FIELDS.iter().copied()
}
