//! Writer of the event stream of an answer. The last events repeat all that was said, so that the writer keeps it, up to a
//! bound.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::output::{Answer, Content, Item, State, listed, redacted, signed};
use crate::protocol::openai::translate::{error_kind, new_id};
use crate::protocol::translate::{
    ApiError, Asked, Delta, Finish, TokenLogprob, Tokens, Unreadable, WriteStream, write_event,
};

/// Bytes that an item or a part counts for beside its text, so that their number is bounded.
const ITEM_BYTES: usize = 64;

/// Bytes that a token with its log probability counts for.
const TOKEN_BYTES: usize = 8;

/// Writer of one stream. Items follow one another: each ends before the next begins.
#[derive(Debug)]
pub(super) struct StreamWriter {
    asked: Asked,
    id: String,
    model: String,
    created: u64,
    has_begun: bool,
    has_ended: bool,
    /// Number of the next event.
    sequence: u64,
    items: Vec<Item>,
    /// True while the last item may go on.
    is_open: bool,
    /// True while the last part of the open message may go on.
    is_part_open: bool,
    /// Number of the open tool call.
    call: usize,
    /// Bytes of all items.
    kept: usize,
    tokens: Tokens,
    finish: Finish,
}

#[derive(Serialize)]
struct Event<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    members: T,
}

impl StreamWriter {
    /// Begins the stream of an answer.
    pub(super) fn new(asked: &Asked) -> Self {
        Self {
            asked: asked.clone(),
            id: String::new(),
            model: asked.model.clone(),
            created: crate::clock::unix_now(),
            has_begun: false,
            has_ended: false,
            sequence: 0,
            items: Vec::new(),
            is_open: false,
            is_part_open: false,
            call: 0,
            kept: 0,
            tokens: Tokens::default(),
            finish: Finish::Stop,
        }
    }

    fn event(&mut self, kind: &'static str, members: impl Serialize, out: &mut BytesMut) {
        write_event(out, Some(kind), &Event { kind, sequence_number: self.sequence, members });
        self.sequence = self.sequence.saturating_add(1);
    }

