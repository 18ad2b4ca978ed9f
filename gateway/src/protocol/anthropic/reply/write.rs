//! Writer of messages for callers, whole and as an event stream.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::shapes::{Usage, stop_of};
use crate::protocol::anthropic::error::write_error_event;
use crate::protocol::translate::{Asked, Delta, Finish, Part, Reply, Tokens, Unreadable, WriteStream, write_event};

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Value>,
    stop_reason: Option<&'a str>,
    stop_sequence: Option<&'a str>,
    usage: Usage,
}

/// Id of a message whose server told none.
fn new_id() -> String {
    format!("msg_{}", uuid::Uuid::new_v4().simple())
}

/// Writes a whole message.
pub(in crate::protocol::anthropic) fn write(reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
    let is_cut = reply.finish == Finish::Length;
    let content = reply.parts.iter().filter_map(|part| block_of(part, is_cut).transpose());
    let id = reply.id.clone().unwrap_or_else(new_id);
    let (stop_reason, stop_sequence) = stop_of(&reply.finish);
    let message = Message {
        id: &id,
        kind: "message",
        role: "assistant",
        model: reply.model.as_deref().unwrap_or(&asked.model),
        content: content.collect::<Result<_, _>>()?,
        stop_reason: Some(stop_reason),
        stop_sequence,
        usage: reply.tokens.unwrap_or_default().into(),
    };
    Ok(crate::protocol::json(&message))
}

/// Block of a part of an answer. Arguments of a call that the length of the answer has cut are no JSON, and left out.
fn block_of(part: &Part, is_cut: bool) -> Result<Option<Value>, Unreadable> {
    Ok(Some(match part {
        Part::Text(text) | Part::Refusal(text) if text.is_empty() => return Ok(None),
        Part::Text(text) | Part::Refusal(text) => json!({"type": "text", "text": text}),
        Part::Thinking { text, signature } => {
            json!({"type": "thinking", "thinking": text, "signature": signature.as_deref().unwrap_or_default()})
        }
        Part::RedactedThinking(data) => json!({"type": "redacted_thinking", "data": data}),
        Part::ToolCall { id, name, arguments } => {
            let input = match serde_json::from_str::<Map<String, Value>>(arguments) {
                Ok(input) => input,
                Err(_) if is_cut || arguments.trim().is_empty() => Map::new(),
                Err(_) => return Err(Unreadable("a tool call of the backend has arguments that are no JSON object")),
            };
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
        Part::Image(_) | Part::ToolResult { .. } | Part::Other { .. } => return Ok(None),
    }))
}

/// Content block that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call(usize),
}

/// Writer of an event stream. Blocks follow one another: each ends before the next begins.
#[derive(Debug)]
pub(in crate::protocol::anthropic) struct StreamWriter {
    asked: Asked,
    has_begun: bool,
    has_ended: bool,
    open: Option<Open>,
    /// Blocks so far.
    blocks: u32,
    tokens: Tokens,
    finish: Finish,
    is_refused: bool,
}

impl StreamWriter {
    /// Begins the stream of an answer.
    pub(in crate::protocol::anthropic) fn new(asked: &Asked) -> Self {
        Self {
            asked: asked.clone(),
            has_begun: false,
            has_ended: false,
            open: None,
            blocks: 0,
            tokens: Tokens::default(),
            finish: Finish::Stop,
            is_refused: false,
        }
    }

