//! Conversations for a built-in model: the part of the neutral types that it can do. A feature that changes the form of the
//! answer and that it does not have is reported by name; hints are ignored.

use std::borrow::Cow;
use std::fmt::Display;

use serde_json::{Number, Value, json};
use spillway_engine::{Tool, ToolCall};
use spillway_filter::Refusal;

use super::conversation::{
    Conversation, Format, NamedSetting, Part, Role, Setting, Thinking, ToolPick, ToolSpec, Turn,
};
use super::object::set;
use crate::protocol::chat::{ChatRequest, Ignored, Message, ResponseFormat, ToolChoice};
use crate::protocol::refusals::shown;

/// Most stop strings: each is searched for after every token.
const MAX_STOPS: usize = 16;

/// Longest stop string in bytes.
const MAX_STOP_BYTES: usize = 256;

/// Turns a conversation into the request of a built-in model.
///
/// # Errors
/// A value is outside of the range that any server accepts.
pub fn chat_request(conversation: Conversation) -> Result<ChatRequest, Refusal> {
    let Conversation { model, turns, tools, tool_pick, one_tool_call, stream, include_usage, settings, hints, .. } =
        conversation;
    let mut reader = Reader::default();
    for hint in &hints {
        reader.ignored.push(shown(hint));
    }
    if turns.last().is_some_and(|turn| turn.role == Role::Assistant) {
        let why = "the built-in model does not continue a message of the assistant, which must not be the last one";
        reader.unsupported("messages".into(), why);
    }
    for turn in turns {
        reader.turn(turn);
    }
    for named in settings.iter() {
        reader.setting(named)?;
    }
    reader.tools(tools, tool_pick);
    let Reader { request, unsupported, ignored } = reader;
    Ok(ChatRequest { model, stream, include_usage, one_tool_call, unsupported, ignored, ..request })
}

#[derive(Default)]
struct Reader {
    request: ChatRequest,
    unsupported: Option<Refusal>,
    ignored: Ignored,
}

impl Reader {
    fn unsupported(&mut self, name: Cow<'_, str>, why: impl Display) {
        if self.unsupported.is_none() {
            let name = name.into_owned();
            self.unsupported = Some(Refusal::invalid("unsupported_value", format!("`{name}`: {why}.")).param(name));
        }
    }

    /// Adds the messages of a turn: results of tools are messages of their own.
    fn turn(&mut self, turn: Turn) {
        let role = match turn.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let mut message = Message { role, ..Message::default() };
        let mut has_content = false;
        for part in turn.parts {
            match part {
                Part::ToolResult { id, parts, is_error: _ } => {
                    let content = self.texts(parts, &turn.at);
                    let result = Message { role: "tool", content, tool_call_id: Some(id), ..Message::default() };
                    self.request.messages.push(result);
                }
                Part::ToolCall { id, name, arguments } => {
                    has_content = true;
                    message.tool_calls.push(ToolCall { id, name, arguments });
                }
                other => {
                    if let Some(text) = self.text(other, &turn.at) {
                        append(&mut message.content, &text, &mut has_content);
                    }
                }
            }
        }
        if has_content || turn.role != Role::User {
            self.request.messages.push(message);
        }
    }

    fn texts(&mut self, parts: Vec<Part>, at: &str) -> String {
        let (mut content, mut has_content) = (String::new(), false);
        for part in parts {
            if let Some(text) = self.text(part, at) {
                append(&mut content, &text, &mut has_content);
            }
        }
        content
    }

    /// Text of a part; `None` for a part that is not read.
    fn text(&mut self, part: Part, at: &str) -> Option<String> {
        match part {
            Part::Text(text) => Some(text),
            Part::Image(_) => {
                self.unsupported(at.to_owned().into(), "the built-in model reads text, not `image`");
                None
            }
            Part::Other { at, kind } => {
                self.unsupported(at.into(), format!("the built-in model reads text, not `{}`", shown(&kind)));
                None
            }
            // Reasoning and refusals of an earlier answer are no part of its text.
            Part::Thinking { .. } | Part::RedactedThinking(_) | Part::Refusal(_) => None,
            Part::ToolCall { .. } | Part::ToolResult { .. } => None,
        }
    }

