//! Reader of chat requests and the older completions for the built-in model: field by field, each fault with the field that
//! it was found in.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use spillway_filter::Refusal;

use super::biases::Biases;
use super::fields::{Api, FieldSupport, HintNumber, Read, SeenFields, lookup};
use super::findings::Findings;
use super::format::{Format, Raw, StructuredOutputs};
use super::inputs::TextOrTokens;
use super::messages::Messages;
use super::object;
use super::tools;
use super::values::{BorrowedText, Flat, Probe, Skip};
use crate::protocol::chat::{ChatRequest, PromptInput, ResponseFormat, ToolChoice};
use crate::protocol::refusals::{duplicate, shown};

/// Most stop strings, as in OpenAI's API.
const MAX_STOPS: usize = 4;
/// Longest stop string in bytes: each is searched for after every token.
const MAX_STOP_BYTES: usize = 256;
/// Most choices of one answer, as in OpenAI's API.
const MAX_CHOICES: u32 = 128;
/// Most likeliest tokens reported beside each written one, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;
/// Most likeliest tokens reported beside each written one of the older completions, as in OpenAI's API.
const MAX_TEXT_LOGPROBS: u32 = 5;
/// Default `max_tokens` of the older completions, as in OpenAI's API.
const TEXT_TOKENS: u32 = 16;

/// Reads a chat request. An error means that the request is invalid for any server.
pub(in crate::protocol::openai) fn chat(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let mut reader = ChatReader::default();
    object(body, &mut reader)?;
    if !reader.has_messages {
        reader.findings.wrong("missing_required_parameter", "messages", "is missing");
    }
    if reader.request.top_logprobs > 0 && !reader.request.logprobs {
        reader.findings.wrong("invalid_value", "top_logprobs", "needs `logprobs` to be true");
    }
    reader.synonyms();
    reader.tools();
    reader.finish()
}

/// Reads a request of the older completions, which continue a text.
pub(in crate::protocol::openai) fn completions(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let mut reader = ChatReader { api: Api::Text, ..ChatReader::default() };
    object(body, &mut reader)?;
    if reader.request.prompt.is_none() {
        reader.findings.wrong("missing_required_parameter", "prompt", "is missing");
    }
    reader.synonyms();
    reader.request.max_tokens.get_or_insert(TEXT_TOKENS);
    reader.request.fields.prompt = "prompt";
    reader.finish()
}

#[derive(Default)]
struct ChatReader<'a> {
    api: Api,
    request: ChatRequest,
    tool_list: Raw,
    tool_choice: Raw,
    findings: Findings,
    seen: SeenFields,
    has_messages: bool,
    newer_max_tokens: bool,
    /// Schema under one of the names that other servers have for it.
    guided: Raw,
    /// Fields under other names, with the name of each in the API: at most one for each entry of the table.
    synonyms: Vec<(&'static str, String, Read, Probe<'a>)>,
}

impl<'a> Visitor<'a> for &mut ChatReader<'a> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(BorrowedText(key)) = map.next_key()? {
            let Some((at, field)) = lookup(&key, self.api) else {
                if map.next_value::<Probe<'a>>()? != Probe::Null {
                    self.findings.ignore(shown(&key));
                }
                continue;
            };
            if !self.seen.insert(at) {
                self.findings.wrong.get_or_insert(duplicate(&key));
                map.next_value::<Skip>()?;
                continue;
            }
            match field {
                FieldSupport::Read(Read::Messages) => {
                    self.has_messages = true;
                    self.request.messages = map.next_value_seed(Messages(&mut self.findings))?;
                }
                FieldSupport::Read(Read::Tools) => self.tool_list = map.next_value()?,
                FieldSupport::Read(Read::ToolChoice) => self.tool_choice = map.next_value()?,
                FieldSupport::Read(Read::Prompt) => {
                    let prompt: TextOrTokens = map.next_value()?;
                    self.prompt(prompt);
                }
                FieldSupport::Read(Read::LogitBias) => {
                    let biases: Biases = map.next_value()?;
                    self.logit_bias(biases);
                }
                FieldSupport::Read(Read::ResponseFormat) => {
                    let format: Format = map.next_value()?;
                    self.request.response_format = format.validate(&mut self.findings);
                }
                FieldSupport::Read(Read::GuidedJson) => self.guided = map.next_value()?,
                FieldSupport::Read(Read::StructuredOutputs) => {
                    let outputs: StructuredOutputs = map.next_value()?;
                    self.guided = outputs.validate(&mut self.findings);
                }
                FieldSupport::Synonym(name, read) => {
                    let value = map.next_value::<Probe<'a>>()?;
                    // llama.cpp's word for no limit.
                    if value != Probe::Null && !(read == Read::MaxTokens && value == Probe::Negative(-1)) {
                        self.synonyms.push((name, key.into_owned(), read, value));
                    }
                }
                FieldSupport::Number(hint) => {
                    let value = map.next_value::<Probe<'a>>()?;
                    if value != Probe::Null {
                        self.hint(hint, &key, &value);
                    }
                }
                FieldSupport::Hint(neutral) => {
                    if !neutral.is(&map.next_value()?) {
                        self.findings.ignore(key);
                    }
                }
                FieldSupport::Read(read) => {
                    let value = map.next_value::<Probe<'a>>()?;
                    if value != Probe::Null {
                        self.read(read, &key, value);
                    }
                }
                FieldSupport::Inert => {
                    map.next_value::<Skip>()?;
                }
                FieldSupport::Only(neutral) => {
                    if !neutral.is(&map.next_value()?) {
                        let why = "the built-in model does not implement this value";
                        self.findings.unsupported("unsupported_value", key.into_owned(), why);
                    }
                }
            }
        }
        Ok(())
    }
}

