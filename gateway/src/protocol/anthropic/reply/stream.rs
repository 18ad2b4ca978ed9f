//! Reader of the event stream of a server. Events and blocks of unknown types pass without effect.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::shapes::{ReadBlock, ReadMessage, Usage, finish_of};
use crate::protocol::anthropic::error::reported;
use crate::protocol::translate::{ApiError, Delta, MAX_CALLS, ReadStream, SseEvent, SseReader, Unreadable, read_json};

/// Reader of one stream.
#[derive(Debug, Default)]
pub(in crate::protocol::anthropic) struct StreamReader {
    events: SseReader,
    state: State,
}

/// Progress of a stream.
#[derive(Debug, Default)]
struct State {
    /// Block that has begun and not ended.
    open: Option<OpenBlock>,
    /// Tool calls so far.
    calls: usize,
    /// Usage so far.
    usage: Usage,
    has_ended: bool,
}

#[derive(Debug)]
struct OpenBlock {
    index: u64,
    kind: BlockKind,
}

#[derive(Debug)]
enum BlockKind {
    Text,
    Thinking,
    /// Call of this number, with the arguments that it has if no piece of them follows.
    Call {
        index: usize,
        arguments: Option<Map<String, Value>>,
    },
    Other,
}

/// Event of any type; fields that a type does not have are absent.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    index: u64,
    message: Option<ReadMessage>,
    content_block: Option<ReadBlock>,
    delta: Option<EventDelta>,
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct EventDelta {
    #[serde(rename = "type", default)]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
    stop_sequence: Option<String>,
}

impl ReadStream for StreamReader {
    fn feed(&mut self, part: &[u8], emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let state = &mut self.state;
        self.events.feed(part, |event| state.event(event, emit))
    }

    fn finish(&mut self, emit: &mut dyn FnMut(Delta)) -> Result<bool, Unreadable> {
        let state = &mut self.state;
        self.events.finish(|event| state.event(event, emit))?;
        Ok(self.state.has_ended)
    }
}

impl State {
    fn event(&mut self, event: SseEvent<'_>, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        if self.has_ended {
            return Ok(());
        }
        let data = match event {
            SseEvent::Comment => {
                emit(Delta::Ping);
                return Ok(());
            }
            SseEvent::Data(data) => data,
        };
        let event: Event = read_json(data)?;
        match event.kind.as_str() {
            "message_start" => {
                if let Some(message) = event.message {
                    self.usage = message.usage.unwrap_or_default();
                    let tokens = message.usage.map(Into::into);
                    emit(Delta::Start { id: message.id, model: message.model, tokens });
                }
            }
            "content_block_start" => self.begin(event.index, event.content_block.unwrap_or_default(), emit)?,
            "content_block_delta" => self.delta(event.index, event.delta, emit)?,
            "content_block_stop" => self.end_block(emit),
            "message_delta" => {
                if let Some(usage) = event.usage {
                    self.usage = usage.or(self.usage);
                    emit(Delta::Usage(self.usage.into()));
                }
                let delta = event.delta.map(|delta| (delta.stop_reason, delta.stop_sequence));
                if let Some((Some(reason), stop)) = delta {
                    emit(Delta::Finish(finish_of(&reason, stop)));
                }
            }
            "message_stop" => {
                self.end_block(emit);
                self.has_ended = true;
                emit(Delta::End);
            }
            "ping" => emit(Delta::Ping),
            "error" => {
                self.has_ended = true;
                let error = reported(data);
                let unknown = || ApiError::of_text(StatusCode::INTERNAL_SERVER_ERROR, data);
                emit(Delta::Error(error.unwrap_or_else(unknown)));
            }
            // Servers that are not Anthropic's may leave out the type.
            "" => {
                if let Some(error) = reported(data) {
                    self.has_ended = true;
                    emit(Delta::Error(error));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, index: u64, mut block: ReadBlock, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        self.end_block(emit);
        let kind = match block.kind.as_str() {
            "text" => {
                if let Some(text) = block.text.filter(|text| !text.is_empty()) {
                    emit(Delta::Text { text, logprobs: Vec::new() });
                }
                BlockKind::Text
            }
            "thinking" => {
                if let Some(text) = block.thinking.filter(|text| !text.is_empty()) {
                    emit(Delta::Thinking(text));
                }
                if let Some(signature) = block.signature.filter(|signature| !signature.is_empty()) {
                    emit(Delta::Signature(signature));
                }
                BlockKind::Thinking
            }
            "redacted_thinking" => {
                emit(Delta::RedactedThinking(block.data.unwrap_or_default()));
                BlockKind::Other
            }
            "tool_use" => {
                let call = self.calls;
                if call >= MAX_CALLS {
                    return Err(Unreadable("the backend's answer has more than 128 tool calls"));
                }
                self.calls = call.saturating_add(1);
                let arguments = Some(block.take_input());
                let (id, name) = (block.id.unwrap_or_default(), block.name.unwrap_or_default());
                emit(Delta::ToolCall { index: call, id, name });
                BlockKind::Call { index: call, arguments }
            }
            _ => BlockKind::Other,
        };
        self.open = Some(OpenBlock { index, kind });
        Ok(())
    }

    fn delta(&mut self, index: u64, delta: Option<EventDelta>, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let Some(delta) = delta else { return Ok(()) };
        let Some(open) = self.open.as_mut().filter(|open| open.index == index) else {
            return Err(Unreadable("the backend's stream continues a content block that is not open"));
        };
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (delta.kind.as_str(), &mut open.kind) {
            ("text_delta", BlockKind::Text) => {
                if let Some(text) = filled(delta.text) {
                    emit(Delta::Text { text, logprobs: Vec::new() });
                }
            }
            ("thinking_delta", BlockKind::Thinking) => {
                if let Some(text) = filled(delta.thinking) {
                    emit(Delta::Thinking(text));
                }
            }
            ("signature_delta", BlockKind::Thinking) => {
                if let Some(signature) = filled(delta.signature) {
                    emit(Delta::Signature(signature));
                }
            }
            ("input_json_delta", BlockKind::Call { index, arguments }) => {
                if let Some(text) = filled(delta.partial_json) {
                    *arguments = None;
                    emit(Delta::Arguments { index: *index, text });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end_block(&mut self, emit: &mut dyn FnMut(Delta)) {
        match self.open.take().map(|open| open.kind) {
            Some(BlockKind::Text) => emit(Delta::TextEnd),
            Some(BlockKind::Thinking) => emit(Delta::ThinkingEnd),
            // No piece has come: the arguments stood at the beginning, or there are none.
            Some(BlockKind::Call { index, arguments: Some(arguments) }) => {
                emit(Delta::Arguments { index, text: Value::Object(arguments).to_string() });
            }
            Some(BlockKind::Call { arguments: None, .. } | BlockKind::Other) | None => {}
        }
    }
}