    fn begin(&mut self, id: Option<String>, model: Option<String>, out: &mut BytesMut) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let id = id.unwrap_or_else(new_id);
        let message = Message {
            id: &id,
            kind: "message",
            role: "assistant",
            model: model.as_deref().unwrap_or(&self.asked.model),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: self.tokens.into(),
        };
        #[derive(Serialize)]
        struct Start<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            message: Message<'a>,
        }
        write_event(out, Some("message_start"), &Start { kind: "message_start", message });
    }

    /// Opens a block of this kind, unless it is open.
    fn open(&mut self, kind: Open, block: &Value, out: &mut BytesMut) {
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        self.begin(None, None, out);
        self.open = Some(kind);
        #[derive(Serialize)]
        struct Start<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            index: u32,
            content_block: &'a Value,
        }
        let start = Start { kind: "content_block_start", index: self.blocks, content_block: block };
        write_event(out, Some("content_block_start"), &start);
    }

    fn close(&mut self, out: &mut BytesMut) {
        if self.open.take().is_none() {
            return;
        }
        let stop = json!({"type": "content_block_stop", "index": self.blocks});
        write_event(out, Some("content_block_stop"), &stop);
        self.blocks = self.blocks.saturating_add(1);
    }

    /// Writes a piece of the open block. Bytes that all pieces share are copied, not made anew.
    fn piece(&self, kind: &str, field: &str, text: &str, out: &mut BytesMut) {
        out.put_slice(b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
        out.put_slice(itoa::Buffer::new().format(self.blocks).as_bytes());
        for piece in [",\"delta\":{\"type\":\"", kind, "\",\"", field, "\":"] {
            out.put_slice(piece.as_bytes());
        }
        let _ = serde_json::to_writer(out.writer(), text);
        out.put_slice(b"}}\n\n");
    }

    fn text(&mut self, text: &str, out: &mut BytesMut) {
        if !text.is_empty() {
            if self.open != Some(Open::Text) {
                self.open(Open::Text, &json!({"type": "text", "text": ""}), out);
            }
            self.piece("text_delta", "text", text, out);
        }
    }

    fn thinking(&mut self, kind: &str, field: &str, text: &str, out: &mut BytesMut) {
        if self.open != Some(Open::Thinking) {
            self.open(Open::Thinking, &json!({"type": "thinking", "thinking": "", "signature": ""}), out);
        }
        self.piece(kind, field, text, out);
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.begin(None, None, out);
        self.close(out);
        self.has_ended = true;
        if self.is_refused && self.finish == Finish::Stop {
            self.finish = Finish::Refusal;
        }
        let (stop_reason, stop_sequence) = stop_of(&self.finish);
        #[derive(Serialize)]
        struct End<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            delta: Value,
            usage: &'a Usage,
        }
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        write_event(out, Some("message_delta"), &End { kind: "message_delta", delta, usage: &self.tokens.into() });
        write_event(out, Some("message_stop"), &json!({"type": "message_stop"}));
    }
}

impl WriteStream for StreamWriter {
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.has_ended {
            return Ok(());
        }
        match delta {
            Delta::Start { id, model, tokens } => {
                self.tokens = tokens.unwrap_or_default().or(self.tokens);
                self.begin(id, model, out);
            }
            Delta::Text { text, .. } => self.text(&text, out),
            Delta::Refusal(text) => {
                self.is_refused = true;
                self.text(&text, out);
            }
            Delta::TextEnd if self.open == Some(Open::Text) => self.close(out),
            Delta::ThinkingEnd if self.open == Some(Open::Thinking) => self.close(out),
            Delta::TextEnd | Delta::ThinkingEnd | Delta::Choice(_) => {}
            Delta::Thinking(text) => self.thinking("thinking_delta", "thinking", &text, out),
            Delta::Signature(signature) => {
                self.thinking("signature_delta", "signature", &signature, out);
                self.close(out);
            }
            Delta::RedactedThinking(data) => {
                self.close(out);
                self.open(Open::Thinking, &json!({"type": "redacted_thinking", "data": data}), out);
                self.close(out);
            }
            Delta::ToolCall { index, id, name } => {
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Open::Call(index), &block, out);
            }
            Delta::Arguments { text, .. } if text.is_empty() => {}
            Delta::Arguments { index, text } => {
                if self.open != Some(Open::Call(index)) {
                    return Err(Unreadable("the backend's stream continues a tool call behind the next one"));
                }
                self.piece("input_json_delta", "partial_json", &text, out);
            }
            Delta::Finish(finish) => {
                self.close(out);
                self.finish = finish;
            }
            Delta::Usage(tokens) => self.tokens = tokens.or(self.tokens),
            Delta::Ping => write_event(out, Some("ping"), &json!({"type": "ping"})),
            Delta::Error(error) => {
                self.has_ended = true;
                write_error_event(&error, out);
            }
            Delta::End => self.end(out),
        }
        Ok(())
    }
}