    fn setting(&mut self, named: &NamedSetting) -> Result<(), Refusal> {
        let NamedSetting { name, setting } = named;
        let request = &mut self.request;
        match setting {
            Setting::MaxTokens(0) => {
                self.unsupported(name.as_ref().into(), "the built-in model writes one token at least");
            }
            // The engine cuts a larger count to the rest of the context.
            Setting::MaxTokens(most) => request.max_tokens = Some(u32::try_from(*most).unwrap_or(u32::MAX)),
            Setting::Temperature(number) => request.temperature = Some(within(name, number, 0.0, 2.0)?),
            Setting::TopP(number) => request.top_p = Some(within(name, number, 0.0, 1.0)?),
            Setting::TopK(0) => {}
            Setting::TopK(count) => request.top_k = Some(u32::try_from(*count).unwrap_or(u32::MAX)),
            Setting::MinP(number) => request.min_p = Some(within(name, number, 0.0, 1.0)?),
            Setting::Seed(seed) => {
                request.seed = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
                if request.seed.is_none() {
                    return Err(wrong(name, "must be a whole number of 64 bits"));
                }
            }
            Setting::Stop(stop) => {
                if stop.len() > MAX_STOPS || stop.iter().any(|one| !(1..=MAX_STOP_BYTES).contains(&one.len())) {
                    let what = format!("must have at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes");
                    self.unsupported(name.as_ref().into(), what);
                } else {
                    request.stop.clone_from(stop);
                }
            }
            Setting::PresencePenalty(number) => request.presence_penalty = Some(within(name, number, -2.0, 2.0)?),
            Setting::FrequencyPenalty(number) => request.frequency_penalty = Some(within(name, number, -2.0, 2.0)?),
            Setting::RepetitionPenalty(number) => {
                let penalty = within(name, number, 0.0, 100.0)?;
                if penalty == 0.0 {
                    return Err(wrong(name, "must be more than 0"));
                }
                request.repetition_penalty = Some(penalty);
            }
            Setting::Choices(count) => request.n = Some(u32::try_from(*count).unwrap_or(u32::MAX)),
            Setting::Format(Format::JsonObject) => request.response_format = ResponseFormat::JsonObject,
            Setting::Format(Format::JsonSchema { schema, .. }) => {
                request.response_format = ResponseFormat::JsonSchema(schema.to_string().into());
            }
            Setting::Thinking(Thinking::Budget(_)) => {
                self.unsupported(name.as_ref().into(), "the built-in model does not reason before its answer");
            }
            // Whether to think is left to the model.
            Setting::Thinking(Thinking::Off | Thinking::Adaptive) | Setting::User(_) => {}
            Setting::Effort(_) | Setting::Unknown(_) => self.ignored.push(shown(name)),
            Setting::LogitBias(_) | Setting::Logprobs(_) | Setting::Other(_) => {
                self.unsupported(name.as_ref().into(), "the built-in model does not implement this");
            }
        }
        Ok(())
    }

    fn tools(&mut self, tools: Vec<ToolSpec>, pick: Option<ToolPick>) {
        let mut list = Vec::new();
        for tool in tools {
            match tool {
                ToolSpec::Function { name, description, parameters, strict } => {
                    let mut function = json!({"name": name});
                    if let Some(description) = description {
                        set(&mut function, "description", Value::String(description));
                    }
                    if let Some(parameters) = parameters {
                        set(&mut function, "parameters", Value::Object(parameters));
                    }
                    list.push(Tool { name, function: function.to_string(), is_strict: strict == Some(true) });
                }
                ToolSpec::Other { at, kind } => {
                    self.unsupported(at.into(), format!("the built-in model calls functions, not `{}`", shown(&kind)));
                }
            }
        }
        if list.is_empty() || pick == Some(ToolPick::None) {
            return;
        }
        if self.request.response_format != ResponseFormat::Text {
            let why = "the built-in model cannot hold an answer that may call tools to a format";
            self.unsupported("tools".into(), why);
        }
        self.request.tools = list;
        self.request.tool_choice = match pick {
            None | Some(ToolPick::Auto | ToolPick::None) => ToolChoice::Auto,
            Some(ToolPick::Required) => ToolChoice::Required,
            Some(ToolPick::Named(name)) => ToolChoice::Named(name),
        };
    }
}

/// Appends a part to a content, joined by a line break as vLLM and llama.cpp do.
fn append(content: &mut String, text: &str, has_content: &mut bool) {
    if std::mem::replace(has_content, true) && !content.is_empty() {
        content.push('\n');
    }
    content.push_str(text);
}

fn wrong(name: &str, what: impl Display) -> Refusal {
    Refusal::invalid("invalid_value", format!("`{name}` {what}.")).param(name.to_owned())
}

#[allow(clippy::cast_possible_truncation, reason = "the range is checked; sampling is done in f32")]
fn within(name: &str, number: &Number, min: f64, max: f64) -> Result<f32, Refusal> {
    match number.as_f64().filter(|number| (min..=max).contains(number)) {
        Some(number) => Ok(number as f32),
        None => Err(wrong(name, format!("must be a number of {min} to {max}"))),
    }
}