    /// Writes an event with the answer so far.
    fn answer(&mut self, kind: &'static str, state: &State, out: &mut BytesMut) {
        let Self { id, model, created, items, tokens, asked, sequence, .. } = self;
        let answer = Answer { id, model, created: *created, items, tokens: Some(*tokens) };
        // Members behind `flatten` cannot be raw JSON.
        out.put_slice(b"event: ");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\ndata: {\"type\":\"");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\",\"sequence_number\":");
        out.put_slice(itoa::Buffer::new().format(*sequence).as_bytes());
        out.put_slice(b",\"response\":");
        out.put_slice(answer.json(state, &asked.echoed).get().as_bytes());
        out.put_slice(b"}\n\n");
        *sequence = sequence.saturating_add(1);
    }

    fn begin(&mut self, id: Option<String>, model: Option<String>, out: &mut BytesMut) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        self.id = id.unwrap_or_else(|| new_id("resp_"));
        self.model = model.unwrap_or_else(|| self.asked.model.clone());
        self.answer("response.created", &State::InProgress, out);
        self.answer("response.in_progress", &State::InProgress, out);
    }

    /// Members of an event that tell the place of the last item, and of its last part under the name `part`.
    fn place(&self, part: &'static str, more: Value) -> Map<String, Value> {
        let n = self.items.len().saturating_sub(1);
        let last = self.items.last();
        let parts = if let Some(Item::Message(parts)) = last { parts.len().saturating_sub(1) } else { 0 };
        let mut members = Map::new();
        members.insert("item_id".to_owned(), last.map(|item| item.id(&self.id, n)).into());
        members.insert("output_index".to_owned(), n.into());
        if !part.is_empty() {
            members.insert(part.to_owned(), parts.into());
        }
        if let Value::Object(more) = more {
            members.extend(more);
        }
        members
    }

    fn keep(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.kept = self.kept.saturating_add(bytes);
        self.asked.most_kept.check(self.kept)
    }

    /// Writes the begin or the end of the last item.
    fn item(&mut self, kind: &'static str, status: &str, out: &mut BytesMut) {
        let n = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last() else { return };
        let item = item.value(&self.id, n, status);
        self.event(kind, json!({"output_index": n, "item": item}), out);
    }

    /// Begins an item behind the last one.
    fn open(&mut self, item: Item, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(ITEM_BYTES)?;
        self.close("completed", out);
        self.begin(None, None, out);
        self.items.push(item);
        self.is_open = true;
        self.item("response.output_item.added", "in_progress", out);
        Ok(())
    }

    /// Begins a part of a message, in the message that is open or in a new one.
    fn open_part(&mut self, part: Content, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(ITEM_BYTES)?;
        if !(self.is_open && matches!(self.items.last(), Some(Item::Message(_)))) {
            self.open(Item::Message(Vec::new()), out)?;
        }
        self.close_part(out);
        let value = part.value();
        if let Some(Item::Message(parts)) = self.items.last_mut() {
            parts.push(part);
        }
        self.is_part_open = true;
        let members = self.place("content_index", json!({"part": value}));
        self.event("response.content_part.added", members, out);
        Ok(())
    }

    fn close_part(&mut self, out: &mut BytesMut) {
        if !std::mem::take(&mut self.is_part_open) {
            return;
        }
        let Some(Item::Message(parts)) = self.items.last() else { return };
        let Some(part) = parts.last() else { return };
        let (kind, members) = match part {
            Content::Text(text, logprobs) => {
                ("response.output_text.done", json!({"text": text, "logprobs": listed(logprobs)}))
            }
            Content::Refusal(text) => ("response.refusal.done", json!({"refusal": text})),
        };
        let value = json!({"part": part.value()});
        let (done, closed) = (self.place("content_index", members), self.place("content_index", value));
        self.event(kind, done, out);
        self.event("response.content_part.done", closed, out);
    }

    /// Ends the item that is open, if any.
    fn close(&mut self, status: &'static str, out: &mut BytesMut) {
        self.close_part(out);
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        match self.items.last() {
            Some(Item::Reasoning { text, .. }) if !text.is_empty() => {
                let part = json!({"part": {"type": "summary_text", "text": text}});
                let done = self.place("summary_index", json!({"text": text}));
                self.event("response.reasoning_summary_text.done", done, out);
                let closed = self.place("summary_index", part);
                self.event("response.reasoning_summary_part.done", closed, out);
            }
            Some(Item::Call { name, arguments, .. }) => {
                let done = self.place("", json!({"name": name, "arguments": arguments}));
                self.event("response.function_call_arguments.done", done, out);
            }
            _ => {}
        }
        self.item("response.output_item.done", status, out);
    }

    fn text(&mut self, text: &str, logprobs: &[TokenLogprob], out: &mut BytesMut) -> Result<(), Unreadable> {
        let tokens: usize = logprobs.iter().map(|token| token.likeliest.len().saturating_add(1)).sum();
        self.keep(text.len().saturating_add(tokens.saturating_mul(TOKEN_BYTES)))?;
        let is_text =
            matches!(self.items.last(), Some(Item::Message(p)) if matches!(p.last(), Some(Content::Text(..))));
        if !(self.is_part_open && is_text) {
            self.open_part(Content::Text(String::new(), Vec::new()), out)?;
        }
        if let Some(Item::Message(parts)) = self.items.last_mut()
            && let Some(Content::Text(so_far, tokens)) = parts.last_mut()
        {
            so_far.push_str(text);
            tokens.extend_from_slice(logprobs);
        }
        let members = self.place("content_index", json!({"delta": text, "logprobs": listed(logprobs)}));
        self.event("response.output_text.delta", members, out);
        Ok(())
    }

    fn refusal(&mut self, text: &str, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(text.len())?;
        let is_refusal =
            matches!(self.items.last(), Some(Item::Message(p)) if matches!(p.last(), Some(Content::Refusal(_))));
        if !(self.is_part_open && is_refusal) {
            self.open_part(Content::Refusal(String::new()), out)?;
        }
        if let Some(Item::Message(parts)) = self.items.last_mut()
            && let Some(Content::Refusal(so_far)) = parts.last_mut()
        {
            so_far.push_str(text);
        }
        let members = self.place("content_index", json!({"delta": text}));
        self.event("response.refusal.delta", members, out);
        Ok(())
    }

    fn open_reasoning(&mut self, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.is_open && matches!(self.items.last(), Some(Item::Reasoning { .. })) {
            return Ok(());
        }
        self.open(Item::Reasoning { text: String::new(), proof: None }, out)
    }

    fn thinking(&mut self, piece: &str, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(piece.len())?;
        self.open_reasoning(out)?;
        if matches!(self.items.last(), Some(Item::Reasoning { text, .. }) if text.is_empty()) {
            let added = self.place("summary_index", json!({"part": {"type": "summary_text", "text": ""}}));
            self.event("response.reasoning_summary_part.added", added, out);
        }
        if let Some(Item::Reasoning { text, .. }) = self.items.last_mut() {
            text.push_str(piece);
        }
        let members = self.place("summary_index", json!({"delta": piece}));
        self.event("response.reasoning_summary_text.delta", members, out);
        Ok(())
    }

    fn sign(&mut self, signature: &str, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(signature.len())?;
        self.open_reasoning(out)?;
        if let Some(Item::Reasoning { proof, .. }) = self.items.last_mut() {
            *proof = Some(signed(signature));
        }
        self.close("completed", out);
        Ok(())
    }

    fn arguments(&mut self, index: usize, piece: &str, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.keep(piece.len())?;
        match self.items.last_mut().filter(|_| self.is_open && self.call == index) {
            Some(Item::Call { arguments, .. }) => arguments.push_str(piece),
            _ => return Err(Unreadable("the backend's stream continues a tool call behind the next one")),
        }
        let members = self.place("", json!({"delta": piece}));
        self.event("response.function_call_arguments.delta", members, out);
        Ok(())
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.begin(None, None, out);
        let state = State::Ended(self.finish.clone());
        let (status, _) = state.status(&self.items);
        self.close(if status == "completed" { status } else { "incomplete" }, out);
        self.has_ended = true;
        let kind = if status == "completed" { "response.completed" } else { "response.incomplete" };
        self.answer(kind, &state, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut BytesMut) {
        self.begin(None, None, out);
        self.has_ended = true;
        let ApiError { message, code, param, kind, .. } = error;
        let fields = json!({"type": error_kind(*kind), "code": code, "message": message, "param": param});
        // The clients of OpenAI raise an error for an event with a member `error`.
        let members = json!({"code": code, "message": message, "param": param, "error": fields});
        self.event("error", members, out);
        let code = if error_kind(*kind) == "rate_limit_exceeded" { "rate_limit_exceeded" } else { "server_error" };
        self.answer("response.failed", &State::Failed(json!({"code": code, "message": message})), out);
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
            Delta::Text { text, logprobs } => self.text(&text, &logprobs, out)?,
            Delta::Refusal(text) => self.refusal(&text, out)?,
            Delta::TextEnd => self.close_part(out),
            Delta::Thinking(text) if text.is_empty() => {}
            Delta::Thinking(text) => self.thinking(&text, out)?,
            Delta::Signature(signature) => self.sign(&signature, out)?,
            Delta::ThinkingEnd if matches!(self.items.last(), Some(Item::Reasoning { .. })) => {
                self.close("completed", out);
            }
            Delta::ThinkingEnd | Delta::Choice(_) => {}
            Delta::RedactedThinking(data) => {
                self.keep(data.len())?;
                self.open(redacted(&data), out)?;
                self.close("completed", out);
            }
            Delta::ToolCall { index, id, name } => {
                self.keep(id.len().saturating_add(name.len()))?;
                self.open(Item::Call { id, name, arguments: String::new() }, out)?;
                self.call = index;
            }
            Delta::Arguments { text, .. } if text.is_empty() => {}
            Delta::Arguments { index, text } => self.arguments(index, &text, out)?,
            Delta::Finish(finish) => self.finish = finish,
            Delta::Usage(tokens) => self.tokens = tokens.or(self.tokens),
            Delta::Ping => out.put_slice(b": ping\n\n"),
            Delta::Error(error) => self.fail(&error, out),
            Delta::End => self.end(out),
        }
        Ok(())
    }
}
