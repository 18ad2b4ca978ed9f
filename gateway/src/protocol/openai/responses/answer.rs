//! Writer of the answer of a built-in model in the form of the Responses API, as an event stream or as a whole. The last
//! events of a stream repeat the text, so that the writer keeps the items until the end; the model's context bounds them.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use spillway_engine::WrittenToken;
use spillway_filter::Refusal;

use super::shapes::{
    ArgumentsDelta, ArgumentsDone, Body, ErrorBody, Incomplete, Item, ItemEvent, Part, PartEvent, Place, TextDelta,
    TextDone, UsageBody, error_event,
};
use crate::protocol::chat::{Call, Choice, FinishReason, Usage};
use crate::protocol::dialect::{AnswerHead, WriteAnswer};
use crate::protocol::openai::error;
use crate::protocol::openai::response::put_json;
use crate::protocol::openai::response::shapes::{Logprobs, TokenLogprobs};

/// Item of the output so far.
#[derive(Debug)]
enum Output {
    Message { id: String, text: String, written: Vec<WrittenToken>, is_open: bool },
    Call { id: String, call: Call },
}

/// Writer of the answer to one request.
#[derive(Debug)]
pub(in crate::protocol::openai) struct Answer {
    id: String,
    /// Random part of the ids of its items.
    item: String,
    created: u64,
    model: String,
    echoed: Box<str>,
    /// Number of the next event.
    sequence: u64,
    output: Vec<Output>,
    reason: FinishReason,
}

/// Outcome of an answer.
struct Outcome<'a> {
    status: &'static str,
    error: Option<ErrorBody<'a>>,
    usage: Option<Usage>,
}

impl Outcome<'_> {
    const RUNNING: Self = Self { status: "in_progress", error: None, usage: None };
}

/// Status of an answer, and of its text, that ended for this reason.
fn status(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "incomplete",
        FinishReason::Stop | FinishReason::ToolCalls => "completed",
    }
}

fn logprobs(written: &[WrittenToken]) -> Vec<TokenLogprobs<'_>> {
    Logprobs::from(written).content
}

impl Output {
    /// Item as it is written, where the text of the answer has this status.
    fn item(&self, status: &'static str) -> Item<'_> {
        match self {
            Self::Message { id, text, written, .. } => {
                Item::message(id, status, vec![Part::text(text, logprobs(written))])
            }
            Self::Call { id, call } => Item::call(id, "completed", call),
        }
    }
}

#[derive(Serialize)]
struct Event<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    members: T,
}

impl Answer {
    /// Begins an answer with this head.
    pub(in crate::protocol::openai) fn begin(head: AnswerHead<'_>) -> Self {
        Self {
            id: format!("resp_{}", head.id.simple()),
            item: head.id.simple().to_string(),
            created: head.created,
            model: head.model.to_owned(),
            echoed: head.echoed.into(),
            sequence: 0,
            output: Vec::new(),
            reason: FinishReason::default(),
        }
    }

    /// Writes an event with these members.
    fn event(sequence: &mut u64, out: &mut BytesMut, kind: &'static str, members: impl Serialize) {
        Self::open_event(out, kind);
        put_json(out, &Event { kind, sequence_number: *sequence, members });
        out.put_slice(b"\n\n");
        *sequence = sequence.saturating_add(1);
    }

    fn open_event(out: &mut BytesMut, kind: &'static str) {
        out.put_slice(b"event: ");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\ndata: ");
    }

    /// Writes an event with the answer so far.
    fn event_of_answer(&mut self, out: &mut BytesMut, kind: &'static str, outcome: Outcome<'_>) {
        Self::open_event(out, kind);
        out.put_slice(b"{\"type\":\"");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\",\"sequence_number\":");
        put_json(out, &self.sequence);
        out.put_slice(b",\"response\":");
        self.put_answer(out, outcome);
        out.put_slice(b"}\n\n");
        self.sequence = self.sequence.saturating_add(1);
    }

    /// Writes the answer's object.
    fn put_answer(&self, out: &mut BytesMut, outcome: Outcome<'_>) {
        let Outcome { status, error, usage } = outcome;
        let text_status = if status == "failed" { "incomplete" } else { status };
        let body = Body {
            id: &self.id,
            object: "response",
            created_at: self.created,
            completed_at: (status == "completed").then(crate::clock::unix_now),
            status,
            error,
            incomplete_details: (status == "incomplete").then_some(Incomplete { reason: "max_output_tokens" }),
            model: &self.model,
            output: self.output.iter().map(|output| output.item(text_status)).collect(),
            usage: usage.map(UsageBody::from),
        };
        put_json(out, &body);
        if !self.echoed.is_empty() {
            // Behind the last member, in place of the brace.
            out.truncate(out.len().saturating_sub(1));
            out.put_slice(b",");
            out.put_slice(self.echoed.as_bytes());
            out.put_slice(b"}");
        }
    }

    /// Begins a message, unless one has begun.
    fn open_message(&mut self, out: &mut BytesMut) {
        if matches!(self.output.last(), Some(Output::Message { is_open: true, .. })) {
            return;
        }
        let output_index = self.output.len();
        let id = format!("msg_{}{output_index}", self.item);
        let item = Item::message(&id, "in_progress", Vec::new());
        Self::event(&mut self.sequence, out, "response.output_item.added", ItemEvent { output_index, item });
        let place = Place { item_id: &id, output_index, content_index: 0 };
        let part = PartEvent { place, part: Part::text("", Vec::new()) };
        Self::event(&mut self.sequence, out, "response.content_part.added", part);
        self.output.push(Output::Message { id, text: String::new(), written: Vec::new(), is_open: true });
    }

    /// Ends the message that has begun, if any.
    fn close_message(&mut self, out: &mut BytesMut, status: &'static str) {
        let output_index = self.output.len().saturating_sub(1);
        let Some(last) = self.output.last_mut() else { return };
        let Output::Message { is_open, .. } = last else { return };
        if !std::mem::take(is_open) {
            return;
        }
        if let Output::Message { id, text, written, .. } = &*last {
            let place = || Place { item_id: id, output_index, content_index: 0 };
            let done = TextDone { place: place(), text, logprobs: logprobs(written) };
            Self::event(&mut self.sequence, out, "response.output_text.done", done);
            let part = PartEvent { place: place(), part: Part::text(text, logprobs(written)) };
            Self::event(&mut self.sequence, out, "response.content_part.done", part);
        }
        let item = ItemEvent { output_index, item: last.item(status) };
        Self::event(&mut self.sequence, out, "response.output_item.done", item);
    }

    fn push_call(&mut self, call: &Call) {
        let id = format!("fc_{}{}", self.item, self.output.len());
        self.output.push(Output::Call { id, call: call.clone() });
    }
}