impl ChatReader<'_> {
    fn finish(self) -> Result<ChatRequest, Refusal> {
        let Findings { wrong, unsupported, ignored } = self.findings;
        match wrong {
            Some(refusal) => Err(refusal),
            None => Ok(ChatRequest { unsupported, ignored, ..self.request }),
        }
    }

    /// Reads the fields that were given under other names only.
    fn synonyms(&mut self) {
        for (name, written, read, value) in std::mem::take(&mut self.synonyms) {
            let is_given = lookup(name, self.api).is_some_and(|(at, _)| self.seen.has(at));
            let is_given = is_given || (read == Read::MaxTokens && self.newer_max_tokens);
            if is_given {
                self.findings.ignore(written);
            } else {
                self.read(read, &written, value);
            }
        }
        let Raw { text, is_bad } = std::mem::take(&mut self.guided);
        // vLLM takes the text of a schema too.
        let inner = text.as_deref().filter(|text| text.starts_with('"')).map(serde_json::from_str::<Box<str>>);
        let is_bad = is_bad
            || inner
                .as_ref()
                .is_some_and(|inner| inner.as_ref().map_or(true, |text| serde_json::from_str::<Skip>(text).is_err()));
        let text = match inner {
            Some(inner) => inner.ok(),
            None => text,
        };
        if is_bad {
            self.findings.wrong("invalid_value", "guided_json", "is no JSON, or nests deeper than 128");
        }
        match (text, &self.request.response_format) {
            (Some(schema), ResponseFormat::Text) => self.request.response_format = ResponseFormat::JsonSchema(schema),
            (Some(_), _) => self.findings.ignore("guided_json"),
            (None, _) => {}
        }
    }

    fn prompt(&mut self, prompt: TextOrTokens) {
        match prompt {
            TextOrTokens::Nothing => {}
            TextOrTokens::Text(text) => self.request.prompt = Some(PromptInput::Text(text)),
            TextOrTokens::Tokens(tokens) => self.request.prompt = Some(PromptInput::Tokens(tokens)),
            TextOrTokens::Many(mut list) if list.len() == 1 => {
                if let Some(one) = list.pop() {
                    self.prompt(one);
                }
            }
            TextOrTokens::Many(list) if list.is_empty() => {
                self.findings.wrong("empty_array", "prompt", "must have at least one prompt");
            }
            TextOrTokens::Many(_) => {
                self.request.prompt = Some(PromptInput::Tokens(Vec::new()));
                let why = "the built-in model continues one prompt a request";
                self.findings.unsupported("unsupported_value", "prompt", why);
            }
            TextOrTokens::Wrong => self.wrong_type("prompt", "must be a text or a list of tokens"),
        }
    }

    /// Reads the tools that the answer may call, which depend on several fields.
    fn tools(&mut self) {
        let list = tools::tools(&self.tool_list, &mut self.findings);
        let choice = tools::choice(&self.tool_choice, &mut self.findings);
        let named = |name: &str| list.iter().any(|tool| tool.name == name);
        match &choice {
            ToolChoice::Required if list.is_empty() => {
                self.findings.wrong("invalid_value", "tool_choice", "needs `tools`");
            }
            ToolChoice::Named(name) if !named(name) => {
                self.findings.wrong("invalid_value", "tool_choice.function.name", "is none of `tools`");
            }
            _ => {}
        }
        if choice == ToolChoice::None || list.is_empty() {
            return;
        }
        if self.request.logprobs {
            let why = "the built-in model reports no probabilities of an answer that may call tools";
            self.findings.unsupported("unsupported_value", "logprobs", why);
        }
        if self.request.response_format != ResponseFormat::Text {
            let why = "the built-in model cannot hold an answer that may call tools to a format";
            self.findings.unsupported("unsupported_value", "response_format", why);
        }
        self.request.tools = list;
        self.request.tool_choice = choice;
    }

    fn read(&mut self, field: Read, name: &str, value: Probe<'_>) {
        match field {
            Read::Model => match value {
                Probe::Text(text) => self.request.model = Some(text.into_owned()),
                _ => self.wrong_type(name, "must be a string"),
            },
            Read::Stream => match value {
                Probe::Bool(stream) => self.request.stream = stream,
                _ => self.wrong_type(name, "must be true or false"),
            },
            Read::StreamOptions => self.stream_options(&value),
            Read::MaxCompletionTokens => {
                self.newer_max_tokens = true;
                self.request.max_tokens = self.findings.count(name, &value);
            }
            // Where both are given, the newer name wins.
            Read::MaxTokens => {
                let count = self.findings.count(name, &value);
                if !self.newer_max_tokens {
                    self.request.max_tokens = count;
                }
            }
            Read::Temperature => self.request.temperature = self.findings.number(name, &value, 0.0, 2.0),
            Read::TopP => self.request.top_p = self.findings.number(name, &value, 0.0, 1.0),
            Read::MinP => self.request.min_p = self.findings.number(name, &value, 0.0, 1.0),
            Read::PresencePenalty => self.request.presence_penalty = self.findings.number(name, &value, -2.0, 2.0),
            Read::FrequencyPenalty => self.request.frequency_penalty = self.findings.number(name, &value, -2.0, 2.0),
            Read::RepetitionPenalty => {
                self.request.repetition_penalty = self.findings.number(name, &value, 0.0, 100.0);
                if self.request.repetition_penalty == Some(0.0) {
                    self.findings.wrong("decimal_below_min_value", name.to_owned(), "must be more than 0");
                }
            }
            Read::N => {
                self.request.n = self.findings.count(name, &value);
                if self.request.n.is_some_and(|n| n > MAX_CHOICES) {
                    let what = format!("must be at most {MAX_CHOICES}");
                    self.findings.wrong("integer_above_max_value", name.to_owned(), what);
                }
            }
            Read::ParallelToolCalls => match value {
                Probe::Bool(parallel) => self.request.one_tool_call = !parallel,
                _ => self.wrong_type(name, "must be true or false"),
            },
            Read::Logprobs if self.api == Api::Text => match value {
                Probe::Unsigned(count) if count <= u64::from(MAX_TEXT_LOGPROBS) => {
                    self.request.logprobs = true;
                    self.request.top_logprobs = u32::try_from(count).unwrap_or(MAX_TEXT_LOGPROBS);
                }
                _ => {
                    let what = format!("must be a whole number of 0 to {MAX_TEXT_LOGPROBS}");
                    self.findings.wrong("invalid_value", name.to_owned(), what);
                }
            },
            Read::Logprobs => match value {
                Probe::Bool(logprobs) => self.request.logprobs = logprobs,
                _ => self.wrong_type(name, "must be true or false"),
            },
            Read::TopLogprobs => match value {
                Probe::Unsigned(count) if count <= u64::from(MAX_TOP_LOGPROBS) => {
                    self.request.top_logprobs = u32::try_from(count).unwrap_or(MAX_TOP_LOGPROBS);
                }
                Probe::Unsigned(_) => {
                    let what = format!("must be at most {MAX_TOP_LOGPROBS}");
                    self.findings.wrong("integer_above_max_value", name.to_owned(), what);
                }
                Probe::Negative(_) => {
                    self.findings.wrong("integer_below_min_value", name.to_owned(), "must be at least 0");
                }
                _ => self.wrong_type(name, "must be a whole number"),
            },
            Read::TopK => match value {
                Probe::Unsigned(0) | Probe::Negative(-1) => {}
                value => self.request.top_k = self.findings.count(name, &value),
            },
            Read::Seed => match value {
                Probe::Unsigned(seed) => self.request.seed = Some(seed),
                Probe::Negative(seed) => self.request.seed = Some(seed.cast_unsigned()),
                _ => self.wrong_type(name, "must be a whole number of 64 bits"),
            },
            Read::Stop => self.stop(value),
            // `visit_map` reads these before it makes a probe.
            Read::Messages
            | Read::Prompt
            | Read::LogitBias
            | Read::ResponseFormat
            | Read::Tools
            | Read::ToolChoice
            | Read::GuidedJson
            | Read::StructuredOutputs => {}
        }
    }

    fn wrong_type(&mut self, name: &str, what: &str) {
        self.findings.wrong("invalid_type", name.to_owned(), what);
    }

    fn stream_options(&mut self, value: &Probe<'_>) {
        let Probe::Object(len, options) = value else {
            return self.wrong_type("stream_options", "must be an object");
        };
        for (key, option) in options {
            match (&**key, option) {
                (_, Flat::Null) => {}
                ("include_usage", Flat::Bool(include)) => self.request.include_usage = *include,
                ("include_usage", _) => self.wrong_type("stream_options.include_usage", "must be true or false"),
                // Padding against eavesdroppers who infer text from the lengths of events: none is added here.
                ("include_obfuscation", _) | ("continuous_usage_stats", Flat::Bool(false)) => {}
                _ => self.findings.ignore(format!("stream_options.{}", shown(key))),
            }
        }
        if *len > options.len() {
            self.findings.ignore("stream_options.*");
        }
    }

    /// Reads a number that is ignored: only its range is checked.
    fn hint(&mut self, hint: HintNumber, name: &str, value: &Probe<'_>) {
        let HintNumber { neutral, min, max, is_whole } = hint;
        if is_whole && !matches!(value, Probe::Unsigned(_) | Probe::Negative(_)) {
            return self.wrong_type(name, "must be a whole number");
        }
        let Some(number) = value.number() else { return self.wrong_type(name, "must be a number") };
        if number < min {
            let code = if is_whole { "integer_below_min_value" } else { "decimal_below_min_value" };
            self.findings.wrong(code, name.to_owned(), format!("must be at least {min}"));
        } else if number > max {
            let code = if is_whole { "integer_above_max_value" } else { "decimal_above_max_value" };
            self.findings.wrong(code, name.to_owned(), format!("must be at most {max}"));
        } else if value.number() != Some(neutral) {
            self.findings.ignore(name);
        }
    }

    fn logit_bias(&mut self, biases: Biases) {
        match biases {
            Biases::None => {}
            Biases::Some(biases) => self.request.logit_bias = biases,
            Biases::TooMany => {
                let what = format!("must have at most {} tokens", Biases::MOST);
                self.findings.wrong("object_above_max_properties", "logit_bias", what);
            }
            Biases::Wrong => {
                let what = "must be an object from the numbers of tokens to numbers of -100 to 100";
                self.findings.wrong("invalid_value", "logit_bias", what);
            }
        }
    }

    fn stop(&mut self, value: Probe<'_>) {
        let list = match value {
            Probe::Text(one) => vec![Flat::Text(one)],
            Probe::List(len, _) if len > MAX_STOPS => {
                let what = format!("must have at most {MAX_STOPS} strings");
                return self.findings.wrong("array_above_max_length", "stop", what);
            }
            Probe::List(_, list) => list,
            _ => return self.wrong_type("stop", "must be a string or a list of strings"),
        };
        for stop in list {
            match stop {
                Flat::Text(stop) if (1..=MAX_STOP_BYTES).contains(&stop.len()) => {
                    self.request.stop.push(stop.into_owned());
                }
                Flat::Text(_) => {
                    let what = format!("must have strings of 1 to {MAX_STOP_BYTES} bytes");
                    self.findings.wrong("invalid_value", "stop", what);
                }
                _ => self.wrong_type("stop", "must be a string or a list of strings"),
            }
        }
    }
}