impl WriteAnswer for Answer {
    fn id(&self) -> &str {
        &self.id
    }

    fn first(&mut self, out: &mut BytesMut, _choice: u32) {
        self.event_of_answer(out, "response.created", Outcome::RUNNING);
        self.event_of_answer(out, "response.in_progress", Outcome::RUNNING);
    }

    /// Streams of this API are not continued.
    fn resumed(&mut self, _out: &mut BytesMut) {}

    fn piece(
        &mut self,
        out: &mut BytesMut,
        _choice: u32,
        text: &str,
        written: Option<&[WrittenToken]>,
        _reported: usize,
    ) -> usize {
        self.open_message(out);
        let output_index = self.output.len().saturating_sub(1);
        let Some(Output::Message { id, text: so_far, written: tokens, .. }) = self.output.last_mut() else { return 0 };
        so_far.push_str(text);
        tokens.extend_from_slice(written.unwrap_or_default());
        let place = Place { item_id: id, output_index, content_index: 0 };
        let delta = TextDelta { place, delta: text, logprobs: logprobs(written.unwrap_or_default()) };
        Self::event(&mut self.sequence, out, "response.output_text.delta", delta);
        0
    }

    fn call(&mut self, out: &mut BytesMut, _choice: u32, _n: usize, call: &Call) {
        self.close_message(out, "completed");
        let output_index = self.output.len();
        self.push_call(call);
        let Some(Output::Call { id, call }) = self.output.last() else { return };
        let sequence = &mut self.sequence;
        let item = Item::call(id, "in_progress", call);
        Self::event(sequence, out, "response.output_item.added", ItemEvent { output_index, item });
        let delta = ArgumentsDelta { item_id: id, output_index, delta: &call.arguments };
        Self::event(sequence, out, "response.function_call_arguments.delta", delta);
        let done = ArgumentsDone { item_id: id, output_index, name: &call.name, arguments: &call.arguments };
        Self::event(sequence, out, "response.function_call_arguments.done", done);
        let item = Item::call(id, "completed", call);
        Self::event(sequence, out, "response.output_item.done", ItemEvent { output_index, item });
    }

    fn ended(&mut self, out: &mut BytesMut, _choice: u32, reason: FinishReason) {
        self.reason = reason;
        if self.output.is_empty() {
            self.open_message(out);
        }
        self.close_message(out, status(reason));
    }

    fn last(&mut self, out: &mut BytesMut, usage: Usage) {
        let status = status(self.reason);
        let kind = if status == "completed" { "response.completed" } else { "response.incomplete" };
        self.event_of_answer(out, kind, Outcome { status, error: None, usage: Some(usage) });
    }

    fn failed(&mut self, out: &mut BytesMut, refusal: &Refusal) {
        out.put_slice(&error_event(refusal, error::kind(refusal), Some(self.sequence)));
        self.sequence = self.sequence.saturating_add(1);
        let outcome = Outcome { status: "failed", error: Some(refusal.into()), usage: None };
        self.event_of_answer(out, "response.failed", outcome);
    }

    fn whole(&mut self, out: &mut BytesMut, choices: &[Choice], usage: Usage) {
        let Some(choice) = choices.first() else { return };
        if choice.calls.is_empty() || !choice.text.is_empty() {
            self.output.push(Output::Message {
                id: format!("msg_{}0", self.item),
                text: choice.text.clone(),
                written: choice.written.clone().unwrap_or_default(),
                is_open: false,
            });
        }
        choice.calls.iter().for_each(|call| self.push_call(call));
        self.put_answer(out, Outcome { status: status(choice.finish_reason), error: None, usage: Some(usage) });
    }
}
